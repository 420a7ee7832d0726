//! Workers: running one step on one slot.
//!
//! What a job and a step are is the same however a slot is driven; `link` drives layby's own
//! workers, `supervise` keeps their processes alive. Queues and clients are not known here.

pub mod link;
pub mod supervise;

use std::sync::Arc;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::message::{Answer, Request};
use crate::metrics::WaitReason;
use crate::plan::{Outcome, Plan};
use crate::slots::{ProcessId, Slots, Turn, Turned};

/// One step of a request, handed to a slot.
#[derive(Debug)]
pub struct Job {
    /// Counts the jobs of the request.
    pub epoch: u32,
    pub work: Work,
}

#[derive(Debug)]
pub enum Work {
    Begin(Box<Request>),
    Resume(Vec<Outcome>),
    /// The client is gone: unwind.
    End,
}

/// What a slot made of a job.
#[derive(Debug)]
pub enum Step {
    Answer(Answer),
    Park(Park),
    Hold(Hold),
    /// The request was unwound; there is no answer.
    Ended,
}

/// The slot is free; the request resumes on a slot of this process.
#[derive(Debug)]
pub struct Park {
    pub plan: Plan,
    pub shielded: bool,
    pub process: Arc<Process>,
}

/// The slot is held, waiting in place.
#[derive(Debug)]
pub struct Hold {
    pub plan: Plan,
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
    /// Cancelled when the process is dead to us, whatever the reason.
    pub gone: CancellationToken,
}

/// The queue in front of workers.
pub type WorkerSlots = Slots<Job, Step>;
