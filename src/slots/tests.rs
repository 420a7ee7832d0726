//! The scheduler against a model: random worlds of arriving, parking, leaving, dying, with the
//! rules checked after every event.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::scheduler::{
    ENDING_EVERY, Limits, NEW_EVERY, ProcessId, RequestId, Scheduler, Shed, SlotId, Stuck, Why,
};
use super::{Closing, Slots};
use crate::metrics::Metrics;

const SLOTS: u16 = 4;
const QUEUE: usize = 5;
const PARKED: usize = 7;
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(3);

fn limits() -> Limits {
    Limits {
        queue: QUEUE,
        queue_timeout: QUEUE_TIMEOUT,
        parked: PARKED,
        parked_bytes: 1 << 30,
        overdue_grace: GRACE,
    }
}

/// What happens to the scheduler. Indexes choose among what the model has, modulo its number.
#[derive(Debug, Clone)]
enum Event {
    Submit,
    Done(usize),
    Park(usize),
    ParkPinned(usize),
    Call(usize),
    Resume(usize),
    End(usize),
    Withdraw(usize),
    Overdue(usize),
    Wait(u64),
    SlotDies(usize),
    ProcessDies(usize),
    ProcessComes,
    ProcessDrains(usize),
    /// A process falls silent, or answers again.
    Silence(usize),
    /// A job could not be handed to its worker, which is gone.
    Undelivered(usize),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => Just(Event::Submit),
        5 => any::<usize>().prop_map(Event::Done),
        5 => any::<usize>().prop_map(Event::Park),
        4 => any::<usize>().prop_map(Event::ParkPinned),
        5 => any::<usize>().prop_map(Event::Call),
        7 => any::<usize>().prop_map(Event::Resume),
        2 => any::<usize>().prop_map(Event::End),
        2 => any::<usize>().prop_map(Event::Withdraw),
        1 => any::<usize>().prop_map(Event::Overdue),
        2 => (0u64..4000).prop_map(Event::Wait),
        1 => any::<usize>().prop_map(Event::SlotDies),
        1 => any::<usize>().prop_map(Event::ProcessDies),
        2 => Just(Event::ProcessComes),
        1 => any::<usize>().prop_map(Event::ProcessDrains),
        1 => any::<usize>().prop_map(Event::Silence),
        1 => any::<usize>().prop_map(Event::Undelivered),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Resume,
    End,
    Call,
}

/// A job says whose it is, so that a mix-up is seen.
type Job = (u64, Kind);

/// Where a parked request goes on: on any slot of its process, or on one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Home(ProcessId, Option<SlotId>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Queued,
    Running(SlotId),
    Parked(Home),
    Waiting(Home, Kind),
}

/// The world as it should be, kept in the plainest way.
struct Model {
    scheduler: Scheduler<Job>,
    now: Instant,
    serial: u64,
    requests: BTreeMap<u64, (RequestId, Place)>,
    calls: BTreeMap<u64, (RequestId, Place)>,
    /// Every job that waits and is not new, in the order of coming.
    waiting: Vec<(Job, Home)>,
    /// The slot that ends a request, if one does: with so few slots one may at a time.
    ending: Option<SlotId>,
    /// New jobs in the order of their arrival, with the time.
    queue: VecDeque<(u64, Instant)>,
    processes: BTreeMap<ProcessId, bool>,
    silent: BTreeSet<ProcessId>,
    slots: BTreeMap<SlotId, ProcessId>,
    /// Slots that run the first job of a request, and when that was submitted.
    fresh: BTreeMap<SlotId, Instant>,
    /// When the time of a request or call was over.
    over: BTreeMap<u64, Instant>,
    last_process: u32,
}

impl Model {
    fn new() -> Self {
        let mut model = Self {
            scheduler: Scheduler::new(SLOTS, limits()),
            now: Instant::now(),
            serial: 0,
            requests: BTreeMap::new(),
            calls: BTreeMap::new(),
            waiting: Vec::new(),
            ending: None,
            queue: VecDeque::new(),
            processes: BTreeMap::new(),
            silent: BTreeSet::new(),
            slots: BTreeMap::new(),
            fresh: BTreeMap::new(),
            over: BTreeMap::new(),
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
        let all = self.requests.values().chain(self.calls.values());
        all.filter_map(slot).collect()
    }

    /// Can a job of this home run on the slot?
    fn fits(&self, slot: SlotId, Home(process, pin): Home) -> bool {
        self.slots.get(&slot) == Some(&process) && pin.is_none_or(|pin| pin == slot)
    }

    /// Is there anywhere that a job of this home can run?
    fn lives(&self, Home(process, pin): Home) -> bool {
        match pin {
            Some(pin) => self.slots.get(&pin) == Some(&process),
            None => self.processes.contains_key(&process),
        }
    }

    fn wait(&mut self, job: Job, home: Home) -> Place {
        self.waiting.push((job, home));
        Place::Waiting(home, job.1)
    }

    fn wait_no_more(&mut self, job: Job) {
        let place = self.waiting.iter().position(|(waiting, _)| *waiting == job);
        self.waiting.remove(place.expect("it waited"));
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
            Event::Done(index) => {
                let busy: Vec<_> = self.busy().into_iter().collect();
                if busy.is_empty() {
                    return;
                }
                let slot = busy[index % busy.len()];
                self.scheduler.done(slot);
                self.over(slot);
                self.ready(slot);
            }
            Event::Park(index) | Event::ParkPinned(index) => {
                let Some((name, _, Place::Running(slot))) =
                    self.pick(index, |place| matches!(place, Place::Running(_)))
                else {
                    return;
                };
                let pinned = matches!(event, Event::ParkPinned(_));
                self.fresh.remove(&slot);
                self.scheduler.parked(slot, 10, pinned);
                let home = Home(self.slots[&slot], pinned.then_some(slot));
                self.requests.get_mut(&name).expect("picked").1 = Place::Parked(home);
                self.ready(slot);
            }
            Event::Call(index) => {
                let Some((_, id, place)) = self.pick(index, |_| true) else {
                    return;
                };
                self.serial += 1;
                let job = (self.serial, Kind::Call);
                match (self.scheduler.call(id, job), place) {
                    (Ok(call), Place::Parked(Home(process, _))) => {
                        assert!(self.processes.contains_key(&process));
                        let place = self.wait(job, Home(process, None));
                        self.calls.insert(job.0, (call, place));
                    }
                    (Ok(_), _) => panic!("a call for what is not parked"),
                    (Err(back), Place::Parked(Home(process, _))) => {
                        assert_eq!(back, job);
                        assert!(!self.processes.contains_key(&process));
                    }
                    (Err(back), _) => assert_eq!(back, job),
                }
            }
            Event::Resume(index) | Event::End(index) => {
                let Some((name, id, Place::Parked(home))) =
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
                if self.lives(home) {
                    assert_eq!(outcome, Ok(()));
                    let place = self.wait((name, kind), home);
                    self.requests.get_mut(&name).expect("picked").1 = place;
                } else {
                    assert_eq!(outcome, Err((name, kind)));
                    self.requests.remove(&name);
                }
            }
            Event::Withdraw(index) => {
                let waits = |place| matches!(place, Place::Queued | Place::Waiting(..));
                let everyone = self.requests.iter().chain(&self.calls);
                let waiting: Vec<_> = everyone
                    .filter(|(_, (_, place))| waits(*place))
                    .map(|(name, (id, place))| (*name, *id, *place))
                    .collect();
                if waiting.is_empty() {
                    return;
                }
                let (name, id, place) = waiting[index % waiting.len()];
                let job = self.scheduler.withdraw(id);
                match place {
                    Place::Queued => {
                        assert_eq!(job, Some((name, Kind::New)));
                        self.requests.remove(&name);
                        self.queue.retain(|(queued, _)| *queued != name);
                    }
                    Place::Waiting(home, Kind::Resume) => {
                        assert_eq!(job, Some((name, Kind::Resume)));
                        self.wait_no_more((name, Kind::Resume));
                        self.requests.get_mut(&name).expect("picked").1 = Place::Parked(home);
                    }
                    Place::Waiting(_, Kind::Call) => {
                        assert_eq!(job, Some((name, Kind::Call)));
                        self.wait_no_more((name, Kind::Call));
                        self.calls.remove(&name);
                        assert_eq!(self.scheduler.withdraw(id), None, "it is forgotten");
                    }
                    _ => assert_eq!(job, None, "an ending is not taken back"),
                }
            }
            Event::Overdue(index) => {
                if let Some((name, id, _)) = self.pick(index, |_| true) {
                    self.scheduler.overdue(id, self.now);
                    self.over.entry(name).or_insert(self.now);
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
                self.look_for_stuck();
            }
            Event::SlotDies(index) => {
                let owned: Vec<_> = self.slots.keys().copied().collect();
                if owned.is_empty() {
                    return;
                }
                let slot = owned[index % owned.len()];
                let returned = self.scheduler.remove_slot(slot);
                self.slot_dies(slot);
                self.given_back(returned);
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
            Event::Silence(index) => {
                let alive: Vec<_> = self.processes.keys().copied().collect();
                if !alive.is_empty() {
                    let process = alive[index % alive.len()];
                    let silent = !self.silent.remove(&process);
                    self.scheduler.set_silent(process, silent);
                    if silent {
                        self.silent.insert(process);
                    }
                }
            }
            Event::Undelivered(index) => {
                let fresh: Vec<_> = self.fresh.iter().map(|(slot, at)| (*slot, *at)).collect();
                if !fresh.is_empty() {
                    let (slot, since) = fresh[index % fresh.len()];
                    self.undelivered(slot, since);
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

    /// The request waits where it was, which is in front of all that came after it.
    fn undelivered(&mut self, slot: SlotId, since: Instant) {
        let runs = |(_, (_, place)): &(&u64, &(RequestId, Place))| *place == Place::Running(slot);
        let running = self.requests.iter().find(runs);
        let name = *running.expect("a new job runs there").0;
        let put_back = self
            .scheduler
            .put_back(slot, (name, Kind::New), Some(since));
        assert_eq!(put_back, Ok(()));
        self.requests.get_mut(&name).expect("it runs").1 = Place::Queued;
        let place = self.queue.partition_point(|(queued, _)| *queued < name);
        self.queue.insert(place, (name, since));
        let returned = self.scheduler.remove_slot(slot);
        self.slot_dies(slot);
        self.given_back(returned);
    }

    /// What is told of is over its time, by the grace if that is said; and a process without hope has
    /// nothing that is not.
    fn look_for_stuck(&mut self) {
        let spent = |over: Option<&Instant>| over.is_some_and(|over| self.now - *over >= GRACE);
        for Stuck { slot, process, why } in self.scheduler.stuck(self.now) {
            assert_eq!(self.slots.get(&slot), Some(&process));
            let everyone = self.requests.iter().chain(&self.calls);
            let mut runs = everyone.filter(|(_, (_, place))| *place == Place::Running(slot));
            let (name, _) = runs.next().expect("an idle slot is not stuck");
            match why {
                Why::Overdue => assert!(self.over.contains_key(name)),
                Why::Spent => assert!(spent(self.over.get(name))),
                Why::Blocking => {}
            }
        }
        for process in self.processes.keys() {
            if self.scheduler.has_time(*process, self.now) {
                continue;
            }
            let everyone = self.requests.iter().chain(&self.calls);
            for (name, (_, place)) in everyone {
                let inside = match place {
                    Place::Queued => false,
                    Place::Running(slot) => self.slots.get(slot) == Some(process),
                    Place::Parked(home) | Place::Waiting(home, _) => home.0 == *process,
                };
                assert!(!inside || spent(self.over.get(name)), "given up too early");
            }
        }
    }

    /// What ran on the slot has ended.
    fn over(&mut self, slot: SlotId) {
        let runs = |(_, place): &(RequestId, Place)| *place == Place::Running(slot);
        self.fresh.remove(&slot);
        self.requests.retain(|_, request| !runs(request));
        self.calls.retain(|_, call| !runs(call));
    }

    /// The slot may run something else.
    fn ready(&mut self, slot: SlotId) {
        self.ending = self.ending.filter(|ending| *ending != slot);
        if let Some((id, job)) = self.scheduler.take(slot) {
            self.started(slot, id, job);
        }
    }

    fn slot_dies(&mut self, slot: SlotId) {
        self.slots.remove(&slot);
        self.over(slot);
        self.ending = self.ending.filter(|ending| *ending != slot);
    }

    /// Exactly the jobs come back that can run nowhere any more.
    fn given_back(&mut self, returned: Vec<Job>) {
        let (lost, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, home)| !self.lives(*home));
        self.waiting = waiting;
        let returned: BTreeSet<_> = returned.into_iter().map(|(name, _)| name).collect();
        assert_eq!(returned, lost.iter().map(|((name, _), _)| *name).collect());
        self.requests.retain(|name, _| !returned.contains(name));
        self.calls.retain(|name, _| !returned.contains(name));
    }

    fn process_dies(&mut self, process: ProcessId) {
        let lost: Vec<SlotId> = self
            .slots
            .iter()
            .filter(|(_, owner)| **owner == process)
            .map(|(slot, _)| *slot)
            .collect();
        let returned = self.scheduler.remove_process(process);
        for slot in lost {
            self.slot_dies(slot);
        }
        self.processes.remove(&process);
        self.silent.remove(&process);
        self.given_back(returned);
        // Half of the parked learn of it at once, the others when their results are in.
        let parked = |place| matches!(place, Place::Parked(Home(owner, _)) if owner == process);
        if let Some((name, id, _)) = self.pick(0, parked) {
            self.scheduler.forget(id);
            self.requests.remove(&name);
        }
    }

    /// A slot has got a job: was it right?
    fn started(&mut self, slot: SlotId, id: RequestId, (name, kind): Job) {
        let process = self.slots[&slot];
        let known = self.requests.get(&name).or(self.calls.get(&name));
        let (known, place) = *known.expect("a job of something");
        assert_eq!(known, id, "a job of another request");
        assert!(!self.busy().contains(&slot), "a busy slot got a job");
        match kind {
            Kind::New => {
                assert_eq!(place, Place::Queued);
                let (first, since) = self.queue.pop_front().expect("it was queued");
                assert_eq!(first, name, "out of order");
                self.fresh.insert(slot, since);
                assert!(self.admitted() < PARKED, "started past the parked bound");
                assert!(
                    !self.processes[&process] && !self.silent.contains(&process),
                    "a process got a new job that is draining or silent"
                );
            }
            Kind::Resume | Kind::Call | Kind::End => {
                let Place::Waiting(home, waited) = place else {
                    panic!("it did not wait: {place:?}");
                };
                assert_eq!(waited, kind);
                assert!(self.fits(slot, home), "resumed where it does not live");
                let ends = |(_, kind): Job| kind == Kind::End;
                let first = self
                    .waiting
                    .iter()
                    .find(|(job, home)| ends(*job) == (kind == Kind::End) && self.fits(slot, *home))
                    .map(|(job, _)| *job);
                assert_eq!(first, Some((name, kind)), "out of order");
                self.wait_no_more((name, kind));
            }
        }
        if kind == Kind::End {
            assert_eq!(self.ending, None, "more than the share of those who left");
            self.ending = Some(slot);
        }
        let known = match kind {
            Kind::Call => self.calls.get_mut(&name),
            _ => self.requests.get_mut(&name),
        };
        known.expect("known").1 = Place::Running(slot);
    }

    fn place_all(&mut self) {
        while let Some((slot, id, job)) = self.scheduler.place() {
            self.started(slot, id, job);
        }
    }

    /// Giving back an idle slot that is not needed leaves everything that is parked an idle slot to go on at.
    fn check_needed(&self, busy: &BTreeSet<SlotId>) {
        let idle = |slot: &SlotId| self.slots.contains_key(slot) && !busy.contains(slot);
        for (slot, process) in self.slots.iter().filter(|(slot, _)| idle(slot)) {
            if self.scheduler.is_needed(*slot) {
                continue;
            }
            for (_, place) in self.requests.values() {
                let (Place::Parked(home) | Place::Waiting(home, _)) = place else {
                    continue;
                };
                let mut others = self
                    .slots
                    .keys()
                    .filter(|other| *other != slot && idle(other));
                let goes_on = match home.1 {
                    Some(pin) => pin != *slot,
                    None => others.any(|other| self.fits(*other, *home)),
                };
                assert!(home.0 != *process || goes_on, "its last way on is closed");
            }
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
        let idle = |(slot, process): &(&SlotId, &ProcessId)| {
            !busy.contains(slot) && !self.silent.contains(process)
        };
        let idle = self.slots.iter().filter(idle).count();
        assert_eq!(usize::from(count.idle), idle);
        assert_eq!(self.scheduler.working(), busy.len());
        assert_eq!(self.scheduler.queued(), self.queue.len());
        assert_eq!(
            self.scheduler.requests(),
            self.requests.len(),
            "no trace of what is over"
        );
        assert_eq!(self.scheduler.calls(), self.calls.len());
        let holds_no_slot = |(_, place): &&(RequestId, Place)| {
            matches!(place, Place::Parked(Home(process, _)) | Place::Waiting(Home(process, _), _)
                if self.processes.contains_key(process))
        };
        let parked = self.requests.values().filter(holds_no_slot).count();
        assert_eq!(self.scheduler.parked_now(), parked);
        // Work conservation: no slot idles while a job waits that it may run.
        for (slot, process) in &self.slots {
            if busy.contains(slot) {
                continue;
            }
            let takes_new = !self.processes[process] && !self.silent.contains(process);
            let new = !self.queue.is_empty() && self.admitted() < PARKED && takes_new;
            assert!(!new, "an idle slot and a new job");
            let runnable = |((_, kind), home): &(Job, Home)| {
                self.fits(*slot, *home) && (*kind != Kind::End || self.ending.is_none())
            };
            let runnable = self.waiting.iter().find(|waiting| runnable(waiting));
            assert_eq!(runnable, None, "an idle slot and a job that it may run");
        }
        self.check_needed(&busy);
        for (slot, process) in &self.slots {
            let pinned = |(_, place): &&(RequestId, Place)| {
                let home = Home(*process, Some(*slot));
                *place == Place::Parked(home)
                    || matches!(place, Place::Waiting(waits, _) if *waits == home)
            };
            let pinned = self.requests.values().filter(pinned).count();
            assert_eq!(self.scheduler.pinned_to(*slot), pinned);
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
        scheduler.parked(SlotId(0), 0, false);
        ids.push(id);
    }
    for id in ids {
        match kind {
            Kind::Call => scheduler.call(id, (0, kind)).map(|_| ()),
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
    for kind in [Kind::Resume, Kind::Call] {
        let mut scheduler = one_process(1, roomy());
        waiting(&mut scheduler, 100, kind);
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
}

/// Parks a new request on this slot, pinned to it.
fn pinned(scheduler: &mut Scheduler<Job>, slot: SlotId) -> RequestId {
    let id = scheduler
        .submit((0, Kind::New), 0, Instant::now())
        .expect("there is room");
    assert!(scheduler.take(slot).is_some());
    scheduler.parked(slot, 0, true);
    id
}

#[test]
fn new_jobs_go_to_the_slot_that_the_fewest_are_pinned_to() {
    let mut scheduler = one_process(2, roomy());
    // The slot that became idle last is otherwise the first to be asked.
    for _ in 0..2 {
        pinned(&mut scheduler, SlotId(0));
    }
    pinned(&mut scheduler, SlotId(1));
    scheduler
        .submit((1, Kind::New), 0, Instant::now())
        .expect("there is room");
    let (slot, ..) = scheduler.place().expect("both are idle");
    assert_eq!(slot, SlotId(1));
}

#[test]
fn pinned_and_other_resumes_take_turns_by_age() {
    let mut scheduler = one_process(1, roomy());
    let fixed: Vec<_> = (0..5).map(|_| pinned(&mut scheduler, SlotId(0))).collect();
    waiting(&mut scheduler, 5, Kind::Resume);
    for id in fixed {
        scheduler
            .resume(id, (1, Kind::Resume), 0)
            .expect("its slot lives");
    }
    let turn = |_| {
        let (_, (name, _)) = scheduler.take(SlotId(0)).expect("there is work");
        scheduler.done(SlotId(0));
        name
    };
    let turns: Vec<_> = (0..10).map(turn).collect();
    assert_eq!(turns, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]);
}

#[test]
fn the_end_of_a_pinned_request_is_not_starved_by_those_of_others() {
    let mut scheduler = Scheduler::new(2, roomy());
    for process in [0, 1] {
        scheduler.add_process(ProcessId(process));
        scheduler.add_slot(SlotId(process as u16), ProcessId(process));
    }
    let fixed = pinned(&mut scheduler, SlotId(1));
    let leavers: Vec<_> = (0..50).map(|_| pinned(&mut scheduler, SlotId(0))).collect();
    let mut leavers = leavers.into_iter();
    let mut leave = |scheduler: &mut Scheduler<Job>| {
        let id = leavers.next().expect("there are more");
        scheduler.end(id, (0, Kind::End)).expect("its slot lives");
    };
    // One is being ended, and another one waits behind it, when the pinned one's client leaves.
    leave(&mut scheduler);
    assert!(scheduler.place().is_some());
    leave(&mut scheduler);
    scheduler
        .end(fixed, (1, Kind::End))
        .expect("its slot lives");
    assert!(scheduler.place().is_none(), "one slot of two ends requests");
    let mut turns = 0;
    loop {
        turns += 1;
        scheduler.done(SlotId(0));
        leave(&mut scheduler);
        if scheduler.take(SlotId(0)).is_none() {
            break;
        }
    }
    let (slot, _, (name, _)) = scheduler.place().expect("there is room for one");
    assert_eq!((slot, name), (SlotId(1), 1));
    assert_eq!(turns, 2, "after the one that was older");
}

#[test]
fn a_slot_that_keeps_a_pinned_request_waiting_is_told_of_once() {
    let mut scheduler = one_process(1, roomy());
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let fixed = pinned(&mut scheduler, SlotId(0));
    let stuck = Stuck {
        slot: SlotId(0),
        process: ProcessId(1),
        why: Why::Blocking,
    };
    let submit = |scheduler: &mut Scheduler<Job>| {
        scheduler
            .submit((1, Kind::New), 0, now)
            .expect("there is room");
        assert!(scheduler.place().is_some());
    };
    submit(&mut scheduler);
    // A slot that is busy for long and keeps nobody waiting is nobody's business.
    assert_eq!(scheduler.stuck(now + second * 60), []);
    scheduler
        .resume(fixed, (0, Kind::Resume), 0)
        .expect("its slot lives");
    let begun = now + second * 100;
    assert_eq!(scheduler.stuck(begun), []);
    assert_eq!(scheduler.stuck(begun + second / 2), []);
    assert_eq!(scheduler.stuck(begun + second), [stuck]);
    assert_eq!(scheduler.stuck(begun + second * 9), [], "it has been told");

    scheduler.done(SlotId(0));
    assert!(scheduler.take(SlotId(0)).is_some(), "the pinned one");
    assert_eq!(scheduler.stuck(begun + second * 20), []);
}

#[test]
fn short_jobs_in_a_row_are_not_one_long_one() {
    let mut scheduler = one_process(1, roomy());
    let mut now = Instant::now();
    let fixed = pinned(&mut scheduler, SlotId(0));
    waiting(&mut scheduler, 3, Kind::Resume);
    assert!(scheduler.take(SlotId(0)).is_some());
    scheduler
        .resume(fixed, (9, Kind::Resume), 0)
        .expect("its slot lives");
    for _ in 0..3 {
        for _ in 0..2 {
            assert_eq!(scheduler.stuck(now), []);
            now += Duration::from_millis(600);
        }
        scheduler.done(SlotId(0));
        assert!(scheduler.take(SlotId(0)).is_some());
    }
}

#[test]
fn an_overdue_slot_is_told_of_once() {
    let mut scheduler = one_process(2, roomy());
    let now = Instant::now();
    let parent = pinned(&mut scheduler, SlotId(1));
    let call = scheduler
        .call(parent, (1, Kind::Call))
        .expect("its process lives");
    let (slot, ..) = scheduler.place().expect("both are idle");
    assert_eq!(scheduler.stuck(now), []);
    scheduler.overdue(call, now);
    assert_eq!(scheduler.count().lost, 1, "at once");
    assert_eq!(scheduler.stuck(now), [], "it may come back in a moment");
    let stuck = Stuck {
        slot,
        process: ProcessId(1),
        why: Why::Overdue,
    };
    let later = now + Duration::from_secs(1);
    assert_eq!(scheduler.stuck(later), [stuck]);
    assert_eq!(scheduler.stuck(later), []);
    assert_eq!(scheduler.count().lost, 1);
}

/// What is told of the only slot, second by second after `from`.
fn told(scheduler: &mut Scheduler<Job>, from: Instant, seconds: u64) -> Vec<(u64, Why)> {
    let mut told = Vec::new();
    for second in 0..seconds {
        for stuck in scheduler.stuck(from + Duration::from_secs(second)) {
            told.push((second, stuck.why));
        }
    }
    told
}

#[test]
fn a_slot_is_spent_when_the_grace_after_its_time_is_over() {
    let mut scheduler = one_process(1, roomy());
    let now = Instant::now();
    let id = scheduler
        .submit((1, Kind::New), 0, now)
        .expect("there is room");
    scheduler.place().expect("the slot is idle");
    assert!(scheduler.has_time(ProcessId(1), now));
    scheduler.overdue(id, now);
    let spent = [(1, Why::Overdue), (GRACE.as_secs(), Why::Spent)];
    assert_eq!(told(&mut scheduler, now, 20), spent);
    assert!(!scheduler.has_time(ProcessId(1), now + GRACE));
    assert_eq!(scheduler.count().lost, 1);
    scheduler.done(SlotId(0));
    assert_eq!(scheduler.count().idle, 1);
}

/// It is finished although nobody waits; while that goes well, nobody is told of it, nor is it lost.
#[test]
fn a_job_that_begins_after_its_time_has_the_grace_first() {
    let mut scheduler = one_process(1, roomy());
    let now = Instant::now();
    let id = pinned(&mut scheduler, SlotId(0));
    scheduler.overdue(id, now);
    scheduler
        .resume(id, (1, Kind::Resume), 0)
        .expect("its process lives");
    let later = now + GRACE * 2;
    assert!(!scheduler.has_time(ProcessId(1), later), "it still waits");
    assert!(scheduler.take(SlotId(0)).is_some());
    assert!(scheduler.has_time(ProcessId(1), later), "it has begun");
    let grace = GRACE.as_secs();
    assert_eq!(told(&mut scheduler, later, grace), []);
    assert_eq!(scheduler.count().busy, 1);
    let told = told(&mut scheduler, later + GRACE, 20);
    assert_eq!(told, [(1, Why::Overdue), (grace, Why::Spent)]);
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
        scheduler.parked(slot, 0, false);
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
        scheduler.parked(slot, 0, false);
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
    scheduler.parked(SlotId(1), 99, false);
    assert!(
        scheduler.place().is_some(),
        "what it retains now is below the bound"
    );
}

#[test]
fn an_idle_slot_counts_as_lost_while_its_process_is_silent() {
    let mut scheduler = one_process(2, roomy());
    scheduler
        .submit((1, Kind::New), 0, Instant::now())
        .expect("there is room");
    scheduler.place().expect("a slot is idle");
    let counts = |scheduler: &Scheduler<Job>| {
        let count = scheduler.count();
        let lost = scheduler
            .slot_views()
            .iter()
            .filter(|view| view.lost)
            .count();
        assert_eq!(lost, usize::from(count.lost));
        (count.idle, count.busy, count.lost)
    };
    scheduler.set_silent(ProcessId(1), true);
    assert_eq!(counts(&scheduler), (0, 1, 1));
    scheduler.set_silent(ProcessId(1), false);
    assert_eq!(counts(&scheduler), (1, 1, 0));
}

#[test]
fn an_overdue_slot_counts_as_lost_until_it_is_ready() {
    let mut scheduler = one_process(1, roomy());
    let id = scheduler
        .submit((1, Kind::New), 0, Instant::now())
        .expect("there is room");
    scheduler.place().expect("the slot is idle");
    scheduler.overdue(id, Instant::now());
    assert_eq!(scheduler.count().lost, 1);
    scheduler.done(SlotId(0));
    assert_eq!(scheduler.count().idle, 1);
}

/// A slot that is taken back while a resume is on its way to it must neither drop that one nor get another.
#[test]
fn a_slot_that_is_closed_loses_no_job() {
    let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let mut port = slots.open(SlotId(0), ProcessId(1));
    let (_, _turn) = slots.submit("on its way", 0).expect("there is room");

    let Closing::Taken(taken) = port.close() else {
        panic!("the job was handed over already");
    };
    assert_eq!(taken.job, "on its way");
    assert!(port.done().is_none(), "no other job waits");
    assert!(matches!(port.close(), Closing::Closed));

    let (late, _turn) = slots.submit("late", 0).expect("there is room");
    assert_eq!(slots.count().lost, 1);
    assert_eq!(slots.withdraw(late), Some("late"), "it waits in the queue");
}

/// Its sheds would size the gateway's own slots.
#[test]
fn what_an_upstream_sheds_is_counted_apart() {
    let metrics = Metrics::new(&[]);
    let none = Limits {
        queue: 0,
        ..roomy()
    };
    let pool = metrics.upstream_pool("http://a:80");
    let slots = Slots::<&str, ()>::counted(1, none, pool);
    let refused = slots.submit("nowhere to wait", 0);
    assert_eq!(refused.expect_err("there is no slot"), Shed::QueueFull);
    let page = metrics.render();
    let counted =
        "layby_upstream_requests_shed_total{reason=\"queue_full\",upstream=\"http://a:80\"} 1";
    assert!(page.contains(counted), "{page}");
    assert!(page.contains("layby_requests_shed_total{reason=\"queue_full\"} 0"));
}

/// Its worker died before it was looked at.
#[tokio::test]
async fn a_job_that_never_left_the_gateway_goes_to_another_worker() {
    let slots = Slots::<&str, ()>::new(2, roomy(), &Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let port = slots.open(SlotId(0), ProcessId(1));
    let (id, mut turn) = slots.submit("first", 0).expect("there is room");
    drop(port);
    assert_eq!((slots.queued(), slots.count().lost), (1, 2));

    slots.add_process(ProcessId(2));
    let mut port = slots.open(SlotId(1), ProcessId(2));
    let taken = port.next().await.expect("it waits");
    assert_eq!((taken.request, taken.job), (id, "first"));
    // The same when it could not be written.
    port.put_back(taken);
    assert_eq!(slots.queued(), 1);
    slots.drain();
    let turn = turn.step().await;
    assert_eq!(turn, Err(super::NoTurn::Shed(Shed::Draining)));
    assert_eq!(slots.requests(), 0);
}

/// Its client left while it lay with a slot that then had no worker to give it to.
#[tokio::test]
async fn a_job_that_nobody_waits_for_any_more_goes_to_no_other_worker() {
    for written in [false, true] {
        let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
        slots.add_process(ProcessId(1));
        let mut port = slots.open(SlotId(0), ProcessId(1));
        let (id, mut turn) = slots.submit("first", 0).expect("there is room");
        assert_eq!(slots.withdraw(id), None, "a slot has it");
        if written {
            let taken = port.next().await.expect("it is there");
            port.put_back(taken);
        } else {
            drop(port);
        }
        assert_eq!((slots.queued(), slots.requests()), (0, 0));
        assert_eq!(turn.step().await, Err(super::NoTurn::WorkerGone));
    }
}

/// Wherever it stands: in the queue, with a slot, parked, or on its way back.
#[test]
fn a_request_whose_owner_panics_is_forgotten() {
    for stands in ["queued", "running", "parked", "resuming"] {
        let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
        slots.add_process(ProcessId(1));
        let mut port = (stands != "queued").then(|| slots.open(SlotId(0), ProcessId(1)));
        let (id, _turn) = slots.submit("first", 0).expect("there is room");
        let taken = port.as_mut().map(super::Port::close);
        assert_eq!(taken.is_some(), stands != "queued");
        let park = |port: Option<&mut super::Port<&str, ()>>| {
            assert!(port.is_some_and(|port| port.parked(0, false).is_none()));
        };
        if matches!(stands, "parked" | "resuming") {
            park(port.as_mut());
        }
        let _turn = (stands == "resuming").then(|| {
            port = None;
            slots.resume(id, "second", 0)
        });
        let owner = std::panic::AssertUnwindSafe(|| {
            let _place = slots.place(id);
            panic!("for the test, {stands}");
        });
        assert!(std::panic::catch_unwind(owner).is_err());
        if stands == "running" {
            park(port.as_mut());
            port.as_ref().expect("it is open").forget(id);
        }
        assert_eq!((slots.requests(), slots.parked()), (0, 0), "{stands}");
    }
}

#[test]
fn a_resume_whose_worker_died_is_told_so() {
    let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let mut port = slots.open(SlotId(0), ProcessId(1));
    let (id, _turn) = slots.submit("first", 0).expect("there is room");
    assert!(matches!(port.close(), Closing::Taken(_)));
    assert!(port.parked(0, false).is_none());
    let _turn = slots.resume(id, "second", 0);
    drop(port);
    assert_eq!((slots.queued(), slots.requests()), (0, 0));
}

#[tokio::test]
async fn a_resume_that_is_put_back_waits_where_it_was() {
    let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let mut port = slots.open(SlotId(0), ProcessId(1));
    let mut ids = Vec::new();
    for job in ["one", "two"] {
        let id = slots.submit(job, 0).expect("there is room").0;
        port.next().await.expect("a job");
        // Its client has left while the worker had it: what follows from it is finished all the same.
        assert_eq!(slots.withdraw(id), None);
        assert!(port.parked(7, false).is_none());
        ids.push(id);
    }
    let _one = slots.resume(ids[0], "one again", 7);
    let _two = slots.resume(ids[1], "two again", 7);
    let taken = port.next().await.expect("a job");
    assert_eq!((taken.request, taken.job), (ids[0], "one again"));
    port.put_back(taken);
    drop(port);
    assert_eq!((slots.parked(), slots.requests()), (2, 2));

    let mut port = slots.open(SlotId(0), ProcessId(1));
    let taken = port.next().await.expect("a job");
    assert_eq!((taken.request, taken.job), (ids[0], "one again"));
    port.put_back(taken);
    drop(port);
    for (id, job) in ids.into_iter().zip(["one again", "two again"]) {
        assert_eq!(slots.withdraw(id), Some(job));
        slots.forget(id);
    }
    assert_eq!((slots.parked(), slots.requests()), (0, 0));
}

#[test]
fn a_slot_is_not_closed_before_what_is_pinned_to_it_is_over() {
    let slots = Slots::<&str, ()>::new(1, roomy(), &Metrics::new(&[]));
    slots.add_process(ProcessId(1));
    let mut port = slots.open(SlotId(0), ProcessId(1));
    let (id, _turn) = slots.submit("first", 0).expect("there is room");
    assert!(matches!(port.close(), Closing::Taken(_)));
    assert!(port.parked(0, true).is_none());
    assert!(matches!(port.close(), Closing::Needed));

    let _turn = slots.resume(id, "second", 0);
    let Closing::Taken(taken) = port.close() else {
        panic!("it resumes");
    };
    assert_eq!(taken.job, "second");
    assert!(port.done().is_none());
    assert!(matches!(port.close(), Closing::Closed));
}
