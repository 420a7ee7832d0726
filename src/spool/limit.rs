//! A limit on what all bodies together hold, in memory or on disk.
//!
//! Whoever keeps bytes of a body has a [`Held`] for them, which lets go of them on drop. Asking is an
//! atomic addition; nobody waits here: what is done instead is for whoever asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::Bytes;
use prometheus::IntGauge;

/// How many bytes there may be at once. Clones share them.
#[derive(Debug, Clone)]
pub struct Limit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: AtomicU64,
    held: AtomicU64,
    gauge: IntGauge,
}

impl Limit {
    /// No limit yet. The gauge shows what is held.
    pub fn new(gauge: IntGauge) -> Self {
        Self(Arc::new(Shared {
            most: AtomicU64::new(u64::MAX),
            held: AtomicU64::new(0),
            gauge,
        }))
    }

    /// What is held already stays, be it more.
    pub fn set(&self, most: u64) {
        self.0.most.store(most, Relaxed);
    }

    /// Nothing yet.
    pub fn hold(&self) -> Held {
        Held {
            limit: self.clone(),
            bytes: 0,
        }
    }

    fn add(&self, bytes: u64) {
        self.0.held.fetch_add(bytes, Relaxed);
        self.0.gauge.add(signed(bytes));
    }

    fn sub(&self, bytes: u64) {
        self.0.held.fetch_sub(bytes, Relaxed);
        self.0.gauge.sub(signed(bytes));
    }
}

/// What one body, or a part of it, holds.
#[derive(Debug)]
pub struct Held {
    limit: Limit,
    bytes: u64,
}

impl Held {
    /// So many more, if the limit allows it.
    #[must_use]
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let Shared { most, held, .. } = &*self.limit.0;
        let fits = held.load(Relaxed).saturating_add(bytes) <= most.load(Relaxed);
        // Two who ask at once may both get the last of it: the link and the listeners share a thread,
        // and a chunk too much does no harm.
        if fits {
            self.grow(bytes);
        }
        fits
    }

    /// So many more, whatever the limit says: for what is there anyway.
    pub fn grow(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.limit.add(bytes);
    }

    /// What somebody else held of the same.
    pub fn join(&mut self, mut other: Self) {
        self.bytes += std::mem::take(&mut other.bytes);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn limit(&self) -> &Limit {
        &self.limit
    }

    /// Lets go of all.
    pub fn clear(&mut self) {
        self.limit.sub(std::mem::take(&mut self.bytes));
    }

    /// The same bytes, which are held until the last reference to them is gone.
    pub fn around(self, bytes: Bytes) -> Bytes {
        Bytes::from_owner(Owner { bytes, _held: self })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

struct Owner {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(most: u64) -> (Limit, IntGauge) {
        let gauge = IntGauge::new("held", "bytes").expect("a valid name");
        let limit = Limit::new(gauge.clone());
        limit.set(most);
        (limit, gauge)
    }

    #[test]
    fn what_is_let_go_is_there_for_others() {
        let (limit, gauge) = limit(10);
        let (mut one, mut other) = (limit.hold(), limit.hold());
        assert!(one.try_grow(6));
        assert!(!other.try_grow(5));
        assert!(other.try_grow(4));
        assert_eq!(gauge.get(), 10);
        drop(one);
        assert!(other.try_grow(6));
        other.clear();
        assert_eq!(gauge.get(), 0);
    }

    #[test]
    fn what_is_there_anyway_counts_against_others() {
        let (limit, gauge) = limit(10);
        let (mut forced, mut asking) = (limit.hold(), limit.hold());
        forced.grow(12);
        assert!(!asking.try_grow(1));
        limit.set(13);
        assert!(asking.try_grow(1));
        assert_eq!(gauge.get(), 13);
    }

    #[test]
    fn bytes_are_held_as_long_as_anybody_has_them() {
        let (limit, gauge) = limit(10);
        let mut held = limit.hold();
        assert!(held.try_grow(5));
        let bytes = held.around(Bytes::from_static(b"12345"));
        let part = bytes.slice(2..3);
        drop(bytes);
        assert_eq!((&part[..], gauge.get()), (&b"3"[..], 5));
        drop(part);
        assert_eq!(gauge.get(), 0);
    }
}
