//! Wycheproof's signature vectors in the encodings of JWS, against single keys: raw ECDSA halves,
//! Ed25519, RSA PKCS#1 and PSS. Data as in `tests/wycheproof.rs`; without it the test says so.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::key::Answer;
use super::key_set::parse_key;
use super::token::Algorithm;

#[test]
fn sec_jwt_4_wycheproof_raw_signatures() {
    let default =
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/vectors/third-party"));
    let folder = std::env::var_os("MESH_THIRD_PARTY").map_or_else(default, PathBuf::from);
    if !folder.is_dir() {
        // Past the capture of tests that pass.
        let mut stderr = std::io::stderr().lock();
        writeln!(stderr, "SKIPPED: no third-party vectors at {}", folder.display()).unwrap();
        return;
    }
    for (name, algorithm) in [
        ("ecdsa_secp256r1_sha256_p1363", "ES256"),
        ("ecdsa_secp384r1_sha384_p1363", "ES384"),
        #[cfg(feature = "es512")]
        ("ecdsa_secp521r1_sha512_p1363", "ES512"),
        ("ed25519", "EdDSA"),
        ("rsa_signature_2048_sha256", "RS256"),
        ("rsa_signature_2048_sha384", "RS384"),
        ("rsa_signature_2048_sha512", "RS512"),
        ("rsa_pss_2048_sha256_mgf1_32", "PS256"),
        ("rsa_pss_2048_sha384_mgf1_48", "PS384"),
    ] {
        let path = folder.join(format!("wycheproof/{name}_test.json.gz"));
        let mut text = String::new();
        let file = std::fs::File::open(path).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        let file: Value = serde_json::from_str(&text).unwrap();
        let algorithm = Algorithm::parse(algorithm).unwrap();
        let (mut total, mut differ) = (0, Vec::new());
        for group in file["testGroups"].as_array().unwrap() {
            let key = match (group.get("publicKeyJwk"), &group["publicKey"]["modulus"]) {
                (Some(jwk), _) => parse_key(jwk),
                (None, Value::String(_)) => parse_key(&rsa_jwk(&group["publicKey"])),
                // A few ECDSA groups have keys that no JWK can hold.
                (None, _) => continue,
            };
            for test in group["tests"].as_array().unwrap() {
                total += 1;
                let bytes = |name: &str| hex(test[name].as_str().unwrap());
                // A strict reader: good without objections.
                let good = key.as_ref().is_ok_and(|key| {
                    let answer = key.verify(algorithm, &bytes("msg"), &bytes("sig"));
                    matches!(answer, Answer::Good(findings) if findings.is_empty())
                });
                // "acceptable" is legacy that nobody has to take.
                if good != (test["result"] == "valid") && test["result"] != "acceptable" {
                    differ.push(format!("{}: {}", test["tcId"], test["comment"]));
                }
            }
        }
        println!("wycheproof {name}: {total} total, {} differ", differ.len());
        assert!(total > 0 && differ.is_empty(), "{name}: {differ:#?}");
    }
}

/// Some files give RSA keys as two numbers in hex.
fn rsa_jwk(key: &Value) -> Value {
    let number = |name: &str| URL_SAFE_NO_PAD.encode(hex(key[name].as_str().unwrap()));
    json!({"kty": "RSA", "n": number("modulus"), "e": number("publicExponent")})
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}
