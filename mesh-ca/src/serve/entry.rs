//! Which process has which identity.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use mesh_identity::SpiffeId;
use mesh_identity::workload_api::{MAX_HINT_LEN, MAX_SVIDS};

/// Who is on the other end of a Unix socket, as the kernel tells it (`SO_PEERCRED`): what was true
/// when the connection was made.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_structs, reason = "the three credentials of a peer")]
pub struct PeerCredentials {
    /// Effective user.
    pub uid: u32,
    /// Effective group; supplementary ones are not told.
    pub gid: u32,
    /// Process, where the system tells. For the record only: the number is used again.
    pub pid: Option<i32>,
}

impl fmt::Display for PeerCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:uid:{},gid:{}", self.uid, self.gid)?;
        match self.pid {
            Some(pid) => write!(f, ",pid:{pid}"),
            None => Ok(()),
        }
    }
}

/// A property that a process must have.
///
/// # Examples
///
/// ```
/// use mesh_ca::serve::Selector;
///
/// assert_eq!("uid:1000".parse(), Ok(Selector::Uid(1000)));
/// assert_eq!("unix:gid:7".parse(), Ok(Selector::Gid(7)), "as SPIRE writes it");
/// assert!("path:/bin/sh".parse::<Selector>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Selector {
    /// Its effective group.
    Gid(u32),
    /// Its effective user.
    Uid(u32),
}

impl Selector {
    fn selects(self, peer: &PeerCredentials) -> bool {
        match self {
            Self::Gid(gid) => gid == peer.gid,
            Self::Uid(uid) => uid == peer.uid,
        }
    }
}

impl FromStr for Selector {
    type Err = EntryError;

    fn from_str(text: &str) -> Result<Self, EntryError> {
        let text = text.strip_prefix("unix:").unwrap_or(text);
        let (kind, value) = text.split_once(':').ok_or(EntryError::Selector)?;
        let value = value.parse().map_err(|_detail| EntryError::Selector)?;
        match kind {
            "gid" => Ok(Self::Gid(value)),
            "uid" => Ok(Self::Uid(value)),
            _ => Err(EntryError::Selector),
        }
    }
}

/// Why workloads cannot be registered like that.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// A hint beyond what a client takes.
    #[error("a hint is longer than {MAX_HINT_LEN} bytes")]
    Hint,

    /// An entry that every process would fit.
    #[error("an entry has no selector: it would be every process's identity")]
    NoSelector,

    /// Not a selector.
    #[error("not a selector; expected uid:<number> or gid:<number>")]
    Selector,

    /// More entries than one answer may have identities.
    #[error("more than {MAX_SVIDS} entries for the same process")]
    TooMany,
}

/// An identity, and the processes that have it: those that all its selectors select.
#[derive(Clone, Debug)]
pub struct WorkloadEntry {
    pub(super) id: SpiffeId,
    selectors: Vec<Selector>,
    pub(super) hint: String,
    pub(super) ttl: Duration,
}

impl WorkloadEntry {
    /// An identity of the processes that fit all these selectors.
    ///
    /// # Errors
    ///
    /// [`EntryError::NoSelector`].
    pub fn new(
        id: SpiffeId,
        selectors: impl IntoIterator<Item = Selector>,
    ) -> Result<Self, EntryError> {
        let selectors: Vec<_> = selectors.into_iter().collect();
        if selectors.is_empty() {
            return Err(EntryError::NoSelector);
        }
        Ok(Self { id, selectors, hint: String::new(), ttl: Duration::ZERO })
    }

    /// A label that tells the workload what this identity is for.
    ///
    /// # Errors
    ///
    /// [`EntryError::Hint`].
    pub fn with_hint(mut self, hint: &str) -> Result<Self, EntryError> {
        if hint.len() > MAX_HINT_LEN {
            return Err(EntryError::Hint);
        }
        hint.clone_into(&mut self.hint);
        Ok(self)
    }

    /// The life of its certificates; zero, the default, for the authority's default.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }
}

/// All workloads that the authority knows. The first entry that a process fits is its default
/// identity.
#[derive(Clone, Debug, Default)]
pub struct WorkloadEntries {
    entries: Vec<WorkloadEntry>,
}

impl WorkloadEntries {
    /// These entries.
    ///
    /// # Errors
    ///
    /// [`EntryError::TooMany`].
    pub fn new(entries: impl IntoIterator<Item = WorkloadEntry>) -> Result<Self, EntryError> {
        let entries: Vec<_> = entries.into_iter().collect();
        let most = entries
            .iter()
            .map(|one| entries.iter().filter(|other| other.selectors == one.selectors).count());
        if most.max().unwrap_or_default() > MAX_SVIDS {
            return Err(EntryError::TooMany);
        }
        Ok(Self { entries })
    }

    /// The identities of a process: none for one that nobody registered.
    pub(super) fn of(&self, peer: &PeerCredentials) -> Vec<WorkloadEntry> {
        let fits = |entry: &&WorkloadEntry| entry.selectors.iter().all(|one| one.selects(peer));
        self.entries.iter().filter(fits).take(MAX_SVIDS).cloned().collect()
    }
}
