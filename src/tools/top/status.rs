//! What a gateway says of itself: `/api/status` and `/metrics`, as far as they are shown.
//!
//! Whatever a gateway of another version does not say is empty here, and what it says besides is left.
//! Texts that come from clients are made harmless: a path may be written to move cursors and paint screens.

use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use serde::{Deserialize, Deserializer};

use crate::tools::metrics::{Readings, ask, not_ours};

/// What there was at one moment.
#[derive(Debug, Clone)]
pub struct Reading {
    pub at: Instant,
    pub status: Status,
    pub metrics: Readings,
}

impl Reading {
    /// # Errors
    /// When nobody answers there, or somebody else.
    pub fn take(admin: SocketAddr) -> io::Result<Self> {
        let (code, page) = ask(admin, "/api/status")?;
        let status = serde_json::from_str(&page).map_err(|_| not_ours())?;
        if code != 200 {
            return Err(not_ours());
        }
        Ok(Self {
            at: Instant::now(),
            status,
            metrics: Readings::take(admin)?,
        })
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub version: Shown,
    pub uptime_seconds: f64,
    pub ready: bool,
    pub not_ready_because: Option<Shown>,
    pub slots: Slots,
    pub queue: Level,
    pub parked: Parked,
    pub upstreams: Vec<Upstream>,
    pub processes: Vec<Process>,
    pub waits_in_place: Vec<Wait>,
    pub slow_requests: Vec<Slow>,
    pub history: History,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Slots {
    pub count: u32,
    pub idle: u32,
    pub busy: u32,
    pub lost: u32,
    pub list: Vec<Slot>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Slot {
    pub slot: u32,
    pub process: Option<u32>,
    pub state: Shown,
    pub job: Option<Job>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    pub request_id: Shown,
    pub method: Shown,
    pub path: Shown,
    pub route: Option<Shown>,
    pub phase: Shown,
    pub seconds: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Level {
    pub length: u64,
    pub limit: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Parked {
    pub requests: u64,
    pub limit: u64,
    pub waits_for: Vec<WaitsFor>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct WaitsFor {
    pub what: Shown,
    pub origin: Option<Shown>,
    pub requests: u64,
    pub longest_seconds: f64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Upstream {
    pub upstream: Shown,
    pub up: bool,
    pub connections: u32,
    pub busy: u32,
    pub queued: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Process {
    pub process: u32,
    pub pid: u32,
    pub mode: Shown,
    pub threads: u32,
    pub state: Shown,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Wait {
    pub reason: Shown,
    pub source: Shown,
    pub count: u64,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Slow {
    pub request_id: Shown,
    pub method: Shown,
    pub path: Shown,
    pub status: u16,
    pub why: Option<Shown>,
    pub ended_seconds_ago: f64,
    pub seconds: f64,
    pub whole_seconds: f64,
    pub phases: Vec<Phase>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Phase {
    pub phase: Shown,
    pub seconds: f64,
}

/// The last minutes, in samples.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct History {
    pub sample_seconds: f64,
    pub requests_per_second: Vec<f64>,
    pub errors_per_second: Vec<f64>,
    pub p50_seconds: Vec<Option<f64>>,
    pub p95_seconds: Vec<Option<f64>>,
    pub p99_seconds: Vec<Option<f64>>,
}

/// A text that does nothing to a terminal but stand there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Shown {
    fn from(text: &str) -> Self {
        // Controls, and what turns the direction of writing round.
        let unseen = |c: char| {
            c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
        };
        let harmless = |c| if unseen(c) { '\u{b7}' } else { c };
        Self(text.chars().map(harmless).collect())
    }
}

impl<'de> Deserialize<'de> for Shown {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Ok(Self::from(&*text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_of_another_version_is_read_as_far_as_it_goes() {
        let text =
            r#"{"version": "9", "slots": {"count": 2, "list": [{"slot": 1}]}, "of_tomorrow": 1}"#;
        let status: Status = serde_json::from_str(text).expect("it is read");
        assert_eq!((status.slots.count, status.slots.list[0].slot), (2, 1));
        assert!(status.slots.list[0].job.is_none());
    }

    #[test]
    fn no_text_of_a_client_reaches_the_terminal_as_a_command() {
        let status: Status = serde_json::from_str(
            r#"{"slots": {"list": [{"job": {"path": "/\u001b[2J\u009b1m\u202egnp.\r\n"}}]}}"#,
        )
        .expect("it is read");
        let job = status.slots.list[0].job.as_ref().expect("it has one");
        assert_eq!(job.path.as_str(), "/·[2J·1m·gnp.··");
    }
}
