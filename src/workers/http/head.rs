//! Heads on the way to an HTTP server and back. Pure: bytes and types, no I/O.
//!
//! A request's head is made anew: who it is from, how its body is framed and what it asks of the
//! connection is said by the gateway alone. An answer whose framing can be read in two ways is refused.

use std::mem::MaybeUninit;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING,
    UPGRADE,
};
use http::{Method, StatusCode};

use super::body::Framing;
use super::plans::{TOKEN, Token};
use crate::message::{Credential, Request, RequestBody};
use crate::workers::text;

/// The longest head that an answer may have, and the most lines in it.
const MAX_HEAD: usize = 64 * 1024;
const MAX_LINES: usize = 128;

/// Headers that an answer may get on its way to the client, so that its map need not grow for them.
const ADDED: usize = 2;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");

/// Writes a request's head.
///
/// The headers are vetted: nothing of the client's hop is left in them, and of forwarding only what a trusted
/// proxy said. The token is for a server that may answer with a plan.
pub fn encode(request: &Request, token: Option<Token>, out: &mut BytesMut) {
    out.put_slice(request.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(request.target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    let host = request.headers.get(HOST).map(HeaderValue::as_bytes);
    // HTTP/1.0 knows no Host, but the server may ask for one.
    let host = host.unwrap_or(request.client.server_name.as_bytes());
    line(out, "host", host);
    let mut forwarded = false;
    for (name, value) in &request.headers {
        if is_ours(name) {
            forwarded |= *name != HOST && *name != CONTENT_LENGTH;
        } else {
            line(out, name.as_str(), value.as_bytes());
        }
    }
    match forwarded {
        true => forwarding(request, host, out),
        false => first_forwarding(request, host, out),
    }
    credential(&request.client.credential, out);
    if let Some(length) = length(request) {
        number(out, "content-length", length);
    }
    if let Some(token) = token {
        line(out, TOKEN.as_str(), token.as_bytes());
    }
    if let Some(protocol) = &request.upgrade {
        line(out, "connection", b"upgrade");
        line(out, "upgrade", protocol.as_bytes());
    }
    out.put_slice(b"\r\n");
}

/// Headers that are written apart.
fn is_ours(name: &HeaderName) -> bool {
    *name == HOST
        || *name == CONTENT_LENGTH
        || (name.as_str().starts_with("x-forwarded-")
            && [
                FORWARDED_FOR,
                FORWARDED_PROTO,
                FORWARDED_HOST,
                FORWARDED_PORT,
            ]
            .contains(name))
}

/// Who the request is from and how it came, for a server that sees a connection from this gateway only.
fn forwarding(request: &Request, host: &[u8], out: &mut BytesMut) {
    let client = &request.client;
    let chain = || request.headers.get_all(FORWARDED_FOR).iter();
    if client.peer.is_some() || chain().next().is_some() {
        out.put_slice(b"x-forwarded-for: ");
        let mut separator: &[u8] = b"";
        for hop in chain() {
            out.put_slice(separator);
            out.put_slice(hop.as_bytes());
            separator = b", ";
        }
        if let Some(peer) = client.peer {
            out.put_slice(separator);
            text::address(out, peer);
        }
        out.put_slice(b"\r\n");
    }
    to_whom(request, host, out);
}

/// The same where no proxy has said anything.
fn first_forwarding(request: &Request, host: &[u8], out: &mut BytesMut) {
    if let Some(peer) = request.client.peer {
        out.put_slice(b"x-forwarded-for: ");
        text::address(out, peer);
        out.put_slice(b"\r\n");
    }
    to_whom(request, host, out);
}

/// What the client has asked, as it sees it.
fn to_whom(request: &Request, host: &[u8], out: &mut BytesMut) {
    let client = &request.client;
    line(out, "x-forwarded-proto", client.scheme.as_str().as_bytes());
    // The one that this gateway has gone by, not what the header's lines may say besides.
    let host = client.host.as_deref().map_or(host, str::as_bytes);
    line(out, "x-forwarded-host", host);
    number(out, "x-forwarded-port", client.server_port.into());
}

/// What the client has shown of itself. Nobody else can say it: such headers of a client's are removed.
fn credential(credential: &Credential, out: &mut BytesMut) {
    match credential {
        Credential::Unasked => {}
        Credential::Missing => line(out, "layby-ssl-client-verify", b"NONE"),
        Credential::Certificate(certificate) => {
            line(out, "layby-ssl-client-verify", b"SUCCESS");
            for (name, value) in [
                ("layby-ssl-client-s-dn", &certificate.subject),
                ("layby-ssl-client-i-dn", &certificate.issuer),
                ("layby-ssl-client-m-serial", &certificate.serial),
                ("layby-ssl-client-fingerprint", &certificate.fingerprint),
            ] {
                line(out, name, value.as_bytes());
            }
        }
    }
}

/// A length that was announced stays visible when it is 0, and where a body is usual there is always one.
fn length(request: &Request) -> Option<u64> {
    let RequestBody::Here(body) = &request.body else {
        unreachable!("a body that is for an upstream is collected first");
    };
    let usual = matches!(request.method, Method::POST | Method::PUT | Method::PATCH);
    let announced = || request.headers.contains_key(CONTENT_LENGTH);
    (usual || !body.is_empty() || announced()).then(|| body.len())
}

fn line(out: &mut BytesMut, name: &str, value: &[u8]) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn number(out: &mut BytesMut, name: &str, value: u64) {
    out.put_slice(name.as_bytes());
    out.put_slice(b": ");
    text::number(out, value);
    out.put_slice(b"\r\n");
}

/// The head of an answer.
#[derive(Debug)]
pub struct Head {
    pub status: StatusCode,
    /// Only when it is not the usual one for the status.
    pub reason: Option<Bytes>,
    pub headers: HeaderMap,
    pub body: Framing,
    /// The connection may carry another request after this answer.
    pub keeps: bool,
}

/// Where the parts of a header line are in the head.
struct Place {
    name: (usize, usize),
    value: (usize, usize),
}

/// Takes the head of the answer to such a request off the front of `buffer`; None if not all of it is there.
/// Interim answers before it are dropped.
///
/// # Errors
/// What makes it no answer that can be passed on.
pub fn decode(
    buffer: &mut BytesMut,
    method: &Method,
    upgrades: bool,
) -> Result<Option<Head>, &'static str> {
    loop {
        let Some(head) = one(buffer, method)? else {
            return Ok(None);
        };
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return match upgrades && head.headers.contains_key(UPGRADE) {
                true => Ok(Some(head)),
                false => Err("it changes the protocol, which nobody asked for"),
            };
        }
        if !head.status.is_informational() {
            return Ok(Some(head));
        }
    }
}

fn one(buffer: &mut BytesMut, method: &Method) -> Result<Option<Head>, &'static str> {
    let mut lines = [const { MaybeUninit::uninit() }; MAX_LINES];
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut parsed, buffer, &mut lines) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if buffer.len() > MAX_HEAD => {
            return Err("its head is too long");
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err("it has too many headers"),
        Err(_) => return Err("it is not HTTP"),
    };
    let (Some(version), Some(code)) = (parsed.version, parsed.code) else {
        return Err("it is not HTTP");
    };
    let status = StatusCode::from_u16(code).map_err(|_| "its status is no status")?;
    let start = buffer.as_ptr() as usize;
    let within = |part: &[u8]| {
        let from = part.as_ptr() as usize - start;
        (from, from + part.len())
    };
    let reason = parsed
        .reason
        .filter(|reason| !reason.is_empty() && Some(*reason) != status.canonical_reason());
    let reason = reason.map(|reason| within(reason.as_bytes()));
    let place = |line: &httparse::Header<'_>| Place {
        name: within(line.name.as_bytes()),
        value: within(line.value),
    };
    let places: Vec<Place> = parsed.headers.iter().map(place).collect();
    // A copy for all of it, so that the connection keeps the room that it reads into.
    let bytes = Bytes::copy_from_slice(&buffer[..length]);
    buffer.advance(length);
    let mut headers = HeaderMap::with_capacity(places.len() + ADDED);
    for Place { name, value } in &places {
        let name = HeaderName::from_bytes(&bytes[name.0..name.1])
            .map_err(|_| "one of its headers has an invalid name")?;
        let value = HeaderValue::from_maybe_shared(bytes.slice(value.0..value.1))
            .map_err(|_| "one of its headers has an invalid value")?;
        headers.append(name, value);
    }
    let framing = framing(&headers, status, version, method)?;
    Ok(Some(Head {
        status,
        reason: reason.map(|(from, to)| bytes.slice(from..to)),
        keeps: keeps(&headers, version)
            && framing != Framing::UntilClose
            && !may_be_followed(&headers, status, method),
        headers,
        body: framing,
    }))
}

/// How the body is framed (RFC 9112 section 6.3), where that can be read in one way only.
fn framing(
    headers: &HeaderMap,
    status: StatusCode,
    version: u8,
    method: &Method,
) -> Result<Framing, &'static str> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    if let Some(coding) = coding {
        if headers.contains_key(CONTENT_LENGTH) {
            return Err("it has both Content-Length and Transfer-Encoding");
        }
        if version == 0 {
            return Err("it has Transfer-Encoding in HTTP/1.0");
        }
        if codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err("its Transfer-Encoding is not just chunked");
        }
    }
    let length = length_of(headers)?;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(match (coding, length) {
        _ if bodiless => Framing::Nothing,
        (Some(_), _) => Framing::chunked(),
        (None, Some(0)) => Framing::Nothing,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => Framing::UntilClose,
    })
}

/// Some servers send the body that an answer must not have, in a second write: it may still be on its way.
fn may_be_followed(headers: &HeaderMap, status: StatusCode, method: &Method) -> bool {
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let announced = [CONTENT_LENGTH, TRANSFER_ENCODING];
    *method == Method::HEAD || (bodiless && announced.iter().any(|name| headers.contains_key(name)))
}

fn length_of(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err("it has more than one Content-Length");
    }
    let digits = line.to_str().ok();
    digits
        .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|digits| digits.parse().ok())
        .map(Some)
        .ok_or("its Content-Length is invalid")
}

fn keeps(headers: &HeaderMap, version: u8) -> bool {
    let says = |word: &[u8]| {
        let lines = headers.get_all(CONNECTION).iter();
        lines
            .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
            .any(|token| token.trim_ascii().eq_ignore_ascii_case(word))
    };
    match version {
        0 => says(b"keep-alive"),
        _ => !says(b"close"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Instant;

    use http::Version;
    use proptest::prelude::*;

    use super::*;
    use std::sync::Arc;

    use crate::message::{Client, ClientCertificate, Scheme};
    use crate::record::{Id, Record};
    use crate::spool::Body;

    fn request(method: Method, headers: &[(&'static str, &'static str)], body: &str) -> Request {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        Request {
            method,
            version: Version::HTTP_11,
            target: "/a%20b?c=d".into(),
            path: b"/a b".to_vec(),
            query: "c=d".to_owned(),
            headers: headers.iter().map(pair).collect(),
            client: Client {
                credential: Credential::Unasked,
                address: Some(IpAddr::from([203, 0, 113, 9])),
                port: Some(5000),
                peer: Some(IpAddr::from([10, 0, 0, 7])),
                scheme: Scheme::Https,
                host: None,
                server_name: "shop.example".to_owned(),
                server_port: 443,
            },
            record: Record::new(Id::new(), None, Instant::now()),
            body: RequestBody::Here(Body::Memory(Bytes::copy_from_slice(body.as_bytes()))),
            upgrade: None,
        }
    }

    fn encoded(request: &Request) -> String {
        let mut out = BytesMut::new();
        encode(request, None, &mut out);
        String::from_utf8(out.to_vec()).expect("text")
    }

    #[test]
    fn a_request_says_who_it_is_from_and_how_long_it_is() {
        let headers = [
            ("host", "shop.example"),
            ("cookie", "a=1"),
            ("cookie", "b=2"),
            ("content-length", "7"),
            ("x-forwarded-for", "6.6.6.6, 203.0.113.9"),
            ("x-forwarded-proto", "http, https"),
            ("accept", "*/*"),
        ];
        assert_eq!(
            encoded(&request(Method::POST, &headers, "12345")),
            "POST /a%20b?c=d HTTP/1.1\r\n\
             host: shop.example\r\n\
             cookie: a=1\r\n\
             cookie: b=2\r\n\
             accept: */*\r\n\
             x-forwarded-for: 6.6.6.6, 203.0.113.9, 10.0.0.7\r\n\
             x-forwarded-proto: https\r\n\
             x-forwarded-host: shop.example\r\n\
             x-forwarded-port: 443\r\n\
             content-length: 5\r\n\r\n"
        );
    }

    #[test]
    fn the_host_that_is_told_is_the_one_that_was_decided_on() {
        let told = |decided: Option<&str>, headers: &[_]| {
            let mut request = request(Method::GET, headers, "");
            request.client.host = decided.map(str::to_owned);
            let text = encoded(&request);
            assert!(text.contains("\r\nhost: inside\r\n"), "{text}");
            let mut lines = text.lines();
            let line = lines.find_map(|line| line.strip_prefix("x-forwarded-host: "));
            assert!(!lines.any(|line| line.starts_with("x-forwarded-host")));
            line.map(str::to_owned)
        };
        let decided = Some("shop.example:8443");
        for said in [
            &[][..],
            &[
                ("x-forwarded-host", "evil"),
                ("x-forwarded-host", "shop.example:8443"),
            ],
            &[("x-forwarded-host", "evil, shop.example:8443")],
            &[("forwarded", "for=203.0.113.9;host=\"shop.example:8443\"")],
        ] {
            let headers = [&[("host", "inside")][..], said].concat();
            assert_eq!(told(decided, &headers).as_deref(), decided);
        }
        // Nothing in it counted.
        let headers = [("host", "inside"), ("x-forwarded-host", "evil, ")];
        assert_eq!(told(None, &headers).as_deref(), Some("inside"));
    }

    #[test]
    fn a_length_is_sent_where_there_is_a_body_or_one_is_usual() {
        let length = |method, headers: &[_], body| {
            let text = encoded(&request(method, headers, body));
            text.lines()
                .find_map(|line| line.strip_prefix("content-length: ").map(str::to_owned))
        };
        assert_eq!(length(Method::GET, &[], ""), None);
        assert_eq!(length(Method::DELETE, &[], ""), None);
        assert_eq!(length(Method::POST, &[], "").as_deref(), Some("0"));
        assert_eq!(
            length(Method::GET, &[("content-length", "0")], "").as_deref(),
            Some("0")
        );
        assert_eq!(length(Method::GET, &[], "x").as_deref(), Some("1"));
    }

    #[test]
    fn an_upgrade_is_asked_for_in_the_gateways_words() {
        let mut request = request(
            Method::GET,
            &[("host", "a"), ("sec-websocket-key", "k")],
            "",
        );
        request.upgrade = Some(HeaderValue::from_static("websocket"));
        let text = encoded(&request);
        assert!(
            text.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"),
            "{text}"
        );
    }

    fn answer(bytes: &[u8]) -> Result<Option<Head>, &'static str> {
        decode(&mut BytesMut::from(bytes), &Method::GET, false)
    }

    #[test]
    fn bodies_are_framed_as_the_standard_says() {
        let framed = |text: &str| {
            let head = answer(text.as_bytes()).expect(text).expect(text);
            (head.body, head.keeps)
        };
        let whole = "HTTP/1.1 200 OK\r\n";
        assert_eq!(
            framed(&format!("{whole}Content-Length: 5\r\n\r\n")),
            (Framing::Length(5), true)
        );
        assert_eq!(
            framed(&format!("{whole}transfer-encoding: Chunked\r\n\r\n")),
            (Framing::chunked(), true)
        );
        assert_eq!(
            framed(&format!("{whole}\r\n")),
            (Framing::UntilClose, false)
        );
        assert_eq!(
            framed(&format!(
                "{whole}Content-Length: 5\r\nConnection: x, Close\r\n\r\n"
            )),
            (Framing::Length(5), false)
        );
        assert_eq!(
            framed("HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n"),
            (Framing::Nothing, false)
        );
        assert_eq!(framed("HTTP/1.1 304 x\r\n\r\n"), (Framing::Nothing, true));
        assert_eq!(framed("HTTP/1.1 204 x\r\n\r\n"), (Framing::Nothing, true));
        assert_eq!(
            framed("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n"),
            (Framing::Length(5), false)
        );
        assert_eq!(
            framed("HTTP/1.0 200 OK\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\n"),
            (Framing::Length(5), true)
        );
    }

    #[test]
    fn what_may_come_behind_an_answer_without_a_body_is_not_the_next_answer() {
        let kept = |method: Method, text: &str| {
            let head = decode(&mut BytesMut::from(text.as_bytes()), &method, false);
            head.expect(text).expect(text).keeps
        };
        for (text, get) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
            (
                "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n",
                false,
            ),
            (
                "HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n",
                false,
            ),
        ] {
            assert_eq!(kept(Method::GET, text), get, "{text}");
            assert!(!kept(Method::HEAD, text), "{text}");
        }
    }

    #[test]
    fn an_upstream_is_told_what_its_client_has_shown_of_itself() {
        let told = |credential| {
            let mut request = request(Method::GET, &[("host", "a")], "");
            request.client.credential = credential;
            let text = encoded(&request);
            let lines = text.lines().filter(|line| line.starts_with("layby-"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(told(Credential::Unasked).is_empty());
        assert_eq!(told(Credential::Missing), ["layby-ssl-client-verify: NONE"]);
        let certificate = ClientCertificate {
            subject: "O=Shop,CN=till 7".to_owned(),
            issuer: "CN=Authority".to_owned(),
            serial: "0a".to_owned(),
            fingerprint: "00ff".to_owned(),
        };
        assert_eq!(
            told(Credential::Certificate(Arc::new(certificate))),
            [
                "layby-ssl-client-verify: SUCCESS",
                "layby-ssl-client-s-dn: O=Shop,CN=till 7",
                "layby-ssl-client-i-dn: CN=Authority",
                "layby-ssl-client-m-serial: 0a",
                "layby-ssl-client-fingerprint: 00ff",
            ]
        );
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for head in [
            "content-length: 5\r\ntransfer-encoding: chunked\r\n",
            "content-length: 5\r\ncontent-length: 5\r\n",
            "content-length: +5\r\n",
            "content-length: 0x5\r\n",
            "content-length: \r\n",
            "content-length: 5, 5\r\n",
            "transfer-encoding: gzip, chunked\r\n",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            "transfer-encoding: identity\r\n",
            "a b: c\r\n",
            "a: b\r\n c\r\n",
            "a: b\0c\r\n",
        ] {
            assert!(
                answer(format!("HTTP/1.1 200 OK\r\n{head}\r\n").as_bytes()).is_err(),
                "{head:?}"
            );
        }
        for garbage in [
            "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "<html>not found</html>\r\n\r\n",
            "HTTP/1.1 99 no\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n",
        ] {
            assert!(answer(garbage.as_bytes()).is_err(), "{garbage:?}");
        }
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(MAX_HEAD));
        assert!(answer(long.as_bytes()).is_err());
    }

    #[test]
    fn interim_answers_are_dropped_and_a_wanted_upgrade_passes() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
                     HTTP/1.1 200 Fine\r\nset-cookie: a\r\nset-cookie: b\r\ncontent-length: 1\r\n\r\nx";
        let mut buffer = BytesMut::from(&text[..]);
        let head = decode(&mut buffer, &Method::GET, false)
            .expect("an answer")
            .expect("whole");
        assert_eq!(
            (head.status.as_u16(), head.reason.as_deref()),
            (200, Some(&b"Fine"[..]))
        );
        let cookies: Vec<_> = head.headers.get_all("set-cookie").iter().collect();
        assert_eq!(cookies, ["a", "b"]);
        assert_eq!(&buffer[..], b"x");

        let text = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\nhello";
        let mut buffer = BytesMut::from(&text[..]);
        let head = decode(&mut buffer, &Method::GET, true)
            .expect("an answer")
            .expect("whole");
        assert_eq!(head.status, 101);
        assert_eq!(&buffer[..], b"hello");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = answer(&bytes);
            let mut after = b"HTTP/1.1 200 OK\r\n".to_vec();
            after.extend(&bytes);
            let _ = answer(&after);
        }
    }
}
