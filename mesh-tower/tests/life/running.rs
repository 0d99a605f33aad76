//! [SEM-STRICT-18] What is open when policies change or a token ends: TCP connections, streams in
//! either direction, upgraded connections.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use http::{Method, Request};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_ca::{Authority, JwtKey, oidc_jwks};
use mesh_tower::authn::peer::ClientProtocol;
use mesh_tower::{Clock as _, Connector, Policies, SystemClock, TcpConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::support::{
    PATIENCE, Server, SetClock, authority, client_mesh, connect, connector, id, policies, serve,
    svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What "at once" means on a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// Long enough to see that something goes on.
const A_WHILE: Duration = Duration::from_millis(300);

const DENY_CLIENT: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";
const DENY_ROLE: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-role, namespace: shop}
spec:
  action: DENY
  rules: [{when: [{key: 'request.headers[x-role]', values: [intern]}]}]
";
const DENY_PATH: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-stream, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/stream, /both, /upgrade, /hold, /late]}}]}]
";
const ALLOW_GET: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: get, namespace: shop}
spec:
  rules: [{to: [{operation: {methods: [GET, POST], notPaths: [/elsewhere]}}]}]
";

/// How something runs on a connection of its own.
#[derive(Clone, Copy, Debug)]
enum Kind {
    /// An answer of HTTP/1.1 that does not end.
    Answer1,
    /// The same on HTTP/2.
    Answer2,
    /// HTTP/1.1, chunks to and fro.
    Both1,
    /// gRPC's form: HTTP/2, frames to and fro.
    Both2,
    /// A stream to a handler that has not answered yet.
    Hold2,
    /// A body of a megabyte that says so, to a handler that has not answered yet.
    Length1,
    /// The same on HTTP/2.
    Length2,
    /// An answer that begins after the change, and then streams.
    Late1,
    /// Bytes to and fro after `101 Switching Protocols`, as WebSocket has it.
    Upgraded,
}

const ALL: [Kind; 9] = [
    Kind::Answer1,
    Kind::Answer2,
    Kind::Both1,
    Kind::Both2,
    Kind::Hold2,
    Kind::Length1,
    Kind::Length2,
    Kind::Late1,
    Kind::Upgraded,
];

/// Something that runs; it tells how it has ended.
struct Stream {
    kind: Kind,
    ended: JoinHandle<Ended>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ended {
    /// As if all had been said.
    Cleanly,
    /// In the middle.
    Cut,
    /// With this status in the place of an answer.
    Status(u16),
}

impl Stream {
    async fn begin(connector: &Connector, kind: Kind, header: Option<(&str, &str)>) -> Self {
        let (path, method) = match kind {
            Kind::Answer1 | Kind::Answer2 => ("/stream", Method::GET),
            Kind::Both1 | Kind::Both2 => ("/both", Method::POST),
            Kind::Hold2 | Kind::Length1 | Kind::Length2 => ("/hold", Method::POST),
            Kind::Late1 => ("/late", Method::GET),
            Kind::Upgraded => ("/upgrade", Method::GET),
        };
        let mut request = Request::builder().method(method.clone());
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let is_http2 = matches!(kind, Kind::Answer2 | Kind::Both2 | Kind::Hold2 | Kind::Length2);
        request = if is_http2 {
            request.uri(format!("https://server{path}"))
        } else {
            request.uri(path).header("host", "server")
        };
        if matches!(kind, Kind::Upgraded) {
            request = request.header("connection", "upgrade").header("upgrade", "websocket");
        }
        if matches!(kind, Kind::Both2 | Kind::Hold2) {
            request = request.header("content-type", "application/grpc");
        }
        if matches!(kind, Kind::Length1 | Kind::Length2) {
            request = request.header("content-length", "1000000");
        }
        let body = if method == Method::POST { ticks() } else { Empty::new().boxed_unsync() };
        let request = request.body(body).unwrap();
        let protocol = if is_http2 { ClientProtocol::Http2 } else { ClientProtocol::Http1 };
        let stream = connect(&connector.clone().protocol(protocol)).await.unwrap();
        let ended = if is_http2 {
            let (mut send, connection) =
                http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            tokio::spawn(async move { read(send.send_request(request).await).await })
        } else {
            let (mut send, connection) = http1::handshake(stream).await.unwrap();
            tokio::spawn(connection.with_upgrades());
            tokio::spawn(async move { read(send.send_request(request).await).await })
        };
        // Under way, whatever it is.
        tokio::time::sleep(Duration::from_millis(150)).await;
        let stream = Self { kind, ended };
        assert!(!stream.ended.is_finished(), "{kind:?} has not begun");
        stream
    }

    async fn goes_on(&self) {
        tokio::time::sleep(A_WHILE).await;
        assert!(!self.ended.is_finished(), "{:?} was ended", self.kind);
    }

    /// It is ended now, and nobody takes what came for all of it.
    async fn until_cut(self) -> Duration {
        let begun = Instant::now();
        let ended = timeout(PATIENCE, self.ended).await;
        let ended = ended.expect("what is refused ends").unwrap();
        assert_ne!(ended, Ended::Cleanly, "{:?}", self.kind);
        begun.elapsed()
    }
}

fn ticks() -> UnsyncBoxBody<Bytes, Infallible> {
    let ticks = futures_util::stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"tick\n"))), ()))
    });
    StreamBody::new(ticks).boxed_unsync()
}

async fn read(response: hyper::Result<http::Response<hyper::body::Incoming>>) -> Ended {
    let Ok(response) = response else { return Ended::Cut };
    if response.status() == 101 {
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let mut room = [0; 16];
        loop {
            if stream.write_all(b"tick\n").await.is_err() {
                return Ended::Cut;
            }
            match stream.read(&mut room).await {
                Ok(0) | Err(_) => return Ended::Cut,
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
    // gRPC's refusal has the status in its headers.
    if response.status() != 200 || response.headers().contains_key("grpc-status") {
        return Ended::Status(response.status().as_u16());
    }
    let mut body = response.into_body();
    loop {
        match body.frame().await {
            None => return Ended::Cleanly,
            Some(Err(_)) => return Ended::Cut,
            Some(Ok(_)) => {}
        }
    }
}

fn as_account(authority: &Authority, account: &str, server: &Server) -> Connector {
    let svid = svid(authority, account, 10 * HOUR);
    connector(&client_mesh(svid, trust(&[authority]), &SetClock::default()), server)
}

async fn begin_all(connector: &Connector, header: Option<(&str, &str)>) -> Vec<Stream> {
    futures_util::future::join_all(ALL.map(|kind| Stream::begin(connector, kind, header))).await
}

async fn all_go_on(streams: &[Stream]) {
    futures_util::future::join_all(streams.iter().map(Stream::goes_on)).await;
}

/// All are cut, the last of them after this time.
async fn all_are_cut(streams: Vec<Stream>) -> Duration {
    let times = futures_util::future::join_all(streams.into_iter().map(Stream::until_cut)).await;
    times.into_iter().max().unwrap()
}

/// [SEM-STRICT-18] What new policies refuse is ended, in every form; what they admit goes on.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_new_policies_judge_what_is_running() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let (client, other) =
        (as_account(&authority, "client", &server), as_account(&authority, "other", &server));
    let (out, stays) =
        tokio::join!(begin_all(&client, None), begin_all(&other, Some(("x-role", "intern"))));
    server.mesh.set_policies(policies(&[ALLOW_GET])).unwrap();
    all_go_on(&out).await;
    server.mesh.set_policies(policies(&[ALLOW_GET, DENY_CLIENT])).unwrap();
    let took = all_are_cut(out).await;
    assert!(took < SOON, "{took:?}");
    all_go_on(&stays).await;
    // By a header that only the head had.
    server.mesh.set_policies(policies(&[DENY_ROLE])).unwrap();
    let took = all_are_cut(stays).await;
    assert!(took < SOON, "{took:?}");
    // By its path.
    let more = begin_all(&other, None).await;
    server.mesh.set_policies(policies(&[DENY_PATH])).unwrap();
    assert!(all_are_cut(more).await < SOON);
}

/// [SEM-STRICT-18] An end in the middle is an end in the middle: no client takes it for the whole.
/// One that had no answer yet gets the refusal.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_how_each_kind_ends() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let client = as_account(&authority, "client", &server);
    let streams = begin_all(&client, None).await;
    server.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
    for stream in streams {
        let kind = stream.kind;
        let ended = timeout(PATIENCE, stream.ended).await.unwrap().unwrap();
        let want = match kind {
            Kind::Hold2 => Ended::Status(200),
            Kind::Length1 | Kind::Length2 => Ended::Status(403),
            Kind::Answer1
            | Kind::Answer2
            | Kind::Both1
            | Kind::Both2
            | Kind::Late1
            | Kind::Upgraded => Ended::Cut,
        };
        assert_eq!(ended, want, "{kind:?}");
    }
}

/// [SEM-STRICT-18] By choice what is refused has time to end, or is left alone.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_closed_or_drained_by_choice() {
    let (authority, clock) = (authority(), SetClock::default());
    let drain = Duration::from_millis(1500);
    let patient = serve(&authority, &clock, Policies::none(), |limits| {
        limits.denied_drain = Some(drain);
    })
    .await;
    let istio =
        serve(&authority, &clock, Policies::none(), |limits| limits.denied_drain = None).await;
    let client = as_account(&authority, "client", &istio);
    let left_alone = begin_all(&client, None).await;
    istio.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
    let client = as_account(&authority, "client", &patient);
    let drained = begin_all(&client, None).await;
    let begun = Instant::now();
    patient.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
    all_go_on(&drained).await;
    all_are_cut(drained).await;
    let took = begun.elapsed();
    assert!(took >= drain && took < drain + SOON, "{took:?}");
    all_go_on(&left_alone).await;
}

fn authentication(key: &JwtKey) -> String {
    let keys = oidc_jwks(&[key.authority().clone()]);
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  jwtRules: [{{issuer: 'https://issuer.test', jwks: '{keys}'}}]
"
    )
}

const WITH_TOKEN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: with-token, namespace: shop}
spec:
  rules: [{from: [{source: {requestPrincipals: ['*']}}]}]
";

fn bearer(key: &JwtKey, life: Duration) -> String {
    let (audience, issuer) = (["shop".to_owned()], Some("https://issuer.test"));
    let token = key.issue(&id("alice"), &audience, life, issuer, SystemClock.now()).unwrap();
    format!("Bearer {}", token.token())
}

/// [SEM-STRICT-18] A stream ends with the token that it was admitted on, whether time passes or the
/// clock is set; those with longer tokens go on.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_a_stream_ends_with_its_token() {
    let (authority, clock) = (authority(), SetClock::default());
    let key = JwtKey::generate(24 * HOUR, SystemClock.now()).unwrap();
    let policy = policies(&[&authentication(&key), WITH_TOKEN]);
    let server = serve(&authority, &clock, policy, |_| {}).await;
    let client = as_account(&authority, "client", &server);
    let begun = Instant::now();
    let life = Duration::from_secs(3);
    let (short, long) = (bearer(&key, life), bearer(&key, HOUR));
    let (short, long) = tokio::join!(
        begin_all(&client, Some(("authorization", &short))),
        begin_all(&client, Some(("authorization", &long))),
    );
    all_go_on(&short).await;
    all_are_cut(short).await;
    let took = begun.elapsed();
    // Clocks show whole seconds.
    assert!(took > Duration::from_secs(1) && took < life + SOON, "{took:?}");
    all_go_on(&long).await;
    clock.set(3601);
    assert!(all_are_cut(long).await < SOON);
}

/// [SEM-STRICT-18] A token whose key was removed, or whose issuer is no longer believed, carries no
/// stream.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_a_removed_key_ends_its_streams() {
    let (authority, clock) = (authority(), SetClock::default());
    let [key, other] = [(); 2].map(|()| JwtKey::generate(24 * HOUR, SystemClock.now()).unwrap());
    let before = policies(&[&authentication(&key), WITH_TOKEN]);
    let after = policies(&[&authentication(&other), WITH_TOKEN]);
    let server = serve(&authority, &clock, before.clone(), |_| {}).await;
    let client = as_account(&authority, "client", &server);
    let token = bearer(&key, HOUR);
    let streams = begin_all(&client, Some(("authorization", &token))).await;
    server.mesh.set_policies(before).unwrap();
    all_go_on(&streams).await;
    server.mesh.set_policies(after).unwrap();
    assert!(all_are_cut(streams).await < SOON);
}

/// Says nothing and hears everything.
async fn listen(mut connection: TcpConnection) {
    let mut room = [0; 64];
    while let Ok(count @ 1..) = connection.read(&mut room).await {
        if connection.write_all(room.get(..count).unwrap()).await.is_err() {
            return;
        }
    }
}

/// [SEM-STRICT-18] Open TCP connections are judged again when policies change, also where the handler
/// has moved them to a task of its own.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_tcp_connections_are_judged_again() {
    let (authority, clock) = (authority(), SetClock::default());
    for moves in [false, true] {
        let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server.mesh.clone();
        tokio::spawn(async move {
            let handler = move |connection| async move {
                if moves {
                    tokio::spawn(listen(connection));
                } else {
                    listen(connection).await;
                }
            };
            serving.serve_tcp(listener, handler, std::future::pending()).await
        });
        let open = async |account: &str| {
            let mesh = client_mesh(svid(&authority, account, HOUR), trust(&[&authority]), &clock);
            let expected = mesh_tower::authn::peer::ExpectedServer::exact(id("server"));
            let connector = Connector::new(mesh).service("server", address, &expected);
            let mut stream = TokioIo::new(connect(&connector).await.unwrap());
            stream.write_all(b"a").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'a');
            stream
        };
        let (mut out, mut stays) = (open("client").await, open("other").await);
        server.mesh.set_policies(policies(&[DENY_CLIENT])).unwrap();
        let begun = Instant::now();
        let end = timeout(PATIENCE, out.read_u8()).await.expect("it is ended");
        assert!(end.is_err() && begun.elapsed() < SOON, "moved: {moves}");
        stays.write_all(b"b").await.unwrap();
        assert_eq!(stays.read_u8().await.unwrap(), b'b', "moved: {moves}");
    }
}
