//! What the fuzz targets aim at: the parsers of what strangers send, and what must hold after them.
//!
//! Compiled by `cargo fuzz` only (see `fuzz/README.md`). Each function takes bytes and panics when a
//! promise is broken.

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use http::{Method, Request, Version};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::config::{ForwardingHeaders, Trusted};
use crate::downstream::proxy::{self, Parsed};
use crate::downstream::way::Way;
use crate::downstream::{answers, forwarded, framing, head as heads};
use crate::message;
use crate::metrics::Metrics;
use crate::plan::http::decode_parking;
use crate::plan::{Gather, Thing, decode, decode_relay};
use crate::record::{Id, Record};
use crate::spool::{Body, Limit};
use crate::workers::http::reference;
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
    if let Ok((plan, resume)) = decode_parking(head) {
        let (things, depth) = extent(&plan.root);
        assert!(things <= 4000 && depth <= 16);
        assert!(resume.path.starts_with("/.layby/"));
    }
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
    let trust = forwarded::Trust {
        proxies: trusted,
        headers: ForwardingHeaders::Any,
    };
    let (client, told) = forwarded::client(&Way::plain(peer), trust, &mut parts.headers);
    if told.is_err() {
        return;
    }
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

/// The first byte says how the rest is cut into reads. What reaches the application is what a second
/// reader finds in the bytes.
pub fn requests(bytes: &[u8]) {
    if let Some((&cut, bytes)) = bytes.split_first() {
        framing::reference::check(bytes, usize::from(cut) * 8 + 1);
    }
}

/// A method, a status, the head of an answer and its body. What a client of HTTP/1.1 reads is one
/// response, with the body that the worker gave it, and then the end.
pub fn answer(bytes: &[u8]) {
    let Some((&[method, high, low], rest)) = bytes.split_first_chunk() else {
        return;
    };
    let method = [Method::GET, Method::HEAD, Method::POST][usize::from(method % 3)].clone();
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let head = Bytes::copy_from_slice(parts.next().unwrap_or_default());
    let body = Bytes::copy_from_slice(parts.next().unwrap_or_default());
    let Ok((status, reason, headers)) = answer::decode(u16::from_be_bytes([high, low]), &head)
    else {
        return;
    };
    let answer = message::Answer {
        status,
        reason,
        headers,
        body: message::AnswerBody::Whole(body.clone()),
    };
    let memory = Limit::new(Metrics::new(&[]).body_memory_bytes());
    let Ok((response, _)) = answers::passed_on(answer, &method, &memory) else {
        return;
    };
    let sent = sent(method.clone(), response);
    let end = sent.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, rest) = sent.split_at(end.expect("a head") + 4);
    let head: String = head.iter().map(|byte| char::from(*byte)).collect();
    let mut lines = head.trim_end_matches("\r\n").split("\r\n");
    let line = lines.next().unwrap_or_default();
    assert!(
        line.starts_with(&format!("HTTP/1.1 {} ", status.as_u16())),
        "{line}"
    );
    let fields: Vec<(String, &str)> = lines
        .map(|line| line.split_once(':').expect("a field"))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let said = |name: &str| {
        let said: Vec<&str> = fields
            .iter()
            .filter(|field| field.0 == name)
            .map(|field| field.1)
            .collect();
        assert!(said.len() < 2, "{name} twice");
        said.first().copied()
    };
    assert_eq!(said("transfer-encoding"), None, "its length is known");
    assert!(!head.contains('\0') && !head.replace("\r\n", "").contains(['\r', '\n']));
    let length = said("content-length").map(|length| length.parse::<u64>().expect("a number"));
    if method == Method::HEAD || matches!(status.as_u16(), 204 | 205 | 304) {
        assert!(rest.is_empty(), "a body where there is none");
        assert!(status != 204 || length.is_none());
    } else {
        assert_eq!(length, Some(body.len() as u64));
        assert_eq!(rest, &body[..]);
    }
}

/// What this response is on the wire.
fn sent(method: Method, response: http::Response<answers::Body>) -> Vec<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let response = std::sync::Mutex::new(Some(response));
        let service = hyper::service::service_fn(|_| {
            let response = response.lock().expect("nobody panics").take();
            async { response.ok_or("there was one request") }
        });
        let serving = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server), service);
        let mut sent = Vec::new();
        let asking = async {
            let request = format!("{method} / HTTP/1.1\r\nConnection: close\r\n\r\n");
            let _ = client.write_all(request.as_bytes()).await;
            let _ = client.read_to_end(&mut sent).await;
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.expect("a response that can be sent");
        sent
    })
}

/// A PROXY header means the same however it is cut into reads, and asks for no byte after its end.
pub fn proxy(bytes: &[u8]) {
    let whole = proxy::parse(bytes);
    let mut taken = 0;
    let in_parts = loop {
        match proxy::parse(&bytes[..taken]) {
            Parsed::More(more) if taken + more <= bytes.len() => taken += more,
            other => break other,
        }
    };
    match whole {
        Parsed::More(_) => assert!(matches!(in_parts, Parsed::More(_))),
        Parsed::Header(_) => assert_eq!(in_parts, whole),
        // The first part may be wrong already, or too short to be looked at.
        Parsed::Wrong(_) => assert!(!matches!(in_parts, Parsed::Header(_))),
    }
}

/// The first byte says how the rest is cut into reads, the second what was asked. What an HTTP server
/// answers means the same however it is cut, and a plain reader finds the same body.
pub fn upstream(bytes: &[u8]) {
    if let Some((&[cut, asked], bytes)) = bytes.split_first_chunk() {
        let method = [Method::GET, Method::HEAD][usize::from(asked & 1)].clone();
        reference::check(bytes, usize::from(cut) + 1, &method, asked & 2 != 0);
    }
}
