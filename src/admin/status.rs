//! What the admin listener asks of the gateway, and the shape of `/api/status`.
//!
//! Nothing in here may hold a secret: paths come without their query strings.

use std::fmt;

use serde::Serialize;

/// Longest path that is shown; the rest is cut off.
const SHOWN_PATH: usize = 200;

/// The gateway, as far as the admin listener can see. Both questions are asked on the
/// admin thread at any moment and must be answered at once: they may take a short lock,
/// never wait for a slot, a worker or the request runtime.
pub trait Board: Send + Sync + 'static {
    fn readiness(&self) -> Readiness;
    fn status(&self) -> Status;
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
    /// Busy, and its request waits for fetches without parking.
    WaitingInPlace,
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
    /// How long the slot has been at it.
    pub seconds: f64,
}

/// The path of a request target, fit to be shown: no query, and not arbitrarily long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ShownPath(String);

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

/// How often one place in the application waited instead of parking.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WaitsInPlace {
    pub reason: &'static str,
    /// `shop/views.py:88`
    pub source: String,
    pub count: u64,
}

impl ShownPath {
    pub fn new(target: &str) -> Self {
        let path = target.split(['?', '#']).next().unwrap_or_default();
        Self(path.chars().take(SHOWN_PATH).collect())
    }
}

impl fmt::Display for ShownPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_path_has_no_query_and_an_end() {
        assert_eq!(ShownPath::new("/a/b?token=s3cret").to_string(), "/a/b");
        assert_eq!(ShownPath::new("/a#token=s3cret").to_string(), "/a");
        let long = format!("/{}", "é".repeat(5000));
        assert_eq!(ShownPath::new(&long).to_string().chars().count(), 200);
    }
}
