//! The example authority as a person uses it: its command line, its files, its sockets.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_tower::identity::{TrustBundle, X509Svid};
use mesh_tower::{Clock as _, IdentitySource as _, IdentityUpdate, IstioCa, SystemClock};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use serde_json::{Value, json};

const ID: &str = "spiffe://shop.example/ns/shop/sa/cart";

/// Where cargo has put the example, or puts it now if only this test was asked for.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test.parent().and_then(Path::parent).expect("in target/<profile>/deps");
    let program = folder.join("examples/mesh-ca");
    if !program.exists() {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "-p", "mesh-examples", "--example", "mesh-ca"]);
        assert!(cargo.status().expect("cargo runs").success());
    }
    program
}

fn mesh_ca(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().expect("the program runs")
}

fn good(arguments: &[&str]) -> String {
    let output = mesh_ca(arguments);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

fn bad(arguments: &[&str]) -> String {
    let output = mesh_ca(arguments);
    assert!(!output.status.success(), "{arguments:?} must fail");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-ca-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.0.join(name)).expect(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Ends with the test, whatever comes of it.
struct Served(Child, Value);

impl Served {
    fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(program());
        let command = command.arg("serve").args(arguments).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::null()).spawn().expect("the program runs");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("a line");
        Self(child, serde_json::from_str(&line).expect("a line of JSON"))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn openssl(folder: &Folder, arguments: &[&str]) -> Option<String> {
    let run = Command::new("openssl").args(arguments).current_dir(&folder.0).output().ok()?;
    let text = [run.stdout, run.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn help_has_examples_and_bad_flags_say_what_to_do() {
    let help = good(&["--help"]);
    for word in ["Examples:", "serve", "issue", "bundle", "jwt", "--workload uid:1000=spiffe://"] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
    assert!(good(&["serve", "--help"]).contains("--istio-listen"));
    let domain = ["--trust-domain", "shop.example"];
    let state = ["--state", "/nonexistent/ca.json"];
    for (arguments, want) in [
        (vec!["isue"], "'issue'"),
        (vec!["bundle"], "--trust-domain"),
        (vec!["bundle", "--trust-domain", "shop.example"], "--state"),
        (vec!["bundle", "--trust-domain", "Shop", "--state", "x"], "forbidden character"),
        ([&["bundle"][..], &domain, &state].concat(), "/nonexistent/ca.json: "),
        ([&["serve"][..], &domain, &state].concat(), "--socket"),
        (
            [
                &["serve", "--socket", "/x", "--workload", "uid:me=spiffe://a/b"][..],
                &domain,
                &state,
            ]
            .concat(),
            "uid:<number>",
        ),
        (
            [&["jwt", "--id", ID, "--audience", "x", "--ttl", "soon"][..], &domain, &state]
                .concat(),
            "write 90s, 30m, 12h or 1d",
        ),
    ] {
        let error = bad(&arguments);
        assert!(error.contains(want), "{arguments:?}: {want} is missing in {error}");
    }
}

#[test]
fn sec_ca_4_certificates_bundles_and_tokens_from_the_command_line() {
    let folder = Folder::new("issue");
    let (state, out) = (folder.path("ca.json"), folder.path("cart"));
    let log = folder.path("issued.jsonl");
    let authority = ["--trust-domain", "shop.example", "--state", &state, "--log", &log];
    good(&[&["issue", "--id", ID, "--out", &out, "--ttl", "2h"][..], &authority].concat());
    let [chain, key, roots] =
        ["cart/cert-chain.pem", "cart/key.pem", "cart/root-cert.pem"].map(|name| folder.read(name));
    let svid = X509Svid::from_pem(&chain, &key).expect("an SVID");
    assert_eq!(svid.id().as_str(), ID);
    let mode = fs::metadata(folder.path("cart/key.pem")).expect("a key").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let pem = good(&[&["bundle"][..], &authority].concat());
    assert_eq!(pem.as_bytes(), roots, "the authority is the same at the next start");
    let document = good(&[&["bundle", "--format", "spiffe"][..], &authority].concat());
    let domain = "shop.example".parse().expect("a name");
    let bundle = TrustBundle::from_json(domain, &document).expect("a bundle");
    assert_eq!((bundle.x509_authorities().len(), bundle.jwt_authorities().len()), (1, 1));

    if openssl(&folder, &["version"]).is_some() {
        for purpose in ["sslserver", "sslclient"] {
            let arguments = [
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-CAfile",
                "cart/root-cert.pem",
                "-untrusted",
                "cart/cert-chain.pem",
                "cart/cert-chain.pem",
            ];
            let answer = openssl(&folder, &arguments).unwrap_or_default();
            assert!(answer.contains("cart/cert-chain.pem: OK"), "{purpose}: {answer}");
        }
        // A request of openssl's own, whose subject counts for nothing.
        let request = [
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-keyout",
            "own.pem",
            "-out",
            "own.csr",
            "-subj",
            "/CN=admin",
        ];
        openssl(&folder, &request);
        let (csr, own) = (folder.path("own.csr"), folder.path("own"));
        good(&[&["issue", "--id", ID, "--out", &own, "--csr", &csr][..], &authority].concat());
        let svid = X509Svid::from_pem(&folder.read("own/cert-chain.pem"), &folder.read("own.pem"));
        assert_eq!(svid.expect("an SVID").id().as_str(), ID);
        assert!(!Path::new(&folder.path("own/key.pem")).exists(), "the key is the caller's");
    }

    let token = good(&[&["jwt", "--id", ID, "--audience", "bank"][..], &authority].concat());
    assert_eq!(token.trim().split('.').count(), 3);
    let foreign = ["issue", "--id", "spiffe://other.example/x", "--out", &out];
    assert!(bad(&[&foreign[..], &authority].concat()).contains("trust domain"));
    let lines = String::from_utf8(folder.read("issued.jsonl")).expect("text");
    let kinds: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["kind"].clone())
        .collect();
    assert!(kinds.len() >= 2 && kinds[0] == "x509" && kinds[kinds.len() - 1] == "jwt", "{lines}");
}

/// [SEC-CA-8] The program serves the user that runs this test, and nobody else can take its state.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ca_8_the_program_serves() {
    let folder = Folder::new("serve");
    let (state, socket) = (folder.path("ca.json"), folder.path("ca.sock"));
    let uid = fs::metadata(&folder.0).expect("a folder").uid();
    let workload = format!("uid:{uid}={ID}");
    let authority = ["--trust-domain", "shop.example", "--state", &state];
    let serve = [
        &authority[..],
        &["--socket", &socket, "--workload", &workload, "--ttl", "10m"],
        &["--istio-listen", "127.0.0.1:0", "--bundle-listen", "127.0.0.1:0"],
    ]
    .concat();
    let mut served = Served::start(&serve);
    let endpoint = served.1["socket"].as_str().expect("a socket").to_owned();
    assert_eq!(endpoint, format!("unix://{socket}"));
    for name in ["istio", "bundle"] {
        let address = served.1[name].as_str().expect("an address");
        assert!(std::net::TcpStream::connect(address).is_ok(), "{name}");
    }
    let api = mesh_tower::WorkloadApi::new(endpoint.parse().expect("an endpoint"));
    let mut contexts = api.x509_contexts();
    let mesh_tower::WorkloadApiUpdate::Taken(context) = contexts.next().await else {
        panic!("no identity")
    };
    assert_eq!(context.svids[0].svid.id().as_str(), ID);
    // Two processes on one state, or on one socket, are told so.
    let second = bad(&[&["bundle"][..], &authority].concat());
    assert!(second.contains("in use"), "{second}");
    let other = folder.path("other.json");
    let other = ["--trust-domain", "shop.example", "--state", &other, "--socket", &socket];
    let second = bad(&[&["serve"][..], &other].concat());
    assert!(second.contains("somebody listens"), "{second}");
    // It stops when it is told, and takes its socket with it.
    let pid = served.0.id().to_string();
    Command::new("kill").arg(&pid).status().expect("kill runs");
    assert!(served.0.wait().expect("it ends").success());
    assert!(!Path::new(&socket).exists());
}

/// A cluster's key for service account tokens.
struct Cluster(EcdsaKeyPair);

impl Cluster {
    const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

    fn new() -> Self {
        let (signing, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let key = EcdsaKeyPair::generate_pkcs8(signing, &random).expect("a key");
        Self(EcdsaKeyPair::from_pkcs8(signing, key.as_ref(), &random).expect("a key"))
    }

    fn jwks(&self) -> String {
        let (x, y) = self.0.public_key().as_ref()[1..].split_at(32);
        let [x, y] = [x, y].map(|half| URL_SAFE_NO_PAD.encode(half));
        let key = json!({ "kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y });
        json!({ "keys": [key] }).to_string()
    }

    fn token(&self) -> String {
        let now = SystemClock.now().as_secs();
        let claims = json!({
            "iss": Self::ISSUER, "aud": ["istio-ca"], "exp": now + 3600,
            "sub": "system:serviceaccount:shop:cart",
            "kubernetes.io": { "namespace": "shop", "serviceaccount": { "name": "cart" } },
        });
        let parts = [json!({ "alg": "ES256" }), claims];
        let signed = parts.map(|part| URL_SAFE_NO_PAD.encode(part.to_string())).join(".");
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).expect("a signature");
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

/// [SEC-CA-8] The cluster rotates the key of its tokens: the new one is believed, the old one no
/// longer, and a file that cannot be read changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ca_8_the_keys_of_callers_tokens_are_followed() {
    let folder = Folder::new("tokens");
    let (state, jwks) = (folder.path("ca.json"), folder.path("jwks.json"));
    let (roots, token) = (folder.path("root-cert.pem"), folder.path("token"));
    let (old, new) = (Cluster::new(), Cluster::new());
    let authority = ["--trust-domain", "shop.example", "--state", &state];
    fs::write(&roots, good(&[&["bundle"][..], &authority].concat())).expect("written");
    fs::write(&jwks, old.jwks()).expect("written");
    let tokens = ["--token-issuer", Cluster::ISSUER, "--token-jwks", &jwks];
    let served =
        Served::start(&[&authority[..], &["--istio-listen", "127.0.0.1:0"], &tokens].concat());
    let address = served.1["istio"].as_str().expect("an address").to_owned();
    let is_served = async |cluster: &Cluster| {
        fs::write(&token, cluster.token()).expect("written");
        let client = IstioCa::new(ID.parse().expect("an id"), &address).expect("an address");
        let mut source = client.roots_file(&roots).token_file(&token).source();
        matches!(source.next().await, IdentityUpdate::Identity(_))
    };
    assert!(is_served(&old).await);
    assert!(!is_served(&new).await, "a key of nobody's");

    fs::write(&jwks, "{").expect("written");
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(is_served(&old).await, "the keys in force stay");
    fs::write(&jwks, new.jwks()).expect("written");
    let begun = Instant::now();
    while !is_served(&new).await {
        assert!(begun.elapsed() < Duration::from_secs(30), "the new key is never believed");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(!is_served(&old).await, "the old key has left the set");
}
