//! Handshakes take turns, so that requests need not wait behind all of them ([SEC-TLS-14]).
//!
//! A step of a handshake computes for as long as tens of requests take. A runtime lets what is ready
//! run in the order in which it became ready: behind a hundred handshakes, a request waits for a
//! hundred steps. Here only as many steps as the runtime has workers are ready at a time, and each lets
//! what is ready go first.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::yield_now;

use super::asks::Asks;

/// Turns for the steps of handshakes. Cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Pace {
    turns: Arc<Semaphore>,
}

impl Pace {
    /// As many turns as the current runtime has workers.
    pub(super) fn new() -> Self {
        let workers = Handle::try_current().map_or(1, |runtime| runtime.metrics().num_workers());
        Self::of(workers)
    }

    fn of(turns: usize) -> Self {
        Self { turns: Arc::new(Semaphore::new(turns.max(1))) }
    }

    /// Runs a handshake. A turn is held for one step only: who sends a byte a second holds nobody up.
    pub(super) async fn run<F: Future>(&self, handshake: F) -> F::Output {
        let mut handshake = pin!(handshake);
        let asks = Asks::new();
        let waker = Waker::from(Arc::clone(&asks));
        loop {
            poll_fn(|cx| asks.poll(cx)).await;
            // Nobody closes the semaphore; if somebody did, there would be no turns to keep.
            let turn = self.turns.acquire().await.ok();
            yield_now().await;
            if let Poll::Ready(done) = handshake.as_mut().poll(&mut Context::from_waker(&waker)) {
                return done;
            }
            drop(turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::oneshot;
    use tokio::time::{sleep, timeout};

    use super::*;

    /// [SEC-TLS-14] Between two steps of handshakes, whatever is ready gets its turn.
    #[tokio::test]
    async fn sec_tls_14_what_is_ready_waits_for_one_step_at_most() {
        const STEPS: usize = 50;
        let (pace, steps) = (Pace::of(1), Arc::new(AtomicUsize::new(0)));
        let shake = || {
            let (pace, steps) = (pace.clone(), Arc::clone(&steps));
            async move {
                let handshake = async {
                    for _ in 0..STEPS {
                        steps.fetch_add(1, Ordering::Relaxed);
                        yield_now().await;
                    }
                };
                pace.run(handshake).await;
            }
        };
        let all: Vec<_> = (0..32).map(|_| tokio::spawn(shake())).collect();
        let mut seen = 0;
        while all.iter().any(|one| !one.is_finished()) {
            yield_now().await;
            let now = steps.load(Ordering::Relaxed);
            assert!(now - seen <= 1, "{} steps before a request", now - seen);
            seen = now;
        }
        assert_eq!(seen, 32 * STEPS);
    }

    /// Whatever wakes a handshake, and whenever, it goes on; one that is given up leaves its turn.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_waited_for_in_vain() {
        let pace = Pace::of(1);
        for round in 0..200_u64 {
            let tasks = (0..8).map(|at| {
                let pace = pace.clone();
                let (tell, told) = oneshot::channel();
                tokio::spawn(async move {
                    sleep(Duration::from_micros(round % 7 * at)).await;
                    tell.send(at).ok();
                });
                tokio::spawn(async move { pace.run(told).await })
            });
            let given_up = timeout(Duration::from_micros(round), pace.run(sleep(Duration::MAX)));
            given_up.await.unwrap_err();
            for task in tasks.collect::<Vec<_>>() {
                timeout(Duration::from_secs(10), task).await.unwrap().unwrap().unwrap();
            }
        }
        assert_eq!(pace.turns.available_permits(), 1);
    }
}
