//! Identity and policies from files that change under the mesh.

#![expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_ca::Authority;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload, X509Svid};
use mesh_tower::{Clock, FileError, IdentityFiles, Mesh, Policies, SystemClock};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use time::OffsetDateTime;

const POLL: Duration = Duration::from_millis(20);

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn authority() -> Authority {
    let home = "cluster.local".parse().unwrap();
    Authority::new_root(&home, Duration::from_secs(24 * 3600), SystemClock.now()).unwrap()
}

fn issue(authority: &Authority) -> X509Svid {
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    authority.issue_svid(&id, Duration::ZERO, SystemClock.now()).unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
}

/// Writes what an agent writes; the key readable by its owner only.
fn write(folder: &Path, svid: &X509Svid, authority: &Authority) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("cert-chain.pem"), pem("CERTIFICATE", &svid.chain()[0])).unwrap();
    write_key(folder, svid);
    fs::write(folder.join("root-cert.pem"), authority.certificate_pem()).unwrap();
}

fn write_key(folder: &Path, svid: &X509Svid) {
    let key = folder.join("key.pem");
    fs::write(&key, pem("PRIVATE KEY", svid.private_key().secret_der())).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
}

fn mesh(svid: Arc<X509Svid>, bundles: Arc<BundleSet>) -> Mesh {
    let settings = MeshSettings::new("cluster.local".parse().unwrap());
    Mesh::builder(Workload::new("shop"), settings).build(svid, bundles, Policies::none()).unwrap()
}

/// Waits until the mesh has taken a change, or says that it has not.
async fn changed(mesh: &Mesh, from: u64) -> bool {
    for _ in 0..100 {
        if mesh.generation() > from {
            return true;
        }
        tokio::time::sleep(POLL).await;
    }
    false
}

/// [SEC-ID-12]
#[test]
fn sec_id_12_a_key_that_others_can_read_is_refused() {
    let folder = Folder::new("readable");
    let authority = authority();
    write(&folder.0, &issue(&authority), &authority);
    let files = IdentityFiles::istio("cluster.local".parse().unwrap(), &folder.0);
    assert!(files.load().is_ok());
    let key = folder.0.join("key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(files.load(), Err(FileError::WorldReadable(_))));
    assert!(files.allow_world_readable_key().load().is_ok());
}

/// [SEC-OPS-2], [SEC-TLS-11]: a rotation in two steps, a half-written file, and Kubernetes' swap
/// of a symbolic link.
#[tokio::test]
async fn sec_ops_2_identity_files_rotate_and_bad_ones_change_nothing() {
    let folder = Folder::new("identity");
    let authority = authority();
    let (first, second, third) = (issue(&authority), issue(&authority), issue(&authority));
    write(&folder.0.join("1"), &first, &authority);
    symlink("1", folder.0.join("data")).unwrap();
    let data = folder.0.join("data");
    let files = IdentityFiles::istio("cluster.local".parse().unwrap(), &data);
    let (svid, bundles) = files.load().unwrap();
    let mesh = mesh(svid, bundles);
    tokio::spawn(mesh.clone().keep_identity_fresh(files.watch(POLL)));

    // The first look takes what is there already; from then on nothing changes by itself.
    assert!(changed(&mesh, 1).await);
    let settled = mesh.generation();

    // A key that does not belong to the certificate is normal for a moment.
    write_key(&data, &second);
    assert!(!changed(&mesh, settled).await, "a mismatched pair was taken");
    assert!(mesh.last_error().unwrap().contains("does not belong"));
    // A half-written certificate, too.
    let half = pem("CERTIFICATE", &second.chain()[0]);
    fs::write(data.join("cert-chain.pem"), half.get(..half.len() / 2).unwrap()).unwrap();
    assert!(!changed(&mesh, settled).await, "half a certificate was taken");
    fs::write(data.join("cert-chain.pem"), half).unwrap();
    assert!(changed(&mesh, settled).await, "the completed rotation was not taken");
    assert_eq!(mesh.last_error(), None);

    let settled = mesh.generation();
    write(&folder.0.join("2"), &third, &authority);
    symlink("2", folder.0.join("next")).unwrap();
    fs::rename(folder.0.join("next"), &data).unwrap();
    assert!(changed(&mesh, settled).await, "the swapped link was not seen");

    let settled = mesh.generation();
    fs::remove_file(&data).unwrap();
    assert!(!changed(&mesh, settled).await);
    assert!(mesh.last_error().is_some(), "that the files are gone can be seen");
}

/// A list of an authority that revokes this serial number.
fn list(issuer: &Issuer<'_, KeyPair>, number: u64, serial: u64) -> String {
    let now = i64::try_from(SystemClock.now().as_secs()).unwrap();
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
    let params = CertificateRevocationListParams {
        this_update: time(now - 60),
        next_update: time(now + 3600),
        crl_number: number.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: serial.into(),
            revocation_time: time(now - 30),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(issuer).unwrap().pem().unwrap()
}

/// [SEC-ID-14], [SEC-OPS-2] A file of revocation lists is read whole before it replaces the one in
/// force; half of one, none and an older one change nothing.
#[tokio::test]
async fn sec_id_14_a_file_of_lists_is_read_before_it_replaces() {
    let folder = Folder::new("lists");
    let authority = authority();
    write(&folder.0, &issue(&authority), &authority);
    // Only the certificate's names and key count for a list.
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let other = params.self_signed(&key).unwrap().pem();
    let roots = [authority.certificate_pem(), other].concat();
    fs::write(folder.0.join("root-cert.pem"), roots).unwrap();
    let issuer = Issuer::new(params, key);
    let crl = folder.0.join("ca-crl.pem");
    let files = IdentityFiles::istio("cluster.local".parse().unwrap(), &folder.0).with_crls(&crl);
    assert!(
        matches!(files.load(), Err(FileError::Io { .. })),
        "lists that are asked for and not there"
    );
    fs::write(&crl, list(&issuer, 2, 7)).unwrap();
    let (svid, bundles) = files.load().unwrap();
    assert!(bundles.get("cluster.local").unwrap().crls().is_some());
    let mesh = mesh(svid, bundles);
    tokio::spawn(mesh.clone().keep_identity_fresh(files.watch(POLL)));
    assert!(changed(&mesh, 1).await);
    let settled = mesh.generation();
    let newer = list(&issuer, 3, 8);
    let older = list(&issuer, 1, 8);
    for bad in [newer.get(..newer.len() / 2).unwrap(), "", "garbage", &older] {
        fs::write(&crl, bad).unwrap();
        assert!(!changed(&mesh, settled).await, "{bad:?} was taken");
        assert!(mesh.last_error().is_some(), "{bad:?}");
    }
    fs::write(&crl, &newer).unwrap();
    assert!(changed(&mesh, settled).await, "a newer list was not taken");
    assert_eq!(mesh.last_error(), None);
}

const POLICY: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: one}
spec: {mtls: {mode: STRICT}}
";

/// [SEC-OPS-2], [SEC-AUTHZ-9]: all files of a folder or none of them.
#[tokio::test]
async fn sec_authz_9_policy_files_are_taken_together_or_not_at_all() {
    let folder = Folder::new("policies");
    let authority = authority();
    let bundles = Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap());
    let mesh = mesh(Arc::new(issue(&authority)), bundles);
    fs::write(folder.0.join("one.yaml"), POLICY).unwrap();
    fs::write(folder.0.join(".hidden.yaml"), "not: a policy").unwrap();
    fs::write(folder.0.join("notes.txt"), "not a policy").unwrap();
    let follow = mesh.clone().keep_policies_fresh(folder.0.clone(), "shop".to_owned(), POLL);
    tokio::spawn(follow);
    assert!(changed(&mesh, 1).await);

    let settled = mesh.generation();
    fs::write(folder.0.join("two.yaml"), POLICY.replace("one", "two").replace("mtls", "mtlls"))
        .unwrap();
    assert!(!changed(&mesh, settled).await, "a set with a bad file was taken");
    assert!(mesh.last_error().unwrap().contains("two.yaml"));

    fs::write(folder.0.join("two.yaml"), POLICY.replace("one", "two")).unwrap();
    assert!(changed(&mesh, settled).await, "the corrected set was not taken");

    let settled = mesh.generation();
    fs::remove_file(folder.0.join("one.yaml")).unwrap();
    assert!(changed(&mesh, settled).await, "a removed file was not noticed");
    let settled = mesh.generation();
    fs::remove_file(folder.0.join("two.yaml")).unwrap();
    assert!(!changed(&mesh, settled).await, "an empty folder opened the mesh");
    assert!(mesh.last_error().unwrap().contains("no file ends in"));
    fs::write(folder.0.join("two.yaml"), POLICY.replace("one", "two")).unwrap();
    assert!(changed(&mesh, settled).await, "what came back as it was is still called missing");
    assert_eq!(mesh.last_error(), None);
}

/// Istio's and GKE's names, and the file that proxyless gRPC is told of (interfaces 2.6, 2.7).
#[test]
fn identity_is_found_where_istio_and_gke_put_it() {
    let (folder, authority) = (Folder::new("layouts"), authority());
    let home = || "cluster.local".parse().unwrap();
    let svid = issue(&authority);
    let (istio, gke) = (folder.0.join("istio"), folder.0.join("gke"));
    let missing = IdentityFiles::discover_in(&home(), &[istio.clone(), gke.clone()]);
    assert!(matches!(missing, Err(FileError::NotFound { folders }) if folders.len() == 2));
    write(&istio, &svid, &authority);
    fs::create_dir_all(&gke).unwrap();
    for (from, to) in [
        ("cert-chain.pem", "certificates.pem"),
        ("key.pem", "private_key.pem"),
        ("root-cert.pem", "ca_certificates.pem"),
    ] {
        fs::copy(istio.join(from), gke.join(to)).unwrap();
    }
    for place in [&istio, &gke] {
        let files = IdentityFiles::discover_in(&home(), &[folder.0.clone(), place.clone()]);
        assert_eq!(files.unwrap().load().unwrap().0.id(), svid.id());
    }
    let path = folder.0.join("grpc-bootstrap.json");
    let bootstrap = |text: &str| {
        fs::write(&path, text).unwrap();
        IdentityFiles::from_bootstrap(home(), &path).and_then(|files| files.load())
    };
    let provider = format!(
        r#"{{"plugin_name": "file_watcher", "config": {{
            "certificate_file": "{0}/cert-chain.pem", "private_key_file": "{0}/key.pem",
            "ca_certificate_file": "{0}/root-cert.pem", "refresh_interval": "900s"}}}}"#,
        istio.display()
    );
    for name in ["default", "other"] {
        let text = format!(r#"{{"certificate_providers": {{"{name}": {provider}}}}}"#);
        assert_eq!(bootstrap(&text).unwrap().0.id(), svid.id());
    }
    let two = format!(r#"{{"certificate_providers": {{"a": {provider}, "b": {provider}}}}}"#);
    let no_key = provider.replace("private_key_file", "key_file");
    let no_key = format!(r#"{{"certificate_providers": {{"default": {no_key}}}}}"#);
    for (text, want) in [
        ("", "not a JSON document"),
        ("{}", "no certificate_providers"),
        (two.as_str(), "nor a single other"),
        (no_key.as_str(), "no private_key_file"),
    ] {
        let error = bootstrap(text).unwrap_err().to_string();
        assert!(error.contains(want) && error.contains("grpc-bootstrap.json"), "{error}");
    }
}

/// [SEC-OPS-2] Each way in which a file can be bad leaves the last good in force and is seen within
/// a second; the good one is taken afterwards.
#[tokio::test]
async fn sec_ops_2_each_bad_file_leaves_the_last_good_in_force() {
    let (folder, authority) = (Folder::new("bad"), authority());
    let other = self::authority();
    write(&folder.0, &issue(&authority), &authority);
    let files = IdentityFiles::istio("cluster.local".parse().unwrap(), &folder.0);
    let settings = MeshSettings::new("cluster.local".parse().unwrap());
    let mesh = Mesh::builder(Workload::new("shop"), settings);
    let mesh = mesh.start(files.watch(POLL), Policies::none()).await.unwrap();
    for name in ["cert-chain.pem", "key.pem", "root-cert.pem"] {
        let path = folder.0.join(name);
        let good = fs::read(&path).unwrap();
        let stranger = match name {
            "cert-chain.pem" => pem("CERTIFICATE", &issue(&other).chain()[0]).into_bytes(),
            "key.pem" => pem("PRIVATE KEY", issue(&other).private_key().secret_der()).into_bytes(),
            _ => b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_vec(),
        };
        let bad: [(&str, Option<Vec<u8>>); 5] = [
            ("garbage", Some(vec![0xff; 1000])),
            ("empty", Some(Vec::new())),
            ("truncated", Some(good[..good.len() / 2].to_vec())),
            ("another's", Some(stranger)),
            ("gone", None),
        ];
        for (what, bytes) in bad {
            let before = mesh.generation();
            match bytes {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let seen = tokio::time::timeout(Duration::from_secs(5), async {
                while mesh.identity_error().is_none() {
                    tokio::time::sleep(POLL).await;
                }
            });
            assert!(seen.await.is_ok(), "{name}, {what}: not seen");
            assert_eq!(mesh.generation(), before, "{name}, {what}: taken");
            fs::write(&path, &good).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            let again = tokio::time::timeout(Duration::from_secs(5), async {
                while mesh.identity_error().is_some() {
                    tokio::time::sleep(POLL).await;
                }
            });
            assert!(again.await.is_ok(), "{name}, {what}: {:?}", mesh.identity_error());
        }
    }
}
