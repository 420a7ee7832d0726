//! The slowest requests of the last five minutes: a few of each half minute, so that the memory they take
//! is bounded, and one bad minute does not push out what came before and after it.

use std::time::{Duration, Instant};

use super::Slow;

const WINDOW: Duration = Duration::from_secs(30);
const WINDOWS: usize = 10;
const PER_WINDOW: usize = 10;

/// So many are told.
const TOLD: usize = 20;

#[derive(Debug)]
pub struct Slowest {
    start: Instant,
    windows: [Window; WINDOWS],
}

#[derive(Debug, Default)]
struct Window {
    /// Which half minute since the start it is of.
    number: u64,
    /// In no order.
    slow: Vec<Slow>,
}

impl Slowest {
    pub fn new(start: Instant) -> Self {
        Self {
            start,
            windows: Default::default(),
        }
    }

    /// Keeps what `slow` makes if the request is among the slowest of its half minute; if not, as nearly always,
    /// that costs no more than a look.
    pub fn offer(&mut self, time: Duration, ended: Instant, slow: impl FnOnce() -> Slow) {
        let number = self.number(ended);
        let window = &mut self.windows[(number % WINDOWS as u64) as usize];
        if window.number != number {
            window.number = number;
            window.slow.clear();
        }
        if window.slow.len() < PER_WINDOW {
            window.slow.push(slow());
            return;
        }
        let quickest = window.slow.iter_mut().min_by_key(|slow| slow.to_answer);
        if let Some(quickest) = quickest
            && quickest.to_answer < time
        {
            *quickest = slow();
        }
    }

    /// The slowest first.
    pub fn list(&self, now: Instant) -> Vec<Slow> {
        let number = self.number(now);
        let recent = |window: &&Window| window.number + WINDOWS as u64 > number;
        let windows = self.windows.iter().filter(recent);
        let mut list: Vec<Slow> = windows.flat_map(|window| window.slow.clone()).collect();
        list.sort_by_key(|slow| std::cmp::Reverse(slow.to_answer));
        list.truncate(TOLD);
        list
    }

    fn number(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.start).as_secs() / WINDOW.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::recent::ShownPath;
    use crate::record::Course;

    fn slow(time: Duration, ended: Instant) -> Slow {
        Slow {
            request_id: String::new(),
            method: Method::GET,
            path: ShownPath::new("/"),
            route: None,
            status: 200,
            why: None,
            ended,
            to_answer: time,
            whole: time,
            stays: Vec::new(),
            course: Course::default(),
        }
    }

    fn offer(slowest: &mut Slowest, millis: u64, ended: Instant) {
        let time = Duration::from_millis(millis);
        slowest.offer(time, ended, || slow(time, ended));
    }

    fn told(slowest: &Slowest, now: Instant) -> Vec<u128> {
        let list = slowest.list(now);
        list.iter().map(|slow| slow.to_answer.as_millis()).collect()
    }

    #[test]
    fn of_each_half_minute_the_slowest_are_kept() {
        let start = Instant::now();
        let mut slowest = Slowest::new(start);
        for millis in 0..1000 {
            // In an order that is neither rising nor falling.
            offer(&mut slowest, millis * 387 % 1000, start);
        }
        assert_eq!(
            told(&slowest, start),
            (990..1000).rev().collect::<Vec<u128>>()
        );
        let later = start + WINDOW;
        offer(&mut slowest, 5, later);
        assert_eq!(told(&slowest, later).len(), 11);
    }

    #[test]
    fn nothing_is_told_for_longer_than_five_minutes_and_nothing_grows() {
        let start = Instant::now();
        let mut slowest = Slowest::new(start);
        offer(&mut slowest, 70_000, start);
        assert_eq!(told(&slowest, start + 9 * WINDOW), [70_000]);
        assert!(told(&slowest, start + 10 * WINDOW).is_empty());
        for number in 0..100 {
            for millis in 0..100 {
                offer(&mut slowest, millis, start + number * WINDOW);
            }
        }
        let kept: usize = slowest.windows.iter().map(|window| window.slow.len()).sum();
        assert_eq!(kept, WINDOWS * PER_WINDOW);
        assert_eq!(told(&slowest, start + 99 * WINDOW).len(), TOLD);
    }
}
