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

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Held, Spool, off_runtime};

/// Per answer, in memory.
const MEMORY: usize = 256 * 1024;

/// Read from the file at a time.
const READ: u64 = 128 * 1024;

/// Nobody reads this answer any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

#[derive(Debug)]
enum Segment {
    Memory(Bytes),
    File { offset: u64, len: u64 },
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
    memory: usize,
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
    Disk(u64),
    /// There is no room before the reader has taken something.
    Later,
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
    fn remember(&mut self, chunk: Bytes) {
        self.memory += chunk.len();
        self.segments.push_back(Segment::Memory(chunk));
    }
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
    (writer, AnswerReader { pipe })
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
                Place::Disk(offset) => {
                    if self.write(&chunk, offset).await {
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
        let len = chunk.len() as u64;
        if len == 0 {
            return Ok(Place::Memory);
        }
        // Memory again only once the file has been read out, to keep the order.
        let in_order = state.disk == 0;
        let fits = state.memory == 0 || state.memory + chunk.len() <= MEMORY;
        let mut held = self.spool.0.memory.hold();
        if in_order && fits && self.spool.remembers(&mut held, len) {
            state.remember(held.around(chunk.clone()));
            self.pipe.filled.notify_one();
            return Ok(Place::Memory);
        }
        if in_order {
            state.file_end = 0;
        }
        let end = state.file_end + len;
        if !disk_fails && end <= self.spool.answer_most() {
            let growth = end.saturating_sub(state.longest);
            if self.spool.reserve(&mut state.file_held, growth).is_ok() {
                state.longest = state.longest.max(end);
                let offset = std::mem::replace(&mut state.file_end, end);
                state.disk += len;
                return Ok(Place::Disk(offset));
            }
        }
        if state.segments.is_empty() && in_order && state.memory == 0 {
            // The reader waits for it. One chunk for each answer is bounded by the number of those.
            held.grow(len);
            state.remember(held.around(chunk.clone()));
            self.pipe.filled.notify_one();
            return Ok(Place::Memory);
        }
        Ok(Place::Later)
    }

    /// False if the disk takes no more; then nothing has happened.
    async fn write(&self, chunk: &Bytes, offset: u64) -> bool {
        let (bytes, len) = (chunk.clone(), chunk.len() as u64);
        let file = self.pipe.state().file.clone();
        let write = move |file: &File| file.write_all_at(&bytes, offset);
        let written = self.spool.write(file, write).await;
        let mut state = self.pipe.state();
        match written {
            Ok(file) => {
                state.file = Some(file);
                state.segments.push_back(Segment::File { offset, len });
                self.pipe.filled.notify_one();
                true
            }
            Err(_) => {
                state.file_end = offset;
                state.disk -= len;
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
}

impl AnswerReader {
    pub fn watch(&self) -> AnswerWatch {
        AnswerWatch {
            pipe: Arc::clone(&self.pipe),
        }
    }

    /// The next chunk; None at the end of a whole body. Cancel safe only between chunks.
    ///
    /// # Errors
    /// When the body was cut, or the spool file cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(segment) = self.pop()? {
                return match segment {
                    Segment::Memory(bytes) => Ok(Some(bytes)),
                    Segment::File { offset, len } => self.read(offset, len).await.map(Some),
                };
            }
            if matches!(self.pipe.state().end, Some(End::Whole))
                && self.pipe.state().segments.is_empty()
            {
                return Ok(None);
            }
            self.pipe.filled.notified().await;
        }
    }

    /// # Errors
    /// When nothing is left of a cut body.
    fn pop(&mut self) -> io::Result<Option<Segment>> {
        let mut state = self.pipe.state();
        match state.segments.pop_front() {
            Some(Segment::Memory(bytes)) => {
                state.memory -= bytes.len();
                self.pipe.drained.notify_one();
                Ok(Some(Segment::Memory(bytes)))
            }
            Some(Segment::File { offset, len }) if len > READ => {
                state.segments.push_front(Segment::File {
                    offset: offset + READ,
                    len: len - READ,
                });
                Ok(Some(Segment::File { offset, len: READ }))
            }
            None if matches!(state.end, Some(End::Cut)) => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the worker did not finish its answer",
            )),
            segment => Ok(segment),
        }
    }

    async fn read(&mut self, offset: u64, len: u64) -> io::Result<Bytes> {
        let file = match &self.pipe.state().file {
            Some(file) => Arc::clone(file),
            None => unreachable!("a file segment is pushed after its file"),
        };
        let bytes = off_runtime(move || {
            let mut bytes = vec![0; len as usize];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(bytes)
        })
        .await?;
        // Only now may the writer start the file anew.
        self.pipe.state().disk -= len;
        self.pipe.drained.notify_one();
        Ok(bytes.into())
    }
}

impl Drop for AnswerReader {
    fn drop(&mut self) {
        let mut state = self.pipe.state();
        state.reader_gone = true;
        state.segments.clear();
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
        for number in 1..6 {
            read(&mut reader, number).await;
        }
        assert_eq!(reader.next().await.expect("no error"), None);
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
        assert_eq!(metrics.body_memory_bytes().get(), 2 * CHUNK as i64);
        assert_eq!(metrics.spool_bytes().get(), 3 * CHUNK as i64);
        drop(writer);
        drop(reader);
        assert_eq!(metrics.body_memory_bytes().get(), 0);
        assert_eq!(metrics.spool_bytes().get(), 0);
    }
}
