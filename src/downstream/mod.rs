//! Downstream: the clients' side. Listeners, HTTP, bodies, header hygiene.
//!
//! A request leaves this room vetted, with its whole body in hand, or the means to take it later; what
//! comes back is made fit for the wire. Slots and workers are not known here.

mod answers;
mod collect;
pub(crate) mod forwarded;
pub(crate) mod head;
mod listen;
mod routes;
mod upgrade;
mod watch;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

use self::answers::{Body, Trouble};
use self::collect::{Bounds, collect};
use self::forwarded::Peer;
use self::listen::Stream;
use self::watch::{Finish, STALL, Watch, Watched};
use crate::config::{BodyMode, Trusted};
use crate::exchange::{self, Exchange};
use crate::message::{self, LaterBody, NoBody, RequestBody};
use crate::metrics::Metrics;
use crate::spool::{self, Spool};
use crate::sweeper::Sweeper;
use crate::tunnel::Resumed;

pub use listen::{Listener, Listeners};
pub use routes::{Route, Routes};

/// Largest request head.
const MAX_HEAD: usize = 64 * 1024;

/// What has reached this machine when a drain begins, connections and requests, is taken in within
/// this time. What comes later meets a closed door.
const LAST_ARRIVALS: Duration = Duration::from_millis(50);

/// What a client still sends after an answer that it did not wait for is read for so long, and so far.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 * 1024 * 1024;

/// What a reload may change.
#[derive(Debug, Clone)]
pub struct Settings {
    pub trusted: Vec<Trusted>,
    pub max_body: u64,
    pub routes: Routes,
    pub exchange: exchange::Settings,
    /// Told to clients that were shed.
    pub retry_after: Duration,
}

/// Everything that a connection needs, shared by all.
pub struct Downstream {
    pub exchange: Exchange,
    pub spool: Spool,
    pub metrics: Metrics,
    pub sweeper: Sweeper,
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

    fn settings(&self) -> Arc<Settings> {
        Arc::clone(
            &self
                .settings
                .read()
                .expect("no code that holds this lock panics"),
        )
    }

    /// Serves one connection to its end.
    async fn serve<S: Stream>(self: Arc<Self>, stream: S, peer: Peer, watch: Arc<Watch>) {
        let io = TokioIo::new(Watched {
            stream,
            watch: Arc::clone(&watch),
        });
        let service = service_fn(|request| {
            // Boxed: its size would be paid by every idle connection.
            Box::pin(Arc::clone(&self).handle(request, peer, Arc::clone(&watch)))
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.max_header_size(MAX_HEAD);
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
                        let stream = parts.io.into_inner().stream;
                        if let Some(tunnel) = watch.take_tunnel() {
                            let line = Resumed { read: parts.read_buf, line: stream };
                            Box::pin(tunnel.run(line, self.end_tunnels.clone())).await;
                        } else if watch.is_unread() {
                            Box::pin(linger(stream)).await;
                        }
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "connection ended");
                        // The only such errors: an answer's body, and a client that nobody answers.
                        break error.is_user();
                    }
                },
                () = watch.alarm.rang() => {
                    tracing::debug!("connection closed: too slow or idle");
                    break watch.is_sending();
                }
                () = &mut drain, if !draining => {
                    draining = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        };
        if cut {
            // The end of the connection may be all that ends the body, as in HTTP/1.0: then a cut one
            // must not end like a whole one.
            connection.into_parts().io.into_inner().stream.reset();
        }
    }

    async fn handle(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: Peer,
        watch: Arc<Watch>,
    ) -> Result<Response<Body>, ClientLeft> {
        let settings = self.settings();
        let method = request.method().clone();
        let mut finish = Finish::new(self.metrics.clone(), Arc::clone(&watch), method.clone());
        let json = answers::wants_json(request.headers());
        let answered = async {
            let (request, later, exchange) = self.receive(request, peer, &watch, &settings).await?;
            watch.in_hand();
            let lazy = later.is_some();
            let outcome = exchange.run(request, later, settings.exchange);
            let answer = if lazy {
                // hyper looks for the client's leaving only while it reads.
                tokio::select! {
                    answer = outcome => answer,
                    () = Box::pin(watch.hung_up()) => return Ok(None),
                }
            } else {
                outcome.await
            };
            let (response, tunnel) =
                answers::passed_on(answer.map_err(Trouble::Exchange)?, &method)?;
            if let Some(tunnel) = tunnel {
                watch.set_tunnel(tunnel);
            }
            Ok(Some(response))
        };
        let mut response = match answered.await {
            Ok(Some(response)) => response,
            Ok(None) => return Err(ClientLeft),
            Err(trouble) => {
                log(trouble, &method);
                let retry_after = settings.retry_after.as_secs().max(1);
                answers::own(trouble, json, retry_after)
            }
        };
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !switches && (self.drain.is_cancelled() || watch.is_unread()) {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        finish.answered(response.status());
        Ok(response.map(|body| body.watched(finish)))
    }

    /// Vets the head and takes in the whole body, or leaves it where it is if its route says so. Also tells
    /// where the request is to go.
    async fn receive<'a>(
        &'a self,
        request: Request<Incoming>,
        peer: Peer,
        watch: &Arc<Watch>,
        settings: &'a Settings,
    ) -> Result<(message::Request, Option<LaterBody>, &'a Exchange), Trouble> {
        let (mut parts, body) = request.into_parts();
        let empty = http_body::Body::is_end_stream(&body);
        watch.set_unread(!empty);
        let upgrade = upgrade::asked(&parts);
        let target = head::vet(&mut parts).map_err(Trouble::Refused)?;
        let client = forwarded::client(peer, &settings.trusted, &mut parts.headers);
        let route = settings
            .routes
            .of(&target.path, &client.server_name, &parts.method);
        let upstream = route.and_then(|route| route.upstream.as_ref());
        let exchange = upstream.unwrap_or(&self.exchange);
        let route = route.map(|route| &route.rules);
        let max = route
            .and_then(|route| route.max_body)
            .unwrap_or(settings.max_body);
        if http_body::Body::size_hint(&body).lower() > max {
            return Err(Trouble::Body(NoBody::TooLarge));
        }
        let bounds = Bounds { max, stall: STALL };
        let lazy = !empty && route.is_some_and(|route| route.body == BodyMode::Lazy);
        let (body, later) = if empty {
            let nothing = spool::Body::Memory(bytes::Bytes::new());
            (RequestBody::Here(nothing), None)
        } else if lazy {
            let announced = http_body::Body::size_hint(&body).exact();
            let (spool, watch) = (self.spool.clone(), Arc::clone(watch));
            let taking = async move { collect(body, &spool, &watch, bounds).await };
            (RequestBody::Later(announced), Some(LaterBody::new(taking)))
        } else {
            let body = collect(body, &self.spool, watch, bounds).await;
            (RequestBody::Here(body.map_err(Trouble::Body)?), None)
        };
        let request = message::Request {
            method: parts.method,
            version: parts.version,
            target: target.raw.into(),
            path: target.path,
            query: target.query,
            headers: parts.headers,
            client,
            body,
            upgrade: upgrade.filter(|_| exchange.may_upgrade()),
        };
        Ok((request, later, exchange))
    }
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
        while let Ok(count @ 1..) = stream.read(&mut room).await
            && left > count
        {
            left -= count;
        }
    };
    // Whoever sends on for longer does not read.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

/// What the client is not told.
fn log(trouble: Trouble, method: &http::Method) {
    match trouble {
        Trouble::BadAnswer(why) => {
            tracing::error!(%method, why, "invalid answer from the application")
        }
        Trouble::Exchange(failure @ exchange::Failure::WorkerGone) => {
            tracing::warn!(%method, %failure, "request failed");
        }
        trouble => tracing::debug!(%method, status = trouble.status().as_u16(), "request refused"),
    }
}
