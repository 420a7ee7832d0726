//! Whose name a request to the admin listener may use.
//!
//! A web page can make a browser send requests here under the page's own *name*, by
//! pointing that name at this address (DNS rebinding), and then read the answers. It
//! cannot make the browser send an IP literal or `localhost` that way: those are not
//! looked up in a DNS that the page's owner controls. So names are refused, and the port
//! is not looked at: it adds nothing, and differs behind a tunnel or a forwarded port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::uri::Authority;
use http::{HeaderMap, StatusCode, Uri, Version, header};

/// Decides for a listener bound to `own`.
///
/// # Errors
/// The status to answer with: 400 if the request does not name one host, 421 if the host
/// is not this listener's.
pub fn check(
    own: IpAddr,
    version: Version,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), StatusCode> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let named = match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = Authority::try_from(host.as_bytes());
            Some(host.map_err(|_| StatusCode::BAD_REQUEST)?)
        }
        // Browsers, which alone can be tricked, speak 1.1; old health checks do not.
        (None, _) if version == Version::HTTP_10 => None,
        _ => return Err(StatusCode::BAD_REQUEST),
    };
    // `GET http://name/ HTTP/1.1` names a host as well.
    let all_own = named
        .iter()
        .chain(uri.authority())
        .all(|authority| is_own(own, authority));
    if all_own {
        Ok(())
    } else {
        Err(StatusCode::MISDIRECTED_REQUEST)
    }
}

fn is_own(own: IpAddr, authority: &Authority) -> bool {
    let host = authority.host();
    if authority.as_str().contains('@') {
        return false;
    }
    if host.eq_ignore_ascii_case("localhost") {
        return true;
    }
    // On a loopback listener only the machine itself can ask, and it uses loopback.
    let loopback_only = own.to_canonical().is_loopback();
    literal(host).is_some_and(|ip| !loopback_only || ip.is_loopback())
}

fn literal(host: &str) -> Option<IpAddr> {
    let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let ip: IpAddr = match bracketed {
        Some(host) => host.parse::<Ipv6Addr>().ok()?.into(),
        None => host.parse::<Ipv4Addr>().ok()?.into(),
    };
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: &str = "127.0.0.1";
    const EVERYWHERE: &str = "0.0.0.0";

    fn ask(own: &str, hosts: &[&str]) -> Result<(), u16> {
        let uri = Uri::from_static("/metrics");
        ask_with(own, Version::HTTP_11, &uri, hosts)
    }

    fn ask_with(own: &str, version: Version, uri: &Uri, hosts: &[&str]) -> Result<(), u16> {
        let own = own.parse().expect("an address");
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, host.parse().expect("a header value"));
        }
        check(own, version, uri, &headers).map_err(|status| status.as_u16())
    }

    #[test]
    fn a_loopback_listener_answers_to_loopback() {
        for host in [
            "127.0.0.1:9180",
            "127.0.0.1",
            "127.8.8.8:1",
            "localhost:9180",
            "LocalHost",
            "[::1]:9180",
            "[::ffff:127.0.0.1]:9180",
        ] {
            assert_eq!(ask(LOOPBACK, &[host]), Ok(()), "{host}");
        }
    }

    #[test]
    fn names_are_refused() {
        for own in [LOOPBACK, EVERYWHERE, "::1"] {
            for host in [
                "evil.example",
                "evil.example:9180",
                "localhost.evil.example",
                "evil.localhost",
                "127.0.0.1.evil.example",
                "127.0.0.1@evil.example",
                "evil.example@127.0.0.1",
            ] {
                assert_eq!(ask(own, &[host]), Err(421), "{own} {host}");
            }
        }
    }

    #[test]
    fn an_address_of_elsewhere_is_for_listeners_that_reach_there() {
        assert_eq!(ask(LOOPBACK, &["10.0.0.7:9180"]), Err(421));
        assert_eq!(ask(LOOPBACK, &["0.0.0.0:9180"]), Err(421));
        assert_eq!(ask(EVERYWHERE, &["10.0.0.7:9180"]), Ok(()));
        assert_eq!(ask("10.0.0.7", &["[fd00::7]:9180"]), Ok(()));
        assert_eq!(ask("10.0.0.7", &["localhost:9180"]), Ok(()));
    }

    #[test]
    fn one_host_must_be_named() {
        assert_eq!(ask(LOOPBACK, &[]), Err(400));
        assert_eq!(ask(LOOPBACK, &["localhost", "localhost"]), Err(400));
        assert_eq!(ask(LOOPBACK, &[""]), Err(400));
        assert_eq!(ask(LOOPBACK, &["local host"]), Err(400));
        let uri = Uri::from_static("/metrics");
        assert_eq!(ask_with(LOOPBACK, Version::HTTP_10, &uri, &[]), Ok(()));
    }

    #[test]
    fn a_host_in_the_request_line_counts_too() {
        let uri = Uri::from_static("http://evil.example/metrics");
        let version = Version::HTTP_11;
        assert_eq!(ask_with(LOOPBACK, version, &uri, &["localhost"]), Err(421));
        let uri = Uri::from_static("http://127.0.0.1:9180/metrics");
        assert_eq!(ask_with(LOOPBACK, version, &uri, &["localhost"]), Ok(()));
    }
}
