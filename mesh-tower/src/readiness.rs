//! Whether the service may be sent traffic.

use std::fmt;
use std::future::pending;
use std::sync::Arc;

use mesh_authn::request::{KeySource, KeyState};
use tokio::sync::watch;

use crate::mesh::{Mesh, MeshBuilder, WeakMesh};
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

    /// The source of identity has delivered none that can be used; what it said last, if anything.
    #[error("waiting for the first identity{}", .0.as_ref().map(|why| format!(": {why}")).unwrap_or_default())]
    Starting(Option<String>),

    /// The program has let go of its mesh.
    #[error("the mesh has been stopped")]
    Stopped,
}

/// Whether traffic may be sent to a service, from before its mesh is there: [`MeshBuilder::start`]
/// returns only with the first identity, and an orchestrator asks earlier.
///
/// Cloning shares it. It keeps no mesh alive. With the feature `admin`, [`MeshBuilder::admin`] serves it.
///
/// # Examples
///
/// ```
/// # use mesh_tower::{IdentitySource, Mesh, MeshBuilder, Policies};
/// # async fn start(builder: MeshBuilder, source: impl IdentitySource)
/// # -> Result<Mesh, mesh_tower::Error> {
/// let readiness = builder.readiness();
/// let probe = move || match readiness.check() {
///     Ok(()) => (200, "ready".to_owned()),
///     Err(why) => (503, why.to_string()),
/// };
/// // Serve the probe, then wait for the identity.
/// let (status, why) = probe();
/// assert_eq!((status, &*why), (503, "waiting for the first identity"));
/// builder.start(source, Policies::none()).await
/// # }
/// ```
#[derive(Clone)]
pub struct Readiness {
    stage: Arc<watch::Sender<Stage>>,
}

enum Stage {
    /// With what the source has said last.
    Waiting(Option<String>),
    Started(WeakMesh),
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self { stage: Arc::new(watch::Sender::new(Stage::Waiting(None))) }
    }

    /// Whether traffic may be sent, as [`Mesh::readiness`] says once there is a mesh.
    ///
    /// # Errors
    ///
    /// What is missing.
    pub fn check(&self) -> Result<(), NotReady> {
        self.mesh()?.readiness()
    }

    /// Resolves when [`Readiness::check`] has nothing to say.
    pub async fn ready(&self) {
        let mut stages = self.stage.subscribe();
        loop {
            if let Ok(mesh) = self.mesh() {
                return mesh.ready().await;
            }
            if stages.changed().await.is_err() {
                // Not while we hold the sender.
                pending::<()>().await;
            }
        }
    }

    /// The mesh, once it has started and as long as the program holds it.
    pub(crate) fn mesh(&self) -> Result<Mesh, NotReady> {
        match &*self.stage.borrow() {
            Stage::Waiting(why) => Err(NotReady::Starting(why.clone())),
            Stage::Started(mesh) => mesh.upgrade().ok_or(NotReady::Stopped),
        }
    }

    /// Takes note of why the source has no identity yet.
    pub(crate) fn waits(&self, why: &dyn fmt::Display) {
        let why = Some(why.to_string());
        self.stage.send_if_modified(|stage| match stage {
            Stage::Waiting(held) => {
                *held = why;
                true
            }
            Stage::Started(_) => false,
        });
    }

    pub(crate) fn started(&self, mesh: &Mesh) {
        self.stage.send_replace(Stage::Started(mesh.downgrade()));
    }
}

impl fmt::Debug for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Readiness").field("check", &self.check()).finish()
    }
}

impl MeshBuilder {
    /// Tells whether the mesh that this builder builds may be sent traffic, from now on.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }
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
        let (mut changes, mut keys) = (self.changes(), self.key_states());
        let mut jumps = self.clock_jumps();
        while self.readiness().is_err() {
            // The senders live as long as our mesh.
            tokio::select! {
                _ = changes.changed() => {}
                _ = keys.changed() => {}
                _ = jumps.changed() => {}
            }
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
