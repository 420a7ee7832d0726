//! An answer's body on its way out: a bounded pipe from the worker to the client.
//!
//! The worker must not wait for a slow reader, so what the reader has not fetched yet is kept, first
//! in memory, then in an unlinked file. Only past both bounds, or while there is no room on disk, does
//! the writer wait; one part at a time always passes.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::{Bytes, BytesMut};
use tokio::sync::Notify;

use super::ahead::Ahead;
use super::{Held, Spool, off_runtime};

/// Per answer, in memory.
const MEMORY: usize = 256 * 1024;

/// Past that, so much is gathered before it is written to the file, to spare hops between threads. A reader
/// who has come so far does not wait for it.
const WRITE: usize = 64 * 1024;

/// Chunks that wait for their reader are put together up to this size: each by itself may take a hundred times
/// its bytes.
const JOINED: usize = 16 * 1024;

/// What a segment takes beside its bytes, about.
const OVERHEAD: u64 = 256;

/// Nobody reads this answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

#[derive(Debug)]
enum Segment {
    /// A chunk as it came.
    Chunk(Bytes, Held),
    /// Small ones, put together.
    Joined(BytesMut, Held),
    File {
        offset: u64,
        len: u64,
    },
}

/// What a reader finds.
enum Next {
    Bytes(Bytes),
    /// So much in the file.
    File(u64),
    /// There is no more yet.
    Nothing,
    End,
}

#[derive(Debug)]
enum End {
    Whole,
    /// The worker died or said that the body is not whole.
    Cut,
}

#[derive(Debug)]
struct State {
    segments: VecDeque<Segment>,
    /// Bytes of segments in memory.
    memory: usize,
    /// What comes behind all segments, and is to be written with what follows.
    gathered: BytesMut,
    gathered_held: Held,
    /// Bytes of file segments not yet read, and where the next one goes.
    disk: u64,
    file_end: u64,
    file: Option<Arc<File>>,
    /// What the file takes, until both ends are gone.
    file_held: Held,
    longest: u64,
    end: Option<End>,
    reader_gone: bool,
}

/// Where a chunk goes.
#[derive(Debug)]
enum Place {
    Memory,
    Disk(Write),
    /// There is no room before the reader has taken something.
    Later,
}

/// What goes to disk before a chunk, and where.
#[derive(Debug)]
struct Write {
    offset: u64,
    gathered: Bytes,
    held: Held,
}

#[derive(Debug)]
struct Pipe {
    state: Mutex<State>,
    filled: Notify,
    drained: Notify,
    /// The reader is gone. Both ends' watches may wait for it.
    left: Notify,
}

impl State {
    /// What a chunk in memory takes.
    fn takes(&self, chunk: &Bytes) -> u64 {
        let overhead = match self.segments.back() {
            Some(Segment::Joined(bytes, _)) if joins(bytes, chunk) => 0,
            _ => OVERHEAD,
        };
        chunk.len() as u64 + overhead
    }

    fn remember(&mut self, chunk: Bytes, held: Held) {
        self.memory += chunk.len();
        match self.segments.back_mut() {
            Some(Segment::Joined(bytes, all)) if joins(bytes, &chunk) => {
                bytes.extend_from_slice(&chunk);
                all.join(held);
            }
            // The reader is behind: more will wait.
            Some(_) if chunk.len() < JOINED => {
                let joined = BytesMut::from(&chunk[..]);
                self.segments.push_back(Segment::Joined(joined, held));
            }
            _ => self.segments.push_back(Segment::Chunk(chunk, held)),
        }
    }

    /// So much is in the file.
    fn wrote(&mut self, at: u64, more: u64) {
        match self.segments.back_mut() {
            Some(Segment::File { offset, len }) if *offset + *len == at => *len += more,
            _ => self.segments.push_back(Segment::File {
                offset: at,
                len: more,
            }),
        }
    }
}

fn joins(bytes: &BytesMut, chunk: &Bytes) -> bool {
    bytes.len() + chunk.len() <= JOINED
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code that holds this lock panics")
    }

    async fn reader_gone(&self) {
        loop {
            // Made before the look, so that nothing can be missed between.
            let left = self.left.notified();
            if self.state().reader_gone {
                return;
            }
            left.await;
        }
    }
}

/// A pipe for one answer.
pub fn answer(spool: &Spool) -> (AnswerWriter, AnswerReader) {
    let pipe = Arc::new(Pipe {
        state: Mutex::new(State {
            segments: VecDeque::new(),
            memory: 0,
            gathered: BytesMut::new(),
            gathered_held: spool.0.memory.hold(),
            disk: 0,
            file_end: 0,
            file: None,
            file_held: spool.0.disk.hold(),
            longest: 0,
            end: None,
            reader_gone: false,
        }),
        filled: Notify::new(),
        drained: Notify::new(),
        left: Notify::new(),
    });
    let writer = AnswerWriter {
        pipe: Arc::clone(&pipe),
        spool: spool.clone(),
    };
    let ahead = Ahead::new(&spool.0.memory);
    (writer, AnswerReader { pipe, ahead })
}

/// The worker's end. Dropping it without [`AnswerWriter::finish`] cuts the body.
#[derive(Debug)]
pub struct AnswerWriter {
    pipe: Arc<Pipe>,
    spool: Spool,
}

impl AnswerWriter {
    /// Takes a chunk; waits only while there is no room for it. Not cancel safe: a chunk may be lost.
    ///
    /// # Errors
    /// [`Gone`] when nobody reads any more.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), Gone> {
        let mut counted = false;
        let mut disk_fails = false;
        loop {
            match self.place(&chunk, disk_fails)? {
                Place::Memory => return Ok(()),
                Place::Disk(write) => {
                    if self.write(&chunk, write).await {
                        return Ok(());
                    }
                    disk_fails = true;
                }
                Place::Later => {
                    if !counted {
                        self.spool.0.metrics.answer_backpressure();
                        counted = true;
                    }
                    self.pipe.drained.notified().await;
                    disk_fails = false;
                }
            }
        }
    }

    /// Keeps the chunk in memory, or finds it a place on disk.
    fn place(&self, chunk: &Bytes, disk_fails: bool) -> Result<Place, Gone> {
        let mut state = self.pipe.state();
        if state.reader_gone {
            return Err(Gone);
        }
        if chunk.is_empty() {
            return Ok(Place::Memory);
        }
        // Memory again only once all that is past it has been read, to keep the order.
        let in_order = state.disk == 0 && state.gathered.is_empty();
        let fits = state.memory == 0 || state.memory + chunk.len() <= MEMORY;
        let takes = state.takes(chunk);
        let mut held = self.spool.0.memory.hold();
        if in_order && fits {
            if self.spool.remembers(&mut held, takes) {
                state.remember(chunk.clone(), held);
                self.pipe.filled.notify_one();
                return Ok(Place::Memory);
            }
        } else if state.gathered.len() + chunk.len() <= WRITE
            && self.spool.remembers(&mut held, chunk.len() as u64)
        {
            state.gathered.extend_from_slice(chunk);
            state.gathered_held.join(held);
            self.pipe.filled.notify_one();
            return Ok(Place::Memory);
        }
        if state.disk == 0 {
            state.file_end = 0;
        }
        let len = (state.gathered.len() + chunk.len()) as u64;
        let end = state.file_end + len;
        if !disk_fails && end <= self.spool.answer_most() {
            let growth = end.saturating_sub(state.longest);
            if self.spool.reserve(&mut state.file_held, growth).is_ok() {
                state.longest = state.longest.max(end);
                let offset = std::mem::replace(&mut state.file_end, end);
                state.disk += len;
                let nothing = self.spool.0.memory.hold();
                return Ok(Place::Disk(Write {
                    offset,
                    gathered: state.gathered.split().freeze(),
                    held: std::mem::replace(&mut state.gathered_held, nothing),
                }));
            }
        }
        if state.segments.is_empty() && in_order && state.memory == 0 {
            // The reader waits for it. One chunk for each answer is bounded by the number of those.
            held.grow(takes);
            state.remember(chunk.clone(), held);
            self.pipe.filled.notify_one();
            return Ok(Place::Memory);
        }
        Ok(Place::Later)
    }

    /// False if the disk takes no more; then nothing has happened.
    async fn write(&self, chunk: &Bytes, write: Write) -> bool {
        let Write {
            offset,
            gathered,
            held,
        } = write;
        let len = (gathered.len() + chunk.len()) as u64;
        let (first, then) = (gathered.clone(), chunk.clone());
        let file = self.pipe.state().file.clone();
        let write = move |file: &File| {
            file.write_all_at(&first, offset)?;
            file.write_all_at(&then, offset + first.len() as u64)
        };
        let written = self.spool.write(file, write).await;
        let mut state = self.pipe.state();
        match written {
            Ok(file) => {
                state.file = Some(file);
                state.wrote(offset, len);
                self.pipe.filled.notify_one();
                true
            }
            Err(_) => {
                state.file_end = offset;
                state.disk -= len;
                state.gathered.extend_from_slice(&gathered);
                state.gathered_held = held;
                self.pipe.filled.notify_one();
                false
            }
        }
    }

    /// The body is whole.
    pub fn finish(self) {
        self.pipe.state().end.get_or_insert(End::Whole);
    }

    /// Resolves when nobody reads any more. Cancel safe.
    pub async fn gone(&self) {
        self.pipe.reader_gone().await;
    }
}

impl Drop for AnswerWriter {
    fn drop(&mut self) {
        self.pipe.state().end.get_or_insert(End::Cut);
        self.pipe.filled.notify_one();
    }
}

/// Sees whether an answer is still read.
#[derive(Debug, Clone)]
pub struct AnswerWatch {
    pipe: Arc<Pipe>,
}

impl AnswerWatch {
    /// Resolves when the reader has left before the end of the body. Cancel safe.
    pub async fn abandoned(&self) {
        self.pipe.reader_gone().await;
        if self.pipe.state().end.is_some() {
            std::future::pending().await
        }
    }
}

/// The client's end.
#[derive(Debug)]
pub struct AnswerReader {
    pipe: Arc<Pipe>,
    ahead: Ahead,
}

impl AnswerReader {
    pub fn watch(&self) -> AnswerWatch {
        AnswerWatch {
            pipe: Arc::clone(&self.pipe),
        }
    }

    /// What is read from the file comes in pieces no larger than this.
    pub fn read_in(&mut self, piece: usize) {
        self.ahead.at_most(piece as u64);
    }

    /// The next chunk; None at the end of a whole body. Cancel safe only between chunks.
    ///
    /// # Errors
    /// When the body was cut, or the spool file cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            match self.pop()? {
                Next::Bytes(bytes) => return Ok(Some(bytes)),
                Next::File(len) => return self.read(len).await.map(Some),
                Next::End => return Ok(None),
                Next::Nothing => self.pipe.filled.notified().await,
            }
        }
    }

    /// # Errors
    /// When nothing is left of a cut body.
    fn pop(&mut self) -> io::Result<Next> {
        let mut state = self.pipe.state();
        if let Some(Segment::File { len, .. }) = state.segments.front() {
            return Ok(Next::File(*len));
        }
        let (bytes, held) = match state.segments.pop_front() {
            Some(Segment::Chunk(bytes, held)) => (bytes, held),
            Some(Segment::Joined(bytes, held)) => (bytes.freeze(), held),
            Some(Segment::File { .. }) => unreachable!("just looked at"),
            None if !state.gathered.is_empty() => {
                let mut held = state.gathered_held.limit().hold();
                std::mem::swap(&mut held, &mut state.gathered_held);
                self.pipe.drained.notify_one();
                return Ok(Next::Bytes(held.around(state.gathered.split().freeze())));
            }
            None => {
                return match state.end {
                    Some(End::Whole) => Ok(Next::End),
                    None => Ok(Next::Nothing),
                    Some(End::Cut) => Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the worker did not finish its answer",
                    )),
                };
            }
        };
        state.memory -= bytes.len();
        self.pipe.drained.notify_one();
        Ok(Next::Bytes(held.around(bytes)))
    }

    /// Reads on in the file, where so much waits.
    async fn read(&mut self, waits: u64) -> io::Result<Bytes> {
        let room = self.ahead.room(waits).await;
        let (file, at) = {
            let mut state = self.pipe.state();
            let Some(Segment::File { offset, len }) = state.segments.front_mut() else {
                unreachable!("nobody else takes it");
            };
            let at = *offset;
            *offset += room.len;
            *len -= room.len;
            if *len == 0 {
                state.segments.pop_front();
            }
            let file = state.file.clone();
            (file.expect("a file segment is pushed after its file"), at)
        };
        let len = room.len;
        let bytes = off_runtime(move || {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, at)?;
            Ok(bytes)
        })
        .await?;
        // Only now may the writer start the file anew.
        self.pipe.state().disk -= len;
        self.pipe.drained.notify_one();
        Ok(room.around(bytes))
    }
}

impl Drop for AnswerReader {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.reader_gone = true;
        state.segments.clear();
        state.gathered.clear();
        state.gathered_held.clear();
        self.pipe.drained.notify_one();
        self.pipe.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::config::Bodies;
    use crate::metrics::Metrics;

    const CHUNK: usize = 100_000;

    fn spool(memory_limit: u64, spool_limit: u64) -> Spool {
        let spool = Spool::new(std::env::temp_dir(), Metrics::new(&[])).expect("a folder");
        spool.set(&Bodies {
            memory_limit,
            spool_limit,
            answer_spool: u64::MAX,
        });
        spool
    }

    fn chunk(number: u8) -> Bytes {
        Bytes::from(vec![number; CHUNK])
    }

    async fn read(reader: &mut AnswerReader, number: u8) {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK {
            let part = reader.next().await.expect("no error").expect("more");
            chunk.extend_from_slice(&part);
        }
        assert!(chunk.len() == CHUNK && chunk.iter().all(|byte| *byte == number));
    }

    /// To its end, however it is cut into parts.
    async fn rest(reader: &mut AnswerReader) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(part) = reader.next().await.expect("no error") {
            all.extend_from_slice(&part);
        }
        all
    }

    #[tokio::test]
    async fn what_has_no_place_in_memory_goes_to_disk_and_keeps_its_order() {
        let spool = spool(150_000, u64::MAX);
        let (mut writer, mut reader) = answer(&spool);
        for number in 0..5 {
            writer.push(chunk(number)).await.expect("there is room");
        }
        read(&mut reader, 0).await;
        writer.push(chunk(5)).await.expect("there is room");
        writer.finish();
        let all: Vec<u8> = (1..6).flat_map(chunk).collect();
        assert!(rest(&mut reader).await == all);
    }

    #[tokio::test]
    async fn without_any_room_one_part_at_a_time_passes() {
        let spool = spool(0, 0);
        let (mut writer, mut reader) = answer(&spool);
        writer.push(chunk(0)).await.expect("it is waited for");
        assert!(writer.push(chunk(1)).now_or_never().is_none());
        for number in 0..3 {
            read(&mut reader, number).await;
            writer
                .push(chunk(number + 1))
                .await
                .expect("it is waited for");
        }
        writer.finish();
        read(&mut reader, 3).await;
        assert_eq!(reader.next().await.expect("no error"), None);
    }

    #[tokio::test]
    async fn small_chunks_take_little_more_than_their_bytes() {
        let metrics = Metrics::new(&[]);
        let spool = Spool::new(std::env::temp_dir(), metrics.clone()).expect("a folder");
        let (mut writer, mut reader) = answer(&spool);
        let mut pushed = Vec::new();
        for number in 0..10_000 {
            let chunk = vec![number as u8; 1 + number % 80];
            pushed.extend_from_slice(&chunk);
            writer.push(chunk.into()).await.expect("there is room");
        }
        let segments = writer.pipe.state().segments.len();
        // Memory, and what went past it: one stretch of the file, though in several writes.
        assert!(segments <= MEMORY / JOINED + 4, "{segments} segments");
        let memory = metrics.body_memory_bytes().get() as usize;
        assert!(memory <= MEMORY + WRITE + segments * OVERHEAD as usize);
        let on_disk = metrics.spool_bytes().get() as usize;
        assert!(on_disk > 0 && on_disk + memory >= pushed.len());
        writer.finish();
        assert!(rest(&mut reader).await == pushed);
        assert_eq!(metrics.body_memory_bytes().get(), 0);
    }

    #[tokio::test]
    async fn what_is_gathered_for_the_disk_keeps_no_reader_waiting() {
        let metrics = Metrics::new(&[]);
        let spool = Spool::new(std::env::temp_dir(), metrics.clone()).expect("a folder");
        let (mut writer, mut reader) = answer(&spool);
        for number in 0..2 {
            writer.push(chunk(number)).await.expect("there is room");
        }
        let small = Bytes::from_static(&[7; 63_000]);
        writer.push(small.clone()).await.expect("there is room");
        assert_eq!(metrics.spool_bytes().get(), 0);
        for number in 0..2 {
            read(&mut reader, number).await;
        }
        let came = reader.next().now_or_never().expect("it is there");
        assert_eq!(came.expect("no error"), Some(small));
        writer.push(chunk(3)).await.expect("there is room");
        read(&mut reader, 3).await;
    }

    #[tokio::test]
    async fn a_disk_that_fails_holds_an_answer_back_and_cuts_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let spool = Spool::new(folder.path().to_owned(), Metrics::new(&[])).expect("a folder");
        drop(folder);
        let (mut writer, mut reader) = answer(&spool);
        for number in 0..2 {
            writer.push(chunk(number)).await.expect("memory is enough");
        }
        let pushed = tokio::spawn(async move {
            writer.push(chunk(2)).await.expect("after a while");
            writer.finish();
        });
        for number in 0..3 {
            read(&mut reader, number).await;
        }
        assert_eq!(reader.next().await.expect("no error"), None);
        pushed.await.expect("no panic");
    }

    #[tokio::test]
    async fn nothing_is_held_when_both_ends_are_gone() {
        let metrics = Metrics::new(&[]);
        let spool = Spool::new(std::env::temp_dir(), metrics.clone()).expect("a folder");
        let (mut writer, reader) = answer(&spool);
        for number in 0..5 {
            writer.push(chunk(number)).await.expect("there is room");
        }
        let memory = 2 * (CHUNK as u64 + OVERHEAD);
        assert_eq!(metrics.body_memory_bytes().get() as u64, memory);
        assert_eq!(metrics.spool_bytes().get(), 3 * CHUNK as i64);
        drop(writer);
        drop(reader);
        assert_eq!(metrics.body_memory_bytes().get(), 0);
        assert_eq!(metrics.spool_bytes().get(), 0);
    }
}
