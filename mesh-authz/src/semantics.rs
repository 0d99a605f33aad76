//! How policies are read: as Istio reads them, or with its doubtful places closed.
//!
//! Each option refuses more and allows nothing more ([SEM-STRICT-20]): whatever a set compiled
//! with options allows, the same set compiled without them allows too.

use std::fmt;

/// The named options of a policy set. [`Semantics::istio`] has none, [`Semantics::strict`] all.
///
/// # Examples
///
/// ```
/// use mesh_authz::{Semantics, StrictRule};
///
/// let semantics = Semantics::istio().with(StrictRule::RepeatedHeaders);
/// assert!(semantics.has(StrictRule::RepeatedHeaders));
/// assert!(!semantics.has(StrictRule::LowerCaseMethod));
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Semantics {
    /// Invariant: bit `n` is set when the `n`-th of [`StrictRule::ALL`] is on.
    on: u16,
}

impl Semantics {
    /// Istio's own: the verdict equals that of istiod and Envoy.
    #[must_use]
    pub const fn istio() -> Self {
        Self { on: 0 }
    }

    /// Every option on.
    #[must_use]
    pub fn strict() -> Self {
        StrictRule::ALL.into_iter().fold(Self::istio(), Self::with)
    }

    /// Switches one option on.
    #[must_use]
    pub fn with(self, rule: StrictRule) -> Self {
        Self { on: self.on | rule.bit() }
    }

    /// Switches one option off.
    #[must_use]
    pub fn without(self, rule: StrictRule) -> Self {
        Self { on: self.on & !rule.bit() }
    }

    /// Whether an option is on.
    #[must_use]
    pub fn has(self, rule: StrictRule) -> bool {
        self.on & rule.bit() != 0
    }

    /// Whether any option is on.
    #[must_use]
    pub fn is_istio(self) -> bool {
        self.on == 0
    }
}

/// One place where Istio's reading can be narrowed (section 12 of the semantics).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, serde::Serialize)]
#[serde(into = "&'static str")]
#[non_exhaustive]
pub enum StrictRule {
    /// [SEM-STRICT-03] In ALLOW every line of a header must satisfy a condition, in DENY one line
    /// suffices.
    RepeatedHeaders,
    /// [SEM-STRICT-04] Namespace and service account are whole segments of an id of Istio's shape;
    /// peers with an id of another shape are refused where a policy asks for identity.
    StructuralIdentity,
    /// [SEM-STRICT-05] Without a peer identity, a condition on it, positive or negative, is false
    /// in ALLOW and true in DENY.
    PlainTextFailsClosed,
    /// [SEM-STRICT-06] Several or contradicting hosts, userinfo, a trailing dot or a port other than
    /// the local one are refused where a policy reads the host; DENY also compares without port.
    HostHygiene,
    /// [SEM-STRICT-07] A path that full normalization would still change, however often it is done,
    /// or that holds `;` (escaped, too), `//`, backslashes or malformed escapes, is refused where a
    /// policy reads the path.
    AmbiguousPath,
    /// [SEM-STRICT-07] In DENY `paths` and ALLOW `notPaths`, template operators cover every byte
    /// but the slash.
    TemplateAlphabet,
    /// [SEM-STRICT-08] An `X-Forwarded-For` from an untrusted peer is refused where a policy reads
    /// the client address.
    ClientAddress,
    /// [SEM-STRICT-10] A rule that would reach further on TCP than on HTTP is a configuration
    /// error, as is a namespace pattern that every identity satisfies.
    NoSilentWeakening,
    /// [SEM-STRICT-11] Methods with lower-case letters are refused.
    LowerCaseMethod,
    /// [SEM-STRICT-12] A dry-run CUSTOM policy is a configuration error.
    DryRunCustom,
    /// [SEM-STRICT-17] A request target with a fragment is refused by [`crate::Scope::normalize`].
    Fragment,
    /// [SEM-STRICT-19] CUSTOM on TCP whose provider cannot be asked there refuses.
    CustomOnTcp,
    /// [SEM-STRICT-19] An external authorizer has 5 s unless told otherwise, and `failOpen` forgives
    /// outages and timeouts only.
    CustomLimits,
}

impl StrictRule {
    /// Every option, in the order of its rule's number.
    pub const ALL: [Self; 13] = [
        Self::RepeatedHeaders,
        Self::StructuralIdentity,
        Self::PlainTextFailsClosed,
        Self::HostHygiene,
        Self::AmbiguousPath,
        Self::TemplateAlphabet,
        Self::ClientAddress,
        Self::NoSilentWeakening,
        Self::LowerCaseMethod,
        Self::DryRunCustom,
        Self::Fragment,
        Self::CustomOnTcp,
        Self::CustomLimits,
    ];

    /// The rule of the specification that the option implements.
    #[must_use]
    pub const fn id(self) -> &'static str {
        match self {
            Self::RepeatedHeaders => "SEM-STRICT-03",
            Self::StructuralIdentity => "SEM-STRICT-04",
            Self::PlainTextFailsClosed => "SEM-STRICT-05",
            Self::HostHygiene => "SEM-STRICT-06",
            Self::AmbiguousPath | Self::TemplateAlphabet => "SEM-STRICT-07",
            Self::ClientAddress => "SEM-STRICT-08",
            Self::NoSilentWeakening => "SEM-STRICT-10",
            Self::LowerCaseMethod => "SEM-STRICT-11",
            Self::DryRunCustom => "SEM-STRICT-12",
            Self::Fragment => "SEM-STRICT-17",
            Self::CustomOnTcp | Self::CustomLimits => "SEM-STRICT-19",
        }
    }

    /// What is wrong with a request that the option refuses, for a person.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::RepeatedHeaders => "a header has several lines",
            Self::StructuralIdentity => "the peer's identity does not have Istio's shape",
            Self::PlainTextFailsClosed => "the peer has no identity",
            Self::HostHygiene => "the host is ambiguous",
            Self::AmbiguousPath => "the path is ambiguous",
            Self::TemplateAlphabet => "the path has an odd character",
            Self::ClientAddress => "X-Forwarded-For comes from an untrusted peer",
            Self::NoSilentWeakening => "a rule means more on TCP",
            Self::LowerCaseMethod => "the method has a lower-case letter",
            Self::DryRunCustom => "a CUSTOM policy is a dry run",
            Self::Fragment => "the request target has a fragment",
            Self::CustomOnTcp => "the external authorizer cannot be asked on TCP",
            Self::CustomLimits => "the external authorizer failed",
        }
    }

    const fn bit(self) -> u16 {
        match self {
            Self::RepeatedHeaders => 1,
            Self::StructuralIdentity => 1 << 1,
            Self::PlainTextFailsClosed => 1 << 2,
            Self::HostHygiene => 1 << 3,
            Self::AmbiguousPath => 1 << 4,
            Self::TemplateAlphabet => 1 << 5,
            Self::ClientAddress => 1 << 6,
            Self::NoSilentWeakening => 1 << 7,
            Self::LowerCaseMethod => 1 << 8,
            Self::DryRunCustom => 1 << 9,
            Self::Fragment => 1 << 10,
            Self::CustomOnTcp => 1 << 11,
            Self::CustomLimits => 1 << 12,
        }
    }
}

impl From<StrictRule> for &'static str {
    fn from(rule: StrictRule) -> Self {
        rule.id()
    }
}

impl fmt::Display for StrictRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}
