//! Trust bundles: the authorities of a trust domain, each set for that domain alone.

mod json;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, Der, TrustAnchor};
use serde_json::{Map, Value};

use crate::crl::{CrlError, CrlSet};
use crate::spiffe_id::SpiffeIdError;
use crate::trust_domain::TrustDomain;
use crate::x509::{CertificateProfile, SvidError, Validity, split_certificates};

/// How often a bundle is asked for when it does not say (SPIFFE Trust Domain and Bundle 4.1.2).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);

/// Most bytes of a bundle document ([SEC-ID-10]).
pub const MAX_BUNDLE_LEN: usize = 1024 * 1024;

/// A certificate that may vouch for identities of one trust domain; cloning shares it.
#[derive(Clone)]
pub struct X509Authority {
    inner: Arc<Authority>,
}

struct Authority {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    profile: CertificateProfile,
}

impl X509Authority {
    /// Reads a root or other signing certificate.
    ///
    /// # Errors
    ///
    /// What is malformed, or a key or usage that no authority has.
    pub fn from_der(der: CertificateDer<'static>) -> Result<Self, SvidError> {
        let profile = CertificateProfile::parse(&der)?;
        profile.check_authority()?;
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(SvidError::Certificate)?;
        let anchor = anchor.to_owned();
        Ok(Self { inner: Arc::new(Authority { der, anchor, profile }) })
    }

    /// The certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.inner.der
    }

    /// The subject public key info, DER.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.inner.profile.public_key()
    }

    /// When it is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.inner.profile.validity()
    }

    pub(crate) fn profile(&self) -> &CertificateProfile {
        &self.inner.profile
    }

    /// Name, key and name constraints, borrowed: webpki wants a list of values, and each handshake
    /// would copy every authority.
    pub(crate) fn anchor(&self) -> TrustAnchor<'_> {
        let TrustAnchor { subject, subject_public_key_info, name_constraints } = &self.inner.anchor;
        TrustAnchor {
            subject: Der::from_slice(subject),
            subject_public_key_info: Der::from_slice(subject_public_key_info),
            name_constraints: name_constraints.as_ref().map(|der| Der::from_slice(der)),
        }
    }
}

impl PartialEq for X509Authority {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner) || self.inner.der == other.inner.der
    }
}

impl Eq for X509Authority {}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authority").field("validity", &self.validity()).finish_non_exhaustive()
    }
}

/// A public key that verifies JWT-SVIDs of one trust domain, as its JWK.
#[derive(Clone, Debug, PartialEq)]
pub struct JwtAuthority {
    kid: String,
    jwk: Value,
}

impl JwtAuthority {
    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The key as a JSON Web Key.
    #[must_use]
    pub fn jwk(&self) -> &Value {
        &self.jwk
    }
}

/// The authorities of one trust domain (SPIFFE Trust Domain and Bundle section 4).
///
/// Without authorities it verifies nothing ([SEC-ID-9]).
#[derive(Clone, Debug, PartialEq)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    x509_authorities: Vec<X509Authority>,
    jwt_authorities: Vec<JwtAuthority>,
    sequence: Option<u64>,
    refresh_hint: Option<Duration>,
    skipped: usize,
    crls: Option<CrlSet>,
}

/// Why a document is not a trust bundle.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// An X.509 authority is not acceptable.
    #[error("key {at}: {error}")]
    Authority {
        /// Position of the key, counted from 0.
        at: usize,
        /// What is wrong with its certificate.
        error: SvidError,
    },

    /// Its revocation lists are not acceptable ([SEC-ID-14]).
    #[error("{0}")]
    Crl(#[from] CrlError),

    /// Two bundles of one trust domain.
    #[error("two bundles for one trust domain")]
    DuplicateTrustDomain,

    /// The document is not JSON of the right shape, or a field occurs twice.
    #[error("not a bundle document: {message}")]
    Json {
        /// What the reader says; nothing of the content.
        message: String,
    },

    /// A key breaks the rules for its use.
    #[error("key {at}: {message}")]
    Key {
        /// Position of the key, counted from 0.
        at: usize,
        /// The rule.
        message: &'static str,
    },

    /// A bundle cannot follow one of another trust domain.
    #[error("bundle of another trust domain than the one held")]
    OtherTrustDomain,

    /// A PEM block cannot be read, or there is none.
    #[error("no readable authority; expected PEM blocks CERTIFICATE")]
    Pem,

    /// A copy older than the one held ([SEC-ID-9]).
    #[error("spiffe_sequence is {new}, older than the held bundle's {held}")]
    Stale {
        /// The sequence of the copy.
        new: u64,
        /// The sequence of the bundle that stays.
        held: u64,
    },

    /// Longer than the limit.
    #[error("longer than {MAX_BUNDLE_LEN} bytes")]
    TooLong,

    /// A key of a bundle map is no trust domain.
    #[error("trust domain: {0}")]
    TrustDomain(#[from] SpiffeIdError),
}

impl TrustBundle {
    /// A bundle without authorities.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            sequence: None,
            refresh_hint: None,
            skipped: 0,
            crls: None,
        }
    }

    /// The same authorities and lists for another name of the same trust domain, as Istio's
    /// `trustDomainAliases` has it ([SEM-MTLS-12]): its authorities vouch for both names then.
    #[must_use]
    pub fn alias(&self, name: TrustDomain) -> Self {
        Self { trust_domain: name, ..self.clone() }
    }

    /// Demands of every certificate below these authorities that it is on no revocation list
    /// ([SEC-ID-14]). A changed bundle is a new generation, by which open connections and sessions
    /// are judged again.
    #[must_use]
    pub fn with_crls(mut self, crls: CrlSet) -> Self {
        self.crls = Some(crls);
        self
    }

    /// Adds an X.509 authority; one that is there already is not added again.
    #[must_use]
    pub fn with_authority(mut self, authority: X509Authority) -> Self {
        self.add_authority(authority);
        self
    }

    fn add_authority(&mut self, authority: X509Authority) {
        if !self.x509_authorities.contains(&authority) {
            self.x509_authorities.push(authority);
        }
    }

    /// Reads X.509 authorities from PEM text.
    ///
    /// # Errors
    ///
    /// A block that cannot be read or an authority that is not acceptable: all are taken or none.
    /// No certificate at all, because an empty file is more often a mistake than a bundle.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
        if pem.len() > MAX_BUNDLE_LEN {
            return Err(BundleError::TooLong);
        }
        let mut bundle = Self::new(trust_domain);
        for (at, der) in CertificateDer::pem_slice_iter(pem).enumerate() {
            let der = der.map_err(|_detail| BundleError::Pem)?;
            let authority = X509Authority::from_der(der);
            let authority = authority.map_err(|error| BundleError::Authority { at, error })?;
            bundle = bundle.with_authority(authority);
        }
        if bundle.x509_authorities.is_empty() {
            return Err(BundleError::Pem);
        }
        Ok(bundle)
    }

    /// Reads X.509 authorities whose DER follows one another, as the SPIFFE Workload API sends them.
    ///
    /// # Errors
    ///
    /// As [`TrustBundle::from_pem`].
    pub fn from_concatenated_der(
        trust_domain: TrustDomain,
        der: &[u8],
    ) -> Result<Self, BundleError> {
        if der.len() > MAX_BUNDLE_LEN {
            return Err(BundleError::TooLong);
        }
        let wrong = |at| move |error| BundleError::Authority { at, error };
        let certificates = split_certificates(der).map_err(wrong(0))?;
        let mut bundle = Self::new(trust_domain);
        for (at, der) in certificates.into_iter().enumerate() {
            bundle.add_authority(X509Authority::from_der(der).map_err(wrong(at))?);
        }
        if bundle.x509_authorities.is_empty() {
            return Err(BundleError::Authority { at: 0, error: SvidError::EmptyChain });
        }
        Ok(bundle)
    }

    /// Takes the keys for JWT-SVIDs from another bundle of the trust domain: the SPIFFE Workload
    /// API sends them apart.
    ///
    /// # Errors
    ///
    /// [`BundleError::OtherTrustDomain`].
    pub fn with_jwt_authorities_of(mut self, other: &Self) -> Result<Self, BundleError> {
        if self.trust_domain != other.trust_domain {
            return Err(BundleError::OtherTrustDomain);
        }
        self.jwt_authorities.clone_from(&other.jwt_authorities);
        Ok(self)
    }

    /// Reads a SPIFFE bundle document (a JWKS with SPIFFE's members).
    ///
    /// Keys of an unknown `kty` or `use` are skipped, as the standard demands;
    /// [`TrustBundle::skipped`] counts them. No `keys` at all is an error, an empty list is a
    /// bundle that verifies nothing.
    ///
    /// # Errors
    ///
    /// What is not of the right shape, or a key that breaks the rules for its use.
    pub fn from_json(trust_domain: TrustDomain, json: &str) -> Result<Self, BundleError> {
        Self::from_object(trust_domain, &parse_document(json)?)
    }

    /// This bundle, to be held in place of an earlier one ([SEC-ID-9]).
    ///
    /// # Errors
    ///
    /// It is of another trust domain, or a stale copy: its `spiffe_sequence` is smaller, or one of
    /// its revocation lists is older. Then the held one stays.
    pub fn succeeding(self, held: &Self) -> Result<Self, BundleError> {
        if self.trust_domain != held.trust_domain {
            return Err(BundleError::OtherTrustDomain);
        }
        match (self.sequence, held.sequence) {
            (Some(new), Some(held)) if new < held => Err(BundleError::Stale { new, held }),
            (_, _) => match (&self.crls, &held.crls) {
                (Some(new), Some(held)) => {
                    new.clone().succeeding(held)?;
                    Ok(self)
                }
                (_, _) => Ok(self),
            },
        }
    }

    fn from_object(
        trust_domain: TrustDomain,
        document: &Map<String, Value>,
    ) -> Result<Self, BundleError> {
        let mut bundle = Self::new(trust_domain);
        let keys = document.get("keys").ok_or_else(|| shape("field keys is missing"))?;
        let keys = keys.as_array().ok_or_else(|| shape("keys is not a list"))?;
        for (at, key) in keys.iter().enumerate() {
            bundle.add_key(at, key)?;
        }
        if let Some(sequence) = document.get("spiffe_sequence") {
            let sequence = sequence.as_u64();
            bundle.sequence =
                Some(sequence.ok_or_else(|| shape("spiffe_sequence is not a whole number"))?);
        }
        if let Some(hint) = document.get("spiffe_refresh_hint") {
            let seconds = hint.as_u64();
            let seconds =
                seconds.ok_or_else(|| shape("spiffe_refresh_hint is not a whole number"))?;
            bundle.refresh_hint = Some(Duration::from_secs(seconds));
        }
        Ok(bundle)
    }

    /// SPIFFE Trust Domain and Bundle section 4.2, X509-SVID section 6, JWT-SVID section 5.
    fn add_key(&mut self, at: usize, key: &Value) -> Result<(), BundleError> {
        let wrong = |message| BundleError::Key { at, message };
        let key = key.as_object().ok_or_else(|| wrong("not an object"))?;
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        if !matches!(text("kty"), Some("EC" | "RSA" | "OKP")) {
            self.skipped = self.skipped.saturating_add(1);
            return Ok(());
        }
        match text("use") {
            Some("x509-svid") => {
                if key.contains_key("kid") {
                    return Err(wrong("kid is not allowed with use x509-svid"));
                }
                let certificates = key.get("x5c").and_then(Value::as_array);
                let [Value::String(certificate)] =
                    certificates.map(Vec::as_slice).unwrap_or_default()
                else {
                    return Err(wrong("x5c must hold exactly one certificate"));
                };
                let der = STANDARD.decode(certificate);
                let der = der.map_err(|_detail| wrong("x5c is not base64"))?;
                let authority = X509Authority::from_der(CertificateDer::from(der));
                self.add_authority(
                    authority.map_err(|error| BundleError::Authority { at, error })?,
                );
            }
            Some("jwt-svid") => {
                let kid = text("kid").filter(|kid| !kid.is_empty());
                let kid = kid.ok_or_else(|| wrong("kid is missing"))?.to_owned();
                if self.jwt_authorities.iter().any(|other| other.kid == kid) {
                    return Err(wrong("kid occurs twice"));
                }
                self.jwt_authorities.push(JwtAuthority { kid, jwk: Value::Object(key.clone()) });
            }
            Some(_) | None => self.skipped = self.skipped.saturating_add(1),
        }
        Ok(())
    }

    /// Whose authorities these are.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Who may vouch for X.509-SVIDs.
    #[must_use]
    pub fn x509_authorities(&self) -> &[X509Authority] {
        &self.x509_authorities
    }

    /// The keys that verify JWT-SVIDs.
    #[must_use]
    pub fn jwt_authorities(&self) -> &[JwtAuthority] {
        &self.jwt_authorities
    }

    /// The revocation lists that are asked; nothing is no revocation check.
    #[must_use]
    pub fn crls(&self) -> Option<&CrlSet> {
        self.crls.as_ref()
    }

    /// `spiffe_sequence`; grows with every change.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// How often to ask for a new one; [`DEFAULT_REFRESH_HINT`] when the bundle does not say.
    #[must_use]
    pub fn refresh_hint(&self) -> Duration {
        self.refresh_hint.unwrap_or(DEFAULT_REFRESH_HINT)
    }

    /// How many keys were passed over because their kind or use is unknown.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }
}

/// One JSON object, every name in it once.
fn parse_document(text: &str) -> Result<Map<String, Value>, BundleError> {
    if text.len() > MAX_BUNDLE_LEN {
        return Err(BundleError::TooLong);
    }
    match json::parse(text) {
        Ok(Value::Object(document)) => Ok(document),
        Ok(_) => Err(shape("not an object")),
        Err(error) => Err(BundleError::Json { message: error.to_string() }),
    }
}

fn shape(message: &str) -> BundleError {
    BundleError::Json { message: message.to_owned() }
}

/// The bundles a workload believes in: one for each trust domain, never pooled ([SEC-ID-8]).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BundleSet {
    bundles: BTreeMap<TrustDomain, Arc<TrustBundle>>,
}

impl BundleSet {
    /// A set of these bundles.
    ///
    /// # Errors
    ///
    /// [`BundleError::DuplicateTrustDomain`] when two are of one trust domain: bundles are never
    /// merged.
    pub fn from_bundles(
        bundles: impl IntoIterator<Item = TrustBundle>,
    ) -> Result<Self, BundleError> {
        let mut set = Self::default();
        for bundle in bundles {
            let name = bundle.trust_domain().clone();
            if set.bundles.insert(name, Arc::new(bundle)).is_some() {
                return Err(BundleError::DuplicateTrustDomain);
            }
        }
        Ok(set)
    }

    /// Reads a bundle map: `{"trust_domains": {"<name>": <bundle>, …}}`.
    ///
    /// # Errors
    ///
    /// What is wrong with any of them; a trust domain that occurs twice.
    pub fn from_json(json: &str) -> Result<Self, BundleError> {
        let document = parse_document(json)?;
        let map = document.get("trust_domains");
        let map = map.ok_or_else(|| shape("field trust_domains is missing"))?;
        let map = map.as_object().ok_or_else(|| shape("trust_domains is not an object"))?;
        let bundles = map.iter().map(|(name, document)| {
            let document = document.as_object();
            let document = document.ok_or_else(|| shape("a bundle is not an object"))?;
            TrustBundle::from_object(name.parse::<TrustDomain>()?, document)
        });
        Self::from_bundles(bundles.collect::<Result<Vec<_>, BundleError>>()?)
    }

    /// This set, to be held in place of an earlier one: a stale bundle in it gives way to the one
    /// held ([SEC-ID-9]). Beside it, the trust domains of which the held bundle stays, and why. One
    /// that is missing here is missing then: trust that was withdrawn is not kept.
    #[must_use]
    pub fn succeeding(mut self, held: &Self) -> (Self, Vec<(TrustDomain, BundleError)>) {
        let mut kept = Vec::new();
        for (name, bundle) in &mut self.bundles {
            let Some(old) = held.bundles.get(name) else { continue };
            if let Err(error) = TrustBundle::clone(bundle).succeeding(old) {
                *bundle = Arc::clone(old);
                kept.push((name.clone(), error));
            }
        }
        (self, kept)
    }

    /// This set with one bundle more, or another in place of the one of its trust domain.
    #[must_use]
    pub fn with_bundle(mut self, bundle: TrustBundle) -> Self {
        self.bundles.insert(bundle.trust_domain().clone(), Arc::new(bundle));
        self
    }

    /// The bundle of a trust domain, by name.
    #[must_use]
    pub fn get(&self, trust_domain: &str) -> Option<&TrustBundle> {
        self.bundles.get(trust_domain).map(Arc::as_ref)
    }

    /// All bundles, sorted by trust domain.
    pub fn iter(&self) -> impl Iterator<Item = &TrustBundle> {
        self.bundles.values().map(Arc::as_ref)
    }
}
