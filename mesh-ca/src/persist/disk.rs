//! The file: locked, read whole, and replaced whole.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use mesh_identity::TrustDomain;
use zeroize::Zeroizing;

use super::StateError;
use crate::state::{State, Store};

/// Most bytes of a state file: some keys and certificates.
const MAX_LEN: u64 = 1024 * 1024;

/// Held until it is dropped. The state itself cannot be locked: it is replaced.
pub(super) fn lock(path: &Path) -> Result<fs::File, StateError> {
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
pub(super) fn read(path: &Path) -> Result<Option<Zeroizing<String>>, StateError> {
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
pub(super) trait Files: Send + Sync {
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    fn sync(&self, path: &Path) -> io::Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;
}

#[derive(Debug)]
pub(super) struct Disk;

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

pub(super) struct FileStore<D> {
    pub(super) path: PathBuf,
    pub(super) disk: D,
    pub(super) _lock: fs::File,
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
