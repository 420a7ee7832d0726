//! `layby health`: is the gateway on this machine ready?
//!
//! For images without a shell, whose health check can only be the program that they hold. What
//! ready means is `/readyz`'s business.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::metrics::ask;
use super::out::{complain, say};

/// Says what the gateway says of itself. The exit status is that of the process: 0 if it is ready.
pub fn run(admin: SocketAddr) -> ExitCode {
    match ask(admin, "/readyz") {
        Ok((200, said)) => say(&format!("{}\n", said.trim_end())),
        Ok((_, said)) => {
            complain(said.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(format_args!(
                "no gateway at {admin}: {error}; --admin says where it has its health"
            ));
            ExitCode::FAILURE
        }
    }
}
