//! How many fetches may be after a connection to one origin at a time.
//!
//! The client starts a connection for every fetch that finds none idle, all at once, and
//! its pool looks through all who wait for one whenever somebody has got one: the work for a
//! burst of n grows with n squared. With 12 800 the thread did nothing else any more. Here
//! the others wait, where waiting costs nothing, and find connections that are idle by then.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::{Position, Url};

/// Per origin. An origin at 100 ms, handshakes included, gets some five thousand connections a
/// second; few enough that looking through so many costs less than a connection.
const CONNECTING: usize = 512;

/// Origins remembered before those are forgotten that nobody is connecting to.
const ORIGINS: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Gate {
    origins: Mutex<HashMap<Box<str>, Arc<Semaphore>>>,
}

/// The right to look for a connection.
pub(super) type Pass = OwnedSemaphorePermit;

impl Gate {
    /// Waits, first come first served. Cancel safe.
    pub(super) async fn enter(&self, url: &Url) -> Pass {
        // Scheme, host and port; what may stand before the host is gone by now.
        let semaphore = self.semaphore(&url[..Position::BeforePath]);
        let pass = semaphore.acquire_owned().await;
        pass.expect("these semaphores are never closed")
    }

    fn semaphore(&self, origin: &str) -> Arc<Semaphore> {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = origins.get(origin) {
            return Arc::clone(semaphore);
        }
        if origins.len() >= ORIGINS {
            // A pass and everyone who waits for one holds on to its semaphore.
            origins.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        let semaphore = Arc::new(Semaphore::new(CONNECTING));
        origins.insert(origin.into(), Arc::clone(&semaphore));
        semaphore
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn url(url: &str) -> Url {
        Url::parse(url).expect("a URL")
    }

    #[test]
    fn origins_do_not_wait_for_each_other() {
        let gate = Gate::default();
        let slow = url("http://slow.example/a");
        let mut passes = Vec::new();
        for _ in 0..CONNECTING {
            passes.push(gate.enter(&slow).now_or_never().expect("a pass"));
        }
        assert!(
            gate.enter(&url("http://slow.example/b"))
                .now_or_never()
                .is_none()
        );
        for other in ["http://slow.example:81/", "https://slow.example/"] {
            assert!(gate.enter(&url(other)).now_or_never().is_some(), "{other}");
        }
        passes.pop();
        assert!(gate.enter(&slow).now_or_never().is_some());
    }

    #[test]
    fn origins_that_nobody_connects_to_are_forgotten() {
        let gate = Gate::default();
        let kept = gate.enter(&url("http://kept.example/")).now_or_never();
        for n in 0..2 * ORIGINS {
            drop(
                gate.enter(&url(&format!("http://o{n}.example/")))
                    .now_or_never(),
            );
        }
        let origins = gate.origins.lock().expect("no panic");
        assert!(origins.len() <= ORIGINS);
        assert!(origins.contains_key("http://kept.example"));
        drop(kept);
    }
}
