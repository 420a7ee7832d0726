//! Spans that wait to be sent: how many may.

use std::sync::{Mutex, MutexGuard};

use tokio::sync::Notify;

use super::Span;
use crate::metrics::{Metrics, SpanOutcome};

/// A few seconds of a busy gateway, or a minute of a quiet one while the collector is away; some 8 MiB.
const MOST: usize = 16 * 1024;

/// So many are worth a message of their own.
pub const BATCH: usize = 1024;

pub struct Queue {
    spans: Mutex<Vec<Span>>,
    /// There is a batch.
    full: Notify,
    metrics: Metrics,
}

impl Queue {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            spans: Mutex::default(),
            full: Notify::new(),
            metrics,
        }
    }

    /// Takes them out of the caller's hands, also those that there is no room for.
    pub fn push(&self, new: &mut Vec<Span>) {
        let mut spans = self.spans();
        let room = MOST - spans.len();
        if new.len() > room {
            let lost = new.len() - room;
            self.metrics.spans(SpanOutcome::QueueFull, lost);
            new.truncate(room);
        }
        spans.append(new);
        if spans.len() >= BATCH {
            self.full.notify_one();
        }
    }

    /// Resolves when there is a batch, or sooner. Cancel safe.
    pub async fn full(&self) {
        self.full.notified().await;
    }

    /// The oldest; empty when nothing waits.
    pub fn take(&self) -> Vec<Span> {
        let mut spans = self.spans();
        match spans.len() {
            // With it goes the room that a burst has taken.
            ..=BATCH => std::mem::take(&mut *spans),
            _ => spans.drain(..BATCH).collect(),
        }
    }

    fn spans(&self) -> MutexGuard<'_, Vec<Span>> {
        self.spans
            .lock()
            .expect("no code that holds this lock panics")
    }
}
