//! An authorizer with what every provider has: timeout, bounded concurrency, what failure means.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use ::http::request::Parts;
use ::http::{Method, StatusCode};
use bytes::Bytes;
use http_body::Body;
use mesh_authz::{CheckBody, CheckSettings, ProviderKind, Semantics, StrictRule};
use mesh_identity::SpiffeId;
use rustls::pki_types::UnixTime;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::{
    Authorizer, Changes, CheckAnswer, CheckConnection, CheckError, CheckFuture, CheckRequest,
    CheckedBody, Context, Denial, RequestChanges, may_change,
};
use crate::body::RequestBody;
use crate::connection::ConnectionInfo;
use crate::guard::Arrived;
use crate::refuse::Refusal;

/// How long an answer may take when nobody says ([SEM-STRICT-19]).
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long Istio lets it take.
const ISTIO_TIMEOUT: Duration = Duration::from_secs(600);

/// How many requests may wait for one provider; Envoy's circuit breakers have the same default.
const DEFAULT_CONCURRENCY: usize = 1024;

/// What Envoy says of a body that is too large.
const TOO_LARGE: &str = "Payload Too Large";

/// An authorizer that CUSTOM policies can name, with the limits around it.
///
/// Cloning shares it, its places and its counters.
#[derive(Clone)]
pub struct Provider {
    authorizer: Arc<dyn Authorizer>,
    kind: ProviderKind,
    timeout: Option<Duration>,
    fail_open: bool,
    status_on_error: StatusCode,
    body: Option<CheckBody>,
    places: Arc<Semaphore>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    allowed: AtomicU64,
    denied: AtomicU64,
    errors: AtomicU64,
    failed_open: AtomicU64,
}

/// How often a provider has said what: Envoy's `ext_authz.*`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ProviderCounts {
    /// `ext_authz.ok`.
    pub allowed: u64,
    /// `ext_authz.denied`.
    pub denied: u64,
    /// `ext_authz.error`.
    pub errors: u64,
    /// `ext_authz.failure_mode_allowed`: errors that let the request go on.
    pub failed_open: u64,
}

impl Provider {
    /// An authorizer with the strict defaults: 5 s, no body, a failure refuses with 403.
    #[must_use]
    pub fn new(authorizer: impl Authorizer) -> Self {
        Self {
            authorizer: Arc::new(authorizer),
            kind: ProviderKind::Grpc,
            timeout: None,
            fail_open: false,
            status_on_error: StatusCode::FORBIDDEN,
            body: None,
            places: Arc::new(Semaphore::new(DEFAULT_CONCURRENCY)),
            counts: Arc::default(),
        }
    }

    /// An authorizer with the settings of an entry of `extensionProviders`.
    #[must_use]
    pub fn with_settings(authorizer: impl Authorizer, settings: &CheckSettings) -> Self {
        let mut provider = Self::new(authorizer);
        provider.timeout = settings.timeout;
        provider.fail_open = settings.fail_open;
        provider.status_on_error = settings.status_on_error;
        provider.body = settings.body;
        provider
    }

    pub(super) fn of_kind(mut self, kind: ProviderKind) -> Self {
        self.kind = kind;
        self
    }

    /// How long an answer may take. Unless set: 5 s, and Istio's 600 s where policies are read as
    /// Istio reads them ([SEM-STRICT-19]).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Lets requests go on when the authorizer is down or too slow: whoever can stop it can then
    /// switch it off. Where policies are read as Istio reads them, every other failure counts, too
    /// ([SEM-STRICT-19]).
    #[must_use]
    pub fn fail_open(mut self) -> Self {
        self.fail_open = true;
        self
    }

    /// The status of a request that cannot be judged; 403 unless set.
    #[must_use]
    pub fn with_status_on_error(mut self, status: StatusCode) -> Self {
        self.status_on_error = status;
        self
    }

    /// Shows the authorizer bodies.
    #[must_use]
    pub fn with_body(mut self, body: CheckBody) -> Self {
        self.body = Some(body);
        self
    }

    /// How many requests may wait for it at once; one more is a failure at once.
    #[must_use]
    pub fn with_concurrency(mut self, requests: usize) -> Self {
        self.places = Arc::new(Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS)));
        self
    }

    /// What it has said so far.
    #[must_use]
    pub fn counts(&self) -> ProviderCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ProviderCounts {
            allowed: read(&self.counts.allowed),
            denied: read(&self.counts.denied),
            errors: read(&self.counts.errors),
            failed_open: read(&self.counts.failed_open),
        }
    }

    pub(super) fn kind(&self) -> ProviderKind {
        self.kind
    }

    /// Asks, and makes of the answer what becomes of the request.
    pub(super) async fn ask<B>(
        &self,
        parts: &Parts,
        arrived: &Arrived,
        body: &mut RequestBody<B>,
        context: Context<'_>,
        semantics: Semantics,
        changes: &mut Changes,
    ) -> Result<RequestChanges, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let strict = semantics.has(StrictRule::CustomLimits);
        let body = self.read(parts, body, context).await?;
        let request = CheckRequest {
            parts,
            on: CheckConnection {
                info: &arrived.info,
                own_id: context.own_id,
                now: context.now,
                timeout: self.timeout(strict),
            },
            host: &arrived.host,
            body: body.as_ref(),
        };
        match self.check(request.timeout(), || self.authorizer.check(request)).await {
            Ok(CheckAnswer::Allow(asked)) => {
                count(&self.counts.allowed);
                changes.told(asked.revision.as_ref());
                Ok(asked)
            }
            Ok(CheckAnswer::Deny(Denial { status, headers, body, reason, revision })) => {
                count(&self.counts.denied);
                changes.told(revision.as_ref());
                let mut refusal = Refusal::new(status, body, denied(reason));
                refusal.headers = headers;
                refusal.headers.retain(|(name, _)| may_change(name));
                Err(refusal)
            }
            Err(error) => {
                if self.forgives(&error, strict) {
                    return Ok(RequestChanges::default());
                }
                let (status, body) = if let CheckError::Reported(status, body) = error {
                    (status, body)
                } else {
                    (None, Bytes::new())
                };
                let status = status.unwrap_or(self.status_on_error);
                Err(Refusal::new(status, body, "ext_authz_error".to_owned()))
            }
        }
    }

    /// Asks about a TCP connection; the reason where it is refused ([SEM-EXT-15]). Of the changes
    /// only the metadata is one that a connection can have.
    pub(super) async fn ask_connection(
        &self,
        info: &ConnectionInfo,
        own_id: &SpiffeId,
        now: UnixTime,
        semantics: Semantics,
    ) -> Result<RequestChanges, String> {
        let strict = semantics.has(StrictRule::CustomLimits);
        let connection = CheckConnection { info, own_id, now, timeout: self.timeout(strict) };
        let check = || self.authorizer.check_connection(connection);
        match self.check(connection.timeout, check).await {
            Ok(CheckAnswer::Allow(asked)) => {
                count(&self.counts.allowed);
                Ok(asked)
            }
            Ok(CheckAnswer::Deny(Denial { reason, .. })) => {
                count(&self.counts.denied);
                Err(denied(reason))
            }
            Err(error) if self.forgives(&error, strict) => Ok(RequestChanges::default()),
            Err(_) => Err("ext_authz_error".to_owned()),
        }
    }

    fn timeout(&self, strict: bool) -> Duration {
        self.timeout.unwrap_or(if strict { DEFAULT_TIMEOUT } else { ISTIO_TIMEOUT })
    }

    /// Counts a failure; whether what was asked about goes on nevertheless ([SEM-EXT-13]).
    fn forgives(&self, error: &CheckError, strict: bool) -> bool {
        count(&self.counts.errors);
        let goes_on = self.fail_open && (!strict || error.is_outage());
        tracing::warn!(%error, goes_on, "an external authorizer gave no answer");
        if goes_on {
            count(&self.counts.failed_open);
        }
        goes_on
    }

    async fn check<'r>(
        &self,
        within: Duration,
        check: impl FnOnce() -> CheckFuture<'r>,
    ) -> Result<CheckAnswer, CheckError> {
        let _place = self.places.try_acquire().map_err(|_full| CheckError::Overloaded)?;
        let checking = without_panic(check)?;
        timeout(within, guarded(checking)).await.unwrap_or(Err(CheckError::Deadline))
    }

    /// Reads ahead in the body as far as the authorizer may see it, and one byte more.
    async fn read<B>(
        &self,
        parts: &Parts,
        body: &mut RequestBody<B>,
        context: Context<'_>,
    ) -> Result<Option<CheckedBody>, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Some(wanted) = self.body.filter(|_| parts.method != Method::CONNECT) else {
            return Ok(None);
        };
        let reading = timeout(context.limits.body_read_ahead, body.read_ahead(wanted.max_bytes));
        let (bytes, complete) = match reading.await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => return Err(Refusal::malformed("body cannot be read")),
            Err(_) => {
                let detail = "ext_authz_body_timeout".to_owned();
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, Bytes::new(), detail));
            }
        };
        let truncated = !complete || bytes.len() > wanted.max_bytes;
        if truncated && !wanted.allow_partial {
            let (status, body) = (StatusCode::PAYLOAD_TOO_LARGE, TOO_LARGE.into());
            return Err(Refusal::new(status, body, "request_payload_too_large".to_owned()));
        }
        let bytes = bytes.slice(..bytes.len().min(wanted.max_bytes));
        Ok(Some(CheckedBody { bytes, truncated, as_bytes: wanted.as_bytes }))
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Envoy's response code details of a denial.
fn denied(reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("ext_authz_denied{{{reason}}}"),
        None => "ext_authz_denied".to_owned(),
    }
}

/// Polls an authorizer so that its panic is its failure, not the connection's.
async fn guarded(mut checking: CheckFuture<'_>) -> Result<CheckAnswer, CheckError> {
    std::future::poll_fn(|cx| {
        without_panic(|| checking.as_mut().poll(cx)).unwrap_or_else(|error| Poll::Ready(Err(error)))
    })
    .await
}

fn without_panic<T>(run: impl FnOnce() -> T) -> Result<T, CheckError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|_panic| CheckError::Panicked)
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("authorizer", &self.authorizer)
            .field("timeout", &self.timeout)
            .field("fail_open", &self.fail_open)
            .field("status_on_error", &self.status_on_error)
            .finish_non_exhaustive()
    }
}
