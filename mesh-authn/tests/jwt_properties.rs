//! What must hold of tokens and key sets, by the ids of the threat model and of the regression
//! table (advisories 60 to 72, where pure code is concerned).

#![expect(
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod jwt_idp;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderValue;
use jwt_idp::{Idp, NOW, bearer, compile, compile_with, headers, judge_at, resource, verdict, who};
use mesh_authn::request::{
    Authentication, KeySet, KeySetError, KeySets, KeySource, MAX_KEYS, Reason,
    RequestAuthenticator, StringClaim, TimeClaim, TokenLimits, TokenOptions, Tolerance,
};
use mesh_identity::{MeshSettings, Workload};
use ring::hmac;
use serde_json::{Value, json};

const ISSUER: &str = "https://idp.example";

fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}

/// Both modes must refuse for this reason.
fn refused(rules: &[Value], token: &str, reason: Reason) {
    for options in [TokenOptions::strict(), TokenOptions::istio()] {
        let authenticator = compile_with(rules, options, &KeySets::new());
        assert_eq!(who(&authenticator, token), Err(reason), "{token:.120}");
    }
}

#[test]
fn a_good_token_names_its_user() {
    let idp = Idp::new(ISSUER, "a");
    let name = who(&compile(&[idp.rule()]), &idp.token("alice")).unwrap();
    assert_eq!(name.as_deref(), Some("https://idp.example/alice"));
}

#[test]
fn sec_jwt_1_the_key_chooses_the_algorithm() {
    // [SEM-ADV-68]
    let idp = Idp::new(ISSUER, "a");
    let rules = [idp.rule()];
    let claims = json!({"iss": ISSUER, "sub": "x"}).to_string();
    for name in ["none", "None", "NONE", "nOnE", "", "HS1", "RS256 ", "ES256K", "eddsa"] {
        let header = json!({"alg": name}).to_string();
        let unsigned = format!("{}.{}.AA", encode(&header), encode(&claims));
        refused(&rules, &unsigned, Reason::AlgorithmUnknown);
        refused(&rules, &unsigned[..unsigned.len() - 2], Reason::Parts);
    }
    // HMAC with every spelling of the public key as the secret.
    let x = idp.jwk()["x"].as_str().unwrap().to_owned();
    let raw = URL_SAFE_NO_PAD.decode(&x).unwrap();
    for secret in [raw, x.into_bytes(), idp.jwk().to_string().into(), idp.jwks().into()] {
        for (name, hash) in [("HS256", hmac::HMAC_SHA256), ("HS512", hmac::HMAC_SHA512)] {
            let header = json!({"alg": name, "kid": "a"}).to_string();
            let signed = format!("{}.{}", encode(&header), encode(&claims));
            let tag = hmac::sign(&hmac::Key::new(hash, &secret), signed.as_bytes());
            let token = format!("{signed}.{}", encode(tag.as_ref()));
            let strict = who(&compile(&rules), &token);
            assert!(matches!(strict, Err(Reason::SignatureLength | Reason::Signature)));
        }
    }
    // A good signature under a header that says something else.
    let lying = idp.sign_parts(br#"{"alg":"RS256","kid":"a"}"#, claims.as_bytes());
    let strict = who(&compile(&rules), &lying);
    assert_eq!(strict, Err(Reason::NotTolerated(Tolerance::AlgorithmMismatch)));
}

#[test]
fn sec_jwt_1_symmetric_keys_of_fetched_sets_are_not_believed() {
    let secret = [7; 32];
    let jwks = json!({"keys": [{"kty": "oct", "k": encode(secret)}]}).to_string();
    let rules = [json!({"issuer": ISSUER, "jwksUri": "https://idp.example/keys"})];
    let mut sets = KeySets::new();
    let source = KeySource::Url("https://idp.example/keys".to_owned());
    sets.insert(source, Arc::new(KeySet::parse(jwks.as_bytes()).unwrap()));
    let claims = json!({"iss": ISSUER, "sub": "x"}).to_string();
    let signed = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(claims));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &secret), signed.as_bytes());
    let token = format!("{signed}.{}", encode(tag.as_ref()));
    let strict = compile_with(&rules, TokenOptions::strict(), &sets);
    let objection = Reason::NotTolerated(Tolerance::SharedSecret);
    assert_eq!(who(&strict, &token), Err(objection));
    let istio = compile_with(&rules, TokenOptions::istio(), &sets);
    assert!(who(&istio, &token).is_ok());
}

#[test]
fn sec_jwt_2_keys_come_from_the_issuers_own_set() {
    let (a, b) = (Idp::new("https://a.example", "k"), Idp::new("https://b.example", "k"));
    let rules = [a.rule(), b.rule()];
    let authenticator = compile(&rules);
    assert!(who(&authenticator, &a.token("x")).is_ok());
    // B's key under the same kid, with A's name.
    let forged = b.sign_claims(&json!({"iss": "https://a.example", "sub": "admin"}));
    refused(&rules, &forged, Reason::Signature);
    // A key brought along, or pointed at.
    for member in [
        json!({"jwk": b.jwk()}),
        json!({"jku": "https://evil.example/keys"}),
        json!({"x5u": "https://evil.example/cert.pem"}),
        json!({"x5c": ["AAAA"]}),
        json!({"kid": "../../keys"}),
        json!({"kid": "https://evil.example/keys"}),
    ] {
        let mut header = json!({"alg": "EdDSA", "kid": "k"});
        for (name, value) in member.as_object().unwrap() {
            header[name] = value.clone();
        }
        let claims = json!({"iss": "https://a.example", "sub": "admin"}).to_string();
        let token = b.sign_parts(header.to_string().as_bytes(), claims.as_bytes());
        let refusal = who(&authenticator, &token).unwrap_err();
        assert!(matches!(refusal, Reason::Signature | Reason::NoMatchingKey), "{refusal:?}");
    }
}

#[test]
fn sec_jwt_3_one_strict_parse() {
    let idp = Idp::new(ISSUER, "a");
    let rules = [idp.rule()];
    let header = br#"{"alg":"EdDSA"}"#;
    let payload = |text: &str| idp.sign_parts(header, text.as_bytes());
    let iss = r#""iss":"https://idp.example","sub":"x""#;
    for text in [
        format!(r#"{{{iss},"sub":"y"}}"#),
        format!(r#"{{{iss},"a":{{"b":1,"b":2}}}}"#),
        format!("{{{iss}}} {{}}"),
        format!("[{{{iss}}}]"),
        format!("{{{iss},}}"),
        format!("{{{iss},\"n\":1e999}}"),
        format!("{{{iss},\"s\":\"\\ud800\"}}"),
        format!("\u{feff}{{{iss}}}"),
    ] {
        refused(&rules, &payload(&text), Reason::PayloadJson);
    }
    let invalid_utf8 = [b"{\"sub\":\"\xff\",", iss.as_bytes(), b"}"].concat();
    refused(&rules, &idp.sign_parts(header, &invalid_utf8), Reason::PayloadJson);
    let twice = idp.sign_parts(br#"{"alg":"EdDSA","alg":"EdDSA"}"#, b"{}");
    refused(&rules, &twice, Reason::HeaderJson);

    // What Envoy tolerates is refused by default, switch by switch.
    let good = idp.token("x");
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let crit = idp.sign_parts(br#"{"alg":"EdDSA","crit":["x"],"x":1}"#, good_claims().as_bytes());
    let loose_end = format!("{}{}", &good[..good.len() - 1], next_char(&good));
    for (token, tolerance) in [
        (format!("{good}=="), Tolerance::Base64Padding),
        (format!("{signed}.{} {}", &signature[..8], &signature[8..]), Tolerance::LooseBase64),
        (loose_end, Tolerance::LooseBase64),
        (format!("{good}."), Tolerance::EmptySegments),
        (good.replacen('.', "..", 1), Tolerance::EmptySegments),
        (crit, Tolerance::CriticalHeader),
    ] {
        let strict = who(&compile(&rules), &token);
        assert_eq!(strict, Err(Reason::NotTolerated(tolerance)), "{token}");
        let options = TokenOptions::strict().tolerate(tolerance);
        let tolerant = compile_with(&rules, options, &KeySets::new());
        assert!(who(&tolerant, &token).is_ok(), "{tolerance:?}");
    }
}

fn good_claims() -> String {
    json!({"iss": ISSUER, "sub": "x", "exp": NOW + 60}).to_string()
}

/// The last character of a token with other unused bits.
fn next_char(token: &str) -> char {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let last = token.bytes().last().unwrap();
    let at = ALPHABET.iter().position(|byte| *byte == last).unwrap();
    char::from(ALPHABET[at ^ 1])
}

#[test]
fn sec_jwt_4_ecdsa_signatures_have_one_form() {
    // [SEM-ADV-61], [SEM-ADV-69]: zero, too large, DER, and every length are refused, none panics.
    let key = json!({"kty": "EC", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
    let jwks = json!({"keys": [key]}).to_string();
    let rules = [json!({"issuer": ISSUER, "jwks": jwks})];
    let signed = format!("{}.{}", encode(r#"{"alg":"ES256"}"#), encode(good_claims()));
    let der = [0x30, 6, 2, 1, 1, 2, 1, 1];
    let mut signatures = vec![vec![0; 64], vec![0xff; 64], der.to_vec(), vec![1; 64]];
    signatures.extend((1..140).map(|len| vec![0; len]));
    for signature in signatures {
        refused(&rules, &format!("{signed}.{}", encode(signature)), Reason::Signature);
    }
}

#[test]
fn sec_jwt_5_times_are_numbers_and_are_checked() {
    // [SEM-ADV-67], [SEM-ADV-70]
    let idp = Idp::new(ISSUER, "a");
    let rules = [idp.rule()];
    let with = |name: &str, value: &str| {
        let text = format!(r#"{{"iss":"{ISSUER}","sub":"x","{name}":{value}}}"#);
        idp.sign_parts(br#"{"alg":"EdDSA"}"#, text.as_bytes())
    };
    for (name, claim) in
        [("exp", TimeClaim::Expires), ("nbf", TimeClaim::NotBefore), ("iat", TimeClaim::IssuedAt)]
    {
        for value in ["\"1900000000\"", "true", "null", "[1900000000]", "{}"] {
            refused(&rules, &with(name, value), Reason::ClaimNotNumber(claim));
        }
        for value in ["-1", "-0.5", "18446744073709551616", "18446744073709551617", "1e300"] {
            refused(&rules, &with(name, value), Reason::ClaimOutOfRange(claim));
        }
        refused(&rules, &with(name, "1e999"), Reason::PayloadJson);
    }
    let authenticator = compile(&rules);
    for (name, value, verdict) in [
        ("exp", NOW - 60, Ok(())),
        ("exp", NOW - 61, Err(Reason::Expired)),
        ("nbf", NOW + 60, Ok(())),
        ("nbf", NOW + 61, Err(Reason::NotYetValid)),
        ("exp", u64::MAX / 2, Ok(())),
        ("nbf", u64::MAX / 2, Err(Reason::NotYetValid)),
        // As a double it is 2^64.
        ("exp", u64::MAX, Err(Reason::ClaimOutOfRange(TimeClaim::Expires))),
        ("iat", NOW + 10_000, Ok(())),
    ] {
        let token = with(name, &value.to_string());
        assert_eq!(who(&authenticator, &token).map(drop), verdict, "{name} {value}");
    }
    let requires =
        compile_with(&rules, TokenOptions::strict().refuse(Tolerance::NoExpiry), &KeySets::new());
    for token in [with("jti", "\"1\""), with("exp", "0"), with("exp", "0.9")] {
        assert!(who(&authenticator, &token).is_ok());
        let no_expiry = Reason::NotTolerated(Tolerance::NoExpiry);
        assert_eq!(who(&requires, &token), Err(no_expiry));
    }
}

#[test]
fn sec_ops_5_no_clock_panics() {
    let idp = Idp::new(ISSUER, "a");
    let authenticator = compile(&[idp.rule()]);
    let token = bearer(&idp.token("x"));
    for now in [0, 1, NOW - 3600, NOW, NOW + 315_360_000, u64::MAX / 2, u64::MAX] {
        let verdict = verdict(judge_at(&authenticator, &token, "/", now));
        assert_eq!(verdict.is_ok(), now <= NOW + 3600 + 60, "{now}");
    }
    // Back again: what expired meanwhile is judged anew, not remembered.
    assert!(verdict(judge_at(&authenticator, &token, "/", NOW)).is_ok());
}

#[test]
fn sec_jwt_6_issuer_and_audience_are_compared_whole() {
    // [SEM-ADV-60]
    let idp = Idp::new(ISSUER, "a");
    let mut rule = idp.rule();
    rule["audiences"] = json!(["https://svc.example/"]);
    let rules = [rule];
    let with = |claims: Value| idp.sign_claims(&claims);
    for issuer in ["https://idp.example/", "HTTPS://IDP.EXAMPLE", "https://idp", ""] {
        let token = with(json!({"iss": issuer, "sub": "x", "aud": "svc.example"}));
        refused(&rules, &token, Reason::UnknownIssuer);
    }
    refused(&rules, &with(json!({"sub": "x", "aud": "svc.example"})), Reason::UnknownIssuer);
    let issuer_type = Reason::ClaimNotString(StringClaim::Issuer);
    for issuer in [json!([ISSUER]), json!({}), json!(7), Value::Null] {
        refused(&rules, &with(json!({"iss": issuer, "aud": "svc.example"})), issuer_type);
    }
    for audience in [json!("svc"), json!(""), json!([]), json!(["a", "svc.example/x"])] {
        let claims = json!({"iss": ISSUER, "sub": "x", "aud": audience});
        refused(&rules, &with(claims), Reason::Audience);
    }
    refused(&rules, &with(json!({"iss": ISSUER, "sub": "x"})), Reason::Audience);
    for audience in [json!(5), json!({}), json!(["svc.example", 5]), Value::Null] {
        let claims = json!({"iss": ISSUER, "sub": "x", "aud": audience});
        refused(&rules, &with(claims), Reason::AudienceType);
    }
    for audience in [json!("svc.example"), json!(["a", "http://svc.example"])] {
        let claims = json!({"iss": ISSUER, "sub": "x", "aud": audience});
        assert!(who(&compile(&rules), &with(claims)).is_ok());
    }
}

#[test]
fn sec_jwt_7_only_absence_is_no_token() {
    let idp = Idp::new(ISSUER, "a");
    let authenticator = compile(&[idp.rule()]);
    for pairs in [&[][..], &[("authorization", "Basic abc")], &[("x-token", "abc")]] {
        let judged = judge_at(&authenticator, &headers(pairs), "/", NOW);
        assert_eq!(verdict(judged), Ok(None));
    }
    let good = idp.token("x");
    for value in ["Bearer abc", "Bearer a.b.c", "Bearer !!!", "Bearer ."] {
        let judged = judge_at(&authenticator, &headers(&[("authorization", value)]), "/", NOW);
        assert!(verdict(judged).is_err(), "{value}");
    }
    // Another spelling of the scheme is neither a token nor an absence [SEM-STRICT-02].
    for scheme in ["bearer ", "BEARER ", "Bearer\t", "Bearer", "bEaReR"] {
        let value = headers(&[("authorization", &format!("{scheme} {good}"))]);
        let value = if scheme == "Bearer" { headers(&[("authorization", scheme)]) } else { value };
        let judged = judge_at(&authenticator, &value, "/", NOW);
        let spelling = Reason::NotTolerated(Tolerance::BearerSpelling);
        assert_eq!(verdict(judged), Err(spelling), "{scheme:?}");
    }
    let other = Idp::new("https://other.example", "a");
    assert_eq!(who(&authenticator, &other.token("x")), Err(Reason::UnknownIssuer));
}

#[test]
fn sec_jwt_8_several_tokens_never_mix() {
    let idp = Idp::new(ISSUER, "a");
    let (good, forged) = (idp.token("alice"), Idp::new(ISSUER, "a").token("admin"));
    for options in [TokenOptions::strict(), TokenOptions::istio()] {
        let authenticator = compile_with(&[idp.rule()], options, &KeySets::new());
        let judge = |first: &str, second: &str| {
            let mut both = bearer(first);
            let second = HeaderValue::from_str(&format!("Bearer {second}")).unwrap();
            both.append("authorization", second);
            verdict(judge_at(&authenticator, &both, "/", NOW))
        };
        for (first, second) in [(&good, &forged), (&forged, &good), (&good, &good)] {
            assert_eq!(judge(first, second), Err(Reason::Parts));
        }
        let judged =
            judge_at(&authenticator, &bearer(&good), &format!("/?access_token={forged}"), NOW);
        assert_eq!(verdict(judged), Err(Reason::Signature));
        let path = format!("/?access_token={forged}&access_token={good}");
        let judged = judge_at(&authenticator, &headers(&[]), &path, NOW);
        assert_eq!(verdict(judged), Err(Reason::Signature));
    }
    // A repeated parameter, of which Envoy checks the first only.
    let path = format!("/?access_token={good}&access_token={forged}");
    let judged = judge_at(&compile(&[idp.rule()]), &headers(&[]), &path, NOW);
    assert_eq!(verdict(judged), Err(Reason::NotTolerated(Tolerance::RepeatedParameter)));
}

#[test]
fn sem_strict_01_every_token_must_be_good_for_some_rule() {
    let (a, b) = (Idp::new("https://a.example", "k"), Idp::new("https://b.example", "k"));
    let at = |idp: &Idp, header: &str| {
        let mut rule = idp.rule();
        rule["fromHeaders"] = json!([{"name": header}]);
        rule
    };
    let rules = [at(&a, "x-ta"), at(&b, "x-tb")];
    let forged = Idp::new("https://b.example", "k").token("admin");
    let (of_a, of_b) = (a.token("x"), b.token("x"));
    let judge = |options: TokenOptions, second: &str| {
        let authenticator = compile_with(&rules, options, &KeySets::new());
        let both = headers(&[("x-ta", &of_a), ("x-tb", second)]);
        verdict(judge_at(&authenticator, &both, "/", NOW))
    };
    let of_a_user = Ok(Some("https://a.example/x".to_owned()));
    assert_eq!(judge(TokenOptions::strict(), &of_b), of_a_user);
    assert_eq!(judge(TokenOptions::istio(), &forged), of_a_user);
    let unaccepted = Reason::NotTolerated(Tolerance::UnacceptedToken);
    assert_eq!(judge(TokenOptions::strict(), &forged), Err(unaccepted));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test that measures")]
fn sem_strict_01_many_tokens_and_rules_are_judged_in_bounded_time() {
    let (first, last) = (Idp::new("https://a.example", "k"), Idp::new("https://z.example", "k"));
    let strangers = (0..98).map(|at| Idp::new(&format!("https://b{at}.example"), "k").rule());
    let mut rules = vec![first.rule()];
    rules.extend(strangers.chain([last.rule()]).map(|mut rule| {
        rule["fromHeaders"] = json!([{"name": "x-token"}]);
        rule
    }));
    let authenticator = compile(&rules);
    let copies = vec![last.token("x"); 400];
    let distinct: Vec<String> = (0..1500).map(|token| token.to_string()).collect();
    let unaccepted = Reason::NotTolerated(Tolerance::UnacceptedToken);
    let user = Ok(Some("https://a.example/x".to_owned()));
    for (tokens, want) in [(copies, user), (distinct, Err(unaccepted))] {
        let mut headers = bearer(&first.token("x"));
        for token in tokens {
            headers.append("x-token", HeaderValue::from_str(&token).unwrap());
        }
        let start = Instant::now();
        assert_eq!(verdict(judge_at(&authenticator, &headers, "/", NOW)), want);
        // Comparing each with each takes many times as long.
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    }
}

#[test]
fn sem_strict_02_a_rule_without_issuer_speaks_for_nobody_else() {
    let (owner, free) = (Idp::new("https://a.example", "a"), Idp::new("", "f"));
    let url = "https://any.example/keys";
    let mut sets = KeySets::new();
    sets.insert(KeySource::Url(url.to_owned()), Arc::new(free.keys()));
    let rules = [json!({"jwksUri": url}), owner.rule()];
    let claims = |issuer: &str| json!({"iss": issuer, "sub": "admin"});
    let strict = compile_with(&rules, TokenOptions::strict(), &sets);
    assert!(who(&strict, &free.sign_claims(&claims("https://else.example"))).is_ok());
    let borrowed = free.sign_claims(&claims("https://a.example"));
    let objection = Reason::NotTolerated(Tolerance::BorrowedIssuer);
    assert_eq!(who(&strict, &borrowed), Err(objection));
    assert!(who(&strict, &owner.token("x")).is_ok());
    let istio = compile_with(&rules, TokenOptions::istio(), &sets);
    assert!(who(&istio, &borrowed).is_ok());
}

#[test]
fn sec_jwt_9_only_configured_places_are_looked_at() {
    let idp = Idp::new(ISSUER, "a");
    let mut rule = idp.rule();
    rule["fromHeaders"] = json!([{"name": "x-jwt", "prefix": "jwt="}]);
    let authenticator = compile(&[rule]);
    let token = idp.token("x");
    for (headers, path) in [
        (bearer(&token), "/".to_owned()),
        (headers(&[("x-jwt", &token)]), "/".to_owned()),
        (headers(&[("cookie", &format!("x-jwt={token}"))]), "/".to_owned()),
        (headers(&[]), format!("/?access_token={token}")),
    ] {
        assert_eq!(verdict(judge_at(&authenticator, &headers, &path, NOW)), Ok(None));
    }
    let right = headers(&[("x-jwt", &format!("jwt={token}"))]);
    assert!(verdict(judge_at(&authenticator, &right, "/", NOW)).unwrap().is_some());
}

#[test]
fn sec_jwt_10_nothing_we_write_holds_the_token() {
    let idp = Idp::new(ISSUER, "a");
    let mut rule = idp.rule();
    rule["outputPayloadToHeader"] = json!("x-payload");
    let authenticator = compile(&[rule]);
    let good = idp.token("secret-subject-of-a-person");
    let forged = format!("{}AAAA", &good[..good.len() - 4]);
    for token in [&good, &forged] {
        let path = format!("/?access_token={token}");
        let judged = judge_at(&authenticator, &headers(&[]), &path, NOW);
        let mut written = format!("{judged:?} {authenticator:?}");
        if let Authentication::Refused(refusal) = judged {
            let request = headers(&[]);
            let view = mesh_authn::request::RequestView {
                method: &http::Method::GET,
                scheme: "https",
                host: "shop.example",
                path_and_query: &path,
                headers: &request,
            };
            written = format!("{written} {view:?} {:?}", refusal.www_authenticate(&view));
            written.push_str(refusal.body());
        }
        for part in token.split('.') {
            assert!(!written.contains(&part[part.len() / 2..]), "{written}");
        }
    }
    let secret = encode([42; 32]);
    let jwks = json!({"keys": [{"kty": "oct", "k": secret}]}).to_string();
    let set = KeySet::parse(jwks.as_bytes()).unwrap();
    assert!(!format!("{set:?}").contains("42") && !format!("{set:?}").contains(&secret));
    let bad = json!({"keys": [{"kty": "oct", "alg": "ES256", "k": secret}]}).to_string();
    let error = KeySet::parse(bad.as_bytes()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(&secret));
}

#[test]
fn sec_jwt_11_the_cache_answers_for_exactly_one_token_and_rule_set() {
    let idp = Idp::new(ISSUER, "a");
    let authenticator = compile(&[idp.rule()]);
    let good = idp.token("alice");
    assert!(who(&authenticator, &good).is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    let admin = encode(json!({"iss": ISSUER, "sub": "admin", "exp": NOW + 3600}).to_string());
    // The same signature with another payload; no signature; another last four characters.
    let swapped = format!("{}.{admin}.{}", parts[0], parts[2]);
    assert_eq!(who(&authenticator, &swapped), Err(Reason::Signature));
    let bare = format!("{}.{}.", parts[0], parts[1]);
    assert_eq!(who(&authenticator, &bare), Err(Reason::Parts));
    let ending = format!("{}AAAA", &good[..good.len() - 4]);
    assert_eq!(who(&authenticator, &ending), Err(Reason::Signature));
    // Another header in front of the same tail.
    let header = encode(r#"{"alg":"EdDSA","kid":"a","x":1}"#);
    let fronted = format!("{header}.{}.{}", parts[1], parts[2]);
    assert_eq!(who(&authenticator, &fronted), Err(Reason::Signature));
    // Expiry while cached.
    let later = judge_at(&authenticator, &bearer(&good), "/", NOW + 3600 + 61);
    assert_eq!(verdict(later), Err(Reason::Expired));

    // A key that left the set, another audience, another issuer: each is a new authenticator.
    let successor = Idp::new(ISSUER, "a");
    assert_eq!(who(&compile(&[successor.rule()]), &good), Err(Reason::Signature));
    let mut narrowed = idp.rule();
    narrowed["audiences"] = json!(["svc"]);
    assert_eq!(who(&compile(&[narrowed]), &good), Err(Reason::Audience));
    assert!(who(&authenticator, &good).is_ok());

    // Two rules with one key set do not share an entry.
    let mut other = idp.rule();
    other["issuer"] = json!("https://zzz.example");
    let both = compile(&[other, idp.rule()]);
    for _ in 0..3 {
        assert_eq!(who(&both, &good), Ok(Some(format!("{ISSUER}/alice"))));
    }
}

#[test]
fn sec_jwt_12_limits_come_before_work() {
    let idp = Idp::new(ISSUER, "a");
    let with = |change: fn(&mut TokenLimits)| {
        let mut limits = TokenLimits::default();
        change(&mut limits);
        let options = TokenOptions::strict().with_limits(limits);
        compile_with(&[idp.rule()], options, &KeySets::new())
    };
    let authenticator = with(|limits| limits.token = 400);
    assert!(who(&authenticator, &idp.token("x")).is_ok());
    assert_eq!(who(&authenticator, &idp.token(&"x".repeat(400))), Err(Reason::TooLong));
    // Not even a good token beside it helps.
    let path = format!("/?access_token={}", idp.token("x"));
    let long = bearer(&"a".repeat(401));
    assert!(verdict(judge_at(&authenticator, &long, &path, NOW)).is_err());
    // A header and a key id of just the size, and one byte more; one level more than 64.
    let headed = |kid: usize, more: usize| {
        let kid = "k".repeat(kid);
        let header = json!({"alg": "EdDSA", "kid": kid, "x": "x".repeat(more)}).to_string();
        let claims = json!({"iss": ISSUER, "sub": "alice", "exp": NOW + 60}).to_string();
        idp.sign_parts(header.as_bytes(), claims.as_bytes())
    };
    let nested = |levels: usize| {
        let list = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        let claims = format!(r#"{{"iss":"{ISSUER}","sub":"alice","exp":{},"a":{list}}}"#, NOW + 60);
        idp.sign_parts(br#"{"alg":"EdDSA"}"#, claims.as_bytes())
    };
    let header_len = |token: &str| token.find('.').unwrap();
    let by_default = with(|_| {});
    let unlimited = compile_with(&[idp.rule()], TokenOptions::strict(), &KeySets::new());
    let pair = [headed(0, 1505), headed(0, 1506)];
    assert_eq!(pair.each_ref().map(|token| header_len(token)), [2048, 2050]);
    let [fitting, long] = pair;
    let fits = [headed(256, 0), fitting, nested(63)];
    let beyond =
        [(headed(257, 0), Reason::TooLong), (long, Reason::TooLong), (nested(64), Reason::TooDeep)];
    for token in &fits {
        let found = who(&by_default, token);
        assert!(!matches!(found, Err(Reason::TooLong | Reason::TooDeep)), "{found:?}");
        assert_eq!(found, who(&unlimited, token));
    }
    for (token, reason) in &beyond {
        assert_eq!(who(&by_default, token), Err(*reason));
        assert_ne!(who(&unlimited, token), Err(*reason));
        // Not even a good token beside it helps.
        let path = format!("/?access_token={}", idp.token("x"));
        assert!(verdict(judge_at(&by_default, &bearer(token), &path, NOW)).is_err());
    }
    // [SEM-ADV-66]
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let token = idp.sign_parts(br#"{"alg":"EdDSA"}"#, deep.as_bytes());
    refused(&[idp.rule()], &token, Reason::PayloadJson);
    // A set of more keys than anybody needs, and one that is too long.
    let many: Vec<Value> = (0..=MAX_KEYS).map(|_| idp.jwk()).collect();
    assert!(KeySet::parse(json!({"keys": many}).to_string().as_bytes()).is_err());
    let padded = format!("{}{}", idp.jwks(), " ".repeat(2 << 20));
    assert!(KeySet::parse(padded.as_bytes()).is_err());
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a test that measures")]
fn sec_jwt_13_keys_are_counted_before_any_is_read() {
    let point = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU";
    let key = json!({"kty": "EC", "crv": "P-256", "x": point, "y": point});
    let keys = vec![key; 6000];
    let parse = |name: &str| {
        let text = json!({name: keys}).to_string();
        let start = Instant::now();
        (KeySet::parse(text.as_bytes()).err(), start.elapsed())
    };
    let (error, only_read) = parse("other");
    assert_eq!(error, Some(KeySetError::NoKeys));
    let (error, counted) = parse("keys");
    assert_eq!(error, Some(KeySetError::TooManyKeys));
    assert!(counted < only_read * 30, "{counted:?} and {only_read:?}");
    // The older form: `{"kid": "PEM certificate"}`.
    let certificates: BTreeMap<String, &str> =
        (0..=MAX_KEYS).map(|kid| (kid.to_string(), "no certificate")).collect();
    let text = json!(certificates).to_string();
    assert_eq!(KeySet::parse(text.as_bytes()).err(), Some(KeySetError::TooManyKeys));
}

#[test]
fn sec_jwt_14_there_is_never_a_default_key() {
    // [SEM-ADV-62]
    let idp = Idp::new(ISSUER, "a");
    let url = "https://idp.example/keys";
    let rules = [json!({"issuer": ISSUER, "jwksUri": url}), json!({"issuer": "https://d.example"})];
    let authenticator = compile_with(&rules, TokenOptions::strict(), &KeySets::new());
    let wanted: Vec<&KeySource> = authenticator.wanted().iter().map(|w| &w.source).collect();
    let discovery = KeySource::Discovery("https://d.example".to_owned());
    assert_eq!(wanted, [&discovery, &KeySource::Url(url.to_owned())]);
    assert_eq!(who(&authenticator, &idp.token("x")), Err(Reason::KeysUnavailable));
    let nobody = judge_at(&authenticator, &headers(&[]), "/", NOW);
    assert_eq!(verdict(nobody), Ok(None));
    // Keys of another source do not help; its own do; when they are gone it closes again.
    let mut sets = KeySets::new();
    sets.insert(discovery, Arc::new(idp.keys()));
    let others = compile_with(&rules, TokenOptions::strict(), &sets);
    assert_eq!(who(&others, &idp.token("x")), Err(Reason::KeysUnavailable));
    let source = KeySource::Url(url.to_owned());
    sets.insert(source.clone(), Arc::new(idp.keys()));
    assert!(who(&compile_with(&rules, TokenOptions::strict(), &sets), &idp.token("x")).is_ok());
    sets.remove(&source);
    let gone = compile_with(&rules, TokenOptions::strict(), &sets);
    assert_eq!(who(&gone, &idp.token("x")), Err(Reason::KeysUnavailable));
}

#[test]
fn sec_jwt_15_a_token_that_names_a_missing_key_says_whose() {
    let idp = Idp::new(ISSUER, "old");
    let url = "https://idp.example/keys";
    let source = KeySource::Url(url.to_owned());
    let mut sets = KeySets::new();
    sets.insert(source.clone(), Arc::new(idp.keys()));
    let rules =
        [Idp::new("https://a.example", "k").rule(), json!({"issuer": ISSUER, "jwksUri": url})];
    let authenticator = compile_with(&rules, TokenOptions::strict(), &sets);
    let lacking = |token: &str| match judge_at(&authenticator, &bearer(token), "/", NOW) {
        Authentication::Refused(refusal) => authenticator.lacking(&refusal),
        Authentication::Anonymous(_) | Authentication::Authenticated { .. } => None,
    };
    assert_eq!(lacking(&Idp::new(ISSUER, "new").token("x")), Some(source));
    // A known key, a foreign issuer, an inline set, an expired token: no reason to fetch.
    assert_eq!(lacking(&Idp::new(ISSUER, "old").token("x")), None);
    assert_eq!(lacking(&Idp::new("https://b.example", "new").token("x")), None);
    assert_eq!(lacking(&Idp::new("https://a.example", "new").token("x")), None);
    let expired = json!({"iss": ISSUER, "exp": NOW - 100});
    assert_eq!(lacking(&Idp::new(ISSUER, "new").sign_claims(&expired)), None);
}

#[test]
fn sec_jwt_17_a_client_cannot_write_output_headers() {
    let idp = Idp::new(ISSUER, "a");
    let mut rule = idp.rule();
    rule["outputPayloadToHeader"] = json!("x-payload");
    rule["outputClaimToHeaders"] = json!([{"header": "X-User", "claim": "sub"},
        {"header": "x-deep", "claim": "a.b"}]);
    let authenticator = compile(&[rule]);
    let spoofed = |token: Option<&str>| {
        let mut map = headers(&[
            ("x-user", "admin"),
            ("x-user", "root"),
            ("x-payload", "e30"),
            ("x-deep", "x"),
            ("x-other", "kept"),
        ]);
        if let Some(token) = token {
            map.insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let effects = match judge_at(&authenticator, &map, "/", NOW) {
            Authentication::Anonymous(effects) | Authentication::Authenticated { effects, .. } => {
                effects
            }
            Authentication::Refused(refusal) => panic!("{refusal:?}"),
        };
        effects.apply(&mut map);
        map
    };
    let anonymous = spoofed(None);
    assert_eq!(anonymous.keys().map(http::HeaderName::as_str).collect::<Vec<_>>(), ["x-other"]);
    let token = idp.token("alice");
    let known = spoofed(Some(&token));
    assert_eq!(known.get_all("x-user").iter().collect::<Vec<_>>(), ["alice"]);
    assert_eq!(known["x-payload"], *token.split('.').nth(1).unwrap());
    assert!(!known.contains_key("x-deep") && !known.contains_key("authorization"));
    // Nothing gets out of its header, and nothing panics.
    for subject in ["a\r\nx-admin: 1", "a\nb", "a\0b", "a\u{7f}b", "\u{1}"] {
        let hostile = spoofed(Some(&idp.token(subject)));
        assert!(!hostile.contains_key("x-user"), "{subject:?}");
        assert!(!hostile.contains_key("x-admin"), "{subject:?}");
    }
    // A full header map loses the output, never the removal.
    let good = idp.token("alice");
    let judged = judge_at(&authenticator, &bearer(&good), "/", NOW);
    let Authentication::Authenticated { effects, .. } = judged else { panic!("{judged:?}") };
    let mut full = headers(&[("x-user", "admin")]);
    for n in 0..40_000 {
        let name = format!("x-{n}").parse::<http::HeaderName>().unwrap();
        if full.try_append(name, HeaderValue::from_static("v")).is_err() {
            break;
        }
    }
    effects.apply(&mut full);
    assert!(!full.get_all("x-user").iter().any(|value| value == "admin"));
}

#[test]
fn sem_sel_20_rules_of_both_namespaces_are_joined_by_issuer() {
    let (own, root) = (Idp::new("https://b.example", "k"), Idp::new("https://a.example", "k"));
    let text = |namespace: &str, idp: &Idp| {
        json!({"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": {"name": "x", "namespace": namespace},
            "spec": {"jwtRules": [idp.rule()]}})
    };
    let read = |value: Value| {
        let read = mesh_identity::manifest::read(&value.to_string(), "x.json", "x").unwrap();
        mesh_authn::request::RequestAuthentication::from_manifest(&read.resources[0]).unwrap()
    };
    let resources = [
        read(text("istio-system", &root)),
        read(text("other", &Idp::new("https://c.example", "k"))),
        read(text("shop", &own)),
    ];
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let authenticator = RequestAuthenticator::compile(
        &resources,
        &Workload::new("shop"),
        &mesh,
        TokenOptions::strict(),
        &KeySets::new(),
    )
    .unwrap();
    let shown = format!("{authenticator:?}");
    assert!(shown.contains(r#"[Some("https://a.example"), Some("https://b.example")]"#), "{shown}");
    assert!(who(&authenticator, &own.token("x")).is_ok());
    assert!(who(&authenticator, &root.token("x")).is_ok());
}

#[test]
fn an_output_that_removes_another_rules_token_is_an_error() {
    let (a, b) = (Idp::new("https://a.example", "k"), Idp::new("https://b.example", "k"));
    let (mut writes, mut reads) = (a.rule(), b.rule());
    writes["outputPayloadToHeader"] = json!("x-jwt");
    reads["fromHeaders"] = json!([{"name": "X-JWT"}]);
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let error = RequestAuthenticator::compile(
        &[resource(&[writes, reads])],
        &Workload::new("shop"),
        &mesh,
        TokenOptions::istio(),
        &KeySets::new(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("shop/idp: output header x-jwt"), "{error}");
}

#[test]
fn sem_adv_64_many_rules_and_tokens_at_once() {
    // [SEM-ADV-65]: nothing here waits, so a request that is reset early has nothing to crash.
    let idps: Vec<Idp> = (0..40).map(|n| Idp::new(&format!("https://{n}.example"), "k")).collect();
    let rules: Vec<Value> = idps.iter().map(Idp::rule).collect();
    for options in [TokenOptions::strict(), TokenOptions::istio()] {
        let authenticator = compile_with(&rules, options, &KeySets::new());
        for idp in &idps {
            let path = format!("/?access_token={}", idps[7].token("p"));
            drop(judge_at(&authenticator, &bearer(&idp.token("x")), &path, NOW));
            assert_eq!(who(&authenticator, &idp.token("x")), Ok(Some(format!("{}/x", idp.issuer))));
        }
    }
}
