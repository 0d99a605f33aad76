//! What authorizers hand on with an answer that allows: Envoy's dynamic metadata.

use std::fmt;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value};

/// The filter whose metadata the answers about requests are.
pub(crate) const HTTP: &str = "envoy.filters.http.ext_authz";

/// The filter whose metadata the answers about TCP connections are.
pub(crate) const NETWORK: &str = "envoy.filters.network.ext_authz";

static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// What authorizers have handed on about a request or a connection; cloning shares it. Policies read
/// it by `experimental.envoy.filters.http.ext_authz[…]` ([SEM-AUTHZ-75]).
///
/// `Debug` shows names only: a value may be a secret.
#[derive(Clone, Default)]
pub(crate) struct Handed(Option<Arc<Map<String, Value>>>);

impl Handed {
    /// Adds what another answer hands on, as one of `filter`'s. Of two answers that name the same
    /// member, the later one is heard.
    pub(crate) fn add(&mut self, filter: &str, members: Map<String, Value>) {
        if members.is_empty() {
            return;
        }
        let filters = Arc::make_mut(self.0.get_or_insert_default());
        let before = filters.entry(filter).or_insert_with(|| Map::new().into());
        if let Some(before) = before.as_object_mut() {
            before.extend(members);
        }
    }

    /// What was handed on about the request, or the connection: it is of one filter.
    pub(crate) fn members(&self) -> &Map<String, Value> {
        let members = self.by_filter().and_then(|filters| filters.values().next()?.as_object());
        members.unwrap_or(&NOTHING)
    }

    /// All of it, as policies see it: an object for each filter.
    pub(crate) fn by_filter(&self) -> Option<&Map<String, Value>> {
        self.0.as_deref()
    }
}

impl fmt::Debug for Handed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.members().keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_later_answer_is_heard() {
        let mut handed = Handed::default();
        handed.add(HTTP, Map::new());
        assert!(handed.by_filter().is_none());
        handed.add(HTTP, object(json!({"a": 1, "b": {"c": 1}})));
        let before = handed.clone();
        handed.add(HTTP, object(json!({"b": {"d": 2}})));
        assert_eq!(Value::from(handed.members().clone()), json!({"a": 1, "b": {"d": 2}}));
        assert_eq!(Value::from(before.members().clone()), json!({"a": 1, "b": {"c": 1}}));
        assert!(Handed::default().members().is_empty());
        assert_eq!(format!("{handed:?}"), r#"["a", "b"]"#);
    }
}
