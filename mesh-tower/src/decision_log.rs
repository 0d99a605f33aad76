//! The decision log of Rego policies: masked off the request path, handed to a sink, never waited
//! for. What does not fit into the queue is dropped and counted.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};

use mesh_authz::rego::{
    DecisionLogEvent, LogPolicy, Masked, RegoAnswer, RegoInput, on_large_stack,
};
use rustls::crypto::SecureRandom;

use crate::mask;

/// Where masked events go. It is called on a thread of the log, so it may block; while it does, the
/// queue fills up and then drops.
pub trait LogSink: Send + 'static {
    /// Takes one event.
    ///
    /// # Errors
    ///
    /// When it is lost. The log counts it and goes on.
    fn write(&mut self, event: &serde_json::Value) -> io::Result<()>;

    /// Called when no further event waits.
    ///
    /// # Errors
    ///
    /// When events are lost.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes events to a file, one line of JSON each, behind what is there.
#[derive(Debug)]
pub struct FileSink {
    file: BufWriter<File>,
}

impl FileSink {
    /// Opens or creates the file.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn append(path: impl AsRef<Path>) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file: BufWriter::new(file) })
    }
}

impl LogSink for FileSink {
    fn write(&mut self, event: &serde_json::Value) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, event)?;
        self.file.write_all(b"\n")
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Takes the decisions of [`crate::RegoStage`]s to a sink.
pub struct DecisionLog {
    queue: SyncSender<Entry>,
    labels: Vec<(String, String)>,
    random: &'static dyn SecureRandom,
    next: AtomicU64,
    counts: Arc<Counts>,
}

/// A decision on its way to the log, unmasked.
pub(crate) struct Entry {
    pub(crate) event: DecisionLogEvent,
    pub(crate) input: RegoInput,
    pub(crate) answer: RegoAnswer,
    pub(crate) masks: Arc<LogPolicy>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    dropped: AtomicU64,
    masked_out: AtomicU64,
    failed: AtomicU64,
}

/// What has become of the decisions so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct DecisionLogCounts {
    /// Given to the sink.
    pub written: u64,
    /// Lost because the queue was full.
    pub dropped: u64,
    /// Left out because `data.system.log.drop` says so.
    pub masked_out: u64,
    /// Lost because a mask or the sink failed.
    pub failed: u64,
}

impl DecisionLog {
    /// Starts the log's thread, with room for `queue` decisions that wait for it.
    ///
    /// `labels` name the deployment in each event; `random` makes the decisions' ids.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread to give.
    pub fn start(
        sink: impl LogSink,
        labels: impl IntoIterator<Item = (String, String)>,
        random: &'static dyn SecureRandom,
        queue: usize,
    ) -> io::Result<Arc<Self>> {
        let (sender, receiver) = sync_channel(queue.max(1));
        let counts = Arc::<Counts>::default();
        let counting = Arc::clone(&counts);
        drop(on_large_stack("rego-log", move || work(&receiver, sink, &counting))?);
        let labels = labels.into_iter().collect();
        let next = AtomicU64::new(1);
        Ok(Arc::new(Self { queue: sender, labels, random, next, counts }))
    }

    /// What has become of the decisions so far.
    #[must_use]
    pub fn counts(&self) -> DecisionLogCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DecisionLogCounts {
            written: read(&self.counts.written),
            dropped: read(&self.counts.dropped),
            masked_out: read(&self.counts.masked_out),
            failed: read(&self.counts.failed),
        }
    }

    /// Queues a decision; never waits.
    pub(crate) fn record(&self, mut entry: Entry) {
        entry.event.labels.clone_from(&self.labels);
        entry.event.decision_id = self.decision_id();
        entry.event.req_id = self.next.fetch_add(1, Ordering::Relaxed);
        if self.queue.try_send(entry).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A random UUID (RFC 9562, version 4); empty when there is no randomness.
    fn decision_id(&self) -> String {
        let mut bytes = [0_u8; 16];
        if self.random.fill(&mut bytes).is_err() {
            return String::new();
        }
        let number = u128::from_be_bytes(bytes);
        let number = (number & !(0xF << 76)) | (0x4 << 76);
        let number = (number & !(0x3 << 62)) | (0x2 << 62);
        let hex = format!("{number:032x}");
        let part = |range| hex.get::<std::ops::Range<usize>>(range).unwrap_or_default();
        [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
    }
}

/// Masks and writes until every sender is gone.
fn work(queue: &Receiver<Entry>, mut sink: impl LogSink, counts: &Counts) {
    let add = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
    let mut next = queue.recv().ok();
    while let Some(Entry { mut event, input, answer, masks }) = next {
        event.input = input.to_json();
        event.result = answer.result();
        match masks.apply(event.to_json()) {
            Masked::Keep(mut event) => {
                if !masks.keeps_credentials() {
                    mask::event(&mut event);
                }
                match sink.write(&event) {
                    Ok(()) => add(&counts.written),
                    Err(error) => {
                        tracing::warn!(%error, "a decision could not be logged");
                        add(&counts.failed)
                    }
                }
            }
            Masked::Dropped => add(&counts.masked_out),
            Masked::Failed => add(&counts.failed),
        };
        next = match queue.try_recv() {
            Ok(entry) => Some(entry),
            Err(TryRecvError::Empty) => {
                if let Err(error) = sink.flush() {
                    tracing::warn!(%error, "decisions could not be logged");
                    add(&counts.failed);
                }
                queue.recv().ok()
            }
            Err(TryRecvError::Disconnected) => None,
        };
    }
    if let Err(error) = sink.flush() {
        tracing::warn!(%error, "decisions could not be logged");
    }
}

impl fmt::Debug for DecisionLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecisionLog").field("counts", &self.counts()).finish_non_exhaustive()
    }
}
