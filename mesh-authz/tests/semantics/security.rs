//! Threat model, section 8. [SEC-AUTHZ-1]: the benches' footprint test. [SEC-AUTHZ-2]:
//! `validation`. [SEC-AUTHZ-3]: the fuzz model. [SEC-AUTHZ-5]: `paths`. [SEC-AUTHZ-8]:
//! `advisories`. [SEC-AUTHZ-9]: mesh-tower. [SEC-AUTHZ-11]: `evaluation`.

use mesh_authz::Transport;
use serde_json::{Value, json};

use crate::check::{Site, from, get, istio, named, policy, to, when};

#[test]
fn sec_authz_3_a_missing_attribute_is_no_match_and_no_way_around_a_not() {
    let positive = [policy("DENY", when("request.headers[x-a]", json!(["v"])))];
    let negative =
        [policy("DENY", json!([{"when": [{"key": "request.headers[x-a]", "notValues": ["v"]}]}]))];
    assert_eq!((istio(&positive, &get("/")), istio(&negative, &get("/"))), (200, 403));
}

#[test]
fn sec_authz_4_values_are_literal_in_every_field() {
    const META: &str = r"a.b+c(d)[e]{1}|f^g$h\i";
    let field = |field: &str| from(json!({field: [format!("{META}*")]}));
    for rules in [field("principals"), field("namespaces"), field("trustDomains")] {
        let ask = get("/").names(&["spiffe://aXbbc(d)e/ns/aXbbc(d)e/sa/x"], &[], None);
        assert_eq!(istio(&[policy("DENY", rules)], &ask), 200);
    }
    let name = format!("spiffe://{META}/ns/{META}/sa/{META}");
    for rules in [
        field("principals"),
        field("namespaces"),
        from(json!({"serviceAccounts": [format!("{META}/{META}")]})),
        from(json!({"trustDomains": [META]})),
    ] {
        assert_eq!(istio(&[policy("DENY", rules)], &get("/").names(&[&name], &[], None)), 403);
    }
}

#[test]
fn sec_authz_6_hosts_without_regard_to_case_and_with_their_port() {
    let deny = [policy("DENY", to(json!({"hosts": ["A.example:*", "b.Example"]})))];
    for (host, want) in
        [("a.EXAMPLE:1", 403), ("B.example", 403), ("b.example:1", 200), ("a.example", 200)]
    {
        assert_eq!(istio(&deny, &get("/").host(host)), want, "{host}");
    }
}

#[test]
fn sec_authz_7_neither_order_nor_number_of_lines_evades_a_deny() {
    let deny = [policy("DENY", when("request.headers[x-role]", json!(["bad"])))];
    for at in 0..50 {
        let ask = (0..50).fold(get("/"), |ask, line| {
            ask.header("X-Role", if line == at { "bad" } else { "good" })
        });
        assert_eq!(istio(&deny, &ask), 403, "line {at}");
    }
}

#[test]
fn sec_authz_10_rules_and_values_are_bounded() {
    let rule = json!({"to": [{"operation": {"paths": ["/x"]}}]});
    let many = |name: &str| named(name, "foo", json!({"rules": vec![rule.clone(); 512]}));
    let policies: Vec<Value> = (0..20).map(|at| many(&format!("p{at}"))).collect();
    let compile = |policies: &[Value]| {
        Site::istio()
            .try_compile(policies, Transport::Http)
            .map(|_| ())
            .map_err(|problems| problems.list()[0].path.clone())
    };
    assert_eq!(compile(&policies[..19]), Ok(()));
    assert_eq!(compile(&policies), Err("spec.rules".to_owned()));
    let values: Vec<String> = (0..100_001).map(|at| format!("/{at}")).collect();
    let wide = [policy("ALLOW", to(json!({"paths": values})))];
    assert_eq!(compile(&wide), Err("spec.rules".to_owned()));
    let rules = policy("ALLOW", json!(vec![rule.clone(); 513]));
    assert_eq!(compile(&[rules]), Err("spec.rules".to_owned()));
}

#[test]
fn sec_authz_10_documents_are_bounded_and_texts_may_have_many() {
    let document = |filler: usize| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: p, namespace: foo}}\nspec: {{}}\n#{}\n",
            "x".repeat(filler)
        )
    };
    let read = |text: &str| mesh_identity::manifest::read(text, "p.yaml", "foo");
    let many = vec![document(600_000); 3].join("---\n");
    assert_eq!(read(&many).unwrap().resources.len(), 3);
    let problems = read(&document(1_100_000).replace('#', "x: ")).unwrap_err();
    assert!(problems.to_string().contains("at most 1048576"), "{problems}");
    let json = format!("{{\"apiVersion\": \"v1\", \"kind\": \"{}\"}}", "x".repeat(1_100_000));
    assert!(read(&json).unwrap_err().to_string().contains("at most 1048576"));
}

#[test]
fn sec_authz_12_explanations_escape_and_hide() {
    let policies = [policy(
        "ALLOW",
        json!([{
            "from": [{"source": {"requestPrincipals": ["i/nobody"]}}],
            "to": [{"operation": {"hosts": ["other"]}}],
            "when": [{"key": "request.auth.claims[key]", "values": ["v"]}],
        }]),
    )];
    let site = Site::istio();
    let set = site.compile(&policies, Transport::Http);
    let ask = get("/?q=hidden-1")
        .host("a\u{1b}[31mb")
        .header("x-api-key", "hidden-2")
        .token(json!({"iss": "i", "sub": "hidden-3", "key": "hidden-4"}));
    let shown = site.with_facts(&ask, |facts| {
        let explanation = set.explain(facts);
        format!("{explanation} {explanation:?} {facts:?}")
    });
    let shown = shown.unwrap();
    assert!(!shown.contains("hidden"), "{shown}");
    assert!(!shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn sem_tcp_05_the_webhooks_warning() {
    let warns = |rules: Value| {
        let policy = crate::check::read(&policy("DENY", rules)).unwrap();
        !policy.warnings().is_empty()
    };
    assert!(warns(to(json!({"paths": ["/a"]}))));
    assert!(warns(from(json!({"requestPrincipals": ["*"]}))));
    assert!(!warns(to(json!({"paths": ["/a"], "ports": ["80"]}))));
    assert!(!warns(from(json!({"namespaces": ["a"]}))));
    assert!(!warns(json!([{}])));
}
