//! Targets of mesh-identity.

use mesh_identity::SpiffeIdRef;

/// A SPIFFE ID against an independent checker of the grammar ([SEC-ID-1]).
///
/// # Panics
///
/// When the two disagree, or what was read does not print as it was written.
pub fn spiffe_id(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = SpiffeIdRef::parse(text);
    assert_eq!(parsed.is_ok(), grammar(text), "{text:?}");
    if let Ok(id) = parsed {
        assert_eq!(format!("spiffe://{}{}", id.trust_domain(), id.path()), text);
    }
}

/// SPIFFE-ID section 2 in the plainest words.
fn grammar(text: &str) -> bool {
    let name = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '-' | '_');
    let segment = |c: char| name(c) || c.is_ascii_uppercase();
    let Some(rest) = text.strip_prefix("spiffe://") else { return false };
    let mut parts = rest.split('/');
    let domain = parts.next().unwrap_or_default();
    let segments: Vec<&str> = parts.collect();
    text.len() <= 2048
        && (1..=255).contains(&domain.len())
        && domain.chars().all(name)
        && segments.iter().all(|part| {
            !part.is_empty() && *part != "." && *part != ".." && part.chars().all(segment)
        })
}
