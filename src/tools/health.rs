//! `layby health`: is the gateway on this machine ready?
//!
//! For images without a shell, whose health check can only be the program that they hold. What
//! ready means is `/readyz`'s business.

use std::net::SocketAddr;
use std::process::ExitCode;

use super::metrics::ask;

/// Says what the gateway says of itself. The exit status is that of the process: 0 if it is ready.
pub fn run(admin: SocketAddr) -> ExitCode {
    match ask(admin, "/readyz") {
        Ok((200, said)) => {
            println!("{}", said.trim_end());
            ExitCode::SUCCESS
        }
        Ok((_, said)) => {
            eprintln!("{}", said.trim_end());
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("no gateway at {admin}: {error}; --admin says where it has its health");
            ExitCode::FAILURE
        }
    }
}
