//! Sending spans: a thread that takes them in batches, and what it does when the collector does not.
//!
//! A collector that is away for a moment is asked again; what it refuses, or has not taken after some
//! tries, is dropped and counted. The log hears of it once a minute at most. When the gateway ends, what
//! waits still has a short time to go out.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Body as _;
use reqwest::Client;
use rustls::crypto::ring;
use tokio::runtime;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use url::Url;

use super::otlp::Resource;
use super::queue::Queue;
use crate::config::{OtlpProtocol, SecretHeader, Tracing};
use crate::metrics::{Metrics, SpanOutcome};

/// How old a span gets at most before it is on its way.
const AGE: Duration = Duration::from_secs(2);

/// A collector takes a batch in milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two tries; each is twice as long as the one before.
const PAUSE: Duration = Duration::from_secs(1);
const TRIES: u32 = 3;

/// From the end of the gateway on.
const LAST: Duration = Duration::from_secs(3);

/// A thread that does not end in time is left alone.
const GRACE: Duration = Duration::from_millis(200);

/// Between two lines in the log.
const SILENCE: Duration = Duration::from_secs(60);

const SERVICE: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// The thread; when this is dropped, it ends without sending what waits.
pub struct Exporter {
    stop: CancellationToken,
    over: oneshot::Receiver<()>,
}

/// Why no spans can be sent.
#[derive(Debug)]
pub enum StartError {
    Thread(io::Error),
    Client(reqwest::Error),
}

/// Why a batch was not taken.
#[derive(Debug)]
enum Failure {
    /// Nobody is there, or not able to now.
    Away(String),
    /// It will not be taken a second time either.
    Refused(String),
}

struct Sending {
    client: Client,
    url: Url,
    protocol: OtlpProtocol,
    headers: HeaderMap,
    resource: Resource,
    queue: Arc<Queue>,
    metrics: Metrics,
    /// When the log was last told of a failure, if that has not passed since.
    failing: Option<Instant>,
}

impl Exporter {
    pub(super) fn start(
        endpoint: &Url,
        config: &Tracing,
        queue: Arc<Queue>,
        metrics: Metrics,
    ) -> Result<Self, StartError> {
        let sending = Sending {
            client: client(config.protocol).map_err(StartError::Client)?,
            url: address(endpoint, config.protocol),
            protocol: config.protocol,
            headers: headers(config),
            resource: Resource::new(&config.service_name, &config.resource_attributes),
            queue,
            metrics,
            failing: None,
        };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(StartError::Thread)?;
        let stop = CancellationToken::new();
        let (ended, over) = oneshot::channel();
        let stopped = stop.clone();
        thread::Builder::new()
            .name("layby-spans".to_owned())
            .spawn(move || {
                runtime.block_on(sending.run(stopped));
                let _ = ended.send(());
                // A name that is looked up may be stuck in the system for long.
                runtime.shutdown_background();
            })
            .map_err(StartError::Thread)?;
        Ok(Self { stop, over })
    }

    /// Resolves when everything has been sent that can be, soon in any case.
    pub async fn finish(mut self) {
        self.stop.cancel();
        let _ = timeout(LAST + GRACE, &mut self.over).await;
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn client(protocol: OtlpProtocol) -> reqwest::Result<Client> {
    // Someone else may have installed the process's provider; any will do.
    let _ = ring::default_provider().install_default();
    let settings = || {
        let builder = Client::builder()
            .user_agent(concat!("layby/", env!("CARGO_PKG_VERSION")))
            // The collector is what the configuration says, by the shortest way.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(PATIENCE);
        match protocol {
            OtlpProtocol::Http => builder,
            OtlpProtocol::Grpc => builder.http2_prior_knowledge(),
        }
    };
    // Without the system's certificates, plain http still works.
    settings()
        .build()
        .or_else(|_| settings().tls_certs_only([]).build())
}

fn address(endpoint: &Url, protocol: OtlpProtocol) -> Url {
    let mut url = endpoint.clone();
    if protocol == OtlpProtocol::Grpc {
        url.set_path(SERVICE);
    }
    url
}

fn headers(config: &Tracing) -> HeaderMap {
    let given = config.headers.iter();
    let mut headers: HeaderMap = given
        .map(|SecretHeader(name, value)| (name.clone(), value.clone()))
        .collect();
    let media = match config.protocol {
        OtlpProtocol::Http => "application/x-protobuf",
        OtlpProtocol::Grpc => "application/grpc",
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    if config.protocol == OtlpProtocol::Grpc {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    headers
}

impl Sending {
    async fn run(mut self, stop: CancellationToken) {
        loop {
            let stopped = tokio::select! {
                () = stop.cancelled() => true,
                () = self.queue.full() => false,
                () = sleep(AGE) => false,
            };
            if stopped {
                break;
            }
            self.empty(&stop).await;
        }
        let _ = timeout(LAST, self.empty(&stop)).await;
        // They have had their time.
        loop {
            match self.queue.take().len() {
                0 => return,
                lost => self.metrics.spans(SpanOutcome::Unreachable, lost),
            }
        }
    }

    /// Sends everything that waits.
    async fn empty(&mut self, stop: &CancellationToken) {
        loop {
            let spans = self.queue.take();
            if spans.is_empty() {
                return;
            }
            // Counted also when this is dropped in the middle.
            let mut count = Count {
                metrics: self.metrics.clone(),
                spans: spans.len(),
                outcome: SpanOutcome::Unreachable,
            };
            let message = self.message(&self.resource.request(&spans));
            drop(spans);
            match self.deliver(message, stop).await {
                Ok(()) => {
                    count.outcome = SpanOutcome::Sent;
                    if self.failing.take().is_some() {
                        tracing::info!(collector = %self.url, "spans are taken again");
                    }
                }
                Err(failure) => {
                    if let Failure::Refused(_) = failure {
                        count.outcome = SpanOutcome::Refused;
                    }
                    self.log(&failure);
                }
            }
        }
    }

    /// As often as it makes sense.
    async fn deliver(&self, message: Vec<u8>, stop: &CancellationToken) -> Result<(), Failure> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            match self.send(message.clone()).await {
                Err(Failure::Away(_)) if !stop.is_cancelled() => {}
                ended => return ended,
            }
            tokio::select! {
                () = sleep(pause) => pause *= 2,
                () = stop.cancelled() => {}
            }
        }
        self.send(message).await
    }

    async fn send(&self, message: Vec<u8>) -> Result<(), Failure> {
        let request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .body(message);
        let answer = request.send().await.map_err(|error| away(&error))?;
        let status = answer.status();
        match status {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => return Err(Failure::Away(status.to_string())),
            _ if status.is_success() => {}
            _ => return Err(Failure::Refused(status.to_string())),
        }
        match self.protocol {
            // Read to its end, so that the connection is kept.
            OtlpProtocol::Http => answer.bytes().await.map(drop).map_err(|error| away(&error)),
            OtlpProtocol::Grpc => grpc_status(answer).await,
        }
    }

    fn message(&self, request: &[u8]) -> Vec<u8> {
        match self.protocol {
            OtlpProtocol::Http => request.to_vec(),
            OtlpProtocol::Grpc => {
                let length = u32::try_from(request.len()).expect("a batch is some hundred KiB");
                let mut message = Vec::with_capacity(5 + request.len());
                // Not compressed.
                message.push(0);
                message.extend_from_slice(&length.to_be_bytes());
                message.extend_from_slice(request);
                message
            }
        }
    }

    fn log(&mut self, failure: &Failure) {
        if self.failing.is_some_and(|told| told.elapsed() < SILENCE) {
            return;
        }
        self.failing = Some(Instant::now());
        tracing::warn!(
            collector = %self.url, why = %failure,
            "spans are dropped; layby_spans_total counts them"
        );
    }
}

/// What a gRPC server says at the end, or at once when it has nothing else to say.
async fn grpc_status(answer: reqwest::Response) -> Result<(), Failure> {
    let (head, body) = http::Response::from(answer).into_parts();
    let mut body = std::pin::pin!(body);
    let mut trailers = head.headers;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        if let Ok(last) = frame.map_err(|error| away(&error))?.into_trailers() {
            trailers = last;
        }
    }
    let value = |name| {
        trailers
            .get(name)
            .and_then(|value: &HeaderValue| value.to_str().ok())
    };
    match value("grpc-status") {
        Some("0") => Ok(()),
        None => Err(Failure::Refused("it does not speak gRPC".to_owned())),
        // Those that OTLP has a client ask again after: cancelled, deadline, exhausted, aborted, out of
        // range, unavailable, data loss.
        Some(status) => {
            let why = format!(
                "gRPC status {status}: {}",
                value("grpc-message").unwrap_or_default()
            );
            match status {
                "1" | "4" | "8" | "10" | "11" | "14" | "15" => Err(Failure::Away(why)),
                _ => Err(Failure::Refused(why)),
            }
        }
    }
}

/// With the cause, which says what is the matter; without the address, which the log has anyway.
fn away(error: &reqwest::Error) -> Failure {
    let mut innermost: &dyn Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    Failure::Away(innermost.to_string())
}

/// What becomes of a batch, counted in any case.
struct Count {
    metrics: Metrics,
    spans: usize,
    outcome: SpanOutcome,
}

impl Drop for Count {
    fn drop(&mut self) {
        self.metrics.spans(self.outcome, self.spans);
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Away(why) => write!(f, "the collector cannot be had: {why}"),
            Self::Refused(why) => write!(f, "the collector refuses: {why}"),
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Thread(_) => "cannot start the thread that sends spans",
            Self::Client(_) => "cannot set up the HTTP client for spans",
        })
    }
}

impl Error for StartError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Thread(error) => Some(error),
            Self::Client(error) => Some(error),
        }
    }
}
