//! Section 10: surprises that concern authorization and have no test of their own elsewhere.
//!
//! 1, 23: `evaluation`. 3, 4, 6: `matching`. 16: `matching`. 18, 20, 21: `evaluation`.
//! 19: `validation`.

use mesh_authz::PathNormalization;
use serde_json::json;

use crate::check::{Site, from, get, istio, named, policy, to, when};

#[test]
fn surprise_01_no_rules_denies_or_does_nothing() {
    assert_eq!(istio(&[named("p", "foo", json!({}))], &get("/")), 403);
    let deny = [named("p", "foo", json!({"action": "DENY"}))];
    assert_eq!(Site::istio().lenient().status(&deny, &get("/")), 200);
}

#[test]
fn surprise_02_star_accepts_any_certificate() {
    let allow = [policy("ALLOW", from(json!({"principals": ["*"]})))];
    assert_eq!(istio(&allow, &get("/").names(&[], &["a.example"], None)), 200);
    assert_eq!(istio(&allow, &get("/").plain()), 403);
}

#[test]
fn surprise_05_cluster_local_points_in_principals_only() {
    let site = || Site::istio().aliases("mesh.example", &[]);
    let ask = get("/").peer("spiffe://mesh.example/ns/a/sa/b");
    let principals = [policy("ALLOW", from(json!({"principals": ["cluster.local/ns/a/sa/b"]})))];
    let domains = [policy("ALLOW", from(json!({"trustDomains": ["cluster.local"]})))];
    assert_eq!(site().status(&principals, &ask), 200);
    assert_eq!(site().status(&domains, &ask), 403);
}

#[test]
fn surprise_07_a_bare_service_account_is_of_the_policys_namespace() {
    let spec = json!({"rules": from(json!({"serviceAccounts": ["api"]}))});
    let root = [named("p", "istio-system", spec)];
    let peer = |namespace| get("/").peer(&format!("spiffe://cluster.local/ns/{namespace}/sa/api"));
    assert_eq!(istio(&root, &peer("foo")), 403);
    assert_eq!(istio(&root, &peer("istio-system")), 200);
}

#[test]
fn surprise_08_negatives_hold_on_plain_text() {
    for source in [json!({"notNamespaces": ["foo"]}), json!({"notPrincipals": ["*"]})] {
        assert_eq!(istio(&[policy("ALLOW", from(source))], &get("/").plain()), 200);
    }
}

#[test]
fn surprise_09_10_hosts_alone_ignore_case_and_keep_the_port() {
    let hosts = [policy("ALLOW", to(json!({"hosts": ["a.example"]})))];
    let header = [policy("ALLOW", when("request.headers[host]", json!(["a.example"])))];
    let upper = get("/").host("A.example");
    assert_eq!((istio(&hosts, &upper), istio(&header, &upper)), (200, 403));
    assert_eq!(istio(&hosts, &get("/").host("a.example:8080")), 403);
}

#[test]
fn surprise_11_two_host_lines_defeat_a_deny() {
    let deny = [policy("DENY", to(json!({"hosts": ["a.example", "b.example"]})))];
    let joined = get("/").host("a.example,b.example");
    assert_eq!(istio(&deny, &joined), 200);
    assert_eq!(crate::check::strict(&deny, &joined), 403);
}

#[test]
fn surprise_13_star_and_empty_values() {
    let header = [policy("ALLOW", when("request.headers[x-a]", json!(["*"])))];
    let claim = [policy("ALLOW", when("request.auth.claims[a]", json!(["*"])))];
    assert_eq!(istio(&header, &get("/").header("x-a", "")), 200);
    assert_eq!(istio(&claim, &get("/").token(json!({"a": ""}))), 403);
}

#[test]
fn surprise_15_a_token_without_subject_is_no_principal() {
    let deny = [policy("DENY", from(json!({"notRequestPrincipals": ["*"]})))];
    assert_eq!(istio(&deny, &get("/").token(json!({"iss": "i"}))), 403);
    assert_eq!(istio(&deny, &get("/").token(json!({"iss": "i", "sub": "s"}))), 200);
}

#[test]
fn surprise_17_a_sidecar_believes_the_callers_header() {
    let allow = [policy("ALLOW", from(json!({"remoteIpBlocks": ["10.0.0.0/8"]})))];
    assert_eq!(istio(&allow, &get("/").header("x-forwarded-for", "10.1.1.1")), 200);
}

#[test]
fn surprise_32_in_base_mode_some_paths_stay_different() {
    let deny = [policy("DENY", to(json!({"paths": ["/admin"]})))];
    let base = Site::istio().paths(PathNormalization::Base);
    assert_eq!(base.status(&deny, &get("//admin")), 200);
    assert_eq!(base.status(&deny, &get("/x%2f..%2fadmin")), 200);
}
