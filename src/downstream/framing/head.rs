//! One request head: read line by line, as the lines come, and not twice.
//!
//! The grammar is that of RFC 9112 without what it allows for the sake of old senders: a line ends in
//! CR LF, is not folded, and holds no control character; a body has one length or is `chunked`.

use std::ops::Range;

use http::{StatusCode, Uri};

use crate::downstream::head::Refusal;

/// Largest head, with its request line.
pub const MAX_HEAD: usize = 64 * 1024;

/// Longest target. Browsers and their servers stop earlier; what is longer is an accident or an attack.
const MAX_TARGET: usize = 32 * 1024;

/// As many as hyper has room for without an allocation.
const MAX_HEADERS: usize = 100;

fn bad(why: &'static str) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, why)
}

const TARGET_TOO_LONG: Refusal =
    Refusal(StatusCode::URI_TOO_LONG, "the request target is too long");

const HEAD_TOO_LARGE: Refusal = Refusal(
    StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
    "the request head is too large",
);

/// What is known of a head whose end has not come.
#[derive(Debug, Default)]
pub struct Head {
    /// Where the first line begins that is not read yet.
    line: usize,
    /// That line does not end before.
    searched: usize,
    request: Option<RequestLine>,
    headers: usize,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Debug)]
struct RequestLine {
    target: Range<usize>,
    to_escape: bool,
    http_11: bool,
}

/// A head to its last byte.
#[derive(Debug, PartialEq, Eq)]
pub struct Whole {
    pub len: usize,
    pub body: Body,
    /// The target holds what no URI may hold.
    pub to_escape: bool,
    target: Range<usize>,
}

/// What follows the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    Sized(u64),
    Chunked,
}

impl Head {
    /// `bytes` begin where the head begins, and hold at least what they held the last time. None if there
    /// must be more.
    ///
    /// # Errors
    /// When no more bytes can make it a head that is served here.
    pub fn read(&mut self, bytes: &[u8]) -> Result<Option<Whole>, Refusal> {
        let within = &bytes[..bytes.len().min(MAX_HEAD)];
        while let Some(end) = memchr::memchr(b'\n', &within[self.searched..]) {
            let end = self.searched + end;
            let line = within[self.line..end]
                .strip_suffix(b"\r")
                .ok_or(bad("a line does not end in CR LF"))?;
            let start = self.line;
            self.line = end + 1;
            self.searched = self.line;
            if self.request.is_none() {
                // Some clients send an empty line after a body (RFC 9112 section 2.2).
                if !line.is_empty() {
                    self.request = Some(RequestLine::read(line, start)?);
                }
            } else if !line.is_empty() {
                self.header(line)?;
            } else {
                return self.whole().map(Some);
            }
        }
        self.searched = within.len();
        self.room(within)?;
        Ok(None)
    }

    /// Whether the line that has begun can still become one.
    fn room(&self, within: &[u8]) -> Result<(), Refusal> {
        let line = &within[self.line..];
        if self.request.is_none() {
            // Of TLS, and of most other protocols, a byte is enough.
            if line
                .first()
                .is_some_and(|byte| *byte != b'\r' && !is_token(&[*byte]))
            {
                return Err(bad("no HTTP request"));
            }
            if line.len() > MAX_TARGET + 64 {
                return Err(TARGET_TOO_LONG);
            }
        }
        if within.len() == MAX_HEAD {
            return Err(HEAD_TOO_LARGE);
        }
        Ok(())
    }

    fn header(&mut self, line: &[u8]) -> Result<(), Refusal> {
        self.headers += 1;
        if self.headers > MAX_HEADERS {
            return Err(Refusal(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "too many request headers",
            ));
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(bad("a folded header line"));
        }
        let colon = memchr::memchr(b':', line).ok_or(bad("a header line without a colon"))?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        if !is_token(name) {
            return Err(bad("an invalid header name"));
        }
        if !is_text(value) {
            return Err(bad("a control character in a header"));
        }
        if name.eq_ignore_ascii_case(b"content-length") {
            self.content_length(trim(value))
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.transfer_encoding(trim(value))
        } else {
            Ok(())
        }
    }

    /// Once, and in digits. Two that are equal are a sign that somebody has read them before who may
    /// have seen two others.
    fn content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        let length = digits(value).ok_or(bad("an invalid Content-Length"))?;
        if self.length.replace(length).is_some() {
            return Err(bad("more than one Content-Length"));
        }
        Ok(())
    }

    /// `chunked`, once. Other codings would have to be undone before the body is passed on.
    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return Err(bad("more than one Transfer-Encoding"));
        }
        self.chunked = true;
        if value.eq_ignore_ascii_case(b"chunked") {
            return Ok(());
        }
        let mut codings = value.split(|byte| *byte == b',').map(trim);
        let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
        let other = |coding: &[u8]| is_token(coding) && !is_chunked(coding);
        if codings.next_back().is_some_and(is_chunked) && codings.all(other) {
            return Err(Refusal(
                StatusCode::NOT_IMPLEMENTED,
                "unknown Transfer-Encoding",
            ));
        }
        // Where such a body ends, nobody can say (RFC 9112 section 6.3).
        Err(bad("an invalid Transfer-Encoding"))
    }

    fn whole(&mut self) -> Result<Whole, Refusal> {
        let request = self
            .request
            .take()
            .expect("an empty line ends a head only after the request line");
        let body = match (self.chunked, self.length) {
            (true, Some(_)) => return Err(bad("Content-Length beside Transfer-Encoding")),
            (true, None) if !request.http_11 => {
                return Err(bad("Transfer-Encoding in HTTP/1.0"));
            }
            (true, None) => Body::Chunked,
            (false, length) => Body::Sized(length.unwrap_or(0)),
        };
        Ok(Whole {
            len: self.line,
            body,
            to_escape: request.to_escape,
            target: request.target,
        })
    }
}

impl RequestLine {
    /// The line begins `at` this place of the head.
    fn read(line: &[u8], at: usize) -> Result<Self, Refusal> {
        let mut words = line.splitn(3, |byte| *byte == b' ');
        let mut word = || words.next().unwrap_or_default();
        let (method, target, version) = (word(), word(), word());
        if !is_token(method) {
            return Err(bad("an invalid method"));
        }
        let http_11 = match version {
            b"HTTP/1.1" => true,
            b"HTTP/1.0" => false,
            _ => return Err(bad("no request line of HTTP/1.1 or HTTP/1.0")),
        };
        let start = at + method.len() + 1;
        let (path, query) = path_and_query(target);
        let count =
            |part: &[u8], which: fn(u8) -> bool| part.iter().filter(|byte| which(**byte)).count();
        let escapes = count(path, is_to_escape_in_path) + count(query, is_to_escape);
        if target.len() + 2 * escapes > MAX_TARGET {
            return Err(TARGET_TOO_LONG);
        }
        let visible = |byte: &u8| *byte > b' ' && *byte != 0x7f && *byte != b'#';
        let is_path = target.first() == Some(&b'/');
        if !target.iter().all(visible) || !(is_path || is_uri(target)) {
            return Err(bad("an invalid request target"));
        }
        Ok(Self {
            target: start..start + target.len(),
            to_escape: escapes > 0,
            http_11,
        })
    }
}

impl Whole {
    /// Appends the head at the beginning of `bytes`, with its target escaped.
    pub fn escape(&self, bytes: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(&bytes[..self.target.start]);
        let (path, query) = path_and_query(&bytes[self.target.clone()]);
        escape(path, is_to_escape_in_path, out);
        escape(query, is_to_escape, out);
        out.extend_from_slice(&bytes[self.target.end..self.len]);
    }
}

/// A target as [`Whole::escape`] writes it, for one that came otherwise.
pub fn escaped(target: &str) -> String {
    let (path, query) = path_and_query(target.as_bytes());
    let mut out = Vec::with_capacity(target.len() + 16);
    escape(path, is_to_escape_in_path, &mut out);
    escape(query, is_to_escape, &mut out);
    String::from_utf8(out).expect("what is not ASCII has been escaped")
}

fn escape(target: &[u8], which: fn(u8) -> bool, out: &mut Vec<u8>) {
    for byte in target {
        if which(*byte) {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        } else {
            out.push(*byte);
        }
    }
}

/// What browsers escape wherever it stands in a path or a query, and other clients do not always.
fn is_to_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | 0x80..)
}

/// The same, and what may stand in a query only.
fn is_to_escape_in_path(byte: u8) -> bool {
    byte == b'`' || is_to_escape(byte)
}

/// The query with its question mark.
fn path_and_query(target: &[u8]) -> (&[u8], &[u8]) {
    let end = target.iter().position(|byte| *byte == b'?');
    target.split_at(end.unwrap_or(target.len()))
}

/// For the rare target that is not a path.
fn is_uri(target: &[u8]) -> bool {
    !target.iter().any(|byte| is_to_escape(*byte)) && Uri::try_from(target).is_ok()
}

/// The characters of a token (RFC 9110 section 5.6.2), by byte.
const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let others = b"!#$%&'*+-.^_`|~";
    let mut at = 0;
    while at < 256 {
        table[at] = (at as u8).is_ascii_alphanumeric();
        at += 1;
    }
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

pub fn is_token_byte(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|byte| is_token_byte(*byte))
}

/// No control character but the tab. Looks at every byte, which many at once are faster at.
fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().fold(true, |good, byte| {
        good & ((*byte >= b' ' && *byte != 0x7f) || *byte == b'\t')
    })
}

fn trim(value: &[u8]) -> &[u8] {
    // Spaces and tabs alone: of all that `trim_ascii` takes, no other is left in a value.
    value.trim_ascii()
}

/// A number as nothing but digits, far from where sums of it end.
fn digits(value: &[u8]) -> Option<u64> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| is_number)?;
    number
        .parse()
        .ok()
        .filter(|number| *number <= i64::MAX as u64)
}

/// Method and target of a head that is refused: a method that any answer can be given to, and a target
/// that can stand in a log.
pub fn shown(bytes: &[u8]) -> (&str, Uri) {
    let line = bytes.trim_ascii_start();
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut words = line.split(u8::is_ascii_whitespace);
    let method = words
        .next()
        .filter(|word| word.len() <= 20 && is_token(word))
        .and_then(|word| std::str::from_utf8(word).ok());
    let mut target = words.next().filter(|_| method.is_some()).unwrap_or(b"/");
    target = &target[..target.len().min(1000)];
    let mut escaped = Vec::with_capacity(target.len());
    escape(
        target,
        |byte| is_to_escape_in_path(byte) || byte == b'#' || byte.is_ascii_control(),
        &mut escaped,
    );
    (
        method.unwrap_or("UNKNOWN"),
        Uri::try_from(escaped).unwrap_or_default(),
    )
}

/// Whether the client of a head that is refused asks for JSON, as [`super::super::answers::wants_json`]
/// asks of one that is not.
pub fn wants_json(bytes: &[u8]) -> bool {
    bytes.split(|byte| *byte == b'\n').any(|line| {
        let accept = line
            .get(..7)
            .is_some_and(|name| name.eq_ignore_ascii_case(b"accept:"));
        accept && line.windows(4).any(|part| part == b"json")
    })
}
