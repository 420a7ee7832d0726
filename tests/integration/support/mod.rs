//! What integration tests run against: the real gateway, with workers, origins and clients that
//! do what the test says. Nothing outlives the test that made it.

pub mod frames;
pub mod gate;
pub mod gateway;
pub mod http;
pub mod http2;
pub mod origin;
pub mod plan;
pub mod postgres;
pub mod tls;
pub mod upstream;
pub mod worker;

use std::future::Future;
use std::time::{Duration, Instant};

/// Whatever takes longer than this will not happen. Generous: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// The gateway keeps its deadlines to this.
const TOLERANCE: Duration = Duration::from_millis(250);

/// Tries of what must be on time. A busy machine may be late by itself; a gateway that is late
/// is so every time.
const TRIES: usize = 4;

/// Asserts that something takes this long: never less, and not noticeably more.
pub async fn takes<T>(time: Duration, mut something: impl AsyncFnMut() -> T) {
    let mut tries = Vec::new();
    for _ in 0..TRIES {
        let begun = Instant::now();
        something().await;
        let took = begun.elapsed();
        assert!(took >= time, "after {took:?} instead of {time:?}");
        if took < time + TOLERANCE {
            return;
        }
        tries.push(took);
    }
    panic!("late every time: {tries:?} instead of {time:?}");
}

/// What is awaited, or a panic that says what did not come.
pub async fn within<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, awaited).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}
