//! The recorded decisions as data: one question and Envoy's answer per line.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;
use serde_json::{Map, Value};

/// A line; fields that this test does not look at are passed over.
#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) id: String,
    pub(crate) policies: Vec<Value>,
    pub(crate) mesh: Mesh,
    pub(crate) workload: WorkloadOf,
    pub(crate) request: Request,
    pub(crate) expect: Expect,
}

impl Vector {
    pub(crate) fn group(&self) -> &str {
        self.id.split('/').next().unwrap_or_default()
    }

    /// Lines with the same first two parts share policies, mesh and workload.
    pub(crate) fn set_id(&self) -> &str {
        self.id.rsplit_once('/').map_or(&self.id, |(set, _)| set)
    }

    pub(crate) fn destination(&self) -> SocketAddr {
        SocketAddr::new(self.request.destination_ip, self.request.destination_port)
    }
}

#[derive(Deserialize)]
pub(crate) struct Mesh {
    pub(crate) trust_domain: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) root_namespace: String,
    pub(crate) path_normalization: String,
    #[serde(default)]
    pub(crate) extension_providers: BTreeMap<String, Mock>,
    #[serde(default)]
    pub(crate) enable_multiple_custom_providers: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mock {
    pub(crate) behaviour: String,
    pub(crate) fail_open: bool,
    pub(crate) status_on_error: Value,
    pub(crate) invalid: bool,
}

#[derive(Deserialize)]
pub(crate) struct WorkloadOf {
    pub(crate) namespace: String,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
pub(crate) struct Request {
    pub(crate) transport: String,
    #[serde(default)]
    pub(crate) http_version: String,
    #[serde(default)]
    pub(crate) method: String,
    #[serde(default)]
    pub(crate) path: Option<String>,
    #[serde(default)]
    pub(crate) authority: Option<String>,
    #[serde(default)]
    pub(crate) headers: Vec<(String, String)>,
    #[serde(default)]
    pub(crate) peer: Peer,
    pub(crate) source_ip: IpAddr,
    pub(crate) destination_ip: IpAddr,
    pub(crate) destination_port: u16,
    #[serde(default)]
    pub(crate) xff: Option<String>,
    #[serde(default)]
    pub(crate) sni: Option<String>,
    #[serde(default)]
    pub(crate) jwt_claims: Option<Map<String, Value>>,
    #[serde(default)]
    pub(crate) dynamic_metadata: Option<Map<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Peer {
    pub(crate) tls: bool,
    pub(crate) spiffe_id: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Expect {
    pub(crate) decision: String,
    pub(crate) status: Option<u16>,
    pub(crate) body: Option<String>,
    pub(crate) grpc_status: Option<u16>,
    pub(crate) grpc_message: Option<String>,
    pub(crate) stage: Option<String>,
    #[serde(default)]
    pub(crate) matched_policy: Matched,
    pub(crate) shadow: Option<BTreeMap<String, Shadow>>,
    pub(crate) audit: Option<bool>,
    pub(crate) reject_reason: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Shadow {
    pub(crate) result: String,
}

/// `matched_policy`: null and absent differ.
#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
pub(crate) enum Matched {
    #[default]
    Absent,
    NoRule,
    Rule(String),
}

impl From<Option<String>> for Matched {
    fn from(id: Option<String>) -> Self {
        id.map_or(Self::NoRule, Self::Rule)
    }
}

impl Matched {
    pub(crate) fn rule(&self) -> Option<&str> {
        match self {
            Self::Absent | Self::NoRule => None,
            Self::Rule(id) => Some(id),
        }
    }
}
