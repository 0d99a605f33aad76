//! Every recorded decision of a real Envoy, compared with ours.
//!
//! `MESH_AUTHZ_VECTORS=DIR cargo test --release -p mesh-authz --test conformance -- --nocapture`
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod proxy;
mod vector;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::HeaderMap;
use mesh_authz::{
    Audit, AuthorizationPolicy, CustomStep, Decision, DenyReason, HttpFacts, NormalizedPath,
    PathNormalization, PolicySet, ProviderKind, Providers, RequestFacts, Scope, Semantics, Shadow,
    StrictRule, Transport, Verdict, XffTrust, client_address,
};
use mesh_identity::manifest::{Kind, Manifest, Problems};
use mesh_identity::{MeshSettings, TrustDomain, TrustDomainPattern, Workload};

use proxy::{Proof, Received, ask, receive};
use vector::{Expect, Logged, Matched, Request, ShadowOf, Vector, bytes, read_all};

/// Why a line is left aside: the rule that says so, and what it says.
type Aside = (&'static str, &'static str);

/// A refusal of Envoy's HTTP layer that [`mesh_authz::check_head`] does not repeat. Such requests
/// are the HTTP server's to refuse, before this crate sees them.
const HTTP_LAYER: Aside = ("SEM-EVAL-01", "the HTTP server refuses it in its own way");

/// What the set asks of the mesh that the library has no way to say.
fn not_offered(vector: &Vector) -> Option<Aside> {
    let mesh = &vector.mesh;
    let is_name = mesh.trust_domain.parse::<TrustDomain>().is_ok();
    if !is_name || mesh.aliases.iter().any(|alias| alias.parse::<TrustDomainPattern>().is_err()) {
        return Some(("SEM-AUTHZ-22", "a trust domain that SPIFFE does not know as one"));
    }
    if PathNormalization::from_istio_name(&mesh.path_normalization).is_none() {
        return Some(("SEM-PATH-11", "a path normalization that is not offered"));
    }
    None
}

/// One policy set of the vectors, as it was loaded.
struct Set {
    id: String,
    policies: Vec<AuthorizationPolicy>,
    scope: Scope,
    compiled: BTreeMap<&'static str, PolicySet>,
}

impl Set {
    fn load(vector: &Vector, read: Read, semantics: Semantics) -> Result<Self, Problems> {
        let policies: Result<Vec<_>, _> =
            manifests(vector)?.iter().filter(|one| is_ours(one)).map(read).collect();
        let scope = scope(vector).with_semantics(semantics);
        let id = vector.set_id().to_owned();
        Ok(Self { id, policies: policies?, scope, compiled: BTreeMap::new() })
    }

    fn compiled(&mut self, transport: &'static str) -> Result<&PolicySet, Problems> {
        if !self.compiled.contains_key(transport) {
            let kind = if transport == "tcp" { Transport::Tcp } else { Transport::Http };
            let set = PolicySet::compile(&self.policies, &self.scope, kind)?;
            self.compiled.insert(transport, set);
        }
        Ok(&self.compiled[transport])
    }
}

type Read = fn(&Manifest) -> Result<AuthorizationPolicy, Problems>;

/// The resources of a line.
fn manifests(vector: &Vector) -> Result<Vec<Manifest>, Problems> {
    let mut all = Vec::new();
    for policy in &vector.policies {
        all.extend(
            mesh_identity::manifest::read(&policy.to_string(), "vector", "default")?.resources,
        );
    }
    Ok(all)
}

fn is_ours(manifest: &Manifest) -> bool {
    manifest.kind() == Kind::AuthorizationPolicy
}

fn scope(vector: &Vector) -> Scope {
    let mesh = &vector.mesh;
    let aliases = mesh.aliases.iter().filter_map(|alias| alias.parse().ok());
    let settings = MeshSettings::new(mesh.trust_domain.parse().unwrap())
        .with_aliases(aliases)
        .with_root_namespace(&mesh.root_namespace);
    let mut workload = Workload::new(&vector.workload.namespace);
    for (key, value) in &vector.workload.labels {
        workload = workload.with_label(key, value);
    }
    let mut providers = Providers::default();
    if mesh.enable_multiple_custom_providers {
        providers = providers.with_several_per_workload();
    }
    for (name, mock) in &mesh.extension_providers {
        let is_grpc = mock.kind.as_deref() == Some("grpc");
        let kind = if is_grpc { ProviderKind::Grpc } else { ProviderKind::Http };
        providers =
            if mock.invalid { providers.with_broken(name) } else { providers.with(name, kind) };
    }
    let paths = PathNormalization::from_istio_name(&mesh.path_normalization).unwrap();
    Scope::new(workload, settings).with_providers(providers).with_path_normalization(paths)
}

/// Everything that the vectors compare.
#[derive(Debug, Default, Eq, PartialEq)]
struct Outcome {
    decision: &'static str,
    status: Option<u16>,
    body: Option<String>,
    grpc: Option<(u16, String)>,
    stage: Option<&'static str>,
    matched_policy: Option<String>,
    shadow: BTreeMap<String, ShadowOf>,
    audit: Option<bool>,
    custom_matched_policy: Option<String>,
    /// The option of the strict reading that refused.
    strict: Option<StrictRule>,
}

/// What a request meets, from its first byte to the verdict.
fn judge(vector: &Vector, set: &PolicySet, scope: &Scope, trust: &XffTrust) -> Outcome {
    let request = &vector.request;
    let source = Some(request.source_ip);
    let destination = Some(SocketAddr::new(request.destination_ip, request.destination_port));
    let proof = Proof::of(&request.peer);
    // A client sends the name inside TLS.
    let sni = request.sni.as_deref().filter(|_| request.peer.tls);
    if request.transport == "tcp" {
        let facts = RequestFacts::tcp(source, destination)
            .with_peer(proof.identity())
            .with_sni(sni)
            .with_metadata(request.dynamic_metadata.as_ref());
        return outcome(vector, set, &facts, &facts, None);
    }
    let reject = || Outcome { decision: "reject", status: Some(400), ..Outcome::default() };
    let Some(received) = receive(request) else { return reject() };
    let path = received.path.as_deref().map(|raw| scope.normalize(raw)).transpose();
    let Ok(path) = path else { return reject() };
    let client = client_address(&received.headers, request.source_ip, proof.identity(), trust);
    let facts = |headers| {
        let facts =
            RequestFacts::http(source, destination, http_facts(&received, headers, path.as_ref()));
        facts
            .with_peer(proof.identity())
            .with_sni(sni)
            .with_client_address(client)
            .with_token(received.token.as_ref())
            .with_metadata(request.dynamic_metadata.as_ref())
    };
    let (early, late) = (facts(&received.headers), facts(&received.later_headers));
    outcome(vector, set, &early, &late, Some(&received))
}

fn http_facts<'a>(
    received: &'a Received,
    headers: &'a HeaderMap,
    path: Option<&'a NormalizedPath<'_>>,
) -> HttpFacts<'a> {
    let http = HttpFacts::new(&received.method, &received.authority, headers)
        .with_scheme(received.scheme)
        .with_version(received.version);
    path.into_iter().fold(http, HttpFacts::with_path)
}

fn outcome(
    vector: &Vector,
    set: &PolicySet,
    early: &RequestFacts<'_>,
    late: &RequestFacts<'_>,
    received: Option<&Received>,
) -> Outcome {
    let mut custom_matched_policy = None;
    for step in set.custom(early) {
        match step {
            CustomStep::Ask { provider, rule } => {
                custom_matched_policy = Some(rule.id().to_owned());
                if let Some((status, body)) = ask(&vector.mesh.extension_providers[&*provider]) {
                    let refused = Outcome { custom_matched_policy, ..Outcome::default() };
                    return refuse(refused, "ext_authz", status, body, received);
                }
            }
            CustomStep::Refuse(decision) => {
                return rbac(Outcome::default(), &decision, received);
            }
        }
    }
    let outcome = Outcome { custom_matched_policy, ..Outcome::default() };
    rbac(outcome, &set.decide(late), received)
}

fn rbac(mut outcome: Outcome, decision: &Decision, received: Option<&Received>) -> Outcome {
    outcome.matched_policy = decision.rule_id().map(str::to_owned);
    outcome.audit = decision.audit.as_ref().map(|audit| matches!(audit, Audit::Matched(_)));
    let shadows = [("deny", &decision.shadow_deny), ("allow", &decision.shadow_allow)];
    let shadow_of = |shadow: &Shadow| ShadowOf {
        result: shadow.result.to_string(),
        policy: shadow.rule.as_ref().map(|rule| rule.id().to_owned()),
    };
    outcome.shadow = shadows
        .into_iter()
        .filter_map(|(kind, shadow)| Some((kind.to_owned(), shadow_of(shadow.as_ref()?))))
        .collect();
    if let Verdict::Deny(DenyReason::Strict(rule)) = decision.verdict {
        outcome.strict = Some(rule);
    }
    if decision.is_allow() {
        outcome.decision = "allow";
        return outcome;
    }
    refuse(outcome, "rbac", 403, "RBAC: access denied", received)
}

/// [SEM-RESP-01], [SEM-RESP-02], [SEM-RESP-10] to [SEM-RESP-12]
fn refuse(
    mut outcome: Outcome,
    stage: &'static str,
    status: u16,
    body: &str,
    received: Option<&Received>,
) -> Outcome {
    outcome.decision = "deny";
    outcome.stage = Some(stage);
    let Some(received) = received else { return outcome };
    if received.is_grpc() {
        outcome.status = Some(200);
        let code = match status {
            400 => 13,
            401 => 16,
            403 => 7,
            404 => 12,
            429 | 502 | 503 | 504 => 14,
            _ => 2,
        };
        outcome.grpc = Some((code, body.to_owned()));
    } else {
        outcome.status = Some(status);
        if received.method != "HEAD" {
            outcome.body = Some(body.to_owned());
        }
    }
    outcome
}

/// What differs between our outcome and Envoy's, by the list "What to compare".
fn differences(ours: &Outcome, expect: &Expect) -> Vec<String> {
    let mut found = Vec::new();
    let mut compare = |what: &str, ours: String, theirs: String| {
        if ours != theirs {
            found.push(format!("{what}: ours {ours}, Envoy's {theirs}"));
        }
    };
    compare("decision", ours.decision.to_owned(), expect.decision.clone());
    if expect.decision == "reject" {
        return found;
    }
    if expect.decision == "deny" {
        compare("status", format!("{:?}", ours.status), format!("{:?}", expect.status));
        let body = |body: &Option<String>| body.clone().unwrap_or_default();
        compare("body", body(&ours.body), body(&expect.body));
        let grpc =
            expect.grpc_status.map(|code| (code, expect.grpc_message.clone().unwrap_or_default()));
        compare("grpc", format!("{:?}", ours.grpc), format!("{grpc:?}"));
        compare("stage", format!("{:?}", ours.stage), format!("{:?}", expect.stage.as_deref()));
        matched(&mut compare, ours, expect);
    } else if !matches!(expect.matched_policy, Matched::Absent) {
        matched(&mut compare, ours, expect);
    }
    if let Some(shadow) = &expect.shadow {
        compare("shadow", format!("{:?}", ours.shadow), format!("{shadow:?}"));
    }
    if let Some(audit) = expect.audit {
        compare("audit", format!("{:?}", ours.audit), format!("{:?}", Some(audit)));
    }
    if expect.custom_matched_policy.is_some() {
        let (ours, theirs) = (&ours.custom_matched_policy, &expect.custom_matched_policy);
        compare("custom_matched_policy", format!("{ours:?}"), format!("{theirs:?}"));
    }
    found
}

fn matched(compare: &mut impl FnMut(&str, String, String), ours: &Outcome, expect: &Expect) {
    let theirs = expect.matched_policy.rule();
    let ours = ours.matched_policy.as_deref();
    compare("matched_policy", format!("{ours:?}"), format!("{theirs:?}"));
}

/// The stages alone: what policies saw must be what our functions make of the request.
fn observed_differences(request: &Request, scope: &Scope, expect: &Expect) -> Vec<String> {
    let mut found = Vec::new();
    if request.transport == "tcp" || expect.decision == "reject" {
        return found;
    }
    let Some(received) = receive(request) else { return found };
    let observed = &expect.observed;
    let path = received.path.as_deref().and_then(|raw| scope.normalize(raw).ok());
    let path = path.as_ref().map(NormalizedPath::as_bytes);
    let theirs = match &observed.path {
        Logged::Absent => None,
        Logged::Nothing => Some(None),
        Logged::Text(text) => Some(Some(bytes(text))),
    };
    if theirs.is_some_and(|theirs| path != theirs.as_deref()) {
        let (ours, theirs) = (path.map(<[u8]>::escape_ascii), &observed.path);
        let ours = ours.map_or("none".to_owned(), |ours| ours.to_string());
        let theirs = if let Logged::Text(theirs) = theirs { theirs } else { "none" };
        found.push(format!("path: ours {ours}, Envoy's {theirs}"));
    }
    let peer = Proof::of(&request.peer);
    let client =
        client_address(&received.headers, request.source_ip, peer.identity(), &XffTrust::Anyone);
    if observed.remote_ip().is_some_and(|theirs| theirs != client.ip()) {
        found.push(format!("remote_ip: ours {:?}, Envoy's {:?}", client, observed.remote_ip()));
    }
    if observed.authority.as_ref().is_some_and(|theirs| *theirs != received.authority) {
        let ours = &received.authority;
        found.push(format!("authority: ours {ours}, Envoy's {:?}", observed.authority));
    }
    if let (Some(token), Some(payload)) = (&received.token, &observed.jwt_payload)
        && token.view().object() != payload
    {
        found.push("jwt_payload differs".to_owned());
    }
    found
}

/// What cannot be read even so (a wrong type, an unknown action) istiod does not decode either.
fn load_leniently(vector: &Vector) -> Set {
    let mut policies = Vec::new();
    for policy in &vector.policies {
        let read = mesh_identity::manifest::read(&policy.to_string(), "vector", "default");
        let policy = read.and_then(|read| {
            let ours = read.resources.into_iter().find(is_ours);
            ours.map(|manifest| AuthorizationPolicy::from_manifest_lenient(&manifest)).transpose()
        });
        match policy {
            Ok(policy) => policies.extend(policy),
            Err(problems) => println!("{}: policy left out: {problems}", vector.id),
        }
    }
    let scope = scope(vector).with_semantics(Semantics::istio());
    Set { id: vector.set_id().to_owned(), policies, scope, compiled: BTreeMap::new() }
}

#[derive(Default)]
struct Count {
    total: usize,
    agree: usize,
    documented: usize,
    mismatches: usize,
}

/// One test, so that the lines come in this order and the sum of Istio's mode comes last.
#[test]
fn decisions_equal_envoys() {
    let (mut vectors, unreadable) = read_all();
    // Lines of one set share what is compiled, so they should follow each other.
    vectors.sort_by(|one, other| one.set_id().cmp(other.set_id()));
    let accepted = accepted_though_inadmissible(&vectors);
    let wider = strict_mode(&vectors);
    let mismatches = istio_mode(&vectors, &unreadable);
    assert_eq!(mismatches, 0, "Istio mode differs from Envoy; see the lines above");
    assert_eq!(wider, 0, "strict mode allows more than Envoy; see the lines above");
    assert!(accepted.is_empty(), "Istio's webhook refuses these, we do not: {accepted:?}");
}

/// Compares everything in Istio's mode; the number of mismatches.
fn istio_mode(vectors: &[Vector], unreadable: &[String]) -> usize {
    let mut groups: BTreeMap<&str, Count> = BTreeMap::new();
    let mut aside: BTreeMap<Aside, usize> = BTreeMap::new();
    let mut by_head: BTreeMap<&str, usize> = BTreeMap::new();
    let mut stricter_loads: BTreeMap<String, usize> = BTreeMap::new();
    let mut set: Option<Set> = None;
    for vector in vectors {
        let count = groups.entry(vector.group()).or_default();
        count.total += 1;
        if let Some(why) = not_offered(vector) {
            count.documented += 1;
            *aside.entry(why).or_default() += 1;
            continue;
        }
        if set.as_ref().is_none_or(|set| set.id != vector.set_id()) {
            set = Some(load_as_istio(vector, &mut stricter_loads));
        }
        let current = set.as_mut().unwrap();
        let scope = current.scope.clone();
        let transport = if vector.request.transport == "tcp" { "tcp" } else { "http" };
        let Ok(compiled) = current.compiled(transport) else {
            count.documented += 1;
            let why = ("SEM-EVAL-32", "what cannot be one configuration does not compile");
            *aside.entry(why).or_default() += 1;
            continue;
        };
        let ours = judge(vector, compiled, &scope, &XffTrust::Anyone);
        if let Some(reason) = codecs_reason(vector) {
            if ours.decision != "reject" {
                count.documented += 1;
                *aside.entry(HTTP_LAYER).or_default() += 1;
                continue;
            }
            *by_head.entry(reason).or_default() += 1;
        }
        let mut found = differences(&ours, &vector.expect);
        found.extend(observed_differences(&vector.request, &scope, &vector.expect));
        if found.is_empty() {
            count.agree += 1;
        } else {
            count.mismatches += 1;
            if count.mismatches <= 20 {
                println!("{}: {}", vector.id, found.join("; "));
            }
        }
    }
    for (message, sets) in &stricter_loads {
        println!("refused at load ([SEM-VAL-32]) and read leniently here: {sets} sets: {message}");
    }
    for ((rule, why), lines) in &aside {
        println!("documented: {lines} lines [{rule}]: {why}");
    }
    for (reason, lines) in &by_head {
        println!("refused by check_head as by Envoy's HTTP layer: {lines} lines, {reason}");
    }
    for line in unreadable {
        println!("unreadable: {line}");
    }
    let count = Count { total: unreadable.len(), mismatches: unreadable.len(), ..Count::default() };
    if count.total > 0 {
        groups.insert("unreadable", count);
    }
    let mut sum = Count::default();
    for (group, count) in &groups {
        let Count { total, agree, documented, mismatches } = count;
        println!(
            "{group}: {total} total, {agree} agree, {documented} documented, {mismatches} bad"
        );
        sum.total += total;
        sum.agree += agree;
        sum.documented += documented;
        sum.mismatches += mismatches;
    }
    let Count { total, agree, documented, mismatches } = sum;
    println!(
        "authz vectors: {total} total, {agree} agree, {documented} documented deviations, \
         {mismatches} mismatches"
    );
    mismatches
}

/// The reason, when Envoy's HTTP layer refused the request and no function of this crate could.
fn codecs_reason(vector: &Vector) -> Option<&str> {
    let is_ours = |reason: &&str| *reason == "path_normalization_failed";
    let reason = vector.expect.reject_reason.as_deref().unwrap_or("no reason given");
    Some(reason).filter(|reason| vector.expect.decision == "reject" && !is_ours(reason))
}

/// Reads as checked as possible: the lenient reading is for what the checked one refuses.
fn load_as_istio(vector: &Vector, stricter: &mut BTreeMap<String, usize>) -> Set {
    let istio = Semantics::istio();
    match Set::load(vector, AuthorizationPolicy::from_manifest, istio) {
        Ok(set) => set,
        Err(problems) => {
            if vector.admissible {
                let message = problems.list()[0].message.clone();
                *stricter.entry(message).or_default() += 1;
            }
            load_leniently(vector)
        }
    }
}

/// [SEM-VAL-32] The policy sets that Istio's webhook refuses and our parser does not.
fn accepted_though_inadmissible(vectors: &[Vector]) -> Vec<String> {
    let mut accepted: Vec<String> = Vec::new();
    for vector in vectors.iter().filter(|vector| !vector.admissible) {
        if not_offered(vector).is_some() {
            continue;
        }
        let checked = Set::load(vector, AuthorizationPolicy::from_manifest, Semantics::istio());
        if checked.is_ok() && accepted.last().is_none_or(|id| id != vector.set_id()) {
            accepted.push(vector.set_id().to_owned());
        }
    }
    accepted
}

/// Prints the differences of the strict mode by rule; the number that allow more, which is wrong.
fn strict_mode(vectors: &[Vector]) -> usize {
    let mut by_rule: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut refused_sets: BTreeMap<String, usize> = BTreeMap::new();
    let (mut total, mut agree, mut stricter, mut wider, mut not_loaded) = (0, 0, 0, 0, 0);
    let mut set: Option<(String, Option<Set>)> = None;
    for vector in vectors {
        total += 1;
        if not_offered(vector).is_some() {
            not_loaded += 1;
            continue;
        }
        if set.as_ref().is_none_or(|(id, _)| id != vector.set_id()) {
            let strict = Semantics::strict();
            let loaded = Set::load(vector, AuthorizationPolicy::from_manifest, strict);
            let loaded = loaded.map_err(|problems| {
                let message = problems.list()[0].message.clone();
                *refused_sets.entry(message).or_default() += 1;
            });
            set = Some((vector.set_id().to_owned(), loaded.ok()));
        }
        let Some(current) = set.as_mut().and_then(|(_, set)| set.as_mut()) else {
            not_loaded += 1;
            continue;
        };
        let scope = current.scope.clone();
        let transport = if vector.request.transport == "tcp" { "tcp" } else { "http" };
        let Ok(compiled) = current.compiled(transport) else {
            not_loaded += 1;
            *by_rule.entry("SEM-STRICT-10").or_default() += 1;
            continue;
        };
        let ours = judge(vector, compiled, &scope, &XffTrust::Nobody);
        let allowed_there = vector.expect.decision == "allow";
        let is_codecs = codecs_reason(vector).is_some();
        match (ours.decision == "allow", allowed_there) {
            (true, true) | (false, false) => agree += 1,
            (true, false) if is_codecs => agree += 1,
            (true, false) => {
                wider += 1;
                println!("{}: strict allows, Envoy did not", vector.id);
            }
            (false, true) => {
                stricter += 1;
                let rule = ours.strict.map(StrictRule::id);
                let rule = rule.unwrap_or_else(|| cause(vector, transport));
                *by_rule.entry(rule).or_default() += 1;
            }
        }
    }
    for (message, sets) in &refused_sets {
        println!("refused at load: {sets} sets: {message}");
    }
    for (rule, lines) in &by_rule {
        println!("stricter by {rule}: {lines} lines");
    }
    println!(
        "authz vectors, strict: {total} total, {agree} agree, {stricter} stricter, \
         {not_loaded} refused at load, {wider} wider"
    );
    wider
}

/// The single option that refuses what Istio allows.
fn cause(vector: &Vector, transport: &'static str) -> &'static str {
    for rule in StrictRule::ALL {
        let semantics = Semantics::istio().with(rule);
        let loaded = Set::load(vector, AuthorizationPolicy::from_manifest, semantics);
        let Ok(mut set) = loaded else { return rule.id() };
        let scope = set.scope.clone();
        let Ok(compiled) = set.compiled(transport) else { return rule.id() };
        for trust in [XffTrust::Anyone, XffTrust::Nobody] {
            if judge(vector, compiled, &scope, &trust).decision != "allow" {
                return rule.id();
            }
        }
    }
    "several options together"
}
