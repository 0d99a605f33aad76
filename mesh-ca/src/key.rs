//! The authority's private key: used through one function, never shown, zeroed on drop
//! ([SEC-CA-9]).

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
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
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

/// A key that signs certificates. There is no `Debug`.
pub(crate) struct CaKey {
    signer: Box<dyn Signer>,
    info: SubjectPublicKeyInfo,
    #[cfg(any(feature = "export", feature = "persist"))]
    pkcs8: Option<Zeroizing<Vec<u8>>>,
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
        mesh_identity::x509::check_public_key(signer.public_key()).map_err(CaError::Authority)?;
        let info = SubjectPublicKeyInfo::from_der(signer.public_key())?;
        Ok(Self {
            signer,
            info,
            #[cfg(any(feature = "export", feature = "persist"))]
            pkcs8: None,
        })
    }

    fn local(key: LocalKey) -> Result<Self, CaError> {
        Self::from_signer(Box::new(key))
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
        self.signer.sign(message).map_err(|SignError| rcgen::Error::RemoteKeyError)
    }
}

impl fmt::Debug for CaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CaKey").finish_non_exhaustive()
    }
}

/// A key in memory. ring does not zero its own copy on drop.
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

impl Signer for LocalKey {
    fn public_key(&self) -> &[u8] {
        &self.spki
    }

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
