//! A client with a pool that respects rotation.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tower_service::Service;

use super::{Connector, ServerInfo};

/// An HTTP client of the mesh: requests go to declared services, over connections that are reused
/// for as long as both sides' certificates are far from their end and nothing was rotated
/// ([SEC-TLS-12]).
///
/// It is a tower service, as generated gRPC clients take it, and hyper-util's pooled client inside:
/// the URI of a request needs scheme and host, and [`ServerInfo`] is among a response's extensions.
/// Cloning shares the pool.
pub struct MeshClient<B> {
    client: legacy::Client<Connector, B>,
}

impl<B> MeshClient<B>
where
    B: Body + Send,
    B::Data: Send,
{
    pub(super) fn new(connector: Connector) -> Self {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder.timer(TokioTimer::new()).pool_timer(TokioTimer::new());
        Self { client: builder.build(connector) }
    }
}

impl<B> Service<Request<B>> for MeshClient<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = Response<Incoming>;
    type Error = legacy::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let connection = capture_connection(&mut request);
        let answering = self.client.request(request);
        Box::pin(async move {
            let response = answering.await?;
            if let Some(server) = response.extensions().get::<ServerInfo>() {
                server.reuse.pooled(&connection);
            }
            Ok(response)
        })
    }
}

impl<B> Clone for MeshClient<B> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone() }
    }
}

impl<B> fmt::Debug for MeshClient<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshClient").finish_non_exhaustive()
    }
}
