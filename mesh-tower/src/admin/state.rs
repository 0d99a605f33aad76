//! Everything that the page and the JSON show, gathered at one moment.

use std::collections::BTreeMap;
use std::time::SystemTime;

use http::HeaderMap;
use mesh_authn::request::KeyState;
use mesh_authz::{HttpFacts, RequestFacts};
use rustls::pki_types::UnixTime;
use serde_json::{Value, json};

use super::recent::Refused;
use crate::mesh::Mesh;
use crate::observe::{system_time, timestamp};
use crate::report::shown;
use crate::telemetry::RequestsTotal;

/// Callers that are shown; the metrics have them all.
const SHOWN: usize = 20;

/// What is in force and what has happened.
pub(super) struct State {
    pub(super) now: SystemTime,
    pub(super) identity: String,
    pub(super) generation: u64,
    pub(super) not_ready: Option<String>,
    pub(super) problems: Vec<String>,
    pub(super) allowed: u64,
    pub(super) denied: u64,
    pub(super) decision_nanos: u128,
    pub(super) refused_connections: u64,
    pub(super) refused_configurations: u64,
    pub(super) policies: Vec<Policy>,
    pub(super) callers: Vec<Caller>,
    pub(super) certificates: Vec<Certificate>,
    pub(super) key_sets: Vec<Keys>,
    pub(super) refused: Vec<Refused>,
}

/// A policy that applies to this workload.
pub(super) struct Policy {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) action: &'static str,
    pub(super) dry_run: bool,
    /// Each rule's id and how often it has decided.
    pub(super) rules: Vec<(String, u64)>,
}

impl Policy {
    pub(super) fn hits(&self) -> u64 {
        self.rules.iter().map(|(_, hits)| hits).sum()
    }
}

/// Who has called, and what was answered.
pub(super) struct Caller {
    /// Nothing for plain text, and for callers beyond the number that is told apart.
    pub(super) source: Option<String>,
    /// `mutual_tls` or `none`.
    pub(super) security: &'static str,
    /// Requests by the code of their answers; 0 where the caller left before.
    pub(super) codes: Vec<(u16, u64)>,
}

impl Caller {
    pub(super) fn requests(&self) -> u64 {
        self.codes.iter().map(|(_, count)| count).sum()
    }
}

/// A certificate and its time.
pub(super) struct Certificate {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
    /// How much of its life is left, in percent.
    pub(super) left: u64,
    pub(super) withdrawn: bool,
}

/// A key set that is fetched.
pub(super) struct Keys {
    pub(super) source: String,
    pub(super) state: &'static str,
    pub(super) age: Option<u64>,
    pub(super) failures: u32,
}

impl State {
    pub(super) fn of(mesh: &Mesh) -> Self {
        let (snapshot, telemetry) = (mesh.snapshot(), mesh.telemetry());
        let problems = [mesh.last_error(), mesh.identity_error()].into_iter().flatten();
        let mut problems: Vec<String> = problems.collect();
        problems.dedup();
        Self {
            now: mesh.clock().precise(),
            identity: snapshot.svid.id().to_string(),
            generation: snapshot.generation,
            not_ready: mesh.readiness().err().map(|why| why.to_string()),
            problems,
            allowed: telemetry.allowed(),
            denied: telemetry.denied(),
            decision_nanos: telemetry.mean_decision_time().as_nanos(),
            refused_connections: telemetry.refused_connections(),
            refused_configurations: telemetry.refused_configurations(),
            policies: policies(mesh, &telemetry.rule_hits()),
            callers: callers(telemetry.requests()),
            certificates: certificates(mesh),
            key_sets: key_sets(mesh),
            refused: mesh.recent().list(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let policies = self.policies.iter().map(|one| {
            let rules = one.rules.iter().map(|(id, hits)| json!({"rule": id, "hits": hits}));
            json!({
                "namespace": one.namespace,
                "name": one.name,
                "action": one.action,
                "dry_run": one.dry_run,
                "hits": one.hits(),
                "rules": rules.collect::<Vec<_>>(),
            })
        });
        let callers = self.callers.iter().map(|one| {
            let codes = one.codes.iter().map(|(code, count)| json!({"code": code, "count": count}));
            json!({
                "principal": one.source,
                "connection_security_policy": one.security,
                "requests": one.requests(),
                "answers": codes.collect::<Vec<_>>(),
            })
        });
        let certificates = self.certificates.iter().map(|one| {
            json!({
                "kind": one.kind,
                "name": one.name,
                "not_before": timestamp(system_time(one.not_before)),
                "not_after": timestamp(system_time(one.not_after)),
                "withdrawn": one.withdrawn,
            })
        });
        let key_sets = self.key_sets.iter().map(|one| {
            let Keys { source, state, age, failures } = one;
            json!({"source": source, "state": state, "age_seconds": age, "failures": failures})
        });
        let refused = self.refused.iter().map(|one| {
            json!({
                "time": timestamp(one.time),
                "generation": one.generation,
                "method": one.method,
                "path": one.path,
                "peer": one.peer,
                "user": one.user,
                "reason": one.reason,
                "explanation": one.explanation,
            })
        });
        json!({
            "time": timestamp(self.now),
            "identity": self.identity,
            "generation": self.generation,
            "ready": self.not_ready.is_none(),
            "not_ready_because": self.not_ready,
            "problems": self.problems,
            "decisions": {"allowed": self.allowed, "denied": self.denied},
            "refused_connections": self.refused_connections,
            "refused_configurations": self.refused_configurations,
            "policies": policies.collect::<Vec<_>>(),
            "callers": callers.collect::<Vec<_>>(),
            "certificates": certificates.collect::<Vec<_>>(),
            "key_sets": key_sets.collect::<Vec<_>>(),
            "recent_denials": refused.collect::<Vec<_>>(),
        })
    }
}

/// The policies that apply to the workload: an explanation lists them all, whatever is asked.
fn policies(mesh: &Mesh, hits: &BTreeMap<String, u64>) -> Vec<Policy> {
    let headers = HeaderMap::new();
    let nothing = RequestFacts::http(None, None, HttpFacts::new("GET", "", &headers));
    let explained = mesh.snapshot().policies.explain(&nothing).policies;
    let each = explained.into_iter().map(|policy| {
        let rule = |id: &str| (id.to_owned(), hits.get(id).copied().unwrap_or_default());
        Policy {
            namespace: policy.namespace,
            name: policy.name,
            action: policy.action,
            dry_run: policy.dry_run,
            rules: policy.rules.iter().map(|one| rule(one.rule.id())).collect(),
        }
    });
    each.collect()
}

/// Those who have called most, each with the codes of its answers in order.
fn callers(totals: Vec<RequestsTotal>) -> Vec<Caller> {
    let mut callers = Vec::<Caller>::new();
    for one in totals {
        let source = one.source.map(|id| id.to_string());
        let security = one.connection_security_policy;
        let code = (one.response_code, one.count);
        let same = |caller: &&mut Caller| caller.source == source && caller.security == security;
        match callers.iter_mut().find(same) {
            Some(caller) => caller.codes.push(code),
            None => callers.push(Caller { source, security, codes: vec![code] }),
        }
    }
    callers.sort_by_key(|caller| std::cmp::Reverse(caller.requests()));
    callers.truncate(SHOWN);
    callers
}

fn certificates(mesh: &Mesh) -> Vec<Certificate> {
    let snapshot = mesh.snapshot();
    let now = mesh.clock().now();
    let certificate = |kind, name, not_before: UnixTime, not_after: UnixTime, withdrawn| {
        let life = not_after.as_secs().saturating_sub(not_before.as_secs());
        let left = not_after.as_secs().saturating_sub(now.as_secs()).saturating_mul(100);
        let left = left.checked_div(life).unwrap_or_default().min(100);
        Certificate { kind, name, not_before, not_after, left, withdrawn }
    };
    let svid = &snapshot.svid;
    let name = svid.id().to_string();
    let (begins, ends) = (svid.not_before(), svid.not_after());
    let mut all = vec![certificate("own", name, begins, ends, snapshot.withdrawn)];
    for bundle in snapshot.bundles.iter() {
        for authority in bundle.x509_authorities() {
            let (name, validity) = (bundle.trust_domain().to_string(), authority.validity());
            all.push(certificate("root", name, validity.not_before(), validity.not_after(), false));
        }
    }
    all
}

fn key_sets(mesh: &Mesh) -> Vec<Keys> {
    let states = mesh.key_sets();
    let each = states.iter().map(|(source, state)| {
        let (state, age, failures) = match *state {
            KeyState::Missing { failures } => ("missing", None, failures),
            KeyState::Fresh { age } => ("fresh", Some(age), 0),
            KeyState::Stale { age, failures } => ("stale", Some(age), failures),
            KeyState::TooOld { age } => ("too old", Some(age), 0),
            _ => ("unknown", None, 0),
        };
        Keys { source: shown(source), state, age, failures }
    });
    each.collect()
}
