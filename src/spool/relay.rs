//! A body from an origin to a client: a short pipe that makes the origin wait for the client.
//!
//! Nothing is spooled. The writer learns whether the client took everything. While memory is short the
//! pipe has room for one chunk only.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Gone, Limit};

/// Chunks between the two ends. A chunk is what the origin's connection gave at once: some ten KiB, and
/// not more than a few hundred.
const CHUNKS: usize = 4;

#[derive(Debug)]
enum Part {
    Chunk(Bytes),
    /// That was all.
    Whole,
}

/// What is under way counts against `memory`.
pub fn relay(memory: &Limit) -> (RelayWriter, RelayReader) {
    let (sender, parts) = mpsc::channel(CHUNKS);
    let taken = Arc::new(AtomicU64::new(0));
    let writer = RelayWriter {
        memory: memory.clone(),
        parts: sender,
        sent: 0,
        taken: Arc::clone(&taken),
    };
    (writer, RelayReader { parts, taken })
}

/// The origin's end. Dropping it without [`RelayWriter::finish`] cuts the body.
#[derive(Debug)]
pub struct RelayWriter {
    memory: Limit,
    parts: mpsc::Sender<Part>,
    /// Bytes, and how many of them the reader has taken.
    sent: u64,
    taken: Arc<AtomicU64>,
}

impl RelayWriter {
    /// Waits while the client is behind. Not cancel safe: a chunk may be lost.
    ///
    /// # Errors
    /// When nobody reads any more.
    pub async fn push(&mut self, chunk: Bytes) -> Result<(), Gone> {
        let len = chunk.len() as u64;
        let mut held = self.memory.hold();
        let room = if held.try_grow(len) { 1 } else { CHUNKS };
        let mut room = self.parts.reserve_many(room).await.map_err(|_| Gone)?;
        let place = room.next().expect("there is room for one at least");
        if held.is_empty() {
            held.grow(len);
        }
        self.sent += len;
        place.send(Part::Chunk(held.around(chunk)));
        Ok(())
    }

    /// The reader has taken all that there was so far.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Relaxed) == self.sent
    }

    /// Resolves when nobody reads any more. Cancel safe.
    pub async fn gone(&self) {
        self.parts.closed().await;
    }

    /// The body is whole.
    ///
    /// # Errors
    /// When the client left without some of it.
    pub async fn finish(self) -> Result<(), Gone> {
        // Who left with everything in hand does not need to be told.
        let _ = self.parts.send(Part::Whole).await;
        self.parts.closed().await;
        if self.is_taken() { Ok(()) } else { Err(Gone) }
    }
}

/// The client's end.
#[derive(Debug)]
pub struct RelayReader {
    parts: mpsc::Receiver<Part>,
    taken: Arc<AtomicU64>,
}

impl RelayReader {
    /// The next chunk; None at the end of a whole body. Cancel safe.
    ///
    /// # Errors
    /// When the body was cut.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        match self.parts.recv().await {
            Some(Part::Chunk(chunk)) => {
                self.taken.fetch_add(chunk.len() as u64, Relaxed);
                Ok(Some(chunk))
            }
            Some(Part::Whole) => Ok(None),
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the origin did not finish its response",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::metrics::Metrics;

    fn relay() -> (RelayWriter, RelayReader) {
        super::relay(&Limit::new(Metrics::new(&[]).body_memory_bytes()))
    }

    const CHUNK: Bytes = Bytes::from_static(b"chunk");

    #[tokio::test]
    async fn a_body_passes_and_its_writer_knows_that_it_was_taken() {
        let (mut writer, mut reader) = relay();
        writer.push(CHUNK).await.expect("room");
        let finished = tokio::spawn(writer.finish());
        assert_eq!(reader.next().await.expect("a chunk"), Some(CHUNK));
        assert_eq!(reader.next().await.expect("the end"), None);
        drop(reader);
        assert_eq!(finished.await.expect("no panic"), Ok(()));
    }

    #[tokio::test]
    async fn a_writer_waits_for_its_reader() {
        let (mut writer, mut reader) = relay();
        for _ in 0..CHUNKS {
            writer.push(CHUNK).await.expect("room");
        }
        assert!(writer.push(CHUNK).now_or_never().is_none());
        reader.next().await.expect("a chunk");
        writer.push(CHUNK).await.expect("room again");
    }

    #[tokio::test]
    async fn without_memory_one_chunk_at_a_time_passes() {
        let memory = Limit::new(Metrics::new(&[]).body_memory_bytes());
        memory.set(0);
        let (mut writer, mut reader) = super::relay(&memory);
        for _ in 0..3 {
            writer.push(CHUNK).await.expect("the pipe is empty");
            assert!(writer.push(CHUNK).now_or_never().is_none());
            assert_eq!(reader.next().await.expect("a chunk"), Some(CHUNK));
        }
    }

    #[tokio::test]
    async fn a_reader_that_leaves_is_noticed_at_every_point() {
        let (mut writer, reader) = relay();
        writer.push(CHUNK).await.expect("room");
        drop(reader);
        writer.gone().await;
        assert_eq!(writer.push(CHUNK).await, Err(Gone));

        let (mut writer, reader) = relay();
        writer.push(CHUNK).await.expect("room");
        let finished = tokio::spawn(writer.finish());
        drop(reader);
        assert_eq!(finished.await.expect("no panic"), Err(Gone));

        // All that was announced may be all that a reader asks for.
        let (mut writer, mut reader) = relay();
        writer.push(CHUNK).await.expect("room");
        reader.next().await.expect("a chunk");
        drop(reader);
        assert_eq!(writer.finish().await, Ok(()));
    }

    #[tokio::test]
    async fn a_writer_that_stops_cuts_the_body() {
        let (mut writer, mut reader) = relay();
        writer.push(CHUNK).await.expect("room");
        drop(writer);
        assert_eq!(reader.next().await.expect("a chunk"), Some(CHUNK));
        assert!(reader.next().await.is_err());
    }
}
