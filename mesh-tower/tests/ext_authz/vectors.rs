//! Group `custom` of the recorded decisions: the real Envoy's, here through the real stage, with
//! authorizers in the process that behave as the recorded ones did.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;

use bytes::Bytes;
use flate2::read::GzDecoder;
use http::{Request, StatusCode};
use mesh_tower::authz::Semantics;
use mesh_tower::identity::Workload;
use mesh_tower::{
    Authorizer, CheckAnswer, CheckError, CheckFuture, CheckRequest, Denial, ExtensionProviders,
    Provider, RequestChanges,
};
use serde_json::Value;

use crate::world::World;

/// An authorizer of the recording.
#[derive(Debug)]
struct Recorded {
    behaviour: String,
}

impl Authorizer for Recorded {
    fn check<'r>(&'r self, _: CheckRequest<'r>) -> CheckFuture<'r> {
        let answer = match self.behaviour.as_str() {
            "allow" => Ok(CheckAnswer::Allow(RequestChanges::default())),
            "deny" => {
                let body = Bytes::from_static(b"denied by ext authz");
                Ok(CheckAnswer::Deny(Denial::new(StatusCode::FORBIDDEN, body)))
            }
            "down" => Err(CheckError::Connection("nobody is there".into())),
            other => panic!("behaviour {other}"),
        };
        Box::pin(async { answer })
    }
}

fn providers(mesh: &Value) -> ExtensionProviders {
    let mut list = Vec::new();
    let mut providers = ExtensionProviders::default();
    for (name, recorded) in mesh["extension_providers"].as_object().unwrap() {
        if recorded["invalid"] == true {
            // Without a port it is a bad provider.
            list.push(serde_json::json!({"name": name, "envoyExtAuthzGrpc": {"service": "a"}}));
            continue;
        }
        let behaviour = recorded["behaviour"].as_str().unwrap().to_owned();
        let mut provider = Provider::new(Recorded { behaviour });
        if recorded["fail_open"] == true {
            provider = provider.fail_open();
        }
        if let Some(status) = recorded["status_on_error"].as_str() {
            provider = provider.with_status_on_error(status.parse().unwrap());
        }
        providers = providers.with(name, provider);
    }
    if !list.is_empty() {
        let config = serde_json::json!({"extensionProviders": list});
        let bad = ExtensionProviders::from_mesh_config(&config).unwrap();
        providers = bad.problems().keys().fold(providers, ExtensionProviders::with_broken);
    }
    if mesh["enable_multiple_custom_providers"] == true {
        providers = providers.several_per_workload();
    }
    providers
}

/// [SEM-EXT-01], [SEM-EXT-04], [SEM-EXT-05], [SEM-EXT-13] as recorded.
#[tokio::test]
async fn sem_ext_01_the_recorded_decisions() {
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-authz/tests/vectors/custom.jsonl.gz");
    let mut text = String::new();
    GzDecoder::new(std::fs::File::open(file).unwrap()).read_to_string(&mut text).unwrap();
    let (mut asked, mut left_aside) = (0, BTreeMap::<&str, usize>::new());
    for line in text.lines() {
        let vector: Value = serde_json::from_str(line).unwrap();
        let (request, policies) = (&vector["request"], vector["policies"].to_string());
        // What the plain text of this test cannot show; the conformance test of mesh-authz has all.
        let needs = [
            ("a peer's identity", "rincipal"),
            ("a peer's namespace", "amespaces"),
            ("an address of its own", "pBlocks"),
            ("a dry run", "dry-run"),
        ];
        let need = needs.iter().find(|(_, word)| policies.contains(word));
        if let Some((need, _)) =
            need.or(request["jwt_claims"].is_object().then_some(&("a token", "")))
        {
            *left_aside.entry(need).or_default() += 1;
            continue;
        }
        let documents: Vec<String> =
            vector["policies"].as_array().unwrap().iter().map(Value::to_string).collect();
        let mut workload = Workload::new(vector["workload"]["namespace"].as_str().unwrap());
        for (key, value) in vector["workload"]["labels"].as_object().unwrap() {
            workload = workload.with_label(key, value.as_str().unwrap());
        }
        let providers = providers(&vector["mesh"]);
        let world = World::start_as(workload, providers, &documents, Semantics::istio()).await;
        let mut sent = Request::builder()
            .method(request["method"].as_str().unwrap())
            .uri(request["path"].as_str().unwrap());
        for header in request["headers"].as_array().unwrap() {
            sent = sent.header(header[0].as_str().unwrap(), header[1].as_str().unwrap());
        }
        let reply = world.send(sent).await;
        let expect = &vector["expect"];
        assert_eq!(
            u64::from(reply.status),
            expect["status"].as_u64().unwrap_or(200),
            "{}",
            vector["id"]
        );
        assert_eq!(world.served().is_some(), expect["decision"] == "allow", "{}", vector["id"]);
        if let Some(body) = expect["body"].as_str().filter(|_| expect["decision"] == "deny") {
            assert_eq!(reply.body, body, "{}", vector["id"]);
        }
        asked += 1;
    }
    println!("{asked} recorded decisions agree; left aside: {left_aside:?}");
    assert!(asked >= 80, "{asked}");
}
