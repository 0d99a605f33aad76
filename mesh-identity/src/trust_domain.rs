//! Trust domains: the realm of one set of authorities.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::spiffe_id::{
    SpiffeIdError, SpiffeIdRef, check_trust_domain, is_trust_domain_byte, split_while,
};

/// The longest trust domain name in bytes (SPIFFE-ID section 2.1).
pub const MAX_TRUST_DOMAIN_LEN: usize = 255;

/// The name of a trust domain, such as `prod.example`.
///
/// # Examples
///
/// ```
/// use mesh_identity::TrustDomain;
///
/// let home: TrustDomain = "prod.example".parse()?;
/// assert_eq!(home, "spiffe://prod.example/ns/pay/sa/api".parse()?);
/// assert!("Prod.Example".parse::<TrustDomain>().is_err());
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TrustDomain {
    /// Invariant: accepted by [`check_trust_domain_name`].
    name: Arc<str>,
}

impl TrustDomain {
    /// The name without a scheme.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.name
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// Reads a bare name, or takes the trust domain of a whole SPIFFE ID.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(":/") {
            return Ok(Self { name: Arc::from(SpiffeIdRef::parse(text)?.trust_domain()) });
        }
        check_trust_domain_name(text)?;
        Ok(Self { name: Arc::from(text) })
    }
}

/// Lets a map keyed by trust domain be asked with a borrowed name.
impl Borrow<str> for TrustDomain {
    fn borrow(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// A bare name: nothing may follow it, not even a path.
pub(crate) fn check_trust_domain_name(name: &str) -> Result<(), SpiffeIdError> {
    let (name, rest) = split_while(name.as_bytes(), is_trust_domain_byte);
    if !rest.is_empty() {
        return Err(SpiffeIdError::TrustDomainChar { at: name.len() });
    }
    check_trust_domain(name, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_id_1_a_bare_name_or_a_whole_id() {
        for (text, want) in [
            ("td", Ok("td")),
            ("spiffe://td", Ok("td")),
            ("spiffe://td/a/b", Ok("td")),
            ("", Err(SpiffeIdError::MissingTrustDomain)),
            ("td/a", Err(SpiffeIdError::TrustDomainChar { at: 2 })),
            ("https://td", Err(SpiffeIdError::WrongScheme)),
            ("spiffe://td/", Err(SpiffeIdError::TrailingSlash)),
        ] {
            let got = text.parse::<TrustDomain>();
            assert_eq!(got.as_ref().map(TrustDomain::as_str), want.as_ref().copied(), "{text:?}");
        }
    }
}
