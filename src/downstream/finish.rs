//! The end of a request: counted, timed and told once, however it comes.
//!
//! [`Finish`] travels with the request and then with the body of its answer. It is dropped with the
//! last byte, or with the connection, whichever is first.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::{Method, StatusCode};

use super::access_log::{AccessLog, Ended, Head, Style};
use super::watch::Watch;
use crate::metrics::Metrics;
use crate::recent::{self, Recent};
use crate::record::{Record, Stage};
use crate::spans;

/// nginx's word for a client that closed before it was answered.
const CLIENT_CLOSED: u16 = 499;

pub struct Finish {
    metrics: Metrics,
    recent: Recent,
    watch: Arc<Watch>,
    method: Method,
    /// None until it is known to be in order.
    target: Option<Arc<str>>,
    record: Arc<Record>,
    arrived: Instant,
    /// None until there is an answer.
    status: Option<StatusCode>,
    /// Why it is not the application's answer.
    why: Option<&'static str>,
    /// Bytes of the answer's body that the connection took.
    sent: u64,
    /// The connection took all of the answer.
    whole: bool,
    /// None if there is no access log.
    entry: Option<Box<Entry>>,
}

/// What the access log will tell, as far as it is known from the start.
pub struct Entry {
    pub log: AccessLog,
    pub style: Style,
    pub head: Head,
    pub arrived: SystemTime,
}

impl Finish {
    pub fn new(
        metrics: Metrics,
        recent: Recent,
        watch: Arc<Watch>,
        method: Method,
        record: Arc<Record>,
        arrived: Instant,
        entry: Option<Box<Entry>>,
    ) -> Self {
        watch.begun();
        Self {
            metrics,
            recent,
            watch,
            method,
            target: None,
            record,
            arrived,
            status: None,
            why: None,
            sent: 0,
            whole: false,
            entry,
        }
    }

    /// It is for the application, and asks for this.
    pub fn asks(&mut self, target: &Arc<str>) {
        self.target = Some(Arc::clone(target));
    }

    /// The application's answer is not to be had, for this reason.
    pub fn failed(&mut self, why: &'static str) {
        self.why = Some(why);
    }

    /// The head of the answer is on its way; `bodiless` if nothing follows it.
    pub fn answered(&mut self, status: StatusCode, bodiless: bool) {
        self.status = Some(status);
        self.whole = bodiless;
        self.record.enters(Stage::Answer);
        self.watch.sends();
    }

    /// The connection took so much more of the body.
    pub fn sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// The connection took the end of the body.
    pub fn whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Finish {
    fn drop(&mut self) {
        let now = Instant::now();
        let status = self.status.map(|status| status.as_u16());
        let (at, why) = (now, self.why);
        self.record
            .tell(|told| told.ended(spans::Ended { at, status, why }));
        let status = status.unwrap_or(CLIENT_CLOSED);
        let elapsed = now.saturating_duration_since(self.arrived);
        self.metrics.request_ended(&self.method, status, elapsed);
        let course = self.record.course(now);
        for (stage, spent) in course.spent() {
            self.metrics.request_phase(stage, spent);
        }
        self.recent.ended(&recent::Ended {
            method: &self.method,
            target: self.target.as_deref(),
            record: &self.record,
            course,
            at: now,
            seconds: elapsed,
            status,
            why: self.why,
        });
        tracing::debug!(
            request = %self.record.id, method = %self.method, status, elapsed = ?elapsed, "request ended"
        );
        if let Some(entry) = &self.entry {
            let ended = Ended {
                head: &entry.head,
                record: &self.record,
                course,
                arrived: entry.arrived,
                seconds: elapsed,
                status,
                sent: self.sent,
                whole: self.whole,
                why: self.why,
            };
            entry.log.add(entry.style, &ended);
        }
        self.watch.idles();
    }
}
