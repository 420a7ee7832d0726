//! Standard error: what the gateway says there, and what its workers say.
//!
//! A thread alone waits for whoever reads it, so a reader that stalls stops nobody else. When too much of the
//! gateway's own waits, lines are dropped and counted, and the log says so once there is room. What a worker says
//! is never dropped: its pipe fills instead, and no other worker's.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing_subscriber::fmt::MakeWriter;

use crate::metrics::Metrics;

/// Bytes of the gateway's own lines that wait at most: thousands of lines.
const OWN: usize = 1 << 20;

/// The same of one output of a worker: two of its longest lines.
const OF_A_WORKER: usize = 128 * 1024;

/// How long the end of the process is held up for lines that cannot be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// A handle; clones write to the same place.
#[derive(Debug, Clone)]
pub struct StandardError(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    orders: Sender<Order>,
    /// Room for the gateway's own lines, in bytes.
    own: Arc<Semaphore>,
    lost: Arc<Lost>,
}

/// Lines that nobody will read.
#[derive(Debug, Default)]
struct Lost {
    /// Those that the log has not told of.
    untold: AtomicU64,
    metrics: OnceLock<Metrics>,
}

#[derive(Debug)]
enum Order {
    /// And the room that it takes up until it is written.
    Text(Vec<u8>, OwnedSemaphorePermit),
    /// Told once everything before it is written.
    Done(Sender<()>),
}

impl StandardError {
    /// # Errors
    /// When the system gives no descriptor or no thread.
    pub fn start() -> io::Result<Self> {
        // Past the standard library's own handle, whose lock would be held while its reader stalls.
        let file = io::stderr().as_fd().try_clone_to_owned()?;
        Self::to(file.into())
    }

    fn to(file: File) -> io::Result<Self> {
        let (orders, received) = channel();
        let own = Arc::new(Semaphore::new(OWN));
        let lost = Arc::default();
        let thread = Thread {
            file,
            own: Arc::clone(&own),
            lost: Arc::clone(&lost),
        };
        std::thread::Builder::new()
            .name("layby-log".to_owned())
            .spawn(move || thread.run(received))?;
        Ok(Self(Arc::new(Shared { orders, own, lost })))
    }

    /// Lines that are dropped from now on are counted there.
    pub fn count_in(&self, metrics: Metrics) {
        // The first stays; there is one gateway in a process.
        let _ = self.0.lost.metrics.set(metrics);
    }

    /// A way there for one output of a worker.
    pub fn output(&self) -> Output {
        Output {
            to: self.clone(),
            room: Arc::new(Semaphore::new(OF_A_WORKER)),
        }
    }

    /// Waits until everything is written, or so long that it will not be. Blocks.
    pub fn finish(&self) {
        let (done, waiting) = channel();
        self.send(Order::Done(done));
        // If it takes longer, there is nobody who could be told.
        let _ = waiting.recv_timeout(LAST_LINES);
    }

    fn send(&self, order: Order) {
        // The thread is gone only with the process.
        let _ = self.0.orders.send(order);
    }
}

/// One line of the gateway's own, which `tracing-subscriber` writes in one piece.
impl Write for &StandardError {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let size = line.len().min(OWN) as u32;
        match Arc::clone(&self.0.own).try_acquire_many_owned(size) {
            Ok(room) => self.send(Order::Text(line.to_vec(), room)),
            Err(_) => {
                self.0.lost.untold.fetch_add(1, Relaxed);
                self.0.lost.count();
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for StandardError {
    type Writer = &'a StandardError;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Where one output of a worker is written to.
#[derive(Debug)]
pub struct Output {
    to: StandardError,
    room: Arc<Semaphore>,
}

impl Output {
    /// Waits while too much of this output is not written yet. Cancel safe: then the text is lost.
    pub async fn write(&self, text: Vec<u8>) {
        let size = text.len().min(OF_A_WORKER) as u32;
        let room = Arc::clone(&self.room).acquire_many_owned(size).await;
        let room = room.expect("the semaphore is never closed");
        self.to.send(Order::Text(text, room));
    }
}

impl Lost {
    fn count(&self) {
        if let Some(metrics) = self.metrics.get() {
            metrics.log_dropped();
        }
    }
}

struct Thread {
    file: File,
    own: Arc<Semaphore>,
    lost: Arc<Lost>,
}

impl Thread {
    fn run(mut self, orders: Receiver<Order>) {
        for order in orders {
            match order {
                Order::Text(text, room) => {
                    // Standard error may be closed; what is said is not worth more than that.
                    if self.file.write_all(&text).is_err() {
                        self.lost.count();
                    }
                    drop(room);
                    self.tell();
                }
                Order::Done(done) => {
                    // Who does not wait any more has given up.
                    let _ = done.send(());
                }
            }
        }
    }

    /// Says what was dropped once there is room for more than that.
    fn tell(&self) {
        if self.own.available_permits() < OWN / 2 {
            return;
        }
        let lines = self.lost.untold.swap(0, Relaxed);
        if lines > 0 {
            tracing::warn!(
                lines,
                "lines of this log were dropped: whoever reads it was behind"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::*;

    /// More than a pipe takes.
    const MUCH: usize = 100 * 1024;

    fn stalled() -> (io::PipeReader, StandardError) {
        let (reader, writer) = io::pipe().expect("a pipe");
        let file = File::from(OwnedFd::from(writer));
        (reader, StandardError::to(file).expect("a thread"))
    }

    fn dropped(metrics: &Metrics) -> String {
        let page = metrics.render();
        let line = |line: &&str| line.starts_with("layby_log_dropped_total");
        page.lines().find(line).expect("the family").to_owned()
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let (mut reader, errors) = stalled();
        let metrics = Metrics::new(&[]);
        errors.count_in(metrics.clone());
        let line = [&[b'x'; MUCH - 1][..], b"\n"].concat();
        let room = OWN / MUCH;
        for _ in 0..room + 3 {
            (&errors).write_all(&line).expect("it never fails");
        }
        assert_eq!(dropped(&metrics), "layby_log_dropped_total 3");
        assert_eq!(errors.0.lost.untold.load(Relaxed), 3);
        let began = std::time::Instant::now();
        errors.finish();
        assert!(began.elapsed() >= LAST_LINES, "nobody reads");

        let mut read = vec![0; room * MUCH];
        reader.read_exact(&mut read).expect("what was not dropped");
        assert_eq!(read, line.repeat(room));
        errors.finish();
        assert_eq!(errors.0.lost.untold.load(Relaxed), 0, "it has been told");
        (&errors).write_all(b"and on\n").expect("it never fails");
        errors.finish();
        let mut next = [0; 7];
        reader.read_exact(&mut next).expect("it goes on");
        assert_eq!(&next, b"and on\n");
    }

    #[test]
    fn a_worker_waits_for_its_reader_and_holds_up_nobody_else() {
        let (mut reader, errors) = stalled();
        let (noisy, other) = (errors.output(), errors.output());
        assert_eq!(noisy.write(vec![b'a'; MUCH]).now_or_never(), Some(()));
        let mut waiting = pin!(noisy.write(vec![b'b'; MUCH]));
        assert!(waiting.as_mut().now_or_never().is_none(), "it is full");
        assert_eq!(other.write(b"c".to_vec()).now_or_never(), Some(()));
        (&errors).write_all(b"d").expect("it never fails");

        let mut read = vec![0; MUCH + 2];
        reader.read_exact(&mut read).expect("all three");
        assert!(read.ends_with(b"acd"));
        errors.finish();
        assert_eq!(waiting.now_or_never(), Some(()), "there is room again");
    }
}
