//! One connection of the link: frames, and the descriptors that come with some, over a Unix socket.
//!
//! A descriptor belongs to a frame that says so, and every frame that says so has one: what is
//! otherwise breaks the connection, and nothing that came is left open.

use std::future::poll_fn;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::task::{Poll, ready};

use bytes::{BufMut, BytesMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::wire::{self, Frame, Header, Kind, WireError, flag};

/// Read at a time. Nearly every frame fits, and a short read tells that nothing more is there.
const ROOM: usize = 16 * 1024;

#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    /// Where bytes arrive that may have a descriptor with them.
    room: Box<[u8]>,
    incoming: BytesMut,
    /// Came with bytes that no frame has claimed yet. One at most: a worker has one job at a time.
    file: Option<OwnedFd>,
    outgoing: BytesMut,
}

/// Why a connection is of no use any more.
#[derive(Debug)]
pub enum Broken {
    /// The worker closed it, or died.
    Closed,
    /// So it was before the first byte of the frame that was to be sent.
    Unsent,
    Io(io::Error),
    Wire(WireError),
    /// A frame that does not belong here.
    Unexpected(Header),
    /// A frame whose content is not as agreed.
    Content(String),
    /// We have nothing more to wait for, and it does not end.
    GivenUp(&'static str),
    /// This slot was granted, and is not opened.
    Unopened(u16),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed | Self::Unsent => f.write_str("connection closed"),
            Self::Io(error) => error.fmt(f),
            Self::Wire(error) => error.fmt(f),
            Self::Unexpected(header) => write!(
                f,
                "unexpected {:?} frame for request {} epoch {}",
                header.kind, header.request, header.epoch
            ),
            Self::Content(what) => f.write_str(what),
            Self::GivenUp(why) => f.write_str(why),
            Self::Unopened(slot) => write!(
                f,
                "given up: slot {slot} was granted to it, and not opened in time"
            ),
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
            room: vec![0; ROOM].into(),
            incoming: BytesMut::new(),
            file: None,
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
                // It came with the frame's first byte, or with that of a frame still to be decoded.
                let stray = self.file.is_some() && self.incoming.is_empty();
                match (frame.header.has(flag::FD), self.file.is_some()) {
                    (true, false) => return Err(Broken::content("a frame without its descriptor")),
                    (false, _) if stray => {
                        return Err(Broken::content("a descriptor without a frame"));
                    }
                    _ => return Ok(frame),
                }
            }
            self.fill().await?;
        }
    }

    /// The header of the next frame, if it has come with the last one.
    pub fn next_header(&self) -> Option<Header> {
        wire::next_header(&self.incoming)
    }

    /// The descriptor of the frame that came last, which has the flag `FD`.
    pub fn file(&mut self) -> OwnedFd {
        self.file
            .take()
            .expect("no frame with the flag is given out without it")
    }

    async fn fill(&mut self) -> Result<(), Broken> {
        let missing = wire::missing(&self.incoming);
        let count = if missing > ROOM {
            // Within a frame no descriptor comes, so a large one needs no copy.
            let mut rest = (&mut self.incoming).limit(missing);
            self.stream.read_buf(&mut rest).await?
        } else {
            self.receive().await?
        };
        match count {
            0 => Err(Broken::Closed),
            _ => Ok(()),
        }
    }

    async fn receive(&mut self) -> Result<usize, Broken> {
        let Self { stream, room, .. } = self;
        let (count, file) = poll_fn(|cx| {
            loop {
                ready!(stream.poll_read_ready(cx))?;
                let mut received = None;
                let tried = stream.try_io(Interest::READABLE, || {
                    let (count, file) = receive_once(stream, room)?;
                    // The system ends a read behind a descriptor, whatever follows.
                    let drained = (1..ROOM).contains(&count) && file.is_none();
                    received = Some((count, file));
                    // Said in advance, it need not be asked by another call before the next wait.
                    if drained {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Ok(())
                });
                match (received, tried) {
                    (Some(received), _) => return Poll::Ready(Ok::<_, io::Error>(received)),
                    (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                        return Poll::Ready(Err(error));
                    }
                    (None, _) => {}
                }
            }
        })
        .await?;
        self.incoming.extend_from_slice(&self.room[..count]);
        if let Some(file) = file
            && self.file.replace(file).is_some()
        {
            return Err(Broken::content("more descriptors than frames"));
        }
        Ok(count)
    }

    /// Sends one frame; `write_head` adds its head, then its body, to the buffer after the header.
    /// Not cancel safe: a cut frame makes the connection useless.
    ///
    /// # Errors
    /// When the peer is gone. [`Broken::Unsent`] if it has nothing of the frame.
    pub async fn send(
        &mut self,
        mut header: Header,
        head: impl FnOnce(&mut Header, &mut BytesMut),
        body: &[u8],
    ) -> Result<(), Broken> {
        self.encode(&mut header, head, body);
        let first = self.stream.write(&self.outgoing).await;
        self.write(first).await
    }

    /// Sends one frame with a descriptor on its first byte. Not cancel safe.
    ///
    /// # Errors
    /// As [`Self::send`].
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
        let first = sent.await;
        self.write(first).await
    }

    /// Sends what is encoded; its first part with a call of the caller's choice.
    async fn write(&mut self, first: io::Result<usize>) -> Result<(), Broken> {
        let sent = first.map_err(|error| match Broken::from(error) {
            Broken::Closed => Broken::Unsent,
            other => other,
        })?;
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
        // Read like this, descriptors are closed by the system.
        while matches!(self.stream.read(&mut self.room).await, Ok(1..)) {}
    }
}

/// Bytes, and the descriptor that came with them.
fn receive_once(stream: &UnixStream, room: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [IoSliceMut::new(room)];
    let received = recvmsg(stream, &mut bytes, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(files) => files.collect(),
        _ => Vec::new(),
    });
    let file = files.next();
    if received.flags.contains(ReturnFlags::CTRUNC) || files.next().is_some() {
        let several = "more than one descriptor with one frame";
        return Err(io::Error::new(io::ErrorKind::InvalidData, several));
    }
    Ok((received.bytes, file))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn pair() -> (Channel, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("two ends");
        (Channel::new(ours), theirs)
    }

    fn frame(kind: Kind, flags: u8, body: &[u8]) -> Vec<u8> {
        let mut bytes = BytesMut::new();
        let header = Header {
            flags,
            body: body.len(),
            ..Header::bare(kind, 0)
        };
        header.encode(&mut bytes);
        bytes.extend_from_slice(body);
        bytes.to_vec()
    }

    fn send(stream: &UnixStream, bytes: &[u8], files: &[&File]) {
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
        }
        let bytes = [IoSlice::new(bytes)];
        sendmsg(stream, &bytes, &mut ancillary, SendFlags::NOSIGNAL).expect("room");
    }

    fn file(text: &str) -> File {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(text.as_bytes()).expect("room");
        file.rewind().expect("a file");
        file
    }

    #[tokio::test]
    async fn a_descriptor_comes_with_its_frame_whatever_is_around_it() {
        let (mut channel, theirs) = pair();
        send(&theirs, &frame(Kind::Hold, 0, b"before"), &[]);
        let answer = frame(Kind::Answer, flag::FD, &[0; 16]);
        send(&theirs, &answer[..1], &[&file("content")]);
        send(&theirs, &answer[1..], &[]);
        send(&theirs, &frame(Kind::Ready, 0, b""), &[]);

        let kinds = [Kind::Hold, Kind::Answer, Kind::Ready];
        for kind in kinds {
            let frame = channel.frame().await.expect("a frame");
            assert_eq!(frame.header.kind, kind);
            if kind == Kind::Answer {
                let mut text = String::new();
                let file = channel.file();
                let flags = rustix::io::fcntl_getfd(&file).expect("it is open");
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                File::from(file).read_to_string(&mut text).expect("text");
                assert_eq!(text, "content");
            }
        }
    }

    #[tokio::test]
    async fn what_a_peer_that_is_gone_has_nothing_of_is_unsent() {
        let (mut channel, theirs) = pair();
        drop(theirs);
        let sent = channel.send(Header::bare(Kind::Request, 0), |_, _| {}, b"a body");
        assert!(matches!(sent.await, Err(Broken::Unsent)));

        // It has read some of it, so it may have all.
        let (mut channel, mut theirs) = pair();
        let large = vec![0; 4 << 20];
        let sending = channel.send(Header::bare(Kind::Request, 0), |_, _| {}, &large);
        let leaving = async {
            theirs
                .read_exact(&mut [0; 100])
                .await
                .expect("the first bytes");
            drop(theirs);
        };
        let (sent, ()) = tokio::join!(sending, leaving);
        assert!(matches!(sent, Err(Broken::Closed)));
    }

    #[tokio::test]
    async fn a_frame_larger_than_one_read_arrives_whole() {
        let (mut channel, mut theirs) = pair();
        let body: Vec<u8> = (0..wire::MAX_CHUNK).map(|at| at as u8).collect();
        let sent = [
            frame(Kind::Body, flag::MORE, &body),
            frame(Kind::Body, 0, b"last"),
        ]
        .concat();
        tokio::spawn(async move { theirs.write_all(&sent).await });
        assert!(channel.frame().await.expect("a frame").body == body);
        assert_eq!(channel.frame().await.expect("a frame").body, "last");
        assert!(matches!(channel.frame().await, Err(Broken::Closed)));
    }

    #[tokio::test]
    async fn descriptors_and_frames_that_do_not_agree_break_the_connection() {
        let ready = || frame(Kind::Ready, 0, b"");
        let answer = || frame(Kind::Answer, flag::FD, &[0; 16]);
        let file = file("");
        for (bytes, files, why) in [
            (answer(), &[][..], "a frame without its descriptor"),
            (ready(), &[&file][..], "a descriptor without a frame"),
            (answer(), &[&file, &file][..], "more than one descriptor"),
        ] {
            let (mut channel, theirs) = pair();
            send(&theirs, &bytes, files);
            let broken = channel.frame().await.expect_err(why).to_string();
            assert!(broken.contains(why), "{broken}");
        }

        let (mut channel, theirs) = pair();
        let answer = answer();
        send(&theirs, &answer[..1], &[&file]);
        send(&theirs, &answer[1..2], &[&file]);
        let broken = channel.frame().await.expect_err("two").to_string();
        assert!(broken.contains("more descriptors than frames"), "{broken}");
    }
}
