//! One call: a fresh key, its request, and what is made of the answer.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use http::Uri;
use http::uri::PathAndQuery;
use mesh_ca::istio_ca::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};
use mesh_identity::x509::{MAX_CHAIN_CERTIFICATES, Role, verify_svid};
use mesh_identity::{BundleError, SvidLoadError, TrustBundle, TrustDomain, X509Svid};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData as _, SanType};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use zeroize::Zeroizing;

use super::{Credentials, IstioCa, IstioCaFailure};
use crate::source::channel;

/// Most bytes of an answer: a chain, and some roots.
const MAX_ANSWER: usize = 256 * 1024;

/// A certificate for a key that was made for it, and the roots that came with it.
pub(super) async fn create(ca: &IstioCa) -> Result<(X509Svid, TrustBundle), IstioCaFailure> {
    let key = KeyPair::generate()?;
    let question = IstioCertificateRequest {
        csr: request(ca, &key)?,
        validity_duration: i64::try_from(ca.ttl.as_secs()).unwrap_or(i64::MAX),
        metadata: None,
    };
    let answer = ask(ca, question).await?;
    take(ca, &key, &answer)
}

/// Empty subject, one URI: the service knows better who asks, other services may not.
fn request(ca: &IstioCa, key: &KeyPair) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(ca.id.as_str().try_into()?)];
    params.serialize_request(key)?.pem()
}

async fn ask(
    ca: &IstioCa,
    question: IstioCertificateRequest,
) -> Result<IstioCertificateResponse, IstioCaFailure> {
    let mut request = Request::new(question);
    for (name, value) in &ca.headers {
        request.metadata_mut().insert(name.clone(), value.clone());
    }
    if let Credentials::Token(path) = &ca.credentials {
        request.metadata_mut().insert("authorization", bearer(path)?);
    }
    let config = Arc::new(tls(ca)?);
    let connect = |error: Box<dyn std::error::Error + Send + Sync>| IstioCaFailure::Connect(error);
    let stream = TcpStream::connect(&ca.address).await.map_err(|error| connect(error.into()))?;
    let stream = TlsConnector::from(config).connect(ca.server_name.clone(), stream).await;
    let stream = stream.map_err(|error| connect(error.into()))?;
    let origin = Uri::builder().scheme("https").authority(ca.address.as_str());
    let origin = origin.path_and_query("/").build().map_err(|error| connect(error.into()))?;
    let grpc = channel::speak(stream, origin).await.map_err(|error| connect(error.into()))?;
    let mut grpc = grpc.max_decoding_message_size(MAX_ANSWER);
    let codec = tonic_prost::ProstCodec::default();
    let path = PathAndQuery::from_static(CREATE_CERTIFICATE);
    match grpc.unary(request, path, codec).await {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(IstioCaFailure::Status {
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }),
    }
}

/// The kubelet writes a new token long before the old one expires: read for every call.
fn bearer(path: &Path) -> Result<AsciiMetadataValue, IstioCaFailure> {
    let token = std::fs::read_to_string(path).map(Zeroizing::new);
    let token = token.map_err(|error| file(path, &error))?;
    let value = Zeroizing::new(format!("Bearer {}", token.trim()));
    let mut value = AsciiMetadataValue::try_from(value.as_str())
        .map_err(|_detail| file(path, &"not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Roots and certificates are read for every call, too: the root may just have changed.
fn tls(ca: &IstioCa) -> Result<ClientConfig, IstioCaFailure> {
    let mut roots = RootCertStore::empty();
    // As Istio's agent reads them: what does not parse is passed over, a broken block ends the file.
    let blocks =
        CertificateDer::pem_file_iter(&ca.roots).map_err(|error| file(&ca.roots, &error))?;
    let (added, _ignored) = roots.add_parsable_certificates(blocks.map_while(Result::ok));
    if added == 0 {
        return Err(file(&ca.roots, &"no certificate that can be read"));
    }
    let wrong = |error: rustls::Error| IstioCaFailure::Connect(error.into());
    let config = ClientConfig::builder_with_provider(Arc::clone(&ca.provider))
        .with_safe_default_protocol_versions()
        .map_err(wrong)?
        .with_root_certificates(roots);
    let mut config = match &ca.credentials {
        Credentials::Token(_) => config.with_no_client_auth(),
        Credentials::Certificate { chain, key } => {
            let certificates = CertificateDer::pem_file_iter(chain).and_then(Iterator::collect);
            let certificates = certificates.map_err(|error| file(chain, &error))?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &error))?;
            config.with_client_auth_cert(certificates, private).map_err(wrong)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// An error of a PEM file shows nothing of what is in it.
fn file(path: &Path, error: &dyn fmt::Display) -> IstioCaFailure {
    IstioCaFailure::File { path: path.to_owned(), message: error.to_string() }
}

/// The last element holds the roots, one or several; what is before it is the chain.
fn take(
    ca: &IstioCa,
    key: &KeyPair,
    answer: &IstioCertificateResponse,
) -> Result<(X509Svid, TrustBundle), IstioCaFailure> {
    let Some((roots, chain)) =
        answer.cert_chain.split_last().filter(|(_, chain)| !chain.is_empty())
    else {
        return Err(IstioCaFailure::Chain);
    };
    let blocks = chain.iter().flat_map(|pem| CertificateDer::pem_slice_iter(pem.as_bytes()));
    let blocks: Result<Vec<_>, _> = blocks.take(MAX_CHAIN_CERTIFICATES.saturating_add(1)).collect();
    let chain = blocks.map_err(|_detail| SvidLoadError::NoChain)?;
    let private = Zeroizing::new(key.serialize_der());
    let svid = X509Svid::from_der(chain, &PrivatePkcs8KeyDer::from(private.as_slice()))?;
    if svid.public_key() != key.subject_public_key_info() {
        return Err(IstioCaFailure::Key);
    }
    if *svid.id() != ca.id {
        return Err(IstioCaFailure::Identity { got: svid.id().clone() });
    }
    let home: TrustDomain = ca.id.trust_domain().parse().map_err(BundleError::TrustDomain)?;
    let roots = TrustBundle::from_pem(home, roots.as_bytes())?;
    let bundles = ca.bundles(roots.clone())?;
    let algorithms = ca.provider.signature_verification_algorithms.all;
    verify_svid(svid.chain(), &bundles, ca.clock.now(), Role::Server, algorithms)?;
    Ok((svid, roots))
}
