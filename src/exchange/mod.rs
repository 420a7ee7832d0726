//! The exchange: the life of one request, from admission to its one outcome.
//!
//! A request waits for a slot, runs a step, parks while its plan is run, and resumes, until it is
//! answered. This room decides what happens when the client leaves, when the time is over, and
//! when a worker dies; what stays true:
//!
//! - the client gets one answer or one failure, and the failure on time;
//! - a request whose application code has run is finished or unwound in a slot, never dropped.
//!
//! Who may run next, how a worker is driven and how plans are run is decided elsewhere.

mod calls;
mod client;
mod life;
mod parked;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::task::TaskTracker;

pub use client::Outcome;
pub use parked::WaitedFor;

use self::parked::ParkedBoard;
use crate::config::OnDisconnect;
use crate::message::{LaterBody, NoBody, Request};
use crate::metrics::Metrics;
use crate::outbound::Outbound;
use crate::plan::FailureKind;
use crate::slots::Shed;
use crate::sweeper::Sweeper;
use crate::workers::http::Upstream;
use crate::workers::{Waits, WaitsInPlace, WorkerSlots};

/// Why a request has no answer. Downstream turns it into a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    Shed(Shed),
    /// The request's time is over.
    Deadline,
    /// The worker died with it.
    WorkerGone,
    /// The application waited for the body in vain.
    Body(NoBody),
    /// The server that was to answer did not.
    Origin(FailureKind),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shed(Shed::QueueFull) => f.write_str("the queue is full"),
            Self::Shed(Shed::QueueTimeout) => f.write_str("no slot was free in time"),
            Self::Shed(Shed::ParkedFull) => {
                f.write_str("too many requests are waiting on other services")
            }
            Self::Shed(Shed::Draining) => f.write_str("shutting down"),
            Self::Deadline => f.write_str("the request took too long"),
            Self::WorkerGone => f.write_str("the worker died"),
            Self::Body(no) => no.fmt(f),
            Self::Origin(kind) => write!(f, "the origin did not answer: {}", kind.as_str()),
        }
    }
}

impl std::error::Error for Failure {}

#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// From admission to the head of the answer.
    pub request_timeout: Duration,
    pub on_disconnect: OnDisconnect,
}

/// Where requests are taken through their lives. One count for all that each of them needs.
#[derive(Debug, Clone)]
pub struct Exchange {
    around: Arc<Around>,
}

/// What is around requests.
#[derive(Debug, Clone)]
struct Around {
    slots: Arc<WorkerSlots>,
    outbound: Outbound,
    sweeper: Sweeper,
    metrics: Metrics,
    waits: Waits,
    parked: ParkedBoard,
    /// Requests that go on after their client's wait is over.
    left: TaskTracker,
    /// What drives the slots, if they are an upstream's: it must not end before the last request that needs it.
    upstream: Option<Arc<Upstream>>,
}

impl Exchange {
    pub fn new(
        slots: Arc<WorkerSlots>,
        outbound: Outbound,
        sweeper: Sweeper,
        metrics: Metrics,
        waits: Waits,
    ) -> Self {
        Self {
            around: Arc::new(Around {
                slots,
                outbound,
                sweeper,
                metrics,
                waits,
                parked: ParkedBoard::default(),
                left: TaskTracker::new(),
                upstream: None,
            }),
        }
    }

    /// The same with the slots of this upstream.
    #[must_use]
    pub fn beside(&self, upstream: Arc<Upstream>) -> Self {
        Self {
            around: Arc::new(Around {
                slots: Arc::clone(upstream.slots()),
                upstream: Some(upstream),
                ..Around::clone(&self.around)
            }),
        }
    }

    /// Whether its requests are for an HTTP server, which may change to another protocol.
    pub fn may_upgrade(&self) -> bool {
        self.around.upstream.is_some()
    }

    /// Takes a request to its outcome; its body, if that is still with the client, when the
    /// application asks for it.
    ///
    /// Dropping the future means that the client left: a request that no application code has seen
    /// is forgotten, any other goes on by itself to a clean end.
    pub fn run(
        &self,
        request: Box<Request>,
        body: Option<LaterBody>,
        settings: Settings,
    ) -> Outcome {
        let deadline = Instant::now() + settings.request_timeout;
        Outcome::new(self.around.left.clone(), |client| {
            life::Life::new(self, &request, body, settings, deadline, client).run(request)
        })
    }

    /// Where requests have waited in place, and how often.
    pub fn waits_in_place(&self) -> Vec<WaitsInPlace> {
        self.around.waits.list()
    }

    /// What parked requests wait for now, what most wait for first.
    pub fn waited_for(&self) -> Vec<WaitedFor> {
        self.around.parked.waited_for(Instant::now())
    }

    /// Resolves when every request is over whose client has left or been answered early; call
    /// when no new ones come.
    pub async fn finished(&self) {
        self.around.left.close();
        self.around.left.wait().await;
    }
}
