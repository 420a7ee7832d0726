//! Downstream: the clients' side. Listeners, HTTP, bodies, header hygiene.
//!
//! A request leaves this room vetted, with its whole body in hand; what comes back is made fit for the
//! wire. Slots and workers are not known here.

mod answers;
pub(crate) mod forwarded;
pub(crate) mod head;
mod listen;
mod routes;
mod watch;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;

use self::answers::{Body, Trouble};
use self::forwarded::Peer;
use self::listen::Stream;
use self::watch::{Finish, STALL, Watch, Watched};
use crate::config::Trusted;
use crate::exchange::{self, Exchange};
use crate::message;
use crate::metrics::Metrics;
use crate::spool::{self, Spool, Upload};
use crate::sweeper::Sweeper;

pub use listen::{Listener, Listeners};
pub use routes::Routes;

/// Largest request head.
const MAX_HEAD: usize = 64 * 1024;

/// What has reached this machine when a drain begins, connections and requests, is taken in within
/// this time. What comes later meets a closed door.
const LAST_ARRIVALS: Duration = Duration::from_millis(50);

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
                    Ok(()) => return,
                    Err(error) => {
                        tracing::debug!(%error, "connection ended");
                        // The only such error is that of an answer's body.
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
    ) -> Result<Response<Body>, std::convert::Infallible> {
        let settings = self.settings();
        let method = request.method().clone();
        let mut finish = Finish::new(self.metrics.clone(), Arc::clone(&watch), method.clone());
        let json = answers::wants_json(request.headers());
        let answered = async {
            let request = self.receive(request, peer, &watch, &settings).await?;
            watch.in_hand();
            let answer = self
                .exchange
                .run(request, settings.exchange)
                .await
                .map_err(Trouble::Exchange)?;
            answers::passed_on(answer, &method)
        };
        let mut response = match answered.await {
            Ok(response) => response,
            Err(trouble) => {
                log(trouble, &method);
                let retry_after = settings.retry_after.as_secs().max(1);
                answers::own(trouble, json, retry_after)
            }
        };
        if self.drain.is_cancelled() {
            let headers = response.headers_mut();
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        finish.answered(response.status());
        Ok(response.map(|body| body.watched(finish)))
    }

    /// Vets the head and takes in the whole body.
    async fn receive(
        &self,
        request: Request<Incoming>,
        peer: Peer,
        watch: &Watch,
        settings: &Settings,
    ) -> Result<message::Request, Trouble> {
        let (mut parts, body) = request.into_parts();
        let target = head::vet(&mut parts).map_err(Trouble::Refused)?;
        let client = forwarded::client(peer, &settings.trusted, &mut parts.headers);
        let body = self.collect(body, watch, settings.max_body).await?;
        Ok(message::Request {
            method: parts.method,
            version: parts.version,
            target: target.raw.into(),
            path: target.path,
            query: target.query,
            headers: parts.headers,
            client,
            body,
        })
    }

    async fn collect(
        &self,
        mut body: Incoming,
        watch: &Watch,
        max: u64,
    ) -> Result<spool::Body, Trouble> {
        if http_body::Body::size_hint(&body).lower() > max {
            return Err(Trouble::BodyTooLarge);
        }
        if http_body::Body::is_end_stream(&body) {
            return Ok(spool::Body::Memory(bytes::Bytes::new()));
        }
        let mut upload = Upload::new(&self.spool);
        loop {
            watch.within(2 * STALL);
            let frame = match tokio::time::timeout(STALL, body.frame()).await {
                Err(_) => return Err(Trouble::BodyTimeout),
                Ok(None) => break,
                Ok(Some(Err(error))) => {
                    tracing::debug!(%error, "request body broken");
                    return Err(Trouble::BodyBroken);
                }
                Ok(Some(Ok(frame))) => frame,
            };
            // Trailers are dropped: WSGI has no place for them, and they must not become headers.
            let Ok(chunk) = frame.into_data() else {
                continue;
            };
            if upload.len() + chunk.len() as u64 > max {
                return Err(Trouble::BodyTooLarge);
            }
            upload.push(chunk).await.map_err(spool_full)?;
        }
        upload.finish().await.map_err(spool_full)
    }
}

fn spool_full(error: std::io::Error) -> Trouble {
    tracing::error!(%error, "the spool folder takes no more");
    Trouble::SpoolFull
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
