//! The gateway's own addresses: which can stand side by side, which families each is for, and which servers are
//! the gateway itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Config, Listen, Upstream};

impl Config {
    /// Whether a listener at this address leaves IPv4 alone. `[::]` is for both families, unless an address of
    /// IPv4 has the same port: the system knows no two listeners for one connection.
    #[must_use]
    pub fn v6_only(&self, address: SocketAddr) -> bool {
        let listen = self.listen.iter().chain(&self.tls.listen);
        let listen = listen.filter_map(|entry| match entry {
            Listen::Tcp(address) => Some(*address),
            Listen::Unix(_) | Listen::Systemd(_) => None,
        });
        let others = listen.chain([self.admin]).chain(self.probes);
        v6_only(address, others)
    }
}

pub(super) fn v6_only(address: SocketAddr, mut others: impl Iterator<Item = SocketAddr>) -> bool {
    // Port 0 is a free port, another one each time.
    let both = address.is_ipv6() && address.ip().is_unspecified() && address.port() != 0;
    both && others.any(|other| other.is_ipv4() && other.port() == address.port())
}

/// The address among the gateway's own, and its key, at which this server would be found: a gateway that is its own
/// upstream passes a request round for ever.
pub(super) fn own<'a>(
    server: &Upstream,
    all: &'a [(&'static str, Listen)],
) -> Option<&'a (&'static str, Listen)> {
    let tcp = all.iter().filter_map(|(_, entry)| match entry {
        Listen::Tcp(address) => Some(*address),
        Listen::Unix(_) | Listen::Systemd(_) => None,
    });
    all.iter().find(|(_, entry)| match (server, entry) {
        (Upstream::Unix(one), Listen::Unix(other)) => one == other,
        (Upstream::Tcp(authority), Listen::Tcp(address)) => {
            let v6_only = v6_only(*address, tcp.clone());
            let mut there = here(authority).into_iter();
            there.any(|server| reaches(server, *address, v6_only))
        }
        _ => false,
    })
}

/// Where a server is found, as far as that can be told without asking anybody.
fn here(authority: &str) -> Vec<SocketAddr> {
    if let Some(port) = authority.strip_prefix("localhost:") {
        let port = port.parse().into_iter();
        let loopback = [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(Ipv6Addr::LOCALHOST),
        ];
        return port
            .flat_map(|port| loopback.map(|ip| SocketAddr::new(ip, port)))
            .collect();
    }
    let address = authority.parse::<SocketAddr>().into_iter();
    address
        .map(|address| {
            let ip = match address.ip().to_canonical() {
                // Whoever connects to no address in particular reaches this machine.
                ip if !ip.is_unspecified() => ip,
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            SocketAddr::new(ip, address.port())
        })
        .collect()
}

/// Whether a client of `server` comes to `own`.
fn reaches(server: SocketAddr, own: SocketAddr, v6_only: bool) -> bool {
    let family = server.is_ipv4() == own.is_ipv4() || (own.is_ipv6() && !v6_only);
    // Another machine's address may have our port.
    let any = own.ip().is_unspecified() && family && server.ip().is_loopback();
    server.port() == own.port() && (server.ip() == own.ip() || any)
}

/// Whether both could not be bound.
pub(super) fn overlap(one: &Listen, other: &Listen) -> bool {
    match (one, other) {
        (Listen::Unix(one), Listen::Unix(other)) => one == other,
        (Listen::Systemd(one), Listen::Systemd(other)) => {
            one.is_none() || other.is_none() || one == other
        }
        (Listen::Tcp(one), Listen::Tcp(other)) => {
            let same_family = one.is_ipv4() == other.is_ipv4();
            let any = one.ip().is_unspecified() || other.ip().is_unspecified();
            // Port 0 is a free port, another one each time.
            one.port() != 0
                && one.port() == other.port()
                && (one.ip() == other.ip() || (same_family && any))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_own(server: &str, listen: &[&str]) -> bool {
        let all: Vec<_> = listen
            .iter()
            .map(|entry| ("listen", Listen::read(entry).expect("an entry")))
            .collect();
        own(&Upstream::Tcp(server.to_owned()), &all).is_some()
    }

    #[test]
    fn a_server_that_is_the_gateway_is_told_from_others() {
        for (server, listen) in [
            ("127.0.0.1:80", &["127.0.0.1:80"][..]),
            ("127.0.0.1:80", &["0.0.0.0:80"]),
            ("127.8.8.8:80", &["0.0.0.0:80"]),
            ("0.0.0.0:80", &["127.0.0.1:80"]),
            ("localhost:80", &["127.0.0.1:80"]),
            ("localhost:80", &["[::1]:80"]),
            ("localhost:80", &["0.0.0.0:80"]),
            ("127.0.0.1:80", &["[::]:80"]),
            ("[::ffff:127.0.0.1]:80", &["0.0.0.0:80"]),
            ("10.0.0.7:80", &["10.0.0.7:80"]),
            ("[::1]:80", &["0.0.0.0:80", "[::]:80"]),
        ] {
            assert!(is_own(server, listen), "{server} is {listen:?}");
        }
        for (server, listen) in [
            ("127.0.0.1:81", &["127.0.0.1:80"][..]),
            // Its port may be ours on another machine.
            ("10.0.0.7:80", &["0.0.0.0:80"]),
            ("app:80", &["0.0.0.0:80"]),
            ("[::1]:80", &["0.0.0.0:80"]),
            // IPv4 belongs to another address of this port, and that is not this one.
            ("127.0.0.1:80", &["[::]:80", "10.0.0.7:80"]),
            ("127.0.0.1:80", &["127.0.0.2:80"]),
        ] {
            assert!(!is_own(server, listen), "{server} is not {listen:?}");
        }
    }
}
