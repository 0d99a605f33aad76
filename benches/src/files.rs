//! Identities in a folder, for measurements whose processes must share one authority.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::{BundleSet, MeshSettings, TrustBundle, Workload, X509Svid};
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::{Connector, Limits, Mesh, Policies};

use crate::service::{Silent, World, key_set, token};

/// Writes the identities `server` and `web`, their root, a token and its issuer's keys.
pub fn write_identities(dir: &Path) {
    let world = World::default();
    fs::write(dir.join("root.pem"), world.root_pem()).unwrap();
    fs::write(dir.join("token"), token()).unwrap();
    fs::write(dir.join("jwks.json"), key_set()).unwrap();
    for account in ["server", "web"] {
        let svid = world.svid(account);
        let chain: String = svid.chain().iter().map(|one| pem("CERTIFICATE", one)).collect();
        fs::write(dir.join(format!("{account}.pem")), chain).unwrap();
        let key = pem("PRIVATE KEY", svid.private_key().secret_der());
        fs::write(dir.join(format!("{account}.key")), key).unwrap();
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines = text.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap());
    let lines: Vec<&str> = lines.collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// The token that was written.
#[must_use]
pub fn read_token(dir: &Path) -> String {
    fs::read_to_string(dir.join("token")).unwrap()
}

/// A mesh of the workload `account`.
#[must_use]
pub fn mesh(dir: &Path, account: &str, policies: Policies, limits: Limits) -> Mesh {
    let read = |name: String| fs::read(dir.join(name)).unwrap();
    let home = "cluster.local".parse().unwrap();
    let bundle = TrustBundle::from_pem(home, &read("root.pem".to_owned())).unwrap();
    let bundles = Arc::new(BundleSet::from_bundles([bundle]).unwrap());
    let (chain, key) = (read(format!("{account}.pem")), read(format!("{account}.key")));
    let svid = Arc::new(X509Svid::from_pem(&chain, &key).unwrap());
    let settings = MeshSettings::new("cluster.local".parse().unwrap());
    let builder = Mesh::builder(Workload::new("shop"), settings).observer(Arc::new(Silent));
    builder.limits(limits).build(svid, bundles, policies).unwrap()
}

/// Connects as a workload to a service with the identity `server`. Sessions belong to it: a new one
/// resumes none.
#[must_use]
pub fn connector(mesh: &Mesh, address: SocketAddr) -> Connector {
    Connector::new(mesh.clone())
        .service("server", address, &ExpectedServer::exact(World::id("server")))
        .protocol(ClientProtocol::Http1)
}
