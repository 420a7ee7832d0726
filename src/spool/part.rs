//! A part of a file of the application's, on its way out.
//!
//! The file belongs to the worker, who opened it and promises not to change it. It is read off the
//! runtime, a piece at a time, as the client takes it: memory holds a few pieces, the spool nothing.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{OFlags, fcntl_getfl};

use super::ahead::{Ahead, PIECE};
use super::{Limit, off_runtime};

/// Bytes of a file that are still to be read.
#[derive(Debug)]
pub struct FilePart {
    file: Arc<File>,
    offset: u64,
    left: u64,
    /// None where what is read does not count.
    ahead: Option<Ahead>,
}

impl FilePart {
    /// # Errors
    /// Why this descriptor cannot be read like a file, for the log. Anything that is not a regular file
    /// could make its reader wait for ever.
    pub async fn new(file: OwnedFd, offset: u64, len: u64) -> Result<Self, &'static str> {
        let looked = off_runtime(move || {
            let readable = fcntl_getfl(&file)? & OFlags::ACCMODE != OFlags::WRONLY;
            let file = File::from(file);
            Ok((file.metadata()?.is_file(), readable, file))
        });
        match looked.await {
            Ok((true, true, file)) => Ok(Self {
                file: Arc::new(file),
                offset,
                left: len,
                ahead: None,
            }),
            Ok((false, ..)) => Err("its body's descriptor is not that of a regular file"),
            Ok((true, false, _)) => Err("its body's descriptor is not open for reading"),
            Err(_) => Err("its body's descriptor is of no use"),
        }
    }

    /// Of a file that is known to be a regular one.
    pub fn regular(file: impl Into<Arc<File>>, offset: u64, len: u64) -> Self {
        Self {
            file: file.into(),
            offset,
            left: len,
            ahead: None,
        }
    }

    /// The same part, of which what has been read and not taken counts against `memory`.
    pub fn counted(mut self, memory: &Limit) -> Self {
        self.ahead = Some(Ahead::new(memory));
        self
    }

    /// Pieces are no larger than this. For one that is counted.
    pub fn read_in(&mut self, piece: usize) {
        if let Some(ahead) = &mut self.ahead {
            ahead.at_most(piece as u64);
        }
    }

    pub fn len(&self) -> u64 {
        self.left
    }

    /// The next piece; None at the end. Not cancel safe: a piece may be lost.
    ///
    /// # Errors
    /// When the file is shorter than it was said to be, or cannot be read.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        let room = match &self.ahead {
            Some(ahead) => Some(ahead.room(self.left).await),
            None => None,
        };
        let len = room.as_ref().map_or(self.left.min(PIECE), |room| room.len);
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let piece = off_runtime(move || {
            let mut piece = vec![0; len as usize];
            file.read_exact_at(&mut piece, offset)?;
            Ok(piece)
        })
        .await?;
        self.offset += len;
        self.left -= len;
        Ok(Some(match room {
            Some(room) => room.around(piece),
            None => piece.into(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::metrics::Metrics;

    fn file(bytes: &[u8]) -> OwnedFd {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(bytes).expect("room");
        file.into()
    }

    async fn read(mut part: FilePart) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = part.next().await? {
            assert!(piece.len() as u64 <= PIECE);
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_part_is_read_in_pieces_and_no_further() {
        let bytes: Vec<u8> = (0..PIECE * 2 + 20).map(|at| (at % 251) as u8).collect();
        let part = FilePart::new(file(&bytes), 7, PIECE * 2 + 3).await;
        let part = part.expect("a file");
        assert_eq!(part.len(), PIECE * 2 + 3);
        let all = read(part).await.expect("it is all there");
        assert!(all == bytes[7..bytes.len() - 10]);
    }

    #[tokio::test]
    async fn what_is_read_counts_until_it_is_taken() {
        let metrics = Metrics::new(&[]);
        let memory = Limit::new(metrics.body_memory_bytes());
        let part = FilePart::new(file(&[7; 50_000]), 0, 50_000).await;
        let mut part = part.expect("a file").counted(&memory);
        part.read_in(16 * 1024);
        let piece = part.next().await.expect("it is there").expect("a piece");
        assert_eq!((piece.len(), part.len()), (16 * 1024, 50_000 - 16 * 1024));
        assert_eq!(metrics.body_memory_bytes().get(), 16 * 1024);
        drop(piece);
        let rest = read(part).await.expect("it is all there");
        assert_eq!(rest.len(), 50_000 - 16 * 1024);
        assert_eq!(metrics.body_memory_bytes().get(), 0);
    }

    #[tokio::test]
    async fn a_file_that_is_too_short_is_an_error() {
        let part = FilePart::new(file(b"12345"), 2, 4).await.expect("a file");
        let error = read(part).await.expect_err("three bytes are there");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn only_files_that_can_be_read_are_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        let (pipe, _writer) = std::io::pipe().expect("a pipe");
        let (socket, _other) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let writable = File::create(path).expect("a file").into();
        let directory = File::open(folder.path()).expect("a folder").into();
        for descriptor in [pipe.into(), socket.into(), directory, writable] {
            assert!(FilePart::new(descriptor, 0, 0).await.is_err());
        }
    }
}
