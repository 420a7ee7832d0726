//! Taking in a request's body: in memory first, then in a file.
//!
//! A client may be slow, but not for long slower than the least rate, and not send more than it may.

use bytes::Bytes;
use http_body::Body;
use http_body_util::BodyExt;

use super::watch::Watch;
use crate::message::NoBody;
use crate::spool::{self, Spool, Upload};

/// The whole body, of so many bytes at most. Nothing is asked of the client before this is polled.
pub async fn collect<B>(
    mut body: B,
    spool: &Spool,
    watch: &Watch,
    max: u64,
) -> Result<spool::Body, NoBody>
where
    B: Body<Data = Bytes, Error: std::fmt::Display> + Unpin,
{
    let announced = body.size_hint().exact();
    let mut upload = Upload::new(spool);
    loop {
        watch.awaits();
        let frame = tokio::select! {
            biased; // What has come is not late.
            frame = body.frame() => Some(frame),
            () = watch.alarm.rang() => None,
        };
        let chunk = match frame {
            // Trailers are dropped: WSGI has no place for them, and they must not become headers.
            Some(Some(Ok(frame))) => Ok(frame.into_data().unwrap_or_default()),
            Some(None) => {
                watch.got(0);
                break;
            }
            Some(Some(Err(error))) => {
                tracing::debug!(%error, "request body broken");
                Err(NoBody::Broken)
            }
            None => Err(NoBody::Late),
        };
        watch.got(chunk.as_ref().map_or(0, Bytes::len));
        let chunk = chunk?;
        if upload.len() + chunk.len() as u64 > max {
            return Err(NoBody::TooLarge);
        }
        upload.push(chunk).await.map_err(no_room)?;
    }
    if announced.is_some_and(|announced| announced != upload.len()) {
        // Whoever had the connection is gone, and took the rest along.
        return Err(NoBody::Broken);
    }
    let body = upload.finish().await.map_err(no_room)?;
    watch.set_unread(false);
    Ok(body)
}

fn no_room(error: std::io::Error) -> NoBody {
    tracing::debug!(%error, "upload refused");
    NoBody::NoRoom
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use futures_util::FutureExt;
    use futures_util::stream::{self, StreamExt};
    use http_body::{Frame, SizeHint};
    use http_body_util::StreamBody;

    use super::super::pace::Rate;
    use super::super::watch::Bounds;
    use super::*;
    use crate::metrics::Metrics;
    use crate::sweeper::Sweeper;

    fn spool() -> Spool {
        let folder = std::env::temp_dir();
        Spool::new(folder, Metrics::new(&[])).expect("a folder")
    }

    const STALL: Duration = Duration::from_millis(60);

    fn watch() -> Arc<Watch> {
        watched_by(&Sweeper::default())
    }

    fn watched_by(sweeper: &Sweeper) -> Arc<Watch> {
        let long = Duration::from_secs(60);
        let bounds = Bounds {
            head: long,
            idle: long,
            rate: Rate {
                stall: STALL,
                least: 1024,
            },
        };
        let watch = Watch::new(sweeper.alarm(), bounds);
        watch.begun();
        watch.set_unread(true);
        watch
    }

    fn chunks(
        chunks: &'static [&'static str],
    ) -> impl stream::Stream<Item = Result<Frame<Bytes>, &'static str>> + Unpin {
        let frame = |chunk: &&'static str| Ok(Frame::data(Bytes::from_static(chunk.as_bytes())));
        stream::iter(chunks.iter().map(frame))
    }

    #[tokio::test]
    async fn a_body_is_whole_and_its_connection_can_go_on() {
        let watch = watch();
        let body = StreamBody::new(chunks(&["one ", "two"]));
        let body = collect(body, &spool(), &watch, 7).await.expect("a body");
        assert!(matches!(body, spool::Body::Memory(bytes) if bytes == "one two"));
        assert!(!watch.is_unread());
    }

    #[tokio::test]
    async fn a_byte_too_many_is_too_large() {
        let watch = watch();
        let body = StreamBody::new(chunks(&["one ", "two"]));
        let body = collect(body, &spool(), &watch, 6).await;
        assert_eq!(body.expect_err("seven bytes"), NoBody::TooLarge);
        assert!(watch.is_unread());
    }

    #[tokio::test]
    async fn a_client_that_stops_is_late() {
        let begun = Instant::now();
        let body = StreamBody::new(chunks(&["one"]).chain(stream::pending()));
        let sweeper = Sweeper::default();
        let (spool, watch) = (spool(), watched_by(&sweeper));
        let body = tokio::select! {
            body = collect(body, &spool, &watch, 100) => body,
            () = sweeper.run(|| {}) => unreachable!("the sweeper runs for ever"),
        };
        assert_eq!(body.expect_err("one of two"), NoBody::Late);
        assert!(begun.elapsed() >= STALL);
        // There is time again for it to read why.
        assert!(watch.alarm.rang().now_or_never().is_none());
    }

    #[tokio::test]
    async fn an_error_breaks_a_body() {
        let broken = stream::once(async { Err("reset") });
        let body = StreamBody::new(chunks(&["one"]).chain(broken.boxed()));
        let body = collect(body, &spool(), &watch(), 100).await;
        assert_eq!(body.expect_err("broken"), NoBody::Broken);
    }

    /// A body whose sender was dropped with its connection.
    struct Left;

    impl Body for Left {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            std::task::Poll::Ready(None)
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(5)
        }
    }

    #[tokio::test]
    async fn a_body_that_ends_before_its_announced_length_is_broken() {
        let body = collect(Left, &spool(), &watch(), 100).await;
        assert_eq!(body.expect_err("five bytes fewer"), NoBody::Broken);
    }
}
