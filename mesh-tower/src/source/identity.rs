//! Sources of identity: what a program's certificate and trust come from, and who follows them.

use std::error::Error as StdError;
use std::fmt;
use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;

use mesh_identity::{BundleSet, X509Svid};

use crate::mesh::Mesh;

/// What a source delivers at once: a certificate with its key, and whom to believe, revocation lists
/// included. It is the whole state; what was there before and is missing now is gone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Identity {
    /// What the workload proves itself with.
    pub svid: Arc<X509Svid>,
    /// Whom it believes.
    pub bundles: Arc<BundleSet>,
}

/// News of a source.
#[derive(Debug)]
#[non_exhaustive]
pub enum IdentityUpdate {
    /// A new identity, to be used from now on.
    Identity(Identity),
    /// The source cannot deliver at the moment, or what it delivers cannot be used. What is in force
    /// stays, until it expires.
    Failed(Box<dyn StdError + Send + Sync>),
    /// The identity must not be used any more; another may come.
    Withdrawn(Box<dyn StdError + Send + Sync>),
}

/// The future of [`IdentitySource::next`].
pub type IdentityFuture<'s> = Pin<Box<dyn Future<Output = IdentityUpdate> + Send + 's>>;

/// Where a workload's identity and trust come from.
///
/// This crate has files ([`crate::IdentityFiles`]), the SPIFFE Workload API (feature
/// `workload-api`) and an embedded authority (feature `ca`); a program can bring its own.
///
/// # Examples
///
/// ```
/// use mesh_tower::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
///
/// /// Delivers what a channel brings.
/// #[derive(Debug)]
/// struct FromChannel(tokio::sync::mpsc::Receiver<Identity>);
///
/// impl IdentitySource for FromChannel {
///     fn next(&mut self) -> IdentityFuture<'_> {
///         Box::pin(async move {
///             match self.0.recv().await {
///                 Some(identity) => IdentityUpdate::Identity(identity),
///                 None => std::future::pending().await,
///             }
///         })
///     }
/// }
/// ```
pub trait IdentitySource: fmt::Debug + Send + 'static {
    /// Waits for news: at the first call the state as it is, afterwards what has changed.
    ///
    /// It waits between failures itself, and never resolves when no more can come. The future may
    /// be dropped and `next` called again, but a question that is under way may begin anew then: keep the
    /// future where something else is waited for beside it.
    fn next(&mut self) -> IdentityFuture<'_>;
}

impl Identity {
    /// Joins an identity and whom it believes.
    #[must_use]
    pub fn new(svid: Arc<X509Svid>, bundles: Arc<BundleSet>) -> Self {
        Self { svid, bundles }
    }
}

/// An identity that never changes is a source, too.
impl IdentitySource for Option<Identity> {
    fn next(&mut self) -> IdentityFuture<'_> {
        let identity = self.take();
        Box::pin(async move {
            match identity {
                Some(identity) => IdentityUpdate::Identity(identity),
                None => pending().await,
            }
        })
    }
}

/// Follows a source for as long as the mesh is there.
pub(crate) async fn follow(mesh: Mesh, mut source: impl IdentitySource) {
    let mut changes = mesh.changes();
    let held = mesh.downgrade();
    // The argument would live as long as this does.
    drop(mesh);
    loop {
        let update = tokio::select! {
            update = source.next() => update,
            () = gone(&mut changes) => return,
        };
        let Some(mesh) = held.upgrade() else { return };
        match update {
            IdentityUpdate::Identity(Identity { svid, bundles }) => {
                // What cannot be used is reported by the mesh itself.
                mesh.set_identity(svid, bundles).ok();
            }
            IdentityUpdate::Failed(error) => mesh.report_identity(&error),
            IdentityUpdate::Withdrawn(error) => {
                mesh.withdraw_identity();
                mesh.report_identity(&error);
            }
        }
    }
}

/// Resolves when nobody holds the mesh any more.
async fn gone(changes: &mut tokio::sync::watch::Receiver<u64>) {
    while changes.changed().await.is_ok() {}
}
