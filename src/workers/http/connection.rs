//! One connection to an HTTP server: opening it, and knowing when it is of no more use.
//!
//! A connection that has been idle may be closed by the server in the very moment in which it is used, and
//! what was written then is neither surely lost nor surely seen. So one that the server may be about to
//! close is not used again.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::RecvFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::config::Upstream;

/// How long a server may take to accept. It stands beside the gateway.
const CONNECT: Duration = Duration::from_secs(1);

/// A connection that has been idle for longer is not used again. Servers close theirs after two seconds
/// (gunicorn) or more; opening one costs them and us some microseconds.
const FRESH: Duration = Duration::from_secs(1);

/// After so long between two requests it is worth a system call to look whether the server has closed.
const WARM: Duration = Duration::from_millis(2);

/// Room made for each read. Answers that are larger come in several.
const ROOM: usize = 16 * 1024;
const MOST_ROOM: usize = 64 * 1024;

#[derive(Debug)]
pub struct Connection {
    line: Line,
    /// What has been read and belongs to nothing yet.
    buffer: BytesMut,
    /// None until it has carried a request.
    last_used: Option<Instant>,
}

/// A connection's bytes, of whatever kind.
#[derive(Debug)]
pub enum Line {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Why there is no connection.
#[derive(Debug)]
pub enum Refused {
    /// The server has as many as it takes, or we have: for a moment.
    Busy,
    /// Nobody accepts there.
    Down(io::Error),
}

impl Connection {
    /// # Errors
    /// When the server does not accept.
    pub async fn open(upstream: &Upstream) -> Result<Self, Refused> {
        let opening = async {
            Ok(match upstream {
                Upstream::Tcp(authority) => {
                    let stream = TcpStream::connect(authority).await?;
                    stream.set_nodelay(true)?;
                    Line::Tcp(stream)
                }
                Upstream::Unix(path) => Line::Unix(UnixStream::connect(path).await?),
            })
        };
        let opened = tokio::time::timeout(CONNECT, opening).await;
        let line = opened.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        match line {
            Ok(line) => Ok(Self {
                line,
                buffer: BytesMut::new(),
                last_used: None,
            }),
            Err(error) if is_passing(&error) => Err(Refused::Busy),
            Err(error) => Err(Refused::Down(error)),
        }
    }

    /// It has carried a request before, so the server may have closed it since.
    pub fn is_used(&self) -> bool {
        self.last_used.is_some()
    }

    /// An answer has ended, and another may follow on it.
    pub fn rests(&mut self) {
        self.last_used = Some(Instant::now());
    }

    /// Whether the server can be expected to read another request from it.
    pub fn is_good(&self) -> bool {
        let Some(last_used) = self.last_used else {
            return true;
        };
        let idle = last_used.elapsed();
        idle < FRESH && (idle < WARM || self.line.is_silent())
    }

    /// Resolves when an idle connection is of no more use: it was closed, or says what nobody asked for.
    /// Cancel safe.
    pub async fn spoilt(&mut self) {
        // Readiness may be left over from the last answer: then there is nothing to read.
        while self.line.readable().await.is_ok() && self.line.is_silent() {
            let nothing = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
            let _ = match &self.line {
                Line::Tcp(stream) => stream.try_io(Interest::READABLE, nothing),
                Line::Unix(stream) => stream.try_io(Interest::READABLE, nothing),
            };
        }
    }

    /// Both ways of the connection, and what has been read from it.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>, &mut BytesMut) {
        let (reader, writer) = match &mut self.line {
            Line::Tcp(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Tcp(reader), Writer::Tcp(writer))
            }
            Line::Unix(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Unix(reader), Writer::Unix(writer))
            }
        };
        (reader, writer, &mut self.buffer)
    }

    /// The connection as it is, for another protocol, and what has been read from it.
    pub fn into_parts(self) -> (Line, BytesMut) {
        (self.line, self.buffer)
    }
}

/// It says nothing about whether the server is there.
fn is_passing(error: &io::Error) -> bool {
    let here = [
        rustix::io::Errno::MFILE,
        rustix::io::Errno::NFILE,
        rustix::io::Errno::NOBUFS,
        rustix::io::Errno::ADDRNOTAVAIL,
        // A Unix socket whose line of connections to accept is full.
        rustix::io::Errno::AGAIN,
    ];
    here.iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Line {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Unix(stream) => stream.readable().await,
        }
    }

    /// Nothing has come, not even an end.
    fn is_silent(&self) -> bool {
        let line = match self {
            Self::Tcp(stream) => stream.as_fd(),
            Self::Unix(stream) => stream.as_fd(),
        };
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(line, &mut byte[..], flags);
        matches!(peeked, Err(rustix::io::Errno::AGAIN))
    }
}

/// The server's way.
pub enum Reader<'a> {
    Tcp(tcp::ReadHalf<'a>),
    Unix(unix::ReadHalf<'a>),
}

/// The way to the server.
pub enum Writer<'a> {
    Tcp(tcp::WriteHalf<'a>),
    Unix(unix::WriteHalf<'a>),
}

impl Reader<'_> {
    /// Reads on, with room for so much more if that is known; 0 at the end. Cancel safe.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn fill(&mut self, buffer: &mut BytesMut, wanted: Option<u64>) -> io::Result<usize> {
        let wanted = wanted.map_or(ROOM, |wanted| {
            usize::try_from(wanted).map_or(MOST_ROOM, |wanted| wanted.clamp(ROOM, MOST_ROOM))
        });
        buffer.reserve(wanted);
        match self {
            Self::Tcp(reader) => reader.read_buf(buffer).await,
            Self::Unix(reader) => reader.read_buf(buffer).await,
        }
    }
}

impl AsyncWrite for Writer<'_> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(writer) => Pin::new(writer).poll_write(cx, buf),
            Self::Unix(writer) => Pin::new(writer).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(writer) => Pin::new(writer).poll_write_vectored(cx, bufs),
            Self::Unix(writer) => Pin::new(writer).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(writer) => Pin::new(writer).poll_shutdown(cx),
            Self::Unix(writer) => Pin::new(writer).poll_shutdown(cx),
        }
    }
}

impl AsyncRead for Line {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
