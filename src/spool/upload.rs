//! A request body on its way in: memory first, then an unlinked file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Held, Spool};

/// What fits here stays in memory, while there is some, and travels to the worker inside the frame.
const MEMORY: usize = 64 * 1024;

/// Bytes gathered before each write to the file, to spare hops between threads.
const WRITE: usize = 256 * 1024;

/// Collects a body. Dropping it half-way leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    spool: Spool,
    buffer: BytesMut,
    /// What is in the buffer.
    memory: Held,
    file: Option<Arc<File>>,
    written: u64,
    disk: Held,
}

/// Bytes that are all there.
#[derive(Debug, Clone)]
pub enum Body {
    Memory(Bytes),
    File(Arc<SpoolFile>),
}

/// An unlinked file that holds a whole body, from offset 0. Its room on disk is accounted for
/// until the last one lets go of it.
#[derive(Debug)]
pub struct SpoolFile {
    pub file: Arc<File>,
    pub len: u64,
    _disk: Held,
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(file) => file.len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it takes of the gateway's memory.
    pub fn retained(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_) => 0,
        }
    }
}

impl Upload {
    pub fn new(spool: &Spool) -> Self {
        Self {
            spool: spool.clone(),
            buffer: BytesMut::new(),
            memory: spool.0.memory.hold(),
            file: None,
            written: 0,
            disk: spool.0.disk.hold(),
        }
    }

    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Not cancel safe: a chunk may be lost.
    ///
    /// # Errors
    /// When there is no room for it on disk.
    pub async fn push(&mut self, chunk: Bytes) -> io::Result<()> {
        let remembered = self.spool.remembers(&mut self.memory, chunk.len() as u64);
        self.buffer.extend_from_slice(&chunk);
        let room = if self.file.is_some() { WRITE } else { MEMORY };
        if self.buffer.len() > room || !remembered {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// When there is no room for it on disk.
    pub async fn finish(mut self) -> io::Result<Body> {
        if self.file.is_some() {
            self.flush().await?;
        }
        Ok(match self.file {
            None if self.buffer.is_empty() => Body::Memory(Bytes::new()),
            None => Body::Memory(self.memory.around(self.buffer.freeze())),
            Some(file) => {
                // Whoever gets the descriptor reads from its offset.
                (&*file).rewind()?;
                let file = SpoolFile {
                    file,
                    len: self.written,
                    _disk: self.disk,
                };
                Body::File(Arc::new(file))
            }
        })
    }

    async fn flush(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        let len = chunk.len() as u64;
        self.spool.reserve(&mut self.disk, len)?;
        let write = move |mut file: &File| file.write_all(&chunk);
        self.file = Some(self.spool.write(self.file.take(), write).await?);
        self.written += len;
        self.memory.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bodies;
    use crate::metrics::Metrics;

    fn spool(memory_limit: u64, spool_limit: u64) -> Spool {
        let spool = Spool::new(std::env::temp_dir(), Metrics::new(&[])).expect("a folder");
        spool.set(&Bodies {
            memory_limit,
            spool_limit,
            answer_spool: 0,
        });
        spool
    }

    async fn upload(spool: &Spool, len: usize) -> io::Result<Body> {
        let mut upload = Upload::new(spool);
        for chunk in vec![b'x'; len].chunks(10_000) {
            upload.push(Bytes::copy_from_slice(chunk)).await?;
        }
        upload.finish().await
    }

    #[tokio::test]
    async fn without_memory_a_small_body_goes_to_disk() {
        let spool = spool(15_000, u64::MAX);
        let first = upload(&spool, 10_000).await.expect("there is room");
        assert_eq!(first.retained(), 10_000);
        let second = upload(&spool, 10_000).await.expect("there is room");
        assert!(matches!(&second, Body::File(file) if file.len == 10_000));
        drop(first);
        let third = upload(&spool, 10_000).await.expect("there is room");
        assert_eq!(third.retained(), 10_000);
    }

    #[tokio::test]
    async fn a_body_beyond_the_limit_is_refused_until_there_is_room_again() {
        let spool = spool(u64::MAX, 150_000);
        let first = upload(&spool, 100_000).await.expect("there is room");
        let refused = upload(&spool, 100_000).await.expect_err("no room");
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        let small = upload(&spool, 60_000).await.expect("memory is enough");
        assert_eq!(small.retained(), 60_000);
        drop(first);
        upload(&spool, 100_000).await.expect("there is room again");
    }
}
