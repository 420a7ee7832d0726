//! The paths of the two listeners and what they answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;

use super::status::{Board, History, Readiness, SlowRequest, Status};
use super::{host, page, stacks};
use crate::metrics::{self, Metrics};
use crate::recent::Recent;

/// What the pages are made from.
#[derive(Clone)]
pub struct Sources {
    pub board: Arc<dyn Board>,
    pub metrics: Metrics,
    pub recent: Recent,
    pub started: Instant,
}

/// `/api/status`, and what the page for people is made of. What is in front is known here, so the board cannot
/// contradict `/readyz`.
#[derive(Serialize)]
pub struct Overview {
    pub version: &'static str,
    pub uptime_seconds: f64,
    pub ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_ready_because: Option<String>,
    #[serde(flatten)]
    pub status: Status,
    pub slow_requests: Vec<SlowRequest>,
    pub history: History,
}

impl Sources {
    pub fn overview(&self) -> Overview {
        let not_ready_because = match self.board.readiness() {
            Readiness::Ready => None,
            Readiness::NotReady(why) => Some(why),
        };
        let now = Instant::now();
        let slowest = self.recent.slowest(now).into_iter();
        Overview {
            version: env!("CARGO_PKG_VERSION"),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            ready: not_ready_because.is_none(),
            not_ready_because,
            status: self.board.status(),
            slow_requests: slowest.map(|slow| SlowRequest::of(slow, now)).collect(),
            history: History::of(&self.recent),
        }
    }
}

/// For people and tools of this machine: everything, under the listener's own host.
pub fn admin(sources: Sources, own: SocketAddr) -> Router {
    let routes = health()
        .route("/api/status", get(status))
        .merge(page::routes())
        .merge(stacks::routes())
        .with_state(sources);
    routes
        .layer(middleware::from_fn_with_state(own, only_own_host))
        .layer(middleware::from_fn(never_stored))
}

/// For scrapers and kubelets, which use whatever name or address of the pod they have.
/// Nothing on here is worth an attack by name.
pub fn probes(sources: Sources) -> Router {
    health()
        .with_state(sources)
        .layer(middleware::from_fn(never_stored))
}

fn health() -> Router<Sources> {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get("alive\n"))
        .route("/readyz", get(ready))
        .fallback((StatusCode::NOT_FOUND, "no such page\n"))
}

async fn metrics(State(sources): State<Sources>) -> impl IntoResponse {
    let text = sources.metrics.render();
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text)
}

async fn ready(State(sources): State<Sources>) -> impl IntoResponse {
    match sources.board.readiness() {
        Readiness::Ready => (StatusCode::OK, "ready\n".to_owned()),
        Readiness::NotReady(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {why}\n"),
        ),
    }
}

async fn status(State(sources): State<Sources>) -> impl IntoResponse {
    Json(sources.overview())
}

async fn only_own_host(State(own): State<SocketAddr>, request: Request, next: Next) -> Response {
    let checked = host::check(
        own.ip(),
        request.version(),
        request.uri(),
        request.headers(),
    );
    let Err(refusal) = checked else {
        return next.run(request).await;
    };
    let text = match refusal {
        StatusCode::BAD_REQUEST => "one Host header is needed\n".to_owned(),
        _ => format!(
            "This is layby's admin listener on {own}. It answers to localhost and to its IP \
             addresses, not to the host that this request names, so that web pages cannot \
             reach it under a name of theirs. Scrapers and kubelets use the `probes` \
             listener, which takes any name.\n"
        ),
    };
    (refusal, text).into_response()
}

/// Every page is of one moment, and none is a document to be guessed at.
async fn never_stored(request: Request, next: Next) -> Response {
    const NOSNIFF: (HeaderName, HeaderValue) = (
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    const NO_STORE: (HeaderName, HeaderValue) =
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Nor is any to be shown inside a page of somebody else's.
    const OWN: (HeaderName, HeaderValue) = (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    );
    let mut response = next.run(request).await;
    response.headers_mut().extend([NOSNIFF, NO_STORE, OWN]);
    response
}
