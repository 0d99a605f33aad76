//! Whether the service may be sent traffic.

use mesh_authn::request::{KeySource, KeyState};
use tokio::sync::watch;

use crate::mesh::Mesh;
use crate::policies::Policies;
use crate::report::shown;
use crate::snapshot::OwnIdentityError;

/// Why a mesh is not ready.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReady {
    /// There is no identity that may be used, so no handshake succeeds.
    #[error("{0}")]
    Identity(#[from] OwnIdentityError),

    /// A key set that policies need has not been fetched, or is too old: its tokens are refused.
    #[error("no usable key set from {0}")]
    Keys(String),
}

impl Mesh {
    /// Whether traffic may be sent here: the identity holds, and every key set that policies name
    /// has been fetched. Policies there are always: a mesh begins with good ones.
    ///
    /// # Errors
    ///
    /// What is missing; [`NotReady::Identity`] first.
    pub fn readiness(&self) -> Result<(), NotReady> {
        let snapshot = self.snapshot();
        snapshot.check_own_identity(self.clock().now())?;
        let states = self.key_sets();
        let is_usable = |source: &KeySource| {
            let state = states.iter().find(|(held, _)| held == source);
            matches!(state, Some((_, KeyState::Fresh { .. } | KeyState::Stale { .. })))
        };
        let mut wanted = snapshot.tokens.wanted().iter().map(|wanted| &wanted.source);
        let lacking = wanted.find(|source| !is_usable(source));
        lacking.map_or(Ok(()), |source| Err(NotReady::Keys(shown(source))))
    }

    /// Resolves when [`Mesh::readiness`] has nothing to say; for the start of a program.
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn start(mesh: mesh_tower::Mesh) {
    /// let patience = std::time::Duration::from_secs(30);
    /// if tokio::time::timeout(patience, mesh.ready()).await.is_err() {
    ///     eprintln!("not ready: {:?}", mesh.readiness());
    /// }
    /// # }
    /// ```
    pub async fn ready(&self) {
        /// Key sets' states have no signal of their own.
        const PAUSE: std::time::Duration = std::time::Duration::from_millis(50);
        while self.readiness().is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Follows a channel of policies: whatever the program's own source sends is put into force, the
    /// newest if several wait; what cannot be compiled leaves the last good in force, and
    /// [`Mesh::last_error`] tells. It returns when the sender is gone, so spawn it.
    ///
    /// # Examples
    ///
    /// ```
    /// # async fn run(mesh: mesh_tower::Mesh) {
    /// use mesh_tower::Policies;
    ///
    /// let (sender, receiver) = tokio::sync::watch::channel(Policies::none());
    /// let following = tokio::spawn(mesh.clone().keep_policies_from(receiver));
    /// sender.send_replace(Policies::none());
    /// # drop(following);
    /// # }
    /// ```
    pub async fn keep_policies_from(self, mut policies: watch::Receiver<Policies>) {
        while policies.changed().await.is_ok() {
            let newest = policies.borrow_and_update().clone();
            // The refusal is reported and kept by the mesh.
            self.set_policies(newest).ok();
        }
    }
}
