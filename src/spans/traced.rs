//! One request's spans: the request itself, and where it was from its first byte to its last.
//!
//! The request's stages follow each other, each a child of the request. Waits in place lie in their step,
//! calls and fetches in whatever the request does meanwhile. A step that goes on after the answer, or after
//! the client, ends when its slot is free: so the last span of a request may end after the request.

use std::net::IpAddr;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderValue, Method, Version, header};

use super::fetch::Origin;
use super::{Clock, Span, Tracer, What, beginning, fresh, text};
use crate::message::{Client, Scheme};
use crate::record::Stage;
use crate::slots::SlotId;
use crate::trace::Trace;

/// Spans of one request that are kept back until it is over. An answer may be made for hours.
const KEPT: usize = 64;

/// Bytes that are told of what clients may make as long as they like.
const LONGEST: usize = 1024;

pub struct Traced {
    tracer: Tracer,
    clock: Clock,
    trace: [u8; 16],
    /// Of the request, and the span that it came with.
    id: u64,
    parent: u64,
    state: Option<HeaderValue>,
    begun: Instant,
    /// None before it is known, and once it has been told.
    request: Option<Box<Request>>,
    stage: Option<Open>,
    /// Within the stage.
    wait: Option<Open>,
    parks: u32,
    over: Vec<Span>,
}

/// A span that has begun.
struct Open {
    id: u64,
    begun: Instant,
    what: What,
}

/// What there is to say of a request.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub head: Head,
    pub state: Option<HeaderValue>,
    pub route: Option<Box<str>>,
    /// None if the client left before there was one.
    pub status: Option<u16>,
    pub why: Option<&'static str>,
    pub parks: u32,
}

/// What its head says of a request.
#[derive(Debug, Clone)]
pub struct Head {
    pub(super) id: Box<str>,
    pub(super) method: Method,
    pub(super) path: Box<str>,
    pub(super) version: Version,
    pub(super) scheme: Scheme,
    pub(super) host: Box<str>,
    pub(super) port: u16,
    pub(super) client: Option<IpAddr>,
    pub(super) agent: Option<Box<str>>,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    pub at: Instant,
    pub status: Option<u16>,
    pub why: Option<&'static str>,
}

impl Head {
    pub fn new(id: &str, parts: &Parts, client: &Client) -> Self {
        let agent = parts.headers.get(header::USER_AGENT);
        Self {
            id: id.into(),
            method: parts.method.clone(),
            path: beginning(parts.uri.path(), LONGEST),
            version: parts.version,
            scheme: client.scheme,
            host: beginning(&client.server_name, LONGEST),
            port: client.server_port,
            client: client.address,
            agent: agent.map(|agent| text(agent, LONGEST)),
        }
    }
}

impl Traced {
    pub(super) fn new(tracer: Tracer, trace: &Trace, clock: Clock, begun: Instant) -> Self {
        Self {
            tracer,
            clock,
            trace: trace.bytes(),
            id: fresh(),
            parent: trace.parent(),
            state: trace.state().cloned(),
            begun,
            request: None,
            stage: Some(Open::new(What::Body { bytes: 0 }, begun)),
            wait: None,
            parks: 0,
            over: Vec::new(),
        }
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    pub fn is(&mut self, head: Head) {
        self.request = Some(Box::new(Request {
            head,
            state: self.state.take(),
            route: None,
            status: None,
            why: None,
            parks: 0,
        }));
    }

    pub fn takes(&mut self, route: &str) {
        if let Some(request) = &mut self.request {
            request.route = Some(route.into());
        }
    }

    pub fn received(&mut self, more: usize) {
        if let Some(Open {
            what: What::Body { bytes },
            ..
        }) = &mut self.stage
        {
            *bytes += more as u64;
        }
    }

    pub fn enters(&mut self, stage: Stage, at: Instant) {
        let what = match stage {
            Stage::Queue => What::Queue,
            Stage::Park => {
                self.parks += 1;
                What::Park
            }
            Stage::Resume => What::Resume,
            // A slot is still at it, or somebody who waits for one.
            Stage::Answer => {
                if let Some(Open { what, .. }) = &self.stage
                    && matches!(what, What::Queue | What::Body { .. })
                {
                    self.close(at);
                }
                return;
            }
            Stage::Body | Stage::Run => return,
        };
        self.close(at);
        self.stage = Some(Open::new(what, at));
    }

    pub fn runs(&mut self, slot: SlotId, pid: u32, at: Instant) {
        self.close(at);
        let (slot, call) = (slot.0, false);
        self.stage = Some(Open::new(What::Step { slot, pid, call }, at));
    }

    /// Its slot is done with it, for now or for good.
    pub fn leaves(&mut self, at: Instant) {
        if let Some(Open {
            what: What::Step { .. },
            ..
        }) = self.stage
        {
            self.close(at);
        }
    }

    /// A call has been run for it.
    pub fn called(&mut self, slot: SlotId, pid: u32, begun: Instant, at: Instant) {
        let (slot, call) = (slot.0, true);
        let step = Open::new(What::Step { slot, pid, call }, begun);
        let parent = self.present();
        self.end(step, parent, at);
    }

    /// It begins to wait in place, if there is no such wait yet.
    pub fn holds(&mut self, reason: &'static str, at: Instant) {
        if self.wait.is_none() {
            self.wait = Some(Open::new(What::WaitInPlace(reason), at));
        }
    }

    pub fn goes_on(&mut self, at: Instant) {
        if let Some(wait) = self.wait.take() {
            let parent = self.stage.as_ref().map_or(self.id, |stage| stage.id);
            self.end(wait, parent, at);
        }
    }

    /// Whose child a fetch is that begins now.
    pub(crate) fn origin(&self) -> Origin {
        Origin {
            tracer: self.tracer.clone(),
            clock: self.clock,
            trace: self.trace,
            parent: self.present(),
        }
    }

    /// The connection took the last of its answer, or ended.
    pub fn ended(&mut self, ended: Ended) {
        let Some(mut request) = self.request.take() else {
            return;
        };
        request.status = ended.status;
        request.why = ended.why;
        request.parks = self.parks;
        let root = Open {
            id: self.id,
            begun: self.begun,
            what: What::Request(request),
        };
        self.end(root, self.parent, ended.at);
    }

    /// The innermost span that has begun.
    fn present(&self) -> u64 {
        let open = self.wait.as_ref().or(self.stage.as_ref());
        open.map_or(self.id, |open| open.id)
    }

    fn close(&mut self, at: Instant) {
        self.goes_on(at);
        match self.stage.take() {
            // Most requests have no body, and it takes no time to see that.
            None
            | Some(Open {
                what: What::Body { bytes: 0 },
                ..
            }) => {}
            Some(stage) => self.end(stage, self.id, at),
        }
    }

    fn end(&mut self, open: Open, parent: u64, at: Instant) {
        self.over.push(Span {
            trace: self.trace,
            id: open.id,
            parent,
            begun: self.clock.nanos(open.begun),
            ended: self.clock.nanos(at),
            what: open.what,
        });
        if self.over.len() >= KEPT {
            self.tracer.tell(&mut self.over);
        }
    }
}

impl Open {
    fn new(what: What, begun: Instant) -> Self {
        let id = fresh();
        Self { id, begun, what }
    }
}

impl Drop for Traced {
    /// Nobody has to do with the request any more.
    fn drop(&mut self) {
        self.close(Instant::now());
        self.tracer.tell(&mut self.over);
    }
}

impl std::fmt::Debug for Traced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Traced({:016x})", self.id)
    }
}
