//! A request body on its way in: memory first, then an unlinked file.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Spool, off_runtime};
use crate::metrics::SpooledBytes;

/// What fits here stays in memory and travels to the worker inside the frame.
const MEMORY: usize = 64 * 1024;

/// Bytes gathered before each write to the file, to spare hops between threads.
const WRITE: usize = 256 * 1024;

/// Collects a body. Dropping it half-way leaves nothing behind.
#[derive(Debug)]
pub struct Upload {
    spool: Spool,
    buffer: BytesMut,
    file: Option<File>,
    written: u64,
    spooled: SpooledBytes,
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
    pub file: File,
    pub len: u64,
    _spooled: SpooledBytes,
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
            file: None,
            written: 0,
            spooled: spool.metrics.spooled_bytes(),
        }
    }

    pub fn len(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Not cancel safe: a chunk may be lost.
    ///
    /// # Errors
    /// When the spool folder cannot take it.
    pub async fn push(&mut self, chunk: Bytes) -> io::Result<()> {
        self.buffer.extend_from_slice(&chunk);
        let room = if self.file.is_some() { WRITE } else { MEMORY };
        if self.buffer.len() > room {
            self.flush().await
        } else {
            Ok(())
        }
    }

    /// # Errors
    /// When the spool folder cannot take it.
    pub async fn finish(mut self) -> io::Result<Body> {
        if self.file.is_some() {
            self.flush().await?;
        }
        Ok(match self.file {
            None => Body::Memory(self.buffer.freeze()),
            Some(mut file) => {
                // Whoever gets the descriptor reads from its offset.
                file.rewind()?;
                let file = SpoolFile {
                    file,
                    len: self.written,
                    _spooled: self.spooled,
                };
                Body::File(Arc::new(file))
            }
        })
    }

    async fn flush(&mut self) -> io::Result<()> {
        let chunk = self.buffer.split().freeze();
        let len = chunk.len();
        let (spool, file) = (self.spool.clone(), self.file.take());
        let file = off_runtime(move || {
            let mut file = match file {
                Some(file) => file,
                None => spool.file()?,
            };
            file.write_all(&chunk)?;
            Ok(file)
        })
        .await?;
        self.file = Some(file);
        self.written += len as u64;
        self.spooled.add(len);
        Ok(())
    }
}
