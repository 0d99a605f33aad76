//! The vectors as data: one question and Envoy's answer per line.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Deserialize)]
pub(crate) struct Vector {
    pub(crate) id: String,
    pub(crate) group: String,
    pub(crate) admissible: bool,
    pub(crate) policies: Vec<Value>,
    pub(crate) mesh: Mesh,
    pub(crate) workload: WorkloadOf,
    pub(crate) request: Request,
    pub(crate) expect: Expect,
}

impl Vector {
    /// Lines with the same first two parts share policies, mesh and workload.
    pub(crate) fn set_id(&self) -> &str {
        self.id.rsplit_once('/').map_or(&self.id, |(set, _)| set)
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

#[derive(Deserialize)]
pub(crate) struct Mock {
    pub(crate) behaviour: String,
    #[serde(default)]
    pub(crate) fail_open: bool,
    pub(crate) status_on_error: Option<String>,
    #[serde(default)]
    pub(crate) invalid: bool,
    /// `http` unless it says otherwise.
    #[serde(default)]
    pub(crate) kind: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct WorkloadOf {
    pub(crate) namespace: String,
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

#[derive(Deserialize)]
pub(crate) struct Peer {
    pub(crate) tls: bool,
    #[serde(default)]
    pub(crate) spiffe_id: Option<String>,
    #[serde(default)]
    pub(crate) uri_sans: Vec<String>,
    #[serde(default)]
    pub(crate) dns_sans: Vec<String>,
    #[serde(default)]
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
    pub(crate) observed: Observed,
}

#[derive(Debug, Deserialize, Eq, PartialEq)]
pub(crate) struct ShadowOf {
    pub(crate) result: String,
    pub(crate) policy: Option<String>,
}

#[derive(Deserialize)]
pub(crate) struct Observed {
    pub(crate) path: Option<String>,
    pub(crate) remote_ip: Option<IpAddr>,
    pub(crate) authority: Option<String>,
    pub(crate) jwt_payload: Option<Map<String, Value>>,
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

/// The bytes that a string of the vectors stands for.
pub(crate) fn bytes(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Every vector below the directory, files in order of their names.
pub(crate) fn read_all() -> Vec<Vector> {
    let dir = std::env::var_os("MESH_AUTHZ_VECTORS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors"), PathBuf::from);
    let mut files = Vec::new();
    files_below(&dir, &mut files);
    files.sort();
    let mut vectors = Vec::new();
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
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        vectors.extend(lines.enumerate().map(|(at, line)| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{name}: line {}: {error}", at + 1))
        }));
    }
    assert!(!vectors.is_empty(), "no vectors below {}", dir.display());
    vectors
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
