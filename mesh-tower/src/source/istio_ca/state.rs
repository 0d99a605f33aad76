//! How a source stands, for whoever watches it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::pki_types::UnixTime;

use super::IstioCaFailure;

/// How the renewal of a certificate stands. Cloning shares it.
#[derive(Clone, Default)]
pub struct IstioCaState {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    not_after: Option<UnixTime>,
    last_error: Option<String>,
    failures: u64,
}

impl IstioCaState {
    /// The seconds that the certificate in force has left: zero when it has expired, nothing before
    /// the first.
    #[must_use]
    pub fn seconds_to_expiry(&self, now: UnixTime) -> Option<u64> {
        let end = self.lock().not_after?;
        Some(end.as_secs().saturating_sub(now.as_secs()))
    }

    /// Why the last call failed; nothing when it succeeded.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.lock().last_error.clone()
    }

    /// How many calls have failed since the last that succeeded.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    pub(super) fn renewed(&self, not_after: UnixTime) {
        *self.lock() = Inner { not_after: Some(not_after), last_error: None, failures: 0 };
    }

    pub(super) fn failed(&self, failure: &IstioCaFailure) {
        let mut inner = self.lock();
        inner.last_error = Some(failure.to_string());
        inner.failures = inner.failures.saturating_add(1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for IstioCaState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.lock();
        f.debug_struct("IstioCaState")
            .field("not_after", &inner.not_after)
            .field("last_error", &inner.last_error)
            .field("failures", &inner.failures)
            .finish()
    }
}
