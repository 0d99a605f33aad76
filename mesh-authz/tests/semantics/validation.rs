//! Section 9: what is refused at load, with its place, and what Istio would have made of it.

use serde_json::{Value, json};

use crate::check::{Site, from, get, named, policy, read, tcp, to, when};

/// The path of the first problem.
/// Every problem in words.
fn told(policy: &Value) -> String {
    read(policy).unwrap_err().to_string()
}

fn refused(policy: &Value) -> String {
    read(policy).unwrap_err().list()[0].path.clone()
}

fn allow(rules: Value) -> Value {
    policy("ALLOW", rules)
}

#[test]
fn sem_val_01_02_03_attachments() {
    let spec = |extra: Value| named("p", "foo", extra);
    let target = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"});
    let both = spec(json!({"selector": {"matchLabels": {"a": "b"}}, "targetRef": target}));
    assert_eq!(refused(&both), "spec");
    let star = spec(json!({"selector": {"matchLabels": {"a": "b*"}}}));
    assert_eq!(refused(&star), "spec.selector.matchLabels.a");
    let kind = spec(json!({"targetRefs": [{"kind": "Pod", "name": "x"}]}));
    assert_eq!(refused(&kind), "spec.targetRefs[0]");
}

#[test]
fn sem_val_04_dry_run() {
    let with = |mut policy: Value, text: &str| {
        policy["metadata"]["annotations"] = json!({"istio.io/dry-run": text});
        policy
    };
    let path = "metadata.annotations.istio.io/dry-run";
    assert_eq!(refused(&with(allow(json!([{}])), "yes")), path);
    assert_eq!(refused(&with(policy("AUDIT", json!([{}])), "true")), path);
    for text in ["1", "t", "T", "TRUE", "true", "True"] {
        assert!(read(&with(allow(json!([{}])), text)).unwrap().is_dry_run(), "[SEM-EVAL-40]");
    }
    assert!(!read(&with(allow(json!([{}])), "F")).unwrap().is_dry_run());
}

#[test]
fn sem_val_05_actions_and_providers() {
    assert_eq!(refused(&named("p", "foo", json!({"action": "DENY"}))), "spec");
    assert_eq!(refused(&named("p", "foo", json!({"action": "CUSTOM", "rules": [{}]}))), "spec");
    let provider = json!({"action": "ALLOW", "provider": {"name": "x"}, "rules": [{}]});
    assert_eq!(refused(&named("p", "foo", provider)), "spec.provider");
    assert_eq!(refused(&named("p", "foo", json!({"action": "LOG"}))), "spec.action");
    assert!(read(&named("p", "foo", json!({"action": "AUDIT"}))).is_ok());
}

#[test]
fn sem_val_06_empty_parts() {
    for (rules, path) in [
        (json!([null]), "spec.rules[0]"),
        (json!([{"from": []}]), "spec.rules[0].from"),
        (json!([{"to": []}]), "spec.rules[0].to"),
        (json!([{"from": [{}]}]), "spec.rules[0].from[0]"),
        (json!([{"from": [null]}]), "spec.rules[0].from[0]"),
        (from(json!({})), "spec.rules[0].from[0].source"),
        (to(json!({})), "spec.rules[0].to[0].operation"),
        (to(json!({"paths": []})), "spec.rules[0].to[0].operation"),
    ] {
        assert_eq!(refused(&allow(rules)), path);
    }
}

#[test]
fn sem_val_07_custom_asks_for_no_identity() {
    let custom = |rules: Value| {
        named("p", "foo", json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": rules}))
    };
    let source = from(json!({"notPrincipals": ["a"]}));
    assert_eq!(refused(&custom(source)), "spec.rules[0].from[0].source.notPrincipals");
    for key in ["request.auth.claims[a]", "source.namespace", "source.trustDomain"] {
        assert_eq!(refused(&custom(when(key, json!(["a"])))), "spec.rules[0].when[0].values");
    }
    assert!(read(&custom(to(json!({"paths": ["/a"]})))).is_ok());
}

#[test]
fn sem_val_08_to_13_values() {
    let source = |source: Value| refused(&allow(from(source)));
    let operation = |operation: Value| refused(&allow(to(operation)));
    let both = json!({"serviceAccounts": ["a"], "namespaces": ["b"]});
    assert_eq!(source(both), "spec.rules[0].from[0].source");
    assert_eq!(operation(json!({"paths": [""]})), "spec.rules[0].to[0].operation.paths[0]");
    for account in ["*", "a/b/c", "/a", "a/"] {
        let path = "spec.rules[0].from[0].source.serviceAccounts[0]";
        assert_eq!(source(json!({"serviceAccounts": [account]})), path, "{account}");
    }
    let many: Vec<String> = (0..17).map(|at| format!("a{at}")).collect();
    let path = "spec.rules[0].from[0].source.serviceAccounts";
    assert_eq!(source(json!({"serviceAccounts": many})), path);
    for domain in ["*a*", "a*b", "a/b"] {
        let path = "spec.rules[0].from[0].source.trustDomains[0]";
        assert_eq!(source(json!({"trustDomains": [domain]})), path, "{domain}");
    }
    for block in ["x", "300.1.1.1", "10.0.0.0/33", "10.0.0.0/08", "fe80::1%eth0", "010.0.0.1"] {
        let path = "spec.rules[0].from[0].source.ipBlocks[0]";
        assert_eq!(source(json!({"ipBlocks": [block]})), path, "{block}");
    }
    for port in ["65536", "+80", " 80", "0x50", "http", ""] {
        let path = "spec.rules[0].to[0].operation.ports[0]";
        assert_eq!(operation(json!({"ports": [port]})), path, "{port}");
    }
}

#[test]
fn sem_val_14_templates() {
    let path = "spec.rules[0].to[0].operation.paths[0]";
    for template in [
        "/{*}.html",
        "/a/b{*}",
        "/a/{*}/*",
        "/{x}",
        "/a{",
        "/{**}/{*}",
        "/{**}/{**}",
        "/a//{*}",
        "/{*}/a b",
        "{*}",
        "/{*}//",
    ] {
        assert_eq!(refused(&allow(to(json!({"paths": [template]})))), path, "{template}");
    }
    for template in ["/{*}", "/a/{*}/{**}", "/{**}/x/", "/a-b/{*}/c;d=e@f"] {
        assert!(read(&allow(to(json!({"paths": [template]})))).is_ok(), "{template}");
    }
}

#[test]
fn sem_val_15_conditions() {
    for key in [
        "destination.labels[a]",
        "destination.name",
        "destination.user",
        "destination.namespace",
        "request.headers",
        "request.headers[]",
        "request.headersX[foo]",
        "request.auth.claims",
        "request.auth.claims[]",
        "experimental.envoy.filters.a",
        "source.unknown",
        "",
    ] {
        assert_eq!(refused(&allow(when(key, json!(["v"])))), "spec.rules[0].when[0].key", "{key}");
    }
    let none = json!([{"when": [{"key": "source.ip"}]}]);
    assert_eq!(refused(&allow(none)), "spec.rules[0].when[0]");
    let empty = when("request.headers[a]", json!([""]));
    assert_eq!(refused(&allow(empty)), "spec.rules[0].when[0].values[0]");
}

#[test]
fn sem_val_32_stricter_than_the_webhook() {
    for (rules, path) in [
        (json!([{"form": []}]), "spec.rules[0].form"),
        (from(json!({"principal": ["a"]})), "spec.rules[0].from[0].source.principal"),
        (
            from(json!({"principals": ["spiffe://a/b"]})),
            "spec.rules[0].from[0].source.principals[0]",
        ),
        (to(json!({"methods": ["get"]})), "spec.rules[0].to[0].operation.methods[0]"),
        (when("request.headers[a b]", json!(["v"])), "spec.rules[0].when[0].key"),
        (to(json!({"ports": [80]})), "spec.rules[0].to[0].operation.ports[0]"),
    ] {
        assert_eq!(refused(&allow(rules)), path);
    }
}

#[test]
fn sec_authz_2_every_problem_is_reported_with_its_place() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
        metadata: {name: p, namespace: foo}\nspec:\n  rules:\n  - to:\n    - operation:\n        \
        ports: [\"x\"]\n        mehtods: [GET]\n  - when:\n    - {key: nope, values: [a]}\n";
    let read = mesh_identity::manifest::read(text, "p.yaml", "default").unwrap();
    let problems = mesh_authz::AuthorizationPolicy::from_manifest(&read.resources[0]).unwrap_err();
    let want = "\
        p.yaml: document 1, line 9, column 9: spec.rules[0].to[0].operation.mehtods: unknown \
        field; remove it or correct its spelling\n\
        p.yaml: document 1, line 8, column 17: spec.rules[0].to[0].operation.ports[0]: not a port \
        from 0 to 65535\n\
        p.yaml: document 1, line 11, column 13: spec.rules[1].when[0].key: unknown condition key; \
        correct its spelling";
    assert_eq!(problems.to_string(), want);
}

#[test]
fn sem_val_30_what_istio_makes_of_invalid_policies() {
    let status = |action: &str, rules: Value| {
        Site::istio().lenient().status(&[policy(action, rules)], &get("/"))
    };
    // An unknown key drops the rule: DENY fails open.
    assert_eq!(status("ALLOW", when("nope", json!(["a"]))), 403);
    assert_eq!(status("DENY", when("nope", json!(["a"]))), 200);
    // A bad value drops an ALLOW rule and widens a DENY rule.
    assert_eq!(status("ALLOW", from(json!({"ipBlocks": ["x", "127.0.0.1"]}))), 403);
    assert_eq!(status("DENY", from(json!({"ipBlocks": ["x"]}))), 403);
    assert_eq!(status("DENY", from(json!({"ipBlocks": ["x", "1.1.1.1"]}))), 200);
    // A condition without values is dropped.
    assert_eq!(status("ALLOW", json!([{"when": [{"key": "request.headers[a]"}]}])), 200);
    assert_eq!(
        status("DENY", json!([{"when": [{"key": "request.headersX", "values": ["a"]}]}])),
        403
    );
}

#[test]
fn sem_strict_10_a_deny_that_widens_on_tcp_is_an_error() {
    let compile = |rules: Value| {
        let set = Site::strict().try_compile(&[policy("DENY", rules)], mesh_authz::Transport::Tcp);
        set.map(|_| ()).map_err(|problems| problems.list()[0].path.clone())
    };
    assert_eq!(compile(to(json!({"paths": ["/a"]}))), Err("spec.rules[0]".to_owned()));
    assert_eq!(compile(to(json!({"paths": ["/a"], "ports": ["80"]}))), Ok(()));
    assert_eq!(compile(from(json!({"namespaces": ["a"]}))), Ok(()));
    assert_eq!(Site::istio().status(&[policy("DENY", to(json!({"paths": ["/a"]})))], &tcp()), 403);
}

#[test]
fn sem_strict_13_impossible_request_principals_are_warned_of() {
    for value in ["https://issuer.example*", "https://*"] {
        let policy = allow(from(json!({"requestPrincipals": [value]})));
        let policy = read(&policy).unwrap();
        let warnings = policy.warnings();
        assert_eq!(warnings.len(), 1, "{value}");
        assert_eq!(warnings[0].path, "spec.rules[0].from[0].source.requestPrincipals[0]");
    }
    assert!(
        read(&allow(from(json!({"requestPrincipals": ["https://i.example/*"]}))))
            .unwrap()
            .warnings()
            .is_empty()
    );
}

#[test]
fn sem_sel_06_references_win_over_a_selector_where_both_arrive() {
    let both = |refs: &str| {
        named(
            "p",
            "foo",
            json!({"action": "DENY", "rules": [{}],
                "selector": {"matchLabels": {"app": "httpbin"}},
                refs: [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g"}]}),
        )
    };
    assert!(told(&both("targetRefs")).contains("only one of"));
    // No gateway, so a policy with references does not apply.
    assert_eq!(Site::istio().lenient().status(&[both("targetRefs")], &get("/")), 200);
    let starred = json!({"action": "DENY", "rules": [{}],
        "selector": {"matchLabels": {"app": "*"}}});
    assert_eq!(Site::istio().lenient().status(&[named("p", "foo", starred)], &get("/")), 200);
}

#[test]
fn sem_val_30_conditions_without_key_or_with_a_bare_one() {
    let lenient = |rules: Value| {
        let both = ["ALLOW", "DENY"].map(|action| {
            Site::istio().lenient().status(&[policy(action, rules.clone())], &get("/"))
        });
        (both[0], both[1])
    };
    // An unknown key drops the rule, whatever the action.
    assert_eq!(lenient(json!([{"when": [{"values": ["a"]}]}])), (403, 200));
    // The payload as a whole is no text: a positive is false, a negative true.
    let bare = "request.auth.claims";
    assert_eq!(lenient(json!([{"when": [{"key": bare, "values": ["*"]}]}])), (403, 200));
    assert_eq!(lenient(json!([{"when": [{"key": bare, "notValues": ["*"]}]}])), (200, 403));
    for key in [bare, "experimental.envoy.filters.a[b", "request.headers[]"] {
        let rules = json!([{"when": [{"key": key, "values": ["a"]}]}]);
        let told = told(&allow(rules));
        assert!(told.contains("in brackets") || told.contains("not a token"), "{told}");
    }
    let missing = told(&allow(json!([{"when": [{"values": ["a"]}]}])));
    assert!(missing.contains("field key is missing"), "{missing}");
}

#[test]
fn sem_ext_04_a_custom_policy_without_provider_refuses_what_it_matches() {
    let custom = named("c", "foo", json!({"action": "CUSTOM", "rules": [{}]}));
    assert!(told(&custom).contains("CUSTOM needs provider.name"));
    let site = Site::istio().lenient();
    let set = site.compile(std::slice::from_ref(&custom), mesh_authz::Transport::Http);
    let step = site.with_facts(&get("/"), |facts| set.custom(facts).next()).unwrap();
    let Some(mesh_authz::CustomStep::Refuse(decision)) = step else { panic!("{step:?}") };
    let id = "istio-ext-authz--ns[foo]-policy[c]-rule[0]-deny-due-to-bad-CUSTOM-action";
    assert_eq!(decision.rule_id(), Some(id));
}
