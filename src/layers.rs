//! What layers over a connection's bytes have in common.
//!
//! Most look at one direction only: [`writes_through`] and [`reads_through`] are the other one.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

/// Writes of a layer (with the type parameter of what is below it, and its field) go below as they are.
macro_rules! writes_through {
    ($line:ident, $layer:ty, $field:ident) => {
        impl<$line: tokio::io::AsyncWrite + Unpin> tokio::io::AsyncWrite for $layer {
            fn poll_write(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &[u8],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write(cx, buf)
            }

            fn poll_flush(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_flush(cx)
            }

            fn poll_shutdown(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_shutdown(cx)
            }

            fn poll_write_vectored(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                bufs: &[std::io::IoSlice<'_>],
            ) -> std::task::Poll<std::io::Result<usize>> {
                std::pin::Pin::new(&mut self.$field).poll_write_vectored(cx, bufs)
            }

            fn is_write_vectored(&self) -> bool {
                self.$field.is_write_vectored()
            }
        }
    };
}

/// Reads of a layer go below as they are; as [`writes_through`].
macro_rules! reads_through {
    ($line:ident, $layer:ty, $field:ident) => {
        impl<$line: tokio::io::AsyncRead + Unpin> tokio::io::AsyncRead for $layer {
            fn poll_read(
                mut self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
                buf: &mut tokio::io::ReadBuf<'_>,
            ) -> std::task::Poll<std::io::Result<()>> {
                std::pin::Pin::new(&mut self.$field).poll_read(cx, buf)
            }
        }
    };
}

pub(crate) use reads_through;
pub(crate) use writes_through;

/// A connection of which something has been read already: that comes first.
pub struct Resumed<L> {
    pub read: Bytes,
    pub line: L,
}

impl<L: AsyncRead + Unpin> AsyncRead for Resumed<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            return Pin::new(&mut self.line).poll_read(cx, buf);
        }
        let count = self.read.len().min(buf.remaining());
        buf.put_slice(&self.read[..count]);
        self.read.advance(count);
        Poll::Ready(Ok(()))
    }
}

writes_through!(L, Resumed<L>, line);

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn what_was_read_first_comes_first_however_it_is_read() {
        let (mut far, near) = tokio::io::duplex(64);
        far.write_all(b"rest").await.expect("there is room");
        drop(far);
        let mut stream = Resumed {
            read: Bytes::from_static(b"begun "),
            line: near,
        };
        let mut bytes = Vec::new();
        while let Ok(byte) = stream.read_u8().await {
            bytes.push(byte);
        }
        assert_eq!(bytes, b"begun rest");
    }
}
