//! Slots: who may run next.
//!
//! [`Scheduler`] decides; this handle adds the waiting. A request's side submits a job and waits on
//! its [`Turn`]; a slot's side, a task of its own for each slot, pulls jobs through a [`Port`] and
//! reports steps. A slot never belongs to a request's future: dropping a [`Turn`] cannot lose one.
//!
//! The handle is generic over the job and the step, so nothing here knows of HTTP or of the
//! protocols that drive a worker.

mod scheduler;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use crate::metrics::{Metrics, Pool, ShedReason};

pub use scheduler::{
    Count, Limits, ProcessId, RequestId, Scheduler, Shed, SlotId, SlotView, Stuck, Why,
};

/// What becomes of a job that was submitted: a step, or the reason why there is none.
pub type Turned<S> = Result<S, NoTurn>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    Shed(Shed),
    /// The worker that had the request, or its job, is gone.
    WorkerGone,
}

impl std::fmt::Display for NoTurn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Shed(Shed::QueueFull) => "the queue is full",
            Self::Shed(Shed::QueueTimeout) => "no slot was free in time",
            Self::Shed(Shed::ParkedFull) => "too many requests are parked",
            Self::Shed(Shed::Draining) => "shutting down",
            Self::WorkerGone => "the worker is gone",
        })
    }
}

impl From<Shed> for ShedReason {
    fn from(shed: Shed) -> Self {
        match shed {
            Shed::QueueFull => Self::QueueFull,
            Shed::QueueTimeout => Self::QueueTimeout,
            Shed::ParkedFull => Self::ParkedFull,
            Shed::Draining => Self::Draining,
        }
    }
}

/// A job on its way to a slot, with the way back.
#[derive(Debug)]
struct Ticket<J, S> {
    job: J,
    /// When a new request began to wait; resumes are not counted as waits in the queue.
    submitted: Option<Instant>,
    reply: oneshot::Sender<Turned<S>>,
}

/// The request's side of a submitted job: resolves once.
#[derive(Debug)]
pub struct Turn<S>(oneshot::Receiver<Turned<S>>);

impl<S> Turn<S> {
    /// Cancel safe.
    pub async fn step(&mut self) -> Turned<S> {
        // The other end is dropped unsent only when the slot's worker died.
        (&mut self.0).await.unwrap_or(Err(NoTurn::WorkerGone))
    }

    /// A turn whose step is announced later by a slot that keeps its job.
    pub fn pending() -> (oneshot::Sender<Turned<S>>, Self) {
        let (reply, turn) = oneshot::channel();
        (reply, Self(turn))
    }
}

/// A job in the hands of a slot.
#[derive(Debug)]
pub struct Taken<J, S> {
    pub request: RequestId,
    pub job: J,
    pub reply: oneshot::Sender<Turned<S>>,
    /// As in its ticket.
    pub submitted: Option<Instant>,
}

#[derive(Debug)]
struct Inner<J, S> {
    scheduler: Scheduler<Ticket<J, S>>,
    /// Where each slot's task waits while it is idle; None while the slot is lost.
    ports: Vec<Option<mpsc::Sender<Taken<J, S>>>>,
}

/// The one queue in front of all slots.
#[derive(Debug)]
pub struct Slots<J, S> {
    inner: Mutex<Inner<J, S>>,
    pool: Pool,
}

/// A request's place in the books. Its owner gives it back by what becomes of the request, and does not come to
/// that by a panic: then it is given back by this, or by the slot that the request runs on.
#[derive(Debug)]
pub struct Place<J, S> {
    slots: Arc<Slots<J, S>>,
    id: RequestId,
}

/// Jobs that wait are shed, at the latest, this much after their time.
pub const EXPIRY_TICK: Duration = Duration::from_millis(100);

impl<J, S> Slots<J, S> {
    /// The slots of the whole gateway.
    pub fn new(count: u16, limits: Limits, metrics: &Metrics) -> Arc<Self> {
        Self::counted(count, limits, metrics.main_pool())
    }

    /// Slots that are counted in this place.
    pub fn counted(count: u16, limits: Limits, pool: Pool) -> Arc<Self> {
        let ports = (0..count).map(|_| None).collect();
        let slots = Self {
            inner: Mutex::new(Inner {
                scheduler: Scheduler::new(count, limits),
                ports,
            }),
            pool,
        };
        slots.publish(&slots.lock());
        Arc::new(slots)
    }

    /// A new request.
    ///
    /// # Errors
    /// At once, when it may not even wait.
    pub fn submit(&self, job: J, bytes: u64) -> Result<(RequestId, Turn<S>), Shed> {
        let now = Instant::now();
        let (reply, turn) = Turn::pending();
        let mut inner = self.lock();
        match inner.scheduler.submit(
            Ticket {
                job,
                submitted: Some(now),
                reply,
            },
            bytes,
            now,
        ) {
            Ok(id) => {
                self.deliver(&mut inner);
                Ok((id, turn))
            }
            Err((_, shed)) => {
                self.pool.shed(shed.into());
                Err(shed)
            }
        }
    }

    /// What a parked request waited for is there.
    pub fn resume(&self, id: RequestId, job: J, bytes: u64) -> Turn<S> {
        self.again(|scheduler, ticket| scheduler.resume(id, ticket, bytes), job)
    }

    /// A parked request is to be ended without its results.
    pub fn end(&self, id: RequestId, job: J) -> Turn<S> {
        self.again(|scheduler, ticket| scheduler.end(id, ticket), job)
    }

    /// A parked request wants this run on any slot of its process, beside what else runs for it. The call is
    /// withdrawn, and overdue, by the number that comes with its turn.
    ///
    /// # Errors
    /// When its process is gone.
    pub fn call(&self, parent: RequestId, job: J) -> Result<(RequestId, Turn<S>), NoTurn> {
        let (reply, turn) = Turn::pending();
        let mut inner = self.lock();
        let ticket = Ticket {
            job,
            submitted: None,
            reply,
        };
        match inner.scheduler.call(parent, ticket) {
            Ok(id) => {
                self.deliver(&mut inner);
                Ok((id, turn))
            }
            Err(_) => Err(NoTurn::WorkerGone),
        }
    }

    fn again(
        &self,
        enqueue: impl FnOnce(&mut Scheduler<Ticket<J, S>>, Ticket<J, S>) -> Result<(), Ticket<J, S>>,
        job: J,
    ) -> Turn<S> {
        let (reply, turn) = Turn::pending();
        let mut inner = self.lock();
        let ticket = Ticket {
            job,
            submitted: None,
            reply,
        };
        // Dropping the ticket tells the turn that the worker is gone.
        if enqueue(&mut inner.scheduler, ticket).is_ok() {
            self.deliver(&mut inner);
        }
        turn
    }

    /// Takes a job back that no slot has yet. A new request or a call is then forgotten, a resuming request
    /// parked again. One that a slot has goes on, unless it comes back from there unseen: then it is forgotten.
    pub fn withdraw(&self, id: RequestId) -> Option<J> {
        let mut inner = self.lock();
        let job = inner.scheduler.withdraw(id).map(|ticket| ticket.job);
        self.publish(&inner);
        job
    }

    /// Kept by whoever owns a request.
    pub fn place(self: &Arc<Self>, id: RequestId) -> Place<J, S> {
        Place {
            slots: Arc::clone(self),
            id,
        }
    }

    /// A parked request whose process is gone.
    pub fn forget(&self, id: RequestId) {
        let mut inner = self.lock();
        inner.scheduler.forget(id);
        // One place fewer is taken of the parked bound.
        self.deliver(&mut inner);
    }

    /// The time of a request is over: a slot that runs it counts as lost until it is ready again.
    pub fn overdue(&self, id: RequestId) {
        let mut inner = self.lock();
        inner.scheduler.overdue(id, Instant::now());
        self.publish(&inner);
    }

    /// Sheds what has waited too long. Called every [`EXPIRY_TICK`].
    pub fn expire(&self) {
        let mut inner = self.lock();
        let expired = inner.scheduler.expire(Instant::now());
        if expired.is_empty() {
            return;
        }
        self.publish(&inner);
        drop(inner);
        for (ticket, shed) in expired {
            self.shed(ticket, shed);
        }
    }

    /// Slots that a person should look at. Asked every [`EXPIRY_TICK`], and told once.
    pub fn stuck(&self) -> Vec<Stuck> {
        self.lock().scheduler.stuck(Instant::now())
    }

    pub fn set_limits(&self, limits: Limits) {
        let mut inner = self.lock();
        inner.scheduler.set_limits(limits);
        self.deliver(&mut inner);
    }

    /// Sheds every job that waits for its first slot, now and from here on.
    pub fn drain(&self) {
        let mut inner = self.lock();
        let waiting = inner.scheduler.drain();
        self.publish(&inner);
        drop(inner);
        for ticket in waiting {
            self.shed(ticket, Shed::Draining);
        }
    }

    fn shed(&self, ticket: Ticket<J, S>, shed: Shed) {
        self.pool.shed(shed.into());
        // A request that no longer listens has been answered otherwise.
        let _ = ticket.reply.send(Err(NoTurn::Shed(shed)));
    }

    pub fn add_process(&self, process: ProcessId) {
        self.lock().scheduler.add_process(process);
    }

    pub fn drain_process(&self, process: ProcessId) {
        self.lock().scheduler.drain_process(process);
    }

    /// The process gets no new jobs while it is silent.
    pub fn set_silent(&self, process: ProcessId, silent: bool) {
        let mut inner = self.lock();
        inner.scheduler.set_silent(process, silent);
        self.deliver(&mut inner);
    }

    /// Slots of the process that run something.
    pub fn busy_of(&self, process: ProcessId) -> usize {
        self.lock().scheduler.busy_of(process)
    }

    /// Whether the process has a request whose time and grace are not both over.
    pub fn has_time(&self, process: ProcessId) -> bool {
        self.lock().scheduler.has_time(process, Instant::now())
    }

    /// The process is gone: what waits for it learns so at once.
    pub fn remove_process(&self, process: ProcessId) {
        let mut inner = self.lock();
        let waiting = inner.scheduler.remove_process(process);
        self.deliver(&mut inner);
        drop(inner);
        drop(waiting);
    }

    /// A slot whose worker is ready for its first job.
    pub fn open(self: &Arc<Self>, slot: SlotId, process: ProcessId) -> Port<J, S> {
        // One place: a job is sent only to an idle slot, so the channel is empty then.
        let (sender, mailbox) = mpsc::channel(1);
        let mut inner = self.lock();
        inner.ports[usize::from(slot.0)] = Some(sender);
        inner.scheduler.add_slot(slot, process);
        self.deliver(&mut inner);
        Port {
            slots: Arc::clone(self),
            slot,
            mailbox,
        }
    }

    pub fn count(&self) -> Count {
        self.lock().scheduler.count()
    }

    pub fn queued(&self) -> usize {
        self.lock().scheduler.queued()
    }

    pub fn parked(&self) -> usize {
        self.lock().scheduler.parked_now()
    }

    /// Requests in whatever phase.
    pub fn requests(&self) -> usize {
        self.lock().scheduler.requests()
    }

    pub fn views(&self) -> Vec<SlotView> {
        self.lock().scheduler.slot_views()
    }

    fn deliver(&self, inner: &mut Inner<J, S>) {
        while let Some((slot, request, ticket)) = inner.scheduler.place() {
            let taken = self.taken(request, ticket);
            let port = inner.ports[usize::from(slot.0)].as_ref();
            if port.is_none_or(|port| port.try_send(taken).is_err()) {
                // The slot's task ended between two events; dropping the jobs told their requests.
                drop(inner.scheduler.remove_slot(slot));
            }
        }
        self.publish(inner);
    }

    fn taken(&self, request: RequestId, ticket: Ticket<J, S>) -> Taken<J, S> {
        if let Some(submitted) = ticket.submitted {
            self.pool.queue_wait(submitted.elapsed());
        }
        Taken {
            request,
            job: ticket.job,
            reply: ticket.reply,
            submitted: ticket.submitted,
        }
    }

    /// A job that its slot could not hand to its worker: no application code has seen it, and it goes back to
    /// where it waited. One that was to be withdrawn meanwhile nobody waits for: it ends with its slot.
    fn put_back(&self, inner: &mut Inner<J, S>, slot: SlotId, taken: Taken<J, S>) {
        if inner.scheduler.is_unwanted(taken.request) {
            return; // Dropping the reply tells the request.
        }
        let submitted = taken.submitted;
        let ticket = Ticket {
            job: taken.job,
            submitted: taken.submitted,
            reply: taken.reply,
        };
        if let Err(ticket) = inner.scheduler.put_back(slot, ticket, submitted) {
            self.shed(ticket, Shed::Draining);
        }
    }

    fn publish(&self, inner: &Inner<J, S>) {
        let Count { idle, busy, lost } = inner.scheduler.count();
        self.pool.slots(idle, busy, lost);
        self.pool.working(inner.scheduler.working());
        self.pool.queue_length(inner.scheduler.queued());
        self.pool.parked_requests(inner.scheduler.parked_now());
    }

    fn lock(&self) -> MutexGuard<'_, Inner<J, S>> {
        self.inner
            .lock()
            .expect("no code that holds this lock panics")
    }
}

impl<J, S> Drop for Place<J, S> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.slots.withdraw(self.id);
            self.slots.forget(self.id);
        }
    }
}

/// What closing a slot came to.
#[derive(Debug)]
pub enum Closing<J, S> {
    Closed,
    /// A job was handed over already. It belongs to this slot.
    Taken(Taken<J, S>),
    /// Parked requests can go on here only.
    Needed,
}

/// A slot's side: pulls the next job, reports when it is ready. Dropping it makes the slot lost.
#[derive(Debug)]
pub struct Port<J, S> {
    slots: Arc<Slots<J, S>>,
    slot: SlotId,
    mailbox: mpsc::Receiver<Taken<J, S>>,
}

impl<J, S> Port<J, S> {
    pub fn slot(&self) -> SlotId {
        self.slot
    }

    /// Waits, idle, for a job. None when the slot was taken away. Cancel safe.
    pub async fn next(&mut self) -> Option<Taken<J, S>> {
        self.mailbox.recv().await
    }

    /// Takes the idle slot out of the scheduler's hands: no job comes from here on. Unless it still
    /// has to do: then it stays as it was.
    pub fn close(&mut self) -> Closing<J, S> {
        let mut inner = self.slots.lock();
        // Jobs are sent under this lock, so none can come between the look and the removal.
        if let Ok(taken) = self.mailbox.try_recv() {
            return Closing::Taken(taken);
        }
        if inner.scheduler.is_needed(self.slot) {
            return Closing::Needed;
        }
        drop(inner.scheduler.remove_slot(self.slot));
        self.slots.deliver(&mut inner);
        Closing::Closed
    }

    /// The worker is ready and its request over. The next job, if one waits: it is handed
    /// over in the same breath, while the worker's thread is likely still awake.
    pub fn done(&mut self) -> Option<Taken<J, S>> {
        self.ready(|scheduler, slot| scheduler.done(slot))
    }

    /// The worker is ready and its request parked, retaining so many bytes; pinned, if only this slot can
    /// take its next job.
    pub fn parked(&mut self, bytes: u64, pinned: bool) -> Option<Taken<J, S>> {
        self.ready(|scheduler, slot| scheduler.parked(slot, bytes, pinned))
    }

    /// A request that parked here and that nobody owns any more.
    pub fn forget(&self, id: RequestId) {
        self.slots.forget(id);
    }

    /// The worker does not take jobs now, and provably has nothing of this one. One that is not new is put back
    /// only where any slot of the process can take it.
    pub fn put_back(&mut self, taken: Taken<J, S>) {
        let mut inner = self.slots.lock();
        self.slots.put_back(&mut inner, self.slot, taken);
        drop(inner.scheduler.remove_slot(self.slot));
        self.slots.deliver(&mut inner);
    }

    fn ready(
        &mut self,
        report: impl FnOnce(&mut Scheduler<Ticket<J, S>>, SlotId),
    ) -> Option<Taken<J, S>> {
        let mut inner = self.slots.lock();
        report(&mut inner.scheduler, self.slot);
        let next = inner.scheduler.take(self.slot);
        // A request that ended may open the parked bound for a slot elsewhere.
        self.slots.deliver(&mut inner);
        next.map(|(request, ticket)| self.slots.taken(request, ticket))
    }
}

impl<J, S> Drop for Port<J, S> {
    fn drop(&mut self) {
        let mut inner = self.slots.lock();
        // Jobs are sent under this lock. One that is still here has not been looked at.
        // Any other than a new one could go on with this worker only: dropping it tells its request.
        if let Ok(taken) = self.mailbox.try_recv()
            && taken.submitted.is_some()
        {
            self.slots.put_back(&mut inner, self.slot, taken);
        }
        inner.ports[usize::from(self.slot.0)] = None;
        drop(inner.scheduler.remove_slot(self.slot));
        self.slots.deliver(&mut inner);
    }
}
