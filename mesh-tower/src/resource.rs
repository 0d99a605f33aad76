//! Asking the policies from inside a handler, about a resource it has just loaded.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue};

/// What a handler asks [`crate::Permit::authorize`] about.
///
/// Policies see it as a request: its method, its path, and its attributes as
/// `request.headers[NAME]`. The client's own headers are not part of it, so nothing in the question
/// can be forged. Peer, token and addresses are those of the request.
///
/// # Examples
///
/// ```
/// use mesh_tower::Resource;
///
/// let document = Resource::new("DELETE", "/documents/42").with_attribute("x-owner", "alice")?;
/// # Ok::<(), mesh_tower::ResourceError>(())
/// ```
///
/// The policy for it:
///
/// ```yaml
/// action: DENY
/// rules:
/// - to: [{ operation: { methods: [DELETE], paths: ["/documents/*"] } }]
///   when: [{ key: "request.headers[x-owner]", notValues: [alice] }]
/// ```
///
/// `Debug` shows the names of attributes only.
#[derive(Clone)]
pub struct Resource<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) attributes: HeaderMap,
}

impl fmt::Debug for Resource<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&HeaderName> = self.attributes.keys().collect();
        f.debug_struct("Resource")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("attributes", &names)
            .finish()
    }
}

/// Why an attribute cannot be put into a question.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ResourceError {
    /// The name is no header name.
    #[error("attribute has no valid header name")]
    Name,

    /// The value has control characters.
    #[error("attribute's value cannot stand in a header")]
    Value,
}

/// The policies do not admit the caller to the resource.
///
/// As an axum response it is Istio's: 403 with `RBAC: access denied`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("access denied")]
#[non_exhaustive]
pub struct AccessDenied;

/// A question that cannot be asked is answered with no.
impl From<ResourceError> for AccessDenied {
    fn from(_: ResourceError) -> Self {
        Self
    }
}

impl<'a> Resource<'a> {
    /// A resource by the method and path that policies name it with. The path is normalized as a
    /// request's would be.
    #[must_use]
    pub fn new(method: &'a str, path: &'a str) -> Self {
        Self { method, path, attributes: HeaderMap::new() }
    }

    /// Adds what `request.headers[name]` looks at.
    ///
    /// # Errors
    ///
    /// A name or value that could not stand in a header.
    pub fn with_attribute(mut self, name: &str, value: &str) -> Result<Self, ResourceError> {
        let name =
            HeaderName::from_bytes(name.as_bytes()).map_err(|_detail| ResourceError::Name)?;
        let value = HeaderValue::from_str(value).map_err(|_detail| ResourceError::Value)?;
        self.attributes.append(name, value);
        Ok(self)
    }
}
