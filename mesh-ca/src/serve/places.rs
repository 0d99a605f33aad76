//! The places that connections take: for how long one may say nothing ([SEC-HTTP-14]), and which of
//! them gives way when all are taken ([SEC-CA-7]).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use hyper_util::server::graceful::GracefulConnection;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

/// From the end of the handshake to the head of the first request.
const FIRST: Duration = Duration::from_secs(10);

/// How long a connection stays without a request: clients that ask rarely connect again.
const IDLE: Duration = Duration::from_secs(60);

/// From the head of a request to the head of its answer: by then it has been asked whole.
const ANSWER: Duration = Duration::from_secs(60);

/// What a call that has begun may still take when its connection ends. Streams have no end of their
/// own.
const DRAIN: Duration = Duration::from_secs(1);

/// A bound on the connections of each user. Cloning shares it.
#[derive(Clone)]
pub(super) struct Places {
    limit: usize,
    first: Duration,
    idle: Duration,
    answer: Duration,
    /// By user, the first to come first.
    taken: Arc<Mutex<HashMap<u32, Vec<Requests>>>>,
}

/// The place of one connection; free again when dropped.
pub(super) struct Place {
    user: u32,
    requests: Requests,
    of: Places,
}

/// The requests of one connection. Cloning shares it.
#[derive(Clone, Default)]
pub(super) struct Requests(Arc<Shared>);

#[derive(Default)]
struct Shared {
    open: watch::Sender<usize>,
    evicted: Notify,
}

/// A request that is open for as long as this exists.
pub(super) struct Open(Requests);

impl Places {
    /// So many for each user.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, first: FIRST, idle: IDLE, answer: ANSWER, taken: Arc::default() }
    }

    /// Takes a place. When the user has them all, the first of his connections that has no request
    /// open gives way; nothing when all have one.
    pub(super) fn take(&self, user: u32) -> Option<Place> {
        let requests = Requests::default();
        let mut users = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = users.entry(user).or_default();
        if taken.len() >= self.limit {
            let idle = taken.iter().position(|requests| *requests.0.open.borrow() == 0)?;
            taken.remove(idle).0.evicted.notify_one();
        }
        taken.push(requests.clone());
        Some(Place { user, requests, of: self.clone() })
    }
}

impl Place {
    /// Where the connection's requests are counted.
    pub(super) fn requests(&self) -> Requests {
        self.requests.clone()
    }

    /// How long a request may take until its answer begins.
    pub(super) fn answer_limit(&self) -> Duration {
        self.of.answer
    }

    /// Resolves when the connection must give way.
    pub(super) async fn evicted(&self) {
        self.requests.0.evicted.notified().await;
    }

    /// Drives a connection until it ends, has said nothing for too long, gives way, or until `stop`
    /// changes.
    #[expect(
        clippy::manual_async_fn,
        reason = "the compiler does not find by itself that it is Send"
    )]
    pub(super) fn drive<C>(
        self,
        connection: C,
        mut stop: watch::Receiver<bool>,
    ) -> impl Future<Output = ()> + Send
    where
        C: GracefulConnection<Error: Send> + Send,
    {
        async move {
            tokio::pin!(connection);
            tokio::select! {
                // What a client does to its own connection is its own affair.
                _done = connection.as_mut() => return,
                () = self.evicted() => return,
                () = self.silence() => {}
                _stopped = stop.changed() => {}
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                _done = connection => {}
                () = self.evicted() => {}
                () = sleep(DRAIN) => {}
            }
        }
    }

    /// Resolves when no request has been open for too long.
    async fn silence(&self) {
        let mut requests = self.requests.0.open.subscribe();
        let mut limit = self.of.first;
        // We hold the sender. One that begins and ends between two looks is a change, too.
        while requests.wait_for(|open| *open == 0).await.is_ok()
            && timeout(limit, requests.changed()).await.is_ok()
        {
            limit = self.of.idle;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = users.get_mut(&self.user) {
            taken.retain(|requests| !Arc::ptr_eq(&requests.0, &self.requests.0));
            if taken.is_empty() {
                users.remove(&self.user);
            }
        }
    }
}

impl Requests {
    pub(super) fn begin(&self) -> Open {
        self.0.open.send_modify(|open| *open = open.saturating_add(1));
        Open(self.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.open.send_modify(|open| *open = open.saturating_sub(1));
    }
}

/// An answer's body; its request is open until it is gone.
pub(super) struct Counted<B> {
    pub(super) body: B,
    pub(super) _open: Open,
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::{Empty, StreamBody};
    use hyper::body::Bytes;
    use hyper::client::conn::http2;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
    use tonic::Status;
    use tonic::body::Body as Answer;

    use super::*;
    use crate::serve::grpc;

    const FIRST: Duration = Duration::from_millis(400);
    const IDLE: Duration = Duration::from_millis(100);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn places(limit: usize) -> Places {
        Places { first: FIRST, idle: IDLE, answer: IDLE, ..Places::new(limit) }
    }

    /// A connection to a server that answers `/stream` with a body that does not end.
    fn connect(places: &Places) -> Option<DuplexStream> {
        let place = places.take(0)?;
        let (client, server) = tokio::io::duplex(4096);
        tokio::spawn(async move {
            let (_stop, stopped) = watch::channel(false);
            grpc::serve(server, place, stopped, |request| match request.uri().path() {
                "/stream" => {
                    let silent = futures_util::stream::pending::<Result<Frame<Bytes>, Status>>();
                    let body = Answer::new(StreamBody::new(silent));
                    Box::pin(async move { Response::new(body) })
                }
                "/never" => Box::pin(std::future::pending()),
                _ => grpc::unknown_method(),
            })
            .await;
        });
        Some(client)
    }

    async fn ended(client: &mut DuplexStream) -> bool {
        let mut read = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut read)).await.is_ok()
    }

    async fn ask(send: &mut http2::SendRequest<Empty<Bytes>>, path: &str) -> hyper::body::Incoming {
        let request = Request::post(format!("http://localhost{path}")).body(Empty::new()).unwrap();
        timeout(PATIENCE, send.send_request(request)).await.unwrap().unwrap().into_body()
    }

    /// [SEC-HTTP-14] Nothing at all, half a preface, or all but a request: each ends in time.
    #[tokio::test]
    async fn sec_http_14_a_connection_without_a_first_request_ends() {
        let preface =
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[0, 0, 0, 4, 0, 0, 0, 0, 0][..]].concat();
        for said in [&[][..], &preface[..10], &preface] {
            let mut client = connect(&places(1)).unwrap();
            client.write_all(said).await.unwrap();
            assert!(ended(&mut client).await, "{} bytes", said.len());
        }
    }

    /// [SEC-HTTP-14] A client that answers pings is no less idle; a stream is open for as long as
    /// its answer may come.
    #[tokio::test]
    async fn sec_http_14_an_idle_connection_ends_and_an_open_stream_stays() {
        let client = TokioIo::new(connect(&places(1)).unwrap());
        let (mut send, connection) = http2::handshake(TokioExecutor::new(), client).await.unwrap();
        let mut connection = tokio::spawn(connection);
        let stream = ask(&mut send, "/stream").await;
        drop(ask(&mut send, "/other").await);
        assert!(timeout(FIRST * 4, &mut connection).await.is_err(), "a stream is open");
        drop(stream);
        // A request that is never whole does not hold the connection open.
        drop(ask(&mut send, "/never").await);
        timeout(PATIENCE, connection).await.unwrap().unwrap().unwrap();
    }

    /// [SEC-CA-7] When all places are taken, the first connection without a request gives way to
    /// one more; one with a request does not.
    #[tokio::test]
    async fn sec_ca_7_the_first_without_a_request_gives_way() {
        let long = Duration::from_secs(3600);
        let places = Places { first: long, idle: long, ..Places::new(2) };
        let first = TokioIo::new(connect(&places).unwrap());
        let (mut send, connection) = http2::handshake(TokioExecutor::new(), first).await.unwrap();
        let connection = tokio::spawn(connection);
        let stream = ask(&mut send, "/stream").await;
        let mut silent = connect(&places).unwrap();
        for _ in 0..5 {
            let newcomer = connect(&places).unwrap();
            assert!(ended(&mut silent).await, "gives way");
            silent = newcomer;
        }
        let (mut other, rest) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(silent)).await.unwrap();
        tokio::spawn(rest);
        let second = ask(&mut other, "/stream").await;
        assert!(connect(&places).is_none(), "all are in use");
        assert!(places.take(1).is_some(), "another user has places of his own");
        assert!(!connection.is_finished());
        drop((stream, second));
    }
}
