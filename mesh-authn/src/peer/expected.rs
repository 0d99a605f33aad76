//! Who must answer when we connect ([SEC-TLS-5]).

use std::collections::BTreeSet;
use std::fmt;

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
}

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

    /// Whether a verified server is one that was expected.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match &self.rule {
            Rule::OneOf(ids) => ids.contains(id),
            Rule::TrustDomain(trust_domain) => trust_domain.as_str() == id.trust_domain(),
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
        }
    }
}
