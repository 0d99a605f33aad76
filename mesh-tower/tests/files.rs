//! Identity and policies from files that change under the mesh.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
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
    tokio::spawn(mesh.clone().keep_identity_fresh(files, POLL));

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
}
