//! Which origins a fetch may reach: `[outbound] allow`.
//!
//! Asked twice for every hop, the first and every redirect: with the host of the URL before
//! anything is looked up, and with the addresses of the name before anything is connected.
//! Both are needed, since no lookup happens for a host that is an address.
//!
//! | entry | lets a name lead to | as an address in the URL |
//! |---|---|---|
//! | `public` | public addresses, any name | public addresses |
//! | `*.example.org` | public addresses, names below it at any depth | |
//! | `pay.internal` | public and private addresses, and listed ones | |
//! | address, network | (see the row above) | what it holds |
//!
//! A listed address is not open to every name: whoever controls some public name could
//! point it there. It is open in a URL, and to names that are listed exactly.

use std::collections::HashSet;
use std::error::Error;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use url::Host;

use super::address::Reach;
use crate::config::Allow;

pub(super) struct Policy {
    public: bool,
    names: HashSet<String>,
    wildcards: Vec<String>,
    networks: Vec<IpNet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing in the list speaks of this name.
    Name,
    /// The address in the URL is not open.
    Address,
    /// The name is open, but not with the addresses that it has.
    Resolved,
}

/// What a name was listed as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grant {
    Exact,
    Public,
}

impl Policy {
    pub(super) fn new(allow: &[Allow]) -> Self {
        let mut policy = Self {
            public: false,
            names: HashSet::new(),
            wildcards: Vec::new(),
            networks: Vec::new(),
        };
        for entry in allow {
            match entry {
                Allow::Public => policy.public = true,
                Allow::Name(name) => drop(policy.names.insert(as_in_urls(name))),
                Allow::Wildcard(below) => policy.wildcards.push(as_in_urls(below)),
                Allow::Net(network) => policy.networks.push(*network),
            }
        }
        policy
    }

    /// May a URL with this host be fetched, as far as can be told without a lookup?
    pub(super) fn check_host(&self, host: &Host<&str>) -> Result<(), Refusal> {
        let address = match host {
            Host::Domain(name) => return self.grant(name).map(drop).ok_or(Refusal::Name),
            Host::Ipv4(address) => IpAddr::V4(*address),
            Host::Ipv6(address) => IpAddr::V6(*address).to_canonical(),
        };
        if self.lists(address) || (self.public && Reach::of(address) == Reach::Public) {
            Ok(())
        } else {
            Err(Refusal::Address)
        }
    }

    /// The addresses of `name` that may be connected to; never none.
    pub(super) fn permitted(
        &self,
        name: &str,
        addresses: Vec<IpAddr>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        let grant = self.grant(name).ok_or(Refusal::Name)?;
        let permitted: Vec<_> = addresses
            .into_iter()
            .map(|address| address.to_canonical())
            .filter(|address| match (Reach::of(*address), grant) {
                (Reach::Public, _) | (Reach::Private, Grant::Exact) => true,
                (_, Grant::Exact) => self.lists(*address),
                (_, Grant::Public) => false,
            })
            .collect();
        if permitted.is_empty() {
            return Err(Refusal::Resolved);
        }
        Ok(permitted)
    }

    fn grant(&self, name: &str) -> Option<Grant> {
        let below = |parent: &String| {
            name.strip_suffix(parent.as_str())
                .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
        };
        if self.names.contains(name) {
            Some(Grant::Exact)
        } else if self.public || self.wildcards.iter().any(below) {
            Some(Grant::Public)
        } else {
            None
        }
    }

    fn lists(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }
}

/// The addresses of `localhost` and the names below it, which are fixed (RFC 6761): no
/// resolver is asked, since some answer otherwise.
pub(super) fn of_localhost(name: &str) -> Option<Vec<IpAddr>> {
    let local = name == "localhost" || name.ends_with(".localhost");
    local.then(|| vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

/// The form that names have once a URL is parsed: lower case, punycode.
fn as_in_urls(name: &str) -> String {
    match Host::parse(name) {
        Ok(Host::Domain(domain)) => domain,
        _ => name.to_owned(),
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Name => "[outbound] allow does not list this name",
            Self::Address => "[outbound] allow does not permit this address",
            Self::Resolved => "the name has no address that [outbound] allow permits for it",
        })
    }
}

impl Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> Allow {
        Allow::Name(name.to_owned())
    }

    fn below(name: &str) -> Allow {
        Allow::Wildcard(name.to_owned())
    }

    fn net(net: &str) -> Allow {
        Allow::Net(net.parse().expect(net))
    }

    fn leads(policy: &Policy, name: &str, address: &str) -> bool {
        let address = address.parse().expect(address);
        policy.check_host(&Host::Domain(name)).is_ok()
            && policy.permitted(name, vec![address]).is_ok()
    }

    fn literal(policy: &Policy, address: &str) -> bool {
        let host = match address.parse().expect(address) {
            IpAddr::V4(address) => Host::Ipv4(address),
            IpAddr::V6(address) => Host::Ipv6(address),
        };
        policy.check_host(&host).is_ok()
    }

    #[test]
    fn public_means_any_name_but_only_public_addresses() {
        let policy = Policy::new(&[Allow::Public]);
        assert!(leads(&policy, "a.example", "1.1.1.1"));
        assert!(literal(&policy, "1.1.1.1"));
        for address in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
            assert!(!leads(&policy, "a.example", address), "{address}");
            assert!(!literal(&policy, address), "{address}");
        }
    }

    #[test]
    fn the_list_replaces_the_default() {
        let policy = Policy::new(&[name("pay.example")]);
        assert!(leads(&policy, "pay.example", "1.1.1.1"));
        assert!(!leads(&policy, "other.example", "1.1.1.1"));
        assert!(!literal(&policy, "1.1.1.1"));
        assert!(!literal(&Policy::new(&[]), "1.1.1.1"));
    }

    #[test]
    fn exact_names_may_lead_to_private_but_not_to_guarded_addresses() {
        let policy = Policy::new(&[name("pay.internal")]);
        assert!(leads(&policy, "pay.internal", "10.0.0.1"));
        assert!(leads(&policy, "pay.internal", "fd12::1"));
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "100.100.100.200",
        ] {
            assert!(!leads(&policy, "pay.internal", address), "{address}");
        }
    }

    #[test]
    fn wildcards_lead_below_a_name_and_only_to_public_addresses() {
        let policy = Policy::new(&[below("example.org"), net("10.0.0.0/8")]);
        assert!(leads(&policy, "a.example.org", "1.1.1.1"));
        assert!(leads(&policy, "a.b.example.org", "1.1.1.1"));
        assert!(!leads(&policy, "example.org", "1.1.1.1"));
        assert!(!leads(&policy, ".example.org", "1.1.1.1"));
        assert!(!leads(&policy, "badexample.org", "1.1.1.1"));
        assert!(!leads(&policy, "a.example.org", "10.0.0.1"));
    }

    #[test]
    fn a_listed_address_is_open_in_urls_and_to_names_listed_exactly() {
        let policy = Policy::new(&[Allow::Public, name("stub.test"), net("127.0.0.1/32")]);
        assert!(literal(&policy, "127.0.0.1"));
        assert!(literal(&policy, "::ffff:127.0.0.1"));
        assert!(!literal(&policy, "127.0.0.2"));
        assert!(leads(&policy, "stub.test", "127.0.0.1"));
        assert!(!leads(&policy, "stub.test", "127.0.0.2"));
        // Rebinding: the name is open as all public names are.
        assert!(!leads(&policy, "evil.example", "127.0.0.1"));
    }

    #[test]
    fn of_several_addresses_only_the_permitted_are_kept() {
        let policy = Policy::new(&[Allow::Public]);
        let addresses = ["10.0.0.1", "1.1.1.1", "::ffff:127.0.0.1", "::ffff:8.8.8.8"];
        let addresses = addresses.map(|a| a.parse().expect(a)).to_vec();
        let kept = policy.permitted("a.example", addresses);
        let expected = ["1.1.1.1", "8.8.8.8"].map(|a| a.parse().expect(a));
        assert_eq!(kept, Ok(expected.to_vec()));
    }

    #[test]
    fn names_in_the_list_are_written_as_people_write_them() {
        let policy = Policy::new(&[name("Bücher.example")]);
        assert!(leads(&policy, "xn--bcher-kva.example", "10.0.0.1"));
    }
}
