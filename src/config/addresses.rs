//! The gateway's own addresses: which can stand side by side, and which families each is for.

use std::net::SocketAddr;

use super::{Config, Listen};

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
    let both = address.is_ipv6() && address.ip().is_unspecified();
    both && others.any(|other| other.is_ipv4() && other.port() == address.port())
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
