//! Who must answer when we connect ([SEC-TLS-5]).

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use mesh_identity::{SpiffeId, TrustDomain};

/// The identities that a server may have. There is no "any".
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ExpectedServer {
    rule: Rule,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Rule {
    OneOf(BTreeSet<SpiffeId>),
    TrustDomain(TrustDomain),
    Matching(Predicate),
}

/// A rule of the program's own, and what it is called.
#[derive(Clone)]
struct Predicate {
    name: Arc<str>,
    accepts: Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>,
}

impl fmt::Debug for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

/// Two are the same when they are clones.
impl PartialEq for Predicate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.name, &other.name)
    }
}

impl Eq for Predicate {}

impl ExpectedServer {
    /// Exactly this workload.
    #[must_use]
    pub fn exact(id: SpiffeId) -> Self {
        Self::one_of([id])
    }

    /// One of these workloads; of none when there are none.
    #[must_use]
    pub fn one_of(ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        Self { rule: Rule::OneOf(ids.into_iter().collect()) }
    }

    /// Any workload of a trust domain: a weak rule, for callers that look at the identity later.
    #[must_use]
    pub fn member_of(trust_domain: TrustDomain) -> Self {
        Self { rule: Rule::TrustDomain(trust_domain) }
    }

    /// Any workload that the program accepts; the name is for errors. What the predicate does not
    /// look at, it lets pass: prefer the other rules.
    ///
    /// ```
    /// use mesh_authn::peer::ExpectedServer;
    ///
    /// let ours = ExpectedServer::matching("a workload of namespace pay", |id| {
    ///     let home = id.trust_domain() == "cluster.local";
    ///     home && id.istio().is_some_and(|istio| istio.namespace == "pay")
    /// });
    /// assert!(ours.accepts(&"spiffe://cluster.local/ns/pay/sa/api".parse()?));
    /// assert!(!ours.accepts(&"spiffe://elsewhere/ns/pay/sa/api".parse()?));
    /// assert_eq!(ours.to_string(), "a workload of namespace pay");
    /// # Ok::<(), mesh_identity::SpiffeIdError>(())
    /// ```
    #[must_use]
    pub fn matching(
        name: &str,
        accepts: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static,
    ) -> Self {
        let predicate = Predicate { name: Arc::from(name), accepts: Arc::new(accepts) };
        Self { rule: Rule::Matching(predicate) }
    }

    /// Whether a verified server is one that was expected.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match &self.rule {
            Rule::OneOf(ids) => ids.contains(id),
            Rule::TrustDomain(trust_domain) => trust_domain.as_str() == id.trust_domain(),
            Rule::Matching(predicate) => (predicate.accepts)(id),
        }
    }
}

impl fmt::Display for ExpectedServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Rule::OneOf(ids) if ids.is_empty() => f.write_str("nobody"),
            Rule::OneOf(ids) => {
                for (at, id) in ids.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { " or " })?;
                    id.fmt(f)?;
                }
                Ok(())
            }
            Rule::TrustDomain(trust_domain) => write!(f, "a member of {trust_domain}"),
            Rule::Matching(predicate) => f.write_str(&predicate.name),
        }
    }
}
