//! What the admin listener asks of the gateway, and the shape of `/api/status`.
//!
//! Nothing in here may hold a secret: paths come without their query strings.

use std::time::Instant;

use futures_util::future::BoxFuture;
use serde::Serialize;

use crate::recent::{Levels, Quantiles, Recent, SAMPLE, Sample, ShownPath, Slow};
use crate::record::Stay;
use crate::workers::link::{NoStacks, Stacks};

/// The gateway, as far as the admin listener can see. Both questions are asked on the
/// admin thread at any moment and must be answered at once: they may take a short lock,
/// never wait for a slot, a worker or the request runtime.
pub trait Board: Send + Sync + 'static {
    fn readiness(&self) -> Readiness;
    fn status(&self) -> Status;
    /// The few numbers of the status that are kept for the plots.
    fn levels(&self) -> Levels;
    /// What the thread of a busy slot does. None if its worker dies while it is asked; how long the answer is
    /// waited for is up to who asks.
    ///
    /// # Errors
    /// When there is nobody to be asked.
    fn stacks(&self, slot: u16) -> Result<BoxFuture<'static, Option<Stacks>>, NoStacks>;
}

/// Whether a balancer should send requests here. A saturated gateway is ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Why not, in words for a person: `no worker has connected yet`.
    NotReady(String),
}

/// The state of the gateway at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub draining: bool,
    pub slots: Slots,
    pub queue: Queue,
    pub parked: Parked,
    /// HTTP upstreams, that of the whole gateway first.
    pub upstreams: Vec<Upstream>,
    pub processes: Vec<Process>,
    pub waits_in_place: Vec<WaitsInPlace>,
}

/// `idle + busy + lost = count`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slots {
    pub count: u16,
    pub idle: u16,
    pub busy: u16,
    pub lost: u16,
    pub list: Vec<Slot>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Slot {
    pub slot: u16,
    /// Number of the worker process that has it now.
    pub process: Option<u32>,
    pub state: SlotState,
    /// What it works on.
    pub job: Option<Job>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SlotState {
    Idle,
    Busy,
    Lost,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Job {
    /// The request's number on the link.
    pub request: u64,
    /// Its id, as in logs and answers.
    pub request_id: String,
    pub method: String,
    pub path: ShownPath,
    /// The path of the `[[route]]` whose rules it goes by.
    pub route: Option<String>,
    /// `run`, `wait_in_place`, `answer`, `call` or `unwind`.
    pub phase: &'static str,
    /// How long the slot has been at it.
    pub seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Queue {
    pub length: usize,
    pub limit: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Parked {
    pub requests: usize,
    /// How many requests may be running or parked.
    pub limit: usize,
    /// What they wait for, what most wait for first.
    pub waits_for: Vec<WaitsFor>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitsFor {
    /// `origin`, `time`, `body` or `process`.
    pub what: &'static str,
    /// Its host.
    pub origin: Option<String>,
    pub requests: usize,
    pub longest_seconds: f64,
}

/// An HTTP upstream. `idle + busy + lost = connections`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Upstream {
    /// As the configuration has it.
    pub upstream: String,
    /// It accepts connections, as far as is known.
    pub up: bool,
    /// Requests that it may have at once.
    pub connections: u16,
    pub idle: u16,
    pub busy: u16,
    pub lost: u16,
    /// Requests that wait for one.
    pub queued: usize,
    /// Requests that wait for a plan, and hold none.
    pub parked: usize,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Process {
    pub process: u32,
    pub pid: u32,
    pub mode: String,
    pub threads: u16,
    /// `starting`, `ready`, `draining`, …: the word that the log uses.
    pub state: &'static str,
}

/// The last minutes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// What each sample is of. The last one ended less than that ago.
    pub sample_seconds: f64,
    pub requests_per_second: Vec<f64>,
    pub errors_per_second: Vec<f64>,
    /// None where no request ended.
    pub p50_seconds: Vec<Option<f64>>,
    pub p95_seconds: Vec<Option<f64>>,
    pub p99_seconds: Vec<Option<f64>>,
    pub busy: Vec<usize>,
    pub queued: Vec<usize>,
    pub parked: Vec<usize>,
}

/// One of the slowest requests of the last minutes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlowRequest {
    pub request_id: String,
    pub method: String,
    pub path: ShownPath,
    pub route: Option<String>,
    pub status: u16,
    /// Why the answer is not the application's.
    pub why: Option<&'static str>,
    pub ended_seconds_ago: f64,
    /// Until its answer began, without what its client took to send the body.
    pub seconds: f64,
    /// Until the last byte of the answer.
    pub whole_seconds: f64,
    pub parks: u32,
    pub slot: Option<u16>,
    pub pid: Option<u32>,
    /// One after the other; the first ones, if there were many.
    pub phases: Vec<Phase>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// As in the access log.
    pub phase: &'static str,
    /// Since the request's arrival.
    pub begins: f64,
    pub seconds: f64,
}

/// How often one place in the application waited instead of parking.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitsInPlace {
    pub reason: &'static str,
    /// `shop/views.py:88`
    pub source: String,
    pub count: u64,
}

impl History {
    pub fn of(recent: &Recent) -> Self {
        let samples = recent.samples();
        // A number takes as many digits as somebody can read.
        let rounded = |number: f64| (number * 1e4).round() / 1e4;
        let rates = |rate: fn(&Sample) -> f64| samples.iter().map(rate).map(rounded).collect();
        let levels = |level: fn(&Levels) -> usize| {
            let levels = samples.iter().map(|sample| &sample.levels);
            levels.map(level).collect()
        };
        let seconds = |quantile: fn(&Quantiles) -> f64| {
            let latencies = samples.iter().map(|sample| sample.latency.as_ref());
            latencies.map(|it| it.map(quantile).map(rounded)).collect()
        };
        Self {
            sample_seconds: SAMPLE.as_secs_f64(),
            requests_per_second: rates(|sample| sample.requests_per_second),
            errors_per_second: rates(|sample| sample.errors_per_second),
            p50_seconds: seconds(|latency| latency.p50),
            p95_seconds: seconds(|latency| latency.p95),
            p99_seconds: seconds(|latency| latency.p99),
            busy: levels(|levels| levels.busy),
            queued: levels(|levels| levels.queued),
            parked: levels(|levels| levels.parked),
        }
    }
}

impl SlowRequest {
    pub fn of(slow: Slow, now: Instant) -> Self {
        let phase = |stay: &Stay| Phase {
            phase: stay.stage.as_str(),
            begins: stay.begins.as_secs_f64(),
            seconds: stay.lasts.as_secs_f64(),
        };
        let (slot, pid) = slow.course.slot.unzip();
        Self {
            request_id: slow.request_id,
            method: slow.method.to_string(),
            path: slow.path,
            route: slow.route.map(|route| route.to_string()),
            status: slow.status,
            why: slow.why,
            ended_seconds_ago: now.saturating_duration_since(slow.ended).as_secs_f64(),
            seconds: slow.to_answer.as_secs_f64(),
            whole_seconds: slow.whole.as_secs_f64(),
            parks: slow.course.parks,
            slot: slot.map(|slot| slot.0),
            // Not known of HTTP servers.
            pid: pid.filter(|pid| *pid > 0),
            phases: slow.stays.iter().map(phase).collect(),
        }
    }
}
