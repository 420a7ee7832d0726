//! Commands that look at a running gateway from outside, through its admin listener.

pub mod advise;
mod ask;
mod metrics;
pub mod top;
