//! State on disk: the keys, and where their rotation stands.
//!
//! One file holds all of it and is replaced whole: written beside, synced, renamed, and the folder
//! synced. The new state is on disk before it comes into force. So whenever the process is killed,
//! the file names every authority whose certificates may be valid: a published root before it
//! signs, an old one until the last of its leaves has ended ([SEC-CA-6]).

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::{JwtAuthority, TrustBundle, TrustDomain, X509Authority};
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::{Map, Value, json};
use zeroize::{Zeroize as _, Zeroizing};

use crate::authority::Authority;
use crate::error::CaError;
use crate::issue::Ca;
use crate::jwt::JwtKey;
use crate::key_ring::{Held, KeyRing, Retired, RingKey};
use crate::log::IssueLog;
use crate::settings::CaSettings;
use crate::state::{Roots, State, Store};

/// Most bytes of a state file: some keys and certificates.
const MAX_LEN: u64 = 1024 * 1024;

/// A file with an authority's state. It holds private keys: it is made readable by its owner only.
#[derive(Clone, Debug)]
pub struct StateFile {
    path: PathBuf,
}

/// Why a state file is not taken. The file is left as it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// A certificate or key in it is not acceptable, or new keys could not be made.
    #[error("state file: {0}")]
    Ca(#[from] CaError),

    /// It is not what this version writes.
    #[error(
        "state file cannot be read ({what}): as long as it is not restored, the authorities and \
         token keys in it are lost, and nothing that they issued verifies against a new bundle"
    )]
    Damaged {
        /// Which part.
        what: &'static str,
    },

    /// The file system refuses.
    #[error("state file: {0}")]
    Io(#[from] io::Error),

    /// Another process, or another authority of this one, has it open: it alone knows what is in
    /// force, and one of the two would undo the other's rotation.
    #[error("state file is in use: stop who has it open, or ask him through his APIs")]
    InUse,

    /// It is of another trust domain.
    #[error("state file is of trust domain {found}, not of the one that is served")]
    OtherTrustDomain {
        /// Whose it is.
        found: String,
    },
}

/// What had ended while nobody ran the authority, and was made anew.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Lost {
    /// The root had ended; peers need the new bundle before they believe what the new one signs.
    Root,
    /// The token key had ended.
    TokenKey,
}

impl StateFile {
    /// At this path; its folder must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Takes up the authority where it was, or makes a new one when there is no file, and says what
    /// was lost in between. Beside it lies a file `.lock`, which is locked for as long as the
    /// authority lives.
    ///
    /// # Errors
    ///
    /// [`StateError`]. A file that cannot be read is never replaced.
    pub fn open(
        &self,
        trust_domain: &TrustDomain,
        settings: CaSettings,
        log: impl IssueLog + 'static,
        now: UnixTime,
    ) -> Result<(Ca, Vec<Lost>), StateError> {
        self.open_on(Disk, trust_domain, settings, Box::new(log), now)
    }

    fn open_on<D: Files + 'static>(
        &self,
        disk: D,
        trust_domain: &TrustDomain,
        settings: CaSettings,
        log: Box<dyn IssueLog>,
        now: UnixTime,
    ) -> Result<(Ca, Vec<Lost>), StateError> {
        settings.check()?;
        let store = FileStore { path: self.path.clone(), disk, _lock: lock(&self.path)? };
        let (state, lost) = match read(&self.path)? {
            None => (State::new(trust_domain, &settings, now)?, Vec::new()),
            Some(text) => State::parse(&text, trust_domain, &settings, now)?,
        };
        // Whatever is new is on disk before it signs.
        store.save(trust_domain, &state)?;
        let ca = Ca::assemble(trust_domain, settings, state, Some(Box::new(store)), log, now)?;
        Ok((ca, lost))
    }
}

/// Held until it is dropped. The state itself cannot be locked: it is replaced.
fn lock(path: &Path) -> Result<fs::File, StateError> {
    let mut options = fs::OpenOptions::new();
    let lock = options.write(true).create(true).truncate(false).open(beside(path, ".lock"))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(StateError::InUse),
        Err(fs::TryLockError::Error(error)) => Err(error.into()),
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(suffix);
    PathBuf::from(name)
}

/// The text of the file; nothing when there is none.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, StateError> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
        Ok(metadata) if metadata.len() > MAX_LEN => {
            return Err(StateError::Damaged { what: "too long" });
        }
        Ok(_) => {}
    }
    let bytes = Zeroizing::new(fs::read(path)?);
    let text = std::str::from_utf8(&bytes);
    let text = text.map_err(|_detail| StateError::Damaged { what: "not text" })?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

/// The four steps that replace a file; tests let each of them fail.
trait Files: Send + Sync {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    fn sync(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

#[derive(Debug)]
struct Disk;

impl Files for Disk {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        // What a killed process has left is not written into: it may have other permissions.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Err(_) | Ok(()) => {}
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        options.open(path)?.write_all(bytes)
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        fs::OpenOptions::new().write(true).open(path)?.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        fs::File::open(folder)?.sync_all()
    }
}

struct FileStore<D> {
    path: PathBuf,
    disk: D,
    _lock: fs::File,
}

impl<D: Files> Store for FileStore<D> {
    fn save(&self, trust_domain: &TrustDomain, state: &State) -> io::Result<()> {
        let Some(text) = state.encode(trust_domain) else {
            return Err(io::Error::other("a key is not in this process's hands"));
        };
        let beside = beside(&self.path, ".new");
        self.disk.write(&beside, text.as_bytes())?;
        self.disk.sync(&beside)?;
        self.disk.rename(&beside, &self.path)?;
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        self.disk.sync_folder(folder.unwrap_or(Path::new(".")))
    }
}

/// A JSON document whose texts are zeroed on drop: they are private keys.
struct Secret(Value);

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

impl State {
    /// Nothing when the roots are not ours to keep.
    fn encode(&self, trust_domain: &TrustDomain) -> Option<Zeroizing<String>> {
        let Roots::Own(roots) = &self.roots else { return None };
        let root = |held: &Held<Authority>| {
            Some(json!({
                "certificate": STANDARD.encode(held.key.certificate()),
                "key": STANDARD.encode(held.key.pkcs8()?),
                "published": held.published.as_secs(),
            }))
        };
        let token = |held: &Held<JwtKey>| {
            Some(json!({
                "key": STANDARD.encode(held.key.pkcs8()),
                "not_after": held.key.not_after().as_secs(),
                "published": held.published.as_secs(),
            }))
        };
        let old_root = |old: &Retired<X509Authority>| json!(STANDARD.encode(old.public.der()));
        let old_token = |old: &Retired<JwtAuthority>| old.public.jwk().clone();
        let document = Secret(json!({
            "version": 1,
            "trust_domain": trust_domain.as_str(),
            "sequence": self.sequence,
            "roots": ring(roots, root, old_root)?,
            "tokens": ring(&self.tokens, token, old_token)?,
        }));
        Some(Zeroizing::new(document.0.to_string()))
    }

    fn parse(
        text: &str,
        trust_domain: &TrustDomain,
        settings: &CaSettings,
        now: UnixTime,
    ) -> Result<(Self, Vec<Lost>), StateError> {
        let damaged = |what| move || StateError::Damaged { what };
        let document = serde_json::from_str(text).map(Secret);
        let document = document.map_err(|_detail| StateError::Damaged { what: "not JSON" })?;
        let document = document.0.as_object().ok_or_else(damaged("not an object"))?;
        if document.get("version") != Some(&json!(1)) {
            return Err(StateError::Damaged { what: "version" });
        }
        let found = text_of(document, "trust_domain").ok_or_else(damaged("trust_domain"))?;
        if found != trust_domain.as_str() {
            return Err(StateError::OtherTrustDomain { found: found.to_owned() });
        }
        let sequence = document.get("sequence").and_then(Value::as_u64);
        let sequence = sequence.ok_or_else(damaged("sequence"))?;

        let root = |held: &Map<String, Value>| {
            let (certificate, key) = (bytes_of(held, "certificate")?, bytes_of(held, "key")?);
            Authority::from_der(trust_domain, CertificateDer::from(certificate.to_vec()), &key).ok()
        };
        let old_root = |old: &Value| {
            let der = STANDARD.decode(old.as_str()?).ok()?;
            X509Authority::from_der(CertificateDer::from(der)).ok()
        };
        let roots = document.get("roots").and_then(|roots| parse_ring(roots, root, old_root, now));
        let mut roots = roots.ok_or_else(damaged("roots"))?;

        let token = |held: &Map<String, Value>| {
            let not_after = held.get("not_after").and_then(Value::as_u64)?;
            JwtKey::from_pkcs8(&bytes_of(held, "key")?, at(not_after)).ok()
        };
        let old_token = |old: &Value| {
            let document = json!({ "keys": [old] }).to_string();
            let bundle = TrustBundle::from_jwks(trust_domain.clone(), &document).ok()?;
            bundle.jwt_authorities().first().cloned()
        };
        let tokens =
            document.get("tokens").and_then(|tokens| parse_ring(tokens, token, old_token, now));
        let mut tokens = tokens.ok_or_else(damaged("tokens"))?;

        let mut lost = Vec::new();
        if roots.signing().not_after() <= now {
            roots =
                KeyRing::new(Authority::new_root(trust_domain, settings.roots.life(), now)?, now);
            lost.push(Lost::Root);
        }
        if tokens.signing().not_after() <= now {
            tokens = KeyRing::new(JwtKey::generate(settings.tokens.life(), now)?, now);
            lost.push(Lost::TokenKey);
        }
        let sequence = if lost.is_empty() { sequence } else { sequence.saturating_add(1) };
        Ok((Self { roots: Roots::Own(roots), tokens, sequence }, lost))
    }
}

fn ring<K: RingKey>(
    ring: &KeyRing<K>,
    held: impl Fn(&Held<K>) -> Option<Value>,
    retired: impl Fn(&Retired<K::Public>) -> Value,
) -> Option<Value> {
    let (current, next, old) = ring.parts();
    let next = match next {
        Some(next) => held(next)?,
        None => Value::Null,
    };
    let old: Vec<Value> = old.iter().map(retired).collect();
    Some(json!({ "current": held(current)?, "next": next, "old": old }))
}

/// A key that has stopped signing is kept as long as if it had stopped now: the process may have
/// gone on with it after a state in which it had stopped was written and never came into force.
fn parse_ring<K: RingKey>(
    ring: &Value,
    key: impl Fn(&Map<String, Value>) -> Option<K>,
    public: impl Fn(&Value) -> Option<K::Public>,
    now: UnixTime,
) -> Option<KeyRing<K>> {
    let held = |held: &Value| {
        let held = held.as_object()?;
        let published = at(held.get("published")?.as_u64()?);
        Some(Held { key: Arc::new(key(held)?), published })
    };
    let current = held(ring.get("current")?)?;
    let next = ring.get("next")?;
    let next = if next.is_null() { None } else { Some(held(next)?) };
    let old = ring.get("old")?.as_array()?.iter();
    let old = old.map(|old| Some(Retired { public: public(old)?, retired: now }));
    Some(KeyRing::from_parts(current, next, old.collect::<Option<Vec<_>>>()?))
}

fn text_of<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    object.get(name)?.as_str()
}

fn bytes_of(object: &Map<String, Value>, name: &str) -> Option<Zeroizing<Vec<u8>>> {
    STANDARD.decode(text_of(object, name)?).ok().map(Zeroizing::new)
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use mesh_identity::x509::{Role, verify_svid};
    use mesh_identity::{BundleSet, X509Svid};

    use super::*;
    use crate::{NoLog, Overlap};

    const START: u64 = 1_800_000_000;

    /// Fails at one of the steps and at all after it, as a process does that is killed there. A
    /// write that fails leaves half of its bytes.
    struct Killed {
        left: Arc<AtomicUsize>,
    }

    impl Killed {
        fn step(&self) -> io::Result<()> {
            let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(left.saturating_sub(1))
            });
            if before == Ok(0) { Err(io::Error::other("killed")) } else { Ok(()) }
        }
    }

    impl Files for Killed {
        fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
            if let Err(error) = self.step() {
                if path.parent().is_some_and(Path::exists) {
                    fs::write(path, &bytes[..bytes.len() / 2])?;
                }
                return Err(error);
            }
            Disk.write(path, bytes)
        }

        fn sync(&self, path: &Path) -> io::Result<()> {
            self.step().and_then(|()| Disk.sync(path))
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            self.step().and_then(|()| Disk.rename(from, to))
        }

        fn sync_folder(&self, folder: &Path) -> io::Result<()> {
            self.step().and_then(|()| Disk.sync_folder(folder))
        }
    }

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mesh-ca-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> StateFile {
            StateFile::new(self.0.join("state.json"))
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn domain() -> TrustDomain {
        "a.test".parse().unwrap()
    }

    fn settings() -> CaSettings {
        let seconds = Duration::from_secs;
        CaSettings {
            roots: Overlap::new(seconds(20_000), seconds(300), seconds(600)).unwrap(),
            intermediate_life: seconds(5_000),
            tokens: Overlap::new(seconds(20_000), seconds(300), seconds(600)).unwrap(),
            ..CaSettings::new().unwrap()
        }
    }

    fn issue(ca: &Ca, now: u64) -> Option<X509Svid> {
        let id = "spiffe://a.test/ns/shop/sa/cart".parse().unwrap();
        ca.issue_svid("test", &id, Duration::from_secs(600), at(now)).ok()
    }

    /// Killed at any write of a rotation of roots and token keys: the next start comes up with a
    /// bundle that verifies every certificate that is valid, and goes on rotating.
    #[test]
    fn sec_ca_6_killed_at_any_write_nothing_is_lost() {
        let mut survived = 0;
        for kill_at in 0..200 {
            let folder = Folder::new(&format!("kill-{kill_at}"));
            let file = folder.file();
            let left = Arc::new(AtomicUsize::new(kill_at));
            let disk = Killed { left: Arc::clone(&left) };
            let Ok((ca, lost)) =
                file.open_on(disk, &domain(), settings(), Box::new(NoLog), at(START))
            else {
                // Killed before the first state was whole: nothing was issued.
                assert!(kill_at < 4, "{kill_at}");
                let (ca, _) = file.open(&domain(), settings(), NoLog, at(START)).unwrap();
                assert!(issue(&ca, START).is_some());
                continue;
            };
            assert!(lost.is_empty());
            let mut issued = Vec::new();
            let mut now = START;
            let mut killed = false;
            while now < START + 40_000 && !killed {
                // The step that fails is the last: the process is gone. What it issued before
                // and, in the same moment, after the failure must verify.
                killed = ca.rotate(at(now)).is_err();
                issued.extend(issue(&ca, now));
                now += 100;
            }
            drop(ca);
            survived += usize::from(!killed);
            if survived > 1 {
                break;
            }
            for wait in [0, 50, 400] {
                let when = now + wait;
                let (ca, lost) = file.open(&domain(), settings(), NoLog, at(when)).unwrap();
                assert!(lost.is_empty(), "{lost:?}");
                ca.rotate(at(when)).unwrap();
                let bundles = BundleSet::from_bundles([ca.bundle()]).unwrap();
                let valid = issued.iter().filter(|svid| svid.not_after() >= at(when));
                for svid in valid {
                    let role = Role::Server;
                    let all = webpki::ALL_VERIFICATION_ALGS;
                    verify_svid(svid.chain(), &bundles, at(when), role, all).unwrap();
                }
                assert!(issue(&ca, when).is_some());
            }
        }
        // The first runs were killed, the last ones were not: every write had its turn.
        assert_eq!(survived, 2);
    }

    /// Two authorities on one state would undo each other's rotations.
    #[test]
    fn sec_ca_6_a_state_has_one_authority() {
        let folder = Folder::new("lock");
        let file = folder.file();
        let first = file.open(&domain(), settings(), NoLog, at(START)).unwrap();
        let second = file.open(&domain(), settings(), NoLog, at(START));
        assert!(matches!(second, Err(StateError::InUse)), "{second:?}");
        drop(first);
        assert!(file.open(&domain(), settings(), NoLog, at(START)).is_ok());
    }

    #[test]
    fn a_damaged_file_says_so_and_stays() {
        let folder = Folder::new("damaged");
        let file = folder.file();
        drop(file.open(&domain(), settings(), NoLog, at(START)).unwrap());
        let path = folder.0.join("state.json");
        let good = fs::read_to_string(&path).unwrap();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let other = file.open(&"b.test".parse().unwrap(), settings(), NoLog, at(START));
        assert!(matches!(other, Err(StateError::OtherTrustDomain { .. })));
        for bad in
            [String::new(), good.split_at(good.len() / 2).0.to_owned(), good.replace("key", "kex")]
        {
            fs::write(&path, &bad).unwrap();
            let error = file.open(&domain(), settings(), NoLog, at(START)).unwrap_err();
            assert!(error.to_string().contains("are lost"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), bad);
        }
        fs::write(&path, &good).unwrap();
        let (_, lost) = file.open(&domain(), settings(), NoLog, at(START + 30_000)).unwrap();
        assert_eq!(lost, [Lost::Root, Lost::TokenKey]);
    }
}
