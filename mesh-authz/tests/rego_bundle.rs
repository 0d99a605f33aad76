//! Bundles are read whole or not at all, and a signature covers every file of one.

#![cfg(feature = "bundles")]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_authz::rego::{Bundle, BundleError, BundleKey, BundleLimits, BundleVerification};
use ring::{digest, hmac};
use serde_json::{Value, json};

const SECRET: &[u8] = b"a secret that is long enough for SHA-256";

type Files = Vec<(String, Vec<u8>)>;

fn files(all: &[(&str, &str)]) -> Files {
    all.iter().map(|(path, text)| ((*path).to_owned(), text.as_bytes().to_vec())).collect()
}

fn good() -> Files {
    files(&[
        (".manifest", "{\"roots\":[\"app\"],\"revision\":\"7\"}"),
        ("app/policy.rego", "package app\n\nallow if input.x == 1\n"),
        // Already in the canonical form.
        ("app/data.json", "{\"a\":1,\"b\":[true,null]}"),
    ])
}

fn read(files: Files, key: Option<&BundleVerification>) -> Result<Bundle, BundleError> {
    Bundle::from_files(files, BundleLimits::default(), key)
}

fn hash(content: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, content);
    digest.as_ref().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// What `opa sign` lists: the manifest in its canonical form, with sorted keys.
fn listed(files: &Files) -> Vec<Value> {
    let canonical = |path: &str, content: &[u8]| {
        if path == ".manifest" {
            b"{\"revision\":\"7\",\"roots\":[\"app\"]}".to_vec()
        } else {
            content.to_vec()
        }
    };
    files
        .iter()
        .map(|(path, content)| {
            json!({"name": path, "hash": hash(&canonical(path, content)), "algorithm": "SHA-256"})
        })
        .collect()
}

fn sign(header: &Value, payload: &Value, secret: &[u8]) -> (String, Vec<u8>) {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(header), part(payload));
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), signed.as_bytes());
    let token = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(tag));
    (".signatures.json".to_owned(), json!({"signatures": [token]}).to_string().into_bytes())
}

fn verification() -> BundleVerification {
    BundleVerification::new([("k".to_owned(), BundleKey::secret(SECRET, "HS256"))])
}

#[test]
fn a_signed_bundle_is_taken_and_says_its_revision() {
    let mut files = good();
    let payload = json!({"files": listed(&files), "scope": "write"});
    files.push(sign(&json!({"alg": "HS256", "kid": "k"}), &payload, SECRET));
    let bundle = read(files, Some(&verification().with_scope("write"))).unwrap();
    assert_eq!((bundle.revision(), bundle.modules().len()), ("7", 1));
    assert_eq!(bundle.data(), &json!({"app": {"a": 1, "b": [true, null]}}));
}

/// Whatever is not exactly what was signed is refused where a key is configured, and an unsigned
/// bundle with it.
#[test]
fn what_was_not_signed_is_refused() {
    let header = json!({"alg": "HS256", "kid": "k"});
    let signed = |change: &dyn Fn(&mut Files, &mut Vec<Value>), header: &Value, secret: &[u8]| {
        let (mut files, mut names) = (good(), listed(&good()));
        change(&mut files, &mut names);
        files.push(sign(header, &json!({"files": names}), secret));
        read(files, Some(&verification()))
    };
    let same = |_: &mut Files, _: &mut Vec<Value>| {};
    assert!(signed(&same, &header, SECRET).is_ok(), "the baseline of all that follows");

    let refused = |what: &str, result: Result<Bundle, BundleError>| {
        assert!(matches!(result, Err(BundleError::Signature { .. })), "{what}: {result:?}");
    };
    refused("unsigned", read(good(), Some(&verification())));
    refused("another secret", signed(&same, &header, b"another secret of the same length.."));
    refused("an unknown key", signed(&same, &json!({"alg": "HS256", "kid": "x"}), SECRET));
    refused(
        "an algorithm of the token's choice",
        signed(&same, &json!({"alg": "none", "kid": "k"}), SECRET),
    );
    refused(
        "a file too many",
        signed(
            &|files, _| files.push(("app/b.rego".to_owned(), b"package app\n".to_vec())),
            &header,
            SECRET,
        ),
    );
    refused("a file too few", signed(&|files, _| drop(files.pop()), &header, SECRET));
    refused(
        "a changed file",
        signed(
            &|files, _| {
                files[1].1.push(b'\n');
            },
            &header,
            SECRET,
        ),
    );
    refused(
        "a file listed twice",
        signed(&|_, names| names.push(names.first().unwrap().clone()), &header, SECRET),
    );
    let mut files = good();
    let payload = json!({"files": listed(&files), "scope": "read"});
    files.push(sign(&header, &payload, SECRET));
    refused("another scope", read(files, Some(&verification().with_scope("write"))));
}

/// Paths, roots, deltas and forms that are not evaluated: refused, each by its own error.
#[test]
fn what_is_no_whole_bundle_is_refused() {
    let with = |path: &str, text: &str| {
        let mut all = good();
        all.push((path.to_owned(), text.as_bytes().to_vec()));
        read(all, None)
    };
    assert!(read(good(), None).is_ok());
    assert_eq!(with("patch.json", "{}"), Err(BundleError::Delta));
    for path in ["../x.rego", "app/../../x", "app//x.rego", "app\\x.rego", "app/./x", "/"] {
        assert_eq!(with(path, "package app"), Err(BundleError::Path), "{path}");
    }
    assert_eq!(with("/app/policy.rego", "package app"), Err(BundleError::Path), "given twice");
    assert!(matches!(with("o.rego", "package other"), Err(BundleError::Roots { .. })));
    assert!(matches!(with("other/data.json", "{\"a\":1}"), Err(BundleError::Roots { .. })));
    // A slash within a name is no way into a root.
    let rooted = |path: &str, text: &str| {
        let manifest = br#"{"roots": ["app/v1"]}"#.to_vec();
        let files =
            vec![(".manifest".to_owned(), manifest), (path.to_owned(), text.as_bytes().to_vec())];
        Bundle::from_files(files, BundleLimits::default(), None)
    };
    assert!(rooted("a.rego", "package app.v1.x").is_ok());
    assert!(rooted("data.json", "{\"app\": {\"v1\": {\"a/b\": 1}}}").is_ok());
    for (path, text) in [
        ("a.rego", "package app[\"v1/x\"]"),
        ("a.rego", "package app"),
        ("data.json", "{\"app/v1\": 1}"),
        ("data.json", "{\"app\": {\"v1/x\": 1}}"),
    ] {
        assert!(matches!(rooted(path, text), Err(BundleError::Roots { .. })), "{text}");
    }
    for (path, text) in [("app/data.yaml", "a: 1"), ("app/p.wasm", ""), ("app/x/data.json", "{")] {
        assert!(matches!(with(path, text), Err(BundleError::File { .. })), "{path}");
    }
    let mut small = BundleLimits::default();
    small.files = 2;
    assert!(matches!(Bundle::from_files(good(), small, None), Err(BundleError::TooLarge { .. })));
    assert_eq!(
        Bundle::read(b"no archive", BundleLimits::default(), None),
        Err(BundleError::Archive)
    );
}
