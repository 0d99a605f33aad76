//! The recorded answers of Envoy to tokens through the whole pipeline: sockets, hyper, the layer.
//!
//! What differs must be a deviation that mesh-authn's own run documents for the same vector.
//! `MESH_PIPELINE=all cargo test --release -p mesh-tower --test pipeline -- --nocapture jwt` sends
//! every vector; without the variable one in eight. `MESH_JWT_VECTORS` names another folder than
//! the copy in mesh-authn.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request as Incoming;
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::request::Parts;
use mesh_ca::Authority;
use mesh_tower::authn::request::{RefreshPolicy, TokenOptions};
use mesh_tower::authz::Semantics;
use mesh_tower::identity::{BundleSet, MeshSettings, Workload, X509Svid};
use mesh_tower::{Clock, FetchError, FetchFuture, KeyFetcher, Mesh, Permit, Policies};
use rustls::pki_types::UnixTime;
use serde_json::Value;

use crate::jwt_support::vector::{Outcome, Vector};
use crate::jwt_support::{
    Documents, bytes_of, check, compare, compare_token, compare_upstream, compile, documents,
    read_lines,
};
use crate::tally::{Verdict, tally};
use crate::wire::{Dial, Reply, ask_http1, latin1};
use crate::world::{LOCALHOST, Witness, bind};

/// [SEC-JWT-7], [SEM-EVAL-01] Status, body, challenge and gRPC status of a refusal; principal, claims,
/// path and headers of what reaches a handler.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sec_jwt_7_the_recorded_answers_to_tokens_over_real_sockets() {
    let folder = std::env::var_os("MESH_JWT_VECTORS").map(PathBuf::from);
    let own = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh-authn/tests/vectors/jwt");
    let lines = read_lines(&folder.unwrap_or_else(own));
    let all = std::env::var("MESH_PIPELINE").is_ok_and(|which| which == "all");
    let step = if all { 1 } else { 8 };
    let vectors: Vec<Vector> =
        lines.iter().step_by(step).map(|line| serde_json::from_str(line).unwrap()).collect();
    let earliest = vectors.iter().map(|vector| vector.now).min().unwrap();
    let server = Server::new(earliest);
    let verdicts: Vec<(&Vector, Verdict)> = futures_util::stream::iter(&vectors)
        .map(async |vector| (vector, server.judge(vector).await))
        .buffer_unordered(8)
        .collect()
        .await;
    let judged = verdicts.iter().map(|(vector, verdict)| (&*vector.group, &*vector.id, verdict));
    let agree = tally("jwt", "documented deviations", judged);
    assert!(agree * 10 >= verdicts.len() * 9, "only {agree} of {} agree", verdicts.len());
}

/// Where a whole server answers otherwise than Envoy's filter alone, and why it stays so. One that agrees
/// after all fails the run, as one that is not listed.
const EXCEPTIONS: [(&str, &str); 3] = [
    (
        "request/realm-empty-host",
        "a request for no host is 400 before its token is looked at [SEC-HTTP-5]: Envoy answers 401 \
         because the token is invalid",
    ),
    (
        "request/realm-xfp-https",
        "the scheme in a challenge is the connection's: what a client says of it in \
         x-forwarded-proto is not believed [SEC-HTTP-2]",
    ),
    (
        "extract-header/header-pseudo-path",
        "a pseudo-header as a place of tokens is refused when it is read: with it Envoy takes the \
         path away with the token, and answers 503 to every good one",
    ),
];

/// When the vector was recorded.
#[derive(Debug)]
struct At(u64);

impl Clock for At {
    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(self.0))
    }
}

/// The key sets that a vector says were fetched.
#[derive(Debug)]
struct Sets(Vec<(String, String)>);

impl KeyFetcher for Sets {
    fn fetch<'f>(&'f self, url: &'f str, _: Duration) -> FetchFuture<'f> {
        let found = self.0.iter().find(|(own, _)| own == url);
        let answer = found.map(|(_, text)| Bytes::from(text.clone())).ok_or(FetchError::Url);
        Box::pin(async { answer })
    }
}

/// Who the servers are; one is made for each vector.
struct Server {
    svid: Arc<X509Svid>,
    bundles: Arc<BundleSet>,
}

/// What a handler got.
type Arrived = Arc<Mutex<Option<(Parts, Permit)>>>;

impl Server {
    fn new(earliest: u64) -> Self {
        let (now, day) = (At(earliest).now(), Duration::from_secs(24 * 3600));
        let authority = Authority::new_root(&"cluster.local".parse().unwrap(), day, now).unwrap();
        let id = "spiffe://cluster.local/ns/default/sa/server".parse().unwrap();
        let svid = authority.issue_svid(&id, day / 2, now).unwrap();
        let bundles = BundleSet::from_bundles([authority.bundle()]).unwrap();
        Self { svid: Arc::new(svid), bundles: Arc::new(bundles) }
    }

    async fn judge(&self, vector: &Vector) -> Verdict {
        let options = TokenOptions::istio();
        // The same vector without a network: what it may differ in.
        let documented = compare(vector, &compile(vector, &options), &options);
        let verdict = self.ask(vector).await;
        let excepted = EXCEPTIONS.iter().find(|(id, _)| *id == vector.id);
        match (verdict, excepted, documented) {
            (Verdict::Mismatch(_), Some((_, why)), _) => Verdict::Differs(why),
            (Verdict::Agrees, Some(_), _) => {
                Verdict::Mismatch("agrees, and is listed as an exception".to_owned())
            }
            (Verdict::Mismatch(_), _, Ok(Some(deviation))) => Verdict::Differs(deviation.reason()),
            (verdict, _, _) => verdict,
        }
    }

    async fn ask(&self, vector: &Vector) -> Verdict {
        let Documents { documents, fetched } = documents(vector);
        let files = documents.iter().map(|text| ("ra.json", text.as_str()));
        let witness = Witness::default();
        let settings = MeshSettings::new("cluster.local".parse().unwrap());
        let mesh =
            Policies::read(files, "default").map_err(|why| why.to_string()).and_then(|policies| {
                Mesh::builder(Workload::new("default"), settings)
                    .semantics(Semantics::istio())
                    .token_options(TokenOptions::istio())
                    .clock(Arc::new(At(vector.now)))
                    .wait_for_first_keys(Duration::from_secs(10))
                    .observer(Arc::new(witness.clone()))
                    .build(Arc::clone(&self.svid), Arc::clone(&self.bundles), policies)
                    .map_err(|why| why.to_string())
            });
        let mesh = match (mesh, vector.expect.outcome) {
            (Err(_), Outcome::ConfigRejected) => return Verdict::Agrees,
            (Err(error), _) => return Verdict::Mismatch(format!("configuration: {error}")),
            (Ok(_), Outcome::ConfigRejected) => {
                return Verdict::Mismatch("a configuration that Envoy refuses".to_owned());
            }
            (Ok(mesh), _) => mesh,
        };
        let fetching = tokio::spawn(
            mesh.clone().keep_keys_fresh(Arc::new(Sets(fetched)), RefreshPolicy::default()),
        );
        let arrived = Arrived::default();
        let place = Arc::clone(&arrived);
        let handler = async move |Extension(permit): Extension<Permit>, request: Incoming| {
            *place.lock().unwrap() = Some((request.into_parts().0, permit));
        };
        let (listener, address) = bind(LOCALHOST).await.unwrap();
        let serving = tokio::spawn(async move {
            mesh.serve(listener, Router::new().fallback(handler), std::future::pending()).await
        });
        let mut stream = Dial::default().connect(address).await.unwrap();
        let is_head = vector.request.method == "HEAD";
        let reply = ask_http1(&mut *stream, &bytes(vector), is_head).await;
        serving.abort();
        fetching.abort();
        let Some(decided) = witness.take() else {
            return Verdict::Skipped("hyper's parser refuses the request");
        };
        if vector.expect.outcome == Outcome::Transport {
            return Verdict::Skipped("Envoy's codec refuses the request, not its JWT filter");
        }
        let arrived = arrived.lock().unwrap().take();
        let Some(reply) = reply else {
            return Verdict::Mismatch(format!("no answer after {decided:?}"));
        };
        let compared = match arrived {
            Some((parts, permit)) => {
                let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
                compare_token(vector, permit.token())
                    .and_then(|()| compare_upstream(vector, &parts.method, path, &parts.headers))
            }
            None => compare_refusal(vector, &reply),
        };
        match compared {
            Ok(()) => Verdict::Agrees,
            Err(what) => Verdict::Mismatch(format!("{what} ({}, {decided:?})", reply.status)),
        }
    }
}

fn compare_refusal(vector: &Vector, reply: &Reply) -> Result<(), String> {
    let expect = &vector.expect;
    check("status", &expect.status, &Some(reply.status))?;
    check("outcome", &expect.outcome, &Outcome::Rejected)?;
    if vector.request.method != "HEAD" {
        check("body", &expect.body.clone().unwrap_or_default(), &latin1(&reply.body))?;
    }
    for name in ["www-authenticate", "content-type", "grpc-status", "grpc-message"] {
        let theirs = expect.response_headers.get(name).and_then(Value::as_str);
        check(name, &theirs, &reply.header(name))?;
    }
    Ok(())
}

/// The request as bytes of HTTP/1.1.
fn bytes(vector: &Vector) -> Vec<u8> {
    let request = &vector.request;
    let mut text = bytes_of(&format!("{} {} HTTP/1.1\r\n", request.method, request.path));
    for (name, value) in &request.headers {
        text.extend(bytes_of(&format!("{name}: {value}\r\n")));
    }
    text.extend(b"\r\n");
    text
}
