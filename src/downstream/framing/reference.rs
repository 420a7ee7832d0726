//! A second reader of HTTP/1 requests, slow and obvious, and the gateway's own held against it.
//!
//! For tests and fuzzing only. What reaches the application is what this reader reads, or the client
//! gets 4xx or 501 and a closed connection.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::{CONNECTION, HOST};
use http::{HeaderMap, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::body::MAX_TRAILERS;
use super::{Framed, Heads, MAX_HEAD};
use crate::downstream::head;

/// A request as it stands in the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    /// As it is passed on.
    pub target: String,
    pub old: bool,
    /// Names in lower case.
    pub headers: Vec<(String, Vec<u8>)>,
    pub body: Option<Vec<u8>>,
}

/// What comes after the last whole request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Nothing, or a part of what may become a request.
    Open,
    /// What is no request.
    Bad,
}

/// Something found; not yet, as more bytes must come; or something bad instead.
type Found<T> = Result<Option<T>, ()>;

/// Every request with a good head, and the end. The last may lack its body.
pub fn read(mut bytes: &[u8]) -> (Vec<Request>, End) {
    let mut requests = Vec::new();
    loop {
        let (head, rest) = match split_head(bytes) {
            Ok(Some(parts)) => parts,
            Ok(None) => return (requests, End::Open),
            Err(()) => return (requests, End::Bad),
        };
        let Some((mut request, framing)) = parse_head(head) else {
            return (requests, End::Bad);
        };
        let body = match framing {
            Some(length) if length <= rest.len() as u64 => {
                Ok(Some((rest[..length as usize].to_vec(), length as usize)))
            }
            Some(_) => Ok(None),
            None => chunks(rest),
        };
        match body {
            Ok(Some((body, len))) => {
                request.body = Some(body);
                requests.push(request);
                bytes = &rest[len..];
            }
            Ok(None) => {
                requests.push(request);
                return (requests, End::Open);
            }
            Err(()) => {
                requests.push(request);
                return (requests, End::Bad);
            }
        }
    }
}

/// The lines of a head, which must be lines as far as they came.
fn split_head(bytes: &[u8]) -> Found<(&[u8], &[u8])> {
    let mut start = 0;
    while bytes[start..].starts_with(b"\r\n") {
        start += 2;
    }
    let mut at = start;
    while at < bytes.len() {
        let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') else {
            break;
        };
        let line = &bytes[at..at + end];
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err(());
        };
        at += end + 1;
        if at > MAX_HEAD {
            return Err(());
        }
        if line.is_empty() {
            return Ok(Some((&bytes[start..at], &bytes[at..])));
        }
    }
    // A head that has begun badly is not waited for.
    let lines = &bytes[start..at];
    let good = if lines.is_empty() {
        let first = bytes[at..].first();
        first.is_none_or(|first| *first == b'\r' || tchar(*first))
    } else {
        parse_lines(&[lines, b"\r\n"].concat()).is_some()
    };
    if good && bytes.len() < MAX_HEAD {
        Ok(None)
    } else {
        Err(())
    }
}

fn tchar(byte: u8) -> bool {
    byte.is_ascii_graphic() && !b"\"(),/:;<=>?@[\\]{}".contains(&byte)
}

fn token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| tchar(*byte))
}

#[derive(Debug, Clone, Copy)]
enum Said {
    Length(u64),
    Chunked,
}

/// Request, and what its lines say of framing.
fn parse_lines(head: &[u8]) -> Option<(Request, Vec<Said>)> {
    let text: String = head.iter().map(|byte| char::from(*byte)).collect();
    let text = text.strip_suffix("\r\n")?;
    let mut lines = text.split_terminator("\r\n");
    let words: Vec<&str> = lines.next()?.split(' ').collect();
    let [method, target, version] = words[..] else {
        return None;
    };
    let old = match version {
        "HTTP/1.1" => false,
        "HTTP/1.0" => true,
        _ => return None,
    };
    let odd = |c: char| matches!(c, '"' | '<' | '>' | '\u{80}'..);
    let strange = |c: char| c <= ' ' || c == '\u{7f}' || c == '#';
    let mut in_path = true;
    let mut escaped = String::new();
    for c in target.chars() {
        in_path &= c != '?';
        if odd(c) || (in_path && c == '`') {
            escaped += &format!("%{:02X}", c as u32);
        } else {
            escaped.push(c);
        }
    }
    let is_target =
        target.starts_with('/') || (target == escaped && target.parse::<http::Uri>().is_ok());
    if !token(method.as_bytes())
        || target.contains(strange)
        || !is_target
        || escaped.len() > 32 * 1024
    {
        return None;
    }
    let mut headers = Vec::new();
    let mut said = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if !token(name.as_bytes()) || value.contains(|c| c != '\t' && (c < ' ' || c == '\u{7f}')) {
            return None;
        }
        let value = value.trim_matches([' ', '\t']);
        match name.to_ascii_lowercase().as_str() {
            "content-length" => {
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                let length = value.parse::<i64>().ok().filter(|_| digits)?;
                if said.iter().any(|it| matches!(it, Said::Length(_))) {
                    return None;
                }
                said.push(Said::Length(length as u64));
            }
            "transfer-encoding" => {
                let again = said.iter().any(|it| matches!(it, Said::Chunked));
                if again || !value.eq_ignore_ascii_case("chunked") {
                    return None;
                }
                said.push(Said::Chunked);
            }
            _ => {}
        }
        let value = value.chars().map(|c| c as u8).collect();
        headers.push((name.to_ascii_lowercase(), value));
    }
    if headers.len() > 100 {
        return None;
    }
    let request = Request {
        method: method.to_owned(),
        target: escaped,
        old,
        headers,
        body: None,
    };
    Some((request, said))
}

/// With the length of the body, or None if it comes in chunks.
fn parse_head(head: &[u8]) -> Option<(Request, Option<u64>)> {
    let (request, said) = parse_lines(head)?;
    match said[..] {
        [] => Some((request, Some(0))),
        [Said::Length(length)] => Some((request, Some(length))),
        [Said::Chunked] if !request.old => Some((request, None)),
        _ => None,
    }
}

/// The body and how long it is on the wire; None if there must be more.
fn chunks(bytes: &[u8]) -> Found<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line) = chunk_line(&bytes[at..])? else {
            return Ok(None);
        };
        at += line.len() + 2;
        let text = String::from_utf8_lossy(line);
        let size = text.split(';').next().unwrap_or_default();
        let digits = size.trim_end_matches([' ', '\t']);
        let len = u64::from_str_radix(digits, 16).map_err(|_| ())?;
        if len == 0 {
            break;
        }
        let Some(data) = bytes[at..].get(..usize::try_from(len).map_err(|_| ())?) else {
            return Ok(None);
        };
        body.extend_from_slice(data);
        at += data.len();
        match &bytes[at..] {
            [b'\r', b'\n', ..] => at += 2,
            [] | [b'\r'] => return Ok(None),
            _ => return Err(()),
        }
    }
    for number in 0.. {
        let Some(line) = trailer_line(&bytes[at..], number < MAX_TRAILERS)? else {
            return Ok(None);
        };
        at += line.len() + 2;
        if line.is_empty() {
            break;
        }
    }
    Ok(Some((body, at)))
}

/// The bytes before CR LF, if they are good as far as they came.
fn text_line(bytes: &[u8]) -> Found<&[u8]> {
    let good = |byte: &u8| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f);
    let end = bytes.iter().position(|byte| !good(byte));
    match end.map(|end| (end, &bytes[end..])) {
        None | Some((_, [b'\r'])) => Ok(None),
        Some((end, [b'\r', b'\n', ..])) => Ok(Some(&bytes[..end])),
        Some(_) => Err(()),
    }
}

/// `size`, `size;extension` or `size ;extension`.
fn chunk_line(bytes: &[u8]) -> Found<&[u8]> {
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_hexdigit())
        .count();
    let spaces = bytes[digits..]
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .count();
    let good = match bytes.get(digits + spaces) {
        None => digits > 0 || bytes.is_empty(),
        Some(b'\r') => digits > 0 && spaces == 0,
        Some(b';') => digits > 0,
        Some(_) => false,
    };
    if good && digits <= 16 {
        text_line(bytes)
    } else {
        Err(())
    }
}

/// `Name: value`, if there may be another one.
fn trailer_line(bytes: &[u8], another: bool) -> Found<&[u8]> {
    let name = bytes.iter().take_while(|byte| tchar(**byte)).count();
    let good = match bytes.get(name) {
        Some(b'\r') => name == 0,
        Some(b':') => name > 0 && another,
        Some(_) => false,
        None => name == 0 || another,
    };
    if good { text_line(bytes) } else { Err(()) }
}

/// A request as the gateway's service gets it.
#[derive(Debug)]
struct Seen {
    request: Request,
    /// It stands for a head that was refused.
    refused: bool,
    /// The vetted headers, if it passed.
    vetted: Option<HeaderMap>,
}

/// What hyper makes of bytes that come so many at a time.
fn serve(bytes: &[u8], cut: usize) -> Vec<Seen> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(async {
        let (client, server) = tokio::io::duplex(cut.max(1));
        let (mut answers, mut requests) = tokio::io::split(client);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sending = async {
            // The gateway may have closed before all was sent.
            let _ = requests.write_all(bytes).await;
            let _ = requests.shutdown().await;
        };
        let reading = async {
            let _ = answers.read_to_end(&mut Vec::new()).await;
        };
        tokio::join!(connection(server, Arc::clone(&seen)), sending, reading);
        std::mem::take(&mut *seen.lock().expect("nobody panics"))
    })
}

async fn connection(server: tokio::io::DuplexStream, seen: Arc<Mutex<Vec<Seen>>>) {
    let heads = Arc::new(Heads::default());
    let io = TokioIo::new(Framed::new(server, Arc::clone(&heads)));
    let service = service_fn(|request: http::Request<Incoming>| {
        let refused = heads.next_request().is_some();
        let seen = Arc::clone(&seen);
        async move {
            let (mut parts, body) = request.into_parts();
            let headers = parts.headers.iter();
            let mut request = Request {
                method: parts.method.to_string(),
                target: parts.uri.to_string(),
                old: parts.version == Version::HTTP_10,
                headers: headers
                    .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
                    .collect(),
                body: None,
            };
            let vetted = head::vet(&mut parts).is_ok().then_some(parts.headers);
            if vetted.is_some() && !refused {
                request.body = body
                    .collect()
                    .await
                    .ok()
                    .map(|body| body.to_bytes().to_vec());
            }
            let good = request.body.is_some();
            let one = Seen {
                request,
                refused,
                vetted,
            };
            seen.lock().expect("nobody panics").push(one);
            let mut answer = Response::new(Full::new(Bytes::new()));
            if !good {
                *answer.status_mut() = http::StatusCode::BAD_REQUEST;
                answer
                    .headers_mut()
                    .insert(CONNECTION, http::HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.max_header_size(2 * MAX_HEAD).half_close(true);
    if let Err(error) = http.serve_connection(io, service).await {
        assert!(!error.is_parse(), "refused by hyper alone: {error}");
    }
}

/// # Panics
/// When the gateway has read anything else than this reader.
pub fn check(bytes: &[u8], cut: usize) {
    let (expected, end) = read(bytes);
    let seen = serve(bytes, cut);
    let mut expected = expected.into_iter();
    let mut closed = false;
    for one in seen {
        assert!(!closed, "read on after the connection's last request");
        if one.refused {
            assert_eq!((expected.next(), end), (None, End::Bad), "refused");
            assert!(one.vetted.is_none(), "its place is taken by what passes");
            closed = true;
            continue;
        }
        let told = expected.next().expect("a request that is none");
        let request = &one.request;
        assert_eq!(request.method, told.method);
        assert_eq!(request.old, told.old);
        assert_eq!(sorted(&request.headers), sorted(&told.headers));
        if told.target.starts_with('/') {
            assert_eq!(request.target, told.target);
        }
        match &one.vetted {
            Some(headers) => {
                assert_eq!(request.body, told.body, "the body");
                assert!(headers.get_all(HOST).iter().count() <= 1);
                assert!(told.old || headers.contains_key(HOST));
                assert!(!headers.contains_key("transfer-encoding"));
                assert!(!headers.contains_key(CONNECTION));
                closed = request.body.is_none() || ends(&told);
            }
            None => closed = true,
        }
    }
    if !closed {
        assert_eq!(expected.next(), None, "a request that was not read");
        assert_eq!(end, End::Open, "not refused");
    }
}

fn sorted(headers: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let mut headers = headers.to_vec();
    headers.sort_by(|one, other| one.0.cmp(&other.0));
    headers
}

/// Whether nothing is read after it. hyper takes no word from a line that is not in ASCII.
fn ends(request: &Request) -> bool {
    let said = |word: &str| {
        request.headers.iter().any(|(name, value)| {
            let text = String::from_utf8_lossy(value).to_ascii_lowercase();
            name == "connection"
                && value.is_ascii()
                && text.split(',').any(|part| part.trim() == word)
        })
    };
    said("close") || (request.old && !said("keep-alive"))
}
