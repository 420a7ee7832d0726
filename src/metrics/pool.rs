//! Where a pool of slots is counted: the main one, or that of a route's upstream.
//!
//! What is counted of the main one sizes the gateway, so nothing else may add to it. An upstream's are labelled
//! with its address; while a reload replaces its pool there are two, which add up.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};

use super::families::PerLabel;
use super::labels::{ShedReason, SlotState};
use super::{Metrics, gauge_value};

#[derive(Debug)]
pub struct Pool(Place);

#[derive(Debug)]
enum Place {
    Main(Metrics),
    Upstream {
        slots: PerLabel<SlotState, Share>,
        queue_length: Share,
        requests_shed: PerLabel<ShedReason, IntCounter>,
        parked_requests: Share,
    },
}

/// What one pool has added to a gauge; taken back on drop.
#[derive(Debug)]
struct Share {
    gauge: IntGauge,
    added: AtomicI64,
}

impl Metrics {
    pub fn main_pool(&self) -> Pool {
        Pool(Place::Main(self.clone()))
    }

    /// `upstream` is from the configuration.
    pub fn upstream_pool(&self, upstream: &str) -> Pool {
        let series = &self.0;
        let slots = |state| series.upstream_slots.with_label_values(&[upstream, state]);
        let queue_length = series.upstream_queue_length.with_label_values(&[upstream]);
        let shed = &series.upstream_requests_shed;
        let parked_requests = series
            .upstream_parked_requests
            .with_label_values(&[upstream]);
        Pool(Place::Upstream {
            slots: PerLabel::new(|state| Share::of(slots(state))),
            queue_length: Share::of(queue_length),
            requests_shed: PerLabel::new(|reason| shed.with_label_values(&[upstream, reason])),
            parked_requests: Share::of(parked_requests),
        })
    }
}

impl Pool {
    /// How many slots are in which state now.
    pub fn slots(&self, idle: u16, busy: u16, lost: u16) {
        match &self.0 {
            Place::Main(metrics) => metrics.slots(idle, busy, lost),
            Place::Upstream { slots, .. } => {
                slots.of(SlotState::Idle).set(idle.into());
                slots.of(SlotState::Busy).set(busy.into());
                slots.of(SlotState::Lost).set(lost.into());
            }
        }
    }

    /// How many slots work now, overdue or not. What an upstream's do is its own affair.
    pub fn working(&self, slots: usize) {
        if let Place::Main(metrics) = &self.0 {
            metrics.working(slots);
        }
    }

    pub fn queue_length(&self, jobs: usize) {
        match &self.0 {
            Place::Main(metrics) => metrics.queue_length(jobs),
            Place::Upstream { queue_length, .. } => queue_length.set(gauge_value(jobs)),
        }
    }

    pub fn parked_requests(&self, requests: usize) {
        match &self.0 {
            Place::Main(metrics) => metrics.parked_requests(requests),
            Place::Upstream {
                parked_requests, ..
            } => parked_requests.set(gauge_value(requests)),
        }
    }

    /// A request was refused because of load.
    pub fn shed(&self, reason: ShedReason) {
        match &self.0 {
            Place::Main(metrics) => metrics.shed(reason),
            Place::Upstream { requests_shed, .. } => requests_shed.of(reason).inc(),
        }
    }

    /// A job waited this long for its slot.
    pub fn queue_wait(&self, waited: Duration) {
        if let Place::Main(metrics) = &self.0 {
            metrics.queue_wait(waited);
        }
    }
}

impl Share {
    fn of(gauge: IntGauge) -> Self {
        Self {
            gauge,
            added: AtomicI64::new(0),
        }
    }

    fn set(&self, value: i64) {
        let before = self.added.swap(value, Relaxed);
        if before != value {
            self.gauge.add(value - before);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_of_one_upstream_add_up_and_leave_nothing_behind() {
        let metrics = Metrics::new(&[]);
        let shown = |line: &str| {
            let page = metrics.render();
            assert!(
                page.lines().any(|shown| shown == line),
                "{line} is not in\n{page}"
            );
        };
        let old = metrics.upstream_pool("http://a:80");
        let new = metrics.upstream_pool("http://a:80");
        old.slots(0, 3, 0);
        new.slots(4, 1, 2);
        new.queue_length(7);
        new.parked_requests(5);
        shown("layby_upstream_slots{state=\"busy\",upstream=\"http://a:80\"} 4");
        shown("layby_upstream_slots{state=\"lost\",upstream=\"http://a:80\"} 2");
        shown("layby_upstream_queue_length{upstream=\"http://a:80\"} 7");
        shown("layby_upstream_parked_requests{upstream=\"http://a:80\"} 5");
        shown("layby_parked_requests 0");
        shown("layby_slots{state=\"busy\"} 0");
        old.slots(0, 2, 0);
        shown("layby_upstream_slots{state=\"busy\",upstream=\"http://a:80\"} 3");
        old.shed(ShedReason::QueueFull);
        new.shed(ShedReason::QueueFull);
        shown("layby_requests_shed_total{reason=\"queue_full\"} 0");
        drop((old, new));
        shown(
            "layby_upstream_requests_shed_total{reason=\"queue_full\",upstream=\"http://a:80\"} 2",
        );
        shown("layby_upstream_slots{state=\"idle\",upstream=\"http://a:80\"} 0");
        shown("layby_upstream_queue_length{upstream=\"http://a:80\"} 0");
    }
}
