//! C. Back to PERMISSIVE, and how several PeerAuthentications are joined.

use crate::BoxError;
use crate::client::{self, Ask};
use crate::step::Table;
use crate::steps::b_strict::STRICT;
use crate::steps::seen;
use crate::world::World;

const MESH_STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: istio-system }
spec: { mtls: { mode: STRICT } }
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default, namespace: default }
spec: { mtls: { mode: PERMISSIVE } }
";

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let address = world.address("details");
    let ask = Ask::get("/details/1");
    let page = world.connector("productpage")?;

    let permissive = STRICT.replace("STRICT", "PERMISSIVE");
    world.apply(&[("details.yaml", &permissive)])?;
    table.check(
        "C1",
        "plain -> details (PERMISSIVE)",
        seen(&client::plain(address, &ask).await),
        "200",
        "",
    );

    let reply = client::mesh(&page, "details", &ask).await.map(|(reply, _)| reply);
    let peer = world.diary("details").last().and_then(|seen| seen.peer).unwrap_or_default();
    table.check("C2", "mesh(productpage) -> details", seen(&reply), "200", format!("peer={peer}"));

    let anonymous = client::raw_tls(address, None, &ask).await;
    let observed = if anonymous.is_err() { "refused" } else { "let in" };
    table.check("C3", "TLS without a certificate -> details", observed, "refused", "");

    let disabled = STRICT.replace("STRICT", "DISABLE");
    world.apply(&[("details.yaml", &disabled)])?;
    table.check(
        "C4",
        "plain -> details (DISABLE)",
        seen(&client::plain(address, &ask).await),
        "200",
        "",
    );

    let port = address.port();
    let ports = format!("{STRICT}  portLevelMtls: {{ {port}: {{ mode: PERMISSIVE }} }}\n");
    world.apply(&[("details.yaml", &ports)])?;
    let reply = client::plain(address, &ask).await;
    table.check("C5", "plain -> details (STRICT, its port PERMISSIVE)", seen(&reply), "200", "");

    world.apply(&[("mesh.yaml", MESH_STRICT)])?;
    let reply = client::plain(address, &ask).await;
    table.check("C6", "plain -> details (mesh STRICT, namespace not)", seen(&reply), "200", "");
    Ok(())
}
