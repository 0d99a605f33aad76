//! Requests that run for long, judged again when policies change or their token ends
//! ([SEM-STRICT-18]).
//!
//! Each request's head is kept until its answer begins. Where that is a stream, or the request is
//! one, the head goes into the connection's list of running requests, through which the life of the
//! connection goes at every change. What it refuses is cut there, in the middle of its body.

use std::borrow::Cow;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::UPGRADE;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
};
use http_body::Body;
use mesh_authz::ClientAddress;
use mesh_identity::VerifiedToken;
use rustls::pki_types::UnixTime;
use tokio::sync::{Notify, oneshot};

use crate::body::ResponseBody;
use crate::connection::ConnectionInfo;
use crate::gather::Host;
use crate::guard::{self, Admitted, Arrived};
use crate::handed::Handed;
use crate::mask;
use crate::mesh::Mesh;
use crate::refuse::{Refusal, RequestKind};
use crate::snapshot::Snapshot;

/// A body of known length up to this is not watched: it is less than what buffers of the system
/// hold, so that it is under way, or here, when somebody could cut it.
const SHORT_BODY: u64 = 64 * 1024;

/// Buffers for heads that a connection keeps for its next requests, and how large they may be.
const SPARE_HEADS: usize = 4;
const LARGEST_SPARE: usize = 4 * 1024;

/// The text of a head, in a buffer that can be used again.
type Text = Vec<u8>;

/// Why a body ends before its time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the policies in force no longer admit this request")]
struct Ended;

/// What judges a request: its head as it arrived, tokens included.
///
/// It is made for each request and read for few, so it is one text: host, path and query, and each
/// header, every one with a line of its own. None of them can have a line feed in it.
#[derive(Debug)]
struct Head {
    method: Method,
    version: Version,
    client: ClientAddress,
    /// Whether the request asks for an upgrade.
    upgrades: bool,
    text: Text,
}

impl Head {
    fn new(parts: &Parts, arrived: &Arrived, mut text: Text) -> Self {
        let Arrived { info: _, host, client } = arrived;
        let path = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
        for line in [host.as_str(), path] {
            text.extend_from_slice(line.as_bytes());
            text.push(b'\n');
        }
        for (name, value) in &parts.headers {
            text.extend_from_slice(name.as_str().as_bytes());
            text.push(b':');
            text.extend_from_slice(value.as_bytes());
            text.push(b'\n');
        }
        Self {
            method: parts.method.clone(),
            version: parts.version,
            client: *client,
            upgrades: parts.headers.contains_key(UPGRADE),
            text,
        }
    }

    /// The request again; nothing if the text were not what [`Head::new`] wrote.
    fn read(&self, info: &ConnectionInfo) -> Option<(Parts, Arrived)> {
        let mut lines = self.text.split(|byte| *byte == b'\n');
        let host = Host::Header(HeaderValue::from_bytes(lines.next()?).ok()?);
        let path = Some(lines.next()?).filter(|path| !path.is_empty());
        let mut headers = HeaderMap::new();
        for line in lines.filter(|line| !line.is_empty()) {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let (name, value) = line.split_at_checked(colon)?;
            let value = HeaderValue::from_bytes(value.get(1..)?).ok()?;
            headers.append(HeaderName::from_bytes(name).ok()?, value);
        }
        let (mut parts, ()) = Request::new(()).into_parts();
        let mut uri = http::uri::Parts::default();
        uri.path_and_query = path.map(PathAndQuery::try_from).transpose().ok()?;
        parts.uri = Uri::from_parts(uri).ok()?;
        parts.method = self.method.clone();
        parts.version = self.version;
        parts.headers = headers;
        Some((parts, Arrived { info: info.clone(), host, client: self.client }))
    }

    fn path(&self) -> Cow<'_, str> {
        let path = self.text.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
        String::from_utf8_lossy(path.split(|byte| *byte == b'?').next().unwrap_or_default())
    }
}

/// The requests of one connection whose answers are under way.
#[derive(Debug, Default)]
pub(crate) struct RunningRequests {
    state: Mutex<State>,
    /// Told when one is added: its token may end, or policies have changed since it was admitted.
    added: Notify,
}

#[derive(Debug, Default)]
struct State {
    streams: Vec<Entry>,
    spare: Vec<Text>,
}

#[derive(Debug)]
struct Entry {
    head: Head,
    /// The configuration that has admitted it last.
    generation: u64,
    token_ends: Option<UnixTime>,
    handed: Handed,
    /// Nothing where the request has taken over the whole connection.
    cut: Option<oneshot::Sender<()>>,
}

impl Entry {
    fn is_over(&self) -> bool {
        self.cut.as_ref().is_some_and(oneshot::Sender::is_closed)
    }
}

impl RunningRequests {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when a request was added.
    pub(crate) async fn added(&self) {
        self.added.notified().await;
    }

    /// When the next of the tokens ends that requests run on.
    pub(crate) fn next_end(&self) -> Option<UnixTime> {
        let state = self.state();
        let running = state.streams.iter().filter(|entry| !entry.is_over());
        running.filter_map(|entry| entry.token_ends).min()
    }

    fn add(&self, entry: Entry) {
        let mut state = self.state();
        state.sweep();
        state.streams.push(entry);
        drop(state);
        self.added.notify_one();
    }

    /// Judges every running request by the configuration in force and the time: what is refused is
    /// cut, after the drain where there is one. Tells whether the connection itself must end,
    /// because it is all one request's.
    pub(crate) fn judge(&self, mesh: &Mesh, snapshot: &Snapshot, info: &ConnectionInfo) -> bool {
        let Some(drain) = mesh.limits().denied_drain else { return false };
        let now = mesh.clock().now();
        let mut state = self.state();
        state.sweep();
        let mut all = false;
        let refused = state.streams.extract_if(.., |entry| {
            let Err(detail) = judge(entry, snapshot, info, now) else {
                entry.generation = snapshot.generation;
                return false;
            };
            let (peer, path) = (info.peer_address(), entry.head.path());
            tracing::info!(%peer, path = &*mask::tokens(&path), detail, "running request is being ended");
            // What has the whole connection stays: it is said again for as long as there is one.
            all |= entry.cut.is_none();
            entry.cut.is_some()
        });
        refused.filter_map(|entry| entry.cut).for_each(|cut| end(cut, drain));
        all
    }
}

impl State {
    /// Forgets what is over.
    fn sweep(&mut self) {
        let Self { streams, spare } = self;
        for over in streams.extract_if(.., |entry| entry.is_over()) {
            recycle(spare, over.head.text);
        }
    }
}

/// Keeps a buffer for the next request.
fn recycle(spare: &mut Vec<Text>, mut buffer: Text) {
    if spare.len() < SPARE_HEADS && buffer.capacity() <= LARGEST_SPARE {
        buffer.clear();
        spare.push(buffer);
    }
}

fn judge(
    entry: &Entry,
    snapshot: &Snapshot,
    info: &ConnectionInfo,
    now: UnixTime,
) -> Result<(), String> {
    // The skew that a new request's token is given is not given to a stream: its time is over.
    if entry.token_ends.is_some_and(|end| now >= end) {
        return Err("token_expired".to_owned());
    }
    if entry.generation == snapshot.generation {
        return Ok(());
    }
    let Some((parts, arrived)) = entry.head.read(info) else {
        return Err("mesh_fault{a running request cannot be judged}".to_owned());
    };
    guard::judge_again(snapshot, parts, arrived, &entry.handed, now)
}

/// Cuts a stream when its drain is over, unless it has ended by itself.
fn end(mut cut: oneshot::Sender<()>, drain: Duration) {
    if drain.is_zero() {
        // A stream that has just ended needs no cutting.
        cut.send(()).ok();
        return;
    }
    tokio::spawn(async move {
        tokio::select! {
            () = tokio::time::sleep(drain) => {
                cut.send(()).ok();
            }
            () = cut.closed() => {}
        }
    });
}

/// One admitted request, from its admission to the head of its answer.
#[derive(Debug)]
pub(crate) struct Running {
    info: ConnectionInfo,
    head: Option<Head>,
    generation: u64,
    token_ends: Option<UnixTime>,
    handed: Handed,
    kind: RequestKind,
    cut: Cut,
}

/// Told when a running request is to end.
#[derive(Debug, Default)]
pub(crate) struct Cut(Option<oneshot::Receiver<()>>);

impl Cut {
    /// Whether it is to end now; registers for it otherwise.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(cut) = &mut self.0 else { return false };
        match Pin::new(cut).poll(cx) {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(_)) => {
                self.0 = None;
                false
            }
        }
    }

    /// The error that a body ends with.
    pub(crate) fn error() -> Box<dyn std::error::Error + Send + Sync> {
        Box::new(Ended)
    }
}

impl Running {
    /// Keeps the head of a request that has arrived and is about to be judged; nothing where
    /// running requests are left alone.
    pub(crate) fn begin(
        mesh: &Mesh,
        snapshot: &Snapshot,
        parts: &Parts,
        arrived: &Arrived,
        kind: RequestKind,
    ) -> Option<Self> {
        mesh.limits().denied_drain?;
        let info = &arrived.info;
        let text = info.running().state().spare.pop().unwrap_or_default();
        let head = Head::new(parts, arrived, text);
        Some(Self {
            info: info.clone(),
            head: Some(head),
            generation: snapshot.generation,
            token_ends: None,
            handed: Handed::default(),
            kind,
            cut: Cut::default(),
        })
    }

    /// The request was admitted. One whose own body is a stream is watched from now on.
    pub(crate) fn admitted<B: Body>(&mut self, admitted: &Admitted, body: &B) {
        self.token_ends = admitted.token.as_ref().and_then(VerifiedToken::ends);
        self.handed = admitted.handed.clone();
        if !is_short(body) {
            self.watch();
        }
    }

    /// Whether the request is to end before it is answered.
    pub(crate) fn poll_cut(&mut self, cx: &mut Context<'_>) -> bool {
        self.cut.poll(cx)
    }

    /// Resolves when the request is to end before it is answered.
    pub(crate) async fn cut(&mut self) {
        std::future::poll_fn(|cx| if self.poll_cut(cx) { Poll::Ready(()) } else { Poll::Pending })
            .await;
    }

    /// The answer begins: one that streams is watched until it ends, an upgrade for as long as the
    /// connection lives.
    pub(crate) fn answered<B: Body>(mut self, response: &Response<B>) -> Cut {
        if self.is_upgraded(response.status()) {
            self.hand_over(None);
        } else if !is_short(response.body()) {
            self.watch();
        }
        std::mem::take(&mut self.cut)
    }

    /// The answer of a request that is ended before it has one.
    pub(crate) fn refused<B>(&self) -> Response<ResponseBody<B>> {
        Refusal::denied("denied_while_running".to_owned()).response(self.kind)
    }

    fn is_upgraded(&self, status: StatusCode) -> bool {
        let Some(head) = &self.head else { return false };
        let connect = head.method == Method::CONNECT;
        (head.upgrades && status == StatusCode::SWITCHING_PROTOCOLS)
            || (connect && status.is_success())
    }

    fn watch(&mut self) {
        let (cut, told) = oneshot::channel();
        if self.hand_over(Some(cut)) {
            self.cut = Cut(Some(told));
        }
    }

    fn hand_over(&mut self, cut: Option<oneshot::Sender<()>>) -> bool {
        let Some(head) = self.head.take() else { return false };
        let Self { generation, token_ends, .. } = *self;
        let handed = std::mem::take(&mut self.handed);
        self.info.running().add(Entry { head, generation, token_ends, handed, cut });
        true
    }
}

/// The buffer serves the connection's next request.
impl Drop for Running {
    fn drop(&mut self) {
        if let Some(head) = self.head.take() {
            recycle(&mut self.info.running().state().spare, head.text);
        }
    }
}

fn is_short<B: Body>(body: &B) -> bool {
    body.is_end_stream() || body.size_hint().exact().is_some_and(|length| length <= SHORT_BODY)
}
