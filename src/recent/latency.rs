//! How times are spread, in little memory: a count for each range, ranges growing with the time.
//!
//! Eight ranges for each doubling, so that a quantile is off by a sixteenth at most. Finer than the
//! buckets of the metrics, because these few are not kept for months.

use std::time::Duration;

use super::Quantiles;

/// Ranges for each doubling.
const FINE: u32 = 8;

/// From 8 µs to some 19 hours; what is beyond counts as at the end.
const RANGES: usize = 33 * FINE as usize;

#[derive(Debug, Clone)]
pub struct Latency {
    counts: Box<[u32; RANGES]>,
    all: u32,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            counts: Box::new([0; RANGES]),
            all: 0,
        }
    }
}

impl Latency {
    pub fn add(&mut self, time: Duration) {
        self.counts[range(time)] += 1;
        self.all += 1;
    }

    pub fn quantiles(&self) -> Option<Quantiles> {
        (self.all > 0).then(|| Quantiles {
            p50: self.quantile(0.50),
            p95: self.quantile(0.95),
            p99: self.quantile(0.99),
        })
    }

    /// In seconds.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = (f64::from(self.all) * share).ceil().max(1.0) as u64;
        let mut below = 0;
        let reached = self.counts.iter().position(|&count| {
            below += u64::from(count);
            below >= wanted
        });
        middle(reached.unwrap_or(RANGES - 1)) / 1e6
    }
}

fn range(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let micros = micros.max(FINE.into());
    let doublings = micros.ilog2() - FINE.ilog2();
    let within = (micros >> doublings) as u32 - FINE;
    ((doublings * FINE + within) as usize).min(RANGES - 1)
}

/// In microseconds.
fn middle(range: usize) -> f64 {
    let (doublings, within) = (range as u32 / FINE, range as u32 % FINE);
    (f64::from(FINE + within) + 0.5) * 2f64.powi(doublings as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_near_the_middle_of_its_range() {
        let mut micros = 8.0f64;
        while micros < 6e10 {
            let near = middle(range(Duration::from_micros(micros as u64)));
            assert!((near / micros - 1.0).abs() < 0.09, "{micros} {near}");
            micros *= 1.013;
        }
    }

    #[test]
    fn times_without_measure_have_a_place() {
        assert_eq!(range(Duration::ZERO), 0);
        assert_eq!(range(Duration::MAX), RANGES - 1);
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut latency = Latency::default();
        assert_eq!(latency.quantiles(), None);
        for millis in 1..=1000 {
            latency.add(Duration::from_millis(millis));
        }
        let Quantiles { p50, p95, p99 } = latency.quantiles().expect("there are times");
        for (quantile, right) in [(p50, 0.5), (p95, 0.95), (p99, 0.99)] {
            assert!((quantile / right - 1.0).abs() < 0.09, "{quantile} {right}");
        }
    }
}
