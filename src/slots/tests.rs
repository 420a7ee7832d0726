//! The scheduler against a model: random worlds of arriving, parking, leaving, dying, with the
//! rules checked after every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::Slots;
use super::scheduler::{
    ENDING_EVERY, Limits, NEW_EVERY, ProcessId, RequestId, Scheduler, Shed, SlotId,
};
use crate::metrics::Metrics;

const SLOTS: u16 = 4;
const QUEUE: usize = 5;
const PARKED: usize = 7;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

fn limits() -> Limits {
    Limits {
        queue: QUEUE,
        queue_timeout: QUEUE_TIMEOUT,
        parked: PARKED,
        parked_bytes: 1 << 30,
    }
}

/// What happens to the scheduler. Indexes choose among what the model has, modulo its number.
#[derive(Debug, Clone)]
enum Event {
    Submit,
    Done(usize),
    Park(usize),
    Resume(usize),
    End(usize),
    Withdraw(usize),
    Overdue(usize),
    Wait(u64),
    ProcessDies(usize),
    ProcessComes,
    ProcessDrains(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => Just(Event::Submit),
        5 => any::<usize>().prop_map(Event::Done),
        8 => any::<usize>().prop_map(Event::Park),
        7 => any::<usize>().prop_map(Event::Resume),
        2 => any::<usize>().prop_map(Event::End),
        2 => any::<usize>().prop_map(Event::Withdraw),
        1 => any::<usize>().prop_map(Event::Overdue),
        2 => (0u64..4000).prop_map(Event::Wait),
        1 => any::<usize>().prop_map(Event::ProcessDies),
        2 => Just(Event::ProcessComes),
        1 => any::<usize>().prop_map(Event::ProcessDrains),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Resume,
    End,
}

/// A job says whose it is, so that a mix-up is seen.
type Job = (u64, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Running(SlotId),
    Parked(ProcessId),
    Waiting(ProcessId, Kind),
}

/// The world as it should be, kept in the plainest way.
struct Model {
    scheduler: Scheduler<Job>,
    now: Instant,
    serial: u64,
    requests: BTreeMap<u64, (RequestId, Place)>,
    /// New jobs in the order of their arrival, with the time.
    queue: VecDeque<(u64, Instant)>,
    processes: BTreeMap<ProcessId, bool>,
    slots: BTreeMap<SlotId, ProcessId>,
    last_process: u32,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            scheduler: Scheduler::new(SLOTS, limits()),
            now: Instant::now(),
            serial: 0,
            requests: BTreeMap::new(),
            queue: VecDeque::new(),
            processes: BTreeMap::new(),
            slots: BTreeMap::new(),
            last_process: 0,
        };
        model.process_comes();
        model.process_comes();
        model
    }

    /// A new process gets half of all slots, if so many are lost.
    fn process_comes(&mut self) {
        let free: Vec<SlotId> = (0..SLOTS)
            .map(SlotId)
            .filter(|slot| !self.slots.contains_key(slot))
            .take(2)
            .collect();
        if free.is_empty() {
            return;
        }
        self.last_process += 1;
        let process = ProcessId(self.last_process);
        self.scheduler.add_process(process);
        self.processes.insert(process, false);
        for slot in free {
            self.scheduler.add_slot(slot, process);
            self.slots.insert(slot, process);
        }
    }

    fn admitted(&self) -> usize {
        self.requests
            .values()
            .filter(|(_, place)| *place != Place::Queued)
            .count()
    }

    fn busy(&self) -> BTreeSet<SlotId> {
        let slot = |(_, place): &(RequestId, Place)| match place {
            Place::Running(slot) => Some(*slot),
            _ => None,
        };
        self.requests.values().filter_map(slot).collect()
    }

    fn pick(&self, index: usize, fits: impl Fn(Place) -> bool) -> Option<(u64, RequestId, Place)> {
        let fitting: Vec<_> = self
            .requests
            .iter()
            .filter(|(_, (_, place))| fits(*place))
            .map(|(name, (id, place))| (*name, *id, *place))
            .collect();
        (!fitting.is_empty()).then(|| fitting[index % fitting.len()])
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Submit => self.submit(),
            Event::Done(index) | Event::Park(index) => {
                let Some((name, _, Place::Running(slot))) =
                    self.pick(index, |place| matches!(place, Place::Running(_)))
                else {
                    return;
                };
                if matches!(event, Event::Done(_)) {
                    self.scheduler.done(slot);
                    self.requests.remove(&name);
                } else {
                    self.scheduler.parked(slot, 10);
                    let process = self.slots[&slot];
                    self.requests.get_mut(&name).expect("picked").1 = Place::Parked(process);
                }
                if let Some((id, job)) = self.scheduler.take(slot) {
                    self.started(slot, id, job);
                }
            }
            Event::Resume(index) | Event::End(index) => {
                let Some((name, id, Place::Parked(process))) =
                    self.pick(index, |place| matches!(place, Place::Parked(_)))
                else {
                    return;
                };
                let (kind, outcome) = match event {
                    Event::Resume(_) => (
                        Kind::Resume,
                        self.scheduler.resume(id, (name, Kind::Resume), 20),
                    ),
                    _ => (Kind::End, self.scheduler.end(id, (name, Kind::End))),
                };
                if self.processes.contains_key(&process) {
                    assert_eq!(outcome, Ok(()));
                    self.requests.get_mut(&name).expect("picked").1 = Place::Waiting(process, kind);
                } else {
                    assert_eq!(outcome, Err((name, kind)));
                    self.requests.remove(&name);
                }
            }
            Event::Withdraw(index) => {
                let waits = |place| matches!(place, Place::Queued | Place::Waiting(..));
                let Some((name, id, place)) = self.pick(index, waits) else {
                    return;
                };
                let job = self.scheduler.withdraw(id);
                match place {
                    Place::Queued => {
                        assert_eq!(job, Some((name, Kind::New)));
                        self.requests.remove(&name);
                        self.queue.retain(|(queued, _)| *queued != name);
                    }
                    Place::Waiting(process, Kind::Resume) => {
                        assert_eq!(job, Some((name, Kind::Resume)));
                        self.requests.get_mut(&name).expect("picked").1 = Place::Parked(process);
                    }
                    _ => assert_eq!(job, None, "an ending is not taken back"),
                }
            }
            Event::Overdue(index) => {
                if let Some((_, id, _)) = self.pick(index, |_| true) {
                    self.scheduler.overdue(id);
                }
            }
            Event::Wait(millis) => {
                self.now += Duration::from_millis(millis);
                let open = self.admitted() < PARKED;
                for ((name, kind), shed) in self.scheduler.expire(self.now) {
                    let (oldest, since) = self.queue.pop_front().expect("only queued jobs expire");
                    assert_eq!(
                        (name, kind),
                        (oldest, Kind::New),
                        "the oldest expires first"
                    );
                    assert!(self.now - since >= QUEUE_TIMEOUT);
                    assert_eq!(
                        shed,
                        if open {
                            Shed::QueueTimeout
                        } else {
                            Shed::ParkedFull
                        }
                    );
                    self.requests.remove(&name);
                }
                let overdue = |(_, since): &(u64, Instant)| self.now - *since >= QUEUE_TIMEOUT;
                assert!(
                    !self.queue.iter().any(overdue),
                    "nobody waits past the timeout"
                );
            }
            Event::ProcessDies(index) => {
                let alive: Vec<_> = self.processes.keys().copied().collect();
                if alive.is_empty() {
                    return;
                }
                self.process_dies(alive[index % alive.len()]);
            }
            Event::ProcessComes => self.process_comes(),
            Event::ProcessDrains(index) => {
                let alive: Vec<_> = self.processes.keys().copied().collect();
                if !alive.is_empty() {
                    let process = alive[index % alive.len()];
                    self.scheduler.drain_process(process);
                    self.processes.insert(process, true);
                }
            }
        }
    }

    fn submit(&mut self) {
        self.serial += 1;
        let name = self.serial;
        match self.scheduler.submit((name, Kind::New), 10, self.now) {
            Ok(id) => {
                self.requests.insert(name, (id, Place::Queued));
                self.queue.push_back((name, self.now));
                assert!(self.queue.len() <= QUEUE.max(1));
            }
            Err((job, shed)) => {
                assert_eq!(job, (name, Kind::New));
                assert!(self.queue.len() >= QUEUE, "shed with room in the queue");
                let full = if self.admitted() < PARKED {
                    Shed::QueueFull
                } else {
                    Shed::ParkedFull
                };
                assert_eq!(shed, full);
            }
        }
    }

    fn process_dies(&mut self, process: ProcessId) {
        let busy = self.busy();
        let lost: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, owner)| **owner == process)
            .map(|(slot, _)| *slot)
            .collect();
        let returned: BTreeSet<_> = self
            .scheduler
            .remove_process(process)
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        let waiting: BTreeSet<_> = self
            .requests
            .iter()
            .filter(
                |(_, (_, place))| matches!(place, Place::Waiting(owner, _) if *owner == process),
            )
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(
            returned, waiting,
            "exactly the jobs that waited for the process come back"
        );
        self.requests.retain(|name, (_, place)| {
            let died = matches!(place, Place::Running(slot) if lost.contains(slot));
            !returned.contains(name) && !died
        });
        assert!(
            lost.iter()
                .all(|slot| !busy.contains(slot) || !self.busy().contains(slot))
        );
        for slot in lost {
            self.slots.remove(&slot);
        }
        self.processes.remove(&process);
        // Half of the parked learn of it at once, the others when their results are in.
        let parked = |place| matches!(place, Place::Parked(owner) if owner == process);
        if let Some((name, id, _)) = self.pick(0, parked) {
            self.scheduler.forget(id);
            self.requests.remove(&name);
        }
    }

    /// A slot has got a job: was it right?
    fn started(&mut self, slot: SlotId, id: RequestId, (name, kind): Job) {
        let process = self.slots[&slot];
        let (known, place) = self.requests[&name];
        assert_eq!(known, id, "a job of another request");
        assert!(!self.busy().contains(&slot), "a busy slot got a job");
        match kind {
            Kind::New => {
                assert_eq!(place, Place::Queued);
                assert_eq!(
                    self.queue.pop_front().map(|(name, _)| name),
                    Some(name),
                    "out of order"
                );
                assert!(self.admitted() < PARKED, "started past the parked bound");
                assert!(
                    !self.processes[&process],
                    "a draining process got a new job"
                );
            }
            Kind::Resume | Kind::End => {
                assert_eq!(
                    place,
                    Place::Waiting(process, kind),
                    "resumed where it does not live"
                );
            }
        }
        self.requests.get_mut(&name).expect("known").1 = Place::Running(slot);
    }

    fn place_all(&mut self) {
        while let Some((slot, id, job)) = self.scheduler.place() {
            self.started(slot, id, job);
        }
    }

    fn check(&self) {
        let count = self.scheduler.count();
        assert_eq!(
            count.idle + count.busy + count.lost,
            SLOTS,
            "slots are conserved"
        );
        let busy = self.busy();
        assert_eq!(usize::from(count.idle), self.slots.len() - busy.len());
        assert_eq!(self.scheduler.queued(), self.queue.len());
        assert_eq!(
            self.scheduler.requests(),
            self.requests.len(),
            "no trace of what is over"
        );
        // Work conservation: no slot idles while a job waits that it may run.
        for (slot, process) in &self.slots {
            if busy.contains(slot) {
                continue;
            }
            let new =
                !self.queue.is_empty() && self.admitted() < PARKED && !self.processes[process];
            let resume =
                |(_, place): &(RequestId, Place)| *place == Place::Waiting(*process, Kind::Resume);
            assert!(!new, "an idle slot and a new job");
            assert!(
                !self.requests.values().any(resume),
                "an idle slot and a resume"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_books_are_right(events in proptest::collection::vec(event(), 1..200)) {
        let mut model = Model::new();
        for event in &events {
            model.apply(event);
            model.place_all();
            model.check();
        }
    }
}

/// One process with this many slots.
fn one_process(slots: u16, limits: Limits) -> Scheduler<Job> {
    let mut scheduler = Scheduler::new(slots, limits);
    scheduler.add_process(ProcessId(1));
    for slot in 0..slots {
        scheduler.add_slot(SlotId(slot), ProcessId(1));
    }
    scheduler
}

fn roomy() -> Limits {
    Limits {
        queue: 1000,
        parked: 10_000,
        ..limits()
    }
}

/// Parks so many requests, each to wait with a job of this kind.
fn waiting(scheduler: &mut Scheduler<Job>, number: u64, kind: Kind) {
    let now = Instant::now();
    let mut ids = Vec::new();
    for name in 0..number {
        let id = scheduler
            .submit((name, Kind::New), 0, now)
            .expect("there is room");
        assert!(scheduler.place().is_some());
        scheduler.parked(SlotId(0), 0);
        ids.push(id);
    }
    for id in ids {
        match kind {
            Kind::End => scheduler.end(id, (0, kind)),
            _ => scheduler.resume(id, (0, kind), 0),
        }
        .expect("its process lives");
    }
}

/// The kinds of the next turns on slot 0.
fn turns(scheduler: &mut Scheduler<Job>, number: u32) -> Vec<Kind> {
    let turn = |_| {
        let (_, (_, kind)) = scheduler.take(SlotId(0)).expect("there is work");
        scheduler.done(SlotId(0));
        kind
    };
    (0..number).map(turn).collect()
}

#[test]
fn resumes_go_first_but_every_kth_turn_is_for_a_new_job() {
    let mut scheduler = one_process(1, roomy());
    waiting(&mut scheduler, 100, Kind::Resume);
    for name in 0..100 {
        scheduler
            .submit((name, Kind::New), 0, Instant::now())
            .expect("there is room");
    }
    let turns = turns(&mut scheduler, NEW_EVERY * 10);
    let new = turns.iter().filter(|kind| **kind == Kind::New).count();
    assert_eq!(new, 10);
    for turns in turns.chunks(NEW_EVERY as usize) {
        assert_eq!(turns.last(), Some(&Kind::New));
    }
}

#[test]
fn left_requests_are_ended_in_a_small_share_and_do_not_starve() {
    let mut scheduler = one_process(1, roomy());
    waiting(&mut scheduler, 50, Kind::End);
    for name in 0..200 {
        scheduler
            .submit((name, Kind::New), 0, Instant::now())
            .expect("there is room");
    }
    let turns = turns(&mut scheduler, ENDING_EVERY * 10);
    assert_eq!(turns.iter().filter(|kind| **kind == Kind::End).count(), 10);
}

#[test]
fn a_flood_of_leavers_takes_one_slot_of_eight() {
    let mut scheduler = one_process(8, roomy());
    let now = Instant::now();
    let mut ids = Vec::new();
    for name in 0..30 {
        ids.push(
            scheduler
                .submit((name, Kind::New), 0, now)
                .expect("there is room"),
        );
        let (slot, ..) = scheduler.place().expect("a slot is idle");
        scheduler.parked(slot, 0);
    }
    for id in ids {
        scheduler
            .end(id, (0, Kind::End))
            .expect("its process lives");
    }
    assert!(scheduler.place().is_some());
    assert!(
        scheduler.place().is_none(),
        "seven slots stay for live work"
    );
    assert_eq!(scheduler.count().idle, 7);
}

#[test]
fn new_jobs_go_to_the_process_with_the_least_to_resume() {
    let mut scheduler = Scheduler::new(4, roomy());
    for process in [1, 2] {
        scheduler.add_process(ProcessId(process));
    }
    for slot in 0..4 {
        scheduler.add_slot(SlotId(slot), ProcessId(1 + u32::from(slot) / 2));
    }
    let now = Instant::now();
    let mut parked = [0, 0];
    for name in 0..40 {
        scheduler
            .submit((name, Kind::New), 0, now)
            .expect("there is room");
        let (slot, ..) = scheduler.place().expect("all slots are idle");
        parked[usize::from(slot.0) / 2] += 1;
        scheduler.parked(slot, 0);
    }
    assert_eq!(parked, [20, 20]);
}

#[test]
fn a_queue_of_no_length_still_lets_in_what_a_slot_takes_at_once() {
    let mut scheduler = one_process(
        1,
        Limits {
            queue: 0,
            ..roomy()
        },
    );
    let now = Instant::now();
    scheduler
        .submit((1, Kind::New), 0, now)
        .expect("the slot is idle");
    assert!(scheduler.place().is_some());
    assert_eq!(
        scheduler.submit((2, Kind::New), 0, now),
        Err(((2, Kind::New), Shed::QueueFull))
    );
}

#[test]
fn the_bytes_that_requests_retain_are_bounded_too() {
    let mut scheduler = one_process(
        2,
        Limits {
            parked_bytes: 100,
            ..roomy()
        },
    );
    let now = Instant::now();
    scheduler
        .submit((1, Kind::New), 100, now)
        .expect("there is room");
    scheduler
        .submit((2, Kind::New), 1, now)
        .expect("there is room to wait");
    assert!(scheduler.place().is_some());
    assert!(scheduler.place().is_none(), "the bound is reached");
    scheduler.parked(SlotId(1), 99);
    assert!(
        scheduler.place().is_some(),
        "what it retains now is below the bound"
    );
}

#[test]
fn an_overdue_slot_counts_as_lost_until_it_is_ready() {
    let mut scheduler = one_process(1, roomy());
    let id = scheduler
        .submit((1, Kind::New), 0, Instant::now())
        .expect("there is room");
    scheduler.place().expect("the slot is idle");
    scheduler.overdue(id);
    assert_eq!(scheduler.count().lost, 1);
    scheduler.done(SlotId(0));
    assert_eq!(scheduler.count().idle, 1);
}

/// A slot that is taken back while a resume is on its way to it must neither drop that one nor get another.
#[test]
fn a_slot_that_is_closed_loses_no_job() {
    let slots = Slots::<&str, ()>::new(1, roomy(), Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let mut port = slots.open(SlotId(0), ProcessId(1));
    let (_, _turn) = slots.submit("on its way", 0).expect("there is room");

    let taken = port.close().expect("the job was handed over already");
    assert_eq!(taken.job, "on its way");
    assert!(port.done().is_none(), "no other job waits");
    assert!(port.close().is_none());

    let (late, _turn) = slots.submit("late", 0).expect("there is room");
    assert_eq!(slots.count().lost, 1);
    assert_eq!(slots.withdraw(late), Some("late"), "it waits in the queue");
}
