//! Killed at every write, damaged, locked.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mesh_identity::x509::{Role, verify_svid};
use mesh_identity::{BundleSet, X509Svid};

use super::disk::Files;
use super::*;
use crate::{NoLog, Overlap, RotatedKey, RotationStep};

const START: u64 = 1_800_000_000;

/// Fails at one of the steps and at all after it, as a process does that is killed there. A
/// write that fails leaves half of its bytes.
struct Killed {
    left: Arc<AtomicUsize>,
}

impl Killed {
    fn step(&self) -> io::Result<()> {
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1)));
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

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
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
        let Ok((ca, lost)) = file.open_on(disk, &domain(), settings(), Box::new(NoLog), at(START))
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
            killed = ca.rotate(at(now)).and_then(|_| ca.rotate(at(now))).is_err();
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

/// Steps that were taken before one that fails are told, and what fails is tried again and told then.
#[test]
fn sec_ca_6_a_failure_hides_no_step_before_it() {
    let folder = Folder::new("events");
    let left = Arc::new(AtomicUsize::new(4));
    let disk = Killed { left: Arc::clone(&left) };
    let opened = folder.file().open_on(disk, &domain(), settings(), Box::new(NoLog), at(START));
    let (ca, _) = opened.unwrap();
    // Root and token key are both due; the disk lets one of them through.
    let due = at(START + 17_000);
    left.store(4, Ordering::SeqCst);
    let (events, until) = ca.rotate(due).unwrap();
    let steps: Vec<_> = events.iter().map(|event| (event.key, event.step)).collect();
    assert_eq!(steps, [(RotatedKey::Root, RotationStep::Published)]);
    assert_eq!(until, due, "at once");
    assert_eq!(ca.bundle().x509_authorities().len(), 2);
    assert!(matches!(ca.rotate(due), Err(CaError::State(_))));
    left.store(usize::MAX, Ordering::SeqCst);
    let (events, until) = ca.rotate(due).unwrap();
    let steps: Vec<_> = events.iter().map(|event| (event.key, event.step)).collect();
    assert!(steps.contains(&(RotatedKey::Token, RotationStep::Published)), "{steps:?}");
    assert!(!steps.contains(&(RotatedKey::Root, RotationStep::Published)), "{steps:?}");
    assert!(until > due);
}
