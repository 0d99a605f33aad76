//! An authority that serves, a clock that can be set, and a gRPC client that says what it is told.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::HeaderMap;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_ca::serve::{CaService, Selector, WorkloadEntries, WorkloadEntry};
use mesh_ca::{Ca, CaSettings, IssueLog, JsonLines};
use mesh_tower::identity::{SpiffeId, TrustDomain};
use mesh_tower::{Clock as _, JwtSvids, SystemClock, WorkloadApi};
use prost::Message;
use rustls_pki_types::UnixTime;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

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

/// What `tracing` says at level WARN and above, on this thread.
#[derive(Clone, Default)]
pub(crate) struct Warnings(Arc<std::sync::Mutex<String>>);

impl Warnings {
    pub(crate) fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

struct Fields<'t>(&'t mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl tracing::Subscriber for Warnings {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }
    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        event.record(&mut Fields(&mut text));
        text.push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Waits until the other side ends a connection.
pub(crate) async fn ends(mut stream: impl AsyncRead + Unpin) {
    let mut read = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    // It may be cut.
    drop(ended.unwrap());
}

/// One HTTP/2 connection; every call is written by hand.
pub(crate) struct Raw(http2::SendRequest<Frames>);

/// The messages of a request, as they come; at its end the request is whole.
pub(crate) struct Frames(mpsc::UnboundedReceiver<Bytes>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// A message as gRPC frames it.
pub(crate) fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// A call whose questions and answers come one by one.
pub(crate) struct Call<A> {
    questions: mpsc::UnboundedSender<Bytes>,
    answers: Incoming,
    head: HeaderMap,
    bytes: Vec<u8>,
    answer: PhantomData<A>,
}

impl<A: Message + Default> Call<A> {
    /// Says something more. A server that has gone does not hear it.
    pub(crate) fn say(&self, question: &impl Message) {
        drop(self.questions.send(frame(&question.encode_to_vec())));
    }

    /// The next answer, or the code of the call's status with its message.
    pub(crate) async fn next(&mut self) -> Result<A, (i32, String)> {
        tokio::time::timeout(PATIENCE, self.read()).await.unwrap()
    }

    /// Whether nothing is said for a while.
    pub(crate) async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(300), self.read()).await.is_err()
    }

    /// May be dropped and called again.
    async fn read(&mut self) -> Result<A, (i32, String)> {
        loop {
            if let Some(head) = self.bytes.first_chunk::<5>() {
                let length = u32::from_be_bytes(head[1..5].try_into().unwrap());
                let end = 5 + usize::try_from(length).unwrap();
                if self.bytes.len() >= end {
                    let message = A::decode(&self.bytes[5..end]).unwrap();
                    self.bytes.drain(..end);
                    return Ok(message);
                }
            }
            let Some(frame) = self.answers.frame().await else { break };
            match frame.unwrap().into_data() {
                Ok(data) => self.bytes.extend_from_slice(&data),
                Err(frame) => self.head = frame.into_trailers().unwrap(),
            }
        }
        let text =
            |name: &str| self.head.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        let message = text("grpc-message").replace("%20", " ");
        Err((text("grpc-status").parse().unwrap(), message))
    }
}

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
        let (questions, rest) = mpsc::unbounded_channel();
        questions.send(frame(question)).unwrap();
        drop(questions);
        let answer = async { self.send(path, headers, rest).await.read().await };
        tokio::time::timeout(PATIENCE, answer).await.unwrap()
    }

    /// A call with more than one question, the first one being this.
    pub(crate) async fn open<A: Message + Default>(
        &mut self,
        path: &str,
        question: &impl Message,
    ) -> Call<A> {
        let (questions, rest) = mpsc::unbounded_channel();
        questions.send(frame(&question.encode_to_vec())).unwrap();
        let mut call = self.send(path, &[], rest).await;
        call.questions = questions;
        call
    }

    async fn send<A>(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        questions: mpsc::UnboundedReceiver<Bytes>,
    ) -> Call<A> {
        let mut request = http::Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Frames(questions)).unwrap();
        let (head, answers) = self.0.send_request(request).await.unwrap().into_parts();
        Call {
            questions: mpsc::unbounded_channel().0,
            answers,
            head: head.headers,
            bytes: Vec::new(),
            answer: PhantomData,
        }
    }
}
