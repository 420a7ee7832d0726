//! What the thread of a slot does, as a page and as JSON: who may ask, and how long the answer is waited for.
//!
//! Stacks tell how the application is built, and a worker has to do something for them. So only this machine
//! may ask, not a page of somebody else's in a browser on it, and few at a time; what is told are files, lines
//! and functions. Asking changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use axum::extract::{Extension, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tokio::time::timeout;

use super::Peer;
use super::page::{Markup, document};
use super::pages::Sources;
use crate::workers::link::{Call, NoStacks, Stacks};

/// A worker that can answer does so in milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why there are no stacks.
enum Refused {
    /// Not from this machine.
    Far(IpAddr),
    /// A page of another origin has the browser ask.
    CrossSite,
    No(NoStacks),
}

pub fn routes() -> Router<Sources> {
    Router::new()
        .route("/slots/{slot}/stack", get(page))
        .route("/api/slots/{slot}/stack", get(api))
}

async fn api(
    state: State<Sources>,
    peer: Extension<Peer>,
    Path(slot): Path<u16>,
    headers: HeaderMap,
) -> Response {
    match ask(&state, peer.0, slot, &headers).await {
        Ok(stacks) => Json(stacks).into_response(),
        Err(refused) => {
            let error = json!({"error": refused.to_string()});
            (refused.status(), Json(error)).into_response()
        }
    }
}

async fn page(
    state: State<Sources>,
    peer: Extension<Peer>,
    Path(slot): Path<u16>,
    headers: HeaderMap,
) -> Response {
    let title = format!("Stack of slot {slot}");
    let mut html = Markup::default();
    html.raw("<main class=\"told\" id=\"told\"><h1 id=\"stack-title\">")
        .text(&title)
        .raw("</h1>");
    let status = match ask(&state, peer.0, slot, &headers).await {
        Ok(stacks) => {
            draw(&mut html, &stacks);
            StatusCode::OK
        }
        Err(refused) => {
            html.raw("<p>").text(&refused).raw(".</p>");
            refused.status()
        }
    };
    html.raw(
        "</main><footer><nav aria-label=\"Other pages\"><a href=\"/\">All slots</a></nav></footer>",
    );
    document(status, &title, html)
}

async fn ask(
    sources: &Sources,
    Peer(peer): Peer,
    slot: u16,
    headers: &HeaderMap,
) -> Result<Stacks, Refused> {
    if !peer.to_canonical().is_loopback() {
        return Err(Refused::Far(peer));
    }
    let site = headers.get("sec-fetch-site");
    if site.is_some_and(|site| site != "same-origin" && site != "none") {
        return Err(Refused::CrossSite);
    }
    let answer = sources.board.stacks(slot).map_err(Refused::No)?;
    let answered = timeout(PATIENCE, answer).await;
    answered.ok().flatten().ok_or(Refused::No(NoStacks::Silent))
}

fn draw(html: &mut Markup, stacks: &Stacks) {
    match &stacks.thread {
        Some(stack) => {
            html.raw("<p>What its thread does, the innermost call first:</p>");
            calls(html, stack);
        }
        None => {
            html.raw("<p>Its thread has ended.</p>");
        }
    }
    for parked in &stacks.parked {
        html.raw("<h2>Parked on it: ")
            .text(parked.requests)
            .raw("</h2>");
        calls(html, &parked.stack);
    }
}

fn calls(html: &mut Markup, stack: &[Call]) {
    html.raw("<ol class=\"calls\">");
    for Call {
        file,
        line,
        function,
    } in stack.iter().rev()
    {
        // What the team has not written itself stands back.
        let foreign = ["/site-packages/", "/lib/python", "/src/layby/"];
        let foreign = foreign.iter().any(|part| file.contains(part)) || file.starts_with('<');
        html.raw(if foreign {
            "<li class=\"foreign\"><code>"
        } else {
            "<li><code>"
        });
        html.text(function)
            .raw("</code> <span class=\"path\">")
            .text(file);
        html.raw(":").text(line).raw("</span></li>");
    }
    html.raw("</ol>");
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Far(_) | Self::CrossSite => StatusCode::FORBIDDEN,
            Self::No(NoStacks::NoSlot) => StatusCode::NOT_FOUND,
            Self::No(NoStacks::Idle | NoStacks::Lost) => StatusCode::CONFLICT,
            Self::No(NoStacks::Untold | NoStacks::Http) => StatusCode::NOT_IMPLEMENTED,
            Self::No(NoStacks::Silent) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Far(peer) => write!(
                f,
                "stacks are told to this machine only, and not to {peer}: ask on the machine itself, or through \
                 a tunnel to it (`ssh -L`, `kubectl port-forward`, `docker exec`)"
            ),
            Self::CrossSite => f.write_str("another site's page may not ask for stacks"),
            Self::No(no) => no.fmt(f),
        }
    }
}
