//! A place where scripts wait until the test lets them through.

use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use super::within;

#[derive(Debug, Clone)]
pub struct Gate {
    arrived: Arc<watch::Sender<usize>>,
    places: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            arrived: Arc::new(watch::Sender::new(0)),
            places: Arc::new(Semaphore::new(0)),
        }
    }

    /// The script's side: says that it is here, and waits.
    pub async fn pass(&self) {
        self.arrived.send_modify(|arrived| *arrived += 1);
        let place = self.places.acquire().await;
        place.expect("the semaphore is never closed").forget();
    }

    /// Waits until so many have arrived, over all time.
    pub async fn reached(&self, count: usize) {
        let mut arrived = self.arrived.subscribe();
        let reached = arrived.wait_for(|arrived| *arrived >= count);
        within(&format!("{count} arrivals at a gate"), reached)
            .await
            .expect("the gate itself keeps the sender");
    }

    pub fn arrived(&self) -> usize {
        *self.arrived.borrow()
    }

    /// Lets one through, now or when it comes.
    pub fn open_once(&self) {
        self.places.add_permits(1);
    }

    /// Lets all through from here on.
    pub fn open(&self) {
        self.places.add_permits(Semaphore::MAX_PERMITS / 2);
    }
}
