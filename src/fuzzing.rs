//! What the fuzz targets aim at: the parsers of what strangers send, and what must hold after them.
//!
//! Compiled by `cargo fuzz` only (see `fuzz/README.md`). Each function takes bytes and panics when a
//! promise is broken.

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{Request, Version};

use crate::config::Trusted;
use crate::downstream::{forwarded, head as heads};
use crate::message;
use crate::plan::{Gather, Thing, decode, decode_relay};
use crate::record::{Id, Record};
use crate::spool::Body;
use crate::workers::link::wire::{self, Frame, Kind, WireError};
use crate::workers::link::{answer, environ};

/// However a stream of frames is cut into reads, it means the same.
pub fn link(bytes: &[u8]) {
    // The first byte says how the rest is cut.
    let Some((&size, stream)) = bytes.split_first() else {
        return;
    };
    let at_once = frames(stream, stream.len().max(1));
    assert_eq!(frames(stream, usize::from(size).max(1)), at_once);
    for frame in at_once.0 {
        match frame.header.kind {
            Kind::Answer => {
                if let Ok((status, _, headers)) = answer::decode(frame.header.aux, &frame.head) {
                    assert!(!status.is_informational());
                    let nul = |value: &http::HeaderValue| value.as_bytes().contains(&0);
                    assert!(!headers.values().any(nul));
                }
            }
            Kind::Park | Kind::Hold => check_plan(&frame.head, &frame.body),
            Kind::Relay => {
                if let Ok(relay) = decode_relay(&frame.head, &frame.body) {
                    assert!(relay.capture <= 1 << 20);
                }
            }
            _ => {}
        }
    }
}

/// All whole frames, and how the stream ends.
fn frames(stream: &[u8], size: usize) -> (Vec<Frame>, Result<usize, WireError>) {
    let mut buffer = BytesMut::new();
    let mut frames = Vec::new();
    for read in stream.chunks(size) {
        buffer.extend_from_slice(read);
        loop {
            match wire::decode(&mut buffer) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(buffer.len()))
}

/// The bytes up to the first NUL are the plan, the others the bodies of its fetches.
pub fn plan(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == 0);
    let head = parts.next().unwrap_or_default();
    let body = Bytes::copy_from_slice(parts.next().unwrap_or_default());
    check_plan(head, &body);
}

fn check_plan(head: &[u8], body: &Bytes) {
    match decode(head, body) {
        Ok(plan) => {
            let (things, depth) = extent(&plan.root);
            assert!(
                things <= 4000 && depth <= 16,
                "{things} things, {depth} deep"
            );
        }
        Err(error) => assert!(error.to_string().len() < 2000, "an error too long to log"),
    }
}

fn extent(gather: &Gather) -> (usize, usize) {
    assert!(!gather.things.is_empty());
    let mut things = gather.things.len();
    let mut depth = 0;
    for thing in &gather.things {
        if let Thing::Gather(inner) = thing {
            let inner = extent(inner);
            things += inner.0;
            depth = depth.max(inner.1);
        }
    }
    (things, depth + 1)
}

/// `METHOD TARGET`, then `name: value` in every line. An environ that comes of it has as many pairs as
/// it says, and nothing in it that only the gateway may say.
pub fn head(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let mut words = lines
        .next()
        .unwrap_or_default()
        .splitn(2, |byte| *byte == b' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next());
    let mut request = Request::builder()
        .method(method)
        .uri(target.unwrap_or_default())
        .version(if bytes.len() % 2 == 0 {
            Version::HTTP_11
        } else {
            Version::HTTP_10
        });
    for line in lines {
        let mut line = line.splitn(2, |byte| *byte == b':');
        let (name, value) = (line.next().unwrap_or_default(), line.next());
        request = request.header(name, value.unwrap_or_default().trim_ascii());
    }
    let Ok(request) = request.body(()) else {
        return;
    };
    let (mut parts, ()) = request.into_parts();
    let Ok(target) = heads::vet(&mut parts) else {
        return;
    };
    assert!(parts.headers.get_all(HOST).iter().count() <= 1);
    assert!(!parts.headers.contains_key(CONNECTION));
    assert!(!parts.headers.contains_key(TRANSFER_ENCODING));
    let peer = forwarded::Peer::Tcp {
        peer: ([127, 0, 0, 1], 1).into(),
        local: ([127, 0, 0, 1], 80).into(),
    };
    let trusted: &[Trusted] = if method.len() % 2 == 0 {
        &[Trusted::Net(ipnet::IpNet::new_assert(
            std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
            8,
        ))]
    } else {
        &[]
    };
    let client = forwarded::client(peer, trusted, &mut parts.headers);
    let request = message::Request {
        method: parts.method,
        version: parts.version,
        target: target.raw.into(),
        path: target.path,
        query: target.query,
        headers: parts.headers,
        client,
        record: Record::new(Id::new(), None, std::time::Instant::now()),
        body: message::RequestBody::Here(Body::Memory(Bytes::new())),
        upgrade: None,
    };
    let mut environ = BytesMut::new();
    let pairs = environ::encode(&request, &mut environ);
    let fields: Vec<&[u8]> = environ[..].split(|byte| *byte == 0).collect();
    assert_eq!(fields.len(), usize::from(pairs) * 2 + 1, "a NUL in a value");
    let mut names: Vec<&[u8]> = fields[..fields.len() - 1]
        .iter()
        .step_by(2)
        .copied()
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "a name twice");
    for forbidden in [
        &b"HTTP_PROXY"[..],
        b"HTTP_TRANSFER_ENCODING",
        b"HTTP_CONNECTION",
        b"REMOTE_USER",
    ] {
        assert!(!names.contains(&forbidden));
    }
    assert!(!names.iter().any(|name| name.starts_with(b"HTTP_LAYBY_")));
}
