//! Layby: a sidecar gateway that keeps worker threads and database connections free
//! while requests wait on other services.

pub mod config;
pub mod outbound;
pub mod plan;
