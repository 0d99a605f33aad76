//! An authority that serves, a clock that can be set, and a gRPC client that says what it is told.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_ca::serve::{CaService, Selector, WorkloadEntries, WorkloadEntry};
use mesh_ca::{Ca, CaSettings, IssueLog, JsonLines};
use mesh_tower::identity::{SpiffeId, TrustDomain};
use mesh_tower::{Clock as _, JwtSvids, SystemClock, WorkloadApi};
use prost::Message;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

pub(crate) fn id(account: &str) -> SpiffeId {
    format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().unwrap()
}

/// The lines of the issue log.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<std::sync::Mutex<Vec<u8>>>);

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The system's clock, set forward by some seconds.
#[derive(Clone, Default)]
pub(crate) struct SetClock(Arc<AtomicU64>);

impl SetClock {
    pub(crate) fn now(&self) -> UnixTime {
        let ahead = self.0.load(Ordering::SeqCst);
        UnixTime::since_unix_epoch(Duration::from_secs(SystemClock.now().as_secs() + ahead))
    }

    pub(crate) fn forward(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

pub(crate) struct World {
    pub(crate) service: CaService,
    pub(crate) clock: SetClock,
    pub(crate) log: Lines,
    socket: PathBuf,
}

impl World {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut CaSettings)) -> Self {
        let log = Lines::default();
        let mut world = Self::logging(change, JsonLines::new(log.clone()));
        world.log = log;
        world
    }

    fn logging(change: impl FnOnce(&mut CaSettings), log: impl IssueLog + 'static) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::SeqCst);
        let name = format!("mesh-ca-{}-{number}", std::process::id());
        let socket = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&socket).unwrap();
        let mut settings = CaSettings::new().unwrap();
        change(&mut settings);
        let clock = SetClock::default();
        let ca = Arc::new(Ca::new(&domain(), settings, log, clock.now()).unwrap());
        let read = clock.clone();
        let issuer = Some("https://ca.cluster.local".to_owned());
        let service = CaService::new(ca, issuer, move || read.now());
        let (serving, driven) = (service.clone(), service.clone());
        tokio::spawn(async move {
            serving.serve_workloads(listener, Arc::new(JwtSvids), std::future::pending()).await
        });
        tokio::spawn(async move { driven.drive().await });
        Self { service, clock, log: Lines::default(), socket }
    }

    /// Registers this process's user with these identities.
    pub(crate) fn register(&self, entries: impl IntoIterator<Item = WorkloadEntry>) {
        self.service.set_entries(WorkloadEntries::new(entries).unwrap());
    }

    pub(crate) fn api(&self) -> WorkloadApi {
        let quick = Duration::from_millis(20);
        let endpoint = format!("unix://{}", self.socket.display()).parse().unwrap();
        WorkloadApi::new(endpoint).retry(quick, quick)
    }

    pub(crate) async fn stream(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    pub(crate) async fn connect(&self) -> Raw {
        Raw::new(self.stream().await).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.socket));
    }
}

/// The user that runs the tests.
pub(crate) fn uid() -> u32 {
    std::fs::metadata("/proc/self").unwrap().uid()
}

pub(crate) fn entry(account: &str) -> WorkloadEntry {
    WorkloadEntry::new(id(account), [Selector::Uid(uid())]).unwrap()
}

/// One HTTP/2 connection; every call is written by hand.
pub(crate) struct Raw(http2::SendRequest<Full<Bytes>>);

impl Raw {
    pub(crate) async fn new<T>(stream: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (send, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(async move { connection.await.ok() });
        Self(send)
    }

    /// The first message of the answer, or the code of its status with the message.
    pub(crate) async fn call<A: Message + Default>(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        question: &[u8],
    ) -> Result<A, (i32, String)> {
        let length = u32::try_from(question.len()).unwrap().to_be_bytes();
        let frame = [&[0], &length[..], question].concat();
        let mut request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(frame.into())).unwrap();
        let answer = async {
            let response = self.0.send_request(request).await.unwrap();
            let (head, mut body) = response.into_parts();
            let mut bytes = Vec::new();
            let mut trailers = head.headers;
            while let Some(frame) = body.frame().await {
                match frame.unwrap().into_data() {
                    Ok(data) => bytes.extend_from_slice(&data),
                    Err(frame) => trailers = frame.into_trailers().unwrap(),
                }
                if bytes.len() > 5 {
                    let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap());
                    let length = usize::try_from(length).unwrap();
                    if let Some(message) = bytes.get(5..5 + length) {
                        return Ok(A::decode(message).unwrap());
                    }
                }
            }
            let text = |name: &str| {
                trailers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned()
            };
            let message = text("grpc-message").replace("%20", " ");
            Err((text("grpc-status").parse().unwrap(), message))
        };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }
}
