//! `envoyExtAuthzHttp`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Request;
use mesh_tower::ExtensionProviders;
use mesh_tower::authz::Semantics;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::{self, Act, HttpServer, World, custom, nobody, policy};

fn entry(name: &str, address: SocketAddr, more: &Value) -> Value {
    let mut entry = world::entry(name, "envoyExtAuthzHttp", address, more);
    let prefix = &mut entry["envoyExtAuthzHttp"]["pathPrefix"];
    if prefix.is_null() {
        *prefix = json!("/check");
    }
    entry
}

async fn world(address: SocketAddr, more: Value, semantics: Semantics) -> World {
    World::asking(entry("ext", address, &more), semantics).await
}

/// [SEM-EXT-14], line by line.
#[tokio::test]
async fn sem_ext_14_what_was_measured_with_envoy() {
    let server = HttpServer::start().await;
    let shop = world(server.address, json!({}), Semantics::strict()).await;

    let reply = shop.get("/x").await;
    assert_eq!((reply.status, reply.body.as_str()), (200, "served"));
    assert!(server.checks().is_empty(), "nothing asks about /x");

    let reply = shop.get("/c?q=1").await;
    assert_eq!(reply.status, 200);
    let checks = server.checks();
    assert_eq!((checks[0].method.as_str(), checks[0].target.as_str()), ("GET", "/check/c?q=1"));

    server.next(Act::answer(401, "who are you?", &[("set-cookie", "a=1"), ("set-cookie", "b=2")]));
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.body.as_str()), (401, "who are you?"));
    assert_eq!(reply.lines("set-cookie"), ["a=1", "b=2"]);

    server.next(Act::answer(302, "", &[("location", "https://login.example/")]));
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.lines("location")), (302, vec!["https://login.example/"]));

    shop.served();
    server.next(Act::answer(500, "secret trace", &[]));
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.body.as_str()), (403, ""));

    server.next(Act::Wait(Duration::from_secs(5)));
    let begun = Instant::now();
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.body.as_str()), (403, ""));
    assert!(begun.elapsed() < Duration::from_secs(3), "the timeout ends the wait");

    server.next(Act::status(401));
    let grpc = Request::post("/c").header("content-type", "application/grpc");
    let reply = shop.send(grpc).await;
    assert_eq!((reply.status, reply.lines("grpc-status")), (200, vec!["16"]));
    assert!(shop.served().is_none(), "nothing refused was served");

    let down = nobody().await;
    let shop = world(down, json!({}), Semantics::strict()).await;
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.body.as_str()), (403, ""));
    let shop = world(down, json!({"failOpen": true}), Semantics::strict()).await;
    assert_eq!(shop.get("/c").await.status, 200);
    let shop = world(down, json!({"statusOnError": "503"}), Semantics::strict()).await;
    let reply = shop.get("/c").await;
    assert_eq!((reply.status, reply.body.as_str()), (503, ""));
}

/// [SEM-EXT-11] Exactly 200 allows; 5xx is a failure; anything else is the denial.
#[tokio::test]
async fn sem_ext_11_only_200_allows() {
    let server = HttpServer::start().await;
    let shop = world(server.address, json!({}), Semantics::istio()).await;
    for (status, want) in [
        (200, 200),
        (201, 201),
        (202, 202),
        (204, 204),
        (206, 206),
        (302, 302),
        (304, 304),
        (400, 400),
        (401, 401),
        (404, 404),
        (429, 429),
        (500, 403),
        (503, 403),
        (599, 403),
    ] {
        server.next(Act::status(status));
        let reply = shop.get("/c").await;
        assert_eq!(reply.status, want, "the authorizer says {status}");
        assert_eq!(shop.served().is_some(), status == 200, "the authorizer says {status}");
    }
}

/// [SEM-EXT-10] What an authorizer gets to see.
#[tokio::test]
async fn sem_ext_10_the_check_has_what_is_listed_and_no_more() {
    let server = HttpServer::start().await;
    let more = json!({
        "includeRequestHeadersInCheck": ["x-listed", "x-pre*", "*-post", "x-envoy*"],
        "includeAdditionalHeadersInCheck": {"x-fixed": "yes", "x-listed": "fixed"},
    });
    let shop = world(server.address, more, Semantics::strict()).await;
    let request = Request::put("/c/./d?x=%20")
        .header("authorization", "Bearer t")
        .header("x-listed", "client")
        .header("x-pre-a", "1")
        .header("x-pre-a", "2")
        .header("a-post", "3")
        .header("cookie", "secret")
        .header("x-forwarded-for", "1.2.3.4")
        .header("x-fixed", "client")
        .header("x-envoy-auth-partial-body", "true")
        .header("x-envoy-expected-rq-timeout-ms", "1");
    shop.send_body(request, "body").await;
    let check = &server.checks()[0];
    assert_eq!((check.method.as_str(), check.target.as_str()), ("PUT", "/check/c/d?x=%20"));
    let line = |name: &str| -> Vec<_> {
        check.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    };
    assert_eq!(line("host"), ["shop.example"]);
    assert_eq!(line("content-length"), ["0"]);
    assert_eq!(line("authorization"), ["Bearer t"]);
    assert_eq!(line("x-listed"), ["fixed"]);
    assert_eq!(line("x-pre-a"), ["1", "2"]);
    assert_eq!(line("a-post"), ["3"]);
    assert_eq!(line("x-fixed"), ["yes"]);
    assert_eq!(line("x-envoy-expected-rq-timeout-ms"), ["300"]);
    assert!(line("cookie").is_empty() && line("x-forwarded-for").is_empty());
    assert!(line("x-envoy-auth-partial-body").is_empty(), "the client says nothing about bodies");
    assert!(check.body.is_empty());
    assert_eq!(shop.served().unwrap().body, "body", "the service still gets the whole body");
}

/// What an authorizer judges is what the service gets, byte for byte (heimdall GHSA-r9fw-vxmp-hwf2).
#[tokio::test]
async fn sem_adv_15_the_authorizer_and_the_service_see_one_path() {
    let server = HttpServer::start().await;
    let shop = world(server.address, json!({}), Semantics::istio()).await;
    for (sent, received) in [
        ("/c%2fb", "/c%2fb"),
        ("/c%2Fb%5c?x=%2F..%2f", "/c%2Fb%5c?x=%2F..%2f"),
        ("/c%20d/%c3%a9", "/c%20d/%c3%a9"),
        ("/c//d;x=1", "/c//d;x=1"),
        ("/c/x/../%61?a=b%26", "/c/a?a=b%26"),
        ("/x/..;/c/%zz", "/c/%zz"),
    ] {
        assert_eq!(shop.get(sent).await.status, 200, "{sent}");
        assert_eq!(server.checks()[0].target, format!("/check{received}"), "{sent}");
        assert_eq!(shop.served().unwrap().target, received, "{sent}");
    }
}

/// Every line of a repeated header is shown, not the last alone (CVE-2021-32777).
#[tokio::test]
async fn sem_adv_26_every_line_reaches_the_authorizer() {
    let server = HttpServer::start().await;
    let more = json!({"includeRequestHeadersInCheck": ["x-role"]});
    let shop = world(server.address, more, Semantics::istio()).await;
    let roles = ["admin", "user", "", "admin, user"];
    let request = roles.iter().fold(Request::get("/c"), |sent, role| sent.header("x-role", *role));
    assert_eq!(shop.send(request).await.status, 200);
    let check = &server.checks()[0];
    let shown: Vec<_> = check.headers.get_all("x-role").iter().collect();
    assert_eq!(shown, roles);
    let served = shop.served().unwrap();
    assert_eq!(served.headers.get_all("x-role").iter().collect::<Vec<_>>(), roles);
}

/// [SEM-EXT-11] Which headers of the answer go where.
#[tokio::test]
async fn sem_ext_11_headers_go_where_they_are_listed() {
    let server = HttpServer::start().await;
    let more = json!({
        "headersToUpstreamOnAllow": ["x-user"], "headersToDownstreamOnAllow": ["x-down"],
        "headersToDownstreamOnDeny": ["x-why"],
    });
    let shop = world(server.address, more, Semantics::strict()).await;
    server.next(Act::answer(
        200,
        "",
        &[
            ("x-user", "alice"),
            ("x-down", "d"),
            ("x-other", "o"),
            ("host", "evil"),
            ("x-envoy-auth-headers-to-remove", "x-secret, Host,:path"),
        ],
    ));
    let request = Request::get("/c").header("x-user", "admin").header("x-secret", "s");
    let reply = shop.send(request).await;
    assert_eq!((reply.status, reply.lines("x-down")), (200, vec!["d"]));
    let served = shop.served().unwrap();
    assert_eq!(served.headers["x-user"], "alice");
    assert_eq!(served.headers["host"], "shop.example");
    assert!(!served.headers.contains_key("x-secret") && !served.headers.contains_key("x-other"));

    server.next(Act::answer(
        403,
        "no",
        &[("x-why", "rule 7"), ("x-other", "o"), ("www-authenticate", "Basic"), ("location", "/l")],
    ));
    let reply = shop.get("/c").await;
    assert_eq!(
        (reply.status, reply.body.as_str(), reply.lines("x-why")),
        (403, "no", vec!["rule 7"])
    );
    assert_eq!(
        (reply.lines("www-authenticate"), reply.lines("location")),
        (vec!["Basic"], vec!["/l"])
    );
    assert!(reply.lines("x-other").is_empty());
}

/// [SEM-EXT-10] Bodies: whole, cut, too large.
#[tokio::test]
async fn sem_ext_10_bodies_are_shown_within_their_limit() {
    let server = HttpServer::start().await;
    let body = json!({"includeRequestBodyInCheck": {"maxRequestBytes": 4}});
    let shop = world(server.address, body, Semantics::strict()).await;
    assert_eq!(shop.send_body(Request::post("/c"), "abcd").await.status, 200);
    let check = &server.checks()[0];
    assert_eq!(
        (&check.body[..], &check.headers["x-envoy-auth-partial-body"]),
        (&b"abcd"[..], &"false".parse().unwrap())
    );
    assert_eq!(shop.served().unwrap().body, "abcd");
    let reply = shop.send_body(Request::post("/c"), "abcde").await;
    assert_eq!((reply.status, server.checks().len()), (413, 0));
    assert!(shop.served().is_none());

    let body = json!({
        "includeRequestBodyInCheck": {"maxRequestBytes": 4, "allowPartialMessage": true},
    });
    let shop = world(server.address, body, Semantics::strict()).await;
    assert_eq!(shop.send_body(Request::post("/c"), "abcde").await.status, 200);
    let check = &server.checks()[0];
    assert_eq!(
        (&check.body[..], &check.headers["x-envoy-auth-partial-body"]),
        (&b"abcd"[..], &"true".parse().unwrap())
    );
    assert_eq!(shop.served().unwrap().body, "abcde", "the service gets all of it");
}

/// [SEM-EXT-13], [SEM-STRICT-19] What `failOpen` forgives, in both readings.
#[tokio::test]
async fn sem_strict_19_fail_open_forgives_outages_only() {
    for (semantics, for_500) in [(Semantics::strict(), 403), (Semantics::istio(), 200)] {
        let server = HttpServer::start().await;
        let shop = world(server.address, json!({"failOpen": true}), semantics).await;
        server.next(Act::status(500));
        assert_eq!(shop.get("/c").await.status, for_500, "500");
        server.next(Act::Wait(Duration::from_secs(5)));
        assert_eq!(shop.get("/c").await.status, 200, "a timeout");
        server.next(Act::HangUp);
        assert_eq!(shop.get("/c").await.status, 200, "a lost connection");
        server.next(Act::status(403));
        assert_eq!(shop.get("/c").await.status, 403, "a denial is no failure");
    }
}

/// What answers but is no HTTP is a failure, and no outage.
#[tokio::test]
async fn sem_ext_13_an_answer_that_is_no_http() {
    use tokio::io::AsyncWriteExt as _;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"220 smtp.example ready\r\n").await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let shop = world(address, json!({"failOpen": true}), Semantics::strict()).await;
    assert_eq!(shop.get("/c").await.status, 403);
    assert!(shop.served().is_none());
}

/// [SEM-EXT-05] Several providers: asked in the order of their names, all must allow; the first
/// changes what the second sees.
#[tokio::test]
async fn sem_ext_05_several_providers() {
    let (a, b) = (HttpServer::start().await, HttpServer::start().await);
    let up = json!({
        "headersToUpstreamOnAllow": ["x-from-a"], "includeRequestHeadersInCheck": ["x-from-a"],
    });
    let config =
        json!({"extensionProviders": [entry("b", b.address, &up), entry("a", a.address, &up)]});
    let policies = [policy("one", "b", "/c*"), policy("two", "a", "/c*")];
    let providers = ExtensionProviders::from_mesh_config(&config).unwrap();
    // Without the flag each refuses what it selects, and nothing else is affected.
    let shop = World::start(providers.clone(), &policies, Semantics::strict()).await;
    assert_eq!((shop.get("/c").await.status, shop.get("/x").await.status), (403, 200));
    assert!(a.checks().is_empty() && b.checks().is_empty());

    let providers = providers.several_per_workload();
    let shop = World::start(providers, &policies, Semantics::strict()).await;
    a.next(Act::answer(200, "", &[("x-from-a", "1")]));
    assert_eq!(shop.get("/c").await.status, 200);
    assert_eq!(b.checks()[0].headers["x-from-a"], "1");
    a.next(Act::status(401));
    assert_eq!(shop.get("/c").await.status, 401);
    assert!(b.checks().is_empty(), "a refusal ends the questions");
    b.next(Act::status(402));
    assert_eq!(shop.get("/c").await.status, 402);
}

/// A provider that hangs takes nothing from another, and holds at most its places.
#[tokio::test]
async fn one_provider_down_never_blocks_another() {
    let (slow, well) = (HttpServer::start().await, HttpServer::start().await);
    for _ in 0..50 {
        slow.next(Act::Wait(Duration::from_secs(30)));
    }
    let config = json!({"extensionProviders": [
        entry("slow", slow.address, &json!({"timeout": "1s"})), entry("well", well.address, &json!({})),
    ]});
    let providers = ExtensionProviders::from_mesh_config(&config).unwrap().several_per_workload();
    let few = providers.get("slow").unwrap().clone().with_concurrency(5);
    let providers = providers.replacing("slow", few);
    let policies = [policy("s", "slow", "/slow"), policy("w", "well", "/well")];
    let shop =
        std::sync::Arc::new(World::start(providers.clone(), &policies, Semantics::strict()).await);
    let stuck: Vec<_> = (0..50)
        .map(|_| {
            let shop = std::sync::Arc::clone(&shop);
            tokio::spawn(async move { shop.get("/slow").await.status })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(shop.get("/well").await.status, 200);
    }
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
    for one in stuck {
        assert_eq!(one.await.unwrap(), 403);
    }
    assert_eq!(slow.checks().len(), 5, "further requests are refused at once");
    let counts = providers.get("slow").unwrap().counts();
    assert_eq!((counts.errors, counts.allowed), (50, 0));
}

/// [SEM-EXT-04] A bad provider refuses what its policies select, and nothing else.
#[tokio::test]
async fn sem_ext_04_bad_providers_refuse_what_they_select() {
    let address = nobody().await;
    for entries in [
        vec![],
        vec![entry("ext", address, &json!({"pathPrefix": "no-slash"}))],
        vec![entry("ext", address, &json!({"headersToUpstreamOnAllow": ["*"]}))],
        vec![entry("ext", address, &json!({"statusOnError": "999"}))],
        vec![entry("ext", address, &json!({})), entry("ext", address, &json!({}))],
    ] {
        let config = json!({"extensionProviders": entries});
        let providers = ExtensionProviders::from_mesh_config(&config).unwrap();
        let shop = World::start(providers, &[custom("ext")], Semantics::strict()).await;
        let reply = shop.get("/c").await;
        assert_eq!((reply.status, reply.body.as_str()), (403, "RBAC: access denied"), "{config}");
        assert_eq!(shop.get("/x").await.status, 200);
    }
}

/// [SEM-ADV-72] An authorizer that refuses while the request is still coming, and CONNECT without
/// a path: nothing panics, the one is refused, the other judged, and the next one is served.
#[tokio::test]
async fn sem_adv_72_refused_mid_request_and_connect_without_path() {
    let server = HttpServer::start().await;
    let shop = world(server.address, json!({}), Semantics::strict()).await;
    let say = async |text: &str| {
        let mut stream = tokio::net::TcpStream::connect(shop.address).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        let read = stream.read_exact(&mut start).await;
        read.map(|_| String::from_utf8_lossy(&start).into_owned()).unwrap_or_default()
    };
    server.next(Act::status(403));
    let half = "POST /c HTTP/1.1\r\nhost: shop.example\r\ncontent-length: 1000\r\n\r\nhalf a bo";
    assert_eq!(say(half).await, "HTTP/1.1 403");
    server.next(Act::HangUp);
    assert_eq!(say(half).await, "HTTP/1.1 403");
    assert!(shop.served().is_none(), "nothing refused was served");
    // A path that is not there is none that the policy selects.
    let connect = say("CONNECT shop.example:80 HTTP/1.1\r\nhost: shop.example:80\r\n\r\n").await;
    assert_eq!(connect, "HTTP/1.1 200");
    assert_eq!(shop.get("/x").await.status, 200);
    assert_eq!(shop.get("/c").await.status, 200);
}
