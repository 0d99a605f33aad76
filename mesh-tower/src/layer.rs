//! The layer that puts the mesh around a service.

use std::cell::Cell;
use std::marker::PhantomData;

use tower_layer::Layer;

use crate::mesh::Mesh;
use crate::service::MeshService;

/// Guards a service with a [`Mesh`].
///
/// Put it around the whole router. Policies judge the normalized path and the layer rewrites the
/// request to it, so routing must come after ([SEC-HTTP-1]). [`Mesh::serve`] mounts it in the right
/// place.
///
/// Inside `axum::Router::layer` a route has been chosen already from the raw path. axum demands
/// `Sync` there, and the layer is not `Sync` for this reason alone:
///
/// ```compile_fail,E0277
/// # fn inside(mesh: &mesh_tower::Mesh, router: axum::Router) -> axum::Router {
/// router.layer(mesh.layer())
/// # }
/// ```
///
/// Requests must come through this crate's acceptor; others are refused with 500 ([SEC-HTTP-13]).
#[derive(Clone, Debug)]
pub struct MeshLayer {
    mesh: Mesh,
    not_sync: PhantomData<Cell<()>>,
}

impl MeshLayer {
    pub(crate) fn new(mesh: Mesh) -> Self {
        Self { mesh, not_sync: PhantomData }
    }
}

impl<S> Layer<S> for MeshLayer {
    type Service = MeshService<S>;

    fn layer(&self, inner: S) -> MeshService<S> {
        MeshService::new(self.mesh.clone(), inner)
    }
}
