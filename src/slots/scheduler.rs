//! The scheduler: which job runs next, and on which slot.
//!
//! Pure data and time: no clock, no I/O, no locks. Every method takes the events of the
//! world (a request came, a slot is ready, a process died) and keeps the books. What stays true:
//!
//! - every slot is in one state, and idle + busy + lost is the configured count;
//! - a job leaves the scheduler once: to a slot, to its owner (withdrawn, lost), or shed;
//! - a parked request holds no slot, and its next job goes to a slot of its own process: to the very
//!   slot that it left, if it is pinned there;
//! - resumes go before new jobs, but every [`NEW_EVERY`]-th turn goes to a new one;
//! - a new job starts only while running + parked is below the bound;
//! - a call, which runs something for a parked request, is placed like a resume and counts for nothing
//!   else: it is its request that is admitted and parked.
//!
//! Waiting for the answer, waking slots and telling the time are left to [`super::Slots`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use slab::Slab;

/// While resumes wait, this turn of every so many goes to a new job. A request that parks
/// once needs two turns, so a quarter for new work drains the parked rather than piling them up.
pub const NEW_EVERY: u32 = 4;

/// While live work waits, this turn of every so many goes to the end of a request whose client has left.
pub const ENDING_EVERY: u32 = 8;

/// At most one slot in so many (but always one) ends left requests, so that a flood of leavers
/// displaces no live work.
const ENDING_SHARE: usize = 8;

/// A pinned request that has waited this long for its slot, busy all the while with one job, is worth a
/// look at what the slot is doing. So is a slot this long after the time of its request, when a quarter of the
/// grace is not sooner: on a busy day many are late by a little.
const PATIENCE: Duration = Duration::from_secs(1);

/// A slot's number, below the configured count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u16);

/// A worker process, unique while the gateway lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcessId(pub u32);

/// A request, unique while the gateway lives: a serial number above the place in the slab.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(u64);

const PLACE_BITS: u32 = 24;

impl RequestId {
    fn new(serial: u64, place: usize) -> Self {
        Self(serial << PLACE_BITS | place as u64)
    }

    fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }

    pub fn number(self) -> u64 {
        self.0
    }
}

#[derive(Debug, Clone)]
pub struct Limits {
    /// New jobs that may wait.
    pub queue: usize,
    /// How long a new job may wait.
    pub queue_timeout: Duration,
    /// Running and parked requests together.
    pub parked: usize,
    /// Bytes that running and parked requests retain together.
    pub parked_bytes: u64,
    /// How long a slot may go on with a request whose time is over.
    pub overdue_grace: Duration,
}

/// Why a new job was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    QueueFull,
    QueueTimeout,
    ParkedFull,
    Draining,
}

/// Where a request stands. A running request's slot is found in `slots`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// → Running, withdrawn, shed
    Queued,
    /// → Parked, Queued (given back unseen), done
    Running(SlotId),
    /// → Resuming, Ending
    Parked(Home),
    /// → Running, Parked (withdrawn)
    Resuming(Home),
    /// → Running
    Ending(Home),
    /// A call's first phase. → Running, withdrawn
    Calling(Home),
}

/// Where a job can go on that is not new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home {
    process: ProcessId,
    /// Only there.
    pinned: Option<SlotId>,
}

#[derive(Debug)]
struct Entry {
    id: RequestId,
    phase: Phase,
    /// Its place in the queue that it waits in, if it waits.
    serial: u64,
    bytes: u64,
    /// When its time was over, if it is.
    over: Option<Instant>,
    /// Runs something for another request, and is not counted beside that one.
    call: bool,
    /// It was to be withdrawn when a slot had it.
    unwanted: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// → Idle
    Lost,
    /// → Busy, Lost
    Idle(ProcessId),
    /// → Idle, Lost
    Busy(Spell),
}

/// A slot's time with one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Spell {
    process: ProcessId,
    request: RequestId,
    ending: bool,
    overtime: Overtime,
    blocking: Blocking,
}

/// How far a slot is beyond the time of the request that it works on. Only [`Scheduler::stuck`] knows the
/// time, and moves it on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Overtime {
    /// → Late, Overdue
    No,
    /// The time was over before the job began: it unwinds the request, or finishes it unwatched. So it has
    /// the grace to itself first. → Overdue
    Late(Instant),
    /// The time ended while the slot worked, so it counts as lost until it is ready. → Told, after a moment
    Overdue(Instant),
    /// → Spent
    Told(Instant),
    /// The grace is over too.
    Spent,
}

impl Overtime {
    fn is_lost(self) -> bool {
        matches!(self, Self::Overdue(_) | Self::Told(_) | Self::Spent)
    }
}

/// Whether a pinned job waits for a busy slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blocking {
    /// → Since
    No,
    /// → Told
    Since(Instant),
    Told,
}

/// Jobs that wait for a slot, in the order of their serial numbers.
type Line<J> = BTreeMap<u64, (RequestId, J)>;

#[derive(Debug)]
struct Waiting<J> {
    resumes: Line<J>,
    endings: Line<J>,
}

impl<J> Default for Waiting<J> {
    fn default() -> Self {
        Self {
            resumes: Line::new(),
            endings: Line::new(),
        }
    }
}

#[derive(Debug)]
struct Process<J> {
    slots: usize,
    /// Parked here, or waiting to go on; pinned ones too.
    parked: usize,
    /// Takes no new jobs, for good.
    draining: bool,
    /// Takes none while it does not say that it lives.
    silent: bool,
    waiting: Waiting<J>,
    /// Turns since a new job, and since an ending, had one while others waited.
    since_new: u32,
    since_ending: u32,
}

impl<J> Process<J> {
    fn takes_new(&self) -> bool {
        !self.draining && !self.silent
    }
}

/// What can go on at one slot alone.
#[derive(Debug)]
struct Pinned<J> {
    parked: usize,
    waiting: Waiting<J>,
}

impl<J> Default for Pinned<J> {
    fn default() -> Self {
        Self {
            parked: 0,
            waiting: Waiting::default(),
        }
    }
}

/// A slot that a person should look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stuck {
    pub slot: SlotId,
    pub process: ProcessId,
    pub why: Why,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The time of the request that it runs is over.
    Overdue,
    /// And the grace.
    Spent,
    /// A request that is pinned to it waits, while it runs another.
    Blocking,
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub idle: u16,
    pub busy: u16,
    pub lost: u16,
}

impl Count {
    /// How many there are, whatever they do.
    pub fn all(self) -> u16 {
        self.idle + self.busy + self.lost
    }
}

/// What one slot is doing, for the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    pub slot: SlotId,
    pub process: Option<ProcessId>,
    pub request: Option<RequestId>,
    /// It counts as lost: its request is overdue, or its process does not answer.
    pub lost: bool,
}

#[derive(Debug)]
struct NewJob<J> {
    id: RequestId,
    job: J,
    since: Instant,
}

#[derive(Debug)]
pub struct Scheduler<J> {
    limits: Limits,
    requests: Slab<Entry>,
    /// Numbers requests and orders the queues.
    serial: u64,
    queue: BTreeMap<u64, NewJob<J>>,
    slots: Vec<Slot>,
    /// For every slot.
    pinned: Vec<Pinned<J>>,
    /// Idle slots, the one that became idle last at the end: its thread is likeliest to be awake.
    idle: Vec<SlotId>,
    processes: BTreeMap<ProcessId, Process<J>>,
    /// Running and parked requests, and the bytes they retain.
    admitted: usize,
    admitted_bytes: u64,
    ending_now: usize,
    /// Calls among `requests`.
    calls: usize,
    draining: bool,
}

impl<J> Scheduler<J> {
    pub fn new(slots: u16, limits: Limits) -> Self {
        Self {
            limits,
            requests: Slab::new(),
            serial: 0,
            queue: BTreeMap::new(),
            slots: vec![Slot::Lost; slots.into()],
            pinned: (0..slots).map(|_| Pinned::default()).collect(),
            idle: Vec::new(),
            processes: BTreeMap::new(),
            admitted: 0,
            admitted_bytes: 0,
            ending_now: 0,
            calls: 0,
            draining: false,
        }
    }

    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// From here on every new job is shed, first of all those in the queue; what runs or is parked
    /// goes on.
    pub fn drain(&mut self) -> Vec<J> {
        self.draining = true;
        let queue = std::mem::take(&mut self.queue);
        let shed = |new: NewJob<J>| {
            self.requests.remove(new.id.place());
            new.job
        };
        queue.into_values().map(shed).collect()
    }

    // Requests -------------------------------------------------------------------------

    /// A new request asks for its first turn. It waits in the queue even when a slot is
    /// idle: call [`Self::place`] next.
    ///
    /// # Errors
    /// The job comes back with the reason when it may not wait.
    pub fn submit(&mut self, job: J, bytes: u64, now: Instant) -> Result<RequestId, (J, Shed)> {
        if self.draining {
            return Err((job, Shed::Draining));
        }
        // A job that a slot takes at once does not wait, so it needs no room in the queue.
        if self.queue.len() >= self.limits.queue && !(self.queue.is_empty() && self.startable()) {
            return Err((
                job,
                if self.open() {
                    Shed::QueueFull
                } else {
                    Shed::ParkedFull
                },
            ));
        }
        let (id, serial) = self.enter(Phase::Queued, bytes);
        self.queue.insert(
            serial,
            NewJob {
                id,
                job,
                since: now,
            },
        );
        Ok(id)
    }

    /// What a parked request waited for is there: its next job waits for a slot of its process.
    ///
    /// # Errors
    /// The job comes back when the process, or the slot that it is pinned to, is gone; the request is
    /// forgotten then.
    pub fn resume(&mut self, id: RequestId, job: J, bytes: u64) -> Result<(), J> {
        self.unpark(id, job, bytes, false)
    }

    /// The client of a parked request has left: the job that ends it waits for a slot of its process.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub fn end(&mut self, id: RequestId, job: J) -> Result<(), J> {
        self.unpark(id, job, 0, true)
    }

    fn unpark(&mut self, id: RequestId, job: J, bytes: u64, ending: bool) -> Result<(), J> {
        let serial = self.next_serial();
        let Some(entry) = self
            .requests
            .get_mut(id.place())
            .filter(|entry| entry.id == id)
        else {
            return Err(job);
        };
        let Phase::Parked(home) = entry.phase else {
            return Err(job);
        };
        self.admitted_bytes = self.admitted_bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        entry.serial = serial;
        entry.phase = if ending {
            Phase::Ending(home)
        } else {
            Phase::Resuming(home)
        };
        let Some(waiting) = self.waiting(home) else {
            self.close(id);
            return Err(job);
        };
        let line = if ending {
            &mut waiting.endings
        } else {
            &mut waiting.resumes
        };
        line.insert(serial, (id, job));
        Ok(())
    }

    /// A parked request wants something run on a slot of its process, beside what else runs for it. The
    /// call is known by a number of its own until it is done, or withdrawn.
    ///
    /// # Errors
    /// The job comes back when the request is not parked, or its process is gone.
    pub fn call(&mut self, parent: RequestId, job: J) -> Result<RequestId, J> {
        let parent = self
            .requests
            .get(parent.place())
            .filter(|it| it.id == parent);
        let Some(Phase::Parked(Home { process, .. })) = parent.map(|entry| entry.phase) else {
            return Err(job);
        };
        let home = Home {
            process,
            pinned: None,
        };
        if self.waiting(home).is_none() {
            return Err(job);
        }
        let (id, serial) = self.enter(Phase::Calling(home), 0);
        self.calls += 1;
        if let Some(waiting) = self.waiting(home) {
            waiting.resumes.insert(serial, (id, job));
        }
        Ok(id)
    }

    /// Takes back a job that waits for a slot. A new request or a call is forgotten; a resuming request is
    /// parked again. None when the job has been handed to a slot already; it is noted then that nobody wants it.
    pub fn withdraw(&mut self, id: RequestId) -> Option<J> {
        let entry = self
            .requests
            .get_mut(id.place())
            .filter(|entry| entry.id == id)?;
        let serial = entry.serial;
        match entry.phase {
            Phase::Queued => {
                self.requests.remove(id.place());
                self.queue.remove(&serial).map(|new| new.job)
            }
            Phase::Resuming(home) => {
                entry.phase = Phase::Parked(home);
                let resumes = &mut self.waiting(home)?.resumes;
                resumes.remove(&serial).map(|(_, job)| job)
            }
            Phase::Calling(home) => {
                self.close(id);
                let resumes = &mut self.waiting(home)?.resumes;
                resumes.remove(&serial).map(|(_, job)| job)
            }
            Phase::Running(_) => {
                entry.unwanted = true;
                None
            }
            Phase::Parked(_) | Phase::Ending(_) => None,
        }
    }

    /// Whether a job that no worker has seen need not wait for another slot: it was to be withdrawn.
    pub fn is_unwanted(&self, id: RequestId) -> bool {
        let entry = self.requests.get(id.place());
        entry.is_some_and(|entry| entry.id == id && entry.unwanted)
    }

    /// A parked request that will not be resumed: its process is gone.
    pub fn forget(&mut self, id: RequestId) {
        let parked = self
            .requests
            .get(id.place())
            .is_some_and(|entry| entry.id == id && matches!(entry.phase, Phase::Parked(_)));
        if parked {
            self.close(id);
        }
    }

    /// The time of a request is over. A slot that works on it counts as lost until it is ready.
    pub fn overdue(&mut self, id: RequestId, now: Instant) {
        let known = self.requests.get_mut(id.place());
        let Some(entry) = known.filter(|entry| entry.id == id) else {
            return;
        };
        entry.over.get_or_insert(now);
        if let Phase::Running(slot) = entry.phase
            && let Slot::Busy(spell) = &mut self.slots[usize::from(slot.0)]
            && !spell.overtime.is_lost()
        {
            spell.overtime = Overtime::Overdue(now);
        }
    }

    /// Slots that are busy where they should not be, each told once for each reason. Call it at every
    /// tick: how long something has lasted is known as well as the ticks are close.
    pub fn stuck(&mut self, now: Instant) -> Vec<Stuck> {
        let mut stuck = Vec::new();
        let grace = self.limits.overdue_grace;
        for (number, (slot, pinned)) in self.slots.iter_mut().zip(&self.pinned).enumerate() {
            let Slot::Busy(spell) = slot else { continue };
            let mut tell = |why| {
                stuck.push(Stuck {
                    slot: SlotId(number as u16),
                    process: spell.process,
                    why,
                });
            };
            let overdue_for = |since: Instant| now.saturating_duration_since(since);
            let over = |since: Instant| overdue_for(since) >= grace;
            spell.overtime = match spell.overtime {
                Overtime::No if self.requests[spell.request.place()].over.is_some() => {
                    Overtime::Late(now)
                }
                Overtime::Late(since) if over(since) => Overtime::Overdue(now),
                Overtime::Overdue(since) if overdue_for(since) >= PATIENCE.min(grace / 4) => {
                    tell(Why::Overdue);
                    Overtime::Told(since)
                }
                Overtime::Told(since) if over(since) => {
                    tell(Why::Spent);
                    Overtime::Spent
                }
                same => same,
            };
            let waiting = &pinned.waiting;
            let waits = !waiting.resumes.is_empty() || !waiting.endings.is_empty();
            spell.blocking = match spell.blocking {
                Blocking::Told => Blocking::Told,
                _ if !waits => Blocking::No,
                Blocking::No => Blocking::Since(now),
                Blocking::Since(since) if now.saturating_duration_since(since) < PATIENCE => {
                    Blocking::Since(since)
                }
                Blocking::Since(_) => {
                    tell(Why::Blocking);
                    Blocking::Told
                }
            };
        }
        stuck
    }

    /// New jobs that have waited too long leave the queue.
    pub fn expire(&mut self, now: Instant) -> Vec<(J, Shed)> {
        let mut shed = Vec::new();
        // One queue deadline for all and first come first served: the oldest is in front.
        while let Some(oldest) = self.queue.first_entry() {
            if now.saturating_duration_since(oldest.get().since) < self.limits.queue_timeout {
                break;
            }
            let NewJob { id, job, .. } = oldest.remove();
            self.requests.remove(id.place());
            shed.push((
                job,
                if self.open() {
                    Shed::QueueTimeout
                } else {
                    Shed::ParkedFull
                },
            ));
        }
        shed
    }

    // Slots ----------------------------------------------------------------------------

    pub fn add_process(&mut self, process: ProcessId) {
        self.processes.insert(
            process,
            Process {
                slots: 0,
                parked: 0,
                draining: false,
                silent: false,
                waiting: Waiting::default(),
                since_new: 0,
                since_ending: 0,
            },
        );
    }

    /// The process takes no new jobs from here on; its parked requests still resume.
    pub fn drain_process(&mut self, process: ProcessId) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.draining = true;
        }
    }

    /// The process does not say that it lives, or does so again. Meanwhile it gets no new jobs, and its idle
    /// slots count as lost.
    pub fn set_silent(&mut self, process: ProcessId, silent: bool) {
        if let Some(process) = self.processes.get_mut(&process) {
            process.silent = silent;
        }
    }

    /// Slots of the process that run something.
    pub fn busy_of(&self, process: ProcessId) -> usize {
        let busy = |slot: &&Slot| matches!(slot, Slot::Busy(spell) if spell.process == process);
        self.slots.iter().filter(busy).count()
    }

    /// Whether the process has a request whose time and grace are not both over.
    pub fn has_time(&self, id: ProcessId, now: Instant) -> bool {
        let grace = self.limits.overdue_grace;
        let spent = |over: Option<Instant>| {
            over.is_some_and(|over| now.saturating_duration_since(over) >= grace)
        };
        self.requests.iter().any(|(_, entry)| match entry.phase {
            Phase::Queued => false,
            Phase::Running(slot) => match self.slots[usize::from(slot.0)] {
                Slot::Busy(spell) => spell.process == id && spell.overtime != Overtime::Spent,
                Slot::Idle(_) | Slot::Lost => false,
            },
            Phase::Parked(home)
            | Phase::Resuming(home)
            | Phase::Ending(home)
            | Phase::Calling(home) => home.process == id && !spent(entry.over),
        })
    }

    /// Whether requests are parked that can go on at this idle slot only: they are pinned to it, or no
    /// other slot of their process is idle. One that is busy may not come back in time.
    pub fn is_needed(&self, slot: SlotId) -> bool {
        if self.pinned_to(slot) > 0 {
            return true;
        }
        let Some(owner) = self.owner(slot) else {
            return false;
        };
        let mine = |other: &SlotId| self.owner(*other) == Some(owner);
        let slots = (0..self.slots.len()).map(|number| SlotId(number as u16));
        let pinned: usize = slots.filter(mine).map(|other| self.pinned_to(other)).sum();
        let parked = self.processes.get(&owner).map_or(0, |it| it.parked);
        let mut others = self.idle.iter().filter(|other| **other != slot);
        parked > pinned && !others.any(mine)
    }

    /// Requests that are parked and can go on at this slot alone, or wait to.
    pub fn pinned_to(&self, slot: SlotId) -> usize {
        self.pinned[usize::from(slot.0)].parked
    }

    /// A lost slot has found a process and is ready for its first job.
    pub fn add_slot(&mut self, slot: SlotId, process: ProcessId) {
        debug_assert_eq!(self.slots[usize::from(slot.0)], Slot::Lost);
        if let Some(owner) = self.processes.get_mut(&process) {
            owner.slots += 1;
            self.slots[usize::from(slot.0)] = Slot::Idle(process);
            self.idle.push(slot);
        }
    }

    /// A slot is gone: retired, or its worker died. What ran on it is forgotten; the jobs that waited for it
    /// alone come back. Parked requests that are pinned to it stay until [`Self::forget`].
    pub fn remove_slot(&mut self, slot: SlotId) -> Vec<J> {
        let number = usize::from(slot.0);
        let process = match std::mem::replace(&mut self.slots[number], Slot::Lost) {
            Slot::Lost => return Vec::new(),
            Slot::Idle(process) => {
                self.idle.retain(|idle| *idle != slot);
                process
            }
            Slot::Busy(spell) => {
                self.ending_now -= usize::from(spell.ending);
                self.close(spell.request);
                spell.process
            }
        };
        if let Some(owner) = self.processes.get_mut(&process) {
            owner.slots -= 1;
        }
        let pinned = std::mem::take(&mut self.pinned[number]);
        self.give_back(pinned.waiting)
    }

    /// A process is gone with its slots. The jobs that waited to resume come back; its parked
    /// requests stay until [`Self::forget`].
    pub fn remove_process(&mut self, id: ProcessId) -> Vec<J> {
        let mut jobs = Vec::new();
        for number in 0..self.slots.len() {
            match self.slots[number] {
                Slot::Idle(process) | Slot::Busy(Spell { process, .. }) if process == id => {
                    jobs.extend(self.remove_slot(SlotId(number as u16)));
                }
                _ => {}
            }
        }
        if let Some(process) = self.processes.remove(&id) {
            jobs.extend(self.give_back(process.waiting));
        }
        jobs
    }

    /// Jobs that can run nowhere any more; their requests are forgotten.
    fn give_back(&mut self, waiting: Waiting<J>) -> Vec<J> {
        let waiting = waiting
            .resumes
            .into_values()
            .chain(waiting.endings.into_values());
        let (ids, jobs): (Vec<_>, Vec<_>) = waiting.unzip();
        for id in ids {
            self.close(id);
        }
        jobs
    }

    /// The slot's worker says that it is ready and that its request is over.
    pub fn done(&mut self, slot: SlotId) {
        if let Some((_, request)) = self.ready(slot) {
            self.close(request);
        }
    }

    /// The slot's worker says that it is ready and that its request is parked. A pinned one can go on at this
    /// slot only.
    pub fn parked(&mut self, slot: SlotId, bytes: u64, pinned: bool) {
        let Some((process, request)) = self.ready(slot) else {
            return;
        };
        let entry = &mut self.requests[request.place()];
        self.admitted_bytes = self.admitted_bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        // That was about the job that its worker has seen by now.
        entry.unwanted = false;
        let home = Home {
            process,
            pinned: pinned.then_some(slot),
        };
        entry.phase = Phase::Parked(home);
        self.count_parked(home, 1);
    }

    fn ready(&mut self, slot: SlotId) -> Option<(ProcessId, RequestId)> {
        let Slot::Busy(spell) = self.slots[usize::from(slot.0)] else {
            return None;
        };
        self.ending_now -= usize::from(spell.ending);
        self.slots[usize::from(slot.0)] = Slot::Idle(spell.process);
        self.idle.push(slot);
        Some((spell.process, spell.request))
    }

    /// The job that this slot was given never reached its worker. It waits again where it was: a new one, which
    /// has waited `since`, in the queue, a resume in the line of its process. The slot is idle, and most likely
    /// about to be removed.
    ///
    /// # Errors
    /// The job comes back when no new ones may wait any more; its request is forgotten then.
    pub fn put_back(&mut self, slot: SlotId, job: J, since: Option<Instant>) -> Result<(), J> {
        let Some((process, id)) = self.ready(slot) else {
            return Err(job);
        };
        let Some(since) = since else {
            return self.resume_again(process, id, job);
        };
        if self.draining {
            self.close(id);
            return Err(job);
        }
        let entry = &mut self.requests[id.place()];
        self.admitted -= 1;
        self.admitted_bytes -= entry.bytes;
        entry.phase = Phase::Queued;
        self.queue.insert(entry.serial, NewJob { id, job, since });
        Ok(())
    }

    fn resume_again(&mut self, process: ProcessId, id: RequestId, job: J) -> Result<(), J> {
        let home = Home {
            process,
            pinned: None,
        };
        let entry = &mut self.requests[id.place()];
        entry.phase = Phase::Resuming(home);
        let serial = entry.serial;
        self.count_parked(home, 1);
        match self.waiting(home) {
            Some(waiting) => {
                waiting.resumes.insert(serial, (id, job));
                Ok(())
            }
            None => {
                self.close(id);
                Err(job)
            }
        }
    }

    /// The next job for this idle slot, if there is one that it may run.
    pub fn take(&mut self, slot: SlotId) -> Option<(RequestId, J)> {
        let Slot::Idle(process_id) = self.slots[usize::from(slot.0)] else {
            return None;
        };
        let new = self.open() && !self.queue.is_empty();
        let ending = self.ends_next(slot);

        let process = self.processes.get_mut(&process_id)?;
        let pinned = &mut self.pinned[usize::from(slot.0)];
        let new = new && process.takes_new();
        let resumes = older(&mut process.waiting.resumes, &mut pinned.waiting.resumes);
        let resume = !resumes.is_empty();

        let live = new || resume;
        let (request, job, ending) =
            if ending && (!live || process.since_ending + 1 >= ENDING_EVERY) {
                process.since_ending = 0;
                let endings = older(&mut process.waiting.endings, &mut pinned.waiting.endings);
                let (request, job) = endings.pop_first()?.1;
                (request, job, true)
            } else if resume && (!new || process.since_new + 1 < NEW_EVERY) {
                process.since_ending += u32::from(ending);
                process.since_new += u32::from(new);
                let (request, job) = resumes.pop_first()?.1;
                (request, job, false)
            } else if new {
                process.since_ending += u32::from(ending);
                process.since_new = 0;
                let next = self.queue.pop_first()?.1;
                (next.id, next.job, false)
            } else {
                return None;
            };

        let entry = &mut self.requests[request.place()];
        match std::mem::replace(&mut entry.phase, Phase::Running(slot)) {
            Phase::Queued => {
                self.admitted += 1;
                self.admitted_bytes += entry.bytes;
            }
            Phase::Resuming(home) | Phase::Ending(home) => self.count_parked(home, -1),
            Phase::Calling(_) => {}
            Phase::Running(_) | Phase::Parked(_) => unreachable!("it waited in a line"),
        }
        self.ending_now += usize::from(ending);
        self.slots[usize::from(slot.0)] = Slot::Busy(Spell {
            process: process_id,
            request,
            ending,
            overtime: Overtime::No,
            blocking: Blocking::No,
        });
        // The slot asks because it became idle just now, or was chosen from the end.
        if let Some(place) = self.idle.iter().rposition(|idle| *idle == slot) {
            self.idle.remove(place);
        }
        Some((request, job))
    }

    /// Finds an idle slot with work to do, best first, and gives it its job. Call until None
    /// after jobs were added or bounds rose.
    pub fn place(&mut self) -> Option<(SlotId, RequestId, J)> {
        if self.idle.is_empty() {
            return None;
        }
        let slot = self.slot_with_work()?;
        let (request, job) = self.take(slot)?;
        Some((slot, request, job))
    }

    /// New jobs go to the process with the least to resume, per slot, and there to the slot that the
    /// fewest are pinned to: they are the ones who would wait for the new job's end.
    fn slot_with_work(&self) -> Option<SlotId> {
        let new = !self.queue.is_empty() && self.open();
        let mut best: Option<(SlotId, &Process<J>, usize)> = None;
        for &slot in self.idle.iter().rev() {
            let Slot::Idle(process) = self.slots[usize::from(slot.0)] else {
                continue;
            };
            let Some(process) = self.processes.get(&process) else {
                continue;
            };
            let pinned = &self.pinned[usize::from(slot.0)];
            let resume = !process.waiting.resumes.is_empty() || !pinned.waiting.resumes.is_empty();
            if resume || self.ends_next(slot) {
                return Some(slot);
            }
            let lighter = |best: &Process<J>, most: usize| {
                let (mine, theirs) = (process.parked * best.slots, best.parked * process.slots);
                mine < theirs || (mine == theirs && pinned.parked < most)
            };
            if new && process.takes_new() && best.is_none_or(|(_, best, most)| lighter(best, most))
            {
                best = Some((slot, process, pinned.parked));
            }
        }
        best.map(|(slot, ..)| slot)
    }

    // Views ----------------------------------------------------------------------------

    pub fn count(&self) -> Count {
        let mut count = Count::default();
        let nobody_silent = !self.processes.values().any(|process| process.silent);
        for slot in &self.slots {
            match slot {
                Slot::Idle(process) if nobody_silent || !self.is_silent(*process) => {
                    count.idle += 1;
                }
                Slot::Busy(spell) if !spell.overtime.is_lost() => count.busy += 1,
                Slot::Lost | Slot::Idle(_) | Slot::Busy(_) => count.lost += 1,
            }
        }
        count
    }

    /// Slots that run something, overdue or not.
    pub fn working(&self) -> usize {
        let all: usize = self.processes.values().map(|process| process.slots).sum();
        all - self.idle.len()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Requests that hold no slot but will need one: parked, or waiting to resume.
    pub fn parked_now(&self) -> usize {
        self.processes.values().map(|process| process.parked).sum()
    }

    /// Requests that the scheduler knows, in whatever phase.
    pub fn requests(&self) -> usize {
        self.requests.len() - self.calls
    }

    /// Calls that wait for a slot or run.
    pub fn calls(&self) -> usize {
        self.calls
    }

    pub fn slot_views(&self) -> Vec<SlotView> {
        let view = |(number, slot): (usize, &Slot)| {
            let (process, request, lost) = match *slot {
                Slot::Lost => (None, None, true),
                Slot::Idle(process) => (Some(process), None, self.is_silent(process)),
                Slot::Busy(spell) => (
                    Some(spell.process),
                    Some(spell.request),
                    spell.overtime.is_lost(),
                ),
            };
            SlotView {
                slot: SlotId(number as u16),
                process,
                request,
                lost,
            }
        };
        self.slots.iter().enumerate().map(view).collect()
    }

    // Inner ----------------------------------------------------------------------------

    fn is_silent(&self, id: ProcessId) -> bool {
        self.processes
            .get(&id)
            .is_some_and(|process| process.silent)
    }

    /// May a new request start, as far as the parked bounds go?
    fn open(&self) -> bool {
        self.admitted < self.limits.parked && self.admitted_bytes < self.limits.parked_bytes
    }

    /// Is it this idle slot's turn to end a left request? The room for that is small, so among the idle slots
    /// the oldest goes first: a slot that is ready again and again must not keep it from the others.
    fn ends_next(&self, slot: SlotId) -> bool {
        if self.ending_now >= (self.slots.len() / ENDING_SHARE).max(1) {
            return false;
        }
        self.oldest_ending(slot).is_some_and(|mine| {
            let mut others = self
                .idle
                .iter()
                .filter_map(|idle| self.oldest_ending(*idle));
            others.all(|theirs| mine <= theirs)
        })
    }

    fn oldest_ending(&self, slot: SlotId) -> Option<u64> {
        let pinned = &self.pinned[usize::from(slot.0)].waiting.endings;
        let process = self
            .owner(slot)
            .and_then(|owner| self.processes.get(&owner))?;
        let first = |line: &Line<J>| line.keys().next().copied();
        let (one, other) = (first(&process.waiting.endings), first(pinned));
        one.into_iter().chain(other).min()
    }

    /// Would a new job find a slot at once?
    fn startable(&self) -> bool {
        let takes_new = |slot: &SlotId| match self.slots[usize::from(slot.0)] {
            Slot::Idle(process) => self.processes.get(&process).is_some_and(Process::takes_new),
            _ => false,
        };
        self.open() && self.idle.iter().any(takes_new)
    }

    /// A new entry, and its place in the line that it waits in.
    fn enter(&mut self, phase: Phase, bytes: u64) -> (RequestId, u64) {
        let serial = self.next_serial();
        let entry = self.requests.vacant_entry();
        let id = RequestId::new(serial, entry.key());
        entry.insert(Entry {
            id,
            phase,
            serial,
            bytes,
            over: None,
            call: matches!(phase, Phase::Calling(_)),
            unwanted: false,
        });
        (id, serial)
    }

    /// An admitted request is over, or a call.
    fn close(&mut self, id: RequestId) {
        let Some(entry) = self.requests.try_remove(id.place()) else {
            return;
        };
        debug_assert_eq!(entry.id, id);
        if entry.call {
            self.calls -= 1;
            return;
        }
        self.admitted -= 1;
        self.admitted_bytes -= entry.bytes;
        if let Phase::Parked(home) | Phase::Resuming(home) | Phase::Ending(home) = entry.phase {
            self.count_parked(home, -1);
        }
    }

    /// The books of who is parked where. What is gone has none.
    fn count_parked(&mut self, home: Home, more: isize) {
        if let Some(owner) = self.processes.get_mut(&home.process) {
            owner.parked = owner.parked.saturating_add_signed(more);
        }
        if let Some(slot) = home.pinned
            && self.owner(slot) == Some(home.process)
        {
            let pinned = &mut self.pinned[usize::from(slot.0)];
            pinned.parked = pinned.parked.saturating_add_signed(more);
        }
    }

    /// Who waits at home. None when there is none any more.
    fn waiting(&mut self, home: Home) -> Option<&mut Waiting<J>> {
        match home.pinned {
            Some(slot) if self.owner(slot) == Some(home.process) => {
                Some(&mut self.pinned[usize::from(slot.0)].waiting)
            }
            Some(_) => None,
            None => Some(&mut self.processes.get_mut(&home.process)?.waiting),
        }
    }

    fn owner(&self, slot: SlotId) -> Option<ProcessId> {
        match self.slots[usize::from(slot.0)] {
            Slot::Lost => None,
            Slot::Idle(process) | Slot::Busy(Spell { process, .. }) => Some(process),
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}

/// The line whose first job is the older one.
fn older<'a, J>(one: &'a mut Line<J>, other: &'a mut Line<J>) -> &'a mut Line<J> {
    match (one.keys().next(), other.keys().next()) {
        (None, Some(_)) => other,
        (Some(first), Some(second)) if second < first => other,
        _ => one,
    }
}
