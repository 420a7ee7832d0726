//! Which headers go out and come in.
//!
//! Framing and connection handling are the client's: what the plan says of them is dropped,
//! so it can neither disagree with the body nor smuggle a second request. `Host` is dropped
//! when it repeats the URL. Another host is refused: it would reach something else behind
//! the address that the policy was asked about.

use http::header::{CONNECTION, HOST, HeaderMap, HeaderName};
use url::Url;

use super::failure::Fault;
use crate::plan::{FailureKind, Phase};

/// The headers of a plan as they are sent to `url`.
pub(super) fn outgoing(given: &HeaderMap, url: &Url) -> Result<HeaderMap, Fault> {
    if !given
        .get_all(HOST)
        .iter()
        .all(|host| names(host.as_bytes(), url))
    {
        return Err(Fault::new(
            FailureKind::Refused,
            Phase::Url,
            "the Host header names another host than the URL",
        ));
    }
    let mut headers = HeaderMap::with_capacity(given.len());
    for (name, value) in given {
        if !is_of_the_connection(name) && !is_of_the_framing(name) {
            headers.append(name.clone(), value.clone());
        }
    }
    Ok(headers)
}

/// The headers of a response as the worker sees them: end-to-end ones. A `Content-Length`
/// stays, since it says what a HEAD asks for.
pub(super) fn incoming(mut headers: HeaderMap) -> HeaderMap {
    if !headers.keys().any(is_of_the_connection) {
        return headers;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    let of_the_connection: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_of_the_connection(name))
        .cloned()
        .chain(named)
        .collect();
    for name in of_the_connection {
        headers.remove(name);
    }
    headers
}

/// What may follow a redirect to another origin: what describes the body and what the
/// client can read. Everything else may be a credential by some name: `X-Api-Key`, a
/// session, a signature.
pub(super) fn is_harmless(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "accept"
            | "accept-encoding"
            | "accept-language"
            | "content-encoding"
            | "content-language"
            | "content-type"
            | "range"
            | "user-agent"
    )
}

/// Gone when a redirect turns a request into one without a body.
pub(super) fn is_of_the_body(name: &HeaderName) -> bool {
    name.as_str().starts_with("content-")
}

fn is_of_the_connection(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "connection"
            | "keep-alive"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

fn is_of_the_framing(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-length" | "expect" | "host" | "http2-settings"
    )
}

fn names(host: &[u8], url: &Url) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    // Parsed as the URL was, so case, punycode and a default port make no difference.
    match Url::parse(&format!("{}://{host}/", url.scheme())) {
        Ok(given) => {
            let only_a_host = given.username().is_empty()
                && given.password().is_none()
                && given.path() == "/"
                && given.query().is_none();
            only_a_host && given.host() == url.host() && given.port() == url.port()
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    fn sent(pairs: &[(&'static str, &'static str)], url: &str) -> Result<HeaderMap, Fault> {
        outgoing(&map(pairs), &Url::parse(url).expect(url))
    }

    #[test]
    fn a_plan_cannot_touch_framing_or_the_connection() {
        let headers = sent(
            &[
                ("connection", "close, x-a"),
                ("keep-alive", "1"),
                ("proxy-connection", "close"),
                ("te", "trailers"),
                ("trailer", "x-a"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("content-length", "5"),
                ("expect", "100-continue"),
                ("host", "a.example"),
                ("x-a", "1"),
                ("x-a", "2"),
            ],
            "http://a.example/",
        )
        .expect("all of it can be dropped");
        assert_eq!(headers, {
            let mut left = HeaderMap::new();
            left.append("x-a", HeaderValue::from_static("1"));
            left.append("x-a", HeaderValue::from_static("2"));
            left
        });
    }

    #[test]
    fn a_host_header_may_only_repeat_the_url() {
        for (host, url) in [
            ("a.example", "http://a.example/"),
            ("A.Example:80", "http://a.example/"),
            ("a.example:8080", "http://a.example:8080/"),
            ("[::1]:81", "http://[0:0::1]:81/"),
        ] {
            assert!(sent(&[("host", host)], url).is_ok(), "{host} {url}");
        }
        for (host, url) in [
            ("b.example", "http://a.example/"),
            ("a.example", "http://a.example:8080/"),
            ("a.example:443", "http://a.example/"),
            ("me@a.example", "http://a.example/"),
            ("a.example/x", "http://a.example/"),
            ("a.example?", "http://a.example/"),
            ("", "http://a.example/"),
        ] {
            assert!(sent(&[("host", host)], url).is_err(), "{host} {url}");
        }
        let both = [("host", "a.example"), ("host", "b.example")];
        let mut given = HeaderMap::new();
        for (name, host) in both {
            given.append(name, HeaderValue::from_static(host));
        }
        let url = Url::parse("http://a.example/").expect("valid");
        assert!(outgoing(&given, &url).is_err());
    }

    #[test]
    fn responses_lose_what_was_between_the_origin_and_us() {
        let headers = incoming(map(&[
            ("connection", "x-hop , Keep-Alive,,"),
            ("keep-alive", "timeout=5"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("x-end", "1"),
        ]));
        assert_eq!(headers, map(&[("content-length", "5"), ("x-end", "1")]));
    }
}
