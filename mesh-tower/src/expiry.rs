//! Waiting for a moment of the wall clock, by a clock that may be set ([SEC-OPS-5]).

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::pki_types::UnixTime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::clock::{Clock, monotonic};
use crate::mesh::Mesh;

/// How often the wall clock is compared with the monotonic one.
const LOOK: Duration = Duration::from_secs(1);

/// A wall clock is read in whole seconds, so only a difference above one is a jump.
const JUMP: u128 = 2;

/// The last second before the moment is waited for in steps, because the clock shows seconds.
const STEP: Duration = Duration::from_millis(50);

/// A moment of the wall clock after which something must not be used.
///
/// A clock that is set forward is noticed within [`LOOK`]; one that is set back does not put off
/// what was near: of the monotonic deadlines computed so far the earliest counts.
#[derive(Debug)]
pub(crate) struct Expiry {
    at: Option<UnixTime>,
    latest: Option<Instant>,
}

impl Expiry {
    /// Nothing is never.
    pub(crate) fn new(at: Option<UnixTime>) -> Self {
        Self { at, latest: None }
    }

    /// Another moment; what was near of the same one stays near.
    pub(crate) fn set(&mut self, at: Option<UnixTime>) {
        if self.at != at {
            *self = Self::new(at);
        }
    }

    /// Resolves when the moment has come. It may be dropped and called again.
    pub(crate) async fn reached(&mut self, mesh: &Mesh) {
        let Some(at) = self.at else {
            return std::future::pending().await;
        };
        let mut jumps = mesh.clock_jumps();
        loop {
            let left =
                Duration::from_secs(at.as_secs().saturating_sub(mesh.clock().now().as_secs()));
            // A moment that no Instant can name is further away than any process lives.
            let by_clock = monotonic().checked_add(left);
            self.latest = match (self.latest, by_clock) {
                (Some(latest), Some(by_clock)) => Some(latest.min(by_clock)),
                (latest, by_clock) => latest.or(by_clock),
            };
            let until_latest =
                self.latest.map(|latest| latest.saturating_duration_since(monotonic()));
            if left.is_zero() || until_latest.is_some_and(|left| left.is_zero()) {
                return;
            }
            let nap = left.saturating_sub(Duration::from_secs(1)).max(STEP);
            let nap = until_latest.map_or(nap, |left| nap.min(left));
            tokio::select! {
                () = tokio::time::sleep(nap) => {}
                // Without a watcher of the clock the naps must do.
                _ = jumps.changed() => {}
            }
        }
    }
}

/// Tells who waits that the wall clock was set. One task for a mesh, started when first needed.
#[derive(Debug)]
pub(crate) struct ClockJumps {
    jumps: watch::Sender<()>,
    watcher: Mutex<Option<JoinHandle<()>>>,
}

impl Default for ClockJumps {
    fn default() -> Self {
        Self { jumps: watch::channel(()).0, watcher: Mutex::default() }
    }
}

impl ClockJumps {
    /// Must be called inside a runtime.
    pub(crate) fn subscribe(&self, clock: std::sync::Arc<dyn Clock>) -> watch::Receiver<()> {
        let mut watcher = self.watcher.lock().unwrap_or_else(PoisonError::into_inner);
        // The runtime that it was started in may be gone.
        if watcher.as_ref().is_none_or(JoinHandle::is_finished) {
            let known = Reading::now(&*clock);
            *watcher = Some(tokio::spawn(watch(clock, known, self.jumps.clone())));
        }
        self.jumps.subscribe()
    }
}

impl Drop for ClockJumps {
    fn drop(&mut self) {
        let watcher = self.watcher.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(watcher) = watcher.take() {
            watcher.abort();
        }
    }
}

/// Both clocks, read together.
#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: UnixTime,
    monotonic: Instant,
}

impl Reading {
    fn now(clock: &dyn Clock) -> Self {
        Self { wall: clock.now(), monotonic: monotonic() }
    }

    /// By how many seconds the wall clock was set since an earlier reading.
    fn set_since(self, earlier: Self) -> i128 {
        let wall = i128::from(self.wall.as_secs()).saturating_sub(earlier.wall.as_secs().into());
        let passed = self.monotonic.saturating_duration_since(earlier.monotonic).as_secs();
        wall.saturating_sub(passed.into())
    }
}

/// Compares the clocks with how they were at `known`, which is before anybody waits.
async fn watch(clock: std::sync::Arc<dyn Clock>, mut known: Reading, jumps: watch::Sender<()>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = Reading::now(&*clock);
        let set = now.set_since(known);
        if set.unsigned_abs() >= JUMP {
            tracing::warn!(by_seconds = set, "the wall clock was set");
            known = now;
            jumps.send_replace(());
        }
    }
}
