//! A request's head, vetted: framing, target, and headers that nobody but the gateway may set.
//!
//! What cannot be read in one way only is refused (RFC 9112). hyper has parsed the bytes; this
//! decides what hyper lets through. Pure: no I/O.

use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, EXPECT, FORWARDED, HOST,
    HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Version};

/// Longest target. Browsers and their servers stop earlier; what is longer is an accident or an attack.
const MAX_TARGET: usize = 32 * 1024;

/// Why a request is refused before anything else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub &'static str);

fn bad(why: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

/// A target in its parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// Origin-form, as received.
    pub raw: String,
    /// Percent-decoded.
    pub path: Vec<u8>,
    pub query: String,
}

/// Vets the head and takes out of it what the application must not see.
///
/// Forwarding headers stay: who may set them is decided by [`super::forwarded`].
///
/// # Errors
/// When the request is ambiguous, malformed, or asks for what a gateway does not do.
pub fn vet(parts: &mut Parts) -> Result<Target, Refusal> {
    framing(&parts.headers)?;
    let authority = host(parts)?;
    let target = target(parts)?;
    if let Some(authority) = authority {
        // An absolute-form target names the host; the Host line agrees, or is ambiguous.
        let agrees = parts
            .headers
            .get(HOST)
            .is_none_or(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()));
        if !agrees {
            return Err(bad("Host does not agree with the request target"));
        }
        let host =
            http::HeaderValue::from_str(&authority).map_err(|_| bad("invalid request target"))?;
        parts.headers.insert(HOST, host);
    }
    expectation(&mut parts.headers)?;
    clean(&mut parts.headers);
    Ok(target)
}

/// hyper has settled lengths; of transfer codings it lets more pass than the one we know.
fn framing(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let Some(coding) = codings.next() else {
        return Ok(());
    };
    if codings.next().is_some() {
        return Err(bad("more than one Transfer-Encoding"));
    }
    if !coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Refusal(
            StatusCode::NOT_IMPLEMENTED,
            "unknown Transfer-Encoding",
        ));
    }
    Ok(())
}

/// Exactly one valid Host (RFC 9112 section 3.2), none only in HTTP/1.0. Returns the authority of an
/// absolute-form target.
fn host(parts: &Parts) -> Result<Option<String>, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if valid_host(host.as_bytes()) => {}
        (None, _) if parts.version == Version::HTTP_10 => {}
        (None, _) => return Err(bad("Host is missing")),
        (Some(_), Some(_)) => return Err(bad("more than one Host")),
        (Some(_), None) => return Err(bad("invalid Host")),
    }
    match parts.uri.authority() {
        None => Ok(None),
        Some(authority) if valid_host(authority.as_str().as_bytes()) => {
            Ok(Some(authority.to_string()))
        }
        Some(_) => Err(bad("invalid host in the request target")),
    }
}

/// `host` or `host:port`, without userinfo.
fn valid_host(host: &[u8]) -> bool {
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    let named = !authority.host().is_empty() && !host.contains(&b'@');
    let port = &host[authority.host().len()..];
    named && (port.is_empty() || port == b":" || authority.port_u16().is_some())
}

fn target(parts: &Parts) -> Result<Target, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "CONNECT is not served here",
        ));
    }
    let uri = &parts.uri;
    match uri.scheme_str() {
        None if uri.authority().is_some() => return Err(bad("authority-form target")),
        None | Some("http" | "https") => {}
        Some(_) => return Err(bad("unknown scheme in the request target")),
    }
    if uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(bad("target * is for OPTIONS only"));
    }
    let path = percent_decode(uri.path().as_bytes());
    if path.contains(&0) {
        return Err(bad("NUL in the path"));
    }
    let raw = uri
        .path_and_query()
        .map_or("/", |target| target.as_str())
        .to_owned();
    if raw.len() > MAX_TARGET {
        return Err(Refusal(
            StatusCode::URI_TOO_LONG,
            "the request target is too long",
        ));
    }
    Ok(Target {
        raw,
        path,
        query: uri.query().unwrap_or_default().to_owned(),
    })
}

/// `%41` becomes `A`; what is no valid escape stays as it is.
fn percent_decode(raw: &[u8]) -> Vec<u8> {
    let digit = |byte: &u8| (*byte as char).to_digit(16).map(|digit| digit as u8);
    let mut decoded = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let [first, tail @ ..] = rest {
        let escaped = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                decoded.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                decoded.push(*first);
                rest = tail;
            }
        }
    }
    decoded
}

/// hyper answers `100-continue` when the body is first asked for.
fn expectation(headers: &mut HeaderMap) -> Result<(), Refusal> {
    match headers.remove(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => Err(Refusal(
            StatusCode::EXPECTATION_FAILED,
            "unknown expectation",
        )),
        _ => Ok(()),
    }
}

/// Headers that belong to one connection only (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// `Connection` may list headers of its hop, but not take these from the application.
const KEPT: [HeaderName; 6] = [
    HOST,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    COOKIE,
    AUTHORIZATION,
    FORWARDED,
];

fn clean(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    let spoofed: Vec<HeaderName> = headers
        .keys()
        .filter(|name| spoofable(name.as_str()))
        .cloned()
        .collect();
    for name in spoofed {
        headers.remove(name);
    }
}

/// A name with an underscore becomes the same CGI variable as one with a hyphen; `Proxy` becomes
/// `HTTP_PROXY`, which clients obey; `Layby-` is ours.
fn spoofable(name: &str) -> bool {
    name.contains('_') || name == "proxy" || name.starts_with("layby-")
}

/// Removes what belongs to the hop that the message came on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !KEPT.contains(name) && !name.as_str().starts_with("x-forwarded-"))
        .collect();
    for name in listed.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn vetted(request: http::request::Builder) -> Result<(Target, HeaderMap), Refusal> {
        let (mut parts, ()) = request.body(()).expect("a request").into_parts();
        vet(&mut parts).map(|target| (target, parts.headers))
    }

    fn get(target: &str) -> http::request::Builder {
        Request::get(target).header("host", "shop.example")
    }

    #[test]
    fn a_plain_request_passes() {
        let (target, headers) =
            vetted(get("/a%20b%2fc?x=%20").header("accept", "*/*")).expect("passes");
        assert_eq!(target.path, b"/a b/c");
        assert_eq!(target.query, "x=%20");
        assert_eq!(target.raw, "/a%20b%2fc?x=%20");
        assert_eq!(headers["accept"], "*/*");
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for request in [
            Request::get("/"),
            get("/").header("host", "other.example"),
            Request::get("/").header("host", ""),
            Request::get("/").header("host", "user@shop.example"),
            Request::get("/").header("host", "shop.example/path"),
            Request::get("/").header("host", "shop.example:99999"),
            get("http://other.example/"),
            get("http://user@shop.example/"),
            get("/")
                .header("transfer-encoding", "chunked")
                .header("transfer-encoding", "chunked"),
            get("/x%00REMOTE_USER%00admin"),
            get("ftp://shop.example/"),
            Request::get("shop.example:80").header("host", "shop.example:80"),
            get("*"),
        ] {
            let shown = format!("{request:?}");
            let Err(Refusal(status, _)) = vetted(request) else {
                panic!("passed: {shown}")
            };
            assert_eq!(status, 400, "{shown}");
        }
        let Err(refusal) = vetted(get("/").header("transfer-encoding", "gzip, chunked")) else {
            panic!("passed")
        };
        assert_eq!(refusal.0, 501);
        let Err(refusal) = vetted(get("/").header("expect", "200-ok")) else {
            panic!("passed")
        };
        assert_eq!(refusal.0, 417);
        let connect = Request::connect("shop.example:443").header("host", "shop.example:443");
        let Err(refusal) = vetted(connect) else {
            panic!("passed")
        };
        assert_eq!(refusal.0, 405);
    }

    #[test]
    fn an_absolute_target_and_its_host_agree() {
        let (target, headers) = vetted(get("http://SHOP.example/a?b")).expect("passes");
        assert_eq!(
            (target.raw.as_str(), &headers["host"]),
            ("/a?b", &"SHOP.example".parse().expect("a value"))
        );
        let old = Request::get("http://shop.example/").version(Version::HTTP_10);
        assert_eq!(vetted(old).expect("passes").1["host"], "shop.example");
    }

    #[test]
    fn headers_of_the_hop_and_spoofs_do_not_pass() {
        let (_, headers) = vetted(
            get("/")
                .header("connection", "x-hop, Host, cookie")
                .header("connection", "x-other")
                .header("x-hop", "1")
                .header("x-other", "1")
                .header("cookie", "a=1")
                .header("keep-alive", "1")
                .header("upgrade", "websocket")
                .header("proxy", "http://evil.example")
                .header("layby-token", "1")
                .header("x_forwarded_for", "127.0.0.1"),
        )
        .expect("passes");
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["cookie", "host"]);
    }

    proptest! {
        #[test]
        fn decoding_undoes_encoding(path in proptest::collection::vec(any::<u8>(), 0..60)) {
            let encoded: String = path.iter().map(|byte| format!("%{byte:02x}")).collect();
            prop_assert_eq!(percent_decode(encoded.as_bytes()), path);
        }

        #[test]
        fn decoding_never_grows_and_never_panics(raw in proptest::collection::vec(any::<u8>(), 0..60)) {
            prop_assert!(percent_decode(&raw).len() <= raw.len());
        }
    }
}
