//! The decision log: what leaves the process, in which form, and what becomes of it when the
//! service is down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use mesh_tower::authz::rego::{LogPolicy, RegoOptions, RegoPolicy};
use mesh_tower::{DecisionLog, LogSink as _, LogUpload, LogUploadCounts};
use rustls::crypto::ring::default_provider;
use serde_json::{Value, json};

use crate::control::{Act, Asked, Control, module};
use crate::world::World;
use crate::{guarded, until, waiting};

const MOMENT: Duration = Duration::from_millis(50);

/// A stage with a policy and a log that goes to the control plane.
struct Logged {
    shop: World,
    log: Arc<DecisionLog>,
    counts: Box<dyn Fn() -> LogUploadCounts + Send>,
}

async fn logged(upload: LogUpload, log_rules: &str) -> Logged {
    let text = module("a");
    let policy = RegoPolicy::compile(&[("a.rego", &text)], None, RegoOptions::default()).unwrap();
    let log_rules = [("log.rego", log_rules)];
    let masks = if log_rules[0].1.is_empty() {
        LogPolicy::default()
    } else {
        LogPolicy::compile(&log_rules, None).unwrap()
    };
    let (sink, uploader) = upload.start();
    let counts = Box::new(uploader.counter());
    tokio::spawn(uploader.run());
    let random = default_provider().secure_random;
    let labels = [("app".to_owned(), "shop".to_owned())];
    let log = DecisionLog::start(sink, labels, random, 4096).unwrap();
    let stage = waiting().with_decision_log(Arc::clone(&log));
    stage.set_policy(Arc::new(policy.with_revision("r7")), Arc::new(masks));
    let shop = guarded(&stage).await;
    Logged { shop, log, counts }
}

fn secrets() -> http::request::Builder {
    Request::get("/c/a?token=1")
        .header("authorization", "Bearer very-secret")
        .header("cookie", "session=very-secret")
        .header("x-forwarded-client-cert", "very-secret")
        .header("x-kept", "kept")
}

fn events(control: &Control) -> Vec<Value> {
    control.asked().iter().flat_map(Asked::events).collect()
}

#[tokio::test]
async fn decisions_are_uploaded_as_opa_does_and_hold_no_credentials() {
    let control = Control::start().await;
    (0..9).for_each(|_| control.next(Act::status("200 OK")));
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT);
    let logged = logged(upload.with_resource("logs/shop"), "").await;
    assert_eq!(logged.shop.send(secrets()).await.status, 200);
    assert_eq!(logged.shop.get("/c/b").await.status, 403);
    until("both", || (logged.counts)().uploaded == 2).await;
    for asked in control.asked() {
        assert_eq!(asked.line(), "POST /opa/logs/shop HTTP/1.1");
        assert_eq!(asked.header("content-type"), Some("application/json"));
        assert_eq!(asked.header("content-encoding"), Some("gzip"));
    }
    let events = events(&control);
    let [allowed, denied] = events.as_slice() else { panic!("{events:?}") };
    assert!(!allowed.to_string().contains("very-secret"), "{allowed}");
    let headers = &allowed["input"]["attributes"]["request"]["http"]["headers"];
    assert_eq!(headers["x-kept"], "kept");
    let erased = allowed["erased"].as_array().unwrap();
    assert!(headers.get("x-forwarded-client-cert").is_none());
    for name in ["authorization", "cookie"] {
        assert!(headers.get(name).is_none(), "{name}");
        let path = format!("/input/attributes/request/http/headers/{name}");
        assert!(erased.contains(&json!(path)), "{name}");
    }
    assert_eq!(allowed["bundles"], json!({"bundle": {"revision": "r7"}}));
    assert_eq!(allowed["path"], "envoy/authz/allow");
    assert_eq!(allowed["labels"], json!({"app": "shop"}));
    assert_eq!((&allowed["result"], &denied["result"]), (&json!(true), &json!(false)));
    assert_eq!(allowed["decision_id"].as_str().unwrap().len(), 36);
    assert_ne!(allowed["decision_id"], denied["decision_id"]);
    assert!(allowed["timestamp"].as_str().unwrap().ends_with('Z'));
    assert!(allowed["metrics"]["timer_rego_query_eval_ns"].as_u64().unwrap() > 0);
}

#[tokio::test]
async fn masks_and_drops_of_the_policy_are_honoured() {
    let control = Control::start().await;
    (0..9).for_each(|_| control.next(Act::status("200 OK")));
    let rules = r#"package system.log
        mask contains "/input/attributes/request/http/headers/x-kept"
        mask contains {"op": "upsert", "path": "/input/parsed_query", "value": "hidden"}
        drop if input.input.parsed_path[1] == "dropped"
    "#;
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT);
    let logged = logged(upload, rules).await;
    assert_eq!(logged.shop.get("/c/dropped").await.status, 403);
    assert_eq!(logged.shop.send(secrets()).await.status, 200);
    until("one", || (logged.counts)().uploaded == 1).await;
    let events = events(&control);
    let [event] = events.as_slice() else { panic!("{events:?}") };
    let text = event.to_string();
    assert!(!text.contains("very-secret") && !text.contains("\"kept\""), "{text}");
    assert_eq!(event["input"]["parsed_query"], "hidden");
    assert_eq!(event["masked"], json!(["/input/parsed_query"]));
    assert_eq!(logged.log.counts().masked_out, 1);
}

/// A mask that fails lets nothing out.
#[tokio::test]
async fn a_mask_that_fails_loses_the_event_not_the_secret() {
    let control = Control::start().await;
    let rules = "package system.log\nmask contains x if x := input.input.parsed_path[0] + 1\n";
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT);
    let logged = logged(upload, rules).await;
    assert_eq!(logged.shop.send(secrets()).await.status, 200);
    until("a loss", || logged.log.counts().failed == 1).await;
    assert!(control.asked().is_empty());
}

#[tokio::test]
async fn requests_to_the_service_are_as_large_as_they_may_be() {
    let control = Control::start().await;
    (0..200).for_each(|_| control.next(Act::status("200 OK")));
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT).with_chunk(1500);
    let logged = logged(upload, "").await;
    for at in 0..60 {
        let request = Request::get("/c/a").header("x-noise", noise(at));
        assert_eq!(logged.shop.send(request).await.status, 200);
    }
    // One that no request has room for.
    let huge: String = (1000..1100).map(noise).collect();
    assert_eq!(logged.shop.send(Request::get("/c/a").header("x-noise", huge)).await.status, 200);
    until("all", || (logged.counts)().uploaded == 60).await;
    until("the huge one", || (logged.counts)().too_large == 1).await;
    let sizes: Vec<usize> = control.asked().iter().map(|asked| asked.body.len()).collect();
    assert!(sizes.iter().all(|size| *size <= 1500), "{sizes:?}");
    assert!(sizes.len() < 60, "events travel together: {sizes:?}");
    let ids: std::collections::BTreeSet<String> =
        events(&control).iter().map(|event| event["decision_id"].to_string()).collect();
    assert_eq!(ids.len(), 60);
}

/// Text that does not compress.
fn noise(seed: u64) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, &seed.to_be_bytes());
    digest.as_ref().iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

#[tokio::test]
async fn a_service_that_is_down_gets_everything_later() {
    let control = Control::start().await;
    control.next(Act::status("500 Internal Server Error"));
    control.next(Act::Raw(Vec::new()));
    control.next(Act::status("429 Too Many Requests"));
    control.next(Act::status("200 OK"));
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT);
    let logged = logged(upload, "").await;
    for _ in 0..3 {
        assert_eq!(logged.shop.get("/c/a").await.status, 200);
    }
    until("all", || (logged.counts)().uploaded >= 3).await;
    let counts = (logged.counts)();
    assert_eq!((counts.failures, counts.dropped), (3, 0));
    let asked = control.asked();
    assert_eq!(asked.last().unwrap().events().len(), 3);
    let rests: Vec<Duration> =
        asked.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at)).collect();
    assert!(rests[2] >= Duration::from_millis(300), "{rests:?}");
}

/// Back-pressure: no request waits for a service that is down, and the oldest events make room.
#[tokio::test]
async fn more_than_may_wait_is_dropped_and_counted() {
    let control = Control::start().await;
    (0..3).for_each(|_| control.next(Act::status("503 Service Unavailable")));
    let upload = LogUpload::new(control.service()).with_delay(MOMENT, MOMENT).with_buffer(8_000);
    let logged = logged(upload, "").await;
    let start = Instant::now();
    for at in 0..100 {
        assert_eq!(logged.shop.get(&format!("/c/a/{at}")).await.status, 200);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "requests do not wait for the log");
    until("drops", || (logged.counts)().dropped > 0).await;
    (0..50).for_each(|_| control.next(Act::status("200 OK")));
    until("the rest", || {
        let counts = (logged.counts)();
        counts.uploaded + counts.dropped == 100 && counts.uploaded > 0
    })
    .await;
    let last = control.asked().last().unwrap().events();
    assert_eq!(last.last().unwrap()["input"]["parsed_path"][2], "99", "the newest are kept");
}

/// What waits when the log ends is still sent; when it cannot be, that is counted.
#[tokio::test]
async fn the_end_of_the_log_is_uploaded() {
    let control = Control::start().await;
    control.next(Act::status("200 OK"));
    let hour = Duration::from_secs(3600);
    for sent in [1, 0] {
        let upload = LogUpload::new(control.service()).with_delay(hour, hour);
        let (mut sink, uploader) = upload.start();
        let counts = uploader.counter();
        let running = tokio::spawn(uploader.run());
        sink.write(&json!({"decision_id": "last"})).unwrap();
        drop(sink);
        running.await.unwrap();
        assert_eq!((counts().uploaded, counts().dropped), (sent, 1 - sent));
    }
    assert_eq!(control.asked()[0].events(), [json!({"decision_id": "last"})]);
}
