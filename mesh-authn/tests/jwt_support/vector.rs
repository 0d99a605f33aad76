//! One recorded case, as its file writes it. Members that nobody here knows are passed over.

use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Deserialize)]
pub(crate) struct Vector {
    pub(crate) id: String,
    pub(crate) group: String,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    pub(crate) request_authentications: Vec<Value>,
    pub(crate) request: Request,
    pub(crate) now: u64,
    #[serde(default)]
    pub(crate) probes: Vec<Probe>,
    pub(crate) expect: Expect,
}

impl Vector {
    pub(crate) fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|own| own == tag)
    }

    /// Whether the README lists what Envoy accepts here as a tolerance, of one of these kinds.
    pub(crate) fn tolerates(&self, kinds: &[&str]) -> bool {
        let is_of = |kind: &&str| self.has_tag(&format!("kind:{kind}"));
        self.has_tag("envoy-tolerates") && kinds.iter().any(is_of)
    }
}

#[derive(Clone, Deserialize)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) scheme: String,
    /// Each character is one byte, here and in `headers`.
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum Probe {
    #[serde(rename_all = "camelCase")]
    Principals {
        request_principals: Vec<String>,
    },
    Claim {
        key: String,
        values: Vec<String>,
    },
}

#[derive(Clone, Deserialize)]
pub(crate) struct Expect {
    pub(crate) outcome: Outcome,
    pub(crate) error: Option<String>,
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<String>,
    #[serde(default)]
    pub(crate) response_headers: serde_json::Map<String, Value>,
    pub(crate) principal: Option<String>,
    pub(crate) any_principal: Option<bool>,
    pub(crate) claims: Option<Value>,
    pub(crate) upstream_method: Option<String>,
    pub(crate) upstream_path: Option<String>,
    pub(crate) upstream_path_plain: Option<String>,
    pub(crate) upstream_headers: Option<Vec<(String, String)>>,
    pub(crate) probes: Option<Vec<Option<bool>>>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Authenticated,
    Anonymous,
    Rejected,
    ConfigRejected,
    Transport,
}
