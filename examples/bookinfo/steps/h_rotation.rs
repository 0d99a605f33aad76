//! H. Certificates, roots and policies change under load, and nobody notices.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::BoxError;
use crate::client::{self, Ask};
use crate::step::Table;
use crate::steps::e_require_token::REQUIRE_JWT;
use crate::world::World;

/// Requests in each step.
const REQUESTS: usize = 200;

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    world.clear_rego()?;
    world.apply(&[])?;
    leaf(world, table).await?;
    root(world, table).await?;
    policies(world, table).await
}

/// H1: a new certificate for details while a client reconnects for every request.
async fn leaf(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let page = world.connector("productpage")?;
    let mut failures = 0;
    let mut certificates = BTreeSet::new();
    for at in 0..REQUESTS {
        if at == REQUESTS / 2 {
            world.rotate_leaf("details")?;
        }
        match client::mesh(&page, "details", &Ask::get("/details/1")).await {
            Ok((reply, info)) if reply.status == 200 => {
                certificates.extend(info.peer().chain().first().map(|leaf| leaf.to_vec()));
            }
            _ => failures += 1,
        }
    }
    let observed = format!("{failures} failed, {} certificates", certificates.len());
    let what = format!("leaf replaced during {REQUESTS} requests");
    table.check("H1", what, observed, "0 failed, 2 certificates", "");
    Ok(())
}

/// H2: both roots trusted, then new leaves, then the old root removed.
async fn root(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let page = world.connector("productpage")?;
    let old_leaf = world.connector_with_old_identity("reviews")?;
    let mut failures = 0;
    for at in 0..REQUESTS {
        match at {
            20 => world.publish_new_root()?,
            80 => world.sign_with_new_root()?,
            140 => world.remove_old_root()?,
            _ => {}
        }
        let reply = client::mesh(&page, "details", &Ask::get("/details/1")).await;
        failures += usize::from(!reply.is_ok_and(|(reply, _)| reply.status == 200));
    }
    let refused = client::mesh(&old_leaf, "details", &Ask::get("/details/1")).await.is_err();
    let observed = format!("{failures} failed, old leaf {}", if refused { "out" } else { "in" });
    let what = format!("root replaced during {REQUESTS} requests");
    table.check("H2", what, observed, "0 failed, old leaf out", "");
    Ok(())
}

/// H3: two policy sets that contradict each other, swapped while requests come in.
async fn policies(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let address = world.address("details");
    let stop = Arc::new(tokio::sync::Notify::new());
    let asking = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            let mut statuses = BTreeSet::new();
            let mut count = 0_usize;
            let ask = Ask::get("/details/1");
            loop {
                tokio::select! {
                    () = stop.notified() => return (statuses, count),
                    reply = client::plain(address, &ask) => {
                        statuses.insert(reply.map_or(0, |reply| reply.status));
                        count += 1;
                    }
                }
            }
        }
    });
    for at in 0..REQUESTS {
        let sets: [&[(&str, &str)]; 2] = [&[], &[("require-jwt.yaml", REQUIRE_JWT)]];
        world.apply(sets[at % 2])?;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    stop.notify_one();
    let (statuses, count) = asking.await?;
    let one_version = world.events("details").generations_are_consistent();
    let only = statuses.iter().all(|status| matches!(status, 200 | 403));
    let observed = if only && one_version { "200 or 403" } else { "mixed" };
    let note = format!("{count} requests, {REQUESTS} swaps, saw {statuses:?}");
    table.check("H3", "policies swapped during requests", observed, "200 or 403", note);
    world.apply(&[])
}
