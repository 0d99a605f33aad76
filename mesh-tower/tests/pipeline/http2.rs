//! An HTTP/2 client for requests that one can send.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::wire::{Reply, Stream, latin1};

pub(crate) struct Http2(SendRequest<Empty<Bytes>>);

impl Http2 {
    pub(crate) async fn new(stream: Box<dyn Stream>) -> std::io::Result<Self> {
        let handshake =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (send, connection) = handshake.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Self(send))
    }

    /// Nothing when the stream is reset.
    pub(crate) async fn ask(&mut self, request: http::Request<()>) -> Option<Reply> {
        let response = self.0.send_request(request.map(|()| Empty::new())).await.ok()?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.ok()?.to_bytes().to_vec();
        let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
            (name.as_str().to_owned(), latin1(value.as_bytes()))
        };
        let headers = head.headers.iter().map(text).collect();
        Some(Reply { status: head.status.as_u16(), headers, body, is_open: true })
    }
}
