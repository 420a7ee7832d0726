//! How long slots have worked, all together: exact at every moment, for steps that do not end as well.

use std::time::{Duration, Instant};

/// Slot time, as the sum over spells in which the same number of slots worked.
#[derive(Debug)]
pub struct Work {
    before: Duration,
    since: Instant,
    slots: u32,
}

impl Work {
    pub fn new(now: Instant) -> Self {
        Self {
            before: Duration::ZERO,
            since: now,
            slots: 0,
        }
    }

    /// From now on, so many slots work.
    pub fn changes(&mut self, slots: usize, now: Instant) {
        let slots = u32::try_from(slots).unwrap_or(u32::MAX);
        if slots != self.slots {
            *self = Self {
                before: self.until(now),
                since: now,
                slots,
            };
        }
    }

    pub fn until(&self, now: Instant) -> Duration {
        self.before + now.saturating_duration_since(self.since) * self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_slots_times_time() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let worked = |work: &Work, seconds| work.until(at(seconds)).as_secs();
        let mut work = Work::new(begun);
        assert_eq!(worked(&work, 5), 0);
        work.changes(2, at(10));
        work.changes(2, at(11));
        assert_eq!(worked(&work, 13), 6);
        work.changes(3, at(20));
        assert_eq!(worked(&work, 21), 23);
        work.changes(0, at(30));
        assert_eq!(worked(&work, 60), 50);
    }
}
