//! Bodies on their way: what stays in memory, what goes to disk, and where the bounds are.
//!
//! Uploads are collected whole before a slot is asked for; answers flow from the worker at its own
//! speed while a slow client reads at hers; what an application has in a file is read from there. Files
//! of ours are unlinked from the start, so nothing is left
//! behind whatever happens, and they are read and written on the runtime's blocking threads only.
//!
//! All bodies together have a limit in memory and one on disk. Without memory a body goes to disk
//! however small it is; without disk an upload is refused, and an answer goes on at its reader's speed.

mod ahead;
mod answer;
mod limit;
mod part;
mod relay;
mod upload;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use answer::{AnswerReader, AnswerWatch, AnswerWriter, Gone, answer};
pub use limit::{Held, Limit};
pub use part::FilePart;
pub use relay::{RelayReader, RelayWriter, relay};
pub use upload::{Body, SpoolFile, Upload};

use crate::config::Bodies;
use crate::metrics::{Metrics, Shortage};

/// A disk that took no more is not tried again for this long, by anybody: with thousands of bodies,
/// each try would be a file made in vain.
const RETRY: Duration = Duration::from_millis(500);

/// Between two lines of the log about a disk that takes no more.
const TOLD: Duration = Duration::from_secs(10);

/// Smaller answers are not worth an account of their own: they are no more than what their connection
/// takes by itself.
const SMALL: usize = 4096;

/// Where bodies go, and how much of them.
#[derive(Debug, Clone)]
pub struct Spool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folder: PathBuf,
    metrics: Metrics,
    memory: Limit,
    disk: Limit,
    /// Of one answer, on disk.
    answer: AtomicU64,
    trouble: Mutex<Trouble>,
}

/// When the disk took no more, and when the log was told.
#[derive(Debug, Default)]
struct Trouble {
    failed: Option<Instant>,
    told: Option<Instant>,
}

impl Spool {
    /// Without limits, until they are set.
    ///
    /// # Errors
    /// When no file can be made in the folder.
    pub fn new(folder: PathBuf, metrics: Metrics) -> io::Result<Self> {
        let spool = Self(Arc::new(Shared {
            folder,
            memory: Limit::new(metrics.body_memory_bytes()),
            disk: Limit::new(metrics.spool_bytes()),
            metrics,
            answer: AtomicU64::new(u64::MAX),
            trouble: Mutex::default(),
        }));
        spool.file()?;
        Ok(spool)
    }

    /// What is held already stays, be it more.
    pub fn set(&self, bodies: &Bodies) {
        self.0.memory.set(bodies.memory_limit);
        self.0.disk.set(bodies.spool_limit);
        self.0.metrics.spool_limit(bodies.spool_limit);
        self.0.answer.store(bodies.answer_spool, Relaxed);
    }

    /// What bodies hold in memory, for those who keep some elsewhere.
    pub fn memory(&self) -> &Limit {
        &self.0.memory
    }

    /// The same bytes, which count as those of a body for as long as anybody has them.
    pub fn held(&self, bytes: Bytes) -> Bytes {
        if bytes.len() < SMALL {
            return bytes;
        }
        let mut held = self.0.memory.hold();
        held.grow(bytes.len() as u64);
        held.around(bytes)
    }

    fn answer_most(&self) -> u64 {
        self.0.answer.load(Relaxed)
    }

    /// Room for so many more bytes in memory.
    fn remembers(&self, held: &mut Held, bytes: u64) -> bool {
        let fits = held.try_grow(bytes);
        if !fits {
            self.0.metrics.body_shortage(Shortage::Memory);
        }
        fits
    }

    /// Room for so many more bytes on disk.
    ///
    /// # Errors
    /// When the limit is reached, or the disk took no more just now.
    fn reserve(&self, held: &mut Held, bytes: u64) -> io::Result<()> {
        let failed = self.trouble().failed;
        if failed.is_some_and(|failed| failed.elapsed() < RETRY) {
            self.0.metrics.body_shortage(Shortage::Disk);
            return Err(io::ErrorKind::StorageFull.into());
        }
        if held.try_grow(bytes) {
            return Ok(());
        }
        self.0.metrics.body_shortage(Shortage::SpoolLimit);
        let limit = io::Error::new(io::ErrorKind::QuotaExceeded, "spool_limit is reached");
        self.tell(&limit);
        Err(limit)
    }

    /// Writes to a file, which is made if there is none. What has been written of it before an error
    /// is of no use.
    ///
    /// # Errors
    /// When the disk takes no more.
    async fn write(
        &self,
        file: Option<Arc<File>>,
        write: impl FnOnce(&File) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Arc<File>> {
        let spool = self.clone();
        let written = off_runtime(move || {
            let file = match file {
                Some(file) => file,
                None => Arc::new(spool.file()?),
            };
            write(&file)?;
            Ok(file)
        })
        .await;
        if let Err(error) = &written {
            self.0.metrics.body_shortage(Shortage::Disk);
            self.trouble().failed = Some(Instant::now());
            self.tell(error);
        }
        written
    }

    fn tell(&self, error: &io::Error) {
        let mut trouble = self.trouble();
        if trouble.told.is_none_or(|told| told.elapsed() >= TOLD) {
            trouble.told = Some(Instant::now());
            let folder = self.0.folder.display();
            tracing::error!(%error, %folder, "the spool folder takes no more");
        }
    }

    fn trouble(&self) -> std::sync::MutexGuard<'_, Trouble> {
        self.0
            .trouble
            .lock()
            .expect("no code that holds this lock panics")
    }

    /// A new unlinked file.
    fn file(&self) -> io::Result<File> {
        tempfile::tempfile_in(&self.0.folder)
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
