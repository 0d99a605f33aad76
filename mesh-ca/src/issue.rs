//! The authority as a service: limits, policy, log and rotation around what signs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use mesh_identity::{JwtAuthority, SpiffeId, TrustBundle, TrustDomain, X509Authority, X509Svid};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::Authority;
use crate::csr::CertificateRequest;
use crate::error::CaError;
use crate::jwt::{IssuedToken, JwtKey};
use crate::key_ring::{KeyRing, Overlap, RingKey, Step};
use crate::limits::{Limiter, Limits};
use crate::log::{IssueLog, IssueRecord, IssuedKind, NoLog};
use crate::profile::after;

impl RingKey for Authority {
    type Public = X509Authority;

    fn public(&self) -> X509Authority {
        // A root has itself as its only root.
        self.root()
    }

    fn not_after(&self) -> UnixTime {
        self.not_after()
    }
}

impl RingKey for JwtKey {
    type Public = JwtAuthority;

    fn public(&self) -> JwtAuthority {
        self.authority().clone()
    }

    fn not_after(&self) -> UnixTime {
        self.not_after()
    }
}

/// What is asked for, after the caller has been authenticated and before anything is signed.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct IssueRequest<'a> {
    /// Who asks, as he was authenticated.
    pub caller: &'a str,
    /// Whom the certificate or token will name.
    pub identity: &'a SpiffeId,
    /// Certificate or token.
    pub kind: IssuedKind,
    /// The life asked for; zero for the default.
    pub ttl: Duration,
}

/// A policy: whether this may be issued.
type Policy = dyn Fn(&IssueRequest<'_>) -> bool + Send + Sync;

/// How an authority that rotates its own keys lives.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct CaSettings {
    /// The roots. Its longest life is also the cap on certificates.
    pub roots: Overlap,
    /// How long an intermediate signs, before the next one does.
    pub intermediate_life: Duration,
    /// The keys for tokens. Its longest life is also the cap on tokens.
    pub tokens: Overlap,
    /// What bundles say about how often to ask for them.
    pub refresh_hint: Duration,
    /// How much is issued.
    pub limits: Limits,
}

impl CaSettings {
    /// Roots of ten years, intermediates of a week, token keys of a day; certificates of at most
    /// 24 hours, tokens of at most one; bundles asked for every five minutes and spread in 15.
    ///
    /// # Errors
    ///
    /// None: the waits fit. [`Overlap::new`] says it.
    pub fn new() -> Result<Self, CaError> {
        let hour = Duration::from_secs(3600);
        let spread = mesh_identity::DEFAULT_REFRESH_HINT.saturating_mul(3);
        Ok(Self {
            roots: Overlap::new(hour.saturating_mul(24 * 3650), spread, crate::MAX_TTL)?,
            intermediate_life: hour.saturating_mul(24 * 7),
            tokens: Overlap::new(hour.saturating_mul(24), spread, crate::MAX_JWT_TTL)?,
            refresh_hint: mesh_identity::DEFAULT_REFRESH_HINT,
            limits: Limits::default(),
        })
    }
}

/// Where an authority's roots come from.
#[derive(Clone, Debug)]
pub(crate) enum Roots {
    /// It makes them and rotates them.
    Own(KeyRing<Authority>),
    /// An operator does: the authority signs as it was given.
    Given(Arc<Authority>),
}

/// All that changes in the life of an authority.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) roots: Roots,
    pub(crate) tokens: KeyRing<JwtKey>,
    pub(crate) sequence: u64,
}

/// Takes the state before it comes into force, so that it survives the process.
pub(crate) trait Store: Send + Sync {
    fn save(&self, trust_domain: &TrustDomain, state: &State) -> std::io::Result<()>;
}

/// What signs and what is published, at one moment.
struct View {
    signing: Arc<Authority>,
    token_key: Arc<JwtKey>,
    bundle: TrustBundle,
}

/// A certificate authority as a service: it limits, asks a policy, signs, records, and rotates.
///
/// Callers are authenticated before they come here; `caller` is what the record says of them.
/// Methods may be called from many threads; [`Ca::rotate`] is called by a driver, from time to
/// time.
pub struct Ca {
    trust_domain: TrustDomain,
    settings: CaSettings,
    state: Mutex<State>,
    view: RwLock<Arc<View>>,
    limiter: Limiter,
    policy: Box<Policy>,
    log: Box<dyn IssueLog>,
    store: Option<Box<dyn Store>>,
}

/// A step of a rotation that was taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RotationEvent {
    /// When.
    pub at: UnixTime,
    /// Whose keys.
    pub key: RotatedKey,
    /// What happened.
    pub step: RotationStep,
}

/// Which keys are rotated.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RotatedKey {
    /// The authority below the root that signs leaves.
    Intermediate,
    /// The root.
    Root,
    /// The key that signs tokens.
    Token,
}

/// What happened to them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum RotationStep {
    /// A new one is in every bundle from now on; it signs nothing yet.
    Published,
    /// An old one has left the bundle: nothing that it signed is valid.
    Removed,
    /// The new one signs.
    Signs,
}

impl Ca {
    /// Makes an authority with fresh keys, in memory.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn new(
        trust_domain: &TrustDomain,
        settings: CaSettings,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let state = State::new(trust_domain, &settings, now)?;
        Self::assemble(trust_domain, settings, state, None, now)
    }

    /// Takes an authority that an operator rotates, such as one plugged into Istio. Token keys are
    /// its own.
    ///
    /// # Errors
    ///
    /// When the system has no randomness.
    pub fn with_authority(
        authority: Authority,
        settings: CaSettings,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let trust_domain = authority.trust_domain().clone();
        let tokens = KeyRing::new(JwtKey::generate(settings.tokens.life(), now)?, now);
        let roots = Roots::Given(Arc::new(authority));
        let state = State { roots, tokens, sequence: now.as_secs() };
        Self::assemble(&trust_domain, settings, state, None, now)
    }

    pub(crate) fn assemble(
        trust_domain: &TrustDomain,
        settings: CaSettings,
        state: State,
        store: Option<Box<dyn Store>>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let signing = state.signing(&settings, now)?;
        let view = View::new(trust_domain, &settings, &state, signing);
        Ok(Self {
            trust_domain: trust_domain.clone(),
            settings,
            state: Mutex::new(state),
            view: RwLock::new(Arc::new(view)),
            limiter: Limiter::new(settings.limits),
            policy: Box::new(|_request| true),
            log: Box::new(NoLog),
            store,
        })
    }

    /// Asks this before anything is issued; a refusal is [`CaError::Policy`].
    #[must_use]
    pub fn with_policy(
        mut self,
        policy: impl Fn(&IssueRequest<'_>) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.policy = Box::new(policy);
        self
    }

    /// Records all that is issued here. Without a log nothing is recorded.
    #[must_use]
    pub fn with_log(mut self, log: impl IssueLog + 'static) -> Self {
        self.log = Box::new(log);
        self
    }

    /// The trust domain it signs for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What verifies all that is valid of what it has issued, and what it will issue next.
    #[must_use]
    pub fn bundle(&self) -> TrustBundle {
        self.view().bundle.clone()
    }

    /// Issues an SVID with a fresh key to an authenticated caller.
    ///
    /// # Errors
    ///
    /// [`CaError::Limit`], [`CaError::Policy`], what [`Authority::issue_svid`] says, or
    /// [`CaError::Log`].
    pub fn issue_svid(
        &self,
        caller: &str,
        id: &SpiffeId,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<X509Svid, CaError> {
        let _place = self.admit(caller, id, IssuedKind::X509, ttl, now)?;
        let (svid, issued) = self.view().signing.issue_with_key(id, self.cap(ttl), now)?;
        self.record(
            caller,
            id,
            IssuedKind::X509,
            &issued.serial,
            now,
            (issued.not_before, issued.not_after),
        )?;
        Ok(svid)
    }

    /// Issues a chain, leaf first, for the key of a PKCS#10 request (DER). Nothing else of the
    /// request counts ([SEC-CA-1]); it is not even read before the limits and the policy agree.
    ///
    /// # Errors
    ///
    /// As [`Ca::issue_svid`], and what is wrong with the request.
    pub fn issue_for_csr(
        &self,
        caller: &str,
        id: &SpiffeId,
        csr: &[u8],
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let _place = self.admit(caller, id, IssuedKind::X509, ttl, now)?;
        let request = CertificateRequest::from_der(csr)?;
        self.issue_to(caller, id, &request, ttl, now)
    }

    /// Issues a chain, leaf first, for a public key (subject public key info, DER) of which the
    /// caller's possession has been proven by other means.
    ///
    /// # Errors
    ///
    /// As [`Ca::issue_for_csr`].
    pub fn issue_for_public_key(
        &self,
        caller: &str,
        id: &SpiffeId,
        spki: &[u8],
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let _place = self.admit(caller, id, IssuedKind::X509, ttl, now)?;
        let request = CertificateRequest::from_public_key(spki)?;
        self.issue_to(caller, id, &request, ttl, now)
    }

    fn issue_to(
        &self,
        caller: &str,
        id: &SpiffeId,
        request: &CertificateRequest,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let issued = self.view().signing.issue_to(id, request, self.cap(ttl), now)?;
        self.record(
            caller,
            id,
            IssuedKind::X509,
            &issued.serial,
            now,
            (issued.not_before, issued.not_after),
        )?;
        Ok(issued.chain)
    }

    /// Issues a JWT-SVID to an authenticated caller. `issuer` becomes `iss`.
    ///
    /// # Errors
    ///
    /// [`CaError::Limit`], [`CaError::Policy`], [`CaError::Audience`],
    /// [`CaError::ForeignIdentity`], or [`CaError::Log`].
    pub fn issue_jwt_svid(
        &self,
        caller: &str,
        id: &SpiffeId,
        audience: &[String],
        ttl: Duration,
        issuer: Option<&str>,
        now: UnixTime,
    ) -> Result<IssuedToken, CaError> {
        let _place = self.admit(caller, id, IssuedKind::Jwt, ttl, now)?;
        if id.trust_domain() != self.trust_domain.as_str() || id.path().is_empty() {
            return Err(CaError::ForeignIdentity);
        }
        let ttl = if ttl.is_zero() { crate::DEFAULT_JWT_TTL } else { ttl };
        let ttl = ttl.min(self.settings.tokens.longest());
        let token = self.view().token_key.issue(id, audience, ttl, issuer, now)?;
        self.record(caller, id, IssuedKind::Jwt, &token.jti, now, (now, token.not_after))?;
        Ok(token)
    }

    /// [SEC-CA-7] Limits first, then the policy; no cryptography before both agree.
    fn admit(
        &self,
        caller: &str,
        identity: &SpiffeId,
        kind: IssuedKind,
        ttl: Duration,
        now: UnixTime,
    ) -> Result<crate::limits::Place<'_>, CaError> {
        let place = self.limiter.enter(identity, now)?;
        if !(self.policy)(&IssueRequest { caller, identity, kind, ttl }) {
            return Err(CaError::Policy);
        }
        Ok(place)
    }

    /// [SEC-CA-10] Recorded, then handed out.
    fn record(
        &self,
        caller: &str,
        identity: &SpiffeId,
        kind: IssuedKind,
        serial: &[u8],
        time: UnixTime,
        (not_before, not_after): (UnixTime, UnixTime),
    ) -> Result<(), CaError> {
        let record = IssueRecord { time, caller, identity, kind, serial, not_before, not_after };
        self.log.record(&record).map_err(CaError::Log)
    }

    fn cap(&self, ttl: Duration) -> Duration {
        let ttl = if ttl.is_zero() { crate::DEFAULT_TTL } else { ttl };
        ttl.min(self.settings.roots.longest())
    }

    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes all steps of rotations that are due, and says when to come back.
    ///
    /// # Errors
    ///
    /// When a key cannot be made or the state cannot be written. Then the step has not happened and
    /// is due still; the steps before it have.
    pub fn rotate(&self, now: UnixTime) -> Result<(Vec<RotationEvent>, UnixTime), CaError> {
        let mut events = Vec::new();
        let mut state = self.state();
        loop {
            let mut new = state.clone();
            let (key, step) = match new.advance(&self.trust_domain, &self.settings, now)? {
                Advance::Wait(until) => {
                    let until = self.renew_intermediate(&state, until, now, &mut events)?;
                    return Ok((events, until));
                }
                Advance::Took(key, step) => (key, step),
            };
            self.enforce(&mut state, new, now)?;
            events.push(RotationEvent { at: now, key, step });
        }
    }

    /// Publishes a successor of the root now, whatever the schedule says; [`Ca::rotate`] takes the
    /// steps after it. With roots that an operator rotates it does nothing.
    ///
    /// # Errors
    ///
    /// As [`Ca::rotate`].
    pub fn rotate_root_now(&self, now: UnixTime) -> Result<Option<RotationEvent>, CaError> {
        let mut state = self.state();
        let mut new = state.clone();
        let Roots::Own(ring) = &mut new.roots else { return Ok(None) };
        let life = self.settings.roots.life();
        ring.publish(Authority::new_root(&self.trust_domain, life, now)?, now);
        new.sequence = new.sequence.saturating_add(1);
        self.enforce(&mut state, new, now)?;
        let (key, step) = (RotatedKey::Root, RotationStep::Published);
        Ok(Some(RotationEvent { at: now, key, step }))
    }

    /// First on disk, then in force: no certificate is ever signed by what the disk does not know.
    fn enforce(&self, state: &mut State, new: State, now: UnixTime) -> Result<(), CaError> {
        let root_changes = !state.same_root(&new);
        let held = Arc::clone(&self.view().signing);
        let signing = if root_changes { new.signing(&self.settings, now)? } else { held };
        if let Some(store) = &self.store {
            store.save(&self.trust_domain, &new).map_err(CaError::State)?;
        }
        *state = new;
        self.publish(View::new(&self.trust_domain, &self.settings, state, signing));
        Ok(())
    }

    /// Leaves carry their intermediate, so a new one signs at once, at half of the old one's life.
    fn renew_intermediate(
        &self,
        state: &State,
        until: UnixTime,
        now: UnixTime,
        events: &mut Vec<RotationEvent>,
    ) -> Result<UnixTime, CaError> {
        let Roots::Own(ring) = &state.roots else { return Ok(until) };
        let half = Duration::from_secs(self.settings.intermediate_life.as_secs() / 2);
        let held = self.view().signing.not_after();
        let due =
            UnixTime::since_unix_epoch(Duration::from_secs(held.as_secs()).saturating_sub(half));
        if now < due || held >= ring.signing().not_after() {
            return Ok(if now < due { until.min(due) } else { until });
        }
        let signing = state.signing(&self.settings, now)?;
        let due = UnixTime::since_unix_epoch(
            Duration::from_secs(signing.not_after().as_secs()).saturating_sub(half),
        );
        self.publish(View::new(&self.trust_domain, &self.settings, state, signing));
        let (key, step) = (RotatedKey::Intermediate, RotationStep::Signs);
        events.push(RotationEvent { at: now, key, step });
        Ok(until.min(due.max(after(now, Duration::from_secs(1)))))
    }

    fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

enum Advance {
    Wait(UnixTime),
    Took(RotatedKey, RotationStep),
}

impl State {
    pub(crate) fn new(
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let root = Authority::new_root(trust_domain, settings.roots.life(), now)?;
        let token = JwtKey::generate(settings.tokens.life(), now)?;
        let roots = Roots::Own(KeyRing::new(root, now));
        // A sequence that begins with the time is newer than that of any state that was lost.
        Ok(Self { roots, tokens: KeyRing::new(token, now), sequence: now.as_secs() })
    }

    /// What signs leaves: a fresh intermediate below the root, or what the operator gave.
    fn signing(&self, settings: &CaSettings, now: UnixTime) -> Result<Arc<Authority>, CaError> {
        match &self.roots {
            Roots::Given(authority) => Ok(Arc::clone(authority)),
            Roots::Own(ring) => {
                let root = ring.signing();
                let left = root.not_after().as_secs().saturating_sub(now.as_secs());
                let life = settings.intermediate_life.min(Duration::from_secs(left));
                Ok(Arc::new(root.new_intermediate(life, now)?))
            }
        }
    }

    fn same_root(&self, other: &Self) -> bool {
        match (&self.roots, &other.roots) {
            (Roots::Own(one), Roots::Own(other)) => Arc::ptr_eq(one.signing(), other.signing()),
            (_, _) => true,
        }
    }

    /// One step, the roots' before the tokens'.
    fn advance(
        &mut self,
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<Advance, CaError> {
        let mut until = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        if let Roots::Own(ring) = &mut self.roots {
            let overlap = &settings.roots;
            let make = || Authority::new_root(trust_domain, overlap.life(), now);
            match step(ring, overlap, make, now)? {
                Ok(step) => {
                    self.sequence = self.sequence.saturating_add(1);
                    return Ok(Advance::Took(RotatedKey::Root, step));
                }
                Err(wait) => until = wait,
            }
        }
        let overlap = &settings.tokens;
        let make = || JwtKey::generate(overlap.life(), now);
        match step(&mut self.tokens, overlap, make, now)? {
            Ok(step) => {
                self.sequence = self.sequence.saturating_add(1);
                Ok(Advance::Took(RotatedKey::Token, step))
            }
            Err(wait) => Ok(Advance::Wait(until.min(wait))),
        }
    }
}

/// Takes the step that is due; otherwise says until when to wait.
fn step<K: RingKey>(
    ring: &mut KeyRing<K>,
    overlap: &Overlap,
    make: impl FnOnce() -> Result<K, CaError>,
    now: UnixTime,
) -> Result<Result<RotationStep, UnixTime>, CaError> {
    Ok(Ok(match ring.next_step(overlap, now) {
        Step::Wait(until) => return Ok(Err(until)),
        Step::Publish => {
            ring.publish(make()?, now);
            RotationStep::Published
        }
        Step::Sign => {
            ring.sign(now);
            RotationStep::Signs
        }
        Step::Remove => {
            ring.remove(overlap, now);
            RotationStep::Removed
        }
    }))
}

impl View {
    fn new(
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        state: &State,
        signing: Arc<Authority>,
    ) -> Self {
        let mut bundle = match &state.roots {
            Roots::Given(authority) => authority.bundle(),
            Roots::Own(ring) => ring
                .published()
                .fold(TrustBundle::new(trust_domain.clone()), TrustBundle::with_authority),
        };
        bundle = state.tokens.published().fold(bundle, TrustBundle::with_jwt_authority);
        bundle = bundle.with_sequence(state.sequence).with_refresh_hint(settings.refresh_hint);
        Self { signing, token_key: Arc::clone(state.tokens.signing()), bundle }
    }
}
