//! Where we differ from Envoy on purpose, each with its reason. Nothing else may differ.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_authn::request::{Reason, Refusal, Tolerance};
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
                "token is not RFC 8259 JSON (trailing comma, bare name, raw control character); \
                 Envoy's reader corrects it, and an application's reader may correct it otherwise"
            }
            Self::LenientKeySet => "the same for key sets",
            Self::MissingPrimitive => {
                "ring has no ECDSA with SHA-512 on P-256 or P-384, and RSA below 2048 bits only \
                 with PKCS#1 and SHA-256 or SHA-512; only headers that lie about the key, and \
                 weak keys, ask for them"
            }
            Self::OutputOverHost => "a claim would replace the authority or the framing",
            Self::OutputOverToken => {
                "an output header that is also a token's header authenticates nobody, silently"
            }
            Self::KeysNobodyMayUse => {
                "an inline key set of which strict mode would use no key is an error at once"
            }
            Self::Strict(tolerance) => match tolerance {
                Tolerance::AlgorithmMismatch => "alg must be the key's (RFC 8725 3.1)",
                Tolerance::Base64Padding => "JWS has no padding (RFC 7515 2)",
                Tolerance::BearerSpelling => {
                    "Bearer in another spelling is a 401, not anonymous [SEM-STRICT-02]"
                }
                Tolerance::BorrowedIssuer => {
                    "a rule without issuer cannot speak for another rule's [SEM-STRICT-02]"
                }
                Tolerance::CriticalHeader => "crit and b64 must be understood (RFC 7515 4.1.11)",
                Tolerance::EmptySegments => "exactly two dots (RFC 7515 7.1)",
                Tolerance::KeyUse => "a key for encryption verifies nothing (RFC 7517 4.2, 4.3)",
                Tolerance::LooseBase64 => "one token, one spelling",
                Tolerance::LooseKeyEncoding => "RFC 7518 6.2.1 fixes the length of coordinates",
                Tolerance::LooseSignatureLength => "RFC 7518 3.4 fixes the length",
                Tolerance::RepeatedParameter => "RFC 6750 3.1: invalid_request",
                Tolerance::UnacceptedToken => {
                    "every token must be good for some rule [SEM-STRICT-01]"
                }
                Tolerance::UncheckedPreflight => "preflights are checked too [SEM-STRICT-16]",
                Tolerance::WeakKey => "RSA from 2048 bits, HMAC from the hash's length",
                Tolerance::NullPayload => "RFC 7519 7.2: the payload is an object",
                Tolerance::SharedSecret => {
                    "whoever can fetch a symmetric key can sign with it [SEC-JWT-1]"
                }
                Tolerance::NoExpiry | Tolerance::PathInRealm => "never refuses by default",
                _ => "undecided",
            },
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
            return Some(Self::KeysNobodyMayUse);
        }
        let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok();
        let rules = vector
            .request_authentications
            .iter()
            .filter_map(|resource| resource.pointer("/spec/jwtRules")?.as_array());
        let mut sets = rules.flatten().filter_map(|rule| rule.get("jwks")?.as_str());
        let lenient = error.contains("not a JSON object") && sets.any(|set| !is_json(set));
        lenient.then_some(Self::LenientKeySet)
    }

    /// Why a request is refused that Envoy lets pass, or refuses otherwise.
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
            return Some(Self::Strict(tolerance));
        }
        if is_preflight(vector) {
            return Some(Self::Strict(Tolerance::UncheckedPreflight));
        }
        let kinds = ["kind:alg-header-vs-key", "kind:weak-key"];
        let odd = kinds.iter().any(|kind| vector.has_tag(kind));
        (reason == Reason::Signature && odd).then_some(Self::MissingPrimitive)
    }
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
