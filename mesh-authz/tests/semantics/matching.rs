//! Section 4: what each attribute matches.

use mesh_authz::{PeerIdentity, XffTrust, client_address};
use serde_json::{Value, json};

use crate::check::{Ask, Site, from, get, istio, policy, tcp, to, when, when_not};

/// Whether a condition holds: an ALLOW policy of it alone allows.
fn holds(rules: Value, ask: &Ask) -> bool {
    istio(&[policy("ALLOW", rules)], ask) == 200
}

#[test]
fn sem_authz_01_only_one_star_is_special() {
    for (value, text, want) in [
        ("*a*", "xa*", true),
        ("*a*", "xax", false),
        ("a*b", "a*b", true),
        ("a*b", "axb", false),
        ("**", "x*", true),
        ("**", "x", false),
        ("abc*", "abc", true),
        ("*abc", "abc", true),
        ("abc", "ABC", false),
    ] {
        let rules = when("request.headers[x-a]", json!([value]));
        assert_eq!(holds(rules, &get("/").header("x-a", text)), want, "{value} {text}");
    }
}

#[test]
fn sem_authz_03_absent_attributes_fail_positives_and_hold_negatives() {
    let plain = get("/").plain();
    for field in ["principals", "namespaces", "serviceAccounts", "trustDomains"] {
        let value = if field == "serviceAccounts" { "foo/sleep" } else { "*" };
        assert!(!holds(from(json!({field: [value]})), &plain), "{field}");
        let (first, rest) = field.split_at(1);
        let not = format!("not{}{rest}", first.to_uppercase());
        assert!(holds(from(json!({not.clone(): [value]})), &plain), "{not}");
    }
    for key in [
        "request.headers[x]",
        "request.auth.claims[x]",
        "request.auth.principal",
        "connection.sni",
        "experimental.envoy.filters.a.b[c]",
    ] {
        assert!(!holds(when(key, json!(["*"])), &get("/")), "{key}");
        assert!(holds(when_not(key, json!(["*"])), &get("/")), "{key}");
    }
}

#[test]
fn sem_authz_20_22_principals() {
    let id = "spiffe://td.example/ns/pay/sa/api";
    for (value, want) in [
        ("*", true),
        ("td.example/ns/pay/sa/api", true),
        ("TD.example/ns/pay/sa/api", false),
        ("*/ns/pay/sa/api", true),
        ("*api", true),
        ("td.example/*", true),
        ("td.example/ns/pay*", true),
        ("td.example/ns/pay", false),
        ("other/ns/pay/sa/api", false),
    ] {
        assert_eq!(
            holds(from(json!({"principals": [value]})), &get("/").peer(id)),
            want,
            "{value}"
        );
    }
    let longer = get("/").peer("spiffe://td/extra/ns/pay/sa/api");
    assert!(holds(from(json!({"principals": ["*/ns/pay/sa/api"]})), &longer));
}

#[test]
fn sem_authz_21_alias_expansion() {
    let accepts = |value: &str, domain: &str| {
        let site = Site::istio().aliases("new.example", &["old.example"]);
        let ask = get("/").peer(&format!("spiffe://{domain}/ns/pay/sa/api"));
        site.status(&[policy("ALLOW", from(json!({"principals": [value]})))], &ask) == 200
    };
    for (value, new, old, third, local) in [
        ("new.example/ns/pay/sa/api", true, true, false, false),
        ("cluster.local/ns/pay/sa/api", true, true, false, false),
        ("third.example/ns/pay/sa/api", false, false, true, false),
        ("*/ns/pay/sa/api", true, true, true, true),
        ("new.example/*", true, false, false, false),
        ("new.example/ns/pay/sa/*", true, true, false, false),
        ("*.example/ns/pay/sa/api", true, true, true, false),
        ("new*/ns/pay/sa/api", true, true, false, false),
    ] {
        let got = ["new.example", "old.example", "third.example", "cluster.local"]
            .map(|domain| accepts(value, domain));
        assert_eq!(got, [new, old, third, local], "{value}");
    }
}

#[test]
fn sem_authz_24_25_29_the_table_of_certificates() {
    const ID: &str = "spiffe://cluster.local/ns/foo/sa/bar";
    let cn = format!("CN={ID}");
    let more = |suffix: &str| format!("{ID}{suffix}");
    let (odd, query, dash) = (more("/x/y"), more("?x=1"), more("-2"));
    // exact, *, */ns/foo/sa/bar, cluster.local/*, ns foo, ns *, sa foo/bar, td, notNamespaces evil
    let rows: [(Ask, [u8; 9]); 16] = [
        (get("/").peer(ID), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (
            get("/").names(&["spiffe://cluster.local/ns/evil/sa/evil", ID], &[], None),
            [1, 1, 1, 1, 1, 1, 1, 1, 0],
        ),
        (get("/").names(&[], &["cluster.local/ns/foo/sa/bar"], None), [0, 1, 0, 0, 1, 1, 0, 0, 1]),
        (get("/").names(&[], &[ID], None), [1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (get("/").names(&[], &[], Some(&cn)), [0, 1, 0, 0, 1, 1, 0, 0, 1]),
        (get("/").peer("spiffe://other/ns/foo/sa/bar"), [0, 1, 1, 0, 1, 1, 1, 0, 1]),
        (
            get("/").peer("spiffe://cluster.local/ns/a/sa/ns/foo/sa/bar"),
            [0, 1, 1, 1, 1, 1, 1, 1, 1],
        ),
        (get("/").peer(&odd), [0, 1, 0, 1, 1, 1, 1, 1, 1]),
        (
            get("/").peer("spiffe://cluster.local/x/y/ns/foo/z/1/sa/bar"),
            [0, 1, 0, 1, 1, 1, 1, 1, 1],
        ),
        (
            get("/").names(&["spiffe://CLUSTER.LOCAL/ns/foo/sa/bar"], &[], None),
            [0, 1, 1, 0, 1, 1, 1, 0, 1],
        ),
        (
            get("/").names(&["SPIFFE://cluster.local/ns/foo/sa/bar"], &[], None),
            [0, 1, 0, 0, 1, 1, 0, 0, 1],
        ),
        (get("/").peer(&dash), [0, 1, 0, 1, 1, 1, 0, 1, 1]),
        (
            get("/").names(&["https://cluster.local/ns/foo/sa/bar"], &[], None),
            [0, 1, 0, 0, 1, 1, 0, 0, 1],
        ),
        (
            get("/").names(&["spiffe://x/cluster.local/ns/foo/sa/bar"], &[], None),
            [0, 1, 1, 0, 1, 1, 1, 0, 1],
        ),
        (get("/").names(&[&query], &[], None), [0, 1, 0, 1, 1, 1, 0, 1, 1]),
        (get("/").names(&[], &[], Some("CN=nobody")), [0, 1, 0, 0, 0, 0, 0, 0, 1]),
    ];
    let columns = [
        json!({"principals": ["cluster.local/ns/foo/sa/bar"]}),
        json!({"principals": ["*"]}),
        json!({"principals": ["*/ns/foo/sa/bar"]}),
        json!({"principals": ["cluster.local/*"]}),
        json!({"namespaces": ["foo"]}),
        json!({"namespaces": ["*"]}),
        json!({"serviceAccounts": ["foo/bar"]}),
        json!({"trustDomains": ["cluster.local"]}),
        json!({"notNamespaces": ["evil"]}),
    ];
    for (row, (ask, want)) in rows.iter().enumerate() {
        for (column, want) in columns.iter().zip(want) {
            assert_eq!(holds(from(column.clone()), ask), *want == 1, "row {row}, {column}");
        }
    }
}

#[test]
fn sem_authz_26_namespaces() {
    let peer = |namespace: &str| get("/").peer(&format!("spiffe://td/ns/{namespace}/sa/x"));
    for (value, eu, pay) in [
        ("pay", false, true),
        ("pay*", true, true),
        ("*eu", true, false),
        ("p*u", true, false),
        ("*", true, true),
        ("*a", true, true),
        ("*sa", true, true),
        ("p*a", true, true),
        ("*-a", false, false),
    ] {
        let rules = || from(json!({"namespaces": [value]}));
        assert_eq!(holds(rules(), &peer("pay-eu")), eu, "{value}");
        assert_eq!(holds(rules(), &peer("pay")), pay, "{value}");
    }
    // `/ns/` occurs twice, overlapping.
    assert!(holds(from(json!({"namespaces": ["sa"]})), &peer("ns")));
}

#[test]
fn sem_authz_27_service_accounts() {
    for (value, id, want) in [
        ("foo/bar", "spiffe://td/ns/foo/sa/bar", true),
        ("bar", "spiffe://td/ns/foo/sa/bar", true),
        ("bar", "spiffe://td/ns/other/sa/bar", false),
        ("foo/bar", "spiffe://td/ns/foo/sa/bar2", false),
        ("foo/bar", "spiffe://td/ns/foo/x/y/sa/bar/z", true),
        ("foo/bar", "spiffe://td/ns/foo/xsa/bar", false),
    ] {
        let got = holds(from(json!({"serviceAccounts": [value]})), &get("/").peer(id));
        assert_eq!(got, want, "{value} {id}");
    }
}

#[test]
fn sem_authz_28_trust_domains() {
    for (value, want) in [
        ("*", true),
        ("td.example", true),
        ("td.*", true),
        ("*.example", true),
        ("td", false),
        ("*example/ns", false),
        ("other", false),
    ] {
        let policies = [policy("ALLOW", from(json!({"trustDomains": [value]})))];
        let ask = get("/").peer("spiffe://td.example/ns/a/sa/b");
        assert_eq!(Site::istio().lenient().status(&policies, &ask) == 200, want, "{value}");
    }
    let site = Site::istio().aliases("new.example", &["old.example"]);
    let old = get("/").peer("spiffe://old.example/ns/a/sa/b");
    for (value, want) in [("new.example", 200), ("cluster.local", 403), ("new*", 403)] {
        let policies = [policy("ALLOW", from(json!({"trustDomains": [value]})))];
        assert_eq!(site.status(&policies, &old), want, "{value}");
    }
}

#[test]
fn sem_authz_30_32_blocks() {
    for (block, ip, want) in [
        ("10.1.2.3/8", "10.200.0.1", true),
        ("10.1.2.3", "10.1.2.3", true),
        ("10.1.2.3", "10.1.2.4", false),
        ("0.0.0.0/0", "10.1.2.3", true),
        ("0.0.0.0/0", "2001:db8::1", false),
        ("::/0", "10.1.2.3", false),
        ("2001:db8::/32", "2001:db8::1", true),
        ("10.0.0.0/8", "::ffff:10.1.2.3", true),
    ] {
        let ask = get("/").source(ip).header("x-forwarded-for", "1.1.1.1");
        assert_eq!(holds(from(json!({"ipBlocks": [block]})), &ask), want, "{block} {ip}");
    }
    // Longer lists are looked up by hash.
    let many: Vec<String> = (0..50).map(|at| format!("10.{at}.0.0/{}", 16 + at % 9)).collect();
    let rules = || from(json!({"ipBlocks": many.clone()}));
    assert!(holds(rules(), &get("/").source("10.49.0.77")));
    assert!(!holds(rules(), &get("/").source("10.50.0.1")));
}

#[test]
fn sem_authz_34_35_36_37_the_table_of_forwarded_addresses() {
    let peer = "127.0.0.1";
    for (lines, sidecar, one, two) in [
        (&[][..], peer, peer, peer),
        (&["1.2.3.4"], "1.2.3.4", "1.2.3.4", peer),
        (&["9.9.9.9, 1.2.3.4"], "1.2.3.4", "1.2.3.4", "9.9.9.9"),
        (&["9.9.9.9", "1.2.3.4"], "1.2.3.4", "1.2.3.4", "9.9.9.9"),
        (&["1.2.3.4, junk"], peer, peer, "1.2.3.4"),
        (&["1.2.3.4:80"], peer, peer, peer),
        (&["[2001:db8::1]:80"], peer, peer, peer),
        (&["2001:db8::1"], "2001:db8::1", "2001:db8::1", peer),
        (&["fe80::1%7"], "fe80::1", "fe80::1", peer),
        (&["fe80::1%eth0"], peer, peer, peer),
        (&["1.2.3.4%7"], peer, peer, peer),
    ] {
        let mut headers = http::HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().unwrap());
        }
        let ip = |trust: XffTrust| {
            client_address(&headers, peer.parse().unwrap(), PeerIdentity::None, &trust)
                .ip()
                .to_string()
        };
        assert_eq!(ip(XffTrust::Anyone), sidecar, "{lines:?}");
        let gateway = |trusted_proxies| ip(XffTrust::Gateway { trusted_proxies });
        assert_eq!([gateway(0), gateway(1), gateway(2)], [peer, one, two], "{lines:?}");
    }
}

#[test]
fn sem_authz_38_39_ports_and_destinations() {
    assert!(holds(to(json!({"ports": ["08080"]})), &get("/")));
    assert!(holds(when("destination.port", json!(["8080"])), &tcp()));
    assert!(holds(when("destination.ip", json!(["10.0.0.0/24"])), &tcp()));
    assert!(!holds(when("destination.ip", json!(["10.0.1.0/24"])), &tcp()));
}

#[test]
fn sem_authz_40_the_server_name() {
    assert!(holds(when("connection.sni", json!(["a.example"])), &tcp().sni("A.example")));
    assert!(!holds(when("connection.sni", json!(["A.example"])), &tcp().sni("a.example")));
    assert!(holds(when("connection.sni", json!(["*.example"])), &tcp().sni("a.example")));
}

#[test]
fn sem_authz_45_46_47_request_principals() {
    let token = |issuer: &str, subject: &str| json!({"iss": issuer, "sub": subject});
    for (value, claims, want) in [
        ("*", json!({"iss": "i"}), false),
        ("*", token("i", ""), false),
        ("*", token("i", "a\nb"), false),
        ("*", token("i", "s"), true),
        ("https://idp.example/u1", token("https://idp.example", "u1"), true),
        ("https://idp.example/a/b", token("https://idp.example", "a/b"), false),
        ("https://idp.example/a/b", token("https://idp.example/a", "b"), true),
        ("https://idp*", token("https://idp.example", "u1"), false),
        ("*/u1", token("i", "x/u1"), false),
        ("*/u1", token("i", "u1"), true),
        ("*u1", token("i", "x/u1"), true),
        ("*.example/u1", token("https://idp.example", "u1"), true),
        ("https://idp.example/*", token("https://idp.example", "a/b"), true),
        ("https://idp.example/u*", token("https://idp.example", "u1"), true),
        ("issuer*", token("issuer-1", "s"), true),
        ("issuer", token("issuer", ""), true),
        ("issuer", token("issuer", "s"), false),
    ] {
        let ask = get("/").token(claims.clone());
        let got = holds(from(json!({"requestPrincipals": [value]})), &ask);
        assert_eq!(got, want, "{value} {claims}");
    }
    // The issuer of one value is not combined with the subject of another.
    let two = from(json!({"requestPrincipals": ["a/x", "b/y"]}));
    assert!(!holds(two, &get("/").token(token("a", "y"))));
}

#[test]
fn sem_authz_50_claim_keys() {
    let ask =
        get("/").token(json!({"a": {"b": "v"}, "a.b": "v", "https://x/role": "v", "a[b": "v"}));
    for key in ["[a][b]", "[a.b]", "[https://x/role]", "[a[b]"] {
        let key = format!("request.auth.claims{key}");
        assert!(holds(when(&key, json!(["v"])), &ask), "{key}");
    }
    assert!(!holds(when("request.auth.claims[a][c]", json!(["v"])), &ask));
}

#[test]
fn sem_authz_51_52_53_claim_values() {
    for (claim, admin, star) in [
        (json!("admin"), true, true),
        (json!(["x", "admin"]), true, true),
        (json!("user"), false, true),
        (json!("admin,user"), false, true),
        (json!("admin user"), false, true),
        (json!([]), false, false),
        (json!([1]), false, false),
        (json!([["admin"]]), false, false),
        (json!({"admin": 1}), false, false),
        (json!(""), false, false),
        (json!(1), false, false),
        (json!(true), false, false),
        (Value::Null, false, false),
    ] {
        let ask = get("/").token(json!({"role": claim.clone()}));
        let key = "request.auth.claims[role]";
        assert_eq!(holds(when(key, json!(["admin"])), &ask), admin, "{claim}");
        assert_eq!(holds(when(key, json!(["*"])), &ask), star, "{claim}");
        assert_eq!(holds(when_not(key, json!(["admin"])), &ask), !admin, "{claim}");
    }
    let ask = get("/").token(json!({"scope": "read write", "aud": ["a", "b"], "azp": "p"}));
    assert!(holds(when("request.auth.claims[scope]", json!(["write"])), &ask));
    assert!(!holds(when("request.auth.claims[scope]", json!(["read write"])), &ask));
    assert!(holds(when("request.auth.audiences", json!(["b"])), &ask));
    assert!(holds(when("request.auth.presenter", json!(["p"])), &ask));
}

#[test]
fn sem_authz_55_56_header_lines() {
    for (lines, admin, prefix) in [
        (&["admin"][..], true, true),
        (&["Admin"], false, false),
        (&[" admin "], true, true),
        (&["user,admin"], false, false),
        (&["admin,user"], false, true),
        (&["user", "admin"], true, true),
        (&["admin", "user"], true, true),
        (&[""], false, false),
        (&[], false, false),
    ] {
        let ask = lines.iter().fold(get("/"), |ask, line| ask.header("X-Role", line));
        let key = "request.headers[x-role]";
        assert_eq!(holds(when(key, json!(["admin"])), &ask), admin, "{lines:?}");
        assert_eq!(holds(when_not(key, json!(["admin"])), &ask), !admin, "{lines:?}");
        assert_eq!(holds(when(key, json!(["adm*"])), &ask), prefix, "{lines:?}");
        assert_eq!(holds(when(key, json!(["*"])), &ask), !lines.is_empty(), "{lines:?}");
    }
    // Envoy keeps a single value of these and joins their lines.
    let ask = get("/").header("accept", "a").header("accept", "").header("accept", "b");
    let accept = |value: &str| holds(when("request.headers[accept]", json!([value])), &ask);
    assert_eq!(
        ["a,b", "a*", "*,b", "*", "a", "b"].map(accept),
        [true, true, true, true, false, false]
    );
}

#[test]
fn sem_authz_57_pseudo_headers_and_cookies() {
    let ask = get("/a/../b?c").host("Host.example").scheme("https");
    for (key, value) in [
        (":method", "GET"),
        (":authority", "Host.example"),
        ("host", "Host.example"),
        (":path", "/b?c"),
        (":scheme", "https"),
    ] {
        let key = format!("request.headers[{key}]");
        assert!(holds(when(&key, json!([value])), &ask), "{key}");
    }
    assert!(!holds(when("request.headers[host]", json!(["host.example"])), &ask));
    let cookies = get("/").header("cookie", "a=1").header("cookie", "b=2");
    let rules = || when("request.headers[cookie]", json!(["a=1; b=2"]));
    assert!(holds(rules(), &cookies.clone().http2()));
    assert!(!holds(rules(), &cookies));
}

#[test]
fn sem_authz_58_71_methods() {
    let policies = [policy("DENY", to(json!({"methods": ["GET"]})))];
    assert_eq!(istio(&policies, &get("/").http2().method("get")), 200);
    assert!(holds(to(json!({"methods": ["P*"]})), &get("/").method("POST")));
    let grpc = get("/pkg.S/M").method("POST").header("content-type", "application/grpc");
    assert!(!holds(to(json!({"methods": ["GET"]})), &grpc));
    assert!(holds(to(json!({"paths": ["/pkg.S/*"]})), &grpc));
}

#[test]
fn sem_authz_60_hosts() {
    for (pattern, host, want) in [
        ("Example.com", "example.com", true),
        ("Example.com", "EXAMPLE.com", true),
        ("Example.com", "example.com:80", false),
        ("Example.com", "example.com.", false),
        ("Example.com", "a.example.com", false),
        ("*.example.com", "a.example.com", true),
        ("*.example.com", "A.EXAMPLE.COM", true),
        ("*.example.com", ".example.com", true),
        ("*.example.com", "example.com", false),
        ("*.example.com", "a.example.com:8080", false),
        ("*.example.com", "evilexample.com", false),
        ("example.com:*", "example.com:80", true),
        ("example.com:*", "example.com", false),
        ("*", "anything", true),
    ] {
        let got = holds(to(json!({"hosts": [pattern]})), &get("/").host(host));
        assert_eq!(got, want, "{pattern} {host}");
    }
    let long = "A".repeat(1000);
    assert!(holds(to(json!({"hosts": ["aaa*"]})), &get("/").host(&long)));
}

#[test]
fn sem_authz_65_69_paths() {
    for (value, path, want) in [
        ("/admin", "/admin?x", true),
        ("/admin", "/%61dmin", true),
        ("/admin", "/x/../admin", true),
        ("/admin", "/x/..;/admin", true),
        ("/admin", "/admin/", false),
        ("/admin", "/ADMIN", false),
        ("/admin", "//admin", false),
        ("/admin", "/admin;x", false),
        ("/info*", "/info", true),
        ("/info*", "/information", true),
        ("/info*", "/info%2f..%2fx", true),
        ("/info*", "/info/..", false),
        ("*/info", "/a/info", true),
        ("*/info", "/info?x=1", true),
        ("*/info", "/x?/info", false),
        ("*/info", "/xinfo", false),
        ("*", "/", true),
    ] {
        assert_eq!(holds(to(json!({"paths": [value]})), &get(path)), want, "{value} {path}");
    }
    assert!(holds(to(json!({"paths": ["*"]})), &get("*").method("OPTIONS")), "[SEM-AUTHZ-70]");
}

#[test]
fn sem_authz_66_67_68_templates() {
    for (template, path, want) in [
        ("/foo/{*}", "/foo/bar", true),
        ("/foo/{*}", "/foo/a?q=/x", true),
        ("/foo/{*}", "/foo", false),
        ("/foo/{*}", "/foo/", false),
        ("/foo/{*}", "/foo/a/", false),
        ("/foo/{*}", "/foo/a/b", false),
        ("/foo/{**}", "/foo/", true),
        ("/foo/{**}", "/foo/bar", true),
        ("/foo/{**}", "/foo/a/b", true),
        ("/foo/{**}", "/foo", false),
        ("/foo/{**}/", "/foo//", true),
        ("/foo/{**}/", "/foo/bar/", true),
        ("/foo/{**}/", "/foo/a/b/", true),
        ("/foo/{**}/", "/foo/", false),
        ("/foo/{**}/", "/foo/bar", false),
        ("/foo/{**}/", "/foo/bar/baz.txt", false),
        ("/foo/{*}/bar/{**}", "/foo/x/bar/", true),
        ("/foo/{*}/bar/{**}", "/foo/x/bar/y/z", true),
        ("/foo/{*}/bar/{**}", "/foo/x/bar", false),
        ("/foo/{*}/bar/{**}", "/foo//bar/y", false),
        ("/{**}/foo", "/a/foo", true),
        ("/{**}/foo", "/a/b/foo", true),
        ("/{**}/foo", "//foo", true),
        ("/{**}/foo", "/foo", false),
        ("/{**}/foo", "/afoo", false),
        ("/admin/{**}", "/admin/a*b", true),
        ("/admin/{**}", "/admin/;x", true),
        ("/admin/{**}", "/admin/%c3%a9", true),
        ("/admin/{**}", "/admin/a//b", true),
        ("/admin/{**}", "/admin/a[b", false),
        ("/{*}/", "/a/", true),
        ("/{*}/", "/a", false),
        ("/a/{*}/c", "/a/b/c", true),
        ("/a/{*}/c", "/a/b/cc", false),
    ] {
        assert_eq!(holds(to(json!({"paths": [template]})), &get(path)), want, "{template} {path}");
    }
    // Many at once are found by what they begin or end with.
    let many: Vec<String> = (0..40).map(|at| format!("/r{at}/{{*}}/x")).collect();
    assert!(holds(to(json!({"paths": many.clone()})), &get("/r39/a/x")));
    assert!(!holds(to(json!({"paths": many})), &get("/r40/a/x")));
}

#[test]
fn sem_authz_75_filter_metadata_is_absent_unless_given() {
    let key = "experimental.envoy.filters.http.x[k]";
    assert!(!holds(when(key, json!(["v"])), &get("/")));
    assert!(holds(when_not(key, json!(["v"])), &tcp()));
}

/// The index finds a rule by the name of its header or claim where hardly two rules share one.
#[test]
fn sec_authz_1_rules_with_a_header_or_claim_of_their_own_are_found() {
    let rules: Vec<Value> = (0..40)
        .map(|at| {
            let key = if at % 2 == 0 {
                format!("request.headers[x-own-{at}]")
            } else {
                format!("request.auth.claims[own-{at}][deep]")
            };
            json!({"when": [{"key": key, "values": ["v"]}, {"key": "source.ip",
                "notValues": ["9.9.9.9"]}]})
        })
        .collect();
    let matched = |ask: &Ask| {
        let decision = Site::istio().decide(&[policy("ALLOW", json!(rules))], ask).unwrap();
        decision.rule().map(mesh_authz::RuleRef::index)
    };
    assert_eq!(matched(&get("/")), None);
    for at in (0..40).step_by(2) {
        let name = format!("X-Own-{at}");
        assert_eq!(matched(&get("/").header(&name, "v")), Some(at));
        assert_eq!(matched(&get("/").header(&name, "w").header(&name, "v")), Some(at));
        assert_eq!(matched(&get("/").header(&name, "w")), None);
        let claims = json!({format!("own-{}", at + 1): {"deep": ["w", "v"]}});
        assert_eq!(matched(&get("/").token(claims)), Some(at + 1));
    }
}
