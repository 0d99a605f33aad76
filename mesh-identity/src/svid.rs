//! An X.509-SVID with its private key: what a workload proves itself with.

use std::fmt;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
    UnixTime,
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::spiffe_id::SpiffeId;
use crate::x509::{CertificateProfile, MAX_CHAIN_CERTIFICATES, SvidError, SvidIssuers, SvidLeaf};

/// A certificate chain, leaf first, and the leaf's private key (PKCS#8, PKCS#1 or SEC 1).
///
/// The leaf has passed every rule for SVID leaves. Whether the key belongs to it can only be told
/// with cryptography: mesh-authn refuses a pair that does not match when it builds TLS settings
/// ([SEC-ID-12]). The key's memory is zeroed on drop, and nothing shows or copies it.
pub struct X509Svid {
    id: SpiffeId,
    chain: Vec<CertificateDer<'static>>,
    key: Zeroizing<Vec<u8>>,
    form: KeyForm,
    profile: CertificateProfile,
}

/// What the key's DER is.
#[derive(Clone, Copy)]
enum KeyForm {
    Pkcs1,
    Pkcs8,
    Sec1,
}

/// Why a chain and key are not an X.509-SVID.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SvidLoadError {
    /// A certificate after the leaf breaks a rule for issuers.
    #[error("certificate {at} of the chain: {error}")]
    Issuer {
        /// Its place in the chain, the leaf being 0.
        at: usize,
        /// The rule.
        error: SvidError,
    },

    /// The leaf breaks a rule.
    #[error("certificate: {0}")]
    Leaf(#[from] SvidError),

    /// The chain has no certificate, or a PEM block of it cannot be read.
    #[error("no readable certificate chain; expected PEM blocks CERTIFICATE, leaf first")]
    NoChain,

    /// There is no key that is not encrypted, or its PEM block cannot be read.
    #[error(
        "no readable private key; expected a PEM block PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE \
         KEY, not encrypted"
    )]
    NoKey,
}

impl X509Svid {
    /// Takes a chain, leaf first, and a PKCS#8 key.
    ///
    /// # Errors
    ///
    /// The rule that the leaf or an issuer breaks.
    pub fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivatePkcs8KeyDer<'_>,
    ) -> Result<Self, SvidLoadError> {
        Self::new(chain, key.secret_pkcs8_der(), KeyForm::Pkcs8)
    }

    /// Takes a leaf and its issuers as they have been read, and a PKCS#8 key.
    ///
    /// # Errors
    ///
    /// [`SvidLoadError::Issuer`] for issuers of another trust domain.
    pub fn from_parts(
        leaf: SvidLeaf<'static>,
        issuers: &SvidIssuers,
        key: &PrivatePkcs8KeyDer<'_>,
    ) -> Result<Self, SvidLoadError> {
        if issuers.trust_domain() != leaf.id().trust_domain() {
            return Err(SvidLoadError::Issuer { at: 1, error: SvidError::IssuerId });
        }
        let (leaf, id, profile) = leaf.into_parts();
        let mut chain = Vec::with_capacity(issuers.certificates().len().saturating_add(1));
        chain.push(leaf);
        chain.extend_from_slice(issuers.certificates());
        let key = Zeroizing::new(key.secret_pkcs8_der().to_vec());
        Ok(Self { id, chain, key, form: KeyForm::Pkcs8, profile })
    }

    fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &[u8],
        form: KeyForm,
    ) -> Result<Self, SvidLoadError> {
        if chain.len() > MAX_CHAIN_CERTIFICATES {
            return Err(SvidError::TooManyCertificates.into());
        }
        let (leaf, issuers) = chain.split_first().ok_or(SvidLoadError::NoChain)?;
        let (_, id, profile) = SvidLeaf::parse(leaf.clone())?.into_parts();
        SvidIssuers::parse(id.trust_domain(), issuers.to_vec())?;
        let key = Zeroizing::new(key.to_vec());
        Ok(Self { id, chain, key, form, profile })
    }

    /// Reads a chain, leaf first, and a key from PEM text. The key may be of any form that
    /// certificate agents write: PKCS#8, PKCS#1 (Istio's for RSA) or SEC 1.
    ///
    /// # Errors
    ///
    /// What cannot be read, or the rule that is broken; nothing of the texts.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self, SvidLoadError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(chain).collect();
        let chain = chain.map_err(|_detail| SvidLoadError::NoChain)?;
        let mut key = PrivateKeyDer::from_pem_slice(key).map_err(|_detail| SvidLoadError::NoKey)?;
        let svid = match &key {
            PrivateKeyDer::Pkcs1(key) => Self::new(chain, key.secret_pkcs1_der(), KeyForm::Pkcs1),
            PrivateKeyDer::Pkcs8(key) => Self::new(chain, key.secret_pkcs8_der(), KeyForm::Pkcs8),
            PrivateKeyDer::Sec1(key) => Self::new(chain, key.secret_sec1_der(), KeyForm::Sec1),
            _ => Err(SvidLoadError::NoKey),
        };
        key.zeroize();
        svid
    }

    /// Who the leaf names.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The chain, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The first second of the leaf's validity.
    #[must_use]
    pub fn not_before(&self) -> UnixTime {
        self.profile.validity().not_before()
    }

    /// The last second of the leaf's validity.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.profile.validity().not_after()
    }

    /// The leaf's subject public key info, DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.profile.public_key()
    }

    /// The private key, lent to whoever signs with it.
    #[must_use]
    pub fn private_key(&self) -> PrivateKeyDer<'_> {
        let der = self.key.as_slice();
        match self.form {
            KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            KeyForm::Sec1 => PrivateSec1KeyDer::from(der).into(),
        }
    }
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("id", &self.id).finish_non_exhaustive()
    }
}
