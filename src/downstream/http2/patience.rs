//! How much a client may ask of a connection beside its requests.
//!
//! PING, SETTINGS, PRIORITY, RST_STREAM, WINDOW_UPDATE and unknown frames cost their sender almost nothing and
//! make work here. Every one is paid from a purse that time, bodies and answered requests fill again: clients
//! that use HTTP/2 as it is meant never come near its bottom. Floods of CONTINUATION, empty DATA and
//! requests are bounded by h2 itself.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::PREFACE;

/// What the purse holds at most, in frames.
const PURSE: u64 = 1000;

/// Filled into it each second.
const PER_SECOND: u64 = 100;

/// Bytes of bodies, either way, that are worth a frame. Clients open the window at least after every frame
/// of 16 KiB, and for stream and connection.
const BYTES: u64 = 256;

/// A reset request costs as much, because it may have begun; an answered one brings it back.
const RESET: u64 = 4;

/// Types of frames (RFC 9113 section 6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// Length, type, flags, stream.
const FRAME_HEADER: usize = 9;

#[derive(Debug)]
pub struct Patience(Mutex<Purse>);

#[derive(Debug)]
struct Purse {
    frames: u64,
    /// Bytes on the way to the next frame's worth.
    bytes: u64,
    filled: Instant,
    /// Something came or went.
    moved: bool,
    end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// → RanOut
    Not,
    /// → Told
    RanOut,
    Told,
}

impl Default for Patience {
    fn default() -> Self {
        Self(Mutex::new(Purse {
            frames: PURSE,
            bytes: 0,
            filled: Instant::now(),
            moved: false,
            end: End::Not,
        }))
    }
}

impl Patience {
    /// A request was answered, or given up here.
    pub fn answered(&self) {
        self.purse().earn(RESET);
    }

    /// True once, when the client has asked for too much.
    pub fn ran_out(&self) -> bool {
        let mut purse = self.purse();
        let ran_out = purse.end == End::RanOut;
        if ran_out {
            purse.end = End::Told;
        }
        ran_out
    }

    /// Whether anything came or went since this was last asked.
    pub fn moved(&self) -> bool {
        std::mem::take(&mut self.purse().moved)
    }

    fn is_over(&self) -> bool {
        self.purse().end != End::Not
    }

    fn frame(&self, kind: u8, len: usize) {
        match kind {
            DATA => self.passed(len),
            // Bounded by h2.
            HEADERS | CONTINUATION => {}
            RST_STREAM => self.purse().spend(RESET),
            _ => self.purse().spend(1),
        }
    }

    fn passed(&self, bytes: usize) {
        let mut purse = self.purse();
        purse.moved = true;
        purse.bytes += bytes as u64;
        let worth = purse.bytes / BYTES;
        purse.bytes %= BYTES;
        purse.earn(worth);
    }

    fn purse(&self) -> MutexGuard<'_, Purse> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

impl Purse {
    fn earn(&mut self, frames: u64) {
        self.frames = (self.frames + frames).min(PURSE);
    }

    fn spend(&mut self, frames: u64) {
        if self.frames < frames {
            let elapsed = self.filled.elapsed();
            self.filled = Instant::now();
            self.earn((elapsed.as_secs_f64() * PER_SECOND as f64) as u64);
        }
        match self.frames.checked_sub(frames) {
            Some(left) => self.frames = left,
            None if self.end == End::Not => self.end = End::RanOut,
            None => {}
        }
    }
}

/// A connection's bytes, with an eye on the frames in them. Reads nothing more once patience has run out.
pub struct Metered<S> {
    stream: S,
    patience: Arc<Patience>,
    frames: Frames,
}

impl<S> Metered<S> {
    pub fn new(stream: S, patience: Arc<Patience>) -> Self {
        Self {
            stream,
            patience,
            frames: Frames::default(),
        }
    }
}

/// Finds the frames in a client's bytes, however these are cut.
#[derive(Debug)]
struct Frames {
    /// Bytes of no interest before the next header.
    skip: usize,
    header: [u8; FRAME_HEADER],
    have: usize,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE.len(),
            header: [0; FRAME_HEADER],
            have: 0,
        }
    }
}

impl Frames {
    fn read(&mut self, mut bytes: &[u8], mut frame: impl FnMut(u8, usize)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let wanted = (FRAME_HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + wanted].copy_from_slice(&bytes[..wanted]);
            self.have += wanted;
            bytes = &bytes[wanted..];
            if self.have == FRAME_HEADER {
                let [a, b, c, kind, ..] = self.header;
                let len = u32::from_be_bytes([0, a, b, c]) as usize;
                frame(kind, len);
                (self.skip, self.have) = (len, 0);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            patience,
            frames,
        } = &mut *self;
        if patience.is_over() {
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let poll = Pin::new(stream).poll_read(cx, buf);
        let read = &buf.filled()[before..];
        if !read.is_empty() {
            patience.purse().moved = true;
        }
        frames.read(read, |kind, len| patience.frame(kind, len));
        poll
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

impl<S> Metered<S> {
    fn wrote(&self, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = poll {
            self.patience.passed(count);
        }
        poll
    }
}

impl<S: AsFd> AsFd for Metered<S> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PING: u8 = 6;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes = (len as u32).to_be_bytes()[1..].to_vec();
        bytes.push(kind);
        bytes.extend([0; 5]);
        bytes.extend(std::iter::repeat_n(0xff, len));
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(
            frames in proptest::collection::vec((0_u8..12, 0_usize..40), 0..20),
            cuts in proptest::collection::vec(1_usize..30, 1..20),
        ) {
            let mut bytes = PREFACE.to_vec();
            for (kind, len) in &frames {
                bytes.extend(frame(*kind, *len));
            }
            let mut found = Vec::new();
            let mut reader = Frames::default();
            let mut rest = &bytes[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (part, after) = rest.split_at((*cut).min(rest.len()));
                reader.read(part, |kind, len| found.push((kind, len)));
                rest = after;
            }
            prop_assert_eq!(found, frames);
        }
    }

    /// How many of these frames a client may send at once, if it is stopped at all.
    fn borne(most: u64, mut send: impl FnMut(&Patience)) -> Option<u64> {
        let patience = Patience::default();
        (0..most).find(|_| {
            send(&patience);
            patience.ran_out()
        })
    }

    #[test]
    fn patience_ends_with_frames_that_bring_nothing_and_with_nothing_else() {
        let floods: [fn(&Patience); 4] = [
            |patience| {
                patience.frame(PING, 8);
                patience.passed(17);
            },
            // A window of one byte, again and again, and what it makes us send.
            |patience| {
                patience.frame(WINDOW_UPDATE, 4);
                patience.passed(10);
            },
            |patience| {
                patience.frame(HEADERS, 30);
                patience.frame(RST_STREAM, 4);
            },
            |patience| patience.frame(DATA + 200, 0),
        ];
        for flood in floods {
            let borne = borne(10_000, flood).expect("it is stopped");
            assert!((200..3000).contains(&borne), "{borne}");
        }
        let uses: [fn(&Patience); 3] = [
            // A download whose client opens both windows after every frame.
            |patience| {
                patience.passed(16_384);
                patience.frame(WINDOW_UPDATE, 4);
                patience.frame(WINDOW_UPDATE, 4);
            },
            // Half of the requests are given up.
            |patience| {
                patience.frame(RST_STREAM, 4);
                patience.answered();
            },
            |patience| patience.frame(DATA, 1024),
        ];
        for usual in uses {
            assert_eq!(borne(100_000, usual), None);
        }
    }

    #[tokio::test]
    async fn bytes_of_a_frame_that_is_long_under_way_are_noticed_either_way() {
        let patience = Arc::new(Patience::default());
        let (near, mut far) = tokio::io::duplex(64);
        let mut metered = Metered::new(near, Arc::clone(&patience));
        assert!(!patience.moved());
        far.write_all(&PREFACE[..7]).await.expect("room");
        metered.read_exact(&mut [0; 7]).await.expect("the bytes");
        assert!(patience.moved());
        assert!(!patience.moved());
        metered.write_all(&[0]).await.expect("room");
        assert!(patience.moved());
        assert!(!patience.moved());
    }

    #[test]
    fn it_is_said_once_that_patience_has_ended() {
        let patience = Patience::default();
        patience.purse().spend(2 * PURSE);
        assert!(patience.is_over());
        assert!(patience.ran_out());
        assert!(!patience.ran_out());
        assert!(patience.is_over());
    }
}
