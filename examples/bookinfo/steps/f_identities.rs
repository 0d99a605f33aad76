//! F. Policies about identity, and the path they judge.

use crate::BoxError;
use crate::client::{self, Ask};
use crate::step::Table;
use crate::steps::seen;
use crate::world::World;

const REVIEWS_ONLY: &str = include_str!("../policies/ratings-reviews-only.yaml");
/// The last policy of the section.
pub const READ_ONLY: &str = include_str!("../policies/ratings-read-only.yaml");

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    world.apply(&[("ratings.yaml", REVIEWS_ONLY)])?;
    let (page, reviews) = (world.connector("productpage")?, world.connector("reviews")?);
    let rating = || Ask::get("/ratings/0");
    let ratings = world.address("ratings");

    let reply = client::mesh(&reviews, "ratings", &rating()).await.map(|(reply, _)| reply);
    table.check("F1", "mesh(reviews) -> ratings", seen(&reply), "200", "");
    let reply = client::mesh(&page, "ratings", &rating()).await.map(|(reply, _)| reply);
    table.check("F2", "mesh(productpage) -> ratings", seen(&reply), "403", "");
    let reply = client::plain(ratings, &rating()).await;
    table.check("F3", "plain -> ratings", seen(&reply), "403", "no principal");

    let page_address = world.address("productpage");
    let reply = client::plain(page_address, &Ask::get("/api/v1/products/0/reviews")).await?;
    let stars = reply.body.contains("\"stars\"");
    let observed = if stars { reply.status.to_string() } else { "no stars".to_owned() };
    table.check("F4", "page API for reviews", observed, "200", "reviews is the direct caller");
    let reply = client::plain(page_address, &Ask::get("/api/v1/products/0/ratings")).await?;
    let sorry = reply.body.contains("Sorry, product ratings are currently unavailable");
    let observed = if sorry { reply.status.to_string() } else { reply.body };
    table.check("F5", "page API for ratings", observed, "403", "the page's own error text");

    let forged = "By=spiffe://cluster.local/ns/default/sa/bookinfo-ratings;\
        URI=spiffe://cluster.local/ns/default/sa/bookinfo-reviews";
    let ask = rating().with("x-forwarded-client-cert", forged);
    let reply = client::plain(ratings, &ask).await;
    table.check("F6", "plain, with the identity in a header", seen(&reply), "403", "");

    world.apply(&[("ratings.yaml", READ_ONLY)])?;
    let reply = client::mesh(&page, "ratings", &rating()).await.map(|(reply, _)| reply);
    let post = Ask::post("/ratings/0", "{}");
    let posted = client::mesh(&page, "ratings", &post).await.map(|(reply, _)| reply);
    let observed = format!("{} {}", seen(&reply), seen(&posted));
    table.check("F7", "mesh(productpage) GET, POST /ratings/0", observed, "200 403", "");

    paths(world, table).await
}

/// F8: what is sent, the path the handler sees, and the status. An empty path: not reached.
const PATHS: &[(&str, &str, u16)] = &[
    ("/ratings/%2e%2e/health", "", 403),
    ("/ratings/./0", "/ratings/0", 200),
    ("/ratings/%2E/0", "/ratings/0", 200),
    ("/a/../ratings/0", "/ratings/0", 200),
    ("/ratings\\0", "/ratings/0", 200),
    ("/%72atings/0", "/ratings/0", 200),
    ("//ratings/0", "", 403),
    // Admitted as one segment behind /ratings/; the service says that it is no number.
    ("/ratings/..%2fhealth", "/ratings/..%2fhealth", 400),
    ("/ratings/0;x=1", "/ratings/0;x=1", 400),
    ("/ratings/%00", "", 400),
];

async fn paths(world: &World, table: &mut Table) -> Result<(), BoxError> {
    let page = world.connector("productpage")?;
    let mut wrong = Vec::new();
    for (sent, handled, status) in PATHS {
        let before = world.diary("ratings").len();
        let reply = client::mesh(&page, "ratings", &Ask::get(*sent)).await?.0;
        let reached = world.diary("ratings").len() > before;
        let path = world.diary("ratings").last().filter(|_| reached).map(|seen| seen.path);
        if reply.status != *status || path.as_deref().unwrap_or_default() != *handled {
            wrong.push(format!("{sent}: {} as {path:?}", reply.status));
        }
    }
    let observed = if wrong.is_empty() { "as table" } else { "differs" };
    let note = if wrong.is_empty() { format!("{} paths", PATHS.len()) } else { wrong.join("; ") };
    table.check("F8", "paths: judged and handled in one form", observed, "as table", note);
    Ok(())
}
