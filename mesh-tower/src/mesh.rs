//! The handle a program holds: live configuration, swapped whole, last good kept.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use mesh_authn::request::{KeySets, KeySource, KeyState, RefreshPolicy, TokenOptions};
use mesh_authz::{PathNormalization, Semantics, XffTrust};
use mesh_identity::{BundleSet, MeshSettings, Workload, X509Svid};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tower_service::Service;

use crate::RequestBody;
use crate::clock::{Clock, SystemClock};
use crate::custom::ExtensionProviders;
use crate::denial::{DeniedRequest, Hook};
use crate::error::Error;
use crate::expiry::ClockJumps;
use crate::layer::MeshLayer;
use crate::observe::{ConnectionEvent, Observer, TracingObserver};
use crate::open_path::OpenPath;
use crate::policies::Policies;
use crate::server::{Limits, Server, TcpConnection};
use crate::settings::HttpSettings;
use crate::snapshot::{Inputs, Snapshot};
use crate::source::{self, Identity, IdentitySource, IdentityUpdate, KeyFetcher, Lacking};
use crate::telemetry::Telemetry;
use crate::xfcc::ForwardClientCert;

/// Longest token by default, in bytes: half of what a request's head may hold ([SEC-JWT-12]).
const DEFAULT_TOKEN_LEN: usize = 8 * 1024;

/// What guards a service: identity, policies and everything derived from them, live.
///
/// Cloning shares it. Each change compiles a new snapshot and swaps it in whole; a change that does
/// not compile is refused, and the last good configuration stays in force ([SEC-OPS-2]).
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
    key_states: Mutex<Vec<(KeySource, KeyState)>>,
    clock: Arc<dyn Clock>,
    jumps: ClockJumps,
    limits: Limits,
    observer: Arc<dyn Observer>,
    telemetry: Telemetry,
    http: HttpSettings,
}

impl Mesh {
    /// Begins a configuration for a workload of a mesh.
    pub fn builder(workload: Workload, settings: MeshSettings) -> MeshBuilder {
        MeshBuilder {
            workload,
            settings,
            semantics: Semantics::strict(),
            tokens: TokenOptions::strict().with_max_token_len(DEFAULT_TOKEN_LEN),
            paths: PathNormalization::Base,
            forwarded: XffTrust::Nobody,
            clock: Arc::new(SystemClock),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            limits: Limits::default(),
            observer: Arc::new(TracingObserver),
            providers: ExtensionProviders::default(),
            http: HttpSettings::default(),
        }
    }

    /// Replaces all policies; in force for the next connection and the next request.
    ///
    /// # Errors
    ///
    /// What cannot be compiled for this workload. The policies in force stay.
    pub fn set_policies(&self, policies: Policies) -> Result<(), Error> {
        self.change(|inputs| inputs.policies = policies)
    }

    /// Replaces identity and trust together, as a rotation delivers them.
    ///
    /// New handshakes use them at once. Open connections whose peer the new bundles no longer
    /// vouch for are drained ([SEC-TLS-13]).
    ///
    /// # Errors
    ///
    /// A certificate and key that rustls cannot use, a certificate that has expired, or a bundle or
    /// revocation list that is older than the one held. What is in force stays.
    pub fn set_identity(&self, svid: Arc<X509Svid>, bundles: Arc<BundleSet>) -> Result<(), Error> {
        let taken = self.check_succession(&svid, &bundles).and_then(|()| {
            self.change(|inputs| {
                inputs.svid = svid;
                inputs.bundles = bundles;
                inputs.withdrawn = false;
                inputs.trust = inputs.trust.saturating_add(1);
            })
        });
        match &taken {
            Ok(()) => *self.identity_failure() = None,
            Err(error) => self.report_identity(error),
        }
        taken
    }

    /// Stops using the identity, as when its issuer has withdrawn it: handshakes are refused in both
    /// directions and open mutual TLS connections end, until [`Mesh::set_identity`] brings another.
    pub fn withdraw_identity(&self) {
        let set = self.change(|inputs| inputs.withdrawn = true);
        debug_assert!(set.is_ok(), "what was compiled before compiles again");
    }

    /// Replaces the external authorizers that CUSTOM policies can name.
    ///
    /// # Errors
    ///
    /// When policies cannot be compiled with them. What is in force stays.
    pub fn set_providers(&self, providers: ExtensionProviders) -> Result<(), Error> {
        self.change(|inputs| inputs.providers = Arc::new(providers))
    }

    /// Sets, replaces or removes the Rego policy that is asked after token verification.
    #[cfg(feature = "rego")]
    pub fn set_rego(&self, policy: Option<crate::RegoStage>) {
        let set = self.change(|inputs| inputs.rego = policy.map(Arc::new));
        debug_assert!(set.is_ok(), "Rego is compiled already; nothing else has changed");
    }

    /// The layer that guards a service. Put it around the router, not inside: see [`MeshLayer`].
    #[must_use]
    pub fn layer(&self) -> MeshLayer {
        MeshLayer::new(self.clone())
    }

    /// Serves a router or any other HTTP service behind the mesh until `shutdown` resolves, then
    /// drains.
    ///
    /// The service sees only requests that every policy has admitted, with the normalized path.
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

    /// Fetches the key sets that RequestAuthentications name by URL or issuer, and keeps them
    /// fresh; it never returns, so spawn it once.
    ///
    /// No request waits for a fetch: until a set is there, its tokens are refused. A set that
    /// cannot be fetched again counts until `policy`'s age limit; [`Mesh::key_sets`] tells.
    pub async fn keep_keys_fresh(self, fetcher: Arc<dyn KeyFetcher>, policy: RefreshPolicy) {
        source::keep_fresh(self, fetcher, policy).await;
    }

    /// Follows a source of identity, such as [`crate::IdentityFiles::watch`]; it returns only when
    /// the mesh is gone, so spawn it once. What cannot be used leaves the last good in force;
    /// [`Mesh::identity_error`] tells. [`MeshBuilder::start`] does it by itself.
    pub async fn keep_identity_fresh(self, source: impl IdentitySource) {
        source::follow(self, source).await;
    }

    /// Follows a folder of policy files (`.yaml`, `.yml`, `.json`), looking every so often; it
    /// never returns, so spawn it once. All files are taken together, or none of them.
    pub async fn keep_policies_fresh(
        self,
        folder: PathBuf,
        default_namespace: String,
        every: Duration,
    ) {
        source::keep_policies(self, folder, default_namespace, every).await;
    }

    /// How the fetched key sets are doing, as of the last look.
    #[must_use]
    pub fn key_sets(&self) -> Vec<(KeySource, KeyState)> {
        self.shared.key_states.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// Whether an identity may follow the one in force ([SEC-ID-9], [SEC-OPS-2]).
    fn check_succession(&self, svid: &X509Svid, bundles: &BundleSet) -> Result<(), Error> {
        if self.clock().now() >= svid.not_after() {
            return Err(Error::Expired);
        }
        let held = Arc::clone(&self.snapshot().bundles);
        for bundle in bundles.iter() {
            let Some(held) = held.get(bundle.trust_domain().as_str()) else { continue };
            bundle.clone().succeeding(held)?;
            if let Some((new, held)) = bundle.crls().zip(held.crls()) {
                new.clone().succeeding(held)?;
            }
        }
        Ok(())
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

    fn identity_failure(&self) -> MutexGuard<'_, Option<String>> {
        self.shared.identity_error.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a failure of the identity's source visible; what is in force stays.
    pub(crate) fn report_identity(&self, error: &dyn fmt::Display) {
        let text = error.to_string();
        let mut last = self.identity_failure();
        if last.as_ref() != Some(&text) {
            tracing::warn!(error = text, "identity was not renewed; the last good one stays");
            self.shared.telemetry.count_refused_configuration();
            *last = Some(text);
        }
    }

    pub(crate) fn downgrade(&self) -> WeakMesh {
        WeakMesh { shared: Arc::downgrade(&self.shared) }
    }

    /// From now on, policies that do not compile for TCP are refused.
    pub(crate) fn begin_tcp(&self) -> Result<(), Error> {
        self.change(|inputs| inputs.tcp = true)
    }

    /// Compiles the changed inputs and swaps the result in, or keeps everything as it is.
    fn change(&self, edit: impl FnOnce(&mut Inputs)) -> Result<(), Error> {
        let mut inputs = self.shared.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut edited = inputs.clone();
        edit(&mut edited);
        let generation = self.snapshot().generation.saturating_add(1);
        let compiled = Snapshot::compile(&edited, generation);
        let mut last_error = self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        match compiled {
            Ok(snapshot) => {
                *inputs = edited;
                *last_error = None;
                self.shared.current.store(Arc::new(snapshot));
                self.shared.changes.send_replace(generation);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%error, "configuration refused; the last good one stays");
                *last_error = Some(error.to_string());
                self.shared.telemetry.count_refused_configuration();
                Err(error)
            }
        }
    }

    /// Puts fetched key sets into force, if one of `sources` has another set than now.
    pub(crate) fn set_keys<'s>(&self, keys: KeySets, sources: impl Iterator<Item = &'s KeySource>) {
        let mut sources = sources;
        let inputs = self.shared.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let held = &inputs.keys;
        let same = sources.all(|source| match (held.get(source), keys.get(source)) {
            (Some(held), Some(new)) => Arc::ptr_eq(held, new),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        });
        drop(inputs);
        if !same && let Err(error) = self.change(|inputs| inputs.keys = keys) {
            tracing::error!(%error, "fetched key sets cannot be used");
        }
    }

    /// Makes a failure of a source visible; what is in force stays.
    pub(crate) fn report(&self, error: &dyn fmt::Display) {
        let text = error.to_string();
        let mut last = self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() != Some(&text) {
            tracing::warn!(error = text, "the last good configuration stays");
            self.shared.telemetry.count_refused_configuration();
            *last = Some(text);
        }
    }

    pub(crate) fn set_key_states(&self, states: Vec<(KeySource, KeyState)>) {
        *self.shared.key_states.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    pub(crate) fn lacking(&self) -> Arc<Lacking> {
        Arc::clone(&self.shared.lacking)
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

    pub(crate) fn observe_refused_connection(&self, peer: SocketAddr, why: &dyn fmt::Display) {
        self.shared.telemetry.count_refused_connection();
        let reason = why.to_string();
        self.observer().connection_refused(&ConnectionEvent { peer, reason });
    }
}

/// A mesh that may be gone: for tasks that must not keep it.
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

/// Settings of a [`Mesh`] before it has identity and policies. The defaults are the strict ones.
#[derive(Clone, Debug)]
#[must_use = "call `build`"]
pub struct MeshBuilder {
    workload: Workload,
    settings: MeshSettings,
    semantics: Semantics,
    tokens: TokenOptions,
    paths: PathNormalization,
    forwarded: XffTrust,
    clock: Arc<dyn Clock>,
    provider: Arc<CryptoProvider>,
    limits: Limits,
    observer: Arc<dyn Observer>,
    providers: ExtensionProviders,
    http: HttpSettings,
}

impl MeshBuilder {
    /// How policies are judged: strict by default, `Semantics::istio()` for Envoy's answers.
    pub fn semantics(mut self, semantics: Semantics) -> Self {
        self.semantics = semantics;
        self
    }

    /// Which tolerances tokens get, and how long one may be: by default none, and 8 KiB
    /// ([SEC-JWT-12]).
    pub fn token_options(mut self, tokens: TokenOptions) -> Self {
        self.tokens = tokens;
        self
    }

    /// How paths are normalized (`pathNormalization` of Istio's mesh configuration).
    pub fn path_normalization(mut self, paths: PathNormalization) -> Self {
        self.paths = paths;
        self
    }

    /// Whose `x-forwarded-for` is believed: nobody's by default ([SEC-AUTHZ-8]).
    pub fn forwarded_for(mut self, trust: XffTrust) -> Self {
        self.forwarded = trust;
        self
    }

    /// The clock that certificates and tokens are judged by.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The cryptography of TLS: ring by default, any rustls provider otherwise.
    pub fn crypto_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = provider;
        self
    }

    /// What one client may cost.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Who is told of decisions and refusals.
    pub fn observer(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// The external authorizers that CUSTOM policies can name (`extensionProviders` of Istio's mesh
    /// configuration): none by default, so that what such a policy selects is refused.
    pub fn extension_providers(mut self, providers: ExtensionProviders) -> Self {
        self.providers = providers;
        self
    }

    /// Waits until a source delivers an identity that can be used, starts with it and the policies,
    /// and follows the source from then on in a task of its own ([SEC-OPS-3]).
    ///
    /// It waits for ever; put a timeout around it where that is not wanted.
    ///
    /// # Errors
    ///
    /// Policies that cannot be compiled.
    pub async fn start(
        self,
        mut source: impl IdentitySource,
        policies: Policies,
    ) -> Result<Mesh, Error> {
        loop {
            match source.next().await {
                IdentityUpdate::Identity(Identity { svid, bundles }) => {
                    let built = self.clone().build(svid, bundles, policies.clone());
                    match built {
                        Err(error @ (Error::Tls(_) | Error::Expired)) => {
                            tracing::warn!(%error, "the source's identity cannot be used");
                        }
                        Err(error) => return Err(error),
                        Ok(mesh) => {
                            tokio::spawn(mesh.clone().keep_identity_fresh(source));
                            return Ok(mesh);
                        }
                    }
                }
                IdentityUpdate::Failed(error) | IdentityUpdate::Withdrawn(error) => {
                    tracing::warn!(%error, "the source has no identity yet");
                }
            }
        }
    }

    /// What becomes of `x-forwarded-client-cert`: removed by default ([SEC-HTTP-6]).
    pub fn forward_client_cert(mut self, mode: ForwardClientCert) -> Self {
        self.http.forward_cert = mode;
        self
    }

    /// Headers that only the program itself may set: a client's are removed from every request
    /// before anything else looks at it ([SEC-HTTP-6]).
    pub fn reserved_headers(mut self, names: impl IntoIterator<Item = HeaderName>) -> Self {
        self.http.reserved.extend(names);
        self
    }

    /// Removes every header with an underscore in its name, for an application or a server behind
    /// it that reads `x_role` as `x-role` ([SEC-HTTP-6]).
    pub fn without_underscore_headers(mut self) -> Self {
        self.http.fold_underscores = true;
        self
    }

    /// A path that no policy guards, such as health or metrics; there are none by default.
    pub fn open_path(mut self, path: OpenPath) -> Self {
        self.http.open.push(path);
        self
    }

    /// Answers refusals in the program's own way: a page, a problem document, a redirection to a
    /// login. `None` leaves an answer as Istio sends it, and so does a response that looks like
    /// success. gRPC refusals keep their form.
    ///
    /// # Examples
    ///
    /// ```
    /// # fn with(builder: mesh_tower::MeshBuilder) -> mesh_tower::MeshBuilder {
    /// builder.on_denial(|denial| {
    ///     let problem = format!("{{\"status\":{}}}", denial.status.as_u16());
    ///     http::Response::builder()
    ///         .status(denial.status)
    ///         .header("content-type", "application/problem+json")
    ///         .body(problem.into())
    ///         .ok()
    /// })
    /// # }
    /// ```
    pub fn on_denial<F>(mut self, answer: F) -> Self
    where
        F: Fn(&DeniedRequest<'_>) -> Option<Response<Bytes>> + Send + Sync + 'static,
    {
        self.http.denial = Hook::new(Arc::new(answer));
        self
    }

    /// Starts with an identity, the trust bundles and the policies: nothing is served before all
    /// three are there ([SEC-OPS-3]).
    ///
    /// # Errors
    ///
    /// Whatever of the three cannot be used or compiled.
    pub fn build(
        self,
        svid: Arc<X509Svid>,
        bundles: Arc<BundleSet>,
        policies: Policies,
    ) -> Result<Mesh, Error> {
        if self.clock.now() >= svid.not_after() {
            return Err(Error::Expired);
        }
        let lacking = Arc::new(Lacking::default());
        let inputs = Inputs {
            workload: self.workload,
            settings: self.settings,
            semantics: self.semantics,
            tokens: self.tokens,
            paths: self.paths,
            forwarded: self.forwarded,
            clock: Arc::clone(&self.clock),
            provider: self.provider,
            svid,
            bundles,
            policies,
            withdrawn: false,
            trust: 1,
            keys: KeySets::new(),
            lacking: Arc::clone(&lacking),
            providers: Arc::new(self.providers),
            tcp: false,
            #[cfg(feature = "rego")]
            rego: None,
        };
        let snapshot = Snapshot::compile(&inputs, 1)?;
        let (changes, _) = watch::channel(1);
        let shared = Shared {
            inputs: Mutex::new(inputs),
            current: ArcSwap::from_pointee(snapshot),
            changes,
            last_error: Mutex::new(None),
            identity_error: Mutex::new(None),
            lacking,
            key_states: Mutex::default(),
            clock: self.clock,
            jumps: ClockJumps::default(),
            limits: self.limits,
            observer: self.observer,
            telemetry: Telemetry::default(),
            http: self.http,
        };
        Ok(Mesh { shared: Arc::new(shared) })
    }
}
