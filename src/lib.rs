//! Layby: a sidecar gateway that keeps worker threads and database connections free
//! while requests wait on other services.

pub mod admin;
pub mod config;
pub mod database;
pub mod metrics;
pub mod plan;
