//! A bound on handshakes in flight: the oldest gives way to one more ([SEC-TLS-14]).

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// The handshakes that have begun and not ended, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Handshakes {
    limit: usize,
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    queue: VecDeque<(u64, oneshot::Sender<()>)>,
}

/// A place among the handshakes in flight; gone when dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    evicted: oneshot::Receiver<()>,
    of: Handshakes,
}

impl Handshakes {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), waiting: Arc::default() }
    }

    /// Takes a place, evicting the oldest when all are taken.
    pub(super) fn begin(&self) -> Place {
        let (evict, evicted) = oneshot::channel();
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.queue.len() >= self.limit
            && let Some((_, oldest)) = waiting.queue.pop_front()
        {
            // Nobody listens when that handshake has just ended: then its place is free anyway.
            oldest.send(()).ok();
        }
        let id = waiting.next;
        waiting.next = waiting.next.wrapping_add(1);
        waiting.queue.push_back((id, evict));
        drop(waiting);
        Place { id, evicted, of: self.clone() }
    }
}

impl Place {
    /// Resolves when this handshake must give way.
    pub(super) async fn evicted(&mut self) {
        if (&mut self.evicted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.of.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.queue.retain(|(id, _)| *id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sec_tls_14_the_oldest_gives_way() {
        let handshakes = Handshakes::new(2);
        let mut first = handshakes.begin();
        let second = handshakes.begin();
        drop(second);
        let _third = handshakes.begin();
        assert!(first.evicted.try_recv().is_err(), "two places are enough for two");
        let _fourth = handshakes.begin();
        first.evicted().await;
    }
}
