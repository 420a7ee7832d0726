//! What is kept of a request all its life, for people: what it is called, whose trace it belongs to,
//! and where its time went.
//!
//! One for each request, shared by whoever handles it. Nothing is decided by it: a request that is
//! recorded badly is answered all the same.

use std::hash::BuildHasher;
use std::hash::RandomState;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::HeaderValue;

use crate::slots::SlotId;
use crate::spans::{Marker, Traced};
use crate::trace::Trace;

/// Longest id that is taken over from a proxy.
const LONGEST_ID: usize = 128;

/// What a request is called: in its headers, in the log, in what the client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id(HeaderValue);

/// Where a request is, from its client's point of view.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Its body is on the way. → Queue, Answer
    Body,
    /// It waits for its first slot. → Run, Answer
    Queue,
    /// It has a slot, and may wait in place there. → Park, Answer
    Run,
    /// It waits without a slot. → Resume, Answer
    Park,
    /// It waits for a slot to go on. → Run, Answer
    Resume,
    /// The head of its answer is made. What the application does for it from here on is no wait for
    /// its beginning: the stage is the last.
    Answer,
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
    /// None if nobody will ask: reading the clock at every turn is most of what a record costs.
    now: Option<Mutex<Now>>,
    /// None if it is not traced.
    spans: Option<Mutex<Traced>>,
}

#[derive(Debug)]
struct Now {
    stage: Stage,
    since: Instant,
    course: Course,
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
        let now = Some(Mutex::new(Now {
            stage: Stage::Body,
            since: arrived,
            course: Course::default(),
        }));
        Arc::new(Self {
            id,
            trace,
            now,
            spans: spans.map(Mutex::new),
        })
    }

    /// One whose course is not kept.
    pub fn untimed(id: Id, trace: Option<Trace>) -> Arc<Self> {
        Arc::new(Self {
            id,
            trace,
            now: None,
            spans: None,
        })
    }

    /// The request is in this stage from now on.
    pub fn enters(&self, stage: Stage) {
        if let Some(mut now) = self.now() {
            let at = Instant::now();
            now.enters(stage, at);
            self.tell(|spans| spans.enters(stage, at));
        }
    }

    /// A slot has taken it.
    pub fn runs(&self, slot: SlotId, pid: u32, since: Instant) {
        if let Some(mut now) = self.now() {
            now.course.slot = Some((slot, pid));
            now.enters(Stage::Run, since);
            self.tell(|spans| spans.runs(slot, pid, since));
        }
    }

    /// So many bytes of its body have come.
    pub fn received(&self, bytes: usize) {
        if let Some(mut now) = self.now() {
            now.course.received += bytes as u64;
            self.tell(|spans| spans.received(bytes));
        }
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

    /// How it went until now, as far as that is kept.
    pub fn course(&self, until: Instant) -> Course {
        let Some(mut now) = self.now() else {
            return Course::default();
        };
        let stage = now.stage;
        now.enters(stage, until);
        now.course
    }

    fn now(&self) -> Option<MutexGuard<'_, Now>> {
        let now = self.now.as_ref()?;
        Some(now.lock().expect("no code that holds this lock panics"))
    }
}

impl Now {
    fn enters(&mut self, stage: Stage, at: Instant) {
        let course = &mut self.course;
        let spent = match self.stage {
            Stage::Body => &mut course.body,
            Stage::Queue => &mut course.queue,
            Stage::Run => &mut course.run,
            Stage::Park => &mut course.park,
            Stage::Resume => &mut course.resume,
            Stage::Answer => &mut course.answer,
        };
        *spent += at.saturating_duration_since(self.since);
        self.since = at;
        if self.stage != Stage::Answer {
            self.stage = stage;
            course.parks += u32::from(stage == Stage::Park);
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
        let enters = |stage, at| record.now().expect("it is timed").enters(stage, at);
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

        let untimed = Record::untimed(Id::new(), None);
        untimed.runs(SlotId(3), 77, at(3));
        untimed.received(10);
        assert_eq!(untimed.course(at(100)), Course::default());
    }
}
