//! Rules that no index serves: each field and condition key, so that a decision evaluates them all.

use mesh_authz::PolicySet;
use serde_json::{Value, json};

use crate::{OwnedRequest, Shape, compile, compile_strict, read};

/// A rule that every request of [`request`] has to be compared with and that none satisfies.
#[derive(Clone, Debug)]
pub struct Unindexed {
    name: String,
    rule: Value,
    /// Rules differ in what stands for `{at}`.
    is_numbered: bool,
}

impl Unindexed {
    /// Every field and every condition key: negated and satisfied by the request, so that the rule
    /// fails; as values that the request satisfies beside a method that it has not; and names that
    /// no other rule asks about.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let sources = [
            ("notPrincipals", json!(["cluster.local/ns/ns7/sa/app"])),
            ("notPrincipals", json!(["*/sa/app"])),
            ("notNamespaces", json!(["ns7"])),
            ("notNamespaces", json!(["n*7"])),
            ("notServiceAccounts", json!(["ns7/app"])),
            ("notTrustDomains", json!(["cluster.local"])),
            ("notRequestPrincipals", json!(["issuer/user"])),
            ("notIpBlocks", json!(["10.0.0.0/8"])),
            ("notRemoteIpBlocks", json!(["10.0.0.0/8"])),
        ];
        let operations = [
            ("notHosts", json!(["shop.example"])),
            ("notPorts", json!(["8080"])),
            ("notMethods", json!(["GET"])),
            ("notPaths", json!(["/service-7/*"])),
            ("notPaths", json!(["/service-7/{*}/items"])),
            ("notPaths", json!(["/{**}"])),
        ];
        let keys = [
            ("source.ip", "10.0.0.0/8"),
            ("remote.ip", "10.0.0.0/8"),
            ("source.namespace", "ns7"),
            ("source.principal", "cluster.local/ns/ns7/sa/app"),
            ("source.serviceAccount", "ns7/app"),
            ("source.trustDomain", "cluster.local"),
            ("request.headers[x-tenant]", "tenant-7"),
            ("request.headers[user-agent]", "bench/*"),
            ("request.headers[host]", "Shop.example"),
            ("request.headers[:path]", "/service-7/*"),
            ("request.auth.principal", "issuer/user"),
            ("request.auth.audiences", "aud"),
            ("request.auth.presenter", "azp"),
            ("request.auth.claims[group]", "group-7"),
            ("request.auth.claims[realm][roles]", "role"),
            ("destination.ip", "10.0.0.0/8"),
            ("destination.port", "8080"),
            ("connection.sni", "shop.example"),
            ("experimental.envoy.filters.http.bench[key]", "value"),
        ];
        let fixed = |name: String, rule| Self { name, rule, is_numbered: false };
        let mut all = Vec::new();
        for (field, values) in sources {
            let rule = json!({"from": [{"source": {field: values}}]});
            all.push(fixed(format!("{field} {values}"), rule));
        }
        for (field, values) in operations {
            let rule = json!({"to": [{"operation": {field: values}}]});
            all.push(fixed(format!("{field} {values}"), rule));
        }
        for (key, value) in keys {
            let rule = json!({"when": [{"key": key, "notValues": [value]}]});
            all.push(fixed(format!("{key} notValues"), rule));
        }
        let other_method = json!({"key": "request.headers[:method]", "notValues": ["GET"]});
        for (key, value) in keys {
            let rule = json!({"when": [{"key": key, "values": [value]}, other_method]});
            all.push(fixed(format!("{key} values, :method notValues"), rule));
        }
        for key in ["request.headers[x-own-{at}]", "request.auth.claims[own-{at}]"] {
            let rule = json!({"when": [{"key": key, "notValues": ["a"]}, other_method]});
            let name = format!("{key} notValues, :method notValues");
            all.push(Self { name, rule, is_numbered: true });
        }
        all
    }

    /// What the rule asks about.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// That many such rules, as Istio reads them.
    #[must_use]
    pub fn compile(&self, rules: usize) -> PolicySet {
        compile(&self.policies(rules))
    }

    /// That many such rules with every strict option.
    #[must_use]
    pub fn compile_strict(&self, rules: usize) -> PolicySet {
        compile_strict(&self.policies(rules))
    }

    fn policies(&self, rules: usize) -> Vec<mesh_authz::AuthorizationPolicy> {
        let text = self.rule.to_string();
        let numbered = |at: usize| -> Value {
            if self.is_numbered {
                serde_json::from_str(&text.replace("{at}", &at.to_string())).unwrap()
            } else {
                self.rule.clone()
            }
        };
        let all: Vec<Value> = (0..rules).map(numbered).collect();
        let chunks = all.chunks(500).enumerate();
        chunks.map(|(at, rules)| read(&format!("p{at:03}"), "ALLOW", &json!(rules))).collect()
    }
}

/// The request that all of them look at and refuse.
#[must_use]
pub fn request() -> OwnedRequest {
    Shape::PrincipalAndPath.request(7)
}
