//! The messages on the wire (`workloadapi.proto` of SPIFFE), written by hand: a build needs no
//! protoc.
//!
//! WIT-SVIDs, which are incubating, are left out: a server answers `Unimplemented`.

#![expect(clippy::exhaustive_structs, reason = "a message has the fields of its proto")]

use std::collections::BTreeMap;
use std::fmt;

use zeroize::Zeroize as _;

/// Asks for all X.509-SVIDs of the caller.
#[derive(Clone, Copy, Eq, Hash, PartialEq, prost::Message)]
pub struct X509SvidRequest {}

/// The caller's X.509-SVIDs, and whom to believe.
#[derive(PartialEq, prost::Message)]
pub struct X509SvidResponse {
    /// The identities, the default one first.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Certificate revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// For each foreign trust domain (`spiffe://td`) its authorities, DER, one after the other.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// One X.509-SVID with its private key, which is zeroed on drop and never shown ([SEC-ID-12]).
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct X509Svid {
    /// The SPIFFE ID in the leaf.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// The chain, DER, leaf first, one certificate after the other.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// The private key, PKCS#8 DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// The authorities of the trust domain, DER, one after the other.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// An operator's label for what this identity is for.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl Drop for X509Svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// Asks for the X.509 authorities alone.
#[derive(Clone, Copy, Eq, Hash, PartialEq, prost::Message)]
pub struct X509BundlesRequest {}

/// The X.509 authorities of each trust domain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509BundlesResponse {
    /// Certificate revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub crl: Vec<Vec<u8>>,
    /// For each trust domain (`spiffe://td`) its authorities, DER, one after the other.
    #[prost(btree_map = "string, bytes", tag = "2")]
    pub bundles: BTreeMap<String, Vec<u8>>,
}

/// Asks for a token.
#[derive(Clone, Eq, Hash, PartialEq, prost::Message)]
pub struct JwtSvidRequest {
    /// For whom the token is; at least one.
    #[prost(string, repeated, tag = "1")]
    pub audience: Vec<String>,
    /// Which of the caller's identities; empty for all.
    #[prost(string, tag = "2")]
    pub spiffe_id: String,
}

/// The tokens.
#[derive(PartialEq, prost::Message)]
pub struct JwtSvidResponse {
    /// One for each identity, the default one first.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<JwtSvid>,
}

/// One JWT-SVID. The token is a bearer credential: zeroed on drop, never shown.
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct JwtSvid {
    /// The SPIFFE ID in `sub`.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// The token, JWS compact serialization.
    #[prost(string, tag = "2")]
    pub svid: String,
    /// An operator's label for what this identity is for.
    #[prost(string, tag = "3")]
    pub hint: String,
}

impl Drop for JwtSvid {
    fn drop(&mut self) {
        self.svid.zeroize();
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("spiffe_id", &self.spiffe_id)
            .field("hint", &self.hint)
            .finish_non_exhaustive()
    }
}

/// Asks for the keys that verify JWT-SVIDs.
#[derive(Clone, Copy, Eq, Hash, PartialEq, prost::Message)]
pub struct JwtBundlesRequest {}

/// The keys that verify JWT-SVIDs, for each trust domain.
#[derive(Clone, PartialEq, prost::Message)]
pub struct JwtBundlesResponse {
    /// For each trust domain (`spiffe://td`) its key set, a JWKS document.
    #[prost(btree_map = "string, bytes", tag = "1")]
    pub bundles: BTreeMap<String, Vec<u8>>,
}

/// Asks whether a token is valid for an audience. The token is zeroed on drop and never shown.
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct ValidateJwtSvidRequest {
    /// Who asks: must be among the token's audiences.
    #[prost(string, tag = "1")]
    pub audience: String,
    /// The token.
    #[prost(string, tag = "2")]
    pub svid: String,
}

impl Drop for ValidateJwtSvidRequest {
    fn drop(&mut self) {
        self.svid.zeroize();
    }
}

impl fmt::Debug for ValidateJwtSvidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateJwtSvidRequest")
            .field("audience", &self.audience)
            .finish_non_exhaustive()
    }
}

/// What a valid token says.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValidateJwtSvidResponse {
    /// The SPIFFE ID in `sub`.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// All claims.
    #[prost(message, optional, tag = "2")]
    pub claims: Option<prost_types::Struct>,
}
