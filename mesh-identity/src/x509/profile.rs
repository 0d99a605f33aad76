//! What a certificate says about itself, read once from its DER.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::der_parser::asn1_rs::{Any, Class};
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;

use super::error::SvidError;
use super::key;
use crate::spiffe_id::{SpiffeId, SpiffeIdRef};

/// Most names in a SAN ([SEC-ID-7]).
pub(super) const MAX_NAMES: usize = 32;

/// Most extensions of a certificate; those of meshes have six to ten.
pub(super) const MAX_EXTENSIONS: usize = 64;

/// The tag of a URI among a SAN's names (RFC 5280 section 4.2.1.6).
const URI_TAG: u32 = 6;

/// From when until when a certificate is valid, both ends included.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Validity {
    not_before: UnixTime,
    not_after: UnixTime,
}

impl Validity {
    /// The first second of validity.
    #[must_use]
    pub fn not_before(self) -> UnixTime {
        self.not_before
    }

    /// The last second of validity.
    #[must_use]
    pub fn not_after(self) -> UnixTime {
        self.not_after
    }

    /// Whether a time lies within.
    #[must_use]
    pub fn contains(self, time: UnixTime) -> bool {
        (self.not_before..=self.not_after).contains(&time)
    }

    /// The seconds before a time.
    pub(super) fn before(end: UnixTime) -> Self {
        let last = Duration::from_secs(end.as_secs().saturating_sub(1));
        Self {
            not_before: UnixTime::since_unix_epoch(Duration::ZERO),
            not_after: UnixTime::since_unix_epoch(last),
        }
    }

    /// The time that both have; it contains nothing when they have none.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self {
            not_before: self.not_before.max(other.not_before),
            not_after: self.not_after.min(other.not_after),
        }
    }
}

/// The parts of a certificate that the SVID rules look at.
///
/// Every URI name has been counted, decodable or not, so that no library's first-wins or
/// skip-what-I-cannot-read decides who somebody is.
#[derive(Clone, Debug)]
pub struct CertificateProfile {
    validity: Validity,
    /// Number of URI names, decodable or not.
    uris: usize,
    /// The only URI, when there is exactly one and it is text.
    uri: Option<String>,
    is_ca: Option<bool>,
    path_length: Option<usize>,
    usage: Option<Usage>,
    purposes: Option<Purposes>,
    public_key: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Usage {
    digital_signature: bool,
    signs_certificates: bool,
    signs_lists: bool,
}

#[derive(Clone, Copy, Debug)]
struct Purposes {
    client: bool,
    server: bool,
}

impl CertificateProfile {
    /// Reads one certificate.
    ///
    /// # Errors
    ///
    /// What is malformed, occurs twice, is unknown and critical, or a key that is not accepted.
    pub fn parse(der: &CertificateDer<'_>) -> Result<Self, SvidError> {
        let (rest, certificate) =
            X509Certificate::from_der(der).map_err(|_detail| SvidError::Malformed)?;
        if !rest.is_empty() {
            return Err(SvidError::Malformed);
        }
        key::check(certificate.public_key())?;
        let mut profile = Self {
            validity: validity(&certificate)?,
            uris: 0,
            uri: None,
            is_ca: None,
            path_length: None,
            usage: None,
            purposes: None,
            public_key: certificate.public_key().raw.to_vec(),
        };
        for extension in certificate.extensions() {
            if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME {
                check_name_encoding(extension.value)?;
            }
            profile.read(extension.parsed_extension(), extension.critical)?;
        }
        // [SEC-ID-2] No second SAN extension, and no second of any other.
        let extensions = certificate.extensions();
        if extensions.len() > MAX_EXTENSIONS {
            return Err(SvidError::TooManyExtensions);
        }
        let twice = |(at, one): (usize, &X509Extension<'_>)| {
            extensions.iter().take(at).any(|other| other.oid == one.oid)
        };
        if extensions.iter().enumerate().any(twice) {
            return Err(SvidError::DuplicateExtension);
        }
        Ok(profile)
    }

    /// When the certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// How many certificate authorities may follow below this one; nothing is no limit.
    #[must_use]
    pub fn path_length(&self) -> Option<usize> {
        self.path_length
    }

    /// The subject public key info, DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }

    /// The identity of a leaf that keeps every rule for leaves ([SEC-ID-2], [SEC-ID-3]).
    ///
    /// # Errors
    ///
    /// The rule that it breaks.
    pub fn leaf_id(&self) -> Result<SpiffeId, SvidError> {
        let id = self.id()?.ok_or(SvidError::NoUri)?;
        if id.path().is_empty() {
            return Err(SvidError::NoPath);
        }
        match self.is_ca {
            Some(false) => {}
            Some(true) => return Err(SvidError::LeafIsCa),
            None => return Err(SvidError::LeafWithoutBasicConstraints),
        }
        let usage = self.usage.ok_or(SvidError::LeafWithoutKeyUsage)?;
        if usage.signs_certificates || usage.signs_lists {
            return Err(SvidError::LeafCanSign);
        }
        if !usage.digital_signature {
            return Err(SvidError::NoDigitalSignature);
        }
        if self.purposes.is_some_and(|purposes| !(purposes.client && purposes.server)) {
            return Err(SvidError::Purpose);
        }
        Ok(id.to_owned())
    }

    /// Whether it may issue for a trust domain ([SEC-ID-4]).
    ///
    /// # Errors
    ///
    /// It is no authority, may not sign, or has a URI name that is not the trust domain's own
    /// SPIFFE ID.
    pub fn check_issuer(&self, trust_domain: &str) -> Result<(), SvidError> {
        self.check_authority()?;
        match self.id() {
            Ok(None) => Ok(()),
            Ok(Some(id)) if id.path().is_empty() && id.trust_domain() == trust_domain => Ok(()),
            Ok(Some(_)) | Err(_) => Err(SvidError::IssuerId),
        }
    }

    /// Whether it may be a trust anchor: cA, and keyCertSign where key usage is present.
    pub(crate) fn check_authority(&self) -> Result<(), SvidError> {
        if self.is_ca != Some(true) {
            return Err(SvidError::IssuerNotCa);
        }
        if self.usage.is_some_and(|usage| !usage.signs_certificates) {
            return Err(SvidError::IssuerUsage);
        }
        Ok(())
    }

    /// The SPIFFE ID; nothing when there is no URI name.
    fn id(&self) -> Result<Option<SpiffeIdRef<'_>>, SvidError> {
        match (self.uris, &self.uri) {
            (0, _) => Ok(None),
            (1, Some(uri)) => SpiffeIdRef::parse(uri).map(Some).map_err(SvidError::Id),
            (1, None) => Err(SvidError::Malformed),
            (_, _) => Err(SvidError::TwoUris),
        }
    }

    fn read(&mut self, extension: &ParsedExtension<'_>, critical: bool) -> Result<(), SvidError> {
        if let ParsedExtension::SubjectAlternativeName(san) = extension {
            self.count_names(&san.general_names)?;
        } else if let ParsedExtension::BasicConstraints(constraints) = extension {
            self.is_ca = Some(constraints.ca);
            // What is too large to count is no limit that a chain could reach.
            let most = constraints.path_len_constraint;
            self.path_length = most.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
        } else if let ParsedExtension::KeyUsage(usage) = extension {
            self.usage = Some(Usage {
                digital_signature: usage.digital_signature(),
                signs_certificates: usage.key_cert_sign(),
                signs_lists: usage.crl_sign(),
            });
        } else if let ParsedExtension::ExtendedKeyUsage(purposes) = extension {
            self.purposes =
                Some(Purposes { client: purposes.client_auth, server: purposes.server_auth });
        } else if let ParsedExtension::ParseError { .. } = extension {
            return Err(SvidError::Malformed);
        } else if let ParsedExtension::UnsupportedExtension { .. } = extension
            && critical
        {
            return Err(SvidError::UnknownCriticalExtension);
        }
        Ok(())
    }

    /// Counts URI names, those that are no text included.
    fn count_names(&mut self, names: &[GeneralName<'_>]) -> Result<(), SvidError> {
        if names.len() > MAX_NAMES {
            return Err(SvidError::TooManyNames);
        }
        for name in names {
            if let GeneralName::URI(uri) = name {
                self.uris = self.uris.saturating_add(1);
                self.uri = Some((*uri).to_owned());
            } else if let GeneralName::Invalid(tag, _) = name
                && tag.0 == URI_TAG
            {
                self.uris = self.uris.saturating_add(1);
                self.uri = None;
            }
        }
        Ok(())
    }
}

/// Text, addresses and object identifiers in a SAN are primitive in DER, the other names are not.
/// x509-parser takes a name by its number alone and would see a URI where rustls-webpki sees none.
fn check_name_encoding(san: &[u8]) -> Result<(), SvidError> {
    let malformed = |_detail| SvidError::Malformed;
    let (_, list) = Any::from_der(san).map_err(malformed)?;
    let mut names = list.data;
    while !names.is_empty() {
        let (rest, name) = Any::from_der(names).map_err(|_detail| SvidError::Malformed)?;
        let primitive = matches!(name.tag().0, 1 | 2 | 6 | 7 | 8);
        if name.class() != Class::ContextSpecific || name.header.constructed() == primitive {
            return Err(SvidError::Malformed);
        }
        names = rest;
    }
    Ok(())
}

fn validity(certificate: &X509Certificate<'_>) -> Result<Validity, SvidError> {
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_detail| SvidError::Malformed)?;
        Ok::<_, SvidError>(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    };
    Ok(Validity {
        not_before: time(certificate.validity().not_before.timestamp())?,
        not_after: time(certificate.validity().not_after.timestamp())?,
    })
}
