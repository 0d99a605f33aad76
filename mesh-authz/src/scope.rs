//! For whom policies are compiled: the workload, its mesh, and how strictly to read.

use std::collections::BTreeMap;

use mesh_identity::{MeshSettings, Workload};

use crate::normalize::{NormalizeError, NormalizedPath, PathNormalization};
use crate::semantics::{Semantics, StrictRule};

/// What a policy set is compiled for.
///
/// # Examples
///
/// ```
/// use mesh_authz::{Scope, Semantics};
/// use mesh_identity::{MeshSettings, Workload};
///
/// let mesh = MeshSettings::new("cluster.local".parse()?);
/// let scope = Scope::new(Workload::new("shop"), mesh).with_semantics(Semantics::istio());
/// assert!(scope.semantics().is_istio());
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Scope {
    workload: Workload,
    mesh: MeshSettings,
    semantics: Semantics,
    providers: Providers,
    paths: PathNormalization,
}

impl Scope {
    /// A scope with every strict option on, no external authorizer and Istio's default
    /// normalization.
    #[must_use]
    pub fn new(workload: Workload, mesh: MeshSettings) -> Self {
        Self {
            workload,
            mesh,
            semantics: Semantics::strict(),
            providers: Providers::default(),
            paths: PathNormalization::default(),
        }
    }

    /// Sets how strictly to read.
    #[must_use]
    pub fn with_semantics(mut self, semantics: Semantics) -> Self {
        self.semantics = semantics;
        self
    }

    /// Sets the external authorizers that CUSTOM policies can name.
    #[must_use]
    pub fn with_providers(mut self, providers: Providers) -> Self {
        self.providers = providers;
        self
    }

    /// Sets the mesh's path normalization.
    #[must_use]
    pub fn with_path_normalization(mut self, paths: PathNormalization) -> Self {
        self.paths = paths;
        self
    }

    /// The workload that policies are selected for.
    #[must_use]
    pub fn workload(&self) -> &Workload {
        &self.workload
    }

    /// The mesh it lives in.
    #[must_use]
    pub fn mesh(&self) -> &MeshSettings {
        &self.mesh
    }

    /// How strictly policies are read.
    #[must_use]
    pub fn semantics(&self) -> Semantics {
        self.semantics
    }

    /// The external authorizers.
    #[must_use]
    pub fn providers(&self) -> &Providers {
        &self.providers
    }

    /// The mesh's path normalization.
    #[must_use]
    pub fn path_normalization(&self) -> PathNormalization {
        self.paths
    }

    /// Normalizes a request's path and query by the mesh's mode and the strict options.
    ///
    /// # Errors
    ///
    /// [`NormalizeError`]: answer 400 and ask no policy.
    pub fn normalize<'a>(&self, raw: &'a [u8]) -> Result<NormalizedPath<'a>, NormalizeError> {
        if self.semantics.has(StrictRule::Fragment) && raw.contains(&b'#') {
            return Err(NormalizeError::Fragment);
        }
        self.paths.normalize(raw)
    }
}

/// What carries the traffic that a set judges: the same policies mean different things on each
/// ([SEM-TCP-01]).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(clippy::exhaustive_enums, reason = "a third transport must break every caller")]
pub enum Transport {
    /// Requests with method, path and headers.
    Http,
    /// Bytes: judged once per connection.
    Tcp,
}

/// The external authorizers of the mesh (`extensionProviders`), by name.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    by_name: BTreeMap<String, Provider>,
    several: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Provider {
    Usable(ProviderKind),
    Broken,
}

/// How an external authorizer is asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "Istio's two kinds")]
pub enum ProviderKind {
    /// `envoyExtAuthzHttp`: cannot be asked about TCP connections ([SEM-TCP-06]).
    Http,
    /// `envoyExtAuthzGrpc`.
    Grpc,
}

impl Providers {
    /// Adds a provider. A name that was added before, or is no DNS label, makes it a bad provider
    /// ([SEM-EXT-03], [SEM-EXT-04]).
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, kind: ProviderKind) -> Self {
        let name = name.into();
        let usable = is_provider_name(&name) && !self.by_name.contains_key(&name);
        let provider = if usable { Provider::Usable(kind) } else { Provider::Broken };
        self.by_name.insert(name, provider);
        self
    }

    /// Adds a provider whose own configuration is broken: what its policies match is refused.
    #[must_use]
    pub fn with_broken(mut self, name: impl Into<String>) -> Self {
        self.by_name.insert(name.into(), Provider::Broken);
        self
    }

    /// Lets one workload use several providers ([SEM-EXT-05]); else it is an error of the policies
    /// and what they match is refused.
    #[must_use]
    pub fn with_several_per_workload(mut self) -> Self {
        self.several = true;
        self
    }

    pub(crate) fn several_per_workload(&self) -> bool {
        self.several
    }

    pub(crate) fn get(&self, name: &str) -> Provider {
        self.by_name.get(name).copied().unwrap_or(Provider::Broken)
    }
}

/// [SEM-EXT-03] A DNS label in lower case.
fn is_provider_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}
