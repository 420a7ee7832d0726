//! Commands that look at a running gateway from outside, through its admin listener.

pub mod advise;
pub mod health;
mod metrics;
pub mod out;
pub mod top;
