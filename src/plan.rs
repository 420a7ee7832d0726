//! Plans and results: what a worker hands over when it parks, and what it gets back.
//!
//! A plan is the same thing whatever way a slot is driven. This module is data and its
//! JSON form (`docs/protocol.md`); running a plan is the business of `outbound`.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

/// What a request waits for: a gather at the root, things side by side below it.
#[derive(Debug, Clone)]
pub struct Plan {
    pub root: Gather,
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
