//! C2SP's x509-limbo on the path step: its leaves have DNS names, so what is SPIFFE's of a leaf is
//! left out. The vectors are not part of the repository; without them the test says so.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;

use super::path::PathStep;
use super::{MAX_CHAIN_BYTES, MAX_CHAIN_CERTIFICATES, Role};
use crate::bundle::X509Authority;

/// When the case names no time: 2026-07-01, as the vectors' own measurement.
const DEFAULT_TIME: u64 = 1_782_864_000;

/// Cases in which we differ from what limbo asks of the path step, and why. One that passes fails
/// the test as well.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("pathlen::self-issued-certs-pathlen", SELF_ISSUED),
    ("rfc5280::nc::permitted-self-issued", SELF_ISSUED),
    ("rfc5280::nc::permitted-dn-match", "webpki refuses constraints on directory names: closed"),
    (
        "rfc5280::unknown-critical-extension-unrelated-root",
        "a bundle is taken whole or not at all, so one bad authority refuses it: closed",
    ),
    (
        "rfc5280::leaf-ku-keycertsign",
        "the leaf's key usage is judged before the path step: sec_id_3_what_a_leaf_says",
    ),
];

const SELF_ISSUED: &str = "webpki refuses issuers that issued themselves a new key: closed";

#[test]
fn x509_limbo_path_step() {
    let Some(cases) = read_cases() else { return };
    let mut wrong = Vec::new();
    let mut counts = BTreeMap::new();
    for (case, expected) in &cases {
        let id = case["id"].as_str().unwrap();
        let result = run(case);
        *counts.entry((expected.as_str(), result.is_ok())).or_insert(0) += 1;
        let fails = match expected.as_str() {
            "accept" => result.is_err(),
            "reject" => result.is_ok(),
            "either" | "skip" => continue,
            other => panic!("{other}"),
        };
        if fails != EXCEPTIONS.iter().any(|(exception, _)| *exception == id) {
            wrong.push(format!("{id}: expected {expected}, got {result:?}"));
        }
    }
    println!("x509-limbo, (expected, accepted): {counts:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(case: &Value) -> Result<(), String> {
    let pem = |value: &Value| CertificateDer::from_pem_slice(value.as_str().unwrap().as_bytes());
    let list = |name: &str| case[name].as_array().unwrap().iter().map(pem);
    let leaf = pem(&case["peer_certificate"]).map_err(|error| error.to_string())?;
    let intermediates: Result<Vec<_>, _> = list("untrusted_intermediates").collect();
    let intermediates = intermediates.map_err(|error| error.to_string())?;
    // What verify_svid looks at before it comes here.
    let bytes: usize = intermediates.iter().map(|one| one.len()).sum();
    if intermediates.len() >= MAX_CHAIN_CERTIFICATES || bytes + leaf.len() > MAX_CHAIN_BYTES {
        return Err("too large".to_owned());
    }
    super::CertificateProfile::parse(&leaf).map_err(|error| format!("{error:?}"))?;
    let authorities = list("trusted_certs").map(|der| X509Authority::from_der(der.unwrap()));
    // A bundle with an authority that is refused is not taken.
    let authorities: Result<Vec<_>, _> = authorities.collect();
    let authorities = authorities.map_err(|error| format!("authority: {error:?}"))?;
    let time = case["validation_time"].as_str().map_or(DEFAULT_TIME, seconds);
    let role = match case["validation_kind"].as_str().unwrap() {
        "CLIENT" => Role::Client,
        _ => Role::Server,
    };
    let step = PathStep {
        trust_domain: "limbo.test",
        authorities: &authorities,
        crls: None,
        now: UnixTime::since_unix_epoch(Duration::from_secs(time)),
        role,
        algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms.all,
    };
    step.verify(&leaf, &intermediates).map(drop).map_err(|error| format!("{error:?}"))
}

/// Each case with what is expected of it.
fn read_cases() -> Option<Vec<(Value, String)>> {
    let root = std::env::var_os("MESH_THIRD_PARTY").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/third-party"),
        PathBuf::from,
    );
    let folder = root.join("x509-limbo");
    let Ok(file) = std::fs::File::open(folder.join("limbo.json.gz")) else {
        eprintln!("SKIPPED: x509-limbo is not there; set MESH_THIRD_PARTY to the vectors' folder");
        return None;
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let cases: Value = serde_json::from_str(&text).unwrap();
    let table = std::fs::read_to_string(folder.join("spiffe-applicability.json")).unwrap();
    let table: Value = serde_json::from_str(&table).unwrap();
    let table: BTreeMap<_, _> = table["testcases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["id"].as_str().unwrap(), row["spiffe_chain_step"].as_str().unwrap()))
        .collect();
    let cases = cases["testcases"].as_array().unwrap().iter();
    Some(cases.map(|case| (case.clone(), table[case["id"].as_str().unwrap()].to_owned())).collect())
}

/// `2026-07-01T00:00:00Z` in seconds since 1970.
fn seconds(text: &str) -> u64 {
    let number = |at: std::ops::Range<usize>| text[at].parse::<i64>().unwrap();
    let (year, month, day) = (number(0..4), number(5..7), number(8..10));
    // Days from the civil calendar: years begin in March, eras have 400 years.
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = year * 365 + year / 4 - year / 100 + year / 400 + day_of_year - 719_468;
    let time = number(11..13) * 3600 + number(14..16) * 60 + number(17..19);
    u64::try_from(days * 86_400 + time).unwrap()
}
