//! G. A Rego policy as OPA's Envoy plugin would decide, on verified claims only.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_tower::{DecisionLog, LogSink};
use serde_json::{Value, json};

use crate::BoxError;
use crate::client::{self, Ask, Reply};
use crate::step::Table;
use crate::steps::d_tokens::request_authentication;
use crate::tokens::signing_input;
use crate::world::World;

/// The module of the section.
pub const MODULE: &str = include_str!("../policies/bookinfo.rego");

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    let authentication = for_both(&request_authentication(&world.tokens().jwks()));
    world.apply(&[("jwt-example.yaml", &authentication)])?;
    world.set_rego(&["details", "ratings"], MODULE)?;
    let now = world.now();
    let token = |claims: Value| world.tokens().token(now, &claims);
    let alice = token(json!({ "role": "guest", "name": "alice" }))?;
    let bob = token(json!({ "role": "admin", "name": "bob" }))?;
    let other = token(json!({ "role": "other", "name": "carol" }))?;
    let book = || Ask::get("/details/1");
    let rate = |body: &str| Ask::post("/ratings/0", body);

    let reply = ask(world, "details", &book()).await?;
    let said = reply.body == "denied: no rule matched\n";
    let observed = if said { reply.status.to_string() } else { reply.body };
    table.check("G1", "no token, GET details", observed, "403", "denied: no rule matched");

    let reply = ask(world, "details", &book().bearer(&alice)).await?;
    table.check("G2", "guest, GET details", with_role(world, &reply), "200 guest", "");

    let reply = ask(world, "ratings", &rate("{\"Reviewer1\":3}").bearer(&alice)).await?;
    table.check("G3", "guest, POST ratings", reply.status, "403", "");

    let reply = ask(world, "details", &book().bearer(&bob)).await?;
    table.check("G4", "admin, GET details", with_role(world, &reply), "200 admin", "");

    let reply = ask(world, "ratings", &rate("{\"Reviewer1\":3}").bearer(&bob)).await?;
    let stored = ask(world, "ratings", &Ask::get("/ratings/0").bearer(&bob)).await?;
    let whole = stored.body.contains("{\"Reviewer1\":3}");
    let observed = if whole { reply.status.to_string() } else { stored.body };
    table.check("G5", "admin, POST ratings", observed, "200", "the handler got the whole body");

    let own = ask(world, "ratings", &rate("{\"bob\":5}").bearer(&bob)).await?.status;
    let hidden = ask(world, "ratings", &rate("{\"bob\":false}").bearer(&bob)).await?.status;
    table.check("G6", "admin rates own name", format!("{own} {hidden}"), "403 403", "");

    let reply = ask(world, "details", &book().bearer(&other)).await?;
    table.check("G7", "role other, GET details", reply.status, "403", "");

    let claimed = book().bearer(&alice).with("x-bookinfo-role", "admin");
    let reply = ask(world, "details", &claimed).await?;
    table.check("G8", "guest claims to be admin", with_role(world, &reply), "200 guest", "");

    let forged = json!({ "role": "admin", "name": "eve" });
    let forged = signing_input(&world.tokens().header(), &crate::tokens::claims(now, &forged));
    let forged = book().with("authorization", format!("bearer {forged}.AAAA"));
    let reply = ask(world, "details", &forged).await?;
    table.check("G9", "forged token after lower-case bearer", reply.status, "403", "");

    let large = format!("{{\"Reviewer1\":{}3}}", " ".repeat(70_000));
    let reply = ask(world, "ratings", &rate(&large).bearer(&bob)).await?;
    table.check("G10", "admin, body over the limit", reply.status, "403", "truncated_body");

    let before = world.diary("ratings").len();
    let reply = ask(world, "ratings", &rate("{\"Reviewer1\":").bearer(&bob)).await?;
    let reached = world.diary("ratings").len() > before;
    let observed = if reached { "reached".to_owned() } else { reply.status.to_string() };
    table.check("G11", "admin, body not JSON", observed, "400", "before evaluation");

    let mut refused = 0;
    for broken in ["package envoy.authz\nallow if {", &MODULE.replace("is_string(", "no_such(")] {
        refused += usize::from(world.set_rego(&["details", "ratings"], broken).is_err());
    }
    let reply = ask(world, "details", &book().bearer(&alice)).await?;
    let observed = format!("{refused} refused, {}", with_role(world, &reply));
    table.check(
        "G12",
        "broken modules",
        observed,
        "2 refused, 200 guest",
        "the last good one stays",
    );

    let undefined = "package envoy.authz\nimport rego.v1\nallow if input.nothing == 1\n";
    world.set_rego(&["details", "ratings"], undefined)?;
    let reply = ask(world, "details", &book().bearer(&alice)).await?;
    let detail = world.events("details").last_detail().unwrap_or_default();
    let known = detail.contains("undefined");
    let observed = if known { reply.status.to_string() } else { detail.clone() };
    table.check("G13", "result is undefined", observed, "403", detail);

    decision_log(world, table, &alice).await?;
    world.set_rego(&["details", "ratings"], MODULE)
}

/// G14: OPA's event for each decision, what was erased from it listed, and no token anywhere.
async fn decision_log(world: &World, table: &mut Table, token: &str) -> Result<(), BoxError> {
    let sink = Sink::default();
    let written = Arc::clone(&sink.0);
    let random = rustls::crypto::ring::default_provider().secure_random;
    let labels = [("app".to_owned(), "details".to_owned())];
    let log = DecisionLog::start(sink, labels, random, 64)?;
    world.set_logged_rego(&["details"], MODULE, Some(&log))?;
    let before = world.events("details").len();
    for _ in 0..3 {
        let asked = Ask::get("/details/1").bearer(token).with("cookie", "session=secret");
        ask(world, "details", &asked).await?;
    }
    let count = world.events("details").len().saturating_sub(before);
    while log.counts().written + log.counts().failed < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lines = written.lock().map(|lines| lines.clone()).unwrap_or_default();
    // The token was taken from the request when it was verified; the cookie is still there.
    let erased = "/input/attributes/request/http/headers/cookie";
    let masked = |line: &&Value| {
        line["erased"].as_array().is_some_and(|paths| paths.iter().any(|path| path == erased))
            && line["result"]["allowed"] == true
    };
    let masked = lines.iter().filter(masked).count();
    let shown = format!("{lines:?}{}", world.events("details").shown());
    let leaks = ["eyJ", "session=secret", token].iter().any(|secret| shown.contains(secret));
    let observed = if leaks { "leaks".to_owned() } else { format!("{masked} of {count} masked") };
    table.check("G14", "three decisions, logged", observed, "3 of 3 masked", "no token in them");
    Ok(())
}

/// Keeps the events of a decision log.
#[derive(Default)]
struct Sink(Arc<Mutex<Vec<Value>>>);

impl LogSink for Sink {
    fn write(&mut self, event: &Value) -> io::Result<()> {
        let lines = self.0.lock();
        lines.map_err(|_poisoned| io::ErrorKind::Other)?.push(event.clone());
        Ok(())
    }
}

async fn ask(world: &World, service: &str, ask: &Ask) -> Result<Reply, BoxError> {
    let page = world.connector("productpage")?;
    Ok(client::mesh(&page, service, ask).await?.0)
}

/// The status, and what the handler was told of the caller's role.
fn with_role(world: &World, reply: &Reply) -> String {
    let roles = world.diary("details").last().map(|seen| seen.roles.join(",")).unwrap_or_default();
    format!("{} {roles}", reply.status)
}

/// The policy without its selector: details and ratings verify tokens alike.
#[must_use]
pub fn for_both(authentication: &str) -> String {
    authentication.replace("  selector: { matchLabels: { app: details } }\n", "")
}
