//! The HTTP client: everything that is set on it, and why.
//!
//! A client belongs to one policy. Its pool holds connections that this policy let
//! through, so another policy needs another client.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, redirect, retry};
use rustls::crypto::ring;
use tracing::warn;

use super::policy::Policy;
use super::progress::WatchConnects;
use super::resolve::{Lookup, Resolver};

/// Lookup, TCP and TLS together. Divided among the addresses of a name, so that a dead
/// one leaves time for the next.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Below the 60 s and more that balancers keep connections, above a burst's pauses. An
/// origin that closes earlier is noticed while the connection is idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Idle connections per origin. What a burst leaves beyond this is opened anew by the next one,
/// which costs more than all the rest of a fetch: with 6 400 in flight, a bound of 512 made
/// 4 300 connections a second and doubled the CPU time. [`IDLE_TIMEOUT`] takes them away afterwards.
const IDLE_PER_ORIGIN: usize = 16_384;

/// An HTTP/2 connection that died without a word would else fail every fetch to its
/// origin until the system gives up on it, in a quarter of an hour.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn build(policy: Arc<Policy>, lookup: Lookup) -> reqwest::Result<Client> {
    // Someone else may have installed the process's provider; any will do.
    let _ = ring::default_provider().install_default();

    let resolver = Arc::new(Resolver { policy, lookup });
    settings(Arc::clone(&resolver)).build().or_else(|error| {
        // The one thing that can be missing is the system's certificates. Plain http and
        // everything else of the gateway does not need them.
        warn!(%error, "no certificate authorities: every https fetch will fail");
        settings(resolver).tls_certs_only([]).build()
    })
}

fn settings(resolver: Arc<Resolver>) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("layby/", env!("CARGO_PKG_VERSION")))
        // A proxy would look up names for us, past the policy.
        .no_proxy()
        .dns_resolver(resolver)
        .connector_layer(WatchConnects)
        // Redirects are followed in `fetch`, each hop checked, with fewer headers.
        .redirect(redirect::Policy::none())
        .referer(false)
        // The client would by itself repeat a request that an HTTP/2 origin turned away, also
        // when a connection ended under it and nobody knows what became of it. What stays
        // is below: a request that never left because its pooled connection was closed is sent
        // on another. With no repeats there is no need to keep a copy of every request.
        .retry(retry::never().max_retries_per_request(0))
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_ORIGIN)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
}
