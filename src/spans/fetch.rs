//! Fetches as spans: what they tell their origins, and what is told of them.

use std::time::Instant;

use http::{HeaderMap, Method};

use super::{Clock, Span, Tracer, What, beginning, fresh};
use crate::plan::{Fetch, Outcome, without_secrets};
use crate::trace::{PARENT, Trace};

const LONGEST: usize = 1024;

/// Makes fetches a part of their request's trace.
pub struct Marker<'r> {
    pub trace: &'r Trace,
    /// None if the request is not told.
    pub(crate) origin: Option<Origin>,
}

/// Where the spans of fetches come from.
#[derive(Clone)]
pub(crate) struct Origin {
    pub(super) tracer: Tracer,
    pub(super) clock: Clock,
    pub(super) trace: [u8; 16],
    pub(super) parent: u64,
}

/// A fetch that is told when it is over.
#[derive(Clone)]
pub struct FetchSpan {
    origin: Origin,
    id: u64,
}

/// How a fetch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchEnd {
    Response {
        status: u16,
        redirects: u32,
    },
    Failed(&'static str),
    /// Nobody needs it any more.
    Aborted,
}

#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub method: Method,
    /// Without user, query and fragment.
    pub url: Box<str>,
    pub end: FetchEnd,
}

impl Marker<'_> {
    pub fn mark(&self, fetch: &mut Fetch) {
        let Some(origin) = &self.origin else {
            return self.trace.mark(&mut fetch.headers);
        };
        let id = fresh();
        let parent = parent(self.trace, &mut fetch.headers, id);
        let origin = Origin {
            parent: parent.unwrap_or(origin.parent),
            ..origin.clone()
        };
        fetch.span = Some(Box::new(FetchSpan { origin, id }));
    }
}

/// Has the origin hear of the fetch's own span. The span of the application around it, if it traces as well:
/// the fetch belongs in there.
fn parent(trace: &Trace, headers: &mut HeaderMap, id: u64) -> Option<u64> {
    if !headers.contains_key(&PARENT) {
        headers.insert(PARENT, trace.line(id));
        trace.mark_state(headers);
        return None;
    }
    let own = Trace::of(headers)?;
    // Somebody else's trace is left alone.
    if own.id() != trace.id() {
        return None;
    }
    headers.insert(PARENT, own.line(id));
    Some(own.parent())
}

impl FetchSpan {
    /// Of this fetch, which has begun then, and is over now.
    pub fn ended(&self, fetch: &Fetch, begun: Instant, end: FetchEnd) {
        let Origin {
            tracer,
            clock,
            trace,
            parent,
        } = &self.origin;
        let facts = Facts {
            method: fetch.method.clone(),
            url: beginning(&without_secrets(&fetch.url), LONGEST),
            end,
        };
        tracer.tell(&mut vec![Span {
            trace: *trace,
            id: self.id,
            parent: *parent,
            begun: clock.nanos(begun),
            ended: clock.nanos(Instant::now()),
            what: What::Fetch(Box::new(facts)),
        }]);
    }
}

impl FetchEnd {
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Response(response) => Self::Response {
                status: response.status.as_u16(),
                redirects: response.redirects,
            },
            Outcome::Failed(failure) => Self::Failed(failure.kind.as_str()),
            _ => Self::Aborted,
        }
    }
}

impl std::fmt::Debug for FetchSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FetchSpan({:016x})", self.id)
    }
}
