//! From settings, an identity and policies to a mesh.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderName, Response};
use mesh_authn::request::{KeySets, TokenLimits, TokenOptions};
use mesh_authz::{PathNormalization, Semantics, XffTrust};
use mesh_identity::{BundleSet, MeshSettings, Workload, X509Svid};
use rustls::crypto::CryptoProvider;
use tokio::sync::watch;

use super::{Mesh, Shared};
use crate::clock::{Clock, SystemClock};
use crate::custom::ExtensionProviders;
use crate::denial::{DeniedRequest, Hook};
use crate::error::Error;
use crate::expiry::ClockJumps;
use crate::observe::{Observer, TracingObserver};
use crate::open_path::OpenPath;
use crate::policies::Policies;
use crate::readiness::Readiness;
use crate::report::Reporting;
use crate::server::Limits;
use crate::settings::HttpSettings;
use crate::snapshot::{Inputs, Snapshot};
use crate::source::{Identity, IdentitySource, IdentityUpdate, Lacking};
use crate::xfcc::ForwardClientCert;

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
    tls12: bool,
    pub(crate) limits: Limits,
    observer: Arc<dyn Observer>,
    providers: ExtensionProviders,
    http: HttpSettings,
    pub(crate) reporting: Reporting,
    pub(crate) readiness: Readiness,
}

impl MeshBuilder {
    pub(super) fn new(workload: Workload, settings: MeshSettings) -> Self {
        Self {
            workload,
            settings,
            semantics: Semantics::strict(),
            tokens: TokenOptions::strict().with_limits(TokenLimits::default()),
            paths: PathNormalization::Base,
            forwarded: XffTrust::Nobody,
            clock: Arc::new(SystemClock),
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            tls12: false,
            limits: Limits::default(),
            observer: Arc::new(TracingObserver),
            providers: ExtensionProviders::default(),
            http: HttpSettings::default(),
            reporting: Reporting::default(),
            readiness: Readiness::new(),
        }
    }

    /// How policies are judged: strict by default, `Semantics::istio()` for Envoy's answers.
    pub fn semantics(mut self, semantics: Semantics) -> Self {
        self.semantics = semantics;
        self
    }

    /// Which tolerances tokens get, and how large one may be: by default strict ones, and
    /// [`TokenLimits::default`], 8 KiB ([SEC-JWT-12]).
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

    /// Speaks TLS 1.2 too, with ECDHE and AEAD only, to peers that cannot speak 1.3 ([SEC-TLS-1]).
    pub fn with_tls12(mut self) -> Self {
        self.tls12 = true;
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
    /// It waits for ever; put a timeout around it where that is not wanted. Meanwhile
    /// [`MeshBuilder::readiness`] tells what it waits for.
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
                            self.readiness.waits(&error);
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
                    self.readiness.waits(&error);
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

    /// Lets a request wait for the first fetch of the key set that its token needs, at most so long;
    /// by default none waits, and its token is refused. When that fetch has failed, or has ever
    /// succeeded, no request waits.
    pub fn wait_for_first_keys(mut self, limit: Duration) -> Self {
        self.http.first_keys = limit;
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
            tls12: self.tls12,
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
        let snapshot = Snapshot::compile(&inputs, 1, None)?;
        let telemetry = self.reporting.telemetry(&inputs.workload, snapshot.svid.id());
        let (changes, _) = watch::channel(1);
        let shared = Shared {
            inputs: Mutex::new(inputs),
            current: ArcSwap::from_pointee(snapshot),
            changes,
            last_error: Mutex::new(None),
            identity_error: Mutex::new(None),
            lacking,
            key_states: watch::Sender::default(),
            clock: self.clock,
            jumps: ClockJumps::default(),
            limits: self.limits,
            observer: self.observer,
            telemetry,
            logs: self.reporting.logs,
            #[cfg(feature = "admin")]
            recent: crate::admin::Recent::default(),
            http: self.http,
        };
        let mesh = Mesh { shared: Arc::new(shared) };
        mesh.report_configuration();
        self.readiness.started(&mesh);
        Ok(mesh)
    }
}
