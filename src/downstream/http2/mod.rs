//! HTTP/2: one connection, many requests at a time.
//!
//! The connection's task drives frames and all of the connection's streams, so that these end with it. What a
//! connection is for HTTP/1, a stream is here: each has a [`Watch`] of its own and goes the same way through
//! [`Downstream::handle`] ([`stream`]). Decided here: how much of everything a client may have under way, and
//! when a connection ends. A client that makes more work than its requests are worth is told to calm down and
//! cut off ([`patience`]).
//!
//! Extended CONNECT (RFC 8441) is not offered: WebSockets come over HTTP/1.1.

mod body;
mod patience;
mod stream;

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::Request;
use tokio::io::AsyncWriteExt;

use self::patience::{Metered, Patience};
use super::Downstream;
use super::framing::MAX_HEAD;
use super::listen::Stream;
use super::watch::Watch;
use super::way::Way;

/// What every client that knows HTTP/2 sends first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Requests at a time. Browsers expect 100 or more.
const STREAMS: u32 = 128;

/// Of a request's body, and of all of a connection's, this much may be here without anybody having taken it:
/// bodies that the application has not asked for yet.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// Of an answer, this much may wait for the connection to take it. The rest stays in its spool.
const SEND_BUFFER: usize = 64 * 1024;

/// A connection with requests under way is asked after this time whether its client is still there, which has
/// so long to say so. Its word may be behind what else is on the line: while that moves, it has time.
const PING: Duration = Duration::from_secs(30);
const PONG: Duration = Duration::from_secs(20);

/// For the last words of a connection that ends.
const CLOSING: Duration = Duration::from_secs(5);

/// What a connection's task waits for.
enum Event {
    Accepted(Box<(Request<RecvStream>, SendResponse<Bytes>)>),
    StreamEnded,
    Pong,
    /// The connection's deadline has passed.
    Rang,
    Drain,
    TooMuch,
    /// The connection is over.
    Ended,
}

/// What a connection's deadline is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No request. → Busy, Closing
    Idle,
    /// → Idle, Asked, Closing
    Busy,
    /// Requests under way, and a ping. → Idle, Busy, Closing
    Asked,
    /// Nothing new is taken. What is under way goes on, but for a client that has been cut off.
    Closing,
}

/// Serves one connection whose preface has been read. Dropping the future leaves all of its clients.
pub async fn serve<S: Stream>(downstream: Arc<Downstream>, stream: S, way: Way, watch: &Watch) {
    let alarm = &watch.alarm;
    let patience = Arc::new(Patience::default());
    let io = Metered::new(stream, Arc::clone(&patience));
    let mut settings = Builder::new();
    settings
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEAD as u32);
    let handshake = settings.handshake(io);
    let mut connection = tokio::select! {
        made = handshake => match made {
            Ok(connection) => connection,
            Err(error) => return tracing::debug!(%error, "connection ended"),
        },
        () = alarm.rang() => return,
    };
    let pings = connection.ping_pong();
    let mut pings = pings.expect("it is taken once");
    let mut streams = FuturesUnordered::new();
    let drain = downstream.drain_begun();
    let mut drain = pin!(drain);
    let mut draining = false;
    let mut phase = Phase::Idle;
    loop {
        let before = (phase, streams.is_empty());
        let event = tokio::select! {
            biased; // An end must not wait for requests that are ready.
            () = &mut drain, if !draining => Event::Drain,
            event = next(&mut connection, &patience) => event,
            Some(()) = streams.next() => Event::StreamEnded,
            () = pong(&mut pings), if phase == Phase::Asked => Event::Pong,
            () = alarm.rang() => Event::Rang,
        };
        match event {
            Event::Ended => return,
            Event::Accepted(accepted) => {
                let (request, respond) = *accepted;
                let life = stream::answer(Arc::clone(&downstream), request, respond, way.clone());
                streams.push(Box::pin(life));
                if phase == Phase::Idle {
                    phase = Phase::Busy;
                }
            }
            Event::StreamEnded => {
                patience.answered();
                if streams.is_empty() && phase != Phase::Closing {
                    phase = Phase::Idle;
                }
            }
            Event::Pong => phase = Phase::Busy,
            Event::Rang => match phase {
                Phase::Idle => {
                    connection.graceful_shutdown();
                    phase = Phase::Closing;
                }
                // A ping that cannot be sent ends the connection, too, in a while.
                Phase::Busy => {
                    let _ = pings.send_ping(Ping::opaque());
                    patience.moved();
                    phase = Phase::Asked;
                }
                Phase::Asked if patience.moved() => alarm.set(Instant::now() + PONG),
                Phase::Asked | Phase::Closing => {
                    return tracing::debug!("connection closed: the client is silent");
                }
            },
            Event::Drain => {
                draining = true;
                connection.graceful_shutdown();
                phase = Phase::Closing;
            }
            Event::TooMuch => {
                tracing::debug!("connection closed: more frames than its requests are worth");
                streams.clear();
                connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
                phase = Phase::Closing;
            }
        }
        if before != (phase, streams.is_empty()) {
            // One that works is not among those that make room for others.
            if streams.is_empty() {
                watch.idles();
            } else {
                watch.begun();
            }
            match phase {
                Phase::Idle => alarm.set(Instant::now() + downstream.settings().bounds.idle),
                Phase::Busy => alarm.set(Instant::now() + PING),
                Phase::Asked => alarm.set(Instant::now() + PONG),
                Phase::Closing if streams.is_empty() => alarm.set(Instant::now() + CLOSING),
                Phase::Closing => alarm.clear(),
            }
        }
    }
}

/// Drives the connection until there is something to say of it. Cancel safe.
async fn next<S: Stream>(
    connection: &mut Connection<Metered<S>, Bytes>,
    patience: &Patience,
) -> Event {
    poll_fn(|cx| {
        let accepted = pin!(connection.accept()).poll(cx);
        if patience.ran_out() {
            return Poll::Ready(Event::TooMuch);
        }
        accepted.map(|accepted| match accepted {
            Some(Ok(accepted)) => Event::Accepted(Box::new(accepted)),
            Some(Err(error)) => {
                tracing::debug!(%error, "connection ended");
                Event::Ended
            }
            None => Event::Ended,
        })
    })
    .await
}

/// Resolves when the client has answered the ping. Cancel safe.
async fn pong(pings: &mut PingPong) {
    // An error is that of the connection, which ends by itself.
    if poll_fn(|cx| pings.poll_pong(cx)).await.is_err() {
        std::future::pending().await
    }
}

/// Tells a client that does not speak HTTP/2 so, in HTTP/2 (RFC 9113 section 3.4).
pub async fn refuse<S: Stream>(stream: &mut S) -> io::Result<()> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    stream.write_all(&SETTINGS).await?;
    stream.write_all(&GOAWAY).await?;
    stream.shutdown().await
}
