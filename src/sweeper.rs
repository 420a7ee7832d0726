//! Deadlines without a timer each.
//!
//! Arming and cancelling a runtime timer costs about as much as scheduling a request. Deadlines
//! here are coarse, so one task looks over all of them every [`TICK`] instead: setting one
//! is a store, and it rings at most a tick late.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::task::AtomicWaker;
use slab::Slab;

/// How late an alarm may ring.
pub const TICK: Duration = Duration::from_millis(50);

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Watch {
    /// Milliseconds since the sweeper's start, rounded up: it never rings early.
    deadline: AtomicU64,
    waker: AtomicWaker,
}

#[derive(Debug)]
struct Shared {
    start: Instant,
    watches: Mutex<Slab<Arc<Watch>>>,
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, Slab<Arc<Watch>>> {
        self.watches
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn millis(&self, instant: Instant) -> u64 {
        instant.saturating_duration_since(self.start).as_millis() as u64
    }
}

/// Makes alarms, and rings them while [`Sweeper::run`] is polled.
#[derive(Debug, Clone)]
pub struct Sweeper(Arc<Shared>);

impl Default for Sweeper {
    fn default() -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            watches: Mutex::default(),
        }))
    }
}

impl Sweeper {
    /// An alarm that is not set.
    pub fn alarm(&self) -> Alarm {
        let watch = Arc::new(Watch {
            deadline: AtomicU64::new(NEVER),
            waker: AtomicWaker::new(),
        });
        let place = self.0.watches().insert(Arc::clone(&watch));
        Alarm {
            shared: Arc::clone(&self.0),
            watch,
            place,
        }
    }

    /// Rings alarms for ever, and calls `each_tick` between.
    pub async fn run(self, each_tick: impl Fn()) {
        let mut ticks = tokio::time::interval(TICK);
        // After a stall one tick makes up for all that were missed.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sweep(Instant::now());
            each_tick();
        }
    }

    fn sweep(&self, now: Instant) {
        let now = self.0.millis(now);
        for (_, watch) in self.0.watches().iter() {
            if watch.deadline.load(Relaxed) <= now {
                watch.waker.wake();
            }
        }
    }
}

/// One deadline, watched by the sweeper until it is dropped. One task at a time may wait on it.
#[derive(Debug)]
pub struct Alarm {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    place: usize,
}

impl Alarm {
    pub fn set(&self, deadline: Instant) {
        let since = deadline.saturating_duration_since(self.shared.start);
        let millis = since.as_nanos().div_ceil(1_000_000);
        self.watch.deadline.store(millis as u64, Relaxed);
    }

    /// The deadline is now.
    pub fn ring(&self) {
        let now = self.shared.millis(Instant::now());
        self.watch.deadline.store(now, Relaxed);
        self.watch.waker.wake();
    }

    pub fn clear(&self) {
        self.watch.deadline.store(NEVER, Relaxed);
    }

    /// Resolves once the deadline has passed. Cancel safe.
    pub async fn rang(&self) {
        poll_fn(|cx| {
            self.watch.waker.register(cx.waker());
            let deadline = self.watch.deadline.load(Relaxed);
            if deadline != NEVER && deadline <= self.shared.millis(Instant::now()) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        self.shared.watches().remove(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_rings_after_its_deadline_and_not_before() {
        let sweeper = Sweeper::default();
        let alarm = sweeper.alarm();
        let deadline = Instant::now() + Duration::from_millis(120);
        alarm.set(deadline);
        tokio::select! {
            () = alarm.rang() => {}
            () = sweeper.run(|| {}) => unreachable!("the sweeper runs for ever"),
        }
        assert!(Instant::now() >= deadline);
    }

    /// Who is woken looks at its own deadline, and does something else if that is not over yet.
    #[tokio::test]
    async fn an_alarm_is_not_early_by_a_part_of_a_millisecond() {
        let sweeper = Sweeper::default();
        let alarm = sweeper.alarm();
        for micros in (0..3000).step_by(70) {
            let deadline = Instant::now() + Duration::from_micros(micros);
            alarm.set(deadline);
            while futures_util::FutureExt::now_or_never(alarm.rang()).is_none() {
                std::hint::spin_loop();
            }
            assert!(Instant::now() >= deadline, "{micros}");
        }
    }

    #[tokio::test]
    async fn a_cleared_alarm_stays_silent_and_a_dropped_one_leaves_no_trace() {
        let sweeper = Sweeper::default();
        let alarm = sweeper.alarm();
        alarm.set(Instant::now());
        alarm.clear();
        sweeper.sweep(Instant::now());
        assert!(futures_util::FutureExt::now_or_never(alarm.rang()).is_none());
        drop(alarm);
        assert!(sweeper.0.watches().is_empty());
    }
}
