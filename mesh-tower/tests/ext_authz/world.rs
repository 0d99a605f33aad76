//! A guarded service, authorizers that answer what a test tells them, and a client, on sockets.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use mesh_ca::Authority;
use mesh_tower::authz::Semantics;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload};
use mesh_tower::{
    Clock, ExtensionProviders, Mesh, Permit, Policies, RequestBody, Resource, SystemClock,
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// CUSTOM for `/c*`, by the provider.
pub(crate) fn custom(provider: &str) -> String {
    policy("c", provider, "/c*")
}

/// One CUSTOM policy.
pub(crate) fn policy(name: &str, provider: &str, path: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
         metadata: {{name: {name}, namespace: shop}}\nspec:\n  action: CUSTOM\n  \
         provider: {{name: {provider}}}\n  rules:\n  - to:\n    - operation: {{paths: [\"{path}\"]}}\n"
    )
}

/// An entry of `extensionProviders` for an authorizer at an address.
pub(crate) fn entry(name: &str, kind: &str, address: SocketAddr, more: &Value) -> Value {
    let mut config = json!({
        "service": format!("ns/{}", address.ip()), "port": address.port(), "timeout": "0.3s",
    });
    for (name, value) in more.as_object().unwrap() {
        config[name] = value.clone();
    }
    json!({"name": name, kind: config})
}

/// What the guarded service was asked.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What authorizers handed on; only of an admitted request.
    pub(crate) metadata: Value,
    /// What the policies say of the resource that the header `x-resource` names.
    pub(crate) resource: Option<bool>,
}

/// What the client got.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    /// All lines of a header.
    pub(crate) fn lines(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

/// A service behind a mesh.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    client: Client<hyper_util::client::legacy::connect::HttpConnector, Full<Bytes>>,
}

impl World {
    /// A mesh with providers and policies; `semantics` as a program would set them.
    pub(crate) async fn start(
        providers: ExtensionProviders,
        policies: &[String],
        semantics: Semantics,
    ) -> Self {
        Self::start_as(Workload::new("shop"), providers, policies, semantics).await
    }

    /// A mesh whose `/c*` asks the provider `ext` of this entry.
    pub(crate) async fn asking(entry: Value, semantics: Semantics) -> Self {
        let config = json!({"extensionProviders": [entry]});
        let providers = ExtensionProviders::from_mesh_config(&config).unwrap();
        assert!(providers.problems().is_empty(), "{:?}", providers.problems());
        Self::start(providers, &[custom("ext")], semantics).await
    }

    /// The same for another workload than the shop's.
    pub(crate) async fn start_as(
        workload: Workload,
        providers: ExtensionProviders,
        policies: &[String],
        semantics: Semantics,
    ) -> Self {
        let mesh = mesh(workload, providers, policies, semantics);
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let diary = Arc::clone(&seen);
        let service = tower::service_fn(move |request: Request<RequestBody<Incoming>>| {
            let diary = Arc::clone(&diary);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let target = parts.uri.path_and_query().map(ToString::to_string);
                let target = target.unwrap_or_default();
                let permit = parts.extensions.get::<Permit>();
                let metadata = permit.map(|permit| permit.metadata().clone().into());
                let metadata = metadata.unwrap_or_default();
                let resource = parts.headers.get("x-resource").map(|path| {
                    let resource = Resource::new("GET", path.to_str().unwrap());
                    permit.unwrap().authorize(&resource).is_ok()
                });
                let (method, headers) = (parts.method, parts.headers);
                let seen = Seen { method, target, headers, body, metadata, resource };
                diary.lock().unwrap().push(seen);
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"served"))))
            }
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { mesh.serve(listener, service, std::future::pending()).await });
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { address, seen, client }
    }

    /// A GET without more.
    pub(crate) async fn get(&self, target: &str) -> Reply {
        self.send(Request::get(target)).await
    }

    /// A request without a body.
    pub(crate) async fn send(&self, request: http::request::Builder) -> Reply {
        self.send_body(request, Bytes::new()).await
    }

    /// A request.
    pub(crate) async fn send_body(
        &self,
        request: http::request::Builder,
        body: impl Into<Bytes>,
    ) -> Reply {
        let mut request =
            request.header("host", "shop.example").body(Full::new(body.into())).unwrap();
        let target = request.uri().path_and_query().unwrap().clone();
        *request.uri_mut() = format!("http://{}{target}", self.address).parse().unwrap();
        let response = self.client.request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Reply { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// What the service was asked last, if anything since the last look.
    pub(crate) fn served(&self) -> Option<Seen> {
        let mut seen = self.seen.lock().unwrap();
        let last = seen.pop();
        seen.clear();
        last
    }
}

/// A mesh with providers and policies.
pub(crate) fn mesh(
    workload: Workload,
    providers: ExtensionProviders,
    policies: &[String],
    semantics: Semantics,
) -> Mesh {
    let home: mesh_tower::identity::TrustDomain = "cluster.local".parse().unwrap();
    let now = SystemClock.now();
    let authority = Authority::new_root(&home, Duration::from_secs(24 * 3600), now).unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let svid = authority.issue_svid(&id, Duration::ZERO, now).unwrap();
    let bundles = BundleSet::from_bundles([authority.bundle()]).unwrap();
    let files = policies.iter().map(|text| ("p.yaml", text.as_str()));
    Mesh::builder(workload, MeshSettings::new(home))
        .semantics(semantics)
        .extension_providers(providers)
        .build(Arc::new(svid), Arc::new(bundles), Policies::read(files, "shop").unwrap())
        .unwrap()
}

/// What an HTTP authorizer does with the next check.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    Answer(Response<Full<Bytes>>),
    Wait(Duration),
    /// Closes the connection without an answer.
    HangUp,
}

impl Act {
    pub(crate) fn status(status: u16) -> Self {
        Self::answer(status, "", &[])
    }

    pub(crate) fn answer(status: u16, body: &'static str, headers: &[(&str, &str)]) -> Self {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        Self::Answer(response.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap())
    }
}

/// An HTTP authorizer; without acts left it answers 200.
#[derive(Clone)]
pub(crate) struct HttpServer {
    pub(crate) address: SocketAddr,
    acts: Arc<Mutex<VecDeque<Act>>>,
    checks: Arc<Mutex<Vec<Seen>>>,
}

impl HttpServer {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, acts: Arc::default(), checks: Arc::default() };
        let accepting = server.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = accepting.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| server.clone().answer(request));
                    let connection = auto::Builder::new(TokioExecutor::new());
                    drop(connection.serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        server
    }

    async fn answer(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let target = parts.uri.path_and_query().unwrap().to_string();
        let (method, headers) = (parts.method, parts.headers);
        self.checks.lock().unwrap().push(Seen {
            method,
            target,
            headers,
            body,
            metadata: Value::Null,
            resource: None,
        });
        let act = self.acts.lock().unwrap().pop_front();
        match act.unwrap_or(Act::status(200)) {
            Act::Answer(response) => Ok(response),
            Act::Wait(time) => {
                tokio::time::sleep(time).await;
                Ok(Response::builder().status(StatusCode::OK).body(Full::default()).unwrap())
            }
            Act::HangUp => Err(std::io::Error::other("hung up")),
        }
    }

    pub(crate) fn next(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub(crate) fn checks(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.checks.lock().unwrap())
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
