//! A connection to a verified server, as hyper reads and writes it.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::ServerInfo;
use crate::cut::Cuttable;

/// A connection to a server that has proven who it is.
pub struct MeshStream {
    io: TokioIo<Cuttable<TlsStream<TcpStream>>>,
    info: ServerInfo,
}

impl MeshStream {
    pub(super) fn new(stream: Cuttable<TlsStream<TcpStream>>, info: ServerInfo) -> Self {
        Self { io: TokioIo::new(stream), info }
    }

    /// Who the server is and what was agreed on.
    #[must_use]
    pub fn info(&self) -> &ServerInfo {
        &self.info
    }
}

impl Connection for MeshStream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(self.info.clone());
        if matches!(self.info.alpn(), Some(b"h2" | b"istio-h2")) {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl Read for MeshStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for MeshStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl fmt::Debug for MeshStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshStream").field("info", &self.info).finish_non_exhaustive()
    }
}
