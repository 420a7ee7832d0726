//! How far a file is read ahead of whoever takes what is read.
//!
//! A piece counts as memory of bodies until the last byte of it has been taken. A few may be out at a time;
//! while memory is short only one, which is small, and the next is read when it has been taken.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Held, Limit};

/// Read at a time. Larger pieces are hardly cheaper, and slow readers each have some.
pub const PIECE: u64 = 64 * 1024;

/// The same, while memory is short.
const SMALL: u64 = 8 * 1024;

/// Pieces of one body that are out at a time.
const PIECES: u32 = 4;

#[derive(Debug)]
pub struct Ahead {
    memory: Limit,
    places: Arc<Semaphore>,
    piece: u64,
}

/// What a piece takes, until it has been taken.
#[derive(Debug)]
pub struct Room {
    pub len: u64,
    held: Held,
    place: OwnedSemaphorePermit,
}

impl Ahead {
    pub fn new(memory: &Limit) -> Self {
        Self {
            memory: memory.clone(),
            places: Arc::new(Semaphore::new(PIECES as usize)),
            piece: PIECE,
        }
    }

    /// No more than this at a time.
    pub fn at_most(&mut self, piece: u64) {
        self.piece = piece;
    }

    /// Room for the next piece of what is left. Waits while too much has not been taken. Cancel safe.
    pub async fn room(&self, left: u64) -> Room {
        let mut place = self.places(1).await;
        let mut held = self.memory.hold();
        let mut len = left.min(self.piece);
        if !held.try_grow(len) {
            place.merge(self.places(PIECES - 1).await);
            len = left.min(SMALL);
            held.grow(len);
        }
        Room { len, held, place }
    }

    async fn places(&self, count: u32) -> OwnedSemaphorePermit {
        let places = Arc::clone(&self.places).acquire_many_owned(count).await;
        places.expect("nobody closes it")
    }
}

impl Room {
    /// The piece, which takes its room with it.
    pub fn around(self, bytes: Vec<u8>) -> Bytes {
        Bytes::from_owner(Piece {
            bytes,
            _held: self.held,
            _place: self.place,
        })
    }
}

struct Piece {
    bytes: Vec<u8>,
    _held: Held,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::metrics::Metrics;

    async fn piece(ahead: &Ahead) -> Bytes {
        let room = ahead.room(u64::MAX).await;
        let bytes = vec![0; room.len as usize];
        room.around(bytes)
    }

    #[tokio::test]
    async fn a_few_pieces_are_out_at_a_time_and_count() {
        let metrics = Metrics::new(&[]);
        let ahead = Ahead::new(&Limit::new(metrics.body_memory_bytes()));
        let mut out = Vec::new();
        for _ in 0..PIECES {
            out.push(piece(&ahead).await);
        }
        let held = || metrics.body_memory_bytes().get() as u64;
        assert_eq!(held(), u64::from(PIECES) * PIECE);
        assert!(piece(&ahead).now_or_never().is_none());
        // As long as anybody has some of it.
        let rest = out[0].slice(1..2);
        out.remove(0);
        assert!(piece(&ahead).now_or_never().is_none());
        drop(rest);
        assert!(piece(&ahead).now_or_never().is_some());
        drop(out);
        assert_eq!(held(), 0);
    }

    #[tokio::test]
    async fn while_memory_is_short_one_small_piece_is_out() {
        let metrics = Metrics::new(&[]);
        let memory = Limit::new(metrics.body_memory_bytes());
        let ahead = Ahead::new(&memory);
        let large = piece(&ahead).await;
        memory.set(0);
        assert!(piece(&ahead).now_or_never().is_none(), "the first is out");
        drop(large);
        for _ in 0..2 {
            let small = piece(&ahead).await;
            assert_eq!(small.len() as u64, SMALL);
            assert!(piece(&ahead).now_or_never().is_none());
        }
    }
}
