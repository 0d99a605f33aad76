//! The recorded authorization decisions of Envoy through the whole pipeline: sockets, TLS, hyper, the
//! layer.
//!
//! `MESH_PIPELINE=all cargo test --release -p mesh-tower --test pipeline -- --nocapture authz` sends
//! every vector; without the variable one policy set in eight. `MESH_AUTHZ_VECTORS` names another
//! folder than the copy in mesh-authz.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::StatusCode;
use mesh_tower::authn::request::TokenOptions;
use mesh_tower::authz::{PathNormalization, Semantics, XffTrust};
use mesh_tower::identity::{MeshSettings, SpiffeId, TrustDomain, Workload};
use mesh_tower::{
    Authorizer, CheckAnswer, CheckError, CheckFuture, CheckRequest, Denial, ExtensionProviders,
    Mesh, Policies, Provider, RequestChanges,
};
use serde_json::{Value, json};

use crate::http2::Http2;
use crate::jwt_support::{bytes_of, read_lines};
use crate::tally::{Verdict, tally};
use crate::tokens::Issuer;
use crate::vector::{Matched, Vector};
use crate::wire::{Dial, Reply, Stream, ask_http1, latin1};
use crate::world::{Decided, Identities, LOCALHOST, Witness, bind};

/// [SEM-EVAL-01] The order of judgement, and every answer that the recording has, over the network.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sem_eval_01_the_recorded_decisions_over_real_sockets() {
    let folder = std::env::var_os("MESH_AUTHZ_VECTORS").map(PathBuf::from);
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-authz/tests/vectors");
    let lines = read_lines(&folder.unwrap_or_else(own));
    let vectors: Vec<Vector> =
        lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut sets: BTreeMap<&str, Vec<&Vector>> = BTreeMap::new();
    for vector in vectors.iter().filter(|vector| vector.request.transport == "http") {
        sets.entry(vector.set_id()).or_default().push(vector);
    }
    let all = std::env::var("MESH_PIPELINE").is_ok_and(|which| which == "all");
    let step = if all { 1 } else { 8 };
    let chosen: Vec<Vec<&Vector>> = sets.into_values().step_by(step).collect();
    let (identities, issuer) = (Identities::default(), Issuer::new());
    let verdicts =
        futures_util::stream::iter(chosen.iter().map(|set| run(set, &identities, &issuer)))
            .buffer_unordered(4)
            .concat()
            .await;
    let judged = verdicts.iter().map(|(vector, verdict)| (vector.group(), &*vector.id, verdict));
    let agree = tally("authz", "stricter", judged);
    assert!(agree * 10 >= verdicts.len() * 8, "only {agree} of {} were compared", verdicts.len());
}

/// One set of policies: a server for each address that it is asked at.
async fn run<'v>(
    set: &[&'v Vector],
    identities: &Identities,
    issuer: &Issuer,
) -> Vec<(&'v Vector, Verdict)> {
    let mut verdicts = Vec::new();
    let mut servers: BTreeMap<(SocketAddr, bool), Result<Server, &'static str>> = BTreeMap::new();
    for vector in set {
        let key = (vector.destination(), vector.request.source_ip.is_ipv4());
        let server = match servers.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                place.insert(Server::start(set, vector, identities, issuer).await)
            }
        };
        let verdict = match (server, sendable(vector)) {
            (Ok(server), Ok(())) => server.judge(vector, identities, issuer).await,
            (Err(why), _) => Verdict::Skipped(why),
            (_, Err(why)) => Verdict::Skipped(why),
        };
        verdicts.push((*vector, verdict));
    }
    verdicts
}

/// What a vector needs that the network of this test cannot bring.
fn sendable(vector: &Vector) -> Result<(), &'static str> {
    let (request, peer) = (&vector.request, &vector.request.peer);
    if vector.group() == "proxy-headers" {
        return Err("about headers that Envoy itself adds and drops");
    }
    if request.dynamic_metadata.is_some() {
        return Err("Envoy's metadata does not come over the network");
    }
    if peer.tls && peer.spiffe_id.is_none() {
        return Err("TLS without an X.509-SVID ends in the handshake [SEC-TLS-2]");
    }
    if let Some(claims) = &request.jwt_claims
        && claims.get("iss").and_then(Value::as_str).is_none_or(str::is_empty)
    {
        return Err("a token without issuer, which no inline key set is for [SEM-VAL-20]");
    }
    Ok(())
}

struct Server {
    address: SocketAddr,
    witness: Witness,
    has_custom: bool,
    open: Option<Open>,
}

/// A connection that may take another request.
struct Open {
    like: String,
    stream: Connection,
}

enum Connection {
    Http1(Box<dyn Stream>),
    Http2(Http2),
}

impl Server {
    async fn start(
        set: &[&Vector],
        vector: &Vector,
        identities: &Identities,
        issuer: &Issuer,
    ) -> Result<Self, &'static str> {
        let recorded = &vector.mesh;
        let home: TrustDomain =
            recorded.trust_domain.parse().map_err(|_why| "the mesh's trust domain is none")?;
        let mut domains = BTreeSet::from([home.clone()]);
        let peers = set.iter().filter_map(|one| one.request.peer.spiffe_id.as_deref());
        domains.extend(
            peers
                .filter_map(|id| id.parse::<SpiffeId>().ok())
                .map(|id| id.trust_domain().parse::<TrustDomain>().unwrap()),
        );
        let mut documents: Vec<String> = vector.policies.iter().map(Value::to_string).collect();
        let issuers: BTreeSet<&str> = set
            .iter()
            .filter_map(|one| one.request.jwt_claims.as_ref()?.get("iss")?.as_str())
            .filter(|issuer| !issuer.is_empty())
            .collect();
        if !issuers.is_empty() {
            let rules: Vec<Value> =
                issuers.iter().map(|name| json!({"issuer": name, "jwks": issuer.jwks()})).collect();
            let resource = json!({
                "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
                "metadata": {"name": "tokens", "namespace": vector.workload.namespace},
                "spec": {"jwtRules": rules},
            });
            documents.push(resource.to_string());
        }
        let files = documents.iter().map(|text| ("p.json", text.as_str()));
        let policies = Policies::read(files, "default")
            .map_err(|_why| "policies that Istio's webhook refuses are refused when read")?;
        let aliases = recorded.aliases.iter().filter_map(|alias| alias.parse().ok());
        let settings = MeshSettings::new(home.clone())
            .with_aliases(aliases)
            .with_root_namespace(recorded.root_namespace.clone());
        let mut workload = Workload::new(vector.workload.namespace.clone());
        for (key, value) in &vector.workload.labels {
            workload = workload.with_label(key, value);
        }
        let paths = match recorded.path_normalization.as_str() {
            "NONE" => PathNormalization::None,
            "BASE" | "DEFAULT" => PathNormalization::Base,
            "MERGE_SLASHES" => PathNormalization::MergeSlashes,
            "DECODE_AND_MERGE_SLASHES" => PathNormalization::DecodeAndMergeSlashes,
            other => panic!("path normalization {other}"),
        };
        let own = format!("spiffe://{home}/ns/test/sa/server").parse().unwrap();
        let witness = Witness::default();
        let mesh = Mesh::builder(workload, settings)
            .semantics(Semantics::istio())
            .token_options(TokenOptions::istio())
            .path_normalization(paths)
            .forwarded_for(XffTrust::Anyone)
            .extension_providers(providers(recorded))
            .observer(Arc::new(witness.clone()))
            .build(identities.svid(&own).unwrap(), identities.trust(&domains), policies)
            .map_err(|_why| "policies that Istio's webhook refuses are refused when compiled")?;
        let ip =
            if vector.request.source_ip.is_ipv4() { LOCALHOST } else { "::1".parse().unwrap() };
        let (listener, address) = bind(ip).await.map_err(|_why| "no IPv6 here")?;
        let app = Router::new().fallback(|| async { "served" });
        let server = mesh.server(listener).destination(vector.destination());
        tokio::spawn(server.serve(app, std::future::pending()));
        let has_custom = vector.policies.iter().any(|policy| policy["spec"]["action"] == "CUSTOM");
        Ok(Self { address, witness, has_custom, open: None })
    }

    async fn judge(
        &mut self,
        vector: &Vector,
        identities: &Identities,
        issuer: &Issuer,
    ) -> Verdict {
        let request = &vector.request;
        let svid = match &request.peer.spiffe_id {
            Some(text) if request.peer.tls => {
                let Ok(id) = text.parse::<SpiffeId>() else {
                    return Verdict::Skipped("a peer's name that is no SPIFFE ID [SEC-ID-1]");
                };
                let Some(svid) = identities.svid(&id) else {
                    return Verdict::Skipped("a SPIFFE ID that our authority does not issue");
                };
                Some(svid)
            }
            Some(_) | None => None,
        };
        let is_http2 = request.http_version == "2";
        let sni = request.sni.clone().filter(|_| request.peer.tls);
        let dial = Dial { from: Some(request.source_ip), svid, sni, http2: is_http2 };
        let like =
            format!("{:?} {:?} {:?} {is_http2}", dial.from, request.peer.spiffe_id, dial.sni);
        let token = request.jwt_claims.as_ref().map(|claims| issuer.sign(claims));
        let open = match self.open.take().filter(|open| open.like == like) {
            Some(open) => Ok(open.stream),
            None => match dial.connect(self.address).await {
                Ok(stream) if is_http2 => Http2::new(stream).await.map(Connection::Http2),
                Ok(stream) => Ok(Connection::Http1(stream)),
                Err(error) => Err(error),
            },
        };
        let mut stream = match open {
            Ok(stream) => stream,
            Err(error) if error.to_string().contains("invalid dns name") => {
                return Verdict::Skipped("a server name that rustls does not send");
            }
            Err(error) => return Verdict::Mismatch(format!("connection: {error}")),
        };
        self.witness.take();
        let reply = match &mut stream {
            Connection::Http1(stream) => {
                let text = http1(vector, token.as_deref());
                ask_http1(&mut **stream, &text, request.method == "HEAD").await
            }
            Connection::Http2(client) => match http2(vector, token.as_deref()) {
                Ok(sent) => client.ask(sent).await,
                Err(why) => return Verdict::Skipped(why),
            },
        };
        if reply.as_ref().is_some_and(|reply| reply.is_open) && request.method != "CONNECT" {
            self.open = Some(Open { like, stream });
        }
        self.compare(vector, reply, self.witness.take())
    }

    fn compare(&self, vector: &Vector, reply: Option<Reply>, decided: Option<Decided>) -> Verdict {
        let expect = &vector.expect;
        let rejected = expect.decision == "reject";
        let Some(decided) = decided else {
            // hyper answered, or closed.
            return match &reply {
                _ if rejected => Verdict::Agrees,
                None => {
                    Verdict::Skipped("hyper's parser closes the connection or resets the stream")
                }
                Some(reply) if reply.status == 400 => {
                    Verdict::Skipped("hyper's parser answers 400")
                }
                Some(reply) => Verdict::Mismatch(format!("{} without a decision", reply.status)),
            };
        };
        if rejected {
            let refused = reply.is_none_or(|reply| reply.status == 400);
            return if refused && !decided.allowed {
                Verdict::Agrees
            } else {
                Verdict::Mismatch(format!("Envoy: {:?}", expect.reject_reason))
            };
        }
        for (detail, rule) in [
            ("malformed_request{several host headers}", "several Host lines [SEC-HTTP-5]"),
            ("malformed_request{host header and target differ}", "two hosts [SEC-HTTP-5]"),
            ("malformed_request{host is not a host}", "userinfo or no host at all [SEC-HTTP-5]"),
            (
                "malformed_request{method has lower-case letters}",
                "lower-case methods [SEM-STRICT-11]",
            ),
        ] {
            if decided.detail == detail {
                return Verdict::Differs(rule);
            }
        }
        let Some(reply) = reply else {
            return Verdict::Mismatch(format!("no answer after {decided:?}"));
        };
        match differences(vector, &reply, &decided, self.has_custom) {
            Ok(()) => Verdict::Agrees,
            Err(what) => Verdict::Mismatch(what),
        }
    }
}

fn differences(
    vector: &Vector,
    reply: &Reply,
    decided: &Decided,
    has_custom: bool,
) -> Result<(), String> {
    let (expect, request) = (&vector.expect, &vector.request);
    let check = |what: &str, theirs: Option<String>, ours: Option<String>| {
        if theirs == ours {
            return Ok(());
        }
        Err(format!("{what}: Envoy {theirs:?}, ours {ours:?} ({decided:?}, {})", reply.status))
    };
    check(
        "decision",
        Some((expect.decision == "allow").to_string()),
        Some(decided.allowed.to_string()),
    )?;
    let number = |status: u16| Some(status.to_string());
    if !decided.allowed || request.method != "CONNECT" {
        check("status", expect.status.and_then(number), number(reply.status))?;
    }
    if decided.allowed {
        if !matches!(expect.matched_policy, Matched::Absent) {
            check("rule", expect.matched_policy.rule().map(str::to_owned), decided.rule.clone())?;
        }
        if request.method != "HEAD" && request.method != "CONNECT" {
            check("body", Some("served".to_owned()), Some(latin1(&reply.body)))?;
        }
    } else {
        let is_grpc = expect.grpc_status.is_some();
        let header = |name| reply.header(name).map(str::to_owned);
        check("grpc-status", expect.grpc_status.and_then(number), header("grpc-status"))?;
        if let Some(message) = &expect.grpc_message {
            check("grpc-message", Some(message.clone()), header("grpc-message"))?;
        }
        if let Some(body) = &expect.body {
            check("body", Some(body.clone()), Some(latin1(&reply.body)))?;
        }
        let by_authorizer = expect.stage.as_deref() == Some("ext_authz");
        if by_authorizer {
            let asked = decided.detail.starts_with("ext_authz");
            check("stage", Some("ext_authz".to_owned()), asked.then(|| "ext_authz".to_owned()))?;
        } else {
            check("rule", expect.matched_policy.rule().map(str::to_owned), decided.rule.clone())?;
            let kind = if is_grpc { "application/grpc" } else { "text/plain" };
            check("content-type", Some(kind.to_owned()), header("content-type"))?;
            if !is_grpc {
                check("content-length", Some("19".to_owned()), header("content-length"))?;
            }
        }
    }
    // What a later stage would have said is not asked after an earlier one has refused.
    let shadow = |kind: &str| {
        let recorded = expect.shadow.as_ref().and_then(|shadow| shadow.get(kind));
        recorded.map(|shadow| (shadow.result == "allowed").to_string())
    };
    let text = |flag: Option<bool>| flag.map(|flag| flag.to_string());
    check("dry-run deny", shadow("deny"), text(decided.dry_run_deny))?;
    check("dry-run allow", shadow("allow"), text(decided.dry_run_allow))?;
    if let Some(audit) = expect.audit.filter(|_| !has_custom || decided.allowed) {
        check("audit", Some(audit.to_string()), Some(decided.audit.to_string()))?;
    }
    Ok(())
}

/// The request as bytes of HTTP/1.1.
fn http1(vector: &Vector, token: Option<&str>) -> Vec<u8> {
    let request = &vector.request;
    let mut text = bytes_of(&request.method);
    text.push(b' ');
    text.extend(bytes_of(request.path.as_deref().unwrap_or_default()));
    text.extend(b" HTTP/1.1\r\n");
    let mut line = |name: &[u8], value: &[u8]| {
        for part in [name, b": ", value, b"\r\n"] {
            text.extend_from_slice(part);
        }
    };
    if let Some(authority) = &request.authority {
        line(b"Host", &bytes_of(authority));
    }
    for (name, value) in &request.headers {
        line(&bytes_of(name), &bytes_of(value));
    }
    if let Some(xff) = &request.xff {
        line(b"x-forwarded-for", &bytes_of(xff));
    }
    if let Some(token) = token {
        line(b"authorization", format!("Bearer {token}").as_bytes());
    }
    if matches!(request.method.as_str(), "POST" | "PUT" | "PATCH") {
        line(b"content-length", b"0");
    }
    text.extend(b"\r\n");
    text
}

/// The request for an HTTP/2 client, where one takes it.
fn http2(vector: &Vector, token: Option<&str>) -> Result<http::Request<()>, &'static str> {
    const NOT_SENT: &str = "a head that hyper's HTTP/2 client does not send";
    let request = &vector.request;
    let scheme = if request.peer.tls { "https" } else { "http" };
    let path = request.path.clone().unwrap_or_default();
    let uri = match &request.authority {
        Some(authority) if request.method == "CONNECT" => authority.clone(),
        Some(authority) => format!("{scheme}://{authority}{path}"),
        None => return Err(NOT_SENT),
    };
    if !path.starts_with('/') && request.method != "CONNECT" || path.contains('#') {
        return Err(NOT_SENT);
    }
    let uri = http::Uri::try_from(bytes_of(&uri)).map_err(|_why| NOT_SENT)?;
    let mut sent = http::Request::builder().method(request.method.as_str()).uri(uri);
    let lines = request.headers.iter().map(|(name, value)| (name.as_str(), bytes_of(value)));
    let xff = request.xff.iter().map(|value| ("x-forwarded-for", bytes_of(value)));
    let token = token.map(|token| ("authorization", format!("Bearer {token}").into_bytes()));
    for (name, value) in lines.chain(xff).chain(token) {
        sent = sent.header(name, value);
    }
    sent.body(()).map_err(|_why| NOT_SENT)
}

/// An authorizer of the recording.
#[derive(Debug)]
struct Recorded {
    behaviour: String,
}

impl Authorizer for Recorded {
    fn check<'r>(&'r self, _: CheckRequest<'r>) -> CheckFuture<'r> {
        let answer = match self.behaviour.as_str() {
            "allow" => Ok(CheckAnswer::Allow(RequestChanges::default())),
            "deny" => {
                let body = Bytes::from_static(b"denied by ext authz");
                Ok(CheckAnswer::Deny(Denial::new(StatusCode::FORBIDDEN, body)))
            }
            "down" => Err(CheckError::Connection("nobody is there".into())),
            other => panic!("behaviour {other}"),
        };
        Box::pin(async { answer })
    }
}

fn providers(mesh: &crate::vector::Mesh) -> ExtensionProviders {
    let mut providers = ExtensionProviders::default();
    for (name, mock) in &mesh.extension_providers {
        if mock.invalid {
            providers = providers.with_broken(name);
            continue;
        }
        let mut provider = Provider::new(Recorded { behaviour: mock.behaviour.clone() });
        if mock.fail_open {
            provider = provider.fail_open();
        }
        if let Some(status) = mock.status_on_error.as_str() {
            provider = provider.with_status_on_error(status.parse().unwrap());
        }
        providers = providers.with(name, provider);
    }
    if mesh.enable_multiple_custom_providers { providers.several_per_workload() } else { providers }
}
