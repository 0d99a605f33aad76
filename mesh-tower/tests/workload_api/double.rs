//! A Workload API that does what a script says: one list of steps for each connection.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_tower::WorkloadEndpoint;
use mesh_tower::identity::workload_api::{encode_claims, proto};
use prost::Message;
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore};

/// What happens next on a stream.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A message, encoded.
    Raw(Vec<u8>),
    /// Wait for [`Double::go_on`].
    Wait,
    /// Nothing, for ever.
    Hang,
    /// The stream ends with a code of gRPC.
    End(u8),
    /// The connection is lost.
    Cut,
}

impl Step {
    pub(crate) fn svids(message: &proto::X509SvidResponse) -> Self {
        Self::Raw(message.encode_to_vec())
    }

    pub(crate) fn jwt_bundles() -> Self {
        let keys = br#"{"keys": [{"kty": "EC", "use": "jwt-svid", "kid": "one", "crv": "P-256",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#;
        let bundles = [("spiffe://cluster.local".to_owned(), keys.to_vec())].into();
        Self::Raw(proto::JwtBundlesResponse { bundles }.encode_to_vec())
    }
}

pub(crate) struct Double {
    path: PathBuf,
    shared: Arc<Shared>,
}

struct Shared {
    scripts: Mutex<VecDeque<Vec<Step>>>,
    connections: AtomicUsize,
    go: Semaphore,
}

type Frames = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;
type Body = StreamBody<Frames>;

impl Double {
    pub(crate) fn start(scripts: impl IntoIterator<Item = Vec<Step>>) -> Self {
        Self::bound_later(scripts, Duration::ZERO)
    }

    /// The socket appears after a while.
    pub(crate) fn bound_later(
        scripts: impl IntoIterator<Item = Vec<Step>>,
        after: Duration,
    ) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("mesh-wl-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = std::env::temp_dir().join(name);
        let shared = Arc::new(Shared {
            scripts: Mutex::new(scripts.into_iter().collect()),
            connections: AtomicUsize::new(0),
            go: Semaphore::new(0),
        });
        if after.is_zero() {
            let listener = UnixListener::bind(&path).unwrap();
            tokio::spawn(accept(listener, Arc::clone(&shared)));
        } else {
            let (path, shared) = (path.clone(), Arc::clone(&shared));
            tokio::spawn(async move {
                tokio::time::sleep(after).await;
                accept(UnixListener::bind(&path).unwrap(), shared).await;
            });
        }
        Self { path, shared }
    }

    pub(crate) fn endpoint(&self) -> WorkloadEndpoint {
        format!("unix://{}", self.path.display()).parse().unwrap()
    }

    /// One [`Step::Wait`] is over.
    pub(crate) fn go_on(&self) {
        self.shared.go.add_permits(1);
    }

    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

/// Of the whole process.
pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

impl Drop for Double {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        shared.connections.fetch_add(1, Ordering::SeqCst);
        // Beyond its script it is as if nobody were there.
        let Some(script) = shared.scripts.lock().unwrap().pop_front() else { continue };
        let (shared, cut) = (Arc::clone(&shared), Arc::new(Notify::new()));
        tokio::spawn(async move {
            let served = Arc::clone(&cut);
            let service = service_fn(move |request| {
                let (shared, script) = (Arc::clone(&shared), script.clone());
                let cut = Arc::clone(&served);
                async move { Ok::<_, Infallible>(answer(request, shared, script, cut).await) }
            });
            let connection = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                done = connection => drop(done),
                () = cut.notified() => {}
            }
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    shared: Arc<Shared>,
    script: Vec<Step>,
    cut: Arc<Notify>,
) -> Response<Body> {
    let allowed = request.headers().get("workload.spiffe.io").is_some_and(|value| value == "true");
    let method = request.uri().path().to_owned();
    let question = request.into_body().collect().await.unwrap().to_bytes();
    let question = question.slice(5..);
    let script = match method.as_str() {
        _ if !allowed => vec![Step::End(3)],
        "/SpiffeWorkloadAPI/FetchX509SVID" | "/SpiffeWorkloadAPI/FetchJWTBundles" => script,
        "/SpiffeWorkloadAPI/FetchJWTSVID" => {
            let question = proto::JwtSvidRequest::decode(question).unwrap();
            let mut svid = proto::JwtSvid::default();
            svid.spiffe_id.clone_from(&question.spiffe_id);
            svid.svid = format!("token for {}", question.audience.join(","));
            let answer = proto::JwtSvidResponse { svids: vec![svid] };
            vec![Step::Raw(answer.encode_to_vec()), Step::End(0)]
        }
        "/SpiffeWorkloadAPI/ValidateJWTSVID" => {
            let question = proto::ValidateJwtSvidRequest::decode(question).unwrap();
            let claims = serde_json::json!({ "aud": question.audience });
            let answer = proto::ValidateJwtSvidResponse {
                spiffe_id: "spiffe://cluster.local/ns/shop/sa/server".to_owned(),
                claims: Some(encode_claims(claims.as_object().unwrap()).unwrap()),
            };
            if question.svid == "good" {
                vec![Step::Raw(answer.encode_to_vec()), Step::End(0)]
            } else {
                vec![Step::End(3)]
            }
        }
        _ => vec![Step::End(12)],
    };
    let frames = futures_util::stream::iter(script).then(move |step| {
        let (shared, cut) = (Arc::clone(&shared), Arc::clone(&cut));
        async move { play(step, &shared, &cut).await }
    });
    let frames = frames.filter_map(|frame| async move { frame.map(Ok) });
    let frames: Frames = Box::pin(frames);
    let mut response = Response::new(StreamBody::new(frames));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

async fn play(step: Step, shared: &Shared, cut: &Notify) -> Option<Frame<Bytes>> {
    match step {
        Step::Raw(message) => {
            let length = u32::try_from(message.len()).unwrap().to_be_bytes();
            Some(Frame::data([&[0][..], &length, &message].concat().into()))
        }
        Step::Wait => {
            shared.go.acquire().await.unwrap().forget();
            None
        }
        Step::Hang => std::future::pending().await,
        Step::End(code) => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
            trailers.insert("grpc-message", HeaderValue::from_static("as the script says"));
            Some(Frame::trailers(trailers))
        }
        Step::Cut => {
            // What was sent before must have left.
            tokio::time::sleep(Duration::from_millis(1)).await;
            cut.notify_one();
            std::future::pending().await
        }
    }
}
