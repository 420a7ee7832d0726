//! Name lookup, held to the policy.
//!
//! The client connects to exactly the addresses handed out here, without another lookup,
//! so a name cannot change its mind in between.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::policy::{Policy, Refusal, of_localhost};
use super::progress::Progress;
use crate::plan::Phase;

/// A lookup that takes longer is given up; the thread it runs on cannot be.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Lookups at once, each on a thread. The others wait their turn within [`TIMEOUT`].
const LOOKUPS: usize = 32;

/// How addresses of a name are found. Tests bring their own.
pub(super) type Lookup = Arc<dyn Fn(String) -> LookingUp + Send + Sync>;
pub(super) type LookingUp = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

pub(super) struct Resolver {
    pub(super) policy: Arc<Policy>,
    pub(super) lookup: Lookup,
}

#[derive(Debug)]
pub(super) enum ResolveError {
    Refused(Refusal),
    TimedOut,
    Failed(io::Error),
}

/// The system's resolver, with its `hosts` file and search list.
pub(super) fn system() -> Lookup {
    let turns = Arc::new(Semaphore::new(LOOKUPS));
    Arc::new(move |name| {
        let turns = Arc::clone(&turns);
        Box::pin(async move {
            let turn = turns.acquire_owned().await.map_err(io::Error::other)?;
            spawn_blocking(move || {
                // The turn ends with the thread's work, not when the fetch gives up on it:
                // else every dead lookup would let in another.
                let _turn = turn;
                let found = (name.as_str(), 0).to_socket_addrs()?;
                Ok(found.map(|address| address.ip()).collect())
            })
            .await
            .map_err(io::Error::other)?
        })
    })
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let progress = Progress::current();
        progress.reached(Phase::Dns);
        let policy = Arc::clone(&self.policy);
        let lookup = Arc::clone(&self.lookup);
        Box::pin(async move {
            let name = name.as_str();
            let found = match of_localhost(name) {
                Some(addresses) => addresses,
                None => timeout(TIMEOUT, lookup(name.to_owned()))
                    .await
                    .map_err(|_| ResolveError::TimedOut)?
                    .map_err(ResolveError::Failed)?,
            };
            let permitted = policy
                .permitted(name, found)
                .map_err(ResolveError::Refused)?;
            progress.reached(Phase::Connect);
            // The client puts the URL's port in place of 0.
            let addresses = permitted.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as Addrs)
        })
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Refused(_) => f.write_str("not permitted"),
            Self::TimedOut => write!(f, "no answer to the name lookup in {TIMEOUT:?}"),
            Self::Failed(_) => f.write_str("the name lookup failed"),
        }
    }
}

impl Error for ResolveError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::TimedOut => None,
            Self::Failed(error) => Some(error),
        }
    }
}
