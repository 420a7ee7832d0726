//! Waits in place, counted by reason and by the line of the application that waits.
//!
//! The lines are for a person who wants to know what to change; they are too many for a metric label.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::metrics::{Metrics, WaitInPlace, WaitReason};

/// Lines remembered. An application has few; what comes after these is counted in the metric only.
const LINES: usize = 200;

#[derive(Debug, Clone)]
pub struct Waits {
    lines: Arc<Mutex<HashMap<(WaitReason, String), u64>>>,
    metrics: Metrics,
}

/// How often requests have waited in place at one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitsInPlace {
    pub reason: WaitReason,
    pub source: String,
    pub count: u64,
}

impl Waits {
    pub fn new(metrics: Metrics) -> Self {
        Self {
            lines: Arc::default(),
            metrics,
        }
    }

    /// Counts a wait, which lasts until the guard is dropped.
    pub fn begin(&self, reason: WaitReason, source: String) -> WaitInPlace {
        let mut lines = self.lines();
        let known = lines.len();
        let line = (reason, source);
        if known < LINES || lines.contains_key(&line) {
            *lines.entry(line).or_default() += 1;
        }
        self.metrics.wait_in_place(reason)
    }

    /// Most frequent first.
    pub fn list(&self) -> Vec<WaitsInPlace> {
        let line = |((reason, source), count): (&(WaitReason, String), &u64)| WaitsInPlace {
            reason: *reason,
            source: source.clone(),
            count: *count,
        };
        let mut list: Vec<_> = self.lines().iter().map(line).collect();
        list.sort_by(|one, other| {
            other
                .count
                .cmp(&one.count)
                .then_with(|| one.source.cmp(&other.source))
        });
        list
    }

    fn lines(&self) -> MutexGuard<'_, HashMap<(WaitReason, String), u64>> {
        self.lines
            .lock()
            .expect("no code that holds this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_by_line_and_the_lines_are_bounded() {
        let waits = Waits::new(Metrics::new(&[]));
        for _ in 0..3 {
            drop(waits.begin(WaitReason::Transaction, "shop/views.py:88".into()));
        }
        for line in 0..LINES * 2 {
            drop(waits.begin(WaitReason::Mode, format!("shop/other.py:{line}")));
        }
        let list = waits.list();
        assert_eq!(list.len(), LINES);
        let first = WaitsInPlace {
            reason: WaitReason::Transaction,
            source: "shop/views.py:88".into(),
            count: 3,
        };
        assert_eq!(list[0], first);
    }
}
