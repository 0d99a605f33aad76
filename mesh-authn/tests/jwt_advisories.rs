//! The rows of the regression table that concern tokens and keys (SEM-ADV-60 to 70), one test each,
//! as they are told to the client. What needs a key server, rows 63, 65 and 71, is in
//! mesh-tower/tests/jwks; row 64 is in jwt_properties; row 72, which is about authorizers, in
//! mesh-tower/tests/ext_authz and mesh-authz/tests/semantics.

#![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "a test fails by panicking")]

#[expect(dead_code, reason = "shared with the other tests")]
mod jwt_idp;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{Method, StatusCode};
use jwt_idp::{Idp, NOW, bearer, compile, compile_with, headers, judge_at, verdict, who};
use mesh_authn::request::{
    Authentication, KeySet, KeySets, RequestAuthenticator, RequestView, TokenOptions,
};
use ring::hmac;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

const ISSUER: &str = "https://idp.example";

fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// Refused with this text and status 401, in Istio mode and in strict mode.
fn refused(rules: &[Value], token: &str, text: &str) {
    for options in [TokenOptions::istio(), TokenOptions::strict()] {
        let authenticator = compile_with(rules, options, &KeySets::new());
        assert_eq!(answer(&authenticator, token), (StatusCode::UNAUTHORIZED, text.to_owned()));
    }
}

fn answer(authenticator: &RequestAuthenticator, token: &str) -> (StatusCode, String) {
    let headers = bearer(token);
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: "/",
        headers: &headers,
    };
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    match authenticator.authenticate(&view, now) {
        Authentication::Refused(refusal) => (refusal.status(), refusal.body().to_owned()),
        Authentication::Anonymous(_) | Authentication::Authenticated { .. } => {
            (StatusCode::OK, String::new())
        }
    }
}

#[test]
fn sem_adv_60_a_token_of_an_unknown_issuer_is_refused() {
    let (known, stranger) = (Idp::new(ISSUER, "a"), Idp::new("https://else.example", "a"));
    refused(&[known.rule()], &stranger.token("alice"), "Jwt issuer is not configured");
    // Also when it is signed with the configured key.
    let claims = json!({"iss": "https://else.example", "sub": "alice", "exp": NOW + 60});
    refused(&[known.rule()], &known.sign_claims(&claims), "Jwt issuer is not configured");
}

/// The key of RFC 7515 appendix A.3.
fn ec_rule() -> Value {
    let key = json!({"kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    json!({"issuer": ISSUER, "jwks": json!({"keys": [key]}).to_string()})
}

fn es256(signature: &[u8]) -> String {
    let claims = json!({"iss": ISSUER, "sub": "x", "exp": NOW + 60}).to_string();
    format!("{}.{}.{}", encode(r#"{"alg":"ES256"}"#), encode(claims), encode(signature))
}

#[test]
fn sem_adv_61_malformed_es256_signatures_are_refused_and_crash_nothing() {
    let der = [0x30, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01];
    let lying_der = [0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x02, 0x81];
    let mut signatures = vec![der.to_vec(), lying_der.to_vec(), vec![0xff; 64], vec![0x80; 4000]];
    signatures.extend((1..200).map(|len| vec![0x5a; len]));
    for signature in signatures {
        refused(&[ec_rule()], &es256(&signature), "Jwt verification fails");
    }
}

#[test]
fn sem_adv_62_no_key_is_built_in_for_a_set_that_cannot_be_fetched() {
    let rules = [json!({"issuer": ISSUER, "jwksUri": "https://idp.example/keys"})];
    let authenticator = compile(&rules);
    let anybody = Idp::new(ISSUER, "a");
    let mut tokens = vec![anybody.token("alice"), es256(&[1; 64])];
    for alg in ["RS256", "PS512", "HS256", "ES512"] {
        let header = json!({"alg": alg}).to_string();
        let claims = json!({"iss": ISSUER, "sub": "alice", "exp": NOW + 60}).to_string();
        tokens.push(format!("{}.{}.{}", encode(header), encode(claims), encode([1; 256])));
    }
    for token in tokens {
        let failed = (StatusCode::UNAUTHORIZED, "Jwks remote fetch is failed".to_owned());
        assert_eq!(answer(&authenticator, &token), failed);
    }
    // Requests without a token still pass, as anonymous.
    assert_eq!(verdict(judge_at(&authenticator, &headers(&[]), "/", NOW)), Ok(None));
}

#[test]
fn sem_adv_66_a_payload_nested_ten_thousand_deep_is_refused() {
    let idp = Idp::new(ISSUER, "a");
    let opening = ["[", "{\"a\":"];
    let closing = ["]", "}"];
    for (open, close) in opening.into_iter().zip(closing) {
        let deep = format!("{{\"a\":{}1{}}}", open.repeat(10_000), close.repeat(10_000));
        let token = idp.sign_parts(br#"{"alg":"EdDSA"}"#, deep.as_bytes());
        // The token's own limit does not hide it.
        assert!(token.len() < 1 << 17, "{}", token.len());
        let shallow = TokenOptions::strict();
        if token.len() <= shallow.limits().token {
            refused(&[idp.rule()], &token, "Jwt payload is an invalid JSON");
        }
        let header = idp.sign_parts(deep.as_bytes(), b"{}");
        if header.len() <= shallow.limits().token {
            refused(&[idp.rule()], &header, "Jwt header is an invalid JSON");
        }
    }
}

#[test]
fn sem_adv_67_times_that_are_strings_are_errors_not_absences() {
    let idp = Idp::new(ISSUER, "a");
    for claim in ["exp", "nbf"] {
        for value in [json!("1"), json!("9999999999"), json!(""), json!([1]), Value::Null] {
            let mut claims = json!({"iss": ISSUER, "sub": "x"});
            claims[claim] = value;
            let text = format!("Jwt payload [{claim}] field is not an integer");
            refused(&[idp.rule()], &idp.sign_claims(&claims), &text);
        }
    }
}

/// The modulus of RFC 7515 appendix A.2.
const MODULUS: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJ\
    rcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63\
    kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5\
    IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";

#[test]
fn sem_adv_68_none_and_hmac_with_the_public_key_are_refused() {
    let jwks = json!({"keys": [{"kty": "RSA", "kid": "r", "n": MODULUS, "e": "AQAB"}]}).to_string();
    assert!(KeySet::parse(jwks.as_bytes()).is_ok());
    let rules = [json!({"issuer": ISSUER, "jwks": jwks})];
    let claims = encode(json!({"iss": ISSUER, "sub": "admin", "exp": NOW + 60}).to_string());
    for alg in ["none", "None", "nOnE", "NONE"] {
        let header = encode(json!({"alg": alg, "kid": "r"}).to_string());
        let three_parts =
            "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
        refused(&rules, &format!("{header}.{claims}."), three_parts);
        refused(&rules, &format!("{header}.{claims}.AA"), "Jwt header [alg] is not supported");
    }
    let n = URL_SAFE_NO_PAD.decode(MODULUS).unwrap();
    // SubjectPublicKeyInfo in PEM, as most libraries print a public key.
    let spki = [
        &[0x30, 0x82, 0x01, 0x22, 0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d][..],
        &[0x01, 0x01, 0x01, 0x05, 0x00, 0x03, 0x82, 0x01, 0x0f, 0x00, 0x30, 0x82, 0x01, 0x0a][..],
        &[0x02, 0x82, 0x01, 0x01, 0x00][..],
        &n,
        &[0x02, 0x03, 0x01, 0x00, 0x01],
    ]
    .concat();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(&spki)
    );
    for secret in [n, spki, pem.into_bytes(), MODULUS.as_bytes().to_vec(), jwks.into_bytes()] {
        for (alg, hash) in [
            ("HS256", hmac::HMAC_SHA256),
            ("HS384", hmac::HMAC_SHA384),
            ("HS512", hmac::HMAC_SHA512),
        ] {
            let header = encode(json!({"alg": alg, "kid": "r"}).to_string());
            let signed = format!("{header}.{claims}");
            let tag = hmac::sign(&hmac::Key::new(hash, &secret), signed.as_bytes());
            // The key of the recorded sets says no `alg`: it is tried, and fails (SEM-JWT-72).
            let token = format!("{signed}.{}", encode(tag.as_ref()));
            refused(&rules, &token, "Jwt verification fails");
        }
    }
}

#[test]
fn sem_adv_69_an_ecdsa_signature_of_zeros_is_refused() {
    refused(&[ec_rule()], &es256(&[0; 64]), "Jwt verification fails");
    // One of the two zero, or the order of the group.
    let order: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
        0x25, 0x51,
    ];
    for (r, s) in [([0; 32], [1; 32]), ([1; 32], [0; 32]), (order, order), ([1; 32], order)] {
        refused(&[ec_rule()], &es256(&[r, s].concat()), "Jwt verification fails");
    }
}

#[test]
fn sem_adv_70_a_negative_expiry_does_not_wrap_to_the_far_future() {
    let idp = Idp::new(ISSUER, "a");
    for value in ["-1", "-1.5", "-9223372036854775808", "-1e300", "18446744073709551616"] {
        let claims = format!(r#"{{"iss":"{ISSUER}","sub":"x","exp":{value}}}"#);
        let token = idp.sign_parts(br#"{"alg":"EdDSA","kid":"a"}"#, claims.as_bytes());
        refused(&[idp.rule()], &token, "Jwt payload [exp] field is not a positive 64 bit integer");
    }
    assert_eq!(who(&compile(&[idp.rule()]), &idp.token("x")), Ok(Some(format!("{ISSUER}/x"))));
}
