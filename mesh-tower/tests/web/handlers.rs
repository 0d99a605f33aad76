//! Extractors, `authorize`, open paths, denials of the program's own, and `axum::serve`.

use axum::Router;
use axum::routing;
use http::{Method, Request};
use mesh_tower::{AccessDenied, Guarded, GuardedRouter, OpenPath, Peer, Permit, Resource};

use crate::support::authority;
use crate::{ask, ask_plain, bind, connector, done, get, mesh};

const READERS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: readers, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/reader]}}]
    to: [{operation: {methods: [GET]}}]
  - from: [{source: {principals: [cluster.local/ns/shop/sa/reader]}}]
    to: [{operation: {methods: [DELETE], paths: [/documents/*]}}]
    when: [{key: 'request.headers[x-owner]', values: [reader]}]
";

async fn who(peer: Peer) -> String {
    peer.id().to_string()
}

async fn maybe(peer: Option<Peer>) -> String {
    peer.map_or("nobody".to_owned(), |peer| peer.id().to_string())
}

/// Asks about a document whose owner is the last part of the path.
async fn document(
    permit: Permit,
    axum::extract::Path(owner): axum::extract::Path<String>,
) -> Result<String, AccessDenied> {
    let question = Resource::new("DELETE", "/documents/1").with_attribute("x-owner", &owner)?;
    permit.authorize(&question)?;
    Ok("deleted".to_owned())
}

fn app() -> GuardedRouter {
    let router: Router<Guarded<()>> = Router::new()
        .route("/who", routing::get(who))
        .route("/maybe", routing::get(maybe))
        .route("/document/{owner}", routing::get(document))
        .route("/healthz", routing::any(|| async { "healthy" }));
    GuardedRouter::new(router, ())
}

/// A handler that asks who calls gets proof; on plain text it is not called at all.
#[tokio::test]
async fn extractors_give_proof_or_refuse() {
    let authority = authority();
    let mesh = mesh(&authority, "", |builder| builder);
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let reader = connector(&authority, "reader", address);
    let name = "spiffe://cluster.local/ns/shop/sa/reader";
    assert_eq!(ask(&reader, done(get("/who"))).await, (200, name.to_owned()));
    assert_eq!(ask(&reader, done(get("/maybe"))).await, (200, name.to_owned()));
    assert_eq!(ask_plain(address, done(get("/who"))).await.0, 403);
    assert_eq!(ask_plain(address, done(get("/maybe"))).await, (200, "nobody".to_owned()));
}

/// The same engine answers a handler's question, about facts no client can forge.
#[tokio::test]
async fn authorize_asks_the_policies_that_admitted_the_request() {
    let authority = authority();
    let mesh = mesh(&authority, READERS, |builder| builder);
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let reader = connector(&authority, "reader", address);
    assert_eq!(ask(&reader, done(get("/document/reader"))).await, (200, "deleted".to_owned()));
    // The client's own header is no attribute of the document.
    let forged = done(get("/document/somebody").header("x-owner", "reader"));
    assert_eq!(ask(&reader, forged).await.0, 403);
}

/// An open path is one path, for GET and HEAD, and nothing beside it.
#[tokio::test]
async fn an_open_path_opens_nothing_else() {
    let authority = authority();
    let mesh =
        mesh(&authority, READERS, |builder| builder.open_path(OpenPath::new("/healthz").unwrap()));
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    for (method, path, want) in [
        (Method::GET, "/healthz", 200),
        (Method::GET, "/healthz?full=1", 200),
        (Method::GET, "/x/../healthz", 200),
        (Method::POST, "/healthz", 403),
        (Method::GET, "/healthz/", 403),
        (Method::GET, "//healthz", 403),
        (Method::GET, "/healthz/../who", 403),
        (Method::GET, "/who", 403),
    ] {
        let request = Request::builder().method(&method).uri(path).header("host", "server");
        let (status, _) = ask_plain(address, done(request)).await;
        assert_eq!(status, want, "{method} {path}");
    }
}

/// [SEM-RESP-03] The program may answer in its own words; it learns no more than the client may,
/// and cannot turn a refusal into success.
#[tokio::test]
async fn sem_resp_03_denials_can_be_worded_but_not_undone() {
    let authority = authority();
    let mesh = mesh(&authority, READERS, |builder| {
        builder.on_denial(|denial| {
            let status = if denial.path == "/who" { denial.status } else { http::StatusCode::OK };
            let body = format!("no {} {}", denial.method, denial.path);
            http::Response::builder().status(status).body(body.into()).ok()
        })
    });
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let plain = ask_plain(address, done(get("/who?x=1"))).await;
    assert_eq!(plain, (403, "no GET /who".to_owned()));
    let plain = ask_plain(address, done(get("/maybe"))).await;
    assert_eq!(plain, (403, "RBAC: access denied".to_owned()), "success is not taken");
}

/// `axum::serve` on the mesh's listener guards as [`mesh_tower::Mesh::serve`] does.
#[tokio::test]
async fn axum_can_serve_on_the_listener() {
    let authority = authority();
    let mesh = mesh(&authority, READERS, |builder| builder);
    let (listener, address) = bind().await;
    let listener = mesh.listener(listener).unwrap();
    let service = mesh.make_service(app());
    tokio::spawn(async move { axum::serve(listener, service).await });
    let reader = connector(&authority, "reader", address);
    let name = "spiffe://cluster.local/ns/shop/sa/reader";
    assert_eq!(ask(&reader, done(get("/who"))).await, (200, name.to_owned()));
    assert_eq!(ask(&connector(&authority, "other", address), done(get("/who"))).await.0, 403);
    assert_eq!(ask_plain(address, done(get("/maybe"))).await.0, 403);
}
