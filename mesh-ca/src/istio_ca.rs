//! The messages of Istio's certificate service (istio/api: `security/v1alpha1/ca.proto`), written by
//! hand: a build needs no protoc. No I/O; the server is in `serve`, a client in mesh-tower.

#![expect(clippy::exhaustive_structs, reason = "a message has the fields of its proto")]

/// The path of the one method.
pub const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// `istio.v1.auth.IstioCertificateRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// A PKCS#10 request, PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// The life asked for, in seconds; zero and less is the authority's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// `CertSigner` and `ImpersonatedIdentity` have a meaning.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<prost_types::Struct>,
}

/// `istio.v1.auth.IstioCertificateResponse`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM: the leaf, each intermediate, and in the last element the root; during a rotation several.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}
