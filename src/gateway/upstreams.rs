//! The HTTP upstreams that are in force: the gateway's own, and those of routes.
//!
//! A reload keeps what the new configuration still names. What it does not ends with the last request that
//! is on its way there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::config::{self, Config, Source};
use crate::downstream::{Route, Routes};
use crate::exchange::Exchange;
use crate::slots::{Limits, Slots};
use crate::workers::WorkerSlots;
use crate::workers::http::{Parts, Signer, Terms, Upstream};

#[derive(Debug)]
pub struct Upstreams {
    parts: Parts,
    /// Drives the gateway's own slots, if workers do not.
    main: Option<Arc<Upstream>>,
    /// By what routes say of them.
    beside: Mutex<HashMap<config::RouteUpstream, Arc<Upstream>>>,
}

impl Upstreams {
    /// Drives the gateway's own slots if it has an upstream.
    pub fn start(config: &Config, slots: &Arc<WorkerSlots>, parts: Parts) -> Self {
        let main = match &config.workers.source {
            Source::Upstream(server) => Some(Upstream::start(
                server.clone(),
                Arc::clone(slots),
                parts.clone(),
                terms(config, config.workers.plans),
                true,
            )),
            Source::App(_) | Source::Link(_) => None,
        };
        Self {
            parts,
            main,
            beside: Mutex::default(),
        }
    }

    pub fn main(&self) -> Option<&Arc<Upstream>> {
        self.main.as_ref()
    }

    /// All of them, the gateway's own first, the others in the order of their names.
    pub fn list(&self) -> Vec<Arc<Upstream>> {
        let mut beside: Vec<_> = self.beside().values().cloned().collect();
        beside.sort_by_key(|upstream| upstream.server().to_string());
        self.main.iter().cloned().chain(beside).collect()
    }

    /// The routes of a configuration, with an exchange for each upstream that they name. From here on these
    /// upstreams are in force, and no others.
    pub fn routes(&self, config: &Config, limits: &Limits, exchange: &Exchange) -> Routes {
        let mut before = std::mem::take(&mut *self.beside());
        let mut now: HashMap<config::RouteUpstream, Arc<Upstream>> = HashMap::new();
        let mut routes = Vec::new();
        for rules in &config.routes {
            let upstream = rules.upstream.as_ref().map(|named| {
                let upstream = now.entry(named.clone()).or_insert_with(|| {
                    let kept = before.remove(named);
                    kept.unwrap_or_else(|| self.beside_workers(named, config, limits))
                });
                exchange.beside(Arc::clone(upstream))
            });
            routes.push(Route::new(rules.clone(), upstream));
        }
        for upstream in now.values() {
            upstream.slots().set_limits(limits.clone());
        }
        if let Some(upstream) = &self.main {
            upstream.set_terms(terms(config, config.workers.plans));
        }
        for (named, upstream) in &now {
            upstream.set_terms(terms(config, named.plans));
        }
        *self.beside() = now;
        Routes::new(routes)
    }

    fn beside_workers(
        &self,
        named: &config::RouteUpstream,
        config: &Config,
        limits: &Limits,
    ) -> Arc<Upstream> {
        let metrics = &self.parts.metrics;
        let pool = metrics.upstream_pool(&named.server.to_string());
        let slots = Slots::counted(named.connections, limits.clone(), pool);
        let parts = self.parts.clone();
        Upstream::start(
            named.server.clone(),
            slots,
            parts,
            terms(config, named.plans),
            false,
        )
    }

    /// Sheds what waits for an upstream of a route, now and from here on.
    pub fn drain(&self) {
        for upstream in self.beside().values() {
            upstream.slots().drain();
        }
    }

    fn beside(&self) -> MutexGuard<'_, HashMap<config::RouteUpstream, Arc<Upstream>>> {
        self.beside
            .lock()
            .expect("no code that holds this lock panics")
    }
}

/// `plans`: whether the server may answer with plans.
fn terms(config: &Config, plans: bool) -> Terms {
    let secret = config.plans.as_ref().filter(|_| plans);
    Terms {
        plans: secret.map(|plans| Arc::new(Signer::new(&plans.secret.0))),
        tunnel_timeout: config.tunnel_timeout,
        overdue_grace: config.slots.overdue_grace,
    }
}
