//! Listeners: accepting connections, and going on when descriptors run out.

use std::io;
use std::net::TcpListener as StdTcp;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::task::TaskTracker;

use super::Downstream;
use super::forwarded::Peer;
use super::watch::Watch;
use crate::config::Listen;
use crate::unix_socket::UnixSocket;

/// Waited after an accept that failed for want of descriptors or memory: trying again at once
/// would only turn the wheel.
const BREATHER: Duration = Duration::from_millis(50);

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

/// A connection's bytes.
pub trait Stream: AsyncRead + AsyncWrite + AsFd + Send + Unpin + 'static {
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
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(BREATHER).await;
                    }
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

async fn connection(downstream: Arc<Downstream>, stream: Accepted, peer: Peer) {
    let watch = Watch::new(downstream.sweeper.alarm(), downstream.settings().bounds);
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
