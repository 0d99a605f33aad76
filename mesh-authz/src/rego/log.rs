//! OPA's decision log: what an event holds, and what is taken out of it before it leaves.
//!
//! Unless told otherwise, credentials and bodies are erased ([SEC-OPS-4]). A policy may erase more,
//! change or drop events with `data.system.log.mask` and `data.system.log.drop`, as in OPA.

#![expect(clippy::wildcard_enum_match_arm, reason = "JSON of any other kind is no mask")]

use serde_json::{Map, Value as Json, json};

use super::{RegoDenyReason, RegoLoadError, RegoOptions, RegoPolicy};

/// What is erased from each event unless told otherwise.
pub const DEFAULT_MASKS: [&str; 6] = [
    "/input/attributes/request/http/headers/authorization",
    "/input/attributes/request/http/headers/cookie",
    "/input/attributes/request/http/headers/x-forwarded-client-cert",
    "/input/attributes/request/http/body",
    "/input/attributes/request/http/raw_body",
    "/input/parsed_body",
];

/// The masks of a decision log.
#[derive(Debug, Default)]
pub struct LogPolicy {
    mask: Option<RegoPolicy>,
    drop: Option<RegoPolicy>,
    keeps_credentials: bool,
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "an event is kept, or there is a reason")]
pub enum Masked {
    /// It is logged in this form.
    Keep(Json),
    /// `data.system.log.drop` says so.
    Dropped,
    /// A mask could not be evaluated or applied: nothing is logged that might be secret.
    Failed,
}

impl LogPolicy {
    /// Compiles `data.system.log.mask` and `data.system.log.drop`, if the modules define them.
    ///
    /// # Errors
    ///
    /// As for [`RegoPolicy::compile`].
    pub fn compile(modules: &[(&str, &str)], data: Option<&Json>) -> Result<Self, RegoLoadError> {
        let rule = |query: &str| {
            let options = RegoOptions::default().with_query(query);
            match RegoPolicy::compile(modules, data.cloned(), options) {
                Ok(policy) => Ok(Some(policy)),
                Err(RegoLoadError::QueryNotFound { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        };
        let (mask, drop) = (rule("data.system.log.mask")?, rule("data.system.log.drop")?);
        Ok(Self { mask, drop, keeps_credentials: false })
    }

    /// Erases only what the policy's own masks say: tokens, cookies and bodies then reach the log, wherever
    /// they stand.
    #[must_use]
    pub fn keeping_credentials(mut self) -> Self {
        self.keeps_credentials = true;
        self
    }

    /// Whether only the policy's own masks are to be applied.
    #[must_use]
    pub fn keeps_credentials(&self) -> bool {
        self.keeps_credentials
    }

    /// Masks an event. Call it on a thread with a large stack, such as one made with
    /// [`super::on_large_stack`].
    #[must_use]
    pub fn apply(&self, event: Json) -> Masked {
        match self.drop.as_ref().map(|drop| drop.value_of(&event)) {
            Some(Ok(Some(Json::Bool(true)))) => return Masked::Dropped,
            None | Some(Ok(_)) => {}
            Some(Err(_)) => return Masked::Failed,
        }
        let masks = match self.mask.as_ref().map(|mask| mask.value_of(&event)) {
            None | Some(Ok(None)) => Vec::new(),
            Some(Ok(Some(Json::Array(masks)))) => masks,
            Some(Ok(Some(_)) | Err(_)) => return Masked::Failed,
        };
        let Json::Object(mut event) = event else { return Masked::Failed };
        let (mut erased, mut masked) = (Vec::new(), Vec::new());
        if !self.keeps_credentials {
            for path in DEFAULT_MASKS {
                if erase(&mut event, path) {
                    erased.push(Json::from(path));
                }
            }
        }
        for mask in &masks {
            let (op, path, value) = match mask {
                Json::String(path) => ("remove", path.as_str(), None),
                Json::Object(mask) => match (mask.get("op"), mask.get("path")) {
                    (Some(Json::String(op)), Some(Json::String(path))) => {
                        (op.as_str(), path.as_str(), mask.get("value"))
                    }
                    _ => return Masked::Failed,
                },
                _ => return Masked::Failed,
            };
            let known = ["/input", "/result", "/nd_builtin_cache"];
            let within = |root: &&str| {
                path.strip_prefix(*root)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            if !known.iter().any(within) {
                return Masked::Failed;
            }
            match op {
                "remove" if erase(&mut event, path) => erased.push(Json::from(path)),
                "upsert" if upsert(&mut event, path, value.cloned().unwrap_or_default()) => {
                    masked.push(Json::from(path));
                }
                "remove" | "upsert" => {}
                _ => return Masked::Failed,
            }
        }
        for (name, paths) in [("erased", erased), ("masked", masked)] {
            if !paths.is_empty() {
                event.insert(name.to_owned(), Json::Array(paths));
            }
        }
        Masked::Keep(Json::Object(event))
    }
}

/// Removes what a pointer points at; whether there was anything.
fn erase(event: &mut Map<String, Json>, path: &str) -> bool {
    let Some((parent, last)) = parent(event, path) else { return false };
    match parent {
        Parent::Map(map) => map.remove(&last).is_some(),
        Parent::List(items) => {
            let at = last.parse::<usize>().ok().filter(|at| *at < items.len());
            at.map(|at| items.remove(at)).is_some()
        }
    }
}

fn upsert(event: &mut Map<String, Json>, path: &str, value: Json) -> bool {
    match parent(event, path) {
        Some((Parent::Map(map), last)) => {
            map.insert(last, value);
            true
        }
        Some((Parent::List(items), last)) => {
            let item = last.parse().ok().and_then(|at: usize| items.get_mut(at));
            item.map(|item| *item = value).is_some()
        }
        None => false,
    }
}

enum Parent<'e> {
    Map(&'e mut Map<String, Json>),
    List(&'e mut Vec<Json>),
}

/// What holds the last part of a pointer (RFC 6901), and that part.
fn parent<'e>(event: &'e mut Map<String, Json>, path: &str) -> Option<(Parent<'e>, String)> {
    let unescape = |part: &str| part.replace("~1", "/").replace("~0", "~");
    let mut parts: Vec<String> = path.strip_prefix('/')?.split('/').map(unescape).collect();
    let last = parts.pop()?;
    let mut at = Parent::Map(event);
    for part in parts {
        let next = match at {
            Parent::Map(map) => map.get_mut(&part)?,
            Parent::List(items) => items.get_mut(part.parse::<usize>().ok()?)?,
        };
        at = match next {
            Json::Object(map) => Parent::Map(map),
            Json::Array(items) => Parent::List(items),
            _ => return None,
        };
    }
    Some((at, last))
}

/// One decision, in OPA's form.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct DecisionLogEvent {
    /// Names the deployment, such as `app` and `version`.
    pub labels: Vec<(String, String)>,
    /// Names the decision.
    pub decision_id: String,
    /// The bundles that decided: name and revision.
    pub bundles: Vec<(String, String)>,
    /// The query, slashes between its parts, such as `envoy/authz/allow`.
    pub path: String,
    /// The input document.
    pub input: Json,
    /// The value of the query, if there is one.
    pub result: Option<Json>,
    /// Why there is none, or why it did not count.
    pub error: Option<RegoDenyReason>,
    /// The address of the client.
    pub requested_by: String,
    /// When, as RFC 3339.
    pub timestamp: String,
    /// How long evaluation took.
    pub eval_ns: u64,
    /// The number of the event since the log began.
    pub req_id: u64,
}

impl DecisionLogEvent {
    /// The event as OPA writes it, unmasked.
    #[must_use]
    pub fn to_json(self) -> Json {
        let map = |pairs: Vec<(String, String)>| -> Map<String, Json> {
            pairs.into_iter().map(|(name, value)| (name, Json::from(value))).collect()
        };
        let revisions: Map<String, Json> = self
            .bundles
            .into_iter()
            .map(|(name, revision)| (name, json!({ "revision": revision })))
            .collect();
        let mut event = json!({
            "labels": map(self.labels),
            "decision_id": self.decision_id,
            "path": self.path,
            "input": self.input,
            "requested_by": self.requested_by,
            "timestamp": self.timestamp,
            "metrics": { "timer_rego_query_eval_ns": self.eval_ns },
            "req_id": self.req_id,
        });
        if let Some(event) = event.as_object_mut() {
            if !revisions.is_empty() {
                event.insert("bundles".to_owned(), Json::Object(revisions));
            }
            if let Some(result) = self.result {
                event.insert("result".to_owned(), result);
            }
            if let Some(error) = self.error {
                let error = json!({ "code": error.as_str(), "message": "the request was denied" });
                event.insert("error".to_owned(), error);
            }
        }
        event
    }
}
