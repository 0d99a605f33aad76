//! Certificate revocation lists of one trust domain ([SEC-ID-14], RFC 5280 section 5).
//!
//! Here they are read and bounded, before they replace any others. Their signatures are checked
//! where they are used, by the issuer that the path shows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateRevocationListDer, UnixTime};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::FromDer;
use x509_parser::revocation_list::CertificateRevocationList;

/// Most bytes of one list: some 50,000 revoked certificates.
pub const MAX_CRL_LEN: usize = 2 * 1024 * 1024;

/// Most lists of one trust domain: an issuer may publish several, one for each distribution point.
pub const MAX_CRLS: usize = 64;

/// Most orders in which lists of the same name are tried.
const MAX_ORDERS: usize = 8;

/// The revocation lists of a trust domain, at least one; cloning shares them.
///
/// A trust domain that has some demands them for every certificate of a chain: one whose issuer
/// has no list in force is refused, and so is one whose list has expired.
///
/// # Examples
///
/// ```
/// use mesh_identity::{CrlError, CrlSet};
///
/// assert_eq!(CrlSet::from_pem(b"").err(), Some(CrlError::NoList));
/// assert_eq!(CrlSet::from_der([&b"0"[..]]).err(), Some(CrlError::Malformed { at: 0 }));
/// ```
#[derive(Clone)]
pub struct CrlSet {
    /// Invariant: not empty; those of one issuer's name and distribution point stand together, the
    /// newest first.
    lists: Arc<[Crl]>,
}

struct Crl {
    der: Box<[u8]>,
    parsed: CertRevocationList<'static>,
    /// `cRLNumber`, big-endian, without leading zeros.
    number: Vec<u8>,
    this_update: i64,
    /// The first second at which the list has expired.
    next_update: UnixTime,
}

/// Why revocation lists are not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CrlError {
    /// The DER cannot be parsed, or something follows it.
    #[error("revocation list {at} is malformed")]
    Malformed {
        /// Its place among the lists, from 0.
        at: usize,
    },

    /// There is no list at all, or a PEM block cannot be read.
    #[error("no readable revocation list; expected PEM blocks X509 CRL")]
    NoList,

    /// A list is older than the one held, by its number ([SEC-OPS-2]).
    #[error("revocation list {at} is older than the one held")]
    Stale {
        /// Its place among the lists, from 0.
        at: usize,
    },

    /// Longer than the limit.
    #[error("revocation list {at} is longer than {MAX_CRL_LEN} bytes")]
    TooLong {
        /// Its place among the lists, from 0.
        at: usize,
    },

    /// More than the limit.
    #[error("more than {MAX_CRLS} revocation lists")]
    TooMany,

    /// A form that is not supported: no version 2, no next update, delta or indirect lists, lists
    /// of attribute certificates or of some reasons, unknown critical extensions.
    #[error("revocation list {at} is of a form that is not supported: {error}")]
    Unsupported {
        /// Its place among the lists, from 0.
        at: usize,
        /// What rustls-webpki says.
        error: webpki::Error,
    },
}

impl CrlSet {
    /// Reads lists, each in DER.
    ///
    /// # Errors
    ///
    /// The first list that is not acceptable: all are taken or none. No list at all.
    pub fn from_der<T: AsRef<[u8]>>(lists: impl IntoIterator<Item = T>) -> Result<Self, CrlError> {
        let mut read = Vec::new();
        for (at, der) in lists.into_iter().enumerate() {
            if at >= MAX_CRLS {
                return Err(CrlError::TooMany);
            }
            read.push(Crl::read(at, der.as_ref())?);
        }
        if read.is_empty() {
            return Err(CrlError::NoList);
        }
        // webpki asks the first list that is authoritative, so the newest has to be first.
        read.sort_by(|one, two| {
            one.scope().cmp(&two.scope()).then(two.this_update.cmp(&one.this_update))
        });
        Ok(Self { lists: read.into() })
    }

    /// Reads lists from PEM text, such as Istio's `ca-crl.pem`.
    ///
    /// # Errors
    ///
    /// As [`CrlSet::from_der`]; a block that cannot be read.
    pub fn from_pem(pem: &[u8]) -> Result<Self, CrlError> {
        let lists = CertificateRevocationListDer::pem_slice_iter(pem);
        let lists: Result<Vec<_>, _> = lists.collect();
        Self::from_der(lists.map_err(|_detail| CrlError::NoList)?)
    }

    /// These lists, to be held in place of earlier ones.
    ///
    /// # Errors
    ///
    /// [`CrlError::Stale`] when the newest list of an issuer and distribution point has a smaller
    /// number than the newest one held: then the held ones stay.
    pub fn succeeding(self, held: &Self) -> Result<Self, CrlError> {
        let stale = |new: &Crl| {
            let newest = self.newest(new.scope());
            newest.zip(held.newest(new.scope())).is_some_and(|(new, old)| new < old)
        };
        match self.lists.iter().position(stale) {
            Some(at) => Err(CrlError::Stale { at }),
            None => Ok(self),
        }
    }

    /// The greatest number of the lists that are for the same.
    fn newest(&self, scope: (&[u8], Option<&[u8]>)) -> Option<(usize, &[u8])> {
        let same = self.lists.iter().filter(|crl| crl.scope() == scope);
        same.map(|crl| (crl.number.len(), &*crl.number)).max()
    }

    /// How many lists there are.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.lists.len()
    }

    /// When the first of the lists expires: from this second on it says nothing any more.
    #[must_use]
    pub fn next_update(&self) -> UnixTime {
        let times = self.lists.iter().map(|crl| crl.next_update);
        times.min().unwrap_or(UnixTime::since_unix_epoch(Duration::ZERO))
    }

    /// The lists in the orders in which they are to be asked.
    ///
    /// webpki tells lists apart by their issuer's name. During a rotation two authorities may have
    /// one name and a list each, and the list of the other key would end the search. So every list
    /// of a name comes first once, in at most [`MAX_ORDERS`] orders.
    pub(crate) fn orders(&self) -> impl Iterator<Item = Vec<&CertRevocationList<'static>>> {
        let scopes: Vec<&[Crl]> =
            self.lists.chunk_by(|one, two| one.scope() == two.scope()).collect();
        let count = scopes.iter().fold(1_usize, |count, of| count.saturating_mul(of.len()));
        (0..count.min(MAX_ORDERS)).map(move |order| {
            let mut left = order;
            let mut lists = Vec::with_capacity(self.lists.len());
            for scope in &scopes {
                let (first, rest) = (left.checked_rem(scope.len()), left.checked_div(scope.len()));
                left = rest.unwrap_or_default();
                let (after, from) = scope.split_at(first.unwrap_or_default());
                lists.extend(from.iter().chain(after).map(|crl| &crl.parsed));
            }
            lists
        })
    }

    /// Whether any list of the issuer has the serial, whatever distribution point it is for.
    ///
    /// webpki asks one list for each certificate; of several that are for it, all count here. What
    /// cannot be read counts as listed.
    pub(crate) fn lists(&self, issuer: &[u8], serial: &[u8]) -> bool {
        let of_issuer = self.lists.iter().filter(|crl| crl.parsed.issuer() == issuer);
        of_issuer.map(|crl| crl.parsed.find_serial(serial)).any(|found| !matches!(found, Ok(None)))
    }
}

impl Crl {
    fn read(at: usize, der: &[u8]) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL_LEN {
            return Err(CrlError::TooLong { at });
        }
        let malformed = CrlError::Malformed { at };
        let Ok((rest, profile)) = CertificateRevocationList::from_der(der) else {
            return Err(malformed);
        };
        if !rest.is_empty() {
            return Err(malformed);
        }
        let parsed = OwnedCertRevocationList::from_der(der)
            .map_err(|error| CrlError::Unsupported { at, error })?;
        // webpki has refused a list without a next update.
        let next_update =
            profile.next_update().and_then(|time| u64::try_from(time.timestamp()).ok());
        let Some(next_update) = next_update else { return Err(malformed) };
        Ok(Self {
            der: der.into(),
            parsed: parsed.into(),
            number: profile.crl_number().map(BigUint::to_bytes_be).unwrap_or_default(),
            this_update: profile.last_update().timestamp(),
            next_update: UnixTime::since_unix_epoch(Duration::from_secs(next_update)),
        })
    }

    /// What a list is for, as far as it says: its issuer's name and distribution point.
    fn scope(&self) -> (&[u8], Option<&[u8]>) {
        (self.parsed.issuer(), self.parsed.issuing_distribution_point())
    }
}

impl PartialEq for CrlSet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, two): (&Crl, &Crl)| one.der == two.der;
        self.lists.len() == other.lists.len() && self.lists.iter().zip(&*other.lists).all(same)
    }
}

impl Eq for CrlSet {}

impl fmt::Debug for CrlSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrlSet")
            .field("lists", &self.lists.len())
            .field("next_update", &self.next_update())
            .finish()
    }
}
