//! What is shown of a gateway, and where in it the person is. Data and keys; how it looks is for `screen`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::status::{Reading, Slot, Status};

/// A gateway that was asked so long ago is said to be silent.
const SILENT: Duration = Duration::from_secs(3);

/// What can be done from the keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    Quit,
    /// Ask the gateway at once.
    Refresh,
    /// The next order of the slots.
    Sort,
    /// Hold the picture still.
    Pause,
    /// To the other list.
    Other,
    Up(usize),
    Down(usize),
}

/// What the slots are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    Number,
    /// The longest first.
    Time,
    Path,
}

/// The list that the arrows move in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Slots,
    Slow,
}

pub struct View {
    pub admin: SocketAddr,
    pub reading: Option<Reading>,
    pub rates: Rates,
    /// Why the gateway was not to be had when it was last asked, and since when.
    pub lost: Option<(String, Instant)>,
    pub paused: bool,
    pub sort: Sort,
    pub list: List,
    /// Lines that each list is scrolled down by.
    pub slots_down: usize,
    pub slow_down: usize,
}

/// Per second, between the last two readings.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rates {
    pub requests: f64,
    pub shed: f64,
    pub fetches: f64,
    /// Of them, without a good answer.
    pub failed: f64,
}

impl View {
    pub fn new(admin: SocketAddr) -> Self {
        Self {
            admin,
            reading: None,
            rates: Rates::default(),
            lost: None,
            paused: false,
            sort: Sort::Number,
            list: List::Slots,
            slots_down: 0,
            slow_down: 0,
        }
    }

    /// The gateway has answered.
    pub fn reads(&mut self, reading: Reading) {
        self.lost = None;
        if self.paused {
            return;
        }
        if let Some(before) = &self.reading {
            self.rates = Rates::between(before, &reading);
        }
        self.reading = Some(reading);
    }

    /// It has not.
    pub fn loses(&mut self, why: String) {
        let since = self
            .lost
            .take()
            .map_or_else(Instant::now, |(_, since)| since);
        self.lost = Some((why, since));
    }

    /// How long it has been silent, if that is long.
    pub fn silent(&self, now: Instant) -> Option<Duration> {
        let reading = self.reading.as_ref()?;
        let age = now.saturating_duration_since(reading.at);
        (age >= SILENT && !self.paused).then_some(age)
    }

    pub fn press(&mut self, key: Key) {
        match key {
            Key::Quit | Key::Refresh => {}
            Key::Sort => {
                self.sort = match self.sort {
                    Sort::Number => Sort::Time,
                    Sort::Time => Sort::Path,
                    Sort::Path => Sort::Number,
                };
            }
            Key::Pause => self.paused = !self.paused,
            Key::Other => {
                self.list = match self.list {
                    List::Slots => List::Slow,
                    List::Slow => List::Slots,
                };
            }
            Key::Up(lines) => *self.down() = self.down().saturating_sub(lines),
            // Whoever draws knows where the end is.
            Key::Down(lines) => *self.down() = self.down().saturating_add(lines),
        }
    }

    fn down(&mut self) -> &mut usize {
        match self.list {
            List::Slots => &mut self.slots_down,
            List::Slow => &mut self.slow_down,
        }
    }
}

impl Sort {
    pub fn as_str(self) -> &'static str {
        match self {
            Sort::Number => "number",
            Sort::Time => "time",
            Sort::Path => "path",
        }
    }

    /// The slots in this order.
    pub fn slots(self, status: &Status) -> Vec<&Slot> {
        let mut slots: Vec<&Slot> = status.slots.list.iter().collect();
        let seconds = |slot: &Slot| slot.job.as_ref().map_or(-1.0, |job| job.seconds);
        let path = |slot: &Slot| slot.job.as_ref().map(|job| job.path.as_str().to_owned());
        match self {
            Sort::Number => {}
            Sort::Time => slots.sort_by(|a, b| seconds(b).total_cmp(&seconds(a))),
            // Those without a job last.
            Sort::Path => slots.sort_by_key(|slot| (slot.job.is_none(), path(slot))),
        }
        slots
    }
}

impl Rates {
    fn between(before: &Reading, after: &Reading) -> Self {
        let seconds = after.at.saturating_duration_since(before.at).as_secs_f64();
        if seconds <= 0.0 {
            return Self::default();
        }
        // A gateway that was started anew counts from nothing.
        let per_second = |more: f64| (more / seconds).max(0.0);
        let more = |name: &str| after.metrics.of(name) - before.metrics.of(name);
        let fine = |outcome: &str| {
            let of = |reading: &Reading| {
                let metrics = &reading.metrics;
                metrics.with("layby_fetches_total", "outcome", outcome)
            };
            of(after) - of(before)
        };
        let fetches = more("layby_fetches_total");
        Self {
            requests: per_second(more("layby_requests_total")),
            shed: per_second(more("layby_requests_shed_total")),
            fetches: per_second(fetches),
            failed: per_second(fetches - fine("ok") - fine("aborted")),
        }
    }
}
