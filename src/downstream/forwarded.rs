//! Who the client is, as far as trusted proxies tell.
//!
//! A peer that is not trusted is the client, and what it says of forwarding is removed. From a
//! trusted peer, `X-Forwarded-For` is read from the right, past every trusted address.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use http::header::{FORWARDED, HOST, HeaderName};

use super::REQUEST_ID;
use crate::config::Trusted;
use crate::message::{Client, Scheme};
use crate::record::Id;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// The two ends of the connection that a request came on.
#[derive(Debug, Clone, Copy)]
pub enum Peer {
    Tcp { peer: SocketAddr, local: SocketAddr },
    Unix,
}

/// Tells the client, and removes forwarding headers that nobody trusted has set.
pub fn client(peer: Peer, trusted: &[Trusted], headers: &mut HeaderMap) -> Client {
    if !is_believed(peer, trusted) {
        remove_claims(headers);
    }
    let (address, port) = origin(peer, trusted, headers);
    let scheme = match last(headers, &PROTO) {
        Some(proto) if proto.eq_ignore_ascii_case("https") => Scheme::Https,
        _ => Scheme::Http,
    };
    let host = last(headers, &FORWARDED_HOST).or_else(|| headers.get(HOST)?.to_str().ok());
    let (name, host_port) = host.map_or((None, None), split_host);
    let claimed_port = last(headers, &PORT).and_then(|port| port.parse().ok());
    let forwarded = headers.contains_key(&PROTO);
    let server_port = claimed_port.or(host_port).unwrap_or_else(|| match peer {
        Peer::Tcp { local, .. } if !forwarded => local.port(),
        _ => scheme.default_port(),
    });
    let server_name = name.map(str::to_owned).unwrap_or_else(|| match peer {
        Peer::Tcp { local, .. } => local.ip().to_string(),
        Peer::Unix => "localhost".to_owned(),
    });
    let peer = match peer {
        Peer::Tcp { peer, .. } => Some(peer.ip().to_canonical()),
        Peer::Unix => None,
    };
    Client {
        address,
        port,
        peer,
        scheme,
        server_name,
        server_port,
    }
}

/// What the request is called: as a trusted proxy says, else a new name.
pub fn request_id(peer: Peer, trusted: &[Trusted], headers: &HeaderMap) -> Id {
    let mut given = headers.get_all(REQUEST_ID).iter();
    match (given.next(), given.next()) {
        (Some(id), None) if is_believed(peer, trusted) => Id::given(id).unwrap_or_default(),
        _ => Id::new(),
    }
}

fn is_believed(peer: Peer, trusted: &[Trusted]) -> bool {
    match peer {
        Peer::Tcp { peer, .. } => trusts(trusted, peer.ip()),
        Peer::Unix => trusted.contains(&Trusted::Unix),
    }
}

fn trusts(trusted: &[Trusted], address: IpAddr) -> bool {
    // An IPv4 client of a dual-stack listener is still that IPv4 client.
    let address = address.to_canonical();
    trusted
        .iter()
        .any(|entry| matches!(entry, Trusted::Net(net) if net.contains(&address)))
}

fn remove_claims(headers: &mut HeaderMap) {
    let claims = |name: &&HeaderName| name.as_str().starts_with("x-forwarded-");
    let claimed: Vec<HeaderName> = headers.keys().filter(claims).cloned().collect();
    for name in claimed.iter().chain([&FORWARDED, &REAL_IP]) {
        headers.remove(name);
    }
}

/// The rightmost address of the chain that is not a trusted proxy's; the leftmost if all are.
fn origin(peer: Peer, trusted: &[Trusted], headers: &HeaderMap) -> (Option<IpAddr>, Option<u16>) {
    let mut nearest = match peer {
        Peer::Tcp { peer, .. } => (Some(peer.ip().to_canonical()), Some(peer.port())),
        Peer::Unix => (None, None),
    };
    let lines: Vec<&str> = headers
        .get_all(&FOR)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
        if nearest.0.is_some_and(|address| !trusts(trusted, address)) {
            break;
        }
        // What is no address was not written by a proxy that we can follow further.
        let Some(hop) = parse_hop(hop.trim()) else {
            break;
        };
        nearest = hop;
    }
    nearest
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]`, `[2001:db8::1]:80`.
fn parse_hop(hop: &str) -> Option<(Option<IpAddr>, Option<u16>)> {
    if let Ok(address) = hop.parse::<SocketAddr>() {
        return Some((Some(address.ip().to_canonical()), Some(address.port())));
    }
    let bare = hop
        .strip_prefix('[')
        .and_then(|hop| hop.strip_suffix(']'))
        .unwrap_or(hop);
    let address: IpAddr = bare.parse().ok()?;
    Some((Some(address.to_canonical()), None))
}

/// The value that the nearest proxy added.
fn last<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = headers.get_all(name).iter().next_back()?.to_str().ok()?;
    value
        .rsplit(',')
        .next()
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// Host and port of a Host value that is known to be valid, or of a proxy's claim.
fn split_host(host: &str) -> (Option<&str>, Option<u16>) {
    let end_of_name = host.rfind(']').map_or(0, |end| end + 1);
    match host[end_of_name..].rfind(':') {
        Some(colon) => {
            let colon = end_of_name + colon;
            (Some(&host[..colon]), host[colon + 1..].parse().ok())
        }
        None => (Some(host), None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(
        peer: &str,
        trusted: &[&str],
        headers: &[(&'static str, &'static str)],
    ) -> (Client, HeaderMap) {
        let trusted: Vec<_> = trusted
            .iter()
            .map(|net| Trusted::Net(net.parse().expect("a network")))
            .collect();
        let mut map = HeaderMap::new();
        map.insert(HOST, "shop.example".parse().expect("a value"));
        for (name, value) in headers {
            map.append(*name, value.parse().expect("a value"));
        }
        let peer = Peer::Tcp {
            peer: peer.parse().expect("an address"),
            local: "10.0.0.1:8000".parse().expect("an address"),
        };
        let client = client(peer, &trusted, &mut map);
        (client, map)
    }

    fn address(client: &Client) -> String {
        client
            .address
            .map(|address| address.to_string())
            .unwrap_or_default()
    }

    #[test]
    fn an_untrusted_peer_is_the_client_whatever_it_claims() {
        let (client, headers) = seen(
            "203.0.113.9:5000",
            &["10.0.0.0/8"],
            &[
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "admin.example"),
                ("x-forwarded-anything", "1"),
                ("forwarded", "for=127.0.0.1"),
                ("x-real-ip", "127.0.0.1"),
            ],
        );
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!((client.scheme, client.server_port), (Scheme::Http, 8000));
        assert_eq!(client.server_name, "shop.example");
        assert_eq!(headers.len(), 1);
    }

    #[test]
    fn behind_a_tls_balancer_the_client_and_the_scheme_are_the_outside_ones() {
        let (client, headers) = seen(
            "10.0.0.7:5000",
            &["10.0.0.0/8"],
            &[
                ("x-forwarded-for", "6.6.6.6, 203.0.113.9, 10.0.0.8"),
                ("x-forwarded-proto", "https"),
            ],
        );
        assert_eq!(address(&client), "203.0.113.9");
        assert_eq!((client.scheme, client.server_port), (Scheme::Https, 443));
        assert!(headers.contains_key("x-forwarded-for"));
    }

    #[test]
    fn ports_and_ipv6_are_understood_and_nonsense_ends_the_chain() {
        for (chain, client_address) in [
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("192.0.2.1:99", "192.0.2.1"),
            ("192.0.2.1, unknown", "10.0.0.7"),
            ("10.1.1.1, 10.2.2.2", "10.1.1.1"),
            ("", "10.0.0.7"),
        ] {
            let (client, _) = seen(
                "10.0.0.7:5000",
                &["10.0.0.0/8"],
                &[("x-forwarded-for", chain)],
            );
            assert_eq!(address(&client), client_address, "{chain}");
        }
    }

    #[test]
    fn the_host_names_server_and_port() {
        assert_eq!(
            split_host("shop.example:81"),
            (Some("shop.example"), Some(81))
        );
        assert_eq!(split_host("[::1]:81"), (Some("[::1]"), Some(81)));
        assert_eq!(split_host("[::1]"), (Some("[::1]"), None));
    }
}
