//! E. AuthorizationPolicy: no token, no book.

use serde_json::json;

use crate::BoxError;
use crate::client::{self, Ask, Reply};
use crate::step::Table;
use crate::steps::d_tokens::request_authentication;
use crate::steps::seen;
use crate::world::World;

/// Who must be named by a token.
pub const REQUIRE_JWT: &str = include_str!("../policies/require-jwt.yaml");
const DENY_POST: &str = include_str!("../policies/deny-post.yaml");
const ALLOW_NOTHING: &str = include_str!("../policies/allow-nothing.yaml");

/// What Envoy's access log says when no ALLOW rule matched.
const NO_RULE: &str = "rbac_access_denied_matched_policy[none]";

/// Runs the section; it leaves the first policy in force.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let authentication = request_authentication(&world.tokens().jwks());
    let authentication = ("jwt-example.yaml", authentication.as_str());
    world.apply(&[authentication, ("require-jwt.yaml", REQUIRE_JWT)])?;
    let now = world.now();
    let token = world.tokens().token(now, &json!({}))?;
    let other = world.tokens().token(now, &json!({ "sub": "somebody" }))?;
    let nobody = world.tokens().token(now, &json!({ "sub": null }))?;
    let get = || Ask::get("/details/1");

    let (reply, detail) = ask(world, &get()).await?;
    world.print_access_log("E1");
    table.check("E1", "no token", refusal(&reply, &detail, NO_RULE), "403", detail);

    let (reply, _) = ask(world, &get().bearer(&token)).await?;
    let rule = world.events("details").last_rule().unwrap_or_default();
    let right = rule == "ns[default]-policy[require-jwt]-rule[0]";
    let observed = if right { reply.status.to_string() } else { "wrong rule".to_owned() };
    table.check("E2", "T", observed, "200", format!("allowed by {rule}"));

    let (reply, detail) = ask(world, &get().bearer(&other)).await?;
    table.check("E3", "valid token, other sub", refusal(&reply, &detail, NO_RULE), "403", detail);

    let (reply, detail) = ask(world, &get().bearer(&nobody)).await?;
    table.check("E4", "valid token without sub", refusal(&reply, &detail, NO_RULE), "403", detail);

    let (reply, detail) = ask(world, &get().bearer(&format!("{token}x"))).await?;
    let asked = detail.contains("rbac");
    let observed = if asked { "policy asked".to_owned() } else { reply.status.to_string() };
    table.check("E5", "bad token: authentication answers first", observed, "401", reply.body);

    let ratings = client::plain(world.address("ratings"), &Ask::get("/ratings/0")).await;
    table.check("E6", "no token -> ratings, which is not selected", seen(&ratings), "200", "");

    let api = || Ask::get("/api/v1/products/0");
    let page = client::plain(world.address("productpage"), &api()).await?;
    let sorry = page.body.contains("Sorry, product details are currently unavailable");
    let observed = if sorry { page.status.to_string() } else { page.body };
    table.check("E7", "page API without token", observed, "403", "the page's own error text");

    let page = client::plain(world.address("productpage"), &api().bearer(&token)).await;
    table.check("E8", "page API with token", seen(&page), "200", "the page forwards the header");

    let with_deny = [authentication, ("require-jwt.yaml", REQUIRE_JWT), ("deny.yaml", DENY_POST)];
    world.apply(&with_deny)?;
    let want = "rbac_access_denied_matched_policy[ns[default]-policy[deny-post]-rule[0]]";
    let (reply, detail) = ask(world, &Ask::post("/details/1", "{}").bearer(&token)).await?;
    table.check("E9", "T, POST under deny-post", refusal(&reply, &detail, want), "403", detail);
    let (reply, _) = ask(world, &get().bearer(&token)).await?;
    table.check("E10", "T, GET under deny-post", reply.status, "200", "");

    world.apply(&[authentication, ("allow-nothing.yaml", ALLOW_NOTHING)])?;
    let (reply, detail) = ask(world, &get().bearer(&token)).await?;
    table.check("E11", "T, policy without rules", refusal(&reply, &detail, NO_RULE), "403", detail);

    let dry_run = REQUIRE_JWT.replace(
        "namespace: default }",
        "namespace: default, annotations: { istio.io/dry-run: \"true\" } }",
    );
    world.apply(&[authentication, ("require-jwt.yaml", &dry_run)])?;
    let before = world.mesh("details").telemetry().shadow_denied();
    let (reply, _) = ask(world, &get()).await?;
    let counted = world.mesh("details").telemetry().shadow_denied() > before;
    let logged = world.events("details").last_dry_run_allow() == Some(false);
    let observed = if counted && logged { reply.status.to_string() } else { "unseen".to_owned() };
    table.check("E12", "no token, require-jwt as dry run", observed, "200", "shadow denial seen");

    world.apply(&[authentication, ("require-jwt.yaml", REQUIRE_JWT)])
}

/// Asks details over the mesh; the answer and the detail that was logged for it.
async fn ask(world: &World, ask: &Ask) -> Result<(Reply, String), BoxError> {
    let page = world.connector("productpage")?;
    let reply = client::mesh(&page, "details", ask).await?.0;
    Ok((reply, world.events("details").last_detail().unwrap_or_default()))
}

/// The status of a refusal that has Envoy's body and detail; what differs otherwise.
fn refusal(reply: &Reply, detail: &str, want: &str) -> String {
    let envoy = reply.body == "RBAC: access denied"
        && reply.header("content-type") == Some("text/plain")
        && reply.header("content-length") == Some("19")
        && detail == want;
    if envoy { reply.status.to_string() } else { format!("{} {detail}", reply.status) }
}
