//! The access log: one line for each request that ended, gathered here and written by a thread.
//!
//! Nothing on the request path waits for it. Lines are made in one buffer, which goes to the writer
//! when it is full or a second old; a writer that is behind, or cannot write, costs lines, never
//! requests, and every lost line is counted.

mod line;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::metrics::Metrics;
use crate::sweeper::TICK;

pub use line::{Ended, Head, Style};

use line::Calendar;
use writer::Writer;

/// The buffer goes to the writer when it holds so much. A write costs the same whatever its size up to
/// about here.
const FULL: usize = 64 * 1024;

/// A line is on its way to the file after this time at the latest.
const OLD: Duration = Duration::from_secs(1);
const OLD_TICKS: u32 = (OLD.as_millis() / TICK.as_millis()) as u32;

/// Clones write to the same place.
#[derive(Clone)]
pub struct AccessLog(Arc<Shared>);

struct Shared {
    lines: Mutex<Lines>,
    ticks: AtomicU32,
    writer: Writer,
    metrics: Metrics,
}

#[derive(Default)]
struct Lines {
    bytes: Vec<u8>,
    calendar: Calendar,
}

impl AccessLog {
    /// # Errors
    /// When the file cannot be opened, or the system gives no thread.
    pub fn start(path: Option<PathBuf>, metrics: Metrics) -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            lines: Mutex::default(),
            ticks: AtomicU32::new(0),
            writer: Writer::start(path, metrics.clone())?,
            metrics,
        })))
    }

    /// A request is over.
    pub fn add(&self, style: Style, ended: &Ended<'_>) {
        let mut lines = self.lines();
        let Lines { bytes, calendar } = &mut *lines;
        style.write(ended, calendar, bytes);
        if bytes.len() >= FULL {
            self.hand_over(&mut lines);
        }
    }

    /// Called by the sweeper.
    pub fn tick(&self) {
        if self.0.ticks.fetch_add(1, Relaxed) % OLD_TICKS == OLD_TICKS - 1 {
            self.hand_over(&mut self.lines());
        }
    }

    /// The file is opened anew, maybe another one: from here on lines go there. A file that cannot be
    /// opened is said in the log, and the old one stays.
    pub fn reopen(&self, path: Option<PathBuf>) {
        // What was before goes where it would have gone.
        self.hand_over(&mut self.lines());
        self.0.writer.reopen(path);
    }

    /// Resolves when everything is written that can be, soon in any case.
    pub async fn finish(&self) {
        self.hand_over(&mut self.lines());
        self.0.writer.finish().await;
    }

    fn hand_over(&self, lines: &mut Lines) {
        if lines.bytes.is_empty() {
            return;
        }
        let bytes = std::mem::replace(&mut lines.bytes, Vec::with_capacity(FULL + FULL / 8));
        if let Err(bytes) = self.0.writer.write(bytes) {
            self.0.metrics.access_log_dropped(writer::count(&bytes));
            // Its room is good for those that come.
            lines.bytes = bytes;
            lines.bytes.clear();
        }
    }

    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.0
            .lines
            .lock()
            .expect("no code that holds this lock panics")
    }
}
