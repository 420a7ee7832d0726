//! The body of a request that came over HTTP/2.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::oneshot;

/// What is taken out of it makes room for more.
pub struct Incoming {
    stream: RecvStream,
    /// What is left of the announced length. h2 sees to it that the client keeps to it.
    left: Option<u64>,
    /// Whoever must tell the client that its body is wanted.
    wanted: Option<oneshot::Sender<()>>,
}

impl Incoming {
    /// Says when it is first asked for, if somebody waits for that.
    pub fn new(
        stream: RecvStream,
        headers: &HeaderMap,
        wanted: Option<oneshot::Sender<()>>,
    ) -> Self {
        let length = headers.get(CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Self {
            stream,
            left,
            wanted,
        }
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(wanted) = self.wanted.take() {
            // Nobody waits: then the client has sent it already.
            let _ = wanted.send(());
        }
        // A body that was cut by a reset, for whatever reason, is not whole.
        let Some(data) = ready!(self.stream.poll_data(cx)) else {
            return Poll::Ready(None);
        };
        let data = data.map_err(io::Error::other)?;
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
        // It fails only for more than there was.
        let _ = self.stream.flow_control().release_capacity(data.len());
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
