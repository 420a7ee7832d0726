//! Compressing answers on their way out: which ones, and where it is computed.
//!
//! The last thing done to an answer before it is sent, whoever gave it. Short pieces are coded in the
//! connection's task, longer ones on a blocking thread, so that no other request waits for them. What
//! streams is flushed whenever its source pauses: compressing holds nothing back.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    ETAG, HeaderMap, HeaderValue, VARY,
};
use http::{Method, Response, StatusCode};
use tokio::sync::{Semaphore, SemaphorePermit};

use super::answers::{Body, Reader, next_part};
use crate::coding::{Accepted, Encoder};
use crate::config::{Coding, Compression, Level};
use crate::spool::off_runtime;

/// Coded where it stands: a tenth of a millisecond, little more than a hop to another thread and back.
const IN_PLACE: usize = 4 * 1024;

/// Answers of unknown or large size that are being coded, each with a window of up to a MiB; those beyond
/// are sent as they are.
static STREAMS: Semaphore = Semaphore::const_new(100);

/// Headers that tell of the bytes as they are, beside those that tell that they are coded already.
const TELLING: [&str; 5] = [
    "content-md5",
    "digest",
    "content-digest",
    "repr-digest",
    "content-encoding",
];

/// Compresses the answer if its client takes it and it is worth it; for who has chosen algorithms.
pub async fn compressed(
    mut response: Response<Body>,
    method: &Method,
    accepted: &Accepted,
    how: &Compression,
) -> Response<Body> {
    let status = response.status();
    if status == StatusCode::NOT_MODIFIED {
        // It has no type to go by; what it stands for may have been compressed.
        varies(response.headers_mut());
        return response;
    }
    let codable = !matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT);
    if status.is_informational() || !codable || !is_of(&how.types, response.headers()) {
        return response;
    }
    varies(response.headers_mut());
    // A part is of the bytes as they are, but says what the whole would (RFC 9110 section 15.3.7).
    if status == StatusCode::PARTIAL_CONTENT || response.headers().contains_key(CONTENT_RANGE) {
        return response;
    }
    let small = size(&response).is_some_and(|size| size < how.min_size);
    let Some(coding) = accepted.codings.first().copied() else {
        return response;
    };
    if small && (accepted.plain || size(&response) == Some(0)) {
        return response;
    }
    if *method == Method::HEAD {
        said(response.headers_mut(), coding);
        return response.map(|_| Body::whole(Bytes::new()));
    }
    if let Some(whole) = response.body().as_whole() {
        let coded = coded(whole.clone(), coding, how.level).await;
        return match coded {
            Ok(coded) if coded.len() < whole.len() || !accepted.plain => {
                said(response.headers_mut(), coding);
                response.map(|_| Body::whole(coded))
            }
            Ok(_) => response,
            Err(error) => as_it_is(response, &error),
        };
    }
    let Ok(permit) = STREAMS.try_acquire() else {
        return response;
    };
    match Encoder::new(coding, how.level) {
        Ok(encoder) => {
            said(response.headers_mut(), coding);
            response.map(|body| {
                body.through(|reader, length| Coded::new(reader, length, encoder, permit))
            })
        }
        Err(error) => as_it_is(response, &error),
    }
}

fn as_it_is(response: Response<Body>, error: &io::Error) -> Response<Body> {
    tracing::warn!(%error, "cannot compress an answer");
    response
}

/// Whether an answer with these headers is of one of these types, and may be changed.
fn is_of(types: &[String], headers: &HeaderMap) -> bool {
    let media = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let media = media.and_then(|media| media.split(';').next());
    let fits = media.is_some_and(|media| {
        let media = media.trim();
        types.iter().any(|it| media.eq_ignore_ascii_case(it))
    });
    let unchanged = headers.get_all(CACHE_CONTROL).iter().any(|line| {
        let mut items = line.as_bytes().split(|byte| *byte == b',');
        items.any(|item| item.trim_ascii().eq_ignore_ascii_case(b"no-transform"))
    });
    fits && !unchanged && !TELLING.iter().any(|name| headers.contains_key(*name))
}

/// As far as it is known. The answer to HEAD has none, but says what it would be.
fn size(response: &Response<Body>) -> Option<u64> {
    let said = response.headers().get(CONTENT_LENGTH);
    let said = said.and_then(|value| value.to_str().ok()?.parse().ok());
    said.or_else(|| http_body::Body::size_hint(response.body()).exact())
}

/// Caches keep what was compressed for those who take it.
fn varies(headers: &mut HeaderMap) {
    let known = headers.get_all(VARY).iter().any(|line| {
        let mut names = line.as_bytes().split(|byte| *byte == b',');
        names.any(|name| {
            let name = name.trim_ascii();
            name == b"*" || name.eq_ignore_ascii_case(b"accept-encoding")
        })
    });
    if !known {
        headers.append(VARY, HeaderValue::from_static("accept-encoding"));
    }
}

/// The head of an answer says that its body is coded.
fn said(headers: &mut HeaderMap, coding: Coding) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding.as_str()));
    headers.remove(CONTENT_LENGTH);
    // Parts are of the body that is sent, and that is made anew each time.
    headers.remove(ACCEPT_RANGES);
    let etag = headers.get(ETAG).map(HeaderValue::as_bytes);
    if let Some(etag) = etag.filter(|etag| etag.starts_with(b"\"")) {
        // The same content, but not the same bytes.
        let weak = HeaderValue::from_bytes(&[b"W/", etag].concat());
        headers.insert(ETAG, weak.expect("a value with two letters more"));
    }
}

async fn coded(bytes: Bytes, coding: Coding, level: Level) -> io::Result<Bytes> {
    let in_place = bytes.len() <= IN_PLACE;
    let code = move || {
        let mut encoder = Encoder::new(coding, level)?;
        let mut coded = encoder.push(&bytes)?;
        coded.extend(encoder.finish()?);
        Ok(coded.into())
    };
    match in_place {
        true => code(),
        false => off_runtime(code).await,
    }
}

/// A body that is coded as it is read.
pub struct Coded {
    /// None while a read is under way.
    reader: Option<Reader>,
    reading: Option<Reading>,
    /// How long the plain body is to be, and how far it has come.
    length: Option<u64>,
    passed: u64,
    /// None once it has given its last byte.
    encoder: Option<Encoder>,
    /// So many bytes went in since everything that was in had come out.
    unflushed: usize,
    /// Somebody may wait for what is there already.
    streams: bool,
    _permit: SemaphorePermit<'static>,
}

type Reading = BoxFuture<'static, (Reader, io::Result<Option<Bytes>>)>;

/// Has a signature to end the circle of types: a reader may be of a coded body.
fn reading(reader: Reader, length: Option<u64>, passed: u64) -> Reading {
    Box::pin(next_part(reader, length, passed))
}

/// What the plain body has come to.
enum Came {
    Part(Bytes),
    End,
    /// There is no more yet.
    Nothing,
}

impl Coded {
    fn new(
        reader: Reader,
        length: Option<u64>,
        encoder: Encoder,
        permit: SemaphorePermit<'static>,
    ) -> Self {
        Self {
            streams: !matches!(reader, Reader::File(_)),
            reader: Some(reader),
            reading: None,
            length,
            passed: 0,
            encoder: Some(encoder),
            unflushed: 0,
            _permit: permit,
        }
    }

    /// The next piece; None at the end. Not cancel safe: a piece may be lost.
    ///
    /// # Errors
    /// When the body is cut, or the coding fails.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            let came = match &self.encoder {
                Some(_) => self.came().await?,
                None => return Ok(None),
            };
            let encoder = self.encoder.take().expect("just looked at");
            let coded = match came {
                Came::Part(bytes) => {
                    self.unflushed += bytes.len();
                    let len = bytes.len();
                    let code = move |encoder: &mut Encoder| encoder.push(&bytes);
                    self.work(encoder, len, code).await?
                }
                Came::Nothing => {
                    let bytes = std::mem::take(&mut self.unflushed);
                    self.work(encoder, bytes, Encoder::flush).await?
                }
                Came::End => {
                    let finish = || encoder.finish();
                    match self.unflushed <= IN_PLACE {
                        true => finish()?,
                        false => off_runtime(finish).await?,
                    }
                }
            };
            if !coded.is_empty() {
                return Ok(Some(coded.into()));
            }
        }
    }

    async fn came(&mut self) -> io::Result<Came> {
        let reading = self.reading.get_or_insert_with(|| {
            let reader = self.reader.take();
            let reader = reader.expect("it is here while no read is under way");
            reading(reader, self.length, self.passed)
        });
        let flush = self.streams && self.unflushed > 0;
        let came = poll_fn(|cx| match reading.as_mut().poll(cx) {
            Poll::Ready(came) => Poll::Ready(Some(came)),
            Poll::Pending if flush => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let Some((reader, part)) = came.await else {
            return Ok(Came::Nothing);
        };
        self.reading = None;
        self.reader = Some(reader);
        Ok(match part? {
            Some(bytes) => {
                self.passed += bytes.len() as u64;
                Came::Part(bytes)
            }
            None => Came::End,
        })
    }

    /// Lets the encoder compute, about as long as so many bytes take.
    async fn work(
        &mut self,
        mut encoder: Encoder,
        bytes: usize,
        code: impl FnOnce(&mut Encoder) -> io::Result<Vec<u8>> + Send + 'static,
    ) -> io::Result<Vec<u8>> {
        let coded = if bytes <= IN_PLACE {
            code(&mut encoder)?
        } else {
            let coding = move || {
                let coded = code(&mut encoder)?;
                Ok((encoder, coded))
            };
            let (back, coded) = off_runtime(coding).await?;
            encoder = back;
            coded
        };
        self.encoder = Some(encoder);
        Ok(coded)
    }
}
