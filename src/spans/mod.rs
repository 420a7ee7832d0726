//! Spans: what is told of a request's way to an OpenTelemetry collector.
//!
//! Which requests are traced is decided here, when they arrive; what is told of one, in [`Traced`], from
//! the same turns that the access log times. A thread of its own sends the spans. Nothing waits for
//! it: what it cannot take is dropped and counted, and what it cannot send as well.
//!
//! Without a collector in the configuration there is no [`Tracer`], and every request is recorded without.

mod export;
mod fetch;
mod otlp;
mod queue;
mod traced;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue};

use crate::config::{Ratio, Tracing};
use crate::metrics::Metrics;
use crate::record::unique;
use crate::trace::{PARENT, Trace};

pub use export::{Exporter, StartError};
pub use fetch::{FetchEnd, FetchSpan, Marker};
pub use traced::{Ended, Head, Traced};

use queue::Queue;

/// Begins the spans of requests; clones are the same.
#[derive(Clone)]
pub struct Tracer(Arc<Shared>);

struct Shared {
    queue: Arc<Queue>,
    /// Of new traces, those are told whose id's last half is below this; all, at the highest.
    below: AtomicU64,
}

/// Something with a beginning and an end, in some trace.
#[derive(Debug, Clone)]
struct Span {
    trace: [u8; 16],
    id: u64,
    /// 0 if there is none.
    parent: u64,
    begun: u64,
    ended: u64,
    what: What,
}

/// What a span is about. Attributes are made of it by the thread that sends it.
#[derive(Debug, Clone)]
enum What {
    Request(Box<traced::Request>),
    Body { bytes: u64 },
    Queue,
    Step { slot: u16, pid: u32, call: bool },
    Park,
    Resume,
    WaitInPlace(&'static str),
    Fetch(Box<fetch::Facts>),
}

/// From the instants that a process measures by to the time that everybody has, as it was when a request
/// came: within a trace, no correction of the system's clock can turn times round.
#[derive(Debug, Clone, Copy)]
struct Clock {
    at: Instant,
    nanos: u64,
}

impl Clock {
    fn new(at: Instant) -> Self {
        let elapsed = at.elapsed();
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let then = since_1970.unwrap_or_default().saturating_sub(elapsed);
        Self {
            at,
            nanos: u64::try_from(then.as_nanos()).unwrap_or(u64::MAX),
        }
    }

    fn nanos(&self, at: Instant) -> u64 {
        let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.at) {
            Some(later) => self.nanos.saturating_add(nanos(later)),
            None => self.nanos.saturating_sub(nanos(self.at.duration_since(at))),
        }
    }
}

/// Another one each time, and never the one that means none.
fn fresh() -> u64 {
    unique().max(1)
}

impl Tracer {
    /// The tracer and the thread that sends what it makes; none if the configuration names no collector.
    ///
    /// # Errors
    /// When the system gives no thread, or the HTTP client cannot be made.
    pub fn start(
        config: &Tracing,
        metrics: &Metrics,
    ) -> Result<Option<(Self, Exporter)>, StartError> {
        let Some(endpoint) = &config.endpoint else {
            return Ok(None);
        };
        let queue = Arc::new(Queue::new(metrics.clone()));
        let exporter = Exporter::start(endpoint, config, Arc::clone(&queue), metrics.clone())?;
        let tracer = Self(Arc::new(Shared {
            queue,
            below: AtomicU64::new(0),
        }));
        tracer.sample(config.sample);
        Ok(Some((tracer, exporter)))
    }

    /// This share of the traces that begin here is told from now on.
    pub fn sample(&self, Ratio(share): Ratio) {
        // As other tracers do it, so that they choose the same traces. Casts saturate.
        self.0.below.store((share * 2_f64.powi(64)) as u64, Relaxed);
    }

    /// A request is there with this context, if any. It has one from here on; the spans, if it is told, and what
    /// the worker hears of it are made to fit.
    pub fn begin(
        &self,
        given: &mut Option<Trace>,
        headers: &mut HeaderMap,
        arrived: Instant,
    ) -> Option<Traced> {
        let sampled = match given {
            Some(trace) => trace.is_sampled(),
            None => {
                let id = [unique(), unique()];
                let sampled = self.chooses(id[1]);
                let trace = given.insert(Trace::new(id, sampled));
                // An application that traces, too, comes to the same end.
                headers.insert(PARENT, trace.line(fresh()));
                sampled
            }
        };
        let trace = given.as_ref().filter(|_| sampled)?;
        let traced = Traced::new(self.clone(), trace, Clock::new(arrived), arrived);
        headers.insert(PARENT, trace.line(traced.id()));
        Some(traced)
    }

    fn chooses(&self, id: u64) -> bool {
        let below = self.0.below.load(Relaxed);
        id < below || below == u64::MAX
    }

    fn tell(&self, spans: &mut Vec<Span>) {
        self.0.queue.push(spans);
    }
}

impl std::fmt::Debug for Tracer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tracer")
    }
}

/// The beginning of a text that may be long.
fn beginning(text: &str, most: usize) -> Box<str> {
    let mut end = text.len().min(most);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].into()
}

/// As far as it is text.
fn text(value: &HeaderValue, most: usize) -> Box<str> {
    beginning(&String::from_utf8_lossy(value.as_bytes()), most)
}

#[cfg(test)]
mod tests;
