//! Cutting a stream that somebody else reads and writes: the forced end of a connection.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

/// A stream that ends with an error once it has been cut, wherever it has been moved to: an HTTP
/// connection, an upgrade, the program's own tasks.
#[derive(Debug)]
pub(crate) struct Cuttable<T> {
    io: T,
    // Reader and writer may be different tasks, and each must be woken.
    read: Signal,
    write: Signal,
}

/// The scissors. A stream whose scissors were dropped is never cut.
#[derive(Debug)]
pub(crate) struct Cutter {
    read: oneshot::Sender<()>,
    write: oneshot::Sender<()>,
}

#[derive(Debug)]
enum Signal {
    Waiting(oneshot::Receiver<()>),
    Cut,
    Never,
}

impl<T> Cuttable<T> {
    pub(crate) fn new(io: T) -> (Self, Cutter) {
        let ((read, on_read), (write, on_write)) = (oneshot::channel(), oneshot::channel());
        let stream = Self { io, read: Signal::Waiting(on_read), write: Signal::Waiting(on_write) };
        (stream, Cutter { read, write })
    }
}

impl Cutter {
    /// Whoever reads or writes gets an error from now on.
    pub(crate) fn cut(self) {
        // A stream that is gone needs no cutting.
        self.read.send(()).ok();
        self.write.send(()).ok();
    }

    /// Resolves when the stream is gone.
    pub(crate) async fn gone(&mut self) {
        self.read.closed().await;
    }
}

impl Signal {
    /// An error once the stream is cut; registers for it otherwise.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if let Self::Waiting(signal) = self
            && let Poll::Ready(cut) = Pin::new(signal).poll(cx)
        {
            *self = if cut.is_ok() { Self::Cut } else { Self::Never };
        }
        match self {
            Self::Cut => Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the mesh ended the connection",
            )),
            Self::Waiting(_) | Self::Never => Ok(()),
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Cuttable<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.read.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Cuttable<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.write.check(cx)?;
        Pin::new(&mut self.io).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write.check(cx)?;
        Pin::new(&mut self.io).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.check(cx)?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.check(cx)?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::timeout;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    /// A reader and a writer in tasks of their own, both waiting, are both woken by the cut.
    #[tokio::test]
    async fn a_cut_wakes_whoever_waits() {
        let (near, _far) = tokio::io::duplex(4);
        let (stream, cutter) = Cuttable::new(near);
        let (mut read, mut write) = tokio::io::split(stream);
        let reading = tokio::spawn(async move { read.read_u8().await.map(drop) });
        let writing = tokio::spawn(async move { write.write_all(&[0; 100]).await });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!reading.is_finished() && !writing.is_finished());
        cutter.cut();
        for task in [reading, writing] {
            let error = timeout(PATIENCE, task).await.unwrap().unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        }
    }

    #[tokio::test]
    async fn a_stream_without_scissors_goes_on_and_its_end_is_noticed() {
        let (near, mut far) = tokio::io::duplex(4);
        let (mut stream, cutter) = Cuttable::new(near);
        drop(cutter);
        far.write_all(b"a").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        let (stream, mut cutter) = Cuttable::new(stream);
        drop(stream);
        timeout(PATIENCE, cutter.gone()).await.unwrap();
    }
}
