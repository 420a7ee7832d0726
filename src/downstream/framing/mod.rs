//! Framing: where each request of an HTTP/1 connection begins and ends, decided before hyper reads.
//!
//! hyper takes more than can be read in one way only, and its requests do not show it. So every byte
//! passes here first. A head reaches hyper whole or not at all. In the place of one that is refused,
//! hyper gets a request that stands for it: it is answered in its turn, counted and logged like any
//! other, and nothing is read after it. A malformed body ends in an error where it is malformed.
//!
//! What a request means is not decided here, but by [`super::head`].

mod body;
mod head;
#[cfg(any(test, fuzzing))]
pub(crate) mod reference;
#[cfg(test)]
mod tests;

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};

use http::{StatusCode, Uri};
use tokio::io::{AsyncRead, ReadBuf};

use self::body::Chunks;
use self::head::{Body, Head, Whole};
use super::head::Refusal;
use crate::layers::writes_through;

pub use self::head::{MAX_HEAD, escaped};

/// What a connection and its requests tell each other.
#[derive(Debug, Default)]
pub struct Heads {
    /// Requests that hyper has handed over.
    requests: AtomicU64,
    refused: Mutex<Option<Refused>>,
    mid_head: AtomicBool,
    late: AtomicBool,
    tunnel: AtomicBool,
}

/// A head that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub refusal: Refusal,
    /// Its target, fit for a log; `/` if it did not come so far.
    pub target: Uri,
    /// Which request of its connection it is.
    number: u64,
}

impl Heads {
    /// To be asked once for each request, in their order: does it stand for a refused head?
    pub fn next_request(&self) -> Option<Refused> {
        let number = self.requests.fetch_add(1, Relaxed) + 1;
        self.refused().take_if(|refused| refused.number == number)
    }

    /// A part of a head has come. hyper does not know of it, and takes the connection for an idle one.
    pub fn is_mid_head(&self) -> bool {
        self.mid_head.load(Relaxed)
    }

    /// Refuses the head that has begun, if one has, as too late. Its connection is to be polled then.
    pub fn give_up(&self) -> bool {
        let begun = self.is_mid_head();
        self.late.store(begun, Relaxed);
        begun
    }

    /// From here on, what comes is another protocol's. To be called before the client is heads so (101).
    pub fn open_tunnel(&self) {
        self.tunnel.store(true, Relaxed);
    }

    fn refused(&self) -> MutexGuard<'_, Option<Refused>> {
        self.refused
            .lock()
            .expect("no code that holds this lock panics")
    }
}

/// What the next byte belongs to.
#[derive(Debug)]
enum Part {
    Head(Head),
    /// So many bytes of a body.
    Sized(u64),
    Chunks(Chunks),
    /// A body was malformed.
    Broken,
    /// A head was refused.
    Refused,
}

/// What is to be done with some bytes.
#[derive(Debug)]
enum Verdict {
    /// All are good.
    Pass,
    /// So many are good, and a head begins behind them.
    Hold(usize),
    /// So many are good, and a head comes behind them that is to be passed on in another form.
    Rewrite(usize, Whole),
    /// So many are good, and a bad head comes behind them.
    Refuse(usize, Refusal),
    /// So many are good, and no more.
    Break(usize),
}

#[derive(Debug)]
struct Framing {
    part: Part,
    good_heads: u64,
}

impl Framing {
    /// Bytes that were held are to be shown again, with more behind them.
    fn judge(&mut self, bytes: &[u8]) -> Verdict {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.part {
                Part::Head(head) => match head.read(rest) {
                    Ok(None) => return Verdict::Hold(at),
                    Ok(Some(whole)) => {
                        self.good_heads += 1;
                        self.part = Part::after_head(whole.body);
                        if whole.to_escape {
                            return Verdict::Rewrite(at, whole);
                        }
                        at += whole.len;
                    }
                    Err(refusal) => {
                        self.part = Part::Refused;
                        return Verdict::Refuse(at, refusal);
                    }
                },
                Part::Sized(left) => {
                    let here =
                        usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                    *left -= here as u64;
                    if *left == 0 {
                        self.part = Part::Head(Head::default());
                    }
                    at += here;
                }
                Part::Chunks(chunks) => match chunks.read(rest) {
                    Ok(None) => return Verdict::Pass,
                    Ok(Some(len)) => {
                        self.part = Part::Head(Head::default());
                        at += len;
                    }
                    Err(good) => {
                        self.part = Part::Broken;
                        return Verdict::Break(at + good);
                    }
                },
                Part::Broken | Part::Refused => return Verdict::Break(at),
            }
        }
        Verdict::Pass
    }
}

impl Part {
    fn after_head(body: Body) -> Self {
        match body {
            Body::Sized(0) => Self::Head(Head::default()),
            Body::Sized(length) => Self::Sized(length),
            Body::Chunked => Self::Chunks(Chunks::default()),
        }
    }
}

/// A connection's bytes on their way to hyper.
pub struct Framed<S> {
    pub stream: S,
    heads: Arc<Heads>,
    framing: Framing,
    /// The beginning of a head.
    held: Vec<u8>,
    /// What goes to hyper before all else; `given` bytes of it went.
    good: Vec<u8>,
    given: usize,
}

impl<S> Framed<S> {
    pub fn new(stream: S, heads: Arc<Heads>) -> Self {
        Self {
            stream,
            heads,
            framing: Framing {
                part: Part::Head(Head::default()),
                good_heads: 0,
            },
            held: Vec::new(),
            good: Vec::new(),
            given: 0,
        }
    }

    /// False if there is nothing to give.
    fn give(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let there = &self.good[self.given..];
        let len = there.len().min(buf.remaining());
        buf.put_slice(&there[..len]);
        self.given += len;
        if self.given == self.good.len() {
            // Room is not kept: connections are idle for most of their time.
            self.good = Vec::new();
            self.given = 0;
        }
        len > 0
    }

    /// Sorts bytes into those that are good and those that are held.
    fn sort(&mut self, verdict: Verdict, mut bytes: &[u8]) {
        let mut verdict = verdict;
        loop {
            match verdict {
                Verdict::Pass => {
                    self.good.extend_from_slice(bytes);
                    return;
                }
                Verdict::Hold(good) => {
                    self.good.extend_from_slice(&bytes[..good]);
                    return self.hold(bytes[good..].to_vec());
                }
                Verdict::Rewrite(good, whole) => {
                    self.good.extend_from_slice(&bytes[..good]);
                    whole.escape(&bytes[good..], &mut self.good);
                    bytes = &bytes[good + whole.len..];
                }
                Verdict::Refuse(good, refusal) => {
                    self.good.extend_from_slice(&bytes[..good]);
                    return self.refuse(refusal, &bytes[good..]);
                }
                Verdict::Break(good) => {
                    self.good.extend_from_slice(&bytes[..good]);
                    return;
                }
            }
            verdict = self.framing.judge(bytes);
        }
    }

    fn hold(&mut self, head: Vec<u8>) {
        // An empty line alone begins nothing.
        let begun = head.iter().any(|byte| !matches!(byte, b'\r' | b'\n'));
        self.heads.mid_head.store(begun, Relaxed);
        self.held = head;
    }

    /// Has hyper read a request in the place of this head. It names no host: should anybody take it for
    /// a client's own, it would be refused too.
    fn refuse(&mut self, refusal: Refusal, bytes: &[u8]) {
        let (method, target) = head::shown(bytes);
        let accept = if head::wants_json(bytes) {
            "accept: application/json\r\n"
        } else {
            ""
        };
        let standing_for = format!("{method} / HTTP/1.1\r\n{accept}\r\n");
        self.good.extend_from_slice(standing_for.as_bytes());
        *self.heads.refused() = Some(Refused {
            refusal,
            target,
            number: self.framing.good_heads + 1,
        });
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Framed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.give(buf) {
                return Poll::Ready(Ok(()));
            }
            if this.heads.tunnel.load(Relaxed) {
                if !this.held.is_empty() {
                    this.good = std::mem::take(&mut this.held);
                    continue;
                }
                return match this.framing.part {
                    Part::Head(_) => Pin::new(&mut this.stream).poll_read(cx, buf),
                    // It spoke the other protocol before it was asked to, or is not done with a body.
                    _ => Poll::Ready(Err(malformed())),
                };
            }
            match this.framing.part {
                Part::Broken => return Poll::Ready(Err(malformed())),
                // The answer ends the connection; nobody waits for this.
                Part::Refused => return Poll::Pending,
                Part::Head(_) | Part::Sized(_) | Part::Chunks(_) => {}
            }
            if this.heads.late.swap(false, Relaxed) {
                let head = std::mem::take(&mut this.held);
                this.heads.mid_head.store(false, Relaxed);
                this.framing.part = Part::Refused;
                let late = Refusal(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request took too long to arrive",
                );
                this.refuse(late, &head);
                continue;
            }
            let before = buf.filled().len();
            ready!(Pin::new(&mut this.stream).poll_read(cx, buf))?;
            let came = &buf.filled()[before..];
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if this.held.is_empty() {
                // As good as always all is good, and stays where it was read.
                let verdict = this.framing.judge(came);
                if matches!(verdict, Verdict::Pass) {
                    return Poll::Ready(Ok(()));
                }
                this.sort(verdict, came);
            } else {
                let mut bytes = std::mem::take(&mut this.held);
                bytes.extend_from_slice(came);
                this.heads.mid_head.store(false, Relaxed);
                let verdict = this.framing.judge(&bytes);
                if matches!(verdict, Verdict::Hold(0)) {
                    this.hold(bytes);
                } else {
                    this.sort(verdict, &bytes);
                }
            }
            buf.set_filled(before);
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed")
}

writes_through!(S, Framed<S>, stream);
