//! A leaf and what is above it, each read once, for whoever needs them for more than one step.

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, UnixTime};

use super::error::SvidError;
use super::path::PathStep;
use super::profile::{CertificateProfile, Validity};
use super::{MAX_CHAIN_CERTIFICATES, Role, VerifiedSvid, check_size};
use crate::bundle::BundleSet;
use crate::spiffe_id::SpiffeId;
use crate::svid::SvidLoadError;

/// A certificate that keeps every rule for leaves ([SEC-ID-2], [SEC-ID-3]). Whoever signed it has
/// still to be verified.
#[derive(Clone, Debug)]
pub struct SvidLeaf<'a> {
    der: CertificateDer<'a>,
    id: SpiffeId,
    profile: CertificateProfile,
}

impl<'a> SvidLeaf<'a> {
    /// Reads a leaf.
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn parse(der: CertificateDer<'a>) -> Result<Self, SvidError> {
        let profile = CertificateProfile::parse(&der)?;
        let id = profile.leaf_id()?;
        Ok(Self { der, id, profile })
    }

    /// Whom it names.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Verifies it, as [`super::verify_svid`] does, with these certificates between it and an
    /// authority.
    ///
    /// # Errors
    ///
    /// As [`super::verify_svid`].
    pub fn verify(
        &self,
        intermediates: &[CertificateDer<'_>],
        bundles: &BundleSet,
        now: UnixTime,
        role: Role,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<VerifiedSvid, SvidError> {
        check_size(&self.der, intermediates)?;
        // [SEC-ID-8] The trust domain that the leaf claims chooses whom to ask, and nothing else does.
        let bundle = bundles.get(self.id.trust_domain()).ok_or(SvidError::UnknownTrustDomain)?;
        let step = PathStep {
            trust_domain: self.id.trust_domain(),
            authorities: bundle.x509_authorities(),
            crls: bundle.crls(),
            now,
            role,
            algorithms,
        };
        let issuers = step.verify(&self.der, intermediates)?;
        let path = self.profile.validity().intersection(issuers.validity);
        let stands = match bundle.crls() {
            Some(crls) => path.intersection(Validity::before(crls.next_update())),
            None => path,
        };
        let authority = issuers.authority.clone();
        Ok(VerifiedSvid { id: self.id.clone(), path, stands, authority })
    }

    /// The certificate.
    #[must_use]
    pub fn into_der(self) -> CertificateDer<'a> {
        self.der
    }

    pub(crate) fn into_parts(self) -> (CertificateDer<'a>, SpiffeId, CertificateProfile) {
        (self.der, self.id, self.profile)
    }
}

/// The certificates that are sent after a leaf: each keeps the rules for issuers of one trust domain
/// ([SEC-ID-4]). Whether they lead to an authority has still to be verified.
#[derive(Clone, Debug)]
pub struct SvidIssuers {
    trust_domain: String,
    certificates: Vec<CertificateDer<'static>>,
    validity: Option<Validity>,
}

impl SvidIssuers {
    /// Reads the issuers, the leaf's own first. There may be none.
    ///
    /// # Errors
    ///
    /// More than fit beside a leaf, or the rule that one of them breaks.
    pub fn parse(
        trust_domain: &str,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, SvidLoadError> {
        if certificates.len() >= MAX_CHAIN_CERTIFICATES {
            return Err(SvidError::TooManyCertificates.into());
        }
        let mut validity: Option<Validity> = None;
        // The leaf is at 0.
        for (at, issuer) in (1..).zip(&certificates) {
            let issuer = CertificateProfile::parse(issuer)
                .and_then(|issuer| issuer.check_issuer(trust_domain).map(|()| issuer.validity()))
                .map_err(|error| SvidLoadError::Issuer { at, error })?;
            validity = Some(validity.map_or(issuer, |above| above.intersection(issuer)));
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), certificates, validity })
    }

    /// The certificates, the leaf's issuer first.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// When all of them are valid; nothing where there are none.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        self.validity
    }

    /// Whose issuers they are.
    pub(crate) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }
}
