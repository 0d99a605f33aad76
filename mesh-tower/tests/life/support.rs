//! A server in the mesh, clients with identities, and a clock that can be set.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::routing::{get, post};
use futures_util::FutureExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mesh_ca::Authority;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::identity::{BundleSet, MeshSettings, SpiffeId, TrustBundle, Workload, X509Svid};
use mesh_tower::{
    Clock, ConnectError, ConnectionEvent, ConnectionInfo, Connector, DecisionEvent, Limits, Mesh,
    MeshBuilder, MeshStream, Observer, Policies, SystemClock,
};
use rustls::pki_types::UnixTime;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tower::ServiceExt as _;

/// Longer than anything here may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

/// The system's clock, set forward or back by some seconds.
#[derive(Clone, Debug, Default)]
pub(crate) struct SetClock(Arc<AtomicI64>);

impl SetClock {
    /// Sets the clock by so many seconds, compared with the system's.
    pub(crate) fn set(&self, seconds: i64) {
        self.0.store(seconds, Ordering::SeqCst);
    }
}

impl Clock for SetClock {
    fn now(&self) -> UnixTime {
        let now = i64::try_from(SystemClock.now().as_secs()).unwrap();
        let now = now.saturating_add(self.0.load(Ordering::SeqCst)).max(0);
        UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()))
    }
}

pub(crate) fn authority() -> Authority {
    let home = "cluster.local".parse().unwrap();
    Authority::new_root(&home, 24 * HOUR, SystemClock.now()).unwrap()
}

pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// An identity that lives for so long from now.
pub(crate) fn svid(authority: &Authority, account: &str, life: Duration) -> Arc<X509Svid> {
    Arc::new(authority.issue_svid(&id(account), life, SystemClock.now()).unwrap())
}

/// The bundle of the home trust domain with the roots of these authorities.
pub(crate) fn trust(authorities: &[&Authority]) -> Arc<BundleSet> {
    let pem: String = authorities.iter().map(|one| one.certificate_pem()).collect();
    let home = "cluster.local".parse().unwrap();
    let bundle = TrustBundle::from_pem(home, pem.as_bytes()).unwrap();
    Arc::new(BundleSet::from_bundles([bundle]).unwrap())
}

pub(crate) fn policies(texts: &[&str]) -> Policies {
    let names: Vec<String> = (0..texts.len()).map(|at| format!("{at}.yaml")).collect();
    let texts = names.iter().map(String::as_str).zip(texts.iter().copied());
    Policies::read(texts, "shop").unwrap()
}

/// Why connections were refused, as an observer hears it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refusals(Arc<Mutex<Vec<String>>>);

impl Refusals {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Refusals {
    fn decided(&self, _: &DecisionEvent<'_>) {}

    fn connection_refused(&self, event: &ConnectionEvent) {
        self.0.lock().unwrap().push(event.reason.clone());
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Server {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddr,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) done: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// Starts a server with the identity `server`.
pub(crate) async fn serve(
    authority: &Authority,
    clock: &SetClock,
    policies: Policies,
    change: impl FnOnce(&mut Limits),
) -> Server {
    let mut limits = Limits::default();
    change(&mut limits);
    run(builder(clock).limits(limits), authority, policies).await
}

/// The same, for clients of TLS 1.2 too.
pub(crate) async fn serve_tls12(
    authority: &Authority,
    clock: &SetClock,
    policies: Policies,
) -> Server {
    run(builder(clock).with_tls12(), authority, policies).await
}

pub(crate) fn builder(clock: &SetClock) -> MeshBuilder {
    let settings = MeshSettings::new("cluster.local".parse().unwrap());
    Mesh::builder(workload(), settings).clock(Arc::new(clock.clone()))
}

async fn run(builder: MeshBuilder, authority: &Authority, policies: Policies) -> Server {
    serve_mesh(
        builder.build(svid(authority, "server", HOUR), trust(&[authority]), policies).unwrap(),
    )
    .await
}

pub(crate) async fn serve_mesh(mesh: Mesh) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = mesh.clone();
    let done =
        tokio::spawn(
            async move { serving.serve(listener, app(), async { drop(stopped.await) }).await },
        );
    Server { mesh, address, stop: Some(stop), done }
}

fn workload() -> Workload {
    Workload::new("shop").with_label("app", "server")
}

fn app() -> Router {
    let ticks = || {
        futures_util::stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"tick\n")), ()))
        })
    };
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route(
            "/who",
            get(|Extension(info): Extension<ConnectionInfo>| async move {
                let peer = info.peer().map_or("nobody".to_owned(), |peer| peer.id().to_string());
                format!("{} {peer}", info.peer_address())
            }),
        )
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(400)).await;
                "slow"
            }),
        )
        .route("/stream", get(move || async move { Body::from_stream(ticks()) }))
        .route("/echo", post(|body: Bytes| async move { body }))
        .route("/both", post(|body: Body| async move { body }))
        .route("/hold", post(|_body: Body| std::future::pending::<&'static str>()))
        .route(
            "/late",
            get(move || async move {
                tokio::time::sleep(Duration::from_millis(600)).await;
                Body::from_stream(ticks())
            }),
        )
        .route("/upgrade", get(upgrade))
}

/// Switches to an echo, in a task of its own.
async fn upgrade(request: axum::extract::Request) -> Response<Body> {
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let (mut read, mut write) = tokio::io::split(hyper_util::rt::TokioIo::new(upgraded));
        drop(tokio::io::copy(&mut read, &mut write).await);
    });
    Response::builder()
        .status(101)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .body(Body::empty())
        .unwrap()
}

/// A mesh that only connects, with an identity of its own.
pub(crate) fn client_mesh(svid: Arc<X509Svid>, trust: Arc<BundleSet>, clock: &SetClock) -> Mesh {
    Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap()))
        .clock(Arc::new(clock.clone()))
        .build(svid, trust, Policies::none())
        .unwrap()
}

/// A client of the authority's, which connects to `server` under the host name `server`.
pub(crate) fn client(authority: &Authority, life: Duration, server: &Server) -> Connector {
    let svid = svid(authority, "client", life);
    // The client's clock is its own: only the server is put to the test.
    connector(&client_mesh(svid, trust(&[authority]), &SetClock::default()), server)
}

pub(crate) fn connector(mesh: &Mesh, server: &Server) -> Connector {
    let expected = ExpectedServer::exact(id("server"));
    Connector::new(mesh.clone()).service("server", server.address, &expected)
}

pub(crate) async fn connect(connector: &Connector) -> Result<MeshStream, ConnectError> {
    connector.clone().oneshot("https://server/".parse().unwrap()).await
}

/// One connection that the test holds.
pub(crate) struct Held {
    /// Nothing once the connection is gone.
    send: Option<SendRequest>,
    version: &'static str,
    gone: watch::Receiver<()>,
}

enum SendRequest {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

/// A held connection, and what tells that it is gone.
pub(crate) type HeldWithEnd = (Held, tokio::task::JoinHandle<hyper::Result<()>>);

/// Both versions, each on a connection of its own.
pub(crate) async fn hold_both(connector: &Connector) -> [HeldWithEnd; 2] {
    let one = connector.clone().protocol(ClientProtocol::Http1);
    let two = connector.clone().protocol(ClientProtocol::Http2);
    [hold(connect(&one).await.unwrap(), 1).await, hold(connect(&two).await.unwrap(), 2).await]
}

/// What a new client is answered; nothing where it is not let in. In TLS 1.3 it has finished the
/// handshake before it hears of that.
pub(crate) async fn status_of_new(connector: &Connector) -> Option<u16> {
    let stream = connect(&connector.clone().protocol(ClientProtocol::Http1)).await.ok()?;
    hold(stream, 1).await.0.status("/").await
}

pub(crate) async fn hold_plain(address: SocketAddr) -> HeldWithEnd {
    let stream = TcpStream::connect(address).await.unwrap();
    hold(hyper_util::rt::TokioIo::new(stream), 1).await
}

pub(crate) async fn hold<T>(stream: T, version: u8) -> HeldWithEnd
where
    T: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (lives, gone) = watch::channel(());
    if version == 1 {
        let (send, connection) = http1::handshake(stream).await.unwrap();
        let end = tokio::spawn(connection.inspect(|_| drop(lives)));
        (Held { send: Some(SendRequest::Http1(send)), version: "HTTP/1.1", gone }, end)
    } else {
        let (send, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .handshake(stream)
            .await
            .unwrap();
        let end = tokio::spawn(connection.inspect(|_| drop(lives)));
        (Held { send: Some(SendRequest::Http2(send)), version: "HTTP/2", gone }, end)
    }
}

impl Held {
    pub(crate) fn version(&self) -> &'static str {
        self.version
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Response<Incoming>, String> {
        let version = self.version;
        let answer = timeout(PATIENCE, self.answer(path)).await;
        assert!(answer.is_ok(), "{version} {path}: neither an answer nor an error in time");
        answer.unwrap()
    }

    async fn answer(&mut self, path: &str) -> Result<Response<Incoming>, String> {
        let failed = |error: hyper::Error| format!("{error:?}");
        let send = self.send.as_mut().ok_or("the connection is gone")?;
        let answer = match send {
            SendRequest::Http1(send) => {
                send.ready().await.map_err(failed)?;
                let request = Request::get(path).header("host", "server");
                send.send_request(request.body(Empty::new()).unwrap()).boxed()
            }
            SendRequest::Http2(send) => {
                send.ready().await.map_err(failed)?;
                let request = Request::get(format!("https://server{path}"));
                send.send_request(request.body(Empty::new()).unwrap()).boxed()
            }
        };
        let mut answer = pin!(answer);
        tokio::select! {
            biased;
            answer = answer.as_mut() => return answer.map_err(failed),
            _ = self.gone.changed() => {}
        }
        // A request that is sent in the moment in which the connection ends can stay in hyper's channel,
        // where its sender keeps it: without this it would never fail.
        self.send = None;
        answer.await.map_err(failed)
    }

    /// The status of a request whose body is read to its end; nothing when it fails.
    pub(crate) async fn status(&mut self, path: &str) -> Option<u16> {
        let response = self.get(path).await.ok()?;
        let status = response.status().as_u16();
        response.into_body().collect().await.ok()?;
        Some(status)
    }
}

/// Waits until a connection is gone, and tells how long that took.
pub(crate) async fn gone(end: tokio::task::JoinHandle<hyper::Result<()>>) -> Duration {
    let begun = std::time::Instant::now();
    drop(timeout(PATIENCE, end).await.expect("the connection ends").unwrap());
    begun.elapsed()
}

/// Reads a body to its end or error, and tells how long that took.
pub(crate) async fn drained(response: Response<impl http_body::Body + Unpin>) -> Duration {
    let begun = std::time::Instant::now();
    let mut body = response.into_body();
    timeout(PATIENCE, async { while let Some(Ok(_)) = body.frame().await {} })
        .await
        .expect("the body ends");
    begun.elapsed()
}
