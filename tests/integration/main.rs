//! All integration tests, in one binary.

mod access_log;
mod answers;
mod bodies;
mod connections;
mod database;
mod files;
mod heads;
mod ids;
mod lazy;
mod leaving;
mod lifecycle;
mod local;
mod parking;
mod pinned;
mod policy;
mod queue;
mod relay;
mod run;
mod scarcity;
mod slow;
mod storm;
mod streams;
mod support;
mod tunnels;
mod upstreams;
mod workers;
