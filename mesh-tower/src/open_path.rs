//! Paths that no policy guards, such as health and metrics, named one by one.

use std::fmt;

use http::Method;

/// A path that is answered without a token and without asking policies.
///
/// It is one exact path after normalization, and for GET and HEAD only: no pattern can be widened by
/// mistake. What the connection must prove (PeerAuthentication) still holds, headers are cleaned as
/// for any request, and the handler finds no [`crate::Permit`], so that one which needs it refuses.
///
/// # Examples
///
/// ```
/// use mesh_tower::OpenPath;
///
/// let health = OpenPath::new("/healthz")?;
/// assert_eq!(health.to_string(), "/healthz");
/// assert!(OpenPath::new("/health/*").is_err());
/// # Ok::<(), mesh_tower::OpenPathError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenPath(String);

/// Why a text names no open path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenPathError {
    /// The path is not what any request's path is after normalization, so it would never match.
    #[error("an open path begins with a slash and is normal: no dot segments, query or escapes")]
    NotNormal,

    /// Stars and braces are patterns elsewhere; here they would match nothing but themselves.
    #[error("an open path is one exact path, not a pattern")]
    Pattern,
}

impl OpenPath {
    /// One exact path.
    ///
    /// # Errors
    ///
    /// A pattern, or a path that normalization would change.
    pub fn new(path: &str) -> Result<Self, OpenPathError> {
        if path.contains(['*', '{', '}']) {
            return Err(OpenPathError::Pattern);
        }
        let strange = |c: char| !c.is_ascii_graphic() || matches!(c, '?' | '#' | ';' | '%' | '\\');
        let is_normal = path.starts_with('/')
            && !path.contains(strange)
            && !path.contains("//")
            && !path.split('/').any(|segment| matches!(segment, "." | ".."));
        if is_normal { Ok(Self(path.to_owned())) } else { Err(OpenPathError::NotNormal) }
    }

    /// Whether a request with this method and normalized path is let through.
    pub(crate) fn matches(&self, method: &Method, path: &str) -> bool {
        (method == Method::GET || method == Method::HEAD) && path == self.0
    }
}

impl fmt::Display for OpenPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
