//! Decisions to an OPA service: `POST logs`, gzip, a JSON array of events in each request.

use std::collections::VecDeque;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::Method;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::follow::spread_down;
use super::service::OpaService;
use crate::backoff::{doubled, spread};
use crate::clock::monotonic;
use crate::decision_log::LogSink;
use crate::source::FetchError;

/// How many bytes a request's compressed body may have, unless told otherwise; OPA's default.
const CHUNK: usize = 32 * 1024;

/// How long events wait for company, unless told otherwise; OPA's defaults.
const DELAY: (Duration, Duration) = (Duration::from_secs(300), Duration::from_secs(600));

/// How many bytes of events may wait, unless told otherwise.
const BUFFER: usize = 16 << 20;

/// Events are sent when this many times the chunk's size waits, as text.
const RATIO: usize = 8;

/// The first rest after a failed upload.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The longest rest after a failed upload.
const MAX_RETRY: Duration = Duration::from_secs(60);

/// The longest answer that is read; nobody looks at it.
const MAX_ANSWER: usize = 64 * 1024;

/// How long what is left may take when the log ends.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// Sends the decision log to an [`OpaService`].
///
/// Events are batched by size and time. While the service is down they wait, and when more wait
/// than may, the oldest are dropped and counted, so that neither requests nor memory suffer.
///
/// # Examples
///
/// ```no_run
/// # fn run(
/// #     service: mesh_tower::OpaService,
/// #     random: &'static dyn rustls::crypto::SecureRandom,
/// # ) -> std::io::Result<()> {
/// use mesh_tower::{DecisionLog, LogUpload};
///
/// let (sink, uploader) = LogUpload::new(service).start();
/// tokio::spawn(uploader.run());
/// let labels = [("app".to_owned(), "shop".to_owned())];
/// let log = DecisionLog::start(sink, labels, random, 1024)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogUpload {
    shared: Arc<Shared>,
}

/// The half that talks to the service.
#[derive(Debug)]
pub struct LogUploader {
    shared: Arc<Shared>,
}

/// What has become of the events so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct LogUploadCounts {
    /// Events that the service has taken.
    pub uploaded: u64,
    /// Events lost because too many waited.
    pub dropped: u64,
    /// Events that alone are larger than a request may be.
    pub too_large: u64,
    /// Requests that failed; what was in them is sent again.
    pub failures: u64,
}

#[derive(Debug)]
struct Shared {
    service: OpaService,
    resource: String,
    chunk: usize,
    delay: (Duration, Duration),
    buffer: usize,
    waiting: Mutex<Waiting>,
    /// There is enough for a request, or the log has ended.
    news: Notify,
    uploaded: AtomicU64,
    dropped: AtomicU64,
    too_large: AtomicU64,
    failures: AtomicU64,
}

/// Events as JSON texts, oldest first.
#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
}

/// A request's body and how many events it holds.
struct Chunk {
    body: Bytes,
    events: VecDeque<Bytes>,
}

impl LogUpload {
    /// Sends to `logs` of the service, with OPA's defaults.
    #[must_use]
    pub fn new(service: OpaService) -> Self {
        let shared = Shared {
            service,
            resource: "logs".to_owned(),
            chunk: CHUNK,
            delay: DELAY,
            buffer: BUFFER,
            waiting: Mutex::default(),
            news: Notify::new(),
            uploaded: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            too_large: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    fn change(mut self, change: impl FnOnce(&mut Shared)) -> Self {
        // Nobody shares it before it starts.
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            change(shared);
        }
        self
    }

    /// Sends to another path, such as `logs/partition`.
    #[must_use]
    pub fn with_resource(self, resource: impl Into<String>) -> Self {
        self.change(|shared| shared.resource = resource.into())
    }

    /// How long events wait for company, picked at random between the two
    /// (`reporting.min_delay_seconds`, `max_delay_seconds`).
    #[must_use]
    pub fn with_delay(self, min: Duration, max: Duration) -> Self {
        self.change(|shared| shared.delay = (min, max.max(min)))
    }

    /// How many bytes a request's compressed body may have
    /// (`reporting.upload_size_limit_bytes`).
    #[must_use]
    pub fn with_chunk(self, bytes: usize) -> Self {
        self.change(|shared| shared.chunk = bytes.max(1))
    }

    /// How many bytes of events may wait (`reporting.buffer_size_limit_bytes`).
    #[must_use]
    pub fn with_buffer(self, bytes: usize) -> Self {
        self.change(|shared| shared.buffer = bytes)
    }

    /// The sink for [`crate::DecisionLog::start`], and the half that must run beside it.
    #[must_use]
    pub fn start(self) -> (Self, LogUploader) {
        let shared = Arc::clone(&self.shared);
        (self, LogUploader { shared })
    }
}

impl LogUploader {
    /// A second handle, to read the counters with.
    #[must_use]
    pub fn counts(&self) -> LogUploadCounts {
        self.shared.counts()
    }

    /// A function that tells what has become of the events so far, for when the uploader runs.
    pub fn counter(&self) -> impl Fn() -> LogUploadCounts + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.counts()
    }

    /// Sends events until the log has ended and what was left is sent or lost.
    pub async fn run(self) {
        let Self { shared } = self;
        let mut unsent: VecDeque<Chunk> = VecDeque::new();
        let mut failures = 0_u32;
        let mut due = shared.next();
        loop {
            let ended = shared.lock().ended;
            if ended || unsent.is_empty() && (shared.is_full() || monotonic() >= due) {
                unsent.extend(shared.take());
                due = shared.next();
            }
            if ended {
                let done = timeout(LAST_WORDS, shared.send_all(&mut unsent)).await;
                let lost: usize = unsent.iter().map(|chunk| chunk.events.len()).sum();
                add(&shared.dropped, lost);
                if lost > 0 {
                    tracing::warn!(lost, in_time = done.is_ok(), "decisions could not be uploaded");
                }
                return;
            }
            let rest = if let Some(chunk) = unsent.front() {
                if shared.send(chunk).await.is_ok() {
                    failures = 0;
                    unsent.pop_front();
                    continue;
                }
                // Its events go back to where they may be dropped; newer ones make room for none.
                shared.put_back(std::mem::take(&mut unsent));
                failures = failures.saturating_add(1);
                let rest = spread_down(doubled(FIRST_RETRY, failures, MAX_RETRY));
                due = monotonic().checked_add(rest).unwrap_or(due);
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    () = shared.ended() => {}
                }
                continue;
            } else {
                due.saturating_duration_since(monotonic())
            };
            tokio::select! {
                () = tokio::time::sleep(rest) => {}
                () = shared.news.notified() => {}
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counts(&self) -> LogUploadCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        LogUploadCounts {
            uploaded: read(&self.uploaded),
            dropped: read(&self.dropped),
            too_large: read(&self.too_large),
            failures: read(&self.failures),
        }
    }

    /// When what waits by then is sent.
    fn next(&self) -> Instant {
        let (min, max) = self.delay;
        let now = monotonic();
        now.checked_add(min.saturating_add(spread(max.saturating_sub(min)))).unwrap_or(now)
    }

    fn is_full(&self) -> bool {
        self.lock().bytes >= self.chunk.saturating_mul(RATIO)
    }

    async fn ended(&self) {
        loop {
            if self.lock().ended {
                return;
            }
            self.news.notified().await;
        }
    }

    /// Takes everything that waits, in requests of the right size.
    fn take(&self) -> VecDeque<Chunk> {
        let events = {
            let mut waiting = self.lock();
            waiting.bytes = 0;
            std::mem::take(&mut waiting.events)
        };
        let mut chunks = VecDeque::new();
        let mut pending = vec![events];
        while let Some(mut events) = pending.pop() {
            if events.is_empty() {
                continue;
            }
            match compress(&events) {
                Ok(body) if body.len() <= self.chunk => {
                    chunks.push_back(Chunk { body: body.into(), events });
                }
                Ok(_) if events.len() == 1 => add(&self.too_large, 1),
                Ok(_) => {
                    let second = events.split_off(events.len() / 2);
                    pending.push(second);
                    pending.push(events);
                }
                Err(_) => add(&self.dropped, events.len()),
            }
        }
        chunks
    }

    /// Puts events in front of those that wait, and drops the oldest of all when they are too many.
    fn put_back(&self, chunks: VecDeque<Chunk>) {
        let mut waiting = self.lock();
        for event in chunks.into_iter().rev().flat_map(|chunk| chunk.events.into_iter().rev()) {
            waiting.bytes = waiting.bytes.saturating_add(event.len());
            waiting.events.push_front(event);
        }
        self.bound(&mut waiting);
    }

    fn bound(&self, waiting: &mut Waiting) {
        while waiting.bytes > self.buffer {
            let Some(oldest) = waiting.events.pop_front() else { return };
            waiting.bytes = waiting.bytes.saturating_sub(oldest.len());
            add(&self.dropped, 1);
        }
    }

    async fn send_all(&self, unsent: &mut VecDeque<Chunk>) {
        while let Some(chunk) = unsent.front() {
            if self.send(chunk).await.is_err() {
                return;
            }
            unsent.pop_front();
        }
    }

    async fn send(&self, chunk: &Chunk) -> Result<(), FetchError> {
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        const GZIP: HeaderValue = HeaderValue::from_static("gzip");
        let headers: [(HeaderName, HeaderValue); 2] =
            [(CONTENT_TYPE, JSON), (CONTENT_ENCODING, GZIP)];
        let (service, body) = (&self.service, chunk.body.clone());
        let none = Duration::ZERO;
        let sent =
            service.send(Method::POST, &self.resource, &headers, body, none, MAX_ANSWER).await;
        let status = sent.map(|answer| answer.status());
        match status {
            Ok(status) if status.is_success() => {
                add(&self.uploaded, chunk.events.len());
                Ok(())
            }
            Ok(status) => self.failed(FetchError::Status(status)),
            Err(error) => self.failed(error),
        }
    }

    fn failed(&self, error: FetchError) -> Result<(), FetchError> {
        add(&self.failures, 1);
        tracing::warn!(%error, "decisions could not be uploaded; they are sent again");
        Err(error)
    }
}

fn add(counter: &AtomicU64, events: usize) {
    counter.fetch_add(u64::try_from(events).unwrap_or(u64::MAX), Ordering::Relaxed);
}

fn compress(events: &VecDeque<Bytes>) -> io::Result<Vec<u8>> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    for (at, event) in events.iter().enumerate() {
        gzip.write_all(if at == 0 { b"[" } else { b"," })?;
        gzip.write_all(event)?;
    }
    gzip.write_all(b"]")?;
    gzip.finish()
}

impl LogSink for LogUpload {
    fn write(&mut self, event: &serde_json::Value) -> io::Result<()> {
        let event = Bytes::from(serde_json::to_vec(event)?);
        let mut waiting = self.shared.lock();
        waiting.bytes = waiting.bytes.saturating_add(event.len());
        waiting.events.push_back(event);
        self.shared.bound(&mut waiting);
        let full = waiting.bytes >= self.shared.chunk.saturating_mul(RATIO);
        drop(waiting);
        if full {
            self.shared.news.notify_one();
        }
        Ok(())
    }
}

impl Drop for LogUpload {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.news.notify_one();
    }
}
