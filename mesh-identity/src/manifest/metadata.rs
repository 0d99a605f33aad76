//! What all of Istio's security resources share: metadata, the selector, target references.

use std::collections::BTreeMap;

use super::reader::Reader;
use crate::workload::{MeshSettings, Workload};

/// The metadata of a resource that has meaning ([SEM-RES-04]).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct Metadata {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.namespace`, or the namespace the file was read for.
    pub namespace: String,
    /// `metadata.creationTimestamp` as Kubernetes prints it (`2026-01-31T12:00:00Z`), which sorts
    /// as text. Empty when absent: the zero time ([SEM-RES-05]).
    pub creation_timestamp: String,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
}

impl Metadata {
    /// The key resources are sorted by: age, then name, then namespace ([SEM-RES-05]).
    #[must_use]
    pub fn order(&self) -> (&str, &str, &str) {
        (&self.creation_timestamp, &self.name, &self.namespace)
    }

    /// Metadata for a resource made in code.
    #[must_use]
    pub fn new(name: impl Into<String>, namespace: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.into(),
            creation_timestamp: String::new(),
            annotations: BTreeMap::new(),
        }
    }

    pub(super) fn read(reader: &Reader<'_>, default_namespace: &str) -> Option<Self> {
        let mut fields = reader.fields();
        let name = fields.require("name");
        let name = name.and_then(|name| name.non_empty_text()).map(str::to_owned);
        let namespace = match fields.take("namespace") {
            Some(namespace) => namespace.non_empty_text().map(str::to_owned),
            None => Some(default_namespace.to_owned()),
        };
        let created = match fields.take("creationTimestamp") {
            Some(created) => created.text().map(str::to_owned).filter(|text| {
                let ok = is_kubernetes_time(text);
                if !ok {
                    created.problem("not a time of the form 2026-01-31T12:00:00Z");
                }
                ok
            }),
            None => Some(String::new()),
        };
        let mut annotations = BTreeMap::new();
        if let Some(map) = fields.take("annotations") {
            for (key, value) in map.fields().all() {
                if let Some(text) = value.text() {
                    annotations.insert(key.to_owned(), text.to_owned());
                }
            }
        }
        // The rest (labels, uid, managedFields, …) is Kubernetes' own and never changes a verdict.
        fields.ignore_rest();
        Some(Self { name: name?, namespace: namespace?, creation_timestamp: created?, annotations })
    }
}

/// The one form Kubernetes prints times in.
fn is_kubernetes_time(text: &str) -> bool {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    text.len() == FORM.len()
        && text.bytes().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            other => byte == *other,
        })
}

/// `selector.matchLabels`: which workloads of its reach a resource applies to.
///
/// Without entries it selects all of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    labels: BTreeMap<String, String>,
}

impl Selector {
    /// A selector that asks for these labels.
    #[must_use]
    pub fn new(labels: BTreeMap<String, String>) -> Self {
        Self { labels }
    }

    /// Whether it selects every workload: absent, or an empty `matchLabels` ([SEM-SEL-02]).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Whether each entry equals a label of the workload, byte for byte ([SEM-SEL-02]).
    #[must_use]
    pub fn matches(&self, workload: &Workload) -> bool {
        self.labels.iter().all(|(key, value)| workload.label(key) == Some(value))
    }

    /// Reads `selector` by the rules of [SEM-VAL-02] and the CRD's limits.
    #[must_use]
    pub fn read(reader: &Reader<'_>) -> Self {
        let mut fields = reader.fields();
        let mut labels = BTreeMap::new();
        if let Some(map) = fields.take("matchLabels") {
            for (key, value) in map.fields().all() {
                let Some(text) = value.text() else { continue };
                if key.is_empty() {
                    value.problem("label key must not be empty");
                } else if key.contains('*') || text.contains('*') {
                    value.problem("a selector has no wildcards; write the exact label");
                } else if text.len() > 63 {
                    value.problem("a label value has at most 63 characters");
                } else {
                    labels.insert(key.to_owned(), text.to_owned());
                }
            }
        }
        fields.finish();
        Self { labels }
    }
}

/// An entry of `targetRefs` ([SEM-SEL-04]).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct TargetRef {
    /// API group; empty for the core group.
    pub group: String,
    /// Kind, such as `Gateway`.
    pub kind: String,
    /// Name of the object.
    pub name: String,
}

impl TargetRef {
    fn read_lenient(reader: &Reader<'_>) -> Self {
        let mut fields = reader.fields();
        let mut text = |name: &str| {
            fields.take(name).and_then(|value| value.text()).unwrap_or_default().to_owned()
        };
        let this = Self { group: text("group"), kind: text("kind"), name: text("name") };
        fields.ignore_rest();
        this
    }

    /// Reads one reference by the rules of [SEM-VAL-03] and the CRD's limits.
    #[must_use]
    pub fn read(reader: &Reader<'_>) -> Option<Self> {
        let mut fields = reader.fields();
        let mut text = |name: &str| match fields.take(name) {
            Some(value) => value.text().map(str::to_owned),
            None => Some(String::new()),
        };
        let (group, kind, name, namespace) =
            (text("group"), text("kind"), text("name"), text("namespace"));
        fields.finish();
        let this = Self { group: group?, kind: kind?, name: name? };
        if this.name.is_empty() {
            reader.problem("field name is missing");
        }
        if this.name.len() > 253 {
            reader.problem("a name has at most 253 characters");
        }
        if !namespace?.is_empty() {
            reader.problem("a target reference cannot name a namespace; remove it");
        }
        let known = matches!(
            (this.group.as_str(), this.kind.as_str()),
            ("" | "core", "Service")
                | ("networking.istio.io", "ServiceEntry")
                | ("gateway.networking.k8s.io", "Gateway" | "GatewayClass")
        );
        if !known {
            reader.problem(
                "group and kind must name a Service, ServiceEntry, Gateway or GatewayClass",
            );
        }
        Some(this)
    }
}

/// What a policy is attached to: at most one of `selector`, `targetRef`, `targetRefs`
/// ([SEM-VAL-01]).
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Attachment {
    /// Workloads by label; an empty selector is every workload.
    Selector(Selector),
    /// Gateways and waypoints by reference; at least one.
    TargetRefs(Vec<TargetRef>),
}

impl Default for Attachment {
    fn default() -> Self {
        Self::Selector(Selector::default())
    }
}

impl Attachment {
    /// Reads the three fields out of a `spec`.
    #[must_use]
    pub fn read(spec: &mut super::reader::Fields<'_>) -> Self {
        let selector = spec.take("selector");
        let target_ref = spec.take("targetRef");
        let target_refs = spec.take("targetRefs");
        let given = [&selector, &target_ref, &target_refs];
        if given.iter().filter(|field| field.is_some()).count() > 1 {
            spec.whole().problem("only one of selector, targetRef and targetRefs can be given");
        }
        let mut refs: Vec<TargetRef> = Vec::new();
        if let Some(list) = target_refs {
            let items = list.items();
            if items.len() > 16 {
                list.problem("at most 16 target references");
            }
            refs.extend(items.iter().filter_map(TargetRef::read));
        }
        if let Some(one) = target_ref
            && refs.is_empty()
        {
            refs.extend(TargetRef::read(&one));
        }
        if refs.is_empty() {
            Self::Selector(selector.as_ref().map(Selector::read).unwrap_or_default())
        } else {
            Self::TargetRefs(refs)
        }
    }

    /// Reads the three fields as Istio's data plane does when its webhook did not look at them:
    /// references win over a selector ([SEM-SEL-06]), and every label counts as it stands.
    #[must_use]
    pub fn read_lenient(spec: &mut super::reader::Fields<'_>) -> Self {
        let selector = spec.take("selector");
        let (target_ref, target_refs) = (spec.take("targetRef"), spec.take("targetRefs"));
        let mut refs: Vec<TargetRef> = Vec::new();
        for one in target_refs.iter().flat_map(Reader::items) {
            refs.push(TargetRef::read_lenient(&one));
        }
        if refs.is_empty() {
            refs.extend(target_ref.as_ref().map(TargetRef::read_lenient));
        }
        if !refs.is_empty() {
            return Self::TargetRefs(refs);
        }
        let labels = selector.and_then(|selector| {
            let mut fields = selector.fields();
            let labels = fields.take("matchLabels");
            fields.ignore_rest();
            labels
        });
        let labels = labels.into_iter().flat_map(|labels| labels.fields().all());
        let labels =
            labels.filter_map(|(key, text)| Some((key.to_owned(), text.text()?.to_owned())));
        Self::Selector(Selector::new(labels.collect()))
    }

    /// Whether a resource of `namespace` with this attachment applies to the workload
    /// ([SEM-SEL-01] to [SEM-SEL-05]).
    #[must_use]
    pub fn applies(&self, namespace: &str, workload: &Workload, mesh: &MeshSettings) -> bool {
        if namespace != workload.namespace() && namespace != mesh.root_namespace() {
            return false;
        }
        match self {
            Self::Selector(selector) => selector.matches(workload),
            // Only a Gateway can be this process; waypoints are not what we run as.
            Self::TargetRefs(refs) => refs.iter().any(|target| {
                target.group == "gateway.networking.k8s.io"
                    && target.kind == "Gateway"
                    && namespace == workload.namespace()
                    && workload.gateway_name() == Some(&target.name)
            }),
        }
    }
}
