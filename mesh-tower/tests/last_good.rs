//! [SEC-OPS-2] as one table: five sources of configuration, each with every kind of bad news.
//!
//! Whatever comes, the last good stays in force, the failure can be seen, and no door opens that was
//! closed.

#![cfg(unix)]
#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[expect(dead_code, reason = "shared with the tests of the Workload API")]
#[path = "workload_api/double.rs"]
mod double;
#[expect(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    dead_code,
    reason = "shared with the tests of key sets"
)]
#[path = "jwks/support.rs"]
mod keys;

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use mesh_ca::Authority;
use mesh_tower::authn::peer::ExpectedServer;
use mesh_tower::authn::request::KeyState;
use mesh_tower::identity::workload_api::{NamedSvid, encode_x509_svids, proto};
use mesh_tower::identity::{BundleSet, MeshSettings, Workload, X509Svid};
use mesh_tower::{
    Clock as _, Connector, FetchError, FetchFuture, Identity, IdentityFiles, KeyFetcher, Mesh,
    MeshBuilder, Policies, SystemClock, WorkloadApi,
};
use rustls::pki_types::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tower::ServiceExt as _;

use self::double::{Double, Step};
use self::keys::{TokenKey, every_second};

const HOUR: Duration = Duration::from_secs(3600);
const POLL: Duration = Duration::from_millis(20);

/// A door that needs a token of `issuer`, one that nobody may use, and mutual TLS before all.
const POLICY: &str = "apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec: {jwtRules: [{issuer: issuer, jwksUri: 'https://keys.example/jwks'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec: {rules: [{from: [{source: {requestPrincipals: ['issuer/*']}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: nobody, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}
";

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    IdentityFiles,
    PolicyFolder,
    PolicyChannel,
    WorkloadApi,
    KeyUrl,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum News {
    Garbage,
    Empty,
    Truncated,
    /// What was in force once, and was replaced.
    Older,
    /// Nothing for longer than anybody waits.
    Slow,
    Gone,
}

const SOURCES: [Source; 5] = [
    Source::IdentityFiles,
    Source::PolicyFolder,
    Source::PolicyChannel,
    Source::WorkloadApi,
    Source::KeyUrl,
];

const NEWS: [News; 6] =
    [News::Garbage, News::Empty, News::Truncated, News::Older, News::Slow, News::Gone];

/// Why a source cannot have such news, or has nothing to tell then.
fn excused(source: Source, news: News) -> Option<&'static str> {
    match (source, news) {
        (Source::PolicyChannel, News::Empty | News::Truncated) => Some(
            "a channel carries policies that were read whole; none at all is the program's word",
        ),
        (Source::PolicyChannel | Source::PolicyFolder, News::Older) => {
            Some("policies have no order but that of their coming: an older set is a change back")
        }
        (Source::KeyUrl, News::Older) => Some("key sets have no order either"),
        (Source::PolicyChannel | Source::PolicyFolder, News::Slow) => {
            Some("no news is no failure of a folder or a channel")
        }
        (Source::IdentityFiles | Source::WorkloadApi, News::Slow) => {
            Some("no news is no failure until the certificate ends: SEC-TLS-12 and readiness")
        }
        (Source::PolicyChannel, News::Gone) => Some("a sender that is gone has said its last word"),
        _ => None,
    }
}

/// What a fetcher of keys answers at the moment.
#[derive(Clone, Debug)]
struct Keys(Arc<Mutex<Option<String>>>);

impl KeyFetcher for Keys {
    fn fetch<'f>(&'f self, _: &'f str, limit: Duration) -> FetchFuture<'f> {
        let text = self.0.lock().unwrap().clone();
        Box::pin(async move {
            match text.as_deref() {
                Some("slow") => {
                    tokio::time::sleep(limit.min(POLL)).await;
                    Err(FetchError::Deadline)
                }
                Some(text) => Ok(Bytes::from(text.to_owned())),
                None => Err(FetchError::Url),
            }
        })
    }
}

struct World {
    mesh: Mesh,
    address: SocketAddr,
    home: Authority,
    key: TokenKey,
    keys: Keys,
    folder: PathBuf,
    channel: watch::Sender<Policies>,
    double: Option<Double>,
}

impl Drop for World {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.folder));
    }
}

fn past(ago: Duration) -> UnixTime {
    let now = Duration::from_secs(SystemClock.now().as_secs());
    UnixTime::since_unix_epoch(now.saturating_sub(ago))
}

fn issue(authority: &Authority, account: &str, life: Duration, ago: Duration) -> X509Svid {
    let id = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap();
    authority.issue_svid(&id, life, past(ago)).unwrap()
}

fn svid(authority: &Authority, account: &str) -> X509Svid {
    issue(authority, account, HOUR, Duration::ZERO)
}

/// A certificate of the right name and authority that has ended.
fn old_svid(authority: &Authority) -> X509Svid {
    issue(authority, "server", HOUR, 2 * HOUR)
}

fn authority() -> Authority {
    Authority::new_root(&"cluster.local".parse().unwrap(), 24 * HOUR, past(3 * HOUR)).unwrap()
}

fn bundles(authority: &Authority) -> Arc<BundleSet> {
    Arc::new(BundleSet::from_bundles([authority.bundle()]).unwrap())
}

fn policies() -> Policies {
    Policies::read([("policy.yaml", POLICY)], "shop").unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

fn write_identity(folder: &Path, svid: &X509Svid, authority: &Authority) {
    fs::write(folder.join("root-cert.pem"), authority.certificate_pem()).unwrap();
    fs::write(folder.join("cert-chain.pem"), pem("CERTIFICATE", &svid.chain()[0])).unwrap();
    let key = folder.join("key.pem");
    fs::write(&key, pem("PRIVATE KEY", svid.private_key().secret_der())).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
}

/// A message of the Workload API about the server.
fn message(authority: &Authority, svid: X509Svid) -> proto::X509SvidResponse {
    let svid = NamedSvid { svid, hint: String::new() };
    encode_x509_svids(&[svid], &bundles(authority), &[]).unwrap()
}

/// What the Workload API does once it has been good.
fn script(home: &Authority, news: News) -> Vec<Step> {
    let mut bad = message(home, svid(home, "server"));
    let step = match news {
        News::Garbage => Step::Raw(b"\xff\xff\xff".to_vec()),
        News::Empty => Step::svids(&proto::X509SvidResponse::default()),
        News::Truncated => {
            bad.svids[0].x509_svid.truncate(100);
            Step::svids(&bad)
        }
        News::Older => Step::svids(&message(home, old_svid(home))),
        News::Slow => Step::Hang,
        News::Gone => Step::Cut,
    };
    vec![Step::svids(&message(home, svid(home, "server"))), Step::Wait, step, Step::Hang]
}

impl World {
    /// A service in a good configuration, which follows the source.
    async fn start(source: Source, news: News) -> Self {
        let folder = std::env::temp_dir()
            .join(format!("mesh-last-good-{source:?}-{news:?}-{}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        let (home, key) = (authority(), TokenKey::generate("one"));
        let keys = Keys(Arc::new(Mutex::new(Some(key.jwks()))));
        let (channel, _) = watch::channel(policies());
        let builder: MeshBuilder = Mesh::builder(
            Workload::new("shop"),
            MeshSettings::new("cluster.local".parse().unwrap()),
        );
        let given = Some(Identity::new(Arc::new(svid(&home, "server")), bundles(&home)));
        let mut double = None;
        let started = match source {
            Source::IdentityFiles => {
                write_identity(&folder, &svid(&home, "server"), &home);
                let files = IdentityFiles::istio("cluster.local".parse().unwrap(), &folder);
                builder.start(files.watch(POLL), policies()).await
            }
            Source::WorkloadApi => {
                let api = double.insert(Double::start([script(&home, news)])).endpoint();
                let api = WorkloadApi::new(api).retry(POLL, POLL);
                builder.start(api.x509_source(), policies()).await
            }
            Source::PolicyFolder | Source::PolicyChannel | Source::KeyUrl => {
                builder.start(given, policies()).await
            }
        };
        let mesh = started.unwrap();
        if source == Source::PolicyFolder {
            fs::write(folder.join("policy.yaml"), POLICY).unwrap();
            let before = mesh.generation();
            let follow = mesh.clone();
            tokio::spawn(follow.keep_policies_fresh(folder.clone(), "shop".to_owned(), POLL));
            within("the folder is taken", || mesh.generation() > before).await;
        }
        tokio::spawn(mesh.clone().keep_policies_from(channel.subscribe()));
        tokio::spawn(mesh.clone().keep_keys_fresh(Arc::new(keys.clone()), every_second()));
        within("ready", || mesh.readiness().is_ok()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = mesh.clone();
        let app = Router::new().fallback(any(|| async { "inside" }));
        tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
        Self { mesh, address, home, key, keys, folder, channel, double }
    }

    /// The bad news come.
    fn tell(&self, source: Source, news: News) {
        match source {
            Source::IdentityFiles => self.spoil("cert-chain.pem", news),
            Source::PolicyFolder => self.spoil("policy.yaml", news),
            Source::PolicyChannel => {
                // Read well, and impossible together: one's output is where the other looks.
                let rule = |name: &str, rest: &str| {
                    format!(
                        "---\napiVersion: security.istio.io/v1\nkind: RequestAuthentication\n\
                         metadata: {{name: {name}, namespace: shop}}\nspec: {{jwtRules: [{{issuer: \
                         {name}, jwksUri: 'https://a.example/k', {rest}}}]}}\n"
                    )
                };
                let text = rule("one", "fromHeaders: [{name: x-token}]")
                    + &rule("two", "outputPayloadToHeader: x-token");
                let read = Policies::read([("both.yaml", &*text)], "shop").unwrap();
                self.channel.send_replace(read);
            }
            Source::WorkloadApi => self.double.as_ref().unwrap().go_on(),
            Source::KeyUrl => {
                *self.keys.0.lock().unwrap() = match news {
                    News::Garbage => Some("<html>maintenance</html>".to_owned()),
                    News::Empty => Some(String::new()),
                    News::Truncated => Some(self.key.jwks().chars().take(40).collect()),
                    News::Slow => Some("slow".to_owned()),
                    News::Gone => None,
                    News::Older => panic!("excused"),
                };
            }
        }
    }

    fn spoil(&self, name: &str, news: News) {
        let path = self.folder.join(name);
        let good = fs::read(&path).unwrap();
        match news {
            News::Garbage => fs::write(&path, vec![0xff; 1000]).unwrap(),
            News::Empty => fs::write(&path, "").unwrap(),
            News::Truncated => fs::write(&path, &good[..good.len() / 2]).unwrap(),
            News::Older => write_identity(&self.folder, &old_svid(&self.home), &self.home),
            News::Gone => fs::remove_file(&path).unwrap(),
            News::Slow => panic!("excused"),
        }
    }

    /// Whether an operator sees it, in the state and in the metrics.
    fn is_visible(&self, source: Source) -> bool {
        if source == Source::KeyUrl {
            let failing = self
                .mesh
                .key_sets()
                .into_iter()
                .any(|(_, state)| matches!(state, KeyState::Stale { failures: 1.., .. }));
            let metrics = self.mesh.telemetry().prometheus();
            let line = "mesh_jwks_failures{source=\"https://keys.example/jwks\"} ";
            let failures = metrics.lines().find_map(|found| found.strip_prefix(line));
            return failing && failures.is_some_and(|count| count != "0");
        }
        self.mesh.last_error().is_some() && self.mesh.telemetry().refused_configurations() > 0
    }

    /// What is open and what is closed; always the same.
    async fn doors(&self) -> [String; 5] {
        let forged = TokenKey::generate("one").token("issuer");
        let good = self.key.token("issuer");
        let stranger = authority();
        [
            self.ask(&self.home, "/cart", Some(&good)).await,
            self.ask(&self.home, "/cart", None).await,
            self.ask(&self.home, "/cart", Some(&forged)).await,
            self.ask(&self.home, "/admin", Some(&good)).await,
            self.ask(&stranger, "/cart", Some(&good)).await,
        ]
    }

    /// What a client with a certificate of this authority hears.
    async fn ask(&self, authority: &Authority, path: &str, token: Option<&str>) -> String {
        let settings = MeshSettings::new("cluster.local".parse().unwrap());
        let web = Mesh::builder(Workload::new("shop"), settings)
            .build(Arc::new(svid(authority, "web")), bundles(&self.home), Policies::none())
            .unwrap();
        let server = "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap();
        let expected = ExpectedServer::exact(server);
        let client = Connector::new(web).service("server", self.address, &expected).client();
        let mut request = Request::get(format!("https://server{path}"));
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let Ok(response) = client.oneshot(request).await else { return "no answer".to_owned() };
        let status = response.status().as_u16();
        response.into_body().collect().await.unwrap();
        status.to_string()
    }
}

async fn within(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.expect(what);
}

/// [SEC-OPS-2] Five sources, six kinds of bad news.
#[tokio::test]
async fn sec_ops_2_bad_news_of_every_source_change_nothing_and_are_seen() {
    let closed = ["200", "403", "401", "403", "no answer"];
    let mut told = 0;
    for source in SOURCES {
        for news in NEWS {
            if let Some(why) = excused(source, news) {
                println!("{source:?} {news:?}: does not apply: {why}");
                continue;
            }
            let world = World::start(source, news).await;
            assert_eq!(world.doors().await, closed, "{source:?} {news:?}: before");
            let before = world.mesh.generation();
            let begun = tokio::time::Instant::now();
            world.tell(source, news);
            let what = format!("{source:?} {news:?} is seen");
            within(&what, || world.is_visible(source)).await;
            let took = begun.elapsed();
            assert_eq!(world.doors().await, closed, "{source:?} {news:?}: after");
            assert_eq!(world.mesh.generation(), before, "{source:?} {news:?} was taken");
            println!("{source:?} {news:?}: seen after {} ms", took.as_millis());
            told += 1;
        }
    }
    assert_eq!(told, 20);
}
