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

    /// A key set is not text.
    #[error("key set is not UTF-8")]
    Text,

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
/// [`WorkloadApiError`]: one bad part refuses the whole message.
pub fn parse_x509_svids(
    mut message: proto::X509SvidResponse,
) -> Result<X509Context, WorkloadApiError> {
    if message.svids.is_empty() {
        return Err(WorkloadApiError::NoSvid);
    }
    if message.svids.len() > MAX_SVIDS {
        return Err(WorkloadApiError::TooManySvids);
    }
    let mut bundles = Vec::new();
    let mut svids = Vec::<NamedSvid>::new();
    let mut repeated_hints = 0_usize;
    for (at, svid) in message.svids.iter_mut().enumerate() {
        let hint = std::mem::take(&mut svid.hint);
        if hint.len() > MAX_HINT_LEN {
            return Err(WorkloadApiError::Hint { at });
        }
        let (parsed, bundle) = parse_svid(at, svid)?;
        add_bundle(&mut bundles, bundle)?;
        // When a hint repeats, the first wins (SPIFFE Workload API section 5.2.1).
        if !hint.is_empty() && svids.iter().any(|other| other.hint == hint) {
            repeated_hints = repeated_hints.saturating_add(1);
        } else {
            svids.push(NamedSvid { svid: parsed, hint });
        }
    }
    for (name, authorities) in &message.federated_bundles {
        add_bundle(&mut bundles, parse_bundle(name, authorities)?)?;
    }
    let crls = parse_crls(std::mem::take(&mut message.crl))?;
    let home = svids.first().map(|first| first.svid.id().trust_domain().to_owned());
    let bundles = with_crls(bundles, &crls, home.as_deref().unwrap_or_default())?;
    Ok(X509Context { svids, bundles: BundleSet::from_bundles(bundles)?, crls, repeated_hints })
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
    let bundle = parse_bundle(id.trust_domain(), &message.bundle)?;
    Ok((svid, bundle))
}

/// Reads an answer of `FetchX509Bundles`.
///
/// # Errors
///
/// [`WorkloadApiError`]: one bad part refuses the whole message.
pub fn parse_x509_bundles(
    message: proto::X509BundlesResponse,
) -> Result<X509Bundles, WorkloadApiError> {
    let proto::X509BundlesResponse { crl, bundles } = message;
    let bundles = bundles.iter().map(|(name, authorities)| parse_bundle(name, authorities));
    let bundles = bundles.collect::<Result<Vec<_>, _>>()?;
    let crls = parse_crls(crl)?;
    let alone = match bundles.as_slice() {
        [alone] => alone.trust_domain().as_str().to_owned(),
        _ => String::new(),
    };
    let bundles = with_crls(bundles, &crls, &alone)?;
    Ok(X509Bundles { bundles: BundleSet::from_bundles(bundles)?, crls })
}

/// Reads an answer of `FetchJWTBundles`: bundles with JWT authorities alone.
///
/// # Errors
///
/// [`WorkloadApiError`]: one bad part refuses the whole message.
pub fn parse_jwt_bundles(
    message: &proto::JwtBundlesResponse,
) -> Result<BundleSet, WorkloadApiError> {
    let bundles = message.bundles.iter().map(|(name, document)| {
        let document = std::str::from_utf8(document).map_err(|_detail| WorkloadApiError::Text)?;
        Ok(TrustBundle::from_jwks(trust_domain(name)?, document)?)
    });
    Ok(BundleSet::from_bundles(bundles.collect::<Result<Vec<_>, WorkloadApiError>>()?)?)
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

/// Keeps one bundle for each trust domain. SVIDs of one domain repeat the same.
fn add_bundle(bundles: &mut Vec<TrustBundle>, new: TrustBundle) -> Result<(), WorkloadApiError> {
    match bundles.iter().find(|held| held.trust_domain() == new.trust_domain()) {
        None => bundles.push(new),
        Some(held) if *held == new => {}
        Some(_) => return Err(WorkloadApiError::DifferingBundles),
    }
    Ok(())
}

fn parse_bundle(name: &str, authorities: &[u8]) -> Result<TrustBundle, WorkloadApiError> {
    if authorities.len() > MAX_BUNDLE_LEN {
        return Err(BundleError::TooLong.into());
    }
    let mut bundle = TrustBundle::new(trust_domain(name)?);
    let certificates = split(authorities, usize::MAX);
    let certificates = certificates.map_err(|error| BundleError::Authority { at: 0, error })?;
    for (at, der) in certificates.into_iter().enumerate() {
        let authority = X509Authority::from_der(der);
        let authority = authority.map_err(|error| BundleError::Authority { at, error })?;
        bundle = bundle.with_authority(authority);
    }
    Ok(bundle)
}

/// `spiffe://td`, or the bare name, which go-spiffe takes too. A path would be another thing.
fn trust_domain(name: &str) -> Result<TrustDomain, WorkloadApiError> {
    let name = name.strip_prefix("spiffe://").unwrap_or(name);
    Ok(name.parse::<TrustDomain>().map_err(BundleError::TrustDomain)?)
}

/// Gives each bundle the lists that its authorities issued. A message does not say whose a list is:
/// one of no authority, such as an intermediate's, is the default identity's trust domain's.
fn with_crls(
    bundles: Vec<TrustBundle>,
    crls: &[CertificateRevocationListDer<'_>],
    home: &str,
) -> Result<Vec<TrustBundle>, WorkloadApiError> {
    let issued = |bundle: &TrustBundle, issuer: &[u8]| {
        let mut authorities = bundle.x509_authorities().iter();
        authorities.any(|authority| authority.anchor().subject.as_ref() == issuer)
    };
    let mut lists = vec![Vec::new(); bundles.len()];
    for (at, der) in crls.iter().enumerate() {
        let crl = webpki::BorrowedCertRevocationList::from_der(der);
        let crl = crl.map_err(|_detail| WorkloadApiError::Crl { at })?;
        let crl = webpki::CertRevocationList::from(crl);
        let known = bundles.iter().any(|bundle| issued(bundle, crl.issuer()));
        for (bundle, lists) in bundles.iter().zip(&mut lists) {
            let at_home = bundle.trust_domain().as_str() == home;
            if issued(bundle, crl.issuer()) || (!known && at_home) {
                lists.push(der);
            }
        }
    }
    let with = bundles.into_iter().zip(lists).map(|(bundle, lists)| {
        if lists.is_empty() { Ok(bundle) } else { Ok(bundle.with_crls(CrlSet::from_der(lists)?)) }
    });
    with.collect()
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
