//! What is kept of a request all its life, for people: what it is called, whose trace it belongs to,
//! and where its time went.
//!
//! One for each request, shared by whoever handles it. Nothing is decided by it: a request that is
//! recorded badly is answered all the same.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;

use crate::metrics::LabelSet as _;
pub use crate::metrics::Stage;
use crate::slots::SlotId;
use crate::spans::{Marker, Traced};
use crate::trace::Trace;

/// Longest id that is taken over from a proxy.
const LONGEST_ID: usize = 128;

/// So many stays in stages are kept one by one: enough for four parks. Of later ones only the sums are.
const MOST_STAYS: usize = 16;

/// What a request is called: in its headers, in the log, in what the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id(HeaderValue);

/// One stay of a request in a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stay {
    pub stage: Stage,
    /// Since the request's arrival.
    pub begins: Duration,
    pub lasts: Duration,
}

/// The time spent in each stage, and what there is to say of the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Course {
    pub body: Duration,
    pub queue: Duration,
    pub run: Duration,
    pub park: Duration,
    pub resume: Duration,
    pub answer: Duration,
    pub parks: u32,
    /// The slot that had it last, and the pid of its process.
    pub slot: Option<(SlotId, u32)>,
    /// Bytes of its body that have come.
    pub received: u64,
}

#[derive(Debug)]
pub struct Record {
    pub id: Id,
    pub trace: Option<Trace>,
    arrived: Instant,
    route: OnceLock<Arc<str>>,
    now: Mutex<Now>,
    /// None if it is not traced.
    spans: Option<Mutex<Traced>>,
}

#[derive(Debug)]
struct Now {
    stage: Stage,
    since: Instant,
    course: Course,
    begun: Begun,
}

/// Stages in the order in which they began, and when, in microseconds since the arrival.
#[derive(Debug)]
struct Begun {
    count: usize,
    /// When those began that there was no room for.
    rest: Option<u32>,
    stays: [(Stage, u32); MOST_STAYS],
}

impl Record {
    pub fn new(id: Id, trace: Option<Trace>, arrived: Instant) -> Arc<Self> {
        Self::traced(id, trace, arrived, None)
    }

    /// One that is told as spans, too, if there are any.
    pub fn traced(
        id: Id,
        trace: Option<Trace>,
        arrived: Instant,
        spans: Option<Traced>,
    ) -> Arc<Self> {
        let now = Mutex::new(Now {
            stage: Stage::Body,
            since: arrived,
            course: Course::default(),
            begun: Begun {
                count: 1,
                rest: None,
                stays: [(Stage::Body, 0); MOST_STAYS],
            },
        });
        Arc::new(Self {
            id,
            trace,
            arrived,
            route: OnceLock::new(),
            now,
            spans: spans.map(Mutex::new),
        })
    }

    /// It goes by the rules of this route.
    pub fn takes(&self, route: &Arc<str>) {
        // A request takes one route, once.
        let _ = self.route.set(Arc::clone(route));
        self.tell(|spans| spans.takes(route));
    }

    pub fn route(&self) -> Option<&Arc<str>> {
        self.route.get()
    }

    /// The request is in this stage from now on.
    pub fn enters(&self, stage: Stage) {
        let at = Instant::now();
        self.enters_at(stage, at);
        self.tell(|spans| spans.enters(stage, at));
    }

    /// A slot has taken it.
    pub fn runs(&self, slot: SlotId, pid: u32, since: Instant) {
        self.now().course.slot = Some((slot, pid));
        self.enters_at(Stage::Run, since);
        self.tell(|spans| spans.runs(slot, pid, since));
    }

    /// So many bytes of its body have come.
    pub fn received(&self, bytes: usize) {
        self.now().course.received += bytes as u64;
        self.tell(|spans| spans.received(bytes));
    }

    /// The record, if its request is traced.
    pub fn if_traced(self: &Arc<Self>) -> Option<Arc<Self>> {
        self.spans.as_ref().map(|_| Arc::clone(self))
    }

    /// Something that only spans tell.
    pub fn tell(&self, what: impl FnOnce(&mut Traced)) {
        if let Some(spans) = &self.spans {
            what(&mut spans.lock().expect("no code that holds this lock panics"));
        }
    }

    /// What its fetches say of the trace that they belong to; none without one.
    pub fn marker(&self) -> Option<Marker<'_>> {
        let trace = self.trace.as_ref()?;
        let mut marker = Marker {
            trace,
            origin: None,
        };
        self.tell(|spans| marker.origin = Some(spans.origin()));
        Some(marker)
    }

    /// How it went until now.
    pub fn course(&self, until: Instant) -> Course {
        let now = self.now();
        let mut course = now.course;
        *course.of(now.stage) += until.saturating_duration_since(now.since);
        course
    }

    /// Its stays in stages until now, one after the other; the first ones, if it had many.
    pub fn stays(&self, until: Instant) -> Vec<Stay> {
        let now = self.now();
        let begun = &now.begun;
        let since_arrival = |micros: u32| Duration::from_micros(micros.into());
        let end = match begun.rest {
            Some(rest) => since_arrival(rest),
            None => until.saturating_duration_since(self.arrived),
        };
        let kept = &begun.stays[..begun.count];
        let ends = kept[1..].iter().map(|(_, begins)| since_arrival(*begins));
        let stay = |(&(stage, begins), ends): (&(Stage, u32), Duration)| {
            let begins = since_arrival(begins);
            Stay {
                stage,
                begins,
                lasts: ends.saturating_sub(begins),
            }
        };
        kept.iter().zip(ends.chain([end])).map(stay).collect()
    }

    fn enters_at(&self, stage: Stage, at: Instant) {
        let mut now = self.now();
        let before = now.stage;
        now.enters(stage, at);
        if now.stage != before {
            let since = at.saturating_duration_since(self.arrived).as_micros();
            let stage = now.stage;
            now.begun
                .add(stage, u32::try_from(since).unwrap_or(u32::MAX));
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now
            .lock()
            .expect("no code that holds this lock panics")
    }
}

impl Begun {
    fn add(&mut self, stage: Stage, at: u32) {
        match self.stays.get_mut(self.count) {
            Some(place) => {
                *place = (stage, at);
                self.count += 1;
            }
            None => {
                self.rest.get_or_insert(at);
            }
        }
    }
}

impl Course {
    /// The stages that it had, with the time spent in each. All arrive with a head, so the body's stage
    /// counts only if there was a body.
    pub fn spent(&self) -> impl Iterator<Item = (Stage, Duration)> {
        let mut course = *self;
        if course.received == 0 {
            course.body = Duration::ZERO;
        }
        let stages = Stage::ALL
            .iter()
            .map(move |&stage| (stage, *course.of(stage)));
        stages.filter(|(_, time)| !time.is_zero())
    }

    /// The time spent in this stage.
    fn of(&mut self, stage: Stage) -> &mut Duration {
        match stage {
            Stage::Body => &mut self.body,
            Stage::Queue => &mut self.queue,
            Stage::Run => &mut self.run,
            Stage::Park => &mut self.park,
            Stage::Resume => &mut self.resume,
            Stage::Answer => &mut self.answer,
        }
    }
}

impl Now {
    fn enters(&mut self, stage: Stage, at: Instant) {
        *self.course.of(self.stage) += at.saturating_duration_since(self.since);
        self.since = at;
        if self.stage != Stage::Answer {
            self.stage = stage;
            self.course.parks += u32::from(stage == Stage::Park);
        }
    }
}

impl Id {
    /// A new one: 48 bits of time, so that ids sort as requests came, and 80 that nobody can guess.
    pub fn new() -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let millis = since_1970.unwrap_or_default().as_millis() as u64;
        let (high, low) = (unique(), unique());
        let mut digits = [0; 32];
        hex(millis << 16 | high & 0xffff, &mut digits[..16]);
        hex(low, &mut digits[16..]);
        let digits = Bytes::copy_from_slice(&digits);
        Self(HeaderValue::from_maybe_shared(digits).expect("hexadecimal digits are ASCII"))
    }

    /// One that a proxy made, if it is fit for headers, logs and file names everywhere.
    pub fn given(value: &HeaderValue) -> Option<Self> {
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:~+/=@".contains(byte);
        let value = value.as_bytes();
        let well_formed = (1..=LONGEST_ID).contains(&value.len()) && value.iter().all(fits);
        // A copy: the value is a part of the buffer that the head was read into.
        let copy = || HeaderValue::from_bytes(value).expect("it was one");
        well_formed.then(|| Self(copy()))
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("every id is made of ASCII")
    }

    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl Default for Id {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Another number each time, which tells nothing of those before: a count, hashed with a key that the
/// system's randomness gave. Asking the system each time would be a call into it for every request.
pub fn unique() -> u64 {
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEY.hash_one(COUNT.fetch_add(1, Relaxed))
}

/// The number's lowest digits, in lower case, as many as there is room for.
pub fn hex(mut number: u64, room: &mut [u8]) {
    for place in room.iter_mut().rev() {
        *place = b"0123456789abcdef"[(number & 0xf) as usize];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_sort_by_time() {
        let before = Id::new();
        std::thread::sleep(Duration::from_millis(2));
        let ids: Vec<Id> = (0..1000).map(|_| Id::new()).collect();
        let different: HashSet<&str> = ids.iter().map(Id::as_str).collect();
        assert_eq!(different.len(), ids.len());
        for id in &ids {
            let text = id.as_str();
            assert!(before.as_str() < text);
            assert_eq!(text.len(), 32);
            assert!(text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
        }
    }

    #[test]
    fn an_id_of_a_proxy_is_taken_if_it_can_do_no_harm() {
        let given = |text: &str| Id::given(&HeaderValue::from_bytes(text.as_bytes()).expect(text));
        for fine in [
            "a",
            "1f0a-B:2",
            "Root=1-67891233-abcdef012345678912345678",
            &"x".repeat(128),
        ] {
            assert_eq!(given(fine).expect(fine).as_str(), fine);
        }
        for bad in [
            "",
            "a b",
            "a\"b",
            "a,b",
            "a\\b",
            "\u{e4}",
            "<b>",
            &"x".repeat(129),
        ] {
            assert_eq!(given(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_moment_counts_for_one_stage() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let ms = Duration::from_millis;
        let record = Record::new(Id::new(), None, start);
        let enters = |stage, at| record.enters_at(stage, at);
        record.received(10);
        record.received(5);
        enters(Stage::Queue, at(1));
        record.runs(SlotId(3), 77, at(3));
        enters(Stage::Park, at(7));
        enters(Stage::Resume, at(15));
        record.runs(SlotId(4), 78, at(31));
        enters(Stage::Park, at(63));
        enters(Stage::Resume, at(63));
        record.runs(SlotId(4), 78, at(63));
        enters(Stage::Answer, at(64));
        // What goes on behind the head of the answer belongs to the answer.
        enters(Stage::Park, at(70));
        record.runs(SlotId(5), 79, at(80));
        let expected = Course {
            body: ms(1),
            queue: ms(2),
            run: ms(4 + 32 + 1),
            park: ms(8),
            resume: ms(16),
            answer: ms(36),
            parks: 2,
            slot: Some((SlotId(5), 79)),
            received: 15,
        };
        assert_eq!(record.course(at(100)), expected);

        let stays: Vec<(Stage, u64, u64)> = record
            .stays(at(100))
            .iter()
            .map(|stay| {
                (
                    stay.stage,
                    stay.begins.as_millis() as u64,
                    stay.lasts.as_millis() as u64,
                )
            })
            .collect();
        assert_eq!(
            stays,
            [
                (Stage::Body, 0, 1),
                (Stage::Queue, 1, 2),
                (Stage::Run, 3, 4),
                (Stage::Park, 7, 8),
                (Stage::Resume, 15, 16),
                (Stage::Run, 31, 32),
                (Stage::Park, 63, 0),
                (Stage::Resume, 63, 0),
                (Stage::Run, 63, 1),
                (Stage::Answer, 64, 36),
            ]
        );
    }

    #[test]
    fn a_request_that_is_looked_at_while_parked_is_parked_once() {
        let start = Instant::now();
        let record = Record::new(Id::new(), None, start);
        record.enters_at(Stage::Park, start);
        let later = start + Duration::from_secs(1);
        for _ in 0..3 {
            let course = record.course(later);
            assert_eq!((course.parks, course.park), (1, Duration::from_secs(1)));
        }
    }

    #[test]
    fn of_many_stays_the_first_are_kept_and_all_are_summed() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let record = Record::new(Id::new(), None, start);
        for turn in 0..100 {
            record.enters_at(Stage::Run, at(2 * turn + 1));
            record.enters_at(Stage::Park, at(2 * turn + 2));
        }
        let stays = record.stays(at(1000));
        assert_eq!(stays.len(), MOST_STAYS);
        let last = stays[MOST_STAYS - 1];
        assert_eq!(
            (last.stage, last.begins, last.lasts),
            (
                Stage::Run,
                Duration::from_millis(15),
                Duration::from_millis(1)
            )
        );
        let course = record.course(at(1000));
        assert_eq!(course.run, Duration::from_millis(100));
        assert_eq!(course.parks, 100);
    }
}
