//! The client side: connect to a service of the mesh and prove who it is before a byte is sent.

mod body;
mod call;
mod life;
mod pooled;
mod stream;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use http_body::Body;
use mesh_authn::peer::{ClientProtocol, ClientTls, ExpectedServer, PeerError, TlsError};
use mesh_identity::VerifiedPeer;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use self::life::{ClientLife, Reuse};
use crate::clock::RustlsClock;
use crate::cut::Cuttable;
use crate::mesh::Mesh;
use crate::snapshot::{OwnIdentityError, Snapshot};
pub use body::ClientBody;
pub use pooled::{ClientError, MeshClient};
pub use stream::MeshStream;

/// From the first packet to a finished handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects HTTP clients to services of the mesh over mutual TLS.
///
/// It is a tower service from [`Uri`] to a stream, as hyper-util's client takes it. Each host of a
/// URI must have been declared with the identities it may have: there is no "any" ([SEC-TLS-5]).
/// A rotated identity or bundle counts for the next connection. A connection is cut when the
/// server's certificate has ended or is no longer trusted; [`MeshClient`] stops using it long
/// before that.
///
/// # Examples
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::Empty;
/// use mesh_tower::authn::peer::ExpectedServer;
/// use mesh_tower::{Connector, Mesh, MeshClient};
///
/// fn client(mesh: &Mesh) -> Result<MeshClient<Empty<Bytes>>, Box<dyn std::error::Error>> {
///     let cart = ExpectedServer::exact("spiffe://cluster.local/ns/shop/sa/cart".parse()?);
///     Ok(Connector::new(mesh.clone()).service("cart", "10.0.0.7:8443".parse()?, &cart).client())
/// }
/// ```
#[derive(Clone)]
pub struct Connector {
    mesh: Mesh,
    protocol: ClientProtocol,
    services: Arc<HashMap<String, Arc<Destination>>>,
}

/// Where a service listens and who must answer there.
struct Destination {
    host: Arc<str>,
    address: SocketAddr,
    expected: ExpectedServer,
    /// The TLS settings for one identity and trust of the mesh, made at the first connection.
    tls: Mutex<Option<(u64, ClientTls)>>,
    /// Connections that are being made.
    connecting: AtomicUsize,
}

/// One connection that is being made, for as long as this exists.
struct Connecting<'d>(&'d Destination);

impl<'d> Connecting<'d> {
    fn new(destination: &'d Destination) -> Self {
        destination.connecting.fetch_add(1, Ordering::AcqRel);
        Self(destination)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        self.0.connecting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is known about a connection's server; hyper-util hands it out with each response.
#[derive(Clone, Debug)]
pub struct ServerInfo {
    peer: VerifiedPeer,
    alpn: Option<Vec<u8>>,
    version: Option<rustls::ProtocolVersion>,
    reuse: Arc<Reuse>,
}

impl ServerInfo {
    /// The verified server.
    #[must_use]
    pub fn peer(&self) -> &VerifiedPeer {
        &self.peer
    }

    /// The protocol agreed on.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.alpn.as_deref()
    }

    /// Whether the connection should not be used for further requests: a certificate of either side
    /// has less than a tenth of its life left, or identity or trust have changed since.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.reuse.is_retired()
    }

    /// The TLS version agreed on.
    #[must_use]
    pub fn version(&self) -> Option<rustls::ProtocolVersion> {
        self.version
    }
}

/// Why a connection to a service did not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The TCP connection failed.
    #[error("cannot connect: {0}")]
    Connect(#[source] io::Error),

    /// The deadline passed.
    #[error("connecting took longer than {} s", CONNECT_TIMEOUT.as_secs())]
    Deadline,

    /// Our own identity cannot be used ([SEC-OPS-2]).
    #[error("{0}")]
    OwnIdentity(#[from] OwnIdentityError),

    /// The server has agreed on no HTTP that we were to speak ([SEC-TLS-6]).
    #[error("server does not speak the HTTP that was asked for")]
    Protocol,

    /// The server finished the handshake but is not who was expected.
    #[error("server is not verified: {0}")]
    Server(#[source] PeerError),

    /// The handshake failed.
    #[error("TLS handshake failed: {0}")]
    Tls(#[source] io::Error),

    /// TLS cannot be set up with the identity and bundles in force.
    #[error("TLS: {0}")]
    TlsSetup(#[source] TlsError),

    /// The URI names a host that was not declared.
    #[error("host is not a declared service of the mesh; declare it with Connector::service")]
    UnknownService,
}

impl ConnectError {
    /// Tells a server that was refused from any other failure.
    fn of_handshake(error: io::Error) -> Self {
        let refusal = error.get_ref().and_then(|inner| PeerError::of_handshake(inner));
        refusal.map_or(Self::Tls(error), Self::Server)
    }
}

impl Connector {
    /// A connector that knows no service yet, with the mesh's identity.
    #[must_use]
    pub fn new(mesh: Mesh) -> Self {
        Self { mesh, protocol: ClientProtocol::default(), services: Arc::default() }
    }

    /// Declares a service: the host of its URIs, where it listens, and who must answer there.
    #[must_use]
    pub fn service(
        mut self,
        host: impl Into<String>,
        address: SocketAddr,
        expected: &ExpectedServer,
    ) -> Self {
        let host = host.into();
        let destination = Destination::new(Arc::from(&*host), address, expected);
        let mut services = HashMap::clone(&self.services);
        services.insert(host, Arc::new(destination));
        self.services = Arc::new(services);
        self
    }

    /// Speaks only one version of HTTP.
    #[must_use]
    pub fn protocol(mut self, protocol: ClientProtocol) -> Self {
        self.protocol = protocol;
        // Settings that were made for another protocol are not used.
        let fresh = |one: &Arc<Destination>| {
            Arc::new(Destination::new(Arc::clone(&one.host), one.address, &one.expected))
        };
        let services = self.services.iter().map(|(host, one)| (host.clone(), fresh(one)));
        self.services = Arc::new(services.collect());
        self
    }

    /// A client that keeps connections and stops using them in time.
    #[must_use]
    pub fn client<B>(&self) -> MeshClient<B>
    where
        B: Body + Send,
        B::Data: Send,
    {
        MeshClient::new(self.clone())
    }

    /// The settings of TLS in force for a declared service, for a client that makes connections of its
    /// own, such as reqwest.
    ///
    /// They stay the same as long as identity and trust do. After a change of either they are others:
    /// compare [`ClientTls::config`] with [`Arc::ptr_eq`], and make the client anew. Such a client
    /// verifies the server at each handshake, and resumes only what is still verified; but it keeps a
    /// connection that is open, whatever becomes of the server's certificate, and it counts and traces
    /// nothing. [`MeshClient`] does all of that.
    ///
    /// # Errors
    ///
    /// A service that was not declared, an own identity that cannot be used, or settings that cannot be
    /// made.
    ///
    /// # Examples
    ///
    /// `examples/reqwest.rs` is the whole program.
    ///
    /// ```
    /// use std::sync::Arc;
    ///
    /// use mesh_tower::{ConnectError, Connector};
    /// use rustls::ClientConfig;
    ///
    /// /// The settings, and whether the client must be made anew.
    /// fn settings(
    ///     connector: &Connector,
    ///     held: Option<&Arc<ClientConfig>>,
    /// ) -> Result<(Arc<ClientConfig>, bool), ConnectError> {
    ///     let config = connector.tls("cart")?.config();
    ///     let is_new = held.is_none_or(|held| !Arc::ptr_eq(held, &config));
    ///     Ok((config, is_new))
    /// }
    /// ```
    pub fn tls(&self, host: &str) -> Result<ClientTls, ConnectError> {
        let destination = self.services.get(host).ok_or(ConnectError::UnknownService)?;
        let snapshot = self.mesh.snapshot();
        snapshot.check_own_identity(self.mesh.clock().now())?;
        destination.tls(&self.mesh, &snapshot, self.protocol).map_err(ConnectError::TlsSetup)
    }

    /// The declared service of this name.
    fn declared(&self, host: &str) -> Option<&Arc<Destination>> {
        self.services.get(host)
    }

    async fn connect(self, uri: Uri) -> Result<MeshStream, ConnectError> {
        let host = uri.host().unwrap_or_default();
        let destination = self.services.get(host).ok_or(ConnectError::UnknownService)?;
        let _connecting = Connecting::new(destination);
        let handshake = self.handshake(destination);
        timeout(CONNECT_TIMEOUT, handshake).await.unwrap_or(Err(ConnectError::Deadline))
    }

    async fn handshake(&self, destination: &Destination) -> Result<MeshStream, ConnectError> {
        let snapshot = self.mesh.snapshot();
        snapshot.check_own_identity(self.mesh.clock().now())?;
        let tls = destination.tls(&self.mesh, &snapshot, self.protocol);
        let tls = tls.map_err(ConnectError::TlsSetup)?;
        let stream =
            TcpStream::connect(destination.address).await.map_err(ConnectError::Connect)?;
        stream.set_nodelay(true).map_err(ConnectError::Connect)?;
        // SPIFFE looks at the identity, not at the name; an address sends no server name.
        let name = ServerName::IpAddress(destination.address.ip().into());
        let stream = TlsConnector::from(tls.config())
            .connect(name, stream)
            .await
            .map_err(ConnectError::of_handshake)?;
        let connection = stream.get_ref().1;
        let peer =
            tls.verified_peer(connection, self.mesh.clock().now()).map_err(ConnectError::Server)?;
        if !speaks(self.protocol, connection.alpn_protocol()) {
            return Err(ConnectError::Protocol);
        }
        let (reuse, alive) = Reuse::new();
        let info = ServerInfo {
            peer,
            alpn: connection.alpn_protocol().map(<[u8]>::to_vec),
            version: connection.protocol_version(),
            reuse: Arc::clone(&reuse),
        };
        let (stream, cutter) = Cuttable::new(stream);
        let peer = info.peer.clone();
        let life = ClientLife::new(self.mesh.clone(), &snapshot, peer, (reuse, alive));
        tokio::spawn(life.watch(cutter));
        Ok(MeshStream::new(stream, info))
    }
}

/// Whether what was agreed on can be spoken. A server that knows nothing of ALPN speaks HTTP/1.1;
/// Istio's name for plain TCP, which we offer for its sake, is none of HTTP.
fn speaks(protocol: ClientProtocol, agreed: Option<&[u8]>) -> bool {
    match agreed {
        Some(b"h2" | b"istio-h2") => true,
        None | Some(b"http/1.1" | b"istio-http/1.1") => protocol != ClientProtocol::Http2,
        Some(_) => false,
    }
}

impl Destination {
    fn new(host: Arc<str>, address: SocketAddr, expected: &ExpectedServer) -> Self {
        let (expected, tls) = (expected.clone(), Mutex::new(None));
        Self { host, address, expected, tls, connecting: AtomicUsize::new(0) }
    }

    fn is_connecting(&self) -> bool {
        self.connecting.load(Ordering::Acquire) > 0
    }

    /// The settings for the mesh's current identity and trust; made anew after a change of either.
    /// Policies are no reason: they say who may call us, not whom we call.
    fn tls(
        &self,
        mesh: &Mesh,
        snapshot: &Snapshot,
        protocol: ClientProtocol,
    ) -> Result<ClientTls, TlsError> {
        let mut held = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((trust, tls)) = held.as_ref()
            && *trust == snapshot.trust
        {
            return Ok(tls.clone());
        }
        let time = Arc::new(RustlsClock(mesh.shared_clock()));
        let builder = ClientTls::builder(Arc::clone(&snapshot.provider), time)
            .identity(Arc::clone(&snapshot.svid))
            .trust(Arc::clone(&snapshot.bundles))
            .expect_server(self.expected.clone())
            .protocol(protocol);
        let builder = if snapshot.tls12 { builder.with_tls12() } else { builder };
        let tls = builder.build()?;
        *held = Some((snapshot.trust, tls.clone()));
        Ok(tls)
    }
}

impl Service<Uri> for Connector {
    type Response = MeshStream;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<MeshStream, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("services", &self.services.keys()).finish_non_exhaustive()
    }
}
