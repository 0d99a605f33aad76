//! Istio's security resources, read as one set: all of them or none.

use std::collections::HashSet;

use mesh_authn::peer::PeerAuthentication;
use mesh_authn::request::RequestAuthentication;
use mesh_authz::AuthorizationPolicy;
use mesh_identity::manifest::{self, Kind, Manifest, Problem, Problems};

/// A complete set of policies: what one snapshot is compiled from.
///
/// # Examples
///
/// ```
/// use mesh_tower::Policies;
///
/// let strict = "
/// apiVersion: security.istio.io/v1
/// kind: PeerAuthentication
/// metadata: {name: strict, namespace: shop}
/// spec: {mtls: {mode: STRICT}}
/// ";
/// let policies = Policies::read([("strict.yaml", strict)], "shop")?;
/// assert_eq!(policies.len(), 1);
/// # Ok::<(), mesh_tower::identity::manifest::Problems>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Policies {
    pub(crate) authorization: Vec<AuthorizationPolicy>,
    pub(crate) request: Vec<RequestAuthentication>,
    pub(crate) peer: Vec<PeerAuthentication>,
    skipped: Vec<Problem>,
}

impl Policies {
    /// No policy at all: PERMISSIVE, tokens not looked at, everything allowed, as in Istio.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads YAML or JSON texts, each with a name for its problems.
    ///
    /// A resource without a namespace gets `default_namespace`. Objects of other kinds are
    /// skipped; [`Policies::skipped`] tells which.
    ///
    /// # Errors
    ///
    /// Every problem of every text, with file, document, field, line and column; also two
    /// resources of one kind with the same name and namespace. Nothing is taken then.
    pub fn read<'t>(
        texts: impl IntoIterator<Item = (&'t str, &'t str)>,
        default_namespace: &str,
    ) -> Result<Self, Problems> {
        let mut policies = Self::default();
        let mut problems = Vec::new();
        let mut names = HashSet::new();
        for (source, text) in texts {
            match manifest::read(text, source, default_namespace) {
                Err(found) => problems.extend(found.into_list()),
                Ok(read) => {
                    policies.skipped.extend(read.skipped);
                    for resource in &read.resources {
                        if let Err(found) = policies.add(resource, &mut names) {
                            problems.extend(found.into_list());
                        }
                    }
                }
            }
        }
        Problems::from_list(problems).map_or(Ok(policies), Err)
    }

    /// What was passed over because it is no security resource of Istio's.
    #[must_use]
    pub fn skipped(&self) -> &[Problem] {
        &self.skipped
    }

    /// How many resources there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let (authorization, request) = (self.authorization.len(), self.request.len());
        authorization.saturating_add(request).saturating_add(self.peer.len())
    }

    /// Whether there is no resource.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn add(
        &mut self,
        resource: &Manifest,
        names: &mut HashSet<(Kind, String, String)>,
    ) -> Result<(), Problems> {
        let metadata = resource.metadata();
        // [SEM-EVAL-32] Kubernetes cannot hold two; which of two files wins must not be chance.
        if !names.insert((resource.kind(), metadata.namespace.clone(), metadata.name.clone())) {
            let message = "another resource of this kind has the same name and namespace";
            return Err(resource.problem("metadata.name", message).into());
        }
        match resource.kind() {
            Kind::AuthorizationPolicy => {
                self.authorization.push(AuthorizationPolicy::from_manifest(resource)?);
            }
            Kind::PeerAuthentication => {
                self.peer.push(PeerAuthentication::from_manifest(resource)?);
            }
            Kind::RequestAuthentication => {
                self.request.push(RequestAuthentication::from_manifest(resource)?);
            }
        }
        Ok(())
    }
}
