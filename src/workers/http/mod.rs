//! HTTP upstreams: any HTTP/1.1 application server, untouched, driven through slots.
//!
//! [`Upstream`] is one such server with its slots, its queue and its health. A slot is a task with at most
//! one connection: no more requests are ever at the server than there are slots, so no second queue forms
//! there. What stays true:
//!
//! - a request that the server may have seen is never sent again;
//! - a slot is free when the server's answer has been read to its end, or its connection is closed;
//! - while the server does not accept, its slots are lost and the requests wait where they were.

mod body;
mod connection;
mod head;
mod keeping;
mod plans;
#[cfg(any(test, fuzzing))]
pub(crate) mod reference;
mod slot;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::connection::{Connection, Refused};
use self::keeping::{Keeping, WATCHED};
pub use self::plans::{Continuation, Digest, Signer};
use self::slot::SlotTask;
use super::{Board, WorkerSlots};
use crate::config;
use crate::metrics::Metrics;
use crate::slots::{EXPIRY_TICK, ProcessId, SlotId, Stuck};
use crate::spool::Spool;
use crate::sweeper::Sweeper;

/// All slots of an upstream are of one process as far as the scheduler goes: any of them will do.
const PROCESS: ProcessId = ProcessId(1);

/// Between two tries to reach a server that does not accept. The longest is what its users wait for it
/// once it is back.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// What a reload may change.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How long a tunnel may carry nothing.
    pub tunnel_timeout: Duration,
    /// How long a server may go on working on a request whose time is over, before its connection is closed.
    pub overdue_grace: Duration,
    /// None if the server's answers are never plans.
    pub plans: Option<Arc<Signer>>,
}

/// What an upstream needs of the rest of the gateway.
#[derive(Debug, Clone)]
pub struct Parts {
    pub spool: Spool,
    pub metrics: Metrics,
    pub sweeper: Sweeper,
}

/// Whether requests can be handed to a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    /// Not tried yet, or it did not accept. → Up, Stopped
    Down,
    /// → Down, Stopped
    Up,
    Stopped,
}

/// One server and its slots. When it is dropped, they finish what they have and end.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    server: config::Upstream,
    slots: Arc<WorkerSlots>,
    board: Arc<Board>,
    health: watch::Sender<Health>,
    keeping: Keeping,
    terms: Mutex<Terms>,
    parts: Parts,
    /// Of the gateway's main slots, whose times are those that size it.
    main: bool,
    /// Never cancelled: what is parked here waits for any slot.
    never: CancellationToken,
}

impl Upstream {
    /// Drives all of these slots, `main` if they are those of the whole gateway.
    pub fn start(
        server: config::Upstream,
        slots: Arc<WorkerSlots>,
        parts: Parts,
        terms: Terms,
        main: bool,
    ) -> Arc<Self> {
        let count = slots.count();
        let count = count.idle + count.busy + count.lost;
        slots.add_process(PROCESS);
        let shared = Arc::new(Shared {
            server,
            slots,
            board: Board::new(count),
            health: watch::Sender::new(Health::Down),
            keeping: Keeping::default(),
            terms: Mutex::new(terms),
            parts,
            main,
            never: CancellationToken::new(),
        });
        for number in 0..count {
            tokio::spawn(SlotTask::new(SlotId(number), Arc::clone(&shared)).run());
        }
        tokio::spawn(Arc::clone(&shared).keep());
        Arc::new(Self { shared })
    }

    pub fn server(&self) -> &config::Upstream {
        &self.shared.server
    }

    pub fn slots(&self) -> &Arc<WorkerSlots> {
        &self.shared.slots
    }

    pub fn board(&self) -> &Arc<Board> {
        &self.shared.board
    }

    /// The server accepts connections, as far as is known.
    pub fn is_up(&self) -> bool {
        *self.shared.health.borrow() == Health::Up
    }

    pub fn set_terms(&self, terms: Terms) {
        *self.shared.terms() = terms;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.health.send_replace(Health::Stopped);
    }
}

impl Shared {
    fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms
            .lock()
            .expect("no code that holds this lock panics")
    }

    /// Looks after the queue, and after a server that does not accept, until it is stopped.
    async fn keep(self: Arc<Self>) {
        tokio::select! {
            () = self.expire() => {}
            () = self.probe() => {}
            () = self.is(Health::Stopped) => {}
        }
    }

    async fn expire(&self) {
        let mut ticks = tokio::time::interval(EXPIRY_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.slots.expire();
            for Stuck { slot, .. } in self.slots.stuck() {
                if let Some(activity) = self.board.of(slot) {
                    let request = activity.about;
                    tracing::warn!(upstream = %self.server, slot = slot.0, %request, "no answer in time; the upstream still works on it");
                }
            }
        }
    }

    /// Tries to reach the server while it is down, less and less often. A connection is all that is asked of
    /// it: to send a request would be to run something.
    async fn probe(&self) {
        loop {
            self.is(Health::Down).await;
            let mut pause = FIRST_PAUSE;
            loop {
                match Connection::open(&self.server).await {
                    Ok(_) => break,
                    // It accepts, if not now.
                    Err(Refused::Busy) => break,
                    Err(Refused::Down(error)) => {
                        if pause == FIRST_PAUSE {
                            tracing::warn!(upstream = %self.server, %error, "upstream does not accept connections");
                        }
                    }
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            let back = self.health.send_if_modified(|health| {
                let back = *health == Health::Down;
                if back {
                    *health = Health::Up;
                }
                back
            });
            if back {
                tracing::info!(upstream = %self.server, "upstream accepts connections");
            }
        }
    }

    /// Sees whether a connection whose answer has ended stays open, and closes it.
    async fn watch(self: Arc<Self>, mut connection: Connection) {
        let closing = tokio::time::timeout(WATCHED, connection.spoilt());
        let closed = closing.await.is_ok();
        // Before anybody is sent on another: a server may have few workers, each with one connection at a time.
        drop(connection);
        if self.keeping.watched(closed, Instant::now()) {
            tracing::info!(upstream = %self.server, "upstream closes its connections after each answer; they are used once");
        }
    }

    /// A connection was refused. The probe says so in the log, and finds out when that is over.
    fn down(&self) {
        self.health.send_if_modified(|health| {
            let was_up = *health == Health::Up;
            if was_up {
                *health = Health::Down;
            }
            was_up
        });
    }

    /// Resolves when the health is this. Cancel safe.
    async fn is(&self, wanted: Health) {
        // The sender is here, so it cannot be gone.
        let _ = self
            .health
            .subscribe()
            .wait_for(|health| *health == wanted)
            .await;
    }
}
