//! The bodies that pass through the layer: read ahead for a policy, or answered by us.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use crate::flow::{Messages, Received};
use crate::record::Record;
use crate::running::Cut;

/// What a body may fail with: whatever hyper can carry.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// A request's body as the inner service receives it: what a policy has read ahead, then the
    /// rest. No byte is lost and none comes twice.
    ///
    /// Trailers are left out: they come after everything was decided, and libraries that merge them
    /// into the headers would let a client replace what was verified ([SEC-HTTP-6]). Clients of gRPC
    /// send none.
    #[derive(Debug)]
    pub struct RequestBody<B> {
        read_ahead: Option<Bytes>,
        // Few bodies have one; all of them are moved.
        count: Option<Box<Count>>,
        patience: Patience,
        #[pin]
        rest: B,
    }
}

/// How long a reader waits for the next piece of a body that does not come ([SEC-HTTP-14]).
#[derive(Debug, Default)]
struct Patience {
    limit: Option<Duration>,
    /// Runs while a reader waits; most bodies are here at once and need none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    /// Whether it has ended; `waits` tells whether the reader still has nothing.
    fn has_ended(&mut self, waits: bool, cx: &mut Context<'_>) -> bool {
        if !waits {
            self.timer = None;
            return false;
        }
        let Some(limit) = self.limit else { return false };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        let ended = timer.as_mut().poll(cx).is_ready();
        if ended {
            self.timer = None;
        }
        ended
    }
}

/// Why a request's body ends before its time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the request's body makes no progress")]
struct Stalled;

/// Counts what the inner service receives.
#[derive(Debug)]
struct Count {
    received: Arc<Received>,
    messages: Option<Messages>,
}

impl<B> RequestBody<B> {
    /// A body nobody has read from.
    pub(crate) fn untouched(rest: B) -> Self {
        let patience = Patience::default();
        Self { read_ahead: None, count: None, patience, rest }
    }

    /// A body nobody has read from, whose bytes are counted, and for gRPC its messages.
    pub(crate) fn counted(rest: B, received: Arc<Received>, grpc: bool) -> Self {
        let count = Count { received, messages: grpc.then(Messages::default) };
        Self { count: Some(Box::new(count)), ..Self::untouched(rest) }
    }

    /// Fails when its reader has waited for the next piece for so long.
    pub(crate) fn patient_for(mut self, limit: Option<Duration>) -> Self {
        self.patience.limit = limit;
        self
    }
}

impl<B: Body<Data = Bytes> + Unpin> RequestBody<B> {
    /// Reads until the end or until more than `limit` bytes are here, going on where an earlier
    /// reader has stopped.
    ///
    /// Returns what was read and whether that is all of the body; the inner service still gets
    /// everything.
    pub(crate) async fn read_ahead(&mut self, limit: usize) -> Result<(Bytes, bool), B::Error> {
        let mut read = self.read_ahead.take().map(Vec::from).unwrap_or_default();
        let mut complete = self.rest.is_end_stream();
        while !complete && read.len() <= limit {
            let rest = Pin::new(&mut self.rest);
            let frame = std::future::poll_fn({
                let mut rest = rest;
                move |cx| rest.as_mut().poll_frame(cx)
            });
            let Some(frame) = frame.await else {
                complete = true;
                break;
            };
            if let Ok(data) = frame?.into_data() {
                read.extend_from_slice(&data);
            }
        }
        let read = Bytes::from(read);
        self.read_ahead = Some(read.clone()).filter(|read| !read.is_empty());
        Ok((read, complete))
    }
}

/// It fails as the body from the network does, and when that makes no progress
/// ([`crate::Limits::request_body`]).
impl<B> Body for RequestBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        let frame = if let Some(data) = this.read_ahead.take() {
            Some(Ok(Frame::data(data)))
        } else {
            loop {
                let polled = this.rest.as_mut().poll_frame(cx);
                if this.patience.has_ended(polled.is_pending(), cx) {
                    return Poll::Ready(Some(Err(Box::new(Stalled))));
                }
                match ready!(polled) {
                    Some(Ok(frame)) if frame.is_trailers() => {}
                    frame => break frame.map(|frame| frame.map_err(Into::into)),
                }
            }
        };
        if let (Some(count), Some(Ok(frame))) = (this.count, &frame)
            && let Some(data) = frame.data_ref()
        {
            count.received.add(data);
            if let Some(messages) = &mut count.messages {
                messages.feed(data);
                count.received.set_messages(messages.count());
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.read_ahead.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.read_ahead.as_ref().map_or(0, Bytes::len);
        let ahead = u64::try_from(ahead).unwrap_or(u64::MAX);
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(ahead));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint
    }
}

pin_project! {
    /// A response's body: the inner service's, or the few bytes of a refusal.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
        // Reports the request when the body is gone.
        record: Option<Box<Record>>,
    }
}

pin_project! {
    #[project = KindProjection]
    #[derive(Debug)]
    enum Kind<B> {
        Inner { #[pin] body: B, cut: Cut },
        Refusal { text: Option<Bytes> },
    }
}

impl<B> ResponseBody<B> {
    /// The inner service's body.
    pub(crate) fn inner(body: B, cut: Cut) -> Self {
        Self { kind: Kind::Inner { body, cut }, record: None }
    }

    /// A body of ours; empty text is no body.
    pub(crate) fn refusal(text: Bytes) -> Self {
        let text = Some(text).filter(|text| !text.is_empty());
        Self { kind: Kind::Refusal { text }, record: None }
    }

    /// A body that a record follows to its end.
    pub(crate) fn recorded(mut self, record: Box<Record>) -> Self {
        self.record = Some(record);
        self
    }
}

/// It fails as the inner body does, and when the request is no longer admitted ([SEM-STRICT-18]).
impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        let (frame, is_last) = match this.kind.project() {
            KindProjection::Inner { mut body, cut } => {
                if cut.poll(cx) {
                    *cut = Cut::default();
                    (Some(Err(Cut::error())), true)
                } else {
                    let frame = ready!(body.as_mut().poll_frame(cx));
                    (frame.map(|frame| frame.map_err(Into::into)), body.is_end_stream())
                }
            }
            KindProjection::Refusal { text } => (text.take().map(|t| Ok(Frame::data(t))), true),
        };
        if let Some(record) = this.record {
            record.sent(frame.as_ref(), is_last);
        }
        if frame.is_none() {
            // Reported now, not when the connection lets go of the body.
            drop(this.record.take());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body, .. } => body.is_end_stream(),
            Kind::Refusal { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body, .. } => body.size_hint(),
            Kind::Refusal { text } => {
                let length = text.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full, StreamBody};

    use super::*;

    /// What a policy read ahead reaches the handler in full, whole or cut ([SEC-HTTP-11]).
    #[tokio::test]
    async fn a_body_read_ahead_is_handed_on_in_full() {
        for (limit, want) in [(0, ("ab", false)), (3, ("abcd", false)), (10, ("abcd", true))] {
            let frames = ["ab", "cd"].map(|text| Ok::<_, std::io::Error>(Frame::data(text.into())));
            let stream = StreamBody::new(futures_util::stream::iter(frames));
            let mut body = RequestBody::untouched(stream);
            let (read, complete) = body.read_ahead(limit).await.unwrap();
            assert_eq!((std::str::from_utf8(&read).unwrap(), complete), want, "limit {limit}");
            assert_eq!(body.collect().await.unwrap().to_bytes(), "abcd");
        }
    }

    /// An external authorizer and a Rego policy may both read ahead, in either size.
    #[tokio::test]
    async fn a_body_can_be_read_ahead_twice() {
        for (first, second, want) in [(0, 10, "abcd"), (10, 0, "abcd"), (1, 2, "abcd")] {
            let frames = ["ab", "cd"].map(|text| Ok::<_, std::io::Error>(Frame::data(text.into())));
            let stream = StreamBody::new(futures_util::stream::iter(frames));
            let mut body = RequestBody::untouched(stream);
            body.read_ahead(first).await.unwrap();
            let (read, complete) = body.read_ahead(second).await.unwrap();
            assert!(want.as_bytes().starts_with(&read), "{first} then {second}");
            assert!(!complete || read == want, "{first} then {second}");
            assert_eq!(body.collect().await.unwrap().to_bytes(), "abcd");
        }
    }

    /// [SEC-HTTP-6] Trailers reach nobody, read ahead or not: they would be merged into headers.
    #[tokio::test]
    async fn sec_http_6_trailers_are_left_out() {
        for limit in [None, Some(0), Some(10)] {
            let trailers = http::HeaderMap::from_iter([(
                http::HeaderName::from_static("x-user"),
                http::HeaderValue::from_static("admin"),
            )]);
            let frames = [Frame::data("ab".into()), Frame::trailers(trailers)];
            let frames = frames.map(Ok::<_, std::io::Error>);
            let stream = StreamBody::new(futures_util::stream::iter(frames));
            let mut body = RequestBody::untouched(stream);
            if let Some(limit) = limit {
                body.read_ahead(limit).await.unwrap();
            }
            let collected = body.collect().await.unwrap();
            assert_eq!(collected.trailers(), None, "{limit:?}");
            assert_eq!(collected.to_bytes(), "ab", "{limit:?}");
        }
    }

    #[tokio::test]
    async fn the_length_of_a_body_read_ahead_is_kept() {
        let mut body = RequestBody::untouched(Full::new(Bytes::from("abcd")));
        body.read_ahead(10).await.unwrap();
        assert_eq!(body.size_hint().exact(), Some(4));
        assert!(!body.is_end_stream());
    }
}
