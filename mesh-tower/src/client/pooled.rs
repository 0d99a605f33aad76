//! A client with a pool that respects rotation.

use std::error::Error as StdError;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;
use tracing::Instrument as _;

use super::body::{ClientBody, OutboundBody};
use super::call::Call;
use super::{ConnectError, Connector};

/// An HTTP client of the mesh: requests go to declared services, over connections that are reused
/// for as long as both sides' certificates are far from their end and nothing was rotated
/// ([SEC-TLS-12]).
///
/// It is a tower service, as generated gRPC clients take it, and hyper-util's pooled client inside:
/// the URI of a request needs scheme and host, and [`crate::ServerInfo`] is among a response's
/// extensions. Cloning shares the pool.
///
/// Each request is counted in Istio's metrics with `reporter="source"`: under the status of its
/// answer; as 503 with the flag `UF` when no connection to a verified server came about, and `UC` when
/// one broke before the answer; as 502 with `NR` for a host that was not declared; with `DC` when the
/// program gave up. It has a `tracing` span (target `mesh_tower::client`), and goes on in the trace of
/// the [`crate::TraceContext`] in its extensions, else of its own `traceparent`, else of the request
/// whose handler makes it.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http::Request;
/// use http_body_util::{BodyExt as _, Empty};
/// use mesh_tower::{MeshClient, TraceContext};
/// use tower::ServiceExt as _;
///
/// /// Asks another service in a task of its own, which is in no trace by itself.
/// fn prefetch(client: MeshClient<Empty<Bytes>>, trace: TraceContext) {
///     tokio::spawn(async move {
///         let mut request = Request::get("https://stock/items").body(Empty::new())?;
///         request.extensions_mut().insert(trace);
///         let response = client.oneshot(request).await?;
///         let body = response.into_body().collect().await?.to_bytes();
///         Ok::<Bytes, Box<dyn std::error::Error + Send + Sync>>(body)
///     });
/// }
/// ```
pub struct MeshClient<B> {
    connector: Connector,
    client: legacy::Client<Connector, OutboundBody<B>>,
}

/// Why a request got no answer.
#[derive(Debug)]
pub struct ClientError {
    /// Nothing when the connection ended and took the request with it.
    inner: Option<legacy::Error>,
}

impl ClientError {
    /// Why no connection came about; nothing when there was one, and it or the exchange over it
    /// failed.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_tower::{ClientError, ConnectError};
    ///
    /// fn is_impostor(error: &ClientError) -> bool {
    ///     matches!(error.connect(), Some(ConnectError::Server(_)))
    /// }
    /// ```
    #[must_use]
    pub fn connect(&self) -> Option<&ConnectError> {
        self.inner.as_ref()?.source()?.downcast_ref()
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.connect() {
            Some(_) => f.write_str("no connection to the service"),
            None => f.write_str("no answer from the service"),
        }
    }
}

impl StdError for ClientError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.inner.as_ref()?.source()
    }
}

impl<B> MeshClient<B>
where
    B: Body + Send,
    B::Data: Send,
{
    pub(super) fn new(connector: Connector) -> Self {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
        Self { client: builder.build(connector.clone()), connector }
    }
}

impl<B> Service<Request<B>> for MeshClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<ClientBody>;
    type Error = ClientError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut call, request) = Call::begin(&self.connector, request);
        let answering = self.client.request(request).instrument(call.span().clone());
        Box::pin(async move {
            let answered = tokio::select! {
                biased;
                answered = answering => answered,
                () = call.abandoned() => {
                    call.lost();
                    return Err(ClientError { inner: None });
                }
            };
            match answered {
                Ok(response) => {
                    call.answered(&response);
                    Ok(response.map(|body| ClientBody::new(body, call)))
                }
                Err(inner) => {
                    call.failed(&inner);
                    Err(ClientError { inner: Some(inner) })
                }
            }
        })
    }
}

impl<B> Clone for MeshClient<B> {
    fn clone(&self) -> Self {
        Self { connector: self.connector.clone(), client: self.client.clone() }
    }
}

impl<B> fmt::Debug for MeshClient<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshClient").finish_non_exhaustive()
    }
}
