//! Where we differ from Envoy on purpose, each with its reason. Nothing else may differ.

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use mesh_authn::request::{Authentication, Reason, Refusal, TokenOptions, Tolerance};
use serde_json::Value;

use super::vector::{Outcome, Vector};

/// A documented difference. Ours always is the refusal.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deviation {
    /// In both modes.
    LenientJson,
    /// In both modes.
    LenientKeySet,
    /// In both modes.
    MissingPrimitive,
    /// In both modes.
    OutputOverHost,
    /// In both modes.
    OutputOverToken,
    /// In strict mode.
    KeysNobodyMayUse,
    /// In strict mode.
    Strict(Tolerance),
}

impl Deviation {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::LenientJson => {
                "README: token is not RFC 8259 JSON (trailing comma, bare name, raw control character); \
                 Envoy's reader corrects it, and an application's reader may correct it otherwise"
            }
            Self::LenientKeySet => "README: the same for key sets",
            Self::MissingPrimitive => {
                "README: ring has no ECDSA with SHA-512 on P-256 or P-384, and RSA below 2048 bits only \
                 with PKCS#1 and SHA-256 or SHA-512; only headers that lie about the key, and \
                 weak keys, ask for them"
            }
            Self::OutputOverHost => "README: a claim would replace the authority or the framing",
            Self::OutputOverToken => {
                "README: an output header that is also a token's header authenticates nobody, silently"
            }
            Self::KeysNobodyMayUse => {
                "README: an inline key set of which strict mode would use no key is an error at once"
            }
            Self::Strict(tolerance) => rule_of(tolerance).why,
        }
    }

    /// Why resources that Envoy takes are refused.
    pub(crate) fn of_configuration(vector: &Vector, error: &str) -> Option<Self> {
        if error.contains("header the token comes from") || error.contains("that tokens come from")
        {
            return Some(Self::OutputOverToken);
        }
        if error.contains("frames the request") {
            return Some(Self::OutputOverHost);
        }
        if error.contains("every key is weak") {
            let kinds =
                ["weak-key", "jwk-use", "jwk-base64", "jwk-coordinate-length", "jwk-empty-member"];
            let of_kind = vector.tolerates(&kinds) || has_key_for_encryption(vector);
            return of_kind.then_some(Self::KeysNobodyMayUse);
        }
        let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok();
        let mut sets = rules(vector).filter_map(|rule| rule.get("jwks")?.as_str());
        let lenient = error.contains("not a JSON object") && sets.any(|set| !is_json(set));
        lenient.then_some(Self::LenientKeySet)
    }

    /// Why a request is refused that Envoy lets pass, or refuses otherwise. Nothing unless the
    /// vectors' README or an option of the specification's section 12 says so, and the request is
    /// really one of those that it speaks of.
    pub(crate) fn of_refusal(vector: &Vector, refusal: Refusal) -> Option<Self> {
        let passed = vector.expect.outcome != Outcome::Rejected;
        let reason = refusal.reason();
        if matches!(reason, Reason::HeaderJson | Reason::PayloadJson) {
            return has_lenient_json(vector).then_some(Self::LenientJson);
        }
        if !passed {
            return None;
        }
        if let Reason::NotTolerated(tolerance) = reason {
            let legitimate = match rule_of(tolerance).by {
                By::Kinds(kinds) => vector.tolerates(kinds),
                By::KindsOr(kinds, check) => vector.tolerates(kinds) || check(vector),
                By::Check(check) => check(vector),
                By::Nothing => false,
            };
            return legitimate.then_some(Self::Strict(tolerance));
        }
        if is_preflight(vector) {
            return Some(Self::Strict(Tolerance::UncheckedPreflight));
        }
        let odd = vector.tolerates(&["alg-header-vs-key", "weak-key"]);
        (reason == Reason::Signature && odd).then_some(Self::MissingPrimitive)
    }
}

/// Who says that strict mode may refuse what Istio lets pass.
struct StrictRule {
    by: By,
    why: &'static str,
}

enum By {
    /// The README: the vector is tagged `envoy-tolerates`, with one of these kinds.
    Kinds(&'static [&'static str]),
    /// The same, or the vector has no tag but what the kind is about.
    KindsOr(&'static [&'static str], fn(&Vector) -> bool),
    /// An option of section 12: the vector has what the option is about, seen without the
    /// library's strict mode.
    Check(fn(&Vector) -> bool),
    /// Nobody: it refuses nothing by default.
    Nothing,
}

fn rule_of(tolerance: Tolerance) -> StrictRule {
    let (by, why) = match tolerance {
        Tolerance::AlgorithmMismatch => {
            (By::Kinds(&["alg-header-vs-key"]), "README: alg must be the key's (RFC 8725 3.1)")
        }
        Tolerance::Base64Padding => {
            (By::KindsOr(&["base64"], has_loose_base64), "README: JWS has no padding (RFC 7515 2)")
        }
        Tolerance::BearerSpelling => (
            By::Check(names_bearer_in_vain),
            "[SEM-STRICT-02]: Bearer in another spelling is a 401, not anonymous",
        ),
        Tolerance::BorrowedIssuer => (
            By::Check(has_rule_without_issuer),
            "[SEM-STRICT-02]: a rule without issuer cannot speak for another rule's",
        ),
        Tolerance::CriticalHeader => (
            By::Kinds(&["crit", "b64-false"]),
            "README: crit and b64 must be understood (RFC 7515 4.1.11)",
        ),
        Tolerance::EmptySegments => {
            (By::Kinds(&["segments"]), "README: exactly two dots (RFC 7515 7.1)")
        }
        Tolerance::KeyUse => (
            By::Kinds(&["jwk-use"]),
            "README: a key for encryption verifies nothing (RFC 7517 4.2, 4.3)",
        ),
        Tolerance::LooseBase64 => {
            (By::KindsOr(&["base64"], has_loose_base64), "README: one token, one spelling")
        }
        Tolerance::LooseKeyEncoding => (
            By::Kinds(&["jwk-base64", "jwk-coordinate-length", "jwk-empty-member"]),
            "README: RFC 7518 6.2.1 fixes the length of coordinates",
        ),
        Tolerance::LooseSignatureLength => {
            (By::Kinds(&["ecdsa-signature-length"]), "README: RFC 7518 3.4 fixes the length")
        }
        Tolerance::NullPayload => {
            (By::Kinds(&["json"]), "README: the payload is an object (RFC 7519 7.2)")
        }
        Tolerance::RepeatedParameter => (
            By::KindsOr(&["repeated-parameter"], repeats_a_parameter),
            "README: RFC 6750 3.1, invalid_request",
        ),
        Tolerance::SharedSecret => (
            By::Check(fetches_a_shared_secret),
            "[SEC-JWT-1]: whoever can fetch a symmetric key can sign with it",
        ),
        Tolerance::UnacceptedToken => (
            By::Check(has_token_that_nobody_accepts),
            "[SEM-STRICT-01]: every token must be good for some rule",
        ),
        Tolerance::UncheckedPreflight => {
            (By::Check(is_preflight), "[SEM-STRICT-16]: preflights are checked too")
        }
        Tolerance::WeakKey => (
            By::KindsOr(&["weak-key"], has_short_secret),
            "README: RSA from 2048 bits, HMAC from the hash's length, no Ed25519 point of small order",
        ),
        Tolerance::NoExpiry | Tolerance::PathInRealm | _ => {
            (By::Nothing, "refuses nothing by default")
        }
    };
    StrictRule { by, why }
}

/// The vector with one of the places where its rules look for tokens, and nothing at the others.
fn one_place_each(vector: &Vector) -> Vec<Vector> {
    let rules: Vec<&Value> = rules(vector).collect();
    let named = |field: &str| -> Vec<String> {
        let lists = rules.iter().filter_map(|rule| rule.get(field)?.as_array());
        let name = |item: &Value| item.get("name").unwrap_or(item).as_str().map(str::to_lowercase);
        lists.flatten().filter_map(name).collect()
    };
    let mut headers = named("fromHeaders");
    headers.push("authorization".to_owned());
    let with = |headers: Vec<(String, String)>, path: String| {
        let mut one = vector.clone();
        (one.request.headers, one.request.path) = (headers, path);
        one
    };
    let is_token = |name: &str| headers.contains(&name.to_lowercase());
    let all = &vector.request.headers;
    let plain: Vec<(String, String)> = all
        .iter()
        .filter(|(name, _)| !is_token(name) && !name.eq_ignore_ascii_case("cookie"))
        .cloned()
        .collect();
    let bare = vector.request.path.split('?').next().unwrap_or_default().to_owned();
    // Lines of `authorization` count as one.
    let mut sources: Vec<Vec<(String, String)>> = Vec::new();
    let is_authorization = |name: &str| name.eq_ignore_ascii_case("authorization");
    sources.push(all.iter().filter(|(name, _)| is_authorization(name)).cloned().collect());
    for line in all.iter().filter(|(name, _)| !is_authorization(name)) {
        if is_token(&line.0) || line.0.eq_ignore_ascii_case("cookie") {
            sources.push(vec![line.clone()]);
        }
    }
    let alone =
        |source: Vec<(String, String)>| with([source, plain.clone()].concat(), bare.clone());
    let mut vectors: Vec<Vector> = sources.into_iter().map(alone).collect();
    let query = vector.request.path.split_once('?').map(|(_, query)| query);
    for piece in query.into_iter().flat_map(|query| query.split('&')) {
        vectors.push(with(plain.clone(), format!("{bare}?{piece}")));
    }
    vectors
}

/// Judged as Istio does, which the run in Istio mode compares with Envoy.
fn as_istio(vector: &Vector) -> Option<Authentication> {
    let ours = super::compile(vector, &TokenOptions::istio()).ok()?;
    Some(super::judge(&ours, vector))
}

/// [SEM-STRICT-01] The token at some place is refused when it comes alone.
fn has_token_that_nobody_accepts(vector: &Vector) -> bool {
    one_place_each(vector)
        .iter()
        .any(|one| matches!(as_istio(one), Some(Authentication::Refused(_))))
}

/// [SEM-STRICT-02] `Authorization` begins with the scheme's name, and Istio finds nothing in it.
fn names_bearer_in_vain(vector: &Vector) -> bool {
    let mut lines = vector.request.headers.iter().filter(|(name, value)| {
        let scheme = value.trim().split([' ', '\t']).next().unwrap_or_default();
        name.eq_ignore_ascii_case("authorization") && scheme.eq_ignore_ascii_case("bearer")
    });
    let first = one_place_each(vector).into_iter().next();
    lines.next().is_some()
        && first.is_some_and(|one| matches!(as_istio(&one), Some(Authentication::Anonymous(_))))
}

fn has_rule_without_issuer(vector: &Vector) -> bool {
    let rules: Vec<&Value> = rules(vector).collect();
    rules.len() > 1
        && rules
            .iter()
            .any(|rule| rule.get("issuer").and_then(Value::as_str).is_none_or(str::is_empty))
}

fn fetches_a_shared_secret(vector: &Vector) -> bool {
    rules(vector).any(|rule| rule.get("jwksUri").is_some()) && !secrets(vector).is_empty()
}

/// A shared secret that is shorter than the hash of some token's `alg`.
fn has_short_secret(vector: &Vector) -> bool {
    let secrets = secrets(vector);
    let hash = |alg: &str| match alg {
        "HS256" => 32,
        "HS384" => 48,
        "HS512" => 64,
        _ => 0,
    };
    parts(vector).iter().any(|(_, decoded)| {
        let header = serde_json::from_slice::<Value>(decoded).unwrap_or_default();
        let hash = header.get("alg").and_then(Value::as_str).map_or(0, hash);
        secrets.iter().any(|secret| secret.len() < hash)
    })
}

fn secrets(vector: &Vector) -> Vec<Vec<u8>> {
    let oct = keys(vector).into_iter().filter(|key| key["kty"] == "oct");
    oct.filter_map(|key| URL_SAFE_NO_PAD.decode(key["k"].as_str()?).ok()).collect()
}

fn has_key_for_encryption(vector: &Vector) -> bool {
    keys(vector).iter().any(|key| key["use"] == "enc")
}

fn rules(vector: &Vector) -> impl Iterator<Item = &Value> {
    let resources = vector.request_authentications.iter();
    resources.filter_map(|resource| resource.pointer("/spec/jwtRules")?.as_array()).flatten()
}

fn keys(vector: &Vector) -> Vec<Value> {
    let sets = rules(vector).filter_map(|rule| rule.get("jwks")?.as_str());
    let sets = sets.filter_map(|set| serde_json::from_str::<Value>(set).ok());
    sets.filter_map(|set| set["keys"].as_array().cloned()).flatten().collect()
}

/// The names and values of the query, percent-decoded.
fn query(vector: &Vector) -> Vec<(String, String)> {
    let decode =
        |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let query = vector.request.path.split('#').next().unwrap_or_default();
    let query = query.split_once('?').map_or("", |(_, query)| query);
    let pairs = query.split('&').map(|piece| piece.split_once('=').unwrap_or((piece, "")));
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// A parameter that some rule takes tokens from is given twice.
fn repeats_a_parameter(vector: &Vector) -> bool {
    let mut names: Vec<String> = rules(vector)
        .filter_map(|rule| rule.get("fromParams")?.as_array())
        .flatten()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    names.push("access_token".to_owned());
    let given = query(vector);
    names.iter().any(|name| given.iter().filter(|(key, _)| key == name).count() > 1)
}

/// Some part of a token has padding, white space or unused bits, and can be read without.
fn has_loose_base64(vector: &Vector) -> bool {
    parts(vector).iter().any(|(text, decoded)| *text != URL_SAFE_NO_PAD.encode(decoded))
}

/// The parts of everything in the request that has three, as written and leniently decoded.
fn parts(vector: &Vector) -> Vec<(String, Vec<u8>)> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::URL_SAFE,
        GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let headers = vector.request.headers.iter().map(|(_, value)| value.clone());
    let all = headers.chain(query(vector).into_iter().map(|(_, value)| value));
    all.filter(|text| text.matches('.').count() >= 2)
        .flat_map(|text| {
            let token = text.strip_prefix("Bearer ").unwrap_or(&text).to_owned();
            token.split('.').map(str::to_owned).collect::<Vec<_>>()
        })
        .filter_map(|part| {
            let dense: String = part.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let decoded = LENIENT.decode(dense).ok()?;
            Some((part, decoded))
        })
        .collect()
}

/// Whether a token of the request has a part that decodes to something no strict reader takes.
fn has_lenient_json(vector: &Vector) -> bool {
    let texts = vector.request.headers.iter().map(|(_, value)| value.as_str());
    let mut texts = texts.chain(std::iter::once(vector.request.path.as_str()));
    texts.any(|text| {
        let parts = text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_'));
        let mut decoded = parts.filter_map(|part| URL_SAFE_NO_PAD.decode(part).ok());
        decoded.any(|part| {
            part.first() == Some(&b'{') && serde_json::from_slice::<Value>(&part).is_err()
        })
    })
}

fn is_preflight(vector: &Vector) -> bool {
    let given = |wanted: &str| {
        vector.request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted))
    };
    vector.request.method == "OPTIONS" && given("origin") && given("access-control-request-method")
}
