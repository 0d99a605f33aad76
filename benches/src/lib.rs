//! Policy sets of any size and requests that meet their first, last or no rule.
#![expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "the input is made here; a mistake in it must stop the measurement"
)]

pub mod files;
pub mod service;

use std::net::{IpAddr, SocketAddr};

mod unindexed;

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::{
    AuthorizationPolicy, HttpFacts, NormalizedPath, PeerIdentity, PolicySet, RequestFacts, Scope,
    Semantics, Transport,
};
use mesh_identity::{Claims, MeshSettings, VerifiedPeer, VerifiedToken, Workload};
use serde_json::{Map, Value, json};

pub use unindexed::{Unindexed, request as unindexed_request};

/// What tells the rules of a set apart.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Shape {
    /// Principal and path prefix, both distinct, two methods.
    PrincipalAndPath,
    /// One principal, distinct path prefixes.
    SharedPrincipal,
    /// One path prefix, distinct principals.
    SharedPath,
    /// A path template each.
    Templates,
    /// A CIDR block each.
    Blocks,
    /// A value of one header each.
    HeaderValues,
    /// A value of one claim each.
    ClaimValues,
    /// Only a `notPaths` each, which no request satisfies: no index can help.
    Negations,
    /// Every rule is a candidate of every request, and none matches: one path prefix for all.
    AllCandidates,
    /// The conditions of [`Self::AllCandidates`] with nothing for an index: the straight loop that
    /// the worst cases are compared with.
    StraightLoop,
    /// Every rule is a candidate by each of several keys of several kinds, and none matches.
    ManyKeys,
    /// A header of its own each, which no request has.
    OwnHeaders,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::PrincipalAndPath,
        Self::SharedPrincipal,
        Self::SharedPath,
        Self::Templates,
        Self::Blocks,
        Self::HeaderValues,
        Self::ClaimValues,
        Self::Negations,
        Self::AllCandidates,
        Self::StraightLoop,
        Self::ManyKeys,
        Self::OwnHeaders,
    ];

    /// Compiles that many rules, in policies of at most 500.
    #[must_use]
    pub fn compile(self, rules: usize) -> PolicySet {
        compile(&self.policies(rules))
    }

    /// The policies before they are compiled.
    #[must_use]
    pub fn policies(self, rules: usize) -> Vec<AuthorizationPolicy> {
        let all: Vec<Value> = (0..rules).map(|at| self.rule(at)).collect();
        let chunks = all.chunks(500).enumerate();
        chunks.map(|(at, rules)| read(&format!("p{at:03}"), "ALLOW", &json!(rules))).collect()
    }

    fn rule(self, at: usize) -> Value {
        let principal = format!("cluster.local/ns/ns{at}/sa/app");
        let prefix = format!("/service-{at}/*");
        match self {
            Self::PrincipalAndPath => json!({
                "from": [{"source": {"principals": [principal]}}],
                "to": [{"operation": {"methods": ["GET", "POST"], "paths": [prefix]}}],
            }),
            Self::SharedPrincipal => json!({
                "from": [{"source": {"principals": ["cluster.local/ns/ns0/sa/app"]}}],
                "to": [{"operation": {"methods": ["GET", "POST"], "paths": [prefix]}}],
            }),
            Self::SharedPath => json!({
                "from": [{"source": {"principals": [principal]}}],
                "to": [{"operation": {"methods": ["GET", "POST"], "paths": ["/service-0/*"]}}],
            }),
            Self::Templates => {
                json!({"to": [{"operation": {"paths": [format!("/service-{at}/{{*}}/items")]}}]})
            }
            Self::Blocks => {
                let (high, low) = (at / 256, at % 256);
                json!({"from": [{"source": {"ipBlocks": [format!("10.{high}.{low}.0/24")]}}]})
            }
            Self::HeaderValues => {
                let values = [format!("tenant-{at}")];
                json!({"when": [{"key": "request.headers[x-tenant]", "values": values}]})
            }
            Self::ClaimValues => {
                let values = [format!("group-{at}")];
                json!({"when": [{"key": "request.auth.claims[group]", "values": values}]})
            }
            Self::Negations => json!({"to": [{"operation": {"notPaths": ["/*"]}}]}),
            Self::AllCandidates => {
                json!({"to": [{"operation": {"paths": ["/service*"], "notMethods": ["GET"]}}]})
            }
            Self::StraightLoop => {
                json!({"to": [{"operation": {"notPaths": ["/other*"], "notMethods": ["GET"]}}]})
            }
            Self::ManyKeys => json!({
                "from": [{"source": {"principals": ["*/sa/app", "cluster.local/*"]}},
                         {"source": {"namespaces": ["ns*"]}},
                         {"source": {"ipBlocks": ["10.0.0.0/8"]}}],
                "to": [{"operation": {"paths": ["/s*", "/se*", "/ser*", "*/items"],
                                      "notMethods": ["GET"]}}],
            }),
            Self::OwnHeaders => {
                let key = format!("request.headers[x-own-{at}]");
                json!({"when": [{"key": key, "values": ["a"]}]})
            }
        }
    }

    /// A request that the rule with this number matches; one beyond the last is matched by none.
    #[must_use]
    pub fn request(self, at: usize) -> OwnedRequest {
        let mut headers = HeaderMap::new();
        let name = HeaderName::from_static("x-tenant");
        headers.insert(name, HeaderValue::from_str(&format!("tenant-{at}")).unwrap());
        headers.insert("user-agent", HeaderValue::from_static("bench/1.0"));
        let namespace = if self == Self::SharedPrincipal { 0 } else { at };
        let service = if self == Self::SharedPath { 0 } else { at };
        let id = format!("spiffe://cluster.local/ns/ns{namespace}/sa/app");
        let claims = json!({
            "iss": "issuer", "sub": "user", "aud": "aud", "azp": "azp",
            "group": format!("group-{at}"), "realm": {"roles": ["other", "role"]},
        });
        let claims = Claims::new(claims.as_object().unwrap().clone());
        let octet = |number: usize| u8::try_from(number % 256).unwrap();
        OwnedRequest {
            peer: VerifiedPeer::assert_verified(id.parse().unwrap()),
            token: VerifiedToken::assert_verified(claims, []),
            path: format!("/service-{service}/7/items"),
            headers,
            source: IpAddr::from([10, octet(at / 256), octet(at), 7]),
            metadata: json!({"envoy.filters.http.bench": {"key": "value"}})
                .as_object()
                .cloned()
                .unwrap_or_default(),
        }
    }
}

/// Compiles policies for a workload of namespace `shop`, as Istio reads them.
#[must_use]
pub fn compile(policies: &[AuthorizationPolicy]) -> PolicySet {
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let scope = Scope::new(Workload::new("shop"), mesh).with_semantics(Semantics::istio());
    PolicySet::compile(policies, &scope, Transport::Http).unwrap()
}

/// Compiles policies with every strict option, as mesh-tower does unless told otherwise.
#[must_use]
pub fn compile_strict(policies: &[AuthorizationPolicy]) -> PolicySet {
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let scope = Scope::new(Workload::new("shop"), mesh).with_semantics(Semantics::strict());
    PolicySet::compile(policies, &scope, Transport::Http).unwrap()
}

fn read(name: &str, action: &str, rules: &Value) -> AuthorizationPolicy {
    let policy = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"action": action, "rules": rules},
    });
    let read = mesh_identity::manifest::read(&policy.to_string(), "bench", "shop").unwrap();
    AuthorizationPolicy::from_manifest(read.resources.first().unwrap()).unwrap()
}

/// A strict set that looks at everything, and a request that it allows.
#[derive(Debug)]
pub struct Everything {
    set: PolicySet,
    request: OwnedRequest,
}

/// See [`Everything`].
#[must_use]
pub fn everything() -> Everything {
    let deny = json!([
        {"from": [{"source": {"namespaces": ["n*x"], "notTrustDomains": ["other"]}}]},
        {"from": [{"source": {"serviceAccounts": ["ns0/nobody"]}}],
         "to": [{"operation": {"hosts": ["*.evil"], "paths": ["/{*}/x/{**}"]}}]},
        {"when": [{"key": "request.headers[accept]", "values": ["x*", "*y", "z"]},
                  {"key": "request.headers[cookie]", "notValues": ["q"]}]},
        {"when": [{"key": "connection.sni", "values": ["*.evil"]}]},
    ]);
    let allow = json!([{
        "from": [{"source": {"principals": ["*/sa/app"], "ipBlocks": ["10.0.0.0/8"],
                             "requestPrincipals": ["issuer/*"]}}],
        "to": [{"operation": {"hosts": ["SHOP.example"], "notPaths": ["/{*}"]}}],
        "when": [{"key": "request.auth.claims[group]", "values": ["group-0"]}],
    }]);
    let mesh = MeshSettings::new("cluster.local".parse().unwrap());
    let scope = Scope::new(Workload::new("shop"), mesh);
    let policies = [read("deny", "DENY", &deny), read("allow", "ALLOW", &allow)];
    let set = PolicySet::compile(&policies, &scope, Transport::Http).unwrap();
    let mut request = Shape::PrincipalAndPath.request(0);
    "/service-0/a%20b/items?x=%2f".clone_into(&mut request.path);
    for (name, value) in [("accept", "a"), ("accept", "b"), ("cookie", "a"), ("cookie", "b")] {
        request.headers.append(name, HeaderValue::from_static(value));
    }
    Everything { set, request }
}

impl Everything {
    /// Decides, explains nothing.
    #[must_use]
    pub fn decide(&self) -> bool {
        self.request.decide(&self.set)
    }
}

/// What facts borrow from.
#[derive(Debug)]
pub struct OwnedRequest {
    peer: VerifiedPeer,
    token: VerifiedToken,
    path: String,
    headers: HeaderMap,
    source: IpAddr,
    metadata: Map<String, Value>,
}

impl OwnedRequest {
    /// Gathers the facts, as a server does for each request, and asks the set.
    #[must_use]
    pub fn decide(&self, set: &PolicySet) -> bool {
        let path = NormalizedPath::assert_normalized(self.path.as_bytes());
        let http = HttpFacts::new("GET", "Shop.example", &self.headers).with_path(&path);
        let local = SocketAddr::from(([10, 0, 0, 9], 8080));
        let facts = RequestFacts::http(Some(self.source), Some(local), http)
            .with_peer(PeerIdentity::Svid(&self.peer))
            .with_sni(Some("Shop.Example"))
            .with_metadata(Some(&self.metadata))
            .with_token(Some(&self.token));
        set.decide(&facts).is_allow()
    }
}
