//! PeerAuthentication as its author wrote it ([SEM-VAL-25], istio-api `PeerAuthentication`).

use std::collections::BTreeMap;

use mesh_identity::manifest::{Manifest, Metadata, Problems, Reader, Selector};

use super::mode::MtlsMode;

/// Which connections a workload accepts, as one resource says it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PeerAuthentication {
    pub(super) metadata: Metadata,
    pub(super) selector: Selector,
    /// Nothing is UNSET: inherit.
    pub(super) mode: Option<MtlsMode>,
    pub(super) ports: BTreeMap<u16, Option<MtlsMode>>,
}

impl PeerAuthentication {
    /// Reads the resource.
    ///
    /// # Errors
    ///
    /// Every problem with its field and place: unknown fields and modes, ports out of range, port
    /// modes without a selector.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, Problems> {
        manifest.parse(|spec| {
            let mut fields = spec.fields();
            let selector = fields.take("selector");
            let selector = selector.as_ref().map(Selector::read).unwrap_or_default();
            let mode = fields.take("mtls").and_then(|mtls| read_mtls(&mtls));
            let mut ports = BTreeMap::new();
            if let Some(levels) = fields.take("portLevelMtls") {
                let entries = levels.fields().all();
                if entries.is_empty() {
                    levels.problem("must not be empty; remove it");
                }
                if selector.is_empty() {
                    levels.problem("needs a selector with labels");
                }
                for (port, level) in entries {
                    match port.parse::<u16>() {
                        Ok(number) if number > 0 && port.bytes().all(|b| b.is_ascii_digit()) => {
                            let mode = if level.is_null() { None } else { read_mtls(&level) };
                            if ports.insert(number, mode).is_some() {
                                level.problem("the port is given twice");
                            }
                        }
                        Ok(_) | Err(_) => level.problem("a port is a number from 1 to 65535"),
                    }
                }
            }
            fields.finish();
            Some(Self { metadata: manifest.metadata().clone(), selector, mode, ports })
        })
    }

    /// Name, namespace and age.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }
}

/// `{mode: …}`; nothing is UNSET.
fn read_mtls(reader: &Reader<'_>) -> Option<MtlsMode> {
    let mut fields = reader.fields();
    let mode = fields.take("mode");
    fields.finish();
    let mode = mode?;
    match mode.text()? {
        "UNSET" => None,
        "STRICT" => Some(MtlsMode::Strict),
        "PERMISSIVE" => Some(MtlsMode::Permissive),
        "DISABLE" => Some(MtlsMode::Disable),
        _ => {
            mode.problem("unknown mode; write STRICT, PERMISSIVE, DISABLE or UNSET");
            None
        }
    }
}
