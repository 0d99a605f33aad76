//! The handle a program holds: live configuration, swapped whole, last good kept.

mod builder;
mod live;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use mesh_authn::request::{KeySource, KeyState};
use mesh_identity::{MeshSettings, Workload};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower_service::Service;

use crate::RequestBody;
use crate::clock::Clock;
use crate::expiry::ClockJumps;
use crate::layer::MeshLayer;
use crate::logs::Logs;
use crate::observe::Observer;
use crate::server::{Limits, Server, TcpConnection};
use crate::settings::HttpSettings;
use crate::snapshot::{Inputs, Snapshot};
use crate::source::Lacking;
use crate::telemetry::Telemetry;

pub use builder::MeshBuilder;

/// What guards a service: identity, policies and everything derived from them, live.
///
/// Cloning shares it. Each change compiles a new snapshot and swaps it in whole; a change that does
/// not compile is refused, and the last good configuration stays in force ([SEC-OPS-2]).
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
///
/// use mesh_tower::identity::{BundleSet, MeshSettings, Workload, X509Svid};
/// use mesh_tower::{Error, Mesh, Policies};
///
/// fn join(
///     settings: MeshSettings,
///     svid: X509Svid,
///     bundles: BundleSet,
///     policies: Policies,
/// ) -> Result<Mesh, Error> {
///     let workload = Workload::new("shop").with_label("app", "cart");
///     let mesh = Mesh::builder(workload, settings).build(
///         Arc::new(svid),
///         Arc::new(bundles),
///         policies,
///     )?;
///     // Later, when they change. What does not compile changes nothing.
///     mesh.set_policies(Policies::none())?;
///     Ok(mesh)
/// }
/// ```
#[derive(Clone)]
pub struct Mesh {
    shared: Arc<Shared>,
}

struct Shared {
    /// What the current snapshot was compiled from; the lock serializes changes.
    inputs: Mutex<Inputs>,
    current: ArcSwap<Snapshot>,
    changes: watch::Sender<u64>,
    last_error: Mutex<Option<String>>,
    identity_error: Mutex<Option<String>>,
    lacking: Arc<Lacking>,
    key_states: watch::Sender<Vec<(KeySource, KeyState)>>,
    clock: Arc<dyn Clock>,
    jumps: ClockJumps,
    limits: Limits,
    observer: Arc<dyn Observer>,
    telemetry: Telemetry,
    logs: Logs,
    #[cfg(feature = "admin")]
    recent: crate::admin::Recent,
    http: HttpSettings,
}

impl Mesh {
    /// Begins a configuration for a workload of a mesh.
    pub fn builder(workload: Workload, settings: MeshSettings) -> MeshBuilder {
        MeshBuilder::new(workload, settings)
    }

    /// The layer that guards a service. Put it around the router, not inside: see [`MeshLayer`].
    #[must_use]
    pub fn layer(&self) -> MeshLayer {
        MeshLayer::new(self.clone())
    }

    /// Serves a router or any other HTTP service behind the mesh until `shutdown` resolves, then
    /// drains.
    ///
    /// The service sees only requests that every policy has admitted, with the normalized path. It may
    /// take an upgrade over HTTP/1.1, such as a WebSocket; what is upgraded ends when policies no longer
    /// admit it ([`Limits::denied_drain`]). Over HTTP/2 there are none: CONNECT, plain or extended (RFC 8441),
    /// is refused with 400 ([SEC-HTTP-9]).
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run(mesh: mesh_tower::Mesh, app: axum::Router) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:8443").await?;
    /// mesh.serve(listener, app, std::future::pending()).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the listener has no local address. Failures of single connections never end it.
    pub async fn serve<S, B>(
        &self,
        listener: TcpListener,
        service: S,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()>
    where
        S: Service<Request<RequestBody<Incoming>>, Response = Response<B>>,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        S: Clone + Send + 'static,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        self.server(listener).serve(service, shutdown).await
    }

    /// Serves a TCP protocol behind the mesh until `shutdown` resolves, then drains; see
    /// [`Server::serve_tcp`].
    ///
    /// # Errors
    ///
    /// When the policies do not compile for TCP, or the listener has no local address.
    pub async fn serve_tcp<F, Fut>(
        &self,
        listener: TcpListener,
        handler: F,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()>
    where
        F: Fn(TcpConnection) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        self.server(listener).serve_tcp(handler, shutdown).await
    }

    /// A listener with settings of its own: the PROXY protocol, a translated address.
    pub fn server(&self, listener: TcpListener) -> Server {
        Server::new(self.clone(), listener)
    }

    /// A listener for `axum::serve`, which serves [`Mesh::make_service`] on it.
    ///
    /// # Errors
    ///
    /// When the listener has no local address.
    #[cfg(feature = "axum")]
    pub fn listener(&self, listener: TcpListener) -> io::Result<crate::MeshListener> {
        crate::MeshListener::start(self.server(listener))
    }

    /// How the fetched key sets are doing, as of the last look.
    #[must_use]
    pub fn key_sets(&self) -> Vec<(KeySource, KeyState)> {
        self.shared.key_states.borrow().clone()
    }

    /// Why the last change was refused; nothing when it was taken. A failing source of identity is
    /// told until it delivers.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        if let Some(error) = self.identity_error() {
            return Some(error);
        }
        self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the configuration in force; it grows with every change that was taken.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.snapshot().generation
    }

    /// Counters of what was decided and answered.
    #[must_use]
    pub fn telemetry(&self) -> &Telemetry {
        &self.shared.telemetry
    }

    /// Why the last news of the identity's source was not taken; nothing when it was.
    #[must_use]
    pub fn identity_error(&self) -> Option<String> {
        self.identity_failure().clone()
    }

    /// When our own certificate ends; nothing when it was withdrawn.
    #[must_use]
    pub fn identity_ends(&self) -> Option<UnixTime> {
        let snapshot = self.snapshot();
        (!snapshot.withdrawn).then(|| snapshot.svid.not_after())
    }

    pub(crate) fn downgrade(&self) -> WeakMesh {
        WeakMesh { shared: Arc::downgrade(&self.shared) }
    }

    pub(crate) fn lacking(&self) -> Arc<Lacking> {
        Arc::clone(&self.shared.lacking)
    }

    pub(crate) fn key_states(&self) -> watch::Receiver<Vec<(KeySource, KeyState)>> {
        self.shared.key_states.subscribe()
    }

    pub(crate) fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.current.load_full()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    pub(crate) fn clock(&self) -> &dyn Clock {
        self.shared.clock.as_ref()
    }

    pub(crate) fn shared_clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.shared.clock)
    }

    /// Told when the wall clock is set; for the inside of a runtime ([SEC-OPS-5]).
    pub(crate) fn clock_jumps(&self) -> watch::Receiver<()> {
        self.shared.jumps.subscribe(self.shared_clock())
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn http_settings(&self) -> &HttpSettings {
        &self.shared.http
    }

    pub(crate) fn observer(&self) -> &dyn Observer {
        self.shared.observer.as_ref()
    }

    #[cfg(feature = "admin")]
    pub(crate) fn recent(&self) -> &crate::admin::Recent {
        &self.shared.recent
    }

    pub(crate) fn logs(&self) -> &Logs {
        &self.shared.logs
    }
}

/// A mesh that may be gone: for tasks that must not keep it.
#[derive(Clone)]
pub(crate) struct WeakMesh {
    shared: Weak<Shared>,
}

impl WeakMesh {
    pub(crate) fn upgrade(&self) -> Option<Mesh> {
        self.shared.upgrade().map(|shared| Mesh { shared })
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let snapshot = self.snapshot();
        f.debug_struct("Mesh")
            .field("generation", &snapshot.generation)
            .field("identity", snapshot.svid.id())
            .finish_non_exhaustive()
    }
}
