//! Authorities as others have stored them: PEM, and the layout that operators plug into Istio.

use std::fmt;

use mesh_identity::x509::SvidError;
use mesh_identity::{TrustBundle, TrustDomain};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::Authority;
use crate::error::CaError;
use crate::key::{CaKey, Generated, Signer};
use crate::profile::DEFAULT_TTL;

impl Authority {
    /// Loads a root certificate and its PKCS#8 key from PEM, as Istio's `ca-cert.pem` and
    /// `ca-key.pem` hold them.
    ///
    /// # Errors
    ///
    /// What cannot be read or used, and a key that does not belong to the certificate.
    pub fn from_pem(
        trust_domain: &TrustDomain,
        certificate: &[u8],
        key: &[u8],
    ) -> Result<Self, CaError> {
        let certificate = one_certificate(certificate)?;
        Self::assemble_root(trust_domain, certificate, CaKey::from_pem(key)?)
    }

    /// Loads a certificate authority as an operator plugs it into Istio.
    ///
    /// # Errors
    ///
    /// What cannot be read or used, a key that does not belong to the certificate, and a chain that
    /// does not lead to one of the roots.
    pub fn from_plugged_in(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::plug_in(trust_domain, files, CaKey::from_pem(files.key)?, now)
    }

    /// As [`Authority::from_plugged_in`], with the key in somebody else's hands; `files.key` is not
    /// looked at.
    ///
    /// # Errors
    ///
    /// As [`Authority::from_plugged_in`].
    pub fn from_plugged_in_with(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        signer: Box<dyn Signer>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        Self::plug_in(trust_domain, files, CaKey::from_signer(signer)?, now)
    }

    fn plug_in(
        trust_domain: &TrustDomain,
        files: &PluggedIn<'_>,
        key: CaKey,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        // cert-manager's tls.crt goes on with the chain.
        let certificate = CertificateDer::pem_slice_iter(files.certificate).next();
        let certificate = certificate.ok_or(CaError::NotOne)?;
        let certificate =
            certificate.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
        let roots = TrustBundle::from_pem(trust_domain.clone(), files.roots)?;
        let is_root = |der: &CertificateDer<'_>| {
            roots.x509_authorities().iter().any(|root| root.der() == der)
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(files.chain).collect();
        let chain = chain.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
        // The chain file may begin with the authority itself, and may end with the root: leaves are
        // sent with the first and without the second.
        let mut intermediates = Vec::new();
        if !is_root(&certificate) {
            intermediates.push(certificate.clone());
            let above = chain.into_iter().filter(|der| *der != certificate && !is_root(der));
            intermediates.extend(above);
        }
        let authority = Self::assemble(trust_domain, certificate, key, intermediates, roots)?;
        // What it would issue is what shows whether the chain leads to a root.
        let probe = format!("spiffe://{trust_domain}/probe").parse()?;
        authority.issue(&probe, &[], &Generated::new()?.spki(), DEFAULT_TTL, now)?;
        Ok(authority)
    }
}

/// A certificate authority's files as an operator plugs them into Istio, each as PEM text:
/// `ca-cert.pem`, `ca-key.pem`, `cert-chain.pem`, `root-cert.pem`; or cert-manager's `tls.crt`,
/// `tls.key`, `tls.crt` once more, `ca.crt`.
#[derive(Clone, Copy)]
#[expect(clippy::exhaustive_structs, reason = "the layout has these four files")]
pub struct PluggedIn<'a> {
    /// The certificate that signs.
    pub certificate: &'a [u8],
    /// Its private key.
    pub key: &'a [u8],
    /// The way from it up to the root, with or without both ends. May be empty.
    pub chain: &'a [u8],
    /// The roots that verify all of it; several during a rotation.
    pub roots: &'a [u8],
}

impl fmt::Debug for PluggedIn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PluggedIn").finish_non_exhaustive()
    }
}

fn one_certificate(pem: &[u8]) -> Result<CertificateDer<'static>, CaError> {
    let blocks: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let blocks = blocks.map_err(|_detail| CaError::Authority(SvidError::Malformed))?;
    let [certificate] = blocks.try_into().map_err(|_several: Vec<_>| CaError::NotOne)?;
    Ok(certificate)
}
