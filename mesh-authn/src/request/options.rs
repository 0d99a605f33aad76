//! What is tolerated: Istio's answers by name, stricter ones by default.

use std::fmt;

use super::json;

/// One thing that Envoy accepts and that we refuse unless told otherwise.
///
/// A tolerance only ever turns a refusal into what Istio answers. Without it fewer requests pass,
/// and none passes as somebody else ([SEM-STRICT-20]).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Tolerance {
    /// The token's `alg` is not one the key can have made: an EC key under a header that says
    /// RS256, or P-256 with SHA-384 ([SEM-JWT-72], RFC 8725 section 3.1).
    AlgorithmMismatch,
    /// Base64url with exact `=` padding; some load balancers write it.
    Base64Padding,
    /// An `Authorization` header names the Bearer scheme, but not as `Bearer T`: Istio sees no
    /// token and lets the request go on as anonymous ([SEM-JWT-08], [SEM-STRICT-02]).
    BearerSpelling,
    /// A rule without issuer accepts a token that names another rule's issuer, which does not
    /// accept it ([SEM-JWT-40]).
    BorrowedIssuer,
    /// The token's header has `crit` or `b64`, which are not looked at ([SEM-JWT-17]).
    CriticalHeader,
    /// Empty parts between or around the dots ([SEM-JWT-15]).
    EmptySegments,
    /// The key's JWK says that it is not for signatures: `use`, `key_ops` ([SEM-JWT-71]).
    KeyUse,
    /// White space inside base64url, or unused bits that are not zero: one token, many spellings
    /// ([SEM-JWT-16]).
    LooseBase64,
    /// A JWK with padded or odd-length members, or empty `alg` or `crv`.
    LooseKeyEncoding,
    /// An ECDSA signature that is not exactly two halves of the curve's size.
    LooseSignatureLength,
    /// A token without `exp`, or with one below 1: it never expires ([SEM-JWT-20]). The only one
    /// that is tolerated by default.
    NoExpiry,
    /// The payload is the JSON `null`, which Envoy takes for an object without members.
    NullPayload,
    /// The challenge repeats path and query of the request, and with them a token in a parameter
    /// ([SEM-JWT-80]).
    PathInRealm,
    /// A token parameter occurs twice; only the first is checked (RFC 6750 section 3.1).
    RepeatedParameter,
    /// A symmetric key in a key set that was fetched: whoever can read the set can sign
    /// ([SEC-JWT-1]).
    SharedSecret,
    /// A token at some rule's location that no rule accepts, beside one that is accepted
    /// ([SEM-STRICT-01]).
    UnacceptedToken,
    /// A CORS preflight passes whatever tokens it carries ([SEM-STRICT-16]).
    UncheckedPreflight,
    /// RSA below 2048 bits, an HMAC key shorter than the hash, an Ed25519 point of small order.
    WeakKey,
}

impl Tolerance {
    /// Its bit in a set of them.
    #[expect(clippy::as_conversions, reason = "the number of a variant; there are 18")]
    const fn bit(self) -> u32 {
        1 << (self as u32)
    }

    /// Every tolerance, in alphabetical order.
    pub const ALL: [Self; 18] = [
        Self::AlgorithmMismatch,
        Self::Base64Padding,
        Self::BearerSpelling,
        Self::BorrowedIssuer,
        Self::CriticalHeader,
        Self::EmptySegments,
        Self::KeyUse,
        Self::LooseBase64,
        Self::LooseKeyEncoding,
        Self::LooseSignatureLength,
        Self::NoExpiry,
        Self::NullPayload,
        Self::PathInRealm,
        Self::RepeatedParameter,
        Self::SharedSecret,
        Self::UnacceptedToken,
        Self::UncheckedPreflight,
        Self::WeakKey,
    ];
}

/// Longest token that is looked at, in bytes. Envoy's limit for all headers together is 60 KiB, so
/// no token that it accepts is longer.
pub const MAX_TOKEN_LEN: usize = 64 * 1024;

/// How large a token may be before anything is done with it ([SEC-JWT-12], [SEC-JWT-3]).
///
/// The default is what a service needs: a token of 8 KiB, a header part of 2 KiB, a `kid` of 256
/// bytes, 64 levels of JSON. [`TokenLimits::ENVOY`] is what Envoy bears.
///
/// # Examples
///
/// ```
/// use mesh_authn::request::{TokenLimits, TokenOptions};
///
/// let mut limits = TokenLimits::default();
/// limits.token = 16 * 1024;
/// let options = TokenOptions::strict().with_limits(limits);
/// assert_eq!(options.limits(), limits);
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TokenLimits {
    /// Bytes of the whole token.
    pub token: usize,
    /// Bytes of the header's part, as it is in the token.
    pub header: usize,
    /// Bytes of the header's `kid`.
    pub kid: usize,
    /// Levels of header and payload, the outermost object counted.
    pub depth: usize,
}

impl TokenLimits {
    /// No token that Envoy accepts is larger; nothing may be set above it.
    pub const ENVOY: Self = Self {
        token: MAX_TOKEN_LEN,
        header: MAX_TOKEN_LEN,
        kid: MAX_TOKEN_LEN,
        depth: json::ENVOY_DEPTH,
    };

    /// Each at most what Envoy bears.
    fn bounded(self) -> Self {
        let Self { token, header, kid, depth } = self;
        Self {
            token: token.min(Self::ENVOY.token),
            header: header.min(Self::ENVOY.header),
            kid: kid.min(Self::ENVOY.kid),
            depth: depth.min(Self::ENVOY.depth),
        }
    }
}

impl Default for TokenLimits {
    fn default() -> Self {
        Self { token: 8 * 1024, header: 2 * 1024, kid: 256, depth: json::DEPTH }
    }
}

/// How tokens are judged.
///
/// # Examples
///
/// ```
/// use mesh_authn::request::{TokenOptions, Tolerance};
///
/// assert_eq!(TokenOptions::default(), TokenOptions::strict());
/// let options = TokenOptions::strict().tolerate(Tolerance::Base64Padding);
/// assert!(options.tolerates(Tolerance::Base64Padding));
/// assert!(!options.tolerates(Tolerance::CriticalHeader));
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenOptions {
    /// A bit for each that is tolerated.
    tolerated: u32,
    limits: TokenLimits,
}

impl TokenOptions {
    /// Istio's answers, byte for byte.
    #[must_use]
    pub fn istio() -> Self {
        let every = Tolerance::ALL.into_iter().fold(0, |set, one| set | one.bit());
        Self { tolerated: every, limits: TokenLimits::ENVOY }
    }

    /// Refuses everything that Istio tolerates by accident. Tokens without `exp` still pass: refuse
    /// [`Tolerance::NoExpiry`] where every issuer sets it.
    #[must_use]
    pub fn strict() -> Self {
        Self { tolerated: Tolerance::NoExpiry.bit(), limits: TokenLimits::ENVOY }
    }

    /// Accepts one more thing that Istio accepts.
    #[must_use]
    pub fn tolerate(mut self, tolerance: Tolerance) -> Self {
        self.tolerated |= tolerance.bit();
        self
    }

    /// Refuses one more thing that Istio accepts.
    #[must_use]
    pub fn refuse(mut self, tolerance: Tolerance) -> Self {
        self.tolerated &= !tolerance.bit();
        self
    }

    /// Refuses tokens that are larger, also beside one that is accepted ([SEC-JWT-12]). Without it
    /// [`TokenLimits::ENVOY`] holds, which is also the most that can be asked for.
    #[must_use]
    pub fn with_limits(mut self, limits: TokenLimits) -> Self {
        self.limits = limits.bounded();
        self
    }

    /// Whether this is tolerated.
    #[must_use]
    pub fn tolerates(&self, tolerance: Tolerance) -> bool {
        self.tolerated & tolerance.bit() != 0
    }

    /// How large a token may be.
    #[must_use]
    pub fn limits(&self) -> TokenLimits {
        self.limits
    }

    /// The first finding that is not tolerated.
    pub(super) fn objection(&self, findings: &[Tolerance]) -> Option<Tolerance> {
        findings.iter().copied().find(|finding| !self.tolerates(*finding))
    }
}

/// [`TokenOptions::strict`].
impl Default for TokenOptions {
    fn default() -> Self {
        Self::strict()
    }
}

/// What was found, in words for an audit event.
impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AlgorithmMismatch => "alg does not fit the key",
            Self::Base64Padding => "padded base64url",
            Self::BearerSpelling => "Bearer scheme not spelled `Bearer `",
            Self::BorrowedIssuer => "issuer of another rule under a rule without issuer",
            Self::CriticalHeader => "crit or b64 in the header",
            Self::EmptySegments => "empty parts",
            Self::KeyUse => "key is not for signatures",
            Self::LooseBase64 => "base64url is not canonical",
            Self::LooseKeyEncoding => "key is not canonically encoded",
            Self::LooseSignatureLength => "signature has a wrong length",
            Self::NoExpiry => "no expiry",
            Self::NullPayload => "payload is null",
            Self::PathInRealm => "path in the realm",
            Self::RepeatedParameter => "token parameter occurs twice",
            Self::SharedSecret => "symmetric key in a fetched key set",
            Self::UnacceptedToken => "a token that no rule accepts",
            Self::UncheckedPreflight => "preflight carries a bad token",
            Self::WeakKey => "weak key",
        })
    }
}
