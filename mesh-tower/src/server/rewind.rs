//! Bytes that were read to learn the protocol, put back in front of the stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// How every HTTP/2 connection begins (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum HttpVersion {
    Http1,
    Http2,
}

/// A stream whose first bytes have been looked at.
#[derive(Debug)]
pub(super) struct Rewind<T> {
    first: Bytes,
    rest: T,
}

impl<T: AsyncRead + Unpin> Rewind<T> {
    /// Reads until the HTTP/2 preface is complete or can no longer come.
    ///
    /// The caller sets the deadline: a client may send one byte an hour.
    pub(super) async fn sniff(mut rest: T) -> io::Result<(HttpVersion, Self)> {
        let mut first = Vec::with_capacity(HTTP2_PREFACE.len());
        let mut chunk = [0_u8; HTTP2_PREFACE.len()];
        while first.len() < HTTP2_PREFACE.len() && HTTP2_PREFACE.starts_with(&first) {
            let missing = HTTP2_PREFACE.len().saturating_sub(first.len());
            let room = chunk.get_mut(..missing).unwrap_or_default();
            let count = rest.read(room).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            first.extend_from_slice(room.get(..count).unwrap_or_default());
        }
        let version = if first == HTTP2_PREFACE { HttpVersion::Http2 } else { HttpVersion::Http1 };
        Ok((version, Self { first: first.into(), rest }))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.rest).poll_read(cx, buf);
        }
        let count = self.first.len().min(buf.remaining());
        buf.put_slice(self.first.get(..count).unwrap_or_default());
        self.first.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Rewind<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.rest).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.rest.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.rest).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing that the sniff read is lost, however the bytes arrive.
    #[tokio::test]
    async fn the_sniff_loses_no_byte() {
        let with_preface = [HTTP2_PREFACE, b"more"].concat();
        for (sent, want) in [
            (&b"GET / HTTP/1.1\r\n\r\n"[..], HttpVersion::Http1),
            (b"PRI * HTTP/1.1\r\n\r\n", HttpVersion::Http1),
            (b"P", HttpVersion::Http1),
            (&with_preface, HttpVersion::Http2),
        ] {
            for step in [1, 7, 100] {
                let mut parts = tokio_test_reader(sent, step);
                let sniffed = Rewind::sniff(&mut parts).await;
                if sent == b"P" {
                    assert!(sniffed.is_err_and(|e| e.kind() == io::ErrorKind::UnexpectedEof));
                    continue;
                }
                let (version, mut stream) = sniffed.unwrap();
                let mut all = Vec::new();
                stream.read_to_end(&mut all).await.unwrap();
                assert_eq!((version, all.as_slice()), (want, sent), "step {step}");
            }
        }
    }

    /// A reader that gives `step` bytes at a time.
    fn tokio_test_reader(data: &[u8], step: usize) -> impl AsyncRead + Unpin + use<> {
        let (mut write, read) = tokio::io::duplex(step);
        let data = data.to_vec();
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            write.write_all(&data).await.unwrap();
        });
        read
    }
}
