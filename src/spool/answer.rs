//! An answer's body on its way out: a bounded pipe from the worker to the client.
//!
//! The worker must not wait for a slow reader, so what the reader has not fetched yet is kept, first
//! in memory, then in an unlinked file. Only past both bounds does the writer wait.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use tokio::sync::Notify;

use super::{Spool, off_runtime};
use crate::metrics::SpooledBytes;

/// Per answer, in memory.
const MEMORY: usize = 256 * 1024;

/// Per answer, on disk. A worker with more to say waits for its reader.
const DISK: u64 = 256 * 1024 * 1024;

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

#[derive(Debug, Default)]
struct State {
    segments: VecDeque<Segment>,
    memory: usize,
    /// Bytes of file segments not yet read, and where the next one goes.
    disk: u64,
    file_end: u64,
    file: Option<Disk>,
    end: Option<End>,
    reader_gone: bool,
}

/// The file, and what it takes for as long as either end may need it.
#[derive(Debug)]
struct Disk {
    file: Arc<File>,
    spooled: SpooledBytes,
    longest: u64,
}

impl Disk {
    fn written_to(&mut self, end: u64) {
        self.spooled.add(end.saturating_sub(self.longest) as usize);
        self.longest = self.longest.max(end);
    }
}

#[derive(Debug)]
struct Pipe {
    state: Mutex<State>,
    filled: Notify,
    drained: Notify,
    /// The reader is gone. Both ends' watches may wait for it.
    left: Notify,
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
        state: Mutex::default(),
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
    /// Takes a chunk; waits only when memory and disk are full. Not cancel safe: a chunk may be lost.
    ///
    /// # Errors
    /// [`Gone`] when nobody reads any more. A full disk cuts the body and counts as gone too.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), Gone> {
        if chunk.is_empty() {
            return if self.pipe.state().reader_gone {
                Err(Gone)
            } else {
                Ok(())
            };
        }
        let Some((file, offset)) = self.place(&chunk).await? else {
            return Ok(());
        };
        let len = chunk.len();
        let spool = self.spool.clone();
        let written = off_runtime(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(spool.file()?),
            };
            file.write_all_at(&chunk, offset)?;
            Ok(file)
        })
        .await;
        let mut state = self.pipe.state();
        match written {
            Ok(file) => {
                let disk = state.file.get_or_insert_with(|| Disk {
                    file,
                    spooled: self.spool.metrics.spooled_bytes(),
                    longest: 0,
                });
                disk.written_to(offset + len as u64);
                state.segments.push_back(Segment::File {
                    offset,
                    len: len as u64,
                });
                self.pipe.filled.notify_one();
                Ok(())
            }
            Err(error) => {
                tracing::error!(%error, "answer cut: the spool folder takes no more");
                state.end = Some(End::Cut);
                self.pipe.filled.notify_one();
                Err(Gone)
            }
        }
    }

    /// Keeps the chunk in memory (None), or says where in which file it belongs.
    async fn place(&self, chunk: &Bytes) -> Result<Option<(Option<Arc<File>>, u64)>, Gone> {
        let mut counted = false;
        loop {
            {
                let mut state = self.pipe.state();
                if state.reader_gone {
                    return Err(Gone);
                }
                // Memory again only once the file has been read out, to keep the order.
                if state.disk == 0 && (state.memory == 0 || state.memory + chunk.len() <= MEMORY) {
                    state.memory += chunk.len();
                    state.segments.push_back(Segment::Memory(chunk.clone()));
                    self.pipe.filled.notify_one();
                    return Ok(None);
                }
                if state.disk == 0 {
                    state.file_end = 0;
                }
                if state.file_end + chunk.len() as u64 <= DISK {
                    let offset = state.file_end;
                    state.file_end += chunk.len() as u64;
                    state.disk += chunk.len() as u64;
                    let file = state.file.as_ref().map(|disk| Arc::clone(&disk.file));
                    return Ok(Some((file, offset)));
                }
            }
            if !counted {
                self.spool.metrics.answer_backpressure();
                counted = true;
            }
            self.pipe.drained.notified().await;
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
            Some(disk) => Arc::clone(&disk.file),
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
