//! Bundles from files, folders and a service: all or nothing, the last good one kept.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_tower::authz::rego::{BundleKey, BundleLimits, BundleVerification, RegoOptions};
use mesh_tower::{BundleSource, Bundles, OpaService, RegoStage};

use crate::control::{Act, Control, allowing, bundle, manifest, module};
use crate::{guarded, tls, until, waiting};

const SOON: Duration = Duration::from_millis(20);

/// A folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("mesh-opa-{name}-{}", std::process::id()));
    drop(fs::remove_dir_all(&path));
    fs::create_dir_all(&path).unwrap();
    path
}

fn follow(stage: &RegoStage, source: BundleSource) {
    let bundles =
        Bundles::new(RegoOptions::default()).with("authz", source.with_polling(SOON, SOON));
    tokio::spawn(stage.clone().follow(bundles));
}

fn error(stage: &RegoStage) -> Option<String> {
    stage.bundles().first().and_then(|state| state.error.clone())
}

#[tokio::test]
async fn before_the_first_bundle_everything_is_denied() {
    let stage = waiting();
    let shop = guarded(&stage).await;
    assert_eq!(shop.get("/c/a").await.status, 403);
    assert_eq!(shop.get("/x").await.status, 200, "no policy selects it");
    assert!(stage.bundles().is_empty());
}

#[tokio::test]
async fn a_file_is_followed_and_a_bad_one_leaves_the_last_good_in_force() {
    let path = folder("file").join("bundle.tar.gz");
    fs::write(&path, allowing("a", "r1")).unwrap();
    let stage = waiting();
    follow(&stage, BundleSource::file(&path));
    let shop = guarded(&stage).await;
    until("the first", || stage.revision() == "r1").await;
    assert_eq!((shop.get("/c/a").await.status, shop.get("/c/b").await.status), (200, 403));
    fs::write(&path, allowing("b", "r2")).unwrap();
    until("the second", || stage.revision() == "r2").await;
    assert_eq!((shop.get("/c/a").await.status, shop.get("/c/b").await.status), (403, 200));
    let broken: [(&str, Vec<u8>, &str); 6] = [
        ("no archive", b"not a bundle".to_vec(), "archive"),
        ("cut off", allowing("c", "r3")[..60].to_vec(), "archive"),
        ("no Rego", bundle(&[("/a.rego", "package envoy.authz\nallow if {{")]), "policy"),
        (
            "no such function",
            bundle(&[("/a.rego", "package envoy.authz\nallow if no.such(1)")]),
            "no.such",
        ),
        (
            "no such rule",
            bundle(&[("/a.rego", "package other\nallow := true")]),
            "data.envoy.authz.allow",
        ),
        ("a delta", bundle(&[("/patch.json", "{\"data\": []}")]), "delta"),
    ];
    for (what, bytes, why) in broken {
        fs::write(&path, bytes).unwrap();
        until(what, || error(&stage).is_some_and(|error| error.contains(why))).await;
        assert_eq!(stage.revision(), "r2", "{what}");
        assert_eq!(shop.get("/c/b").await.status, 200, "{what}");
    }
    let told = &stage.bundles()[0];
    assert_eq!((told.name.as_str(), told.active_revision.as_deref()), ("authz", Some("r2")));
    assert!(told.failures > 0 && told.last_successful_activation.is_some());
    fs::remove_file(&path).unwrap();
    until("gone", || error(&stage).is_some_and(|error| error.contains("bundle.tar.gz"))).await;
    fs::write(&path, allowing("c", "r4")).unwrap();
    until("the next good one", || stage.revision() == "r4").await;
    assert_eq!((error(&stage), stage.bundles()[0].failures), (None, 0));
    assert_eq!(shop.get("/c/c").await.status, 200);
}

#[tokio::test]
async fn a_folder_as_kubernetes_mounts_it() {
    let root = folder("folder");
    let version = |name: &str, path: &str, revision: &str| {
        let folder = root.join(name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("authz.rego"), module(path)).unwrap();
        fs::write(folder.join(".manifest"), manifest(revision)).unwrap();
    };
    version("..1", "a", "v1");
    symlink("..1", root.join("..data")).unwrap();
    symlink("..data/authz.rego", root.join("authz.rego")).unwrap();
    symlink("..data/.manifest", root.join(".manifest")).unwrap();
    let stage = waiting();
    follow(&stage, BundleSource::directory(&root));
    until("the first", || stage.revision() == "v1").await;
    version("..2", "b", "v2");
    symlink("..2", root.join("..new")).unwrap();
    fs::rename(root.join("..new"), root.join("..data")).unwrap();
    until("the second", || stage.revision() == "v2").await;
    // Folders are packages of data; links to folders lead who knows where.
    fs::create_dir(root.join("users")).unwrap();
    fs::write(root.join("users/data.json"), "{\"ann\": 1}").unwrap();
    let seen = stage.bundles()[0].last_successful_activation;
    assert!(seen.is_some());
    symlink("/etc", root.join("etc")).unwrap();
    until("a refusal", || error(&stage).is_some_and(|error| error.contains("link"))).await;
    assert_eq!(stage.revision(), "v2");
}

/// [SEC-REGO-6] What a bundle may be: size, files, depth.
#[tokio::test]
async fn sec_rego_6_files_and_folders_are_bounded() {
    let mut limits = BundleLimits::default();
    limits.bytes = 10_000;
    limits.files = 3;
    let root = folder("bounds");
    let path = root.join("large.tar.gz");
    fs::write(&path, vec![7; 20_000]).unwrap();
    let stage = waiting();
    follow(&stage, BundleSource::file(&path).with_limits(limits));
    until("too large a file", || error(&stage).is_some()).await;
    // A megabyte of zeros in a kilobyte.
    let bomb = bundle(&[("/data.json", &format!("\"{}\"", "0".repeat(1 << 20)))]);
    assert!(bomb.len() < 10_000);
    fs::write(&path, bomb).unwrap();
    until("a bomb", || error(&stage).is_some_and(|error| error.contains("larger"))).await;
    let many = root.join("many");
    fs::create_dir(&many).unwrap();
    (0..5).for_each(|at| fs::write(many.join(format!("{at}.txt")), "").unwrap());
    let other = waiting();
    follow(&other, BundleSource::directory(&many).with_limits(limits));
    until("too many files", || error(&other).is_some()).await;
    assert_eq!((stage.revision(), other.revision()), (String::new(), String::new()));
}

#[tokio::test]
async fn a_service_is_asked_with_etags_and_only_what_changed_is_taken() {
    let control = Control::start().await;
    control.next(Act::bundle(allowing("a", "r1"), "\"one\""));
    control.next(Act::status("304 Not Modified"));
    control.next(Act::bundle(allowing("b", "r2"), "\"two\""));
    let stage = waiting();
    follow(&stage, BundleSource::service(control.service(), "/bundles/authz.tar.gz"));
    until("the second", || stage.revision() == "r2").await;
    until("a fifth request", || control.asked().len() >= 5).await;
    let asked = control.asked();
    assert!(asked.iter().all(|one| one.line() == "GET /opa/bundles/authz.tar.gz HTTP/1.1"));
    assert!(asked.iter().all(|one| one.header("prefer") == Some("modes=snapshot")));
    let etags: Vec<_> = asked.iter().take(4).map(|one| one.header("if-none-match")).collect();
    assert_eq!(etags, [None, Some("\"one\""), Some("\"one\""), Some("\"two\"")]);
}

/// Whatever a service does wrong, the last good bundle stays in force, the state says why, the
/// next request asks for a whole bundle, and a good answer heals it.
#[tokio::test]
async fn a_service_that_breaks_in_every_way_changes_nothing() {
    let control = Control::start().await;
    let stage = waiting();
    let mut limits = BundleLimits::default();
    limits.bytes = 100_000;
    let service = control.service().with_timeout(Duration::from_millis(300));
    control.next(Act::bundle(allowing("a", "good"), "\"good\""));
    follow(&stage, BundleSource::service(service, "b").with_limits(limits));
    let shop = guarded(&stage).await;
    until("the first", || stage.revision() == "good").await;
    let good = allowing("x", "never");
    let ok = "HTTP/1.1 200 OK\r\n";
    let breaks: Vec<(&str, Act, &str)> = vec![
        ("not found", Act::status("404 Not Found"), "404"),
        ("forbidden", Act::status("403 Forbidden"), "403"),
        ("a fault", Act::status("500 Internal Server Error"), "500"),
        ("moved", Act::status("302 Found\r\nlocation: http://127.0.0.1:1/"), "302"),
        ("no content", Act::status("204 No Content"), "204"),
        ("an empty body", Act::Answer(ok.trim_end().to_owned(), Vec::new()), "archive"),
        ("no HTTP", Act::Raw(b"SSH-2.0-OpenSSH_9\r\n".to_vec()), "HTTP"),
        ("nothing", Act::Raw(Vec::new()), "HTTP"),
        ("silence", Act::Silence, "in time"),
        ("a trickle", Act::Trickle(good.clone()), "in time"),
        (
            "half a body",
            Act::Raw([ok.as_bytes(), b"content-length: 9000\r\n\r\n", &good[..50]].concat()),
            "incomplete",
        ),
        ("too much", Act::Answer(ok.trim_end().to_owned(), vec![7; 200_000]), "too long"),
        ("no archive", Act::bundle(b"hello".to_vec(), "\"h\""), "archive"),
        ("a delta", Act::bundle(bundle(&[("/patch.json", "{\"data\":[]}")]), "\"d\""), "delta"),
        (
            "no Rego",
            Act::bundle(bundle(&[("/a.rego", "package envoy.authz\nallow if")]), "\"n\""),
            "policy",
        ),
        (
            "http.send",
            Act::bundle(
                bundle(&[("/a.rego", "package envoy.authz\nallow if http.send({}).x")]),
                "\"s\"",
            ),
            "http.send",
        ),
        (
            "out of its roots",
            Act::bundle(
                bundle(&[("/.manifest", "{\"roots\":[\"x\"]}"), ("/a.rego", &module("a"))]),
                "\"o\"",
            ),
            "roots",
        ),
    ];
    for (what, act, why) in breaks {
        let before = control.asked().len();
        control.next(act);
        until(what, || error(&stage).is_some_and(|error| error.contains(why))).await;
        assert_eq!(stage.revision(), "good", "{what}");
        assert_eq!(
            (shop.get("/c/a").await.status, shop.get("/c/x").await.status),
            (200, 403),
            "{what}"
        );
        // The next one is asked for without an ETag, and heals.
        control.next(Act::bundle(allowing("a", "good"), "\"good\""));
        until(what, || error(&stage).is_none()).await;
        let asked = control.asked();
        let healing = asked.iter().skip(before).any(|one| one.header("if-none-match").is_none());
        assert!(healing, "{what}");
    }
    let down = control.address;
    drop(control);
    assert!(down.port() > 0);
}

#[tokio::test]
async fn a_service_that_can_keeps_requests_waiting() {
    let control = Control::start().await;
    let pause = Duration::from_millis(300);
    control.next(Act::bundle(allowing("a", "r1"), "\"1\"").long());
    let next = Act::bundle(allowing("b", "r2"), "\"2\"").long();
    control.next(Act::After(pause, Box::new(next)));
    control.next(Act::Silence);
    let stage = waiting();
    let source = BundleSource::service(control.service(), "b");
    // Without long polling it would be asked again after an hour.
    let hour = Duration::from_secs(3600);
    let source = source.with_long_polling(Duration::from_secs(7)).with_polling(hour, hour);
    let bundles = Bundles::new(RegoOptions::default()).with("authz", source);
    tokio::spawn(stage.clone().follow(bundles));
    until("the second", || stage.revision() == "r2").await;
    until("the third request", || control.asked().len() == 3).await;
    let asked = control.asked();
    assert!(asked.iter().all(|one| one.header("prefer") == Some("modes=snapshot;wait=7")));
    assert!(asked[2].at.duration_since(asked[1].at) >= pause);
    assert_eq!(asked[2].header("if-none-match"), Some("\"2\""));
}

/// A service that says it waits, but answers at once, is not asked without a pause; one that does
/// not say so is polled.
#[tokio::test]
async fn a_service_that_only_says_it_waits_does_not_make_us_spin() {
    let control = Control::start().await;
    control.next(Act::bundle(allowing("a", "r1"), "\"1\"").long());
    (0..1000).for_each(|_| control.next(Act::status("304 Not Modified").long()));
    let stage = waiting();
    let source =
        BundleSource::service(control.service(), "b").with_long_polling(Duration::from_secs(7));
    tokio::spawn(stage.clone().follow(Bundles::new(RegoOptions::default()).with("authz", source)));
    until("the first", || stage.revision() == "r1").await;
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let asked = control.asked().len();
    assert!((2..=5).contains(&asked), "{asked} requests");
}

#[tokio::test]
async fn unsigned_and_wrongly_signed_bundles_are_refused() {
    let control = Control::start().await;
    let stage = waiting();
    let verification =
        BundleVerification::new([("k".to_owned(), BundleKey::secret("secret", "HS256"))]);
    let source =
        BundleSource::service(control.service(), "b").with_verification(Arc::new(verification));
    control.next(Act::bundle(allowing("a", "unsigned"), "\"1\""));
    follow(&stage, source);
    until("a refusal", || error(&stage).is_some_and(|error| error.contains("not signed"))).await;
    let forged = bundle(&[
        ("/a.rego", &module("a")),
        ("/.signatures.json", "{\"signatures\": [\"e30.e30.e30\"]}"),
    ]);
    control.next(Act::bundle(forged, "\"2\""));
    until("a refusal", || error(&stage).is_some_and(|error| error.contains("signature"))).await;
    assert_eq!(stage.revision(), "");
}

/// Two bundles make one policy: nothing is in force before both are there, and one that does not
/// fit the other changes nothing.
#[tokio::test]
async fn several_bundles_come_into_force_together() {
    let (policy, data) = (Control::start().await, Control::start().await);
    let rules = "package envoy.authz\nallow if data.users[input.parsed_path[1]]\n";
    let rooted = |root: &str, revision: &str| {
        format!("{{\"revision\": \"{revision}\", \"roots\": [\"{root}\"]}}")
    };
    let users = |json: &str, root: &str, revision: &str| {
        bundle(&[("/users/data.json", json), ("/.manifest", &rooted(root, revision))])
    };
    policy.next(Act::bundle(
        bundle(&[("/a.rego", rules), ("/.manifest", &rooted("envoy", "p1"))]),
        "\"p1\"",
    ));
    let stage = waiting();
    let source =
        |control: &Control| BundleSource::service(control.service(), "b").with_polling(SOON, SOON);
    let bundles = Bundles::new(RegoOptions::default())
        .with("policy", source(&policy))
        .with("users", source(&data));
    tokio::spawn(stage.clone().follow(bundles));
    let shop = guarded(&stage).await;
    until("the policy", || {
        stage.bundles().first().is_some_and(|state| state.last_successful_download.is_some())
    })
    .await;
    assert_eq!(shop.get("/c/ann").await.status, 403, "half of it is nothing");
    assert_eq!(stage.bundles()[0].active_revision, None);
    data.next(Act::bundle(users("{\"ann\": true}", "users", "u1"), "\"u1\""));
    until("both", || stage.revision() == "p1,u1").await;
    assert_eq!(shop.get("/c/ann").await.status, 200);
    // It claims the policy's root.
    data.next(Act::bundle(users("{\"bob\": true}", "", "u2"), "\"u2\""));
    until("a refusal", || {
        stage.bundles()[1].error.as_ref().is_some_and(|error| error.contains("roots"))
    })
    .await;
    assert_eq!((shop.get("/c/ann").await.status, shop.get("/c/bob").await.status), (200, 403));
    data.next(Act::bundle(users("{\"bob\": true}", "users", "u3"), "\"u3\""));
    until("the next", || stage.revision() == "p1,u3").await;
    assert_eq!((shop.get("/c/ann").await.status, shop.get("/c/bob").await.status), (403, 200));
    let revisions: Vec<_> =
        stage.bundles().into_iter().map(|state| state.active_revision).collect();
    assert_eq!(revisions, [Some("p1".to_owned()), Some("u3".to_owned())]);
}

#[tokio::test]
async fn credentials_are_sent_and_never_shown() {
    let control = Control::start().await;
    let path = folder("token").join("token");
    fs::write(&path, "first-secret\n").unwrap();
    let service = control.service().with_header("x-tenant", "acme").unwrap();
    let service = service.with_bearer_token_file(&path);
    assert!(!format!("{service:?}").contains("acme"));
    let stage = waiting();
    follow(&stage, BundleSource::service(service, "b"));
    until("a request", || !control.asked().is_empty()).await;
    fs::write(&path, "second-secret").unwrap();
    let sent =
        |token: &str| control.asked().iter().any(|one| one.header("authorization") == Some(token));
    until("the new token", || sent("Bearer second-secret")).await;
    assert!(sent("Bearer first-secret"));
    assert!(control.asked().iter().all(|one| one.header("x-tenant") == Some("acme")));
    fs::write(&path, "").unwrap();
    until("no token", || error(&stage).is_some_and(|error| error.contains("token"))).await;
    let (provider, roots) = tls();
    for url in ["ftp://x/", "http:///x", "x", "http://x/?a=b", ""] {
        assert!(OpaService::new(url, provider.clone(), roots.clone()).is_err(), "{url}");
    }
    // Plain HTTP only when allowed.
    let plain = OpaService::new(&format!("http://{}/", control.address), provider, roots).unwrap();
    let strict = waiting();
    follow(&strict, BundleSource::service(plain, "b"));
    until("a refusal", || error(&strict).is_some_and(|error| error.contains("plain http"))).await;
}
