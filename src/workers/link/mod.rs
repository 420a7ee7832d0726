//! The link: layby's own worker protocol over a Unix socket (`docs/protocol.md`).
//!
//! [`Hub`] accepts worker processes, grants them slots, never more than configured over all, and
//! takes slots back. What stays true: a slot number is given out again only after the connection of
//! the thread that had it is closed from the worker's side, so its database connection is gone too.

pub(crate) mod answer;
mod channel;
pub(crate) mod environ;
mod heart;
mod slot;
mod stacks;
pub(crate) mod wire;

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::channel::{Broken, Channel};
use self::heart::{Beat, Heart};
use self::slot::SlotTask;
use self::stacks::{Asker, Pending};
use self::wire::{Frame, Header, Kind};
use super::local::{Ask, Locals, ParkId};
use super::{Board, Process, Waits, WorkerSlots};
use crate::metrics::Metrics;
use crate::record::Id;
use crate::slots::{ProcessId, SlotId, Stuck, Why};
use crate::spool::Spool;
use crate::unix_socket::UnixSocket;

pub use self::stacks::{Call, NoStacks, Parked, Stacks};

/// A new connection must say what it is within this time. A slot that was granted must be open within this
/// time as well, or within the grace that a slot has, if that is more.
const GREETING: Duration = Duration::from_secs(5);

/// How often a draining process is looked at.
const DRAIN_TICK: Duration = Duration::from_millis(50);

/// How often it is asked what is to be done about a process that should answer.
const HEART_TICK: Duration = Duration::from_millis(250);

/// How long the slots of a process that nothing else keeps may take to close what they hold.
const CLOSING: Duration = Duration::from_secs(5);

/// How long the number of a closed slot rests. Its worker's database connection was closed before, but
/// the server takes a moment to see that: a new owner that connects sooner would be one too many.
const DATABASE_NOTICES: Duration = Duration::from_millis(200);

/// Requests for stacks that may wait for one process. A worker that does not read them is not helped by
/// more: what does not fit is dropped.
const STACKS: usize = 16;

/// What workers are told when they arrive.
#[derive(Debug, Clone)]
pub struct Terms {
    pub fetch_timeout: Duration,
    pub thread_locals: Vec<String>,
    /// How long a request has, and how much longer a slot may work on it.
    pub request_timeout: Duration,
    pub overdue_grace: Duration,
}

#[derive(Deserialize)]
struct Hello {
    pid: u32,
    threads: u16,
    mode: String,
    app: String,
    version: String,
    token: String,
    #[serde(default)]
    pings: bool,
    #[serde(default)]
    dumps: bool,
    #[serde(default)]
    stacks: bool,
}

#[derive(Serialize)]
struct Welcome<'a> {
    process: u32,
    key: &'a str,
    max_plan: usize,
    timeout: f64,
    thread_locals: &'a [String],
}

#[derive(Deserialize)]
struct SlotHello {
    process: u32,
    key: String,
}

/// A process in the hub's books.
#[derive(Debug)]
struct Member {
    process: Arc<Process>,
    key: String,
    /// Granted and not yet closed, each with the order to retire it.
    slots: BTreeMap<SlotId, CancellationToken>,
    /// Granted, connection awaited since then.
    expected: BTreeMap<SlotId, Instant>,
    orders: mpsc::UnboundedSender<Order>,
    /// Slots whose stacks are wanted.
    stacks: mpsc::Sender<(SlotId, Asker)>,
    draining: bool,
    /// It does not answer.
    silent: bool,
}

/// How far a draining process is.
struct Drained {
    /// Slots that it has not closed.
    open: usize,
    silent: bool,
}

/// What the hub has for a process's control task.
#[derive(Debug)]
struct Inbox {
    orders: mpsc::UnboundedReceiver<Order>,
    stacks: mpsc::Receiver<(SlotId, Asker)>,
}

/// From the hub to a process's control task. At most one per slot and one drain: bounded by that.
#[derive(Debug)]
enum Order {
    Grant(SlotId),
    Drain,
}

#[derive(Debug, Default)]
struct Books {
    last_process: u32,
    /// Slots that no process has, the longest free first.
    free: VecDeque<SlotId>,
    members: BTreeMap<ProcessId, Member>,
    /// Slots of processes that are gone, whose threads may not be.
    left_behind: usize,
    closed: bool,
}

/// A process is in the books for as long as this lives. However its control task ends, they are put right.
struct Joined {
    hub: Arc<Hub>,
    process: Arc<Process>,
}

/// A slot's connection. However the slot's task ends, its number is free when the worker's end of this is
/// closed, and not before: only then is the worker's thread, with its database connection, known to be gone.
struct Opened {
    hub: Arc<Hub>,
    process: Arc<Process>,
    slot: SlotId,
    retire: CancellationToken,
    /// None once it is being closed.
    channel: Option<Channel>,
}

/// Accepts workers and hands out slots.
#[derive(Debug)]
pub struct Hub {
    /// Of slots.
    count: u16,
    slots: Arc<WorkerSlots>,
    spool: Spool,
    metrics: Metrics,
    waits: Waits,
    terms: Mutex<Terms>,
    board: Arc<Board>,
    locals: Arc<Locals>,
    books: Mutex<Books>,
    /// Processes came, went, or changed.
    changed: Notify,
    tasks: TaskTracker,
}

impl Hub {
    pub fn new(
        count: u16,
        slots: Arc<WorkerSlots>,
        spool: Spool,
        metrics: Metrics,
        waits: Waits,
        terms: Terms,
    ) -> Arc<Self> {
        let books = Books {
            free: (0..count).map(SlotId).collect(),
            ..Books::default()
        };
        Arc::new(Self {
            count,
            slots,
            spool,
            metrics,
            waits,
            terms: Mutex::new(terms),
            board: Board::new(count),
            locals: Locals::new(count),
            books: Mutex::new(books),
            changed: Notify::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Accepts workers until cancelled. Their tasks belong to the hub.
    pub async fn accept(self: Arc<Self>, link: UnixSocket, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = link.accept() => accepted,
            };
            match accepted {
                Ok(stream) => {
                    self.tasks.spawn(Arc::clone(&self).greet(stream));
                }
                Err(error) => {
                    // Out of descriptors, most likely: waiting is all that helps.
                    tracing::error!(%error, "cannot accept a worker");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn greet(self: Arc<Self>, stream: UnixStream) {
        let mut channel = Channel::new(stream);
        let first = async {
            channel.preamble().await?;
            channel.frame().await
        };
        let outcome = match tokio::time::timeout(GREETING, first).await {
            Ok(Ok(frame)) => match frame.header.kind {
                Kind::Hello => self.hello(channel, &frame).await,
                Kind::Slot => self.slot(channel, &frame).await,
                _ => Err((channel, Broken::Unexpected(frame.header).to_string())),
            },
            Ok(Err(Broken::Closed)) => return,
            Ok(Err(broken)) => Err((channel, broken.to_string())),
            Err(_) => Err((channel, "said nothing in 5 s".to_owned())),
        };
        if let Err((channel, reason)) = outcome {
            tracing::error!(%reason, "worker refused");
            channel.refuse(&reason).await;
        }
    }

    // Control connections --------------------------------------------------------------

    async fn hello(
        self: Arc<Self>,
        mut channel: Channel,
        frame: &Frame,
    ) -> Result<(), (Channel, String)> {
        let hello: Hello = match serde_json::from_slice(&frame.head) {
            Ok(hello) => hello,
            Err(error) => return Err((channel, format!("a HELLO that cannot be read: {error}"))),
        };
        if hello.threads == 0 {
            return Err((channel, "a HELLO that offers no threads".to_owned()));
        }
        let key = key();
        let (orders, ordered) = mpsc::unbounded_channel();
        let (stacks, wanted) = mpsc::channel(STACKS);
        let inbox = Inbox {
            orders: ordered,
            stacks: wanted,
        };
        let process = {
            let mut books = self.books();
            books.last_process += 1;
            let process = Arc::new(Process {
                id: ProcessId(books.last_process),
                pid: hello.pid,
                mode: hello.mode,
                threads: hello.threads,
                token: hello.token,
                pings: hello.pings,
                dumps: hello.dumps,
                stacks: hello.stacks,
                begun: AtomicU64::new(0),
                open: AtomicUsize::new(0),
                mute: Notify::new(),
                condemned: CancellationToken::new(),
                leaves: CancellationToken::new(),
                gone: CancellationToken::new(),
            });
            let member = Member {
                process: Arc::clone(&process),
                key: key.clone(),
                slots: BTreeMap::new(),
                expected: BTreeMap::new(),
                orders,
                stacks,
                draining: books.closed,
                silent: false,
            };
            books.members.insert(process.id, member);
            process
        };
        let _joined = Joined {
            hub: Arc::clone(&self),
            process: Arc::clone(&process),
        };
        tracing::info!(
            process = process.id.0, pid = process.pid, mode = %process.mode, threads = process.threads,
            app = %hello.app, version = %hello.version, "worker ready"
        );
        let terms = self.terms().clone();
        let welcome = Welcome {
            process: process.id.0,
            key: &key,
            max_plan: wire::MAX_PLAN,
            timeout: terms.fetch_timeout.as_secs_f64(),
            thread_locals: &terms.thread_locals,
        };
        let welcome = serde_json::to_vec(&welcome).expect("plain data becomes JSON");
        let head = |_: &mut Header, out: &mut BytesMut| out.extend_from_slice(&welcome);
        self.slots.add_process(process.id);
        let mut outcome = channel
            .send(Header::bare(Kind::Welcome, 0), head, &[])
            .await;
        if outcome.is_ok() {
            self.grant();
            self.changed.notify_waiters();
            outcome = self.control(&mut channel, &process, inbox).await;
        }
        match outcome {
            Ok(()) => tracing::info!(process = process.id.0, pid = process.pid, "worker released"),
            Err(broken) => {
                tracing::warn!(process = process.id.0, pid = process.pid, %broken, "worker lost");
            }
        }
        if process.condemned.is_cancelled() && process.token.is_empty() {
            tracing::error!(
                process = process.id.0,
                pid = process.pid,
                "this worker was started by somebody else: its slots stay lost until it has ended"
            );
        }
        Ok(())
    }

    /// Serves the control connection until the process has been released (Ok) or is lost.
    async fn control(
        &self,
        channel: &mut Channel,
        process: &Process,
        mut inbox: Inbox,
    ) -> Result<(), Broken> {
        let mut draining = false;
        // Begins when it is polled first.
        let released = self.release(process);
        tokio::pin!(released);
        let mut heart = Heart::new(Instant::now());
        let mut pending = Pending::default();
        let mut ticks = tokio::time::interval(HEART_TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased; // After a halt of our own, what it has said goes before what it seems to have not.
                frame = channel.frame() => {
                    let Frame { header, head, .. } = frame?;
                    match header.kind {
                        Kind::Pong => {
                            self.answered(process, heart.answered().ok_or(Broken::Unexpected(header))?);
                        }
                        Kind::Told => pending.told(header, &head)?,
                        _ => self.heard(process.id, header)?,
                    }
                }
                order = inbox.orders.recv() => match order {
                    Some(Order::Grant(slot)) => {
                        channel.send(Header::bare(Kind::Grant, slot.0), |_, _| {}, &[]).await?;
                    }
                    Some(Order::Drain) => {
                        channel.send(Header::bare(Kind::Drain, 0), |_, _| {}, &[]).await?;
                        draining = true;
                    }
                    None => return Ok(()),
                },
                Some((slot, asker)) = inbox.stacks.recv() => match asker {
                    Asker::Log(why) => {
                        let head = |_: &mut Header, out: &mut BytesMut| out.extend_from_slice(why.as_bytes());
                        channel.send(Header::bare(Kind::Stack, slot.0), head, &[]).await?;
                        heart.stacks_asked(Instant::now());
                    }
                    Asker::Person(answer) => {
                        if let Some(header) = pending.asks(slot, answer) {
                            channel.send(header, |_, _| {}, &[]).await?;
                        }
                    }
                },
                _ = ticks.tick() => {
                    let grace = self.terms().overdue_grace;
                    if let Some(slot) = self.books().unopened(process.id, Instant::now(), grace) {
                        return Err(Broken::Unopened(slot.0));
                    }
                    while process.pings && let Some(beat) = heart.beat(Instant::now(), grace) {
                        if beat == Beat::Ask {
                            channel.send(Header::bare(Kind::Ping, 0), |_, _| {}, &[]).await?;
                        } else {
                            self.unheard(process, beat);
                        }
                    }
                }
                released = &mut released, if draining => return released,
                () = process.gone.cancelled() => return Err(Broken::Closed),
            }
        }
    }

    /// A process does not answer.
    fn unheard(&self, process: &Process, beat: Beat) {
        let (id, pid) = (process.id.0, process.pid);
        let why =
            "its interpreter is held by code that does not let other threads run, or it is stopped";
        match beat {
            Beat::Ask => {}
            Beat::Mute => {
                tracing::warn!(
                    process = id,
                    pid,
                    "the worker cannot say what its slots do: {why}"
                );
                process.mute.notify_one();
            }
            Beat::Silent => {
                tracing::warn!(
                    process = id,
                    pid,
                    "worker silent, it gets no new requests: {why}"
                );
                process.mute.notify_one();
                self.slots.set_silent(process.id, true);
                self.set_silent(process.id, true);
            }
            Beat::Lost => self.condemn(process.id, "it has not answered for longer than the grace"),
        }
    }

    fn answered(&self, process: &Process, was_silent: bool) {
        if was_silent {
            tracing::info!(
                process = process.id.0,
                pid = process.pid,
                "worker answers again"
            );
            self.slots.set_silent(process.id, false);
            self.set_silent(process.id, false);
        }
    }

    fn set_silent(&self, id: ProcessId, silent: bool) {
        if let Some(member) = self.books().members.get_mut(&id) {
            member.silent = silent;
        }
    }

    /// What a worker says about itself or its parked requests.
    fn heard(&self, process: ProcessId, header: Header) -> Result<(), Broken> {
        let ask = match header.kind {
            Kind::Bye => {
                self.leaves(process);
                return Ok(());
            }
            Kind::Want => Ask::Want,
            Kind::Call => Ask::Call(header.aux),
            _ => return Err(Broken::Unexpected(header)),
        };
        let park = ParkId {
            process,
            request: header.request,
            epoch: header.epoch,
        };
        self.locals.asked(park, ask).map_err(Broken::content)
    }

    /// Takes the slots of a draining process back: as they fall idle, so that a successor can have them,
    /// but for those that parked requests need. Resolves when it has none left.
    ///
    /// # Errors
    /// When it will not come to that: what it still has to do has had its time and grace, or does not end.
    async fn release(&self, process: &Process) -> Result<(), Broken> {
        if let Some(member) = self.books().members.get(&process.id) {
            member.slots.values().for_each(CancellationToken::cancel);
        }
        let begun = Instant::now();
        let mut last_hope = begun;
        loop {
            let Drained { open, silent } = self.drained(process.id);
            if open == 0 {
                return Ok(());
            }
            let now = Instant::now();
            let Terms {
                request_timeout,
                overdue_grace,
                ..
            } = *self.terms();
            if self.slots.has_time(process.id) {
                last_hope = now;
                if now - begun >= request_timeout + overdue_grace {
                    return Err(Broken::GivenUp(
                        "given up: not all of its answers ended in time",
                    ));
                }
            } else {
                // What is not busy with a request closes its database connection, and says so.
                let closing = open > self.slots.busy_of(process.id) && !silent;
                if now - last_hope >= if closing { CLOSING } else { Duration::ZERO } {
                    return Err(Broken::GivenUp(
                        "given up: its requests had their time, and the grace",
                    ));
                }
            }
            tokio::time::sleep(DRAIN_TICK).await;
        }
    }

    fn drained(&self, id: ProcessId) -> Drained {
        let books = self.books();
        let member = books.members.get(&id);
        Drained {
            open: member.map_or(0, |member| member.slots.len()),
            silent: member.is_some_and(|member| member.silent),
        }
    }

    /// Takes no more new requests for this process; its slots come back when nothing is parked.
    pub fn drain_process(&self, id: ProcessId) {
        if let Some(member) = self.books().members.get_mut(&id)
            && !member.draining
        {
            member.draining = true;
            self.slots.drain_process(id);
            // The control task may have ended: then the process is gone anyway.
            let _ = member.orders.send(Order::Drain);
        }
    }

    /// The process has asked for a drain. Whoever started it is told to see to a successor.
    fn leaves(&self, id: ProcessId) {
        let process = match self.books().members.get(&id) {
            Some(member) if !member.draining => Arc::clone(&member.process),
            _ => return, // It is replaced already, or nobody is to follow.
        };
        process.leaves.cancel();
        self.drain_process(id);
    }

    /// The process cannot be trusted to come back: it is drained, and given up when its other requests have
    /// had their time and grace. Whoever started it is told to see to a successor.
    fn condemn(&self, id: ProcessId, why: &str) {
        let process = match self.books().members.get(&id) {
            Some(member) if !member.process.condemned.is_cancelled() => Arc::clone(&member.process),
            _ => return,
        };
        tracing::error!(
            process = id.0,
            pid = process.pid,
            why,
            "worker overdue: it gets no new requests, and is replaced"
        );
        process.condemned.cancel();
        self.drain_process(id);
    }

    /// A slot is busy where it should not be.
    pub fn look_at(&self, stuck: Stuck) {
        let Some(activity) = self.board.of(stuck.slot) else {
            return; // It has just become ready.
        };
        let runs = activity.about;
        let reason = match stuck.why {
            Why::Overdue => format!("the time of {runs} is over, and this slot still works on it"),
            Why::Blocking => format!(
                "a request that can go on in this slot only has waited 1 s for it, while it works on {runs}"
            ),
            Why::Spent => {
                let why = format!(
                    "the time of {runs}, request {}, and the grace are over, and slot {} has worked on it for {:.1} s",
                    runs.record.id,
                    stuck.slot.0,
                    activity.since.elapsed().as_secs_f64()
                );
                return self.condemn(stuck.process, &why);
            }
        };
        self.ask_for_stacks(stuck, reason, &runs.record.id);
    }

    /// Has a worker write down what keeps one of its slots, for the person who reads the log.
    fn ask_for_stacks(&self, stuck: Stuck, reason: String, request: &Id) {
        let books = self.books();
        let Some(member) = books.members.get(&stuck.process) else {
            return;
        };
        let pid = member.process.pid;
        tracing::warn!(
            slot = stuck.slot.0, process = stuck.process.0, pid, %request, %reason, "slot stuck"
        );
        let asked = member.stacks.try_send((stuck.slot, Asker::Log(reason)));
        if asked.is_err() {
            tracing::debug!(
                process = stuck.process.0,
                "no stacks: it does not read what it is asked"
            );
        }
    }

    /// Asks the worker of a busy slot what its thread does. Nobody answers if the worker cannot: how long that
    /// is waited for is the asker's business.
    ///
    /// # Errors
    /// When there is nobody to be asked.
    pub fn stacks(&self, slot: SlotId) -> Result<oneshot::Receiver<Stacks>, NoStacks> {
        let views = self.slots.views();
        let view = views.iter().find(|view| view.slot == slot);
        let view = view.ok_or(NoStacks::NoSlot)?;
        let process = view.process.ok_or(NoStacks::Lost)?;
        if view.request.is_none() {
            return Err(NoStacks::Idle);
        }
        let books = self.books();
        let member = books.members.get(&process).ok_or(NoStacks::Lost)?;
        if !member.process.stacks {
            return Err(NoStacks::Untold);
        }
        let (answer, answered) = oneshot::channel();
        let asked = member.stacks.try_send((slot, Asker::Person(answer)));
        asked.map_err(|_| NoStacks::Silent)?;
        Ok(answered)
    }

    /// The gateway is going: every process is drained, now and from here on.
    pub fn drain(&self) {
        let ids: Vec<_> = {
            let mut books = self.books();
            books.closed = true;
            books.members.keys().copied().collect()
        };
        for id in ids {
            self.drain_process(id);
        }
    }

    // Slot connections -----------------------------------------------------------------

    async fn slot(
        self: Arc<Self>,
        channel: Channel,
        frame: &Frame,
    ) -> Result<(), (Channel, String)> {
        let slot = SlotId(frame.header.aux);
        let hello: SlotHello = match serde_json::from_slice(&frame.head) {
            Ok(hello) => hello,
            Err(error) => return Err((channel, format!("a SLOT that cannot be read: {error}"))),
        };
        let Some((process, retire)) = self.expected(ProcessId(hello.process), &hello.key, slot)
        else {
            return Err((channel, format!("slot {} was not granted to it", slot.0)));
        };
        let port = self.slots.open(slot, process.id);
        self.changed.notify_waiters();
        process.open.fetch_add(1, Relaxed);
        let mut opened = Opened {
            hub: Arc::clone(&self),
            process: Arc::clone(&process),
            slot,
            retire: retire.clone(),
            channel: Some(channel),
        };
        let channel = opened.channel.as_mut();
        let task = SlotTask {
            channel: channel.expect("it has just been put there"),
            port,
            process,
            spool: self.spool.clone(),
            metrics: self.metrics.clone(),
            waits: self.waits.clone(),
            board: Arc::clone(&self.board),
            locals: Arc::clone(&self.locals),
        };
        task.run(retire).await;
        Ok(())
    }

    fn expected(
        &self,
        id: ProcessId,
        key: &str,
        slot: SlotId,
    ) -> Option<(Arc<Process>, CancellationToken)> {
        let mut books = self.books();
        let member = books
            .members
            .get_mut(&id)
            .filter(|member| member.key == key)?;
        member.expected.remove(&slot)?;
        Some((
            Arc::clone(&member.process),
            member.slots.get(&slot)?.clone(),
        ))
    }

    // The books ------------------------------------------------------------------------

    /// Gives free slots to processes that can take more, fewest first.
    fn grant(&self) {
        let mut books = self.books();
        while let Some(&slot) = books.free.front() {
            let room = |member: &&mut Member| {
                !member.draining
                    && !member.process.gone.is_cancelled()
                    && member.slots.len() < usize::from(member.process.threads)
            };
            let poorest = books
                .members
                .values_mut()
                .filter(room)
                .min_by_key(|member| member.slots.len());
            let Some(member) = poorest else { return };
            member.slots.insert(slot, CancellationToken::new());
            member.expected.insert(slot, Instant::now());
            // A control task that has ended takes its process out of the books, and frees the slot.
            let _ = member.orders.send(Order::Grant(slot));
            books.free.pop_front();
        }
    }

    /// A slot's connection is closed by the worker: its number may go to another process, when the
    /// database knows, too.
    async fn free(&self, id: ProcessId, slot: SlotId) {
        {
            let mut books = self.books();
            match books.members.get_mut(&id) {
                Some(member) => drop(member.slots.remove(&slot)),
                None => books.left_behind -= 1,
            }
        }
        self.changed.notify_waiters();
        tokio::time::sleep(DATABASE_NOTICES).await;
        self.books().free.push_back(slot);
        self.grant();
        self.changed.notify_waiters();
    }

    /// A process is gone. Slots that it never opened are free at once; the others when they close.
    fn leave(&self, id: ProcessId) {
        {
            let mut books = self.books();
            if let Some(member) = books.members.remove(&id) {
                books.left_behind += member.slots.len() - member.expected.len();
                books.free.extend(member.expected.into_keys());
            }
        }
        self.grant();
        self.changed.notify_waiters();
    }

    /// What each slot works on.
    pub fn board(&self) -> &Board {
        &self.board
    }

    /// How it stands with a process, in one word.
    pub fn state(&self, id: ProcessId) -> &'static str {
        match self.books().members.get(&id) {
            Some(member) if member.process.condemned.is_cancelled() => "overdue",
            Some(member) if member.silent => "silent",
            Some(member) if !member.draining => "ready",
            _ => "draining",
        }
    }

    /// Whether any process gets new requests, now or as soon as a slot is free.
    pub fn serves(&self) -> bool {
        self.books().serves(self.count)
    }

    pub fn processes(&self) -> Vec<Arc<Process>> {
        self.books()
            .members
            .values()
            .map(|member| Arc::clone(&member.process))
            .collect()
    }

    /// The process that was started with this token, if it has said hello and is not gone.
    pub fn process(&self, token: &str) -> Option<Arc<Process>> {
        self.processes()
            .into_iter()
            .find(|process| process.token == token)
    }

    /// Resolves when no process is left. Cancel safe.
    pub async fn empty(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, also one before the await.
            changed.as_mut().enable();
            if self.books().members.is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// Resolves when processes or slots have changed. Cancel safe.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    pub fn set_terms(&self, terms: Terms) {
        *self.terms() = terms;
    }

    fn terms(&self) -> MutexGuard<'_, Terms> {
        self.terms
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books
            .lock()
            .expect("no code that holds this lock panics")
    }
}

impl Books {
    /// A slot that the process has had for too long without opening it.
    fn unopened(&self, id: ProcessId, now: Instant, grace: Duration) -> Option<SlotId> {
        let late = |since: Instant| now.saturating_duration_since(since) >= GREETING.max(grace);
        let mut expected = self.members.get(&id)?.expected.iter();
        expected.find_map(|(slot, since)| late(*since).then_some(*slot))
    }

    /// Somebody takes new requests, and there are slots to run them on: maybe with a process that is to
    /// give them back, or busy, but not all with those that do not answer or are gone.
    fn serves(&self, count: u16) -> bool {
        let answering = |member: &&Member| !member.silent;
        let takes_new = self
            .members
            .values()
            .filter(answering)
            .any(|it| !it.draining);
        let mute = self.members.values().filter(|member| member.silent);
        let out_of_reach = self.left_behind + mute.map(|member| member.slots.len()).sum::<usize>();
        takes_new && out_of_reach < usize::from(count)
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // First nobody new is sent there, then those who wait for it learn that it is gone.
        self.process.gone.cancel();
        self.hub.slots.remove_process(self.process.id);
        self.hub.leave(self.process.id);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.hub.board.set(self.slot, None);
        self.hub.locals.ends(self.slot);
        if !self.retire.is_cancelled() || std::thread::panicking() {
            // A worker that lost one slot cannot be trusted with the others.
            self.process.gone.cancel();
        }
        // After a runtime's end there is nobody to wait, and nobody who could have the slot next.
        if let (Some(channel), Ok(_)) = (self.channel.take(), Handle::try_current()) {
            let (hub, process, slot) =
                (Arc::clone(&self.hub), Arc::clone(&self.process), self.slot);
            self.hub.tasks.spawn(async move {
                channel.closed().await;
                process.open.fetch_sub(1, Relaxed);
                hub.free(process.id, slot).await;
            });
        }
    }
}

/// A secret that only the process that was welcomed with it knows.
fn key() -> String {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .expect("the kernel gives 16 random bytes at once");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::Limits;

    const TERMS: Terms = Terms {
        fetch_timeout: Duration::from_secs(30),
        thread_locals: Vec::new(),
        request_timeout: Duration::from_secs(60),
        overdue_grace: Duration::from_secs(30),
    };

    fn hub(count: u16) -> Arc<Hub> {
        let metrics = Metrics::new(&[]);
        let limits = Limits {
            queue: 1,
            queue_timeout: Duration::from_secs(5),
            parked: 10,
            parked_bytes: 1 << 30,
            overdue_grace: TERMS.overdue_grace,
        };
        let spool = Spool::new(std::env::temp_dir(), metrics.clone()).expect("a folder");
        let slots = WorkerSlots::new(count, limits, &metrics);
        let waits = Waits::new(metrics.clone());
        Hub::new(count, slots, spool, metrics, waits, TERMS)
    }

    fn process(id: u32) -> Arc<Process> {
        Arc::new(Process {
            id: ProcessId(id),
            pid: id,
            mode: "wsgi".into(),
            threads: 2,
            token: String::new(),
            pings: true,
            dumps: false,
            stacks: false,
            begun: AtomicU64::new(0),
            open: AtomicUsize::new(0),
            mute: Notify::new(),
            condemned: CancellationToken::new(),
            leaves: CancellationToken::new(),
            gone: CancellationToken::new(),
        })
    }

    /// A process that has opened these slots.
    fn member(id: u32, slots: &[u16]) -> Member {
        let slots = slots.iter();
        Member {
            process: process(id),
            key: key(),
            slots: slots
                .map(|slot| (SlotId(*slot), CancellationToken::new()))
                .collect(),
            expected: BTreeMap::new(),
            orders: mpsc::unbounded_channel().0,
            stacks: mpsc::channel(1).0,
            draining: false,
            silent: false,
        }
    }

    fn books(members: impl IntoIterator<Item = Member>) -> Books {
        let with_id = |member: Member| (member.process.id, member);
        Books {
            members: members.into_iter().map(with_id).collect(),
            ..Books::default()
        }
    }

    #[test]
    fn who_takes_new_requests_and_has_no_slot_yet_serves_if_it_will_have_one() {
        let draining = |member| Member {
            draining: true,
            ..member
        };
        let silent = |member| Member {
            silent: true,
            ..member
        };
        assert!(!books([]).serves(2));
        assert!(books([member(1, &[0, 1])]).serves(2));
        assert!(!books([silent(member(1, &[0, 1]))]).serves(2));
        assert!(!books([draining(member(1, &[0, 1]))]).serves(2));
        // The successor of one that finishes what it has, of one that does not answer, of one that is gone.
        assert!(books([draining(member(1, &[0, 1])), member(2, &[])]).serves(2));
        assert!(!books([silent(member(1, &[0, 1])), member(2, &[])]).serves(2));
        assert!(books([silent(member(1, &[0])), member(2, &[1])]).serves(2));
        let mut after = books([member(2, &[])]);
        assert!(after.serves(2));
        after.left_behind = 2;
        assert!(!after.serves(2));
    }

    #[test]
    fn a_slot_that_was_granted_has_its_time_to_be_opened() {
        let granted = Instant::now();
        let mut slow = member(1, &[0, 1]);
        slow.expected.insert(SlotId(1), granted);
        let books = books([slow]);
        let unopened = |after: u64, grace: u64| {
            let now = granted + Duration::from_secs(after);
            books.unopened(ProcessId(1), now, Duration::from_secs(grace))
        };
        assert_eq!(unopened(29, 30), None);
        assert_eq!(unopened(30, 30), Some(SlotId(1)));
        assert_eq!(unopened(4, 1), None);
        assert_eq!(unopened(5, 1), Some(SlotId(1)));
    }

    #[tokio::test]
    async fn a_slot_whose_task_panics_is_free_when_its_worker_has_closed_it() {
        let hub = hub(1);
        let member = member(1, &[0]);
        let process = Arc::clone(&member.process);
        *hub.books() = books([member]);
        let joined = Joined {
            hub: Arc::clone(&hub),
            process: Arc::clone(&process),
        };
        process.open.fetch_add(1, Relaxed);
        let (ours, theirs) = UnixStream::pair().expect("two sockets");
        let opened = Opened {
            hub: Arc::clone(&hub),
            process: Arc::clone(&process),
            slot: SlotId(0),
            retire: CancellationToken::new(),
            channel: Some(Channel::new(ours)),
        };
        let task = tokio::spawn(async move {
            let _opened = opened;
            panic!("for the test");
        });
        assert!(task.await.is_err_and(|error| error.is_panic()));
        assert!(process.gone.is_cancelled());
        drop(joined);
        assert_eq!(hub.books().left_behind, 1);
        assert_eq!(process.open.load(Relaxed), 1, "its thread may be there");

        drop(theirs);
        while hub.books().free.is_empty() {
            hub.changed().await;
        }
        assert_eq!(process.open.load(Relaxed), 0);
        assert_eq!(hub.books().left_behind, 0);
    }
}
