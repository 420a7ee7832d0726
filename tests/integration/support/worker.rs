//! A worker process that does what the test's scripts say, over its own reading of
//! `docs/protocol.md`.
//!
//! A script is the application code of one path: an async function of its [`Job`]. Jobs of one
//! slot come one at a time; what scripts do besides is their business. A worker dies when it is
//! dropped: every connection of it closes at once, as after SIGKILL.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::future::Future;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::frames::{Frame, Line, PREAMBLE, flag, kind};
use super::gate::Gate;
use super::gateway::Gateway;
use super::plan::{Plan, Results};
use super::within;

/// How a script ends: with its answer given, or cancelled by the gateway.
pub type Ended = Result<(), Cancelled>;

type Script = Arc<dyn Fn(Job) -> Pin<Box<dyn Future<Output = Ended> + Send>> + Send + Sync>;

/// What a script has run for it on a slot: told the number of the call.
type CallScript =
    Arc<dyn Fn(Job, u16) -> Pin<Box<dyn Future<Output = Ended> + Send>> + Send + Sync>;

/// The largest body of one ANSWER or BODY frame.
const CHUNK: usize = 256 << 10;

pub struct Builder {
    threads: u16,
    scripts: BTreeMap<String, Script>,
    calls: Option<CallScript>,
    retiring: Option<Gate>,
    /// Whether it says that it answers PING, and whether it does.
    pings: bool,
    mute: bool,
    /// It does nothing about a GRANT.
    idles: bool,
    /// What it answers when a person asks for stacks: none, if it does not say that it does; empty, if it does
    /// not.
    tells: Option<&'static str>,
}

/// A worker with so many threads. It answers `/ping` with `pong`, `/environ` with its environ as
/// JSON, and `/echo` with the request's body.
pub fn new(threads: u16) -> Builder {
    let builder = Builder {
        threads,
        scripts: BTreeMap::new(),
        calls: None,
        retiring: None,
        pings: false,
        mute: false,
        idles: false,
        tells: None,
    };
    builder
        .answers("/ping", "pong")
        .on("/environ", async |job| {
            let environ: serde_json::Map<_, _> = job
                .environ
                .iter()
                .map(|(name, value)| (name.clone(), Value::from(value.clone())))
                .collect();
            job.answer(200, Value::Object(environ).to_string()).await
        })
        .on("/echo", async |job| job.answer(200, &job.body).await)
}

impl Builder {
    /// What happens to requests for this path.
    pub fn on<F>(mut self, path: &str, script: impl Fn(Job) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let script: Script = Arc::new(move |job| Box::pin(script(job)));
        self.scripts.insert(path.to_owned(), script);
        self
    }

    /// What happens when a call is run. Its number is what the worker called for.
    pub fn runs<F>(mut self, script: impl Fn(Job, u16) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        self.calls = Some(Arc::new(move |job, number| Box::pin(script(job, number))));
        self
    }

    pub fn answers(self, path: &str, text: &'static str) -> Self {
        self.on(path, move |job| async move { job.answer(200, text).await })
    }

    /// Waits at the gate, in its slot, and answers `done`.
    pub fn waits(self, path: &str, gate: &Gate) -> Self {
        let gate = gate.clone();
        self.on(path, move |job| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                job.answer(200, "done").await
            }
        })
    }

    /// Parks with the plan and answers with the body of its first fetch.
    pub fn parks(self, path: &str, plan: Plan) -> Self {
        self.on(path, move |mut job| {
            let plan = plan.clone();
            async move {
                let results = job.park(&plan).await?;
                job.answer(200, results.text(0)).await
            }
        })
    }

    /// Parks to fetch this URL.
    pub fn fetches(self, path: &str, url: &str) -> Self {
        self.parks(path, Plan::get(url))
    }

    /// Answers with the results of the plan, as JSON.
    pub fn tells(self, path: &str, plan: Plan) -> Self {
        self.on(path, move |mut job| {
            let plan = plan.clone();
            async move {
                let results = job.park(&plan).await?;
                job.answer(200, results.json.to_string()).await
            }
        })
    }

    /// Waits in place with the plan and answers with the body of its first fetch.
    pub fn holds(self, path: &str, plan: Plan) -> Self {
        self.on(path, move |mut job| {
            let plan = plan.clone();
            async move {
                let results = job.hold(&plan).await?;
                job.answer(200, results.text(0)).await
            }
        })
    }

    /// Parks until its own process wants it, and answers `done`. Its voice is heard before it parks.
    pub fn parks_locally(self, path: &str, voices: &Voices) -> Self {
        self.parks_locally_with(path, voices, 0)
    }

    pub fn parks_locally_with(self, path: &str, voices: &Voices, flags: u8) -> Self {
        let voices = voices.clone();
        self.on(path, move |mut job| {
            let voices = voices.clone();
            async move {
                voices.hear(job.voice());
                job.park_local_with(flags).await?;
                job.answer(200, "done").await
            }
        })
    }

    /// Gives slots back only after the gate, as a thread does whose connection closes slowly.
    pub fn retires_at(mut self, gate: &Gate) -> Self {
        self.retiring = Some(gate.clone());
        self
    }

    /// Answers PING.
    pub fn pings(mut self) -> Self {
        self.pings = true;
        self
    }

    /// Says that it answers PING, and does not, as a process that is stopped.
    pub fn mute(mut self) -> Self {
        self.mute = true;
        self.pings()
    }

    /// Opens none of its slots.
    pub fn opens_nothing(mut self) -> Self {
        self.idles = true;
        self
    }

    /// Says that it tells stacks, and tells these; nothing, if they are empty.
    pub fn tells_stacks(mut self, stacks: &'static str) -> Self {
        self.tells = Some(stacks);
        self
    }

    /// A worker whose every slot is idle: as many as it has threads, or as the gateway has left.
    pub async fn run(self, gateway: &Gateway) -> Worker {
        let before = gateway.status().await;
        let count = u64::from(self.threads).min(before.lost);
        let worker = self.connect(gateway).await;
        gateway
            .until(&format!("{count} new idle slots"), |status| {
                status.idle >= before.idle + count
            })
            .await;
        worker
    }

    /// A worker that has been welcomed; slots come as the gateway grants them.
    pub async fn connect(self, gateway: &Gateway) -> Worker {
        let control = Line::connect(gateway.link()).await;
        let hello = json!({
            "pid": std::process::id(), "threads": self.threads, "mode": "coroutine",
            "app": "scripts", "version": "test", "token": "", "pings": self.pings,
            "stacks": self.tells.is_some(),
        });
        control.send_bytes(PREAMBLE).await;
        control
            .send(&Frame {
                head: hello.to_string().into_bytes(),
                ..Frame::new(kind::HELLO)
            })
            .await;
        let welcome = within("a WELCOME", control.frame()).await;
        let welcome = welcome.expect("the gateway answers a HELLO");
        assert_eq!(welcome.kind, kind::WELCOME);
        let welcome: Value = serde_json::from_slice(&welcome.head).expect("JSON");
        let shared = Arc::new(Shared {
            link: gateway.link().to_owned(),
            process: welcome["process"].as_u64().expect("a number"),
            key: welcome["key"].as_str().expect("a string").to_owned(),
            welcome,
            control,
            scripts: self.scripts,
            calls: self.calls,
            retiring: self.retiring,
            mute: self.mute,
            idles: self.idles,
            tells: self.tells,
            waiting: Mutex::default(),
            stops: Mutex::default(),
            seen: watch::Sender::default(),
            tasks: Mutex::default(),
        });
        shared.spawn(Arc::clone(&shared).control());
        Worker { shared }
    }
}

/// What has happened to a worker so far.
#[derive(Debug, Default)]
pub struct Seen {
    /// `METHOD target`, in the order in which they began.
    pub requests: Vec<String>,
    /// Types of all frames that the gateway has sent.
    pub frames: Vec<u8>,
    /// Slots whose connection is open now.
    pub open: BTreeSet<u16>,
    /// Calls in the order in which they began: their numbers.
    pub calls: Vec<u16>,
    /// Slots whose stacks the gateway has asked for, and why.
    pub stacks: Vec<(u16, String)>,
    /// Slots whose stacks people have asked for, and the number of the question.
    pub asked: Vec<(u16, u64)>,
    /// Jobs that run now, and the most that ever ran at once.
    pub running: usize,
    pub most: usize,
    /// Scripts that have ended because the gateway cancelled them.
    pub cancelled: usize,
    /// The control connection has ended.
    pub released: bool,
}

impl Seen {
    pub fn count(&self, kind: u8) -> usize {
        self.frames.iter().filter(|seen| **seen == kind).count()
    }
}

pub struct Worker {
    shared: Arc<Shared>,
}

struct Shared {
    link: PathBuf,
    process: u64,
    key: String,
    welcome: Value,
    control: Line,
    scripts: BTreeMap<String, Script>,
    calls: Option<CallScript>,
    retiring: Option<Gate>,
    mute: bool,
    idles: bool,
    tells: Option<&'static str>,
    /// Parked requests, by id, and held jobs, by id and slot.
    waiting: Mutex<Waiting>,
    /// Streams that can be stopped, by id.
    stops: Mutex<HashMap<u64, Arc<Notify>>>,
    seen: watch::Sender<Seen>,
    tasks: Mutex<JoinSet<()>>,
}

type Waiting = HashMap<(u64, Option<u16>), oneshot::Sender<Woken>>;

/// A job's way on: the frame that says how, and the slot that it came on.
struct Woken {
    place: Place,
    frame: Frame,
}

/// Where a job runs, and as what.
#[derive(Debug, Clone)]
struct Place {
    line: Arc<Line>,
    slot: u16,
    request: u64,
    epoch: u32,
}

impl Worker {
    /// What it was told when it arrived.
    pub fn welcome(&self) -> &Value {
        &self.shared.welcome
    }

    pub fn requests(&self) -> Vec<String> {
        self.shared.seen.borrow().requests.clone()
    }

    /// The numbers of the calls that have been run, in the order in which they began.
    pub fn calls(&self) -> Vec<u16> {
        self.shared.seen.borrow().calls.clone()
    }

    /// Slots whose stacks the gateway has asked for, and why.
    pub fn stacks(&self) -> Vec<(u16, String)> {
        self.shared.seen.borrow().stacks.clone()
    }

    /// Slots whose stacks people have asked for.
    pub fn asked(&self) -> Vec<u16> {
        let seen = self.shared.seen.borrow();
        seen.asked.iter().map(|(slot, _)| *slot).collect()
    }

    /// Types of all frames that the gateway has sent, in their order.
    pub fn frames(&self) -> Vec<u8> {
        self.shared.seen.borrow().frames.clone()
    }

    pub fn cancelled_now(&self) -> usize {
        self.shared.seen.borrow().cancelled
    }

    pub fn open_slots(&self) -> BTreeSet<u16> {
        self.shared.seen.borrow().open.clone()
    }

    /// The most jobs that ran at once.
    pub fn most(&self) -> usize {
        self.shared.seen.borrow().most
    }

    pub fn process(&self) -> u64 {
        self.shared.process
    }

    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// Waits until so much has happened.
    pub async fn until(&self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let mut seen = self.shared.seen.subscribe();
        let happened = seen.wait_for(|seen| enough(seen));
        within(what, happened).await.expect("we keep the sender");
    }

    /// Waits until so many requests have begun.
    pub async fn requests_begun(&self, count: usize) {
        self.until(&format!("{count} requests"), |seen| {
            seen.requests.len() >= count
        })
        .await;
    }

    /// Waits until so many requests have been ended by a CANCEL.
    pub async fn cancelled(&self, count: usize) {
        self.until(&format!("{count} cancelled requests"), |seen| {
            seen.cancelled >= count
        })
        .await;
    }

    /// Waits until the gateway has sent so many frames of this kind.
    pub async fn received(&self, kind: u8, count: usize) {
        self.until(&format!("{count} frames of type {kind:#04x}"), |seen| {
            seen.count(kind) >= count
        })
        .await;
    }

    /// Says something on the control connection.
    pub async fn say(&self, frame: &Frame) {
        self.shared.control.send(frame).await;
    }

    /// Closes the control connection alone.
    pub fn hang_up(&self) {
        self.shared.control.close();
    }

    /// Waits until the gateway has let it go.
    pub async fn released(&self) {
        self.until("the end of the control connection", |seen| seen.released)
            .await;
    }

    /// Every connection closes at once.
    pub async fn kill(self) {
        let mut tasks = std::mem::take(&mut *self.shared.tasks());
        tasks.shutdown().await;
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.shared.tasks().abort_all();
    }
}

impl Shared {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks().spawn(task);
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, JoinSet<()>> {
        self.tasks.lock().expect("nothing panics with it held")
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().expect("nothing panics with it held")
    }

    /// Who waits for this frame: the job that holds the slot, or the parked request.
    fn woken_by(&self, kind: u8, request: u64, slot: u16) -> oneshot::Sender<Woken> {
        let mut waiting = self.waiting();
        let held = match kind {
            kind::RESUME => None,
            _ => waiting.remove(&(request, Some(slot))),
        };
        let woken = held.or_else(|| waiting.remove(&(request, None)));
        woken.expect("only what waits is woken")
    }

    fn stops(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<Notify>>> {
        self.stops.lock().expect("nothing panics with it held")
    }

    async fn control(self: Arc<Self>) {
        while let Some(frame) = self.control.frame().await {
            self.seen.send_modify(|seen| seen.frames.push(frame.kind));
            match frame.kind {
                kind::GRANT if self.idles => {}
                kind::GRANT => self.spawn(Arc::clone(&self).slot(frame.aux)),
                kind::DRAIN => {}
                kind::PING if self.mute => {}
                kind::PING => {
                    self.control.send(&Frame::new(kind::PONG)).await;
                }
                kind::STACK if frame.request > 0 => {
                    self.seen
                        .send_modify(|seen| seen.asked.push((frame.aux, frame.request)));
                    let told = self.tells.expect("who does not tell is not asked");
                    if !told.is_empty() {
                        self.control
                            .send(&Frame {
                                aux: frame.aux,
                                request: frame.request,
                                head: told.as_bytes().to_vec(),
                                ..Frame::new(kind::TOLD)
                            })
                            .await;
                    }
                }
                kind::STACK => self.seen.send_modify(|seen| {
                    let why = String::from_utf8(frame.head).expect("one line of text");
                    assert!(!why.contains('\n'), "one line: {why:?}");
                    seen.stacks.push((frame.aux, why));
                }),
                other => panic!("type {other:#04x} on a control connection"),
            }
        }
        self.seen.send_modify(|seen| seen.released = true);
    }

    async fn slot(self: Arc<Self>, slot: u16) {
        let line = Arc::new(Line::connect(&self.link).await);
        let head = json!({ "process": self.process, "key": self.key });
        line.send_bytes(PREAMBLE).await;
        line.send(&Frame {
            aux: slot,
            head: head.to_string().into_bytes(),
            ..Frame::new(kind::SLOT)
        })
        .await;
        self.seen.send_modify(|seen| {
            assert!(seen.open.insert(slot), "slot {slot} was granted twice");
        });
        while let Some(frame) = line.frame().await {
            self.seen.send_modify(|seen| seen.frames.push(frame.kind));
            let place = Place {
                line: Arc::clone(&line),
                slot,
                request: frame.request,
                epoch: frame.epoch,
            };
            match frame.kind {
                kind::REQUEST => self.begin(place, frame),
                kind::RESUME | kind::RESULTS | kind::CANCEL => {
                    let waiting = self.woken_by(frame.kind, frame.request, slot);
                    // The script may have been given up by its test.
                    let _ = waiting.send(Woken { place, frame });
                }
                kind::RUN => self.run(place, frame.aux),
                kind::STOP => {
                    if let Some(stop) = self.stops().get(&frame.request) {
                        stop.notify_one();
                    }
                }
                kind::RETIRE => {
                    if let Some(gate) = &self.retiring {
                        gate.pass().await;
                    }
                    // Gone from here before the gateway can grant it anew.
                    self.seen.send_modify(|seen| {
                        seen.open.remove(&slot);
                    });
                    line.send(&Frame::new(kind::RETIRED)).await;
                    line.close();
                    return;
                }
                other => panic!("type {other:#04x} on a slot connection"),
            }
        }
        self.seen.send_modify(|seen| {
            seen.open.remove(&slot);
        });
    }

    fn begin(self: &Arc<Self>, place: Place, frame: Frame) {
        let environ = environ(&frame);
        let by_descriptor = frame.file.is_some();
        let lazy = frame.flags & flag::LAZY != 0;
        let body = frame.file.map_or(frame.body, |file| whole(&file.into()));
        let job = Job {
            shared: Arc::clone(self),
            place,
            environ,
            body,
            by_descriptor,
            lazy,
        };
        let target = job.environ("REQUEST_URI").to_owned();
        let line = format!("{} {target}", job.environ("REQUEST_METHOD"));
        self.seen.send_modify(|seen| seen.requests.push(line));
        let path = target.split('?').next().unwrap_or_default();
        let script = self.scripts.get(path).cloned();
        self.play(async move {
            match script {
                Some(script) => script(job).await,
                None => job.answer(404, "no script for this path").await,
            }
        });
    }

    fn run(self: &Arc<Self>, place: Place, number: u16) {
        let script = self.calls.clone();
        let script = script.expect("only a worker that calls is asked to run a call");
        let job = Job {
            shared: Arc::clone(self),
            place,
            environ: Vec::new(),
            body: Vec::new(),
            by_descriptor: false,
            lazy: false,
        };
        self.seen.send_modify(|seen| seen.calls.push(number));
        self.play(script(job, number));
    }

    /// Runs a script to its end.
    fn play(self: &Arc<Self>, script: impl Future<Output = Ended> + Send + 'static) {
        let shared = Arc::clone(self);
        self.runs(true);
        self.spawn(async move {
            if let Err(Cancelled(place)) = script.await {
                shared.runs(false);
                shared.seen.send_modify(|seen| seen.cancelled += 1);
                place.send(Frame::new(kind::READY)).await;
            }
        });
    }

    fn runs(&self, more: bool) {
        self.seen.send_modify(|seen| {
            if more {
                seen.running += 1;
                seen.most = seen.most.max(seen.running);
            } else {
                seen.running -= 1;
            }
        });
    }
}

fn environ(frame: &Frame) -> Vec<(String, String)> {
    let mut fields = frame.head.split(|byte| *byte == 0).map(|field| {
        let text: String = field.iter().map(|byte| char::from(*byte)).collect();
        text
    });
    let mut pairs = Vec::new();
    for _ in 0..frame.aux {
        let pair = fields.next().zip(fields.next());
        pairs.push(pair.expect("as many pairs as were announced"));
    }
    assert_eq!(fields.next().as_deref(), Some(""), "the last NUL");
    assert_eq!(fields.next(), None, "more pairs than were announced");
    pairs
}

fn whole(file: &File) -> Vec<u8> {
    let len = file.metadata().expect("a file").len();
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, 0).expect("it is all there");
    bytes
}

/// The gateway ended the request. The slot is given back when the script has ended.
#[derive(Debug)]
pub struct Cancelled(Place);

impl Place {
    async fn send(&self, frame: Frame) {
        let frame = Frame {
            request: self.request,
            epoch: self.epoch,
            ..frame
        };
        self.line.send(&frame).await;
    }
}

/// One request in the hands of its script.
pub struct Job {
    shared: Arc<Shared>,
    place: Place,
    pub environ: Vec<(String, String)>,
    pub body: Vec<u8>,
    pub by_descriptor: bool,
    /// The body is still with the client.
    pub lazy: bool,
}

impl Job {
    /// A variable of the environ; empty if it is not there.
    pub fn environ(&self, name: &str) -> &str {
        let pair = self.environ.iter().find(|(known, _)| known == name);
        pair.map_or("", |(_, value)| value)
    }

    /// The slot that it runs on now.
    pub fn slot(&self) -> u16 {
        self.place.slot
    }

    /// Parks, and goes on when the results are in, maybe in another slot.
    pub async fn park(&mut self, plan: &Plan) -> Result<Results, Cancelled> {
        self.park_with(plan, 0).await
    }

    pub async fn park_with(&mut self, plan: &Plan, flags: u8) -> Result<Results, Cancelled> {
        let woken = self.waits(None);
        self.shared.runs(false);
        self.send_plan(kind::PARK, flags, plan).await;
        let frame = self.resumed(woken).await;
        self.went_on(frame)
    }

    /// Parks until its own process wants it, and goes on.
    pub async fn park_local(&mut self) -> Result<(), Cancelled> {
        self.park_local_with(0).await
    }

    pub async fn park_local_with(&mut self, flags: u8) -> Result<(), Cancelled> {
        let woken = self.waits(None);
        self.shared.runs(false);
        self.send(kind::PARK, flag::LOCAL | flags, "").await;
        let frame = self.resumed(woken).await;
        if frame.kind == kind::CANCEL {
            return Err(Cancelled(self.place.clone()));
        }
        assert!(frame.head.is_empty() && frame.body.is_empty() && frame.file.is_none());
        Ok(())
    }

    async fn resumed(&mut self, woken: oneshot::Receiver<Woken>) -> Frame {
        let woken = woken.await.expect("the worker lives");
        self.shared.runs(true);
        assert_ne!(woken.frame.kind, kind::RESULTS, "this request is parked");
        assert_eq!(woken.place.epoch, self.place.epoch + 1, "jobs are counted");
        self.place = woken.place;
        woken.frame
    }

    /// Answers with another server's response; the slot is ready.
    pub async fn relay(&self, relay: &Value) -> Ended {
        self.shared.runs(false);
        self.send_relay(relay, flag::READY).await;
        Ok(())
    }

    /// The same, and waits to hear how it ended, maybe in another slot.
    pub async fn relay_to_its_end(&mut self, relay: &Value) -> Result<Relayed, Cancelled> {
        assert_eq!(relay["resume"], true, "else nothing comes");
        let woken = self.waits(None);
        self.shared.runs(false);
        self.send_relay(relay, flag::READY).await;
        let frame = self.resumed(woken).await;
        assert_eq!(frame.kind, kind::RESUME);
        let Results {
            mut json, bytes, ..
        } = self.went_on(frame)?;
        let json = json["relay"].take();
        let length = json["body"][1].as_u64().expect("a length");
        assert_eq!(
            (json["body"][0].as_u64(), bytes.len() as u64),
            (Some(0), length)
        );
        Ok(Relayed { json, bytes })
    }

    pub async fn send_relay(&self, relay: &Value, flags: u8) {
        let frame = Frame {
            flags,
            head: relay.to_string().into_bytes(),
            ..Frame::new(kind::RELAY)
        };
        self.place.send(frame).await;
    }

    /// Parks until the request's body is there.
    pub async fn park_for_body(&mut self) -> Result<(), Cancelled> {
        let woken = self.waits(None);
        self.shared.runs(false);
        self.send(kind::PARK, flag::LAZY, b"").await;
        let frame = self.resumed(woken).await;
        self.got_body(frame)
    }

    /// Waits in place until the request's body is there.
    pub async fn hold_for_body(&mut self) -> Result<(), Cancelled> {
        let woken = self.waits(Some(self.place.slot));
        let why = json!({ "hold": { "reason": "transaction", "source": "shop/views.py:3" } });
        let frame = Frame {
            flags: flag::LAZY,
            head: why.to_string().into_bytes(),
            ..Frame::new(kind::HOLD)
        };
        self.place.send(frame).await;
        let woken = woken.await.expect("the worker lives");
        assert_ne!(
            woken.frame.kind,
            kind::RESUME,
            "this request waits in place"
        );
        self.got_body(woken.frame)
    }

    fn got_body(&mut self, frame: Frame) -> Result<(), Cancelled> {
        if frame.kind == kind::CANCEL {
            return Err(Cancelled(self.place.clone()));
        }
        assert!(frame.head.is_empty(), "a body comes without results");
        self.by_descriptor = frame.file.is_some();
        self.body = frame.file.map_or(frame.body, |file| whole(&file.into()));
        Ok(())
    }

    /// Waits in place.
    pub async fn hold(&mut self, plan: &Plan) -> Result<Results, Cancelled> {
        self.hold_with(plan, 0).await
    }

    pub async fn hold_with(&mut self, plan: &Plan, flags: u8) -> Result<Results, Cancelled> {
        let woken = self.waits(Some(self.place.slot));
        self.send_plan(kind::HOLD, flags, plan).await;
        let woken = woken.await.expect("the worker lives");
        let before = (self.place.slot, self.place.epoch);
        assert_eq!((woken.place.slot, woken.place.epoch), before);
        assert_ne!(
            woken.frame.kind,
            kind::RESUME,
            "this request waits in place"
        );
        self.went_on(woken.frame)
    }

    /// Says that it waits in place for something in its own process.
    pub async fn hold_local(&self, reason: &str, source: &str) {
        let why = json!({ "hold": { "reason": reason, "source": source } });
        let frame = Frame {
            flags: flag::LOCAL,
            head: why.to_string().into_bytes(),
            ..Frame::new(kind::HOLD)
        };
        self.place.send(frame).await;
    }

    /// Registers before the gateway can know: it may answer at once. In its slot, or parked.
    fn waits(&self, slot: Option<u16>) -> oneshot::Receiver<Woken> {
        let (wake, woken) = oneshot::channel();
        let key = (self.place.request, slot);
        self.shared.waiting().insert(key, wake);
        woken
    }

    /// What its process can ask for it, from anywhere, while it is at this epoch.
    pub fn voice(&self) -> Voice {
        Voice {
            shared: Arc::clone(&self.shared),
            request: self.place.request,
            epoch: self.place.epoch,
        }
    }

    async fn send_plan(&self, kind: u8, flags: u8, plan: &Plan) {
        let frame = Frame {
            flags,
            head: plan.json.to_string().into_bytes(),
            body: plan.bodies.clone(),
            ..Frame::new(kind)
        };
        self.place.send(frame).await;
    }

    fn went_on(&self, frame: Frame) -> Result<Results, Cancelled> {
        if frame.kind == kind::CANCEL {
            return Err(Cancelled(self.place.clone()));
        }
        Ok(Results {
            json: serde_json::from_slice(&frame.head).expect("results are JSON"),
            by_descriptor: frame.file.is_some(),
            bytes: frame.file.map_or(frame.body, |file| whole(&file.into())),
        })
    }

    /// A text, and the slot is ready.
    pub async fn answer(&self, status: u16, body: impl AsRef<[u8]>) -> Ended {
        let answer = Answer::new(status).header("Content-Type", "text/plain");
        self.respond(answer.body(body)).await
    }

    /// A whole answer, and the slot is ready.
    pub async fn respond(&self, answer: Answer) -> Ended {
        self.shared.runs(false);
        let mut chunks = answer.body.chunks(CHUNK).peekable();
        let first = chunks.next().unwrap_or_default();
        let last = |more: bool| if more { flag::MORE } else { flag::READY };
        let mut frame = answer.head();
        frame.flags = last(chunks.peek().is_some());
        frame.body = first.to_vec();
        self.place.send(frame).await;
        while let Some(chunk) = chunks.next() {
            self.place
                .send(Frame {
                    flags: last(chunks.peek().is_some()),
                    body: chunk.to_vec(),
                    ..Frame::new(kind::BODY)
                })
                .await;
        }
        Ok(())
    }

    /// A part of a file as the answer, and the slot is ready.
    pub async fn respond_with(&self, answer: Answer, file: impl AsFd, part: [u64; 2]) -> Ended {
        self.shared.runs(false);
        let frame = Frame {
            flags: flag::FD | flag::READY,
            body: part.map(u64::to_be_bytes).concat(),
            ..answer.head()
        };
        self.send_raw_with(frame, file).await;
        Ok(())
    }

    /// Any frame for this job, with a descriptor.
    pub async fn send_raw_with(&self, frame: Frame, file: impl AsFd) {
        let (request, epoch) = self.tag();
        let frame = Frame {
            request,
            epoch,
            ..frame
        };
        self.place.line.send_with(&frame, file.as_fd()).await;
    }

    /// A whole answer, in one frame; something is left to do before the slot is ready.
    pub async fn say(&self, answer: Answer) {
        let mut frame = answer.head();
        frame.body = answer.body;
        self.place.send(frame).await;
    }

    /// The head and first part of an answer that goes on.
    pub async fn begin(&self, answer: Answer) {
        let mut frame = answer.head();
        frame.flags = flag::MORE;
        frame.body = answer.body;
        self.place.send(frame).await;
    }

    /// Another part.
    pub async fn more(&self, part: impl AsRef<[u8]>) {
        self.send(kind::BODY, flag::MORE, part).await;
    }

    /// The last part, and the slot is ready.
    pub async fn end(&self, part: impl AsRef<[u8]>) -> Ended {
        self.shared.runs(false);
        self.send(kind::BODY, flag::READY, part).await;
        Ok(())
    }

    /// The answer ends unfinished, and the slot is ready.
    pub async fn broken(&self) -> Ended {
        self.shared.runs(false);
        self.send(kind::BODY, flag::BROKEN | flag::READY, b"").await;
        Ok(())
    }

    /// The slot is ready, after an answer that did not say so.
    pub async fn ready(&self) -> Ended {
        self.shared.runs(false);
        self.send(kind::READY, 0, b"").await;
        Ok(())
    }

    /// A frame without a head, for this job.
    pub async fn send(&self, kind: u8, flags: u8, body: impl AsRef<[u8]>) {
        let frame = Frame {
            flags,
            body: body.as_ref().to_vec(),
            ..Frame::new(kind)
        };
        self.place.send(frame).await;
    }

    /// Any frame, as it is.
    pub async fn send_raw(&self, frame: &Frame) {
        self.place.line.send(frame).await;
    }

    /// Closes the connection of the slot that it runs on.
    pub fn hang_up(&self) {
        self.place.line.close();
    }

    pub fn tag(&self) -> (u64, u32) {
        (self.place.request, self.place.epoch)
    }

    /// Resolves when the gateway has said STOP. Ask for it before the answer begins.
    pub fn stop(&self) -> Arc<Notify> {
        let stop = Arc::new(Notify::new());
        self.shared
            .stops()
            .insert(self.place.request, Arc::clone(&stop));
        stop
    }
}

/// How a relay ended.
#[derive(Debug)]
pub struct Relayed {
    pub json: Value,
    pub bytes: Vec<u8>,
}

/// The way to ask the gateway on behalf of a request that is parked `LOCAL`, or soon will be.
#[derive(Clone)]
pub struct Voice {
    shared: Arc<Shared>,
    request: u64,
    epoch: u32,
}

impl Voice {
    /// It can go on.
    pub async fn want(&self) {
        self.say(kind::WANT, 0).await;
    }

    /// It wants a slot to run something on.
    pub async fn call(&self, number: u16) {
        self.say(kind::CALL, number).await;
    }

    /// The same, of another job.
    pub fn at(&self, request: u64, epoch: u32) -> Self {
        let shared = Arc::clone(&self.shared);
        Self {
            shared,
            request,
            epoch,
        }
    }

    pub fn tag(&self) -> (u64, u32) {
        (self.request, self.epoch)
    }

    async fn say(&self, kind: u8, aux: u16) {
        let frame = Frame {
            aux,
            request: self.request,
            epoch: self.epoch,
            ..Frame::new(kind)
        };
        self.shared.control.send(&frame).await;
    }
}

/// Where scripts say how they can be asked for.
#[derive(Clone)]
pub struct Voices {
    heard: mpsc::UnboundedSender<Voice>,
    next: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Voice>>>,
}

impl Voices {
    pub fn new() -> Self {
        let (heard, next) = mpsc::unbounded_channel();
        Self {
            heard,
            next: Arc::new(tokio::sync::Mutex::new(next)),
        }
    }

    /// The script's side.
    pub fn hear(&self, voice: Voice) {
        self.heard.send(voice).expect("we keep the receiver");
    }

    /// That of the next request that has begun.
    pub async fn next(&self) -> Voice {
        let mut next = self.next.lock().await;
        let voice = within("a request that parks locally", next.recv()).await;
        voice.expect("we keep the sender")
    }
}

/// An answer to be.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    reason: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub fn new(status: u16) -> Self {
        Self {
            status,
            reason: String::new(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    pub fn reason(mut self, reason: &str) -> Self {
        reason.clone_into(&mut self.reason);
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    /// An ANSWER without its body.
    pub fn head(&self) -> Frame {
        let mut head = self.reason.clone().into_bytes();
        head.push(0);
        for (name, value) in &self.headers {
            for field in [name, value] {
                head.extend(field.chars().map(|c| u8::try_from(c).expect("ISO-8859-1")));
                head.push(0);
            }
        }
        Frame {
            aux: self.status,
            head,
            ..Frame::new(kind::ANSWER)
        }
    }
}
