//! How slow a client may be with a body, its own or an answer's.
//!
//! One rule for both ways. A client has some time in hand. It spends time while the gateway waits for
//! it, and earns time with every byte: as much as that byte takes at the least rate. It never has more
//! than [`Rate::stall`], so that a good start pays for no endless end. A client without time is late.
//!
//! So a client that keeps the rate is never late, one that pauses is late after `stall`, and one that
//! drips is late a little after that. Time in which the application, or the gateway itself, is the one
//! to wait for is not spent.

use std::time::{Duration, Instant};

/// What is asked of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How far it may be behind.
    pub stall: Duration,
    /// Bytes per second; with 0 any byte makes up for everything.
    pub least: u64,
}

impl Rate {
    fn worth(self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.least);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// The time that a client has in hand.
#[derive(Debug)]
pub struct Credit {
    rate: Rate,
    most: Duration,
    time: Time,
}

#[derive(Debug, Clone, Copy)]
enum Time {
    /// Nobody waits for the client.
    Left(Duration),
    /// The client is waited for until then.
    Until(Instant),
}

impl Credit {
    /// For bytes that are seen when the client moves them.
    pub fn new(rate: Rate) -> Self {
        Self::behind(rate, 0)
    }

    /// For bytes that go through something which takes up to `buffer` of them before the client does:
    /// it asks for more only when a good part of that has gone, which may take the client its time.
    pub fn behind(rate: Rate, buffer: u64) -> Self {
        let through = match rate.least {
            0 => Duration::ZERO,
            _ => rate.worth(buffer),
        };
        Self {
            rate,
            most: rate.stall + through,
            time: Time::Left(rate.stall),
        }
    }

    /// Begins to wait for the client.
    pub fn spend(&mut self, now: Instant) {
        if let Time::Left(left) = self.time {
            self.time = Time::Until(now + left);
        }
    }

    /// Nobody waits for the client any more.
    pub fn rest(&mut self, now: Instant) {
        if let Time::Until(until) = self.time {
            self.time = Time::Left(until.saturating_duration_since(now));
        }
    }

    pub fn earn(&mut self, bytes: u64, now: Instant) {
        let gain = match self.rate.least {
            0 => self.most,
            _ => self.rate.worth(bytes),
        };
        self.time = match self.time {
            Time::Left(left) => Time::Left((left + gain).min(self.most)),
            Time::Until(until) => Time::Until((until + gain).min(now + self.most)),
        };
    }

    /// When the client is late, if it is waited for.
    pub fn due(&self) -> Option<Instant> {
        match self.time {
            Time::Left(_) => None,
            Time::Until(until) => Some(until),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STALL: Duration = Duration::from_secs(30);
    const RATE: Rate = Rate {
        stall: STALL,
        least: 1024,
    };

    /// When a client is late that moves `bytes` every `pause`, all the time.
    fn late(rate: Rate, bytes: u64, pause: Duration) -> Option<Duration> {
        let start = Instant::now();
        let mut credit = Credit::new(rate);
        credit.spend(start);
        let mut now = start;
        for _ in 0..10_000 {
            let due = credit.due().expect("it is waited for");
            if due < now + pause {
                return Some(due - start);
            }
            now += pause;
            credit.earn(bytes, now);
        }
        None
    }

    #[test]
    fn a_client_that_stops_is_late_after_the_stall() {
        assert_eq!(late(RATE, 0, Duration::from_secs(1)), Some(STALL));
    }

    #[test]
    fn a_client_that_drips_is_late_soon_after() {
        // A byte a second, and a tenth of the rate.
        let second = Duration::from_secs(1);
        let late_after = |bytes| late(RATE, bytes, second).expect("too slow");
        assert!(late_after(1) < STALL + second);
        assert!(late_after(102) < STALL + STALL / 8);
    }

    #[test]
    fn a_good_start_pays_for_no_endless_end() {
        let start = Instant::now();
        let mut credit = Credit::new(RATE);
        credit.spend(start);
        credit.earn(1 << 30, start);
        assert_eq!(credit.due(), Some(start + STALL));
    }

    #[test]
    fn what_waits_for_somebody_else_costs_the_client_nothing() {
        let start = Instant::now();
        let later = start + 100 * STALL;
        let mut credit = Credit::new(RATE);
        credit.spend(start);
        credit.rest(start + STALL / 3);
        assert_eq!(credit.due(), None);
        credit.spend(later);
        assert_eq!(credit.due(), Some(later + STALL - STALL / 3));
    }

    #[test]
    fn a_buffer_in_between_has_its_time_to_empty() {
        let start = Instant::now();
        let mut credit = Credit::behind(RATE, 10 * 1024);
        credit.earn(10 * 1024, start);
        credit.spend(start);
        assert_eq!(credit.due(), Some(start + STALL + Duration::from_secs(10)));
    }

    #[test]
    fn without_a_rate_only_a_pause_is_too_long() {
        let rate = Rate { least: 0, ..RATE };
        assert_eq!(late(rate, 1, STALL), None);
        assert!(late(rate, 1, STALL + Duration::from_millis(1)).is_some());
    }

    proptest! {
        /// Whatever the pieces: at the rate or above, with pauses up to the stall, nobody is late.
        #[test]
        fn a_client_that_keeps_the_rate_is_never_late(
            pauses in proptest::collection::vec(1_u64..30_000, 1..50),
            least in 1_u64..100_000,
        ) {
            let rate = Rate { stall: STALL, least };
            let mut now = Instant::now();
            let mut credit = Credit::new(rate);
            credit.spend(now);
            for pause in pauses.iter().map(|millis| Duration::from_millis(*millis)) {
                now += pause;
                prop_assert!(credit.due().is_some_and(|due| due >= now));
                let bytes = (pause.as_secs_f64() * least as f64).ceil() as u64;
                credit.earn(bytes, now);
            }
        }

        /// Whatever the pieces: at half of the rate everybody is late in the end.
        #[test]
        fn a_client_that_does_not_keep_the_rate_is_late(pauses in proptest::collection::vec(1_u64..30_000, 1..50)) {
            let half: Vec<(Duration, u64)> = pauses
                .iter()
                .map(|millis| (Duration::from_millis(*millis), millis * 1024 / 2000))
                .collect();
            let mut now = Instant::now();
            let start = now;
            let mut credit = Credit::new(RATE);
            credit.spend(now);
            let on_time = half.iter().cycle().take_while(|(pause, bytes)| {
                now += *pause;
                let on_time = credit.due().is_some_and(|due| due >= now);
                credit.earn(*bytes, now);
                on_time
            });
            prop_assert!(on_time.take(100_000).count() < 100_000);
            prop_assert!(now - start <= 4 * STALL);
        }
    }
}
