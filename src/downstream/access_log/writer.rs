//! Writing: a thread that alone waits for the disk, or for who reads our standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::metrics::Metrics;

/// Buffers that wait for the thread at most: about a megabyte, seconds of full load.
const WAITING: usize = 16;

/// How long the end of the process is held up for lines that cannot be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Lines tell who asked for what: owner and group only.
const MODE: u32 = 0o640;

pub struct Writer {
    orders: Sender<Order>,
    waiting: Arc<AtomicUsize>,
}

enum Order {
    Lines(Vec<u8>),
    Open(Option<PathBuf>),
    /// Told once everything before it is done.
    Done(oneshot::Sender<()>),
}

impl Writer {
    /// # Errors
    /// When the file cannot be opened, or the system gives no thread.
    pub fn start(path: Option<PathBuf>, metrics: Metrics) -> io::Result<Self> {
        let file = open(path.as_ref())?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let (orders, received) = channel();
        let thread = Thread {
            file,
            torn: false,
            failing: false,
            waiting: Arc::clone(&waiting),
            metrics,
        };
        std::thread::Builder::new()
            .name("layby-access-log".to_owned())
            .spawn(move || thread.run(received))?;
        Ok(Self { orders, waiting })
    }

    /// # Errors
    /// The lines, if too many wait already.
    pub fn write(&self, lines: Vec<u8>) -> Result<(), Vec<u8>> {
        if self.waiting.load(Relaxed) >= WAITING {
            return Err(lines);
        }
        self.waiting.fetch_add(1, Relaxed);
        self.orders.send(Order::Lines(lines)).map_err(|refused| {
            match refused.0 {
                Order::Lines(lines) => lines,
                // Only what was sent can come back.
                Order::Open(_) | Order::Done(_) => Vec::new(),
            }
        })
    }

    pub fn reopen(&self, path: Option<PathBuf>) {
        // The thread is gone only with the process.
        let _ = self.orders.send(Order::Open(path));
    }

    pub async fn finish(&self) {
        let (done, waiting) = oneshot::channel();
        let _ = self.orders.send(Order::Done(done));
        if tokio::time::timeout(LAST_LINES, waiting).await.is_err() {
            tracing::warn!("the end of the access log is lost: nothing can be written");
        }
    }
}

struct Thread {
    file: File,
    /// The last line in the file has no end.
    torn: bool,
    /// The last write failed, and that has been said.
    failing: bool,
    waiting: Arc<AtomicUsize>,
    metrics: Metrics,
}

impl Thread {
    fn run(mut self, orders: Receiver<Order>) {
        for order in orders {
            match order {
                Order::Lines(lines) => {
                    self.write(&lines);
                    self.waiting.fetch_sub(1, Relaxed);
                }
                Order::Open(path) => match open(path.as_ref()) {
                    Ok(file) => {
                        self.file = file;
                        self.torn = false;
                    }
                    Err(error) => {
                        tracing::error!(%error, ?path, "cannot open the access log; the old file stays");
                    }
                },
                Order::Done(done) => {
                    // Who does not wait any more has given up.
                    let _ = done.send(());
                }
            }
        }
    }

    fn write(&mut self, lines: &[u8]) {
        if self.torn && self.file.write_all(b"\n").is_ok() {
            self.torn = false;
        }
        let mut left = lines;
        let written = loop {
            match self.file.write(left) {
                _ if left.is_empty() => break Ok(()),
                Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => left = &left[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        let Err(error) = written else {
            self.failing = false;
            return;
        };
        let taken = lines.len() - left.len();
        self.torn |= taken > 0 && lines[taken - 1] != b'\n';
        self.metrics.access_log_dropped(count(left));
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "cannot write the access log; lines are dropped");
        }
    }
}

/// How many lines these are.
pub fn count(lines: &[u8]) -> usize {
    lines.iter().filter(|byte| **byte == b'\n').count()
}

fn open(path: Option<&PathBuf>) -> io::Result<File> {
    match path {
        Some(path) => OpenOptions::new()
            .append(true)
            .create(true)
            .mode(MODE)
            .open(path),
        // Past the standard library's own buffer, which would hide what could not be written.
        None => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::*;

    fn thread(file: File, metrics: &Metrics) -> Thread {
        Thread {
            file,
            torn: false,
            failing: false,
            waiting: Arc::default(),
            metrics: metrics.clone(),
        }
    }

    fn dropped(metrics: &Metrics) -> String {
        let page = metrics.render();
        let line = |line: &&str| line.starts_with("layby_access_log_dropped_total");
        page.lines().find(line).expect("the family").to_owned()
    }

    #[tokio::test]
    async fn lines_before_a_reopening_are_in_the_old_file_and_the_others_in_the_new() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("access.log");
        let writer = Writer::start(Some(path.clone()), Metrics::new(&[])).expect("a writer");
        writer.write(b"one\n".to_vec()).expect("room");
        writer.write(b"two\n".to_vec()).expect("room");
        writer.finish().await;
        let rotated = folder.path().join("access.log.1");
        fs::rename(&path, &rotated).expect("both in our folder");
        writer.write(b"three\n".to_vec()).expect("room");
        writer.reopen(Some(path.clone()));
        writer.write(b"four\n".to_vec()).expect("room");
        // A folder is no file: the one that is open stays.
        writer.reopen(Some(folder.path().to_owned()));
        writer.write(b"five\n".to_vec()).expect("room");
        writer.finish().await;
        let text = |path| fs::read_to_string(path).expect("a log");
        assert_eq!(text(&rotated), "one\ntwo\nthree\n");
        assert_eq!(text(&path), "four\nfive\n");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_forgotten() {
        let metrics = Metrics::new(&[]);
        let full = OpenOptions::new().write(true).open("/dev/full");
        let mut thread = thread(full.expect("a device that is always full"), &metrics);
        thread.write(b"one\ntwo\n");
        thread.write(b"three\n");
        assert_eq!(dropped(&metrics), "layby_access_log_dropped_total 3");
        assert!(!thread.torn);
    }

    #[test]
    fn a_line_that_was_cut_ends_before_the_next_begins() {
        let metrics = Metrics::new(&[]);
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        rustix::io::ioctl_fionbio(&file, true).expect("a pipe can");
        let mut thread = thread(file, &metrics);
        // More than a pipe takes.
        let long = [&b"x".repeat(1 << 20)[..], b"\n"].concat();
        thread.write(&long);
        assert!(thread.torn);
        let mut taken = vec![0; 1 << 20];
        let count = reader.read(&mut taken).expect("there is something");
        assert!(count < long.len());
        thread.write(b"next\n");
        let count = reader.read(&mut taken).expect("there is something");
        let rest = String::from_utf8_lossy(&taken[..count]);
        assert!(
            rest.trim_start_matches('x').starts_with("\nnext\n"),
            "{rest}"
        );
        assert_eq!(dropped(&metrics), "layby_access_log_dropped_total 1");
    }

    #[test]
    fn a_writer_that_is_behind_takes_so_much_and_no_more() {
        let (orders, _nobody_takes_them) = channel();
        let waiting = Arc::default();
        let writer = Writer { orders, waiting };
        for _ in 0..WAITING {
            writer.write(b"one\n".to_vec()).expect("room");
        }
        assert_eq!(writer.write(b"two\n".to_vec()), Err(b"two\n".to_vec()));
    }
}
