//! The state as a document, and back.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::{JwtAuthority, TrustBundle, TrustDomain, X509Authority};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Lost, StateError};
use crate::authority::Authority;
use crate::jwt::JwtKey;
use crate::key_ring::{Held, KeyRing, Retired, RingKey};
use crate::settings::CaSettings;
use crate::state::{Roots, State};

/// A JSON document whose texts are zeroed on drop: they are private keys.
struct Secret(Value);

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl State {
    /// Nothing when the roots are not ours to keep.
    pub(super) fn encode(&self, trust_domain: &TrustDomain) -> Option<Zeroizing<String>> {
        let Roots::Own(roots) = &self.roots else { return None };
        let root = |held: &Held<Authority>| {
            Some(json!({
                "certificate": STANDARD.encode(held.key.certificate()),
                "key": STANDARD.encode(held.key.pkcs8()?),
                "published": held.published.as_secs(),
            }))
        };
        let token = |held: &Held<JwtKey>| {
            Some(json!({
                "key": STANDARD.encode(held.key.pkcs8()),
                "not_after": held.key.not_after().as_secs(),
                "published": held.published.as_secs(),
            }))
        };
        let old_root = |old: &Retired<X509Authority>| json!(STANDARD.encode(old.public.der()));
        let old_token = |old: &Retired<JwtAuthority>| old.public.jwk().clone();
        let document = Secret(json!({
            "version": 1,
            "trust_domain": trust_domain.as_str(),
            "sequence": self.sequence,
            "roots": ring(roots, root, old_root)?,
            "tokens": ring(&self.tokens, token, old_token)?,
        }));
        Some(Zeroizing::new(document.0.to_string()))
    }

    pub(super) fn parse(
        text: &str,
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<(Self, Vec<Lost>), StateError> {
        let damaged = |what| move || StateError::Damaged { what };
        let document = serde_json::from_str(text).map(Secret);
        let document = document.map_err(|_detail| StateError::Damaged { what: "not JSON" })?;
        let document = document.0.as_object().ok_or_else(damaged("not an object"))?;
        if document.get("version") != Some(&json!(1)) {
            return Err(StateError::Damaged { what: "version" });
        }
        let found = text_of(document, "trust_domain").ok_or_else(damaged("trust_domain"))?;
        if found != trust_domain.as_str() {
            return Err(StateError::OtherTrustDomain { found: found.to_owned() });
        }
        let sequence = document.get("sequence").and_then(Value::as_u64);
        let sequence = sequence.ok_or_else(damaged("sequence"))?;

        let root = |held: &Map<String, Value>| {
            let (certificate, key) = (bytes_of(held, "certificate")?, bytes_of(held, "key")?);
            Authority::from_der(trust_domain, CertificateDer::from(certificate.to_vec()), &key).ok()
        };
        let old_root = |old: &Value| {
            let der = STANDARD.decode(old.as_str()?).ok()?;
            X509Authority::from_der(CertificateDer::from(der)).ok()
        };
        let roots = document.get("roots").and_then(|roots| parse_ring(roots, root, old_root, now));
        let mut roots = roots.ok_or_else(damaged("roots"))?;

        let token = |held: &Map<String, Value>| {
            let not_after = held.get("not_after").and_then(Value::as_u64)?;
            JwtKey::from_pkcs8(&bytes_of(held, "key")?, at(not_after)).ok()
        };
        let old_token = |old: &Value| {
            let document = json!({ "keys": [old] }).to_string();
            let bundle = TrustBundle::from_jwks(trust_domain.clone(), &document).ok()?;
            bundle.jwt_authorities().first().cloned()
        };
        let tokens =
            document.get("tokens").and_then(|tokens| parse_ring(tokens, token, old_token, now));
        let mut tokens = tokens.ok_or_else(damaged("tokens"))?;

        let mut lost = Vec::new();
        if roots.signing().not_after() <= now {
            roots =
                KeyRing::new(Authority::new_root(trust_domain, settings.roots.life(), now)?, now);
            lost.push(Lost::Root);
        }
        if tokens.signing().not_after() <= now {
            tokens = KeyRing::new(JwtKey::generate(settings.tokens.life(), now)?, now);
            lost.push(Lost::TokenKey);
        }
        let sequence = if lost.is_empty() { sequence } else { sequence.saturating_add(1) };
        Ok((Self { roots: Roots::Own(roots), tokens, sequence }, lost))
    }
}

fn ring<K: RingKey>(
    ring: &KeyRing<K>,
    held: impl Fn(&Held<K>) -> Option<Value>,
    retired: impl Fn(&Retired<K::Public>) -> Value,
) -> Option<Value> {
    let (current, next, old) = ring.parts();
    let next = match next {
        Some(next) => held(next)?,
        None => Value::Null,
    };
    let old: Vec<Value> = old.iter().map(retired).collect();
    Some(json!({ "current": held(current)?, "next": next, "old": old }))
}

/// A key that has stopped signing is kept as long as if it had stopped now: the process may have
/// gone on with it after a state in which it had stopped was written and never came into force.
fn parse_ring<K: RingKey>(
    ring: &Value,
    key: impl Fn(&Map<String, Value>) -> Option<K>,
    public: impl Fn(&Value) -> Option<K::Public>,
    now: UnixTime,
) -> Option<KeyRing<K>> {
    let held = |held: &Value| {
        let held = held.as_object()?;
        let published = at(held.get("published")?.as_u64()?);
        Some(Held { key: Arc::new(key(held)?), published })
    };
    let current = held(ring.get("current")?)?;
    let next = ring.get("next")?;
    let next = if next.is_null() { None } else { Some(held(next)?) };
    let old = ring.get("old")?.as_array()?.iter();
    let old = old.map(|old| Some(Retired { public: public(old)?, retired: now }));
    Some(KeyRing::from_parts(current, next, old.collect::<Option<Vec<_>>>()?))
}

fn text_of<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn bytes_of(object: &Map<String, Value>, name: &str) -> Option<Zeroizing<Vec<u8>>> {
    STANDARD.decode(text_of(object, name)?).ok().map(Zeroizing::new)
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}
