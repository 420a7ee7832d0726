//! Outbound: running a plan, and passing one response on.
//!
//! Everything here happens on a thread of its own with a current-thread runtime, so that
//! TLS and slow origins take no time from the request path; a plan makes one hop there and
//! one back. What may be reached is the decision of `policy`, when a plan is met that of
//! `join`; both are pure. Slots and clients are unknown here.
//!
//! A plan always has results, and has them by its deadline: what goes wrong is the outcome
//! of a thing. There are no retries, since what failed may have been done.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use tokio::runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::error;

use self::failure::Fault;
use self::relay::Relaying;
use self::resolve::Lookup;
use self::run::{Run, Shared};
use self::settings::Settings;
use crate::config;
use crate::plan::{Failure, FailureKind, Fetch, Outcome, Phase, Plan};
use crate::spool::Limit;

mod address;
mod client;
mod failure;
mod fetch;
mod gate;
mod headers;
mod join;
mod metrics;
mod policy;
mod progress;
mod redirect;
mod relay;
mod resolve;
mod run;
mod settings;
#[cfg(test)]
mod tests;

pub use self::metrics::{FetchOutcome, Metrics, OriginLabel};
pub use self::relay::Relayed;

/// Plans on their way to the thread. When so many wait, it is behind by that much work, and
/// the next caller waits for room until its deadline.
const PLANS_WAITING: usize = 1024;

/// How long past the deadline a caller waits for results that say more than "too late".
const PATIENCE: Duration = Duration::from_millis(100);

/// A handle on the outbound thread; clones share it. When the last one is dropped, the
/// thread ends once every unsafe fetch has run out.
#[derive(Clone)]
pub struct Outbound {
    orders: mpsc::Sender<Order>,
    settings: Arc<RwLock<Arc<Settings>>>,
    lookup: Lookup,
}

/// Settings that can be taken into use.
pub struct Prepared(Settings);

/// Why outbound could not start.
#[derive(Debug)]
pub enum StartError {
    Thread(io::Error),
    Client(reqwest::Error),
}

enum Order {
    Run(Run),
    /// Boxed: plans are many, and relays few.
    Relay(Box<Relaying>),
    Drain {
        grace: Duration,
        cut: oneshot::Sender<usize>,
    },
}

impl Outbound {
    /// # Errors
    ///
    /// If the system gives no thread or runtime, or the HTTP client cannot be made.
    ///
    /// What relays have under way counts against `memory`.
    pub fn start(
        settings: &config::Outbound,
        metrics: Arc<dyn Metrics>,
        memory: Limit,
    ) -> Result<Self, StartError> {
        Self::start_with(settings, metrics, memory, resolve::system())
    }

    fn start_with(
        settings: &config::Outbound,
        metrics: Arc<dyn Metrics>,
        memory: Limit,
        lookup: Lookup,
    ) -> Result<Self, StartError> {
        let settings = Settings::new(settings, Arc::clone(&lookup)).map_err(StartError::Client)?;
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .thread_name("layby-lookup")
            .build()
            .map_err(StartError::Thread)?;
        let (orders, received) = mpsc::channel(PLANS_WAITING);
        let shared = Shared {
            metrics,
            memory,
            held: Arc::new(AtomicU64::new(0)),
        };
        thread::Builder::new()
            .name("layby-outbound".to_owned())
            .spawn(move || {
                runtime.block_on(serve(received, shared));
                // A lookup may be stuck in the system for long.
                runtime.shutdown_background();
            })
            .map_err(StartError::Thread)?;
        Ok(Self {
            orders,
            settings: Arc::new(RwLock::new(Arc::new(settings))),
            lookup,
        })
    }

    /// Runs a plan to results in its shape. Never fails; ends soon after `deadline` at the
    /// latest.
    ///
    /// Cancel safe: dropping the future stops the safe fetches and lets unsafe ones run out,
    /// their results dropped and counted. A plan that still waits for the thread is dropped
    /// whole.
    pub async fn run(&self, plan: Plan, deadline: Instant) -> Vec<Outcome> {
        let started = Instant::now();
        let plan = Arc::new(plan);
        let (reply, results) = oneshot::channel();
        let order = Order::Run(Run {
            plan: Arc::clone(&plan),
            deadline,
            settings: self.settings(),
            reply,
        });
        // The thread keeps the deadline; this is for when it is stuck or gone.
        let ended = timeout_at(deadline + PATIENCE, async {
            self.orders.send(order).await.ok()?;
            results.await.ok()
        })
        .await;
        let (kind, message) = match ended {
            Ok(Some(results)) => return results,
            Ok(None) => (FailureKind::Failed, "the gateway makes no fetches any more"),
            Err(_) => (
                FailureKind::Timeout,
                "the gateway did not get to it in time",
            ),
        };
        let cut = |thing| failure::cut(thing, kind, message, started.elapsed());
        plan.root.things.iter().map(cut).collect()
    }

    /// Makes a fetch whose response is passed on as it comes, and keeps the first `capture` bytes of it.
    /// `deadline` is for the head; from then on the fetch's timeout is the longest pause of its origin.
    ///
    /// Cancel safe: dropping the future ends the fetch, whatever its method, as does dropping the body.
    ///
    /// # Errors
    ///
    /// Why there is no response.
    pub async fn relay(
        &self,
        fetch: Fetch,
        capture: usize,
        deadline: Instant,
    ) -> Result<Relayed, Failure> {
        let started = Instant::now();
        let url = fetch.url.clone();
        let (reply, relayed) = oneshot::channel();
        let order = Order::Relay(Box::new(Relaying {
            fetch,
            capture,
            deadline,
            settings: self.settings(),
            reply,
        }));
        // The thread keeps the deadline; this is for when it is stuck or gone.
        let ended = timeout_at(deadline + PATIENCE, async {
            self.orders.send(order).await.ok()?;
            relayed.await.ok()
        })
        .await;
        let (kind, message) = match ended {
            Ok(Some(relayed)) => return relayed,
            Ok(None) => (FailureKind::Failed, "the gateway makes no fetches any more"),
            Err(_) => (
                FailureKind::Timeout,
                "the gateway did not get to it in time",
            ),
        };
        Err(Fault::new(kind, Phase::Url, message).failure(&url, started.elapsed()))
    }

    /// Settings for [`Outbound::apply`]. Blocks for some ten milliseconds.
    ///
    /// # Errors
    ///
    /// If the HTTP client cannot be made.
    pub fn prepare(&self, settings: &config::Outbound) -> Result<Prepared, StartError> {
        let settings = Settings::new(settings, Arc::clone(&self.lookup));
        settings.map(Prepared).map_err(StartError::Client)
    }

    /// Plans from now on run under these settings; those under way keep what they have.
    pub fn apply(&self, Prepared(settings): Prepared) {
        let mut current = self
            .settings
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(settings);
    }

    /// Begins no more plans, waits for those under way and for unsafe fetches that run out,
    /// and ends the thread. After `grace`, says how many plans were cut.
    ///
    /// Other handles may still exist; their plans fail from now on.
    pub async fn drain(self, grace: Duration) -> usize {
        let (cut, count) = oneshot::channel();
        let drained = async {
            let order = Order::Drain { grace, cut };
            self.orders.send(order).await.ok()?;
            count.await.ok()
        };
        // The thread keeps the grace; this is for when it is stuck.
        let drained = timeout(grace + PATIENCE, drained).await;
        drained.ok().flatten().unwrap_or(0)
    }

    fn settings(&self) -> Arc<Settings> {
        let current = self.settings.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }
}

/// The outbound thread.
async fn serve(mut orders: mpsc::Receiver<Order>, shared: Shared) {
    let mut plans = JoinSet::new();
    let drain = loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some(Order::Run(run)) => drop(plans.spawn(run.run(shared.clone()))),
                Some(Order::Relay(relay)) => drop(plans.spawn(relay.run(shared.clone()))),
                Some(Order::Drain { grace, cut }) => break Some((grace, cut)),
                None => break None,
            },
            Some(ended) = plans.join_next() => log_panic(ended),
        }
    };
    // What came after the drain fails at its caller.
    drop(orders);
    let ended = async {
        while let Some(ended) = plans.join_next().await {
            log_panic(ended);
        }
    };
    match drain {
        None => ended.await,
        Some((grace, cut)) => {
            let _ = timeout(grace, ended).await;
            let _ = cut.send(plans.len());
        }
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(panic) = ended {
        error!(%panic, "a plan was lost");
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Outbound")
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "cannot start the outbound thread",
            Self::Client(_) => "cannot set up the HTTP client",
        })
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Thread(error) => Some(error),
            Self::Client(error) => Some(error),
        }
    }
}
