//! What a plan runs under: one state of `[outbound]`, with the client that belongs to it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use reqwest::Client;

use super::client;
use super::metrics::OriginLabel;
use super::policy::Policy;
use super::resolve::Lookup;
use crate::config;

/// Connection pools. A pool looks through all who wait for a connection to the same origin whenever one
/// of them gets one, so the work for a burst of n fetches that finds none idle grows with n squared: with
/// 12 800 in one pool the thread did nothing else any more. In so many it is an eighth of that.
const POOLS: usize = 8;

/// Fetches under way before the next pool is used. Below it all share one, and its connections.
const FETCHES_PER_POOL: usize = 512;

pub(super) struct Settings {
    pub(super) policy: Arc<Policy>,
    clients: Vec<Client>,
    under_way: AtomicUsize,
    /// Of a fetch that has none of its own.
    pub(super) timeout: Duration,
    pub(super) max_response: u64,
    labels: HashSet<String>,
}

impl Settings {
    /// Reads the system's certificates: takes some ten milliseconds.
    pub(super) fn new(config: &config::Outbound, lookup: Lookup) -> reqwest::Result<Self> {
        let policy = Arc::new(Policy::new(&config.allow));
        Ok(Self {
            clients: (0..POOLS)
                .map(|_| client::build(Arc::clone(&policy), Arc::clone(&lookup)))
                .collect::<Result<_, _>>()?,
            under_way: AtomicUsize::new(0),
            policy,
            timeout: config.timeout,
            max_response: config.max_response,
            labels: config.label.iter().cloned().collect(),
        })
    }

    /// A client for requests; the first is as good as any other where nothing is sent.
    pub(super) fn client(&self) -> &Client {
        &self.clients[0]
    }

    /// The client to send the next request with.
    pub(super) fn lend(&self) -> Lent<'_> {
        let before = self.under_way.fetch_add(1, Relaxed);
        Lent {
            client: &self.clients[before / FETCHES_PER_POOL % POOLS],
            under_way: &self.under_way,
        }
    }

    pub(super) fn label(&self, host: Option<&str>) -> OriginLabel<'_> {
        host.and_then(|host| self.labels.get(host))
            .map_or(OriginLabel::OTHER, |host| OriginLabel::listed(host))
    }
}

/// A client while a request is under way.
pub(super) struct Lent<'s> {
    pub(super) client: &'s Client,
    under_way: &'s AtomicUsize,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.under_way.fetch_sub(1, Relaxed);
    }
}
