//! Section 12: each option alone, and that none allows more.

use mesh_authz::{Semantics, StrictRule, Transport};
use serde_json::{Value, json};

use crate::check::{Ask, Site, from, get, istio, named, policy, to, when, when_not};

fn with(rule: StrictRule, policies: &[Value], ask: &Ask) -> u16 {
    let site = Site::istio().semantics(Semantics::istio().with(rule));
    let site = if rule == StrictRule::ClientAddress {
        site.trust(mesh_authz::XffTrust::Nobody)
    } else {
        site
    };
    site.status(policies, ask)
}

#[test]
fn sem_strict_03_every_line_for_allow_one_for_deny() {
    let sent = |lines: &[&str]| lines.iter().fold(get("/"), |ask, line| ask.header("x-role", line));
    let key = "request.headers[x-role]";
    let rule = StrictRule::RepeatedHeaders;
    let allow = [policy("ALLOW", when(key, json!(["a"])))];
    let allow_not = [policy("ALLOW", when_not(key, json!(["a"])))];
    let deny = [policy("DENY", when(key, json!(["a"])))];
    let deny_not = [policy("DENY", when_not(key, json!(["a"])))];
    for (lines, want) in [
        (&["a", "a"][..], [200, 403, 403, 200]),
        (&["a", "b"], [403, 403, 403, 403]),
        (&["b", "b"], [403, 200, 200, 403]),
        (&[], [403, 200, 200, 403]),
    ] {
        let ask = sent(lines);
        let got = [&allow, &allow_not, &deny, &deny_not].map(|set| with(rule, set, &ask));
        assert_eq!(got, want, "{lines:?}");
    }
    // A joined header, too: neither the joined text nor a single line gets past.
    let accept = get("/").header("accept", "a").header("accept", "b");
    let deny = [policy("DENY", when("request.headers[accept]", json!(["b"])))];
    assert_eq!((istio(&deny, &accept), with(rule, &deny, &accept)), (200, 403));
    let allow = [policy("ALLOW", when("request.headers[accept]", json!(["a", "b"])))];
    assert_eq!((istio(&allow, &accept), with(rule, &allow, &accept)), (403, 403));
}

#[test]
fn sem_strict_04_structural_identity() {
    let rule = StrictRule::StructuralIdentity;
    let allow = [policy("ALLOW", from(json!({"namespaces": ["sa"]})))];
    let nsns = get("/").peer("spiffe://td/ns/ns/sa/x");
    assert_eq!((istio(&allow, &nsns), with(rule, &allow, &nsns)), (200, 403));
    let deny = [policy("DENY", from(json!({"namespaces": ["foo"]})))];
    let odd = get("/").peer("spiffe://td/ns/foo/x/sa/b");
    assert_eq!(with(rule, &deny, &odd), 403);
    // An odd identity matters only where a policy asks for identity.
    let paths = [policy("DENY", to(json!({"paths": ["/x"]})))];
    assert_eq!(with(rule, &paths, &odd), 200);
}

#[test]
fn sem_strict_05_plain_text_fails_closed() {
    let rule = StrictRule::PlainTextFailsClosed;
    for source in [
        json!({"notNamespaces": ["x"]}),
        json!({"notPrincipals": ["x"]}),
        json!({"notServiceAccounts": ["x"]}),
        json!({"notTrustDomains": ["x"]}),
    ] {
        let allow = [policy("ALLOW", from(source.clone()))];
        assert_eq!(istio(&allow, &get("/").plain()), 200, "{source}");
        assert_eq!(with(rule, &allow, &get("/").plain()), 403, "{source}");
        assert_eq!(with(rule, &allow, &get("/")), 200, "{source}");
    }
    // The other conditions of a DENY rule still count.
    let deny = [policy(
        "DENY",
        json!([{"from": [{"source": {"principals": ["x"]}}],
        "to": [{"operation": {"paths": ["/admin"]}}]}]),
    )];
    assert_eq!(with(rule, &deny, &get("/admin").plain()), 403);
    assert_eq!(with(rule, &deny, &get("/").plain()), 200);
}

#[test]
fn sem_strict_06_host_hygiene() {
    let rule = StrictRule::HostHygiene;
    let deny = [policy("DENY", to(json!({"hosts": ["a.example"]})))];
    let allow = [policy("ALLOW", to(json!({"hosts": ["a.example", "a.example:*", "*"]})))];
    for host in ["b.example:81", "b.example.", "u@b.example", "b.example,a.example"] {
        let ask = get("/").host(host);
        assert_eq!((istio(&deny, &ask), with(rule, &deny, &ask)), (200, 403), "{host}");
        assert_eq!((istio(&allow, &ask), with(rule, &allow, &ask)), (200, 403), "{host}");
    }
    assert_eq!(with(rule, &deny, &get("/").host("a.example:8080")), 403);
    assert_eq!(with(rule, &allow, &get("/").host("a.example:8080")), 200);
    assert_eq!(with(rule, &deny, &get("/").host("b.example").header("host", "a.example")), 403);
    let other = [policy("DENY", to(json!({"paths": ["/x"]})))];
    assert_eq!(with(rule, &other, &get("/").host("a.example:1")), 200);
}

#[test]
fn sem_strict_07_ambiguous_paths() {
    let rule = StrictRule::AmbiguousPath;
    let allow = [policy("ALLOW", to(json!({"paths": ["/*"]})))];
    for path in [
        "/a;b",
        "//a",
        "/a%2fb",
        "/a%5cb",
        "/a%",
        "/a%zz",
        "/x/%2e%2e;/a",
        "/a%3bb",
        "/x/..%3B/a",
        "/a%252fb",
        "/%2561",
        "/a%25%32%66b",
    ] {
        assert_eq!(
            (istio(&allow, &get(path)), with(rule, &allow, &get(path))),
            (200, 403),
            "{path}"
        );
    }
    for path in ["/a", "/a/", "/a%20b", "/a%c3%a9", "/x/../a", "/a?b=//;%2f", "/100%25", "/%25zz"] {
        assert_eq!(with(rule, &allow, &get(path)), 200, "{path}");
    }
    let other = [policy("DENY", to(json!({"methods": ["PUT"]})))];
    assert_eq!(with(rule, &other, &get("//a")), 200);
}

#[test]
fn sem_strict_07_the_wider_alphabet_only_refuses() {
    let rule = StrictRule::TemplateAlphabet;
    let bracket = get("/f/a[b");
    let template = json!(["/f/{**}"]);
    let of = |action, field: &str| [policy(action, to(json!({field: template})))];
    assert_eq!(with(rule, &of("ALLOW", "paths"), &bracket), 403);
    assert_eq!(with(rule, &of("DENY", "paths"), &bracket), 403);
    assert_eq!(with(rule, &of("ALLOW", "notPaths"), &bracket), 403);
    assert_eq!(with(rule, &of("DENY", "notPaths"), &bracket), 403);
    assert_eq!(istio(&of("DENY", "paths"), &bracket), 200);
    assert_eq!(istio(&of("ALLOW", "notPaths"), &bracket), 200);
}

#[test]
fn sem_strict_08_a_claimed_address_is_refused_where_it_is_read() {
    let rule = StrictRule::ClientAddress;
    let ask = get("/").header("x-forwarded-for", "10.1.2.3");
    let reads = [policy("ALLOW", from(json!({"notRemoteIpBlocks": ["9.9.9.9"]})))];
    let other = [policy("ALLOW", from(json!({"notIpBlocks": ["9.9.9.9"]})))];
    assert_eq!((istio(&reads, &ask), with(rule, &reads, &ask)), (200, 403));
    assert_eq!(with(rule, &reads, &get("/")), 200);
    assert_eq!(with(rule, &other, &ask), 200);
}

#[test]
fn sem_strict_11_lower_case_methods() {
    let ask = get("/").http2().method("get");
    assert_eq!((istio(&[], &ask), with(StrictRule::LowerCaseMethod, &[], &ask)), (200, 403));
}

#[test]
fn sem_strict_12_dry_run_custom_is_an_error() {
    let mut custom = named(
        "c",
        "foo",
        json!({"action": "CUSTOM", "provider": {"name": "p"},
        "rules": [{}]}),
    );
    custom["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let compile = |site: Site| {
        site.lenient().try_compile(std::slice::from_ref(&custom), Transport::Http).is_ok()
    };
    assert!(compile(Site::istio()) && !compile(Site::strict()));
}

#[test]
fn sem_strict_17_fragments_are_refused() {
    assert_eq!(with(StrictRule::Fragment, &[], &get("/a#b")), 400);
    assert_eq!(istio(&[], &get("/a#b")), 200);
}

#[test]
fn sem_strict_19_custom_that_cannot_be_asked_on_tcp_refuses() {
    let custom = named(
        "c",
        "foo",
        json!({"action": "CUSTOM", "provider": {"name": "p"},
        "rules": [{"to": [{"operation": {"ports": ["8080"]}}]}]}),
    );
    let providers = mesh_authz::Providers::default().with("p", mesh_authz::ProviderKind::Http);
    let steps = |semantics| {
        let site = Site::istio().providers(providers.clone()).semantics(semantics);
        let set = site.compile(std::slice::from_ref(&custom), Transport::Tcp);
        site.with_facts(&crate::check::tcp(), |facts| set.custom(facts).count()).unwrap()
    };
    assert_eq!(steps(Semantics::istio()), 0);
    assert_eq!(steps(Semantics::istio().with(StrictRule::CustomOnTcp)), 1);
}
