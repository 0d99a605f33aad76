//! Read-only token claims, with the lookup rules that Istio's policies use.

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

    /// The view that policies see: each named top-level string that has a character other than the
    /// space becomes the list of its pieces, split at spaces only ([SEM-JWT-61]).
    #[must_use]
    pub fn split_at_spaces<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Self {
        let mut object = self.object.clone();
        for name in names {
            if let Some(Value::String(text)) = object.get(name) {
                let pieces = text.split(' ').filter(|piece| !piece.is_empty());
                let pieces: Vec<Value> = pieces.map(Value::from).collect();
                if !pieces.is_empty() {
                    object.insert(name.to_owned(), Value::Array(pieces));
                }
            }
        }
        Self { object }
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
        let view = token.split_at_spaces(["scope", "a", "e", "s", "n", "l", "missing"]);
        let want = json!({"scope": ["read", "write"], "a": ["x\ty"], "e": "", "s": "  ",
            "n": 5, "l": ["p q"]});
        assert_eq!(Value::Object(view.object().clone()), want);
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
}
