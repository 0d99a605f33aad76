//! The layer that puts the mesh around a service.

use tower_layer::Layer;

use crate::mesh::Mesh;
use crate::service::MeshService;

/// Guards a service with a [`Mesh`].
///
/// Put it around the whole router. Policies judge the normalized path and the layer rewrites the
/// request to it, so routing must come after: inside `axum::Router::layer` a route has been chosen
/// already from the raw path ([SEC-HTTP-1]). [`Mesh::serve`] mounts it in the right place.
///
/// Requests must come through this crate's acceptor; others are refused with 500 ([SEC-HTTP-13]).
#[derive(Clone, Debug)]
pub struct MeshLayer {
    mesh: Mesh,
}

impl MeshLayer {
    pub(crate) fn new(mesh: Mesh) -> Self {
        Self { mesh }
    }
}

impl<S> Layer<S> for MeshLayer {
    type Service = MeshService<S>;

    fn layer(&self, inner: S) -> MeshService<S> {
        MeshService::new(self.mesh.clone(), inner)
    }
}
