//! What an address is to the outbound policy: public, private, or guarded.
//!
//! From IANA's special-purpose registries, read narrowly: public is only what is unicast
//! and globally routable without an embedded address of another kind. Tunnels and
//! translators (6to4, Teredo, NAT64, IPv4-compatible) are therefore guarded as a whole: what
//! they lead to is decided elsewhere. The one embedding that is unwrapped is the IPv4-mapped
//! form, since the kernel itself connects to the inner address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    Public,
    /// Of somebody's own network: names that are listed exactly may lead here.
    Private,
    /// Loopback, link-local, metadata services and everything that is no ordinary
    /// address: only what is listed as an address.
    Guarded,
}

impl Reach {
    /// `address` in canonical form ([`IpAddr::to_canonical`]).
    pub(super) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&address));
        if within(GUARDED_V4) {
            Self::Guarded
        } else if within(PRIVATE_V4) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let within = |nets: &[Ipv6Net]| nets.iter().any(|net| net.contains(&address));
        if within(GUARDED_V6) {
            Self::Guarded
        } else if UNIQUE_LOCAL.contains(&address) {
            Self::Private
        } else if GLOBAL_UNICAST.contains(&address) {
            Self::Public
        } else {
            Self::Guarded
        }
    }
}

const PRIVATE_V4: &[Ipv4Net] = &[
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    // Shared address space: carriers use it, and so do pod networks and overlay VPNs.
    v4([100, 64, 0, 0], 10),
];

/// Looked at before [`PRIVATE_V4`].
const GUARDED_V4: &[Ipv4Net] = &[
    v4([0, 0, 0, 0], 8),
    v4([127, 0, 0, 0], 8),
    // Link-local, with most clouds' metadata service.
    v4([169, 254, 0, 0], 16),
    // Metadata services that are not link-local: Alibaba, Azure.
    v4([100, 100, 100, 200], 32),
    v4([168, 63, 129, 16], 32),
    // Protocol assignments, with Oracle's metadata service.
    v4([192, 0, 0, 0], 24),
    // Documentation.
    v4([192, 0, 2, 0], 24),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    // Relays of 6to4.
    v4([192, 88, 99, 0], 24),
    // Benchmarks.
    v4([198, 18, 0, 0], 15),
    // Multicast; reserved, with the broadcast address.
    v4([224, 0, 0, 0], 4),
    v4([240, 0, 0, 0], 4),
];

const GLOBAL_UNICAST: Ipv6Net = v6([0x2000, 0, 0], 3);
const UNIQUE_LOCAL: Ipv6Net = v6([0xfc00, 0, 0], 7);

/// Exceptions within [`GLOBAL_UNICAST`] and [`UNIQUE_LOCAL`]; outside them all is guarded.
const GUARDED_V6: &[Ipv6Net] = &[
    // Protocol assignments: Teredo, benchmarks, ORCHID.
    v6([0x2001, 0, 0], 23),
    // Documentation.
    v6([0x2001, 0x0db8, 0], 32),
    v6([0x3fff, 0, 0], 20),
    // 6to4.
    v6([0x2002, 0, 0], 16),
    // Services of AWS instances, metadata among them; the metadata service of GCP.
    v6([0xfd00, 0x0ec2, 0], 32),
    v6([0xfd20, 0x00ce, 0], 48),
];

const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6([a, b, c]: [u16; 3], prefix: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(address: &str) -> Reach {
        let address: IpAddr = address.parse().expect(address);
        Reach::of(address.to_canonical())
    }

    #[test]
    fn ordinary_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "126.255.255.255",
            "128.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "192.167.255.255",
            "192.169.0.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "::ffff:8.8.8.8",
            "2001:4860:4860::8888",
            "2001:200::1",
            "2606:4700::1111",
            "2a00:1450::1",
            "3ffe::1",
        ] {
            assert_eq!(reach(address), Reach::Public, "{address}");
        }
    }

    #[test]
    fn own_networks_are_private() {
        for address in [
            "10.0.0.0",
            "10.255.255.255",
            "172.16.0.0",
            "172.31.255.255",
            "192.168.0.0",
            "192.168.255.255",
            "100.64.0.0",
            "100.127.255.255",
            "fc00::1",
            "fdff:ffff::1",
            "::ffff:10.0.0.1",
        ] {
            assert_eq!(reach(address), Reach::Private, "{address}");
        }
    }

    #[test]
    fn everything_else_is_guarded() {
        for address in [
            "0.0.0.0",
            "0.255.255.255",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.0.1",
            "169.254.169.254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::127.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:127.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::8.8.8.8",
            "64:ff9b:1::10.0.0.1",
            "100::1",
            "2001::1",
            "2001:1ff:ffff::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:808:808::1",
            "3fff:fff::1",
            "5f00::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert_eq!(reach(address), Reach::Guarded, "{address}");
        }
    }
}
