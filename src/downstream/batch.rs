//! What goes out in one turn of the event loop goes out together.
//!
//! A reader that has nothing to read sleeps, and whoever writes to it wakes it, which costs more than the
//! writing. A reader on this machine (another proxy, a service mesh) falls asleep again before the next answer
//! is made. If all that are due are made first and then written in a row, it is woken once for many of them.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::AsyncWrite;

use super::watch::Watch;
use crate::layers::reads_through;

/// A write of more keeps its reader busy for long enough, and is in the processor's cache now.
const SMALL: usize = 16 * 1024;

/// Writes what is small when all other tasks had their turn that were ready before.
pub struct Batched<S> {
    pub stream: S,
    watch: Arc<Watch>,
    /// They had, since everything was last written.
    waited: bool,
}

impl<S> Batched<S> {
    pub fn new(stream: S, watch: Arc<Watch>) -> Self {
        Self {
            stream,
            watch,
            waited: false,
        }
    }

    /// True if they are to have it now. A woken task goes behind all that are ready.
    ///
    /// An answer of which more is to come does not wait: should it be cut meanwhile, hyper would end the
    /// connection with the beginning unsent, and a client takes that for a request that nobody has seen.
    fn waits(&mut self, cx: &Context<'_>, bytes: usize) -> bool {
        let waits = !self.waited && bytes <= SMALL && self.watch.is_whole();
        if waits {
            self.waited = true;
            cx.waker().wake_by_ref();
        }
        waits
    }
}

reads_through!(S, Batched<S>, stream);

impl<S: AsyncWrite + Unpin> AsyncWrite for Batched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.waits(cx, buf.len()) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.waits(cx, bufs.iter().map(|buf| buf.len()).sum()) {
            return Poll::Pending;
        }
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if flushed.is_ready() {
            self.waited = false;
        }
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

    use super::super::pace::Rate;
    use super::super::watch::Bounds;
    use super::*;
    use crate::sweeper::Sweeper;

    const LONG: Duration = Duration::from_secs(60);
    const BOUNDS: Bounds = Bounds {
        head: LONG,
        idle: LONG,
        rate: Rate {
            stall: LONG,
            least: 0,
        },
    };

    /// Notes what is written to it.
    struct Noting(DuplexStream, Arc<Mutex<Vec<String>>>);

    impl AsyncWrite for Noting {
        fn poll_write(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &[u8],
        ) -> Poll<io::Result<usize>> {
            let text = String::from_utf8_lossy(buf).into_owned();
            self.1.lock().expect("nobody panics").push(text);
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn what_is_due_at_once_is_made_first_and_written_then() {
        assert_eq!(
            notes_of_three(true).await,
            sorted(&["made 0", "written 0", "made 1", "written 1"])
        );
    }

    #[tokio::test]
    async fn an_answer_of_which_more_is_to_come_does_not_wait() {
        let notes = notes_of_three(false).await;
        assert_eq!(notes[..2], ["made 0", "written 0"]);
    }

    fn sorted(notes: &[&str]) -> Vec<String> {
        let three = |note: &&str| vec![(*note).to_owned(); 3];
        notes.iter().flat_map(three).collect()
    }

    /// What three tasks do that are ready at once, in two turns.
    async fn notes_of_three(whole: bool) -> Vec<String> {
        let notes = Arc::new(Mutex::new(Vec::new()));
        let tasks: Vec<_> = (0..3)
            .map(|_| {
                let notes = Arc::clone(&notes);
                tokio::spawn(async move {
                    let (near, mut far) = tokio::io::duplex(64);
                    let watch = Watch::new(Sweeper::default().alarm(), BOUNDS);
                    watch.set_whole(whole);
                    let mut stream = Batched::new(Noting(near, Arc::clone(&notes)), watch);
                    for turn in 0..2 {
                        let made = format!("made {turn}");
                        notes.lock().expect("nobody panics").push(made);
                        let text = format!("written {turn}");
                        stream.write_all(text.as_bytes()).await?;
                        stream.flush().await?;
                        let mut read = vec![0; text.len()];
                        far.read_exact(&mut read).await?;
                        assert_eq!(read, text.as_bytes());
                        tokio::task::yield_now().await;
                    }
                    Ok::<_, io::Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("no panic").expect("all is written");
        }
        let notes = notes.lock().expect("nobody panics");
        notes.clone()
    }
}
