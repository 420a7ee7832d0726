//! Downstream: the clients' side. Listeners, HTTP, bodies, header hygiene.
//!
//! A request leaves this room vetted, with its whole body in hand, or the means to take it later; what
//! comes back is made fit for the wire. Slots and workers are not known here.

pub mod access_log;
pub(crate) mod answers;
mod batch;
mod collect;
mod compress;
mod crowd;
mod finish;
pub(crate) mod forwarded;
pub(crate) mod framing;
pub(crate) mod head;
mod http2;
mod listen;
mod mounts;
mod pace;
mod pages;
mod protocol;
pub(crate) mod proxy;
mod routes;
mod seldom;
pub mod tls;
mod upgrade;
mod watch;
pub(crate) mod way;

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Once, RwLock};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::CONNECTION;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use hyper::service::service_fn;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use self::answers::{Body, Trouble};
use self::batch::Batched;
use self::collect::collect;
use self::finish::{Entry, Finish};
use self::forwarded::Trust;
use self::framing::{Framed, Heads, MAX_HEAD, Refused};
use self::head::{Refusal, Target};
use self::listen::Stream;
use self::watch::{Watch, Watched};
use self::way::Way;
use crate::coding::Accepted;
use crate::config::{self, BodyMode, Compression, ForwardingHeaders, Trusted};
use crate::exchange::{self, Exchange};
use crate::files::{self, Conditions, Files};
use crate::layers::Resumed;
use crate::message::{self, Client, LaterBody, NoBody, RequestBody};
use crate::metrics::Metrics;
use crate::recent::Recent;
use crate::record::Record;
use crate::spans::{self, Tracer};
use crate::spool::{self, Spool};
use crate::sweeper::Sweeper;
use crate::trace::Trace;

pub use access_log::{AccessLog, Style};
pub use crowd::{Crowd, Most};
pub use listen::{Adopted, Listener, Listeners};
pub use pace::Rate;
pub use pages::Pages;
pub use routes::{Route, Routes};
pub use watch::Bounds;

/// What a request is called: to workers, and in the answer to its client.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What has reached this machine when a drain begins, connections and requests, is taken in within
/// this time. What comes later meets a closed door.
const LAST_ARRIVALS: Duration = Duration::from_millis(50);

/// What a client still sends after an answer that it did not wait for is read for so long, and so far.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// The log is told once of an answer whose client cannot see that it was cut.
static UNSEEN: Once = Once::new();

/// What a reload may change.
#[derive(Debug, Clone)]
pub struct Settings {
    pub trusted: Vec<Trusted>,
    pub forwarding_headers: ForwardingHeaders,
    /// Peers that begin with a PROXY header.
    pub proxied: Vec<Trusted>,
    /// HTTP/2 without TLS is taken.
    pub h2c: bool,
    pub max_body: u64,
    /// Of connections that are yet to come.
    pub bounds: Bounds,
    /// Some paths are the gateway's own to post to.
    pub resumes: bool,
    pub routes: Routes,
    pub files: Files,
    pub compression: Compression,
    pub exchange: exchange::Settings,
    /// Told to clients that were shed.
    pub retry_after: Duration,
    pub pages: Pages,
    /// None if none is kept.
    pub access_log: Option<Style>,
}

/// Everything that a connection needs, shared by all.
pub struct Downstream {
    pub exchange: Exchange,
    pub spool: Spool,
    pub metrics: Metrics,
    pub access_log: AccessLog,
    /// None if nothing is traced.
    pub tracer: Option<Tracer>,
    pub recent: Recent,
    pub sweeper: Sweeper,
    pub crowd: Crowd,
    pub settings: RwLock<Arc<Settings>>,
    /// Connections end with their request under way.
    pub drain: CancellationToken,
    /// Tunnels end, however much they carry.
    pub end_tunnels: CancellationToken,
}

impl Downstream {
    pub fn set(&self, settings: Settings) {
        *self
            .settings
            .write()
            .expect("no code that holds this lock panics") = Arc::new(settings);
    }

    /// Resolves a moment after the drain was asked for. Cancel safe.
    async fn drain_begun(&self) {
        self.drain.cancelled().await;
        tokio::time::sleep(LAST_ARRIVALS).await;
    }

    /// Those in force.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(
            &self
                .settings
                .read()
                .expect("no code that holds this lock panics"),
        )
    }

    /// Serves one connection of HTTP/1 to its end.
    async fn serve<S: Stream>(self: Arc<Self>, mut stream: S, way: Way, watch: Arc<Watch>) {
        let mut read = Bytes::new();
        loop {
            let talk = Arc::clone(&self).converse(stream, read, way.clone(), Arc::clone(&watch));
            // Boxed: while the connection rests, nothing is left of it.
            let Some(rested) = Box::pin(talk).await else {
                return;
            };
            (stream, read) = rested;
            if read.is_empty() {
                // Empty as it is, it may keep a buffer.
                drop(read);
                let Some(first) = self.first_byte(&mut stream, &watch).await else {
                    return;
                };
                read = first;
            }
        }
    }

    /// Waits for a request on a connection that rests; none if the connection is to end.
    async fn first_byte<S: Stream>(&self, stream: &mut S, watch: &Watch) -> Option<Bytes> {
        let mut byte = [0];
        tokio::select! {
            biased; // A request that is there is worth more than a drain that has begun.
            read = stream.read(&mut byte) => matches!(read, Ok(1)).then(|| Bytes::copy_from_slice(&byte)),
            () = watch.alarm.rang() => None,
            () = self.drain_begun() => None,
        }
    }

    /// Serves a connection until it ends, or has nothing to say for a while: then it is given back, with what
    /// has been read of it. hyper keeps its buffers, some 16 KiB, for as long as it has a connection.
    async fn converse<S: Stream>(
        self: Arc<Self>,
        stream: S,
        read: Bytes,
        way: Way,
        watch: Arc<Watch>,
    ) -> Option<(S, Bytes)> {
        let heads = Arc::new(Heads::default());
        let resumed = Resumed { read, line: stream };
        let watched = Watched::new(resumed, Arc::clone(&watch));
        let framed = Framed::new(watched, Arc::clone(&heads));
        let io = TokioIo::new(Batched::new(framed, Arc::clone(&watch)));
        let knows_no_chunks = AtomicBool::new(false);
        let service = service_fn(|request: Request<_>| {
            knows_no_chunks.store(request.version() == Version::HTTP_10, Relaxed);
            let refused = heads.next_request();
            let framing = Some(Arc::clone(&heads));
            // Boxed: its size would be paid by every idle connection.
            Box::pin(self.handle(request, refused, &way, &watch, framing))
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        // `Framed` has the bound; what it has escaped may be longer than what came.
        http.max_header_size(2 * MAX_HEAD);
        // Both ways: of an answer, too, no more is taken before its client does than a head may need.
        http.max_buf_size(2 * MAX_HEAD);
        let mut connection = http.serve_connection(io, service);
        let drain = self.drain_begun();
        tokio::pin!(drain);
        let mut draining = false;
        let cut = loop {
            tokio::select! {
                biased;
                ended = &mut connection => match ended {
                    Ok(()) => {
                        let parts = connection.into_parts();
                        let framed = parts.io.into_inner().stream;
                        if let Some(tunnel) = watch.take_tunnel() {
                            let line = Resumed {
                                read: parts.read_buf,
                                line: framed,
                            };
                            Box::pin(tunnel.run(line, self.end_tunnels.clone())).await;
                        } else if watch.is_unread() {
                            Box::pin(linger(framed.stream.stream)).await;
                        }
                        return None;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "connection ended");
                        // The only such errors: an answer's body, and a client that nobody answers.
                        break error.is_user();
                    }
                },
                () = watch.alarm.rang() => {
                    if watch.rests() {
                        if heads.is_mid_head() {
                            // It began to come before the last answer was out.
                            watch.bytes_came();
                            continue;
                        }
                        let parts = connection.into_parts();
                        let watched = parts.io.into_inner().stream.stream;
                        return Some((watched.stream.line, parts.read_buf));
                    }
                    if !watch.is_sending() && heads.give_up() {
                        watch.within(LINGER);
                        continue;
                    }
                    tracing::debug!("connection closed: too slow or idle");
                    break watch.is_sending();
                }
                () = &mut drain, if !draining => {
                    draining = true;
                    // A request whose head has begun to come is the last, but served.
                    if !heads.is_mid_head() {
                        std::pin::Pin::new(&mut connection).graceful_shutdown();
                    }
                }
            }
        };
        if cut {
            // The end of the connection may be all that ends the body, as in HTTP/1.0: then a cut one
            // must not end like a whole one.
            let watched = connection.into_parts().io.into_inner().stream.stream;
            if !watched.stream.reset() && knows_no_chunks.load(Relaxed) {
                UNSEEN.call_once(|| {
                    tracing::warn!(
                        "an answer was cut that an HTTP/1.0 client on a Unix socket may take for whole; HTTP/1.1 tells"
                    );
                });
            }
        }
        None
    }

    /// One request, from its head to the head of its answer.
    ///
    /// No `async fn`, here and below, where a request passes by on its way to a slot: such a function keeps room
    /// for what it was given beside what it made of it, and thousands of requests wait at this very place.
    fn handle<B: RequestStream>(
        self: &Arc<Self>,
        request: Request<B>,
        refused: Option<Refused>,
        way: &Way,
        watch: &Arc<Watch>,
        framing: Option<Arc<Heads>>,
    ) -> impl Future<Output = Result<Response<Body>, ClientLeft>> + Send + use<B> {
        let (this, watch, settings) = (Arc::clone(self), Arc::clone(watch), self.settings());
        let (mut parts, body) = request.into_parts();
        watch.set_unread(!body.is_end_stream());
        watch.set_whole(false);
        if parts.extensions.get::<OnUpgrade>().is_some() {
            watch.asks_for_upgrade();
        }
        let upgrade = upgrade::asked(&parts);
        let vetted = match refused {
            // It stands for what came instead, and what comes behind that is not read as anything.
            Some(refused) => {
                watch.set_unread(true);
                parts.uri = refused.target;
                Err(refused.refusal)
            }
            None => head::vet(&mut parts),
        };
        let (mut visit, told) = self.identify(&mut parts, way, &settings, &watch);
        visit.upgrade = upgrade;
        let target = vetted.and_then(|target| told.map(|()| target));
        async move {
            let answered = async {
                let target = target.map_err(Trouble::Refused)?;
                if settings.resumes && head::is_for_resumes(&target.path) {
                    return Err(Trouble::Refused(head::NOT_FOR_CLIENTS));
                }
                if let Some(mount) = mounts::of(&parts, &target, &visit.client, &settings)
                    && let Some(answer) = Box::pin(mounts::answer(mount, &parts, &target)).await?
                {
                    visit.record.tell(|spans| spans.takes(&mount.path));
                    let answer = files::counted(answer, &this.spool);
                    let memory = this.spool.memory();
                    let (response, _) = answers::passed_on(answer, &parts.method, memory)?;
                    return Ok(Some(response));
                }
                let (exchange, rules) = this.route(&target, &mut visit, &settings);
                let (body, later) = match body.is_end_stream() {
                    true => (RequestBody::Here(spool::Body::Memory(Bytes::new())), None),
                    // Boxed: its size would be paid by every request, most of which have no body.
                    false => {
                        let record = &visit.record;
                        Box::pin(this.receive(body, rules, record, &watch, &settings)).await?
                    }
                };
                let request = this.request(parts, target, body, &mut visit, exchange);
                watch.in_hand();
                let lazy = later.is_some();
                let outcome = exchange.run(request, later, settings.exchange);
                pass(outcome, lazy, &mut visit, &watch, &settings, &this.spool).await
            };
            let response = match answered.await {
                Ok(Some(response)) => {
                    let (accepted, how) = (&visit.accepted, &settings.compression);
                    let response = match how.algorithms.is_empty() {
                        true => response,
                        false => {
                            let coding =
                                compress::compressed(response, &visit.method, accepted, how);
                            Box::pin(coding).await
                        }
                    };
                    watch.set_whole(response.body().is_whole());
                    response
                }
                Ok(None) => return Err(ClientLeft),
                Err(trouble) => refuse(trouble, &mut visit, &settings),
            };
            if let Some(framing) = framing
                && response.status() == StatusCode::SWITCHING_PROTOCOLS
            {
                framing.open_tunnel();
            }
            Ok(this.finish(response, visit, &watch))
        }
    }

    /// Who asks, if that can be told in one way, and what the request is called. From here on it is counted,
    /// whatever becomes of it, so this comes before a refusal of its head.
    fn identify(
        &self,
        parts: &mut Parts,
        way: &Way,
        settings: &Settings,
        watch: &Arc<Watch>,
    ) -> (Visit, Result<(), Refusal>) {
        let arrived = Instant::now();
        let id = forwarded::request_id(way.peer, &settings.trusted, &parts.headers);
        let trust = Trust {
            proxies: &settings.trusted,
            headers: settings.forwarding_headers,
        };
        let (client, told) = forwarded::client(way, trust, &mut parts.headers);
        let mut trace = Trace::take(&mut parts.headers);
        let tracer = self.tracer.as_ref();
        let mut spans = tracer.and_then(|it| it.begin(&mut trace, &mut parts.headers, arrived));
        if let Some(spans) = &mut spans {
            spans.is(spans::Head::new(id.as_str(), parts, &client));
        }
        let record = Record::traced(id, trace, arrived, spans);
        let entry = settings.access_log.map(|style| {
            Box::new(Entry {
                log: self.access_log.clone(),
                style,
                head: style.head(parts, &client),
                arrived: SystemTime::now(),
            })
        });
        let finish = Finish::new(
            self.metrics.clone(),
            self.recent.clone(),
            Arc::clone(watch),
            parts.method.clone(),
            Arc::clone(&record),
            arrived,
            entry,
        );
        let visit = Visit {
            client,
            method: parts.method.clone(),
            wants_json: answers::wants_json(&parts.headers),
            accepted: Accepted::of(&parts.headers, &settings.compression.algorithms),
            wish: match settings.files.hands_off() {
                true => Conditions::of(&parts.method, &parts.headers).map(Box::new),
                false => None,
            },
            record,
            finish,
            upgrade: None,
        };
        (visit, told)
    }

    /// Where a request is to go, and by what rules.
    fn route<'a>(
        &'a self,
        target: &Target,
        visit: &mut Visit,
        settings: &'a Settings,
    ) -> (&'a Exchange, Option<&'a config::Route>) {
        let server_name = &visit.client.server_name;
        let route = settings.routes.of(&target.path, server_name, &visit.method);
        let upstream = route.and_then(|route| route.upstream.as_ref());
        if let Some(route) = route {
            visit.record.takes(&route.name);
        }
        let rules = route.map(|route| &route.rules);
        (upstream.unwrap_or(&self.exchange), rules)
    }

    /// Takes in the whole body, or leaves it where it is if its route says so.
    async fn receive(
        &self,
        body: impl RequestStream,
        rules: Option<&config::Route>,
        record: &Arc<Record>,
        watch: &Arc<Watch>,
        settings: &Settings,
    ) -> Result<(RequestBody, Option<LaterBody>), Trouble> {
        let max = rules
            .and_then(|rules| rules.max_body)
            .unwrap_or(settings.max_body);
        if body.size_hint().lower() > max {
            return Err(Trouble::Body(NoBody::TooLarge));
        }
        let body = Counted {
            body,
            record: Arc::clone(record),
        };
        if rules.is_some_and(|rules| rules.body == BodyMode::Lazy) {
            let announced = body.size_hint().exact();
            let (spool, watch) = (self.spool.clone(), Arc::clone(watch));
            let taking = async move { collect(body, &spool, &watch, max).await };
            return Ok((RequestBody::Later(announced), Some(LaterBody::new(taking))));
        }
        let body = collect(body, &self.spool, watch, max).await;
        Ok((RequestBody::Here(body.map_err(Trouble::Body)?), None))
    }

    /// The request as it leaves this room. Boxed: it is passed on several times.
    fn request(
        &self,
        mut parts: Parts,
        target: Target,
        body: RequestBody,
        visit: &mut Visit,
        exchange: &Exchange,
    ) -> Box<message::Request> {
        parts.headers.insert(REQUEST_ID, visit.record.id.header());
        let raw: Arc<str> = target.raw.into();
        visit.finish.asks(&raw);
        Box::new(message::Request {
            method: parts.method,
            version: parts.version,
            target: raw,
            path: target.path,
            query: target.query,
            headers: parts.headers,
            client: visit.client.clone(),
            record: Arc::clone(&visit.record),
            body,
            upgrade: visit.upgrade.clone().filter(|_| exchange.may_upgrade()),
        })
    }

    /// What every answer has, whoever gave it.
    fn finish(&self, mut response: Response<Body>, visit: Visit, watch: &Watch) -> Response<Body> {
        let headers = response.headers_mut();
        // An application that has ids of its own, or passes another server's on, keeps them.
        headers
            .entry(REQUEST_ID)
            .or_insert_with(|| visit.record.id.header());
        let closes = self.drain.is_cancelled() || watch.is_unread();
        if closes && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(CONNECTION, close);
        }
        let Visit {
            mut finish, method, ..
        } = visit;
        let status = response.status();
        let bodiless = answers::is_bodiless(status, &method) || response.body().is_end_stream();
        finish.answered(status, bodiless);
        response.map(|body| body.watched(finish))
    }
}

/// Waits for the application's answer; None if the client left meanwhile.
async fn pass(
    outcome: exchange::Outcome,
    lazy: bool,
    visit: &mut Visit,
    watch: &Watch,
    settings: &Settings,
    spool: &Spool,
) -> Result<Option<Response<Body>>, Trouble> {
    let answer = if lazy {
        // hyper looks for the client's leaving only while it reads.
        tokio::select! {
            answer = outcome => answer,
            () = Box::pin(watch.hung_up()) => return Ok(None),
        }
    } else {
        outcome.await
    };
    let mut answer = answer.map_err(Trouble::Exchange)?;
    if settings.files.hands_off() {
        answer = Box::pin(settings.files.hand_off(answer, visit.wish.take(), spool)).await?;
    }
    let (response, tunnel) = answers::passed_on(answer, &visit.method, spool.memory())?;
    if let Some(tunnel) = tunnel {
        watch.set_tunnel(tunnel);
    }
    Ok(Some(response))
}

/// What is known of a request as soon as its head is there.
struct Visit {
    client: Client,
    method: Method,
    wants_json: bool,
    /// Of what answers are compressed with.
    accepted: Accepted,
    /// What is asked of a file, should the application name one.
    wish: Option<Box<Conditions>>,
    record: Arc<Record>,
    finish: Finish,
    /// The protocol that the client would like to change to.
    upgrade: Option<HeaderValue>,
}

/// A request's body, whose bytes are counted as they come.
struct Counted<B> {
    body: B,
    record: Arc<Record>,
}

impl<B: RequestStream> http_body::Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.record.received(data.len());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body, as it comes from the client.
trait RequestStream:
    http_body::Body<Data = Bytes, Error: std::fmt::Display + Send> + Send + Unpin + 'static
{
}

impl<B> RequestStream for B where
    B: http_body::Body<Data = Bytes, Error: std::fmt::Display + Send> + Send + Unpin + 'static
{
}

/// The client of a request is gone: nobody is answered, and the connection ends.
#[derive(Debug)]
struct ClientLeft;

impl std::fmt::Display for ClientLeft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the client left")
    }
}

impl std::error::Error for ClientLeft {}

/// Reads what nobody wants, until the client has seen its answer and closes. A connection that is closed
/// with something unread is reset, which takes the answer out of the client's hands on many systems.
async fn linger(mut stream: impl Stream) {
    let mut room = vec![0; 64 * 1024];
    let mut left = LINGER_BYTES;
    let reading = async {
        // A client that reads to the end has its end now. It may have it already.
        let _ = stream.shutdown().await;
        while let Ok(count @ 1..) = stream.read(&mut room).await
            && left > count
        {
            left -= count;
        }
    };
    // Whoever sends on for longer does not read.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

/// The gateway's own answer, and a word about it in the log: what the client is not told.
fn refuse(trouble: Trouble, visit: &mut Visit, settings: &Settings) -> Response<Body> {
    let (method, request) = (&visit.method, &visit.record.id);
    match trouble {
        Trouble::BadAnswer(why) => {
            tracing::error!(%request, %method, why, "invalid answer from the application");
        }
        Trouble::Exchange(failure @ exchange::Failure::WorkerGone) => {
            tracing::warn!(%request, %method, %failure, "request failed");
        }
        trouble => {
            let status = trouble.status().as_u16();
            tracing::debug!(%request, %method, status, "request refused");
        }
    }
    visit.finish.failed(trouble.as_str());
    answers::own(trouble, visit.wants_json, settings, request)
}
