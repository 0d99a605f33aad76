//! The providers that CUSTOM policies can name.

use std::collections::BTreeMap;

use mesh_authz::{ExtensionProvider, MeshConfigError, ProviderConfig, ProviderKind, Providers};
use mesh_identity::manifest::Problem;

use super::{HttpAuthorizer, Provider};

/// The external authorizers of the mesh by name (`extensionProviders`).
///
/// Istio's rules hold for the names: one given twice, or that is no DNS label in lower case, makes
/// a bad provider, and what its policies select is refused ([SEM-EXT-03], [SEM-EXT-04]).
///
/// # Examples
///
/// ```
/// use mesh_tower::ExtensionProviders;
///
/// let config = serde_json::json!({"extensionProviders": [{
///     "name": "sample",
///     "envoyExtAuthzHttp": {
///         "service": "localhost", "port": 8000, "timeout": "0.5s",
///         "includeRequestHeadersInCheck": ["x-ext-authz"],
///     },
/// }]});
/// let providers = ExtensionProviders::from_mesh_config(&config)?;
/// assert!(providers.problems().is_empty());
/// # Ok::<(), mesh_tower::authz::MeshConfigError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ExtensionProviders {
    by_name: BTreeMap<String, Provider>,
    problems: BTreeMap<String, String>,
    several: bool,
}

impl ExtensionProviders {
    /// The authorizers of a mesh configuration (`MeshConfig`, as JSON), asked over plain text at
    /// the host and port of their `service`. Whoever is on the way can then answer for them: put
    /// one that is on another machine behind [`HttpAuthorizer::mesh`] with [`Self::with`].
    ///
    /// # Errors
    ///
    /// When the list is no list, or an entry has no name. A provider that is wrong otherwise is
    /// kept as a bad one; [`Self::problems`] tells.
    pub fn from_mesh_config(config: &serde_json::Value) -> Result<Self, MeshConfigError> {
        Ok(Self::of(ExtensionProvider::read_all(config)?))
    }

    /// The same from text: YAML or JSON of a `MeshConfig`, of what wraps one as `meshConfig`, or the
    /// ConfigMap `istio`. Problems name line and column.
    ///
    /// # Errors
    ///
    /// When the text cannot be read, holds no list, or an entry has no name.
    pub fn from_mesh_config_text(text: &str, source: &str) -> Result<Self, Problem> {
        Ok(Self::of(ExtensionProvider::read_text(text, source)?))
    }

    fn of(entries: Vec<ExtensionProvider>) -> Self {
        let mut providers = Self::default();
        for ExtensionProvider { name, config, .. } in entries {
            let made = match &config {
                Ok(config) => ready(config),
                Err(error) => Err(error.to_string()),
            };
            providers = match made {
                Ok(provider) => providers.with(name, provider),
                Err(problem) => providers.with_bad(name, problem),
            };
        }
        providers
    }

    /// Adds a provider. A name given twice makes a bad provider of both, as in Istio.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, provider: Provider) -> Self {
        let name = name.into();
        if self.by_name.contains_key(&name) || self.problems.contains_key(&name) {
            return self.with_bad(name, "the name is given twice".to_owned());
        }
        self.by_name.insert(name, provider);
        self
    }

    /// Replaces a provider of the mesh configuration by one of the program's own, or adds it.
    #[must_use]
    pub fn replacing(mut self, name: impl Into<String>, provider: Provider) -> Self {
        let name = name.into();
        self.problems.remove(&name);
        self.by_name.insert(name, provider);
        self
    }

    /// Adds a name that nobody answers for: what its policies select is refused ([SEM-EXT-04]).
    #[must_use]
    pub fn with_broken(self, name: impl Into<String>) -> Self {
        self.with_bad(name.into(), "it is declared as broken".to_owned())
    }

    fn with_bad(mut self, name: String, problem: String) -> Self {
        tracing::warn!(provider = name, problem, "what its policies select will be refused");
        self.by_name.remove(&name);
        self.problems.insert(name, problem);
        self
    }

    /// Lets one workload use several providers, as Istio's
    /// `PILOT_ENABLE_MULTIPLE_CUSTOM_AUTHZ_PROVIDERS` does ([SEM-EXT-05]).
    #[must_use]
    pub fn several_per_workload(mut self) -> Self {
        self.several = true;
        self
    }

    /// A provider by its name, for instance to read its counters.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Provider> {
        self.by_name.get(name)
    }

    /// The bad providers, each with what is wrong.
    #[must_use]
    pub fn problems(&self) -> &BTreeMap<String, String> {
        &self.problems
    }

    /// What policies are compiled with.
    pub(crate) fn kinds(&self) -> Providers {
        let mut kinds = Providers::default();
        for (name, provider) in &self.by_name {
            kinds = kinds.with(name, provider.kind());
        }
        for name in self.problems.keys() {
            kinds = kinds.with_broken(name);
        }
        if self.several { kinds.with_several_per_workload() } else { kinds }
    }
}

fn ready(config: &ProviderConfig) -> Result<Provider, String> {
    match config {
        ProviderConfig::Http(settings, check) => {
            let authorizer = HttpAuthorizer::plain(settings, check.clone());
            Ok(Provider::with_settings(authorizer, settings).of_kind(ProviderKind::Http))
        }
        #[cfg(feature = "ext-authz")]
        ProviderConfig::Grpc(settings) => {
            let authorizer = super::GrpcAuthorizer::plain(settings);
            let authorizer = authorizer.map_err(|error| error.to_string())?;
            Ok(Provider::with_settings(authorizer, settings).of_kind(ProviderKind::Grpc))
        }
        #[cfg(not(feature = "ext-authz"))]
        ProviderConfig::Grpc(_) => {
            Err("this program is built without mesh-tower's feature ext-authz".to_owned())
        }
    }
}
