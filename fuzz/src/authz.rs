//! AuthorizationPolicy: policies and a request drawn from the edges of each other, judged by the
//! compiled engine and by the plain model.

use std::net::{IpAddr, SocketAddr};

use arbitrary::Unstructured;
use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::{
    AuthorizationPolicy, ClientAddress, Decision, HttpFacts, NormalizedPath, PeerIdentity,
    PeerNames, PolicySet, RequestFacts, Scope, Semantics, StrictRule, Transport,
};
use mesh_identity::{Claims, MeshSettings, VerifiedToken, Workload};
use serde_json::{Map, Value, json};

use crate::model::{self, Request, Site};

/// Draws a case and checks what must hold of it:
///
/// - the engine's verdict and rule equal the model's, and the explanation agrees;
/// - no strict option allows what Istio's reading refuses ([SEM-STRICT-20]);
/// - the order of policies changes nothing, and neither does a repetition under another name that
///   sorts behind ([SEC-AUTHZ-3]);
/// - one more DENY policy never allows more.
///
/// # Panics
///
/// When one of them does not hold.
pub fn authz(data: &[u8]) {
    judge(data);
}

/// As [`authz`]; says whether the policies loaded, so that there was something to check.
///
/// # Panics
///
/// As [`authz`].
pub fn judge(data: &[u8]) -> bool {
    let mut input = Unstructured::new(data);
    let Ok(case) = Case::draw(&mut input) else { return false };
    let istio = case.decide(&case.policies, Semantics::istio());
    let Some(istio) = istio else { return false };
    let (allows, rule) = model::decide(&case.policies, &case.site, &case.request);
    assert_eq!(
        (istio.is_allow(), istio.rule_id().map(str::to_owned)),
        (allows, rule),
        "the model differs: {case:?}"
    );
    let alone = StrictRule::ALL.map(|rule| Semantics::istio().with(rule));
    for semantics in alone.into_iter().chain([Semantics::strict()]) {
        if let Some(strict) = case.decide(&case.policies, semantics) {
            assert!(!strict.is_allow() || allows, "{semantics:?} allows more: {case:?}");
        }
    }
    let mut turned = case.policies.clone();
    turned.reverse();
    turned.extend(case.policies.iter().enumerate().map(|(at, policy)| {
        let mut copy = policy.clone();
        copy["metadata"]["name"] = json!(format!("~{at}"));
        copy
    }));
    let turned = case.decide(&turned, Semantics::istio()).map(|turned| turned.verdict);
    assert_eq!(turned.as_ref(), Some(&istio.verdict), "order or repetition counts: {case:?}");
    let mut narrowed = case.policies.clone();
    narrowed.extend(case.extra_deny.clone());
    if let Some(narrowed) = case.decide(&narrowed, Semantics::istio()) {
        assert!(!narrowed.is_allow() || allows, "a DENY allows more: {case:?}");
    }
    true
}

/// Policies in JSON text, one document or a list, judged by engine and model on a few requests.
///
/// # Panics
///
/// When they differ.
pub(crate) fn agrees_on_text(text: &str) {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return };
    let policies = match &value["items"] {
        Value::Array(items) if value["kind"] == "List" => items.clone(),
        _ => vec![value],
    };
    // What the model does not know: other kinds, gateways, selectors on other labels, defaults.
    let is_plain = |policy: &Value| {
        let labels = policy["spec"]["selector"]["matchLabels"].as_object();
        policy["kind"] == "AuthorizationPolicy"
            && policy["metadata"]["namespace"].is_string()
            && policy["spec"]["targetRef"].is_null()
            && policy["spec"]["targetRefs"].is_null()
            && labels.is_none_or(|labels| labels.keys().all(|label| label == "app"))
            && !policy.to_string().contains("experimental")
    };
    if !policies.iter().all(is_plain) {
        return;
    }
    let site = Site {
        namespace: "foo".to_owned(),
        app: "httpbin".to_owned(),
        trust_domains: vec!["cluster.local".to_owned()],
    };
    for seed in 0_u8..4 {
        let bytes: Vec<u8> = (0_u8..64).map(|at| at.wrapping_mul(37).wrapping_add(seed)).collect();
        let Ok(request) = request(&mut Unstructured::new(&bytes)) else { return };
        let (policies, site) = (policies.clone(), site.clone());
        let case = Case { site, policies, extra_deny: None, request };
        let Some(ours) = case.decide(&case.policies, Semantics::istio()) else { return };
        let model = model::decide(&case.policies, &case.site, &case.request);
        let ours = (ours.is_allow(), ours.rule_id().map(str::to_owned));
        assert_eq!(ours, model, "the model differs: {case:?}");
    }
}

#[derive(Debug)]
struct Case {
    site: Site,
    policies: Vec<Value>,
    extra_deny: Option<Value>,
    request: Request,
}

type Drawn<T> = arbitrary::Result<T>;

const NAMES: [&str; 12] = [
    "spiffe://cluster.local/ns/foo/sa/sleep",
    "spiffe://cluster.local/ns/foo/sa/sleep2",
    "spiffe://cluster.local/ns/bar/sa/sleep",
    "spiffe://old.example/ns/foo/sa/sleep",
    "spiffe://new.example/ns/foo-bar/sa/a.b",
    "spiffe://td/ns/ns/sa/sa",
    "spiffe://td/ns/a/sa/ns/foo/sa/b",
    "spiffe://td/x/ns/foo/y/sa/sleep/z",
    "spiffe://cluster.local/ns/foo",
    "CN=spiffe://cluster.local/ns/foo/sa/sleep",
    "foo.bar.svc",
    "",
];

const PATHS: [&str; 16] = [
    "/",
    "/admin",
    "/admin/",
    "/admin/x",
    "/adminx",
    "/a/b/c",
    "/a//c",
    "/a/b[c",
    "/a/b*c/",
    "/ADMIN",
    "//admin",
    "/x?/admin",
    "/a/b?c=/d",
    "/a;x/b",
    "/a/%2f/c",
    "/a/b/c/d",
];

const HOSTS: [&str; 7] =
    ["a.example", "A.Example", "a.example:8080", "b.a.example", "a.example.", "x", "a.example,b"];

const IPS: [&str; 8] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.2.0.1",
    "127.0.0.1",
    "::1",
    "2001:db8::1",
    "2001:db8:1::1",
    "255.255.255.255",
];

/// Values of each condition key; the requests are drawn from what these nearly match.
const VALUES: [(&str, &[&str]); 20] = [
    (
        "source.principal",
        &[
            "*",
            "cluster.local/ns/foo/sa/sleep",
            "*/ns/foo/sa/sleep",
            "*sleep",
            "cluster.local/*",
            "new.example/ns/foo/sa/sleep",
            "old*/ns/foo/sa/sleep",
            "*.example/ns/foo-bar/sa/a.b",
            "td/ns/ns/sa/sa",
            "cluster.local/ns/foo*",
        ],
    ),
    (
        "source.namespace",
        &["foo", "bar", "*", "f*", "*o", "*a", "f*r", "sa", "ns", "foo*bar", "*sa", "a.b", "**"],
    ),
    (
        "source.serviceAccount",
        &["sleep", "foo/sleep", "bar/sleep", "foo-bar/a.b", "foo-bar/aXb", "ns/sa", "foo/b"],
    ),
    ("source.trustDomain", &["*", "cluster.local", "old.example", "new*", "*.example", "td"]),
    (
        "source.ip",
        &["10.1.2.3", "10.1.0.0/16", "10.1.2.3/8", "::/0", "0.0.0.0/0", "2001:db8::/32", "::1"],
    ),
    ("remote.ip", &["10.1.2.3", "10.1.2.0/31", "2001:db8::/47", "255.255.255.255/1"]),
    ("destination.ip", &["10.0.0.9", "10.0.0.0/29", "0.0.0.0/0"]),
    ("destination.port", &["8080", "08080", "80", "0"]),
    ("connection.sni", &["a.example", "*", "*.example", "a*", "A.example"]),
    ("host", &["a.example", "A.EXAMPLE", "a.example:*", "*.a.example", "*", "*example", "x"]),
    ("method", &["GET", "POST", "*", "P*", "*T"]),
    (
        "path",
        &[
            "/admin",
            "/admin*",
            "*",
            "*/c",
            "/a/{*}/c",
            "/{**}",
            "/a/{**}",
            "/{*}",
            "/a/{**}/",
            "/{*}/{*}/{**}/c",
            "/admin/{**}",
            "*a*",
            "/{**}/c",
        ],
    ),
    (
        "request.auth.principal",
        &["*", "i/s", "i/*", "*/s", "*s", "i*", "i", "https://i/s", "https://i*", "*//i/s", "i/s*"],
    ),
    ("request.auth.audiences", &["a", "b*", "*"]),
    ("request.auth.presenter", &["p", "*"]),
    ("request.auth.claims[role]", &["admin", "*", "ad*", "*in"]),
    ("request.auth.claims[a][b]", &["admin", "*"]),
    ("request.headers[x-role]", &["admin", "*", "ad*", "*in", "a,b"]),
    ("request.headers[Accept]", &["admin", "*", "a,b"]),
    ("request.headers[:path]", &["/admin", "/x?*", "*"]),
];

/// The keys that stand in `source` and `operation` too, with their fields.
const FIELDS: [(&str, &str, &str); 11] = [
    ("source.principal", "principals", "notPrincipals"),
    ("source.namespace", "namespaces", "notNamespaces"),
    ("source.serviceAccount", "serviceAccounts", "notServiceAccounts"),
    ("source.trustDomain", "trustDomains", "notTrustDomains"),
    ("source.ip", "ipBlocks", "notIpBlocks"),
    ("remote.ip", "remoteIpBlocks", "notRemoteIpBlocks"),
    ("request.auth.principal", "requestPrincipals", "notRequestPrincipals"),
    ("host", "hosts", "notHosts"),
    ("method", "methods", "notMethods"),
    ("path", "paths", "notPaths"),
    ("destination.port", "ports", "notPorts"),
];

impl Case {
    fn draw(input: &mut Unstructured<'_>) -> Drawn<Self> {
        let trust_domains: Vec<String> = match input.int_in_range(0..=3)? {
            0 | 1 => vec!["cluster.local".to_owned()],
            2 => vec!["new.example".to_owned(), "old.example".to_owned()],
            _ => vec!["new.example".to_owned(), "old*".to_owned(), "cluster.local".to_owned()],
        };
        let site = Site { namespace: "foo".to_owned(), app: "httpbin".to_owned(), trust_domains };
        let count = input.int_in_range(0..=5)?;
        let policies: Drawn<Vec<Value>> = (0..count).map(|at| policy(input, at, None)).collect();
        let extra_deny = Some(policy(input, 99, Some("DENY"))?);
        Ok(Self { site, policies: policies?, extra_deny, request: request(input)? })
    }

    /// Nothing when the policies do not load or compile.
    fn decide(&self, policies: &[Value], semantics: Semantics) -> Option<Decision> {
        let parsed: Option<Vec<AuthorizationPolicy>> = policies
            .iter()
            .map(|policy| {
                let text = policy.to_string();
                let read = mesh_identity::manifest::read(&text, "case", "default").ok()?;
                AuthorizationPolicy::from_manifest(read.resources.first()?).ok()
            })
            .collect();
        let (own, aliases) = self.site.trust_domains.split_first()?;
        let mesh = MeshSettings::new(own.parse().ok()?)
            .with_aliases(aliases.iter().filter_map(|alias| alias.parse().ok()));
        let workload = Workload::new(&self.site.namespace).with_label("app", &self.site.app);
        let scope = Scope::new(workload, mesh).with_semantics(semantics);
        let request = &self.request;
        let transport = if request.is_http { Transport::Http } else { Transport::Tcp };
        let set = PolicySet::compile(&parsed?, &scope, transport).ok()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &request.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
            headers.append(name, HeaderValue::from_str(value).ok()?);
        }
        let path = NormalizedPath::assert_normalized(request.path.as_bytes());
        let http = HttpFacts::new(&request.method, &request.authority, &headers).with_path(&path);
        let (source, local) =
            (Some(request.source), Some(SocketAddr::new(request.destination, request.port)));
        let facts = if request.is_http {
            RequestFacts::http(source, local, http)
        } else {
            RequestFacts::tcp(source, local)
        };
        let names = PeerNames::assert_verified(request.names.clone(), [], None);
        let token = request
            .claims
            .clone()
            .map(|claims| VerifiedToken::assert_verified(Claims::new(claims), []));
        let peer =
            if request.names.is_empty() { PeerIdentity::None } else { PeerIdentity::Names(&names) };
        let facts = facts
            .with_peer(peer)
            .with_client_address(ClientAddress::known(request.client))
            .with_sni(Some(&request.sni))
            .with_token(token.as_ref());
        let decision = set.decide(&facts);
        assert_eq!(set.explain(&facts).decision, decision);
        Some(decision)
    }
}

fn policy(input: &mut Unstructured<'_>, at: usize, action: Option<&str>) -> Drawn<Value> {
    let action = match action {
        Some(action) => action,
        None => input.choose(&["ALLOW", "ALLOW", "DENY"])?,
    };
    let count = input.int_in_range(usize::from(action == "DENY")..=3)?;
    let rules: Drawn<Vec<Value>> = (0..count).map(|_| rule(input)).collect();
    let mut policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": format!("p{at}"),
            "namespace": input.choose(&["foo", "foo", "istio-system", "bar"])?},
        "spec": {"action": action, "rules": rules?},
    });
    match input.int_in_range(0..=9)? {
        0 => policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"}),
        1 => policy["spec"]["selector"] = json!({"matchLabels": {"app": "httpbin"}}),
        2 => policy["spec"]["selector"] = json!({"matchLabels": {"app": "other"}}),
        _ => {}
    }
    Ok(policy)
}

fn rule(input: &mut Unstructured<'_>) -> Drawn<Value> {
    let mut rule = Map::new();
    let froms = input.int_in_range(0..=2)?;
    let from: Drawn<Vec<Value>> =
        (0..froms).map(|_| Ok(json!({"source": fields(input, &FIELDS[..7])?}))).collect();
    let tos = input.int_in_range(0..=2)?;
    let to: Drawn<Vec<Value>> =
        (0..tos).map(|_| Ok(json!({"operation": fields(input, &FIELDS[7..])?}))).collect();
    let whens = input.int_in_range(0..=1)?;
    let when: Drawn<Vec<Value>> = (0..whens).map(|_| condition(input)).collect();
    for (name, entries) in [("from", from?), ("to", to?), ("when", when?)] {
        if !entries.is_empty() {
            rule.insert(name.to_owned(), Value::Array(entries));
        }
    }
    Ok(Value::Object(rule))
}

fn fields(input: &mut Unstructured<'_>, known: &[(&str, &str, &str)]) -> Drawn<Value> {
    let mut entry = Map::new();
    for _ in 0..input.int_in_range(1..=2)? {
        let (key, field, not_field) = input.choose(known)?;
        let field = if input.ratio(1, 4)? { not_field } else { field };
        entry.insert((*field).to_owned(), values(input, key)?);
    }
    Ok(Value::Object(entry))
}

fn condition(input: &mut Unstructured<'_>) -> Drawn<Value> {
    let usable = |key: &str| !matches!(key, "host" | "method" | "path");
    let keys: Vec<&str> = VALUES.iter().map(|(key, _)| *key).filter(|key| usable(key)).collect();
    let key = input.choose(&keys)?;
    let field = if input.ratio(1, 4)? { "notValues" } else { "values" };
    Ok(json!({"key": key, field: values(input, key)?}))
}

fn values(input: &mut Unstructured<'_>, key: &str) -> Drawn<Value> {
    let known = VALUES.iter().find(|(known, _)| *known == key).map_or(&[][..], |(_, known)| known);
    // Now and then more than the engine compares one by one.
    let count = if input.ratio(1, 12)? { 12 } else { input.int_in_range(1..=2)? };
    let values: Drawn<Vec<Value>> = (0..count).map(|_| Ok(json!(input.choose(known)?))).collect();
    Ok(Value::Array(values?))
}

fn request(input: &mut Unstructured<'_>) -> Drawn<Request> {
    let ip = |input: &mut Unstructured<'_>| -> Drawn<IpAddr> {
        let text = input.choose(&IPS)?;
        Ok(text.parse().unwrap_or(IpAddr::from([0, 0, 0, 0])))
    };
    let mut headers = Vec::new();
    for _ in 0..input.int_in_range(0..=3)? {
        let value = *input.choose(&["admin", "", "user", "a,b", "Admin"])?;
        headers.push(("x-role".to_owned(), value.to_owned()));
    }
    if input.arbitrary()? {
        headers.push(("accept".to_owned(), (*input.choose(&["admin", "", "a,b"])?).to_owned()));
    }
    let count = input.int_in_range(0..=2)?;
    let names: Drawn<Vec<String>> =
        (0..count).map(|_| Ok((*input.choose(&NAMES)?).to_owned())).collect();
    Ok(Request {
        is_http: input.ratio(4, 5)?,
        method: (*input.choose(&["GET", "POST", "PUT", "get"])?).to_owned(),
        authority: (*input.choose(&HOSTS)?).to_owned(),
        path: (*input.choose(&PATHS)?).to_owned(),
        headers,
        names: names?,
        source: ip(input)?,
        client: ip(input)?,
        destination: IpAddr::from([10, 0, 0, 9]),
        port: *input.choose(&[8080, 80, 0])?,
        sni: (*input.choose(&["", "a.example", "b.a.example"])?).to_owned(),
        claims: claims(input)?,
    })
}

fn claims(input: &mut Unstructured<'_>) -> Drawn<Option<Map<String, Value>>> {
    if input.arbitrary()? {
        return Ok(None);
    }
    let texts = [
        json!("admin"),
        json!(""),
        json!(["x", "admin"]),
        json!(1),
        json!(["b", 2]),
        json!({"b": "admin"}),
        json!("a"),
        Value::Null,
        json!([["admin"]]),
    ];
    let mut claims = Map::new();
    claims.insert("iss".to_owned(), json!(input.choose(&["i", "https://i", "", "x//i"])?));
    claims.insert("sub".to_owned(), json!(input.choose(&["s", "", "x/s", "s\n"])?));
    for name in ["aud", "azp", "role", "a"] {
        claims.insert(name.to_owned(), input.choose(&texts)?.clone());
    }
    if input.ratio(1, 8)? {
        claims.remove(*input.choose(&["iss", "sub", "aud"])?);
    }
    Ok(Some(claims))
}
