//! What a plan runs under: one state of `[outbound]`, with the client that belongs to it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;

use super::client;
use super::gate::Gate;
use super::metrics::OriginLabel;
use super::policy::Policy;
use super::resolve::Lookup;
use crate::config;

pub(super) struct Settings {
    pub(super) policy: Arc<Policy>,
    pub(super) client: Client,
    pub(super) gate: Gate,
    /// Of a fetch that has none of its own.
    pub(super) timeout: Duration,
    pub(super) max_response: u64,
    /// Over all plans.
    pub(super) max_held: u64,
    labels: HashSet<String>,
}

impl Settings {
    /// Reads the system's certificates: takes some ten milliseconds.
    pub(super) fn new(config: &config::Outbound, lookup: Lookup) -> reqwest::Result<Self> {
        let policy = Arc::new(Policy::new(&config.allow));
        Ok(Self {
            client: client::build(Arc::clone(&policy), lookup)?,
            gate: Gate::default(),
            policy,
            timeout: config.timeout,
            max_response: config.max_response,
            max_held: config.max_held,
            labels: config.label.iter().cloned().collect(),
        })
    }

    pub(super) fn label(&self, host: Option<&str>) -> OriginLabel<'_> {
        host.and_then(|host| self.labels.get(host))
            .map_or(OriginLabel::OTHER, |host| OriginLabel::listed(host))
    }
}
