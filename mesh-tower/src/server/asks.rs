//! Whether a future has asked to be polled again.
//!
//! A task is woken for many reasons; who waits for something rare inside it need not be polled for
//! all of them.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Told by a future's waker. It has asked for its first poll.
pub(super) struct Asks {
    asked: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Asks {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { asked: AtomicBool::new(true), task: Mutex::new(None) })
    }

    /// Ready when it has asked.
    pub(super) fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        // Put there before it is looked whether somebody has asked: who asks later wakes it.
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let is_there = task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        let before = if is_there { None } else { task.replace(cx.waker().clone()) };
        drop(task);
        // Not under the lock: whatever a waker does when it is dropped, it may be to wake.
        drop(before);
        if self.asked.swap(false, Ordering::AcqRel) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Wake for Asks {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.asked.store(true, Ordering::Release);
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Runs a future that is polled only when it has asked for it.
pub(super) async fn when_asked<F: Future>(future: F) -> F::Output {
    let (asks, mut future) = (Asks::new(), pin!(future));
    let waker = Waker::from(Arc::clone(&asks));
    std::future::poll_fn(|cx| match asks.poll(cx) {
        Poll::Ready(()) => future.as_mut().poll(&mut Context::from_waker(&waker)),
        Poll::Pending => Poll::Pending,
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::sync::Notify;
    use tokio::task::yield_now;

    use super::*;

    /// A hundred polls of the task are none of a future that waits for something else.
    #[tokio::test]
    async fn a_future_is_polled_when_it_asks_and_only_then() {
        let (polls, notify) = (Cell::new(0), Notify::new());
        let waiting = async {
            let mut notified = pin!(notify.notified());
            std::future::poll_fn(|cx| {
                polls.set(polls.get() + 1);
                notified.as_mut().poll(cx)
            })
            .await;
        };
        let others = async {
            for _ in 0..100 {
                yield_now().await;
            }
            assert_eq!(polls.get(), 1);
            notify.notify_one();
        };
        tokio::join!(when_asked(waiting), others);
        assert_eq!(polls.get(), 2);
    }

    /// Whoever wakes it, from wherever, and whenever.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_wish_is_missed() {
        for round in 0..500_u64 {
            let (tell, told) = tokio::sync::oneshot::channel();
            let teller = tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(round % 7)).await;
                tell.send(round).unwrap();
            });
            let told = tokio::time::timeout(Duration::from_secs(10), when_asked(told));
            assert_eq!(told.await.unwrap(), Ok(round));
            teller.await.unwrap();
        }
    }
}
