//! Bodies on their way: what stays in memory, what goes to disk, and where the bounds are.
//!
//! Uploads are collected whole before a slot is asked for; answers flow from the worker at its own
//! speed while a slow client reads at hers; what an application has in a file is read from there. Files
//! of ours are unlinked from the start, so nothing is left
//! behind whatever happens, and they are read and written on the runtime's blocking threads only.

mod answer;
mod part;
mod relay;
mod upload;

use std::fs::File;
use std::io;
use std::path::PathBuf;

pub use answer::{AnswerReader, AnswerWatch, AnswerWriter, Gone, answer};
pub use part::FilePart;
pub use relay::{RelayReader, RelayWriter, relay};
pub use upload::{Body, SpoolFile, Upload};

use crate::metrics::Metrics;

/// Where bodies go that are too large for memory.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    metrics: Metrics,
}

impl Spool {
    /// # Errors
    /// When no file can be made in the folder.
    pub fn new(folder: PathBuf, metrics: Metrics) -> io::Result<Self> {
        let spool = Self { folder, metrics };
        spool.file()?;
        Ok(spool)
    }

    /// A new unlinked file.
    fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.folder)
    }
}

/// Runs file work on a blocking thread.
pub async fn off_runtime<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}
