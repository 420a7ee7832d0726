//! One fetch whose response is passed on as it comes.
//!
//! Policy, redirects and headers are those of any fetch. Its timeout runs to the head; from then on it is
//! the longest time that the origin may say nothing. How slowly the client reads is not counted: the
//! origin waits for her. There is no bound on the whole, since nothing of it stays here but the capture.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use super::failure::Fault;
use super::fetch::{first_hop, respond};
use super::headers;
use super::metrics::{FetchOutcome, counted_failure};
use super::progress::Progress;
use super::redirect::Hop;
use super::run::Shared;
use super::settings::Settings;
use crate::plan::{Captured, Ended, Failure, FailureKind, Fetch, Phase};
use crate::spans::FetchEnd;
use crate::spool::{self, RelayReader, RelayWriter};

/// An origin that ends its response so soon after a client left, who had all of it, has not been cut short.
const LAST_WORD: Duration = Duration::from_millis(100);

/// A response whose head is there.
#[derive(Debug)]
pub struct Relayed {
    pub status: StatusCode,
    /// End-to-end ones.
    pub headers: HeaderMap,
    pub body: RelayReader,
    /// Once the body is whole and taken, or one of the two ends has gone.
    pub end: oneshot::Receiver<Captured>,
}

/// A relay on its way to the outbound thread.
pub(super) struct Relaying {
    pub(super) fetch: Fetch,
    pub(super) capture: usize,
    pub(super) deadline: Instant,
    pub(super) settings: Arc<Settings>,
    pub(super) reply: oneshot::Sender<Result<Relayed, Failure>>,
}

impl Relaying {
    pub(super) async fn run(self, shared: Shared) {
        let Self {
            fetch,
            capture,
            deadline,
            settings,
            mut reply,
        } = self;
        if reply.is_closed() {
            return;
        }
        let started = Instant::now();
        let patience = fetch.timeout.unwrap_or(settings.timeout);
        let until = started
            .checked_add(patience)
            .map_or(deadline, |until| until.min(deadline));
        let hop = first_hop(&fetch, &settings);
        let host = hop.as_ref().ok().and_then(|hop| hop.url.host_str());
        let label = settings.label(host);
        shared.metrics.fetch_begun(label);
        let count = |outcome, end, took: Duration| {
            let seconds = took.as_secs_f64();
            shared.metrics.fetch_ended(label, outcome, seconds);
            if let Some(span) = &fetch.span {
                span.ended(&fetch, started.into_std(), end);
            }
        };

        let responded = tokio::select! {
            biased;
            () = reply.closed() => {
                return count(FetchOutcome::Aborted, FetchEnd::Aborted, started.elapsed());
            }
            responded = head(&fetch, hop, &settings, until) => responded,
        };
        // Counted as the origin's: what follows lasts as long as there is something to tell, and as long as
        // the client takes to read it.
        let took = started.elapsed();
        let mut response = match responded {
            Ok(response) => response,
            Err(failure) => {
                let end = FetchEnd::Failed(failure.kind.as_str());
                count(counted_failure(failure.kind), end, took);
                // Nobody may wait any more.
                let _ = reply.send(Err(failure));
                return;
            }
        };
        let status = response.status();
        let headers = headers::incoming(std::mem::take(response.headers_mut()));
        let (writer, body) = spool::relay(&shared.memory);
        let (ended, end) = oneshot::channel();
        let relayed = Relayed {
            status,
            headers,
            body,
            end,
        };
        if reply.send(Ok(relayed)).is_err() {
            return count(FetchOutcome::Aborted, FetchEnd::Aborted, took);
        }
        let mut captured = Capture::new(capture);
        let passed = pass(response, writer, &mut captured, patience).await;
        let whole = FetchEnd::Response {
            status: status.as_u16(),
            redirects: 0,
        };
        let (outcome, end) = match &passed {
            Ok(()) if status.as_u16() < 400 => (FetchOutcome::Ok, whole),
            Ok(()) => (FetchOutcome::HttpError, whole),
            Err(Cut::Client) => (FetchOutcome::Aborted, FetchEnd::Aborted),
            Err(Cut::Origin(fault)) => {
                tracing::debug!(message = %fault.message, "relay cut by its origin");
                let end = FetchEnd::Failed(fault.kind.as_str());
                (counted_failure(fault.kind), end)
            }
        };
        count(outcome, end, took);
        // The request may be gone with the gateway.
        let _ = ended.send(Captured {
            status: Some(status),
            body: captured.bytes.into(),
            truncated: captured.truncated,
            ended: match passed {
                Ok(()) => Ended::Complete,
                Err(Cut::Client) => Ended::ClientGone,
                Err(Cut::Origin(_)) => Ended::OriginFailed,
            },
        });
    }
}

async fn head(
    fetch: &Fetch,
    hop: Result<Box<Hop>, Fault>,
    settings: &Settings,
    until: Instant,
) -> Result<reqwest::Response, Failure> {
    let started = Instant::now();
    let progress = Progress::new();
    let mut redirected = None;
    let responded = match hop {
        Err(fault) => Err(fault),
        Ok(_) if until <= started => Err(Fault::new(
            FailureKind::Timeout,
            Phase::Url,
            "no time to begin",
        )),
        Ok(hop) => {
            let response = respond(hop, fetch.follow, settings, &progress, &mut redirected);
            timeout_at(until, progress.watch(response))
                .await
                .unwrap_or_else(|_| {
                    let message = format!("no response in {:?}", until.duration_since(started));
                    Err(Fault::new(FailureKind::Timeout, progress.phase(), message))
                })
        }
    };
    match responded {
        Ok((response, _)) if !response.status().is_informational() => return Ok(response),
        Ok(_) => Err(Fault::new(
            FailureKind::Failed,
            Phase::Head,
            "the origin changed the protocol",
        )),
        Err(fault) => Err(fault),
    }
    .map_err(|fault| {
        let url = redirected.as_ref().map_or(&*fetch.url, |url| url.as_str());
        fault.failure(url, started.elapsed())
    })
}

/// Why a body did not get to its end.
enum Cut {
    Client,
    Origin(Fault),
}

async fn pass(
    mut response: reqwest::Response,
    mut writer: RelayWriter,
    captured: &mut Capture,
    patience: Duration,
) -> Result<(), Cut> {
    loop {
        let chunk = tokio::select! {
            biased;
            () = writer.gone() => break,
            chunk = timeout(patience, response.chunk()) => chunk,
        };
        let chunk = match chunk {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => {
                // Its connection is free for others while the client takes the rest.
                drop(response);
                return writer.finish().await.map_err(|_| Cut::Client);
            }
            Ok(Err(error)) => return Err(Cut::Origin(Fault::of(&error, Phase::Body))),
            Err(_) => {
                let message = format!("nothing came in {patience:?}");
                let fault = Fault::new(FailureKind::Timeout, Phase::Body, message);
                return Err(Cut::Origin(fault));
            }
        };
        captured.add(&chunk);
        writer.push(chunk).await.map_err(|_| Cut::Client)?;
    }
    // Some clients know from what they read that it was the last part, and do not wait for the end.
    let end = timeout(LAST_WORD, response.chunk());
    if writer.is_taken() && matches!(end.await, Ok(Ok(None))) {
        Ok(())
    } else {
        Err(Cut::Client)
    }
}

/// The beginning of a body.
struct Capture {
    bytes: Vec<u8>,
    most: usize,
    truncated: bool,
}

impl Capture {
    fn new(most: usize) -> Self {
        Self {
            bytes: Vec::new(),
            most,
            truncated: false,
        }
    }

    fn add(&mut self, chunk: &Bytes) {
        let room = self.most - self.bytes.len();
        let taken = &chunk[..chunk.len().min(room)];
        self.bytes.extend_from_slice(taken);
        self.truncated |= taken.len() < chunk.len();
    }
}
