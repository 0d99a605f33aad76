//! What Envoy's HTTP layer refuses before anything asks about policies ([SEM-EVAL-01], step 1).
//!
//! For servers whose HTTP parser lets more pass: a request that Envoy would have answered 400 never
//! reached the policies that were written for it.

use http::Version;

/// Checks a request's head as Envoy's codecs do, in front of [`crate::Scope::normalize`].
///
/// `authority` is `:authority`, the host of an absolute target, or `Host` (several lines joined
/// with a comma); nothing when there is none. `target` is path and query; nothing for a CONNECT.
///
/// # Errors
///
/// [`HeadError`]: answer 400 and ask no policy.
///
/// # Examples
///
/// ```
/// use http::Version;
/// use mesh_authz::{HeadError, check_head};
///
/// let check = |method| check_head(Version::HTTP_11, method, Some("shop.example"), Some(b"/cart"));
/// assert_eq!(check("GET"), Ok(()));
/// assert_eq!(check("get"), Err(HeadError::Method));
/// ```
pub fn check_head(
    version: Version,
    method: &str,
    authority: Option<&str>,
    target: Option<&[u8]>,
) -> Result<(), HeadError> {
    let is_http2 = version >= Version::HTTP_2;
    let authority = match authority {
        // An empty Host line gets past HTTP/1.1; an empty `:authority` does not get past HTTP/2.
        Some(authority) if !(is_http2 && authority.is_empty()) => authority,
        Some(_) | None => return Err(HeadError::NoAuthority),
    };
    // [SEM-AUTHZ-61] HTTP/2 refuses userinfo, HTTP/1.1 takes it literally.
    let fits = |byte: u8| is_authority_byte(byte) && !(is_http2 && byte == b'@');
    if !authority.bytes().all(fits) {
        return Err(HeadError::Authority);
    }
    let Some(target) = target else { return Ok(()) };
    // [SEM-AUTHZ-58] HTTP/2 takes any token.
    if !is_http2 && METHODS.binary_search(&method).is_err() {
        return Err(HeadError::Method);
    }
    // A `*` gets past the codec with OPTIONS, and no further: Envoy judges paths only.
    let is_odd = |byte: &u8| *byte <= b' ' || *byte == 0x7f || (!is_http2 && !byte.is_ascii());
    if target.first() != Some(&b'/') || target.iter().any(is_odd) {
        return Err(HeadError::Target);
    }
    Ok(())
}

/// Why [`check_head`] refuses a request with 400.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadError {
    /// A character that no authority has, or userinfo in HTTP/2.
    #[error("the request's authority has a forbidden character")]
    Authority,

    /// HTTP/1.1 with a method that is not one of the registered ones, in upper case.
    #[error("the method is not known")]
    Method,

    /// No `Host` line, or no `:authority`.
    #[error("the request names no host")]
    NoAuthority,

    /// Not a path, or a byte that the protocol version does not allow in one.
    #[error("the request target is not a path, or has a forbidden byte")]
    Target,
}

/// The methods that Envoy's HTTP/1.1 parser knows, in byte order.
const METHODS: [&str; 34] = [
    "ACL",
    "BIND",
    "CHECKOUT",
    "CONNECT",
    "COPY",
    "DELETE",
    "GET",
    "HEAD",
    "LINK",
    "LOCK",
    "M-SEARCH",
    "MERGE",
    "MKACTIVITY",
    "MKCALENDAR",
    "MKCOL",
    "MOVE",
    "NOTIFY",
    "OPTIONS",
    "PATCH",
    "POST",
    "PROPFIND",
    "PROPPATCH",
    "PURGE",
    "PUT",
    "REBIND",
    "REPORT",
    "SEARCH",
    "SOURCE",
    "SUBSCRIBE",
    "TRACE",
    "UNBIND",
    "UNLINK",
    "UNLOCK",
    "UNSUBSCRIBE",
];

/// The characters of a host with port and userinfo (RFC 3986, section 3.2).
fn is_authority_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(&byte)
}
