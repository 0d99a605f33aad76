//! The access log and the audit log: lines on their way to a file, a pipe or standard output.
//!
//! A line is made on the request path and written on a thread of its own. What does not fit into
//! the queue is lost and counted: a slow disk never slows a request.

use std::fmt;
use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde_json::json;

use crate::observe::{AccessEntry, ConnectionEvent, DecisionEvent, Observer, timestamp};

/// Lines that wait for the writer.
const QUEUE: usize = 4096;

/// How long the end of a log waits for its writer.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Where lines go: any writer, on a thread of its own. Cloning shares it.
#[derive(Clone)]
struct Lines(Arc<Shared>);

struct Shared {
    /// Gone when the last owner is: then the thread ends.
    queue: Option<SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
    /// Told when the thread has written everything.
    written: Mutex<Receiver<()>>,
}

impl Lines {
    fn start(writer: impl Write + Send + 'static, name: &str) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE);
        let (all, written) = sync_channel(1);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            write_all(&waiting, writer);
            // Nobody waits any longer when the writer was too slow.
            all.try_send(()).ok();
        })?;
        let (queue, thread) = (Some(queue), Some(thread));
        Ok(Self(Arc::new(Shared { queue, thread, written: Mutex::new(written) })))
    }

    /// Queues a line; whether there was room.
    fn push(&self, mut line: String) -> bool {
        line.push('\n');
        self.0.queue.as_ref().is_some_and(|queue| queue.try_send(line).is_ok())
    }
}

/// Whoever lets go of a log last waits until its lines are written: a program that ends loses none.
/// A writer that hangs holds it up for [`LAST_WRITES`] at most.
impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.queue.take());
        let written = self.written.get_mut().unwrap_or_else(PoisonError::into_inner);
        // A writer that panics has told why; it is gone like one that is done.
        if !matches!(written.recv_timeout(LAST_WRITES), Err(RecvTimeoutError::Timeout))
            && let Some(thread) = self.thread.take()
        {
            thread.join().ok();
        }
    }
}

/// Writes until every sender is gone; flushes when nothing waits.
fn write_all(waiting: &Receiver<String>, mut writer: impl Write) {
    let mut next = waiting.recv().ok();
    while let Some(line) = next {
        let written = writer.write_all(line.as_bytes());
        next = match waiting.try_recv() {
            Ok(line) => Some(line),
            Err(TryRecvError::Empty) => {
                if let Err(error) = written.and_then(|()| writer.flush()) {
                    tracing::warn!(%error, "log lines could not be written");
                }
                waiting.recv().ok()
            }
            Err(TryRecvError::Disconnected) => None,
        };
    }
    drop(writer.flush());
}

/// One of so many, the first included.
#[derive(Debug)]
struct Sampler {
    one_in: NonZeroU64,
    seen: AtomicU64,
}

impl Sampler {
    fn new(one_in: NonZeroU64) -> Self {
        Self { one_in, seen: AtomicU64::new(0) }
    }

    fn takes(&self) -> bool {
        self.seen.fetch_add(1, Ordering::Relaxed).checked_rem(self.one_in.get()) == Some(0)
    }
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Text,
    Json,
}

/// The access log: a line for each answered request, as Istio's sidecar writes it.
///
/// Tokens are masked in every field ([SEC-OPS-4]), and no field can forge a line.
///
/// # Examples
///
/// ```
/// # fn with(builder: mesh_tower::MeshBuilder) -> std::io::Result<mesh_tower::MeshBuilder> {
/// use mesh_tower::AccessLog;
///
/// Ok(builder.access_log(AccessLog::json(std::io::stdout())?))
/// # }
/// ```
///
/// A line of [`AccessLog::text`]:
///
/// ```text
/// [2026-11-25T18:00:00.123Z] "GET /cart HTTP/1.1" 403 - rbac_access_denied_matched_policy[none] - "-" 0 19 0 - "-" "curl/8.5" "-" "cart" "-" - - 10.0.0.7:8443 10.0.0.9:41234 - -
/// ```
#[derive(Clone)]
pub struct AccessLog {
    lines: Lines,
    format: Format,
    sampler: Arc<Sampler>,
}

impl AccessLog {
    /// Lines in Istio's default text format.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread to give.
    pub fn text(writer: impl Write + Send + 'static) -> io::Result<Self> {
        Self::start(writer, Format::Text)
    }

    /// Lines of JSON with Istio's default keys.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread to give.
    pub fn json(writer: impl Write + Send + 'static) -> io::Result<Self> {
        Self::start(writer, Format::Json)
    }

    fn start(writer: impl Write + Send + 'static, format: Format) -> io::Result<Self> {
        let lines = Lines::start(writer, "mesh-access-log")?;
        Ok(Self { lines, format, sampler: Arc::new(Sampler::new(NonZeroU64::MIN)) })
    }

    /// Logs one of so many admitted requests. Refused ones are always logged.
    #[must_use]
    pub fn one_in(mut self, admitted: NonZeroU64) -> Self {
        self.sampler = Arc::new(Sampler::new(admitted));
        self
    }

    fn write(&self, entry: &AccessEntry) -> bool {
        self.lines.push(match self.format {
            Format::Text => entry.to_string(),
            Format::Json => entry.to_json().to_string(),
        })
    }
}

impl fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines: _, format, sampler } = self;
        f.debug_struct("AccessLog").field("format", format).field("sampler", sampler).finish()
    }
}

/// The audit log: who was refused what and by which rule, as lines of JSON.
///
/// Every refusal is written, and everything that an AUDIT policy matches. A line names the
/// configuration's generation, the policy and rule, the verified caller and user; never a header,
/// a query or a token ([SEC-OPS-4], [SEC-AUTHZ-12]).
///
/// # Examples
///
/// ```no_run
/// # fn with(builder: mesh_tower::MeshBuilder) -> std::io::Result<mesh_tower::MeshBuilder> {
/// use mesh_tower::AuditLog;
///
/// let file = std::fs::File::options().create(true).append(true).open("audit.jsonl")?;
/// Ok(builder.audit_log(AuditLog::new(file)?))
/// # }
/// ```
///
/// A line, broken for reading:
///
/// ```text
/// {"audit":false,"decision":"deny","destination":"spiffe://cluster.local/ns/shop/sa/cart",
///  "generation":3,"method":"GET","path":"/admin","peer":"spiffe://cluster.local/ns/shop/sa/web",
///  "policy":"shop/no-admin","reason":"rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]]",
///  "rule":"ns[shop]-policy[no-admin]-rule[0]","time":"2026-11-25T18:00:00.123Z","user":null}
/// ```
#[derive(Clone)]
pub struct AuditLog {
    lines: Lines,
    admitted: Option<Arc<Sampler>>,
}

impl AuditLog {
    /// Lines of JSON.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread to give.
    pub fn new(writer: impl Write + Send + 'static) -> io::Result<Self> {
        Ok(Self { lines: Lines::start(writer, "mesh-audit-log")?, admitted: None })
    }

    /// Also writes one of so many admitted requests, whatever the AUDIT policies say.
    #[must_use]
    pub fn admitted_one_in(mut self, admitted: NonZeroU64) -> Self {
        self.admitted = Some(Arc::new(Sampler::new(admitted)));
        self
    }

    fn wants(&self, event: &DecisionEvent<'_>) -> bool {
        let admitted = || self.admitted.as_ref().is_some_and(|sampler| sampler.takes());
        !event.allowed || event.audit || admitted()
    }

    fn write(&self, event: &DecisionEvent<'_>, own: &str, time: SystemTime) -> bool {
        let policy = event.matched.map(|rule| format!("{}/{}", rule.namespace(), rule.policy()));
        let line = json!({
            "time": timestamp(time),
            "decision": if event.allowed { "allow" } else { "deny" },
            "audit": event.audit,
            "generation": event.generation,
            "policy": policy,
            "rule": event.rule,
            "reason": event.detail,
            "dry_run_allow": event.dry_run_allow,
            "dry_run_deny": event.dry_run_deny,
            "rego_revision": event.rego_revision,
            "peer": event.peer.map(ToString::to_string),
            "user": event.user.and_then(mesh_identity::VerifiedToken::principal),
            "destination": own,
            "method": event.method,
            "path": event.path,
        });
        self.lines.push(line.to_string())
    }

    fn write_connection(&self, event: &ConnectionEvent, own: &str, time: SystemTime) -> bool {
        let line = json!({
            "time": timestamp(time),
            "decision": "deny",
            "reason": event.reason,
            "peer_address": event.peer.to_string(),
            "destination": own,
        });
        self.lines.push(line.to_string())
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog").field("admitted", &self.admitted).finish_non_exhaustive()
    }
}

/// The logs of a mesh.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    pub(crate) access: Option<AccessLog>,
    pub(crate) audit: Option<AuditLog>,
}

impl Logs {
    /// Whether any request may be logged.
    pub(crate) fn wants_access(&self, observer: &dyn Observer) -> bool {
        self.access.is_some() || observer.wants_access_log()
    }

    /// Whether this request is logged even if it is admitted.
    pub(crate) fn samples_access(&self, observer: &dyn Observer) -> bool {
        let sampled = self.access.as_ref().is_some_and(|log| log.sampler.takes());
        sampled || observer.wants_access_log()
    }

    /// Writes a request that was answered; false when the line was lost.
    pub(crate) fn answered(&self, entry: &AccessEntry) -> bool {
        self.access.as_ref().is_none_or(|log| log.write(entry))
    }

    /// Writes a decision if it is one to be written; false when the line was lost.
    pub(crate) fn decided(
        &self,
        event: &DecisionEvent<'_>,
        own: &dyn fmt::Display,
        time: impl FnOnce() -> SystemTime,
    ) -> bool {
        let log = self.audit.as_ref().filter(|log| log.wants(event));
        log.is_none_or(|log| log.write(event, &own.to_string(), time()))
    }

    /// Writes a refused connection; false when the line was lost.
    pub(crate) fn refused(
        &self,
        event: &ConnectionEvent,
        own: &dyn fmt::Display,
        time: impl FnOnce() -> SystemTime,
    ) -> bool {
        let log = self.audit.as_ref();
        log.is_none_or(|log| log.write_connection(event, &own.to_string(), time()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes when it is released.
    struct Stuck(Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.recv().ok();
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_of_so_many_is_taken() {
        let sampler = Sampler::new(NonZeroU64::new(3).unwrap());
        let taken: Vec<bool> = (0..7).map(|_| sampler.takes()).collect();
        assert_eq!(taken, [true, false, false, true, false, false, true]);
    }

    /// A writer that blocks loses lines, and nobody waits for it.
    #[test]
    fn a_slow_writer_delays_nobody() {
        let (release, stuck) = std::sync::mpsc::channel();
        let lines = Lines::start(Stuck(stuck), "test").unwrap();
        let taken = (0..QUEUE * 2).filter(|_| lines.push("line".to_owned())).count();
        assert!((QUEUE..=QUEUE + 1).contains(&taken), "{taken}");
        drop(release);
    }

    /// A slow writer, and a log that is dropped with a full queue: every line is written.
    #[test]
    fn no_line_is_lost_at_the_end() {
        struct Slow(Arc<AtomicU64>);
        impl Write for Slow {
            fn write(&mut self, data: &[u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(1));
                self.0.fetch_add(1, Ordering::SeqCst);
                Ok(data.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let written = Arc::new(AtomicU64::new(0));
        let lines = Lines::start(Slow(Arc::clone(&written)), "test").unwrap();
        let other = lines.clone();
        assert!((0..200).all(|_| lines.push("line".to_owned())));
        drop(lines);
        drop(other);
        assert_eq!(written.load(Ordering::SeqCst), 200);
    }

    /// A writer that never returns does not keep a program from ending.
    #[test]
    fn a_stuck_writer_holds_up_the_end_for_a_moment_only() {
        let (release, stuck) = std::sync::mpsc::channel();
        let lines = Lines::start(Stuck(stuck), "test").unwrap();
        assert!(lines.push("line".to_owned()));
        drop(lines);
        drop(release);
    }
}
