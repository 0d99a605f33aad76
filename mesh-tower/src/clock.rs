//! The one place that reads a clock; everything else takes the time as an argument.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;

use crate::observe::system_time;

/// Where wall-clock time comes from. Tests inject their own.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
///
/// use mesh_tower::{Clock, SystemClock};
/// use rustls::pki_types::UnixTime;
///
/// /// An hour ahead, to see what expires.
/// #[derive(Debug)]
/// struct Ahead;
///
/// impl Clock for Ahead {
///     fn now(&self) -> UnixTime {
///         let now = Duration::from_secs(SystemClock.now().as_secs());
///         UnixTime::since_unix_epoch(now.saturating_add(Duration::from_secs(3600)))
///     }
/// }
/// assert!(Ahead.now() > SystemClock.now());
/// ```
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> UnixTime;

    /// The time now for logs, as finely as the clock has it; whole seconds unless it says more.
    fn precise(&self) -> SystemTime {
        system_time(self.now())
    }
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit struct is written by its name")]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn now(&self) -> UnixTime {
        UnixTime::now()
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
    fn precise(&self) -> SystemTime {
        SystemTime::now()
    }
}

/// Hands our clock to rustls, so that certificates are judged by the same time as tokens.
#[derive(Clone, Debug)]
pub(crate) struct RustlsClock(pub(crate) Arc<dyn Clock>);

impl TimeProvider for RustlsClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0.now())
    }
}

/// The monotonic clock, for durations.
#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
pub(crate) fn monotonic() -> std::time::Instant {
    std::time::Instant::now()
}
