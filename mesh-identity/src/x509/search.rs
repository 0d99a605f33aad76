//! How long path building may search, found out before it begins ([SEC-ID-7]).
//!
//! Issuers that share a name, each of which may have signed each other, make paths multiply. webpki
//! gives up after 200,000 steps, and reads every certificate at each of them: a fifth of a second
//! for a chain of 10 KiB that anybody can send.

use rustls_pki_types::{CertificateDer, SubjectPublicKeyInfoDer};
use webpki::EndEntityCert;

use super::error::SvidError;

/// Most steps upwards, over all the ways that the names allow. A chain in its order needs one for
/// each issuer; four issuers of one name, as nested authorities may have, need 64.
const MAX_STEPS: usize = 128;

/// So few issuers stay below [`MAX_STEPS`] whatever their names, so they are not looked at.
const ALWAYS_FEW: usize = 4;

/// Refuses a chain whose names lead from the leaf upwards in too many ways.
pub(super) fn check_cost(
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), SvidError> {
    if intermediates.len() <= ALWAYS_FEW {
        return Ok(());
    }
    // What webpki cannot read it cannot step on either.
    let readable = intermediates.iter().filter_map(|der| EndEntityCert::try_from(der).ok());
    let issuers: Vec<_> = readable
        .map(|read| Link {
            subject: read.subject().to_vec(),
            issuer: read.issuer().to_vec(),
            key: read.subject_public_key_info(),
        })
        .collect();
    let mut search = Search { issuers: &issuers, path: Vec::new(), left: MAX_STEPS };
    search.step(leaf.issuer()).ok_or(SvidError::TooManyPaths)
}

struct Link {
    subject: Vec<u8>,
    issuer: Vec<u8>,
    key: SubjectPublicKeyInfoDer<'static>,
}

/// webpki's own search, on names alone: depth first, no issuer twice on one path.
struct Search<'a> {
    issuers: &'a [Link],
    path: Vec<&'a Link>,
    left: usize,
}

impl Search<'_> {
    /// Goes all ways up from a name; nothing when that takes too many steps. As deep as there are
    /// issuers.
    fn step(&mut self, name: &[u8]) -> Option<()> {
        for issuer in self.issuers.iter().filter(|issuer| issuer.subject == name) {
            let same = |one: &&Link| one.subject == issuer.subject && one.key == issuer.key;
            if self.path.iter().any(same) {
                continue;
            }
            self.left = self.left.checked_sub(1)?;
            self.path.push(issuer);
            self.step(&issuer.issuer)?;
            self.path.pop();
        }
        Some(())
    }
}
