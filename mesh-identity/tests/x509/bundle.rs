//! Bundle documents: what is taken, what is refused, what is passed over.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::x509::SvidError;
use mesh_identity::{
    BundleError, BundleSet, DEFAULT_REFRESH_HINT, MAX_BUNDLE_LEN, TrustBundle, TrustDomain,
};

use crate::mint::Ca;

fn domain() -> TrustDomain {
    "a.test".parse().unwrap()
}

fn read(json: &str) -> Result<TrustBundle, BundleError> {
    TrustBundle::from_json(domain(), json)
}

fn x509(ca: &Ca) -> String {
    let text = STANDARD.encode(&ca.certificate);
    format!(r#"{{"kty":"EC","use":"x509-svid","x5c":["{text}"]}}"#)
}

const JWT: &str = r#"{"kty":"EC","use":"jwt-svid","kid":"k","crv":"P-256","x":"x","y":"y"}"#;

#[test]
fn sec_id_9_missing_keys_are_not_an_empty_list() {
    assert!(matches!(read("{}"), Err(BundleError::Json { .. })));
    assert!(matches!(read(r#"{"keys":null}"#), Err(BundleError::Json { .. })));
    let empty = read(r#"{"keys":[]}"#).unwrap();
    assert!(empty.x509_authorities().is_empty() && empty.jwt_authorities().is_empty());
    assert_eq!(empty.refresh_hint(), DEFAULT_REFRESH_HINT);
}

#[test]
fn sec_id_9_a_bundle_is_taken_whole_or_not_at_all() {
    let ca = Ca::root("root");
    let good = x509(&ca);
    let bundle =
        read(&format!(r#"{{"spiffe_sequence":3,"spiffe_refresh_hint":60,"keys":[{good},{JWT}]}}"#));
    let bundle = bundle.unwrap();
    assert_eq!((bundle.x509_authorities().len(), bundle.jwt_authorities().len()), (1, 1));
    assert_eq!((bundle.sequence(), bundle.refresh_hint()), (Some(3), Duration::from_secs(60)));
    let bad = [
        (r#"{"kty":"EC","use":"x509-svid","x5c":["AA=="]}"#, "malformed"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":["*"]}"#, "base64"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":[]}"#, "exactly one"),
        (r#"{"kty":"EC","use":"x509-svid","x5c":["AA==","AA=="]}"#, "exactly one"),
        (r#"{"kty":"EC","use":"x509-svid"}"#, "exactly one"),
        (r#"{"kty":"EC","use":"x509-svid","kid":"k","x5c":["AA=="]}"#, "kid"),
        (r#"{"kty":"EC","use":"jwt-svid"}"#, "kid is missing"),
        (r#"{"kty":"EC","use":"jwt-svid","kid":""}"#, "kid is missing"),
        (r#"{"kty":"EC","use":"jwt-svid","kid":1}"#, "kid is missing"),
        (JWT, "twice"),
        ("[]", "not an object"),
    ];
    for (key, want) in bad {
        let error = read(&format!(r#"{{"keys":[{good},{JWT},{key}]}}"#)).unwrap_err();
        assert!(error.to_string().contains("key 2") && error.to_string().contains(want), "{error}");
    }
}

#[test]
fn sec_id_9_unknown_kinds_and_uses_are_passed_over_and_counted() {
    let keys = [
        r#"{"kty":"oct","use":"jwt-svid","kid":"a"}"#,
        r#"{"use":"jwt-svid","kid":"a"}"#,
        r#"{"kty":"EC","kid":"a"}"#,
        r#"{"kty":"EC","use":"wit-svid","kid":"a"}"#,
        r#"{"kty":"EC","use":"sig","kid":"a"}"#,
    ];
    let bundle = read(&format!(r#"{{"keys":[{},{JWT}]}}"#, keys.join(","))).unwrap();
    assert_eq!((bundle.skipped(), bundle.jwt_authorities().len()), (5, 1));
}

#[test]
fn sec_id_9_a_name_occurs_once_at_every_depth() {
    for json in [
        r#"{"keys":[],"keys":[]}"#,
        r#"{"keys":[],"spiffe_sequence":1,"spiffe_sequence":2}"#,
        r#"{"keys":[{"kty":"EC","use":"sig","use":"jwt-svid","kid":"a"}]}"#,
        r#"{"keys":[{"kty":"oct","k\u0074y":"EC"}]}"#,
        r#"{"keys":[],"other":{"a":1,"a":1}}"#,
    ] {
        let error = read(json).unwrap_err();
        assert!(error.to_string().contains("a name occurs twice"), "{json}: {error}");
    }
}

#[test]
fn sec_id_9_shapes_and_sizes() {
    for json in [
        "",
        "[]",
        "null",
        "{\"keys\":[]} x",
        r#"{"keys":{}}"#,
        r#"{"keys":[],"spiffe_sequence":-1}"#,
        r#"{"keys":[],"spiffe_sequence":"1"}"#,
        r#"{"keys":[],"spiffe_sequence":1.5}"#,
        r#"{"keys":[],"spiffe_refresh_hint":null}"#,
    ] {
        assert!(matches!(read(json), Err(BundleError::Json { .. })), "{json}");
    }
    let sequence = read(&format!(r#"{{"keys":[],"spiffe_sequence":{}}}"#, u64::MAX)).unwrap();
    assert_eq!(sequence.sequence(), Some(u64::MAX));
    let long = format!(r#"{{"keys":[]{}}}"#, " ".repeat(MAX_BUNDLE_LEN));
    assert_eq!(read(&long), Err(BundleError::TooLong));
    assert_eq!(BundleSet::from_json(&long), Err(BundleError::TooLong));
    let pem = " ".repeat(MAX_BUNDLE_LEN + 1);
    assert_eq!(TrustBundle::from_pem(domain(), pem.as_bytes()), Err(BundleError::TooLong));
    let deep = format!(r#"{{"keys":{}"#, "[".repeat(100_000));
    assert!(read(&deep).is_err());
}

#[test]
fn sec_id_9_what_json_says_is_not_repeated() {
    let error = read(r#"{"keys":"s3cret"}"#).unwrap_err().to_string();
    assert!(!error.contains("s3cret"), "{error}");
}

#[test]
fn sec_id_9_an_older_copy_is_not_taken() {
    let with = |sequence: &str| read(&format!(r#"{{{sequence}"keys":[]}}"#)).unwrap();
    let (none, five, six) =
        (with(""), with(r#""spiffe_sequence":5,"#), with(r#""spiffe_sequence":6,"#));
    let stale = BundleError::Stale { new: 5, held: 6 };
    assert_eq!(five.clone().succeeding(&six), Err(stale));
    assert_eq!(six.clone().succeeding(&five), Ok(six.clone()));
    assert_eq!(six.clone().succeeding(&six), Ok(six.clone()));
    assert_eq!(none.clone().succeeding(&six), Ok(none.clone()));
    assert_eq!(six.clone().succeeding(&none), Ok(six.clone()));
    let other = TrustBundle::new("b.test".parse().unwrap());
    assert_eq!(other.succeeding(&six), Err(BundleError::OtherTrustDomain));
}

#[test]
fn sec_id_8_bundle_maps_never_merge() {
    let set =
        BundleSet::from_json(r#"{"trust_domains":{"a.test":{"keys":[]},"b.test":{"keys":[]}}}"#);
    let set = set.unwrap();
    let names: Vec<_> = set.iter().map(|bundle| bundle.trust_domain().as_str()).collect();
    assert_eq!(names, ["a.test", "b.test"]);
    assert!(set.get("c.test").is_none());
    for json in [
        r#"{"trust_domains":{"a.test":{"keys":[]},"a.test":{"keys":[]}}}"#,
        r#"{"trust_domains":{"a.test":{"keys":[],"keys":[]}}}"#,
        r#"{"trust_domains":{"A.test":{"keys":[]}}}"#,
        r#"{"trust_domains":{"a.test":[]}}"#,
        r#"{"trust_domains":{"a.test":{}}}"#,
        r#"{"trust_domains":[]}"#,
        r"{}",
    ] {
        assert!(BundleSet::from_json(json).is_err(), "{json}");
    }
    let twice = [TrustBundle::new(domain()), TrustBundle::new(domain())];
    assert_eq!(BundleSet::from_bundles(twice), Err(BundleError::DuplicateTrustDomain));
}

/// A whole ID as the map's key names the same domain, so it may not hide a second bundle.
#[test]
fn sec_id_8_two_spellings_of_a_trust_domain() {
    let json = r#"{"trust_domains":{"a.test":{"keys":[]},"spiffe://a.test":{"keys":[]}}}"#;
    assert_eq!(BundleSet::from_json(json), Err(BundleError::DuplicateTrustDomain));
}

#[test]
fn sec_id_9_authorities_of_pem_text() {
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let pem = |ca: &Ca| {
        let text = STANDARD.encode(&ca.certificate);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let read = |text: &str| TrustBundle::from_pem(domain(), text.as_bytes());
    let both = read(&(pem(&one) + "# a comment\n" + &pem(&two) + &pem(&one))).unwrap();
    assert_eq!(both.x509_authorities().len(), 2);
    assert_eq!(read(""), Err(BundleError::Pem));
    assert_eq!(read("-----BEGIN CERTIFICATE-----\nAA=="), Err(BundleError::Pem));
    let second = pem(&one) + "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";
    let error = BundleError::Authority { at: 1, error: SvidError::Malformed };
    assert_eq!(read(&second), Err(error));
}

/// What comes in place of what is held, for a whole set.
#[test]
fn sec_id_9_a_stale_bundle_of_a_set_gives_way_to_the_one_held() {
    let bundle = |name: &str, sequence: u64| {
        let text = format!(r#"{{"keys": [], "spiffe_sequence": {sequence}}}"#);
        TrustBundle::from_json(name.parse().unwrap(), &text).unwrap()
    };
    let set = |bundles: &[(&str, u64)]| {
        let bundles = bundles.iter().map(|(name, sequence)| bundle(name, *sequence));
        BundleSet::from_bundles(bundles).unwrap()
    };
    let held = set(&[("a.test", 5), ("b.test", 5), ("c.test", 5)]);
    let (next, kept) = set(&[("a.test", 6), ("b.test", 4), ("d.test", 1)]).succeeding(&held);
    assert_eq!(next, set(&[("a.test", 6), ("b.test", 5), ("d.test", 1)]));
    let stale = BundleError::Stale { new: 4, held: 5 };
    assert_eq!(kept, [("b.test".parse().unwrap(), stale)]);
    // A domain that is gone is gone.
    assert!(next.get("c.test").is_none());
    assert_eq!(next.with_bundle(bundle("d.test", 2)).get("d.test").unwrap().sequence(), Some(2));
}

/// The SPIFFE Workload API's form: one certificate after another, nothing between or behind.
#[test]
fn concatenated_certificates() {
    let (one, two) = (Ca::root("one"), Ca::root("two"));
    let both = [&one.certificate[..], &two.certificate].concat();
    let domain = || "a.test".parse().unwrap();
    let bundle = TrustBundle::from_concatenated_der(domain(), &both).unwrap();
    let want = one.bundle("a.test").with_authority(two.authority());
    assert_eq!(bundle, want);
    let split = mesh_identity::x509::split_certificates(&both).unwrap();
    assert_eq!(split, [one.certificate.clone(), two.certificate.clone()]);
    assert!(mesh_identity::x509::split_certificates(&[]).unwrap().is_empty());
    for end in [1, both.len() - 1, one.certificate.len() + 1] {
        assert!(TrustBundle::from_concatenated_der(domain(), &both[..end]).is_err(), "{end}");
    }
    let longer = [&both[..], &[0]].concat();
    assert!(TrustBundle::from_concatenated_der(domain(), &longer).is_err());
    assert!(TrustBundle::from_concatenated_der(domain(), &[]).is_err(), "no authority at all");
    // Keys for JWT-SVIDs come in a document of their own.
    let keys = r#"{"keys": [{"kty": "EC", "use": "jwt-svid", "kid": "k", "crv": "P-256"}]}"#;
    let jwt = TrustBundle::from_json(domain(), keys).unwrap();
    let joined = bundle.with_jwt_authorities_of(&jwt).unwrap();
    assert_eq!((joined.x509_authorities().len(), joined.jwt_authorities().len()), (2, 1));
    let other = TrustBundle::new("b.test".parse().unwrap());
    let got = joined.with_jwt_authorities_of(&other);
    assert_eq!(got, Err(BundleError::OtherTrustDomain));
}
