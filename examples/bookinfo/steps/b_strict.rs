//! B. STRICT on details: no certificate, no byte.

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::BoxError;
use crate::client::{self, Ask};
use crate::step::Table;
use crate::steps::seen;
use crate::world::{Flaw, World};

/// The one policy of the section.
pub const STRICT: &str = include_str!("../policies/details-strict.yaml");

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    // v1 and v1beta1 are one and the same: the whole section runs under both.
    let newer = STRICT.replace("security.istio.io/v1beta1", "security.istio.io/v1");
    let mut quiet = Table::quiet();
    world.apply(&[("details-strict.yaml", &newer)])?;
    section(world, &mut quiet).await?;
    world.apply(&[("details-strict.yaml", STRICT)])?;
    section(world, table).await?;
    if let Some(step) = quiet.steps().iter().find(|step| step.outcome == crate::Outcome::Fail) {
        return Err(format!("under apiVersion v1: {step}").into());
    }
    Ok(())
}

async fn section(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let address = world.address("details");
    let ask = Ask::get("/details/1");
    let page = world.connector("productpage")?;

    let reply = client::mesh(&page, "details", &ask).await.map(|(reply, _)| reply);
    table.check("B1", "mesh(productpage) -> details (STRICT)", seen(&reply), "200", "");

    let reset = client::plain(address, &ask).await;
    let observed = match reset.as_ref().map_err(std::io::Error::kind) {
        Err(ErrorKind::ConnectionReset) => "reset".to_owned(),
        _ => seen(&reset),
    };
    let url = format!("http://{address}/details/1");
    let (observed, note) = match client::curl(&[&url]).await {
        None => (observed, "curl is not installed".to_owned()),
        Some((56, code)) if code == "000" => (observed, "curl exits 56".to_owned()),
        Some((exit, code)) => (format!("curl {exit}"), format!("curl exits {exit}, code {code}")),
    };
    table.check("B2", "plain -> details (STRICT)", observed, "reset", note);

    let anonymous = client::raw_tls(address, None, &ask).await;
    let url = format!("https://{address}/details/1");
    let curl = client::curl(&["-k", &url]).await;
    let curl_ok = curl.as_ref().is_none_or(|(exit, _)| matches!(exit, 16 | 35 | 56));
    let observed = if anonymous.is_err() && curl_ok { "refused" } else { "let in" };
    let note =
        curl.map_or("curl is not installed".to_owned(), |(exit, _)| format!("curl exits {exit}"));
    table.check("B3", "TLS without a certificate -> details", observed, "refused", note);

    for (id, what, flaw) in [
        ("B4", "certificate without a URI SAN", Flaw::NoUri),
        ("B5", "certificate with two URI SANs", Flaw::TwoUris),
        ("B6", "expired certificate", Flaw::Expired),
    ] {
        let before = world.diary("details").len();
        let reply = client::raw_tls(address, Some(world.flawed(flaw)?), &ask).await;
        let refused = reply.is_err() && world.diary("details").len() == before;
        let note = reply.err().map(|error| error.to_string()).unwrap_or_default();
        table.check(id, what, if refused { "refused" } else { "let in" }, "refused", note);
    }

    let ratings = client::plain(world.address("ratings"), &Ask::get("/ratings/0")).await;
    table.check("B7", "plain -> ratings, which is not selected", seen(&ratings), "200", "");

    let api = Ask::get("/api/v1/products/0");
    let page_api = client::plain(world.address("productpage"), &api).await;
    table.check("B8", "page API for details, over the mesh", seen(&page_api), "200", "");

    silent(world, table).await
}

/// B9: who says nothing is shown out.
async fn silent(world: &World, table: &mut Table) -> Result<(), BoxError> {
    let mut stream = TcpStream::connect(world.address("details")).await?;
    let begun = Instant::now();
    let closed = tokio::time::timeout(Duration::from_secs(10), stream.read(&mut [0_u8; 1])).await;
    let observed = match closed {
        Ok(Ok(0) | Err(_)) => "closed",
        Ok(Ok(_)) => "answered",
        Err(_) => "left open",
    };
    let note = format!("after {} ms", begun.elapsed().as_millis());
    table.check("B9", "plain client that sends nothing", observed, "closed", note);
    Ok(())
}
