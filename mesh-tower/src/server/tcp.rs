//! TCP services: one decision for each connection, before a byte of it is read.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::accept::Accepted;
use super::stream::ServerStream;
use crate::cut::Cuttable;
use crate::guard::{self, Permit};
use crate::mesh::Mesh;

/// A connection that every policy has admitted, with proof of who is on the other end.
pub struct TcpConnection {
    io: Cuttable<ServerStream>,
    permit: Permit,
    bytes: Arc<Bytes>,
}

/// What went over a connection.
#[derive(Debug, Default)]
struct Bytes {
    received: AtomicU64,
    sent: AtomicU64,
}

impl TcpConnection {
    /// Who connected, and what decided.
    #[must_use]
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    /// Counts what was written.
    fn sent(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(count)) = written {
            self.bytes.sent.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        written
    }
}

impl fmt::Debug for TcpConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpConnection").field("permit", &self.permit).finish_non_exhaustive()
    }
}

/// Judges a connection and hands it to `handler`, or closes it without a byte ([SEM-TCP-10]).
///
/// When its life is over, `handler` may finish what it does for the time of the drain; then it is
/// dropped, and a stream that it has moved elsewhere is cut.
pub(super) async fn serve_tcp<F, Fut>(accepted: Accepted, mesh: &Mesh, handler: F)
where
    F: Fn(TcpConnection) -> Fut + Send,
    Fut: Future<Output = ()> + Send,
{
    let Accepted { stream: io, info, mut life } = accepted;
    let snapshot = mesh.snapshot();
    let permit = match guard::admit_connection(mesh, &snapshot, &info) {
        Ok(permit) => permit,
        Err(detail) => {
            mesh.observe_refused_connection(info.peer_address(), &detail);
            return;
        }
    };
    drop(snapshot);
    let counted = mesh.telemetry().tcp_opened();
    let bytes = Arc::<Bytes>::default();
    let connection = TcpConnection { io, permit, bytes: Arc::clone(&bytes) };
    {
        let mut handling = pin!(handler(connection));
        tokio::select! {
            () = handling.as_mut() => {}
            end = life.over() => {
                timeout(end.drain(mesh.limits()), handling.as_mut()).await.ok();
            }
        }
    }
    life.watch().await;
    counted.closed((bytes.received.load(Ordering::Relaxed), bytes.sent.load(Ordering::Relaxed)));
}

impl AsyncRead for TcpConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let count = buf.filled().len().saturating_sub(before);
        self.bytes.received.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        read
    }
}

impl AsyncWrite for TcpConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, data);
        self.sent(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, data);
        self.sent(written)
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
