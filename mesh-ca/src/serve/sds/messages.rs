//! The messages of Envoy's secret discovery, of their fields those that are used here
//! (envoyproxy/data-plane-api: `envoy/service/discovery/v3/discovery.proto`,
//! `envoy/extensions/transport_sockets/tls/v3/{secret,common,tls_spiffe_validator_config}.proto`).

use std::collections::BTreeMap;

use zeroize::Zeroize as _;

/// `type.googleapis.com/` and a message's name.
pub(super) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The type of [`SpiffeCertValidatorConfig`].
pub(super) const SPIFFE_VALIDATOR: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// `google.protobuf.Any`. What it holds may be a private key: it is zeroed on drop, and there is no
/// `Debug` of it.
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Any {
    #[prost(string, tag = "1")]
    pub(super) type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) value: Vec<u8>,
}

impl Drop for Any {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

impl std::fmt::Debug for Any {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Any").field("type_url", &self.type_url).finish_non_exhaustive()
    }
}

/// `google.rpc.Status`, without details.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct RpcStatus {
    #[prost(int32, tag = "1")]
    pub(super) code: i32,
    #[prost(string, tag = "2")]
    pub(super) message: String,
}

/// `envoy.service.discovery.v3.DiscoveryRequest`. Who the node says he is (2) counts for nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DiscoveryRequest {
    #[prost(string, tag = "1")]
    pub(super) version_info: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) resource_names: Vec<String>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) response_nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(super) error_detail: Option<RpcStatus>,
}

/// `envoy.service.discovery.v3.DiscoveryResponse`.
#[derive(PartialEq, prost::Message)]
pub(super) struct DiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(super) version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Any>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DeltaDiscoveryRequest {
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) resource_names_subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(super) resource_names_unsubscribe: Vec<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(super) initial_resource_versions: BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub(super) response_nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(super) error_detail: Option<RpcStatus>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`.
#[derive(PartialEq, prost::Message)]
pub(super) struct DeltaDiscoveryResponse {
    #[prost(string, tag = "1")]
    pub(super) system_version_info: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(super) removed_resources: Vec<String>,
}

/// `envoy.service.discovery.v3.Resource`.
#[expect(clippy::struct_field_names, reason = "the proto's names")]
#[derive(PartialEq, prost::Message)]
pub(super) struct Resource {
    #[prost(string, tag = "1")]
    pub(super) version: String,
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Any>,
    #[prost(string, tag = "3")]
    pub(super) name: String,
}

/// `envoy.extensions.transport_sockets.tls.v3.Secret`.
#[derive(PartialEq, prost::Message)]
pub(super) struct Secret {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(oneof = "Kind", tags = "2, 4")]
    pub(super) kind: Option<Kind>,
}

/// What a secret is.
#[derive(PartialEq, prost::Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "2")]
    TlsCertificate(TlsCertificate),
    #[prost(message, tag = "4")]
    ValidationContext(ValidationContext),
}

/// `envoy.extensions.transport_sockets.tls.v3.TlsCertificate`.
#[derive(PartialEq, prost::Message)]
pub(super) struct TlsCertificate {
    #[prost(message, optional, tag = "1")]
    pub(super) certificate_chain: Option<DataSource>,
    #[prost(message, optional, tag = "2")]
    pub(super) private_key: Option<DataSource>,
}

/// `envoy.config.core.v3.DataSource`. It may be a private key: zeroed on drop, no `Debug` of it.
#[derive(PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct DataSource {
    #[prost(bytes = "vec", tag = "2")]
    pub(super) inline_bytes: Vec<u8>,
}

impl Drop for DataSource {
    fn drop(&mut self) {
        self.inline_bytes.zeroize();
    }
}

impl std::fmt::Debug for DataSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataSource").finish_non_exhaustive()
    }
}

/// `envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext`.
#[derive(PartialEq, prost::Message)]
pub(super) struct ValidationContext {
    #[prost(message, optional, tag = "1")]
    pub(super) trusted_ca: Option<DataSource>,
    #[prost(message, optional, tag = "12")]
    pub(super) custom_validator_config: Option<TypedExtensionConfig>,
}

/// `envoy.config.core.v3.TypedExtensionConfig`.
#[derive(PartialEq, prost::Message)]
pub(super) struct TypedExtensionConfig {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) typed_config: Option<Any>,
}

/// `envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig`.
#[derive(PartialEq, prost::Message)]
pub(super) struct SpiffeCertValidatorConfig {
    #[prost(message, repeated, tag = "1")]
    pub(super) trust_domains: Vec<ValidatorTrustDomain>,
}

/// `SPIFFECertValidatorConfig.TrustDomain`.
#[derive(PartialEq, prost::Message)]
pub(super) struct ValidatorTrustDomain {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, optional, tag = "2")]
    pub(super) trust_bundle: Option<DataSource>,
}
