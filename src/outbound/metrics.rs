//! What outbound counts, for whoever keeps the counters.

use std::time::Duration;

use crate::plan::{FailureKind, Outcome};

pub use crate::metrics::FetchOutcome;

/// Called on the outbound thread, once per fetch and more; must not block.
pub trait Metrics: Send + Sync {
    /// A fetch begins. It ends once, with the same origin.
    fn fetch_begun(&self, origin: OriginLabel);

    /// A fetch came to its end, or was stopped.
    fn fetch_ended(&self, origin: OriginLabel, outcome: FetchOutcome, seconds: f64);

    /// An unsafe fetch that was no longer needed ran out, and its result was dropped. It
    /// was counted by [`Metrics::fetch_ended`] too.
    fn leftover_fetch(&self);
}

/// A host of `[outbound] label`, or `other`: never just any host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginLabel<'a>(&'a str);

impl<'a> OriginLabel<'a> {
    pub const OTHER: OriginLabel<'static> = OriginLabel("other");

    /// `host` must come from the configuration.
    pub(super) fn listed(host: &'a str) -> Self {
        Self(host)
    }

    pub fn as_str(self) -> &'a str {
        self.0
    }
}

/// How a fetch is counted. What brought no whole response counts as `connect`.
pub(super) fn counted(outcome: &Outcome) -> FetchOutcome {
    match outcome {
        Outcome::Response(response) if response.status.as_u16() < 400 => FetchOutcome::Ok,
        Outcome::Response(_) => FetchOutcome::HttpError,
        Outcome::Failed(failure) => counted_failure(failure.kind),
        _ => FetchOutcome::Aborted,
    }
}

pub(super) fn counted_failure(kind: FailureKind) -> FetchOutcome {
    match kind {
        FailureKind::Timeout => FetchOutcome::Timeout,
        FailureKind::Refused => FetchOutcome::Refused,
        FailureKind::TooLarge => FetchOutcome::TooLarge,
        FailureKind::Connect | FailureKind::Failed => FetchOutcome::Connect,
    }
}

impl Metrics for crate::metrics::Metrics {
    fn fetch_begun(&self, origin: OriginLabel) {
        self.fetch_begun(origin.as_str());
    }

    fn fetch_ended(&self, origin: OriginLabel, outcome: FetchOutcome, seconds: f64) {
        self.fetch_ended(origin.as_str(), outcome, Duration::from_secs_f64(seconds));
    }

    fn leftover_fetch(&self) {
        self.leftover_fetch();
    }
}
