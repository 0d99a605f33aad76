//! From a leaf to an authority of its trust domain: rustls-webpki finds and checks the path, and
//! each path that it finds is judged once more by what it does not look at.

use std::cell::Cell;

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    Cert, EndEntityCert, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage,
    RevocationCheckDepth, RevocationOptions, RevocationOptionsBuilder, UnknownStatusPolicy,
    VerifiedPath,
};

use super::Role;
use super::error::SvidError;
use super::profile::{CertificateProfile, Validity};
use super::search;
use crate::bundle::X509Authority;
use crate::crl::CrlSet;

/// What a path is judged by.
pub(super) struct PathStep<'a> {
    pub(super) trust_domain: &'a str,
    pub(super) authorities: &'a [X509Authority],
    pub(super) crls: Option<&'a CrlSet>,
    pub(super) now: UnixTime,
    pub(super) role: Role,
    pub(super) algorithms: &'a [&'a dyn SignatureVerificationAlgorithm],
}

/// The issuers of a leaf, verified up to an authority.
#[derive(Debug)]
pub(super) struct Issuers<'a> {
    /// When all of them are valid, the authority included.
    pub(super) validity: Validity,
    pub(super) authority: &'a X509Authority,
}

impl<'a> PathStep<'a> {
    /// Finds a path that keeps every rule; what the leaf itself says is the profile's affair,
    /// apart from its dates and purposes.
    pub(super) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<Issuers<'a>, SvidError> {
        // [SEC-ID-9] An empty list of anchors is not "no restriction".
        if self.authorities.is_empty() {
            return Err(SvidError::NoAuthorities);
        }
        let anchors: Vec<TrustAnchor<'_>> =
            self.authorities.iter().map(X509Authority::anchor).collect();
        let leaf = EndEntityCert::try_from(leaf).map_err(SvidError::Certificate)?;
        search::check_cost(&leaf, intermediates)?;
        let Some(crls) = self.crls else {
            return self.search(&leaf, intermediates, &anchors, None);
        };
        let mut refusal = SvidError::RevocationUnknown(webpki::Error::UnknownRevocationStatus);
        for lists in crls.orders() {
            // [SEC-ID-14] webpki's own default for a list that has expired is to believe it.
            let options = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
                options
                    .with_depth(RevocationCheckDepth::Chain)
                    .with_status_policy(UnknownStatusPolicy::Deny)
                    .with_expiration_policy(ExpirationPolicy::Enforce)
                    .build()
            });
            let Some(options) = options else { return Err(refusal) };
            // Of another key of the same name webpki says one of these, or both.
            refusal = match self.search(&leaf, intermediates, &anchors, Some(options)) {
                Err(
                    error @ (SvidError::Path(webpki::Error::InvalidSignatureForPublicKey)
                    | SvidError::RevocationUnknown(
                        webpki::Error::InvalidCrlSignatureForPublicKey,
                    )),
                ) => error,
                settled => return settled,
            };
        }
        Err(refusal)
    }

    fn search(
        &self,
        leaf: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
        anchors: &[TrustAnchor<'_>],
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<Issuers<'a>, SvidError> {
        // webpki asks for each path it finds, and goes on looking after a refusal. What was said
        // last is of the path that it returns, or of the last that was refused.
        let judgement = Cell::new(None);
        let judge = |path: &VerifiedPath<'_>| {
            let judged = self.judge(path);
            let answer = judged.as_ref().map(drop).map_err(|_kept| webpki::Error::UnknownIssuer);
            judgement.set(Some(judged));
            answer
        };
        let found = leaf.verify_for_usage(
            self.algorithms,
            anchors,
            intermediates,
            self.now,
            self.purpose(),
            revocation,
            Some(&judge),
        );
        match (found, judgement.take()) {
            (Ok(_), Some(judged)) | (Err(_), Some(judged @ Err(_))) => judged,
            (Ok(_), None) => Err(SvidError::Path(webpki::Error::UnknownIssuer)),
            (Err(error), _) => Err(SvidError::of_path(error)),
        }
    }

    /// What SPIFFE and we ask of issuers and webpki does not ([SEC-ID-4], [SEC-ID-5]).
    fn judge(&self, path: &VerifiedPath<'_>) -> Result<Issuers<'a>, SvidError> {
        let mut issuers = self.authority(path)?;
        self.check_listed(path.end_entity())?;
        for issuer in path.intermediate_certificates() {
            self.check_listed(issuer)?;
            let profile = CertificateProfile::parse(&issuer.der())?;
            profile.check_issuer(self.trust_domain)?;
            issuers.validity = issuers.validity.intersection(profile.validity());
        }
        Ok(issuers)
    }

    /// [SEC-ID-14] Of several lists that are for a certificate webpki has asked one.
    fn check_listed(&self, certificate: &Cert<'_>) -> Result<(), SvidError> {
        let (issuer, serial) = (certificate.issuer(), certificate.serial());
        match self.crls {
            Some(crls) if crls.lists(issuer, serial) => Err(SvidError::Revoked),
            Some(_) | None => Ok(()),
        }
    }

    /// The authority behind webpki's anchor, which is no more than a name and a key. Of several
    /// certificates for one name and key, one that keeps every rule is enough.
    fn authority(&self, path: &VerifiedPath<'_>) -> Result<Issuers<'a>, SvidError> {
        let mut refusal = SvidError::Path(webpki::Error::UnknownIssuer);
        for (at, authority) in self.authorities.iter().enumerate() {
            if authority.anchor() != *path.anchor() {
                continue;
            }
            match self.check_authority(at, authority, path) {
                Ok(()) => {
                    return Ok(Issuers { validity: authority.validity(), authority });
                }
                Err(broken) => refusal = broken,
            }
        }
        Err(refusal)
    }

    fn check_authority(
        &self,
        at: usize,
        authority: &X509Authority,
        path: &VerifiedPath<'_>,
    ) -> Result<(), SvidError> {
        if !authority.validity().contains(self.now) {
            return Err(SvidError::AuthorityExpired { at });
        }
        let profile = authority.profile();
        profile.check_issuer(self.trust_domain)?;
        let below = path.intermediate_certificates().count();
        if profile.path_length().is_some_and(|most| below > most) {
            return Err(SvidError::Path(webpki::Error::PathLenConstraintViolated));
        }
        Ok(())
    }

    /// [SEC-ID-3] webpki accepts a leaf without extended key usage; one that has it must have both
    /// purposes, which the profile checks, so here the role in use is enough.
    fn purpose(&self) -> impl ExtendedKeyUsageValidator {
        match self.role {
            Role::Client => Purpose(KeyUsage::client_auth()),
            Role::Server => Purpose(KeyUsage::server_auth()),
        }
    }
}

struct Purpose(KeyUsage);

impl ExtendedKeyUsageValidator for Purpose {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        self.0.validate(purposes)
    }
}
