//! RequestAuthentication: tokens judged as Istio judges them, stricter where it matters.
//!
//! ```text
//!  Manifest ──from_manifest──▶ RequestAuthentication ─┐
//!  KeySet::parse ──▶ KeySets ─────────────────────────┴─compile─▶ RequestAuthenticator
//!  RequestView ──authenticate──▶ Anonymous | Authenticated (VerifiedToken) | Refused
//! ```
//!
//! [`TokenOptions::strict`] is the default and [`TokenOptions::istio`] answers as Envoy does, byte
//! for byte. Strict is Istio's verdict with objections: it only ever refuses more.
//!
//! Nothing here fetches: [`RequestAuthenticator::wanted`] names the key sets, and new ones come in
//! with a new `compile`, which also forgets every cached token.

mod authenticator;
mod base64url;
mod cache;
mod curve;
mod effects;
#[cfg(feature = "es512")]
mod es512;
mod extract;
mod few;
mod json;
mod judge;
mod jwt_svid;
mod key;
mod key_set;
mod options;
#[cfg(test)]
mod p1363;
mod provider;
mod refresh;
mod refusal;
mod resource;
mod token;

use http::{HeaderMap, Method};

pub use authenticator::{
    Authentication, CompileProblem, CompileProblems, KeySets, KeySource, RequestAuthenticator,
    WantedKeys,
};
pub use cache::{MAX_CACHE_BYTES, MAX_CACHE_SECONDS, MAX_CACHED_TOKENS};
pub use effects::Effects;
pub use jwt_svid::{AuthorityProblem, JwtSvid, JwtSvidError, JwtSvidVerifier, UnusableAuthority};
pub use key_set::{KeyProblem, KeySet, KeySetError, MAX_KEY_SET_LEN, MAX_KEYS, SkippedKey};
pub use options::{MAX_TOKEN_LEN, TokenLimits, TokenOptions, Tolerance};
pub use provider::JSONWEBTOKEN_ON_RING;
pub use refresh::{Fetched, KeyRefresh, KeyState, RefreshPolicy};
pub use refusal::{Reason, Refusal, StringClaim, TimeClaim};
pub use resource::{
    JwtRule, MAX_KEY_URL_LEN, MAX_RULES, MAX_SPACE_DELIMITED, RequestAuthentication,
};

/// What is looked at of a request.
#[derive(Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "callers build it from whatever they have")]
pub struct RequestView<'a> {
    /// The method: a CORS preflight is an OPTIONS request.
    pub method: &'a Method,
    /// `http` or `https`, for the challenge's realm only.
    pub scheme: &'a str,
    /// The authority, for the challenge's realm only.
    pub host: &'a str,
    /// Path and query after normalization; the query may hold a token.
    pub path_and_query: &'a str,
    /// The header fields; trailers are not a place for tokens ([SEC-JWT-9]).
    pub headers: &'a HeaderMap,
}

/// The headers may hold a token, so nothing of a request is shown but its method.
impl std::fmt::Debug for RequestView<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestView").field("method", self.method).finish_non_exhaustive()
    }
}
