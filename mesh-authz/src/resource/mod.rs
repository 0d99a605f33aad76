//! AuthorizationPolicy as its author wrote it, every value parsed.

mod read;
mod value;

use mesh_identity::manifest::{Attachment, Kind, Manifest, Metadata, Problem, Problems};

pub(crate) use value::Value;

use crate::attribute::Attribute;

/// One AuthorizationPolicy that has passed every check of Istio's webhook and ours.
///
/// # Examples
///
/// ```
/// use mesh_authz::AuthorizationPolicy;
///
/// let text = r#"{
///   "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
///   "metadata": {"name": "orders", "namespace": "shop"},
///   "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/admin/*"]}}]}]}
/// }"#;
/// let manifests = mesh_identity::manifest::read(text, "orders.json", "default")?;
/// let policy = AuthorizationPolicy::from_manifest(&manifests.resources[0])?;
/// assert_eq!(policy.metadata().name, "orders");
/// # Ok::<(), mesh_identity::manifest::Problems>(())
/// ```
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    metadata: Metadata,
    attachment: Attachment,
    action: Action,
    dry_run: bool,
    rules: Vec<Rule>,
    warnings: Vec<Problem>,
    /// A problem of the whole resource, to fill in when compiling finds one.
    blank: Problem,
}

impl AuthorizationPolicy {
    /// Reads a policy by the rules of Istio's webhook ([SEM-VAL-01] to [SEM-VAL-15]) and the stricter
    /// ones of a parser that no API server stands before ([SEM-VAL-32]).
    ///
    /// # Errors
    ///
    /// Every problem, each with its field and place.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, Problems> {
        Self::read(manifest, Reading::Checked)
    }

    /// Reads a policy as Istio's data plane would, had its webhook let it pass ([SEM-VAL-30]): what
    /// cannot be translated is dropped, and rules get wider. For comparing with Envoy only.
    ///
    /// # Errors
    ///
    /// Values of a wrong type.
    pub fn from_manifest_lenient(manifest: &Manifest) -> Result<Self, Problems> {
        Self::read(manifest, Reading::Lenient)
    }

    fn read(manifest: &Manifest, reading: Reading) -> Result<Self, Problems> {
        if manifest.kind() != Kind::AuthorizationPolicy {
            return Err(manifest.problem("kind", "expected an AuthorizationPolicy").into());
        }
        read::policy(manifest, reading)
    }

    /// Name, namespace and annotations.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// What happens when a rule matches.
    #[must_use]
    pub fn action(&self) -> &Action {
        &self.action
    }

    /// Whether it is evaluated without effect ([SEM-EVAL-41]).
    #[must_use]
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// What it is attached to.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// What is valid and yet cannot mean what its author wanted, each with its place.
    #[must_use]
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// A problem found after reading; `path` is the field below `spec`.
    pub(crate) fn problem(&self, path: &str, message: &str) -> Problem {
        let mut problem = self.blank.clone();
        problem.path = if path.is_empty() { "spec".to_owned() } else { format!("spec.{path}") };
        let Metadata { namespace, name, .. } = &self.metadata;
        problem.message = format!("AuthorizationPolicy {namespace}/{name}: {message}");
        problem
    }
}

/// What a policy does when one of its rules matches.
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a new action must break every reader")]
pub enum Action {
    /// Allows; whatever no ALLOW rule matches is refused.
    Allow,
    /// Marks the request for the access log.
    Audit,
    /// Asks an external authorizer.
    Custom {
        /// `provider.name`.
        provider: String,
    },
    /// Refuses.
    Deny,
}

impl Action {
    /// The action as policies write it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Audit => "AUDIT",
            Self::Custom { .. } => "CUSTOM",
            Self::Deny => "DENY",
        }
    }
}

/// How invalid parts are treated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Reading {
    /// They are problems.
    Checked,
    /// They are dropped as Istio drops them.
    Lenient,
}

/// One entry of `rules`. Empty `from` or `to` is any; so is an empty entry of either.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) index: usize,
    pub(crate) from: Vec<Vec<Term>>,
    pub(crate) to: Vec<Vec<Term>>,
    pub(crate) when: Vec<Term>,
}

impl Rule {
    pub(crate) fn terms(&self) -> impl Iterator<Item = &Term> {
        self.from.iter().chain(&self.to).flatten().chain(&self.when)
    }
}

/// A field with its `not` twin, or a condition.
#[derive(Clone, Debug)]
pub(crate) struct Term {
    pub(crate) attribute: Attribute,
    /// Where it stands in the rule, such as `from[0].source.principals`.
    pub(crate) path: String,
    /// Where its `not` twin stands.
    pub(crate) not_path: String,
    pub(crate) values: Vec<Value>,
    pub(crate) not_values: Vec<Value>,
}
