//! What happens to a request that is let in: tokens go, claims come ([SEM-JWT-50] to [SEM-JWT-58]).

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue};
use mesh_identity::Claims;
use serde_json::Value;

use super::authenticator::Accepted;
use super::few::Few;
use super::resource::ClaimHeader;
use super::token::whole_seconds;

/// What to do to the request before the application sees it.
#[derive(Clone)]
pub struct Effects {
    /// Every header that any rule writes, if one does: a client's copy never gets through
    /// ([SEM-JWT-58]).
    scrub: Option<Arc<[HeaderName]>>,
    applied: Few<Applied>,
    path_and_query: Option<String>,
}

/// One accepted token.
#[derive(Clone)]
pub(super) struct Applied {
    pub(super) accepted: Arc<Accepted>,
    /// The header it came from, unless it is forwarded.
    pub(super) gone: Option<HeaderName>,
    /// Whether the payload's header is written.
    pub(super) writes_payload: bool,
}

impl Effects {
    pub(super) fn new(
        scrub: Option<&Arc<[HeaderName]>>,
        applied: Few<Applied>,
        path_and_query: Option<String>,
    ) -> Self {
        Self { scrub: scrub.cloned(), applied, path_and_query }
    }

    /// Whether the request is passed on as it came.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.scrub.is_none() && self.applied.is_empty()
    }

    /// Removes client copies of output headers and the tokens that are not forwarded, then writes
    /// the output headers.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for name in self.scrub.iter().flat_map(|names| names.iter()) {
            headers.remove(name);
        }
        for applied in self.applied.iter() {
            if let Some(gone) = &applied.gone {
                headers.remove(gone);
            }
        }
        for (name, value) in self.outputs() {
            // A request whose map is full loses an output, which never opens anything: the
            // client's copies are gone already.
            drop(headers.try_append(name, value.clone()));
        }
    }

    /// What is written, in the order in which Envoy adds it.
    fn outputs(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.applied.iter().flat_map(|applied| {
            let payload = applied.accepted.payload_output.as_ref();
            let payload = payload.filter(|_| applied.writes_payload);
            payload.into_iter().chain(&applied.accepted.claim_outputs)
        })
    }

    /// The path and query without token parameters, when one was taken out.
    #[must_use]
    pub fn path_and_query(&self) -> Option<&str> {
        self.path_and_query.as_deref()
    }
}

/// Values of output headers are personal data; only names are shown.
impl fmt::Debug for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.applied.iter().filter_map(|applied| applied.gone.as_ref());
        f.debug_struct("Effects")
            .field("scrub", &self.scrub)
            .field("remove", &removed.collect::<Vec<_>>())
            .field("set", &self.outputs().map(|(name, _)| name).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// The payload as it was in the token ([SEM-JWT-56]).
pub(super) fn payload_output(
    header: Option<&HeaderName>,
    payload_part: &[u8],
) -> Option<(HeaderName, HeaderValue)> {
    Some((header?.clone(), HeaderValue::from_bytes(payload_part).ok()?))
}

/// The headers made from claims. A value that no header can hold is left out ([SEC-JWT-17]).
pub(super) fn claim_outputs(
    headers: &[ClaimHeader],
    claims: &Claims,
) -> Vec<(HeaderName, HeaderValue)> {
    let output = |claim: &ClaimHeader| {
        let value = claims.at(claim.path.iter().map(String::as_str))?;
        Some((claim.header.clone(), header_value(value)?))
    };
    headers.iter().filter_map(output).collect()
}

/// [SEM-JWT-57]
fn header_value(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number_text(number.as_f64()?),
        Value::String(text) if text.is_empty() => return None,
        Value::String(text) => text.trim_matches([' ', '\t']).to_owned(),
        Value::Array(_) | Value::Object(_) => STANDARD.encode(claim.to_string()),
    };
    HeaderValue::from_bytes(text.as_bytes()).ok()
}

/// Numbers are doubles to Envoy: digits for a whole one that fits 64 bits, else six decimals.
fn number_text(number: f64) -> String {
    match whole_seconds(number) {
        Some(whole) if number.fract() == 0.0 => whole.to_string(),
        Some(_) | None => format!("{number:.6}"),
    }
}
