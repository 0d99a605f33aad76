//! Certificate requests: proof that the caller has a key, and nothing else ([SEC-CA-1]).

use mesh_identity::x509::check_public_key;
use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::der_parser::asn1_rs::Oid;
use x509_parser::oid_registry::{
    OID_KEY_TYPE_EC_PUBLIC_KEY, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS,
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA,
    OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519,
};
use x509_parser::prelude::FromDer;

use crate::error::CaError;

/// Longest request, in bytes. One with an RSA key of 8192 bits needs less than 3 KiB.
const MAX_LEN: usize = 16 * 1024;

/// How a request may be signed ([SEC-ID-6]), and by which kind of key ([SEC-CA-2]): x509-parser
/// would accept SHA-1 too, and does not ask what kind of key the request says it has. PSS it
/// accepts with SHA-2 only, and ECDSA with the curve that the key names.
const SIGNATURES: [(Oid<'static>, Oid<'static>); 7] = [
    (OID_PKCS1_SHA256WITHRSA, OID_PKCS1_RSAENCRYPTION),
    (OID_PKCS1_SHA384WITHRSA, OID_PKCS1_RSAENCRYPTION),
    (OID_PKCS1_SHA512WITHRSA, OID_PKCS1_RSAENCRYPTION),
    (OID_PKCS1_RSASSAPSS, OID_PKCS1_RSAENCRYPTION),
    (OID_SIG_ECDSA_WITH_SHA256, OID_KEY_TYPE_EC_PUBLIC_KEY),
    (OID_SIG_ECDSA_WITH_SHA384, OID_KEY_TYPE_EC_PUBLIC_KEY),
    (OID_SIG_ED25519, OID_SIG_ED25519),
];

/// Whether a signature is one that a key of this kind makes.
fn fits(signature: &Oid<'_>, key: &Oid<'_>) -> bool {
    SIGNATURES.iter().any(|(one, by)| one == signature && by == key)
}

/// A PKCS#10 request whose signature proves possession of its key.
///
/// Names, extensions and attributes of the request are not kept: they decide nothing.
#[derive(Debug)]
pub struct CertificateRequest {
    /// Subject public key info, DER, as we write it: nothing of how the request wrote it is kept.
    spki: Vec<u8>,
}

impl CertificateRequest {
    /// Reads a request and checks its signature and the kind of its key ([SEC-CA-2]).
    ///
    /// # Errors
    ///
    /// What cannot be read, is not proven, or is weak.
    pub fn from_der(der: &[u8]) -> Result<Self, CaError> {
        if der.len() > MAX_LEN {
            return Err(CaError::Csr);
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_detail| CaError::Csr)?;
        if !rest.is_empty() {
            return Err(CaError::Csr);
        }
        // The key first: checking a signature with a huge one would cost.
        let info = &request.certification_request_info.subject_pki;
        check_public_key(info.raw).map_err(CaError::CsrKey)?;
        if !fits(&request.signature_algorithm.algorithm, &info.algorithm.algorithm) {
            return Err(CaError::CsrSignature);
        }
        request.verify_signature().map_err(|_detail| CaError::CsrSignature)?;
        Self::rewritten(info.raw)
    }

    /// Takes a bare public key (subject public key info, DER): the caller's possession of it has
    /// been proven by other means.
    ///
    /// # Errors
    ///
    /// A key that cannot be read or is weak ([SEC-CA-2]).
    pub fn from_public_key(spki: &[u8]) -> Result<Self, CaError> {
        if spki.len() > MAX_LEN {
            return Err(CaError::Csr);
        }
        check_public_key(spki).map_err(CaError::CsrKey)?;
        Self::rewritten(spki)
    }

    fn rewritten(spki: &[u8]) -> Result<Self, CaError> {
        Ok(Self { spki: SubjectPublicKeyInfo::from_der(spki)?.subject_public_key_info() })
    }

    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_ca_2_a_signature_fits_keys_of_its_own_kind_only() {
        let kinds = [OID_PKCS1_RSAENCRYPTION, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_SIG_ED25519];
        for (signature, by) in &SIGNATURES {
            for kind in &kinds {
                assert_eq!(fits(signature, kind), kind == by, "{signature} {kind}");
            }
        }
    }
}
