//! How many requests a connection carries, so that one without any can be ended.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_service::Service;

/// The requests of one connection. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// How often within the limit a connection is looked at: requests themselves set no timer.
const LOOKS: u32 = 4;

impl Requests {
    fn begin(&self) -> Open {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        Open(Arc::clone(&self.0))
    }

    /// Resolves when there has been no request for `limit`, at the latest a quarter later.
    pub(super) async fn idle(&self, limit: Duration) {
        let (mut quiet, mut before) = (0, 0);
        while quiet < LOOKS {
            tokio::time::sleep(limit.checked_div(LOOKS).unwrap_or(limit)).await;
            // In this order a request that begins between the two is not taken for none.
            let ended = self.0.ended.load(Ordering::Acquire);
            let begun = self.0.begun.load(Ordering::Acquire);
            let is_quiet = begun == ended && begun == before;
            quiet = if is_quiet { quiet.saturating_add(1) } else { 0 };
            before = begun;
        }
    }
}

/// A request that is open for as long as this exists.
#[derive(Debug)]
struct Open(Arc<Counts>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Release);
    }
}

/// Counts each request from its head to the end of its answer's body, where anybody asks for it.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) requests: Option<Requests>,
}

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<CountedBody<R>>;
    type Error = S::Error;
    type Future = CountedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let open = self.requests.as_ref().map(Requests::begin);
        CountedFuture { open, answering: self.service.call(request) }
    }
}

pin_project! {
    #[derive(Debug)]
    pub(super) struct CountedFuture<F> {
        open: Option<Open>,
        #[pin]
        answering: F,
    }
}

impl<F, R, E> Future for CountedFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<CountedBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.answering.poll(cx));
        let open = this.open.take();
        Poll::Ready(answered.map(|response| response.map(|body| CountedBody { body, open })))
    }
}

pin_project! {
    /// The inner body; its request is open until it is gone.
    #[derive(Debug)]
    pub(super) struct CountedBody<B> {
        #[pin]
        body: B,
        open: Option<Open>,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
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
    use super::*;
    use crate::clock::monotonic;

    /// [SEC-HTTP-14] A request before the first look counts as one: the limit runs from its end.
    #[tokio::test]
    async fn the_limit_runs_from_the_end_of_the_last_request() {
        let (limit, requests) = (Duration::from_millis(200), Requests::default());
        let begun = monotonic();
        requests.idle(limit).await;
        assert!(begun.elapsed() >= limit);

        let (requests, begun) = (Requests::default(), monotonic());
        let request = async {
            let open = requests.begin();
            tokio::time::sleep(limit / 5).await;
            drop(open);
            monotonic()
        };
        let (ended, ()) = tokio::join!(request, requests.idle(limit));
        assert!(ended.elapsed() >= limit, "{:?} after {:?}", ended.elapsed(), begun.elapsed());
    }
}
