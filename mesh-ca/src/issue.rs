//! The authority as a service: limits, policy, log and rotation around what signs.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use mesh_identity::{SpiffeId, TrustBundle, TrustDomain, X509Svid};
use rustls_pki_types::{CertificateDer, DnsName, UnixTime};

use crate::authority::{Authority, IssuedLife};
use crate::csr::CertificateRequest;
use crate::error::CaError;
use crate::jwt::{IssuedToken, JwtKey};
use crate::key_ring::KeyRing;
use crate::limits::Limiter;
use crate::log::{IssueLog, IssueRecord, IssuedKind};
use crate::settings::CaSettings;
use crate::state::{Roots, State, Store, View};

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

/// A certificate authority as a service: it limits, asks a policy, signs, records, and rotates.
///
/// Callers are authenticated before they come here; `caller` is what the record says of them.
/// Methods may be called from many threads; [`Ca::rotate`] is called by a driver, from time to
/// time.
pub struct Ca {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) settings: CaSettings,
    state: Mutex<State>,
    view: RwLock<Arc<View>>,
    limiter: Limiter,
    policy: Box<Policy>,
    log: Box<dyn IssueLog>,
    pub(crate) store: Option<Box<dyn Store>>,
}

impl Ca {
    /// Makes an authority with fresh keys, in memory. All that it issues is recorded in `log`
    /// ([SEC-CA-10]); [`crate::NoLog`] is for who records elsewhere.
    ///
    /// # Errors
    ///
    /// [`CaError::IntermediateLife`], or when the system has no randomness.
    pub fn new(
        trust_domain: &TrustDomain,
        settings: CaSettings,
        log: impl IssueLog + 'static,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let state = State::new(trust_domain, &settings, now)?;
        Self::assemble(trust_domain, settings, state, None, Box::new(log), now)
    }

    /// Takes an authority that an operator rotates, such as one plugged into Istio. Token keys are
    /// its own.
    ///
    /// # Errors
    ///
    /// As [`Ca::new`].
    pub fn with_authority(
        authority: Authority,
        settings: CaSettings,
        log: impl IssueLog + 'static,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        let trust_domain = authority.trust_domain().clone();
        let tokens = KeyRing::new(JwtKey::generate(settings.tokens.life(), now)?, now);
        let roots = Roots::Given(Arc::new(authority));
        let state = State { roots, tokens, sequence: now.as_secs() };
        Self::assemble(&trust_domain, settings, state, None, Box::new(log), now)
    }

    pub(crate) fn assemble(
        trust_domain: &TrustDomain,
        settings: CaSettings,
        state: State,
        store: Option<Box<dyn Store>>,
        log: Box<dyn IssueLog>,
        now: UnixTime,
    ) -> Result<Self, CaError> {
        settings.check()?;
        let signing = state.signing(&settings, now)?;
        let view = View::new(trust_domain, &settings, &state, signing);
        Ok(Self {
            trust_domain: trust_domain.clone(),
            settings,
            state: Mutex::new(state),
            view: RwLock::new(Arc::new(view)),
            limiter: Limiter::new(settings.limits),
            policy: Box::new(|_request| true),
            log,
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
        self.issue_server_svid(caller, id, &[], ttl, now)
    }

    /// Issues an SVID that has DNS names beside its identity, for a server that is looked up by name,
    /// such as this authority's own API. The names come from the program's configuration, never from
    /// a request ([SEC-CA-1]).
    ///
    /// # Errors
    ///
    /// As [`Ca::issue_svid`].
    pub fn issue_server_svid(
        &self,
        caller: &str,
        id: &SpiffeId,
        dns_names: &[DnsName<'_>],
        ttl: Duration,
        now: UnixTime,
    ) -> Result<X509Svid, CaError> {
        let _place = self.admit(caller, id, IssuedKind::X509, ttl, now)?;
        let signing = Arc::clone(&self.view().signing);
        let (svid, issued) = signing.issue_with_key(id, dns_names, self.cap(ttl), now)?;
        self.record_certificate(caller, id, &issued, now)?;
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
        let signing = Arc::clone(&self.view().signing);
        let (chain, issued) = signing.issue_to(id, request, self.cap(ttl), now)?;
        self.record_certificate(caller, id, &issued, now)?;
        Ok(chain)
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

    fn record_certificate(
        &self,
        caller: &str,
        id: &SpiffeId,
        issued: &IssuedLife,
        now: UnixTime,
    ) -> Result<(), CaError> {
        let life = (issued.not_before, issued.not_after);
        self.record(caller, id, IssuedKind::X509, &issued.serial, now, life)
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

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn publish(&self, view: View) {
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ca").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}
