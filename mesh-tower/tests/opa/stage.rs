//! What the Rego stage tells: to events, which bundles decided; to the service, what the policy
//! hands on.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_ca::Authority;
use mesh_tower::authz::rego::{RegoOptions, RegoPolicy};
use mesh_tower::identity::{BundleSet, MeshSettings, TrustDomain, Workload};
use mesh_tower::{
    Clock, ConnectionEvent, DecisionEvent, ExtensionProviders, Mesh, Observer, Permit, Policies,
    Provider, RequestBody, SystemClock,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::waiting;

const MODULE: &str = r#"package envoy.authz

import rego.v1

allow := {"allowed": input.parsed_path[0] == "open", "dynamic_metadata": {"tenant": "acme", "limits": [1, 2]}}
"#;

/// Whether a request was allowed, and by which revision.
type Decided = (bool, Option<String>);

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<Decided>>>);

impl Observer for Told {
    fn decided(&self, event: &DecisionEvent<'_>) {
        let revision = event.rego_revision.map(str::to_owned);
        self.0.lock().unwrap().push((event.allowed, revision));
    }

    fn connection_refused(&self, _: &ConnectionEvent) {}
}

/// A mesh whose events somebody sees.
fn observed(observer: Told, providers: ExtensionProviders, policies: Policies) -> Mesh {
    let home: TrustDomain = "cluster.local".parse().unwrap();
    let now = SystemClock.now();
    let authority = Authority::new_root(&home, Duration::from_secs(24 * 3600), now).unwrap();
    let id = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
    let svid = authority.issue_svid(&id, Duration::ZERO, now).unwrap();
    let bundles = BundleSet::from_bundles([authority.bundle()]).unwrap();
    Mesh::builder(Workload::new("shop"), MeshSettings::new(home))
        .observer(Arc::new(observer))
        .extension_providers(providers)
        .build(Arc::new(svid), Arc::new(bundles), policies)
        .unwrap()
}

#[tokio::test]
async fn events_name_the_revision_and_the_service_gets_the_metadata() {
    let told = Told::default();
    let mesh = observed(told.clone(), ExtensionProviders::default(), Policies::default());
    let policy = RegoPolicy::compile(&[("p.rego", MODULE)], None, RegoOptions::default()).unwrap();
    let stage = waiting();
    mesh.set_rego(Some(stage.clone()));
    let service = tower::service_fn(|request: Request<RequestBody<Incoming>>| async move {
        let permit = request.extensions().get::<Permit>().unwrap();
        let metadata = serde_json::to_string(permit.metadata()).unwrap();
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(metadata))))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = mesh.clone();
    tokio::spawn(async move { serving.serve(listener, service, std::future::pending()).await });
    let get = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };

    // Before there is a policy nothing is allowed, and nothing decided that has a revision.
    assert!(get("/open").await.starts_with("HTTP/1.1 403"));
    stage.set_policy(Arc::new(policy.with_revision("r7")), Arc::default());
    let allowed = get("/open").await;
    assert!(allowed.ends_with(r#"{"limits":[1,2],"tenant":"acme"}"#), "{allowed}");
    let denied = get("/closed").await;
    assert!(denied.starts_with("HTTP/1.1 403") && !denied.contains("acme"), "{denied}");
    // Without the stage there is neither.
    mesh.set_rego(None);
    assert!(get("/open").await.ends_with("\r\n\r\n{}"));
    let revision = Some("r7".to_owned());
    let told = told.0.lock().unwrap().clone();
    assert_eq!(told, [(false, None), (true, revision.clone()), (false, revision), (true, None)]);
}

/// The same where the policy is a provider of CUSTOM policies.
#[tokio::test]
async fn events_name_the_revision_of_a_provider_too() {
    const ASK: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  action: CUSTOM
  provider: {name: opa}
  rules: [{to: [{operation: {paths: [/open, /closed]}}]}]
";
    let policy = RegoPolicy::compile(&[("p.rego", MODULE)], None, RegoOptions::default()).unwrap();
    let stage = waiting();
    stage.set_policy(Arc::new(policy.with_revision("r8")), Arc::default());
    let providers = ExtensionProviders::default().with("opa", Provider::new(stage));
    let (told, policies) = (Told::default(), Policies::read([("p.yaml", ASK)], "shop").unwrap());
    let mesh = observed(told.clone(), providers, policies);
    let service = tower::service_fn(|_: Request<RequestBody<Incoming>>| async {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { mesh.serve(listener, service, std::future::pending()).await });
    for path in ["/open", "/closed", "/unasked"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.read_to_string(&mut String::new()).await.unwrap();
    }
    let revision = Some("r8".to_owned());
    let told = told.0.lock().unwrap().clone();
    assert_eq!(told, [(true, revision.clone()), (false, revision), (true, None)]);
}
