//! The last minutes, for people: how many requests, how long they took, and which were the slowest.
//!
//! Kept so that who looks sees what has just been, without a metrics server. Everything is bounded: a row of
//! samples, and a few requests of each half minute. What is kept of a request is its path without the
//! query, never more.
//!
//! A request's time is here the time until its answer began, without what its client took to send
//! the body: a reader of a long download is not a slow request.

mod latency;
mod slowest;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::Method;

use crate::record::{Course, Record, Stay};
use latency::Latency;
use slowest::Slowest;

/// How much time a sample is of.
pub const SAMPLE: Duration = Duration::from_secs(2);

/// Five minutes of them.
const SAMPLES: usize = 150;

/// Clones share what they keep.
#[derive(Debug, Clone)]
pub struct Recent(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    since: Instant,
    ended: u64,
    failed: u64,
    latency: Latency,
    samples: VecDeque<Sample>,
    slowest: Slowest,
}

/// What happened in the time of one sample, and how it stood at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    pub requests_per_second: f64,
    /// Of those, answered with 500 and above.
    pub errors_per_second: f64,
    /// None if no request ended.
    pub latency: Option<Quantiles>,
    pub levels: Levels,
}

/// In seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Levels {
    pub busy: usize,
    pub queued: usize,
    pub parked: usize,
}

/// A request that is over.
#[derive(Debug)]
pub struct Ended<'e> {
    pub method: &'e Method,
    /// As the client sent it. None if it was not fit to be one.
    pub target: Option<&'e str>,
    pub record: &'e Record,
    pub course: Course,
    pub at: Instant,
    pub seconds: Duration,
    pub status: u16,
    /// Why the answer is not the application's.
    pub why: Option<&'static str>,
}

/// One of the slowest.
#[derive(Debug, Clone)]
pub struct Slow {
    pub request_id: String,
    pub method: Method,
    pub path: ShownPath,
    pub route: Option<Arc<str>>,
    pub status: u16,
    pub why: Option<&'static str>,
    pub ended: Instant,
    /// What it is ranked by.
    pub to_answer: Duration,
    /// Until the last byte of its answer.
    pub whole: Duration,
    pub stays: Vec<Stay>,
    pub course: Course,
}

/// The path of a request target, fit to be shown: no query, and not arbitrarily long.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ShownPath(String);

/// Longest path that is shown; the rest is cut off.
const SHOWN_PATH: usize = 200;

impl Recent {
    pub fn new(now: Instant) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            since: now,
            ended: 0,
            failed: 0,
            latency: Latency::default(),
            samples: VecDeque::with_capacity(SAMPLES),
            slowest: Slowest::new(now),
        })))
    }

    pub fn ended(&self, request: &Ended<'_>) {
        let course = &request.course;
        let client = course.body + course.answer;
        let to_answer = request.seconds.saturating_sub(client);
        let mut kept = self.kept();
        kept.ended += 1;
        kept.failed += u64::from(request.status >= 500);
        kept.latency.add(to_answer);
        // What never reached a queue or a file is nobody's slowness.
        let Some(target) = request.target else { return };
        kept.slowest.offer(to_answer, request.at, || {
            Slow::of(request, target, to_answer)
        });
    }

    /// Ends a sample. Called every [`SAMPLE`].
    pub fn sample(&self, levels: Levels, now: Instant) {
        let mut kept = self.kept();
        let seconds = now.saturating_duration_since(kept.since).as_secs_f64();
        if seconds <= 0.0 {
            return;
        }
        let sample = Sample {
            requests_per_second: kept.ended as f64 / seconds,
            errors_per_second: kept.failed as f64 / seconds,
            latency: kept.latency.quantiles(),
            levels,
        };
        if kept.samples.len() == SAMPLES {
            kept.samples.pop_front();
        }
        kept.samples.push_back(sample);
        kept.since = now;
        kept.ended = 0;
        kept.failed = 0;
        kept.latency = Latency::default();
    }

    /// The oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.kept().samples.iter().copied().collect()
    }

    /// The slowest requests of the last five minutes, the slowest first.
    pub fn slowest(&self, now: Instant) -> Vec<Slow> {
        self.kept().slowest.list(now)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

impl Slow {
    fn of(request: &Ended<'_>, target: &str, to_answer: Duration) -> Self {
        let record = request.record;
        Self {
            request_id: record.id.to_string(),
            method: request.method.clone(),
            path: ShownPath::new(target),
            route: record.route().cloned(),
            status: request.status,
            why: request.why,
            ended: request.at,
            to_answer,
            whole: request.seconds,
            stays: record.stays(request.at),
            course: request.course,
        }
    }
}

impl ShownPath {
    pub fn new(target: &str) -> Self {
        let path = target.split(['?', '#']).next().unwrap_or_default();
        Self(path.chars().take(SHOWN_PATH).collect())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ShownPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Id, Stage};

    const MS: Duration = Duration::from_millis(1);

    fn end(recent: &Recent, status: u16, target: &str, course: Course, at: Instant) {
        let record = Record::new(Id::new(), None, at);
        record.takes(&"/shop".into());
        let seconds = course.spent().map(|(_, time)| time).sum();
        recent.ended(&Ended {
            method: &Method::GET,
            target: Some(target),
            record: &record,
            course,
            at,
            seconds,
            status,
            why: None,
        });
    }

    fn ran(time: Duration) -> Course {
        Course {
            run: time,
            ..Course::default()
        }
    }

    #[test]
    fn a_sample_is_of_its_time_alone() {
        let start = Instant::now();
        let recent = Recent::new(start);
        for _ in 0..8 {
            end(&recent, 200, "/a", ran(100 * MS), start);
        }
        end(&recent, 502, "/a", ran(2000 * MS), start);
        end(&recent, 404, "/a", ran(100 * MS), start);
        let levels = Levels {
            busy: 3,
            queued: 2,
            parked: 1,
        };
        recent.sample(levels, start + SAMPLE);
        recent.sample(Levels::default(), start + 2 * SAMPLE);
        let [first, second] = recent.samples()[..] else {
            panic!("two samples")
        };
        assert_eq!(first.requests_per_second, 5.0);
        assert_eq!(first.errors_per_second, 0.5);
        assert_eq!(first.levels, levels);
        let latency = first.latency.expect("requests ended");
        assert!((0.09..0.11).contains(&latency.p50), "{latency:?}");
        assert!((1.8..2.2).contains(&latency.p99), "{latency:?}");
        assert_eq!((second.requests_per_second, second.latency), (0.0, None));
    }

    #[test]
    fn samples_are_kept_for_five_minutes() {
        let start = Instant::now();
        let recent = Recent::new(start);
        for number in 1..1000 {
            let levels = Levels {
                busy: number,
                ..Levels::default()
            };
            recent.sample(levels, start + SAMPLE * number as u32);
        }
        let samples = recent.samples();
        assert_eq!(samples.len(), SAMPLES);
        assert_eq!(samples.last().map(|sample| sample.levels.busy), Some(999));
    }

    #[test]
    fn a_slow_client_is_no_slow_request() {
        let start = Instant::now();
        let recent = Recent::new(start);
        let slow_reader = Course {
            received: 1,
            body: 4000 * MS,
            run: 10 * MS,
            answer: 9000 * MS,
            ..Course::default()
        };
        end(&recent, 200, "/download", slow_reader, start);
        end(&recent, 200, "/slow?card=1234", ran(500 * MS), start);
        let slowest = recent.slowest(start);
        let told: Vec<_> = slowest
            .iter()
            .map(|slow| (slow.path.as_str(), slow.to_answer.as_millis()))
            .collect();
        assert_eq!(told, [("/slow", 500), ("/download", 10)]);
        assert_eq!(slowest[0].route.as_deref(), Some("/shop"));
        assert_eq!(slowest[0].stays[0].stage, Stage::Body);
    }

    #[test]
    fn a_shown_path_has_no_query_and_an_end() {
        assert_eq!(ShownPath::new("/a/b?token=s3cret").as_str(), "/a/b");
        assert_eq!(ShownPath::new("/a#token=s3cret").as_str(), "/a");
        let long = format!("/{}", "é".repeat(5000));
        assert_eq!(ShownPath::new(&long).as_str().chars().count(), 200);
    }
}
