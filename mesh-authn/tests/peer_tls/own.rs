//! The own certificate and key ([SEC-ID-12]).

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use mesh_authn::peer::{ClientTls, ExpectedServer, ServerTls, TlsError};
use mesh_identity::{SvidLoadError, X509Svid};
use rustls::crypto::{CryptoProvider, KeyProvider};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{Signer, SigningKey};
use rustls::{SignatureAlgorithm, SignatureScheme};
use serde_json::Value;

use crate::mint::{CLIENT, Ca, SERVER, clock, leaf_params, provider};

/// Both builders, which must agree.
fn build(svid: &Arc<X509Svid>, provider: &Arc<CryptoProvider>) -> Result<(), TlsError> {
    let trust = || Ca::new().trust();
    let server = ServerTls::builder(Arc::clone(provider), clock());
    let server = server.identity(Arc::clone(svid)).trust(trust()).build().map(drop);
    let client = ClientTls::builder(Arc::clone(provider), clock()).identity(Arc::clone(svid));
    let expected = ExpectedServer::exact(SERVER.parse().unwrap());
    let client = client.trust(trust()).expect_server(expected).build().map(drop);
    assert_eq!(server, client);
    server
}

#[test]
fn sec_id_12_a_key_that_does_not_belong_is_refused_on_building() {
    let ca = Ca::new();
    let (leaf, other) = (ca.leaf(&leaf_params(CLIENT)), ca.leaf(&leaf_params(CLIENT)));
    let key = PrivatePkcs8KeyDer::from(other.key.serialized_der());
    let mixed = Arc::new(X509Svid::from_der(leaf.chain.clone(), &key).unwrap());
    assert_eq!(build(&mixed, &provider()), Err(TlsError::KeyMismatch));
    let garbage = PrivatePkcs8KeyDer::from(b"s3cret garbage".to_vec());
    let garbage = Arc::new(X509Svid::from_der(leaf.chain.clone(), &garbage).unwrap());
    let error = build(&garbage, &provider()).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
    assert_eq!(build(&leaf.svid(), &provider()), Ok(()));
}

/// A provider whose keys do not show their public half: rustls alone would let any pair pass.
#[test]
fn sec_id_12_a_key_that_cannot_be_compared_is_refused() {
    #[derive(Debug)]
    struct Opaque(Arc<dyn SigningKey>);

    impl SigningKey for Opaque {
        fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
            self.0.choose_scheme(offered)
        }

        fn algorithm(&self) -> SignatureAlgorithm {
            self.0.algorithm()
        }
    }

    #[derive(Debug)]
    struct OpaqueKeys;

    impl KeyProvider for OpaqueKeys {
        fn load_private_key(
            &self,
            key: PrivateKeyDer<'static>,
        ) -> Result<Arc<dyn SigningKey>, rustls::Error> {
            Ok(Arc::new(Opaque(provider().key_provider.load_private_key(key)?)))
        }
    }

    let mut opaque = rustls::crypto::ring::default_provider();
    opaque.key_provider = &OpaqueKeys;
    let svid = Ca::new().svid(CLIENT);
    assert_eq!(build(&svid, &Arc::new(opaque)), Err(TlsError::KeyMismatch));
}

#[test]
fn sec_id_12_debug_shows_no_key() {
    let ca = Ca::new();
    let leaf = ca.leaf(&leaf_params(SERVER));
    let server = ca.server_as(leaf.svid(), true);
    let builder = ServerTls::builder(provider(), clock()).identity(leaf.svid());
    let client = ClientTls::builder(provider(), clock()).identity(leaf.svid());
    // The private scalar of a PKCS#8 P-256 key begins at byte 36.
    let secret = &leaf.key.serialized_der()[36..68];
    for shown in [
        format!("{server:?}"),
        format!("{:?}", server.config()),
        format!("{builder:?}"),
        format!("{client:?}"),
    ] {
        let numbers = format!("{:?}", &secret[..4]).replace(['[', ']'], "");
        assert!(!shown.contains(&numbers), "{shown}");
        let hex = format!("{:02x?}", &secret[..4]).replace(['[', ']', ',', ' '], "");
        assert!(!shown.to_lowercase().contains(&hex), "{shown}");
    }
}

/// go-spiffe's table of chains and keys to load, to the end where the key is used.
#[test]
fn sec_id_12_table_of_svids_to_load() {
    let root = std::env::var_os("MESH_THIRD_PARTY").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/third-party"),
        PathBuf::from,
    );
    let Ok(text) = std::fs::read_to_string(root.join("spiffe/x509svid_parse.json")) else {
        eprintln!("SKIPPED: x509svid_parse.json is not there; set MESH_THIRD_PARTY to its folder");
        return;
    };
    let table: Value = serde_json::from_str(&text).unwrap();
    let cases = table["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 18);
    for case in cases {
        let text = |name: &str| case[name].as_str().unwrap().as_bytes();
        let svid = X509Svid::from_pem(text("certs_pem"), text("key_pem"));
        let good = svid.is_ok_and(|svid| build(&Arc::new(svid), &provider()).is_ok());
        assert_eq!(good, case["valid"] == true, "{}", case["name"]);
    }
}

/// Keys as agents and openssl write them: the same key in SEC 1 is the same identity.
#[test]
fn sec_id_12_keys_of_every_form() {
    let openssl = |args: &[&str], input: &[u8]| {
        let mut run = Command::new("openssl")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        run.stdin.take().unwrap().write_all(input).unwrap();
        let done = run.wait_with_output().unwrap();
        assert!(done.status.success(), "{args:?}");
        done.stdout
    };
    if Command::new("openssl").arg("version").output().is_err() {
        eprintln!("SKIPPED: there is no openssl to rewrite keys");
        return;
    }
    let ca = Ca::new();
    let leaf = ca.leaf(&leaf_params(CLIENT));
    let chain = openssl(&["x509", "-inform", "DER"], &leaf.chain[0]);
    let pkcs8 = openssl(&["pkey", "-inform", "DER"], leaf.key.serialized_der());
    assert!(pkcs8.starts_with(b"-----BEGIN PRIVATE KEY-----"));
    let sec1 = openssl(&["pkey", "-traditional"], &pkcs8);
    assert!(sec1.starts_with(b"-----BEGIN EC PRIVATE KEY-----"));
    for key in [&pkcs8, &sec1] {
        let svid = Arc::new(X509Svid::from_pem(&chain, key).unwrap());
        assert_eq!(build(&svid, &provider()), Ok(()));
    }
    let rsa = openssl(&["genrsa", "-traditional", "2048"], b"");
    assert!(rsa.starts_with(b"-----BEGIN RSA PRIVATE KEY-----"));
    let other = Arc::new(X509Svid::from_pem(&chain, &rsa).unwrap());
    assert_eq!(build(&other, &provider()), Err(TlsError::KeyMismatch));
    let encrypted =
        openssl(&["pkcs8", "-topk8", "-passout", "pass:secret", "-v2", "aes-256-cbc"], &pkcs8);
    let got = X509Svid::from_pem(&chain, &encrypted).map(drop);
    assert_eq!(got, Err(SvidLoadError::NoKey));
}
