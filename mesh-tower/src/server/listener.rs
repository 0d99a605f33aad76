//! The mesh's acceptor as a listener for `axum::serve`.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use super::accept::Accepted;
use super::listen::each_connection;
use super::server::Server;
use super::stream::ServerStream;
use crate::connection::ConnectionInfo;
use crate::cut::Cuttable;
#[cfg(doc)]
use crate::mesh::Mesh;

/// Connections whose handshake is done and that `axum::serve` has not taken yet.
const WAITING: usize = 64;

/// A listener for `axum::serve` that hands out connections of the mesh.
///
/// Handshakes run beside the accept loop, and a connection is cut when its peer's certificate or
/// trust ends ([SEC-TLS-12], [SEC-TLS-13]). `axum::serve` itself has no deadline for heads and no
/// limit on them; [`Mesh::serve`] has both ([SEC-HTTP-14]) and is to be preferred.
///
/// Serve [`Mesh::make_service`] on it: a router alone would not be guarded, and the guard refuses
/// connections that it does not know.
pub struct MeshListener {
    address: ListenerAddress,
    accepted: mpsc::Receiver<(MeshIo, ConnectionInfo)>,
    /// Stops the accept loop when the listener is dropped.
    _stop: oneshot::Sender<()>,
}

/// The address of a [`MeshListener`], or the facts of one of its connections.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ListenerAddress {
    /// Where the listener is bound.
    Bound(std::net::SocketAddr),
    /// A connection that the mesh has accepted.
    Connection(ConnectionInfo),
}

/// A connection's bytes, cut when its peer has lost its proof.
pub struct MeshIo(Cuttable<ServerStream>);

impl MeshListener {
    pub(crate) fn start(server: Server) -> io::Result<Self> {
        let address = ListenerAddress::Bound(server.listener.local_addr()?);
        let (send, accepted) = mpsc::channel(WAITING);
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            let each = move |accepted: Accepted| {
                let send = send.clone();
                async move {
                    let Accepted { stream, info, life } = accepted;
                    if send.send((MeshIo(stream), info)).await.is_ok() {
                        life.watch().await;
                    }
                }
            };
            // The loop ends when the listener is dropped; connections go on.
            drop(each_connection(server, async { drop(stopped.await) }, each).await);
        });
        Ok(Self { address, accepted, _stop: stop })
    }
}

impl axum::serve::Listener for MeshListener {
    type Io = MeshIo;
    type Addr = ListenerAddress;

    async fn accept(&mut self) -> (MeshIo, ListenerAddress) {
        match self.accepted.recv().await {
            Some((io, info)) => (io, ListenerAddress::Connection(info)),
            // The accept loop only ends with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<ListenerAddress> {
        Ok(self.address.clone())
    }
}

impl fmt::Debug for MeshListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshListener").field("address", &self.address).finish_non_exhaustive()
    }
}

impl fmt::Debug for MeshIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshIo").finish_non_exhaustive()
    }
}

impl AsyncRead for MeshIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for MeshIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
