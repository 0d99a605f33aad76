//! Sections 2, 3, 5 and 8.4: selection, order, empty parts, dry runs, TCP, CUSTOM.

use mesh_authz::{
    Audit, CustomStep, DenyReason, ProviderKind, Providers, ShadowResult, Transport, Verdict,
};
use serde_json::{Value, json};

use crate::check::{Ask, Site, from, get, istio, named, policy, strict, tcp, to, when};

fn dry_run(mut policy: Value) -> Value {
    policy["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    policy
}

fn rename(mut policy: Value, name: &str) -> Value {
    policy["metadata"]["name"] = json!(name);
    policy
}

#[test]
fn sem_sel_01_02_03_selection_by_namespace_and_label() {
    let deny = |name: &str, namespace: &str, selector: Value| {
        let spec = json!({"action": "DENY", "selector": selector, "rules": [{}]});
        [named(name, namespace, spec)]
    };
    let labels = |value: &str| json!({"matchLabels": {"app": value}});
    assert_eq!(istio(&deny("p", "foo", labels("httpbin")), &get("/")), 403);
    assert_eq!(istio(&deny("p", "foo", labels("other")), &get("/")), 200);
    assert_eq!(istio(&deny("p", "bar", labels("httpbin")), &get("/")), 200);
    assert_eq!(istio(&deny("p", "istio-system", labels("httpbin")), &get("/")), 403);
    assert_eq!(istio(&deny("p", "istio-system", Value::Null), &get("/")), 403);
}

#[test]
fn sem_eval_01_deny_comes_before_allow() {
    let policies = [
        rename(policy("ALLOW", json!([{}])), "a"),
        rename(policy("DENY", to(json!({"paths": ["/admin"]}))), "d"),
    ];
    assert_eq!((istio(&policies, &get("/x")), istio(&policies, &get("/admin"))), (200, 403));
}

#[test]
fn sem_eval_02_03_one_allow_policy_means_default_deny() {
    assert_eq!(istio(&[], &get("/")), 200);
    let root = [named(
        "p",
        "istio-system",
        json!({"rules": [{"to": [{"operation": {"paths": ["/a"]}}]}]}),
    )];
    assert_eq!((istio(&root, &get("/a")), istio(&root, &get("/b"))), (200, 403));
}

#[test]
fn sem_eval_10_11_21_any_source_and_any_operation_and_every_condition() {
    let policies = [policy(
        "ALLOW",
        json!([{
            "from": [{"source": {"namespaces": ["foo"]}}, {"source": {"namespaces": ["bar"]}}],
            "to": [{"operation": {"methods": ["GET"], "paths": ["/items*"]}},
                   {"operation": {"methods": ["POST"], "paths": ["/orders"]}}],
            "when": [{"key": "request.headers[x-tenant]", "values": ["blue", "green"]},
                     {"key": "request.headers[x-tenant]", "notValues": ["green"]}],
        }]),
    )];
    let ask = |method, path, tenant| get(path).method(method).header("x-tenant", tenant);
    assert_eq!(istio(&policies, &ask("GET", "/items?x=1", "blue")), 200);
    assert_eq!(istio(&policies, &ask("POST", "/orders", "blue")), 200);
    assert_eq!(istio(&policies, &ask("POST", "/items", "blue")), 403);
    assert_eq!(istio(&policies, &ask("GET", "/items", "green")), 403);
    assert_eq!(istio(&policies, &get("/items")), 403);
    let bar = ask("GET", "/items", "blue").peer("spiffe://cluster.local/ns/bar/sa/x");
    assert_eq!(istio(&policies, &bar), 200);
}

#[test]
fn sem_eval_20_23_allow_nothing() {
    let nothing = named("nothing", "foo", json!({}));
    assert_eq!(istio(std::slice::from_ref(&nothing), &get("/")), 403);
    assert_eq!(istio(&[nothing, policy("ALLOW", json!([{}]))], &get("/")), 200);
}

#[test]
fn sem_eval_20_empty_rule_lists_and_empty_rules() {
    let lenient =
        |spec: Value| Site::istio().lenient().status(&[named("p", "foo", spec)], &get("/"));
    assert_eq!(lenient(json!({"rules": []})), 403);
    assert_eq!(lenient(json!({"action": "DENY"})), 200);
    assert_eq!(lenient(json!({"action": "DENY", "rules": [null]})), 200);
    assert_eq!(lenient(json!({"rules": [{"from": [], "to": [], "when": []}]})), 200);
    assert_eq!(lenient(json!({"rules": [{"from": [{}]}]})), 200);
    assert_eq!(istio(&[policy("ALLOW", json!([{}]))], &get("/")), 200);
    assert_eq!(istio(&[policy("DENY", json!([{}]))], &get("/")), 403);
}

#[test]
fn sem_eval_30_31_the_first_rule_in_byte_order_is_named() {
    let rules: Vec<Value> = (0..12)
        .map(|at| {
            let path = if at == 2 || at == 10 { "/x" } else { "/y" };
            json!({"to": [{"operation": {"paths": [path]}}]})
        })
        .collect();
    let decision = Site::istio().decide(&[policy("DENY", json!(rules))], &get("/x")).unwrap();
    assert_eq!(decision.rule_id(), Some("ns[foo]-policy[p]-rule[10]"));
    let rule = decision.rule().unwrap();
    assert_eq!((rule.namespace(), rule.policy(), rule.index()), ("foo", "p", 10));
}

#[test]
fn sem_eval_32_two_policies_of_one_name_are_an_error() {
    let twice = [policy("ALLOW", json!([{}])), policy("DENY", json!([{}]))];
    let problems = Site::istio().try_compile(&twice, Transport::Http).unwrap_err();
    assert!(problems.to_string().contains("foo/p"), "{problems}");
}

#[test]
fn sem_eval_33_audit_marks_and_never_refuses() {
    let audit = [policy("AUDIT", to(json!({"paths": ["/a"]})))];
    let of = |path| Site::istio().decide(&audit, &get(path)).unwrap();
    assert!(matches!(of("/a").audit, Some(Audit::Matched(_))));
    assert_eq!(of("/b").audit, Some(Audit::NotMatched));
    assert!(of("/a").is_allow() && of("/b").is_allow());
}

#[test]
fn sem_eval_41_42_dry_runs_are_reported_and_not_enforced() {
    let policies = [
        rename(dry_run(policy("ALLOW", to(json!({"paths": ["/a"]})))), "a"),
        rename(dry_run(policy("DENY", to(json!({"paths": ["/b"]})))), "d"),
    ];
    for (path, allow, deny) in [
        ("/a", ShadowResult::Allowed, ShadowResult::Allowed),
        ("/b", ShadowResult::Denied, ShadowResult::Denied),
        ("/c", ShadowResult::Denied, ShadowResult::Allowed),
    ] {
        let decision = Site::istio().decide(&policies, &get(path)).unwrap();
        assert!(decision.is_allow());
        let (got_allow, got_deny) = (decision.shadow_allow.unwrap(), decision.shadow_deny.unwrap());
        assert_eq!((got_allow.result, got_deny.result), (allow, deny), "{path}");
        assert_eq!(got_deny.rule.is_some(), deny == ShadowResult::Denied);
    }
}

#[test]
fn sec_authz_11_dry_run_and_audit_never_change_a_decision() {
    let enforced = [policy("DENY", to(json!({"paths": ["/b"]})))];
    let mut more = enforced.to_vec();
    more.push(rename(dry_run(policy("DENY", json!([{}]))), "dry"));
    more.push(rename(dry_run(policy("ALLOW", to(json!({"paths": ["/none"]})))), "dry-allow"));
    more.push(rename(policy("AUDIT", json!([{}])), "audit"));
    for path in ["/a", "/b", "/a;x"] {
        assert_eq!(istio(&enforced, &get(path)), istio(&more, &get(path)));
    }
    // What they read does not make the strict reading refuse either.
    let enforced = [policy("DENY", to(json!({"methods": ["PUT"]})))];
    let mut more = enforced.to_vec();
    more.push(rename(dry_run(policy("DENY", to(json!({"paths": ["/x"]})))), "dry"));
    more.push(rename(policy("AUDIT", to(json!({"paths": ["/x"], "hosts": ["h"]}))), "audit"));
    let odd = get("/a;x").host("h:1");
    assert_eq!((strict(&enforced, &odd), strict(&more, &odd)), (200, 200));
}

#[test]
fn sem_eval_60_the_worked_example() {
    let policies = [
        rename(
            policy(
                "DENY",
                json!([{
                    "from": [{"source": {"notNamespaces": ["ops"]}}],
                    "to": [{"operation": {"paths": ["/admin", "/admin/*"]}}],
                }]),
            ),
            "admin",
        ),
        rename(
            policy(
                "ALLOW",
                json!([
                    {"from": [{"source": {"principals": ["cluster.local/ns/web/sa/front"]}}],
                     "to": [{"operation": {"methods": ["GET"], "paths": ["/items*"]}},
                            {"operation": {"methods": ["POST"], "paths": ["/orders"]}}],
                     "when": [{"key": "request.headers[x-tenant]", "values": ["blue", "green"]}]},
                    {"from": [{"source": {"namespaces": ["ops"]}}]},
                ]),
            ),
            "items",
        ),
    ];
    let front = "spiffe://cluster.local/ns/web/sa/front";
    let ops = "spiffe://cluster.local/ns/ops/sa/x";
    for (peer, method, path, tenants, want) in [
        (Some(front), "GET", "/items?x=1", &["blue"][..], 200),
        (Some(front), "GET", "/items", &[], 403),
        (Some(front), "POST", "/items", &["blue"], 403),
        (Some(front), "POST", "/orders", &["green"], 200),
        (Some(front), "GET", "/itemsadmin", &["blue"], 200),
        (Some(front), "GET", "/admin/x", &["blue"], 403),
        (Some(front), "GET", "/items/../admin", &["blue"], 403),
        (Some(front), "GET", "//admin", &["blue"], 403),
        (Some(front), "GET", "/items", &["red", "blue"], 200),
        (Some(front), "GET", "/items", &["red,blue"], 403),
        (Some(ops), "GET", "/admin/x", &[], 200),
        (Some(ops), "DELETE", "/any", &[], 200),
        (None, "GET", "/items", &["blue"], 403),
        (None, "GET", "/admin", &[], 403),
    ] {
        let ask = tenants
            .iter()
            .fold(get(path).method(method), |ask, tenant| ask.header("x-tenant", tenant));
        let ask = match peer {
            Some(peer) => ask.peer(peer),
            None => ask.plain(),
        };
        assert_eq!(istio(&policies, &ask), want, "{peer:?} {method} {path} {tenants:?}");
    }
}

#[test]
fn sem_tcp_03_04_http_conditions_on_tcp() {
    let allow = |rules: Value| [policy("ALLOW", rules)];
    let deny = |rules: Value| [policy("DENY", rules)];
    assert_eq!(istio(&allow(to(json!({"methods": ["GET"]}))), &tcp()), 403);
    let two = json!([{"to": [{"operation": {"methods": ["GET"]}}]},
        {"to": [{"operation": {"ports": ["5432"]}}]}]);
    assert_eq!(istio(&allow(two.clone()), &tcp().port(5432)), 200);
    assert_eq!(istio(&allow(two), &tcp()), 403);
    assert_eq!(istio(&deny(to(json!({"paths": ["/admin"]}))), &tcp()), 403);
    let ported = to(json!({"paths": ["/admin"], "ports": ["8080"]}));
    assert_eq!(istio(&deny(ported.clone()), &tcp()), 403);
    assert_eq!(istio(&deny(ported), &tcp().port(1)), 200);
    assert_eq!(istio(&deny(from(json!({"notRequestPrincipals": ["*"]}))), &tcp()), 403);
    assert_eq!(istio(&deny(to(json!({"notPaths": ["/public"]}))), &tcp()), 403);
    let dev = json!([{"from": [{"source": {"namespaces": ["dev"]}}],
        "to": [{"operation": {"methods": ["POST"]}}]}]);
    assert_eq!(istio(&deny(dev.clone()), &tcp()), 200);
    assert_eq!(istio(&deny(dev), &tcp().peer("spiffe://cluster.local/ns/dev/sa/x")), 403);
    let mixed = json!([{"from": [{"source": {"principals": ["*"]}}],
        "when": [{"key": "request.headers[x]", "values": ["y"]}]}]);
    assert_eq!(istio(&allow(mixed), &tcp()), 403);
}

fn custom(provider: &str, name: &str, path: &str) -> Value {
    named(
        name,
        "foo",
        json!({"action": "CUSTOM", "provider": {"name": provider},
        "rules": [{"to": [{"operation": {"paths": [path]}}]}]}),
    )
}

fn steps(site: &Site, policies: &[Value], path: &str, transport: Transport) -> Vec<String> {
    let set = site.compile(policies, transport);
    let ask = if transport == Transport::Tcp { tcp() } else { get(path) };
    site.with_facts(&ask, |facts| {
        let name = |step| match step {
            CustomStep::Ask { provider, rule } => format!("ask {provider}: {rule}"),
            CustomStep::Refuse(decision) => format!("refuse: {}", decision.rule_id().unwrap()),
        };
        set.custom(facts).map(name).collect()
    })
    .unwrap()
}

#[test]
fn sem_ext_01_02_one_question_per_provider() {
    let site = Site::istio().providers(Providers::default().with("ok", ProviderKind::Http));
    let policies = [custom("ok", "c1", "/a*"), custom("ok", "c2", "/ab")];
    let asked = "ask ok: istio-ext-authz-ok-ns[foo]-policy[c1]-rule[0]";
    assert_eq!(steps(&site, &policies, "/ab", Transport::Http), [asked]);
    assert!(steps(&site, &policies, "/b", Transport::Http).is_empty());
}

#[test]
fn sem_ext_04_a_bad_provider_refuses_what_its_rules_match() {
    let policies = [custom("nobody", "c", "/a")];
    let site = Site::istio();
    let refused = "refuse: istio-ext-authz-nobody-ns[foo]-policy[c]-rule[0]\
        -deny-due-to-bad-CUSTOM-action";
    assert_eq!(steps(&site, &policies, "/a", Transport::Http), [refused]);
    assert!(steps(&site, &policies, "/b", Transport::Http).is_empty());
}

#[test]
fn sem_ext_05_several_providers_need_the_flag() {
    let providers =
        Providers::default().with("b", ProviderKind::Http).with("a", ProviderKind::Grpc);
    let policies = [custom("b", "c1", "/x"), custom("a", "c2", "/x")];
    let site = Site::istio().providers(providers.clone());
    let got = steps(&site, &policies, "/x", Transport::Http);
    assert!(got.len() == 1 && got[0].starts_with("refuse"), "{got:?}");
    let site = Site::istio().providers(providers.with_several_per_workload());
    let got = steps(&site, &policies, "/x", Transport::Http);
    assert!(got.len() == 2 && got[0].starts_with("ask a") && got[1].starts_with("ask b"));
}

#[test]
fn sem_tcp_06_sem_ext_15_custom_on_tcp() {
    let policies = [custom("p", "c", "/x")];
    let site = |kind| Site::istio().providers(Providers::default().with("p", kind));
    assert!(steps(&site(ProviderKind::Http), &policies, "", Transport::Tcp).is_empty());
    assert_eq!(steps(&site(ProviderKind::Grpc), &policies, "", Transport::Tcp).len(), 1);
}

#[test]
fn sem_eval_04_custom_rules_see_no_token() {
    let rules = json!([{"when": [{"key": "request.auth.claims[a]", "notValues": ["b"]}]}]);
    let policies = [named(
        "c",
        "foo",
        json!({"action": "CUSTOM", "provider": {"name": "p"},
        "rules": rules}),
    )];
    let site = Site::istio().lenient();
    let site = site.providers(Providers::default().with("p", ProviderKind::Http));
    let set = site.compile(&policies, Transport::Http);
    let ask = get("/").token(json!({"a": "b"}));
    assert_eq!(site.with_facts(&ask, |facts| set.custom(facts).count()), Some(1));
}

#[test]
fn sem_eval_44_a_dry_run_custom_refuses_in_istio() {
    let policies = [dry_run(custom("p", "c", "/x"))];
    let site = Site::istio().lenient();
    let site = site.providers(Providers::default().with("p", ProviderKind::Http));
    let refused = "refuse: istio-ext-authz-p-ns[foo]-policy[c]-rule[0]";
    assert_eq!(steps(&site, &policies, "/x", Transport::Http), [refused]);
}

#[test]
fn sem_resp_01_envoys_detail_strings() {
    let deny = Site::istio().decide(&[policy("DENY", json!([{}]))], &get("/")).unwrap();
    let detail = "rbac_access_denied_matched_policy[ns[foo]-policy[p]-rule[0]]";
    assert_eq!(deny.envoy_detail().as_deref(), Some(detail));
    let none = Site::istio().decide(&[named("p", "foo", json!({}))], &get("/")).unwrap();
    assert_eq!(none.verdict, Verdict::Deny(DenyReason::NoRuleAllows));
    assert_eq!(none.envoy_detail().as_deref(), Some("rbac_access_denied_matched_policy[none]"));
    assert_eq!(Site::istio().decide(&[], &get("/")).unwrap().envoy_detail(), None);
}

#[test]
fn decisions_print_for_people_and_machines() {
    let policies = [policy("DENY", to(json!({"paths": ["/x"]})))];
    let decision = Site::istio().decide(&policies, &get("/x")).unwrap();
    assert_eq!(decision.to_string(), "DENY by ns[foo]-policy[p]-rule[0]");
    let rule = json!({"id": "ns[foo]-policy[p]-rule[0]", "namespace": "foo", "policy": "p",
        "rule": 0});
    let want = json!({"verdict": "deny", "reason": {"rule": rule}});
    assert_eq!(serde_json::to_value(&decision).unwrap(), want);
}

#[test]
fn an_explanation_names_the_nearest_miss_and_holds_no_secret() {
    let policies = [
        rename(
            policy(
                "ALLOW",
                json!([
                    {"from": [{"source": {"namespaces": ["ops"]}}]},
                    {"from": [{"source": {"namespaces": ["foo"]}}],
                     "to": [{"operation": {"methods": ["POST"], "paths": ["/orders"]}}],
                     "when": [{"key": "request.headers[authorization]", "values": ["Bearer x"]}]},
                ]),
            ),
            "orders",
        ),
        rename(policy("DENY", when("request.headers[x-role]", json!(["bad"]))), "bad"),
    ];
    let site = Site::istio();
    let set = site.compile(&policies, Transport::Http);
    let ask = get("/orders\u{1b}[31m").header("authorization", "Bearer secret-of-mine");
    assert!(site.with_facts(&ask, |_| ()).is_none(), "control bytes are refused");
    let ask = get("/orders?token=secret-of-mine").header("authorization", "Bearer secret-of-mine");
    let explanation = site.with_facts(&ask, |facts| set.explain(facts)).unwrap();
    let text = explanation.to_string();
    let want = "DENY: ALLOW policies apply and no rule of them matches\n\
        nearest miss: ns[foo]-policy[orders]-rule[0] (0 of 1 hold; \
        from[0].source.namespaces wants ops, the request has \
        spiffe://cluster.local/ns/foo/sa/sleep)\n\
        ALLOW foo/orders\n  \
        rule 0: 0 of 1 hold; from[0].source.namespaces wants ops, the request has \
        spiffe://cluster.local/ns/foo/sa/sleep\n  \
        rule 1: 2 of 4 hold; to[0].operation.methods wants POST, the request has GET\n\
        DENY foo/bad\n  \
        rule 0: 0 of 1 hold; when[0].values (request.headers[x-role]) wants bad, the request has no such header";
    assert_eq!(text, want);
    let machine = serde_json::to_string(&explanation).unwrap();
    assert!(!machine.contains("secret-of-mine"), "[SEC-AUTHZ-12]");
}

#[test]
fn sem_tcp_10_strict_agrees_on_plain_l4_rules() {
    let allow = [policy("ALLOW", to(json!({"ports": ["8080"]})))];
    assert_eq!((strict(&allow, &tcp()), strict(&allow, &tcp().port(1))), (200, 403));
}

/// What a person reads at 3 a.m. `cargo test -p mesh-authz --test semantics denials -- --nocapture`
#[test]
fn realistic_denials_are_explained() {
    let shop = |name: &str, spec: Value| named(name, "foo", spec);
    let orders = shop(
        "orders",
        json!({"rules": [
            {"from": [{"source": {"principals": ["cluster.local/ns/web/sa/front"]}}],
             "to": [{"operation": {"methods": ["GET"], "paths": ["/orders", "/orders/{*}"]}},
                    {"operation": {"methods": ["POST"], "paths": ["/orders"]}}],
             "when": [{"key": "request.headers[x-tenant]", "values": ["blue", "green"]}]},
            {"from": [{"source": {"namespaces": ["ops"]}}]},
        ]}),
    );
    let token = shop(
        "token-required",
        json!({"action": "DENY", "rules": [
            {"from": [{"source": {"notRequestPrincipals": ["https://idp.example/*"]}}],
             "to": [{"operation": {"notPaths": ["/healthz"]}}]}]}),
    );
    let admins = shop(
        "admins",
        json!({"rules": [{"to": [{"operation": {"paths": ["/admin*"], "hosts": ["shop.example"]}}],
            "when": [{"key": "request.auth.claims[groups]", "values": ["admin"]},
                     {"key": "remote.ip", "values": ["10.0.0.0/8"]}]}]}),
    );
    let front = || get("/orders/17").peer("spiffe://cluster.local/ns/web/sa/front");
    let claims = json!({"iss": "https://idp.example", "sub": "u1", "groups": ["dev"]});
    let site = Site::istio();
    let explain = |policies: &[Value], ask: &Ask| {
        let set = site.compile(policies, Transport::Http);
        let text = site.with_facts(ask, |facts| set.explain(facts).to_string()).unwrap();
        println!("{text}\n");
        text
    };
    // The tenant is missing.
    let text = explain(std::slice::from_ref(&orders), &front());
    let nearest = "nearest miss: ns[foo]-policy[orders]-rule[0] (3 of 4 hold; when[0].values \
        (request.headers[x-tenant]) wants blue or green, the request has no such header)";
    assert!(text.contains(nearest), "{text}");
    // The token is missing.
    let text = explain(&[orders, token], &front().header("x-tenant", "blue"));
    assert!(text.starts_with("DENY by ns[foo]-policy[token-required]-rule[0]"), "{text}");
    // The right token from the wrong place.
    let ask = get("/admin/users").host("shop.example").token(claims).client("192.168.7.7");
    let text = explain(&[admins], &ask);
    let nearest = "2 of 4 hold; when[0].values (request.auth.claims[groups]) wants admin, the \
        request has another value";
    assert!(text.contains(nearest), "{text}");
}
