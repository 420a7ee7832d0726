//! What the client gets: workers' answers made fit for the wire, and the gateway's own.
//!
//! The one place that knows which failure has which status.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    ACCEPT, ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER,
};
use http::{Method, Response, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::ext::ReasonPhrase;

use super::Settings;
use super::compress::Coded;
use super::finish::Finish;
use super::head::{Refusal, strip_hop_by_hop};
use super::upgrade;
use crate::exchange::Failure;
use crate::files::{NoFile, NotHandedOff};
use crate::message::{Answer, AnswerBody, NoBody};
use crate::metrics::ShedReason;
use crate::plan::FailureKind;
use crate::record::Id;
use crate::slots::Shed;
use crate::spool::{AnswerReader, FilePart, Limit, RelayReader};
use crate::tunnel::Tunnel;

/// Why a request is not answered by the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    Refused(Refusal),
    /// The body cannot be had.
    Body(NoBody),
    /// The worker's answer cannot be passed on.
    BadAnswer(&'static str),
    Exchange(Failure),
    /// There is no file to answer with.
    File(NoFile),
}

impl From<NoFile> for Trouble {
    fn from(no_file: NoFile) -> Self {
        Self::File(no_file)
    }
}

impl From<NotHandedOff> for Trouble {
    fn from(not: NotHandedOff) -> Self {
        match not {
            NotHandedOff::NoFile(no_file) => Self::File(no_file),
            NotHandedOff::Wrong(why) => Self::BadAnswer(why),
        }
    }
}

impl Trouble {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Refused(Refusal(status, _)) => status,
            Self::Body(no) | Self::Exchange(Failure::Body(no)) => match no {
                NoBody::Late => StatusCode::REQUEST_TIMEOUT,
                NoBody::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
                NoBody::Broken => StatusCode::BAD_REQUEST,
                NoBody::NoRoom => StatusCode::SERVICE_UNAVAILABLE,
            },
            Self::Exchange(Failure::Shed(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::BadAnswer(_) | Self::Exchange(Failure::WorkerGone | Failure::Origin(_)) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Exchange(Failure::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            Self::File(no) => match no {
                NoFile::Missing => StatusCode::NOT_FOUND,
                NoFile::Method => StatusCode::METHOD_NOT_ALLOWED,
                NoFile::Unreadable => StatusCode::SERVICE_UNAVAILABLE,
            },
        }
    }

    /// Why, for the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::Body(no) | Self::Exchange(Failure::Body(no)) => match no {
                NoBody::Late => "body_late",
                NoBody::TooLarge => "body_too_large",
                NoBody::Broken => "body_broken",
                NoBody::NoRoom => "no_room",
            },
            Self::BadAnswer(_) => "bad_answer",
            Self::Exchange(Failure::Shed(shed)) => ShedReason::from(shed).as_str(),
            Self::Exchange(Failure::Deadline) => "deadline",
            Self::Exchange(Failure::WorkerGone) => "worker_gone",
            Self::Exchange(Failure::Origin(_)) => "origin_failed",
            Self::File(no) => match no {
                NoFile::Missing => "no_file",
                NoFile::Method => "refused",
                NoFile::Unreadable => "file_unreadable",
            },
        }
    }

    /// What the client reads; the log has the rest.
    fn text(self) -> &'static str {
        match self {
            Self::Refused(Refusal(_, why)) => why,
            Self::Body(no) | Self::Exchange(Failure::Body(no)) => match no {
                NoBody::Late => "the request body took too long to arrive",
                NoBody::TooLarge => "the request body is too large",
                NoBody::Broken => "the request body is malformed",
                NoBody::NoRoom => "no room for the request body; try again later",
            },
            Self::Exchange(Failure::Shed(Shed::Draining)) => {
                "the server is shutting down; try again"
            }
            Self::Exchange(Failure::Shed(_)) => "the server is busy; try again later",
            Self::BadAnswer(_) => "the application gave an invalid answer",
            Self::File(no) => match no {
                NoFile::Missing => "there is no such file",
                NoFile::Method => "files are only read here",
                NoFile::Unreadable => "the file cannot be read; try again later",
            },
            Self::Exchange(Failure::WorkerGone) => "the application did not finish its answer",
            Self::Exchange(Failure::Deadline) => "the application took too long",
            Self::Exchange(Failure::Origin(kind)) => match kind {
                FailureKind::Refused => {
                    "the application asked for an answer from where the gateway may not fetch"
                }
                FailureKind::Timeout => "the service that was to answer took too long",
                _ => "the service that was to answer did not",
            },
        }
    }

    /// The connection is not to carry another request.
    fn closes(self) -> bool {
        !matches!(self, Self::Exchange(_) | Self::BadAnswer(_) | Self::File(_))
            || matches!(
                self,
                Self::Exchange(Failure::Shed(Shed::Draining) | Failure::Body(_))
            )
    }
}

/// The gateway's own answer: JSON for clients that ask for it, else the operator's page, else a line of text.
pub fn own(trouble: Trouble, json: bool, settings: &Settings, id: &Id) -> Response<Body> {
    let status = trouble.status();
    let (media, text) = if json {
        let text = serde_json::json!({
            "status": status.as_u16(), "error": trouble.text(), "request_id": id.as_str(),
        });
        ("application/json", format!("{text}\n"))
    } else if let Some(page) = settings.pages.page(status, trouble.text(), id) {
        ("text/html; charset=utf-8", page)
    } else {
        ("text/plain; charset=utf-8", format!("{}\n", trouble.text()))
    };
    let mut response = Response::new(Body::whole(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let seconds = settings.retry_after.as_secs().max(1);
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(
            ALLOW,
            HeaderValue::from_static(match trouble {
                Trouble::File(_) => "GET, HEAD",
                _ => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            }),
        );
    }
    if trouble.closes() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Whether an answer of our own is to be JSON. Asked at the start: to keep the header until then would
/// keep the buffer that the request was read into.
pub fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(ACCEPT)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default();
    accept.windows(b"json".len()).any(|part| part == b"json")
}

/// A worker's answer as a response, and what the connection becomes with it, if that is something else. What is
/// read of a file on its way counts against `memory`.
///
/// # Errors
/// When its headers contradict each other or its body.
pub fn passed_on(
    answer: Answer,
    method: &Method,
    memory: &Limit,
) -> Result<(Response<Body>, Option<Tunnel>), Trouble> {
    let Answer {
        status,
        reason,
        mut headers,
        body,
    } = answer;
    let body = match body {
        AnswerBody::Tunnel(tunnel) => {
            upgrade::switching(&mut headers, strip_hop_by_hop);
            headers.remove(CONTENT_LENGTH);
            let response = response(status, reason, headers, Body::whole(Bytes::new()));
            return Ok((response, Some(tunnel)));
        }
        body => body,
    };
    strip_hop_by_hop(&mut headers);
    let length = content_length(&headers).map_err(Trouble::BadAnswer)?;
    // A 204 ends with its head, which goes without saying; a 205 says that its body is empty.
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT) {
        headers.remove(CONTENT_LENGTH);
    }
    let same = |len| match length {
        Some(length) if length != len => Err(Trouble::BadAnswer(
            "Content-Length is not the length of the body",
        )),
        _ => Ok(()),
    };
    let body = match body {
        AnswerBody::Unreadable(why) => return Err(Trouble::BadAnswer(why)),
        AnswerBody::Tunnel(_) => unreachable!("it has been taken out above"),
        _ if has_no_body(status) || (*method == Method::HEAD && length.is_some()) => {
            Body::whole(Bytes::new())
        }
        AnswerBody::Whole(bytes) => {
            same(bytes.len() as u64)?;
            Body::whole(bytes)
        }
        AnswerBody::File(part) => {
            let len = part.len();
            same(len)?;
            Body::read(Reader::File(part.counted(memory)), Some(len))
        }
        AnswerBody::Spooled(reader) => Body::read(Reader::Spooled(reader), length),
        AnswerBody::Relayed(reader) => Body::read(Reader::Relayed(reader), length),
    };
    Ok((response(status, reason, headers, body), None))
}

fn response(
    status: StatusCode,
    reason: Option<Bytes>,
    headers: HeaderMap,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    if let Some(reason) = reason.and_then(|reason| ReasonPhrase::try_from(reason.as_ref()).ok()) {
        response.extensions_mut().insert(reason);
    }
    response
}

/// Whether no body follows the head, whatever the answer has.
pub fn is_bodiless(status: StatusCode, method: &Method) -> bool {
    *method == Method::HEAD || has_no_body(status)
}

fn has_no_body(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
    )
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut lines = headers.get_all(CONTENT_LENGTH).iter();
    let Some(line) = lines.next() else {
        return Ok(None);
    };
    if lines.next().is_some() {
        return Err("more than one Content-Length");
    }
    let digits = line
        .to_str()
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits
        .and_then(|digits| digits.parse().ok())
        .map(Some)
        .ok_or("an invalid Content-Length")
}

/// A response body, and what is to happen when it has been sent or given up.
pub struct Body {
    source: Source,
    finish: Option<Finish>,
}

enum Source {
    Whole(Bytes),
    Read {
        /// Out while a read is under way.
        reader: Option<Reader>,
        read: Option<BoxFuture<'static, (Reader, std::io::Result<Option<Bytes>>)>>,
        length: Option<u64>,
        /// So many bytes have been read.
        passed: u64,
    },
}

impl Source {
    /// Nothing is left of it.
    fn is_taken(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.is_empty(),
            Self::Read { length, passed, .. } => *length == Some(*passed),
        }
    }
}

/// Where the parts of a body come from.
pub enum Reader {
    Spooled(AnswerReader),
    File(FilePart),
    Relayed(RelayReader),
    Coded(Box<Coded>),
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        match self {
            Self::Spooled(reader) => reader.next().await,
            Self::File(part) => part.next().await,
            Self::Relayed(reader) => reader.next().await,
            Self::Coded(coded) => coded.next().await,
        }
    }
}

/// The next part of an answer that is to be so long, and has come so far.
pub async fn next_part(
    mut reader: Reader,
    length: Option<u64>,
    passed: u64,
) -> (Reader, std::io::Result<Option<Bytes>>) {
    let mut part = reader.next().await;
    if matches!(part, Ok(None)) && length.is_some_and(|length| passed < length) {
        part = Err(std::io::Error::new(
            std::io::ErrorKind::UnexpectedEof,
            "the answer is shorter than its Content-Length",
        ));
    }
    if part.is_err() {
        // An error ends the connection as it is. What came before it is flushed first, so that the
        // client sees a cut answer and not just a connection that closed.
        tokio::task::yield_now().await;
    }
    (reader, part)
}

impl Body {
    pub fn whole(bytes: Bytes) -> Self {
        Self {
            source: Source::Whole(bytes),
            finish: None,
        }
    }

    fn read(reader: Reader, length: Option<u64>) -> Self {
        Self {
            source: Source::Read {
                reader: Some(reader),
                read: None,
                length,
                passed: 0,
            },
            finish: None,
        }
    }

    /// All of it, if it is at hand.
    pub fn as_whole(&self) -> Option<&Bytes> {
        match &self.source {
            Source::Whole(bytes) => Some(bytes),
            Source::Read { .. } => None,
        }
    }

    /// What is read from a file comes in pieces no larger than this.
    pub fn read_in(&mut self, piece: usize) {
        if let Source::Read {
            reader: Some(reader),
            ..
        } = &mut self.source
        {
            match reader {
                Reader::Spooled(reader) => reader.read_in(piece),
                Reader::File(part) => part.read_in(piece),
                Reader::Relayed(_) | Reader::Coded(_) => {}
            }
        }
    }

    /// There is more of it, and it has not been read from its file.
    pub fn lies_in_file(&self) -> bool {
        matches!(
            &self.source,
            Source::Read { reader: Some(Reader::File(part)), .. } if part.len() > 0
        )
    }

    /// The same body, of which nothing has been read, through a coding. One that is at hand stays as it is.
    pub fn through(self, coding: impl FnOnce(Reader, Option<u64>) -> Coded) -> Self {
        match self.source {
            Source::Read {
                reader: Some(reader),
                length,
                ..
            } => Self::read(Reader::Coded(Box::new(coding(reader, length))), None),
            _ => self,
        }
    }

    /// `finish` is told what has been taken, and dropped with the body.
    /// All of it is there: nothing can cut it any more.
    pub fn is_whole(&self) -> bool {
        matches!(self.source, Source::Whole(_))
    }

    pub fn watched(mut self, finish: Finish) -> Self {
        self.finish = Some(finish);
        self
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let Self { source, finish } = &mut *self;
        let chunk = match source {
            Source::Whole(bytes) if bytes.is_empty() => None,
            Source::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Source::Read {
                reader,
                read,
                length,
                passed,
            } => {
                if let Some(reader) = reader.take() {
                    *read = Some(Box::pin(next_part(reader, *length, *passed)));
                }
                match read {
                    None => None,
                    Some(under_way) => {
                        let (done, chunk) = ready!(under_way.as_mut().poll(cx));
                        *read = None;
                        if let Ok(Some(chunk)) = &chunk {
                            *passed += chunk.len() as u64;
                            *reader = Some(done);
                        }
                        chunk.transpose()
                    }
                }
            }
        };
        if let Some(finish) = finish {
            if let Some(Ok(chunk)) = &chunk {
                finish.sent(chunk.len());
            }
            // hyper does not ask for more once it has the announced length.
            if chunk.is_none() || source.is_taken() {
                finish.whole();
            }
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.source, Source::Whole(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Source::Read {
                length: Some(length),
                ..
            } => SizeHint::with_exact(*length),
            Source::Read { length: None, .. } => SizeHint::default(),
        }
    }
}
