//! The link's frames: bytes to frames and back, without I/O.
//!
//! `docs/protocol.md` is the specification; `tests/wire/` holds frames that this codec and the
//! workers' must agree on. Which frame may come when is decided by those who read them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Sent by the worker when it connects.
pub const PREAMBLE: &[u8; 8] = b"LAYBY/1\n";

pub const HEADER: usize = 24;
pub const MAX_HEAD: usize = 4 << 20;
/// Largest body of an `ANSWER` or `BODY`, and of `RESUME` or `RESULTS` inside the frame.
pub const MAX_CHUNK: usize = 256 << 10;
/// Largest body of a `REQUEST` inside the frame.
pub const MAX_REQUEST: usize = 64 << 10;
/// Largest body of a `PARK`, `HOLD` or `RELAY`: the request bodies of a plan's fetches together.
pub const MAX_PLAN: usize = 32 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Hello = 0x01,
    Slot = 0x02,
    Welcome = 0x03,
    Refused = 0x04,
    Grant = 0x05,
    Drain = 0x06,
    Bye = 0x07,
    Want = 0x08,
    Call = 0x09,
    Stack = 0x0a,
    Ping = 0x0b,
    Pong = 0x0c,
    Told = 0x0d,
    Request = 0x10,
    Resume = 0x11,
    Cancel = 0x12,
    Results = 0x13,
    Retire = 0x14,
    Stop = 0x15,
    Run = 0x16,
    Answer = 0x20,
    Body = 0x21,
    Park = 0x22,
    Hold = 0x23,
    Ready = 0x24,
    Retired = 0x25,
    Relay = 0x26,
}

impl Kind {
    const ALL: [Self; 27] = [
        Self::Hello,
        Self::Slot,
        Self::Welcome,
        Self::Refused,
        Self::Grant,
        Self::Drain,
        Self::Bye,
        Self::Want,
        Self::Call,
        Self::Stack,
        Self::Ping,
        Self::Pong,
        Self::Told,
        Self::Request,
        Self::Resume,
        Self::Cancel,
        Self::Results,
        Self::Retire,
        Self::Stop,
        Self::Run,
        Self::Answer,
        Self::Body,
        Self::Park,
        Self::Hold,
        Self::Ready,
        Self::Retired,
        Self::Relay,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    /// The flags that may stand on a frame of this kind.
    fn flags(self) -> u8 {
        match self {
            Self::Request => flag::FD | flag::LAZY,
            Self::Resume | Self::Results => flag::FD,
            Self::Answer => flag::FD | flag::MORE | flag::READY,
            Self::Body => flag::MORE | flag::READY | flag::BROKEN,
            Self::Park => flag::SHIELDED | flag::PINNED | flag::LOCAL | flag::LAZY,
            Self::Hold => flag::SHIELDED | flag::LOCAL | flag::LAZY,
            Self::Relay => flag::READY,
            _ => 0,
        }
    }

    fn max_body(self) -> usize {
        match self {
            Self::Answer | Self::Body | Self::Resume | Self::Results => MAX_CHUNK,
            Self::Request => MAX_REQUEST,
            Self::Park | Self::Hold | Self::Relay => MAX_PLAN,
            _ => 0,
        }
    }
}

pub mod flag {
    /// The body is a file whose descriptor comes with the frame.
    pub const FD: u8 = 0x01;
    /// The body goes on in another frame.
    pub const MORE: u8 = 0x02;
    /// The slot is ready for its next job.
    pub const READY: u8 = 0x04;
    /// The body ends here and is not whole.
    pub const BROKEN: u8 = 0x08;
    /// A client that leaves must not cancel this request now.
    pub const SHIELDED: u8 = 0x10;
    /// Only this slot can take the request's next job.
    pub const PINNED: u8 = 0x20;
    /// The request waits for something in its own process.
    pub const LOCAL: u8 = 0x40;
    /// The request's body is not here yet; or: it waits for that.
    pub const LAZY: u8 = 0x80;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    pub flags: u8,
    pub aux: u16,
    pub head: usize,
    pub body: usize,
    pub request: u64,
    pub epoch: u32,
}

impl Header {
    /// A frame without head and body that belongs to no request.
    pub fn bare(kind: Kind, aux: u16) -> Self {
        Self {
            kind,
            flags: 0,
            aux,
            head: 0,
            body: 0,
            request: 0,
            epoch: 0,
        }
    }

    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(self.kind as u8);
        out.put_u8(self.flags);
        out.put_u16(self.aux);
        out.put_u32(self.head as u32);
        out.put_u32(self.body as u32);
        out.put_u64(self.request);
        out.put_u32(self.epoch);
    }

    fn decode(mut bytes: &[u8]) -> Result<Self, WireError> {
        let byte = bytes.get_u8();
        let kind = Kind::from_byte(byte).ok_or(WireError::Kind(byte))?;
        let header = Self {
            kind,
            flags: bytes.get_u8(),
            aux: bytes.get_u16(),
            head: bytes.get_u32() as usize,
            body: bytes.get_u32() as usize,
            request: bytes.get_u64(),
            epoch: bytes.get_u32(),
        };
        if header.flags & !kind.flags() != 0 {
            return Err(WireError::Flags(kind, header.flags));
        }
        if header.head > MAX_HEAD {
            return Err(WireError::Head(kind, header.head));
        }
        if header.body > kind.max_body() {
            return Err(WireError::Body(kind, header.body));
        }
        Ok(header)
    }

    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub header: Header,
    pub head: Bytes,
    pub body: Bytes,
}

/// What a peer sent that is not this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireError {
    Preamble([u8; 8]),
    Kind(u8),
    Flags(Kind, u8),
    Head(Kind, usize),
    Body(Kind, usize),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Preamble(bytes) if bytes.starts_with(b"LAYBY/") => {
                let version = String::from_utf8_lossy(&bytes[6..]);
                let version = version.trim_end();
                write!(
                    f,
                    "speaks version {} of the link protocol, this gateway version 1",
                    version.escape_debug()
                )
            }
            Self::Preamble(bytes) => write!(
                f,
                "does not speak the link protocol: it began with {:?}",
                String::from_utf8_lossy(bytes)
            ),
            Self::Kind(byte) => write!(f, "unknown frame type {byte:#04x}"),
            Self::Flags(kind, flags) => write!(f, "flags {flags:#04x} on a {kind:?} frame"),
            Self::Head(kind, len) => write!(f, "{kind:?} frame with a head of {len} bytes"),
            Self::Body(kind, len) => write!(f, "{kind:?} frame with a body of {len} bytes"),
        }
    }
}

impl std::error::Error for WireError {}

/// Takes the preamble, if it is there in full.
///
/// # Errors
/// When something else is there.
pub fn preamble(buffer: &mut BytesMut) -> Result<bool, WireError> {
    let Some(bytes) = buffer.first_chunk::<8>().copied() else {
        return Ok(false);
    };
    if bytes != *PREAMBLE {
        return Err(WireError::Preamble(bytes));
    }
    buffer.advance(bytes.len());
    Ok(true)
}

/// The next frame, if it is there in full; head and body share the buffer's memory.
///
/// # Errors
/// When what is there is no frame. The buffer is of no use any more then.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<Frame>, WireError> {
    if buffer.len() < HEADER {
        return Ok(None);
    }
    let header = Header::decode(&buffer[..HEADER])?;
    let whole = HEADER + header.head + header.body;
    if buffer.len() < whole {
        buffer.reserve(whole - buffer.len());
        return Ok(None);
    }
    let mut frame = buffer.split_to(whole).freeze();
    frame.advance(HEADER);
    let head = frame.split_to(header.head);
    Ok(Some(Frame {
        header,
        head,
        body: frame,
    }))
}

/// The header of the next frame, if it is there.
pub fn next_header(buffer: &[u8]) -> Option<Header> {
    Header::decode(buffer.get(..HEADER)?).ok()
}

/// How many bytes are still to come of the frame whose header is there; 0 when none is.
pub fn missing(buffer: &[u8]) -> usize {
    let Some(header) = next_header(buffer) else {
        return 0;
    };
    (HEADER + header.head + header.body).saturating_sub(buffer.len())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn kind() -> impl Strategy<Value = Kind> {
        proptest::sample::select(Kind::ALL.to_vec())
    }

    proptest! {
        #[test]
        fn any_frame_survives_the_wire_however_it_is_cut(
            kind in kind(), flags: u8, aux: u16, request: u64, epoch: u32,
            head in proptest::collection::vec(any::<u8>(), 0..200),
            body in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..424,
        ) {
            let body = if kind.max_body() == 0 { Vec::new() } else { body };
            let header = Header {
                kind, flags: flags & kind.flags(), aux, head: head.len(), body: body.len(), request, epoch,
            };
            let mut bytes = BytesMut::new();
            header.encode(&mut bytes);
            bytes.put_slice(&head);
            bytes.put_slice(&body);

            let rest = bytes.split_off(cut.min(bytes.len()));
            let early = decode(&mut bytes).expect("a part of a frame is no error");
            let frame = match early {
                Some(frame) => { prop_assert!(rest.is_empty()); frame }
                None => {
                    bytes.extend_from_slice(&rest);
                    decode(&mut bytes).expect("a frame").expect("a whole frame")
                }
            };
            prop_assert_eq!(frame.header, header);
            prop_assert_eq!(&frame.head[..], &head[..]);
            prop_assert_eq!(&frame.body[..], &body[..]);
            prop_assert!(bytes.is_empty());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_ask_for_much(
            bytes in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = decode(&mut buffer) {}
            prop_assert!(buffer.capacity() <= HEADER + MAX_HEAD + MAX_PLAN + 400);
        }
    }

    /// What a file of `tests/wire/` decodes to, in the words of its JSON.
    fn decoded(bytes: &[u8], begins: bool) -> serde_json::Value {
        let mut buffer = BytesMut::from(bytes);
        let frame = match begins.then(|| preamble(&mut buffer)) {
            None | Some(Ok(true)) => decode(&mut buffer),
            Some(Ok(false)) => Ok(None),
            Some(Err(error)) => Err(error),
        };
        let text = |bytes: &[u8]| bytes.iter().copied().map(char::from).collect::<String>();
        match frame {
            Ok(Some(Frame { header, head, body })) => {
                assert!(buffer.is_empty(), "more than a frame");
                json!({
                    "type": header.kind as u8, "flags": header.flags, "aux": header.aux,
                    "request": header.request, "epoch": header.epoch,
                    "head": text(&head), "body": text(&body),
                })
            }
            Ok(None) => json!({ "error": "truncated" }),
            Err(WireError::Preamble(_)) => json!({ "error": "preamble" }),
            Err(WireError::Kind(_)) => json!({ "error": "kind" }),
            Err(WireError::Flags(..)) => json!({ "error": "flags" }),
            Err(WireError::Head(..)) => json!({ "error": "head" }),
            Err(WireError::Body(..)) => json!({ "error": "body" }),
        }
    }

    #[test]
    fn the_files_of_bytes_decode_as_they_say() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
        let mut files = 0;
        for entry in std::fs::read_dir(&folder).expect("the folder is there") {
            let path = entry.expect("it can be listed").path();
            if path.extension().is_none_or(|extension| extension != "bin") {
                continue;
            }
            let bytes = std::fs::read(&path).expect("a file");
            let json = std::fs::read(path.with_extension("json")).expect("beside it");
            let mut expected: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
            let fields = expected.as_object_mut().expect("an object");
            let begins = fields.remove("preamble") == Some(true.into());
            assert_eq!(fields.remove("max_plan"), Some(MAX_PLAN.into()));
            files += 1;
            let decoded = decoded(&bytes, begins);
            if expected["error"] == "pairs" {
                // A frame like any other: its reader, the worker, counts the pairs.
                assert_eq!(decoded["type"], Kind::Request as u8, "{}", path.display());
            } else {
                assert_eq!(decoded, expected, "{}", path.display());
            }
        }
        assert!(files > 50, "only {files} files");
    }

    #[test]
    fn the_files_of_bytes_encode_again_to_what_they_are() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wire");
        for name in [
            "welcome",
            "grant",
            "request",
            "request-lazy",
            "resume-fd",
            "cancel",
            "retire",
            "stop",
        ] {
            let bytes = std::fs::read(folder.join(name).with_extension("bin")).expect("a file");
            let mut buffer = BytesMut::from(&bytes[..]);
            let frame = decode(&mut buffer).expect("a frame").expect("a whole one");
            let mut encoded = BytesMut::new();
            frame.header.encode(&mut encoded);
            encoded.put_slice(&frame.head);
            encoded.put_slice(&frame.body);
            assert_eq!(encoded[..], bytes[..], "{name}");
        }
    }

    #[test]
    fn a_peer_of_another_kind_is_named() {
        let mut http = BytesMut::from(&b"GET / HTTP/1.1\r\n"[..]);
        let error = preamble(&mut http).expect_err("not a worker");
        assert_eq!(
            error.to_string(),
            "does not speak the link protocol: it began with \"GET / HT\""
        );
        let mut newer = BytesMut::from(&b"LAYBY/2\n"[..]);
        let error = preamble(&mut newer).expect_err("another version");
        assert_eq!(
            error.to_string(),
            "speaks version 2 of the link protocol, this gateway version 1"
        );
        assert_eq!(preamble(&mut BytesMut::from(&b"LAY"[..])), Ok(false));
    }
}
