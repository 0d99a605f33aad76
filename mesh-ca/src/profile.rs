//! What authorities' certificates say (X509-SVID section 4 and appendix A), and how long what they
//! issue lives.

use std::time::Duration;

use mesh_identity::TrustDomain;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use time::OffsetDateTime;

use crate::error::CaError;

/// How far back `notBefore` lies, for peers whose clock is behind ([SEC-CA-3]).
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The life of an SVID when nobody asks for another ([SEC-CA-5]).
pub const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);

/// The longest life of an SVID; a request for more gets this ([SEC-CA-5]).
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// A root: the trust domain's own SPIFFE ID, keyCertSign and cRLSign.
pub(crate) fn root(
    trust_domain: &TrustDomain,
    not_before: UnixTime,
    not_after: UnixTime,
) -> Result<CertificateParams, CaError> {
    let mut params = common(not_before, not_after)?;
    params.subject_alt_names =
        vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.distinguished_name.push(DnType::OrganizationName, trust_domain.as_str());
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// An intermediate that may issue leaves and nothing else.
pub(crate) fn intermediate(
    trust_domain: &TrustDomain,
    not_before: UnixTime,
    not_after: UnixTime,
) -> Result<CertificateParams, CaError> {
    let mut params = root(trust_domain, not_before, not_after)?;
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    Ok(params)
}

fn common(not_before: UnixTime, not_after: UnixTime) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    params.not_before = encode(not_before)?;
    params.not_after = encode(not_after)?;
    // [SEC-CA-3] rcgen adds the subject's key identifier by itself.
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Octets of a serial number.
pub(crate) const SERIAL: usize = 16;

/// [SEC-CA-3] Positive, 126 random bits, 16 octets; nothing of it can be predicted.
pub(crate) fn serial() -> Result<[u8; SERIAL], CaError> {
    let mut bytes = [0_u8; SERIAL];
    SystemRandom::new().fill(&mut bytes).map_err(|_detail| CaError::Random)?;
    if let Some(first) = bytes.first_mut() {
        // The sign bit is clear, and the first octet is not zero, so that the length is fixed.
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(bytes)
}

/// `now`, less the skew allowance.
pub(crate) fn backdated(now: UnixTime) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(now.as_secs()).saturating_sub(BACKDATE))
}

/// A time later by so much.
pub(crate) fn after(time: UnixTime, by: Duration) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(time.as_secs()).saturating_add(by))
}

pub(crate) fn encode(at: UnixTime) -> Result<OffsetDateTime, CaError> {
    let seconds = i64::try_from(at.as_secs()).map_err(|_detail| CaError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_detail| CaError::Time)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The long form: `cargo test -p mesh-ca --release --lib sec_ca_3 -- --ignored`.
    #[test]
    #[ignore = "ten million serial numbers take some seconds and 160 MB"]
    fn sec_ca_3_ten_million_serials_and_no_repeat() {
        let count = 10_000_000;
        let mut serials: Vec<u128> =
            (0..count).map(|_| u128::from_be_bytes(serial().unwrap())).collect();
        serials.sort_unstable();
        serials.dedup();
        assert_eq!(serials.len(), count);
    }

    #[test]
    fn sec_ca_3_serials_are_positive_long_and_never_repeat() {
        let count = 100_000;
        let serials: HashSet<[u8; SERIAL]> = (0..count).map(|_| serial().unwrap()).collect();
        assert_eq!(serials.len(), count);
        assert!(serials.iter().all(|one| (0x40..0x80).contains(&one[0])));
        // Neither a counter nor a time shows: every octet takes every value it can.
        for octet in 1..16 {
            let values: HashSet<u8> = serials.iter().map(|one| one[octet]).collect();
            assert_eq!(values.len(), 256, "octet {octet}");
        }
    }
}
