//! The accept loop and the life of each connection.

use std::error::Error as StdError;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tower_service::Service;

use super::accept::{AcceptError, Accepted, Stream, accept};
use super::handshakes::Handshakes;
use super::rewind::{HttpVersion, Rewind};
use crate::connection::ConnectionInfo;
use crate::mesh::Mesh;

/// How long the loop rests after an accept error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How often HTTP/2 asks a silent peer whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// What a service may fail with: whatever hyper can carry.
type BoxError = Box<dyn StdError + Send + Sync>;

/// Accepts connections until `shutdown` resolves, then drains them.
///
/// Accept errors never end the loop ([SEC-TLS-14]); each connection runs in a task of its own, so
/// that no client can delay another's handshake.
pub(crate) async fn serve<S, B>(
    listener: TcpListener,
    mesh: Mesh,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let local = listener.local_addr()?;
    let handshakes = Handshakes::new(mesh.limits().handshakes);
    let (stop, stopped) = watch::channel(());
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed; going on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // The address that was connected to; on a wildcard listener it differs from the listener's.
        let local = stream.local_addr().unwrap_or(local);
        let begun = Begun { stream, addresses: (peer, local), handshakes: handshakes.clone() };
        let (mesh, service, stopped) = (mesh.clone(), service.clone(), stopped.clone());
        tokio::spawn(async move {
            match begun.finish(&mesh).await {
                Ok(accepted) => connection(accepted, mesh, service, stopped).await,
                Err(error) => mesh.observe_refused_connection(peer, &error),
            }
        });
    }
    drop(listener);
    drop(stopped);
    // Every connection holds a receiver; when the last is gone, all have drained.
    stop.send(()).ok();
    stop.closed().await;
    Ok(())
}

/// A connection whose handshake has not ended.
struct Begun {
    stream: TcpStream,
    addresses: (SocketAddr, SocketAddr),
    handshakes: Handshakes,
}

impl Begun {
    async fn finish(self, mesh: &Mesh) -> Result<Accepted, AcceptError> {
        self.stream.set_nodelay(true).map_err(AcceptError::Io)?;
        let mut place = self.handshakes.begin();
        let snapshot = mesh.snapshot();
        let handshake = accept(self.stream, self.addresses, &snapshot, mesh.clock());
        tokio::select! {
            done = timeout(mesh.limits().handshake, handshake) => {
                done.unwrap_or(Err(AcceptError::Deadline))
            }
            () = place.evicted() => Err(AcceptError::Evicted),
        }
    }
}

async fn connection<S, B>(accepted: Accepted, mesh: Mesh, service: S, stopped: watch::Receiver<()>)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Accepted { stream, info } = accepted;
    let ending = Ending { mesh: mesh.clone(), info: info.clone(), stopped };
    let service = TowerToHyperService::new(WithConnection { service, info: info.clone() });
    let served = match stream {
        Stream::Plain(stream) => http(stream, &info, &mesh, service, ending).await,
        Stream::Tls(stream) => http(*stream, &info, &mesh, service, ending).await,
    };
    if let Err(error) = served {
        tracing::debug!(peer = %info.peer_address(), %error, "connection ended");
    }
}

async fn http<T, S, B>(
    stream: T,
    info: &ConnectionInfo,
    mesh: &Mesh,
    service: TowerToHyperService<WithConnection<S>>,
    ending: Ending,
) -> Result<(), BoxError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Service<Request<Incoming>, Response = Response<B>>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let limits = mesh.limits();
    // [SEC-HTTP-14] hyper has no deadline for the bytes that tell the version.
    let (version, stream) = timeout(limits.request_head, Rewind::sniff(stream)).await??;
    let agreed = info.tls().and_then(|tls| tls.alpn.as_deref());
    // [SEC-TLS-6] What ALPN settled is what is spoken.
    let version = match (agreed, version) {
        (Some(b"h2"), HttpVersion::Http1) => return Err("not the HTTP/2 that was agreed on".into()),
        (Some(b"http/1.1"), HttpVersion::Http2) => {
            return Err("not the HTTP/1.1 that was agreed on".into());
        }
        (_, version) => version,
    };
    let io = TokioIo::new(stream);
    let drain = limits.drain;
    match version {
        HttpVersion::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.request_head)
                .max_headers(limits.headers)
                .max_header_size(usize::try_from(limits.head_bytes).unwrap_or(usize::MAX));
            let connection = pin!(builder.serve_connection(io, service));
            until_ended(connection, http1::Connection::graceful_shutdown, ending, drain).await?;
        }
        HttpVersion::Http2 => {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_header_list_size(limits.head_bytes)
                .max_concurrent_streams(limits.streams)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_INTERVAL);
            let connection = pin!(builder.serve_connection(io, service));
            until_ended(connection, http2::Connection::graceful_shutdown, ending, drain).await?;
        }
    }
    Ok(())
}

/// Drives a connection; when its time is over, asks it to finish and then cuts it.
async fn until_ended<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    finish: impl FnOnce(Pin<&mut C>),
    ending: Ending,
    drain: Duration,
) -> hyper::Result<()> {
    tokio::select! {
        done = connection.as_mut() => return done,
        why = ending.reached() => tracing::debug!(why, "connection is being drained"),
    }
    finish(connection.as_mut());
    timeout(drain, connection).await.unwrap_or(Ok(()))
}

/// Waits for whatever ends a connection from our side.
struct Ending {
    mesh: Mesh,
    info: ConnectionInfo,
    stopped: watch::Receiver<()>,
}

impl Ending {
    /// Resolves when the server stops, the peer's certificate ends ([SEC-TLS-12]), or the peer is
    /// no longer trusted ([SEC-TLS-13]).
    async fn reached(mut self) -> &'static str {
        let mut changes = self.mesh.changes();
        loop {
            tokio::select! {
                _ = self.stopped.changed() => return "the server stops",
                () = sleep_until_end(&self.mesh, &self.info) => return "the peer's certificate ended",
                news = changes.changed() => {
                    if news.is_err() {
                        return "the mesh is gone";
                    }
                }
            }
            if let Some(peer) = self.info.peer()
                && self.mesh.snapshot().recheck_peer(peer, self.mesh.clock().now()).is_err()
            {
                return "the peer is no longer trusted";
            }
        }
    }
}

/// Wakes at least once a minute, so that a wall clock that was set is noticed ([SEC-OPS-5]).
async fn sleep_until_end(mesh: &Mesh, info: &ConnectionInfo) {
    const NAP: Duration = Duration::from_secs(60);
    let Some(end) = info.peer().and_then(mesh_identity::VerifiedPeer::not_after) else {
        return std::future::pending().await;
    };
    loop {
        let left = end.as_secs().saturating_sub(mesh.clock().now().as_secs());
        if left == 0 {
            return;
        }
        tokio::time::sleep(NAP.min(Duration::from_secs(left))).await;
    }
}

/// Puts the connection's facts into every request.
#[derive(Clone, Debug)]
struct WithConnection<S> {
    service: S,
    info: ConnectionInfo,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithConnection<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        request.extensions_mut().insert(self.info.clone());
        self.service.call(request)
    }
}
