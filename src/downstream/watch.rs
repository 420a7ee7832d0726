//! One deadline per connection, or per stream of one: idle clients, slow heads, slow bodies and slow readers.
//!
//! The connection's task waits on the alarm; whoever makes progress moves it. Whether the
//! application is in time is not decided here: while a request is in its hands, the alarm is off.
//!
//! How a body keeps to [`Bounds::rate`], over whatever protocol:
//! - one that comes in: [`Watch::awaits`] before waiting for the client, [`Watch::got`] after; the alarm says
//!   that it is late;
//! - one that goes out: [`Watch::behind`] when what we have to send is not taken, [`Watch::took`] with all that
//!   is, and [`Watch::caught_up`] when nothing of ours is left to take. Over HTTP/1, [`Watched`] sees to that.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::listen::Stream;
use super::pace::{Credit, Rate};
use crate::sweeper::Alarm;
use crate::tunnel::Tunnel;

/// What the kernel takes of an answer before its client does, about. [`super::listen`] keeps it from taking
/// more of what cannot be sent.
const KERNEL: u64 = 128 * 1024;

/// A connection that has been idle for so long does without its buffers until the next request.
const REST: Duration = Duration::from_secs(1);

/// What a client may do with its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// From the first byte of a head to its last.
    pub head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// Of bodies.
    pub rate: Rate,
}

/// What a connection is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Between requests, or the last answer's end is still on its way. → Head, InHand, Tunnel
    Idle,
    /// → InHand
    Head,
    /// → Sending
    InHand,
    /// → Idle
    Sending,
    /// It carries another protocol, to its end.
    Tunnel,
}

/// What a connection is about, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activity {
    Idle,
    Reading,
    Waiting,
    Writing,
    Tunnel,
}

#[derive(Debug)]
pub struct Watch {
    pub alarm: Alarm,
    bounds: Bounds,
    state: Mutex<State>,
    /// Not all of the last request's body was read.
    unread: AtomicBool,
    /// Of the answer under way nothing is still to come.
    whole: AtomicBool,
    /// A request asked for another protocol, whatever became of that.
    upgrade: AtomicBool,
    /// Somebody asks for the connection's descriptor.
    wanted: AtomicBool,
    asking: Mutex<Option<oneshot::Sender<OwnedFd>>>,
    /// What the connection becomes once the answer under way is sent.
    tunnel: Mutex<Option<Tunnel>>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase has lasted too long.
    until: Option<Instant>,
    /// When the connection has been idle for long enough to rest.
    rest: Option<Instant>,
    taking: Credit,
    sending: Credit,
}

impl State {
    fn due(&self) -> Option<Instant> {
        let all = [self.until, self.rest, self.taking.due(), self.sending.due()];
        all.into_iter().flatten().min()
    }

    fn idle(&mut self, now: Instant, bounds: &Bounds) {
        self.until = Some(now + bounds.idle);
        self.rest = Some(now + REST);
    }

    fn is_behind(&self) -> bool {
        self.sending.due().is_some()
    }
}

impl Watch {
    pub fn new(alarm: Alarm, bounds: Bounds) -> Arc<Self> {
        let watch = Self {
            alarm,
            bounds,
            state: Mutex::new(State {
                phase: Phase::Idle,
                until: None,
                rest: None,
                taking: Credit::new(bounds.rate),
                sending: Credit::behind(bounds.rate, KERNEL),
            }),
            unread: AtomicBool::new(false),
            whole: AtomicBool::new(false),
            upgrade: AtomicBool::new(false),
            wanted: AtomicBool::new(false),
            asking: Mutex::default(),
            tunnel: Mutex::default(),
        };
        watch.idle();
        Arc::new(watch)
    }

    /// The connection waits for its client's next word.
    pub fn idle(&self) {
        self.within(self.bounds.idle);
    }

    /// What is going on now has so long.
    pub fn within(&self, time: Duration) {
        self.change(|state| state.until = Some(Instant::now() + time));
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state();
        let changed = change(&mut state);
        match state.due() {
            Some(due) => self.alarm.set(due),
            None => self.alarm.clear(),
        }
        changed
    }

    /// A request's head is in the gateway's hands.
    pub fn begun(&self) {
        self.change(|state| {
            state.phase = Phase::InHand;
            state.until = None;
            state.rest = None;
            state.taking = Credit::new(self.bounds.rate);
        });
    }

    /// A whole request is with the application: its own deadline counts.
    pub fn in_hand(&self) {
        self.change(|state| state.until = None);
    }

    /// More of a request's body is waited for.
    pub fn awaits(&self) {
        self.change(|state| state.taking.spend(Instant::now()));
    }

    /// So much of the body has come; the client is not waited for until that has been put away.
    pub fn got(&self, bytes: usize) {
        let now = Instant::now();
        self.change(|state| {
            state.taking.earn(bytes as u64, now);
            state.taking.rest(now);
        });
    }

    /// The head of an answer is on its way to the client.
    pub fn sends(&self) {
        self.change(|state| {
            state.phase = Phase::Sending;
            state.until = None;
            // Nobody waits for the rest of a request that has its answer.
            state.taking = Credit::new(self.bounds.rate);
            if !state.is_behind() {
                state.sending = Credit::behind(self.bounds.rate, KERNEL);
            }
        });
    }

    /// The client does not take what there is for it.
    pub fn behind(&self) {
        self.change(|state| {
            state.sending.spend(Instant::now());
            if state.phase == Phase::Idle {
                // The request is over and its answer is not: until then nobody is idle, or may rest.
                state.until = None;
                state.rest = None;
            }
        });
    }

    /// The client has taken so much, or the kernel has for it.
    pub fn took(&self, bytes: usize) {
        self.change(|state| state.sending.earn(bytes as u64, Instant::now()));
    }

    /// The client has taken all that there is for it so far.
    pub fn caught_up(&self) {
        self.change(|state| {
            state.sending.rest(Instant::now());
            if state.phase == Phase::Idle && state.until.is_none() {
                state.idle(Instant::now(), &self.bounds);
            }
        });
    }

    /// The request is over. The end of its answer may still be on its way.
    pub fn idles(&self) {
        self.change(|state| {
            state.phase = Phase::Idle;
            state.until = None;
            if !state.is_behind() {
                state.idle(Instant::now(), &self.bounds);
            }
        });
    }

    /// Part of an answer is on its way to the client.
    pub fn is_sending(&self) -> bool {
        let state = self.state();
        state.phase == Phase::Sending || state.is_behind()
    }

    pub fn activity(&self) -> Activity {
        let state = self.state();
        match state.phase {
            Phase::Tunnel => Activity::Tunnel,
            _ if state.is_behind() => Activity::Writing,
            Phase::Idle => Activity::Idle,
            Phase::Head => Activity::Reading,
            Phase::InHand if state.taking.due().is_some() => Activity::Reading,
            Phase::InHand => Activity::Waiting,
            Phase::Sending => Activity::Writing,
        }
    }

    /// True once, when an idle connection is to do without its buffers.
    pub fn rests(&self) -> bool {
        self.change(|state| {
            let now = Instant::now();
            let rests = state.phase == Phase::Idle
                && !state.is_behind()
                && state.rest.is_some_and(|rest| rest <= now)
                && state.until.is_some_and(|until| until > now);
            if rests {
                state.rest = None;
            }
            rests
        })
    }

    /// Until when the connection may be idle, if it is: the longer it has been, the earlier.
    pub fn idle_until(&self) -> Option<Instant> {
        let state = self.state();
        state.until.filter(|_| state.phase == Phase::Idle)
    }

    /// Has an idle connection end. One whose next request is there by then stays.
    pub fn leave(&self) {
        self.change(|state| {
            if state.phase == Phase::Idle {
                state.until = Some(Instant::now());
            }
        });
        self.alarm.ring();
    }

    /// On a connection that was idle, a request begins.
    pub fn bytes_came(&self) {
        let mut state = self.state();
        if state.phase == Phase::Idle {
            state.phase = Phase::Head;
            state.rest = None;
            drop(state);
            self.within(self.bounds.head);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code that holds this lock panics")
    }

    pub fn set_tunnel(&self, tunnel: Tunnel) {
        *self.tunnel() = Some(tunnel);
    }

    /// What the connection is from here on, if its last answer has changed the protocol. It is never idle again.
    pub fn take_tunnel(&self) -> Option<Tunnel> {
        let tunnel = self.tunnel().take()?;
        self.change(|state| {
            state.phase = Phase::Tunnel;
            state.until = None;
            state.rest = None;
        });
        Some(tunnel)
    }

    fn tunnel(&self) -> MutexGuard<'_, Option<Tunnel>> {
        self.tunnel
            .lock()
            .expect("no code that holds this lock panics")
    }

    pub fn set_unread(&self, unread: bool) {
        self.unread.store(unread, Relaxed);
    }

    pub fn set_whole(&self, whole: bool) {
        self.whole.store(whole, Relaxed);
    }

    /// The answer under way is there to its end, and hyper writes it out before it gives the connection back.
    /// That it does not do once it has seen `Upgrade`.
    pub fn is_whole(&self) -> bool {
        self.whole.load(Relaxed) && !self.upgrade.load(Relaxed)
    }

    pub fn asks_for_upgrade(&self) {
        self.upgrade.store(true, Relaxed);
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
    fn lend(&self, stream: &impl Stream) {
        if self.wanted.swap(false, Relaxed)
            && let Some(asking) = self.asking().take()
            && let Ok(line) = stream.line().try_clone_to_owned()
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
}

/// Tells the watch when bytes come and go.
pub struct Watched<S> {
    pub stream: S,
    watch: Arc<Watch>,
    /// There was something that the stream did not take.
    behind: bool,
}

impl<S> Watched<S> {
    pub fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self {
            stream,
            watch,
            behind: false,
        }
    }

    fn wrote(&mut self, poll: &Poll<std::io::Result<usize>>) {
        match poll {
            Poll::Ready(Ok(count)) => self.watch.took(*count),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.falls_behind(),
        }
    }

    fn falls_behind(&mut self) {
        self.behind = true;
        self.watch.behind();
    }
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

impl<S: Stream> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(&poll);
        poll
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        // hyper owns the stream, and comes by here whenever it has asked the request's task and has nothing
        // left to write.
        if self.watch.wanted.load(Relaxed) {
            self.watch.lend(&self.stream);
        }
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        match poll {
            // TLS takes more than its line does.
            Poll::Pending => self.falls_behind(),
            Poll::Ready(_) if self.behind => {
                self.behind = false;
                self.watch.caught_up();
            }
            Poll::Ready(_) => {}
        }
        poll
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
        self.wrote(&poll);
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
