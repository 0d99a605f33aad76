//! A. No policies: PERMISSIVE, everybody is let in, and every mesh connection has two identities.

use mesh_tower::ConnectError;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use serde_json::Value;

use crate::BoxError;
use crate::client::{self, Ask, Reply};
use crate::step::Table;
use crate::steps::seen;
use crate::world::World;

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    world.apply(&[])?;
    let page = world.connector("productpage")?;

    let reply = client::mesh(&page, "details", &Ask::get("/details/1")).await;
    let peer = world.diary("details").last().and_then(|seen| seen.peer).unwrap_or_default();
    let ok = reply.as_ref().is_ok_and(|(reply, _)| is_the_book(reply));
    let known = peer == "spiffe://cluster.local/ns/default/sa/bookinfo-productpage";
    let observed = if ok && known { "200" } else { "wrong" };
    table.check("A1", "mesh(productpage) -> details", observed, "200", format!("peer={peer}"));

    let plain = client::plain(world.address("details"), &Ask::get("/details/1")).await;
    let peer = world.diary("details").last().and_then(|seen| seen.peer);
    let note = format!("peer={}", peer.as_deref().unwrap_or("none"));
    let observed = if peer.is_none() { seen(&plain) } else { "identity".to_owned() };
    table.check("A2", "plain -> details", observed, "200", note);

    three_hops(world, table).await;

    let before = world.diary("details").len();
    let wrong = world.identity("bookinfo-ratings")?;
    let page_mesh = world.mesh("productpage").clone();
    let fooled = mesh_tower::Connector::new(page_mesh)
        .service("details", world.address("details"), &ExpectedServer::exact(wrong))
        .protocol(ClientProtocol::Http1);
    let error = client::mesh(&fooled, "details", &Ask::get("/details/1")).await.err();
    let text = error.as_ref().map(full_text).unwrap_or_default();
    let names_both = text.contains("sa/bookinfo-details") && text.contains("sa/bookinfo-ratings");
    let in_client = error.as_ref().and_then(client::connect_error);
    let in_client = matches!(in_client, Some(ConnectError::Tls(_) | ConnectError::Server(_)));
    let untouched = world.diary("details").len() == before;
    let observed = if names_both && in_client && untouched { "refused" } else { "wrong" };
    table.check("A4", "expects ratings, dials details", observed, "refused", text);

    let before = world.diary("details").len();
    let mallory = world.mallory_connector()?;
    let reply = client::mesh(&mallory, "details", &Ask::get("/details/1")).await;
    let untouched = world.diary("details").len() == before;
    let observed = if reply.is_err() && untouched { "refused" } else { "let in" };
    let note = reply.err().as_ref().map(full_text).unwrap_or_default();
    table.check("A5", "mesh(mallory of evil.example) -> details", observed, "refused", note);

    let info = client::mesh(&page, "details", &Ask::get("/details/1")).await?.1;
    let alpn = String::from_utf8_lossy(info.alpn().unwrap_or_default()).into_owned();
    let version = info.version().map(|version| format!("{version:?}")).unwrap_or_default();
    let good = version == "TLSv1_3" && matches!(alpn.as_str(), "h2" | "http/1.1");
    let observed = if good { version.as_str() } else { "wrong" };
    table.check("A6", "what the handshake agreed on", observed, "TLSv1_3", format!("alpn={alpn}"));
    Ok(())
}

/// A3: the page's three APIs, each hop with the caller's own identity.
async fn three_hops(world: &World, table: &mut Table) {
    let address = world.address("productpage");
    let mut statuses = Vec::new();
    for api in ["", "/reviews", "/ratings"] {
        let ask = Ask::get(format!("/api/v1/products/0{api}"));
        statuses.push(seen(&client::plain(address, &ask).await));
    }
    let caller =
        |service: &str| world.diary(service).last().and_then(|seen| seen.peer).unwrap_or_default();
    let callers = [caller("details"), caller("reviews"), caller("ratings")];
    let own = callers.iter().all(|caller| caller.ends_with("sa/bookinfo-productpage"));
    // The last call to ratings was the page's own; the one before came through reviews.
    let observed = if own { statuses.join(" ") } else { "identities".to_owned() };
    table.check("A3", "page API: details, reviews, ratings", observed, "200 200 200", "three hops");
}

fn is_the_book(reply: &Reply) -> bool {
    let body: Value = serde_json::from_str(&reply.body).unwrap_or_default();
    reply.status == 200
        && body["author"] == "William Shakespeare"
        && body["ISBN-13"] == "123-1234567890"
}

/// An error with its sources.
pub(super) fn full_text(error: &BoxError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}
