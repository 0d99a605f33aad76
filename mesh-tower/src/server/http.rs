//! HTTP on an accepted connection, until its life is over.

use std::error::Error as StdError;
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
use tokio::time::timeout;
use tower_service::Service;

use super::accept::Accepted;
use super::asks::when_asked;
use super::life::{End, Life};
use super::limits::Limits;
use super::requests::{Counted, Requests};
use super::rewind::{HttpVersion, Rewind};
use crate::connection::ConnectionInfo;

/// How often HTTP/2 asks a silent peer whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// The most header fields that hyper takes when nobody says how many (`http1::Builder::max_headers`).
const HYPERS_HEADERS: usize = 100;

/// What a service may fail with: whatever hyper can carry.
type BoxError = Box<dyn StdError + Send + Sync>;

/// Speaks HTTP with a client for as long as the connection lives.
pub(crate) async fn serve_http<S, B>(accepted: Accepted, limits: &Limits, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S: Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let Accepted { stream, info, mut life } = accepted;
    // [SEC-HTTP-14] hyper has no deadline for the bytes that tell the version.
    let sniffed = tokio::select! {
        sniffed = timeout(limits.request_head, Rewind::sniff(stream)) => sniffed,
        // Nothing has been asked yet, so nothing needs draining.
        _ = life.over() => return,
    };
    let Ok(Ok((version, stream))) = sniffed else { return };
    let io = TokioIo::new(stream);
    // HTTP/1 has a deadline for the next head, and needs no count.
    let requests = (version == HttpVersion::Http2).then(Requests::default);
    let service = WithConnection { service, info: Some(info.clone()) };
    let service = Counted { service, requests: requests.clone() };
    let service = TowerToHyperService::new(service);
    let served = match version {
        _ if !is_as_agreed(&info, version) => {
            tracing::debug!(peer = %info.peer_address(), "not the HTTP that was agreed on");
            return;
        }
        HttpVersion::Http1 => {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(limits.request_head)
                .max_header_size(usize::try_from(limits.head_bytes).unwrap_or(usize::MAX));
            // Room that hyper makes for another number than its own is cleared for each request.
            if limits.headers != HYPERS_HEADERS {
                builder.max_headers(limits.headers);
            }
            let connection = pin!(builder.serve_connection(io, service).with_upgrades());
            let finish = http1::UpgradeableConnection::graceful_shutdown;
            until_over(connection, finish, &mut life, requests.as_ref(), limits).await
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
            let finish = http2::Connection::graceful_shutdown;
            until_over(connection, finish, &mut life, requests.as_ref(), limits).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(peer = %info.peer_address(), %error, "connection ended");
    }
    // A stream that was handed on, as after an upgrade, is watched until it is gone.
    life.watch().await;
}

/// [SEC-TLS-6] What ALPN settled is what is spoken.
fn is_as_agreed(info: &ConnectionInfo, version: HttpVersion) -> bool {
    match (info.tls().and_then(|tls| tls.alpn.as_deref()), version) {
        (Some(b"h2"), HttpVersion::Http1) | (Some(b"http/1.1"), HttpVersion::Http2) => false,
        (_, HttpVersion::Http1 | HttpVersion::Http2) => true,
    }
}

/// Drives a connection; when its life is over, asks it to finish and then cuts it.
async fn until_over<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    finish: impl FnOnce(Pin<&mut C>),
    life: &mut Life,
    requests: Option<&Requests>,
    limits: &Limits,
) -> hyper::Result<()> {
    let end = async {
        tokio::select! {
            end = life.over() => end,
            () = idle(requests, limits.connection_idle) => End::Idle,
        }
    };
    // Each request wakes the connection twice or more; what ends it is rare.
    let end = tokio::select! {
        done = connection.as_mut() => return done,
        end = when_asked(end) => end,
    };
    finish(connection.as_mut());
    timeout(end.drain(limits), connection).await.unwrap_or(Ok(()))
}

/// Resolves when there has been no request for the limit ([SEC-HTTP-14]).
async fn idle(requests: Option<&Requests>, limit: Option<Duration>) {
    match (requests, limit) {
        (Some(requests), Some(limit)) => requests.idle(limit).await,
        _ => std::future::pending().await,
    }
}

/// Puts the connection's facts into every request; without any, the layer refuses them all.
#[derive(Clone, Debug)]
pub(crate) struct WithConnection<S> {
    pub(crate) service: S,
    pub(crate) info: Option<ConnectionInfo>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithConnection<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        if let Some(info) = &self.info {
            request.extensions_mut().insert(info.clone());
        }
        self.service.call(request)
    }
}
