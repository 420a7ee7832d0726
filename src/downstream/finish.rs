//! The end of a request: counted and timed once, however it comes.
//!
//! [`Finish`] travels with the request and then with the body of its answer. It is dropped with the
//! last byte, or with the connection, whichever is first.

use std::sync::Arc;
use std::time::Instant;

use http::{Method, StatusCode};

use super::watch::Watch;
use crate::metrics::Metrics;
use crate::record::{Record, Stage};

/// nginx's word for a client that closed before it was answered.
const CLIENT_CLOSED: u16 = 499;

pub struct Finish {
    metrics: Metrics,
    watch: Arc<Watch>,
    method: Method,
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
}

impl Finish {
    pub fn new(
        metrics: Metrics,
        watch: Arc<Watch>,
        method: Method,
        record: Arc<Record>,
        arrived: Instant,
    ) -> Self {
        watch.begun();
        Self {
            metrics,
            watch,
            method,
            record,
            arrived,
            status: None,
            why: None,
            sent: 0,
            whole: false,
        }
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
        let status = self.status.map_or(CLIENT_CLOSED, |status| status.as_u16());
        let elapsed = now.saturating_duration_since(self.arrived);
        self.metrics.request_ended(&self.method, status, elapsed);
        tracing::debug!(
            request = %self.record.id, method = %self.method, status, elapsed = ?elapsed,
            sent = self.sent, whole = self.whole, why = self.why, "request ended"
        );
        self.watch.idles();
    }
}
