//! Read-only token claims, with the lookup rules that Istio's policies use.

use std::time::Duration;

use rustls_pki_types::UnixTime;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The claims of a token: a JSON object.
///
/// A `Claims` says nothing about who signed it; [`crate::VerifiedToken`] does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    object: Map<String, Value>,
}

impl Claims {
    /// Claims from a JSON object.
    #[must_use]
    pub fn new(object: Map<String, Value>) -> Self {
        Self { object }
    }

    /// The whole object.
    #[must_use]
    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    /// The value at a path of names, walking through objects only ([SEM-AUTHZ-50]).
    ///
    /// # Examples
    ///
    /// ```
    /// let object = serde_json::from_str(r#"{"realm": {"roles": ["a"]}}"#)?;
    /// let claims = mesh_identity::Claims::new(object);
    /// assert!(claims.at(["realm", "roles"]).is_some_and(|roles| roles.is_array()));
    /// assert!(claims.at(["realm", "roles", "0"]).is_none());
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    #[must_use]
    pub fn at<'k>(&self, path: impl IntoIterator<Item = &'k str>) -> Option<&Value> {
        let mut names = path.into_iter();
        let mut value = self.object.get(names.next()?)?;
        for name in names {
            value = value.as_object()?.get(name)?;
        }
        Some(value)
    }

    /// The string at the top-level name, if it is a string.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        self.object.get(name)?.as_str()
    }

    /// `iss`, if it is a string.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// `sub`, if it is a string.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// `exp`, if it is a time: a number above 0. A fraction of a second does not count.
    #[must_use]
    pub fn expires(&self) -> Option<UnixTime> {
        let end = self.object.get("exp")?;
        let end = end.as_u64().or_else(|| {
            let end = end.as_f64().filter(|end| *end >= 1.0)?;
            Duration::try_from_secs_f64(end).ok().map(|end| end.as_secs())
        })?;
        (end > 0).then(|| UnixTime::since_unix_epoch(Duration::from_secs(end)))
    }

    /// The claims as a type of the application's; it may borrow texts from them.
    ///
    /// # Errors
    ///
    /// [`ClaimsError`], when a claim is missing or of another type.
    pub fn typed<'c, T: Deserialize<'c>>(&'c self) -> Result<T, ClaimsError> {
        T::deserialize(&self.object).map_err(|error| ClaimsError { what: without_values(&error) })
    }

    /// The view that policies see, and what it changes: each named top-level string that has a
    /// character other than the space becomes the list of its pieces, split at spaces only
    /// ([SEM-JWT-61]).
    pub(crate) fn split_at_spaces<'n>(
        mut self,
        names: impl IntoIterator<Item = &'n str>,
    ) -> (Self, Vec<(String, Value)>) {
        let mut split = Vec::new();
        for name in names {
            let Some(value) = self.object.get_mut(name) else { continue };
            let Some(text) = value.as_str() else { continue };
            let pieces = text.split(' ').filter(|piece| !piece.is_empty());
            let pieces: Vec<Value> = pieces.map(Value::from).collect();
            if !pieces.is_empty() {
                let text = std::mem::replace(value, Value::Array(pieces));
                split.push((name.to_owned(), text));
            }
        }
        (self, split)
    }
}

/// Why claims are not what the application expects of them.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("claims of the token: {what}")]
#[non_exhaustive]
pub struct ClaimsError {
    /// What is missing or of another type, without the values, which are personal data.
    what: String,
}

/// serde's messages quote values, before what they expected instead; only that and the names of
/// missing fields are told.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("one has another type or value, expected {expected}"),
        None if text.starts_with("missing field ") => text,
        None => "one has a value that its type does not take".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: &Value) -> Claims {
        Claims::new(value.as_object().unwrap().clone())
    }

    #[test]
    fn sem_jwt_61_strings_split_at_spaces_only() {
        let token = claims(&json!({"scope": "read  write", "a": "x\ty", "e": "", "s": "  ",
            "n": 5, "l": ["p q"]}));
        let names = ["scope", "a", "e", "s", "n", "l", "missing"];
        let (view, split) = token.split_at_spaces(names);
        let want = json!({"scope": ["read", "write"], "a": ["x\ty"], "e": "", "s": "  ",
            "n": 5, "l": ["p q"]});
        assert_eq!(Value::Object(view.object().clone()), want);
        let texts = [("scope", "read  write"), ("a", "x\ty")];
        assert_eq!(split, texts.map(|(name, text)| (name.to_owned(), json!(text))));
    }

    #[test]
    fn sem_authz_50_a_path_walks_objects_only() {
        let token = claims(&json!({"a": {"b": {"c": 1}}, "l": [{"b": 1}], "a.b": 2}));
        assert_eq!(token.at(["a", "b", "c"]), Some(&json!(1)));
        assert_eq!(token.at(["a.b"]), Some(&json!(2)));
        assert_eq!(token.at(["l", "b"]), None);
        assert_eq!(token.at(["a", "x"]), None);
        assert_eq!(token.at([]), None);
    }

    #[test]
    fn sec_ops_4_typed_claims_borrow_and_their_errors_hold_no_value() {
        #[derive(Debug, Deserialize, PartialEq)]
        struct User<'t> {
            sub: &'t str,
            level: u8,
        }
        let good = claims(&json!({"sub": "alice", "level": 3, "more": []}));
        assert_eq!(good.typed(), Ok(User { sub: "alice", level: 3 }));
        for (bad, want) in [
            (json!({"level": 3}), "claims of the token: missing field `sub`"),
            (
                json!({"sub": "alice", "level": "secret, expected secret"}),
                "claims of the token: one has another type or value, expected u8",
            ),
            (
                json!({"sub": "alice", "level": 70_000}),
                "claims of the token: one has another type or value, expected u8",
            ),
        ] {
            let error = claims(&bad).typed::<User<'_>>().unwrap_err();
            assert_eq!(error.to_string(), want);
        }
    }
}
