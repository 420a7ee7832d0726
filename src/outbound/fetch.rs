//! One fetch, from the URL as the worker gave it to the last byte or a failure.
//!
//! Nothing is sent twice: what failed has failed. Time and size are bounded over all hops
//! together.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH};
use http::{HeaderValue, Method};
use reqwest::Request;
use tokio::time::{Instant, timeout_at};
use url::{Host, Url};

use super::failure::Fault;
use super::headers;
use super::policy::{Policy, Refusal};
use super::progress::Progress;
use super::redirect::{self, Hop, is_redirect};
use super::settings::Settings;
use crate::plan::{FailureKind, Fetch, Outcome, Phase, Response};

/// Room for a body of a known length that is made before its first byte is in.
const TRUSTED_LENGTH: u64 = 64 << 10;

/// What one plan has of the bytes of responses on their way into results, over all plans of the process.
/// What would come on top of the most fails as too large; without a bound the kernel would pick a victim.
/// Dropping it gives it back.
pub(super) struct Share<'t> {
    held: &'t AtomicU64,
    most: u64,
    mine: AtomicU64,
}

/// The first request of a fetch, with a vetted URL.
pub(super) fn first_hop(fetch: &Fetch, settings: &Settings) -> Result<Box<Hop>, Fault> {
    let mut url = Url::parse(&fetch.url)
        .map_err(|error| Fault::new(FailureKind::Failed, Phase::Url, error))?;
    vet(&mut url, &settings.policy, Phase::Url)?;
    let mut headers = headers::outgoing(&fetch.headers, &url)?;
    if !url.username().is_empty() || url.password().is_some() {
        // As browsers and Python's clients do: basic authentication, unless the plan brings its
        // own. The client knows how to write it.
        let request = settings.client.get(url.clone()).build();
        let request = request.map_err(|error| Fault::of(&error, Phase::Url))?;
        if let Some(basic) = request.headers().get(AUTHORIZATION) {
            headers
                .entry(AUTHORIZATION)
                .or_insert_with(|| basic.clone());
        }
        // Neither can fail on a URL that has a host.
        let _ = url.set_username("");
        let _ = url.set_password(None);
    }
    Ok(Box::new(Hop {
        method: fetch.method.clone(),
        url,
        headers,
        body: fetch.body.clone(),
    }))
}

/// Runs a fetch until `until`. Dropping the future closes its connection, or resets its
/// HTTP/2 stream.
// Hops are boxed, here and below, to keep this future small: it is moved into its plan, one
// per fetch, and past a kilobyte the allocator takes its slow path.
pub(super) async fn fetch(
    fetch: &Fetch,
    hop: Box<Hop>,
    settings: &Settings,
    share: &Share<'_>,
    until: Instant,
) -> Outcome {
    let started = Instant::now();
    if until <= started {
        // A timeout polls what it times first, and that might send a whole request.
        let fault = Fault::new(FailureKind::Timeout, Phase::Url, "no time to begin");
        return fault.at(&fetch.url, Duration::ZERO);
    }
    let progress = Progress::new();
    let mut redirected = None;
    let exchange = exchange(
        hop,
        fetch.follow,
        settings,
        share,
        &progress,
        &mut redirected,
    );
    let ended = timeout_at(until, progress.watch(exchange))
        .await
        .unwrap_or_else(|_| {
            let message = format!("no whole response in {:?}", until.duration_since(started));
            Err(Fault::new(FailureKind::Timeout, progress.phase(), message))
        });
    let elapsed = started.elapsed();
    match ended {
        Ok(response) => Outcome::Response(Response {
            elapsed,
            ..response
        }),
        Err(fault) => {
            let url = redirected.as_ref().map_or(&*fetch.url, |url| url.as_str());
            fault.at(url, elapsed)
        }
    }
}

async fn exchange(
    hop: Box<Hop>,
    follow: bool,
    settings: &Settings,
    share: &Share<'_>,
    progress: &Progress,
    redirected: &mut Option<Box<Url>>,
) -> Result<Response, Fault> {
    let (mut response, redirects) = respond(hop, follow, settings, progress, redirected).await?;
    whole(&mut response, redirects, settings.max_response, share).await
}

/// The last response and how many redirects led to it; its body is still to come.
pub(super) async fn respond(
    mut hop: Box<Hop>,
    follow: bool,
    settings: &Settings,
    progress: &Progress,
    redirected: &mut Option<Box<Url>>,
) -> Result<(reqwest::Response, u32), Fault> {
    let mut redirects = 0;
    loop {
        progress.reached(Phase::Head);
        let kept = follow.then(|| hop.clone());
        let pass = settings.gate.enter(&hop.url).await;
        let sent = settings.client.execute(request(*hop));
        let response = progress
            .with_pass(pass, sent)
            .await
            .map_err(|error| Fault::of(&error, progress.phase()))?;

        let here = kept.filter(|_| is_redirect(response.status(), response.headers()));
        let Some(here) = here else {
            progress.reached(Phase::Body);
            return Ok((response, redirects));
        };
        if redirects == redirect::AT_MOST {
            let message = format!("more than {} redirects", redirect::AT_MOST);
            return Err(Fault::new(FailureKind::Failed, Phase::Redirect, message));
        }
        redirects += 1;
        *hop = here.next(response.status(), response.headers())?;
        *redirected = Some(Box::new(hop.url.clone()));
        vet(&mut hop.url, &settings.policy, Phase::Redirect)?;
    }
}

fn request(mut hop: Hop) -> Request {
    let has_content = hop.body.as_ref().is_some_and(|body| !body.is_empty());
    if !has_content && matches!(hop.method, Method::POST | Method::PUT | Method::PATCH) {
        // The client leaves it out, and some origins then ask for it with a 411.
        let nothing = HeaderValue::from_static("0");
        hop.headers.insert(CONTENT_LENGTH, nothing);
    }
    let mut request = Request::new(hop.method, hop.url);
    *request.headers_mut() = hop.headers;
    *request.body_mut() = hop.body.map(Into::into);
    request
}

/// Reads the body to its end.
async fn whole(
    response: &mut reqwest::Response,
    redirects: u32,
    max: u64,
    share: &Share<'_>,
) -> Result<Response, Fault> {
    let too_large = |what: &str| Err(Fault::new(FailureKind::TooLarge, Phase::Body, what));
    let announced = response.content_length().unwrap_or(0);
    if announced > max {
        return too_large("the response announces more than [outbound] max_response");
    }
    // Copied out of the connection's buffer, which would otherwise stay as long as the
    // request waits for a slot, and is much larger than most bodies.
    let mut body = Vec::with_capacity(announced.min(TRUSTED_LENGTH) as usize);
    while let Some(chunk) = response
        .chunk()
        .await
        .map_err(|error| Fault::of(&error, Phase::Body))?
    {
        if (body.len() + chunk.len()) as u64 > max {
            return too_large("the response is more than [outbound] max_response");
        }
        if !share.take(chunk.len() as u64) {
            return too_large("the gateway holds as much of responses as it can");
        }
        body.extend_from_slice(&chunk);
    }
    body.shrink_to_fit();
    Ok(Response {
        status: response.status(),
        url: response.url().as_str().to_owned(),
        headers: headers::incoming(std::mem::take(response.headers_mut())),
        body: Bytes::from(body),
        elapsed: Duration::ZERO,
        redirects,
    })
}

/// Makes a URL that may be fetched, or says why not. Only the name lookup is still to come.
fn vet(url: &mut Url, policy: &Policy, phase: Phase) -> Result<(), Fault> {
    let invalid = |what: &str| Fault::new(FailureKind::Failed, phase, what);
    if !matches!(url.scheme(), "http" | "https") {
        let message = "only http and https are fetched";
        return Err(Fault::new(FailureKind::Refused, phase, message));
    }
    if let Some(Host::Domain(name)) = url.host()
        && let Some(name) = name.strip_suffix('.')
    {
        // Certificates and virtual hosts do not know the dot, nor does the policy's list.
        let name = name.to_owned();
        url.set_host(Some(&name))
            .map_err(|error| invalid(&error.to_string()))?;
    }
    match url.host() {
        None => Err(invalid("the URL has no host")),
        Some(Host::Domain(name)) if name.is_empty() || name.ends_with('.') => {
            Err(invalid("the URL has an invalid host"))
        }
        Some(host) => policy
            .check_host(&host)
            .map_err(|refusal: Refusal| Fault::new(FailureKind::Refused, phase, refusal)),
    }
}

impl<'t> Share<'t> {
    pub(super) fn of(held: &'t AtomicU64, most: u64) -> Self {
        let mine = AtomicU64::new(0);
        Self { held, most, mine }
    }

    fn take(&self, bytes: u64) -> bool {
        self.mine.fetch_add(bytes, Relaxed);
        self.held.fetch_add(bytes, Relaxed) + bytes <= self.most
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.held.fetch_sub(*self.mine.get_mut(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_share_a_bound_on_bytes_and_give_back_their_part() {
        let held = AtomicU64::new(0);
        let other = Share::of(&held, 1000);
        assert!(other.take(990));
        let share = Share::of(&held, 1000);
        assert!(share.take(10));
        assert!(!share.take(1));
        drop(share);
        assert!(other.take(10));
        drop(other);
        assert_eq!(held.into_inner(), 0);
    }
}
