//! Targets of mesh-identity.

use mesh_identity::x509::CertificateProfile;
use mesh_identity::{BundleSet, SpiffeIdRef, TrustBundle, TrustDomain};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

/// A SPIFFE ID against an independent checker of the grammar ([SEC-ID-1]).
///
/// # Panics
///
/// When the two disagree, or what was read does not print as it was written.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = SpiffeIdRef::parse(text);
    assert_eq!(parsed.is_ok(), grammar(text), "{text:?}");
    if let Ok(id) = parsed {
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    }
}

/// SPIFFE-ID section 2 in the plainest words.
fn grammar(text: &str) -> bool {
    let name = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    let segment = |c: char| name(c) || c.is_ascii_uppercase();
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let domain = parts.next().unwrap_or_default();
    let segments: Vec<&str> = parts.collect();
    text.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.chars().all(name)
        && segments.iter().all(|part| {
            !part.is_empty() && *part != "." && *part != ".." && part.chars().all(segment)
        })
}

/// A bundle document, against serde_json's own reading and against the same document in a map.
///
/// # Panics
///
/// When a key is lost or invented, or the two forms are read differently ([SEC-ID-9]).
pub fn bundle_json(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let domain: TrustDomain = "a.test".parse().expect("a good name");
    let read = TrustBundle::from_json(domain.clone(), text);
    let mapped = BundleSet::from_json(&format!("{{\"trust_domains\":{{\"a.test\":{text}}}}}"));
    // The map is a level deeper and some bytes longer, so only what is read in it is compared.
    if let Ok(set) = &mapped
        && let (Some(inner), Ok(read)) = (set.get("a.test"), &read)
    {
        assert_eq!(inner, read);
    }
    let Ok(bundle) = read else { return };
    let value: Value = serde_json::from_str(text).expect("what we read is JSON");
    let keys = value["keys"].as_array().expect("a bundle has keys");
    let used = |name: &str| {
        let known = ["EC", "RSA", "OKP"];
        let of_use = |key: &&Value| {
            key["use"] == name && key["kty"].as_str().is_some_and(|kty| known.contains(&kty))
        };
        keys.iter().filter(of_use).count()
    };
    let (x509, jwt) = (used("x509-svid"), used("jwt-svid"));
    assert_eq!(bundle.jwt_authorities().len(), jwt);
    // An authority that is listed twice is held once.
    assert!(bundle.x509_authorities().len() <= x509);
    assert_eq!(bundle.x509_authorities().is_empty(), x509 == 0);
    assert_eq!(bundle.skipped(), keys.len() - x509 - jwt);
    assert_eq!(bundle.sequence(), value["spiffe_sequence"].as_u64());
    if let Ok(again) = bundle.clone().succeeding(&bundle) {
        assert_eq!(again, bundle);
    } else {
        panic!("a bundle may follow itself");
    }
}

/// A certificate's profile, against rustls-webpki's reading of the same bytes.
///
/// # Panics
///
/// When a leaf has another identity than webpki sees, or may also issue ([SEC-ID-2], [SEC-ID-3]).
pub fn certificate(data: &[u8]) {
    let der = CertificateDer::from(data);
    // The reader of concatenated certificates takes it apart at the same places.
    if let Ok(parts) = mesh_identity::x509::split_certificates(data) {
        assert_eq!(parts.iter().map(|part| part.len()).sum::<usize>(), data.len());
    }
    let Ok(profile) = CertificateProfile::parse(&der) else { return };
    let Ok(id) = profile.leaf_id() else { return };
    assert!(profile.check_issuer(id.trust_domain()).is_err(), "a leaf that may issue");
    assert!(id.path().len() > 1, "a leaf's ID has a path");
    let bytes = id.as_str().as_bytes();
    assert!(data.windows(bytes.len()).any(|window| window == bytes), "an invented identity");
    if let Ok(other) = webpki::EndEntityCert::try_from(&der) {
        let names: Vec<&str> = other.valid_uri_names().collect();
        assert_eq!(names, [id.as_str()]);
    }
}
