//! What a policy's answer means for the request (interfaces of OPA's Envoy plugin).

use http::{HeaderName, HeaderValue, StatusCode};
use regorus::Value;

use super::parse::BadInput;

/// What becomes of a request.
///
/// There is no error: what goes wrong is a `Deny` with its reason ([SEC-REGO-7]).
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a new verdict must break every caller")]
pub enum RegoDecision {
    /// The request goes on.
    Allow {
        /// Headers for the upstream request; an earlier header of the same name is replaced by
        /// all entries of that name together (member `headers`).
        headers_to_set: Vec<(HeaderName, HeaderValue)>,
        /// Headers that the upstream must not see (`request_headers_to_remove`). `host` and
        /// pseudo headers are left out, as Envoy does.
        headers_to_remove: Vec<HeaderName>,
        /// Headers to add to the upstream's response (`response_headers_to_add`).
        response_headers: Vec<(HeaderName, HeaderValue)>,
        /// Query parameters to set, decoded (`query_parameters_to_set`).
        query_to_set: Vec<(String, String)>,
        /// Query parameters to remove, decoded (`query_parameters_to_remove`).
        query_to_remove: Vec<String>,
        /// What the policy hands to later filters and logs (`dynamic_metadata`).
        dynamic_metadata: serde_json::Map<String, serde_json::Value>,
    },
    /// The request ends here.
    Deny {
        /// The response's status: the policy's `http_status`, else 403; 400 for bad input.
        status: StatusCode,
        /// The response's headers (member `headers`); a name may repeat.
        headers: Vec<(HeaderName, HeaderValue)>,
        /// The response's body; empty unless the policy gives one.
        body: String,
        /// Why. For the audit event, not for the response.
        reason: RegoDenyReason,
        /// What the policy hands to logs (`dynamic_metadata`).
        dynamic_metadata: serde_json::Map<String, serde_json::Value>,
    },
}

/// Why Rego denied.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum RegoDenyReason {
    /// The request could not be turned into an input document; the policy was not asked.
    BadInput(BadInput),
    /// Two definitions of a complete rule, or of a key, gave different values.
    Conflict,
    /// A builtin failed or an operator got the wrong type.
    EvaluationError,
    /// The instruction budget, or a builtin's argument limit, is exhausted.
    LimitExceeded,
    /// There is no policy yet; only callers that wait for one say so.
    NoPolicy,
    /// The caller's time limit passed before there was an answer; only callers of a pool say so.
    Overrun,
    /// The pool's queue was full; only callers of a pool say so.
    Overloaded,
    /// The policy said no.
    Policy,
    /// The query has no value.
    Undefined,
    /// The answer, or a member of it, has a type that the plugin does not accept.
    WrongType,
}

impl RegoDenyReason {
    /// The reason's name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadInput(_) => "bad_input",
            Self::Conflict => "conflict",
            Self::EvaluationError => "evaluation_error",
            Self::LimitExceeded => "limit_exceeded",
            Self::NoPolicy => "no_policy",
            Self::Overrun => "overrun",
            Self::Overloaded => "overloaded",
            Self::Policy => "policy",
            Self::Undefined => "undefined",
            Self::WrongType => "wrong_type",
        }
    }
}

impl RegoDecision {
    /// A denial without anything of the policy's: 403, or 400 for bad input.
    #[must_use]
    pub fn deny(reason: RegoDenyReason) -> Self {
        let status = match reason {
            RegoDenyReason::BadInput(_) => StatusCode::BAD_REQUEST,
            RegoDenyReason::Conflict
            | RegoDenyReason::EvaluationError
            | RegoDenyReason::LimitExceeded
            | RegoDenyReason::NoPolicy
            | RegoDenyReason::Overrun
            | RegoDenyReason::Overloaded
            | RegoDenyReason::Policy
            | RegoDenyReason::Undefined
            | RegoDenyReason::WrongType => StatusCode::FORBIDDEN,
        };
        Self::Deny {
            status,
            headers: Vec::new(),
            body: String::new(),
            reason,
            dynamic_metadata: serde_json::Map::new(),
        }
    }

    /// Whether the request goes on.
    #[must_use]
    pub const fn is_allow(&self) -> bool {
        matches!(self, Self::Allow { .. })
    }

    /// Why the request was denied, if it was.
    #[must_use]
    pub const fn reason(&self) -> Option<RegoDenyReason> {
        match self {
            Self::Allow { .. } => None,
            Self::Deny { reason, .. } => Some(*reason),
        }
    }

    /// Reads the value of the query, as the plugin would.
    pub(super) fn read(answer: &Value) -> Self {
        let read = match answer {
            Value::Bool(true) => Some(Self::allow()),
            Value::Bool(false) => Some(Self::deny(RegoDenyReason::Policy)),
            Value::Undefined => Some(Self::deny(RegoDenyReason::Undefined)),
            Value::Object(object) => {
                let members = Members::of(object.iter());
                match members.allowed.as_bool() {
                    Ok(true) => members.allow(),
                    Ok(false) => members.deny(),
                    Err(_) => None,
                }
            }
            Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Set(_) => {
                None
            }
        };
        read.unwrap_or_else(|| Self::deny(RegoDenyReason::WrongType))
    }

    fn allow() -> Self {
        Self::Allow {
            headers_to_set: Vec::new(),
            headers_to_remove: Vec::new(),
            response_headers: Vec::new(),
            query_to_set: Vec::new(),
            query_to_remove: Vec::new(),
            dynamic_metadata: serde_json::Map::new(),
        }
    }
}

/// The members of an answer that mean something; undefined where there is none.
struct Members<'a> {
    allowed: &'a Value,
    body: &'a Value,
    dynamic_metadata: &'a Value,
    headers: &'a Value,
    http_status: &'a Value,
    query_parameters_to_remove: &'a Value,
    query_parameters_to_set: &'a Value,
    request_headers_to_remove: &'a Value,
    response_headers_to_add: &'a Value,
}

// The readers below return nothing when a member has the wrong type: one such member denies.

impl<'a> Members<'a> {
    fn of(entries: impl Iterator<Item = (&'a Value, &'a Value)>) -> Self {
        const NONE: &Value = &Value::Undefined;
        let mut members = Self {
            allowed: NONE,
            body: NONE,
            dynamic_metadata: NONE,
            headers: NONE,
            http_status: NONE,
            query_parameters_to_remove: NONE,
            query_parameters_to_set: NONE,
            request_headers_to_remove: NONE,
            response_headers_to_add: NONE,
        };
        for (key, value) in entries {
            let Value::String(key) = key else { continue };
            let member = match &**key {
                "allowed" => &mut members.allowed,
                "body" => &mut members.body,
                "dynamic_metadata" => &mut members.dynamic_metadata,
                "headers" => &mut members.headers,
                "http_status" => &mut members.http_status,
                "query_parameters_to_remove" => &mut members.query_parameters_to_remove,
                "query_parameters_to_set" => &mut members.query_parameters_to_set,
                "request_headers_to_remove" => &mut members.request_headers_to_remove,
                "response_headers_to_add" => &mut members.response_headers_to_add,
                _ => continue,
            };
            *member = value;
        }
        members
    }

    fn allow(&self) -> Option<RegoDecision> {
        let to_remove = texts(self.request_headers_to_remove)?;
        let removable = to_remove
            .iter()
            .filter(|name| !name.starts_with(':') && !name.eq_ignore_ascii_case("host"));
        Some(RegoDecision::Allow {
            headers_to_set: headers(self.headers)?,
            headers_to_remove: removable.map(|name| name.parse().ok()).collect::<Option<_>>()?,
            response_headers: headers(self.response_headers_to_add)?,
            query_to_set: pairs(self.query_parameters_to_set)?,
            query_to_remove: texts(self.query_parameters_to_remove)?,
            dynamic_metadata: metadata(self.dynamic_metadata)?,
        })
    }

    fn deny(&self) -> Option<RegoDecision> {
        let body = if *self.body == Value::Undefined {
            String::new()
        } else {
            text(self.body)?.to_owned()
        };
        Some(RegoDecision::Deny {
            status: status(self.http_status)?,
            headers: headers(self.headers)?,
            body,
            reason: RegoDenyReason::Policy,
            dynamic_metadata: metadata(self.dynamic_metadata)?,
        })
    }
}

/// A status that has a name; informational ones cannot end a request.
fn status(value: &Value) -> Option<StatusCode> {
    if *value == Value::Undefined {
        return Some(StatusCode::FORBIDDEN);
    }
    let status = StatusCode::from_u16(value.as_u16().ok()?).ok()?;
    (status.canonical_reason().is_some() && !status.is_informational()).then_some(status)
}

/// Header entries of an object, or of an array of objects.
fn headers(value: &Value) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut headers = Vec::new();
    let mut add = |name: &str, value: &str| {
        headers.push((name.parse().ok()?, HeaderValue::from_str(value).ok()?));
        Some(())
    };
    match items(value) {
        Some(mut objects) => objects.try_for_each(|object| each_pair(object, &mut add))?,
        None => each_pair(value, &mut add)?,
    }
    Some(headers)
}

/// The entries of an object whose values are a string or an array of strings; sorted by key.
fn pairs(value: &Value) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    each_pair(value, &mut |name, value| {
        pairs.push((name.to_owned(), value.to_owned()));
        Some(())
    })?;
    Some(pairs)
}

/// Hands each entry of such an object on, until one is not taken; undefined is an empty object.
fn each_pair(value: &Value, take: &mut impl FnMut(&str, &str) -> Option<()>) -> Option<()> {
    if *value == Value::Undefined {
        return Some(());
    }
    for (key, value) in value.as_object().ok()?.iter_sorted() {
        let Value::String(key) = key else { return None };
        match items(value) {
            Some(mut values) => values.try_for_each(|value| take(key, text(value)?))?,
            None => take(key, text(value)?)?,
        }
    }
    Some(())
}

/// The strings of an array; nothing at all is an empty one.
fn texts(value: &Value) -> Option<Vec<String>> {
    if *value == Value::Undefined {
        return Some(Vec::new());
    }
    items(value)?.map(|value| text(value).map(str::to_owned)).collect()
}

fn text(value: &Value) -> Option<&str> {
    if let Value::String(text) = value { Some(text) } else { None }
}

/// The elements of an array, or of a set, which is an array in JSON.
fn items(value: &Value) -> Option<Box<dyn Iterator<Item = &Value> + '_>> {
    if let Value::Set(set) = value {
        return Some(Box::new(set.iter_sorted()));
    }
    Some(Box::new(value.as_array().ok()?.iter()))
}

fn metadata(value: &Value) -> Option<serde_json::Map<String, serde_json::Value>> {
    if *value == Value::Undefined {
        return Some(serde_json::Map::new());
    }
    value.as_object().ok()?;
    serde_json::from_value(serde_json::to_value(value).ok()?).ok()
}
