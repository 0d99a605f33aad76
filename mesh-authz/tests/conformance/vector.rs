//! The vectors as data: one question and Envoy's answer per line.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

/// A line. Whatever may be missing has a default and unknown fields are passed over, so that lines
/// of further kinds are still judged.
#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) id: String,
    #[serde(default)]
    group: Option<String>,
    #[serde(default = "yes")]
    pub(crate) admissible: bool,
    #[serde(default)]
    pub(crate) policies: Vec<Value>,
    #[serde(default)]
    pub(crate) mesh: Mesh,
    pub(crate) workload: WorkloadOf,
    pub(crate) request: Request,
    pub(crate) expect: Expect,
}

fn yes() -> bool {
    true
}

impl Vector {
    /// The group, which is also what ids begin with.
    pub(crate) fn group(&self) -> &str {
        let from_id = self.id.split('/').next().unwrap_or_default();
        self.group.as_deref().unwrap_or(from_id)
    }

    /// Lines with the same first two parts share policies, mesh and workload.
    pub(crate) fn set_id(&self) -> &str {
        self.id.rsplit_once('/').map_or(&self.id, |(set, _)| set)
    }
}

#[derive(Deserialize)]
#[serde(default)]
pub(crate) struct Mesh {
    pub(crate) trust_domain: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) root_namespace: String,
    pub(crate) path_normalization: String,
    pub(crate) extension_providers: BTreeMap<String, Mock>,
    pub(crate) enable_multiple_custom_providers: bool,
}

/// Istio's own defaults.
impl Default for Mesh {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            path_normalization: "DEFAULT".to_owned(),
            extension_providers: BTreeMap::new(),
            enable_multiple_custom_providers: false,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Mock {
    pub(crate) behaviour: String,
    pub(crate) fail_open: bool,
    /// Text or number.
    pub(crate) status_on_error: Value,
    pub(crate) invalid: bool,
    /// `http` unless it says otherwise.
    pub(crate) kind: Option<String>,
}

impl Mock {
    pub(crate) fn status_on_error(&self) -> u16 {
        let text = self.status_on_error.as_str().map(str::to_owned);
        let text = text.unwrap_or_else(|| self.status_on_error.to_string());
        text.parse().unwrap_or(403)
    }
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
    pub(crate) uri_sans: Vec<String>,
    pub(crate) dns_sans: Vec<String>,
    pub(crate) subject: Vec<(String, String)>,
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
    pub(crate) shadow: Option<BTreeMap<String, ShadowOf>>,
    pub(crate) audit: Option<bool>,
    pub(crate) custom_matched_policy: Option<String>,
    pub(crate) reject_reason: Option<String>,
    #[serde(default)]
    pub(crate) observed: Observed,
}

#[derive(Debug, Deserialize, Eq, PartialEq)]
pub(crate) struct ShadowOf {
    pub(crate) result: String,
    pub(crate) policy: Option<String>,
}

/// What Envoy's access log showed; nothing of it when a line has none.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Observed {
    /// Null for a request without path.
    pub(crate) path: Logged,
    remote_ip: Option<String>,
    pub(crate) authority: Option<String>,
    pub(crate) jwt_payload: Option<Map<String, Value>>,
}

impl Observed {
    /// The client address, without an IPv6 zone; nothing when none was logged.
    pub(crate) fn remote_ip(&self) -> Option<IpAddr> {
        let text = self.remote_ip.as_deref()?.trim_matches(['[', ']']);
        text.split('%').next()?.parse().ok()
    }
}

/// A field of the log: null and absent differ.
#[derive(Default, Deserialize)]
#[serde(from = "Option<String>")]
pub(crate) enum Logged {
    #[default]
    Absent,
    Nothing,
    Text(String),
}

impl From<Option<String>> for Logged {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Nothing, Self::Text)
    }
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

/// The bytes that a string of the vectors stands for; UTF-8 where a character is no byte.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match u8::try_from(u32::from(c)) {
            Ok(byte) => bytes.push(byte),
            Err(_) => bytes.extend(c.to_string().bytes()),
        }
    }
    bytes
}

/// Every vector below the directory, files in order of their names, and the lines that are none.
pub(crate) fn read_all() -> (Vec<Vector>, Vec<String>) {
    let dir = std::env::var_os("MESH_AUTHZ_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from);
    let mut files = Vec::new();
    files_below(&dir, &mut files);
    files.sort();
    let (mut vectors, mut unreadable) = (Vec::new(), Vec::new());
    for file in files {
        let raw = std::fs::read(&file).unwrap();
        let name = file.to_string_lossy();
        let text = if name.ends_with(".jsonl.gz") {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&raw[..]).read_to_string(&mut text).unwrap();
            text
        } else if name.ends_with(".jsonl") {
            String::from_utf8(raw).unwrap()
        } else {
            continue;
        };
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(vector) => vectors.push(vector),
                Err(error) => unreadable.push(format!("{name}: line {}: {error}", at + 1)),
            }
        }
    }
    assert!(!vectors.is_empty(), "no vectors below {}", dir.display());
    (vectors, unreadable)
}

fn files_below(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else {
            files.push(path);
        }
    }
}
