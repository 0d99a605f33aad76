//! Sessions that may be resumed, and until when ([SEC-TLS-10]).
//!
//! rustls resumes whatever its storage hands out and verifies no certificate again. So the storage
//! is the one that asks: a session is handed out only while the chain that it began with would be
//! verified as before. Each storage belongs to one configuration, whose bundles, revocation lists
//! and rules never change, so that time alone can change the verdict. What it no longer stands for
//! becomes a full handshake, in which the verifier says why.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use mesh_identity::x509::Validity;
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::StoresServerSessions;
use rustls::time_provider::TimeProvider;
use zeroize::Zeroizing;

use super::chains::Presented;
use super::verifier::PeerVerifier;

/// Most memory for a server's sessions, in bytes: some thousand, each mostly the peer's chain.
const MAX_SESSION_BYTES: u64 = 4 * 1024 * 1024;

/// Most sessions that are expected at once; only sizes the table.
const EXPECTED_SESSIONS: usize = 1024;

/// What an entry costs beside its session.
const ENTRY_COST: u64 = 128;

/// Longest session that a server keeps, in bytes: with a longer chain there is no resumption.
const MAX_SESSION_LEN: usize = 16 * 1024;

/// Most server names for which a client keeps sessions, of eight tickets each.
const MAX_SERVERS: usize = 256;

/// rustls' storage for a server, which judges what it hands out.
///
/// Sessions stay in this process, so there is no ticket key that could be shared or stolen, and a
/// ticket of TLS 1.3 is taken once. Their memory is zeroed when they go.
pub(super) struct ServerSessions {
    stored: Cache<Vec<u8>, Session, Weight>,
    verifier: Arc<PeerVerifier>,
    time: Arc<dyn TimeProvider>,
}

/// A session as rustls wrote it, its secret among the rest.
#[derive(Clone)]
struct Session(Arc<Zeroizing<Vec<u8>>>);

/// Memory of a session.
#[derive(Clone)]
struct Weight;

impl Weighter<Vec<u8>, Session> for Weight {
    fn weight(&self, _: &Vec<u8>, session: &Session) -> u64 {
        u64::try_from(session.0.len()).unwrap_or(u64::MAX).saturating_add(ENTRY_COST)
    }
}

impl ServerSessions {
    pub(super) fn new(verifier: Arc<PeerVerifier>, time: Arc<dyn TimeProvider>) -> Self {
        let stored = Cache::with_weighter(EXPECTED_SESSIONS, MAX_SESSION_BYTES, Weight);
        Self { stored, verifier, time }
    }

    /// The session, if the chain within it is verified now.
    fn judged(&self, Session(session): &Session) -> Option<Vec<u8>> {
        let chain = client_chain(session)?;
        let (leaf, intermediates) = chain.split_first()?;
        let now = self.time.current_time()?;
        self.verifier.verify(Presented { leaf, intermediates }, now).ok()?;
        Some(session.to_vec())
    }
}

impl StoresServerSessions for ServerSessions {
    fn put(&self, key: Vec<u8>, session: Vec<u8>) -> bool {
        let session = Session(Arc::new(Zeroizing::new(session)));
        // What could not be judged later is not kept.
        if session.0.len() > MAX_SESSION_LEN || client_chain(&session.0).is_none() {
            return false;
        }
        self.stored.insert(key, session);
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.stored.get(key).and_then(|session| self.judged(&session))
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.stored.remove(key).and_then(|(_, session)| self.judged(&session))
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for ServerSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerSessions").finish_non_exhaustive()
    }
}

/// The client's chain in a session as rustls 0.23 writes it (`ServerSessionValue`): name, version,
/// suite, secret, extended master secret, chain, protocol, application data, time, age.
///
/// Everything must be as expected, to the last byte. If a version of rustls writes it otherwise,
/// nothing is kept, and the tests of resumption fail.
fn client_chain(session: &[u8]) -> Option<Vec<CertificateDer<'_>>> {
    let mut rest = Bytes(session);
    if rest.flag()? {
        rest.counted(1)?;
    }
    rest.take(4)?;
    rest.counted(1)?;
    rest.flag()?;
    if !rest.flag()? {
        return None;
    }
    let mut list = Bytes(rest.counted(3)?);
    let mut chain = Vec::new();
    while !list.0.is_empty() {
        chain.push(CertificateDer::from(list.counted(3)?));
    }
    if rest.flag()? {
        rest.counted(1)?;
    }
    rest.counted(2)?;
    rest.take(12)?;
    rest.0.is_empty().then_some(chain)
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    /// Bytes behind their number, which itself has so many bytes.
    fn counted(&mut self, width: usize) -> Option<&'a [u8]> {
        let number = self.take(width)?;
        let count = number.iter().fold(0_usize, |sum, byte| (sum << 8) | usize::from(*byte));
        self.take(count)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.take(1)? {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

/// rustls' storage for a client, with a time for each server name.
///
/// rustls does not show the chain of a client's session, so what the verifier has accepted under a
/// name counts for all sessions of that name: they are handed out only while each of these chains
/// would be verified.
pub(super) struct ClientSessions {
    stored: ClientSessionMemoryCache,
    names: Cache<ServerName<'static>, Validity>,
    time: Arc<dyn TimeProvider>,
    /// Held while a name's time and its sessions change together.
    changing: Mutex<()>,
}

impl ClientSessions {
    pub(super) fn new(time: Arc<dyn TimeProvider>) -> Self {
        let stored = ClientSessionMemoryCache::new(MAX_SERVERS.saturating_mul(8));
        Self { stored, names: Cache::new(MAX_SERVERS), time, changing: Mutex::new(()) }
    }

    /// Notes for how long a chain is verified that was shown under a name.
    pub(super) fn verified(&self, name: &ServerName<'_>, validity: Validity) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let name = name.to_owned();
        let validity = match self.names.get(&name) {
            Some(known) if self.is_now(known) => known.intersection(validity),
            known => {
                if known.is_some() {
                    self.forget(&name);
                }
                validity
            }
        };
        self.names.insert(name, validity);
    }

    /// Whether sessions of this name may be kept and used.
    fn stands(&self, name: &ServerName<'_>) -> bool {
        let name = name.to_owned();
        self.names.get(&name).is_some_and(|validity| self.is_now(validity))
    }

    /// What has ended is not kept for a clock that may be set back ([SEC-OPS-5]).
    fn stands_or_forget(&self, name: &ServerName<'_>) -> bool {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let stands = self.stands(name);
        if !stands {
            let name = name.to_owned();
            self.names.remove(&name);
            self.forget(&name);
        }
        stands
    }

    fn is_now(&self, validity: Validity) -> bool {
        self.time.current_time().is_some_and(|now| validity.contains(now))
    }

    fn forget(&self, name: &ServerName<'static>) {
        self.stored.remove_tls12_session(name);
        while self.stored.take_tls13_ticket(name).is_some() {}
    }
}

impl ClientSessionStore for ClientSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.stored.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.stored.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        if self.stands(&name) {
            self.stored.set_tls12_session(name, session);
        }
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.stored.tls12_session(name).filter(|_| self.stands_or_forget(name))
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.stored.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        if self.stands(&name) {
            self.stored.insert_tls13_ticket(name, ticket);
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.stored.take_tls13_ticket(name).filter(|_| self.stands_or_forget(name))
    }
}

impl fmt::Debug for ClientSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSessions").finish_non_exhaustive()
    }
}
