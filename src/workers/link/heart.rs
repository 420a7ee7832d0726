//! Whether a process lives: when it is asked, and what follows from its silence.
//!
//! Slots tell nothing here: one that is busy says nothing for as long as its request takes. The control
//! connection is served by a thread of its own, which answers unless the process is stopped, or
//! its interpreter is kept from every other thread by code that does not let go of it.
//!
//! Data and time alone; asking and acting are left to the hub.

use std::time::{Duration, Instant};

/// How often a process is asked.
const EVERY: Duration = Duration::from_secs(1);

/// How long a process that was asked for stacks may take. It has nothing else to do.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);

/// After so long without an answer it gets no new requests. Long enough for a machine that is overloaded.
const SILENCE: Duration = Duration::from_secs(5);

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Ask it.
    Ask,
    /// It was asked for stacks, and cannot say them.
    Mute,
    /// It gets no new requests until it answers.
    Silent,
    /// It has been silent for longer than the grace: it is to be replaced.
    Lost,
}

#[derive(Debug)]
pub struct Heart {
    /// Since when an answer is awaited.
    asked: Option<Instant>,
    next: Instant,
    /// Since when stacks are awaited that were asked for.
    stacks: Option<Instant>,
    silence: Silence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Silence {
    /// → Noted
    No,
    /// → No, Lost
    Noted,
    Lost,
}

impl Heart {
    pub fn new(now: Instant) -> Self {
        Self {
            asked: None,
            next: now + EVERY,
            stacks: None,
            silence: Silence::No,
        }
    }

    /// It is asked for stacks: what it answers next comes after them.
    pub fn stacks_asked(&mut self, now: Instant) {
        if self.asked.is_none() {
            self.next = now;
        }
        self.stacks.get_or_insert(now);
    }

    /// Call it at every tick, until None.
    pub fn beat(&mut self, now: Instant, grace: Duration) -> Option<Beat> {
        let Some(asked) = self.asked else {
            if now < self.next {
                return None;
            }
            self.asked = Some(now);
            self.next = now + EVERY;
            return Some(Beat::Ask);
        };
        let waited = now.saturating_duration_since(asked);
        let stacks = self.stacks;
        if stacks.is_some_and(|since| now.saturating_duration_since(since) >= ANSWERS_WITHIN) {
            self.stacks = None;
            return Some(Beat::Mute);
        }
        match self.silence {
            Silence::No if waited >= SILENCE => {
                self.silence = Silence::Noted;
                Some(Beat::Silent)
            }
            Silence::Noted if waited >= SILENCE + grace => {
                self.silence = Silence::Lost;
                Some(Beat::Lost)
            }
            _ => None,
        }
    }

    /// It has answered. True if it was silent; None if nobody had asked.
    pub fn answered(&mut self) -> Option<bool> {
        self.asked.take()?;
        self.stacks = None;
        let was = std::mem::replace(&mut self.silence, Silence::No);
        Some(was != Silence::No)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(10);

    fn at(start: Instant, seconds: f64) -> Instant {
        start + Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_process_that_answers_is_asked_every_second_and_no_more() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        let mut asked = 0;
        for tick in 0..100 {
            let now = at(start, f64::from(tick) * 0.25);
            while let Some(beat) = heart.beat(now, GRACE) {
                assert_eq!(beat, Beat::Ask);
                asked += 1;
            }
            // Not at once, but in time.
            if tick % 3 == 0 {
                heart.answered();
            }
        }
        assert!((17..25).contains(&asked), "{asked}");
        assert_eq!(heart.silence, Silence::No);
    }

    #[test]
    fn silence_is_noted_then_ends_the_process_after_the_grace() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        assert_eq!(heart.beat(at(start, 1.0), GRACE), Some(Beat::Ask));
        assert_eq!(heart.beat(at(start, 5.9), GRACE), None);
        assert_eq!(heart.beat(at(start, 6.0), GRACE), Some(Beat::Silent));
        assert_eq!(heart.beat(at(start, 15.9), GRACE), None);
        assert_eq!(heart.beat(at(start, 16.0), GRACE), Some(Beat::Lost));
        assert_eq!(heart.beat(at(start, 99.0), GRACE), None, "told once");
    }

    #[test]
    fn an_answer_ends_the_silence() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        assert_eq!(heart.answered(), None, "nobody asked");
        heart.beat(at(start, 1.0), GRACE);
        heart.beat(at(start, 6.0), GRACE);
        assert_eq!(heart.answered(), Some(true));
        assert_eq!(heart.beat(at(start, 6.5), GRACE), Some(Beat::Ask));
        assert_eq!(
            heart.beat(at(start, 7.5), GRACE),
            None,
            "asked a second ago"
        );
        assert_eq!(heart.answered(), Some(false));
    }

    #[test]
    fn a_process_that_does_not_say_stacks_is_told_of_soon_and_once() {
        let start = Instant::now();
        let mut heart = Heart::new(start);
        heart.stacks_asked(at(start, 0.5));
        assert_eq!(
            heart.beat(at(start, 0.5), GRACE),
            Some(Beat::Ask),
            "at once"
        );
        assert_eq!(heart.beat(at(start, 1.4), GRACE), None);
        assert_eq!(heart.beat(at(start, 1.5), GRACE), Some(Beat::Mute));
        assert_eq!(heart.beat(at(start, 2.0), GRACE), None);
        heart.answered();
        heart.stacks_asked(at(start, 3.0));
        assert_eq!(heart.beat(at(start, 3.0), GRACE), Some(Beat::Ask));
        heart.answered();
        assert_eq!(heart.beat(at(start, 3.9), GRACE), None, "it has said them");
    }
}
