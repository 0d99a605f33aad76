//! State on disk: the keys, and where their rotation stands.
//!
//! One file holds all of it and is replaced whole: written beside, synced, renamed, and the folder
//! synced. The new state is on disk before it comes into force. So whenever the process is killed,
//! the file names every authority whose certificates may be valid: a published root before it
//! signs, an old one until the last of its leaves has ended ([SEC-CA-6]).

mod disk;
mod document;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use mesh_identity::TrustDomain;
use rustls_pki_types::UnixTime;

use self::disk::{Disk, FileStore, Files};
use crate::error::CaError;
use crate::issue::Ca;
use crate::log::IssueLog;
use crate::settings::CaSettings;
use crate::state::{State, Store as _};

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
        let store = FileStore { path: self.path.clone(), disk, _lock: disk::lock(&self.path)? };
        let (state, lost) = match disk::read(&self.path)? {
            None => (State::new(trust_domain, &settings, now)?, Vec::new()),
            Some(text) => State::parse(&text, trust_domain, &settings, now)?,
        };
        // Whatever is new is on disk before it signs.
        store.save(trust_domain, &state)?;
        let ca = Ca::assemble(trust_domain, settings, state, Some(Box::new(store)), log, now)?;
        Ok((ca, lost))
    }
}
