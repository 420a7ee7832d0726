//! Layby: a sidecar gateway that keeps worker threads and database connections free
//! while requests wait on other services.
//!
//! The modules follow the life of a request; `ARCHITECTURE.md` is the map.

pub mod admin;
pub mod cli;
pub mod coding;
pub mod config;
pub mod database;
pub mod descriptors;
pub mod downstream;
pub mod exchange;
pub mod files;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gateway;
pub mod layers;
pub mod message;
pub mod metrics;
pub mod outbound;
pub mod plan;
pub mod plan_listener;
pub mod recent;
pub mod record;
pub mod slots;
pub mod spans;
pub mod spool;
pub mod standard_error;
pub mod sweeper;
pub mod tcp_socket;
pub mod tools;
pub mod trace;
pub mod tunnel;
pub mod unix_socket;
pub mod workers;
