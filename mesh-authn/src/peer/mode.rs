//! From PeerAuthentications to the mode of each port ([SEM-MTLS-01] to [SEM-MTLS-05]).

use std::collections::BTreeMap;

use mesh_identity::{MeshSettings, Workload};

use super::resource::PeerAuthentication;

/// What a port does with an inbound connection ([SEM-MTLS-10], [SEM-MTLS-11]).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "Istio's modes; a new one must break the acceptor")]
pub enum MtlsMode {
    /// Plain text only; TLS is not terminated.
    Disable,
    /// Mutual TLS, or plain text without an identity.
    Permissive,
    /// Mutual TLS or nothing.
    Strict,
}

/// The modes of one workload's ports.
///
/// # Examples
///
/// ```
/// use mesh_authn::peer::{MtlsMode, PeerModes};
/// use mesh_identity::{MeshSettings, Workload};
///
/// let mesh = MeshSettings::new("cluster.local".parse()?);
/// let modes = PeerModes::compile(&[], &Workload::new("shop"), &mesh);
/// assert_eq!(modes.mode(8080), MtlsMode::Permissive);
/// # Ok::<(), mesh_identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerModes {
    default: MtlsMode,
    ports: BTreeMap<u16, MtlsMode>,
}

impl PeerModes {
    /// Joins the resources for one workload: mesh, namespace and workload scope, the oldest of
    /// each, the narrower one winning where it is set ([SEM-MTLS-04]).
    #[must_use]
    pub fn compile(
        resources: &[PeerAuthentication],
        workload: &Workload,
        mesh: &MeshSettings,
    ) -> Self {
        let oldest = |scope: Scope| {
            let of_scope = resources.iter().filter(|one| Scope::of(one, workload, mesh) == scope);
            of_scope.min_by_key(|one| one.metadata.order())
        };
        let mut default = MtlsMode::Permissive;
        for scope in [Scope::Mesh, Scope::Namespace, Scope::Workload] {
            if let Some(mode) = oldest(scope).and_then(|resource| resource.mode) {
                default = mode;
            }
        }
        // Only the workload's own resource has ports; one that is UNSET takes the workload's mode.
        let ports = oldest(Scope::Workload).map(|resource| &resource.ports);
        let ports = ports.into_iter().flatten();
        let ports = ports.map(|(port, mode)| (*port, mode.unwrap_or(default))).collect();
        Self { default, ports }
    }

    /// The mode of a port: the workload's own port, not a Service's ([SEM-MTLS-14]).
    #[must_use]
    pub fn mode(&self, port: u16) -> MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.default)
    }
}

/// How far a resource reaches, seen from one workload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Mesh,
    Namespace,
    Workload,
    Elsewhere,
}

impl Scope {
    fn of(resource: &PeerAuthentication, workload: &Workload, mesh: &MeshSettings) -> Self {
        let in_root = resource.metadata.namespace == mesh.root_namespace();
        let in_own = resource.metadata.namespace == workload.namespace();
        match (in_root, in_own, resource.selector.is_empty()) {
            (true, _, true) => Self::Mesh,
            (false, true, true) => Self::Namespace,
            (false, true, false) if resource.selector.matches(workload) => Self::Workload,
            // [SEM-MTLS-02] With a selector in the root namespace it is ignored.
            (true, _, false) | (false, true | false, _) => Self::Elsewhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_identity::manifest;

    use super::*;

    fn compile(yaml: &str) -> PeerModes {
        let workload = Workload::new("shop").with_label("app", "cart");
        let mesh = MeshSettings::new("cluster.local".parse().unwrap());
        let read = if yaml.is_empty() {
            Vec::new()
        } else {
            manifest::read(yaml, "t.yaml", "shop").unwrap().resources
        };
        let resources: Vec<_> =
            read.iter().map(|one| PeerAuthentication::from_manifest(one).unwrap()).collect();
        PeerModes::compile(&resources, &workload, &mesh)
    }

    /// One resource; `rest` is the inside of its spec.
    fn pa(name: &str, namespace: &str, created: &str, rest: &str) -> String {
        format!(
            "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
             metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: \"{created}\"}}\n\
             spec: {{{rest}}}\n"
        )
    }

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NEW: &str = "2026-02-01T00:00:00Z";

    fn mesh(mode: &str) -> String {
        pa("mesh", "istio-system", OLD, &format!("mtls: {{mode: {mode}}}"))
    }

    fn namespace(mode: &str) -> String {
        pa("ns", "shop", OLD, &format!("mtls: {{mode: {mode}}}"))
    }

    fn workload(rest: &str) -> String {
        pa("wl", "shop", OLD, &format!("selector: {{matchLabels: {{app: cart}}}}, {rest}"))
    }

    #[test]
    fn sem_mtls_05_the_table() {
        use MtlsMode::{Disable, Permissive, Strict};
        let ports = |mode: &str| format!("portLevelMtls: {{8443: {{mode: {mode}}}}}");
        let set = |mode: &str, port: &str| format!("mtls: {{mode: {mode}}}, {}", ports(port));
        let newer = pa("newer", "shop", NEW, "mtls: {mode: STRICT}");
        let cases = [
            (String::new(), Permissive, Permissive),
            (mesh("STRICT"), Strict, Strict),
            (mesh("STRICT") + &namespace("PERMISSIVE"), Permissive, Permissive),
            (mesh("STRICT") + &namespace("UNSET"), Strict, Strict),
            (mesh("STRICT") + &workload(&set("UNSET", "DISABLE")), Disable, Strict),
            (
                mesh("STRICT") + &namespace("PERMISSIVE") + &workload(&ports("UNSET")),
                Permissive,
                Permissive,
            ),
            (mesh("UNSET") + &workload(&set("STRICT", "PERMISSIVE")), Permissive, Strict),
            (mesh("STRICT") + &newer + &namespace("DISABLE"), Disable, Disable),
        ];
        for (yaml, port, others) in cases {
            let modes = compile(&yaml);
            assert_eq!((modes.mode(8443), modes.mode(80)), (port, others), "{yaml}");
        }
    }

    #[test]
    fn sem_mtls_02_a_selector_in_the_root_namespace_is_ignored() {
        let spec = "selector: {matchLabels: {app: cart}}, mtls: {mode: STRICT}";
        assert_eq!(compile(&pa("a", "istio-system", OLD, spec)).mode(80), MtlsMode::Permissive);
    }

    #[test]
    fn sem_mtls_01_other_namespaces_and_labels_do_not_count() {
        let elsewhere = pa("a", "other", OLD, "mtls: {mode: STRICT}");
        let other = pa("b", "shop", OLD, "selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}");
        assert_eq!(compile(&(elsewhere + &other)).mode(80), MtlsMode::Permissive);
    }

    #[test]
    fn sem_mtls_03_of_equal_age_the_name_decides() {
        let a = pa("a", "shop", OLD, "mtls: {mode: STRICT}");
        let b = pa("b", "shop", OLD, "mtls: {mode: DISABLE}");
        assert_eq!(compile(&(b + &a)).mode(80), MtlsMode::Strict);
    }

    #[test]
    fn sem_val_25_what_istio_refuses_is_refused() {
        let bad = [
            ("mtls: {mode: STRCT}", "spec.mtls.mode: unknown mode"),
            ("mtls: {mode: 1}", "spec.mtls.mode: expected text"),
            ("mtls: {moode: STRICT}", "spec.mtls.moode: unknown field"),
            ("mttls: {}", "spec.mttls: unknown field"),
            ("portLevelMtls: {80: {mode: STRICT}}", "needs a selector"),
            ("selector: {matchLabels: {a: b}}, portLevelMtls: {}", "must not be empty"),
            ("selector: {matchLabels: {a: b}}, portLevelMtls: {0: {mode: STRICT}}", "a port is"),
            ("selector: {matchLabels: {a: b}}, portLevelMtls: {65536: {}}", "a port is"),
            ("selector: {matchLabels: {a: b}}, portLevelMtls: {+80: {}}", "a port is"),
            ("selector: {matchLabels: {'a*': b}}", "no wildcards"),
        ];
        for (spec, want) in bad {
            let yaml = pa("a", "shop", OLD, spec);
            let read = manifest::read(&yaml, "t.yaml", "shop").unwrap();
            let problems = PeerAuthentication::from_manifest(&read.resources[0]).unwrap_err();
            assert!(problems.to_string().contains(want), "{spec}: {problems}");
        }
    }
}
