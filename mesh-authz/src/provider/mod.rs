//! External authorizers as Istio's mesh configuration declares them (`extensionProviders`).
//!
//! A provider that cannot be used does not take the others down: it is kept with what is wrong
//! with it, and whatever a CUSTOM policy of its name selects is refused ([SEM-EXT-04]).

mod header_list;
mod read;
mod text;

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use mesh_identity::manifest::{Place, Problem};

pub use header_list::{HeaderList, HeaderListError};

/// An entry of `extensionProviders` that names an external authorizer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExtensionProvider {
    /// The name that CUSTOM policies use.
    pub name: String,
    /// How to ask it, or what is wrong with its entry.
    pub config: Result<ProviderConfig, ProviderError>,
}

/// How an external authorizer is asked.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "Istio's two kinds")]
pub enum ProviderConfig {
    /// `envoyExtAuthzGrpc`.
    Grpc(CheckSettings),
    /// `envoyExtAuthzHttp`.
    Http(CheckSettings, HttpCheck),
}

impl ProviderConfig {
    /// The fields that both kinds have.
    #[must_use]
    pub fn settings(&self) -> &CheckSettings {
        match self {
            Self::Grpc(settings) | Self::Http(settings, _) => settings,
        }
    }
}

/// The fields that both kinds of provider have.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CheckSettings {
    /// `service`: `[namespace/]host`.
    pub service: String,
    /// `port`.
    pub port: u16,
    /// `timeout`; nothing when unset.
    pub timeout: Option<Duration>,
    /// `failOpen`: a failure lets the request go on.
    pub fail_open: bool,
    /// `statusOnError`; 403 when unset.
    pub status_on_error: StatusCode,
    /// `includeRequestBodyInCheck`; nothing keeps bodies from the authorizer.
    pub body: Option<CheckBody>,
}

impl CheckSettings {
    /// Istio's defaults for a service.
    #[must_use]
    pub fn new(service: impl Into<String>, port: u16) -> Self {
        Self {
            service: service.into(),
            port,
            timeout: None,
            fail_open: false,
            status_on_error: StatusCode::FORBIDDEN,
            body: None,
        }
    }

    /// The host of `service`, its namespace left out.
    #[must_use]
    pub fn host(&self) -> &str {
        self.service.split_once('/').map_or(&self.service, |(_, host)| host)
    }
}

/// `includeRequestBodyInCheck`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CheckBody {
    /// `maxRequestBytes`: how much of the body the authorizer sees.
    pub max_bytes: usize,
    /// `allowPartialMessage`: a larger body is cut instead of refused with 413.
    pub allow_partial: bool,
    /// `packAsBytes`: gRPC only; the body goes into `raw_body`, its bytes as they are.
    pub as_bytes: bool,
}

impl CheckBody {
    /// So many bytes, larger bodies refused.
    #[must_use]
    pub const fn new(max_bytes: usize) -> Self {
        Self { max_bytes, allow_partial: false, as_bytes: false }
    }

    /// Larger bodies are cut off instead of refused.
    #[must_use]
    pub const fn allow_partial(mut self) -> Self {
        self.allow_partial = true;
        self
    }
}

/// The fields that only `envoyExtAuthzHttp` has.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct HttpCheck {
    /// `pathPrefix`: stands before the request's path; empty or begins with a slash.
    pub path_prefix: String,
    /// `includeRequestHeadersInCheck`: what is sent beside `authorization`.
    pub request_headers: HeaderList,
    /// `includeAdditionalHeadersInCheck`: set on each check.
    pub additional_headers: Vec<(HeaderName, HeaderValue)>,
    /// `headersToUpstreamOnAllow`: copied from the answer into the request.
    pub to_upstream_on_allow: HeaderList,
    /// `headersToDownstreamOnAllow`: copied from the answer into the response.
    pub to_downstream_on_allow: HeaderList,
    /// `headersToDownstreamOnDeny`: copied from a refusal into the response; empty is all.
    pub to_downstream_on_deny: HeaderList,
}

/// What is wrong with an entry of `extensionProviders`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{}{field}: {message}", prefix(.place.as_ref()))]
#[non_exhaustive]
pub struct ProviderError {
    /// Where it stands, when it was read from a text.
    pub place: Option<Place>,
    /// The field, such as `envoyExtAuthzHttp.pathPrefix`.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

fn prefix(place: Option<&Place>) -> String {
    place.map(|place| format!("{place}: ")).unwrap_or_default()
}

/// Why a mesh configuration holds no list of providers at all.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("extensionProviders[{at}]: {message}")]
#[non_exhaustive]
pub struct MeshConfigError {
    /// The entry.
    pub at: usize,
    /// What is wrong with it.
    pub message: String,
}

impl ExtensionProvider {
    /// Reads the authorizers of a mesh configuration (`MeshConfig`, as JSON); entries of other
    /// kinds, such as tracers, are passed over.
    ///
    /// # Errors
    ///
    /// When the list is no list, or an entry has no name: nothing then says which policies it
    /// would be for. An entry with a name that is wrong otherwise is kept as a bad provider.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_authz::ExtensionProvider;
    ///
    /// let config = serde_json::json!({"extensionProviders": [
    ///     {"name": "opa", "envoyExtAuthzGrpc": {"service": "opa.opa.svc.cluster.local", "port": 9191}},
    ///     {"name": "bad", "envoyExtAuthzHttp": {"service": "x", "port": 80, "pathPrefix": "y"}},
    ///     {"name": "zipkin", "zipkin": {"service": "z", "port": 9411}},
    /// ]});
    /// let providers = ExtensionProvider::read_all(&config)?;
    /// assert!(providers[0].config.is_ok());
    /// assert_eq!(providers[1].config.as_ref().unwrap_err().field, "envoyExtAuthzHttp.pathPrefix");
    /// assert_eq!(providers.len(), 2);
    /// # Ok::<(), mesh_authz::MeshConfigError>(())
    /// ```
    pub fn read_all(mesh_config: &serde_json::Value) -> Result<Vec<Self>, MeshConfigError> {
        read::read_all(mesh_config)
    }

    /// Reads the authorizers of a mesh configuration as people keep it: YAML or JSON of a
    /// `MeshConfig`, an IstioOperator or Helm values with a `meshConfig`, or the ConfigMap `istio`
    /// with its text under `data.mesh`. `source` names the text in errors.
    ///
    /// # Errors
    ///
    /// As for [`Self::read_all`], and when the text cannot be read; with line and column.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_authz::ExtensionProvider;
    ///
    /// let text = "
    /// extensionProviders:
    /// - name: opa
    ///   envoyExtAuthzGrpc: {service: opa.opa.svc.cluster.local, port: 9191, timeout: 0.5s}
    /// - name: bad
    ///   envoyExtAuthzHttp:
    ///     service: ext.shop.svc.cluster.local
    ///     port: 8000
    ///     pathPrefix: check
    /// ";
    /// let providers = ExtensionProvider::read_text(text, "mesh.yaml")?;
    /// assert!(providers[0].config.is_ok());
    /// let problem = providers[1].config.as_ref().unwrap_err().to_string();
    /// assert!(problem.starts_with("line 9, column 5: envoyExtAuthzHttp.pathPrefix: "), "{problem}");
    /// # Ok::<(), mesh_identity::manifest::Problem>(())
    /// ```
    pub fn read_text(text: &str, source: &str) -> Result<Vec<Self>, Problem> {
        text::read_text(text, source)
    }
}
