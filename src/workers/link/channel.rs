//! One connection of the link: frames over a Unix socket.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use bytes::BytesMut;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::wire::{self, Frame, Header, Kind, WireError};

/// Room kept free in the read buffer: a short read then tells that nothing more is there.
const ROOM: usize = 16 * 1024;

#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    incoming: BytesMut,
    outgoing: BytesMut,
}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub enum Broken {
    /// The worker closed it, or died.
    Closed,
    Io(io::Error),
    Wire(WireError),
    /// A frame that does not belong here.
    Unexpected(Header),
    /// A frame whose content is not as agreed.
    Content(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("connection closed"),
            Self::Io(error) => error.fmt(f),
            Self::Wire(error) => error.fmt(f),
            Self::Unexpected(header) => write!(
                f,
                "unexpected {:?} frame for request {} epoch {}",
                header.kind, header.request, header.epoch
            ),
            Self::Content(what) => f.write_str(what),
        }
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<WireError> for Broken {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl Broken {
    pub fn content(what: impl std::fmt::Display) -> Self {
        Self::Content(what.to_string())
    }
}

impl Channel {
    pub fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
        }
    }

    /// Reads the preamble.
    ///
    /// # Errors
    /// When it is another, or the peer closes.
    pub async fn preamble(&mut self) -> Result<(), Broken> {
        while !wire::preamble(&mut self.incoming)? {
            self.fill().await?;
        }
        Ok(())
    }

    /// The next frame. Cancel safe.
    ///
    /// # Errors
    /// When what comes is no frame, or the peer closes.
    pub async fn frame(&mut self) -> Result<Frame, Broken> {
        loop {
            if let Some(frame) = wire::decode(&mut self.incoming)? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        self.incoming.reserve(ROOM);
        match self.stream.read_buf(&mut self.incoming).await? {
            0 => Err(Broken::Closed),
            _ => Ok(()),
        }
    }

    /// Sends one frame; `write_head` adds its head, then its body, to the buffer after the header.
    /// Not cancel safe: a cut frame makes the connection useless.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn send(
        &mut self,
        mut header: Header,
        head: impl FnOnce(&mut Header, &mut BytesMut),
        body: &[u8],
    ) -> Result<(), Broken> {
        self.encode(&mut header, head, body);
        self.stream.write_all(&self.outgoing).await?;
        self.outgoing.clear();
        Ok(())
    }

    /// Sends one frame with a descriptor on its first byte. Not cancel safe.
    ///
    /// # Errors
    /// When the peer is gone.
    pub async fn send_with_file(
        &mut self,
        mut header: Header,
        head: impl FnOnce(&mut Header, &mut BytesMut),
        file: impl AsFd,
    ) -> Result<(), Broken> {
        self.encode(&mut header, head, &[]);
        let sent = self.stream.async_io(Interest::WRITABLE, || {
            let descriptors = [file.as_fd()];
            let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            let bytes = [IoSlice::new(&self.outgoing)];
            Ok(sendmsg(
                &self.stream,
                &bytes,
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?)
        });
        let sent = sent.await?;
        self.stream.write_all(&self.outgoing[sent..]).await?;
        self.outgoing.clear();
        Ok(())
    }

    fn encode(
        &mut self,
        header: &mut Header,
        head: impl FnOnce(&mut Header, &mut BytesMut),
        body: &[u8],
    ) {
        self.outgoing.clear();
        self.outgoing.resize(wire::HEADER, 0);
        head(header, &mut self.outgoing);
        header.head = self.outgoing.len() - wire::HEADER;
        header.body = body.len();
        self.outgoing.extend_from_slice(body);
        header.encode(&mut &mut self.outgoing[..wire::HEADER]);
    }

    /// Tells the worker why it is turned away, as well as can be.
    pub async fn refuse(mut self, reason: &str) {
        let head = |_: &mut Header, out: &mut BytesMut| out.extend_from_slice(reason.as_bytes());
        // The peer may be anything; that it is not listening changes nothing.
        let _ = self.send(Header::bare(Kind::Refused, 0), head, &[]).await;
    }

    /// Waits until the peer has closed, whatever it still says.
    pub async fn closed(mut self) {
        while self.fill().await.is_ok() {
            self.incoming.clear();
        }
    }
}
