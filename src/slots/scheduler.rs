//! The scheduler: which job runs next, and on which slot.
//!
//! Pure data and time: no clock, no I/O, no locks. Every method takes the events of the
//! world (a request came, a slot is ready, a process died) and keeps the books. What stays true:
//!
//! - every slot is in one state, and idle + busy + lost is the configured count;
//! - a job leaves the scheduler once: to a slot, to its owner (withdrawn, lost), or shed;
//! - a parked request holds no slot, and its resume goes to a slot of its own process;
//! - resumes go before new jobs, but every [`NEW_EVERY`]-th turn goes to a new one;
//! - a new job starts only while running + parked is below the bound.
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
    /// → Parked, done
    Running(SlotId),
    /// → Resuming, Ending
    Parked(ProcessId),
    /// → Running, Parked (withdrawn)
    Resuming(ProcessId),
    /// → Running
    Ending(ProcessId),
}

#[derive(Debug)]
struct Entry {
    id: RequestId,
    phase: Phase,
    /// Its place in the queue that it waits in, if it waits.
    serial: u64,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    /// → Idle
    Lost,
    /// → Busy, Lost
    Idle(ProcessId),
    /// → Idle, Lost. Overdue: its request's time is over, so it counts as lost until it is ready.
    Busy {
        process: ProcessId,
        request: RequestId,
        ending: bool,
        overdue: bool,
    },
}

#[derive(Debug)]
struct Process<J> {
    slots: usize,
    parked: usize,
    /// Takes no new jobs.
    draining: bool,
    resumes: BTreeMap<u64, (RequestId, J)>,
    endings: BTreeMap<u64, (RequestId, J)>,
    /// Turns since a new job, and since an ending, had one while others waited.
    since_new: u32,
    since_ending: u32,
}

/// How many slots are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    pub idle: u16,
    pub busy: u16,
    pub lost: u16,
}

/// What one slot is doing, for the status page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotView {
    pub slot: SlotId,
    pub process: Option<ProcessId>,
    pub request: Option<RequestId>,
    pub overdue: bool,
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
    /// Idle slots, the one that became idle last at the end: its thread is likeliest to be awake.
    idle: Vec<SlotId>,
    processes: BTreeMap<ProcessId, Process<J>>,
    /// Running and parked requests, and the bytes they retain.
    admitted: usize,
    admitted_bytes: u64,
    ending_now: usize,
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
            idle: Vec::new(),
            processes: BTreeMap::new(),
            admitted: 0,
            admitted_bytes: 0,
            ending_now: 0,
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
        let serial = self.next_serial();
        let entry = self.requests.vacant_entry();
        let id = RequestId::new(serial, entry.key());
        entry.insert(Entry {
            id,
            phase: Phase::Queued,
            serial,
            bytes,
        });
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

    /// The plan of a parked request has been run: its next job waits for a slot of its process.
    ///
    /// # Errors
    /// The job comes back when the process is gone; the request is forgotten then.
    pub fn resume(&mut self, id: RequestId, job: J, bytes: u64) -> Result<(), J> {
        self.unpark(id, job, bytes, false)
    }

    /// The client of a parked request has left: the job that ends it waits for a slot of its process.
    ///
    /// # Errors
    /// The job comes back when the process is gone; the request is forgotten then.
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
        let Phase::Parked(process_id) = entry.phase else {
            return Err(job);
        };
        let Some(process) = self.processes.get_mut(&process_id) else {
            self.close(id);
            return Err(job);
        };
        self.admitted_bytes = self.admitted_bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        entry.serial = serial;
        if ending {
            entry.phase = Phase::Ending(process_id);
            process.endings.insert(serial, (id, job));
        } else {
            entry.phase = Phase::Resuming(process_id);
            process.resumes.insert(serial, (id, job));
        }
        Ok(())
    }

    /// Takes back a job that waits for a slot. A new request is forgotten; a resuming one is parked again.
    /// None when the job has been handed to a slot already.
    pub fn withdraw(&mut self, id: RequestId) -> Option<J> {
        let entry = self
            .requests
            .get_mut(id.place())
            .filter(|entry| entry.id == id)?;
        match entry.phase {
            Phase::Queued => {
                let serial = entry.serial;
                self.requests.remove(id.place());
                self.queue.remove(&serial).map(|new| new.job)
            }
            Phase::Resuming(process) => {
                entry.phase = Phase::Parked(process);
                let resumes = &mut self.processes.get_mut(&process)?.resumes;
                resumes.remove(&entry.serial).map(|(_, job)| job)
            }
            _ => None,
        }
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

    /// The time of a request is over while a slot works on it.
    pub fn overdue(&mut self, id: RequestId) {
        let running = self.requests.get(id.place()).filter(|entry| entry.id == id);
        if let Some(Phase::Running(slot)) = running.map(|entry| entry.phase)
            && let Slot::Busy { overdue, .. } = &mut self.slots[usize::from(slot.0)]
        {
            *overdue = true;
        }
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
                resumes: BTreeMap::new(),
                endings: BTreeMap::new(),
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

    /// Requests of the process that run, are parked, or wait to resume.
    pub fn held_by(&self, id: ProcessId) -> usize {
        let Some(process) = self.processes.get(&id) else {
            return 0;
        };
        let busy = |slot: &&Slot| matches!(slot, Slot::Busy { process, .. } if *process == id);
        process.parked + self.slots.iter().filter(busy).count()
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

    /// A slot is gone: retired, or its worker died. What ran on it is forgotten.
    pub fn remove_slot(&mut self, slot: SlotId) {
        let process = match std::mem::replace(&mut self.slots[usize::from(slot.0)], Slot::Lost) {
            Slot::Lost => return,
            Slot::Idle(process) => {
                self.idle.retain(|idle| *idle != slot);
                process
            }
            Slot::Busy {
                process,
                request,
                ending,
                ..
            } => {
                self.ending_now -= usize::from(ending);
                self.close(request);
                process
            }
        };
        if let Some(owner) = self.processes.get_mut(&process) {
            owner.slots -= 1;
        }
    }

    /// A process is gone with its slots. The jobs that waited to resume come back; its parked
    /// requests stay until [`Self::forget`].
    pub fn remove_process(&mut self, id: ProcessId) -> Vec<J> {
        for number in 0..self.slots.len() {
            match self.slots[number] {
                Slot::Idle(process) | Slot::Busy { process, .. } if process == id => {
                    self.remove_slot(SlotId(number as u16));
                }
                _ => {}
            }
        }
        let Some(process) = self.processes.remove(&id) else {
            return Vec::new();
        };
        let waiting = process
            .resumes
            .into_values()
            .chain(process.endings.into_values());
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

    /// The slot's worker says that it is ready and that its request is parked.
    pub fn parked(&mut self, slot: SlotId, bytes: u64) {
        let Some((process, request)) = self.ready(slot) else {
            return;
        };
        let entry = &mut self.requests[request.place()];
        self.admitted_bytes = self.admitted_bytes - entry.bytes + bytes;
        entry.bytes = bytes;
        entry.phase = Phase::Parked(process);
        if let Some(owner) = self.processes.get_mut(&process) {
            owner.parked += 1;
        }
    }

    fn ready(&mut self, slot: SlotId) -> Option<(ProcessId, RequestId)> {
        let Slot::Busy {
            process,
            request,
            ending,
            ..
        } = self.slots[usize::from(slot.0)]
        else {
            return None;
        };
        self.ending_now -= usize::from(ending);
        self.slots[usize::from(slot.0)] = Slot::Idle(process);
        self.idle.push(slot);
        Some((process, request))
    }

    /// The next job for this idle slot, if there is one that it may run.
    pub fn take(&mut self, slot: SlotId) -> Option<(RequestId, J)> {
        let Slot::Idle(process_id) = self.slots[usize::from(slot.0)] else {
            return None;
        };
        let open = self.open();
        let new = open && !self.queue.is_empty();
        let ending_room = self.ending_room();

        let process = self.processes.get_mut(&process_id)?;
        let new = new && !process.draining;
        let resume = !process.resumes.is_empty();
        let ending = !process.endings.is_empty() && ending_room;

        let live = new || resume;
        let (request, job, ending) =
            if ending && (!live || process.since_ending + 1 >= ENDING_EVERY) {
                process.since_ending = 0;
                let (request, job) = process.endings.pop_first()?.1;
                (request, job, true)
            } else if resume && (!new || process.since_new + 1 < NEW_EVERY) {
                process.since_ending += u32::from(ending);
                process.since_new += u32::from(new);
                let (request, job) = process.resumes.pop_first()?.1;
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
        if entry.phase == Phase::Queued {
            self.admitted += 1;
            self.admitted_bytes += entry.bytes;
        } else {
            process.parked -= 1;
        }
        entry.phase = Phase::Running(slot);
        self.ending_now += usize::from(ending);
        self.slots[usize::from(slot.0)] = Slot::Busy {
            process: process_id,
            request,
            ending,
            overdue: false,
        };
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

    /// New jobs go to the process with the least to resume, per slot.
    fn slot_with_work(&self) -> Option<SlotId> {
        let new = !self.queue.is_empty() && self.open();
        let ending_room = self.ending_room();
        let mut best: Option<(SlotId, &Process<J>)> = None;
        for &slot in self.idle.iter().rev() {
            let Slot::Idle(process) = self.slots[usize::from(slot.0)] else {
                continue;
            };
            let Some(process) = self.processes.get(&process) else {
                continue;
            };
            if !process.resumes.is_empty() || (ending_room && !process.endings.is_empty()) {
                return Some(slot);
            }
            let lighter =
                |best: &Process<J>| process.parked * best.slots < best.parked * process.slots;
            if new && !process.draining && best.is_none_or(|(_, best)| lighter(best)) {
                best = Some((slot, process));
            }
        }
        best.map(|(slot, _)| slot)
    }

    // Views ----------------------------------------------------------------------------

    pub fn count(&self) -> Count {
        let mut count = Count::default();
        for slot in &self.slots {
            match slot {
                Slot::Idle(_) => count.idle += 1,
                Slot::Busy { overdue: false, .. } => count.busy += 1,
                Slot::Lost | Slot::Busy { overdue: true, .. } => count.lost += 1,
            }
        }
        count
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
        self.requests.len()
    }

    pub fn slot_views(&self) -> Vec<SlotView> {
        let view = |(number, slot): (usize, &Slot)| {
            let (process, request, overdue) = match *slot {
                Slot::Lost => (None, None, false),
                Slot::Idle(process) => (Some(process), None, false),
                Slot::Busy {
                    process,
                    request,
                    overdue,
                    ..
                } => (Some(process), Some(request), overdue),
            };
            SlotView {
                slot: SlotId(number as u16),
                process,
                request,
                overdue,
            }
        };
        self.slots.iter().enumerate().map(view).collect()
    }

    // Inner ----------------------------------------------------------------------------

    /// May a new request start, as far as the parked bounds go?
    fn open(&self) -> bool {
        self.admitted < self.limits.parked && self.admitted_bytes < self.limits.parked_bytes
    }

    /// May one more slot end a left request?
    fn ending_room(&self) -> bool {
        self.ending_now < (self.slots.len() / ENDING_SHARE).max(1)
    }

    /// Would a new job find a slot at once?
    fn startable(&self) -> bool {
        let takes_new = |slot: &SlotId| match self.slots[usize::from(slot.0)] {
            Slot::Idle(process) => self.processes.get(&process).is_some_and(|it| !it.draining),
            _ => false,
        };
        self.open() && self.idle.iter().any(takes_new)
    }

    /// An admitted request is over.
    fn close(&mut self, id: RequestId) {
        if let Some(entry) = self.requests.try_remove(id.place()) {
            debug_assert_eq!(entry.id, id);
            self.admitted -= 1;
            self.admitted_bytes -= entry.bytes;
            if let Phase::Parked(process) | Phase::Resuming(process) | Phase::Ending(process) =
                entry.phase
                && let Some(owner) = self.processes.get_mut(&process)
            {
                owner.parked -= 1;
            }
        }
    }

    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }
}
