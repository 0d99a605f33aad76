//! The authority's private key: used through one function, never shown, zeroed on drop
//! ([SEC-CA-9]).

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, SignatureAlgorithm};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
    KeyPair,
};
use zeroize::Zeroizing;

use crate::error::CaError;

/// A key that signs certificates. There is no `Debug`.
///
/// ring does not zero its own copy on drop; ours exists only where it can be exported.
pub(crate) struct CaKey {
    #[cfg(feature = "export")]
    pkcs8: Zeroizing<Vec<u8>>,
    pair: Pair,
    public: Vec<u8>,
}

enum Pair {
    Ecdsa(EcdsaKeyPair, &'static SignatureAlgorithm),
    Ed25519(Ed25519KeyPair),
}

impl CaKey {
    /// Makes a P-256 key.
    pub(crate) fn generate() -> Result<Self, CaError> {
        Self::from_pkcs8(&generate_pkcs8()?)
    }

    /// Takes a key in PKCS#8.
    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, CaError> {
        let random = SystemRandom::new();
        let ecdsa = [
            (&ECDSA_P256_SHA256_ASN1_SIGNING, &PKCS_ECDSA_P256_SHA256),
            (&ECDSA_P384_SHA384_ASN1_SIGNING, &PKCS_ECDSA_P384_SHA384),
        ];
        let ecdsa = ecdsa.into_iter().find_map(|(signing, algorithm)| {
            let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8, &random).ok()?;
            Some(Pair::Ecdsa(pair, algorithm))
        });
        let ed25519 = || Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).ok().map(Pair::Ed25519);
        let pair = ecdsa.or_else(ed25519).ok_or(CaError::Key)?;
        let public = match &pair {
            Pair::Ecdsa(pair, _) => pair.public_key().as_ref().to_vec(),
            Pair::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
        };
        Ok(Self {
            #[cfg(feature = "export")]
            pkcs8: Zeroizing::new(pkcs8.to_vec()),
            pair,
            public,
        })
    }

    /// The key in PKCS#8, for whoever asked for the export.
    #[cfg(feature = "export")]
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// A fresh P-256 key in PKCS#8.
pub(crate) fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>, CaError> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
    let document = document.map_err(|_detail| CaError::Random)?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

impl rcgen::PublicKeyData for CaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        match &self.pair {
            Pair::Ecdsa(_, algorithm) => algorithm,
            Pair::Ed25519(_) => &PKCS_ED25519,
        }
    }
}

impl rcgen::SigningKey for CaKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        match &self.pair {
            Pair::Ecdsa(pair, _) => pair
                .sign(&SystemRandom::new(), message)
                .map(|signature| signature.as_ref().to_vec())
                .map_err(|_detail| rcgen::Error::RingUnspecified),
            Pair::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
        }
    }
}
