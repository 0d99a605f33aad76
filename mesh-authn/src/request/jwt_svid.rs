//! JWT-SVIDs: tokens that name a workload (SPIFFE JWT-SVID standard). Always strict.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use mesh_identity::{BundleSet, SpiffeId, SpiffeIdError, TrustDomain, VerifiedToken};
use rustls_pki_types::UnixTime;
use serde_json::Value;

use super::key::{Answer, Key};
use super::key_set::{KeyProblem, parse_key};
use super::options::{TokenLimits, Tolerance};
use super::refusal::Reason;
use super::token::{Algorithm, ParsedToken, SKEW};

/// Verifies JWT-SVIDs meant for this workload.
///
/// The trust domain of `sub` chooses the bundle, `kid` the key in it, and the key the algorithm.
/// Nothing that [`Tolerance`] names is tolerated, and `exp` is required.
pub struct JwtSvidVerifier {
    keys: BTreeMap<TrustDomain, Vec<Key>>,
    audiences: Vec<String>,
    leeway: u64,
}

/// A verified JWT-SVID.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JwtSvid {
    /// Whom the token names.
    pub id: SpiffeId,
    /// Its claims.
    pub token: VerifiedToken,
    /// When it ends.
    pub expires: UnixTime,
}

/// A JWT authority of a bundle that cannot be used, so that its tokens are refused.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct UnusableAuthority {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// The key's id.
    pub kid: String,
    /// What is wrong with it.
    pub problem: AuthorityProblem,
}

/// Why a JWT authority cannot be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityProblem {
    /// It is no public key.
    #[error("{0}")]
    Key(#[from] KeyProblem),

    /// It is weak or not canonically encoded.
    #[error("{0}")]
    Objection(Tolerance),
}

/// Why a token is not a JWT-SVID for this workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JwtSvidError {
    /// `alg` is not one of RS, ES or PS with 256, 384 or 512, or not the key's.
    #[error("algorithm is not allowed")]
    Algorithm,

    /// None of `aud` is a name of this workload.
    #[error("token is meant for another audience")]
    Audience,

    /// `sub` is not a SPIFFE ID.
    #[error("subject is not a SPIFFE ID: {0}")]
    InvalidSubject(#[from] SpiffeIdError),

    /// `exp` is missing.
    #[error("expiry is missing")]
    MissingExpiry,

    /// `kid` is missing.
    #[error("key id is missing")]
    MissingKeyId,

    /// `sub` is missing.
    #[error("subject is missing")]
    MissingSubject,

    /// Something that only Istio tolerates.
    #[error("token is not acceptable: {0}")]
    NotAcceptable(Tolerance),

    /// Malformed, expired, not yet valid, forged, or beyond the default [`TokenLimits`].
    #[error("{}", .0.text())]
    Token(Reason),

    /// `typ` is neither absent nor `JWT` nor `JOSE`: a `wit+jwt` is no bearer token.
    #[error("token type is not JWT or JOSE")]
    Type,

    /// The bundle has no key of this id.
    #[error("no key with this id in the trust domain's bundle")]
    UnknownKey,

    /// There is no bundle for the subject's trust domain.
    #[error("no bundle for the subject's trust domain")]
    UnknownTrustDomain,
}

impl JwtSvidVerifier {
    /// A verifier for the names this workload answers to, with the JWT authorities of these
    /// bundles. Also returns the authorities that cannot be used.
    ///
    /// Without names every token is meant for somebody else.
    #[must_use]
    pub fn compile(
        bundles: &BundleSet,
        audiences: impl IntoIterator<Item = impl Into<String>>,
    ) -> (Self, Vec<UnusableAuthority>) {
        let (mut keys, mut unusable) = (BTreeMap::new(), Vec::new());
        for bundle in bundles.iter() {
            let mut usable: Vec<Key> = Vec::new();
            for authority in bundle.jwt_authorities() {
                match read_authority(authority.jwk()) {
                    Ok(key) => usable.push(key),
                    Err(problem) => unusable.push(UnusableAuthority {
                        trust_domain: bundle.trust_domain().clone(),
                        kid: authority.kid().to_owned(),
                        problem,
                    }),
                }
            }
            keys.insert(bundle.trust_domain().clone(), usable);
        }
        let audiences = audiences.into_iter().map(Into::into).collect();
        (Self { keys, audiences, leeway: SKEW }, unusable)
    }

    /// How far clocks may differ, at most the default of 60 seconds ([SEC-JWT-5]).
    #[must_use]
    pub fn with_leeway(mut self, leeway: Duration) -> Self {
        self.leeway = leeway.as_secs().min(SKEW);
        self
    }

    /// Verifies a token: the text behind `Bearer `. `now` is the wall clock.
    ///
    /// # Errors
    ///
    /// [`JwtSvidError`]: the first rule of the standard that it breaks.
    pub fn verify(&self, token: &str, now: UnixTime) -> Result<JwtSvid, JwtSvidError> {
        let limits = TokenLimits::default();
        let parsed = ParsedToken::parse(token.as_bytes(), limits, None).map_err(|reason| {
            let unknown = reason == Reason::AlgorithmUnknown;
            if unknown { JwtSvidError::Algorithm } else { JwtSvidError::Token(reason) }
        })?;
        if !is_allowed(parsed.header.algorithm) {
            return Err(JwtSvidError::Algorithm);
        }
        match &parsed.header.typ {
            None => {}
            Some(Value::String(typ)) if matches!(typ.as_str(), "JWT" | "JOSE") => {}
            Some(_) => return Err(JwtSvidError::Type),
        }
        if let Some(finding) = parsed.findings.first() {
            let expiry = *finding == Tolerance::NoExpiry;
            let other = JwtSvidError::NotAcceptable(*finding);
            return Err(if expiry { JwtSvidError::MissingExpiry } else { other });
        }
        let subject = parsed.claims.subject().ok_or(JwtSvidError::MissingSubject)?;
        let id: SpiffeId = subject.parse()?;
        parsed.times.check(now.as_secs(), self.leeway).map_err(JwtSvidError::Token)?;
        if !parsed.audiences.iter().any(|audience| self.audiences.contains(audience)) {
            return Err(JwtSvidError::Audience);
        }
        let kid = parsed.header.kid.as_deref().filter(|kid| !kid.is_empty());
        let kid = kid.ok_or(JwtSvidError::MissingKeyId)?;
        let keys = self.keys.iter().find(|(name, _)| name.as_str() == id.trust_domain());
        let (_, keys) = keys.ok_or(JwtSvidError::UnknownTrustDomain)?;
        let key = keys.iter().find(|key| key.kid.as_deref() == Some(kid));
        let key = key.ok_or(JwtSvidError::UnknownKey)?;
        if !key.fits(Some(kid), parsed.header.algorithm)
            || !key.material.makes(parsed.header.algorithm)
        {
            return Err(JwtSvidError::Algorithm);
        }
        match key.verify(parsed.header.algorithm, &parsed.signed, &parsed.signature) {
            Answer::Good(findings) => {
                if let Some(finding) = findings.first() {
                    return Err(JwtSvidError::NotAcceptable(*finding));
                }
            }
            Answer::Bad | Answer::WrongLength => {
                return Err(JwtSvidError::Token(Reason::Signature));
            }
        }
        let expires = UnixTime::since_unix_epoch(Duration::from_secs(parsed.times.expires));
        Ok(JwtSvid { id, token: VerifiedToken::assert_verified(parsed.claims, []), expires })
    }
}

impl fmt::Debug for JwtSvidVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvidVerifier")
            .field("trust_domains", &self.keys.keys().collect::<Vec<_>>())
            .field("audiences", &self.audiences)
            .finish_non_exhaustive()
    }
}

fn read_authority(jwk: &Value) -> Result<Key, AuthorityProblem> {
    let key = parse_key(jwk)?;
    match key.findings.first() {
        Some(finding) => Err(AuthorityProblem::Objection(*finding)),
        None => Ok(key),
    }
}

/// JWT-SVID section 2.1: no HMAC, no EdDSA, no `none`.
fn is_allowed(algorithm: Algorithm) -> bool {
    match algorithm {
        Algorithm::Es256
        | Algorithm::Es384
        | Algorithm::Es512
        | Algorithm::Ps256
        | Algorithm::Ps384
        | Algorithm::Ps512
        | Algorithm::Rs256
        | Algorithm::Rs384
        | Algorithm::Rs512 => true,
        Algorithm::EdDsa | Algorithm::Hs256 | Algorithm::Hs384 | Algorithm::Hs512 => false,
    }
}
