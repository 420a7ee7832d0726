//! What integration tests run against.

pub mod postgres;
