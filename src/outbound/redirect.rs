//! Where a redirect leads, and what of the request goes there.
//!
//! Pure decisions; the policy is asked by `fetch`.
//!
//! * 301, 302 and 303 turn the request into a GET without a body (HEAD stays HEAD), 307
//!   and 308 repeat it as it is, body included.
//! * To another origin (scheme, host or port) go only headers that are known to be harmless,
//!   and what is gone does not come back with a later hop. The one exception is the
//!   step from http to https on the same host and default ports: there the credentials are
//!   better kept than they were.
//! * A user and password in a `Location` are dropped: who sends us on has no say in whom we
//!   claim to be.

use bytes::Bytes;
use http::header::{HeaderMap, LOCATION};
use http::{Method, StatusCode};
use url::Url;

use super::failure::Fault;
use super::headers::{is_harmless, is_of_the_body};
use crate::plan::{FailureKind, Phase};

/// Hops after the first request.
pub(super) const AT_MOST: u32 = 20;

/// One request of a fetch.
#[derive(Debug, Clone)]
pub(super) struct Hop {
    pub(super) method: Method,
    /// Without user and password.
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
}

/// Whether a response sends the client on. A redirect status without a `Location` is an
/// ordinary answer.
pub(super) fn is_redirect(status: StatusCode, headers: &HeaderMap) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) && headers.contains_key(LOCATION)
}

impl Hop {
    /// The request after this one.
    pub(super) fn next(self, status: StatusCode, headers: &HeaderMap) -> Result<Self, Fault> {
        let mut locations = headers.get_all(LOCATION).iter();
        let location = locations
            .next()
            .filter(|first| locations.all(|other| other == first))
            .and_then(|location| std::str::from_utf8(location.as_bytes()).ok())
            .ok_or_else(|| bad("it has no readable Location, or several"))?;
        let mut url = self
            .url
            .join(location)
            .map_err(|error| bad(error.to_string()))?;
        // Neither can fail on a URL that has a host, and others are refused.
        let _ = url.set_username("");
        let _ = url.set_password(None);

        let mut next = Self { url, ..self };
        if !keeps_credentials(&self.url, &next.url) {
            next.keep_headers(is_harmless);
        }
        if !matches!(status.as_u16(), 307 | 308) {
            if next.method != Method::HEAD {
                next.method = Method::GET;
            }
            next.body = None;
            next.keep_headers(|name| !is_of_the_body(name));
        }
        Ok(next)
    }

    fn keep_headers(&mut self, keep: impl Fn(&http::HeaderName) -> bool) {
        let gone: Vec<_> = self
            .headers
            .keys()
            .filter(|name| !keep(name))
            .cloned()
            .collect();
        for name in gone {
            self.headers.remove(name);
        }
    }
}

fn keeps_credentials(from: &Url, to: &Url) -> bool {
    let same_origin = from.origin() == to.origin();
    let upgraded = from.host() == to.host()
        && (from.scheme(), to.scheme()) == ("http", "https")
        && (from.port(), to.port()) == (None, None);
    same_origin || upgraded
}

fn bad(what: impl AsRef<str>) -> Fault {
    let message = format!("the redirect cannot be followed: {}", what.as_ref());
    Fault::new(FailureKind::Failed, Phase::Redirect, message)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const SECRETS: [&str; 4] = ["authorization", "cookie", "x-api-key", "proxy-x"];

    fn post(url: &str) -> Hop {
        let mut headers = HeaderMap::new();
        for name in SECRETS {
            headers.insert(name, HeaderValue::from_static("s3cret"));
        }
        headers.insert("accept", HeaderValue::from_static("*/*"));
        headers.insert("content-type", HeaderValue::from_static("text/plain"));
        Hop {
            method: Method::POST,
            url: Url::parse(url).expect(url),
            headers,
            body: Some(Bytes::from_static(b"hello")),
        }
    }

    fn location(to: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(to))])
    }

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).expect("a valid status")
    }

    #[test]
    fn old_redirects_become_a_get_and_new_ones_repeat() {
        for code in [301, 302, 303] {
            let next = post("http://a.example/x").next(status(code), &location("/y"));
            let next = next.expect("a good location");
            assert_eq!(next.method, Method::GET);
            assert_eq!(next.body, None);
            assert!(!next.headers.contains_key("content-type"));
            assert!(next.headers.contains_key("authorization"));
        }
        for code in [307, 308] {
            let next = post("http://a.example/x").next(status(code), &location("/y"));
            let next = next.expect("a good location");
            assert_eq!(next.method, Method::POST);
            assert_eq!(next.body.as_deref(), Some(&b"hello"[..]));
            assert!(next.headers.contains_key("content-type"));
        }
        let mut head = post("http://a.example/x");
        head.method = Method::HEAD;
        let next = head
            .next(status(303), &location("/y"))
            .expect("a good location");
        assert_eq!(next.method, Method::HEAD);
    }

    #[test]
    fn secrets_stay_with_their_origin() {
        let kept = |from: &str, to| {
            let next = post(from).next(status(307), &location(to));
            let next = next.expect("a good location");
            assert!(next.headers.contains_key("accept"), "{to}");
            let kept = SECRETS.map(|name| next.headers.contains_key(name));
            assert!(kept == [kept[0]; 4], "all or none: {to}");
            kept[0]
        };
        assert!(kept("https://a.example/", "/b"));
        assert!(kept("https://a.example/", "https://a.example:443/b"));
        assert!(kept("http://a.example/", "https://a.example/b"));
        assert!(!kept("https://a.example/", "https://b.example/"));
        assert!(!kept("https://a.example/", "https://x.a.example/"));
        assert!(!kept("https://a.example/", "//b.example/"));
        assert!(!kept("https://a.example/", "https://a.example:8443/"));
        assert!(!kept("https://a.example/", "http://a.example/"));
        assert!(!kept("https://a.example/", "http://a.example:443/"));
        assert!(!kept("http://a.example:8080/", "https://a.example/"));
        assert!(!kept("http://a.example/", "https://a.example:8443/"));
    }

    #[test]
    fn secrets_that_were_dropped_do_not_come_back() {
        let away = post("https://a.example/").next(status(307), &location("https://b.example/"));
        let back = away
            .and_then(|hop| hop.next(status(307), &location("https://a.example/")))
            .expect("good locations");
        assert!(!back.headers.contains_key("authorization"));
    }

    #[test]
    fn locations_are_read_as_browsers_read_them() {
        for (to, url) in [
            ("", "http://a.example/x/y?q"),
            ("z", "http://a.example/x/z"),
            ("?r", "http://a.example/x/y?r"),
            ("../..//z", "http://a.example//z"),
            ("//b.example", "http://b.example/"),
            ("\\\\b.example", "http://b.example/"),
            ("http://me:pw@B.example:80/", "http://b.example/"),
            ("http://0x7f.1/", "http://127.0.0.1/"),
        ] {
            let next = post("http://a.example/x/y?q").next(status(302), &location(to));
            assert_eq!(next.expect(to).url.as_str(), url, "{to}");
        }
        for to in ["http://", "http://a b/", "http://[::1"] {
            let fault = post("http://a.example/").next(status(302), &location(to));
            let fault = fault.expect_err(to);
            assert_eq!(
                (fault.kind, fault.phase),
                (FailureKind::Failed, Phase::Redirect)
            );
        }
    }

    #[test]
    fn several_locations_must_agree() {
        let mut headers = location("/y");
        headers.append(LOCATION, HeaderValue::from_static("/y"));
        assert!(
            post("http://a.example/")
                .next(status(302), &headers)
                .is_ok()
        );
        headers.append(LOCATION, HeaderValue::from_static("/z"));
        assert!(
            post("http://a.example/")
                .next(status(302), &headers)
                .is_err()
        );
    }
}
