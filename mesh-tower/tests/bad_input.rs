//! Bad policies: each is refused with file, document, field and line, and what was in force stays.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use mesh_ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload};
use mesh_tower::{Clock, Mesh, Policies, SystemClock};

const GOOD: &str = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: good, namespace: shop}
spec:
  action: DENY
  rules:
  - from:
    - source:
        ipBlocks: [\"10.0.0.0/8\"]
";

fn mesh() -> Mesh {
    let home = "cluster.local".parse().unwrap();
    let now = SystemClock.now();
    let authority = Authority::new_root(&home, Duration::from_secs(24 * 3600), now).unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let svid = authority.issue_svid(&id, Duration::ZERO, now).unwrap();
    let bundles = BundleSet::from_bundles([authority.bundle()]).unwrap();
    let good = Policies::read([("good.yaml", GOOD)], "shop").unwrap();
    Mesh::builder(Workload::new("shop"), MeshSettings::new(home))
        .build(Arc::new(svid), Arc::new(bundles), good)
        .unwrap()
}

/// [SEC-AUTHZ-2], [SEC-OPS-2], [SEM-VAL-31]
#[test]
fn sec_ops_2_bad_policies_are_refused_with_their_place_and_change_nothing() {
    let unknown = GOOD.replace("ipBlocks", "ipBlock");
    let cidr = GOOD.replace("10.0.0.0/8", "10.0.0.0/33");
    let tab = GOOD.replace("  rules:", "\trules:");
    let number = GOOD.replace("\"10.0.0.0/8\"", "10");
    let twice = format!("{GOOD}---\n{GOOD}");
    let second = format!("{GOOD}---\n{}", unknown.replace("name: good", "name: other"));
    let brackets = "[".repeat(200_000);
    let token = "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
                 metadata: {name: t}\nspec: {jwtRules: [{issuer: a, jwks: 'no json'}]}\n";
    let cases: &[(&str, &str, &str)] = &[
        (
            "an unknown field",
            &unknown,
            "bad.yaml: document 1, line 9, column 9: spec.rules[0].from[0].source.ipBlock: unknown",
        ),
        (
            "a bad CIDR",
            &cidr,
            "bad.yaml: document 1, line 9, column 20: spec.rules[0].from[0].source.ipBlocks[0]: ",
        ),
        ("a number for text", &number, "bad.yaml: document 1, line 9, column 20: spec.rules[0]"),
        ("a tab", &tab, "bad.yaml, line 6, column 1: a tab cannot indent YAML"),
        (
            "two documents of one name",
            &twice,
            "bad.yaml: document 2, line 11, column 1: metadata.name: another",
        ),
        (
            "a bad second document",
            &second,
            "bad.yaml: document 2, line 19, column 9: spec.rules[0].from[0].source.ipBlock: unknown",
        ),
        ("an empty file", "", "bad.yaml: no document"),
        ("200 kB of brackets", &brackets, "bad.yaml, line 1, column "),
        ("a key set that is none", token, "bad.yaml: document 1, line 4, column "),
    ];
    let mesh = mesh();
    let before = mesh.generation();
    for (what, text, want) in cases {
        let problems = Policies::read([("bad.yaml", *text)], "shop").unwrap_err();
        let shown = problems.to_string();
        println!("{what}: {shown}");
        assert!(shown.starts_with(want), "{what}: {shown}");
        assert_eq!(mesh.generation(), before, "{what}");
    }
}

/// What reads well but cannot be compiled is refused by the mesh itself.
#[test]
fn sec_ops_2_what_does_not_compile_leaves_the_last_good_in_force() {
    let mesh = mesh();
    let before = mesh.generation();
    // Each is fine alone. Together, the output of one is where the other looks for tokens: nobody
    // would ever be authenticated.
    let rule = |name: &str, rest: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
             metadata: {{name: {name}, namespace: shop}}\n\
             spec: {{jwtRules: [{{issuer: {name}, jwksUri: 'https://a.example/k', {rest}}}]}}\n"
        )
    };
    let text = rule("one", "fromHeaders: [{name: x-token}]")
        + &rule("two", "outputPayloadToHeader: x-token");
    let policies = Policies::read([("both.yaml", &*text)], "shop").unwrap();
    let error = mesh.set_policies(policies).unwrap_err().to_string();
    assert!(error.contains("x-token") && error.contains("shop/"), "{error}");
    assert_eq!(mesh.last_error(), Some(error), "the failure can be seen");
    assert_eq!(mesh.telemetry().refused_configurations(), 1);
    assert_eq!(mesh.generation(), before);
}

/// [SEC-ID-12] A key that does not belong to its certificate is refused when it is loaded.
#[test]
fn sec_id_12_a_mismatched_rotation_leaves_the_last_good_in_force() {
    let mesh = mesh();
    let home = "cluster.local".parse().unwrap();
    let now = SystemClock.now();
    let authority = Authority::new_root(&home, Duration::from_secs(24 * 3600), now).unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let [one, other] = [0, 1].map(|_| authority.issue_svid(&id, Duration::ZERO, now).unwrap());
    let key = other.private_key();
    let rustls::pki_types::PrivateKeyDer::Pkcs8(key) = key else { panic!("keys are PKCS#8") };
    let mixed = mesh_tower::identity::X509Svid::from_der(one.chain().to_vec(), &key);
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap());
    let before = mesh.generation();
    let refused = match mixed {
        Err(error) => error.to_string(),
        Ok(mixed) => mesh.set_identity(Arc::new(mixed), bundles).unwrap_err().to_string(),
    };
    assert!(refused.contains("does not belong"), "{refused}");
    assert_eq!(mesh.generation(), before);
}
