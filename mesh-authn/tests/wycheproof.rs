//! Third-party vectors at the JWS layer: Wycheproof, RFC 7515 appendix A, the JOSE cookbook
//! (RFC 7520, RFC 8037, RFC 7797), and SPIFFE's JWT-SVID table.
//!
//! The data is not part of this repository. It is read from `MESH_THIRD_PARTY`, or from
//! `shared/vectors/third-party` beside the workspace; without it the tests say so and pass.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_authn::request::{JwtSvidError, JwtSvidVerifier, KeySet, Reason, TokenOptions, Tolerance};
use mesh_identity::{BundleSet, TrustBundle, TrustDomain};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

/// The folder with the data, if it is there.
fn data() -> Option<PathBuf> {
    let default =
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors/third-party"));
    let folder = std::env::var_os("MESH_THIRD_PARTY").map_or_else(default, PathBuf::from);
    if folder.is_dir() {
        return Some(folder);
    }
    skipped(&format!("no third-party vectors at {}; set MESH_THIRD_PARTY", folder.display()));
    None
}

/// Says so even where the output of tests that pass is captured.
fn skipped(why: &str) {
    let mut stderr = std::io::stderr().lock();
    writeln!(stderr, "SKIPPED: {why}").unwrap();
}

fn read(path: &str) -> Option<Value> {
    let text = std::fs::read_to_string(data()?.join(path)).unwrap();
    Some(serde_json::from_str(&text).unwrap())
}

/// Where Wycheproof's verdict is not ours: group (or any), test, reason. A row that no test needs
/// fails the run as much as a difference that has no row.
const EXCEPTIONS: [(&str, &str, &str); 12] = [
    ("", "emptyPayload", "a token has three non-empty parts, as Envoy says: no claims, no token"),
    ("rfc7520", "Figure20", "signed with PS384 by a key that says PS256: the key's alg binds"),
    ("rfc7520WithKeyOps", "Figure20", "the same"),
    ("rfc7520", "Figure27", "the key's alg is ES521, which RFC 7518 does not know"),
    ("rfc7520WithKeyOps", "Figure27", "the same"),
    ("base64", "invalidBase64Padding", "nothing is wrong with the text in the file"),
    ("base64", "invalidBase64PaddingInPayload", "the same text"),
    ("base64", "InvalidCharacterInsertedInHeader", "`?` is no base64url (RFC 7515 2)"),
    ("base64", "InvalidCharacterInsertedInPayload", "the same"),
    ("jws_mixedSymmetryKeyset", "rejectsValid", "marked ambiguous; kid and key type keep apart"),
    ("jws_duplicate_kid", "rejectsDuplicateKid", "marked ambiguous; Envoy tries both"),
    (
        "jws_rsa_roca_key",
        "rejectsKeyWithRocaVulnerability",
        "a flaw of the key that only its factorization shows; nobody looks for it at run time",
    ),
];

/// Runs the groups of a file: nothing verifies under a key set that cannot be used. Returns the
/// rows of [`EXCEPTIONS`] that were needed.
fn run_groups(file: &Value) -> BTreeSet<usize> {
    let (mut total, mut excepted, mut differ) = (0, 0, Vec::new());
    let mut needed = BTreeSet::new();
    for group in file["testGroups"].as_array().unwrap() {
        let keys = group.get("public").unwrap_or(&group["private"]);
        let set = match keys.get("keys") {
            Some(_) => keys.clone(),
            None => json!({ "keys": [keys] }),
        };
        let keys = KeySet::parse(set.to_string().as_bytes());
        for test in group["tests"].as_array().unwrap() {
            total += 1;
            // One case is in JSON serialization, which nobody reads.
            let jws = test["jws"].as_str().map_or_else(|| test["jws"].to_string(), str::to_owned);
            let verified = match &keys {
                Ok(keys) => {
                    keys.verify_jws(&jws, &TokenOptions::strict()).map_err(|e| format!("{e:?}"))
                }
                Err(error) => Err(error.to_string()),
            };
            let name = (group["comment"].as_str().unwrap(), test["comment"].as_str().unwrap());
            if verified.is_ok() == (test["result"] == "valid") {
                continue;
            }
            let known =
                |row: &(&str, &str, &str)| (row.0.is_empty() || row.0 == name.0) && row.1 == name.1;
            if let Some(row) = EXCEPTIONS.iter().position(known) {
                println!("exception {name:?} {}: {}", test["tcId"], EXCEPTIONS[row].2);
                needed.insert(row);
                excepted += 1;
            } else {
                differ.push(format!("{name:?} {}: {verified:?}", test["tcId"]));
            }
        }
    }
    let differing = differ.len();
    println!("{total} total, {excepted} exceptions, {differing} differ");
    assert!(differ.is_empty(), "{differ:#?}");
    needed
}

#[test]
fn sec_jwt_1_wycheproof_json_web_signatures_and_keys() {
    let Some(signatures) = read("wycheproof/json_web_signature_test.json") else { return };
    let Some(keys) = read("wycheproof/json_web_key_test.json") else { return };
    let mut needed = run_groups(&signatures);
    needed.extend(run_groups(&keys));
    let idle: Vec<_> = (0..EXCEPTIONS.len()).filter(|row| !needed.contains(row)).collect();
    assert!(idle.is_empty(), "exceptions that nothing needs: {idle:?}");
}

/// The key set of an RFC example.
fn set_of(key: &Value) -> KeySet {
    KeySet::parse(json!({ "keys": [key] }).to_string().as_bytes()).unwrap()
}

#[test]
fn rfc_7515_appendix_a() {
    let Some(file) = read("rfc/rfc7515-appendix-a.json") else { return };
    for case in file.as_array().unwrap() {
        let section = case["section"].as_str().unwrap();
        let compact = case["compact"].as_str().unwrap();
        if case["valid"] == false {
            // No key: an unsecured JWS is refused whatever the keys are.
            let any =
                set_of(&json!({"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}));
            for jws in [compact.to_owned(), format!("{compact}AA")] {
                let verified = any.verify_jws(&jws, &TokenOptions::istio());
                assert!(
                    matches!(verified, Err(Reason::Parts | Reason::AlgorithmUnknown)),
                    "{section}"
                );
            }
            continue;
        }
        let payload = set_of(&case["key"]).verify_jws(compact, &TokenOptions::strict()).unwrap();
        assert_eq!(URL_SAFE_NO_PAD.encode(payload), case["payload_b64u"], "{section}");
    }
}

#[test]
fn rfc_7520_and_8037_cookbook_signatures() {
    for (path, reason) in [
        ("curve25519/jws.json", None),
        ("jws/4_1.rsa_v15_signature.json", None),
        ("jws/4_2.rsa-pss_signature.json", None),
        // The example signs P-521 with ES512.
        ("jws/4_3.ecdsa_signature.json", None),
        ("jws/4_4.hmac-sha2_integrity_protection.json", None),
        // Two parts around an absent payload.
        ("jws/4_5.signature_with_detached_content.json", Some(Reason::Parts)),
        // The payload is not encoded, and crit says so: it is not read at all.
        ("rfc7797/hmac-sha2_b64_false.json", Some(Reason::PayloadBase64)),
    ] {
        let Some(case) = read(&format!("rfc/jose-cookbook/{path}")) else { return };
        let keys = set_of(&case["input"]["key"]);
        let compact = case["output"]["compact"].as_str().unwrap();
        let verified = keys.verify_jws(compact, &TokenOptions::strict());
        match reason {
            None => {
                let payload = String::from_utf8(verified.unwrap()).unwrap();
                assert_eq!(payload, case["input"]["payload"], "{path}");
            }
            Some(reason) => assert_eq!(verified, Err(reason), "{path}"),
        }
    }
}

#[test]
fn sec_jwt_3_a_payload_that_is_not_encoded_is_refused() {
    let Some(case) = read("rfc/jose-cookbook/rfc7797/4.2.hmac-sha2_b64_false.json") else { return };
    let part = |name: &str| case["output"]["json_flat"][name].as_str().unwrap().to_owned();
    let jws = format!("{}.{}.{}", part("protected"), "JC4wMg", part("signature"));
    let keys = set_of(&case["input"]["key"]);
    let strict = keys.verify_jws(&jws, &TokenOptions::strict());
    assert!(
        matches!(strict, Err(Reason::Signature | Reason::NotTolerated(Tolerance::CriticalHeader))),
        "{strict:?}"
    );
}

/// [SEC-ID-11]
#[test]
fn sec_id_11_spiffe_jwt_svid_table() {
    let Some(table) = read("spiffe/jwtsvid.json") else { return };
    let trust_domain: TrustDomain = table["trust_domain"].as_str().unwrap().parse().unwrap();
    let bundle = TrustBundle::from_json(trust_domain, &table["bundle"].to_string()).unwrap();
    let bundles = BundleSet::from_bundles([bundle]).unwrap();
    let cases = table["cases"].as_array().unwrap();
    for case in cases {
        let names = case["audience"].as_array().unwrap();
        let names = names.iter().map(|name| name.as_str().unwrap());
        let (verifier, unusable) = JwtSvidVerifier::compile(&bundles, names);
        assert_eq!(unusable, []);
        let now = Duration::from_secs(case["now"].as_u64().unwrap());
        let result = verifier
            .verify(case["token"].as_str().unwrap(), UnixTime::since_unix_epoch(now))
            .map(|svid| svid.id.to_string());
        let name = case["name"].as_str().unwrap();
        if let Some(id) = case["id"].as_str() {
            assert_eq!(result.as_deref(), Ok(id), "{name}");
            continue;
        }
        let (error, class) = (result.unwrap_err(), case["error"].as_str().unwrap());
        println!("{name}: {error} ({class})");
        let excepted = SVID_EXCEPTIONS.iter().any(|row| row.0 == name && row.1 == error);
        assert!(excepted || class_of(error) == class, "{name}: {error:?}, not {class}");
    }
    println!("JWT-SVID table: {} cases", cases.len());
}

/// Cases of the JWT-SVID table that we refuse for an earlier reason than the table names.
const SVID_EXCEPTIONS: [(&str, JwtSvidError, &str); 2] = [
    (
        "signed by another authority than kid says",
        JwtSvidError::Algorithm,
        "the two authorities have keys of different types, so `alg` is wrong already",
    ),
    (
        "alg none",
        JwtSvidError::Token(Reason::Parts),
        "without a signature there are no three parts",
    ),
];

/// The table's name for an error.
fn class_of(error: JwtSvidError) -> &'static str {
    match error {
        JwtSvidError::Algorithm => "AlgorithmNotAllowed",
        JwtSvidError::Audience => "AudienceMismatch",
        JwtSvidError::InvalidSubject(_) => "InvalidSub",
        JwtSvidError::MissingExpiry => "MissingExp",
        JwtSvidError::MissingKeyId => "MissingKid",
        JwtSvidError::MissingSubject => "MissingSub",
        JwtSvidError::Token(Reason::Expired) => "Expired",
        JwtSvidError::Token(Reason::Parts) => "Unparsable",
        JwtSvidError::Token(Reason::Signature) => "BadSignature",
        JwtSvidError::Type => "BadTyp",
        JwtSvidError::UnknownKey => "UnknownKid",
        JwtSvidError::UnknownTrustDomain => "NoBundleForTrustDomain",
        JwtSvidError::NotAcceptable(_) | JwtSvidError::Token(_) | _ => "none of the table's",
    }
}
