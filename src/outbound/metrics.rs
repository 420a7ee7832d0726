//! What outbound counts, for whoever keeps the counters.

use crate::plan::{FailureKind, Outcome};

/// Called on the outbound thread, once per fetch and more; must not block.
pub trait Metrics: Send + Sync {
    /// A fetch came to its end, or was stopped.
    fn fetch_ended(&self, origin: OriginLabel, outcome: FetchOutcome, seconds: f64);

    /// An unsafe fetch that was no longer needed ran out, and its result was dropped. It
    /// was counted by [`Metrics::fetch_ended`] too.
    fn leftover_fetch(&self);
}

/// A host of `[outbound] label`, or `other`: never just any host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OriginLabel<'a>(&'a str);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchOutcome {
    /// A whole response with a status below 400.
    Ok,
    /// A whole response with a status from 400.
    HttpError,
    Timeout,
    /// No connection, or one that did not bring a whole response.
    Connect,
    Refused,
    TooLarge,
    /// Not needed any more before it had ended.
    Aborted,
}

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

impl FetchOutcome {
    /// Of a fetch.
    pub(super) fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Response(response) if response.status.as_u16() < 400 => Self::Ok,
            Outcome::Response(_) => Self::HttpError,
            Outcome::Failed(failure) => match failure.kind {
                FailureKind::Timeout => Self::Timeout,
                FailureKind::Refused => Self::Refused,
                FailureKind::TooLarge => Self::TooLarge,
                FailureKind::Connect | FailureKind::Failed => Self::Connect,
            },
            _ => Self::Aborted,
        }
    }
}
