//! Section 11: requests of published advisories, one test per row that concerns authorization.

use mesh_authz::{PathNormalization, XffTrust};
use serde_json::json;

use crate::check::{Ask, Site, from, get, istio, policy, strict, tcp, to, when, when_not};

fn deny_path(path: &str) -> [serde_json::Value; 1] {
    [policy("DENY", to(json!({"paths": [path]})))]
}

#[test]
fn sem_adv_01_allow_prefix_does_not_survive_dot_segments() {
    let allow = [policy("ALLOW", to(json!({"paths": ["/info*"]})))];
    assert_eq!(istio(&allow, &get("/info/../private")), 403);
    assert_eq!(istio(&allow, &get("/info/x")), 200);
}

#[test]
fn sem_adv_02_query_and_fragment_do_not_hide_a_path() {
    let deny = [policy(
        "DENY",
        json!([{"from": [{"source": {"notRequestPrincipals": ["*"]}}],
                "to": [{"operation": {"paths": ["/x"]}}]}]),
    )];
    for path in ["/x?a", "/x#a", "/x"] {
        assert_eq!(istio(&deny, &get(path)), 403, "{path}");
    }
    assert_eq!(istio(&deny, &get("/x").token(json!({"iss": "i", "sub": "s"}))), 200);
}

#[test]
fn sem_adv_03_other_slashes_by_mode() {
    let deny = deny_path("/admin");
    let rows = [
        ("//admin", 200, 403, 403),
        ("/x%2f..%2fadmin", 200, 200, 403),
        ("/%5cadmin", 200, 200, 403),
    ];
    for (path, base, merge, decode) in rows {
        let status = |mode| Site::istio().paths(mode).status(&deny, &get(path));
        assert_eq!(status(PathNormalization::Base), base, "{path}");
        assert_eq!(status(PathNormalization::MergeSlashes), merge, "{path}");
        assert_eq!(status(PathNormalization::DecodeAndMergeSlashes), decode, "{path}");
        // What passes is a different path, and the application receives exactly it.
        let served = PathNormalization::Base.normalize(path.as_bytes()).unwrap();
        assert_eq!(served.as_bytes(), path.as_bytes());
    }
}

#[test]
fn sem_adv_04_fragments_are_cut() {
    for path in ["/admin#x", "/admin#?y", "/admin?a#b"] {
        assert_eq!(istio(&deny_path("/admin"), &get(path)), 403, "{path}");
    }
}

#[test]
fn sem_adv_05_hosts_ignore_case() {
    let deny = [policy("DENY", to(json!({"hosts": ["httpbin.foo"]})))];
    assert_eq!(istio(&deny, &get("/").host("Httpbin.Foo")), 403);
}

#[test]
fn sem_adv_06_hosts_and_ports() {
    let deny = [policy("DENY", to(json!({"hosts": ["a.example"]})))];
    let both = [policy("DENY", to(json!({"hosts": ["a.example", "a.example:*"]})))];
    let ask = get("/").host("a.example:8080");
    assert_eq!((istio(&deny, &ask), istio(&both, &ask), strict(&deny, &ask)), (200, 403, 403));
}

#[test]
fn sem_adv_07_another_host_is_not_allowed() {
    let allow = [policy("ALLOW", to(json!({"hosts": ["a.example"]})))];
    assert_eq!(istio(&allow, &get("/").host("b.example")), 403);
    assert_eq!(istio(&allow, &get("/").host("a.example")), 200);
}

#[test]
fn sem_adv_08_templates_cover_the_star() {
    assert_eq!(istio(&deny_path("/admin/{**}"), &get("/admin/a*b")), 403);
}

#[test]
fn sem_adv_09_templates_and_brackets() {
    let deny = deny_path("/admin/{**}");
    assert_eq!(istio(&deny, &get("/admin/a[b")), 200);
    assert_eq!(strict(&deny, &get("/admin/a[b")), 403);
}

#[test]
fn sem_adv_10_dot_segments_with_parameters() {
    for path in ["/x/..;/admin", "/x/..;a=b/admin"] {
        assert_eq!(istio(&deny_path("/admin"), &get(path)), 403, "{path}");
    }
}

#[test]
fn sem_adv_11_encoded_dot_segments_with_parameters() {
    let ask = get("/x/%2e%2e;/admin");
    assert_eq!(istio(&deny_path("/admin"), &ask), 200);
    assert_eq!(strict(&deny_path("/admin"), &ask), 403);
}

#[test]
fn sem_adv_12_path_parameters() {
    let deny = deny_path("/admin");
    assert_eq!(istio(&deny, &get("/admin;x=1")), 200);
    assert_eq!(istio(&deny, &get("/a;b/../admin")), 403);
    for path in ["/admin;x=1", "/a;b/../admin"] {
        assert_eq!(strict(&deny, &get(path)), 403, "{path}");
    }
}

#[test]
fn sem_adv_13_a_path_without_leading_slash_is_refused() {
    assert_eq!(istio(&deny_path("/pkg.S/M"), &get("pkg.S/M").http2()), 400);
}

#[test]
fn sem_adv_16_long_paths_take_linear_time() {
    let tricky = format!("/{}", "a".repeat(200_000));
    let rules = to(json!({"paths": ["*aab", "/{*}/b/{*}/c/{**}/d", "/a*"]}));
    let namespaces = from(json!({"namespaces": ["a*a*a*a*a*a*b"]}));
    let id = format!("spiffe://cluster.local/ns/{}/sa/x", "a".repeat(1900));
    assert_eq!(istio(&[policy("DENY", rules)], &get(&tricky)), 403);
    assert_eq!(istio(&[policy("DENY", namespaces)], &get("/").peer(&id)), 200);
}

#[test]
fn sem_adv_20_header_values_with_nul_do_not_exist() {
    assert!(http::HeaderValue::from_bytes(b"adm\0in").is_err());
    assert!(http::HeaderValue::from_bytes(b"admin\0").is_err());
}

fn role(lines: &[&str]) -> Ask {
    lines.iter().fold(get("/"), |ask, line| ask.header("x-role", line))
}

fn deny_admins() -> [serde_json::Value; 1] {
    [policy("DENY", when("request.headers[x-role]", json!(["admin"])))]
}

#[test]
fn sem_adv_21_padding_does_not_hide_a_value() {
    for line in ["admin ", " admin", "\tadmin \t"] {
        assert_eq!(istio(&deny_admins(), &role(&[line])), 403, "{line:?}");
    }
}

#[test]
fn sem_adv_22_the_second_line_counts() {
    assert_eq!(istio(&deny_admins(), &role(&["user", "admin"])), 403);
}

#[test]
fn sem_adv_23_lines_are_compared_one_by_one_in_any_order() {
    for lines in [&["user", "admin"][..], &["admin", "user"], &["a", "admin", "b"]] {
        assert_eq!(istio(&deny_admins(), &role(lines)), 403, "{lines:?}");
    }
    assert_eq!(istio(&deny_admins(), &role(&["user,admin"])), 200, "one line is one value");
}

#[test]
fn sem_adv_24_a_second_line_does_not_buy_an_allow_in_strict() {
    let allow = [policy("ALLOW", when("request.headers[x-role]", json!(["admin"])))];
    assert_eq!(istio(&allow, &role(&["user", "admin"])), 200);
    assert_eq!(strict(&allow, &role(&["user", "admin"])), 403);
    assert_eq!(strict(&allow, &role(&["admin", "admin"])), 200);
}

#[test]
fn sem_adv_25_values_are_compared_as_bytes() {
    let deny = |values| [policy("DENY", when("request.headers[x-role]", json!([values])))];
    let ask = get("/").raw_header("x-role", b"\xffadmin");
    assert_eq!(istio(&deny("*admin"), &ask), 403);
    assert_eq!(istio(&deny("*"), &ask), 403);
    let not = [policy("DENY", when_not("request.headers[x-role]", json!(["*admin"])))];
    assert_eq!(istio(&not, &ask), 200);
}

#[test]
fn sem_adv_28_the_original_path_header_says_nothing() {
    let ask = get("/admin").header("x-envoy-original-path", "/public");
    assert_eq!(istio(&deny_path("/admin"), &ask), 403);
}

#[test]
fn sem_adv_29_no_header_sets_an_identity() {
    let deny = [policy("DENY", from(json!({"namespaces": ["foo"]})))];
    let allow = [policy("ALLOW", from(json!({"namespaces": ["ops"]})))];
    for name in ["x-istio-attributes", "x-forwarded-client-cert", "x-peer"] {
        let ask = get("/").header(name, "By=x;URI=spiffe://cluster.local/ns/ops/sa/x");
        assert_eq!((istio(&deny, &ask), istio(&allow, &ask)), (403, 403), "{name}");
        assert_eq!(istio(&allow, &ask.plain()), 403, "{name}");
    }
}

#[test]
fn sem_adv_30_a_private_address_earns_no_trust() {
    let deny = [policy("DENY", to(json!({"paths": ["/admin"]})))];
    for source in ["10.0.0.1", "127.0.0.1", "::1"] {
        let ask = get("/admin").source(source).header("x-envoy-internal", "true");
        assert_eq!(istio(&deny, &ask.header("x-envoy-original-path", "/public")), 403, "{source}");
    }
}

#[test]
fn sem_adv_31_the_scheme_is_a_plain_text_that_the_server_sets() {
    let deny = [policy("DENY", when("request.headers[:scheme]", json!(["http"])))];
    assert_eq!(istio(&deny, &get("/").scheme("http")), 403);
    assert_eq!(istio(&deny, &get("/").scheme("https")), 200);
}

#[test]
fn sem_adv_34_header_names_ignore_case() {
    let deny = [policy("DENY", when("request.headers[X-Role]", json!(["admin"])))];
    assert_eq!(istio(&deny, &role(&["admin"])), 403);
}

#[test]
fn sem_adv_40_namespaces_hold_on_tcp() {
    let allow = [policy("ALLOW", from(json!({"namespaces": ["a"]})))];
    let ask = |namespace| tcp().peer(&format!("spiffe://cluster.local/ns/{namespace}/sa/x"));
    assert_eq!((istio(&allow, &ask("b")), istio(&allow, &ask("a"))), (403, 200));
}

#[test]
fn sem_adv_41_suffixes_of_principals_hold_on_tcp() {
    for value in ["*/ns/pay/sa/x", "*pay/sa/x"] {
        let deny = [policy("DENY", from(json!({"principals": [value]})))];
        assert_eq!(istio(&deny, &tcp().peer("spiffe://td/ns/pay/sa/x")), 403, "{value}");
    }
}

#[test]
fn sem_adv_42_the_proxy_protocols_address_counts_on_tcp() {
    let deny = [policy("DENY", from(json!({"remoteIpBlocks": ["10.1.0.0/16"]})))];
    assert_eq!(istio(&deny, &tcp().client("10.1.2.3")), 403);
    assert_eq!(istio(&deny, &tcp().source("10.1.2.3")), 403);
    assert_eq!(istio(&deny, &tcp()), 200);
}

#[test]
fn sem_adv_43_plain_text_and_negations() {
    for rules in [
        policy("ALLOW", from(json!({"notNamespaces": ["foo"]}))),
        policy("DENY", from(json!({"namespaces": ["foo"]}))),
    ] {
        let policies = [rules];
        assert_eq!(istio(&policies, &get("/").plain()), 200);
        assert_eq!(strict(&policies, &get("/").plain()), 403);
    }
}

#[test]
fn sem_adv_44_ports_are_the_workloads() {
    let deny = [policy("DENY", to(json!({"ports": ["8080"]})))];
    assert_eq!((istio(&deny, &get("/")), istio(&deny, &get("/").port(80))), (403, 200));
}

#[test]
fn sem_adv_45_dots_in_service_accounts_are_dots() {
    let deny = [policy("DENY", from(json!({"serviceAccounts": ["ns/cert-manager.io"]})))];
    let ask = |name| get("/").peer(&format!("spiffe://cluster.local/ns/ns/sa/{name}"));
    assert_eq!(istio(&deny, &ask("cert-manager-io")), 200);
    assert_eq!(istio(&deny, &ask("cert-manager.io")), 403);
}

#[test]
fn sem_adv_46_metacharacters_are_characters() {
    let principals = [policy("DENY", from(json!({"principals": ["*/sa/a.b"]})))];
    let namespaces = [policy("DENY", from(json!({"namespaces": ["a.*"]})))];
    assert_eq!(istio(&principals, &get("/").peer("spiffe://td/ns/x/sa/aXb")), 200);
    assert_eq!(istio(&principals, &get("/").peer("spiffe://td/ns/x/sa/a.b")), 403);
    assert_eq!(istio(&namespaces, &get("/").peer("spiffe://td/ns/aXc/sa/b")), 200);
    assert_eq!(istio(&namespaces, &get("/").peer("spiffe://td/ns/a.c/sa/b")), 403);
}

#[test]
fn sem_adv_47_only_uri_names_count_in_strict() {
    let allow = [policy("ALLOW", from(json!({"principals": ["cluster.local/ns/foo/sa/bar"]})))];
    let ask = get("/").names(&[], &["spiffe://cluster.local/ns/foo/sa/bar", "x"], None);
    assert_eq!((istio(&allow, &ask), strict(&allow, &ask)), (200, 403));
}

#[test]
fn sem_adv_52_the_server_name_is_seen() {
    let allow = [policy("ALLOW", when("connection.sni", json!(["a.example"])))];
    assert_eq!(istio(&allow, &tcp().sni("a.example")), 200);
    assert_eq!(istio(&allow, &tcp()), 403);
}

#[test]
fn sem_adv_54_a_server_name_alone_proves_nobody() {
    let peers = [policy("ALLOW", from(json!({"principals": ["*"]})))];
    assert_eq!(istio(&peers, &tcp().plain().sni("outbound_.80_._.a.foo.svc.cluster.local")), 403);
}

#[test]
fn sem_adv_55_star_a_matches_the_sa_of_every_identity() {
    let web = get("/").peer("spiffe://td/ns/web/sa/x");
    for value in ["*a", "*sa", "w*a"] {
        let rules = from(json!({"namespaces": [value]}));
        assert_eq!(istio(&[policy("DENY", rules.clone())], &web), 403, "{value}");
        // The strict reading refuses to load it.
        let problems =
            Site::strict().try_compile(&[policy("DENY", rules)], mesh_authz::Transport::Http);
        let problems = problems.unwrap_err();
        assert_eq!(problems.list()[0].path, "spec.rules[0].from[0].source.namespaces");
    }
    let other = [policy("DENY", from(json!({"namespaces": ["*-a"]})))];
    assert_eq!(istio(&other, &web), 200);
}

#[test]
fn sem_adv_56_odd_identities_are_refused_in_strict() {
    let allow = [policy("ALLOW", from(json!({"namespaces": ["foo"]})))];
    let ask = get("/").peer("spiffe://td/ns/a/sa/ns/foo/sa/b");
    assert_eq!((istio(&allow, &ask), strict(&allow, &ask)), (200, 403));
}

#[test]
fn sem_adv_72_a_request_without_path_is_judged() {
    let deny = [policy("DENY", to(json!({"notPaths": ["/x"]})))];
    assert_eq!(istio(&deny, &get("/").connect()), 403);
    assert_eq!(istio(&deny_path("*"), &get("/").connect()), 200);
}

#[test]
fn sec_authz_8_forwarded_addresses_from_strangers_do_not_count() {
    let allow = [policy("ALLOW", from(json!({"remoteIpBlocks": ["10.1.2.3"]})))];
    let ask = get("/").header("x-forwarded-for", "10.1.2.3");
    assert_eq!(istio(&allow, &ask), 200);
    let nobody = Site::istio().trust(XffTrust::Nobody);
    assert_eq!(nobody.status(&allow, &ask), 403);
    // An IPv4-mapped peer is its IPv4 address.
    let blocks = [policy("ALLOW", from(json!({"ipBlocks": ["10.1.2.3"]})))];
    assert_eq!(istio(&blocks, &get("/").source("::ffff:10.1.2.3")), 200);
    // So is what our own proxies write, and what is known otherwise; Envoy keeps what anybody writes.
    let mapped = "::ffff:10.1.2.3".parse().unwrap();
    assert_eq!(mesh_authz::ClientAddress::known(mapped).ip(), std::net::Ipv4Addr::new(10, 1, 2, 3));
}
