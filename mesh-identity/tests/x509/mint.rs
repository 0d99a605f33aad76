//! Certificates made for one test: by default everything is right, and the test breaks one thing.

use std::time::Duration;

use mesh_identity::x509::{Role, SvidError, VerifiedSvid, verify_svid};
use mesh_identity::{BundleSet, TrustBundle, X509Authority};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256,
    PublicKeyData, SanType, SignatureAlgorithm, SigningKey, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};

/// 2027-01-15T08:00:00Z; certificates are valid for that day.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const DAY_BEGINS: u64 = NOW - 8 * 3600;
pub(crate) const DAY_ENDS: u64 = DAY_BEGINS + 24 * 3600;

pub(crate) const ID: &str = "spiffe://a.test/ns/shop/sa/cart";

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    rustls::crypto::ring::default_provider().signature_verification_algorithms.all
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(2027, 1, 15);
    params.not_after = date_time_ymd(2027, 1, 16);
    params
}

/// A certificate authority named `name`; without SPIFFE ID.
pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = params();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A leaf with everything right.
pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = params();
    params.subject_alt_names = vec![uri(id)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// The same key once more.
pub(crate) fn copy(key: &KeyPair) -> KeyPair {
    KeyPair::try_from(key.serialized_der()).unwrap()
}

pub(crate) struct Ca {
    pub(crate) certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn root(name: &str) -> Self {
        Self::root_with(ca_params(name))
    }

    pub(crate) fn root_with(params: CertificateParams) -> Self {
        Self::root_with_key(params, KeyPair::generate().unwrap())
    }

    pub(crate) fn root_with_key(params: CertificateParams, key: KeyPair) -> Self {
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// An authority below this one.
    pub(crate) fn sub(&self, params: CertificateParams) -> Self {
        self.sub_with_key(params, KeyPair::generate().unwrap())
    }

    pub(crate) fn sub_with_key(&self, params: CertificateParams, key: KeyPair) -> Self {
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    /// Signs revocation lists.
    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }

    /// The same key under other parameters.
    pub(crate) fn with_params(&self, params: CertificateParams) -> Self {
        Self::root_with_key(params, copy(self.issuer.key()))
    }

    pub(crate) fn leaf(&self, params: &CertificateParams) -> CertificateDer<'static> {
        self.leaf_for(params, &KeyPair::generate().unwrap())
    }

    pub(crate) fn leaf_for(
        &self,
        params: &CertificateParams,
        key: &impl PublicKeyData,
    ) -> CertificateDer<'static> {
        params.signed_by(key, &self.issuer).unwrap().der().clone()
    }

    pub(crate) fn authority(&self) -> X509Authority {
        X509Authority::from_der(self.certificate.clone()).unwrap()
    }

    pub(crate) fn bundle(&self, trust_domain: &str) -> TrustBundle {
        TrustBundle::new(trust_domain.parse().unwrap()).with_authority(self.authority())
    }

    /// The only authority of `a.test`.
    pub(crate) fn bundles(&self) -> BundleSet {
        BundleSet::from_bundles([self.bundle("a.test")]).unwrap()
    }
}

pub(crate) fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &BundleSet,
) -> Result<VerifiedSvid, SvidError> {
    let as_server = verify_svid(chain, bundles, at(NOW), Role::Server, algorithms());
    let as_client = verify_svid(chain, bundles, at(NOW), Role::Client, algorithms());
    assert_eq!(as_server, as_client, "the roles are judged alike");
    as_server
}

/// An extension by its own bytes.
pub(crate) fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

/// A SAN extension of names given by their context tag and bytes.
pub(crate) fn san(names: &[(u8, &[u8])]) -> CustomExtension {
    let content: Vec<u8> = names.iter().flat_map(|(tag, bytes)| tlv(0x80 | tag, bytes)).collect();
    extension(&[2, 5, 29, 17], true, tlv(0x30, &content))
}

/// One DER element.
pub(crate) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut der = vec![tag];
    let bytes = content.len().to_be_bytes();
    let significant = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
    if content.len() < 128 {
        der.push(u8::try_from(content.len()).unwrap());
    } else {
        der.push(0x80 | u8::try_from(significant.len()).unwrap());
        der.extend_from_slice(significant);
    }
    der.extend_from_slice(content);
    der
}

/// A public key that nobody has the private part of.
pub(crate) struct Public(&'static SignatureAlgorithm, Vec<u8>);

impl PublicKeyData for Public {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0
    }
}

/// It signs nonetheless, and badly.
impl SigningKey for Public {
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(vec![1; 256])
    }
}

/// An RSA key of so many bits, the modulus odd and its top bit set.
pub(crate) fn rsa(bits: usize) -> Public {
    let mut modulus = vec![0x5b; bits.div_ceil(8)];
    let unused = modulus.len() * 8 - bits;
    modulus[0] = 0xff >> unused;
    let modulus = [vec![0], modulus].concat();
    let modulus = if modulus[1] & 0x80 == 0 { modulus[1..].to_vec() } else { modulus };
    let key = [tlv(2, &modulus), tlv(2, &[1, 0, 1])].concat();
    Public(&PKCS_RSA_SHA256, tlv(0x30, &key))
}
