//! Why a request is refused, and what the client is told: Envoy's texts, byte for byte.

use http::{HeaderValue, StatusCode};

use super::RequestView;
use super::options::Tolerance;

/// Why a token, and with it the request, is refused ([SEM-JWT-23]).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// `alg` is missing or no string.
    AlgorithmMissing,
    /// `alg` is not one that exists, or `none`.
    AlgorithmUnknown,
    /// No audience of the token is one of the rule's.
    Audience,
    /// `aud` is neither a string nor a list of strings.
    AudienceType,
    /// `exp` has passed.
    Expired,
    /// The header is not base64url.
    HeaderBase64,
    /// The header is no JSON object.
    HeaderJson,
    /// A claim that must be a string is none.
    ClaimNotString(StringClaim),
    /// A time is no number.
    ClaimNotNumber(TimeClaim),
    /// A time is negative or beyond 64 bits.
    ClaimOutOfRange(TimeClaim),
    /// `kid` is no string.
    KidType,
    /// The rule's key set has not been fetched, or has become too old.
    KeysUnavailable,
    /// No key of the set fits `kid` and `alg`.
    NoMatchingKey,
    /// `nbf` has not come.
    NotYetValid,
    /// Something that Istio tolerates and the options do not.
    NotTolerated(Tolerance),
    /// The payload is not base64url.
    PayloadBase64,
    /// The payload is no JSON object.
    PayloadJson,
    /// Not three parts.
    Parts,
    /// The signature does not verify.
    Signature,
    /// The signature is not base64url.
    SignatureBase64,
    /// An Ed25519 signature is not 64 bytes.
    SignatureLength,
    /// The token is nested deeper than the options allow.
    TooDeep,
    /// The token, its header or its key id is longer than the options allow.
    TooLong,
    /// No rule that looks at this place names the token's issuer.
    UnknownIssuer,
}

/// The claims that must be strings.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "the list is Envoy's")]
pub enum StringClaim {
    /// `iss`
    Issuer,
    /// `sub`
    Subject,
    /// `jti`
    TokenId,
}

/// The claims that are times.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "the list is Envoy's")]
pub enum TimeClaim {
    /// `iat`
    IssuedAt,
    /// `nbf`
    NotBefore,
    /// `exp`
    Expires,
}

impl Reason {
    /// The text that Envoy answers; for what Envoy does not know, one in its style.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::AlgorithmMissing => "Jwt header [alg] field is required and must be a string",
            Self::AlgorithmUnknown => "Jwt header [alg] is not supported",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::AudienceType => "Jwt payload [aud] field is not a string or string list",
            Self::Expired => "Jwt is expired",
            Self::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderJson => "Jwt header is an invalid JSON",
            Self::ClaimNotString(claim) => match claim {
                StringClaim::Issuer => "Jwt payload [iss] field is not a string",
                StringClaim::Subject => "Jwt payload [sub] field is not a string",
                StringClaim::TokenId => "Jwt payload [jti] field is not a string",
            },
            Self::ClaimNotNumber(claim) => match claim {
                TimeClaim::IssuedAt => "Jwt payload [iat] field is not an integer",
                TimeClaim::NotBefore => "Jwt payload [nbf] field is not an integer",
                TimeClaim::Expires => "Jwt payload [exp] field is not an integer",
            },
            Self::ClaimOutOfRange(claim) => match claim {
                TimeClaim::IssuedAt => "Jwt payload [iat] field is not a positive 64 bit integer",
                TimeClaim::NotBefore => "Jwt payload [nbf] field is not a positive 64 bit integer",
                TimeClaim::Expires => "Jwt payload [exp] field is not a positive 64 bit integer",
            },
            Self::KidType => "Jwt header [kid] field is not a string",
            Self::KeysUnavailable => "Jwks remote fetch is failed",
            Self::NoMatchingKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::NotYetValid => "Jwt not yet valid",
            Self::NotTolerated(_) => "Jwt is not acceptable",
            Self::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadJson => "Jwt payload is an invalid JSON",
            Self::Parts => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Self::Signature => "Jwt verification fails",
            Self::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::SignatureLength => "Jwt ED25519 signature is wrong length",
            Self::TooDeep => "Jwt is nested too deep",
            Self::TooLong => "Jwt is too long",
            Self::UnknownIssuer => "Jwt issuer is not configured",
        }
    }
}

/// A request that is not let in because of its tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Refusal {
    reason: Reason,
    path_in_realm: bool,
    /// The rule whose fetched key set lacks the key that a token names.
    lacking: Option<usize>,
}

/// Longest part of path and query that the challenge repeats, in bytes: Envoy's limit.
const MAX_REALM_PATH: usize = 256;

impl Refusal {
    pub(super) fn new(reason: Reason, path_in_realm: bool, lacking: Option<usize>) -> Self {
        Self { reason, path_in_realm, lacking }
    }

    pub(super) fn lacking(&self) -> Option<usize> {
        self.lacking
    }

    /// Why; for the audit event, not for the client.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// 403 for a foreign audience, 401 for everything else.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        if self.is_audience() { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
    }

    /// Whether the token is good but meant for somebody else.
    #[must_use]
    pub fn is_audience(&self) -> bool {
        self.reason == Reason::Audience
    }

    /// `grpc-status` of the answer to a gRPC request: 7 or 16 ([SEM-RESP-12]).
    #[must_use]
    pub fn grpc_status(&self) -> u8 {
        if self.is_audience() { 7 } else { 16 }
    }

    /// The body of the answer, of type `text/plain`; for gRPC its `grpc-message`. It has no byte
    /// that `grpc-message` would escape.
    #[must_use]
    pub fn body(&self) -> &'static str {
        self.reason.text()
    }

    /// The value of `www-authenticate` ([SEM-JWT-80]).
    ///
    /// The realm names scheme and host; path and query only with [`Tolerance::PathInRealm`],
    /// because the query may hold the token.
    #[must_use]
    pub fn www_authenticate(&self, request: &RequestView<'_>) -> HeaderValue {
        const START: &[u8] = b"Bearer realm=\"";
        const END: &[u8] = b"\", error=\"invalid_token\"";
        let original = request.headers.get("x-envoy-original-path");
        let path = match original {
            Some(original) => original.as_bytes(),
            None => request.path_and_query.as_bytes(),
        };
        let path = path.get(..MAX_REALM_PATH).unwrap_or(path);
        let path = if self.path_in_realm { path } else { b"" };
        let (scheme, host) = (request.scheme.as_bytes(), request.host.as_bytes());
        let value = [START, scheme, b"://", host, path, END].concat();
        // A quote would end the realm early; a request that has one is not worth an exact answer.
        // Four quotes make five pieces.
        let quotes = value.split(|byte| *byte == b'"').count();
        HeaderValue::from_bytes(&value)
            .ok()
            .filter(|_| quotes == 5)
            .unwrap_or(HeaderValue::from_static("Bearer error=\"invalid_token\""))
    }
}
