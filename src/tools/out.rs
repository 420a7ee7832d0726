//! What commands that end say, and to whom: who reads may have left.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

/// Says it on standard output. The exit status is that of the process.
pub fn say(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads has seen enough, as `head` does.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("cannot write: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Says it on standard error, in a line.
pub fn complain(text: impl Display) {
    // Nobody is left to tell.
    let _ = writeln!(io::stderr(), "{text}");
}
