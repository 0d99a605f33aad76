//! Section 10: every surprise that concerns authorization, by its number. 22 to 28 and 30 are about
//! tokens and PeerAuthentication; 29 is about when a connection is judged, which is the server's.

use mesh_authz::{PathNormalization, ProviderKind, Providers, Transport};
use serde_json::{Value, json};

use crate::check::{Site, from, get, istio, named, policy, tcp, to, when};

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
fn surprise_03_every_name_of_a_certificate_counts() {
    let deny = [policy("DENY", from(json!({"namespaces": ["evil"]})))];
    let (good, evil) = ("spiffe://td/ns/good/sa/x", "spiffe://td/ns/evil/sa/x");
    assert_eq!(istio(&deny, &get("/").names(&[good, evil], &[], None)), 403);
    assert_eq!(istio(&deny, &get("/").names(&[good], &[evil], None)), 403);
    assert_eq!(istio(&deny, &get("/").names(&[good], &["a.example"], Some(evil))), 403);
    assert_eq!(istio(&deny, &get("/").names(&[good], &["a.example"], Some("CN=x"))), 200);
}

#[test]
fn surprise_04_namespaces_reach_into_the_rest_of_the_name() {
    let allow = |namespace| [policy("ALLOW", from(json!({"namespaces": [namespace]})))];
    let deep = get("/").peer("spiffe://td/ns/a/sa/ns/foo/sa/b");
    assert_eq!((istio(&allow("foo"), &deep), istio(&allow("*a"), &deep)), (200, 200));
    assert_eq!(istio(&allow("*a"), &get("/").peer("spiffe://td/ns/zzz/sa/b")), 200);
    assert_eq!(crate::check::strict(&allow("foo"), &deep), 403);
}

#[test]
fn surprise_06_a_prefix_of_the_trust_domain_reaches_every_alias() {
    let site = || Site::istio().aliases("new.example", &["old.example"]);
    let allow = [policy("ALLOW", from(json!({"principals": ["new*/ns/x/sa/y"]})))];
    assert_eq!(site().status(&allow, &get("/").peer("spiffe://old.example/ns/x/sa/y")), 200);
    assert_eq!(site().status(&allow, &get("/").peer("spiffe://newer.example/ns/x/sa/y")), 403);
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
fn surprise_12_a_method_in_lower_case_is_another_method() {
    let deny = [policy("DENY", to(json!({"methods": ["GET"]})))];
    let lower = get("/").http2().method("get");
    assert_eq!((istio(&deny, &get("/")), istio(&deny, &lower)), (403, 200));
    assert_eq!(crate::check::strict(&deny, &lower), 403);
}

#[test]
fn surprise_13_star_and_empty_values() {
    let header = [policy("ALLOW", when("request.headers[x-a]", json!(["*"])))];
    let claim = [policy("ALLOW", when("request.auth.claims[a]", json!(["*"])))];
    assert_eq!(istio(&header, &get("/").header("x-a", "")), 200);
    assert_eq!(istio(&claim, &get("/").token(json!({"a": ""}))), 403);
}

#[test]
fn surprise_14_any_line_of_a_header_may_match() {
    let allow = [policy("ALLOW", when("request.headers[x-a]", json!(["v"])))];
    let lines = |one, other| get("/").header("x-a", one).header("x-a", other);
    assert_eq!((istio(&allow, &lines("v", "w")), istio(&allow, &lines("w", "v"))), (200, 200));
    assert_eq!(istio(&allow, &get("/").header("x-a", "v,w")), 403);
}

#[test]
fn surprise_15_a_token_without_subject_is_no_principal() {
    let deny = [policy("DENY", from(json!({"notRequestPrincipals": ["*"]})))];
    assert_eq!(istio(&deny, &get("/").token(json!({"iss": "i"}))), 403);
    assert_eq!(istio(&deny, &get("/").token(json!({"iss": "i", "sub": "s"}))), 200);
}

#[test]
fn surprise_16_templates_miss_the_parent_and_brackets() {
    let allow = [policy("ALLOW", to(json!({"paths": ["/foo/{**}"]})))];
    for (path, want) in [("/foo/", 200), ("/foo/a/b", 200), ("/foo", 403), ("/foo/a[b]", 403)] {
        assert_eq!(istio(&allow, &get(path)), want, "{path}");
    }
}

#[test]
fn surprise_17_a_sidecar_believes_the_callers_header() {
    let allow = [policy("ALLOW", from(json!({"remoteIpBlocks": ["10.0.0.0/8"]})))];
    assert_eq!(istio(&allow, &get("/").header("x-forwarded-for", "10.1.1.1")), 200);
}

#[test]
fn surprise_18_a_deny_on_http_attributes_denies_all_tcp() {
    let deny = [policy("DENY", to(json!({"paths": ["/admin"]})))];
    assert_eq!((istio(&deny, &tcp()), istio(&deny, &get("/"))), (403, 200));
}

#[test]
fn surprise_19_a_deny_with_an_unknown_key_vanishes_in_istio_and_is_refused_here() {
    let deny = [policy("DENY", when("source.unknown", json!(["x"])))];
    assert_eq!(Site::istio().lenient().status(&deny, &get("/")), 200);
    assert!(Site::istio().try_compile(&deny, Transport::Http).is_err());
}

fn custom() -> [Value; 1] {
    [named("c", "foo", json!({"action": "CUSTOM", "provider": {"name": "p"}, "rules": [{}]}))]
}

#[test]
fn surprise_20_custom_with_an_http_provider_does_nothing_on_tcp() {
    let steps = |kind| {
        let site = Site::istio().providers(Providers::default().with("p", kind));
        let set = site.compile(&custom(), Transport::Tcp);
        site.with_facts(&tcp(), |facts| set.custom(facts).count()).unwrap()
    };
    assert_eq!((steps(ProviderKind::Http), steps(ProviderKind::Grpc)), (0, 1));
}

#[test]
fn surprise_21_a_dry_run_custom_enforces_in_istio_and_is_refused_here() {
    let [mut dry] = custom();
    dry["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let dry = [dry];
    let site = || Site::istio().providers(Providers::default().with("p", ProviderKind::Http));
    let lenient = site().lenient();
    let set = lenient.compile(&dry, Transport::Http);
    let step = lenient.with_facts(&get("/"), |facts| set.custom(facts).next()).unwrap();
    assert!(matches!(step, Some(mesh_authz::CustomStep::Refuse(_))), "{step:?}");
    assert!(site().try_compile(&dry, Transport::Http).is_err());
}

#[test]
fn surprise_31_ports_are_the_workloads() {
    let deny = [policy("DENY", to(json!({"ports": ["80"]})))];
    assert_eq!(istio(&deny, &get("/").host("a.example:80").port(8080)), 200);
    assert_eq!(istio(&deny, &get("/").host("a.example:8080").port(80)), 403);
}

#[test]
fn surprise_32_in_base_mode_some_paths_stay_different() {
    let deny = [policy("DENY", to(json!({"paths": ["/admin"]})))];
    let base = Site::istio().paths(PathNormalization::Base);
    assert_eq!(base.status(&deny, &get("//admin")), 200);
    assert_eq!(base.status(&deny, &get("/x%2f..%2fadmin")), 200);
}
