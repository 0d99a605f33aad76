//! Turns a recorded case into calls of the library, and its answer into something comparable.

mod deviation;
mod normal;
mod policy;
pub(crate) mod vector;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use mesh_authn::request::{
    Authentication, KeySet, KeySets, KeySource, Refusal, RequestAuthentication,
    RequestAuthenticator, RequestView, TokenOptions, Tolerance,
};
use mesh_identity::manifest;
use mesh_identity::{MeshSettings, VerifiedToken, Workload};
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};

pub(crate) use deviation::Deviation;
use vector::{Outcome, Vector};

/// Every line of every `*.jsonl` and `*.jsonl.gz` below a folder, in the order of the names.
pub(crate) fn read_lines(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut entries: Vec<_> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            lines.extend(read_lines(&path));
            continue;
        }
        let bytes = std::fs::read(&path).unwrap();
        let text = match name.rsplit_once(".jsonl") {
            Some((_, ".gz")) => {
                let mut text = String::new();
                flate2::read::GzDecoder::new(&bytes[..]).read_to_string(&mut text).unwrap();
                text
            }
            Some((_, "")) => String::from_utf8(bytes).unwrap(),
            Some(_) | None => continue,
        };
        lines.extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
    }
    lines
}

/// The resources of a vector, compiled; or why they cannot be.
pub(crate) fn compile(
    vector: &Vector,
    options: &TokenOptions,
) -> Result<RequestAuthenticator, String> {
    let Documents { documents, fetched } = documents(vector);
    let mut keys = KeySets::new();
    for (url, text) in fetched {
        let set = KeySet::parse(text.as_bytes()).map_err(|error| error.to_string())?;
        keys.insert(KeySource::Url(url), Arc::new(set));
    }
    let mut resources = Vec::new();
    for text in documents {
        let manifests = manifest::read(&text, &vector.id, "default")
            .map_err(|problems| problems.to_string())?;
        let resource = RequestAuthentication::from_manifest(&manifests.resources[0])
            .map_err(|problems| problems.to_string())?;
        resources.push(resource);
    }
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let workload = Workload::new("default");
    RequestAuthenticator::compile(&resources, &workload, &mesh, options.clone(), &keys)
        .map_err(|problems| problems.to_string())
}

/// The resources of a vector as manifests, and the key sets that were fetched, by URL.
pub(crate) struct Documents {
    pub(crate) documents: Vec<String>,
    pub(crate) fetched: Vec<(String, String)>,
}

pub(crate) fn documents(vector: &Vector) -> Documents {
    let mut fetched = Vec::new();
    let resources = vector.request_authentications.iter().enumerate();
    let documents = resources.map(|(at, resource)| {
        let mut spec = resource.get("spec").cloned().unwrap_or(json!({}));
        fetch_keys(&mut spec, &mut fetched);
        json!({
            "apiVersion": "security.istio.io/v1",
            "kind": "RequestAuthentication",
            // The order in which istiod hands them out.
            "metadata": {"name": format!("ra-{at:06}"), "namespace": "default"},
            "spec": spec,
        })
        .to_string()
    });
    Documents { documents: documents.collect(), fetched }
}

/// A rule with `jwksUri` beside `jwks`, which the CRD refuses, stands for a set that was fetched
/// from there: a rule without issuer must name a URL [SEM-VAL-20].
fn fetch_keys(spec: &mut Value, fetched: &mut Vec<(String, String)>) {
    let rules = spec.get_mut("jwtRules").and_then(Value::as_array_mut);
    for (at, rule) in rules.into_iter().flatten().enumerate() {
        let rule = rule.as_object_mut().unwrap();
        if !rule.contains_key("jwksUri") {
            continue;
        }
        let Some(Value::String(text)) = rule.remove("jwks") else { continue };
        let url = format!("{}?{at}", rule["jwksUri"].as_str().unwrap());
        fetched.push((url.clone(), text));
        rule.insert("jwksUri".to_owned(), Value::String(url));
    }
}

/// The request of a vector as a server would hand it over.
struct Incoming {
    method: Method,
    scheme: String,
    host: String,
    path: String,
    headers: HeaderMap,
}

impl Incoming {
    fn new(vector: &Vector) -> Self {
        let request = &vector.request;
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            // A codec takes white space off both ends.
            let value = bytes_of(value);
            let value = value.trim_ascii();
            if let (Ok(name), Ok(value)) =
                (HeaderName::from_bytes(&bytes_of(name)), HeaderValue::from_bytes(value))
            {
                headers.append(name, value);
            }
        }
        let text = |name: &str| {
            headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            method: Method::from_bytes(request.method.as_bytes()).unwrap_or(Method::GET),
            scheme: text("x-forwarded-proto").unwrap_or_else(|| request.scheme.clone()),
            host: text("host").unwrap_or_default(),
            path: normal::path(&String::from_utf8_lossy(&bytes_of(&request.path))),
            headers,
        }
    }

    fn view(&self) -> RequestView<'_> {
        RequestView {
            method: &self.method,
            scheme: &self.scheme,
            host: &self.host,
            path_and_query: &self.path,
            headers: &self.headers,
        }
    }
}

pub(crate) fn bytes_of(text: &str) -> Vec<u8> {
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect()
}

pub(crate) fn judge(authenticator: &RequestAuthenticator, vector: &Vector) -> Authentication {
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(vector.now));
    let incoming = Incoming::new(vector);
    let first = authenticator.authenticate(&incoming.view(), now);
    // A token seen before must be judged the same.
    let again = authenticator.authenticate(&incoming.view(), now);
    assert_eq!(format!("{first:?}"), format!("{again:?}"), "{}", vector.id);
    first
}

/// Nothing where both agree, the documented reason where they differ, or what differs.
pub(crate) fn compare(
    vector: &Vector,
    ours: &Result<RequestAuthenticator, String>,
    options: &TokenOptions,
) -> Result<Option<Deviation>, String> {
    let expect = &vector.expect;
    let authenticator = match (ours, expect.outcome) {
        (Err(_), Outcome::ConfigRejected) => return Ok(None),
        (Ok(_), Outcome::ConfigRejected) => {
            let error = expect.error.as_deref().unwrap_or_default();
            return Err(format!("configuration accepted, Envoy: {error}"));
        }
        (Err(error), _) => {
            return Deviation::of_configuration(vector, error)
                .map(Some)
                .ok_or_else(|| format!("configuration refused: {error}"));
        }
        (Ok(authenticator), _) => authenticator,
    };
    let incoming = Incoming::new(vector);
    let difference = match judge(authenticator, vector) {
        Authentication::Refused(refusal) => {
            let Err(difference) = compare_refusal(vector, &incoming, refusal, options) else {
                return Ok(None);
            };
            return Deviation::of_refusal(vector, refusal).map(Some).ok_or(difference);
        }
        Authentication::Anonymous(effects) => compare_passed(vector, incoming, None, &effects),
        Authentication::Authenticated { token, effects } => {
            compare_passed(vector, incoming, Some(&token), &effects)
        }
    };
    difference.map(|()| None)
}

fn compare_refusal(
    vector: &Vector,
    incoming: &Incoming,
    refusal: Refusal,
    options: &TokenOptions,
) -> Result<(), String> {
    let expect = &vector.expect;
    if expect.outcome != Outcome::Rejected {
        return Err(format!("refused ({:?}), Envoy: {:?}", refusal.reason(), expect.outcome));
    }
    let content_type = incoming.headers.get("content-type").map(HeaderValue::as_bytes);
    let is_grpc = content_type.is_some_and(|value| {
        value == b"application/grpc" || value.starts_with(b"application/grpc+")
    });
    let header = |name: &str| expect.response_headers.get(name).and_then(Value::as_str);
    if is_grpc {
        check("status", &expect.status, &Some(200))?;
        check("grpc-status", &header("grpc-status"), &Some(&*refusal.grpc_status().to_string()))?;
        check("grpc-message", &header("grpc-message"), &Some(refusal.body()))?;
        check("content-type", &header("content-type"), &Some("application/grpc"))?;
    } else {
        check("status", &expect.status, &Some(refusal.status().as_u16()))?;
        if incoming.method != Method::HEAD {
            check("body", &expect.body.as_deref(), &Some(refusal.body()))?;
        }
        check("content-type", &header("content-type"), &Some("text/plain"))?;
    }
    let ours = refusal.www_authenticate(&incoming.view());
    let ours: String = ours.as_bytes().iter().copied().map(char::from).collect();
    let theirs = header("www-authenticate").unwrap_or_default();
    if options.tolerates(Tolerance::PathInRealm) {
        return check("www-authenticate", &theirs, &&*ours);
    }
    // Strict mode leaves path and query out of the realm [SEM-STRICT-02]; the rest is the same.
    let origin = format!("{}://{}", incoming.scheme, incoming.host);
    let want = format!("Bearer realm=\"{origin}\", error=\"invalid_token\"");
    check("www-authenticate", &want, &ours)?;
    if !theirs.starts_with(&format!("Bearer realm=\"{origin}")) {
        return Err(format!("www-authenticate {theirs}"));
    }
    Ok(())
}

fn compare_passed(
    vector: &Vector,
    incoming: Incoming,
    token: Option<&VerifiedToken>,
    effects: &mesh_authn::request::Effects,
) -> Result<(), String> {
    compare_token(vector, token)?;
    let path = effects.path_and_query().unwrap_or(&incoming.path).to_owned();
    let mut headers = incoming.headers;
    effects.apply(&mut headers);
    compare_upstream(vector, &incoming.method, &path, &headers)
}

/// What policies see of a request that passed.
pub(crate) fn compare_token(vector: &Vector, token: Option<&VerifiedToken>) -> Result<(), String> {
    let expect = &vector.expect;
    let outcome = if token.is_some() { Outcome::Authenticated } else { Outcome::Anonymous };
    check("outcome", &expect.outcome, &outcome)?;
    check("status", &expect.status, &Some(200))?;
    check("principal", &expect.principal, &token.and_then(VerifiedToken::principal))?;
    let any = token.is_some_and(|token| policy::matches_principals(token, &["*".to_owned()]));
    check("any_principal", &expect.any_principal, &Some(any))?;
    let claims = token.map(|token| Value::Object(token.view().object().clone()));
    check("claims", &expect.claims.as_ref().map(doubles), &claims.as_ref().map(doubles))?;
    let probes: Vec<Option<bool>> =
        vector.probes.iter().map(|probe| Some(policy::matches(token, probe))).collect();
    check("probes", &expect.probes.clone().unwrap_or_default(), &probes)
}

/// What the application sees of it.
pub(crate) fn compare_upstream(
    vector: &Vector,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<(), String> {
    let expect = &vector.expect;
    check("method", &expect.upstream_method.as_deref(), &Some(method.as_str()))?;
    let want = expect.upstream_path_plain.as_ref().or(expect.upstream_path.as_ref());
    let want = want.map(|want| String::from_utf8_lossy(&bytes_of(want)).into_owned());
    check("path", &want.as_deref(), &Some(path))?;
    let ours = headers.iter().map(|(name, value)| {
        let value: String = value.as_bytes().iter().copied().map(char::from).collect();
        (name.as_str().to_owned(), value)
    });
    let theirs = expect.upstream_headers.clone().unwrap_or_default();
    let (ours, theirs) = (by_name(ours, vector), by_name(theirs, vector));
    check("headers", &theirs, &ours)
}

/// Values by name, without the two headers that the recording proxy adds.
fn by_name(
    headers: impl IntoIterator<Item = (String, String)>,
    vector: &Vector,
) -> BTreeMap<String, Vec<Value>> {
    let mut map: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        if name != "x-forwarded-proto" && name != "content-length" {
            map.entry(name).or_default().push(Value::String(value));
        }
    }
    for (name, values) in &mut map {
        // Envoy joins the lines of some headers before any filter sees them.
        if vector.has_tag("repeated-header") {
            let separator = if name == "cookie" { "; " } else { "," };
            let all: Vec<&str> = values.iter().filter_map(Value::as_str).collect();
            *values = vec![Value::String(all.join(separator))];
        }
        if vector.has_tag("json-claim-header") {
            values.iter_mut().for_each(decode_json_claim);
        }
    }
    map
}

/// Base64 of JSON becomes the JSON, because member order is not stable.
fn decode_json_claim(value: &mut Value) {
    let text = value.as_str().unwrap_or_default();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    if let Ok(decoded) = serde_json::from_slice::<Value>(&bytes) {
        *value = doubles(&decoded);
    }
}

/// Every number as the double it is to Envoy.
fn doubles(value: &Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.iter().map(doubles).collect(),
        Value::Object(object) => {
            object.iter().map(|(name, value)| (name.clone(), doubles(value))).collect()
        }
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

pub(crate) fn check<T: PartialEq + std::fmt::Debug>(
    what: &str,
    theirs: &T,
    ours: &T,
) -> Result<(), String> {
    if theirs == ours { Ok(()) } else { Err(format!("{what}: Envoy {theirs:?}, ours {ours:?}")) }
}
