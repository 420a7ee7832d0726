//! Whose connections are closed when there are too many: those that ask nothing, the oldest first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio_util::sync::CancellationToken;

/// The connections of one listener.
#[derive(Default)]
pub struct Guests {
    /// Those that have ended are forgotten when another one comes.
    all: VecDeque<Arc<Guest>>,
}

/// One connection.
pub struct Guest {
    state: Mutex<State>,
    leaves: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// No head of it has come. → Asks
    Unheard,
    /// Its answer is being made. → Answered
    Asks,
    /// It may ask again. → Asks
    Answered,
}

impl Guests {
    pub fn enter(&mut self) -> Arc<Guest> {
        self.forget();
        let guest = Arc::new(Guest {
            state: Mutex::new(State::Unheard),
            leaves: CancellationToken::new(),
        });
        self.all.push_back(Arc::clone(&guest));
        guest
    }

    /// Has the oldest leave that does not wait for an answer, if there is one.
    pub fn make_room(&mut self) {
        self.forget();
        let silent = self
            .all
            .iter()
            .position(|guest| *guest.state() != State::Asks);
        if let Some(guest) = silent.and_then(|place| self.all.remove(place)) {
            guest.leaves.cancel();
        }
    }

    fn forget(&mut self) {
        self.all.retain(|guest| Arc::strong_count(guest) > 1);
    }
}

impl Guest {
    /// Its head is there.
    pub fn asks(&self) {
        *self.state() = State::Asks;
    }

    pub fn is_answered(&self) {
        *self.state() = State::Answered;
    }

    pub fn is_unheard(&self) -> bool {
        *self.state() == State::Unheard
    }

    /// Resolves when it is to leave. Cancel safe.
    pub async fn leaves(&self) {
        self.leaves.cancelled().await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no code that holds this lock panics")
    }
}
