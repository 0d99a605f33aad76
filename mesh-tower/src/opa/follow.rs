//! Keeps the bundles of a policy in force: looked for, put together, compiled, activated as one.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use mesh_authz::rego::{Bundle, LogPolicy, RegoOptions, RegoPolicy};
use rustls::pki_types::UnixTime;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::source::{BundleSource, BundleSourceError, Found, Look, Version};
use crate::backoff::{doubled, spread};
use crate::clock::{Clock, SystemClock, monotonic};
use crate::rego::RegoStage;

/// The first rest after a failure; OPA's, too.
const FIRST_RETRY: Duration = Duration::from_millis(100);

/// The least rest after a look that found nothing new, so that a service that says it keeps
/// requests waiting, but does not, is not asked without a pause.
const LEAST_REST: Duration = Duration::from_millis(500);

/// How long compiling may take ([SEC-REGO-6]). What takes longer is left to end on its own.
const LOAD_DEADLINE: Duration = Duration::from_secs(60);

/// The bundles of one policy, each with a name and a source of its own. Their roots must not
/// overlap.
///
/// # Examples
///
/// ```no_run
/// # use std::{sync::Arc, time::Duration};
/// use mesh_tower::authz::rego::{RegoOptions, RegoPool};
/// use mesh_tower::{BundleSource, Bundles, OpaService, RegoStage};
///
/// # async fn run(provider: Arc<rustls::crypto::CryptoProvider>, roots: rustls::RootCertStore)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let service = OpaService::new("https://control.example", provider, roots)?;
/// let source = BundleSource::service(service, "bundles/authz.tar.gz")
///     .with_long_polling(Duration::from_secs(60));
/// // Until the first bundle is in force, the stage denies everything.
/// let stage = RegoStage::waiting(Arc::new(RegoPool::start(2, 1024)?));
/// let bundles = Bundles::new(RegoOptions::default()).with("authz", source);
/// tokio::spawn(stage.clone().follow(bundles));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Bundles {
    options: RegoOptions,
    sources: Vec<(String, BundleSource)>,
    clock: Arc<dyn Clock>,
}

impl Bundles {
    /// No bundles yet; `options` say which rule is asked for and what evaluation may cost.
    #[must_use]
    pub fn new(options: RegoOptions) -> Self {
        Self { options, sources: Vec::new(), clock: Arc::new(SystemClock) }
    }

    /// Adds a bundle. A name that is there already gets the new source.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, source: BundleSource) -> Self {
        let name = name.into();
        self.sources.retain(|(other, _)| *other != name);
        self.sources.push((name, source));
        self
    }

    /// Where the times of [`BundleState`] come from.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

/// How it is with one bundle; OPA reports the same in its status.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct BundleState {
    /// The bundle's name.
    pub name: String,
    /// The revision in force; nothing before the first, empty when the manifest has none.
    pub active_revision: Option<String>,
    /// When it was looked for last.
    pub last_request: Option<UnixTime>,
    /// When a look last succeeded, whether or not there was anything new.
    pub last_successful_request: Option<UnixTime>,
    /// When a new version was last read.
    pub last_successful_download: Option<UnixTime>,
    /// When a version was last put in force.
    pub last_successful_activation: Option<UnixTime>,
    /// Looks in a row that failed.
    pub failures: u32,
    /// Why the last one failed, if it did.
    pub error: Option<String>,
}

/// One bundle, as it is followed.
struct Followed {
    source: BundleSource,
    state: BundleState,
    /// What is in force, or waits for the other bundles.
    held: Option<(Arc<Bundle>, Version)>,
    /// What was refused, so that it is not compiled again and again.
    refused: Option<([u8; 32], String)>,
    due: Instant,
    running: bool,
}

/// A look that is over.
type Looked = (usize, Result<Look, BundleSourceError>);

impl RegoStage {
    /// Keeps the newest good version of the bundles in force; never returns. Meanwhile
    /// [`Self::bundles`] tells how it is with them.
    ///
    /// They come into force together, once each is there; from then on each new version that
    /// compiles with the others does. Dropping the future leaves in force what is.
    pub async fn follow(self, bundles: Bundles) {
        let Bundles { options, sources, clock } = bundles;
        let followed = sources.into_iter().map(|(name, source)| Followed {
            source,
            state: BundleState { name, ..BundleState::default() },
            held: None,
            refused: None,
            due: monotonic(),
            running: false,
        });
        let bundles = followed.collect();
        let mut state = Follower { stage: self, options, clock, bundles };
        let mut looks: JoinSet<Looked> = JoinSet::new();
        loop {
            state.publish();
            state.look(&mut looks);
            let next = state.bundles.iter().filter(|bundle| !bundle.running);
            let next = next.map(|bundle| bundle.due).min();
            let rest = next.map_or(LOAD_DEADLINE, |due| due.saturating_duration_since(monotonic()));
            tokio::select! {
                Some(looked) = looks.join_next() => match looked {
                    Ok((at, looked)) => state.looked(at, looked).await,
                    Err(error) => tracing::error!(%error, "a look for a bundle ended badly"),
                },
                () = tokio::time::sleep(rest) => {}
            }
        }
    }
}

struct Follower {
    stage: RegoStage,
    options: RegoOptions,
    clock: Arc<dyn Clock>,
    bundles: Vec<Followed>,
}

impl Follower {
    fn publish(&self) {
        let states = self.bundles.iter().map(|bundle| bundle.state.clone()).collect();
        *self.stage.states.lock().unwrap_or_else(PoisonError::into_inner) = states;
    }

    /// Starts the looks that are due.
    fn look(&mut self, looks: &mut JoinSet<Looked>) {
        let now = monotonic();
        for (at, bundle) in self.bundles.iter_mut().enumerate() {
            if bundle.running || bundle.due > now {
                continue;
            }
            bundle.running = true;
            bundle.state.last_request = Some(self.clock.now());
            let (source, last) = (bundle.source.clone(), bundle.held.clone());
            let last = last.map(|(_, version)| version);
            looks.spawn(async move { (at, source.look(last.as_ref()).await) });
        }
    }

    async fn looked(&mut self, at: usize, looked: Result<Look, BundleSourceError>) {
        let (result, at_once) = match looked {
            Ok(Look { found: Found::Unchanged, at_once }) => (Ok(false), at_once),
            Ok(Look { found: Found::New(bundle, version), at_once }) => {
                if let Some(followed) = self.bundles.get_mut(at) {
                    followed.state.last_successful_download = Some(self.clock.now());
                }
                (self.take(at, Arc::new(*bundle), version).await.map(|()| true), at_once)
            }
            Err(error) => (Err(error), false),
        };
        let now = self.clock.now();
        let Some(followed) = self.bundles.get_mut(at) else { return };
        followed.running = false;
        let rest = match result {
            Ok(is_new) => {
                followed.state.last_successful_request = Some(now);
                followed.state.failures = 0;
                followed.state.error = None;
                let (min, max) = followed.source.polling;
                match (at_once, is_new) {
                    (true, true) => Duration::ZERO,
                    (true, false) => LEAST_REST,
                    (false, _) => min.saturating_add(spread(max.saturating_sub(min))),
                }
            }
            Err(error) => {
                // The next answer must be a whole one, whatever the service believes we have.
                if let Some((_, version)) = &mut followed.held {
                    version.etag = None;
                }
                tracing::warn!(
                    bundle = followed.state.name,
                    %error,
                    "no new bundle; the last good one stays"
                );
                followed.state.failures = followed.state.failures.saturating_add(1);
                followed.state.error = Some(error.to_string());
                backoff(followed.state.failures, followed.source.polling.1)
            }
        };
        followed.due = monotonic().checked_add(rest).unwrap_or(followed.due);
    }

    /// Puts a version in force together with the other bundles, if all are there.
    async fn take(
        &mut self,
        at: usize,
        bundle: Arc<Bundle>,
        version: Version,
    ) -> Result<(), BundleSourceError> {
        if let Some(followed) = self.bundles.get(at)
            && let Some((digest, why)) = &followed.refused
            && *digest == version.digest
        {
            return Err(BundleSourceError::Refused(why.clone()));
        }
        let mut parts = Vec::new();
        for (other, followed) in self.bundles.iter().enumerate() {
            if other == at {
                parts.push(Some(Arc::clone(&bundle)));
            } else {
                parts.push(followed.held.as_ref().map(|(held, _)| Arc::clone(held)));
            }
        }
        let Some(parts) = parts.into_iter().collect::<Option<Vec<_>>>() else {
            // Others are still to come; together they will be tried.
            if let Some(followed) = self.bundles.get_mut(at) {
                followed.held = Some((bundle, version));
            }
            return Ok(());
        };
        let revisions = parts.iter().map(|bundle| bundle.revision().to_owned());
        let revisions: Vec<String> = revisions.collect();
        let compiled = match compile(parts, self.options.clone()).await {
            Ok(compiled) => compiled,
            Err(error) => {
                if let Some(followed) = self.bundles.get_mut(at) {
                    followed.refused = Some((version.digest, error.to_string()));
                }
                return Err(error);
            }
        };
        let (policy, masks) = compiled;
        let now = self.clock.now();
        let mut named = Vec::new();
        for ((other, followed), revision) in self.bundles.iter_mut().enumerate().zip(revisions) {
            // What did not fit the others may fit them now.
            followed.refused = None;
            named.push((followed.state.name.clone(), revision.clone()));
            let first = followed.state.active_revision.replace(revision).is_none();
            if first || other == at {
                followed.state.last_successful_activation = Some(now);
            }
        }
        tracing::info!(revision = policy.revision(), "bundles are in force");
        self.stage.activate(Some(Arc::new(policy)), Arc::new(masks), named);
        if let Some(followed) = self.bundles.get_mut(at) {
            followed.held = Some((bundle, version));
        }
        Ok(())
    }
}

impl fmt::Debug for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Followed").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Puts bundles together and compiles them, on a thread that may block, in bounded time.
async fn compile(
    parts: Vec<Arc<Bundle>>,
    options: RegoOptions,
) -> Result<(RegoPolicy, LogPolicy), BundleSourceError> {
    let compiling = tokio::task::spawn_blocking(move || {
        let mut parts = parts.into_iter().map(Arc::unwrap_or_clone);
        let Some(mut whole) = parts.next() else { return Err(BundleSourceError::Unsettled) };
        for part in parts {
            whole = whole.join(part)?;
        }
        Ok(whole.compile(options)?)
    });
    match timeout(LOAD_DEADLINE, compiling).await {
        Ok(Ok(compiled)) => compiled,
        Ok(Err(_)) | Err(_) => Err(BundleSourceError::LoadDeadline),
    }
}

/// Doubles from [`FIRST_RETRY`] up to a limit, spread by a quarter.
fn backoff(failures: u32, most: Duration) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    spread_down(doubled(FIRST_RETRY, doublings, most.max(FIRST_RETRY)))
}

/// Up to a quarter less.
pub(super) fn spread_down(rest: Duration) -> Duration {
    rest.saturating_sub(spread(rest.checked_div(4).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_double_up_to_the_limit() {
        let most = Duration::from_secs(10);
        for (failures, low, high) in
            [(1, 75, 100), (2, 150, 200), (5, 1200, 1600), (60, 7500, 10_000)]
        {
            let rest = backoff(failures, most).as_millis();
            assert!((low..=high).contains(&rest), "{failures}: {rest}");
        }
    }
}
