//! The client's side of a request's life.
//!
//! A life is a future that may outlast the client's interest in it. [`Outcome`] polls it in the
//! client's own task, which spares a task for every request, and hands what is left of it to a task
//! of its own once the client has its answer, or has left.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use tokio_util::task::TaskTracker;

use super::Failure;
use crate::message::Answer;

type Life = Pin<Box<dyn Future<Output = ()> + Send>>;

#[derive(Debug, Default)]
enum Wait {
    #[default]
    Waiting,
    /// Not yet taken by the client's task.
    Answered(Result<Answer, Failure>),
    Over,
}

/// The life's view of its client.
#[derive(Debug, Clone, Default)]
pub struct Client(Arc<Mutex<Wait>>);

impl Client {
    /// Gives the client its one outcome. Without effect when it has left or had one.
    pub fn answer(&self, outcome: Result<Answer, Failure>) {
        let mut wait = self.wait();
        if matches!(*wait, Wait::Waiting) {
            *wait = Wait::Answered(outcome);
        }
    }

    /// True once nobody waits for an answer: it left, or it has been answered.
    pub fn left(&self) -> bool {
        !matches!(*self.wait(), Wait::Waiting)
    }

    fn wait(&self) -> std::sync::MutexGuard<'_, Wait> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

/// Resolves with the request's outcome. Dropping it earlier means that the client left.
pub struct Outcome {
    client: Client,
    life: Option<Life>,
    left: TaskTracker,
}

impl Outcome {
    pub(super) fn new<F>(left: TaskTracker, life: impl FnOnce(Client) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let client = Client::default();
        let life: Life = Box::pin(life(client.clone()));
        Self {
            client,
            life: Some(life),
            left,
        }
    }
}

impl Future for Outcome {
    type Output = Result<Answer, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(life) = &mut self.life
            && life.as_mut().poll(cx).is_ready()
        {
            self.life = None;
        }
        let mut wait = self.client.wait();
        match std::mem::replace(&mut *wait, Wait::Over) {
            Wait::Answered(outcome) => Poll::Ready(outcome),
            Wait::Waiting if self.life.is_some() => {
                *wait = Wait::Waiting;
                Poll::Pending
            }
            // A life that ends always answers first; should it not, the client must not hang.
            Wait::Waiting | Wait::Over => Poll::Ready(Err(Failure::WorkerGone)),
        }
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        *self.client.wait() = Wait::Over;
        if let Some(life) = self.life.take() {
            // Its first poll there sees that the client has left. After a runtime's end there is
            // nobody to run it, and nothing left to run on.
            if tokio::runtime::Handle::try_current().is_ok() {
                self.left.spawn(life);
            }
        }
    }
}
