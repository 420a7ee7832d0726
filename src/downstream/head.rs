//! A request's head, vetted: host, target, and headers that nobody but the gateway may set.
//!
//! What cannot be read in one way only is refused (RFC 9110, 9112 and 9113). The bytes of HTTP/1 have
//! passed [`super::framing`], those of HTTP/2 the h2 crate; from here on both versions are the same.
//! Pure: no I/O.

use std::borrow::Cow;

use http::header::{
    CONNECTION, COOKIE, EXPECT, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Version};

use super::framing::escaped;

/// Why a request is refused before anything else happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal(pub StatusCode, pub &'static str);

fn bad(why: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

/// A target in its parts.
#[derive(Debug, PartialEq, Eq)]
pub struct Target {
    /// Origin-form or `*`, in ASCII, and as received but for what no URI may hold.
    pub raw: String,
    /// Percent-decoded. Routes, files and applications all go by this one.
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
    framing(parts)?;
    host(parts)?;
    let target = target(parts)?;
    expectation(parts)?;
    clean(&mut parts.headers);
    if parts.version == Version::HTTP_2 {
        join_cookies(&mut parts.headers);
    }
    Ok(target)
}

/// Where the body ends is settled already, and not by anything that the next hop could take for more.
fn framing(parts: &Parts) -> Result<(), Refusal> {
    let headers = &parts.headers;
    if parts.version == Version::HTTP_2 {
        // RFC 9113 section 8.2.2: there is no connection to speak of.
        let of_connection = [
            CONNECTION.as_str(),
            TRANSFER_ENCODING.as_str(),
            UPGRADE.as_str(),
            KEEP_ALIVE,
            PROXY_CONNECTION,
        ];
        if of_connection.iter().any(|name| headers.contains_key(*name)) {
            return Err(bad("a header of HTTP/1 connections in HTTP/2"));
        }
        if headers.get_all(TE).iter().any(|value| value != "trailers") {
            return Err(bad("an invalid TE"));
        }
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(bad("an invalid Transfer-Encoding")),
    }
}

/// Makes Host the one name of the host.
///
/// There is exactly one (RFC 9112 section 3.2), none only in HTTP/1.0, or where the target names the host
/// in HTTP/2 (RFC 9113 section 8.3.1). Where both do, they agree.
fn host(parts: &mut Parts) -> Result<(), Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let (host, another) = (hosts.next(), hosts.next());
    let authority = parts.uri.authority().map(Authority::as_str);
    if another.is_some() {
        return Err(bad("more than one Host"));
    }
    if authority.is_some_and(|authority| !valid_host(authority.as_bytes())) {
        return Err(bad("invalid host in the request target"));
    }
    match (host, authority) {
        (Some(host), _) if !valid_host(host.as_bytes()) => return Err(bad("invalid Host")),
        (Some(host), Some(authority))
            if !host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()) =>
        {
            return Err(bad("Host does not agree with the request target"));
        }
        (Some(_), _) => {}
        (None, None) if parts.version == Version::HTTP_10 => {}
        (None, Some(_)) if parts.version != Version::HTTP_11 => {}
        (None, _) => return Err(bad("Host is missing")),
    }
    if let Some(authority) = authority {
        let host = HeaderValue::from_str(authority);
        let host = host.map_err(|_| bad("invalid host in the request target"))?;
        parts.headers.insert(HOST, host);
    }
    Ok(())
}

/// `host` or `host:port`, without userinfo.
fn valid_host(host: &[u8]) -> bool {
    // As nearly all are, and nothing of it could be anything else.
    if !host.is_empty() && host.iter().all(|byte| PLAIN_HOST[usize::from(*byte)]) {
        return true;
    }
    let Ok(authority) = Authority::try_from(host) else {
        return false;
    };
    let named = !authority.host().is_empty() && !host.contains(&b'@');
    let port = &host[authority.host().len()..];
    named && (port.is_empty() || port == b":" || authority.port_u16().is_some())
}

/// What a name or an IPv4 address is made of, by byte.
const PLAIN_HOST: [bool; 256] = {
    let mut table = [false; 256];
    let mut at = 0;
    while at < 256 {
        table[at] = (at as u8).is_ascii_alphanumeric() || matches!(at as u8, b'-' | b'.');
        at += 1;
    }
    table
};

fn target(parts: &Parts) -> Result<Target, Refusal> {
    let uri = &parts.uri;
    if parts.method == Method::CONNECT {
        return Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "CONNECT is not served here",
        ));
    }
    match uri.scheme_str() {
        None if parts.version != Version::HTTP_2 && uri.authority().is_some() => {
            return Err(bad("authority-form target"));
        }
        None | Some("http" | "https") => {}
        Some(_) => return Err(bad("unknown scheme in the request target")),
    }
    if uri.path() == "*" && parts.method != Method::OPTIONS {
        return Err(bad("target * is for OPTIONS only"));
    }
    let raw = uri.path_and_query().map_or("/", |target| target.as_str());
    let raw = match parts.version {
        Version::HTTP_2 => escaped(raw),
        // It has been escaped.
        _ if raw.is_ascii() => raw.to_owned(),
        _ => return Err(bad("an invalid request target")),
    };
    let query = raw.split_once('?').map_or("", |(_, query)| query);
    Ok(Target {
        path: path(uri.path().as_bytes())?,
        query: query.to_owned(),
        raw: if raw.starts_with('?') {
            format!("/{raw}")
        } else {
            raw
        },
    })
}

/// Decodes the path once, and refuses what one server would go on to change and another not.
fn path(raw: &[u8]) -> Result<Vec<u8>, Refusal> {
    if raw.contains(&b'\\') {
        // A letter for most servers; for those that read targets as browsers do, a slash.
        return Err(bad("a backslash in the path"));
    }
    let path = percent_decode(raw);
    if path.contains(&0) {
        return Err(bad("NUL in the path"));
    }
    // Clients resolve them before they send. A server that still does would have a request that was
    // routed by one path handled by another. Some take `..;x` for `..`.
    let is_dots = |segment: &[u8]| {
        let end = segment.iter().position(|byte| *byte == b';');
        matches!(&segment[..end.unwrap_or(segment.len())], b"." | b"..")
    };
    if path.contains(&b'.') && path.split(|byte| *byte == b'/').any(is_dots) {
        return Err(bad("a path with the segment . or .."));
    }
    Ok(path)
}

/// What a client gets for a path that requests resume at.
pub const NOT_FOR_CLIENTS: Refusal = Refusal(StatusCode::NOT_FOUND, "there is nothing here");

/// The one segment below which requests resume.
const RESUMES: &[u8] = b".layby";

/// A path that has been decoded once may be decoded so often again on its way.
const MOST_DECODED: usize = 3;

/// Whether some server could take this decoded path for one that only the gateway posts to: decoding it
/// again, folding its case, merging slashes, cutting parameters off, or taking what comes before for a script.
pub fn is_for_resumes(path: &[u8]) -> bool {
    if leads_to_resumes(path) {
        return true;
    }
    let mut path = Cow::Borrowed(path);
    for _ in 0..MOST_DECODED {
        if !path.contains(&b'%') {
            break;
        }
        path = percent_decode(&path).into();
        if leads_to_resumes(&path) {
            return true;
        }
    }
    false
}

fn leads_to_resumes(path: &[u8]) -> bool {
    let is_ours = |segment: &[u8]| {
        let end = segment.iter().position(|byte| *byte == b';');
        let name = &segment[..end.unwrap_or(segment.len())];
        name.trim_ascii().eq_ignore_ascii_case(RESUMES)
    };
    let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\'));
    segments.any(is_ours)
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

/// hyper answers `100-continue` when the body is first asked for. Of HTTP/1.0, nothing is expected.
fn expectation(parts: &mut Parts) -> Result<(), Refusal> {
    let met = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if parts.version != Version::HTTP_10 && !parts.headers.get_all(EXPECT).iter().all(met) {
        return Err(Refusal(
            StatusCode::EXPECTATION_FAILED,
            "unknown expectation",
        ));
    }
    parts.headers.remove(EXPECT);
    Ok(())
}

const KEEP_ALIVE: &str = "keep-alive";
const PROXY_CONNECTION: &str = "proxy-connection";

/// Headers that belong to one connection only (RFC 9110 section 7.6.1).
const HOP_BY_HOP: [&str; 10] = [
    "connection",
    KEEP_ALIVE,
    PROXY_CONNECTION,
    "http2-settings",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// `Connection` may list headers of its hop, but not take these from the application.
const KEPT: [&str; 10] = [
    "host",
    "content-length",
    "content-type",
    "cookie",
    "authorization",
    "forwarded",
    "x-real-ip",
    "x-request-id",
    "traceparent",
    "tracestate",
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

/// HTTP/2 sends them in crumbs (RFC 9113 section 8.2.3), which no other protocol may see.
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers
        .get_all(COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if crumbs.len() > 1 {
        let whole = HeaderValue::from_bytes(&crumbs.join(&b"; "[..]))
            .expect("valid values, and what joins them, are one");
        headers.insert(COOKIE, whole);
    }
}

/// A name with an underscore becomes the same CGI variable as one with a hyphen; `Proxy` becomes
/// `HTTP_PROXY`, which clients obey; `Layby-` is ours.
fn spoofable(name: &str) -> bool {
    name.contains('_') || name == "proxy" || name.starts_with("layby-")
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || name.starts_with("x-forwarded-")
}

/// Removes what belongs to the hop that the message came on.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    // One look at every name costs less than a search for each of these, of which few are there.
    let is_of_hop = |name: &&HeaderName| HOP_BY_HOP.contains(&name.as_str());
    let of_hop: Vec<HeaderName> = headers.keys().filter(is_of_hop).cloned().collect();
    if of_hop.is_empty() {
        return;
    }
    let listed: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| !is_kept(name.as_str()))
        .collect();
    for name in listed.into_iter().chain(of_hop) {
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
    fn paths_that_requests_resume_at_are_known_in_every_spelling() {
        for path in [
            &b"/.layby/x"[..],
            b"/.layby",
            b"//.layby/x",
            b"/.LAYBY/x",
            b"/.layby;a=b/x",
            b"/ .layby/x",
            b"\\.layby\\x",
            b"/%2elayby/x",
            b"/%252elayby/x",
            b"/%2f%2elayby%2fx",
            b"/index.php/.layby/x",
        ] {
            assert!(is_for_resumes(path), "{}", path.escape_ascii());
        }
        for path in [
            &b"/"[..],
            b"/layby/x",
            b"/.laybyx",
            b"/x.layby/",
            b"/%",
            b"*",
        ] {
            assert!(!is_for_resumes(path), "{}", path.escape_ascii());
        }
        // What could be decoded for ever is not.
        let endless = [&b"/%"[..], &b"25".repeat(30_000), b"2elayby"].concat();
        assert!(!is_for_resumes(&endless));
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
            get("/a/../b"),
            get("/a/."),
            get("/%2e%2E/b"),
            get("/a%2f..%2fb"),
            get("/a/..;x=1/b"),
            get("/a\\..\\b"),
            get("/caf\u{e9}"),
            get("/").header("transfer-encoding", "gzip, chunked"),
            Request::get("shop.example:80").header("host", "shop.example:80"),
            get("*"),
        ] {
            let shown = format!("{request:?}");
            let Err(Refusal(status, _)) = vetted(request) else {
                panic!("passed: {shown}")
            };
            assert_eq!(status, 400, "{shown}");
        }
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
    fn what_no_uri_may_hold_is_escaped_in_http_2_too() {
        let raw = "https://shop.example/caf\u{e9}?q=\u{e9}";
        let request = Request::get(raw).version(Version::HTTP_2);
        let (target, _) = vetted(request).expect("passes");
        assert_eq!(target.raw, "/caf%C3%A9?q=%C3%A9");
        assert_eq!(target.path, "/caf\u{e9}".as_bytes());
        assert_eq!(target.query, "q=%C3%A9");
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
    fn a_path_is_otherwise_left_alone() {
        for (raw, path) in [
            ("/a//b", "/a//b"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("/a..b/c.", "/a..b/c."),
            ("/a%5c..%5cb", "/a\\..\\b"),
            ("/a%zz", "/a%zz"),
            ("/a;b/c", "/a;b/c"),
        ] {
            let (target, _) = vetted(get(raw)).expect(raw);
            assert_eq!(target.path, path.as_bytes());
            assert_eq!(target.raw, raw);
        }
        let (target, _) = vetted(get("/?../x\\y/../z")).expect("dots in a query");
        assert_eq!(target.query, "../x\\y/../z");
        let (target, _) = vetted(get("http://shop.example?a=1")).expect("no path");
        assert_eq!(
            (target.raw.as_str(), &target.path[..]),
            ("/?a=1", &b"/"[..])
        );
    }

    #[test]
    fn an_expectation_is_met_or_refused_but_in_http_1_0_ignored() {
        let twice = get("/").header("expect", "100-continue");
        let (_, headers) = vetted(twice.header("expect", "100-Continue")).expect("passes");
        assert!(!headers.contains_key("expect"));
        let other = get("/")
            .header("expect", "100-continue")
            .header("expect", "x");
        assert_eq!(vetted(other).expect_err("unknown").0, 417);
        let old = get("/").version(Version::HTTP_10).header("expect", "x");
        assert!(!vetted(old).expect("passes").1.contains_key("expect"));
    }

    fn h2(uri: &str) -> http::request::Builder {
        Request::get(uri).version(Version::HTTP_2)
    }

    #[test]
    fn in_http_2_the_authority_is_the_host() {
        let (target, headers) = vetted(h2("https://shop.example/a?b")).expect("passes");
        assert_eq!(target.raw, "/a?b");
        assert_eq!(headers["host"], "shop.example");
        let both = h2("https://shop.example/").header("host", "SHOP.example");
        assert_eq!(vetted(both).expect("passes").1["host"], "shop.example");
        let host_alone = h2("/").header("host", "shop.example");
        assert_eq!(
            vetted(host_alone).expect("passes").1["host"],
            "shop.example"
        );
        for request in [
            h2("/"),
            h2("https://shop.example/").header("host", "other.example"),
            h2("https://user@shop.example/"),
            h2("/").header("host", "a").header("host", "a"),
        ] {
            let shown = format!("{request:?}");
            assert_eq!(vetted(request).expect_err(&shown).0, 400, "{shown}");
        }
    }

    #[test]
    fn in_http_2_nothing_is_said_of_connections() {
        for (name, value) in [
            ("connection", "close"),
            ("connection", "x-a"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("te", "gzip"),
            ("te", "trailers, deflate"),
        ] {
            let request = h2("https://shop.example/").header(name, value);
            assert_eq!(vetted(request).expect_err(name).0, 400, "{name}: {value}");
        }
        let trailers = h2("https://shop.example/").header("te", "trailers");
        assert!(!vetted(trailers).expect("passes").1.contains_key("te"));
    }

    #[test]
    fn in_http_2_a_cookie_may_come_in_crumbs() {
        let crumbs = h2("https://shop.example/")
            .header("cookie", "a=1")
            .header("cookie", "b=2")
            .header("cookie", "c=3");
        let (_, headers) = vetted(crumbs).expect("passes");
        let lines: Vec<_> = headers.get_all("cookie").iter().collect();
        assert_eq!(lines, ["a=1; b=2; c=3"]);
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
                .header("upgrade", "h2c")
                .header("http2-settings", "AAMAAABkAARAAAAAAAIAAAAA")
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
