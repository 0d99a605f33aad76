//! CUSTOM policies that select TCP connections.

use std::future::pending;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_tower::authz::Semantics;
use mesh_tower::identity::Workload;
use mesh_tower::{
    Authorizer, CheckAnswer, CheckConnection, CheckError, CheckFuture, CheckRequest,
    ExtensionProviders, Mesh, Policies, Provider, RequestChanges, TcpConnection,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::grpc::{Act, Server, code};
use crate::metadata::told;
use crate::world::{HttpServer, entry, mesh, nobody};

/// Longer than anything here should take.
const PATIENCE: Duration = Duration::from_secs(10);

/// CUSTOM for every connection.
fn custom(provider: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: tcp, namespace: shop}}\nspec:\n  action: CUSTOM\n  \
         provider: {{name: {provider}}}\n  rules:\n  \
         - from: [{{source: {{ipBlocks: [\"127.0.0.1\"]}}}}]\n"
    )
}

async fn greet(mut connection: TcpConnection) {
    drop(connection.write_all(b"hello").await);
    let mut heard = [0; 8];
    while let Ok(1..) = connection.read(&mut heard).await {}
}

/// A TCP service that asks `ext`.
async fn serve(
    kind: &str,
    at: SocketAddr,
    more: Value,
    semantics: Semantics,
) -> (Mesh, SocketAddr) {
    let config = json!({"extensionProviders": [entry("ext", kind, at, &more)]});
    let providers = ExtensionProviders::from_mesh_config(&config).unwrap();
    assert!(providers.problems().is_empty(), "{:?}", providers.problems());
    serve_with(providers, &[custom("ext")], semantics).await
}

async fn serve_with(
    providers: ExtensionProviders,
    policies: &[String],
    semantics: Semantics,
) -> (Mesh, SocketAddr) {
    let mesh = mesh(Workload::new("shop"), providers, policies, semantics);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve_tcp(listener, greet, pending()).await });
    (mesh, address)
}

fn policies(texts: &[String]) -> Policies {
    let texts = ["a.yaml", "b.yaml"].into_iter().zip(texts.iter().map(String::as_str));
    Policies::read(texts, "shop").unwrap()
}

/// A policy with one rule, on a tier that an authorizer has named.
fn on_tier(name: &str, action: &str, values: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  {action}\n  rules:\n  \
         - when: [{{key: 'experimental.envoy.filters.network.ext_authz[tier]', {values}}}]\n"
    )
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
    matches!(read, Ok(0) | Err(_))
}

/// Says something first, by which a PERMISSIVE server tells plain text.
async fn greeting(stream: &mut TcpStream) -> bool {
    stream.write_all(b"hi").await.ok();
    let mut heard = [0; 5];
    let read = timeout(PATIENCE, stream.read_exact(&mut heard)).await.unwrap();
    read.is_ok_and(|_| &heard == b"hello")
}

async fn admitted(address: SocketAddr) -> bool {
    greeting(&mut TcpStream::connect(address).await.unwrap()).await
}

/// [SEM-EXT-15] A gRPC provider is asked once for a connection, about its ends alone, and before
/// anybody speaks; whatever is no allowing answer closes it.
#[tokio::test]
async fn sem_ext_15_a_connection_is_asked_about_once() {
    let server = Server::start().await;
    let (_mesh, address) =
        serve("envoyExtAuthzGrpc", server.address, json!({}), Semantics::strict()).await;
    server.answer(code(0));
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(greeting(&mut stream).await);
    stream.write_all(b"one").await.unwrap();
    stream.write_all(b"two").await.unwrap();
    assert_eq!(server.connections(), [true]);
    for act in [
        Act::Answer(Box::new(code(7))),
        Act::Answer(Box::new(code(16))),
        Act::Fail(tonic::Code::Unavailable),
        Act::Fail(tonic::Code::Internal),
        Act::Garbage,
        Act::Wait,
    ] {
        server.next(act.clone());
        assert!(!admitted(address).await, "{act:?}");
    }
    assert!(admitted(address).await, "one that fails is asked again by the next connection");
}

/// [SEM-EXT-13] `failOpen` forgives on TCP what it forgives for requests.
#[tokio::test]
async fn sem_ext_13_outages_close_connections_unless_told_otherwise() {
    let server = Server::start().await;
    let kind = "envoyExtAuthzGrpc";
    for (semantics, forgiven) in [(Semantics::strict(), false), (Semantics::istio(), true)] {
        let open = json!({"failOpen": true});
        let (_mesh, address) = serve(kind, server.address, open.clone(), semantics).await;
        server.next(Act::Fail(tonic::Code::Internal));
        assert_eq!(admitted(address).await, forgiven);
        server.answer(code(7));
        assert!(!admitted(address).await, "a refusal is no failure");
        server.next(Act::Wait);
        assert!(admitted(address).await, "a timeout");
        let (_mesh, address) = serve(kind, nobody().await, open, semantics).await;
        assert!(admitted(address).await, "nobody there");
        let (_mesh, address) = serve(kind, nobody().await, json!({}), semantics).await;
        assert!(!admitted(address).await, "nobody there, and closed");
    }
}

/// [SEM-TCP-06], [SEM-STRICT-19] An HTTP provider cannot be asked about a connection: Istio lets it
/// through, we refuse it.
#[tokio::test]
async fn sem_tcp_06_http_providers_are_not_asked_on_tcp() {
    let server = HttpServer::start().await;
    for (semantics, through) in [(Semantics::strict(), false), (Semantics::istio(), true)] {
        let kind = "envoyExtAuthzHttp";
        let (_mesh, address) = serve(kind, server.address, json!({}), semantics).await;
        assert_eq!(admitted(address).await, through);
        assert!(server.checks().is_empty());
    }
}

/// [SEM-EXT-15] An open connection is not asked about again by whom it has been, and ends where a
/// new policy asks somebody else.
#[tokio::test]
async fn sem_ext_15_a_new_policy_ends_what_nobody_was_asked_about() {
    let server = Server::start().await;
    let (mesh, address) =
        serve("envoyExtAuthzGrpc", server.address, json!({}), Semantics::strict()).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert!(greeting(&mut stream).await);
    assert_eq!(server.connections().len(), 1);
    mesh.set_policies(policies(&[custom("ext")])).unwrap();
    let mut byte = [0; 1];
    let closed = timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
    assert!(closed.is_err(), "it stays open");
    assert!(server.connections().is_empty(), "and nobody is asked again");

    // Without the policy nobody is asked; with it again, what came in between was not asked about.
    let another = custom("ext")
        .replace("CUSTOM", "DENY")
        .replace("127.", "10.")
        .replace("  provider: {name: ext}\n", "");
    mesh.set_policies(policies(&[another])).unwrap();
    let mut unasked = TcpStream::connect(address).await.unwrap();
    assert!(greeting(&mut unasked).await);
    assert!(server.connections().is_empty());
    mesh.set_policies(policies(&[custom("ext")])).unwrap();
    assert!(is_closed(&mut unasked).await);
}

/// [SEM-AUTHZ-75] What an answer hands on about a connection is judged by as Envoy's filter for TCP
/// has it, and is judged by again.
#[tokio::test]
async fn sem_authz_75_metadata_of_an_answer_reaches_policies_on_tcp() {
    let server = Server::start().await;
    let (mesh, address) =
        serve("envoyExtAuthzGrpc", server.address, json!({}), Semantics::strict()).await;
    server.answer(told("blocked", code(0)));
    let mut before = TcpStream::connect(address).await.unwrap();
    assert!(greeting(&mut before).await, "nobody minds");
    let not_blocked = on_tier("not-blocked", "action: DENY", "values: [blocked]");
    mesh.set_policies(policies(&[custom("ext"), not_blocked])).unwrap();
    assert!(is_closed(&mut before).await);
    for (tier, admits) in [("gold", true), ("blocked", false)] {
        server.answer(told(tier, code(0)));
        assert_eq!(admitted(address).await, admits, "{tier}");
    }
}

/// Allows connections and hands on a tier.
#[derive(Debug)]
struct Tier(&'static str);

impl Authorizer for Tier {
    fn check<'r>(&'r self, _request: CheckRequest<'r>) -> CheckFuture<'r> {
        Box::pin(std::future::ready(Err(CheckError::Encoding("it is a request"))))
    }

    fn check_connection<'r>(&'r self, _connection: CheckConnection<'r>) -> CheckFuture<'r> {
        let mut changes = RequestChanges::default();
        changes.dynamic_metadata.insert("tier".to_owned(), self.0.into());
        Box::pin(std::future::ready(Ok(CheckAnswer::Allow(changes))))
    }
}

/// [SEM-EXT-05], [SEM-EXT-15] A provider's rules see what those before it have handed on, and nothing
/// of what comes later: so it is when a connection is asked about, and when it is judged again.
#[tokio::test]
async fn sem_ext_15_no_provider_sees_what_later_ones_hand_on() {
    let asks_a =
        |values| [on_tier("a", "action: CUSTOM\n  provider: {name: a}", values), custom("ext")];
    let providers = ExtensionProviders::default()
        .with("a", Provider::new(Tier("free")))
        .with("ext", Provider::new(Tier("gold")))
        .several_per_workload();
    // Nobody has said "gold" when `a` could be asked.
    let (mesh, address) =
        serve_with(providers, &asks_a("values: [gold]"), Semantics::strict()).await;
    let mut open = TcpStream::connect(address).await.unwrap();
    assert!(greeting(&mut open).await);
    // Nor has anybody now: `a` is to be asked, and was not.
    mesh.set_policies(policies(&asks_a("notValues: [gold]"))).unwrap();
    assert!(is_closed(&mut open).await);
    assert!(admitted(address).await, "a new connection is asked about by both");
}
