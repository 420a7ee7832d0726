//! The log: to standard error, as text for people or as JSON for collectors.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;
use crate::standard_error::StandardError;

/// What is logged, unless this variable says otherwise, in the syntax of `tracing-subscriber`.
const FILTER: &str = "LAYBY_LOG";

/// Where it goes is for the workers' output, too.
///
/// # Errors
/// When the system gives no thread for it.
pub fn start(format: LogFormat) -> std::io::Result<StandardError> {
    let errors = StandardError::start()?;
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(errors.clone())
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(errors)
}
