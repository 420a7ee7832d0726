//! Saying a thing seldom: what a stranger can make the gateway say must not fill its log.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Between two lines about the same.
const PAUSE: Duration = Duration::from_secs(10);

/// One kind of thing to say.
pub struct Seldom(Mutex<Said>);

struct Said {
    last: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    pub const fn new() -> Self {
        let said = Said {
            last: None,
            unsaid: 0,
        };
        Self(Mutex::new(said))
    }

    /// Whether to say it now, and how often it was left out before.
    pub fn says(&self) -> Option<u64> {
        self.says_at(Instant::now())
    }

    fn says_at(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().expect("no code that holds this lock panics");
        if said.last.is_some_and(|last| now < last + PAUSE) {
            said.unsaid += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_one_line_and_a_count() {
        let (seldom, start) = (Seldom::new(), Instant::now());
        assert_eq!(seldom.says_at(start), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.says_at(start + PAUSE / 2), None);
        }
        assert_eq!(seldom.says_at(start + PAUSE), Some(1000));
        assert_eq!(seldom.says_at(start + 2 * PAUSE), Some(0));
    }
}
