//! [SEC-HTTP-1] No spelling of a path reaches a handler that the policy did not mean: an axum router
//! behind the layer, and an application that reads paths as generously as it can.

use std::convert::Infallible;
use std::net::SocketAddr;

use axum::Router;
use axum::routing::get;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use mesh_tower::authz::{PathNormalization, Semantics};
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{Mesh, MeshBuilder, Policies, RequestBody};

use crate::wire::{Dial, ask_http1, ask_http2, latin1};
use crate::world::{Identities, LOCALHOST, bind};

/// Section 6.6 row by row, and section 11.1, each with `/admin` as what somebody is after.
const SPELLINGS: &[&str] = &[
    // 1 to 10
    "/admin",
    "/admin/",
    "/ADMIN",
    "//admin",
    "/admin//",
    "/a/../admin",
    "/a/b/../../admin",
    "/./admin",
    "/a/./../admin",
    "/admin/..",
    "/admin/.",
    "/admin/%2e",
    "/admin/%2e/",
    "/a/b/../../../admin",
    "/%61dmin",
    "/%41DMIN",
    "/adm%69n/keys",
    // 11 to 18
    "/%2fadmin",
    "/a%2f..%2fadmin",
    "/a%2F..%2Fadmin",
    "/%5cadmin",
    "/a%5C..%5Cadmin",
    "/\\admin",
    "/a\\..\\admin",
    "/a/%2e%2e/admin",
    "/a/%2E%2E/admin",
    "/a/.%2e/admin",
    "/a%2f%2e%2e%2fadmin",
    "/a%252f..%252fadmin",
    "/%252fadmin",
    "/%2561dmin",
    // 19 to 27
    "/admin%20",
    "/admin%23x",
    "/admin%3Fx=1",
    "/admin%00",
    "/admin%",
    "/admin%zz",
    "/admin?x=/../y",
    "/open/x?y=/../../admin",
    "/admin#f",
    "/admin#f?x",
    "/open/x#/../../admin",
    "/admin;x=1",
    "/admin;",
    "/x/..;/admin",
    "/x/..;foo=1/admin",
    "/./;/admin",
    "/a/;/../admin",
    "/;x/admin",
    "/admin;a/keys",
    "/admin%3b",
    "/admin%3Bx=1/keys",
    // 28 to 38
    "/admin/a|b",
    "/admin/[b]",
    "/admin/a*b",
    "/admi%6e",
    "/a/%c0%af../admin",
    "/a/.../admin",
    "/%2e%2e/%2e%2e/admin",
    "/a//../admin",
    "/a/..//admin",
    "//..//admin",
    "/a%2f%2f..%2fadmin",
    "/%5c%5cadmin",
    "/a/%5c../admin",
    "/a/..%5cadmin",
    // 39 to 55
    "http://shop//admin",
    "http://shop/a/../admin",
    "//",
    "///",
    "//a/..",
    "/.//admin",
    "/\\admin",
    "/a/././/../admin",
    "/a;/../admin",
    "/a/b/..;/../admin",
    "/a/..;%2fadmin",
    "/a/.;/..;/admin",
    "/a/%2e%2e;x/admin",
    "/a/.%2E;x/admin",
    "/a/%2e%2e%3bx/admin",
    "/a/..%3b/admin",
    "/a%%2e",
    "/a/%%32e%%32e/admin",
    "/%%32fadmin",
    "/a/..?x",
    "/admin/..%2f;x",
    "/a/..%2f;x/admin",
    // 11.1
    "/open/../admin",
    "/open/..%2fadmin",
    "/open/%2e%2e/admin",
    "/open/..;/admin",
    "/x%2f..%2fadmin",
    "/x/%2e%2e;/admin",
    "/a;b/../admin",
    "/admin/a[b",
    "/open/x/%2e%2e/%2e%2e/admin",
    "/open/..%5cadmin",
    "/open/.%2e%2fadmin",
];

/// Reads a path as no well-behaved application does: decodes it until nothing changes, takes
/// backslashes for slashes, drops what stands behind a semicolon, merges slashes, resolves dots.
fn generously(path: &str) -> String {
    let mut text = path.as_bytes().to_vec();
    loop {
        let decoded: Vec<u8> = percent_encoding::percent_decode(&text).collect();
        if decoded == text {
            break;
        }
        text = decoded;
    }
    let text = latin1(&text).replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    for segment in text.split('/').map(|segment| segment.split(';').next().unwrap_or_default()) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    format!("/{}", segments.join("/"))
}

/// Which of the application's handlers a path is for.
fn handler(path: &str) -> &'static str {
    let is_below = |folder: &str| {
        path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if is_below("/admin") {
        "admin"
    } else if is_below("/open") {
        "open"
    } else {
        "other"
    }
}

async fn generous(
    request: Request<RequestBody<Incoming>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let name = handler(&generously(request.uri().path()));
    Ok(Response::new(Full::new(Bytes::from_static(name.as_bytes()))))
}

fn router() -> Router {
    let nested = Router::new()
        .route("/", get(|| async { "admin" }))
        .route("/{*rest}", get(|| async { "admin" }));
    Router::new()
        .nest("/admin", nested)
        .route("/admin/", get(|| async { "admin" }))
        .route("/open/{*rest}", get(|| async { "open" }))
        .fallback(|| async { "other" })
}

const DENY_ADMIN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/admin, /admin/*]}}]
";

const ALLOW_OPEN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: open, namespace: shop}
spec:
  rules:
  - to: [{operation: {paths: [/open/*]}}]
";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum App {
    Axum,
    Generous,
}

async fn serve(policy: &str, app: App, set: impl FnOnce(MeshBuilder) -> MeshBuilder) -> SocketAddr {
    let identities = Identities::default();
    let home = "cluster.local".parse().unwrap();
    let own = "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap();
    let policies = if policy.is_empty() {
        Policies::none()
    } else {
        Policies::read([("p.yaml", policy)], "shop").unwrap()
    };
    let builder =
        Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap()));
    let mesh = set(builder)
        .build(identities.svid(&own).unwrap(), identities.trust([&home]), policies)
        .unwrap();
    let (listener, address) = bind(LOCALHOST).await.unwrap();
    tokio::spawn(async move {
        match app {
            App::Axum => mesh.serve(listener, router(), std::future::pending()).await,
            App::Generous => {
                mesh.serve(listener, tower::service_fn(generous), std::future::pending()).await
            }
        }
    });
    address
}

/// Which handler answered to the path, in HTTP/1.1 and in HTTP/2; nothing where it was refused.
async fn reached(address: SocketAddr, path: &str) -> [Option<String>; 2] {
    let dial = Dial::default();
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
    let mut stream = dial.connect(address).await.unwrap();
    let first = ask_http1(&mut *stream, request.as_bytes(), false).await;
    let mut stream = dial.connect(address).await.unwrap();
    let fields: [(&[u8], &[u8]); 4] = [
        (b":method", b"GET"),
        (b":scheme", b"http"),
        (b":authority", b"shop"),
        (b":path", path.as_bytes()),
    ];
    let second = ask_http2(&mut *stream, &fields).await;
    [first, second]
        .map(|reply| reply.filter(|reply| reply.status == 200).map(|reply| latin1(&reply.body)))
}

const MODES: [PathNormalization; 4] = [
    PathNormalization::None,
    PathNormalization::Base,
    PathNormalization::MergeSlashes,
    PathNormalization::DecodeAndMergeSlashes,
];

/// [SEC-HTTP-1], [SEC-AUTHZ-5], [SEM-PATH-03], [SEM-STRICT-07] With the settings that nobody has to
/// choose, in every mode of normalization, behind either application.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_http_1_no_spelling_reaches_a_handler_that_the_policy_did_not_mean() {
    for mode in MODES {
        for app in [App::Axum, App::Generous] {
            let denied = serve(DENY_ADMIN, app, |builder| builder.path_normalization(mode)).await;
            let allowed = serve(ALLOW_OPEN, app, |builder| builder.path_normalization(mode)).await;
            for path in SPELLINGS {
                for answer in reached(denied, path).await {
                    assert_ne!(answer.as_deref(), Some("admin"), "DENY, {mode:?} {app:?}: {path}");
                }
                for answer in reached(allowed, path).await {
                    let answer = answer.unwrap_or("open".to_owned());
                    assert_eq!(answer, "open", "ALLOW, {mode:?} {app:?}: {path}");
                }
            }
            // What is meant passes.
            assert_eq!(
                reached(denied, "/open/x").await,
                [Some("open".to_owned()), Some("open".to_owned())]
            );
            assert_eq!(
                reached(allowed, "/open/x").await,
                [Some("open".to_owned()), Some("open".to_owned())]
            );
        }
    }
}

/// [SEC-HTTP-1] As Istio reads policies, too, where the application takes paths as they come: what
/// is judged is what axum routes by.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_http_1_axum_routes_by_the_path_that_istios_rules_judged() {
    for mode in MODES {
        let istio =
            |builder: MeshBuilder| builder.semantics(Semantics::istio()).path_normalization(mode);
        let denied = serve(DENY_ADMIN, App::Axum, istio).await;
        let allowed = serve(ALLOW_OPEN, App::Axum, istio).await;
        for path in SPELLINGS {
            for answer in reached(denied, path).await {
                assert_ne!(answer.as_deref(), Some("admin"), "DENY, {mode:?}: {path}");
            }
            for answer in reached(allowed, path).await {
                assert_eq!(answer.unwrap_or("open".to_owned()), "open", "ALLOW, {mode:?}: {path}");
            }
        }
    }
}

/// Without policies the generous application is as exposed as it looks: the table asks something.
#[tokio::test]
async fn the_spellings_reach_admin_where_nobody_forbids_it() {
    let open = serve("", App::Generous, |builder| builder).await;
    let (mut http1, mut http2) = (0, 0);
    for path in SPELLINGS {
        let [first, second] = reached(open, path).await;
        http1 += usize::from(first.as_deref() == Some("admin"));
        http2 += usize::from(second.as_deref() == Some("admin"));
    }
    println!("{http1} and {http2} of {} spellings reach admin unguarded", SPELLINGS.len());
    assert!(http1 > 50 && http2 > 50, "{http1}, {http2}");
}
