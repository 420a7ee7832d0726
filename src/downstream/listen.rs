//! Listeners: accepting connections, and going on when descriptors run out.

use std::io;
use std::net::{IpAddr, TcpListener as StdTcp};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use super::crowd::{self, Crowd};
use super::forwarded::Peer;
use super::watch::Watch;
use super::{Downstream, Settings};
use crate::config::{Listen, Trusted};
use crate::descriptors;
use crate::unix_socket::UnixSocket;

/// Waited after an accept that failed for want of descriptors or memory: trying again at once
/// would only turn the wheel.
const BREATHER: Duration = Duration::from_millis(50);

/// Of an answer, so much waits in the kernel at most beside what is under way on the line.
const UNSENT: u32 = 64 * 1024;

/// A bound listener.
pub enum Listener {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

impl Listener {
    /// # Errors
    /// When the address is taken or cannot be had.
    pub fn bind(listen: &Listen) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let listener = StdTcp::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(TcpListener::from_std(listener)?))
            }
            // Whoever can reach the path may send requests, as to a port.
            Listen::Unix(path) => Ok(Self::Unix(UnixSocket::bind(path, 0o666)?)),
        }
    }

    /// Where it listens, with the port that was chosen for port 0.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn address(&self) -> io::Result<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Self::Unix(listener) => Ok(Listen::Unix(listener.path().to_owned())),
        }
    }

    /// Keeps the kernel from taking more of an answer than it can soon send: what waits there cannot be seen
    /// to stand still. Connections inherit it.
    fn take_little(&self) {
        if let Self::Tcp(listener) = self
            && let Err(error) = SockRef::from(listener).set_tcp_notsent_lowat(UNSENT)
        {
            tracing::debug!(%error, "the kernel takes answers as it likes");
        }
    }

    async fn accept(&self) -> io::Result<(Accepted, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let local = stream.local_addr()?;
                Ok((Accepted::Tcp(stream), Peer::Tcp { peer, local }))
            }
            Self::Unix(listener) => Ok((Accepted::Unix(listener.accept().await?), Peer::Unix)),
        }
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
pub trait Stream: AsyncRead + AsyncWrite + AsFd + Unpin {
    /// Ends it so that the client cannot take it for a regular end.
    fn reset(self);
}

impl Stream for TcpStream {
    fn reset(self) {
        // It may be gone already; then nobody can mistake anything.
        let _ = self.set_zero_linger();
    }
}

impl Stream for UnixStream {
    /// Unix sockets know no reset.
    fn reset(self) {}
}

/// All listeners, and the connections that came through them.
#[derive(Default)]
pub struct Listeners {
    accepting: TaskTracker,
    connections: TaskTracker,
}

impl Listeners {
    /// Accepts on this listener until the drain has begun.
    pub fn add(&self, listener: Listener, downstream: Arc<Downstream>) {
        listener.take_little();
        let connections = self.connections.clone();
        self.accepting.spawn(async move {
            let drain = downstream.drain_begun();
            tokio::pin!(drain);
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = &mut drain => return,
                };
                match accepted {
                    Ok((stream, peer)) => {
                        connections.spawn(connection(Arc::clone(&downstream), stream, peer));
                    }
                    Err(error) if descriptors::is_shortage(&error) => {
                        make_do(&listener, &downstream.crowd, &error).await;
                    }
                    // That connection is gone already; the next one may be there.
                    Err(error) => tracing::debug!(%error, "cannot accept a connection"),
                }
            }
        });
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
    let Peer::Tcp { peer, .. } = peer else {
        return None;
    };
    let address = peer.ip().to_canonical();
    let is_proxy =
        |trusted: &Trusted| matches!(trusted, Trusted::Net(net) if net.contains(&address));
    (!settings.trusted.iter().any(is_proxy)).then_some(address)
}

async fn connection(downstream: Arc<Downstream>, stream: Accepted, peer: Peer) {
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
        Accepted::Tcp(stream) => downstream.serve(stream, peer, watch).await,
        Accepted::Unix(stream) => downstream.serve(stream, peer, watch).await,
    }
}
