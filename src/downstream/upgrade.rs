//! Upgrades: which a client may ask for, and what becomes of her connection when she gets one.
//!
//! Only a server that speaks HTTP itself can change to another protocol, so only its requests keep their
//! `Upgrade`. What would make it speak another HTTP past the gateway is never passed on.

use http::header::{CONNECTION, HeaderValue, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, Version};

/// The protocol that a request asks to change to, if that may be asked of an upstream.
pub fn asked(parts: &Parts) -> Option<HeaderValue> {
    if parts.version != Version::HTTP_11 {
        return None;
    }
    let mut protocols = parts.headers.get_all(UPGRADE).iter();
    let (Some(protocol), None) = (protocols.next(), protocols.next()) else {
        return None;
    };
    (is_named(&parts.headers) && is_harmless(protocol)).then(|| protocol.clone())
}

/// `Connection` lists it, without which it means nothing.
fn is_named(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
}

/// One protocol, and none that carries requests of its own, or hides them: those would get past everything
/// that is decided here about a request.
fn is_harmless(protocol: &HeaderValue) -> bool {
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._/+".contains(byte);
    let name = protocol.as_bytes().to_ascii_lowercase();
    let refused: [&[u8]; 3] = [b"h2", b"http", b"tls"];
    !name.is_empty()
        && name.iter().all(token)
        && !refused.iter().any(|refused| name.starts_with(refused))
}

/// The headers of an answer that changes the protocol, fit for the client's hop.
pub fn switching(headers: &mut HeaderMap, strip: impl FnOnce(&mut HeaderMap)) {
    let protocol = headers.remove(UPGRADE);
    strip(headers);
    if let Some(protocol) = protocol {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, protocol);
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn asks(version: Version, connection: &str, upgrade: &[&str]) -> bool {
        let mut request = Request::get("/")
            .version(version)
            .header(CONNECTION, connection);
        for protocol in upgrade {
            request = request.header(UPGRADE, *protocol);
        }
        asked(&request.body(()).expect("a request").into_parts().0).is_some()
    }

    #[test]
    fn one_harmless_protocol_may_be_asked_for() {
        for (version, connection, upgrade, may) in [
            (Version::HTTP_11, "upgrade", &["websocket"][..], true),
            (
                Version::HTTP_11,
                "keep-alive, Upgrade",
                &["WebSocket"],
                true,
            ),
            (Version::HTTP_11, "Upgrade", &["tcp"], true),
            (Version::HTTP_11, "keep-alive", &["websocket"], false),
            (Version::HTTP_10, "upgrade", &["websocket"], false),
            (Version::HTTP_11, "upgrade, http2-settings", &["h2c"], false),
            (Version::HTTP_11, "upgrade", &["H2C"], false),
            (Version::HTTP_11, "upgrade", &["HTTP/2.0"], false),
            (Version::HTTP_11, "upgrade", &["TLS/1.2"], false),
            (Version::HTTP_11, "upgrade", &["websocket, h2c"], false),
            (Version::HTTP_11, "upgrade", &["websocket", "h2c"], false),
            (Version::HTTP_11, "upgrade", &[""], false),
            (Version::HTTP_11, "upgrade", &[], false),
        ] {
            assert_eq!(
                asks(version, connection, upgrade),
                may,
                "{connection} {upgrade:?}"
            );
        }
    }

    #[test]
    fn an_answer_that_switches_says_so_and_no_more_of_its_hop() {
        let mut headers = HeaderMap::new();
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade, x-hop"));
        headers.insert("x-hop", HeaderValue::from_static("1"));
        headers.insert("sec-websocket-accept", HeaderValue::from_static("k"));
        switching(&mut headers, super::super::head::strip_hop_by_hop);
        assert_eq!(headers.len(), 3);
        assert_eq!(headers[CONNECTION], "upgrade");
        assert_eq!(headers[UPGRADE], "websocket");
    }
}
