//! Trust bundles: the authorities of a trust domain, each set for that domain alone.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use crate::spiffe_id::SpiffeIdError;
use crate::trust_domain::TrustDomain;
use crate::x509::{CertificateProfile, SvidError, Validity};

/// How often a bundle is asked for when it does not say (SPIFFE Trust Domain and Bundle 4.1.2).
pub const DEFAULT_REFRESH_HINT: Duration = Duration::from_secs(300);

/// Most bytes of a bundle document ([SEC-ID-10]).
pub const MAX_BUNDLE_LEN: usize = 1024 * 1024;

/// A certificate that may vouch for identities of one trust domain.
#[derive(Clone)]
pub struct X509Authority {
    der: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    validity: Validity,
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
        let validity = profile.validity();
        Ok(Self { der, anchor, validity })
    }

    /// The certificate.
    #[must_use]
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// When it is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    pub(crate) fn anchor(&self) -> &TrustAnchor<'static> {
        &self.anchor
    }
}

impl PartialEq for X509Authority {
    fn eq(&self, other: &Self) -> bool {
        self.der == other.der
    }
}

impl Eq for X509Authority {}

impl fmt::Debug for X509Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Authority").field("validity", &self.validity).finish_non_exhaustive()
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

    /// A PEM block cannot be read, or there is none.
    #[error("no readable authority; expected PEM blocks CERTIFICATE")]
    Pem,

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
        }
    }

    /// Adds an X.509 authority; one that is there already is not added again.
    #[must_use]
    pub fn with_authority(mut self, authority: X509Authority) -> Self {
        if !self.x509_authorities.contains(&authority) {
            self.x509_authorities.push(authority);
        }
        self
    }

    /// Reads X.509 authorities from PEM text.
    ///
    /// # Errors
    ///
    /// A block that cannot be read or an authority that is not acceptable: all are taken or none.
    pub fn from_pem(trust_domain: TrustDomain, pem: &[u8]) -> Result<Self, BundleError> {
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
        if json.len() > MAX_BUNDLE_LEN {
            return Err(BundleError::TooLong);
        }
        let document: Object =
            serde_json::from_str(json).map_err(|error| BundleError::json(&error))?;
        Self::from_object(trust_domain, &document.0)
    }

    fn from_object(
        trust_domain: TrustDomain,
        document: &BTreeMap<String, Value>,
    ) -> Result<Self, BundleError> {
        let shape = |message: &str| BundleError::Json { message: message.to_owned() };
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
                self.x509_authorities
                    .push(authority.map_err(|error| BundleError::Authority { at, error })?);
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

impl BundleError {
    fn json(error: &serde_json::Error) -> Self {
        Self::Json { message: error.to_string() }
    }
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
        if json.len() > MAX_BUNDLE_LEN {
            return Err(BundleError::TooLong);
        }
        let map: BundleMap =
            serde_json::from_str(json).map_err(|error| BundleError::json(&error))?;
        let bundles = map.trust_domains.0.iter().map(|(name, document)| {
            TrustBundle::from_object(name.parse::<TrustDomain>()?, &document.0)
        });
        Self::from_bundles(bundles.collect::<Result<Vec<_>, BundleError>>()?)
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

#[derive(serde::Deserialize)]
struct BundleMap {
    trust_domains: Unique<Object>,
}

/// An object whose names occur once; values keep serde_json's own rules.
struct Object(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Unique::<Value>::deserialize(deserializer).map(|unique| Self(unique.0))
    }
}

/// A map that refuses a name that occurs twice; serde's own would keep the last.
struct Unique<T>(BTreeMap<String, T>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Names<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut unique = BTreeMap::new();
                while let Some((name, value)) = map.next_entry::<String, T>()? {
                    if unique.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name occurs twice"));
                    }
                }
                Ok(Unique(unique))
            }
        }
        deserializer.deserialize_map(Names(std::marker::PhantomData))
    }
}
