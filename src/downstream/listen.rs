//! Listeners: accepting connections, and going on when descriptors run out.
//!
//! Decides which connections are taken: all that have reached this machine until the door closes. Where a
//! socket comes from (bound here, held by systemd, handed over by a predecessor) makes no difference after that.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use rustix::io::Errno;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::crowd::{self, Crowd};
use super::forwarded::Peer;
use super::proxy;
use super::seldom::Seldom;
use super::tls::Tls;
use super::watch::Watch;
use super::{Downstream, Settings};
use crate::config::Listen;
use crate::descriptors;
use crate::layers::Resumed;
use crate::tcp_socket::{self, Place};
use crate::unix_socket::{BACKLOG, UnixSocket};

/// Waited after an accept that failed for want of descriptors or memory: trying again at once
/// would only turn the wheel.
const BREATHER: Duration = Duration::from_millis(50);

/// What is wrong with one connection, and says nothing of the listener.
const OF_ONE: [Errno; 9] = [
    Errno::CONNABORTED,
    Errno::INTR,
    Errno::PERM,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
];

/// Of an answer, so much waits in the kernel at most beside what is under way on the line.
const UNSENT: u32 = 64 * 1024;

/// A bound listener.
pub struct Listener {
    socket: Socket,
    entry: Listen,
    name: Listen,
    v6_only: bool,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// A listening socket that somebody else has made.
#[derive(Debug)]
pub enum Adopted {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Adopted {
    fn listens(&self) -> io::Result<bool> {
        match self {
            Self::Tcp(listener) => SockRef::from(listener).is_listener(),
            Self::Unix(listener) => SockRef::from(listener).is_listener(),
        }
    }
}

impl From<Adopted> for OwnedFd {
    fn from(socket: Adopted) -> Self {
        match socket {
            Adopted::Tcp(listener) => listener.into(),
            Adopted::Unix(listener) => listener.into(),
        }
    }
}

impl Listener {
    /// `ours` are those of our own that have the address, or a part of it, for the moment.
    ///
    /// # Errors
    /// When somebody else has the address, or it cannot be had.
    pub fn bind(listen: &Listen, v6_only: bool, ours: &[Arc<Listener>]) -> io::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let address = *address;
                let ours: Vec<_> = ours.iter().filter_map(|it| it.tcp()).collect();
                let bound = tcp_socket::bind(Place { address, v6_only }, &ours)?;
                Socket::Tcp(TcpListener::from_std(bound)?)
            }
            // Whoever can reach the path may send requests, as to a port.
            Listen::Unix(path) => Socket::Unix(UnixSocket::bind(path, 0o666)?),
            Listen::Systemd(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "systemd has passed no such socket",
                ));
            }
        };
        Ok(Self {
            socket,
            entry: listen.clone(),
            name: listen.clone(),
            v6_only,
        })
    }

    /// A socket that is there already, for this entry of the configuration; `name` tells it from others for
    /// a successor.
    ///
    /// # Errors
    /// When it is no listening socket.
    pub fn adopt(entry: &Listen, name: Listen, socket: Adopted) -> io::Result<Self> {
        if !socket.listens()? {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the socket that was passed does not listen; in a socket unit of systemd, write Accept=no",
            ));
        }
        // Only what we have bound ourselves is bound anew when it is to be another.
        let v6_only = match &socket {
            Adopted::Tcp(listener) if matches!(name, Listen::Tcp(_)) => {
                SockRef::from(listener).only_v6().unwrap_or(false)
            }
            Adopted::Tcp(_) | Adopted::Unix(_) => false,
        };
        let socket = match socket {
            Adopted::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Socket::Tcp(TcpListener::from_std(listener)?)
            }
            Adopted::Unix(listener) => {
                let ours = matches!(name, Listen::Unix(_));
                Socket::Unix(UnixSocket::adopt(listener, ours)?)
            }
        };
        Ok(Self {
            socket,
            entry: entry.clone(),
            name,
            v6_only,
        })
    }

    /// Which entry of the configuration it is for.
    pub fn entry(&self) -> &Listen {
        &self.entry
    }

    /// Whether it is what this entry asks for now. One that leaves IPv4 alone is not, if nobody else takes it.
    pub fn serves(&self, entry: &Listen, v6_only: bool) -> bool {
        self.entry == *entry && (v6_only || !self.v6_only)
    }

    /// The socket, if it is one of TCP that we have bound ourselves: nobody else accepts from it.
    fn tcp(&self) -> Option<SockRef<'_>> {
        match (&self.socket, &self.name) {
            (Socket::Tcp(listener), Listen::Tcp(_)) => Some(SockRef::from(listener)),
            _ => None,
        }
    }

    /// Whether it may share a port for the moment: it is about to close, or for both families, where a new one
    /// has the better address of IPv4.
    fn makes_way(&self, port: u16, stays: bool) -> bool {
        let Ok(Listen::Tcp(address)) = self.address() else {
            return false;
        };
        let for_both = address.is_ipv6() && address.ip().is_unspecified() && !self.v6_only;
        address.port() == port && (!stays || for_both)
    }

    /// What a successor knows it by.
    pub fn name(&self) -> &Listen {
        &self.name
    }

    /// Where it listens, with the port that was chosen for port 0.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> io::Result<Listen> {
        match &self.socket {
            Socket::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Socket::Unix(listener) => Ok(Listen::Unix(listener.path().to_owned())),
        }
    }

    /// Keeps the kernel from taking more of an answer than it can soon send: what waits there cannot be seen
    /// to stand still. Connections inherit it.
    fn take_little(&self) {
        if let Socket::Tcp(listener) = &self.socket
            && let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(UNSENT)
        {
            tracing::debug!(%error, "the kernel takes answers as it likes");
        }
    }

    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match &self.socket {
            Socket::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                Ok((Accepted::Tcp(stream), Peer::Tcp { peer, local }))
            }
            Socket::Unix(listener) => Ok((Accepted::Unix(listener.accept().await?), Peer::Unix)),
        }
    }

    /// The socket, still listening, with all who wait there, and its name.
    ///
    /// # Errors
    /// When the descriptors have run out.
    pub fn keep(self) -> io::Result<(Listen, Adopted)> {
        let kept = match self.socket {
            Socket::Tcp(listener) => Adopted::Tcp(listener.into_std()?),
            Socket::Unix(listener) => Adopted::Unix(listener.keep()?.into()),
        };
        Ok((self.name, kept))
    }
}

enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Accepted {
    fn refuse(self) {
        // A connection that is gone needs no answer.
        match self {
            Self::Tcp(stream) => _ = stream.into_std().map(crowd::refuse),
            Self::Unix(stream) => _ = stream.into_std().map(crowd::refuse),
        }
    }
}

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The line below, whatever is spoken over it.
    fn line(&self) -> BorrowedFd<'_>;

    /// Its end cannot be taken for a regular one by the client. False where the line knows no other.
    fn reset(&self) -> bool;
}

impl Stream for TcpStream {
    fn line(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    fn reset(&self) -> bool {
        // It may be gone already; then nobody can mistake anything.
        let _ = self.set_zero_linger();
        true
    }
}

impl Stream for UnixStream {
    fn line(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    /// Unix sockets know no reset.
    fn reset(&self) -> bool {
        false
    }
}

impl<S: Stream> Stream for Resumed<S> {
    fn line(&self) -> BorrowedFd<'_> {
        self.line.line()
    }

    fn reset(&self) -> bool {
        self.line.reset()
    }
}

/// TLS tells a regular end (`close_notify`) from any other; the line's own end makes it plain.
impl<S: Stream> Stream for TlsStream<S> {
    fn line(&self) -> BorrowedFd<'_> {
        self.get_ref().0.line()
    }

    fn reset(&self) -> bool {
        self.get_ref().0.reset();
        true
    }
}

impl Stream for Box<dyn Stream> {
    fn line(&self) -> BorrowedFd<'_> {
        (**self).line()
    }

    fn reset(&self) -> bool {
        (**self).reset()
    }
}

/// All listeners, and the connections that came through them.
#[derive(Default)]
pub struct Listeners {
    doors: Vec<Door>,
    accepting: TaskTracker,
    connections: TaskTracker,
    /// Nothing more is accepted, and the sockets stay.
    kept: CancellationToken,
}

struct Door {
    listener: Arc<Listener>,
    /// Its entry is one of `[tls]`.
    tls: bool,
    /// Takes in who has arrived, and no more.
    closing: CancellationToken,
}

impl Listeners {
    /// Accepts on this listener until the drain has begun, or it is closed. With `tls`, connections begin
    /// with a handshake.
    pub fn add(&mut self, listener: Listener, tls: Option<Arc<Tls>>, downstream: Arc<Downstream>) {
        listener.take_little();
        let door = Door {
            listener: Arc::new(listener),
            tls: tls.is_some(),
            closing: CancellationToken::new(),
        };
        let (listener, closing) = (Arc::clone(&door.listener), door.closing.clone());
        let (connections, kept) = (self.connections.clone(), self.kept.clone());
        self.doors.push(door);
        self.accepting.spawn(async move {
            let closed = async {
                tokio::select! {
                    () = downstream.drain_begun() => {}
                    () = closing.cancelled() => {}
                }
            };
            tokio::pin!(closed);
            let seldom = Seldom::new();
            loop {
                let accepted = tokio::select! {
                    biased; // However many come, the end is seen.
                    () = kept.cancelled() => return,
                    () = &mut closed => break,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        let (downstream, tls) = (Arc::clone(&downstream), tls.clone());
                        connections.spawn(connection(downstream, stream, peer, tls));
                    }
                    Err(error) if descriptors::is_shortage(&error) => {
                        make_do(&listener, &downstream.crowd, &error).await;
                    }
                    // That connection is gone already; the next one may be there.
                    Err(error) if is_of_one(&error) => {
                        tracing::debug!(%error, "cannot accept a connection");
                    }
                    // The next try will hardly fare better.
                    Err(error) => {
                        if let Some(unsaid) = seldom.says() {
                            let listen = &listener.entry;
                            tracing::warn!(%error, %listen, unsaid, "cannot accept connections");
                        }
                        tokio::time::sleep(BREATHER).await;
                    }
                }
            }
            // The runtime looks at its sockets once more: who is in the kernel's queue has come in time.
            tokio::task::yield_now().await;
            for _ in 0..BACKLOG {
                let Some(Ok((stream, peer))) = listener.accept().now_or_never() else {
                    return;
                };
                let (downstream, tls) = (Arc::clone(&downstream), tls.clone());
                connections.spawn(connection(downstream, stream, peer, tls));
            }
        });
    }

    /// Those of entries of `listen`.
    pub fn plain(&self) -> impl Iterator<Item = &Arc<Listener>> {
        let plain = self.doors.iter().filter(|door| !door.tls);
        plain.map(|door| &door.listener)
    }

    /// Those of `listen` beside which a new one may be opened at this entry.
    pub fn in_the_way(
        &self,
        entry: &Listen,
        stays: impl Fn(&Listener) -> bool,
    ) -> Vec<Arc<Listener>> {
        let Listen::Tcp(address) = entry else {
            return Vec::new();
        };
        let makes_way = |it: &&Arc<Listener>| it.makes_way(address.port(), stays(it));
        self.plain().filter(makes_way).cloned().collect()
    }

    /// Closes the listeners of `listen` that do not stay. Their connections go on.
    pub fn retain(&mut self, stays: impl Fn(&Listener) -> bool) {
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.doors)
            .into_iter()
            .partition(|door| door.tls || stays(&door.listener));
        self.doors = kept;
        for door in gone {
            tracing::info!(listen = %door.listener.entry, "listener closed");
            door.closing.cancel();
        }
    }

    /// Accepts no more, and takes the sockets out: whoever comes from now on waits there until somebody
    /// else accepts.
    pub fn keep(&mut self) -> Kept {
        self.kept.cancel();
        Kept(std::mem::take(&mut self.doors))
    }

    /// Every door closes when it has seen the drain. A socket that others hold too stays open there.
    pub fn shut(&mut self) {
        self.doors.clear();
    }

    /// Resolves when no connection is left; call after the drain began.
    pub async fn finished(&self) {
        self.accepting.close();
        self.accepting.wait().await;
        self.connections.close();
        self.connections.wait().await;
    }

    pub fn connections(&self) -> usize {
        self.connections.len()
    }
}

/// Sockets where clients wait and nobody accepts. Dropping it closes them.
pub struct Kept(Vec<Door>);

impl Kept {
    /// The sockets and their names, after [`Listeners::finished`].
    ///
    /// # Errors
    /// When the descriptors have run out.
    pub fn sockets(self) -> io::Result<Vec<(Listen, OwnedFd)>> {
        let alone = |door: Door| Arc::into_inner(door.listener);
        let listeners = self.0.into_iter().filter_map(alone);
        let socket = |(name, socket): (Listen, Adopted)| (name, socket.into());
        listeners.map(|it| it.keep().map(socket)).collect()
    }
}

/// The error is that of a connection that was in the queue, whose peer or network has left: `accept(2)`.
fn is_of_one(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| OF_ONE.contains(&errno))
}

/// Goes on without descriptors: the connections that have been idle longest give theirs, and if there are
/// none, whoever waits at the door is let go.
async fn make_do(listener: &Listener, crowd: &Crowd, error: &io::Error) {
    if crowd.make_room() > 0 {
        // They leave in tasks of their own, which run before this one goes on.
        return tokio::task::yield_now().await;
    }
    let accept = || listener.accept().now_or_never()?.ok();
    if crowd.turn_away(accept, |(stream, _)| stream.refuse()) {
        return tokio::task::yield_now().await;
    }
    // Somebody else has taken even the one that was kept back.
    tracing::warn!(%error, "cannot accept a connection");
    tokio::time::sleep(BREATHER).await;
}

/// Whom a connection counts for, if for anybody: not a proxy, which speaks for many.
fn counted(peer: Peer, settings: &Settings) -> Option<IpAddr> {
    let speaks_for_many = peer.among(&settings.trusted) || peer.among(&settings.proxied);
    match peer {
        Peer::Tcp { peer, .. } if !speaks_for_many => Some(peer.ip()),
        Peer::Tcp { .. } | Peer::Unix => None,
    }
}

async fn connection(
    downstream: Arc<Downstream>,
    stream: Accepted,
    peer: Peer,
    tls: Option<Arc<Tls>>,
) {
    let settings = downstream.settings();
    let watch = Watch::new(downstream.sweeper.alarm(), settings.bounds);
    let Ok(_place) = downstream.crowd.enter(&watch, counted(peer, &settings)) else {
        return stream.refuse();
    };
    drop(settings);
    // hyper takes its buffers at once; a connection that says nothing should cost nothing.
    let readable = async {
        match &stream {
            Accepted::Tcp(stream) => stream.readable().await,
            Accepted::Unix(stream) => stream.readable().await,
        }
    };
    tokio::select! {
        biased; // A request that is there is worth more than a drain that has begun.
        ready = readable => if ready.is_err() { return },
        () = watch.alarm.rang() => return,
        () = downstream.drain_begun() => return,
    }
    match stream {
        Accepted::Tcp(stream) => begin(downstream, stream, peer, tls, watch).await,
        Accepted::Unix(stream) => begin(downstream, stream, peer, tls, watch).await,
    }
}

/// A connection whose first bytes are there.
async fn begin<S: Stream>(
    downstream: Arc<Downstream>,
    mut stream: S,
    peer: Peer,
    tls: Option<Arc<Tls>>,
    watch: Arc<Watch>,
) {
    let peer = match peer.among(&downstream.settings().proxied) {
        false => peer,
        true => match Box::pin(proxy::read(&mut stream, peer, &watch)).await {
            Some(client) => client,
            None => return,
        },
    };
    match tls {
        None => downstream.serve_plain(stream, peer, watch).await,
        // Boxed: its size would be paid by every idle connection.
        Some(tls) => Box::pin(downstream.serve_tls(tls, Box::new(stream), peer, watch)).await,
    }
}
