//! Trust domain aliases: one principal becomes one per name of the mesh's trust domain.

use mesh_identity::{MeshSettings, TrustDomainPattern};

/// The mesh's trust domain and its aliases, in order.
pub(crate) struct TrustDomains<'a> {
    names: Vec<&'a str>,
}

/// What `principals` may write for "our trust domain", whatever it is called.
const POINTER: &str = "cluster.local";

impl<'a> TrustDomains<'a> {
    pub(crate) fn new(mesh: &'a MeshSettings) -> Self {
        let own = std::iter::once(mesh.trust_domain().as_str());
        let aliases = mesh.trust_domain_aliases().iter().map(TrustDomainPattern::as_str);
        Self { names: own.chain(aliases).collect() }
    }

    /// [SEM-AUTHZ-21]
    pub(crate) fn expand_principal(&self, value: &str) -> Vec<String> {
        let unchanged = || vec![value.to_owned()];
        let mut parts = value.split('/');
        let first = parts.next().unwrap_or_default();
        if parts.count() != 4 || first == "*" {
            return unchanged();
        }
        let is_known = first == POINTER
            || self.names.iter().any(|name| *name == "*" || fits(name, first) || fits(first, name));
        if !is_known {
            return unchanged();
        }
        let rest = value.strip_prefix(first).unwrap_or_default();
        let mut expanded: Vec<String> = Vec::with_capacity(self.names.len());
        for name in &self.names {
            let stays = first.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix));
            let one = if stays { value.to_owned() } else { format!("{name}{rest}") };
            if !expanded.contains(&one) {
                expanded.push(one);
            }
        }
        expanded
    }

    /// [SEM-AUTHZ-28] Exact names only; `cluster.local` is no pointer here.
    pub(crate) fn expand_trust_domain(&self, value: &str) -> Vec<String> {
        if !self.names.contains(&value) {
            return vec![value.to_owned()];
        }
        let mut expanded: Vec<String> = Vec::with_capacity(self.names.len());
        for name in &self.names {
            if !expanded.iter().any(|one| one == name) {
                expanded.push((*name).to_owned());
            }
        }
        expanded
    }
}

/// Whether a text satisfies a pattern with a star at its end or start, or equals it.
fn fits(text: &str, pattern: &str) -> bool {
    text == pattern
        || pattern.strip_suffix('*').is_some_and(|prefix| text.starts_with(prefix))
        || pattern.strip_prefix('*').is_some_and(|suffix| text.ends_with(suffix))
}
