//! Threads for evaluation: a stack of our size, a bounded queue, and no waiting inside.
//!
//! The pool reads no clock. Who submits decides how long to wait, denies when the answer is late,
//! and writes the ticket off, which puts a fresh worker in the place of the one that is stuck.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::decision::{RegoDecision, RegoDenyReason};
use super::input::RegoInput;
use super::policy::{RegoAnswer, RegoEvaluator, RegoPolicy};

/// Address space for the stack of a thread that parses or evaluates Rego ([SEC-REGO-3]). Only
/// touched pages cost memory.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// How many written-off workers may still be running. Each may use a core; beyond this number a
/// further overrun costs a worker instead of a core.
const MAX_WRITTEN_OFF: usize = 16;

/// Workers that evaluate policies.
///
/// Dropping the pool lets the queued evaluations finish and ends the workers.
pub struct RegoPool {
    shared: Arc<Shared>,
}

/// Names one evaluation.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct RegoTicket(u64);

/// The queue has no room: deny ([SEC-REGO-3]).
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the queue of evaluations is full")]
#[expect(clippy::exhaustive_structs, reason = "there is nothing more to say")]
pub struct PoolFull;

impl RegoPool {
    /// Starts `workers` threads (at least one) before a queue of `queue` evaluations.
    ///
    /// # Errors
    ///
    /// What the system says when it has no thread to give.
    pub fn start(workers: usize, queue: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State { capacity: queue.max(1), ..State::default() }),
            wake: Condvar::new(),
        });
        let pool = Self { shared };
        for _ in 0..workers.max(1) {
            spawn_worker(&pool.shared)?;
        }
        Ok(pool)
    }

    /// Queues an evaluation; `on_done` gets the answer, and the input back, on the worker's thread.
    ///
    /// # Errors
    ///
    /// [`PoolFull`] when the queue has no room; `on_done` is dropped without being called.
    pub fn submit(
        &self,
        policy: Arc<RegoPolicy>,
        input: RegoInput,
        on_done: impl FnOnce(RegoInput, RegoAnswer) + Send + 'static,
    ) -> Result<RegoTicket, PoolFull> {
        let mut state = self.shared.lock();
        if state.queue.len() >= state.capacity {
            return Err(PoolFull);
        }
        state.last_ticket = state.last_ticket.wrapping_add(1);
        let ticket = RegoTicket(state.last_ticket);
        state.queue.push_back(Job { ticket, policy, input, on_done: Box::new(on_done) });
        drop(state);
        self.shared.wake.notify_one();
        Ok(ticket)
    }

    /// Gives up on an evaluation whose time has passed ([SEC-REGO-4]).
    ///
    /// One that waits is taken out of the queue; one that runs loses its worker, which ends after
    /// it, and a fresh one takes its place. An evaluation that is done is left alone. Whatever
    /// `on_done` is told afterwards is too late and counts as a denial.
    ///
    /// Tells whether the evaluation was running: one that waits says nothing about its policy.
    #[must_use]
    pub fn write_off(&self, ticket: RegoTicket) -> bool {
        let mut state = self.shared.lock();
        state.queue.retain(|job| job.ticket != ticket);
        let runs = state.running.contains(&ticket);
        if runs && state.written_off.len() < MAX_WRITTEN_OFF {
            state.written_off.insert(ticket);
            drop(state);
            // Without a thread to give, the pool goes on with fewer workers.
            drop(spawn_worker(&self.shared));
        }
        runs
    }
}

impl Drop for RegoPool {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

impl fmt::Debug for RegoPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("RegoPool")
            .field("queued", &state.queue.len())
            .field("running", &state.running.len())
            .finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    capacity: usize,
    running: HashSet<RegoTicket>,
    written_off: HashSet<RegoTicket>,
    last_ticket: u64,
    closed: bool,
}

struct Job {
    ticket: RegoTicket,
    policy: Arc<RegoPolicy>,
    input: RegoInput,
    on_done: Box<dyn FnOnce(RegoInput, RegoAnswer) + Send>,
}

impl Shared {
    /// The state is valid after every statement, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                state.running.insert(job.ticket);
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Starts a thread with the stack that evaluation wants ([SEC-REGO-3]).
///
/// # Errors
///
/// What the system says when it has no thread to give.
pub fn on_large_stack(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<thread::JoinHandle<()>> {
    thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(run)
}

fn spawn_worker(shared: &Arc<Shared>) -> std::io::Result<()> {
    let shared = Arc::clone(shared);
    let thread = thread::Builder::new().name("rego".to_owned()).stack_size(STACK_BYTES);
    thread.spawn(move || work(&shared)).map(drop)
}

fn work(shared: &Shared) {
    let mut evaluator: Option<RegoEvaluator> = None;
    while let Some(Job { ticket, policy, input, on_done }) = shared.next() {
        let kept = evaluator.take().filter(|kept| kept.is_for(&policy));
        let answer =
            evaluator.insert(kept.unwrap_or_else(|| RegoEvaluator::new(policy))).answer(&input);
        let told = catch_unwind(AssertUnwindSafe(|| on_done(input, answer)));
        // A panic is the submitter's own; it must not cost the pool a worker.
        drop(told);
        let mut state = shared.lock();
        state.running.remove(&ticket);
        if state.written_off.remove(&ticket) {
            return;
        }
    }
}

impl From<PoolFull> for RegoDecision {
    fn from(_: PoolFull) -> Self {
        Self::deny(RegoDenyReason::Overloaded)
    }
}
