//! The bodies of our own requests and of their answers: handed on as they are, and counted.

use std::io::IoSlice;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use pin_project_lite::pin_project;

use super::call::Call;
use crate::flow::{Messages, Received};

/// Pieces of one frame's data that are looked at for gRPC messages. tonic's frames have one.
const PIECES: usize = 16;

pin_project! {
    /// The body of an answer. The request is counted when it has ended or is dropped.
    ///
    /// Its data and errors are those of hyper's body inside; dropped early, it ends the exchange as that
    /// does.
    #[derive(Debug)]
    pub struct ClientBody {
        #[pin]
        inner: Incoming,
        call: Option<Box<Call>>,
    }
}

impl ClientBody {
    pub(super) fn new(inner: Incoming, call: Call) -> Self {
        // What is over is reported now, and not when the program lets go of an empty body.
        let call = Some(call).filter(|call| !call.is_over());
        Self { inner, call: call.map(Box::new) }
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if let Some(call) = this.call {
            call.received(frame.as_ref(), this.inner.is_end_stream());
        }
        if this.call.as_ref().is_some_and(|call| call.is_over()) {
            drop(this.call.take());
        }
        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// A request's body on its way out.
    #[derive(Debug)]
    pub(super) struct OutboundBody<B> {
        #[pin]
        inner: B,
        sent: Arc<Received>,
        messages: Option<Messages>,
    }
}

impl<B> OutboundBody<B> {
    /// Counts bytes, and for gRPC messages.
    pub(super) fn new(inner: B, sent: Arc<Received>, grpc: bool) -> Self {
        Self { inner, sent, messages: grpc.then(Messages::default) }
    }
}

impl<B: Body> Body for OutboundBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = ready!(this.inner.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
        {
            this.sent.add_length(data.remaining());
            if let Some(messages) = this.messages {
                let mut pieces = [IoSlice::new(&[]); PIECES];
                let count = data.chunks_vectored(&mut pieces);
                pieces.iter().take(count).for_each(|piece| messages.feed(piece));
                this.sent.set_messages(messages.count());
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
