//! TCP services: one decision for each connection, before a byte of it is read.

use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use super::accept::Accepted;
use super::stream::ServerStream;
use crate::custom;
use crate::cut::Cuttable;
use crate::guard::{self, Permit};
use crate::mesh::Mesh;
use crate::telemetry::TcpSeries;

/// A connection that every policy has admitted, with proof of who is on the other end.
pub struct TcpConnection {
    io: Cuttable<ServerStream>,
    permit: Permit,
    series: Arc<TcpSeries>,
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
            self.series.sent.add(u64::try_from(count).unwrap_or(u64::MAX));
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
    let asking = custom::ask_connection(&snapshot, &info, mesh.clock().now());
    let judged = tokio::select! {
        answers = asking => answers.and_then(|answers| {
            let permit = guard::admit_connection(mesh, &snapshot, &info, &answers)?;
            life.admitted_by(&snapshot, answers);
            Ok(permit)
        }),
        end = life.over() => Err(format!("connection_ended{{{end}}}")),
    };
    let permit = match judged {
        Ok(permit) => permit,
        Err(detail) => {
            mesh.observe_refused_connection(info.peer_address(), &detail);
            return;
        }
    };
    drop(snapshot);
    let series = info.series(mesh.telemetry()).begin_tcp();
    series.opened.add(1);
    let connection = TcpConnection { io, permit, series: Arc::clone(&series) };
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
    series.closed.add(1);
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
        self.series.received.add(u64::try_from(count).unwrap_or(u64::MAX));
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
