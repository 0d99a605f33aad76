//! The future of a guarded request: the inner service's, or an answer of ours.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http_body::Body;
use pin_project_lite::pin_project;

use crate::body::ResponseBody;
use crate::record::Record;

type Answer<R, E> = Result<Response<ResponseBody<R>>, E>;

pin_project! {
    /// The future of [`crate::MeshService`].
    pub struct MeshFuture<F, R, E> {
        #[pin]
        state: State<F, R, E>,
    }
}

pin_project! {
    #[project = Projection]
    enum State<F, R, E> {
        /// Admitted: the inner service is answering.
        Inner { #[pin] future: F, record: Option<Box<Record>> },
        /// Refused: the answer is here.
        Refused { response: Option<Response<ResponseBody<R>>> },
        /// A policy has to wait for something before the inner service is called.
        Asking { future: Pin<Box<dyn Future<Output = Answer<R, E>> + Send>> },
    }
}

impl<F, R, E> MeshFuture<F, R, E> {
    pub(crate) fn inner(future: F, record: Box<Record>) -> Self {
        Self { state: State::Inner { future, record: Some(record) } }
    }

    pub(crate) fn refused(response: Response<ResponseBody<R>>) -> Self {
        Self { state: State::Refused { response: Some(response) } }
    }

    pub(crate) fn asking(future: Pin<Box<dyn Future<Output = Answer<R, E>> + Send>>) -> Self {
        Self { state: State::Asking { future } }
    }
}

impl<F, R, E> Future for MeshFuture<F, R, E>
where
    F: Future<Output = Result<Response<R>, E>>,
    R: Body<Data = Bytes>,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Output = Answer<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            // A future is not polled again after it was ready; if it is, it stays pending.
            Projection::Inner { future, record: kept } => {
                let Some(mut record) = kept.take() else { return Poll::Pending };
                if let Some(running) = record.running.take_if(|one| one.poll_cut(cx)) {
                    return Poll::Ready(Ok(record.answered(running.refused())));
                }
                let response = match record.place().run(|| future.poll(cx)) {
                    Poll::Ready(response) => response?,
                    Poll::Pending => {
                        *kept = Some(record);
                        return Poll::Pending;
                    }
                };
                Poll::Ready(Ok(record.answered_by_service(response)))
            }
            Projection::Refused { response } => {
                response.take().map_or(Poll::Pending, |response| Poll::Ready(Ok(response)))
            }
            Projection::Asking { future } => future.as_mut().poll(cx),
        }
    }
}

impl<F, R, E> fmt::Debug for MeshFuture<F, R, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeshFuture").finish_non_exhaustive()
    }
}
