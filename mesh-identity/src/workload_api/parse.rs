//! What a client of the Workload API receives.

use std::fmt;

use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use x509_parser::der_parser::asn1_rs::{Any, FromDer as _};
use zeroize::Zeroizing;

use super::{MAX_HINT_LEN, MAX_SVIDS, proto};
use crate::bundle::{BundleError, BundleSet, MAX_BUNDLE_LEN, TrustBundle, X509Authority};
use crate::crl::{CrlError, CrlSet};
use crate::spiffe_id::{SpiffeId, SpiffeIdError};
use crate::svid::{SvidLoadError, X509Svid};
use crate::trust_domain::TrustDomain;
use crate::x509::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, SvidError};

/// An identity, and an operator's label for what it is for; often empty.
#[derive(Debug)]
#[expect(clippy::exhaustive_structs, reason = "a pair with names")]
pub struct NamedSvid {
    /// The identity.
    pub svid: X509Svid,
    /// The label.
    pub hint: String,
}

/// One whole state of `FetchX509SVID`.
#[derive(Debug)]
#[non_exhaustive]
pub struct X509Context {
    /// The identities, never none, the default one first.
    pub svids: Vec<NamedSvid>,
    /// Whom to believe: the own trust domains and the federated ones, with the revocation lists of
    /// each.
    pub bundles: BundleSet,
    /// All certificate revocation lists.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// How many identities were passed over because an earlier one has the same hint.
    pub repeated_hints: usize,
    /// The federated trust domains whose bundle or revocation lists cannot be used, and why: their
    /// bundle in `bundles` is empty, so that nobody of them is believed ([SEC-ID-9]).
    pub refused: Vec<(TrustDomain, BundleError)>,
}

/// One whole state of `FetchX509Bundles`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct X509Bundles {
    /// Whom to believe, with the revocation lists that the authorities of each issued. A list of
    /// no authority, such as an intermediate's, is given to a bundle that comes alone; among
    /// several nothing says whose it is, and it is in `crls` only.
    pub bundles: BundleSet,
    /// All certificate revocation lists.
    pub crls: Vec<CertificateRevocationListDer<'static>>,
    /// The trust domains whose bundle or revocation lists cannot be used, and why: their bundle in
    /// `bundles` is empty. Nothing says which domain is one's own; whoever finds it here keeps the
    /// bundle held before.
    pub refused: Vec<(TrustDomain, BundleError)>,
}

/// One whole state of `FetchJWTBundles`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JwtBundles {
    /// Whose tokens to believe: bundles with JWT authorities alone.
    pub bundles: BundleSet,
    /// The trust domains whose key set cannot be used, and why; as in [`X509Bundles`].
    pub refused: Vec<(TrustDomain, BundleError)>,
}

/// A token that the Workload API issued. It is not verified here: its holder presents it.
#[non_exhaustive]
pub struct JwtSvid {
    /// Whom it names, as the server says.
    pub id: SpiffeId,
    /// The token: zeroed on drop, never shown.
    pub token: Zeroizing<String>,
    /// An operator's label for what this identity is for; often empty.
    pub hint: String,
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Why a message is not taken; the state before it stays.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadApiError {
    /// A bundle is not acceptable.
    #[error("bundle: {0}")]
    Bundle(#[from] BundleError),

    /// A revocation list cannot be read.
    #[error("revocation list {at} cannot be read")]
    Crl {
        /// Its position, counted from 0.
        at: usize,
    },

    /// The revocation lists of a trust domain cannot be used.
    #[error("revocation lists: {0}")]
    Crls(#[from] CrlError),

    /// Two different bundles are given for one trust domain: bundles are never merged.
    #[error("two different bundles for one trust domain")]
    DifferingBundles,

    /// A hint is longer than [`MAX_HINT_LEN`].
    #[error("identity {at}: hint is longer than {MAX_HINT_LEN} bytes")]
    Hint {
        /// The identity's position, counted from 0.
        at: usize,
    },

    /// A name is no SPIFFE ID.
    #[error("identity {at}: {error}")]
    Id {
        /// The identity's position, counted from 0.
        at: usize,
        /// The rule that it breaks.
        error: SpiffeIdError,
    },

    /// The message names another identity than the leaf.
    #[error("identity {at}: the leaf names another identity than the message")]
    IdMismatch {
        /// The identity's position, counted from 0.
        at: usize,
    },

    /// There is no bundle for an identity's own trust domain.
    #[error("identity {at}: no bundle for its trust domain")]
    NoBundle {
        /// The identity's position, counted from 0.
        at: usize,
    },

    /// No identity.
    #[error("no identity in the message")]
    NoSvid,

    /// An identity's chain or key is not acceptable.
    #[error("identity {at}: {error}")]
    Svid {
        /// The identity's position, counted from 0.
        at: usize,
        /// The rule that it breaks.
        error: SvidLoadError,
    },

    /// More identities than [`MAX_SVIDS`].
    #[error("more than {MAX_SVIDS} identities")]
    TooManySvids,
}

/// Reads an answer of `FetchX509SVID`.
///
/// Whether each key belongs to its leaf is told by whoever uses it, with cryptography.
///
/// # Errors
///
/// [`WorkloadApiError`]: one bad part refuses the whole message, except the bundle of a federated
/// trust domain, which is empty then and listed in [`X509Context::refused`].
pub fn parse_x509_svids(
    mut message: proto::X509SvidResponse,
) -> Result<X509Context, WorkloadApiError> {
    if message.svids.is_empty() {
        return Err(WorkloadApiError::NoSvid);
    }
    if message.svids.len() > MAX_SVIDS {
        return Err(WorkloadApiError::TooManySvids);
    }
    let mut parts = Parts::default();
    let mut svids = Vec::<NamedSvid>::new();
    let mut repeated_hints = 0_usize;
    for (at, svid) in message.svids.iter_mut().enumerate() {
        let hint = std::mem::take(&mut svid.hint);
        if hint.len() > MAX_HINT_LEN {
            return Err(WorkloadApiError::Hint { at });
        }
        let (parsed, bundle) = parse_svid(at, svid)?;
        parts.add(bundle)?;
        // When a hint repeats, the first wins (SPIFFE Workload API section 5.2.1).
        if !hint.is_empty() && svids.iter().any(|other| other.hint == hint) {
            repeated_hints = repeated_hints.saturating_add(1);
        } else {
            svids.push(NamedSvid { svid: parsed, hint });
        }
    }
    let own = parts.bundles.len();
    for (name, authorities) in &message.federated_bundles {
        let trust_domain = trust_domain(name)?;
        if parts.has(&trust_domain) {
            parts.add(parse_bundle(trust_domain, authorities)?)?;
        } else {
            parts.add_foreign(trust_domain, authorities);
        }
    }
    let crls = parse_crls(std::mem::take(&mut message.crl))?;
    let home = svids.first().map(|first| first.svid.id().trust_domain().to_owned());
    parts.add_crls(&crls, home.as_deref().unwrap_or_default(), own)?;
    let (bundles, refused) = (BundleSet::from_bundles(parts.bundles)?, parts.refused);
    Ok(X509Context { svids, bundles, crls, repeated_hints, refused })
}

fn parse_svid(
    at: usize,
    message: &proto::X509Svid,
) -> Result<(X509Svid, TrustBundle), WorkloadApiError> {
    let id: SpiffeId =
        message.spiffe_id.parse().map_err(|error| WorkloadApiError::Id { at, error })?;
    let refuse = |error| WorkloadApiError::Svid { at, error };
    let leaf = |error| refuse(SvidLoadError::Leaf(error));
    if message.x509_svid.len() > MAX_CHAIN_BYTES {
        return Err(leaf(SvidError::ChainTooLong));
    }
    let chain = split(&message.x509_svid, MAX_CHAIN_CERTIFICATES).map_err(leaf)?;
    let key = PrivatePkcs8KeyDer::from(message.x509_svid_key.as_slice());
    let svid = X509Svid::from_der(chain, &key).map_err(refuse)?;
    if svid.id() != &id {
        return Err(WorkloadApiError::IdMismatch { at });
    }
    let bundle = parse_bundle(trust_domain(id.trust_domain())?, &message.bundle)?;
    Ok((svid, bundle))
}

/// Reads an answer of `FetchX509Bundles`.
///
/// # Errors
///
/// [`WorkloadApiError`]: a name or a list that cannot be read, or no bundle that can be used. One
/// among others that cannot is empty, and listed in [`X509Bundles::refused`].
pub fn parse_x509_bundles(
    message: proto::X509BundlesResponse,
) -> Result<X509Bundles, WorkloadApiError> {
    let proto::X509BundlesResponse { crl, bundles } = message;
    let mut parts = Parts::default();
    for (name, authorities) in &bundles {
        parts.add_foreign(trust_domain(name)?, authorities);
    }
    let crls = parse_crls(crl)?;
    let alone = match parts.bundles.as_slice() {
        [alone] => alone.trust_domain().as_str().to_owned(),
        _ => String::new(),
    };
    parts.add_crls(&crls, &alone, 0)?;
    let (bundles, refused) = parts.any_usable()?;
    Ok(X509Bundles { bundles, crls, refused })
}

/// Reads an answer of `FetchJWTBundles`: bundles with JWT authorities alone.
///
/// # Errors
///
/// [`WorkloadApiError`]: a name that cannot be read, or no key set that can be used. One among
/// others that cannot is empty, and listed in [`JwtBundles::refused`].
pub fn parse_jwt_bundles(
    message: &proto::JwtBundlesResponse,
) -> Result<JwtBundles, WorkloadApiError> {
    let mut parts = Parts::default();
    for (name, document) in &message.bundles {
        let trust_domain = trust_domain(name)?;
        parts.add_or_refuse(trust_domain.clone(), parse_jwks(trust_domain, document));
    }
    let (bundles, refused) = parts.any_usable()?;
    Ok(JwtBundles { bundles, refused })
}

fn parse_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<TrustBundle, BundleError> {
    let document = std::str::from_utf8(document)
        .map_err(|_detail| BundleError::Json { message: "not UTF-8".to_owned() })?;
    TrustBundle::from_jwks(trust_domain, document)
}

/// Reads an answer of `FetchJWTSVID`.
///
/// # Errors
///
/// [`WorkloadApiError::NoSvid`], or a name that is no SPIFFE ID.
pub fn parse_jwt_svids(
    mut message: proto::JwtSvidResponse,
) -> Result<Vec<JwtSvid>, WorkloadApiError> {
    if message.svids.is_empty() {
        return Err(WorkloadApiError::NoSvid);
    }
    let svids = message.svids.iter_mut().enumerate().map(|(at, svid)| {
        let id = svid.spiffe_id.parse().map_err(|error| WorkloadApiError::Id { at, error })?;
        let token = Zeroizing::new(std::mem::take(&mut svid.svid));
        Ok(JwtSvid { id, token, hint: std::mem::take(&mut svid.hint) })
    });
    svids.collect()
}

/// The bundles of a message while it is read.
#[derive(Default)]
struct Parts {
    bundles: Vec<TrustBundle>,
    refused: Vec<(TrustDomain, BundleError)>,
    /// The names in the certificates of refused bundles: their revocation lists are not ours.
    refused_names: Vec<Vec<u8>>,
}

impl Parts {
    fn has(&self, trust_domain: &TrustDomain) -> bool {
        self.bundles.iter().any(|held| held.trust_domain() == trust_domain)
    }

    /// Keeps one bundle for each trust domain. SVIDs of one domain repeat the same.
    fn add(&mut self, new: TrustBundle) -> Result<(), WorkloadApiError> {
        match self.bundles.iter().find(|held| held.trust_domain() == new.trust_domain()) {
            None => self.bundles.push(new),
            Some(held) if *held == new => {}
            Some(_) => return Err(WorkloadApiError::DifferingBundles),
        }
        Ok(())
    }

    fn add_foreign(&mut self, trust_domain: TrustDomain, authorities: &[u8]) {
        let bundle = parse_bundle(trust_domain.clone(), authorities);
        if bundle.is_err() {
            self.refused_names.extend(names(authorities));
        }
        self.add_or_refuse(trust_domain, bundle);
    }

    /// [SEC-ID-9] A foreign bundle that cannot be used believes nobody, and holds up nothing of
    /// ours.
    fn add_or_refuse(
        &mut self,
        trust_domain: TrustDomain,
        bundle: Result<TrustBundle, BundleError>,
    ) {
        let bundle = bundle.unwrap_or_else(|error| {
            self.refused.push((trust_domain.clone(), error));
            TrustBundle::new(trust_domain)
        });
        self.bundles.push(bundle);
    }

    /// Gives each bundle the lists that its authorities issued. A message does not say whose a list
    /// is: one of no authority, such as an intermediate's, is the default identity's trust
    /// domain's. The first `own` bundles are taken with their lists, or nothing is.
    fn add_crls(
        &mut self,
        crls: &[CertificateRevocationListDer<'_>],
        home: &str,
        own: usize,
    ) -> Result<(), WorkloadApiError> {
        let issued = |bundle: &TrustBundle, issuer: &[u8]| {
            let mut authorities = bundle.x509_authorities().iter();
            authorities.any(|authority| authority.anchor().subject.as_ref() == issuer)
        };
        let mut lists = vec![Vec::new(); self.bundles.len()];
        for (at, der) in crls.iter().enumerate() {
            let crl = webpki::BorrowedCertRevocationList::from_der(der);
            let crl = crl.map_err(|_detail| WorkloadApiError::Crl { at })?;
            let crl = webpki::CertRevocationList::from(crl);
            let known = self.bundles.iter().any(|bundle| issued(bundle, crl.issuer()))
                || self.refused_names.iter().any(|name| name == crl.issuer());
            for (bundle, lists) in self.bundles.iter().zip(&mut lists) {
                let at_home = bundle.trust_domain().as_str() == home;
                if issued(bundle, crl.issuer()) || (!known && at_home) {
                    lists.push(der);
                }
            }
        }
        for (at, (bundle, lists)) in self.bundles.iter_mut().zip(lists).enumerate() {
            if lists.is_empty() {
                continue;
            }
            match CrlSet::from_der(lists) {
                Ok(crls) => *bundle = bundle.clone().with_crls(crls),
                Err(error) if at < own => return Err(error.into()),
                Err(error) => {
                    let trust_domain = bundle.trust_domain().clone();
                    *bundle = TrustBundle::new(trust_domain.clone());
                    self.refused.push((trust_domain, error.into()));
                }
            }
        }
        Ok(())
    }

    /// The bundles, and whose were refused; an error if all were.
    fn any_usable(self) -> Result<(BundleSet, Vec<(TrustDomain, BundleError)>), WorkloadApiError> {
        match self.refused.first() {
            Some((_, error)) if self.refused.len() >= self.bundles.len() => {
                Err(error.clone().into())
            }
            Some(_) | None => Ok((BundleSet::from_bundles(self.bundles)?, self.refused)),
        }
    }
}

fn parse_bundle(trust_domain: TrustDomain, authorities: &[u8]) -> Result<TrustBundle, BundleError> {
    if authorities.len() > MAX_BUNDLE_LEN {
        return Err(BundleError::TooLong);
    }
    let mut bundle = TrustBundle::new(trust_domain);
    let certificates = split(authorities, usize::MAX);
    let certificates = certificates.map_err(|error| BundleError::Authority { at: 0, error })?;
    for (at, der) in certificates.into_iter().enumerate() {
        let authority = X509Authority::from_der(der);
        let authority = authority.map_err(|error| BundleError::Authority { at, error })?;
        bundle = bundle.with_authority(authority);
    }
    Ok(bundle)
}

/// The subjects of the certificates in a bundle that is not taken, as far as it can be read.
fn names(authorities: &[u8]) -> Vec<Vec<u8>> {
    let certificates = split(authorities, usize::MAX).unwrap_or_default();
    let anchors = certificates.iter().flat_map(webpki::anchor_from_trusted_cert);
    anchors.map(|anchor| anchor.subject.to_vec()).collect()
}

/// `spiffe://td`, or the bare name, which go-spiffe takes too. A path would be another thing.
fn trust_domain(name: &str) -> Result<TrustDomain, WorkloadApiError> {
    let name = name.strip_prefix("spiffe://").unwrap_or(name);
    Ok(name.parse::<TrustDomain>().map_err(BundleError::TrustDomain)?)
}

/// Takes certificates apart that stand one behind the other. What each holds is read later; here
/// only lengths count.
fn split(mut der: &[u8], most: usize) -> Result<Vec<CertificateDer<'static>>, SvidError> {
    let mut certificates = Vec::new();
    while !der.is_empty() {
        if certificates.len() == most {
            return Err(SvidError::TooManyCertificates);
        }
        let (rest, _) = Any::from_der(der).map_err(|_detail| SvidError::Malformed)?;
        let length = der.len().saturating_sub(rest.len());
        let one = der.get(..length).ok_or(SvidError::Malformed)?;
        certificates.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(certificates)
}

fn parse_crls(
    crls: Vec<Vec<u8>>,
) -> Result<Vec<CertificateRevocationListDer<'static>>, WorkloadApiError> {
    let crls = crls.into_iter().enumerate().map(|(at, der)| {
        webpki::BorrowedCertRevocationList::from_der(&der)
            .map_err(|_detail| WorkloadApiError::Crl { at })?;
        Ok(CertificateRevocationListDer::from(der))
    });
    crls.collect()
}
