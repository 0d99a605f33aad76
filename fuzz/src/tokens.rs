//! Targets of mesh-authn's request authentication: tokens, key sets, and where tokens lie.

use std::sync::{LazyLock, Once};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authn::request::{
    Authentication, JSONWEBTOKEN_ON_RING, KeySet, KeySets, Reason, RequestAuthentication,
    RequestAuthenticator, RequestView, TokenOptions, Tolerance,
};
use mesh_identity::{MeshSettings, Workload};
use ring::hmac;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

const ISSUER: &str = "https://idp.example";
const NOW: u64 = 1_800_000_000;
const SECRET: [u8; 64] = [7; 64];

/// A token of any form, signed where the input says so: in strict mode and as Istio judges it,
/// twice, and as jsonwebtoken reads it.
///
/// The input is `header NEWLINE payload`, which is signed with the key that the rule has; an input
/// without a line break is a whole token.
///
/// # Panics
///
/// When strict mode accepts what Istio refuses or as somebody else ([SEM-STRICT-20]), when a token
/// seen before is judged otherwise ([SEC-JWT-11]), when strict mode accepts what jsonwebtoken does
/// not or with other claims, or refuses for no reason what jsonwebtoken accepts ([SEC-JWT-3]).
pub fn token(data: &[u8]) {
    static STRICT: LazyLock<RequestAuthenticator> =
        LazyLock::new(|| authenticator(&rule(), TokenOptions::strict()));
    static ISTIO: LazyLock<RequestAuthenticator> =
        LazyLock::new(|| authenticator(&rule(), TokenOptions::istio()));
    let text = match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => signed(&data[..at], &data[at + 1..]).into_bytes(),
        None => data.to_vec(),
    };
    let Ok(value) = HeaderValue::from_bytes(&[b"Bearer ", &text[..]].concat()) else { return };
    let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
    let [strict, istio] = [&*STRICT, &*ISTIO].map(|ours| {
        let first = verdict(judge(ours, &headers, "/"));
        assert_eq!(first, verdict(judge(ours, &headers, "/")), "a token seen before");
        first
    });
    if let Ok(Some(claims)) = &strict {
        assert_eq!(istio, Ok(Some(claims.clone())), "strict accepts what Istio does not");
    }
    // Istio drops what stands before the token; jsonwebtoken gets the token itself.
    let Ok(text) = std::str::from_utf8(&text) else { return };
    let theirs = jsonwebtoken(text);
    match (&strict, &theirs) {
        (Ok(Some(claims)), Some(theirs)) => assert_eq!(doubles(claims), doubles(theirs)),
        (Ok(Some(_)), None) if text.starts_with(|c: char| c.is_ascii_alphanumeric()) => {
            panic!("jsonwebtoken refuses what strict mode accepts: {text}")
        }
        // What it does not look at.
        (Err(reason), Some(theirs)) => {
            let known = match reason {
                Reason::Expired
                | Reason::NotYetValid
                | Reason::UnknownIssuer
                | Reason::ClaimNotString(_)
                | Reason::ClaimNotNumber(_)
                | Reason::ClaimOutOfRange(_)
                | Reason::AudienceType
                | Reason::NotTolerated(Tolerance::CriticalHeader)
                // Names twice, texts that are no number, nesting.
                | Reason::HeaderJson
                | Reason::PayloadJson
                // Of the header's other members it reads what is a string.
                | Reason::KidType
                | Reason::TooLong => true,
                _ => false,
            };
            assert!(known, "strict mode refuses {text} as {reason:?}, which reads {theirs}");
        }
        (Ok(_), _) | (Err(_), None) => {}
    }
}

/// A key set, against serde_json's reading of it: whose signatures it verifies.
///
/// # Panics
///
/// When a key is lost or invented, or a token verifies with a key that is not there ([SEC-JWT-2]).
pub fn jwks(data: &[u8]) {
    let Ok(set) = KeySet::parse(data) else { return };
    let value: Value = serde_json::from_slice(data).expect("what we read is JSON");
    let Some(keys) = value.get("keys") else {
        // Google's form.
        let names = value.as_object().expect("an object").len();
        assert_eq!(set.len() + set.skipped().len(), names);
        return;
    };
    let listed = keys.as_array().expect("a list").clone();
    assert_eq!(set.len() + set.skipped().len(), listed.len());
    for key in &listed {
        if let Some(kid) = key["kid"].as_str().filter(|kid| !kid.is_empty()) {
            let skipped = |at: usize| set.skipped().iter().any(|skipped| skipped.index == at);
            let kept = listed.iter().enumerate().any(|(at, one)| one["kid"] == kid && !skipped(at));
            assert_eq!(set.has_kid(kid), kept, "{kid}");
        }
    }
    // Our secret signs; only a set that has it verifies.
    let text = signed(br#"{"alg":"HS512"}"#, br#"{"iss":"a"}"#);
    let verified = set.verify_jws(&text, &TokenOptions::istio()).is_ok();
    let ours = |key: &Value| {
        let secret = key["k"].as_str().and_then(loosely_decoded);
        let algorithm = key["alg"].as_str().unwrap_or_default();
        key["kty"] == "oct"
            // HMAC fills a key up with zeros to 128 bytes, so one that ends in zeros is the same.
            && secret.is_some_and(|secret| {
                let rest = secret.strip_prefix(&SECRET[..]);
                rest.is_some_and(|rest| rest.len() <= 64 && rest.iter().all(|byte| *byte == 0))
            })
            && matches!(algorithm, "" | "HS512")
    };
    assert_eq!(verified, listed.iter().any(ours));
    // jsonwebtoken's types know fewer algorithms, and lose those that they do not know.
    if let Ok(theirs) = serde_json::from_slice::<jsonwebtoken::jwk::JwkSet>(data)
        && let Ok(again) = KeySet::try_from(&theirs)
    {
        assert!(again.len() <= set.len());
    }
}

/// Where tokens lie in a request, against the rules in the plainest words ([SEM-JWT-01] to
/// [SEM-JWT-07]).
///
/// The input's first line is a number, which chooses a rule, and the target; the others are header
/// fields. A `\u{1}` stands for a good token.
///
/// # Panics
///
/// When a token is found where none is, or another than the one that is there.
pub fn token_places(data: &[u8]) {
    static RULES: LazyLock<Vec<(Places, RequestAuthenticator)>> = LazyLock::new(|| {
        let all = [
            Places {
                headers: &[("authorization", "Bearer ")],
                params: &["access_token"],
                cookies: &[],
            },
            Places { headers: &[("x-token", "")], params: &[], cookies: &["session"] },
            Places {
                headers: &[("x-token", "Bearer"), ("x-token", "")],
                params: &["t", "tt"],
                cookies: &[],
            },
            Places {
                headers: &[("authorization", "JWT "), ("x-b", "a")],
                params: &[],
                cookies: &["a", "b"],
            },
        ];
        let compiled = |places: Places| {
            let mut rule = rule();
            // The first is what a rule looks at that names no place.
            if places.params != ["access_token"] {
                let header =
                    |(name, prefix): &(&str, &str)| json!({"name": name, "prefix": prefix});
                rule["fromHeaders"] = places.headers.iter().map(header).collect();
                rule["fromParams"] = json!(places.params);
                rule["fromCookies"] = json!(places.cookies);
            }
            let ours = authenticator(&rule, TokenOptions::istio());
            (places, ours)
        };
        all.map(compiled).into()
    });
    static GOOD: LazyLock<String> = LazyLock::new(|| {
        let claims = json!({"iss": ISSUER, "sub": "alice"}).to_string();
        signed(br#"{"alg":"HS512"}"#, claims.as_bytes())
    });
    let Ok(text) = std::str::from_utf8(data) else { return };
    let text = text.replace('\u{1}', &GOOD);
    let mut lines = text.split('\n');
    let mut first = lines.next().unwrap_or_default().splitn(2, ' ');
    let number: usize = first.next().and_then(|number| number.parse().ok()).unwrap_or_default();
    let target = first.next().unwrap_or("/");
    let Some((places, ours)) = RULES.get(number) else { return };
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) || target.contains('#') {
        return;
    }
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { return };
        let (Ok(name), Ok(value)) =
            (name.parse::<HeaderName>(), HeaderValue::from_str(value.trim_matches([' ', '\t'])))
        else {
            return;
        };
        headers.append(name, value);
    }
    let found = places.find(&headers, target);
    let want = if found.is_empty() {
        "anonymous"
    } else if found.iter().all(|token| *token == GOOD.as_bytes()) {
        "authenticated"
    } else {
        "refused"
    };
    let got = match judge(ours, &headers, target) {
        Authentication::Anonymous(_) => "anonymous",
        Authentication::Authenticated { .. } => "authenticated",
        Authentication::Refused(refusal) => {
            // Padding and white space make another spelling of a good token, which Istio reads.
            assert!(want == "refused", "{:?}: {found:?}", refusal.reason());
            "refused"
        }
    };
    assert!(
        got == want || want == "refused" && got == "authenticated" && is_spelling(&found, &GOOD)
    );
}

/// Whether every token is the good one with white space, padding or dots that Istio does not mind.
fn is_spelling(found: &[Vec<u8>], good: &str) -> bool {
    let bare = |token: &[u8]| {
        let parts = token.split(|byte| *byte == b'.').filter(|part| !part.is_empty());
        let decoded = parts.map(|part| loosely_decoded(std::str::from_utf8(part).ok()?));
        decoded.collect::<Option<Vec<_>>>()
    };
    found.iter().all(|token| bare(token).is_some() && bare(token) == bare(good.as_bytes()))
}

struct Places {
    headers: &'static [(&'static str, &'static str)],
    params: &'static [&'static str],
    cookies: &'static [&'static str],
}

impl Places {
    /// Every token, in any order.
    fn find(&self, headers: &HeaderMap, target: &str) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for (name, prefix) in self.headers {
            let mut lines: Vec<Vec<u8>> =
                headers.get_all(*name).iter().map(|value| value.as_bytes().to_vec()).collect();
            if *name == "authorization" && lines.len() > 1 {
                lines = vec![lines.join(&b","[..])];
            }
            for line in lines {
                let at = (0..=line.len()).find(|at| line[*at..].starts_with(prefix.as_bytes()));
                let Some(at) = at else { continue };
                if prefix.is_empty() {
                    found.push(line);
                    continue;
                }
                let behind = &line[at + prefix.len()..];
                let is_start = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
                match behind.iter().position(is_start) {
                    Some(start) => found.push(behind[start..].to_vec()),
                    None => found.push(line),
                }
            }
        }
        let query = target.split_once('?').map_or("", |(_, query)| query);
        for name in self.params {
            let pairs = query.split('&').map(|piece| piece.split_once('=').unwrap_or((piece, "")));
            let mut pairs = pairs.map(|(name, value)| (unescape(name), unescape(value)));
            found.extend(pairs.find(|(key, _)| key == name.as_bytes()).map(|(_, value)| value));
        }
        for name in self.cookies {
            let lines = headers.get_all("cookie").iter().map(HeaderValue::as_bytes);
            let all = lines.collect::<Vec<_>>().join(&b";"[..]);
            let found_one = all.split(|byte| *byte == b';').find_map(|pair| {
                let start = pair.iter().position(|byte| *byte != b' ')?;
                let end = pair.iter().rposition(|byte| *byte != b' ')?;
                let value = pair[start..=end].strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
                let quoted = value.len() > 1 && value.starts_with(b"\"") && value.ends_with(b"\"");
                Some(if quoted { &value[1..value.len() - 1] } else { value }.to_vec())
            });
            found.extend(found_one);
        }
        found
    }
}

/// `%XX`, and a percent sign that is none of these as it is.
fn unescape(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let escaped = bytes.get(at..at + 3).filter(|three| three[0] == b'%');
        let hex = escaped.and_then(|three| std::str::from_utf8(&three[1..]).ok());
        let hex = hex.filter(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            plain.push(byte);
            at += 3;
        } else {
            plain.push(bytes[at]);
            at += 1;
        }
    }
    plain
}

/// Base64url as Envoy reads it, in other words than ours.
fn loosely_decoded(text: &str) -> Option<Vec<u8>> {
    const LOOSE: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(base64::engine::DecodePaddingMode::RequireNone),
    );
    let space = |c: &char| matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}');
    let dense: String = text.chars().filter(|c| !space(c)).collect();
    let bare = dense.trim_end_matches('=');
    let padding = dense.len() - bare.len();
    let exact = padding == 0 || padding <= 2 && dense.len().is_multiple_of(4);
    if exact { LOOSE.decode(bare).ok() } else { None }
}

fn rule() -> Value {
    let jwk = json!({"kty": "oct", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    json!({"issuer": ISSUER, "jwks": json!({"keys": [jwk]}).to_string()})
}

fn authenticator(rule: &Value, options: TokenOptions) -> RequestAuthenticator {
    let text = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "idp", "namespace": "shop"}, "spec": {"jwtRules": [rule]},
    });
    let read = mesh_identity::manifest::read(&text.to_string(), "idp.json", "shop").expect("good");
    let resource = RequestAuthentication::from_manifest(&read.resources[0]).expect("good");
    let mesh = MeshSettings::new("cluster.local".parse().expect("good"));
    let (workload, keys) = (Workload::new("shop"), KeySets::new());
    RequestAuthenticator::compile(&[resource], &workload, &mesh, options, &keys).expect("good")
}

/// Signed with the hash that the header names, else SHA-512.
fn signed(header: &[u8], payload: &[u8]) -> String {
    let [head, body] = [header, payload].map(|part| URL_SAFE_NO_PAD.encode(part));
    let text = format!("{head}.{body}");
    let value: Value = serde_json::from_slice(header).unwrap_or_default();
    let hash = match value["alg"].as_str() {
        Some("HS256") => hmac::HMAC_SHA256,
        Some("HS384") => hmac::HMAC_SHA384,
        _ => hmac::HMAC_SHA512,
    };
    let signature = hmac::sign(&hmac::Key::new(hash, &SECRET), text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn judge(ours: &RequestAuthenticator, headers: &HeaderMap, target: &str) -> Authentication {
    let view = RequestView {
        method: &Method::GET,
        scheme: "https",
        host: "shop.example",
        path_and_query: target,
        headers,
    };
    ours.authenticate(&view, UnixTime::since_unix_epoch(Duration::from_secs(NOW)))
}

fn verdict(authentication: Authentication) -> Result<Option<Value>, Reason> {
    match authentication {
        Authentication::Anonymous(_) => Ok(None),
        Authentication::Authenticated { token, .. } => {
            Ok(Some(Value::Object(token.payload().object().clone())))
        }
        Authentication::Refused(refusal) => Err(refusal.reason()),
    }
}

/// The claims, when jsonwebtoken verifies the signature; it is not asked about the times, because
/// it reads the clock.
fn jsonwebtoken(text: &str) -> Option<Value> {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        JSONWEBTOKEN_ON_RING.install_default().expect("nobody else installs one");
    });
    let header = jsonwebtoken::decode_header(text).ok()?;
    let mut validation = jsonwebtoken::Validation::new(header.alg);
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) =
        (false, false, false);
    let key = jsonwebtoken::DecodingKey::from_secret(&SECRET);
    jsonwebtoken::decode::<Value>(text, &key, &validation).ok().map(|read| read.claims)
}

/// Every number as a double.
fn doubles(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(doubles).collect(),
        Value::Object(object) => {
            object.iter().map(|(name, value)| (name.clone(), doubles(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}
