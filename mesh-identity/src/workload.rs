//! The workload that policies are compiled for, and the mesh it lives in.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::spiffe_id::SpiffeIdError;
use crate::trust_domain::{TrustDomain, check_trust_domain_name};

/// The label that makes a workload a Gateway API gateway or waypoint ([SEM-SEL-02]).
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Namespace and labels of the process that embeds the mesh: what policies select by.
///
/// # Examples
///
/// ```
/// use mesh_identity::Workload;
///
/// let details = Workload::new("default").with_label("app", "details");
/// assert_eq!(details.label("app"), Some("details"));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    namespace: String,
    labels: BTreeMap<String, String>,
}

impl Workload {
    /// A workload without labels in a Kubernetes namespace.
    #[must_use]
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), labels: BTreeMap::new() }
    }

    /// Adds one label, replacing an earlier value of the same key.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The value of one label.
    #[must_use]
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key).map(String::as_str)
    }

    /// The name of the Gateway that this workload serves, if it is one ([SEM-SEL-04]).
    #[must_use]
    pub fn gateway_name(&self) -> Option<&str> {
        self.label(GATEWAY_NAME_LABEL)
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.namespace)?;
        for (key, value) in &self.labels {
            write!(f, " {key}={value}")?;
        }
        Ok(())
    }
}

/// The mesh-wide settings that change what a policy means (Istio's `MeshConfig`).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct MeshSettings {
    trust_domain: TrustDomain,
    trust_domain_aliases: Vec<TrustDomainPattern>,
    root_namespace: String,
}

impl MeshSettings {
    /// Settings with Istio's root namespace `istio-system` and no aliases.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
        }
    }

    /// Former or additional names of the trust domain (`trustDomainAliases`).
    #[must_use]
    pub fn with_aliases(mut self, aliases: impl IntoIterator<Item = TrustDomainPattern>) -> Self {
        self.trust_domain_aliases = aliases.into_iter().collect();
        self
    }

    /// The namespace whose policies reach every workload (`rootNamespace`).
    #[must_use]
    pub fn with_root_namespace(mut self, namespace: impl Into<String>) -> Self {
        self.root_namespace = namespace.into();
        self
    }

    /// The mesh's own trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The other names of the trust domain.
    #[must_use]
    pub fn trust_domain_aliases(&self) -> &[TrustDomainPattern] {
        &self.trust_domain_aliases
    }

    /// The namespace whose policies reach every workload.
    #[must_use]
    pub fn root_namespace(&self) -> &str {
        &self.root_namespace
    }
}

/// An entry of `trustDomainAliases`: a trust domain, or one star at either end of a part of one.
///
/// Istio compares aliases as patterns ([SEM-AUTHZ-21]); what it does with them is mesh-authz's
/// business, here only the form is checked.
///
/// # Examples
///
/// ```
/// use mesh_identity::TrustDomainPattern;
///
/// for text in ["old.example", "*", "*.example", "old*"] {
///     assert_eq!(text.parse::<TrustDomainPattern>()?.as_str(), text);
/// }
/// assert!("o*d".parse::<TrustDomainPattern>().is_err());
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TrustDomainPattern {
    /// Invariant: a trust domain name, at most one end of it replaced by a star.
    text: String,
}

impl TrustDomainPattern {
    /// The pattern as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for TrustDomainPattern {
    type Err = SpiffeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let literal = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(text);
        if !literal.is_empty() || text.is_empty() {
            check_trust_domain_name(literal)?;
        }
        Ok(Self { text: text.to_owned() })
    }
}

impl From<TrustDomain> for TrustDomainPattern {
    fn from(name: TrustDomain) -> Self {
        Self { text: name.as_str().to_owned() }
    }
}
