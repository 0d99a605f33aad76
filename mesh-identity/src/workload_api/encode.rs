//! What a server of the Workload API sends.

use rustls_pki_types::CertificateRevocationListDer;

use super::parse::{NamedSvid, WorkloadApiError};
use super::proto;
use crate::bundle::{BundleSet, TrustBundle};

/// The answer of `FetchX509SVID`: the identities, the default one first, with the bundle of their
/// trust domain; all other bundles as federated ones.
///
/// # Errors
///
/// [`WorkloadApiError::NoBundle`] when the bundles have none for an identity's trust domain,
/// [`WorkloadApiError::NoSvid`] when there is no identity: a server answers `PermissionDenied` then.
pub fn encode_x509_svids(
    svids: &[NamedSvid],
    bundles: &BundleSet,
    crls: &[CertificateRevocationListDer<'_>],
) -> Result<proto::X509SvidResponse, WorkloadApiError> {
    if svids.is_empty() {
        return Err(WorkloadApiError::NoSvid);
    }
    let home = |bundle: &TrustBundle| {
        svids.iter().any(|one| one.svid.id().trust_domain() == bundle.trust_domain().as_str())
    };
    let encoded = svids.iter().enumerate().map(|(at, NamedSvid { svid, hint })| {
        let bundle = bundles.get(svid.id().trust_domain());
        let bundle = bundle.ok_or(WorkloadApiError::NoBundle { at })?;
        let mut message = proto::X509Svid::default();
        svid.id().as_str().clone_into(&mut message.spiffe_id);
        message.x509_svid = svid.chain().iter().flat_map(|one| one.iter().copied()).collect();
        message.x509_svid_key = svid.private_key().secret_der().to_vec();
        message.bundle = authorities(bundle);
        message.hint.clone_from(hint);
        Ok(message)
    });
    Ok(proto::X509SvidResponse {
        svids: encoded.collect::<Result<_, WorkloadApiError>>()?,
        crl: crls.iter().map(|crl| crl.to_vec()).collect(),
        federated_bundles: bundles
            .iter()
            .filter(|bundle| !home(bundle))
            .map(|bundle| (name(bundle), authorities(bundle)))
            .collect(),
    })
}

/// The answer of `FetchX509Bundles`.
#[must_use]
pub fn encode_x509_bundles(
    bundles: &BundleSet,
    crls: &[CertificateRevocationListDer<'_>],
) -> proto::X509BundlesResponse {
    proto::X509BundlesResponse {
        crl: crls.iter().map(|crl| crl.to_vec()).collect(),
        bundles: bundles.iter().map(|bundle| (name(bundle), authorities(bundle))).collect(),
    }
}

/// The answer of `FetchJWTBundles`: for each trust domain the key set of its JWT authorities.
#[must_use]
pub fn encode_jwt_bundles(bundles: &BundleSet) -> proto::JwtBundlesResponse {
    let bundles = bundles.iter().map(|bundle| (name(bundle), bundle.jwks().into_bytes()));
    proto::JwtBundlesResponse { bundles: bundles.collect() }
}

/// Map keys are SPIFFE IDs of trust domains.
fn name(bundle: &TrustBundle) -> String {
    format!("spiffe://{}", bundle.trust_domain())
}

fn authorities(bundle: &TrustBundle) -> Vec<u8> {
    bundle.x509_authorities().iter().flat_map(|one| one.der().iter().copied()).collect()
}
