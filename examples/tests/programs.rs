//! The examples are run, and say what they promise. `cargo test -p mesh-examples` builds them first;
//! with `--test programs` alone, build them with `cargo build -p mesh-examples --examples`.

use std::path::PathBuf;
use std::process::Command;

/// `cargo test` builds the examples beside the tests.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let profile = test.ancestors().nth(2).expect("deps lies in the profile's folder");
    profile.join("examples").join(name)
}

fn run(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(example(name)).args(arguments).output().expect("the example starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}\n{errors}");
    text
}

#[test]
fn hyper() {
    let want = "web: 200 /items for spiffe://cluster.local/ns/shop/sa/web\n\
                stranger: 403 RBAC: access denied\n";
    assert_eq!(run("hyper", &[]), want);
}

#[test]
fn tonic() {
    let want = "web: Serving\nstranger: PermissionDenied: RBAC: access denied\n";
    assert_eq!(run("tonic", &[]), want);
}

/// [SEC-TLS-5], [SEC-TLS-11] Another server is refused, and a rotated identity is used at once.
#[test]
fn reqwest() {
    let want = "200 /items for spiffe://cluster.local/ns/shop/sa/web\n\
                the same connection again: true\n\
                another one after a rotation: true\n\
                an impostor: server is not verified\n\
                a withdrawn identity: asks nobody\n";
    assert_eq!(run("reqwest", &[]), want);
}

#[test]
fn tcp_proxy() {
    assert_eq!(run("tcp_proxy", &[]), "cart: hello\nstranger: closed\n");
}

#[test]
fn operator() {
    let text = run("operator", &["--once"]);
    assert!(text.contains("the admin page is at http://127.0.0.1:"), "{text}");
    assert!(text.contains("istio_requests_total{reporter=\"destination\""), "{text}");
    assert!(text.contains("mesh_shadow_denied_total 14\n"), "{text}");
}
