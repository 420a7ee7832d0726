//! Whether a server keeps its connections open after an answer.
//!
//! HTTP/1.1 says that it does unless it says otherwise. Some say nothing and close all the same (uWSGI's
//! `--http-socket`), and a request that is written in that moment is lost. So a server is watched before it is
//! trusted: the first connection whose answer has ended is put aside, and only if it stays open are others
//! used again. Pure but for a lock: what is done with a connection is its slot's business.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// A server that closes does so at once; this is for one that is short of CPU.
pub const WATCHED: Duration = Duration::from_millis(100);

/// A server that closed is not watched again for so long. Another may have taken its place.
const CLOSES: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct Keeping(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    known: Known,
    /// The log has it that connections are closed.
    told: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Nothing. → Watched
    #[default]
    Nothing,
    /// A connection is put aside. → Keeps, Closes
    Watched,
    /// It stayed open. → Nothing
    Keeps,
    /// It was closed. Trusted until then. → Watched
    Closes(Instant),
}

/// What is to become of a connection whose answer has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    UseAgain,
    /// For [`WATCHED`]; then tell [`Keeping::watched`].
    Watch,
    Close,
}

impl Keeping {
    pub fn after_answer(&self, now: Instant) -> After {
        let mut state = self.state();
        match state.known {
            Known::Keeps => After::UseAgain,
            Known::Closes(until) if now < until => After::Close,
            Known::Watched => After::Close,
            Known::Nothing | Known::Closes(_) => {
                state.known = Known::Watched;
                After::Watch
            }
        }
    }

    /// Connections that carried a request before may carry another.
    pub fn may_use_again(&self) -> bool {
        self.state().known == Known::Keeps
    }

    /// What became of the connection that was put aside. True if it is news that the server closes.
    pub fn watched(&self, closed: bool, now: Instant) -> bool {
        let mut state = self.state();
        state.known = match closed {
            true => Known::Closes(now + CLOSES),
            false => Known::Keeps,
        };
        let news = closed && !state.told;
        state.told = closed;
        news
    }

    /// A connection that was used again has failed: what was known is not true any more.
    pub fn failed(&self) {
        let mut state = self.state();
        if state.known == Known::Keeps {
            state.known = Known::Nothing;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no code that holds this lock panics")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_is_watched_and_the_others_follow_it() {
        let (keeping, now) = (Keeping::default(), Instant::now());
        assert!(!keeping.may_use_again());
        assert_eq!(keeping.after_answer(now), After::Watch);
        assert_eq!(keeping.after_answer(now), After::Close);
        assert!(!keeping.watched(false, now));
        assert!(keeping.may_use_again());
        assert_eq!(keeping.after_answer(now), After::UseAgain);
        keeping.failed();
        assert!(!keeping.may_use_again());
        assert_eq!(keeping.after_answer(now), After::Watch);
    }

    #[test]
    fn a_server_that_closes_is_told_of_once_and_watched_again_after_a_minute() {
        let (keeping, now) = (Keeping::default(), Instant::now());
        assert_eq!(keeping.after_answer(now), After::Watch);
        keeping.failed();
        assert_eq!(keeping.after_answer(now), After::Close, "it is watched");
        assert!(keeping.watched(true, now));
        assert_eq!(keeping.after_answer(now), After::Close);
        let later = now + CLOSES;
        assert_eq!(keeping.after_answer(later), After::Watch);
        assert!(!keeping.watched(true, later), "that is known");
        assert_eq!(keeping.after_answer(later + CLOSES), After::Watch);
        assert!(!keeping.watched(false, later));
        assert!(keeping.may_use_again());
    }
}
