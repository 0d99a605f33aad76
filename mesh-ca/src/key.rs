//! The authority's private key: used through one function, never shown, and zeroed on drop as far as
//! it is ours ([SEC-CA-9]): ring's own copy is not, and ring has no function for it.

use std::fmt;

use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256,
    PublicKeyData as _, SignatureAlgorithm, SubjectPublicKeyInfo,
};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    AlgorithmIdentifier, InvalidSignature, PrivateKeyDer, PrivatePkcs8KeyDer,
    SignatureVerificationAlgorithm,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::CaError;

/// Holds an authority's private key and signs with it: a KMS, an HSM, a key in memory.
///
/// Which algorithm is used follows from the key: ECDSA on P-256 with SHA-256, on P-384 with
/// SHA-384, Ed25519, RSA (PKCS #1 v1.5) with SHA-256. Signatures have the form that X.509 has:
/// DER for ECDSA.
pub trait Signer: Send + Sync {
    /// The public key as subject public key info, DER.
    fn public_key(&self) -> &[u8];

    /// Signs a message, which the signer hashes.
    ///
    /// # Errors
    ///
    /// When it cannot; the reason is for the signer's own log.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError>;
}

/// A signer could not sign.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, thiserror::Error)]
#[error("the signer cannot sign")]
#[expect(clippy::exhaustive_structs, reason = "a unit struct is written by its name")]
pub struct SignError;

/// A kind of key that an authority can make.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum KeyKind {
    /// ECDSA on P-256: what every peer understands.
    #[default]
    P256,
    /// ECDSA on P-384.
    P384,
    /// Ed25519. Envoy and Go verify it; some older peers do not.
    Ed25519,
}

/// A key that signs certificates.
pub(crate) struct CaKey {
    holder: Holder,
    info: SubjectPublicKeyInfo,
    /// What verifies its signatures.
    algorithm: &'static dyn SignatureVerificationAlgorithm,
    #[cfg(any(feature = "export", feature = "persist"))]
    pkcs8: Option<Zeroizing<Vec<u8>>>,
}

/// Who has the private half.
enum Holder {
    /// This process, in ring.
    Here(Box<LocalKey>),
    /// Somebody else.
    Elsewhere(Box<dyn Signer>),
}

/// A message, and what its key has just answered to it.
///
/// For a key that this process holds it is a proof, too: as an algorithm it accepts this key, this
/// message and this signature, byte by byte, and nothing else. That ring's answer verifies is then
/// not computed a second time. Somebody else's answer is no proof of anything ([`Signed::proof`]).
pub(crate) struct Signed<'a> {
    key: &'a CaKey,
    message: &'a [u8],
    signature: Vec<u8>,
}

impl CaKey {
    /// Makes a key.
    pub(crate) fn generate(kind: KeyKind) -> Result<Self, CaError> {
        Self::from_pkcs8(&generate_pkcs8(kind)?)
    }

    /// Takes a key in PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CaError> {
        #[cfg_attr(
            not(any(feature = "export", feature = "persist")),
            expect(unused_mut, reason = "the key is kept only where it can be written out")
        )]
        let mut key = Self::local(LocalKey::from_pkcs8(pkcs8)?)?;
        #[cfg(any(feature = "export", feature = "persist"))]
        {
            key.pkcs8 = Some(Zeroizing::new(pkcs8.to_vec()));
        }
        Ok(key)
    }

    /// Takes a key from PEM: PKCS#8, or PKCS#1 as older tools write RSA keys.
    pub(crate) fn from_pem(pem: &[u8]) -> Result<Self, CaError> {
        match PrivateKeyDer::from_pem_slice(pem).map_err(|_detail| CaError::Key)? {
            PrivateKeyDer::Pkcs8(mut der) => {
                let key = Self::from_pkcs8(der.secret_pkcs8_der());
                der.zeroize();
                key
            }
            PrivateKeyDer::Pkcs1(mut der) => {
                let pair = RsaKeyPair::from_der(der.secret_pkcs1_der());
                der.zeroize();
                Self::local(LocalKey::new(Pair::Rsa(pair.map_err(|_detail| CaError::Key)?)))
            }
            mut other @ (PrivateKeyDer::Sec1(_) | _) => {
                other.zeroize();
                Err(CaError::Key)
            }
        }
    }

    /// Takes a key that somebody else holds.
    pub(crate) fn from_signer(signer: Box<dyn Signer>) -> Result<Self, CaError> {
        Self::new(Holder::Elsewhere(signer))
    }

    fn local(key: LocalKey) -> Result<Self, CaError> {
        Self::new(Holder::Here(Box::new(key)))
    }

    fn new(holder: Holder) -> Result<Self, CaError> {
        let public = match &holder {
            Holder::Here(key) => key.spki.as_slice(),
            Holder::Elsewhere(signer) => signer.public_key(),
        };
        mesh_identity::x509::check_public_key(public).map_err(CaError::Authority)?;
        let info = SubjectPublicKeyInfo::from_der(public)?;
        let algorithm = verified_by(info.algorithm()).ok_or(CaError::Key)?;
        Ok(Self {
            holder,
            info,
            algorithm,
            #[cfg(any(feature = "export", feature = "persist"))]
            pkcs8: None,
        })
    }

    /// What verifies its signatures.
    pub(crate) fn algorithm(&self) -> &'static dyn SignatureVerificationAlgorithm {
        self.algorithm
    }

    /// [SEC-CA-9] Signs; nothing else does.
    pub(crate) fn sign<'a>(&'a self, message: &'a [u8]) -> Result<Signed<'a>, SignError> {
        let signature = match &self.holder {
            Holder::Here(key) => key.sign(message)?,
            Holder::Elsewhere(signer) => signer.sign(message)?,
        };
        Ok(Signed { key: self, message, signature })
    }

    /// The key in PKCS#8, for whoever asked for the export; nothing when somebody else holds it.
    #[cfg(any(feature = "export", feature = "persist"))]
    pub(crate) fn pkcs8(&self) -> Option<&[u8]> {
        self.pkcs8.as_ref().map(|pkcs8| pkcs8.as_slice())
    }
}

impl rcgen::PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        self.info.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.info.algorithm()
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signed = self.sign(message).map_err(|SignError| rcgen::Error::RemoteKeyError)?;
        Ok(signed.signature)
    }
}

/// What verifies signatures that rcgen asks for.
fn verified_by(signs: &SignatureAlgorithm) -> Option<&'static dyn SignatureVerificationAlgorithm> {
    let algorithms: [(_, &dyn SignatureVerificationAlgorithm); 4] = [
        (&PKCS_ECDSA_P256_SHA256, webpki::ring::ECDSA_P256_SHA256),
        (&PKCS_ECDSA_P384_SHA384, webpki::ring::ECDSA_P384_SHA384),
        (&PKCS_ED25519, webpki::ring::ED25519),
        (&PKCS_RSA_SHA256, webpki::ring::RSA_PKCS1_2048_8192_SHA256),
    ];
    algorithms.into_iter().find(|(with, _)| *with == signs).map(|(_, verifies)| verifies)
}

impl<'a> Signed<'a> {
    /// The signature.
    pub(crate) fn signature(&self) -> &[u8] {
        &self.signature
    }

    /// What no key answered.
    #[cfg(test)]
    pub(crate) fn forged(key: &'a CaKey, message: &'a [u8], signature: Vec<u8>) -> Self {
        Self { key, message, signature }
    }

    /// The proof that the signature is this key's: nothing for a key that somebody else holds.
    pub(crate) fn proof(&self) -> Option<&(dyn SignatureVerificationAlgorithm + 'a)> {
        match self.key.holder {
            Holder::Here(_) => Some(self),
            Holder::Elsewhere(_) => None,
        }
    }
}

impl SignatureVerificationAlgorithm for Signed<'_> {
    fn verify_signature(
        &self,
        public_key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let same = public_key == self.key.info.der_bytes()
            && message == self.message
            && signature == self.signature;
        if same { Ok(()) } else { Err(InvalidSignature) }
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.key.algorithm.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.key.algorithm.signature_alg_id()
    }
}

impl fmt::Debug for Signed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").finish_non_exhaustive()
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaKey").finish_non_exhaustive()
    }
}

/// A key in memory, in ring's form.
struct LocalKey {
    pair: Pair,
    spki: Vec<u8>,
}

enum Pair {
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl LocalKey {
    fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CaError> {
        let random = SystemRandom::new();
        let ecdsa = |signing| EcdsaKeyPair::from_pkcs8(signing, pkcs8, &random).ok();
        let pair = ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map(Pair::P256)
            .or_else(|| ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING).map(Pair::P384))
            .or_else(|| Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok().map(Pair::Ed25519))
            .or_else(|| RsaKeyPair::from_pkcs8(pkcs8).ok().map(Pair::Rsa));
        Ok(Self::new(pair.ok_or(CaError::Key)?))
    }

    fn new(pair: Pair) -> Self {
        let spki = pair.subject_public_key_info();
        Self { pair, spki }
    }
}

impl rcgen::PublicKeyData for Pair {
    fn der_bytes(&self) -> &[u8] {
        match self {
            Self::P256(pair) | Self::P384(pair) => pair.public_key().as_ref(),
            Self::Ed25519(pair) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match self {
            Self::P256(_) => &PKCS_ECDSA_P256_SHA256,
            Self::P384(_) => &PKCS_ECDSA_P384_SHA384,
            Self::Ed25519(_) => &PKCS_ED25519,
            Self::Rsa(_) => &PKCS_RSA_SHA256,
        }
    }
}

impl LocalKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::P256(pair) | Pair::P384(pair) => pair
                .sign(&random, message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_detail| SignError),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                let signed = pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature);
                signed.map_err(|_detail| SignError)?;
                Ok(signature)
            }
        }
    }
}

/// A fresh P-256 key of a workload's.
pub(crate) struct Generated(Zeroizing<Vec<u8>>);

impl Generated {
    /// The public point, uncompressed.
    const POINT: usize = 65;

    /// Subject public key info of P-256, before the point (RFC 5480).
    const SPKI: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
        \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";

    pub(crate) fn new() -> Result<Self, CaError> {
        let key = Self(generate_pkcs8(KeyKind::P256)?);
        let uncompressed = key.point().first() == Some(&4) && key.point().len() == Self::POINT;
        if uncompressed { Ok(key) } else { Err(CaError::Key) }
    }

    pub(crate) fn pkcs8(&self) -> PrivatePkcs8KeyDer<'_> {
        PrivatePkcs8KeyDer::from(self.0.as_slice())
    }

    /// Subject public key info, DER.
    pub(crate) fn spki(&self) -> Vec<u8> {
        [Self::SPKI, self.point()].concat()
    }

    /// ring's PKCS#8 ends in the point (RFC 5915), so that it need not be computed a second time.
    fn point(&self) -> &[u8] {
        self.0.get(self.0.len().saturating_sub(Self::POINT)..).unwrap_or_default()
    }
}

/// A fresh key in PKCS#8.
pub(crate) fn generate_pkcs8(kind: KeyKind) -> Result<Zeroizing<Vec<u8>>, CaError> {
    let random = SystemRandom::new();
    let document = match kind {
        KeyKind::P256 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random),
        KeyKind::P384 => EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_ASN1_SIGNING, &random),
        KeyKind::Ed25519 => Ed25519KeyPair::generate_pkcs8(&random),
    };
    let document = document.map_err(|_detail| CaError::Random)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The proof is of one key, one message and one signature, and of nothing else.
    #[test]
    fn sec_ca_4_a_proof_is_of_these_bytes_alone() {
        for kind in [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519] {
            let (key, other) = (CaKey::generate(kind).unwrap(), CaKey::generate(kind).unwrap());
            let signed = key.sign(b"a message").unwrap();
            let public = rcgen::PublicKeyData::der_bytes(&key);
            let proof = signed.proof().unwrap();
            let good = |public: &[u8], message: &[u8], signature: &[u8]| {
                let proven = proof.verify_signature(public, message, signature).is_ok();
                let verified = key.algorithm().verify_signature(public, message, signature).is_ok();
                assert!(verified || !proven, "what is proven verifies");
                proven
            };
            assert!(good(public, b"a message", signed.signature()));
            // A second signature of the same message verifies, and is not the one that is proven.
            let again = key.sign(b"a message").unwrap();
            assert_eq!(good(public, b"a message", again.signature()), kind == KeyKind::Ed25519);
            assert!(!good(
                rcgen::PublicKeyData::der_bytes(&other),
                b"a message",
                signed.signature()
            ));
            assert!(!good(public, b"a messagf", signed.signature()));
            assert!(!good(public, b"a message\0", signed.signature()));
            assert!(!good(public, b"", signed.signature()));
            assert!(!good(public, b"a message", &[]));
            for at in 0..signed.signature().len() {
                let mut changed = signed.signature().to_vec();
                changed[at] ^= 1;
                assert!(!good(public, b"a message", &changed), "octet {at}");
            }
            assert_eq!(proof.public_key_alg_id(), key.algorithm().public_key_alg_id());
            assert_eq!(proof.signature_alg_id(), key.algorithm().signature_alg_id());
        }
    }

    struct Elsewhere(LocalKey);

    impl Signer for Elsewhere {
        fn public_key(&self) -> &[u8] {
            &self.0.spki
        }

        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
            self.0.sign(message)
        }
    }

    #[test]
    fn sec_ca_4_nobody_elses_answer_is_a_proof() {
        let local = LocalKey::from_pkcs8(&generate_pkcs8(KeyKind::P256).unwrap()).unwrap();
        let key = CaKey::from_signer(Box::new(Elsewhere(local))).unwrap();
        assert!(key.sign(b"a message").unwrap().proof().is_none());
    }

    #[test]
    fn sec_ca_9_debug_shows_nothing_of_a_key() {
        let key = CaKey::generate(KeyKind::P256).unwrap();
        assert_eq!(format!("{key:?}"), "CaKey { .. }");
        assert_eq!(format!("{:?}", key.sign(b"a message").unwrap()), "Signed { .. }");
    }

    /// What a workload gets is one key: the two halves belong together.
    #[test]
    fn a_generated_key_is_whole() {
        let key = Generated::new().unwrap();
        let local = LocalKey::from_pkcs8(key.pkcs8().secret_pkcs8_der()).unwrap();
        assert_eq!(local.spki, key.spki());
    }
}
