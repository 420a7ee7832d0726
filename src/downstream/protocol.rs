//! Which protocol a connection speaks: with TLS or without, HTTP/1.1 or HTTP/2.
//!
//! A listener is for TLS or for plain connections. With TLS the client has chosen when the handshake is over
//! (ALPN). Without, it begins with HTTP/2's preface where that is allowed; where it is not, nobody looks.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use rustix::net::RecvFlags;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::forwarded::Peer;
use super::http2::PREFACE;
use super::listen::Stream;
use super::tls::{self, Tls};
use super::watch::Watch;
use super::way::Way;
use super::{Downstream, http2, linger};
use crate::layers::Resumed;
use crate::message::Scheme;

/// Told to a client that speaks plain HTTP where TLS is spoken.
const NOT_PLAIN: &str = "HTTP/1.1 400 Bad Request\r\n\
                         Content-Type: text/plain; charset=utf-8\r\n\
                         Content-Length: 40\r\n\
                         Connection: close\r\n\
                         \r\n\
                         TLS is spoken on this port: use https://";

impl Downstream {
    /// Serves a connection without TLS.
    pub async fn serve_plain<S: Stream>(self: Arc<Self>, stream: S, peer: Peer, watch: Arc<Watch>) {
        let way = Way::plain(peer);
        if self.settings().h2c {
            Box::pin(self.serve_either(Box::new(stream), way, watch)).await;
        } else {
            self.serve(stream, way, watch).await;
        }
    }

    /// Serves a connection that is to begin with a TLS handshake.
    pub async fn serve_tls(
        self: Arc<Self>,
        tls: Arc<Tls>,
        stream: Box<dyn Stream>,
        peer: Peer,
        watch: Arc<Watch>,
    ) {
        // Boxed: of the handshake nothing is left when it is over, and of HTTP/2 nothing is there before.
        let Some(shaken) = Box::pin(shake_hands(tls, stream, peer, &watch)).await else {
            return;
        };
        let (stream, way, http2) = shaken;
        if http2 {
            Box::pin(self.serve_http2(stream, way, watch)).await;
        } else {
            self.serve(stream, way, watch).await;
        }
    }

    /// The client may speak either.
    async fn serve_either(self: Arc<Self>, stream: Box<dyn Stream>, way: Way, watch: Arc<Watch>) {
        let Some(stream) = self.begun(stream, &watch).await else {
            return;
        };
        if stream.read == PREFACE {
            http2::serve(self, stream, way, &watch).await;
        } else {
            self.serve(stream, way, watch).await;
        }
    }

    /// The client has said that it speaks HTTP/2.
    async fn serve_http2(self: Arc<Self>, stream: Box<dyn Stream>, way: Way, watch: Arc<Watch>) {
        let Some(mut stream) = self.begun(stream, &watch).await else {
            return;
        };
        if stream.read == PREFACE {
            http2::serve(self, stream, way, &watch).await;
        } else if !stream.read.is_empty() && http2::refuse(&mut stream).await.is_ok() {
            linger(stream).await;
        }
    }

    /// The connection with its first bytes read, as far as they can be HTTP/2's preface. None: nobody needs it
    /// any more.
    async fn begun(
        &self,
        mut stream: Box<dyn Stream>,
        watch: &Watch,
    ) -> Option<Resumed<Box<dyn Stream>>> {
        let reading = async {
            let mut begun = Vec::with_capacity(PREFACE.len());
            while begun.len() < PREFACE.len() && PREFACE.starts_with(&begun) {
                let left = PREFACE.len() - begun.len();
                let mut part = (&mut *stream).take(left as u64);
                if part.read_buf(&mut begun).await? == 0 {
                    break;
                }
            }
            Ok::<_, io::Error>(Bytes::from(begun))
        };
        let read = tokio::select! {
            biased; // A request that is there is worth more than a drain that has begun.
            begun = reading => begun.ok(),
            () = watch.alarm.rang() => None,
            () = self.drain_begun() => None,
        }?;
        Some(Resumed { read, line: stream })
    }
}

/// Makes the handshake of TLS. Tells whether the client chose HTTP/2. None: there is nobody to serve.
async fn shake_hands(
    tls: Arc<Tls>,
    stream: Box<dyn Stream>,
    peer: Peer,
    watch: &Watch,
) -> Option<(Box<dyn Stream>, Way, bool)> {
    if speaks_plain_http(&stream) {
        tls.refused_plain();
        refuse_plain_http(stream).await;
        return None;
    }
    watch.within(tls::HANDSHAKE);
    let accepted = tokio::select! {
        accepted = tls.accept(stream) => accepted,
        () = watch.alarm.rang() => {
            tracing::debug!(%peer, "the TLS handshake took too long");
            return None;
        }
    };
    watch.idle();
    match accepted {
        Ok((stream, credential)) => {
            let way = Way {
                peer,
                scheme: Scheme::Https,
                credential,
            };
            let http2 = tls::chose_http2(&stream);
            Some((Box::new(stream), way, http2))
        }
        Err(error) => {
            tracing::debug!(%peer, %error, "no TLS connection");
            None
        }
    }
}

/// Whether the first byte that is there is that of a method: a handshake begins with 22.
fn speaks_plain_http(stream: &impl Stream) -> bool {
    let mut first = [0; 1];
    let peeked = rustix::net::recv(
        stream.line(),
        &mut first,
        RecvFlags::PEEK | RecvFlags::DONTWAIT,
    );
    // What cannot be seen yet is left to the handshake.
    peeked.is_ok() && first[0].is_ascii_uppercase()
}

async fn refuse_plain_http(mut stream: Box<dyn Stream>) {
    let told = async {
        stream.write_all(NOT_PLAIN.as_bytes()).await?;
        stream.shutdown().await
    };
    if told.await.is_ok() {
        linger(stream).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_says_how_long_it_is() {
        let (head, body) = NOT_PLAIN.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())));
    }
}
