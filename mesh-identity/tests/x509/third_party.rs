//! The tables of go-spiffe's tests and of the SPIFFE standards. The vectors are not part of the
//! repository; without them the tests say so.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::x509::{Role, verify_svid};
use mesh_identity::{BundleSet, SpiffeId, TrustBundle, TrustDomain, X509Authority, X509Svid};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::mint::{algorithms, at};

/// Where we differ from the tables, and why. A case that behaves as its table says fails the test.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("x509svid_parse", "corrupt private key", KEY),
    ("x509svid_parse", "certificate does not match private key", KEY),
    ("x509_bundle_pem", "empty", "an empty file is more often a mistake than a bundle"),
    ("x509_bundle_pem", "one", RSA_1024),
    ("x509_bundle_pem", "two", RSA_1024),
];

const KEY: &str = "no cryptography here; mesh-authn's sec_id_12 tests refuse it on loading";
const RSA_1024: &str = "its authorities have keys that [SEC-ID-6] refuses";

/// One table, or nothing when the vectors are not there.
fn table(file: &str) -> Option<Value> {
    let root = std::env::var_os("MESH_THIRD_PARTY").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/third-party"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(root.join("spiffe").join(file)) else {
        eprintln!("SKIPPED: {file} is not there; set MESH_THIRD_PARTY to the vectors' folder");
        return None;
    };
    Some(serde_json::from_str(&text).unwrap())
}

/// Compares outcomes with what the table expects, the exceptions turned round.
#[derive(Default)]
struct Report {
    seen: usize,
    wrong: Vec<String>,
}

impl Report {
    fn case<T, E: std::fmt::Debug>(&mut self, table: &str, case: &Value, got: Result<T, E>) {
        self.seen += 1;
        let name = case["name"].as_str().or_else(|| case["input"].as_str()).unwrap();
        let excepted = EXCEPTIONS.iter().any(|row| row.0 == table && row.1 == name);
        let error = got.err();
        if (error.is_none() != (case["valid"] == true)) != excepted {
            self.wrong.push(format!("{table}: {name}: {}, got {error:?}", case["valid"]));
        }
    }

    fn finish(self, at_least: usize) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
        assert!(self.seen >= at_least, "only {} cases", self.seen);
        println!("{} cases", self.seen);
    }
}

fn list<'a>(table: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    table[name].as_array().unwrap().iter()
}

fn text<'a>(case: &'a Value, name: &str) -> &'a str {
    case[name].as_str().unwrap()
}

fn der(value: &Value) -> CertificateDer<'static> {
    CertificateDer::from(STANDARD.decode(value.as_str().unwrap()).unwrap())
}

#[test]
fn sec_id_1_table_of_spiffe_ids() {
    let Some(table) = table("spiffe_ids.json") else { return };
    let mut report = Report::default();
    for case in list(&table, "spiffe_id") {
        let got = text(case, "input").parse::<SpiffeId>();
        if let Ok(id) = &got {
            assert_eq!(id.as_str(), text(case, "input"));
            assert_eq!(id.trust_domain(), text(case, "trust_domain"));
            assert_eq!(id.path(), text(case, "path"));
        }
        report.case("spiffe_id", case, got);
    }
    for case in list(&table, "trust_domain") {
        let got = text(case, "input").parse::<TrustDomain>();
        if let Ok(name) = &got {
            assert_eq!(name.as_str(), text(case, "trust_domain"));
        }
        report.case("trust_domain", case, got);
    }
    report.finish(800);
}

#[test]
fn sec_id_12_table_of_svids_to_load() {
    let Some(table) = table("x509svid_parse.json") else { return };
    let mut report = Report::default();
    for case in list(&table, "cases") {
        let (chain, key) = (text(case, "certs_pem"), text(case, "key_pem"));
        let got = X509Svid::from_pem(chain.as_bytes(), key.as_bytes());
        if let Ok(svid) = &got
            && case["valid"] == true
        {
            assert_eq!(svid.id().as_str(), text(case, "id"));
            assert_eq!(u64::try_from(svid.chain().len()).ok(), case["certificates"].as_u64());
        }
        report.case("x509svid_parse", case, got);
    }
    report.finish(18);
}

#[test]
fn sec_id_2_to_8_table_of_chains() {
    let Some(table) = table("x509svid_verify.json") else { return };
    let mut report = Report::default();
    for case in list(&table, "cases") {
        let chain: Vec<_> = list(case, "chain_der_b64").map(der).collect();
        let bundles = case["bundles_der_b64"].as_object().unwrap().iter();
        let bundles = bundles.map(|(name, authorities)| {
            let empty = TrustBundle::new(name.parse().unwrap());
            authorities.as_array().unwrap().iter().fold(empty, |bundle, authority| {
                bundle.with_authority(X509Authority::from_der(der(authority)).unwrap())
            })
        });
        let bundles = BundleSet::from_bundles(bundles).unwrap();
        let now = at(case["now"].as_u64().unwrap());
        for role in [Role::Client, Role::Server] {
            let got = verify_svid(&chain, &bundles, now, role, algorithms());
            if let Ok(svid) = &got {
                assert_eq!(svid.id().as_str(), text(case, "id"));
            }
            report.case("x509svid_verify", case, got);
        }
    }
    report.finish(2 * 39);
}

#[test]
fn sec_id_9_table_of_bundles() {
    let Some(table) = table("bundles.json") else { return };
    let mut report = Report::default();
    let domain = || "domain.test".parse::<TrustDomain>().unwrap();
    for case in list(&table, "spiffe_bundle") {
        let got = TrustBundle::from_json(domain(), text(case, "text"));
        if let Ok(bundle) = &got {
            let count = u64::try_from(bundle.jwt_authorities().len()).ok();
            assert_eq!(count, case["jwt_authorities"].as_u64());
            assert_eq!(bundle.sequence(), case["sequence"].as_u64());
            if let Some(hint) = case["refresh_hint_s"].as_u64() {
                assert_eq!(bundle.refresh_hint().as_secs(), hint);
            }
        }
        report.case("spiffe_bundle", case, got);
    }
    for case in list(&table, "x509_bundle_pem") {
        let got = TrustBundle::from_pem(domain(), text(case, "text").as_bytes());
        if let Ok(bundle) = &got {
            let count = u64::try_from(bundle.x509_authorities().len()).ok();
            assert_eq!(count, case["x509_authorities"].as_u64());
        }
        report.case("x509_bundle_pem", case, got);
    }
    report.finish(12);
}
