//! What authorizers hand on (`dynamic_metadata`): to policies, to later authorizers, to the service.

use mesh_tower::authz::{CheckSettings, Semantics};
use mesh_tower::{
    Authorizer, CheckAnswer, CheckFuture, CheckRequest, Denial, ExtensionProviders, GrpcAuthorizer,
    Provider, RequestChanges,
};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Value as Member};
use serde_json::json;

use crate::grpc::{CheckResponse, OkResponse, Server, code, denied};
use crate::world::{World, custom};

/// A policy with one rule, on a tier that an authorizer has named.
fn on_tier(name: &str, action: &str, path: &str, values: &str) -> String {
    format!(
        "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  {action}
  rules:
  - to: [{{operation: {{paths: ['{path}']}}}}]
    when: [{{key: 'experimental.envoy.filters.http.ext_authz[tier]', {values}}}]
"
    )
}

fn member(kind: Kind) -> Member {
    Member { kind: Some(kind) }
}

fn of(members: Vec<(&str, Kind)>) -> Struct {
    Struct {
        fields: members.into_iter().map(|(name, kind)| (name.to_owned(), member(kind))).collect(),
    }
}

fn text(text: &str) -> Kind {
    Kind::StringValue(text.to_owned())
}

/// The answer, with a tier.
pub(crate) fn told(tier: &str, answer: CheckResponse) -> CheckResponse {
    CheckResponse { metadata: Some(of(vec![("tier", text(tier))])), ..answer }
}

fn ext(server: &Server) -> Provider {
    let settings = CheckSettings::new(server.address.ip().to_string(), server.address.port());
    Provider::new(GrpcAuthorizer::plain(&settings).unwrap())
}

/// [SEM-AUTHZ-75] It reaches policies as Envoy's filters see it, and the service.
#[tokio::test]
async fn sem_authz_75_metadata_of_an_answer_reaches_policies_and_the_service() {
    let server = Server::start().await;
    let providers = ExtensionProviders::default().with("ext", ext(&server));
    let not_blocked = on_tier("not-blocked", "action: DENY", "*", "values: [blocked]");
    let shop = World::start(providers, &[custom("ext"), not_blocked], Semantics::strict()).await;
    let told = |tier: &str| {
        let list = [Kind::NumberValue(3.0), Kind::NumberValue(0.5), Kind::NumberValue(f64::NAN)];
        let inner = of(vec![("yes", Kind::BoolValue(true)), ("none", Kind::NullValue(0))]);
        of(vec![
            ("tier", text(tier)),
            ("list", Kind::ListValue(ListValue { values: list.map(member).into() })),
            ("inner", Kind::StructValue(inner)),
        ])
    };
    server.answer(CheckResponse { metadata: Some(told("gold")), ..code(0) });
    assert_eq!(shop.get("/c").await.status, 200);
    let want = json!({
        "tier": "gold", "list": [3, 0.5, null], "inner": {"yes": true, "none": null},
    });
    assert_eq!(shop.served().unwrap().metadata, want);
    server.answer(CheckResponse {
        metadata: Some(told("blocked")),
        ok: Some(OkResponse::default()),
        ..code(0)
    });
    assert_eq!(shop.get("/c").await.status, 403);
    // Nobody was asked, so nobody has said anything.
    assert_eq!(shop.get("/other").await.status, 200);
    assert_eq!(shop.served().unwrap().metadata, json!({}));
}

/// [SEM-AUTHZ-75] A handler's own question is judged with it, too.
#[tokio::test]
async fn sem_authz_75_metadata_reaches_policies_about_resources() {
    let server = Server::start().await;
    let providers = ExtensionProviders::default().with("ext", ext(&server));
    let policies = [
        custom("ext"),
        on_tier("anyone", "action: ALLOW", "/c*", "notValues: [nobody]"),
        on_tier("not-free", "action: ALLOW", "/documents/*", "notValues: [free]"),
        on_tier("not-blocked", "action: DENY", "/documents/*", "values: [blocked]"),
    ];
    let shop = World::start(providers, &policies, Semantics::strict()).await;
    for (tier, allowed) in [("gold", true), ("free", false), ("blocked", false)] {
        server.answer(told(tier, code(0)));
        let asking = http::Request::get("/c").header("x-resource", "/documents/1");
        assert_eq!(shop.send(asking).await.status, 200);
        assert_eq!(shop.served().unwrap().resource, Some(allowed), "{tier}");
    }
}

/// Allows, and hands on the tier that a header asks for.
#[derive(Debug)]
struct Tiers;

impl Authorizer for Tiers {
    fn check<'r>(&'r self, request: CheckRequest<'r>) -> CheckFuture<'r> {
        let tier = request.headers().get("x-tier").map(|tier| tier.to_str().unwrap().to_owned());
        Box::pin(async move {
            let mut changes = RequestChanges::default();
            changes.dynamic_metadata.insert("tier".to_owned(), tier.into());
            Ok(CheckAnswer::Allow(changes))
        })
    }
}

#[derive(Debug)]
struct Nobody;

impl Authorizer for Nobody {
    fn check<'r>(&'r self, _request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(async { Ok(CheckAnswer::Deny(Denial::new(http::StatusCode::GONE, "gone"))) })
    }
}

/// [SEM-AUTHZ-75], [SEM-EXT-05] The CUSTOM policies of a later provider are matched with what the
/// earlier ones have handed on.
#[tokio::test]
async fn sem_authz_75_metadata_reaches_the_policies_of_later_providers() {
    let later =
        on_tier("later", "action: CUSTOM\n  provider: {name: b-later}", "/c*", "values: [suspect]");
    for policies in [[custom("a-first"), later.clone()], [later, custom("a-first")]] {
        let providers = ExtensionProviders::default()
            .with("a-first", Provider::new(Tiers))
            .with("b-later", Provider::new(Nobody))
            .several_per_workload();
        let shop = World::start(providers, &policies, Semantics::strict()).await;
        for (tier, status) in [("gold", 200), ("suspect", 410)] {
            let reply = shop.send(http::Request::get("/c").header("x-tier", tier)).await;
            assert_eq!(reply.status, status, "{tier}");
        }
    }
}

/// A denial is one, whatever is in its metadata; an answer whose metadata cannot be read does not
/// allow, but is a failure as in Envoy, which strictly `failOpen` does not forgive ([SEM-EXT-13]).
#[tokio::test]
async fn metadata_that_cannot_be_read_turns_no_denial_into_a_failure() {
    let deep = (0..34).fold(of(vec![]), |inner, _| of(vec![("a", Kind::StructValue(inner))]));
    let long = of(vec![("a", text(&"a".repeat(65 * 1024)))]);
    for (semantics, forgiven) in [(Semantics::strict(), 403), (Semantics::istio(), 200)] {
        let server = Server::start().await;
        let providers = ExtensionProviders::default().with("ext", ext(&server).fail_open());
        let shop = World::start(providers, &[custom("ext")], semantics).await;
        for metadata in [&deep, &long] {
            let metadata = Some(metadata.clone());
            let denial = Some(denied(401, "no", vec![]));
            server.answer(CheckResponse { metadata: metadata.clone(), denied: denial, ..code(7) });
            assert_eq!(shop.get("/c").await.status, 401);
            server.answer(CheckResponse { metadata: metadata.clone(), ..code(7) });
            assert_eq!(shop.get("/c").await.status, 403);
            server.answer(CheckResponse { metadata, ..code(0) });
            assert_eq!(shop.get("/c").await.status, forgiven);
        }
    }
}
