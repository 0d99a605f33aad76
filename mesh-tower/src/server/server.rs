//! A listener with its settings, before it is known what is served on it.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use ipnet::IpNet;
use tokio::net::TcpListener;
use tower_layer::Layer as _;
use tower_service::Service;

use super::http::serve_http;
use super::listen::each_connection;
use super::proxy_protocol::ProxyPeers;
use super::tcp::{self, TcpConnection};
use crate::RequestBody;
use crate::mesh::Mesh;

/// A listener of the mesh with its own settings; made by [`Mesh::server`].
///
/// # Examples
///
/// ```no_run
/// # async fn run<S>(mesh: mesh_tower::Mesh, app: axum::Router) -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:8443").await?;
/// let balancers = "10.0.0.0/24".parse().expect("a block");
/// mesh.server(listener).proxy_protocol_from([balancers]).serve(app, std::future::pending()).await
/// # }
/// ```
#[must_use = "serve it"]
pub struct Server {
    pub(super) mesh: Mesh,
    pub(super) listener: TcpListener,
    pub(super) options: Options,
}

/// What holds for every connection of a listener.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    pub(super) proxies: ProxyPeers,
    pub(super) destination: Option<SocketAddr>,
}

impl Server {
    pub(crate) fn new(mesh: Mesh, listener: TcpListener) -> Self {
        Self { mesh, listener, options: Options::default() }
    }

    /// Reads the PROXY protocol (versions 1 and 2) from load balancers with these addresses, and
    /// demands it of them. Everybody else is a direct client ([SEM-AUTHZ-32]).
    pub fn proxy_protocol_from(mut self, balancers: impl IntoIterator<Item = IpNet>) -> Self {
        self.options.proxies = ProxyPeers::new(balancers);
        self
    }

    /// The address that policies and PeerAuthentication's ports mean, where the network translates
    /// it: a published container port, a redirection. Without it, it is the socket's.
    pub fn destination(mut self, address: SocketAddr) -> Self {
        self.options.destination = Some(address);
        self
    }

    /// Serves HTTP until `shutdown` resolves, then drains; as [`Mesh::serve`].
    ///
    /// # Errors
    ///
    /// When the listener has no local address. Failures of single connections never end it.
    pub async fn serve<S, B>(self, service: S, shutdown: impl Future<Output = ()>) -> io::Result<()>
    where
        S: Service<Request<RequestBody<Incoming>>, Response = Response<B>>,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let guarded = self.mesh.layer().layer(service);
        let limits = Arc::new(self.mesh.limits().clone());
        each_connection(self, shutdown, move |accepted| {
            let (limits, guarded) = (Arc::clone(&limits), guarded.clone());
            async move { serve_http(accepted, &limits, guarded).await }
        })
        .await
    }

    /// Serves a TCP protocol until `shutdown` resolves, then drains.
    ///
    /// Policies are compiled for TCP ([SEM-TCP-03]) and each connection is judged before a byte of
    /// it is read ([SEM-STRICT-09]); `handler` sees only those that were admitted. It is dropped
    /// when the peer's certificate or its trust ends.
    ///
    /// # Errors
    ///
    /// When the policies do not compile for TCP, or the listener has no local address. Failures of
    /// single connections never end it.
    pub async fn serve_tcp<F, Fut>(
        self,
        handler: F,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()>
    where
        F: Fn(TcpConnection) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.mesh
            .begin_tcp()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let mesh = self.mesh.clone();
        each_connection(self, shutdown, move |accepted| {
            let (mesh, handler) = (mesh.clone(), handler.clone());
            async move { tcp::serve_tcp(accepted, &mesh, handler).await }
        })
        .await
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
