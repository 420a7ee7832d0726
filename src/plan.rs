//! Plans and results: what a worker hands over when it parks, and what it gets back.
//!
//! A plan is the same thing whatever way a slot is driven. This module is data and its
//! JSON form (`docs/protocol.md`); running a plan is the business of `outbound`.

use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode};
use bytes::Bytes;

mod decode;
mod encode;
pub mod http;

pub use decode::{PlanError, decode, decode_hold, decode_relay};
pub use encode::{encode, encode_captured};

pub use crate::metrics::WaitReason;
use crate::spans::{FetchSpan, Marker};

/// What a request waits for: a gather at the root, things side by side below it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub root: Gather,
    /// Why the slot waits in place; none if the request parks.
    pub hold: Option<Hold>,
}

/// Why a worker keeps its slot while its plan runs, and where in the application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    pub reason: WaitReason,
    /// `file:line`, for the log. From the worker: not a metric label.
    pub source: String,
}

#[derive(Debug, Clone)]
pub struct Gather {
    pub things: Vec<Thing>,
    pub join: Join,
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone)]
pub enum Thing {
    Fetch(Fetch),
    Sleep(Duration),
    Gather(Gather),
    /// Ended before this plan; true if it counts as ok.
    Done(bool),
}

/// Which things a gather waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    All,
    /// The first to end.
    Any,
    /// The first response with status 2xx.
    FirstOk,
    /// The first n to end.
    Count(usize),
}

/// One HTTP exchange with an origin. The URL is as the worker gave it: not yet vetted.
#[derive(Debug, Clone)]
pub struct Fetch {
    pub method: Method,
    pub url: String,
    pub headers: HeaderMap,
    pub timeout: Option<Duration>,
    pub follow: bool,
    pub body: Option<Bytes>,
    /// None if its request is not traced.
    pub span: Option<Box<FetchSpan>>,
}

/// A fetch whose response is the client's answer, passed on as it comes.
#[derive(Debug)]
pub struct Relay {
    pub fetch: Fetch,
    /// In place of the response's of the same names.
    pub headers: HeaderMap,
    /// So much of the response is kept for the worker.
    pub capture: usize,
    /// The worker wants to know how it ended.
    pub resume: bool,
}

/// What a worker learns of a relay that is over.
#[derive(Debug)]
pub struct Captured {
    /// None if there was no response.
    pub status: Option<StatusCode>,
    /// The beginning of the response, or all of it.
    pub body: Bytes,
    /// There was more.
    pub truncated: bool,
    pub ended: Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Complete,
    ClientGone,
    OriginFailed,
}

/// What became of a thing. The results of a plan have the shape of the plan.
#[derive(Debug)]
pub enum Outcome {
    Response(Response),
    Failed(Failure),
    Slept(Duration),
    Gathered(Vec<Outcome>),
    Done(bool),
    NotNeeded,
}

#[derive(Debug)]
pub struct Response {
    pub status: StatusCode,
    pub url: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub elapsed: Duration,
    pub redirects: u32,
}

/// Why a fetch has no response. `url` and `message` have their secrets masked.
#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    pub phase: Phase,
    pub message: String,
    pub url: String,
    pub elapsed: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    Connect,
    Timeout,
    Refused,
    TooLarge,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Url,
    Dns,
    Connect,
    Send,
    Head,
    Body,
    Redirect,
    Join,
}

impl Plan {
    /// Has every fetch say whose trace it is part of, unless it says so itself.
    pub fn mark(&mut self, marker: &Marker<'_>) {
        self.root.mark(marker);
    }
}

impl Gather {
    fn mark(&mut self, marker: &Marker<'_>) {
        for thing in &mut self.things {
            match thing {
                Thing::Fetch(fetch) => marker.mark(fetch),
                Thing::Gather(gather) => gather.mark(marker),
                Thing::Sleep(_) | Thing::Done(_) => {}
            }
        }
    }
}

impl Fetch {
    /// Aborting a safe fetch changes nothing at its origin (RFC 9110, 9.2.1). Everything
    /// that is not known to be safe may have moved money half-way: it runs out.
    pub fn is_safe(&self) -> bool {
        self.method.is_safe()
    }
}

impl Outcome {
    /// The same, with every response in it turned into this failure.
    #[must_use]
    pub fn without_response(self, kind: FailureKind, phase: Phase, message: &str) -> Self {
        match self {
            Self::Response(response) => Self::Failed(Failure {
                kind,
                phase,
                message: message.to_owned(),
                url: without_secrets(&response.url),
                elapsed: response.elapsed,
            }),
            Self::Gathered(outcomes) => {
                let outcomes = outcomes.into_iter();
                let failed = |outcome: Self| outcome.without_response(kind, phase, message);
                Self::Gathered(outcomes.map(failed).collect())
            }
            other => other,
        }
    }
}

/// Scheme, host and path: where secrets are not.
pub fn without_secrets(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let shown = &url[..end];
    if shown.contains('@') {
        "***".to_owned()
    } else {
        shown.to_owned()
    }
}

impl FailureKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Timeout => "timeout",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
        }
    }
}

impl Captured {
    /// Of a relay that brought nothing.
    pub fn nothing(ended: Ended) -> Self {
        Self {
            status: None,
            body: Bytes::new(),
            truncated: false,
            ended,
        }
    }
}

impl Ended {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientGone => "client_gone",
            Self::OriginFailed => "origin_failed",
        }
    }
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Head => "head",
            Self::Body => "body",
            Self::Redirect => "redirect",
            Self::Join => "join",
        }
    }
}
