//! Tunnels: what two connections become when both sides have agreed on another protocol.
//!
//! The client's side hands its connection over, with what has been read of it already; the upstream's side
//! copies until both ways have ended, or nothing has moved for too long. Either end may stop sending and
//! still be sent to.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::layers::writes_through;
use crate::sweeper::Alarm;

/// Read at a time, each way.
const PIECE: usize = 16 * 1024;

/// A connection's bytes.
pub trait Line: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Line for T {}

/// The client's end, to be opened once she knows that there is a tunnel. Dropped, there is none.
#[derive(Debug)]
pub struct Tunnel {
    lend: oneshot::Sender<Lent>,
    over: oneshot::Receiver<()>,
}

/// The upstream's end.
#[derive(Debug)]
pub struct Far {
    lent: oneshot::Receiver<Lent>,
    over: oneshot::Sender<()>,
}

struct Lent {
    line: Box<dyn Line>,
    stop: CancellationToken,
}

impl std::fmt::Debug for Lent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lent")
    }
}

pub fn tunnel() -> (Tunnel, Far) {
    let (lend, lent) = oneshot::channel();
    let (ended, over) = oneshot::channel();
    (Tunnel { lend, over }, Far { lent, over: ended })
}

impl Tunnel {
    /// Gives the client's connection away until the tunnel is over, which `stop` makes it at once.
    pub async fn run(self, line: impl Line + 'static, stop: CancellationToken) {
        let line = Box::new(line);
        // An upstream's end that is gone drops the connection.
        let _ = self.lend.send(Lent { line, stop });
        let _ = self.over.await;
    }
}

/// Why a tunnel is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// Both sides said all that they had to.
    Done,
    /// One side broke off.
    Broken,
    Silent,
    Stopped,
    /// The client never came.
    Unused,
}

impl Far {
    /// Copies both ways until the tunnel is over. `idle` is how long it may carry nothing.
    pub async fn run(self, mut upstream: impl Line, alarm: &Alarm, idle: Duration) -> Over {
        alarm.set(Instant::now() + idle);
        let lent = tokio::select! {
            lent = self.lent => lent,
            () = alarm.rang() => return Over::Unused,
        };
        let Ok(Lent { line, stop }) = lent else {
            return Over::Unused;
        };
        let mut client = Noted { line, alarm, idle };
        let copying = async {
            let mut upstream = Noted {
                line: &mut upstream,
                alarm,
                idle,
            };
            tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, PIECE, PIECE).await
        };
        let over = tokio::select! {
            copied = copying => match copied {
                Ok(_) => Over::Done,
                Err(_) => Over::Broken,
            },
            () = alarm.rang() => Over::Silent,
            () = stop.cancelled() => Over::Stopped,
        };
        // Nobody may wait for it any more.
        let _ = self.over.send(());
        over
    }
}

/// Puts the alarm off whenever bytes come.
struct Noted<'a, L> {
    line: L,
    alarm: &'a Alarm,
    idle: Duration,
}

impl<L: AsyncRead + Unpin> AsyncRead for Noted<'_, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.line).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.alarm.set(Instant::now() + self.idle);
        }
        Poll::Ready(Ok(()))
    }
}

writes_through!(L, Noted<'_, L>, line);

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::layers::Resumed;
    use crate::sweeper::Sweeper;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn a_tunnel_carries_both_ways_and_one_way_after_the_other_has_ended() {
        let (mut client, near) = duplex(64);
        let (far, mut upstream) = duplex(64);
        let (tunnel, end) = tunnel();
        let alarm = Sweeper::default().alarm();
        let early = Resumed {
            read: Bytes::from_static(b"early "),
            line: near,
        };
        let lending = tokio::spawn(tunnel.run(early, CancellationToken::new()));
        let story = async {
            client.write_all(b"hello").await.expect("room");
            client.shutdown().await.expect("open");
            let mut heard = String::new();
            upstream.read_to_string(&mut heard).await.expect("text");
            assert_eq!(heard, "early hello");
            upstream.write_all(b"bye").await.expect("room");
            drop(upstream);
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.expect("text");
            assert_eq!(answer, "bye");
        };
        let (over, ()) = tokio::join!(end.run(far, &alarm, LONG), story);
        assert_eq!(over, Over::Done);
        lending.await.expect("no panic");
    }

    #[tokio::test]
    async fn a_tunnel_that_is_silent_or_stopped_ends() {
        let sweeper = Sweeper::default();
        let alarm = sweeper.alarm();
        tokio::spawn(sweeper.run(|| {}));
        let (_client, near) = duplex(64);
        let (far, _upstream) = duplex(64);
        let (silent, end) = tunnel();
        tokio::spawn(silent.run(near, CancellationToken::new()));
        assert_eq!(
            end.run(far, &alarm, Duration::from_millis(20)).await,
            Over::Silent
        );

        let (_client, near) = duplex(64);
        let (far, _upstream) = duplex(64);
        let (stopped, end) = tunnel();
        let stop = CancellationToken::new();
        stop.cancel();
        tokio::spawn(stopped.run(near, stop));
        assert_eq!(end.run(far, &alarm, LONG).await, Over::Stopped);
    }

    #[tokio::test]
    async fn a_client_that_never_comes_leaves_no_tunnel() {
        let (far, _upstream) = duplex(64);
        let (unused, end) = tunnel();
        drop(unused);
        let alarm = Sweeper::default().alarm();
        assert_eq!(end.run(far, &alarm, LONG).await, Over::Unused);
    }
}
