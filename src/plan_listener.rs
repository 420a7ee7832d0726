//! The `[plans]` listener: plans for applications that would rather wait where they are.
//!
//! `POST /v1/fetch` takes a plan and answers with its results. Whoever knows the secret may; what may be
//! reached, and how much of it is taken, is outbound's decision, as for every plan. Everything that a
//! client can hold is bounded: connections, the time for a head and a body, the bytes of plans.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HeaderMap, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ring::hmac;
use tokio::io::AsyncWrite;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::config::{Config, Listen};
use crate::layers::reads_through;
use crate::outbound::Outbound;
use crate::plan::http::{MAX_PLAN, Results, decode_waiting};
use crate::unix_socket::UnixSocket;

/// Who can connect can try the secret: owner and group only.
const MODE: u32 = 0o660;

/// As many plans at once, one on each connection. More wait in the kernel's backlog.
const CONNECTIONS: usize = 256;

/// For a head, and for how long a connection may idle.
const HEAD: Duration = Duration::from_secs(30);

const HEAD_BYTES: usize = 16 * 1024;

/// For a plan to come whole. Who sends it stands beside the gateway.
const BODY: Duration = Duration::from_secs(30);

/// For a client to take some of its results, when it has taken none.
const READ: Duration = Duration::from_secs(30);

/// Of all plans that are coming in or under way, to the end of their results.
const PLANS_KIB: usize = 128 * 1024;

/// Pause after a failed accept: it fails at once again while descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener that is bound, and not served yet.
#[derive(Debug)]
pub struct Bound(Socket);

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixSocket),
}

/// The running listener.
#[derive(Debug)]
pub struct PlanListener {
    desk: Arc<Desk>,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

/// What a reload may change.
#[derive(Debug, Clone)]
pub struct Terms {
    secret: hmac::Key,
    /// The tag of what an authorized request says.
    expected: hmac::Tag,
    timeout: Duration,
}

/// What all connections share.
#[derive(Debug)]
struct Desk {
    outbound: Outbound,
    terms: RwLock<Arc<Terms>>,
    kib: Arc<Semaphore>,
}

type Stream = Either<TcpStream, UnixStream>;
type Answer = Response<BoxBody<Bytes, Infallible>>;

/// Why a request has no results.
#[derive(Debug)]
enum Refusal {
    Unauthorized,
    NoSuchPath,
    Method,
    TooLarge,
    Late,
    /// Its client broke off, or it is not framed well.
    Broken,
    Full,
    NoPlan(String),
}

impl Bound {
    /// # Errors
    /// When the address is taken or cannot be had.
    pub async fn at(listen: &Listen) -> io::Result<Self> {
        Ok(Self(match listen {
            Listen::Tcp(address) => Socket::Tcp(TcpListener::bind(address).await?),
            Listen::Unix(path) => Socket::Unix(UnixSocket::bind(path, MODE)?),
            Listen::Systemd(_) => unreachable!("the configuration allows no such socket here"),
        }))
    }

    /// Begins to answer.
    pub fn serve(self, terms: Terms, outbound: Outbound) -> PlanListener {
        let desk = Arc::new(Desk {
            outbound,
            terms: RwLock::new(Arc::new(terms)),
            kib: Arc::new(Semaphore::new(PLANS_KIB)),
        });
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(self.0, Arc::clone(&desk), stop.clone()));
        PlanListener {
            desk,
            stop,
            serving,
        }
    }
}

impl PlanListener {
    pub fn set(&self, terms: Terms) {
        let mut current = self.desk.terms.write();
        **current
            .as_mut()
            .unwrap_or_else(|poisoned| poisoned.get_mut()) = Arc::new(terms);
    }

    /// Takes no more connections, waits for the plans under way, and ends what is left after the grace.
    pub async fn drain(mut self, grace: Duration) {
        self.stop.cancel();
        if timeout(grace, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }
}

impl Terms {
    /// None without `[plans]`.
    pub fn of(config: &Config) -> Option<Self> {
        let secret = &config.plans.as_ref()?.secret.0;
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        Some(Self {
            expected: hmac::sign(&key, secret.as_bytes()),
            secret: key,
            timeout: config.slots.request_timeout,
        })
    }

    /// In a time that tells nothing of the secret.
    fn authorize(&self, headers: &HeaderMap) -> bool {
        let mut lines = headers.get_all(AUTHORIZATION).iter();
        let (Some(line), None) = (lines.next(), lines.next()) else {
            return false;
        };
        let Some((scheme, given)) = line.as_bytes().split_at_checked(b"Bearer ".len()) else {
            return false;
        };
        scheme.eq_ignore_ascii_case(b"Bearer ")
            && hmac::verify(&self.secret, given.trim_ascii(), self.expected.as_ref()).is_ok()
    }
}

async fn serve(socket: Socket, desk: Arc<Desk>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased; // A stop must not starve behind connections.
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&socket, &places) => accepted,
        };
        match accepted {
            Ok((place, stream)) => {
                let conversation = converse(stream, Arc::clone(&desk), stop.clone());
                connections.spawn(async move {
                    conversation.await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "the plans listener could not accept");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(socket);
    connections.join_all().await;
}

/// The next connection, once there is a place for it. Cancel safe.
async fn accept(
    socket: &Socket,
    places: &Arc<Semaphore>,
) -> io::Result<(OwnedSemaphorePermit, Stream)> {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("the semaphore is never closed");
    let stream = match socket {
        Socket::Tcp(listener) => {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            Either::Left(stream)
        }
        Socket::Unix(listener) => Either::Right(listener.accept().await?),
    };
    Ok((place, stream))
}

/// One connection, to its end. A client that leaves takes its plan with it: hyper drops what answers it.
async fn converse(stream: Stream, desk: Arc<Desk>, stop: CancellationToken) {
    let service = service_fn(|request| {
        let desk = Arc::clone(&desk);
        // Boxed: its size would be paid by every idle connection.
        Box::pin(async move { Ok::<_, Infallible>(desk.answer(request).await) })
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(Read::new(stream, READ)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the plans listener ended early");
    }
}

/// A connection whose client reads what it is sent: one that takes nothing for so long is given up.
struct Read<S> {
    stream: S,
    patience: Duration,
    /// While it takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Read<S> {
    fn new(stream: S, patience: Duration) -> Self {
        Self {
            stream,
            patience,
            stalled: None,
        }
    }

    fn wrote<T>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.stalled = None;
            return poll;
        }
        let patience = self.patience;
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

reads_through!(S, Read<S>, stream);

impl<S: AsyncWrite + Unpin> AsyncWrite for Read<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.wrote(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.wrote(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        match self.results(request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                debug!(?refusal, "no plan was run");
                refusal.answer()
            }
        }
    }

    async fn results(&self, request: Request<Incoming>) -> Result<Answer, Refusal> {
        let terms = self.terms();
        if !terms.authorize(request.headers()) {
            return Err(Refusal::Unauthorized);
        }
        if request.uri().path() != "/v1/fetch" {
            return Err(Refusal::NoSuchPath);
        }
        if *request.method() != Method::POST {
            return Err(Refusal::Method);
        }
        let deadline = Instant::now() + terms.timeout;
        let (json, held) = timeout(BODY, self.body(request.into_body()))
            .await
            .unwrap_or(Err(Refusal::Late))?;
        let plan = decode_waiting(&json).map_err(|error| Refusal::NoPlan(error.to_string()))?;
        drop(json);
        let outcomes = self.outbound.run(plan, deadline).await;
        let pieces = Results::new(outcomes).map(move |piece| {
            let _until_all_is_written = &held;
            Ok(Frame::data(piece))
        });
        let body = StreamBody::new(stream::iter(pieces));
        Ok(answer(StatusCode::OK, &[], BoxBody::new(body)))
    }

    /// All of the body, and what it takes of the bytes that there are for plans.
    async fn body(&self, body: Incoming) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Refusal> {
        if body.size_hint().lower() > MAX_PLAN as u64 {
            return Err(Refusal::TooLarge);
        }
        let mut body = Limited::new(body, MAX_PLAN);
        let (mut bytes, mut held) = (Vec::new(), None::<OwnedSemaphorePermit>);
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(
                    |error| match error.is::<http_body_util::LengthLimitError>() {
                        true => Refusal::TooLarge,
                        false => Refusal::Broken,
                    },
                )?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            bytes.extend_from_slice(&data);
            let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = bytes.len().div_ceil(1024) - has;
            let more = u32::try_from(more).expect("a plan's bytes fit in far less");
            let more = Arc::clone(&self.kib).try_acquire_many_owned(more);
            let more = more.map_err(|_| Refusal::Full)?;
            match &mut held {
                Some(held) => held.merge(more),
                None => held = Some(more),
            }
        }
        Ok((bytes.into(), held))
    }

    fn terms(&self) -> Arc<Terms> {
        let current = self.terms.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&current)
    }
}

impl Refusal {
    fn answer(self) -> Answer {
        let (status, header, why) = match self {
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                Some((WWW_AUTHENTICATE, "Bearer")),
                "write Authorization: Bearer and the secret of [plans]".into(),
            ),
            Self::NoSuchPath => (
                StatusCode::NOT_FOUND,
                None,
                "there is /v1/fetch, and nothing else".into(),
            ),
            Self::Method => (
                StatusCode::METHOD_NOT_ALLOWED,
                Some((ALLOW, "POST")),
                "a plan is posted".into(),
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                None,
                format!("a plan has at most {MAX_PLAN} bytes"),
            ),
            Self::Late => (
                StatusCode::REQUEST_TIMEOUT,
                None,
                "the plan took too long to arrive".into(),
            ),
            Self::Broken => (
                StatusCode::BAD_REQUEST,
                None,
                "the body is malformed".into(),
            ),
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                Some((RETRY_AFTER, "1")),
                "too many large plans at once".into(),
            ),
            Self::NoPlan(why) => (StatusCode::BAD_REQUEST, None, why),
        };
        let text = serde_json::json!({ "error": why }).to_string();
        answer(status, header.as_slice(), BoxBody::new(Full::from(text)))
    }
}

fn answer(
    status: StatusCode,
    headers: &[(HeaderName, &'static str)],
    body: BoxBody<Bytes, Infallible>,
) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    for (name, value) in headers {
        let value = HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn who_reads_nothing_is_given_up_and_who_reads_slowly_is_not() {
        let (near, mut far) = tokio::io::duplex(10);
        let patience = Duration::from_millis(300);
        let mut near = Read::new(near, patience);
        let slowly = async {
            for _ in 0..10 {
                sleep(patience / 6).await;
                far.read_exact(&mut [0; 10]).await.expect("it is written");
            }
        };
        let (written, ()) = tokio::join!(near.write_all(&[0; 100]), slowly);
        written.expect("it is read");
        let error = near.write_all(&[0; 100]).await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
