//! The accept loop: from a listener to accepted connections, each in a task of its own.

use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;

use super::accept::{Accepted, Acceptor};
use super::server::Server;

/// How long the loop rests after an accept error such as "too many open files".
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts connections until `shutdown` resolves, gives each to `handle`, and returns when the last
/// has ended.
///
/// Accept errors never end the loop ([SEC-TLS-14]). The sniff and the handshake run in the task of
/// their connection, so that no client can delay another's. `handle` drives the connection until
/// `Life::over` says that it must end, or moves it elsewhere and leaves its life to
/// `Life::watch`.
pub(crate) async fn each_connection<H, F>(
    Server { mesh, listener, options }: Server,
    shutdown: impl Future<Output = ()>,
    handle: H,
) -> io::Result<()>
where
    H: Fn(Accepted) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send,
{
    let local = listener.local_addr()?;
    let (stop, stopped) = watch::channel(false);
    let acceptor = Acceptor::new(mesh.clone(), options, stopped);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut shutdown => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accept failed; going on");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        // The address that was connected to; on a wildcard listener it differs from the listener's.
        let local = stream.local_addr().unwrap_or(local);
        let (mesh, acceptor, handle) = (mesh.clone(), acceptor.clone(), handle.clone());
        let place = acceptor.place();
        tokio::spawn(async move {
            match acceptor.accept(place, stream, peer, local).await {
                Ok(accepted) => {
                    // The connection's life holds what keeps the server waiting.
                    drop(acceptor);
                    handle(accepted).await;
                }
                Err(error) => mesh.observe_refused_connection(peer, &error),
            }
        });
    }
    drop(listener);
    drop(acceptor);
    // Every connection holds a receiver; when the last is gone, all have drained.
    stop.send(true).ok();
    stop.closed().await;
    Ok(())
}
