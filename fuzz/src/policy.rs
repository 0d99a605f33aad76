//! Targets of mesh-authz and of the manifests it reads.

use mesh_authz::{
    AuthorizationPolicy, NormalizedPath, PathNormalization, PolicySet, Scope, Semantics, Transport,
};
use mesh_identity::manifest::{self, Kind, Problems};
use mesh_identity::{MeshSettings, Workload};

use crate::authz::agrees_on_text;
use crate::model;

/// Policy text: never a panic, every refusal has a message and each of its problems a place, what
/// loads compiles or says why not, and what is JSON decides as the model does.
///
/// # Panics
///
/// When one of these does not hold.
pub fn policy_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let read = match manifest::read(text, "fuzz.yaml", "default") {
        Err(problems) => return assert_told(&problems),
        Ok(read) => read,
    };
    let mut policies = Vec::new();
    for one in read.resources.iter().filter(|one| one.kind() == Kind::AuthorizationPolicy) {
        match AuthorizationPolicy::from_manifest(one) {
            Ok(policy) => {
                assert!(policy.warnings().iter().all(|warning| warning.place.is_some()));
                policies.push(policy);
            }
            Err(problems) => {
                assert!(problems.list().iter().all(|problem| problem.place.is_some()));
                assert_told(&problems);
            }
        }
        // The lenient reading refuses less, and panics no more.
        drop(AuthorizationPolicy::from_manifest_lenient(one));
    }
    let Ok(trust_domain) = "cluster.local".parse() else { return };
    let scope = Scope::new(Workload::new("default"), MeshSettings::new(trust_domain));
    for semantics in [Semantics::istio(), Semantics::strict()] {
        for transport in [Transport::Http, Transport::Tcp] {
            let scope = scope.clone().with_semantics(semantics);
            if let Err(problems) = PolicySet::compile(&policies, &scope, transport) {
                assert_told(&problems);
            }
        }
    }
    agrees_on_text(text);
}

fn assert_told(problems: &Problems) {
    assert!(problems.list().iter().all(|problem| !problem.message.is_empty()), "{problems}");
}

/// Path normalization: the result is the model's, in every mode; the query is untouched, and no dot
/// segment is left ([SEM-PATH-16], [SEM-PATH-17]).
///
/// # Panics
///
/// When one of these does not hold.
pub fn path(data: &[u8]) {
    for name in ["NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] {
        let Some(mode) = PathNormalization::from_istio_name(name) else { continue };
        let normal = mode.normalize(data).ok();
        let ours = normal.as_ref().map(NormalizedPath::as_bytes);
        let model = model::normalize(name, data);
        assert_eq!(ours, model.as_deref(), "{name}: {}", data.escape_ascii());
        let Some(normal) = normal.filter(|_| data != b"*" && name != "NONE") else { continue };
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
