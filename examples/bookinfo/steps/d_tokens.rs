//! D. RequestAuthentication: tokens are checked where they are, and demanded nowhere yet.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mesh_tower::Connector;
use ring::hmac;
use serde_json::json;
use tokio::net::TcpListener;

use crate::BoxError;
use crate::client::{self, Ask, Reply};
use crate::step::Table;
use crate::tokens::{claims, signing_input};
use crate::world::World;

/// The policy of the section, for a key set.
#[must_use]
pub fn request_authentication(jwks: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{ name: jwt-example, namespace: default }}
spec:
  selector: {{ matchLabels: {{ app: details }} }}
  jwtRules:
  - issuer: testing@secure.istio.io
    jwks: '{jwks}'
"
    )
}

/// One row of the table: an id, how the request carries its token, and what comes back.
struct Row {
    id: &'static str,
    what: &'static str,
    asks: Vec<(Ask, u16, &'static str)>,
}

impl Row {
    fn one(
        id: &'static str,
        what: &'static str,
        ask: Ask,
        status: u16,
        body: &'static str,
    ) -> Self {
        Self { id, what, asks: vec![(ask, status, body)] }
    }
}

const NO_KEY: &str = "Jwks doesn't have key to match kid or alg from Jwt";
const BAD_HEADER: &str = "Jwt header is an invalid Base64url encoded";
const BAD_SIGNATURE: &str = "Jwt signature is an invalid Base64url encoded";
const BAD_FORM: &str =
    "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";

/// Runs the section.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run(world: &mut World, table: &mut Table) -> Result<(), BoxError> {
    world.apply(&[("jwt-example.yaml", &request_authentication(&world.tokens().jwks()))])?;
    let page = world.connector("productpage")?;
    for row in rows(world)? {
        if row.id == "D7" {
            keys_by_url(world, table, &page).await?;
            continue;
        }
        let mut observed = Vec::new();
        let mut expected = Vec::new();
        let mut note = String::new();
        for (ask, status, body) in &row.asks {
            let over_mesh = client::mesh(&page, "details", ask).await?.0;
            let plain = client::plain(world.address("details"), ask).await?;
            observed.push(shown(&over_mesh, &plain, *status, body));
            expected.push(status.to_string());
            if note.is_empty() {
                (*body).clone_into(&mut note);
            }
        }
        table.check(row.id, row.what, observed.join(" "), expected.join(" "), note);
    }
    Ok(())
}

/// D7: the keys come from a server, which is asked once for many requests.
async fn keys_by_url(
    world: &mut World,
    table: &mut Table,
    page: &Connector,
) -> Result<(), BoxError> {
    let asked = Arc::new(AtomicUsize::new(0));
    let route = get({
        let (asked, jwks) = (Arc::clone(&asked), world.tokens().jwks());
        move || async move {
            asked.fetch_add(1, Ordering::SeqCst);
            jwks
        }
    });
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let url = format!("http://{}/jwks", listener.local_addr()?);
    let server =
        tokio::spawn(
            async move { axum::serve(listener, Router::new().route("/jwks", route)).await },
        );

    let inline = request_authentication("");
    let by_url = inline.replace("    jwks: ''\n", &format!("    jwksUri: {url}\n"));
    world.apply(&[("jwt-example.yaml", &by_url)])?;
    let ask = Ask::get("/details/1").bearer(&world.tokens().token(world.now(), &json!({}))?);
    let mut statuses = BTreeSet::new();
    for at in 0..100 {
        let status = client::mesh(page, "details", &ask).await?.0.status;
        // Until the set is there, its tokens are refused; that takes a moment.
        if status == 401 && statuses.is_empty() && at < 50 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        } else {
            statuses.insert(status);
        }
    }
    server.abort();
    let statuses: Vec<String> = statuses.iter().map(u16::to_string).collect();
    let note = format!("{} fetch for up to 100 requests", asked.load(Ordering::SeqCst));
    let once = asked.load(Ordering::SeqCst) == 1;
    let observed = if once { statuses.join(" ") } else { note.clone() };
    table.check("D7", "T, keys through jwksUri", observed, "200", note);
    world.apply(&[("jwt-example.yaml", &request_authentication(&world.tokens().jwks()))])
}

/// The status, when both clients got the answer that Envoy gives; what differs otherwise.
fn shown(over_mesh: &Reply, plain: &Reply, status: u16, body: &str) -> String {
    if over_mesh.status != plain.status {
        return format!("{} or {}", over_mesh.status, plain.status);
    }
    if status == 401 && plain.status == 401 {
        let challenge = plain.header("www-authenticate").unwrap_or_default();
        let challenged = challenge.starts_with("Bearer realm=\"http")
            && challenge.ends_with("\", error=\"invalid_token\"");
        if plain.body != body || over_mesh.body != body {
            return format!("401 {:?}", plain.body);
        }
        if !challenged || plain.header("content-type") != Some("text/plain") {
            return format!("401 with {challenge}");
        }
    }
    plain.status.to_string()
}

fn rows(world: &World) -> Result<Vec<Row>, BoxError> {
    let tokens = world.tokens();
    let now = world.now();
    let token = tokens.token(now, &json!({}))?;
    let past = tokens.token(now, &json!({ "exp": now.saturating_sub(3600) }))?;
    let early = tokens.token(now, &json!({ "nbf": now.saturating_add(3600) }))?;
    let other = tokens.token(now, &json!({ "iss": "somebody@else.example" }))?;
    let changed = with_changed_signature(&token);
    let usual = claims(now, &json!({}));
    let unknown = json!({ "alg": "RS256", "typ": "JWT", "kid": "unknown" });
    let unknown = tokens.sign(&unknown, &usual)?;
    let mut confused = tokens.header();
    confused["alg"] = json!("HS256");
    let confused = signing_input(&confused, &usual);
    let key = hmac::Key::new(hmac::HMAC_SHA256, &tokens.public_modulus());
    let mac = hmac::sign(&key, confused.as_bytes());
    let confused = format!("{confused}.{}", URL_SAFE_NO_PAD.encode(mac));
    let unsigned = signing_input(&json!({ "alg": "none" }), &usual);

    let get = || Ask::get("/details/1");
    let header = |value: &str| get().with("authorization", value);
    let query = |value: &str| Ask::get(format!("/details/1?access_token={value}"));
    Ok(vec![
        Row::one("D1", "no token", get(), 200, ""),
        Row::one("D2", "Bearer T", get().bearer(&token), 200, ""),
        Row::one("D3", "signature changed", get().bearer(&changed), 401, "Jwt verification fails"),
        Row::one("D4", "expired", get().bearer(&past), 401, "Jwt is expired"),
        Row::one("D5", "not yet valid", get().bearer(&early), 401, "Jwt not yet valid"),
        Row::one("D6", "other issuer", get().bearer(&other), 401, "Jwt issuer is not configured"),
        Row::one("D7", "T, keys through jwksUri", get().bearer(&token), 200, ""),
        Row::one("D8", "unknown kid", get().bearer(&unknown), 401, NO_KEY),
        Row::one("D9", "HS256 with the public key", get().bearer(&confused), 401, NO_KEY),
        Row::one("D10", "alg none, two sections", get().bearer(&unsigned), 401, BAD_FORM),
        Row::one("D11", "Bearer abc", header("Bearer abc"), 401, BAD_FORM),
        Row::one("D12", "Bearer a.b.c", header("Bearer a.b.c"), 401, BAD_HEADER),
        Row::one("D13", "Basic credentials", header("Basic dXNlcjpw"), 200, ""),
        Row {
            id: "D14",
            what: "bearer T, BEARER T: not recognised as a token",
            asks: vec![
                (header(&format!("bearer {token}")), 200, ""),
                (header(&format!("BEARER {token}")), 200, ""),
            ],
        },
        Row {
            id: "D15",
            what: "Bearer alone, with nothing after it, T alone",
            asks: vec![
                (header("Bearer"), 200, ""),
                (header("Bearer "), 200, ""),
                (header(&token), 200, ""),
            ],
        },
        Row::one("D16", "Bearer, two spaces, T", header(&format!("Bearer  {token}")), 200, ""),
        Row {
            id: "D17",
            what: "xBearer T; Basic x, Bearer T; two headers",
            asks: vec![
                (header(&format!("xBearer {token}")), 200, ""),
                (header(&format!("Basic x, Bearer {token}")), 200, ""),
                (header("Basic x").bearer(&token), 200, ""),
            ],
        },
        Row {
            id: "D18",
            what: "two headers, Bearer T and Bearer abc, either order",
            asks: vec![
                (get().bearer(&token).bearer("abc"), 401, BAD_SIGNATURE),
                (get().bearer("abc").bearer(&token), 401, BAD_HEADER),
            ],
        },
        Row {
            id: "D19",
            what: "Bearer T x; Bearer T,foo",
            asks: vec![
                (header(&format!("Bearer {token} x")), 401, "Jwt verification fails"),
                (header(&format!("Bearer {token},foo")), 401, BAD_SIGNATURE),
            ],
        },
        Row {
            id: "D20",
            what: "?access_token=T; ?access_token=abc",
            asks: vec![(query(&token), 200, ""), (query("abc"), 401, BAD_FORM)],
        },
    ])
}

/// The token with another first character of its signature.
fn with_changed_signature(token: &str) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let first = if signature.starts_with('A') { "B" } else { "A" };
    format!("{signed}.{first}{}", signature.get(1..).unwrap_or_default())
}
