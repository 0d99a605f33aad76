//! One immutable configuration: everything a connection or request is judged by.

use std::sync::Arc;

use mesh_authn::peer::{PeerModes, ServerTls, TlsError};
use mesh_authn::request::{
    JwtRule, KeySets, RequestAuthentication, RequestAuthenticator, TokenOptions,
};
use mesh_authz::{PathNormalization, PolicySet, Scope, Semantics, Transport, XffTrust};
use mesh_identity::x509::{Role, SvidError, verify_svid};
use mesh_identity::{BundleSet, MeshSettings, VerifiedPeer, Workload, X509Svid};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;

use crate::clock::{Clock, RustlsClock};
use crate::custom::ExtensionProviders;
use crate::error::Error;
use crate::policies::Policies;
use crate::source::Lacking;

/// What a snapshot is compiled from.
#[derive(Clone, Debug)]
pub(crate) struct Inputs {
    pub(crate) workload: Workload,
    pub(crate) settings: MeshSettings,
    pub(crate) semantics: Semantics,
    pub(crate) tokens: TokenOptions,
    pub(crate) paths: PathNormalization,
    pub(crate) forwarded: XffTrust,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) provider: Arc<CryptoProvider>,
    /// Whether TLS 1.2 is spoken too.
    pub(crate) tls12: bool,
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) bundles: Arc<BundleSet>,
    pub(crate) withdrawn: bool,
    pub(crate) trust: u64,
    pub(crate) policies: Policies,
    pub(crate) keys: KeySets,
    pub(crate) lacking: Arc<Lacking>,
    pub(crate) providers: Arc<ExtensionProviders>,
    /// Whether a TCP service is served, for which policies must compile too.
    pub(crate) tcp: bool,
    #[cfg(feature = "rego")]
    pub(crate) rego: Option<Arc<crate::RegoStage>>,
}

/// Everything derived from one set of inputs. A request loads it once and is decided by it alone.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) scope: Scope,
    pub(crate) forwarded: XffTrust,
    pub(crate) modes: PeerModes,
    pub(crate) server_tls: ServerTls,
    pub(crate) svid: Arc<X509Svid>,
    pub(crate) bundles: Arc<BundleSet>,
    /// Whether the identity must not be used.
    pub(crate) withdrawn: bool,
    /// Grows when identity or trust change; peers are judged again then.
    pub(crate) trust: u64,
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) tls12: bool,
    pub(crate) tokens: RequestAuthenticator,
    /// Query parameters whose values no log shows ([SEC-OPS-4]).
    pub(crate) token_parameters: Vec<String>,
    pub(crate) lacking: Arc<Lacking>,
    pub(crate) policies: PolicySet,
    pub(crate) providers: Arc<ExtensionProviders>,
    /// The same policies for TCP ([SEM-TCP-01]), where a TCP service is served.
    pub(crate) tcp_policies: Option<PolicySet>,
    #[cfg(feature = "rego")]
    pub(crate) rego: Option<Arc<crate::RegoStage>>,
}

impl Snapshot {
    /// Compiles all of it, or nothing: a snapshot never shows half of a change.
    ///
    /// Of the snapshot before it, what depends on nothing that has changed is kept.
    pub(crate) fn compile(
        inputs: &Inputs,
        generation: u64,
        before: Option<&Self>,
    ) -> Result<Self, Error> {
        let Inputs { workload, settings, policies, .. } = inputs;
        let modes = PeerModes::compile(&policies.peer, workload, settings);
        let kept = before.and_then(|before| before.tls_for(inputs, &modes));
        let server_tls = kept.map_or_else(|| server_tls(inputs), Ok)?;
        let scope = Scope::new(workload.clone(), settings.clone())
            .with_semantics(inputs.semantics)
            .with_providers(inputs.providers.kinds())
            .with_path_normalization(inputs.paths);
        Ok(Self {
            generation,
            forwarded: inputs.forwarded.clone(),
            modes,
            server_tls,
            svid: Arc::clone(&inputs.svid),
            bundles: Arc::clone(&inputs.bundles),
            withdrawn: inputs.withdrawn,
            trust: inputs.trust,
            provider: Arc::clone(&inputs.provider),
            tls12: inputs.tls12,
            tokens: RequestAuthenticator::compile(
                &policies.request,
                workload,
                settings,
                inputs.tokens.clone(),
                &inputs.keys,
            )?,
            token_parameters: policies
                .request
                .iter()
                .flat_map(RequestAuthentication::rules)
                .flat_map(JwtRule::token_parameters)
                .map(str::to_owned)
                .collect(),
            lacking: Arc::clone(&inputs.lacking),
            policies: PolicySet::compile(&policies.authorization, &scope, Transport::Http)?,
            tcp_policies: inputs
                .tcp
                .then(|| PolicySet::compile(&policies.authorization, &scope, Transport::Tcp))
                .transpose()?,
            scope,
            providers: Arc::clone(&inputs.providers),
            #[cfg(feature = "rego")]
            rego: inputs.rego.clone(),
        })
    }

    /// The TLS settings, where they may serve these inputs too: sessions and verified chains outlive
    /// a change of policies or key sets, and end with any change of identity, trust or modes
    /// ([SEC-TLS-10]).
    fn tls_for(&self, inputs: &Inputs, modes: &PeerModes) -> Option<ServerTls> {
        let same = self.trust == inputs.trust
            && self.withdrawn == inputs.withdrawn
            && self.modes == *modes
            && Arc::ptr_eq(&self.svid, &inputs.svid)
            && Arc::ptr_eq(&self.bundles, &inputs.bundles)
            && Arc::ptr_eq(&self.provider, &inputs.provider);
        same.then(|| self.server_tls.clone())
    }

    /// Whether our own identity may be used ([SEC-OPS-2]).
    pub(crate) fn check_own_identity(&self, now: UnixTime) -> Result<(), OwnIdentityError> {
        if self.withdrawn {
            return Err(OwnIdentityError::Withdrawn);
        }
        if now >= self.svid.not_after() {
            return Err(OwnIdentityError::Expired);
        }
        Ok(())
    }

    /// Whether requests wait for a Rego policy.
    #[cfg(feature = "rego")]
    pub(crate) fn asks_rego(&self) -> bool {
        self.rego.is_some()
    }

    /// Whether requests wait for a Rego policy: there is none.
    #[cfg(not(feature = "rego"))]
    #[expect(clippy::unused_self, reason = "the same method as with the feature")]
    pub(crate) fn asks_rego(&self) -> bool {
        false
    }

    /// Whether the chain of a server that is connected to still verifies ([SEC-TLS-13]).
    ///
    /// Its expiry is not asked here: [SEC-TLS-12] has a time of its own for that.
    pub(crate) fn recheck_server(
        &self,
        peer: &VerifiedPeer,
        now: UnixTime,
    ) -> Result<(), SvidError> {
        let now = peer.not_after().map_or(now, |end| now.min(end));
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_svid(peer.chain(), &self.bundles, now, Role::Server, algorithms).map(|_| ())
    }
}

fn server_tls(inputs: &Inputs) -> Result<ServerTls, TlsError> {
    let time = Arc::new(RustlsClock(Arc::clone(&inputs.clock)));
    let builder = ServerTls::builder(Arc::clone(&inputs.provider), time)
        .identity(Arc::clone(&inputs.svid))
        .trust(Arc::clone(&inputs.bundles));
    if inputs.tls12 { builder.with_tls12().build() } else { builder.build() }
}

/// Why our own identity cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnIdentityError {
    /// Its validity has ended and nobody has replaced it.
    #[error("own certificate has expired; its source has not replaced it")]
    Expired,

    /// Its source has withdrawn it.
    #[error("own identity was withdrawn by its source")]
    Withdrawn,
}
