//! One deadline per connection: idle ones, slow heads, and clients that do not read are bounded by it.
//!
//! The connection's task waits on the alarm; whoever makes progress moves it. Whether the
//! application is in time is not decided here: while a request is in its hands, the alarm is off.

use std::future::pending;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::sweeper::Alarm;
use crate::tunnel::Tunnel;

/// A connection without a request is closed after this time. Longer than the 60 s that common
/// balancers keep theirs, so that they close first and never meet a closed one.
const IDLE: Duration = Duration::from_secs(75);

/// From the first byte of a head to its last.
const HEAD: Duration = Duration::from_secs(15);

/// Between two reads of a request body, and between two writes of an answer.
pub const STALL: Duration = Duration::from_secs(30);

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Phase {
    /// Between requests, or the last answer's end is still on its way. → Head, InHand
    Idle,
    /// → InHand
    Head,
    /// → Sending
    InHand,
    /// → Idle
    Sending,
}

#[derive(Debug)]
pub struct Watch {
    pub alarm: Alarm,
    phase: AtomicU8,
    /// Not all of the last request's body was read.
    unread: AtomicBool,
    /// Somebody asks for the connection's descriptor.
    wanted: AtomicBool,
    asking: Mutex<Option<oneshot::Sender<OwnedFd>>>,
    /// What the connection becomes once the answer under way is sent.
    tunnel: Mutex<Option<Tunnel>>,
}

impl Watch {
    pub fn new(alarm: Alarm) -> Arc<Self> {
        let watch = Self {
            alarm,
            phase: AtomicU8::new(Phase::Idle as u8),
            unread: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            asking: Mutex::default(),
            tunnel: Mutex::default(),
        };
        watch.within(IDLE);
        Arc::new(watch)
    }

    pub fn within(&self, time: Duration) {
        self.alarm.set(Instant::now() + time);
    }

    /// A request's head is in the gateway's hands.
    pub fn begun(&self) {
        self.enter(Phase::InHand);
        self.within(STALL);
    }

    /// A whole request is with the application: its own deadline counts.
    pub fn in_hand(&self) {
        self.alarm.clear();
    }

    pub fn set_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel() = Some(tunnel);
    }

    pub fn take_tunnel(&self) -> Option<Tunnel> {
        self.tunnel().take()
    }

    fn tunnel(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.tunnel
            .lock()
            .expect("no code that holds this lock panics")
    }

    pub fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Relaxed);
    }

    pub fn is_unread(&self) -> bool {
        self.unread.load(Relaxed)
    }

    /// Resolves when the client has closed its side of the connection, which nobody reads. A client that
    /// has more on its way than there is room for is noticed only when that is read. Cancel safe.
    pub async fn hung_up(&self) {
        let (lend, lent) = oneshot::channel();
        *self.asking() = Some(lend);
        self.wanted.store(true, Relaxed);
        let line = lent.await.ok();
        // Of whatever kind, it is only asked how it is.
        let line = line.and_then(|line| TcpStream::from_std(line.into()).ok());
        let Some(line) = line else {
            // Out of descriptors: then a client that leaves is noticed later.
            return pending().await;
        };
        while let Ok(ready) = line.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // Only more bytes: on to the next event.
            let nothing = || Err::<(), _>(std::io::ErrorKind::WouldBlock.into());
            let _ = line.try_io(Interest::READABLE, nothing);
        }
        pending().await
    }

    /// Gives the connection's descriptor to whoever asked for it.
    fn lend(&self, line: &impl AsFd) {
        if self.wanted.swap(false, Relaxed)
            && let Some(asking) = self.asking().take()
            && let Ok(line) = line.as_fd().try_clone_to_owned()
        {
            // Who does not wait any more does not need it.
            let _ = asking.send(line);
        }
    }

    fn asking(&self) -> MutexGuard<'_, Option<oneshot::Sender<OwnedFd>>> {
        self.asking
            .lock()
            .expect("no code that holds this lock panics")
    }

    fn bytes_came(&self) {
        if self.is(Phase::Idle) {
            self.enter(Phase::Head);
            self.within(HEAD);
        }
    }

    fn bytes_went(&self) {
        if self.is(Phase::Sending) {
            self.within(STALL);
        } else if self.is(Phase::Idle) {
            self.within(IDLE);
        }
    }

    /// The head of an answer is on its way to the client.
    pub fn sends(&self) {
        self.enter(Phase::Sending);
        self.within(STALL);
    }

    /// The application waits with the next part of the answer, or has given it: the client is not to blame.
    pub fn waits(&self, waits: bool) {
        if waits {
            self.alarm.clear();
        } else {
            self.within(STALL);
        }
    }

    /// The request is over.
    pub fn idles(&self) {
        self.enter(Phase::Idle);
        self.within(IDLE);
    }

    /// An answer is on its way to the client.
    pub fn is_sending(&self) -> bool {
        self.is(Phase::Sending)
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Relaxed);
    }

    fn is(&self, phase: Phase) -> bool {
        self.phase.load(Relaxed) == phase as u8
    }
}

/// Tells the watch when bytes come and go.
pub struct Watched<S> {
    pub stream: S,
    pub watch: Arc<Watch>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let poll = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.watch.bytes_came();
        }
        poll
    }
}

impl<S: AsyncWrite + AsFd + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        if poll.is_ready() {
            self.watch.bytes_went();
        }
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // hyper owns the stream, and comes by here whenever it has asked the request's task.
        if self.watch.wanted.load(Relaxed) {
            self.watch.lend(&self.stream);
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if poll.is_ready() {
            self.watch.bytes_went();
        }
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
