//! Workers: running one step on one slot.
//!
//! What a job and a step are is the same however a slot is driven; `link` drives layby's own
//! workers, `supervise` keeps their processes alive, `http` drives servers that know nothing of layby.
//! Queues and clients are not known here.

pub mod http;
pub mod link;
pub mod local;
pub mod supervise;
mod text;
mod waits;

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ::http::Method;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;

pub use self::waits::{Waits, WaitsInPlace};

use self::http::{Continuation, Digest};
use self::local::LocalWait;
use crate::message::{Answer, Request};
use crate::metrics::WaitReason;
use crate::plan::{Captured, Outcome, Plan, Relay};
use crate::record::Record;
use crate::slots::{ProcessId, RequestId, SlotId, Slots, Turn, Turned};
use crate::spool::{AnswerWriter, Body};

/// Longest path in the log; the rest is cut off.
const SHOWN_PATH: usize = 200;

/// One step of a request, handed to a slot.
#[derive(Debug)]
pub struct Job {
    /// Counts the jobs of the request.
    pub epoch: u32,
    pub about: About,
    pub work: Work,
    /// The answer that the request is in the middle of.
    pub answer: Option<AnswerWriter>,
    /// The request's body is still with its client, and may be asked for, once.
    pub lazy: bool,
}

/// How long a request's answer may be waited for.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its head is due then.
    pub deadline: Instant,
    /// So long each for what follows.
    pub timeout: Duration,
}

/// Which request a job is of, for people.
#[derive(Debug, Clone)]
pub struct About {
    pub method: Method,
    pub target: Arc<str>,
    pub record: Arc<Record>,
}

#[derive(Debug)]
pub enum Work {
    Begin(Box<Request>, Times),
    Resume(Vec<Outcome>),
    /// The same for an HTTP server, which gets a request of its own for it.
    Continue(Box<Continue>),
    /// What was asked for: the request's body.
    Body(Body),
    /// How the relay ended that was this request's answer.
    Relayed(Captured),
    /// The request's own process wants it to go on.
    Wanted,
    /// The client is gone: unwind.
    End,
    /// Something for a request that is parked meanwhile.
    Run(Call),
}

/// How a request goes on at an HTTP server.
#[derive(Debug)]
pub struct Continue {
    pub continuation: Continuation,
    pub results: Results,
    pub times: Times,
    /// The request's time was over before its results were written.
    pub late: bool,
}

/// What a plan came to.
#[derive(Debug)]
pub enum Results {
    /// → Written
    Outcomes(Vec<Outcome>),
    /// As the server gets them.
    Written(Body, Digest),
}

impl Job {
    /// The request that it is of: for a call, the one that made it.
    pub fn of(&self, scheduled: RequestId) -> RequestId {
        match &self.work {
            Work::Run(call) => call.request,
            _ => scheduled,
        }
    }
}

/// What a parked request wants run on a slot. Its job has the epoch of the park.
#[derive(Debug)]
pub struct Call {
    pub request: RequestId,
    /// Chosen by the worker.
    pub number: u16,
    /// Among the calls of the request, until it is over.
    pub place: Option<OwnedSemaphorePermit>,
}

/// What a slot made of a job.
#[derive(Debug)]
pub enum Step {
    /// With a turn if the body is still coming: the application may park, or wait in place, while it makes it;
    /// or if the body is there and the slot is not ready.
    Answer(Answer, Option<Turn<Step>>),
    /// The last byte of a body that was coming is there, and the slot is not ready: the application may wait
    /// in place for what it has left to do.
    Answered(Turn<Step>),
    Park(Park),
    Hold(Hold),
    /// The request was unwound, or the call has been run; there is no answer.
    Ended,
}

/// The slot is free; the request resumes on a slot of the same process.
#[derive(Debug)]
pub struct Park {
    pub awaited: Awaited,
    pub shielded: bool,
    /// Cancelled when nobody is left who could go on with it.
    pub gone: CancellationToken,
    /// The answer that the request is in the middle of. It goes on with the next job.
    pub answer: Option<AnswerWriter>,
    /// How it goes on, if its server does not know of it meanwhile.
    pub then: Option<Box<Continuation>>,
}

/// What a request waits for.
#[derive(Debug)]
pub enum Awaited {
    Plan(Plan),
    /// Its body.
    Body,
    /// Its own process.
    Local(LocalWait),
    /// The end of its answer, which another server gives.
    Relay(Box<Relay>),
}

/// The slot is held, waiting in place.
#[derive(Debug)]
pub struct Hold {
    /// A plan or the body.
    pub awaited: Awaited,
    pub shielded: bool,
    pub reason: WaitReason,
    /// Where the application waits, for the operator.
    pub source: String,
    pub held: Held,
}

/// A worker that waits in place. Dropping it cancels the request.
#[derive(Debug)]
pub struct Held(oneshot::Sender<(Release, oneshot::Sender<Turned<Step>>)>);

impl Held {
    /// Resolves when the worker does not wait any more: it died. Cancel safe.
    pub async fn gone(&mut self) {
        self.0.closed().await;
    }

    /// Lets the worker go on; its next step comes with the turn.
    pub fn release(self, release: Release) -> Turn<Step> {
        let (reply, turn) = Turn::pending();
        // When the slot's worker has died meanwhile, the reply is dropped here and the turn says so.
        let _ = self.0.send((release, reply));
        turn
    }
}

/// How a wait in place ends.
#[derive(Debug)]
pub enum Release {
    Results(Vec<Outcome>),
    Body(Body),
    /// The client is gone: unwind.
    Cancel,
}

/// A worker process, known by its control connection.
#[derive(Debug)]
pub struct Process {
    pub id: ProcessId,
    pub pid: u32,
    pub mode: String,
    pub threads: u16,
    /// Given by the supervisor that started it; empty for others.
    pub token: String,
    /// Its control thread answers PING, so its silence means something.
    pub pings: bool,
    /// At SIGUSR2 it writes down what all its threads do, even if its interpreter is held.
    pub dumps: bool,
    /// It tells the stacks of its slots.
    pub stacks: bool,
    /// Requests that it has begun.
    pub begun: AtomicU64,
    /// Connections of slots that its end has not closed.
    pub open: AtomicUsize,
    /// Wakes whoever can have it write down what its threads do, when it does not answer.
    pub mute: Notify,
    /// Cancelled when it is to be replaced, because a slot of it is stuck, or it does not answer.
    pub condemned: CancellationToken,
    /// Cancelled when it has asked to be drained.
    pub leaves: CancellationToken,
    /// Cancelled when the process is dead to us, whatever the reason.
    pub gone: CancellationToken,
}

impl std::fmt::Display for About {
    /// Without the query, where secrets may be.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let path = self.target.split(['?', '#']).next().unwrap_or_default();
        let shown: String = path.chars().take(SHOWN_PATH).collect();
        write!(f, "{} {shown}", self.method)
    }
}

/// What each slot works on now, for the operator.
#[derive(Debug)]
pub struct Board(Mutex<Vec<Option<Activity>>>);

#[derive(Debug, Clone)]
pub struct Activity {
    pub request: RequestId,
    pub about: About,
    pub since: Instant,
    pub doing: Doing,
}

/// What a slot does for its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// It runs application code.
    Run,
    /// It runs what a parked request has asked for.
    Call,
    /// It ends a request that nobody waits for.
    Unwind,
    /// The head of the answer is out, and its body comes.
    Answer,
    /// It is held by a request that waits.
    WaitInPlace,
}

/// What a slot does for as long as this lives; then what it did before.
#[must_use = "the slot does something else when this is dropped"]
pub struct Meanwhile {
    board: Arc<Board>,
    slot: SlotId,
    before: Doing,
}

impl Doing {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Call => "call",
            Self::Unwind => "unwind",
            Self::Answer => "answer",
            Self::WaitInPlace => "wait_in_place",
        }
    }
}

impl From<&Work> for Doing {
    fn from(work: &Work) -> Self {
        match work {
            Work::Run(_) => Self::Call,
            Work::End => Self::Unwind,
            Work::Begin(..)
            | Work::Resume(_)
            | Work::Continue(_)
            | Work::Body(_)
            | Work::Relayed(_)
            | Work::Wanted => Self::Run,
        }
    }
}

impl Board {
    pub fn new(slots: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new(vec![None; slots.into()])))
    }

    pub fn set(&self, slot: SlotId, activity: Option<Activity>) {
        self.activities()[usize::from(slot.0)] = activity;
    }

    pub fn of(&self, slot: SlotId) -> Option<Activity> {
        self.activities()[usize::from(slot.0)].clone()
    }

    /// The slot does this for its request in between.
    pub fn meanwhile(self: &Arc<Self>, slot: SlotId, doing: Doing) -> Meanwhile {
        let before = self.does(slot, doing).unwrap_or(Doing::Run);
        Meanwhile {
            board: Arc::clone(self),
            slot,
            before,
        }
    }

    fn does(&self, slot: SlotId, doing: Doing) -> Option<Doing> {
        let mut activities = self.activities();
        let activity = activities[usize::from(slot.0)].as_mut()?;
        Some(std::mem::replace(&mut activity.doing, doing))
    }

    fn activities(&self) -> MutexGuard<'_, Vec<Option<Activity>>> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

impl Drop for Meanwhile {
    fn drop(&mut self) {
        self.board.does(self.slot, self.before);
    }
}

/// The queue in front of workers.
pub type WorkerSlots = Slots<Job, Step>;
