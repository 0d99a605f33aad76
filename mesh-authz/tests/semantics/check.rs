//! The one place of these tests that touches the API: policies and a request in, a status out.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use mesh_authz::{
    AuthorizationPolicy, ClientAddress, Decision, HttpFacts, NormalizedPath, PathNormalization,
    PeerIdentity, PeerNames, PolicySet, Providers, RequestFacts, Scope, Semantics, Transport,
    XffTrust, client_address,
};
use mesh_identity::manifest::{Manifest, Problems};
use mesh_identity::{Claims, MeshSettings, VerifiedPeer, VerifiedToken, Workload};
use serde_json::{Value, json};

/// A policy `p` of namespace `foo`.
pub(crate) fn policy(action: &str, rules: Value) -> Value {
    named("p", "foo", json!({"action": action, "rules": rules}))
}

pub(crate) fn named(name: &str, namespace: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

pub(crate) fn from(source: Value) -> Value {
    json!([{"from": [{"source": source}]}])
}

pub(crate) fn to(operation: Value) -> Value {
    json!([{"to": [{"operation": operation}]}])
}

pub(crate) fn when(key: &str, values: Value) -> Value {
    json!([{"when": [{"key": key, "values": values}]}])
}

pub(crate) fn when_not(key: &str, values: Value) -> Value {
    json!([{"when": [{"key": key, "notValues": values}]}])
}

pub(crate) fn manifest(policy: &Value) -> Manifest {
    let read = mesh_identity::manifest::read(&policy.to_string(), "test", "default").unwrap();
    read.resources.into_iter().next().unwrap()
}

pub(crate) fn read(policy: &Value) -> Result<AuthorizationPolicy, Problems> {
    AuthorizationPolicy::from_manifest(&manifest(policy))
}

/// Where policies are compiled and how requests are normalized.
pub(crate) struct Site {
    pub(crate) scope: Scope,
    pub(crate) trust: XffTrust,
    pub(crate) lenient: bool,
}

impl Site {
    /// A workload of namespace `foo`, labelled `app: httpbin`, judged as Istio does.
    pub(crate) fn istio() -> Self {
        let workload = Workload::new("foo").with_label("app", "httpbin");
        let mesh = MeshSettings::new("cluster.local".parse().unwrap());
        let scope = Scope::new(workload, mesh).with_semantics(Semantics::istio());
        Self { scope, trust: XffTrust::Anyone, lenient: false }
    }

    pub(crate) fn strict() -> Self {
        Self::istio().semantics(Semantics::strict()).trust(XffTrust::Nobody)
    }

    pub(crate) fn semantics(mut self, semantics: Semantics) -> Self {
        self.scope = self.scope.with_semantics(semantics);
        self
    }

    pub(crate) fn paths(mut self, mode: PathNormalization) -> Self {
        self.scope = self.scope.with_path_normalization(mode);
        self
    }

    pub(crate) fn providers(mut self, providers: Providers) -> Self {
        self.scope = self.scope.with_providers(providers);
        self
    }

    pub(crate) fn aliases(mut self, own: &str, aliases: &[&str]) -> Self {
        let mesh = MeshSettings::new(own.parse().unwrap())
            .with_aliases(aliases.iter().map(|alias| alias.parse().unwrap()));
        self.scope =
            Scope::new(self.scope.workload().clone(), mesh).with_semantics(self.scope.semantics());
        self
    }

    pub(crate) fn trust(mut self, trust: XffTrust) -> Self {
        self.trust = trust;
        self
    }

    pub(crate) fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    pub(crate) fn compile(&self, policies: &[Value], transport: Transport) -> PolicySet {
        self.try_compile(policies, transport).unwrap()
    }

    pub(crate) fn try_compile(
        &self,
        policies: &[Value],
        transport: Transport,
    ) -> Result<PolicySet, Problems> {
        let read = |policy: &Value| match self.lenient {
            true => AuthorizationPolicy::from_manifest_lenient(&manifest(policy)),
            false => read(policy),
        };
        let policies: Result<Vec<_>, _> = policies.iter().map(read).collect();
        PolicySet::compile(&policies?, &self.scope, transport)
    }

    /// 200, 403, or 400 for a path that is refused before policies.
    pub(crate) fn status(&self, policies: &[Value], ask: &Ask) -> u16 {
        match self.decide(policies, ask) {
            None => 400,
            Some(decision) if decision.is_allow() => 200,
            Some(_) => 403,
        }
    }

    /// Nothing when the path is refused.
    pub(crate) fn decide(&self, policies: &[Value], ask: &Ask) -> Option<Decision> {
        let transport = if ask.tcp { Transport::Tcp } else { Transport::Http };
        let set = self.compile(policies, transport);
        self.with_facts(ask, |facts| {
            let explained = set.explain(facts);
            let decision = set.decide(facts);
            assert_eq!(explained.decision, decision);
            decision
        })
    }

    pub(crate) fn with_facts<T>(
        &self,
        ask: &Ask,
        f: impl FnOnce(&RequestFacts<'_>) -> T,
    ) -> Option<T> {
        let headers = ask.header_map();
        let path = ask.path.as_ref().map(|path| self.scope.normalize(path));
        let path: Option<NormalizedPath<'_>> = path.transpose().ok()?;
        let svid = ask.peer.as_ref().map(|id| VerifiedPeer::assert_verified(id.parse().unwrap()));
        let peer = match (&svid, &ask.names) {
            (Some(peer), _) => PeerIdentity::Svid(peer),
            (None, Some(names)) => PeerIdentity::Names(names),
            (None, None) => PeerIdentity::None,
        };
        let token = ask.token.as_ref().map(|claims| {
            let claims = Claims::new(claims.as_object().unwrap().clone());
            VerifiedToken::assert_verified(claims, ["scope", "permission"])
        });
        let destination = SocketAddr::new([10, 0, 0, 9].into(), ask.port);
        let client = match ask.known_client {
            Some(ip) => ClientAddress::known(ip),
            None => client_address(&headers, ask.source, peer, &self.trust),
        };
        let facts = if ask.tcp {
            RequestFacts::tcp(Some(ask.source), Some(destination))
        } else {
            let http = HttpFacts::new(&ask.method, &ask.authority, &headers)
                .with_version(ask.version)
                .with_scheme(&ask.scheme);
            let http = path.iter().fold(http, HttpFacts::with_path);
            RequestFacts::http(Some(ask.source), Some(destination), http)
        };
        Some(f(&facts
            .with_peer(peer)
            .with_client_address(client)
            .with_sni(ask.sni.as_deref())
            .with_token(token.as_ref())))
    }
}

/// A request: GET / of httpbin.foo from the workload `spiffe://cluster.local/ns/foo/sa/sleep`.
#[derive(Clone)]
pub(crate) struct Ask {
    tcp: bool,
    method: String,
    authority: String,
    scheme: String,
    version: http::Version,
    path: Option<Vec<u8>>,
    headers: Vec<(String, Vec<u8>)>,
    peer: Option<String>,
    names: Option<PeerNames>,
    source: IpAddr,
    known_client: Option<IpAddr>,
    port: u16,
    sni: Option<String>,
    token: Option<Value>,
}

pub(crate) fn get(path: &str) -> Ask {
    Ask {
        tcp: false,
        method: "GET".to_owned(),
        authority: "httpbin.foo".to_owned(),
        scheme: "http".to_owned(),
        version: http::Version::HTTP_11,
        path: Some(path.as_bytes().to_vec()),
        headers: Vec::new(),
        peer: Some("spiffe://cluster.local/ns/foo/sa/sleep".to_owned()),
        names: None,
        source: [127, 0, 0, 1].into(),
        known_client: None,
        port: 8080,
        sni: None,
        token: None,
    }
}

/// A TCP connection to port 8080 from the same workload.
pub(crate) fn tcp() -> Ask {
    Ask { tcp: true, ..get("/") }
}

impl Ask {
    pub(crate) fn method(mut self, method: &str) -> Self {
        method.clone_into(&mut self.method);
        self
    }

    pub(crate) fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.authority);
        self
    }

    pub(crate) fn scheme(mut self, scheme: &str) -> Self {
        scheme.clone_into(&mut self.scheme);
        self
    }

    pub(crate) fn http2(mut self) -> Self {
        self.version = http::Version::HTTP_2;
        self
    }

    pub(crate) fn connect(mut self) -> Self {
        self.path = None;
        self.method("CONNECT")
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.as_bytes().to_vec()));
        self
    }

    pub(crate) fn raw_header(mut self, name: &str, value: &[u8]) -> Self {
        self.headers.push((name.to_owned(), value.to_vec()));
        self
    }

    pub(crate) fn peer(mut self, id: &str) -> Self {
        self.peer = Some(id.to_owned());
        self
    }

    pub(crate) fn plain(mut self) -> Self {
        self.peer = None;
        self
    }

    pub(crate) fn names(mut self, uri: &[&str], dns: &[&str], subject: Option<&str>) -> Self {
        let own = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let subject = subject.map(str::to_owned);
        self.names = Some(PeerNames::assert_verified(own(uri), own(dns), subject));
        self.plain()
    }

    pub(crate) fn source(mut self, ip: &str) -> Self {
        self.source = ip.parse().unwrap();
        self
    }

    pub(crate) fn client(mut self, ip: &str) -> Self {
        self.known_client = Some(ip.parse().unwrap());
        self
    }

    pub(crate) fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    pub(crate) fn sni(mut self, name: &str) -> Self {
        self.sni = Some(name.to_owned());
        self
    }

    pub(crate) fn token(mut self, claims: Value) -> Self {
        self.token = Some(claims);
        self
    }

    fn header_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value.trim_ascii()).unwrap());
        }
        headers
    }
}

/// Under Istio's semantics.
pub(crate) fn istio(policies: &[Value], ask: &Ask) -> u16 {
    Site::istio().status(policies, ask)
}

/// Under every strict option.
pub(crate) fn strict(policies: &[Value], ask: &Ask) -> u16 {
    Site::strict().status(policies, ask)
}
