//! A request as a WSGI environ, by PEP 3333 and RFC 3875.

use std::net::IpAddr;

use bytes::{BufMut, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, COOKIE};
use http::{HeaderName, Version};

use crate::message::{Credential, Request, RequestBody, Scheme};
use crate::workers::text;

/// Writes the environ as `name NUL value NUL` and returns the number of pairs.
///
/// The request's headers are clean already: no name holds an underscore, so none can pose as
/// another, and no value holds NUL.
pub fn encode(request: &Request, out: &mut BytesMut) -> u16 {
    let mut block = Block { out, pairs: 0 };
    let client = &request.client;
    block.pair("REQUEST_METHOD", request.method.as_str().as_bytes());
    block.pair("SCRIPT_NAME", b"");
    block.pair("PATH_INFO", &request.path);
    block.pair("QUERY_STRING", request.query.as_bytes());
    block.pair("REQUEST_URI", request.target.as_bytes());
    block.pair("SERVER_PROTOCOL", protocol(request.version));
    block.pair("SERVER_NAME", client.server_name.as_bytes());
    block.number("SERVER_PORT", client.server_port.into());
    match client.address {
        Some(address) => block.address("REMOTE_ADDR", address),
        None => block.pair("REMOTE_ADDR", b""),
    }
    if let Some(port) = client.port {
        block.number("REMOTE_PORT", port.into());
    }
    block.pair("wsgi.url_scheme", client.scheme.as_str().as_bytes());
    if client.scheme == Scheme::Https {
        block.pair("HTTPS", b"on");
    }
    block.credential(&client.credential);
    let announced = || request.headers.contains_key(CONTENT_LENGTH);
    let length = match &request.body {
        // A length that was announced stays visible when it is 0; any other is the true one.
        RequestBody::Here(body) => (!body.is_empty() || announced()).then(|| body.len()),
        RequestBody::Later(announced) => *announced,
    };
    if let Some(length) = length {
        block.number("CONTENT_LENGTH", length);
    }
    for name in request.headers.keys() {
        if name == CONTENT_LENGTH {
            continue;
        }
        block.header(name, request);
    }
    block.pairs
}

fn protocol(version: Version) -> &'static [u8] {
    match version {
        Version::HTTP_10 => b"HTTP/1.0",
        Version::HTTP_2 => b"HTTP/2.0",
        _ => b"HTTP/1.1",
    }
}

struct Block<'a> {
    out: &'a mut BytesMut,
    pairs: u16,
}

impl Block<'_> {
    fn pair(&mut self, name: &str, value: &[u8]) {
        self.out.put_slice(name.as_bytes());
        self.out.put_u8(0);
        self.out.put_slice(value);
        self.end();
    }

    fn number(&mut self, name: &str, value: u64) {
        self.out.put_slice(name.as_bytes());
        self.out.put_u8(0);
        text::number(self.out, value);
        self.end();
    }

    fn address(&mut self, name: &str, value: IpAddr) {
        self.out.put_slice(name.as_bytes());
        self.out.put_u8(0);
        text::address(self.out, value);
        self.end();
    }

    /// Under the names that nginx and Apache use. No header can have them: those begin with `HTTP_`.
    fn credential(&mut self, credential: &Credential) {
        match credential {
            Credential::Unasked => {}
            Credential::Missing => self.pair("SSL_CLIENT_VERIFY", b"NONE"),
            Credential::Certificate(certificate) => {
                self.pair("SSL_CLIENT_VERIFY", b"SUCCESS");
                self.pair("SSL_CLIENT_S_DN", certificate.subject.as_bytes());
                self.pair("SSL_CLIENT_I_DN", certificate.issuer.as_bytes());
                self.pair("SSL_CLIENT_M_SERIAL", certificate.serial.as_bytes());
                self.pair("SSL_CLIENT_FINGERPRINT", certificate.fingerprint.as_bytes());
            }
        }
    }

    fn end(&mut self) {
        self.out.put_u8(0);
        self.pairs += 1;
    }

    /// Repeated lines become one value, as RFC 9110 section 5.3 (and RFC 9113 section 8.2.3 for
    /// cookies) joins them.
    fn header(&mut self, name: &HeaderName, request: &Request) {
        if *name != CONTENT_TYPE {
            self.out.put_slice(b"HTTP_");
        }
        let start = self.out.len();
        self.out.put_slice(name.as_str().as_bytes());
        for byte in &mut self.out[start..] {
            *byte = match *byte {
                b'-' => b'_',
                other => other.to_ascii_uppercase(),
            };
        }
        self.out.put_u8(0);
        let separator: &[u8] = if *name == COOKIE { b"; " } else { b", " };
        for (index, value) in request.headers.get_all(name).iter().enumerate() {
            if index > 0 {
                self.out.put_slice(separator);
            }
            self.out.put_slice(value.as_bytes());
        }
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::time::Instant;

    use bytes::Bytes;
    use http::{HeaderMap, HeaderValue, Method};

    use super::*;
    use crate::message::{Client, ClientCertificate};
    use crate::record::{Id, Record};
    use crate::spool::Body;

    fn environ(
        headers: &[(&'static str, &'static str)],
        body: &'static [u8],
    ) -> HashMap<String, String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let request = Request {
            method: Method::POST,
            version: Version::HTTP_11,
            target: "/a%20b?x=1".into(),
            path: b"/a b".to_vec(),
            query: "x=1".into(),
            headers: map,
            client: Client {
                address: Some([192, 0, 2, 7].into()),
                port: Some(4711),
                peer: None,
                scheme: Scheme::Https,
                host: None,
                server_name: "shop.example".into(),
                server_port: 443,
                credential: Credential::Certificate(Arc::new(ClientCertificate {
                    subject: "CN=till 7,O=Shop".to_owned(),
                    issuer: "CN=Shop CA".to_owned(),
                    serial: "01ff".to_owned(),
                    fingerprint: "00ab".to_owned(),
                })),
            },
            record: Record::new(Id::new(), None, Instant::now()),
            body: RequestBody::Here(Body::Memory(Bytes::from_static(body))),
            upgrade: None,
        };
        let mut block = BytesMut::new();
        let pairs = encode(&request, &mut block);
        let text = String::from_utf8(block.to_vec()).expect("ascii");
        let mut parts = text.split('\0');
        let map: HashMap<_, _> =
            std::iter::from_fn(|| Some((parts.next()?.to_owned(), parts.next()?.to_owned())))
                .collect();
        assert_eq!(usize::from(pairs), map.len());
        map
    }

    #[test]
    fn the_environ_names_what_pep_3333_asks_for() {
        let environ = environ(
            &[("content-type", "text/plain"), ("host", "shop.example")],
            b"hello",
        );
        for (name, value) in [
            ("REQUEST_METHOD", "POST"),
            ("SCRIPT_NAME", ""),
            ("PATH_INFO", "/a b"),
            ("QUERY_STRING", "x=1"),
            ("CONTENT_TYPE", "text/plain"),
            ("CONTENT_LENGTH", "5"),
            ("SERVER_NAME", "shop.example"),
            ("SERVER_PORT", "443"),
            ("SERVER_PROTOCOL", "HTTP/1.1"),
            ("REMOTE_ADDR", "192.0.2.7"),
            ("wsgi.url_scheme", "https"),
            ("HTTPS", "on"),
            ("SSL_CLIENT_VERIFY", "SUCCESS"),
            ("SSL_CLIENT_S_DN", "CN=till 7,O=Shop"),
            ("SSL_CLIENT_I_DN", "CN=Shop CA"),
            ("SSL_CLIENT_M_SERIAL", "01ff"),
            ("SSL_CLIENT_FINGERPRINT", "00ab"),
            ("HTTP_HOST", "shop.example"),
            ("REQUEST_URI", "/a%20b?x=1"),
        ] {
            assert_eq!(environ.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(!environ.contains_key("HTTP_CONTENT_TYPE"));
    }

    #[test]
    fn repeated_headers_become_one() {
        let environ = environ(
            &[
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("x-list", "1"),
                ("x-list", "2"),
            ],
            b"",
        );
        assert_eq!(environ["HTTP_COOKIE"], "a=1; b=2");
        assert_eq!(environ["HTTP_X_LIST"], "1, 2");
        assert!(!environ.contains_key("CONTENT_LENGTH"));
    }

    #[test]
    fn an_announced_empty_body_has_length_zero() {
        assert_eq!(
            environ(&[("content-length", "0")], b"")["CONTENT_LENGTH"],
            "0"
        );
    }
}
