//! The bytes of a leaf: exactly the profile of an X.509-SVID, in DER (X509-SVID section 4, RFC 5280
//! section 4). Serial number, validity, names and key are a leaf's own; the rest is its authority's
//! and is written once.
//!
//! rcgen, which writes the authorities' own certificates, writes the same bytes, and a test holds that.
//! It does not hand out what was signed, though, which must stay with its signature ([`Signed`]).
//!
//! [`Signed`]: crate::key::Signed

use mesh_identity::SpiffeId;
use ring::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::ParsedExtension;

use crate::error::CaError;
use crate::key::CaKey;
use crate::profile;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// A SAN's names, and the key identifier of an issuer (RFC 5280 sections 4.2.1.6 and 4.2.1.1).
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;
const KEY_IDENTIFIER: u8 = 0x80;
/// The extensions among the fields of a certificate.
const EXTENSIONS: u8 = 0xa3;

/// `[0] INTEGER 2`: version 3.
const VERSION: &[u8] = &[0xa0, 3, 2, 1, 2];
/// A SEQUENCE of nothing: no subject.
const NO_SUBJECT: &[u8] = &[SEQUENCE, 0];

/// Object identifiers of extensions, and whether they are critical.
const SUBJECT_KEY_IDENTIFIER: &[u8] = &[6, 3, 0x55, 0x1d, 14];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[6, 3, 0x55, 0x1d, 35];
const CRITICAL_SUBJECT_ALT_NAME: &[u8] = &[6, 3, 0x55, 0x1d, 17, 1, 1, 0xff];

/// Key usage, critical: digitalSignature. Extended key usage: serverAuth, clientAuth.
const USAGES: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x07\x80\
    \x30\x1d\x06\x03\x55\x1d\x25\x04\x16\x30\x14\
    \x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
/// Basic constraints, critical: no authority.
const NO_AUTHORITY: &[u8] = b"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00";

/// A leaf's own part.
pub(crate) struct Leaf<'a> {
    pub(crate) id: &'a SpiffeId,
    /// After the identity; only the authority's own servers have some.
    pub(crate) dns_names: &'a [DnsName<'a>],
    /// Subject public key info, DER.
    pub(crate) spki: &'a [u8],
    pub(crate) serial: [u8; profile::SERIAL],
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
}

/// The part of an authority in all its leaves.
pub(crate) struct LeafWriter {
    /// How it signs.
    algorithm: Vec<u8>,
    /// Its own subject, byte by byte: verifiers compare bytes.
    issuer: Vec<u8>,
    authority_key_identifier: Vec<u8>,
}

impl LeafWriter {
    pub(crate) fn new(authority: &CertificateDer<'_>, key: &CaKey) -> Result<Self, CaError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(authority)
            .map_err(|_detail| CaError::Authority(mesh_identity::x509::SvidError::Malformed))?;
        let algorithm = key.algorithm().signature_alg_id();
        let identifier = own_key_identifier(&certificate)
            .unwrap_or_else(|| key_identifier(certificate.public_key().raw));
        let identifier = tlv(SEQUENCE, &[&tlv(KEY_IDENTIFIER, &[&identifier])]);
        Ok(Self {
            algorithm: tlv(SEQUENCE, &[algorithm.as_ref()]),
            issuer: certificate.subject().as_raw().to_vec(),
            authority_key_identifier: extension(AUTHORITY_KEY_IDENTIFIER, &identifier),
        })
    }

    /// What is signed.
    pub(crate) fn to_be_signed(&self, leaf: &Leaf<'_>) -> Result<Vec<u8>, CaError> {
        let identity = tlv(URI, &[leaf.id.as_str().as_bytes()]);
        let dns_names =
            leaf.dns_names.iter().flat_map(|name| tlv(DNS_NAME, &[name.as_ref().as_bytes()]));
        let dns_names: Vec<u8> = dns_names.collect();
        let names = tlv(SEQUENCE, &[&identity, &dns_names]);
        let identifier = tlv(OCTET_STRING, &[&key_identifier(leaf.spki)]);
        let extensions = [
            &self.authority_key_identifier,
            &*extension(CRITICAL_SUBJECT_ALT_NAME, &names),
            USAGES,
            &*extension(SUBJECT_KEY_IDENTIFIER, &identifier),
            NO_AUTHORITY,
        ];
        let validity = [time(leaf.not_before)?, time(leaf.not_after)?].concat();
        Ok(tlv(
            SEQUENCE,
            &[
                VERSION,
                &tlv(INTEGER, &[&leaf.serial]),
                &self.algorithm,
                &self.issuer,
                &tlv(SEQUENCE, &[&validity]),
                NO_SUBJECT,
                leaf.spki,
                &tlv(EXTENSIONS, &[&tlv(SEQUENCE, &extensions)]),
            ],
        ))
    }

    /// The certificate: what was signed, how, and the signature.
    pub(crate) fn certificate(
        &self,
        to_be_signed: &[u8],
        signature: &[u8],
    ) -> CertificateDer<'static> {
        let signature = tlv(BIT_STRING, &[&[0], signature]);
        tlv(SEQUENCE, &[to_be_signed, &self.algorithm, &signature]).into()
    }
}

fn own_key_identifier(certificate: &X509Certificate<'_>) -> Option<Vec<u8>> {
    certificate.iter_extensions().find_map(|extension| {
        let ParsedExtension::SubjectKeyIdentifier(identifier) = extension.parsed_extension() else {
            return None;
        };
        Some(identifier.0.to_vec())
    })
}

/// RFC 7093 section 2, method 1, over all of the subject public key info as rcgen has it.
fn key_identifier(spki: &[u8]) -> Vec<u8> {
    digest(&SHA256, spki).as_ref().iter().take(20).copied().collect()
}

/// An extension; `oid` with TRUE behind it is a critical one.
fn extension(oid: &[u8], value: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[oid, &tlv(OCTET_STRING, &[value])])
}

/// UTC time before 2050 and generalized time from then on (RFC 5280 section 4.1.2.5).
fn time(at: UnixTime) -> Result<Vec<u8>, CaError> {
    let at = profile::encode(at)?;
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = at.to_hms();
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    if (1950..2050).contains(&year) {
        let short = year.rem_euclid(100);
        return Ok(tlv(UTC_TIME, &[format!("{short:02}{rest}").as_bytes()]));
    }
    Ok(tlv(GENERALIZED_TIME, &[format!("{year:04}{rest}").as_bytes()]))
}

/// Tag, length and content (X.690 sections 8.1 and 10.1).
fn tlv(tag: u8, content: &[&[u8]]) -> Vec<u8> {
    let length = content.iter().fold(0_usize, |sum, part| sum.saturating_add(part.len()));
    let mut der = Vec::with_capacity(length.saturating_add(10));
    der.push(tag);
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => der.push(short),
        _ => {
            let octets = length.to_be_bytes();
            let octets = octets.split_at(octets.iter().take_while(|octet| **octet == 0).count()).1;
            // At most eight octets follow.
            der.push(0x80 | u8::try_from(octets.len()).unwrap_or_default());
            der.extend_from_slice(octets);
        }
    }
    for part in content {
        der.extend_from_slice(part);
    }
    der
}

#[cfg(test)]
#[expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]
mod tests {
    use std::time::Duration;

    use mesh_identity::TrustDomain;
    use proptest::prelude::*;
    use rcgen::{
        CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
        KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber, SigningKey,
    };

    use super::*;
    use crate::key::KeyKind;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    /// A key whose signatures are all the same.
    struct Fixed<'a>(&'a CaKey);

    impl rcgen::PublicKeyData for Fixed<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.0.der_bytes()
        }

        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            rcgen::PublicKeyData::algorithm(self.0)
        }
    }

    impl SigningKey for Fixed<'_> {
        fn sign(&self, _message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            Ok(vec![7; 70])
        }
    }

    /// The same leaf as rcgen writes it.
    fn by_rcgen(
        leaf: &Leaf<'_>,
        authority: &CertificateDer<'_>,
        ca: &CaKey,
        key: &CaKey,
    ) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(SerialNumber::from_slice(&leaf.serial));
        params.not_before = profile::encode(leaf.not_before).unwrap();
        params.not_after = profile::encode(leaf.not_after).unwrap();
        params.use_authority_key_identifier_extension = true;
        params.subject_alt_names = vec![SanType::URI(leaf.id.as_str().try_into().unwrap())];
        for name in leaf.dns_names {
            params.subject_alt_names.push(SanType::DnsName(name.as_ref().try_into().unwrap()));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::from_ca_cert_der(authority, Fixed(ca)).unwrap();
        params.signed_by(key, &issuer).unwrap().der().to_vec()
    }

    const KINDS: [KeyKind; 3] = [KeyKind::P256, KeyKind::P384, KeyKind::Ed25519];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Byte by byte what rcgen writes: short and long names, years before and after 2050.
        #[test]
        fn sec_ca_3_a_leaf_has_the_bytes_that_rcgen_writes(
            path in "[a-z]{1,300}",
            trust_domain in "[a-z]{1,60}",
            names in prop::collection::vec("[a-z]{1,60}", 0..3),
            kinds in (0_usize..3, 0_usize..3),
            begin in 0_u64..4_000_000_000,
            life in 0_u64..100_000,
        ) {
            let (ca, key) = (CaKey::generate(KINDS[kinds.0]), CaKey::generate(KINDS[kinds.1]));
            let (ca, key) = (ca.unwrap(), key.unwrap());
            let trust_domain: TrustDomain = trust_domain.parse().unwrap();
            let root = profile::root(&trust_domain, at(0), at(2_000_000_000)).unwrap();
            let authority = root.self_signed(&ca).unwrap().der().clone();
            let names: Vec<_> =
                names.into_iter().map(|name| DnsName::try_from(name).unwrap()).collect();
            let leaf = Leaf {
                id: &format!("spiffe://{trust_domain}/{path}").parse().unwrap(),
                dns_names: &names,
                spki: &key.subject_public_key_info(),
                serial: profile::serial().unwrap(),
                not_before: at(begin),
                not_after: at(begin + life),
            };
            let writer = LeafWriter::new(&authority, &ca).unwrap();
            let ours = writer.certificate(&writer.to_be_signed(&leaf).unwrap(), &[7; 70]);
            prop_assert_eq!(ours.as_ref(), by_rcgen(&leaf, &authority, &ca, &key));
        }
    }

    #[test]
    fn lengths_have_their_shortest_form() {
        for (length, want) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65_536, &[4, 0x83, 1, 0, 0]),
        ] {
            let der = tlv(OCTET_STRING, &[&vec![0; length]]);
            assert_eq!(der.split_at(want.len()).0, want);
            assert_eq!(der.len(), want.len() + length);
        }
    }

    #[test]
    fn times_that_no_certificate_can_say_are_errors() {
        assert!(time(at(253_402_300_799)).is_ok());
        assert!(time(at(253_402_300_800)).is_err());
        assert!(time(at(u64::MAX)).is_err());
    }
}
