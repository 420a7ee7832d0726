//! One connection to an HTTP server: opening it, and knowing when it is of no more use.
//!
//! A connection that has been idle may be closed by the server in the very moment in which it is used, and
//! what was written then is neither surely lost nor surely seen. So one that the server may be about to
//! close is not used again.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::{TcpStream, UnixStream, tcp, unix};
use tokio_util::either::Either;

use crate::config::Upstream;

/// How long a server may take to accept. It stands beside the gateway.
const CONNECT: Duration = Duration::from_secs(1);

/// A connection that has been idle for longer is not used again. Servers close theirs after two seconds
/// (gunicorn) or more; opening one costs them and us some microseconds.
const FRESH: Duration = Duration::from_secs(1);

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
pub type Line = Either<TcpStream, UnixStream>;

/// The server's way.
pub type Reader<'a> = Either<tcp::ReadHalf<'a>, unix::ReadHalf<'a>>;

/// The way to the server.
pub type Writer<'a> = Either<tcp::WriteHalf<'a>, unix::WriteHalf<'a>>;

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
                    Line::Left(stream)
                }
                Upstream::Unix(path) => Line::Right(UnixStream::connect(path).await?),
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
        // However short it was: what a server sends behind an answer would be read as the next one's.
        last_used.elapsed() < FRESH && is_silent(&self.line)
    }

    /// Resolves when an idle connection is of no more use: it was closed, or says what nobody asked for.
    /// Cancel safe.
    pub async fn spoilt(&mut self) {
        // Readiness may be left over from the last answer: then there is nothing to read.
        loop {
            let readable = match &self.line {
                Line::Left(stream) => stream.readable().await,
                Line::Right(stream) => stream.readable().await,
            };
            if readable.is_err() || !is_silent(&self.line) {
                return;
            }
            let nothing = || Err::<(), _>(io::Error::from(io::ErrorKind::WouldBlock));
            let _ = match &self.line {
                Line::Left(stream) => stream.try_io(Interest::READABLE, nothing),
                Line::Right(stream) => stream.try_io(Interest::READABLE, nothing),
            };
        }
    }

    /// Both ways of the connection, and what has been read from it.
    pub fn split(&mut self) -> (Reader<'_>, Writer<'_>, &mut BytesMut) {
        let (reader, writer) = match &mut self.line {
            Line::Left(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Left(reader), Writer::Left(writer))
            }
            Line::Right(stream) => {
                let (reader, writer) = stream.split();
                (Reader::Right(reader), Writer::Right(writer))
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

/// Reads on, with room for so much more if that is known; 0 at the end. Cancel safe.
///
/// # Errors
/// When the connection broke.
pub async fn fill(
    reader: &mut Reader<'_>,
    buffer: &mut BytesMut,
    wanted: Option<u64>,
) -> io::Result<usize> {
    let wanted = wanted.map_or(ROOM, |wanted| {
        usize::try_from(wanted).map_or(MOST_ROOM, |wanted| wanted.clamp(ROOM, MOST_ROOM))
    });
    buffer.reserve(wanted);
    reader.read_buf(buffer).await
}

/// Nothing has come, not even an end.
fn is_silent(line: &Line) -> bool {
    let line = match line {
        Line::Left(stream) => stream.as_fd(),
        Line::Right(stream) => stream.as_fd(),
    };
    let mut byte = [0];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = rustix::net::recv(line, &mut byte[..], flags);
    matches!(peeked, Err(rustix::io::Errno::AGAIN))
}
