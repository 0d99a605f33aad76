//! Replacing parts of the configuration while it runs.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_authn::request::{KeySets, KeySource, KeyState, RefreshPolicy};
use mesh_identity::{BundleSet, X509Svid};

use super::Mesh;
#[cfg(doc)]
use super::MeshBuilder;
use crate::custom::ExtensionProviders;
use crate::error::Error;
use crate::policies::Policies;
use crate::snapshot::{Inputs, Snapshot};
use crate::source::{self, IdentitySource, KeyFetcher};

impl Mesh {
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

    pub(super) fn identity_failure(&self) -> MutexGuard<'_, Option<String>> {
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

    /// From now on, policies that do not compile for TCP are refused.
    pub(crate) fn begin_tcp(&self) -> Result<(), Error> {
        self.change(|inputs| inputs.tcp = true)
    }

    /// Compiles the changed inputs and swaps the result in, or keeps everything as it is.
    fn change(&self, edit: impl FnOnce(&mut Inputs)) -> Result<(), Error> {
        let mut inputs = self.shared.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut edited = inputs.clone();
        edit(&mut edited);
        let before = self.snapshot();
        let generation = before.generation.saturating_add(1);
        let compiled = Snapshot::compile(&edited, generation, Some(&before));
        let mut last_error = self.shared.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        match compiled {
            Ok(snapshot) => {
                *inputs = edited;
                *last_error = None;
                self.shared.current.store(Arc::new(snapshot));
                self.shared.changes.send_replace(generation);
                self.report_configuration();
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
        self.report_key_sets(&states);
        self.shared.key_states.send_replace(states);
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
}

#[cfg(test)]
mod tests {
    use mesh_identity::{MeshSettings, TrustBundle, Workload};
    use rustls::ServerConfig;

    use super::*;
    use crate::{Clock as _, SystemClock};

    const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    const NOBODY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {}
";

    /// [SEC-TLS-10] Settings of TLS own the sessions and the verified chains: they are the same ones
    /// while identity, trust and modes are, and others after a change of any of these.
    #[test]
    fn sec_tls_10_what_keeps_sessions_and_verified_chains() {
        let now = SystemClock.now();
        let home = "cluster.local".parse().unwrap();
        let authority =
            mesh_ca::Authority::new_root(&home, Duration::from_secs(7200), now).unwrap();
        let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let svid = Arc::new(authority.issue_svid(&id, Duration::from_secs(3600), now).unwrap());
        let pem = authority.certificate_pem();
        let trust = TrustBundle::from_pem(home.clone(), pem.as_bytes()).unwrap();
        let trust = Arc::new(BundleSet::from_bundles([trust]).unwrap());
        let read = |text| Policies::read([("p.yaml", text)], "shop").unwrap();
        let mesh = Mesh::builder(Workload::new("shop"), MeshSettings::new(home))
            .build(Arc::clone(&svid), Arc::clone(&trust), Policies::none())
            .unwrap();
        let config = || mesh.snapshot().server_tls.config();
        let mut held = config();
        let mut kept = |what: &str, keeps: bool| {
            let before: Arc<ServerConfig> = std::mem::replace(&mut held, config());
            assert_eq!(Arc::ptr_eq(&before, &held), keeps, "{what}");
        };
        mesh.set_policies(read(NOBODY)).unwrap();
        kept("policies", true);
        mesh.set_providers(ExtensionProviders::default()).unwrap();
        kept("authorizers", true);
        mesh.begin_tcp().unwrap();
        kept("TCP", true);
        mesh.set_policies(read(STRICT)).unwrap();
        kept("a mode", false);
        mesh.set_policies(read(&[STRICT, NOBODY].join("---"))).unwrap();
        kept("policies beside a mode", true);
        mesh.set_identity(Arc::clone(&svid), Arc::clone(&trust)).unwrap();
        kept("identity", false);
        mesh.withdraw_identity();
        kept("withdrawal", false);
        mesh.set_identity(svid, trust).unwrap();
        kept("return", false);
    }
}
