//! Following a streaming call for ever: open, read, wait, open again.

use std::fmt;
use std::future::pending;
use std::pin::Pin;

use mesh_identity::workload_api::WorkloadApiError;
use tokio::time::timeout;
use tonic::Streaming;

use super::{CALL_TIMEOUT, WorkloadApi, WorkloadApiFailure, connection, path, request};

/// What comes of a stream.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a message is taken or not")]
pub enum WorkloadApiUpdate<T> {
    /// A whole state: what the last one had and this one lacks is withdrawn.
    Taken(T),
    /// No state this time. The last one stays, unless [`WorkloadApiFailure::withdraws`].
    Failed(WorkloadApiFailure),
}

/// The states of one streaming call, followed for ever.
///
/// Failures are reported and tried again after a while, except those that are final: after one of
/// them nothing comes.
pub struct WorkloadApiStream<T> {
    next: Box<dyn NextState<T>>,
}

trait NextState<T>: Send {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = WorkloadApiUpdate<T>> + Send + '_>>;
}

/// One call, its stream, and when to try again.
pub(super) struct Watch<Q, A> {
    api: WorkloadApi,
    method: &'static str,
    question: Q,
    state: State<A>,
}

enum State<A> {
    /// The next thing to do is to open the stream, perhaps after a while.
    Closed {
        wait: Option<Pin<Box<tokio::time::Sleep>>>,
    },
    Open(Box<Streaming<A>>),
    /// A failure was final.
    Stopped,
}

impl<Q, A> Watch<Q, A>
where
    Q: prost::Message + Clone + 'static,
    A: prost::Message + Default + 'static,
{
    pub(super) fn new(api: WorkloadApi, method: &'static str, question: Q) -> Self {
        Self { api, method, question, state: State::Closed { wait: None } }
    }

    /// The next message or failure. It may be dropped and called again.
    async fn next(&mut self) -> Result<A, WorkloadApiFailure> {
        loop {
            match &mut self.state {
                State::Stopped => return pending().await,
                State::Closed { wait: Some(wait) } => {
                    wait.as_mut().await;
                    self.state = State::Closed { wait: None };
                }
                State::Closed { wait: None } => {
                    let open = timeout(CALL_TIMEOUT, self.open());
                    match open.await.unwrap_or(Err(WorkloadApiFailure::Timeout)) {
                        Ok(stream) => self.state = State::Open(Box::new(stream)),
                        Err(failure) => return Err(self.failed(failure)),
                    }
                }
                State::Open(stream) => match stream.message().await {
                    Ok(Some(message)) => {
                        self.api.backoff.reset();
                        return Ok(message);
                    }
                    Ok(None) => return Err(self.failed(WorkloadApiFailure::Ended)),
                    Err(status) => return Err(self.failed(status.into())),
                },
            }
        }
    }

    async fn open(&self) -> Result<Streaming<A>, WorkloadApiFailure> {
        let mut grpc = connection::connect(&self.api.endpoint).await?;
        let codec = tonic_prost::ProstCodec::default();
        let question = request(self.question.clone());
        Ok(grpc.server_streaming(question, path(self.method)?, codec).await?.into_inner())
    }

    fn failed(&mut self, failure: WorkloadApiFailure) -> WorkloadApiFailure {
        self.state = if failure.is_final() {
            State::Stopped
        } else {
            let wait = self.api.backoff.fail();
            State::Closed { wait: Some(Box::pin(tokio::time::sleep(wait))) }
        };
        failure
    }
}

/// A watch and what its messages mean.
struct Parsed<Q, A, P> {
    watch: Watch<Q, A>,
    parse: P,
}

impl<Q, A, T, P> NextState<T> for Parsed<Q, A, P>
where
    Q: prost::Message + Clone + 'static,
    A: prost::Message + Default + 'static,
    P: Fn(A) -> Result<T, WorkloadApiError> + Send,
{
    fn next(&mut self) -> Pin<Box<dyn Future<Output = WorkloadApiUpdate<T>> + Send + '_>> {
        Box::pin(async move {
            // A message that is not taken leaves the stream open: the next one may be good.
            let state = match self.watch.next().await {
                Ok(message) => (self.parse)(message).map_err(WorkloadApiFailure::from),
                Err(failure) => Err(failure),
            };
            state.map_or_else(WorkloadApiUpdate::Failed, WorkloadApiUpdate::Taken)
        })
    }
}

impl<T> WorkloadApiStream<T> {
    pub(super) fn new<Q, A, P>(watch: Watch<Q, A>, parse: P) -> Self
    where
        Q: prost::Message + Clone + 'static,
        A: prost::Message + Default + 'static,
        P: Fn(A) -> Result<T, WorkloadApiError> + Send + 'static,
        T: 'static,
    {
        Self { next: Box::new(Parsed { watch, parse }) }
    }

    /// Waits for the next state or failure. It may be dropped and called again.
    pub async fn next(&mut self) -> WorkloadApiUpdate<T> {
        self.next.next().await
    }
}

impl<T> fmt::Debug for WorkloadApiStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApiStream").finish_non_exhaustive()
    }
}
