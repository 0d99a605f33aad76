//! What Envoy's HTTP layer refuses before anything asks about policies ([SEM-EVAL-01], step 1).
//!
//! For servers whose HTTP parser lets more pass: a request that Envoy would have answered 400 never
//! reached the policies that were written for it.

use http::Version;

use crate::byte_search::ByteSet;

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
    if NO_AUTHORITY.any_of(authority.as_bytes()) || (is_http2 && authority.contains('@')) {
        return Err(HeadError::Authority);
    }
    let Some(target) = target else { return Ok(()) };
    // [SEM-AUTHZ-58] HTTP/2 takes any token.
    if !is_http2 && !is_common(method) && METHODS.binary_search(&method).is_err() {
        return Err(HeadError::Method);
    }
    // A `*` gets past the codec with OPTIONS, and no further: Envoy judges paths only.
    let odd = if is_http2 { &CONTROL } else { &NOT_GRAPHIC };
    if target.first() != Some(&b'/') || odd.any_of(target) {
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

/// Some of [`METHODS`]: nearly every request has one of these.
fn is_common(method: &str) -> bool {
    matches!(method, "GET" | "POST" | "PUT" | "DELETE" | "HEAD" | "PATCH" | "OPTIONS")
}

/// What no host with port and userinfo has (RFC 3986, section 3.2): all but
/// `A-Z a-z 0-9 !$%&'()*+,-.:;=@[]_~`.
const NO_AUTHORITY: ByteSet = ByteSet::of(&[
    (0, b' '),
    (b'"', b'#'),
    (b'/', b'/'),
    (b'<', b'<'),
    (b'>', b'?'),
    (b'\\', b'\\'),
    (b'^', b'^'),
    (b'`', b'`'),
    (b'{', b'}'),
    (0x7f, u8::MAX),
]);

/// What no target has in HTTP/2.
const CONTROL: ByteSet = ByteSet::of(&[(0, b' '), (0x7f, 0x7f)]);

/// What no target has in HTTP/1.1.
const NOT_GRAPHIC: ByteSet = ByteSet::of(&[(0, b' '), (0x7f, u8::MAX)]);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_has_the_bytes_that_envoy_takes() {
        for byte in 0..=u8::MAX {
            let fits = byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=@[]_~".contains(&byte);
            assert_eq!(NO_AUTHORITY.has(byte), !fits, "{byte}");
        }
    }

    #[test]
    fn methods_are_in_order_and_the_common_ones_are_among_them() {
        assert!(METHODS.is_sorted());
        for method in ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"] {
            assert!(METHODS.contains(&method) && is_common(method), "{method}");
        }
        assert!(!is_common("get") && !is_common("G"));
    }
}
