//! All integration tests, in one binary.

mod database;
mod support;
