//! What a policy demands of a token that it lets verify.

use regorus::Value;
use serde_json::{Map, Value as Json};

use super::Fault;
use super::key::Key;
use super::key_set::{SetKey, keys};

/// What `io.jwt.decode_verify` demands. A text that is empty demands nothing.
pub(super) struct Constraints {
    pub(super) keys: Vec<SetKey>,
    pub(super) algorithm: String,
    issuer: String,
    audience: String,
    /// Nanoseconds.
    time: f64,
}

impl Constraints {
    pub(super) fn of(args: &[Value], now: Option<&Value>) -> Result<Self, Fault> {
        let Some(Value::Object(object)) = args.get(1) else { return Err(Fault::Failed) };
        let (mut set, mut secret, mut time) = (None, String::new(), None);
        let mut all = Self {
            keys: Vec::new(),
            algorithm: String::new(),
            issuer: String::new(),
            audience: String::new(),
            time: 0.0,
        };
        for (name, value) in object.iter() {
            let name = name.as_string().map_err(|_no_text| Fault::Failed)?;
            if &**name == "time" {
                time = Some(value);
                continue;
            }
            let text = value.as_string().map_err(|_no_text| Fault::Failed)?.to_string();
            match &**name {
                "cert" => set = Some(keys(&text)?),
                "secret" => secret = text,
                "alg" => all.algorithm = text,
                "iss" => all.issuer = text,
                "aud" => all.audience = text,
                _ => return Err(Fault::Failed),
            }
        }
        // An empty secret is none: everybody has it.
        all.keys = match (set, secret.is_empty()) {
            (Some(set), true) => set,
            (None, false) => {
                let key = Key::Secret(secret.into_bytes());
                vec![SetKey { id: None, algorithm: None, key }]
            }
            (None, true) | (Some(_), false) => return Err(Fault::Failed),
        };
        all.time = float(time.or(now).ok_or(Fault::Failed)?)?;
        if all.time < 0.0 { Err(Fault::Failed) } else { Ok(all) }
    }

    /// Whether the claims are as demanded; it fails for those of a wrong type.
    pub(super) fn admit(&self, claims: &Map<String, Json>) -> Result<bool, Fault> {
        if !self.issuer.is_empty() {
            match claims.get("iss") {
                Some(Json::String(issuer)) if *issuer == self.issuer => {}
                Some(Json::String(_)) | None => return Ok(false),
                Some(_) => return Err(Fault::Failed),
            }
        }
        // A token for somebody is not for everybody: `aud` without a constraint refuses, unless it
        // is empty, too.
        let is_meant = match claims.get("aud") {
            None => self.audience.is_empty(),
            Some(Json::String(one)) => *one == self.audience,
            Some(Json::Array(many)) => many.iter().any(|one| *one == *self.audience),
            Some(_) => false,
        };
        if !is_meant {
            return Ok(false);
        }
        let seconds = self.time / 1e9;
        let number = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().ok_or(Fault::Failed).map(Some),
        };
        if number("exp")?.is_some_and(|expiry| seconds >= expiry) {
            return Ok(false);
        }
        Ok(number("nbf")?.is_none_or(|begin| seconds >= begin))
    }
}

/// A number, rounded: regorus gives only those that need no rounding.
fn float(value: &Value) -> Result<f64, Fault> {
    match value.as_i64() {
        Ok(whole) => whole.to_string().parse().map_err(|_no_number| Fault::Failed),
        Err(_) => value.as_f64().map_err(|_no_number| Fault::Failed),
    }
}
