//! How far a fetch has come, so that a timeout can say what it waited for.
//!
//! Only the inside of the client knows whether it looks up, connects or waits for a
//! response. The resolver and a layer around the connector run while the fetch is polled,
//! find its mark in a task-local, and move it on. The same places know when a fetch is no
//! longer after a connection, and so give its pass back.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use tokio::task_local;
use tower::{Layer, Service, ServiceExt};

use super::gate::Pass;
use crate::plan::Phase;

task_local! {
    static CURRENT: Progress;
}

#[derive(Clone)]
pub(super) struct Progress(Arc<Mark>);

#[derive(Default)]
struct Mark {
    phase: AtomicU8,
    /// While the fetch is after a connection.
    pass: Mutex<Option<Pass>>,
}

/// Wraps the client's connector.
#[derive(Clone, Copy)]
pub(super) struct WatchConnects;

/// The client clones its connector several times for every request, also when it needs no
/// connection, and a connector is a deep nest of boxes. So clones share one, and only
/// who connects copies it.
pub(super) struct WatchedConnector<S>(Arc<S>);

impl Progress {
    pub(super) fn new() -> Self {
        let progress = Self(Arc::default());
        progress.reached(Phase::Head);
        progress
    }

    /// The mark of the fetch that is being polled. A connection that the client goes on
    /// opening for its pool, after its fetch took another one, has a mark nobody reads.
    pub(super) fn current() -> Self {
        CURRENT
            .try_with(Self::clone)
            .unwrap_or_else(|_| Self::new())
    }

    pub(super) fn watch<F: Future>(&self, fetch: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self.clone(), fetch)
    }

    /// Drives what sends a request, which holds the pass until it has a connection.
    pub(super) async fn with_pass<F: Future>(&self, pass: Pass, sent: F) -> F::Output {
        self.set_pass(Some(pass));
        let mut sent = pin!(sent);
        let first = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await;
        if self.phase() == Phase::Head {
            // The client called no connector, so it took a connection that was idle.
            self.set_pass(None);
        }
        match first {
            Poll::Ready(output) => output,
            Poll::Pending => sent.await,
        }
    }

    fn set_pass(&self, pass: Option<Pass>) {
        *self.0.pass.lock().unwrap_or_else(PoisonError::into_inner) = pass;
    }

    pub(super) fn reached(&self, phase: Phase) {
        self.0.phase.store(phase as u8, Relaxed);
    }

    pub(super) fn phase(&self) -> Phase {
        let reached = self.0.phase.load(Relaxed);
        [Phase::Dns, Phase::Connect, Phase::Body]
            .into_iter()
            .find(|phase| *phase as u8 == reached)
            .unwrap_or(Phase::Head)
    }
}

impl<S> Layer<S> for WatchConnects {
    type Service = WatchedConnector<S>;

    fn layer(&self, connector: S) -> Self::Service {
        WatchedConnector(Arc::new(connector))
    }
}

impl<S> Clone for WatchedConnector<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S, R> Service<R> for WatchedConnector<S>
where
    S: Service<R> + Clone + Send + Sync + 'static,
    S::Future: Send,
    R: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: R) -> Self::Future {
        let progress = Progress::current();
        progress.reached(Phase::Connect);
        let connector = S::clone(&self.0);
        Box::pin(async move {
            let connected = connector.oneshot(request).await;
            progress.set_pass(None);
            if connected.is_ok() {
                progress.reached(Phase::Head);
            }
            connected
        })
    }
}
