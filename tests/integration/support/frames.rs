//! The link's frames, as `docs/protocol.md` lays them out.
//!
//! Written from that page alone, without the gateway's codec, so that the page is proved to be
//! enough for a worker in another language. Nothing is checked on the way out: a test may say
//! what no worker should.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

pub const PREAMBLE: &[u8] = b"LAYBY/1\n";

pub mod kind {
    pub const HELLO: u8 = 0x01;
    pub const SLOT: u8 = 0x02;
    pub const WELCOME: u8 = 0x03;
    pub const REFUSED: u8 = 0x04;
    pub const GRANT: u8 = 0x05;
    pub const DRAIN: u8 = 0x06;
    pub const BYE: u8 = 0x07;
    pub const WANT: u8 = 0x08;
    pub const CALL: u8 = 0x09;
    pub const STACK: u8 = 0x0a;
    pub const PING: u8 = 0x0b;
    pub const PONG: u8 = 0x0c;
    pub const TOLD: u8 = 0x0d;
    pub const REQUEST: u8 = 0x10;
    pub const RESUME: u8 = 0x11;
    pub const CANCEL: u8 = 0x12;
    pub const RESULTS: u8 = 0x13;
    pub const RETIRE: u8 = 0x14;
    pub const STOP: u8 = 0x15;
    pub const RUN: u8 = 0x16;
    pub const ANSWER: u8 = 0x20;
    pub const BODY: u8 = 0x21;
    pub const PARK: u8 = 0x22;
    pub const HOLD: u8 = 0x23;
    pub const READY: u8 = 0x24;
    pub const RETIRED: u8 = 0x25;
    pub const RELAY: u8 = 0x26;
}

pub mod flag {
    pub const FD: u8 = 0x01;
    pub const MORE: u8 = 0x02;
    pub const READY: u8 = 0x04;
    pub const BROKEN: u8 = 0x08;
    pub const SHIELDED: u8 = 0x10;
    pub const PINNED: u8 = 0x20;
    pub const LOCAL: u8 = 0x40;
    pub const LAZY: u8 = 0x80;
}

const HEADER: usize = 24;

#[derive(Debug, Default)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub aux: u16,
    pub request: u64,
    pub epoch: u32,
    pub head: Vec<u8>,
    pub body: Vec<u8>,
    /// Came with the frame.
    pub file: Option<OwnedFd>,
}

impl Frame {
    pub fn new(kind: u8) -> Self {
        Self {
            kind,
            ..Self::default()
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![self.kind, self.flags];
        bytes.extend(self.aux.to_be_bytes());
        bytes.extend((self.head.len() as u32).to_be_bytes());
        bytes.extend((self.body.len() as u32).to_be_bytes());
        bytes.extend(self.request.to_be_bytes());
        bytes.extend(self.epoch.to_be_bytes());
        bytes.extend(&self.head);
        bytes.extend(&self.body);
        bytes
    }

    /// The first whole frame in the bytes, and how long it is.
    fn parse(bytes: &[u8]) -> Option<(Self, usize)> {
        let header = bytes.get(..HEADER)?;
        let number = |range: std::ops::Range<usize>| {
            header[range]
                .iter()
                .fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (head, body) = (number(4..8) as usize, number(8..12) as usize);
        let most = if header[0] == kind::REQUEST {
            64 << 10
        } else {
            256 << 10
        };
        assert!(
            head <= 4 << 20 && body <= most,
            "a frame beyond its bounds: {head}, {body}"
        );
        let body_at = HEADER + head;
        let end = body_at + body;
        let content = bytes.get(HEADER..end)?;
        let (head, body) = content.split_at(body_at - HEADER);
        let frame = Self {
            kind: header[0],
            flags: header[1],
            aux: number(2..4) as u16,
            request: number(12..20),
            epoch: number(20..24) as u32,
            head: head.to_vec(),
            body: body.to_vec(),
            file: None,
        };
        Some((frame, end))
    }
}

/// One connection of the link, the worker's end.
#[derive(Debug)]
pub struct Line {
    stream: UnixStream,
    /// One writer at a time, so that frames stay whole.
    writing: Mutex<()>,
    reading: Mutex<Reading>,
}

#[derive(Debug, Default)]
struct Reading {
    bytes: Vec<u8>,
    files: VecDeque<OwnedFd>,
}

impl Line {
    pub async fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await;
        Self {
            stream: stream.expect("the gateway listens for workers"),
            writing: Mutex::default(),
            reading: Mutex::default(),
        }
    }

    /// True if the gateway still listens.
    pub async fn send(&self, frame: &Frame) -> bool {
        self.send_bytes(&frame.bytes()).await
    }

    pub async fn send_bytes(&self, mut bytes: &[u8]) -> bool {
        let _whole = self.writing.lock().await;
        while !bytes.is_empty() {
            let written = self
                .stream
                .async_io(Interest::WRITABLE, || self.stream.try_write(bytes));
            match written.await {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if hung_up(&error) => return false,
                Err(error) => panic!("the link cannot be written: {error}"),
            }
        }
        true
    }

    /// Sends a frame with a descriptor on its first byte.
    pub async fn send_with(&self, frame: &Frame, file: BorrowedFd<'_>) -> bool {
        let bytes = frame.bytes();
        let sent = {
            let _whole = self.writing.lock().await;
            let sent = self.stream.async_io(Interest::WRITABLE, || {
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                let mut ancillary = SendAncillaryBuffer::new(&mut space);
                let files = [file];
                ancillary.push(SendAncillaryMessage::ScmRights(&files));
                let first = [IoSlice::new(&bytes)];
                Ok(sendmsg(
                    &self.stream,
                    &first,
                    &mut ancillary,
                    SendFlags::NOSIGNAL,
                )?)
            });
            match sent.await {
                Ok(count) => count,
                Err(error) if hung_up(&error) => return false,
                Err(error) => panic!("the link cannot be written: {error}"),
            }
        };
        assert_eq!(sent, bytes.len(), "a frame with a descriptor is small");
        true
    }

    /// Ends the connection, whoever still has it.
    pub fn close(&self) {
        // The gateway may have been first.
        let _ = shutdown(&self.stream, Shutdown::Both);
    }

    /// The next frame; none when the gateway has closed. Cancel safe.
    pub async fn frame(&self) -> Option<Frame> {
        let mut reading = self.reading.lock().await;
        loop {
            if let Some((mut frame, len)) = Frame::parse(&reading.bytes) {
                reading.bytes.drain(..len);
                if frame.flags & flag::FD != 0 && frame.kind < kind::ANSWER {
                    let file = reading.files.pop_front();
                    frame.file = Some(file.expect("a descriptor came with the frame"));
                }
                return Some(frame);
            }
            let received = self
                .stream
                .async_io(Interest::READABLE, || self.receive(&mut reading));
            match received.await {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) if hung_up(&error) => return None,
                Err(error) => panic!("the link cannot be read: {error}"),
            }
        }
    }

    fn receive(&self, reading: &mut Reading) -> io::Result<usize> {
        let mut bytes = [0; 64 * 1024];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            &self.stream,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                reading.files.extend(files);
            }
        }
        reading.bytes.extend(&bytes[..received.bytes]);
        Ok(received.bytes)
    }
}

fn hung_up(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}
