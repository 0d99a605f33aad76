//! Targets of mesh-authz and of the manifests it reads.

use mesh_authz::{AuthorizationPolicy, PathNormalization};
use mesh_identity::manifest::{self, Kind};

/// Policy text: never a panic, and every refusal has a message.
///
/// # Panics
///
/// When a refusal says nothing.
pub fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match manifest::read(text, "fuzz.yaml", "default") {
        Err(problems) => assert!(!problems.to_string().is_empty()),
        Ok(read) => {
            let policies =
                read.resources.iter().filter(|one| one.kind() == Kind::AuthorizationPolicy);
            for policy in policies {
                if let Err(problems) = AuthorizationPolicy::from_manifest(policy) {
                    assert!(!problems.to_string().is_empty());
                }
            }
        }
    }
}

/// Path normalization: what is normal stays as it is, the query is untouched, and no dot segment
/// is left ([SEM-PATH-16], [SEM-PATH-17]).
///
/// # Panics
///
/// When one of these does not hold.
pub fn path(data: &[u8]) {
    for mode in [
        PathNormalization::Base,
        PathNormalization::MergeSlashes,
        PathNormalization::DecodeAndMergeSlashes,
    ] {
        let Ok(normal) = mode.normalize(data) else { continue };
        if data == b"*" {
            continue;
        }
        let (path, query) = split(normal.as_bytes());
        let cut = data.split(|byte| *byte == b'#').next().unwrap_or_default();
        assert_eq!(query, split(cut).1, "the query is untouched");
        for segment in path.split(|byte| *byte == b'/') {
            assert!(segment != b"." && segment != b"..", "{:?}", String::from_utf8_lossy(data));
        }
    }
}

/// Path, and the query with its question mark.
fn split(text: &[u8]) -> (&[u8], &[u8]) {
    let at = text.iter().position(|byte| *byte == b'?').unwrap_or(text.len());
    text.split_at(at)
}
