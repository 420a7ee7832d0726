//! Local waits: a request that is parked until its own process says that it can go on.
//!
//! A worker asks for such a request on its control connection (`WANT`, `CALL`), and says that the request is
//! parked on the connection of a slot. The two have no common order, so what is asked for a
//! request whose job still runs is kept until the job parks, or ends in another way. What is asked for
//! any other request comes too late, and is dropped.
//!
//! What is done about it is decided by the request's life, which holds the [`LocalWait`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::slots::{ProcessId, SlotId};

/// How many calls of one request may wait or run at a time. A worker runs them on a handful of slots: one
/// that asks for more has lost count.
const CALLS: usize = 1000;

/// Which park, or the job that is to become it. Unique: epochs count the jobs of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkId {
    pub process: ProcessId,
    pub request: u64,
    pub epoch: u32,
}

/// What a worker says about a park.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// It is over: resume.
    Want,
    /// Run the call of this number on a slot.
    Call(u16),
}

/// A worker has asked for more calls at a time than a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooManyCalls;

impl std::fmt::Display for TooManyCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "more than {CALLS} calls at a time for one request")
    }
}

impl std::error::Error for TooManyCalls {}

/// Something asked for, with its place among the calls of its request.
#[derive(Debug)]
pub enum Asked {
    Want,
    Call(u16, OwnedSemaphorePermit),
}

/// All local waits, and the jobs that may become some.
#[derive(Debug)]
pub struct Locals(Mutex<Books>);

#[derive(Debug)]
struct Books {
    /// What each slot runs.
    running: Vec<Option<Running>>,
    /// By the request's number.
    parked: HashMap<u64, (ParkId, Mailbox)>,
    /// Of one request at a time. A worker may ask anew for one whose end is still on its way to us, on
    /// another connection: one for each slot.
    calls: usize,
}

#[derive(Debug)]
struct Running {
    id: ParkId,
    /// There is none before something is asked, which for most jobs is never.
    early: Option<(Mailbox, Incoming)>,
}

type Incoming = mpsc::UnboundedReceiver<Asked>;

/// Bounded by itself: it takes so many calls and one end.
#[derive(Debug)]
struct Mailbox {
    asked: mpsc::UnboundedSender<Asked>,
    calls: Arc<Semaphore>,
    ended: bool,
}

impl Mailbox {
    fn new(calls: usize) -> (Self, Incoming) {
        let (asked, incoming) = mpsc::unbounded_channel();
        let mailbox = Self {
            asked,
            calls: Arc::new(Semaphore::new(calls)),
            ended: false,
        };
        (mailbox, incoming)
    }

    fn put(&mut self, ask: Ask) -> Result<(), TooManyCalls> {
        if self.ended {
            return Ok(());
        }
        let asked = match ask {
            Ask::Want => {
                self.ended = true;
                Asked::Want
            }
            Ask::Call(number) => {
                let place = Arc::clone(&self.calls).try_acquire_owned();
                Asked::Call(number, place.map_err(|_| TooManyCalls)?)
            }
        };
        // A life that has gone on without being asked is no concern of the worker's.
        let _ = self.asked.send(asked);
        Ok(())
    }
}

impl Locals {
    pub fn new(slots: u16) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Books {
            running: (0..slots).map(|_| None).collect(),
            parked: HashMap::new(),
            calls: CALLS + usize::from(slots),
        })))
    }

    /// A slot begins with a job that may park. Tell before the worker can know of the job.
    pub fn begins(&self, slot: SlotId, id: ParkId) {
        self.books().running[usize::from(slot.0)] = Some(Running { id, early: None });
    }

    /// The job of a slot has parked to wait locally. Tell before anybody else learns of it.
    pub fn parks(self: &Arc<Self>, slot: SlotId) -> Option<LocalWait> {
        let mut books = self.books();
        let Running { id, early } = books.running[usize::from(slot.0)].take()?;
        let (mailbox, incoming) = early.unwrap_or_else(|| Mailbox::new(books.calls));
        books.parked.insert(id.request, (id, mailbox));
        Some(LocalWait {
            incoming,
            id,
            locals: Arc::clone(self),
        })
    }

    /// The slot is done with its job. What was asked for a park that never came is forgotten.
    pub fn ends(&self, slot: SlotId) {
        self.books().running[usize::from(slot.0)] = None;
    }

    /// A worker has asked for something.
    ///
    /// # Errors
    /// When it asks for too much.
    pub fn asked(&self, id: ParkId, ask: Ask) -> Result<(), TooManyCalls> {
        let mut guard = self.books();
        let books = &mut *guard;
        if let Some((parked, mailbox)) = books.parked.get_mut(&id.request)
            && *parked == id
        {
            return mailbox.put(ask);
        }
        let running = books.running.iter_mut().flatten();
        if let Some(running) = running.into_iter().find(|running| running.id == id) {
            let new = || Mailbox::new(books.calls);
            let (mailbox, _) = running.early.get_or_insert_with(new);
            return mailbox.put(ask);
        }
        Ok(())
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

/// A request that is parked to wait locally. Dropping it ends the wait: what is asked after comes too late.
#[derive(Debug)]
pub struct LocalWait {
    incoming: Incoming,
    id: ParkId,
    locals: Arc<Locals>,
}

impl LocalWait {
    /// The next thing that the worker asks for. Cancel safe.
    pub async fn asked(&mut self) -> Asked {
        match self.incoming.recv().await {
            Some(asked) => asked,
            None => unreachable!("the sender is kept for as long as this wait"),
        }
    }
}

impl Drop for LocalWait {
    fn drop(&mut self) {
        let mut books = self.locals.books();
        if let Some((id, _)) = books.parked.get(&self.id.request)
            && *id == self.id
        {
            books.parked.remove(&self.id.request);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SLOT: SlotId = SlotId(1);

    fn park(epoch: u32) -> ParkId {
        ParkId {
            process: ProcessId(1),
            request: 71,
            epoch,
        }
    }

    fn next(wait: &mut LocalWait) -> Option<Ask> {
        let asked = wait.asked().now_or_never()?;
        Some(match asked {
            Asked::Want => Ask::Want,
            Asked::Call(number, _) => Ask::Call(number),
        })
    }

    #[test]
    fn what_is_asked_before_the_park_is_known_is_kept_in_order() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        for ask in [Ask::Call(7), Ask::Call(8), Ask::Want] {
            locals.asked(park(3), ask).expect("few");
        }
        let mut wait = locals.parks(SLOT).expect("it runs");
        assert_eq!(next(&mut wait), Some(Ask::Call(7)));
        assert_eq!(next(&mut wait), Some(Ask::Call(8)));
        assert_eq!(next(&mut wait), Some(Ask::Want));
        assert_eq!(next(&mut wait), None);
    }

    #[test]
    fn what_is_asked_after_the_park_arrives() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        let mut wait = locals.parks(SLOT).expect("it runs");
        locals.ends(SLOT);
        assert_eq!(next(&mut wait), None);
        locals.asked(park(3), Ask::Call(7)).expect("few");
        locals.asked(park(3), Ask::Want).expect("few");
        // It has said that it is over.
        locals.asked(park(3), Ask::Call(8)).expect("few");
        locals.asked(park(3), Ask::Want).expect("few");
        assert_eq!(next(&mut wait), Some(Ask::Call(7)));
        assert_eq!(next(&mut wait), Some(Ask::Want));
        assert_eq!(next(&mut wait), None);
    }

    #[test]
    fn what_is_asked_for_another_park_is_dropped() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        let stranger = ParkId {
            process: ProcessId(2),
            ..park(3)
        };
        for id in [park(2), park(4), stranger] {
            locals.asked(id, Ask::Want).expect("few");
        }
        let mut wait = locals.parks(SLOT).expect("it runs");
        for id in [park(2), park(4), stranger] {
            locals.asked(id, Ask::Want).expect("few");
        }
        assert_eq!(next(&mut wait), None);
        drop(wait);
        locals.asked(park(3), Ask::Want).expect("few");
        assert!(locals.books().parked.is_empty());
    }

    #[test]
    fn a_job_that_does_not_park_leaves_nothing_behind() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        locals.asked(park(3), Ask::Want).expect("few");
        locals.ends(SLOT);
        locals.begins(SLOT, park(4));
        let mut wait = locals.parks(SLOT).expect("it runs");
        assert_eq!(next(&mut wait), None, "that was for another epoch");
    }

    #[test]
    fn an_old_wait_does_not_take_a_new_one_with_it() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        let old = locals.parks(SLOT).expect("it runs");
        locals.begins(SLOT, park(4));
        let mut new = locals.parks(SLOT).expect("it runs");
        drop(old);
        locals.asked(park(4), Ask::Want).expect("few");
        assert_eq!(next(&mut new), Some(Ask::Want));
    }

    #[test]
    fn calls_are_bounded_and_those_that_are_over_make_room() {
        let locals = Locals::new(2);
        locals.begins(SLOT, park(3));
        for number in 0..500 {
            locals.asked(park(3), Ask::Call(number)).expect("few");
        }
        let mut wait = locals.parks(SLOT).expect("it runs");
        // As many as there are slots may be over without our knowing it.
        for number in 500..1000 + 2 {
            locals.asked(park(3), Ask::Call(number)).expect("few");
        }
        assert_eq!(locals.asked(park(3), Ask::Call(2000)), Err(TooManyCalls));
        let Some(Asked::Call(0, place)) = wait.asked().now_or_never() else {
            panic!("the first call");
        };
        assert_eq!(locals.asked(park(3), Ask::Call(2000)), Err(TooManyCalls));
        drop(place);
        assert_eq!(locals.asked(park(3), Ask::Call(2000)), Ok(()));
    }
}
