//! Parse, load, run.

use std::process::ExitCode;

use layby::cli::{self, Command};
use layby::gateway;

fn main() -> ExitCode {
    let invocation = cli::parse();
    if invocation.command == Command::Check {
        return invocation.check();
    }
    match invocation.load() {
        Ok(loaded) => gateway::run(invocation.sources, loaded),
        Err(status) => status,
    }
}
