//! Handshakes over real sockets: versions, possession, protocols, early data, floods; by the id of
//! the property, on the server's side and on the client's.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::{Connector, Limits, MeshStream, Policies};
use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::raw::{RawClient, Shown, TLS12, TLS13, ask, converse, open, raw_server, serve_raw};
use crate::support::{
    PATIENCE, STRICT, SetClock, authority, builder, client, client_mesh, connect, id, policies,
    serve, serve_tls12, svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Connects to whatever listens there, expecting the identity `server`.
pub(crate) async fn connect_to(
    mesh: &mesh_tower::Mesh,
    address: SocketAddr,
) -> Result<MeshStream, String> {
    let expected = ExpectedServer::exact(id("server"));
    let connector = Connector::new(mesh.clone()).service("server", address, &expected);
    connect(&connector).await.map_err(|error| error.to_string())
}

/// [SEC-TLS-1] TLS 1.3 alone by default and 1.2 when asked for; nothing older, ever.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_1_versions_of_a_server() {
    let (authority, clock) = (authority(), SetClock::default());
    let new = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let both = serve_tls12(&authority, &clock, policies(&[STRICT])).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let [old, newer] = [TLS12, TLS13].map(|v| RawClient::new(Some(shown.clone()), v).shared());
    assert!(ask(&old, new.address, "/").await.is_err(), "1.2 was taken unasked");
    assert_eq!(ask(&newer, new.address, "/").await.unwrap().1, 200);
    assert_eq!(ask(&old, both.address, "/").await.unwrap().1, 200);
    assert_eq!(ask(&newer, both.address, "/").await.unwrap().1, 200);
    // A client of both is given the newer one, so that nobody in between can choose.
    let either = RawClient::new(Some(shown.clone()), rustls::ALL_VERSIONS);
    let stream = open(&either.shared(), both.address).await.unwrap();
    assert_eq!(stream.get_ref().1.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    // TLS 1.1, 1.0 and SSL 3 in ClientHellos that are whole otherwise: an alert, protocol_version.
    for server in [&new, &both] {
        for minor in [2, 1, 0] {
            let mut stream = TcpStream::connect(server.address).await.unwrap();
            stream.write_all(&old_hello(minor)).await.unwrap();
            let mut answer = Vec::new();
            let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
            drop(read.expect("the server closes"));
            assert_eq!(answer.first(), Some(&0x15), "3.{minor}: {answer:?}");
            assert_eq!(answer.get(5..), Some(&[2, 70][..]), "3.{minor}: {answer:?}");
        }
    }
}

/// A ClientHello as older versions sent it: no extension says that more is known.
fn old_hello(minor: u8) -> Vec<u8> {
    hello(minor, &SUITES, 0, &[])
}

/// ECDHE with AEAD, and what came before.
const SUITES: [u8; 8] = [0xc0, 0x2b, 0xc0, 0x2f, 0x00, 0x2f, 0x00, 0x0a];

/// The extension `extended_master_secret`.
const MASTER_SECRET: [u8; 4] = [0, 23, 0, 0];

/// A ClientHello of TLS 1.2 or older with one method of compression and some more extensions.
fn hello(minor: u8, suites: &[u8], compression: u8, more: &[u8]) -> Vec<u8> {
    let mut body = vec![3, minor];
    body.extend([7; 32]);
    body.extend([0, 0, u8::try_from(suites.len()).unwrap()]);
    body.extend(suites);
    body.extend([1, compression]);
    // supported_groups and signature_algorithms, without which nothing is looked at.
    let extensions = [0, 10, 0, 4, 0, 2, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3];
    body.extend([0, u8::try_from(extensions.len() + more.len()).unwrap()]);
    body.extend(extensions);
    body.extend(more);
    let length = u8::try_from(body.len()).unwrap();
    [&[0x16, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
}

/// [SEC-TLS-1] The same of our client.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_1_versions_of_a_client() {
    let (authority, clock) = (authority(), SetClock::default());
    let shown = Shown::svid(&svid(&authority, "server", HOUR));
    let own = || svid(&authority, "client", HOUR);
    let new = client_mesh(own(), trust(&[&authority]), &clock);
    let both = builder(&clock).with_tls12();
    let both = both.build(own(), trust(&[&authority]), Policies::none()).unwrap();
    let (old_server, mut told) = serve_raw(raw_server(shown.clone(), TLS12), b"").await;
    let error = connect_to(&new, old_server).await.map(drop).unwrap_err();
    assert!(error.contains("TLS handshake failed"), "{error}");
    assert!(told.try_recv().is_err(), "the server finished a handshake");
    let stream = connect_to(&both, old_server).await.unwrap();
    assert_eq!(stream.info().version(), Some(rustls::ProtocolVersion::TLSv1_2));
    let (new_server, _told) = serve_raw(raw_server(shown, TLS13), b"").await;
    for mesh in [&new, &both] {
        let stream = connect_to(mesh, new_server).await.unwrap();
        assert_eq!(stream.info().version(), Some(rustls::ProtocolVersion::TLSv1_3));
    }
}

/// [SEC-TLS-1] A peer without the extended master secret could have its session resumed for
/// somebody else's certificate (RFC 7627 section 1).
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_1_no_tls12_without_the_extended_master_secret() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve_tls12(&authority, &clock, policies(&[STRICT])).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    // TLS 1.2 with everything but that extension.
    stream.write_all(&old_hello(3)).await.unwrap();
    let mut answer = Vec::new();
    drop(timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server closes"));
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 40], "handshake_failure");
}

/// [SEC-TLS-1] In TLS 1.2 only ECDHE with AEAD, and no compression. The same hello with either is
/// answered.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_1_what_tls12_may_be() {
    const ALERT: u8 = 0x15;
    const HANDSHAKE: u8 = 0x16;
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve_tls12(&authority, &clock, policies(&[STRICT])).await;
    for (what, suites, compression, answered) in [
        ("ECDHE with AEAD", &SUITES[..], 0, HANDSHAKE),
        ("ECDHE with CBC", &[0xc0, 0x09, 0xc0, 0x0a, 0xc0, 0x23], 0, ALERT),
        ("static RSA", &[0x00, 0x9c, 0x00, 0x9d, 0x00, 0x2f], 0, ALERT),
        ("finite fields", &[0x00, 0x9e, 0x00, 0x9f], 0, ALERT),
        ("nothing encrypted", &[0xc0, 0x06, 0x00, 0x01], 0, ALERT),
        ("compression", &SUITES, 1, ALERT),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&hello(3, suites, compression, &MASTER_SECRET)).await.unwrap();
        let first = timeout(PATIENCE, stream.read_u8()).await.expect("an answer").unwrap();
        assert_eq!(first, answered, "{what}");
    }
}

/// [SEC-TLS-2] Without a certificate nothing is answered, in either version, and nothing that was
/// sent ahead is read as a request.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_2_no_certificate_no_answer() {
    let (authority, clock) = (authority(), SetClock::default());
    for policy in [policies(&[STRICT]), Policies::none()] {
        let server = serve_tls12(&authority, &clock, policy).await;
        for versions in [TLS13, TLS12] {
            let client = RawClient::new(None, versions).shared();
            assert!(ask(&client, server.address, "/").await.is_err());
        }
    }
}

/// [SEC-TLS-3] Another's certificate with one's own key, on either side and in either version; also
/// when the certificate's owner has just been let in, so that its chain is remembered.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_3_a_certificate_without_its_key() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve_tls12(&authority, &clock, policies(&[STRICT])).await;
    let mesh = builder(&clock).with_tls12();
    let own = svid(&authority, "client", HOUR);
    let mesh = mesh.build(own, trust(&[&authority]), Policies::none()).unwrap();
    for versions in [TLS13, TLS12] {
        let (victim, thief) = (svid(&authority, "admin", HOUR), svid(&authority, "thief", HOUR));
        let good = RawClient::new(Some(Shown::svid(&victim)), versions).shared();
        let stolen = RawClient::new(Some(Shown::stolen(&victim, &thief)), versions).shared();
        assert!(ask(&stolen, server.address, "/who").await.is_err(), "before it was seen");
        let (_, _, who) = ask(&good, server.address, "/who").await.unwrap();
        assert!(who.ends_with("sa/admin"), "{who}");
        assert!(ask(&stolen, server.address, "/who").await.is_err(), "after it was seen");

        let victim = svid(&authority, "server", HOUR);
        let (good, _told) = serve_raw(raw_server(Shown::svid(&victim), versions), b"").await;
        let stolen = raw_server(Shown::stolen(&victim, &thief), versions);
        let (stolen, mut told) = serve_raw(stolen, b"").await;
        assert!(connect_to(&mesh, stolen).await.is_err(), "before it was seen");
        assert!(connect_to(&mesh, good).await.is_ok());
        assert!(connect_to(&mesh, stolen).await.is_err(), "after it was seen");
        assert!(told.try_recv().map_or(true, |(_, got, _)| got == 0), "it was spoken to");
    }
}

/// [SEC-TLS-5] A server that is somebody else, with a certificate that is good, is not spoken to;
/// a host that was not declared is not even connected to.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_5_another_server_is_not_spoken_to() {
    let (authority, clock) = (authority(), SetClock::default());
    let mesh = client_mesh(svid(&authority, "client", HOUR), trust(&[&authority]), &clock);
    for name in ["other", "server2", "serve"] {
        let shown = Shown::svid(&svid(&authority, name, HOUR));
        let (address, mut told) = serve_raw(raw_server(shown, TLS13), b"").await;
        let error = connect_to(&mesh, address).await.map(drop).unwrap_err();
        let want = format!("server is spiffe://cluster.local/ns/shop/sa/{name}, expected");
        assert!(error.contains(&want), "{error}");
        assert!(told.try_recv().map_or(true, |(_, got, _)| got == 0), "it was spoken to");
    }
    let nobody = Connector::new(mesh);
    assert!(connect(&nobody).await.unwrap_err().to_string().contains("not a declared service"));
}

/// [SEC-TLS-6] A server offers what the layer guards and nothing else; a client does not take a
/// protocol for HTTP that is none.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_6_unexpected_protocols() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    for (offered, agreed) in [
        (&["http/1.1"][..], Some("http/1.1")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["istio-peer-exchange", "istio-http/1.1", "http/1.1"], Some("http/1.1")),
        (&["istio-peer-exchange", "istio"], Some("istio")),
        (&["h3", "spdy/3", "http/1.0"], None),
        (&["H2"], None),
        (&["h2c"], None),
        (&["istio-peer-exchange"], None),
    ] {
        let mut client = RawClient::new(Some(shown.clone()), TLS13);
        client.0.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stream = open(&client.shared(), server.address).await.ok();
        let got = stream.as_ref().and_then(|stream| stream.get_ref().1.alpn_protocol());
        assert_eq!(got, agreed.map(str::as_bytes), "{offered:?}");
    }
    // A client that asks for none, and one that asks for what Istio's sidecars call `istio`, speak
    // HTTP, which the layer guards (interfaces 2.8).
    for offered in [vec![], vec![b"istio".to_vec()]] {
        let mut client = RawClient::new(Some(shown.clone()), TLS13);
        client.0.alpn_protocols = offered;
        let (_, _, who) = ask(&client.shared(), server.address, "/who").await.unwrap();
        assert!(who.ends_with("sa/client"), "{who}");
    }
    let mesh = client_mesh(svid(&authority, "client", HOUR), trust(&[&authority]), &clock);
    let shown = Shown::svid(&svid(&authority, "server", HOUR));
    for (protocol, chosen, works) in [
        (ClientProtocol::Any, Some("istio"), false),
        (ClientProtocol::Http1, Some("istio"), false),
        (ClientProtocol::Http2, Some("istio"), false),
        (ClientProtocol::Http2, None, false),
        (ClientProtocol::Http1, None, true),
        (ClientProtocol::Any, Some("http/1.1"), true),
        (ClientProtocol::Any, Some("h2"), true),
        (ClientProtocol::Any, Some("istio-h2"), true),
    ] {
        let mut config = raw_server(shown.clone(), TLS13);
        config.alpn_protocols = chosen.iter().map(|name| name.as_bytes().to_vec()).collect();
        let (address, _told) = serve_raw(config, b"").await;
        let expected = ExpectedServer::exact(id("server"));
        let connector = Connector::new(mesh.clone()).service("server", address, &expected);
        let got = connect(&connector.protocol(protocol)).await;
        assert_eq!(got.is_ok(), works, "{protocol:?} {chosen:?}");
    }
}

/// [SEC-TLS-6] The server name chooses nothing: whatever it is, the same certificate is shown and
/// the same rules hold.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_6_the_server_name_chooses_nothing() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let mut shown_to = Vec::new();
    let client = RawClient::new(Some(shown), TLS13).shared();
    for name in
        ["server", "admin.internal", "outbound_.80_._.x.default.svc.cluster.local", "1.2.3.4"]
    {
        let stream = TcpStream::connect(server.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&client));
        let name = rustls::pki_types::ServerName::try_from(name).unwrap();
        let mut stream = connector.connect(name, stream).await.unwrap();
        shown_to.push(stream.get_ref().1.peer_certificates().unwrap().to_vec());
        assert_eq!(converse(&mut stream, "/").await.unwrap().0, 200);
    }
    shown_to.dedup();
    assert_eq!(shown_to.len(), 1, "one certificate for every name");
}

const PRINCIPALS: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: client-only, namespace: shop}
spec:
  rules:
  - from: [{source: {principals: ['*']}}]
  - from: [{source: {namespaces: [shop]}}]
  - from: [{source: {serviceAccounts: [shop/client]}}]
";

/// [SEC-TLS-8] Plain text matches no positive rule about a source, whatever it says of itself.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_8_plain_text_has_no_identity() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[PRINCIPALS]), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let client = RawClient::new(Some(shown), TLS13).shared();
    assert_eq!(ask(&client, server.address, "/").await.unwrap().1, 200);
    for header in [
        "x: y",
        "x-forwarded-client-cert: By=spiffe://a;URI=spiffe://cluster.local/ns/shop/sa/client",
        "x-envoy-peer-metadata-id: client",
        "x-spiffe-id: spiffe://cluster.local/ns/shop/sa/client",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        let head = format!("GET /who HTTP/1.1\r\nhost: a\r\n{header}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403"), "{header}: {answer}");
    }
}

/// [SEC-TLS-9] Neither end sends or takes early data, however much the other would like it; and what
/// claims to be early data is not read.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_9_no_early_data() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let eager = RawClient::new(Some(shown), TLS13).shared();
    assert!(eager.enable_early_data);
    for round in 0..3 {
        // The ticket allows none: rustls would send it if it did.
        let name = rustls::pki_types::ServerName::try_from("server").unwrap();
        let mut probe = rustls::ClientConnection::new(Arc::clone(&eager), name).unwrap();
        assert!(probe.early_data().is_none(), "round {round}");
        drop(probe);
        assert_eq!(ask(&eager, server.address, "/").await.unwrap().1, 200);
    }
    let generous = raw_server(Shown::svid(&svid(&authority, "server", HOUR)), TLS13);
    assert!(generous.max_early_data_size > 0);
    let (address, mut told) = serve_raw(generous, b"x").await;
    let mesh = client_mesh(svid(&authority, "client", HOUR), trust(&[&authority]), &clock);
    let mut resumed = false;
    let expected = ExpectedServer::exact(id("server"));
    let connector = Connector::new(mesh).service("server", address, &expected);
    for _ in 0..4 {
        let mut stream = TokioIo::new(connect(&connector).await.unwrap());
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        stream.read_u8().await.unwrap();
        let (kind, _, early) = told.recv().await.unwrap();
        assert!(!early, "our client sent early data");
        resumed |= kind == HandshakeKind::Resumed;
    }
    assert!(resumed, "without a session there is no early data to refuse");
}

/// [SEC-TLS-15] Floods that rustls ends, over a socket, with a fresh client served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_15_floods_end_and_keep_nobody_out() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, policies(&[STRICT]), |_| {}).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let config = RawClient::new(Some(shown), TLS13).shared();
    let address = server.address;
    let fresh = async || {
        let begun = Instant::now();
        let good = client(&authority, HOUR, &server);
        assert!(connect(&good).await.is_ok());
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    };
    let floods: [(&str, Vec<u8>); 5] = [
        ("warnings", [0x15, 3, 3, 0, 2, 1, 90].repeat(100)),
        ("change cipher spec", [0x14, 3, 3, 0, 1, 1].repeat(100)),
        ("empty records", [0x16, 3, 1, 0, 0].repeat(100)),
        ("a message of 16 MiB", vec![0x16, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff]),
        ("a record of 64 KiB", [&[0x16, 3, 1, 0xff, 0xff][..], &vec![1; 65535]].concat()),
    ];
    for (name, bytes) in floods {
        let begun = Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        drop(stream.write_all(&bytes).await);
        let mut sink = Vec::new();
        drop(timeout(PATIENCE, stream.read_to_end(&mut sink)).await.expect(name));
        assert!(begun.elapsed() < Duration::from_secs(5), "{name}: {:?}", begun.elapsed());
        fresh().await;
    }
    // After the handshake: key updates without end, and records without content.
    let mut stream = open(&config, address).await.unwrap();
    let mut ended: io::Result<()> = Ok(());
    for _ in 0..200 {
        stream.get_mut().1.refresh_traffic_keys().unwrap();
        ended = stream.flush().await;
        if ended.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(ended.is_err() || converse(&mut stream, "/").await.is_err(), "200 key updates");
    fresh().await;
}

/// [SEC-TLS-9] Early data that is sent all the same, on the ticket of a server that takes it, reaches
/// nobody.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_9_early_data_that_nobody_allowed() {
    use std::io::{Read as _, Write as _};
    let (authority, clock) = (authority(), SetClock::default());
    let change = |limits: &mut Limits| limits.request_head = Duration::from_millis(500);
    let server = serve(&authority, &clock, policies(&[STRICT]), change).await;
    let shown = Shown::svid(&svid(&authority, "client", HOUR));
    let eager = RawClient::new(Some(shown), TLS13).shared();
    let generous = raw_server(Shown::svid(&svid(&authority, "server", HOUR)), TLS13);
    let (generous, _told) = serve_raw(generous, b"x").await;
    let mut stream = open(&eager, generous).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.read_u8().await.unwrap();
    let address = server.address;
    let answer = tokio::task::spawn_blocking(move || {
        let name = rustls::pki_types::ServerName::try_from("server").unwrap();
        let mut client = rustls::ClientConnection::new(eager, name).unwrap();
        let mut early = client.early_data().expect("the ticket allows early data");
        early.write_all(b"GET /who HTTP/1.1\r\nhost: server\r\n\r\n").unwrap();
        let mut socket = std::net::TcpStream::connect(address).unwrap();
        let mut answer = Vec::new();
        // How the connection ends is the server's choice.
        drop(rustls::Stream::new(&mut client, &mut socket).read_to_end(&mut answer));
        assert!(!client.is_early_data_accepted());
        answer
    });
    let answer = timeout(PATIENCE, answer).await.expect("an end").unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), "");
}

/// [SEC-TLS-15] The same floods from a server: our client leaves it.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_15_a_server_that_floods_is_left() {
    let (authority, clock) = (authority(), SetClock::default());
    let mesh = client_mesh(svid(&authority, "client", HOUR), trust(&[&authority]), &clock);
    let expected = ExpectedServer::exact(id("server"));
    let floods: [(&str, Vec<u8>); 5] = [
        ("warnings", [0x15, 3, 3, 0, 2, 1, 90].repeat(100)),
        ("change cipher spec", [0x14, 3, 3, 0, 1, 1].repeat(100)),
        ("empty records", [0x16, 3, 3, 0, 0].repeat(100)),
        ("a message of 16 MiB", vec![0x16, 3, 3, 0, 4, 2, 0xff, 0xff, 0xff]),
        ("a record of 64 KiB", [&[0x16, 3, 3, 0xff, 0xff][..], &vec![1; 65535]].concat()),
    ];
    for (name, bytes) in floods {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            drop(stream.write_all(&bytes).await);
            drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
        });
        let connector = Connector::new(mesh.clone()).service("server", address, &expected);
        let left = timeout(Duration::from_secs(5), connect(&connector)).await;
        assert!(left.expect(name).is_err(), "{name}");
    }
    // After the handshake: key updates without end.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = raw_server(Shown::svid(&svid(&authority, "server", HOUR)), TLS13);
    let flooding = tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let mut stream = acceptor.accept(stream).await.unwrap();
        for _ in 0..200 {
            stream.get_mut().1.refresh_traffic_keys().unwrap();
            drop(stream.flush().await);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // Held open, so that only the client can have ended it.
        std::future::pending::<()>().await;
    });
    let connector = Connector::new(mesh).service("server", address, &expected);
    let mut stream = TokioIo::new(connect(&connector).await.unwrap());
    let read = timeout(PATIENCE, stream.read_u8()).await.expect("an end");
    assert!(read.is_err(), "200 key updates");
    assert!(!flooding.is_finished());
    flooding.abort();
}

/// [SEC-TLS-14] A server that says nothing, or a byte at a time, is left when the deadline of the
/// handshake has passed.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_14_a_silent_server_is_left() {
    let (authority, clock) = (authority(), SetClock::default());
    let mesh = client_mesh(svid(&authority, "client", HOUR), trust(&[&authority]), &clock);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dripping = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [&silent, &dripping].map(|listener| listener.local_addr().unwrap());
    tokio::spawn(async move {
        // The head of a ServerHello of 16 kB, which rustls waits for.
        let bytes = [&[0x16, 3, 3, 0x3f, 0xff, 2, 0, 0x3f, 0xfb][..], &[0; 4096]].concat();
        let (mut stream, _) = dripping.accept().await.unwrap();
        for byte in bytes {
            if stream.write_all(&[byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let leaves = addresses.map(async |address| {
        let begun = Instant::now();
        let error = connect_to(&mesh, address).await.map(drop).unwrap_err();
        assert!(error.contains("longer than 10 s"), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(13), "{:?}", begun.elapsed());
    });
    futures_util::future::join_all(leaves).await;
    drop(silent);
}
