//! From policies to a [`PolicySet`] for one workload: selected, aliases expanded, lowered.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_identity::manifest::{Problem, Problems};

use crate::attribute::Attribute;
use crate::custom::CustomGroup;
use crate::decision::{PolicyName, RuleRef};
use crate::matcher::{
    AddressOf, BlockSet, Effect, Matcher, MetadataMatcher, Mood, PathSet, Place, PrincipalSet,
    Slot, TemplateSet, Test, TextPattern, TextSet, TrustDomainMatch,
};
use crate::policy_set::{Applied, PolicySet, Reads};
use crate::resource::{Action, AuthorizationPolicy, Rule, Term, Value};
use crate::rule::{Placed, Rule as CompiledRule, Stage};
use crate::scope::{Provider, ProviderKind, Scope, Transport};
use crate::semantics::StrictRule;
use crate::trust_domain::TrustDomains;

pub(crate) fn compile(
    policies: &[AuthorizationPolicy],
    scope: &Scope,
    transport: Transport,
) -> Result<PolicySet, Problems> {
    let mut problems = duplicates(policies);
    problems.extend(too_large(policies));
    let applying: Vec<&AuthorizationPolicy> = policies
        .iter()
        .filter(|policy| {
            let namespace = &policy.metadata().namespace;
            policy.attachment().applies(namespace, scope.workload(), scope.mesh())
        })
        .collect();
    for policy in &applying {
        problems.extend(weakenings(policy, scope, transport));
    }
    if let Some(problems) = Problems::from_list(problems) {
        return Err(problems);
    }
    let domains = TrustDomains::new(scope.mesh());
    let compiler = Compiler {
        scope,
        transport,
        domains,
        asked: RefCell::default(),
        equal: RefCell::default(),
    };
    Ok(compiler.set(&applying))
}

/// The most rules of all policies together ([SEC-AUTHZ-10]).
pub(crate) const MAX_RULES: usize = 10_000;

/// The most values of all conditions together ([SEC-AUTHZ-10]).
const MAX_VALUES: usize = 100_000;

/// [SEC-AUTHZ-10] The policy with which the limits are passed.
fn too_large(policies: &[AuthorizationPolicy]) -> Option<Problem> {
    let (mut rules, mut values) = (0_usize, 0_usize);
    policies.iter().find_map(|policy| {
        rules = rules.saturating_add(policy.rules().len());
        for term in policy.rules().iter().flat_map(Rule::terms) {
            values = values.saturating_add(term.values.len()).saturating_add(term.not_values.len());
        }
        (rules > MAX_RULES || values > MAX_VALUES).then(|| {
            let message = format!("more than {MAX_RULES} rules or {MAX_VALUES} values in all");
            policy.problem("rules", &message)
        })
    })
}

/// [SEM-EVAL-32], [SEM-VAL-32] Two policies of one name: neither may win in silence.
fn duplicates(policies: &[AuthorizationPolicy]) -> Vec<Problem> {
    let mut seen = HashSet::new();
    let mut problems = Vec::new();
    for policy in policies {
        let metadata = policy.metadata();
        if !seen.insert((metadata.namespace.as_str(), metadata.name.as_str())) {
            let message = "another policy has the same namespace and name; remove one of them";
            problems.push(policy.problem("", message));
        }
    }
    problems
}

/// [SEM-STRICT-04], [SEM-STRICT-10], [SEM-STRICT-12] What strict options refuse in a policy.
fn weakenings(policy: &AuthorizationPolicy, scope: &Scope, transport: Transport) -> Vec<Problem> {
    let mut problems = Vec::new();
    let semantics = scope.semantics();
    if semantics.has(StrictRule::DryRunCustom)
        && policy.is_dry_run()
        && matches!(policy.action(), Action::Custom { .. })
    {
        problems.push(policy.problem("", "a CUSTOM policy cannot be a dry run"));
    }
    for rule in policy.rules() {
        let at = |path: &str| format!("rules[{}].{path}", rule.index);
        for term in rule.terms() {
            let lists = [(&term.values, &term.path), (&term.not_values, &term.not_path)];
            for (values, path) in lists {
                let reaches_sa = |value: &Value| matches!(value, Value::Namespace(pattern) if pattern.reaches_sa());
                if semantics.has(StrictRule::StructuralIdentity) && values.iter().any(reaches_sa) {
                    problems.push(policy.problem(
                        &at(path),
                        "matches the sa of every identity, as in .../ns/NAME/sa/...; write the \
                         namespaces out",
                    ));
                }
            }
        }
        let widens = transport == Transport::Tcp
            && !matches!(policy.action(), Action::Allow)
            && semantics.has(StrictRule::NoSilentWeakening)
            && rule.terms().any(|term| term.attribute.is_http_only())
            && !names_ports(rule);
        if widens {
            problems.push(policy.problem(
                &format!("rules[{}]", rule.index),
                "on TCP its HTTP conditions disappear and the rest reaches further; name the \
                 ports it is meant for",
            ));
        }
    }
    problems
}

/// Whether the author said which ports a rule is about: in each operation, or as a condition.
fn names_ports(rule: &Rule) -> bool {
    let is_port = |term: &Term| term.attribute == Attribute::Port && !term.values.is_empty();
    let by_operation = !rule.to.is_empty() && rule.to.iter().all(|terms| terms.iter().any(is_port));
    by_operation || rule.when.iter().any(is_port)
}

struct Compiler<'a> {
    scope: &'a Scope,
    transport: Transport,
    domains: TrustDomains<'a>,
    /// Headers, claims and metadata that conditions ask about, numbered.
    asked: RefCell<HashMap<Attribute, u32>>,
    equal: RefCell<EqualTests<'a>>,
}

/// Tests that must come out alike, numbered: strict options read them by the rule's effect.
#[derive(Default)]
struct EqualTests<'a> {
    numbers: HashMap<(Effect, &'a Attribute, &'a [Value], bool), usize>,
    /// How many rules have each, and where its outcome is remembered.
    uses: Vec<(usize, Option<Place>)>,
    places: usize,
}

impl<'a> EqualTests<'a> {
    fn number(&mut self, test: (Effect, &'a Attribute, &'a [Value], bool)) -> usize {
        let number = *self.numbers.entry(test).or_insert(self.uses.len());
        match self.uses.get_mut(number) {
            Some((uses, _)) => *uses = uses.saturating_add(1),
            None => self.uses.push((1, None)),
        }
        number
    }

    /// Where the outcome is remembered, of tests that stand in several rules.
    fn place(&mut self, number: usize) -> Option<Place> {
        let (uses, place) = self.uses.get_mut(number)?;
        if *uses > 1 && place.is_none() {
            *place = Place::new(self.places);
            self.places = self.places.saturating_add(1);
        }
        *place
    }
}

fn policy_name(policy: &AuthorizationPolicy) -> Arc<PolicyName> {
    let metadata = policy.metadata();
    let (namespace, name) = (metadata.namespace.as_str(), metadata.name.as_str());
    Arc::new(PolicyName { namespace: namespace.into(), name: name.into() })
}

/// Rules before they are a [`Stage`]; nothing when no policy made one.
type Draft = Option<Vec<CompiledRule>>;

impl<'a> Compiler<'a> {
    fn set(&self, policies: &[&'a AuthorizationPolicy]) -> PolicySet {
        let (mut deny, mut allow, mut audit): (Draft, Draft, Draft) = (None, None, None);
        let (mut shadow_deny, mut shadow_allow): (Draft, Draft) = (None, None);
        let mut custom: BTreeMap<&str, Vec<&'a AuthorizationPolicy>> = BTreeMap::new();
        for policy in policies {
            let (stage, effect) = match (policy.action(), policy.is_dry_run()) {
                (Action::Allow, false) => (&mut allow, Effect::Allow),
                (Action::Allow, true) => (&mut shadow_allow, Effect::Allow),
                (Action::Deny, false) => (&mut deny, Effect::Refuse),
                (Action::Deny, true) => (&mut shadow_deny, Effect::Refuse),
                (Action::Audit, false) => (&mut audit, Effect::Observe),
                // [SEM-EVAL-43] A shadow without effect.
                (Action::Audit, true) => continue,
                (Action::Custom { provider }, _) => {
                    custom.entry(provider).or_default().push(policy);
                    continue;
                }
            };
            stage.get_or_insert_default().extend(self.rules(policy, effect, "", ""));
        }
        let staged = |rules: Draft, effect| rules.map(|rules| self.stage(rules, effect));
        let mut reads = Reads::default();
        // [SEC-AUTHZ-11] What is not enforced must not make a request unclear either.
        let enforced = policies.iter().filter(|policy| match policy.action() {
            Action::Allow | Action::Deny => !policy.is_dry_run(),
            Action::Custom { .. } => true,
            Action::Audit => false,
        });
        let terms = enforced.flat_map(|policy| policy.rules()).flat_map(Rule::terms);
        terms.for_each(|term| reads.add(&term.attribute));
        let applied = policies.iter().map(|policy| Applied {
            name: policy_name(policy),
            action: policy.action().name(),
            dry_run: policy.is_dry_run(),
        });
        PolicySet {
            applied: applied.collect(),
            semantics: self.scope.semantics(),
            transport: self.transport,
            custom: self.custom(&custom),
            audit: staged(audit, Effect::Observe),
            shadow_deny: staged(shadow_deny, Effect::Refuse),
            deny: staged(deny, Effect::Refuse),
            shadow_allow: staged(shadow_allow, Effect::Allow),
            allow: staged(allow, Effect::Allow),
            reads,
        }
    }

    fn stage(&self, mut rules: Vec<CompiledRule>, effect: Effect) -> Stage {
        let mut equal = self.equal.borrow_mut();
        for rule in &mut rules {
            let lists = rule.sources.iter_mut().chain(&mut rule.operations).flatten();
            for placed in lists.chain(&mut rule.conditions) {
                placed.test.place = equal.place(placed.number);
            }
        }
        Stage::new(rules, Mood { semantics: self.scope.semantics(), effect })
    }

    /// The CUSTOM policies by provider, in byte order of the names ([SEM-EXT-05]).
    fn custom(
        &self,
        by_provider: &BTreeMap<&str, Vec<&'a AuthorizationPolicy>>,
    ) -> Vec<CustomGroup> {
        let providers = self.scope.providers();
        let too_many = by_provider.len() > 1 && !providers.several_per_workload();
        let mut groups = Vec::new();
        for (name, policies) in by_provider {
            let provider = if too_many { Provider::Broken } else { providers.get(name) };
            let on_tcp = self.transport == Transport::Tcp;
            let refuses = match provider {
                Provider::Broken => true,
                Provider::Usable(ProviderKind::Http) if on_tcp => {
                    if !self.scope.semantics().has(StrictRule::CustomOnTcp) {
                        // [SEM-TCP-06] No check at all.
                        continue;
                    }
                    true
                }
                Provider::Usable(ProviderKind::Http | ProviderKind::Grpc) => false,
            };
            let suffix = if refuses { "-deny-due-to-bad-CUSTOM-action" } else { "" };
            let prefix = format!("istio-ext-authz-{name}-");
            let (mut askable, mut unaskable) = (Vec::new(), Vec::new());
            for policy in policies {
                // [SEM-EVAL-44] A dry run arrives in the lenient reading only, and then refuses.
                let list =
                    if refuses || policy.is_dry_run() { &mut unaskable } else { &mut askable };
                list.extend(self.rules(policy, Effect::Refuse, &prefix, suffix));
            }
            groups.push(CustomGroup::new(
                name,
                self.stage(unaskable, Effect::Refuse),
                self.stage(askable, Effect::Refuse),
            ));
        }
        groups
    }

    fn rules(
        &self,
        policy: &'a AuthorizationPolicy,
        effect: Effect,
        prefix: &str,
        suffix: &str,
    ) -> Vec<CompiledRule> {
        let name = policy_name(policy);
        let rules = policy.rules().iter().filter(|rule| !self.is_dropped(policy, rule));
        let compiled = rules.map(|rule| {
            let mut conditions = Vec::new();
            let sources = unless_single(self.alternatives(&rule.from, effect), &mut conditions);
            let operations = unless_single(self.alternatives(&rule.to, effect), &mut conditions);
            conditions.extend(self.tests(&rule.when, effect));
            let reference = RuleRef::new(&name, rule.index, prefix, suffix);
            CompiledRule { reference, sources, operations, conditions }
        });
        compiled.collect()
    }

    /// [SEM-TCP-03] On TCP, an ALLOW rule with any HTTP-only attribute goes as a whole.
    fn is_dropped(&self, policy: &AuthorizationPolicy, rule: &Rule) -> bool {
        self.transport == Transport::Tcp
            && *policy.action() == Action::Allow
            && rule.terms().any(|term| term.attribute.is_http_only())
    }

    /// One alternative without conditions is any ([SEM-EVAL-21]).
    fn alternatives(&self, entries: &'a [Vec<Term>], effect: Effect) -> Vec<Vec<Placed>> {
        let alternatives: Vec<Vec<Placed>> =
            entries.iter().map(|terms| self.tests(terms, effect)).collect();
        if alternatives.iter().any(Vec::is_empty) { Vec::new() } else { alternatives }
    }

    fn tests(&self, terms: &'a [Term], effect: Effect) -> Vec<Placed> {
        // [SEM-TCP-03] What is left of rules that are not ALLOW.
        let exists =
            |term: &&Term| self.transport == Transport::Http || !term.attribute.is_http_only();
        let terms = terms.iter().filter(exists);
        let tests = terms.flat_map(|term| {
            let lists =
                [(&term.values, &term.path, false), (&term.not_values, &term.not_path, true)];
            lists.into_iter().filter(|(values, ..)| !values.is_empty()).map(
                move |(values, path, negated)| {
                    let equal = (effect, &term.attribute, values.as_slice(), negated);
                    let matcher = self.matcher(&term.attribute, values);
                    Placed {
                        test: Test { matcher, negated, place: None },
                        path: path.as_str().into(),
                        number: self.equal.borrow_mut().number(equal),
                    }
                },
            )
        });
        tests.collect()
    }

    /// The slot of a header, claim or metadata that begins with this name.
    fn slot(&self, attribute: &Attribute, name: &str) -> Slot {
        let mut asked = self.asked.borrow_mut();
        let next = u32::try_from(asked.len()).unwrap_or(u32::MAX);
        let number = asked.get(attribute).copied().unwrap_or_else(|| {
            asked.insert(attribute.clone(), next);
            next
        });
        Slot::new(number, name.as_bytes())
    }

    fn matcher(&self, attribute: &Attribute, values: &[Value]) -> Matcher {
        let sorted = Sorted::new(values, &self.domains);
        let address = |which| Matcher::Address(which, BlockSet::new(sorted.blocks.clone()));
        match attribute {
            Attribute::Claim(path) => {
                let name = path.first().map_or("", |name| name);
                let slot = self.slot(attribute, name);
                Matcher::Claim(slot, path.clone(), TextSet::new(sorted.texts))
            }
            Attribute::DestinationIp => address(AddressOf::Destination),
            Attribute::Header(key) => {
                let slot = self.slot(attribute, key.name().unwrap_or_default());
                Matcher::Header(slot, Box::new(key.clone()), sorted.header_set())
            }
            Attribute::Host => {
                let lower = sorted.texts.into_iter().map(TextPattern::into_lowercase);
                Matcher::Host(Sorted { texts: lower.collect(), ..Sorted::default() }.header_set())
            }
            Attribute::Metadata { filter, key } => Matcher::Metadata(Box::new(MetadataMatcher {
                slot: self.slot(attribute, key),
                filter: filter.clone(),
                key: key.clone(),
                text: TextSet::new(sorted.texts),
                element: TextSet::new(sorted.elements),
            })),
            Attribute::Method => Matcher::Method(sorted.header_set()),
            Attribute::Namespace => Matcher::Namespace(sorted.namespaces.into()),
            Attribute::Path => Matcher::Path(PathSet {
                texts: TextSet::new(sorted.texts),
                templates: (!sorted.templates.is_empty())
                    .then(|| Box::new(TemplateSet::new(sorted.templates))),
            }),
            Attribute::Port => Matcher::Port(sorted.ports.into()),
            Attribute::Principal => Matcher::Principal(PrincipalSet::new(sorted.texts)),
            Attribute::RemoteIp => address(AddressOf::Client),
            Attribute::RequestPrincipal => {
                Matcher::RequestPrincipal(sorted.request_principals.into())
            }
            Attribute::ServiceAccount => Matcher::Account(sorted.accounts.into()),
            Attribute::Sni => Matcher::Sni(TextSet::new(sorted.texts)),
            Attribute::SourceIp => address(AddressOf::Source),
            Attribute::TrustDomain => Matcher::TrustDomain(sorted.trust_domains.into()),
        }
    }
}

/// Several alternatives stay; a single one is a list of conditions like any other.
fn unless_single(
    mut alternatives: Vec<Vec<Placed>>,
    conditions: &mut Vec<Placed>,
) -> Vec<Vec<Placed>> {
    if alternatives.len() == 1 {
        conditions.extend(alternatives.drain(..).flatten());
    }
    alternatives
}

/// The values of one list by their type. A list holds values of one attribute, so all but one or
/// two of these stay empty.
#[derive(Default)]
struct Sorted {
    accounts: Vec<crate::matcher::AccountPattern>,
    blocks: Vec<ipnet::IpNet>,
    elements: Vec<TextPattern>,
    namespaces: Vec<crate::matcher::NamespacePattern>,
    ports: Vec<u16>,
    request_principals: Vec<crate::matcher::RequestPrincipalPattern>,
    templates: Vec<crate::matcher::Template>,
    texts: Vec<TextPattern>,
    trust_domains: Vec<TrustDomainMatch>,
}

impl Sorted {
    fn header_set(self) -> TextSet {
        TextSet::new(self.texts.into_iter().map(TextPattern::into_header).collect())
    }

    fn new(values: &[Value], domains: &TrustDomains<'_>) -> Self {
        let mut this = Self::default();
        for value in values {
            match value {
                Value::Account(account) => this.accounts.push(account.clone()),
                Value::Block(block) => this.blocks.push(*block),
                Value::ListElement(pattern) => this.elements.push(pattern.clone()),
                Value::Namespace(pattern) => this.namespaces.push(pattern.clone()),
                Value::Port(port) => this.ports.push(*port),
                Value::Principal(text) => {
                    let principals = domains.expand_principal(text);
                    this.texts.extend(principals.iter().map(|text| TextPattern::parse(text)));
                }
                Value::RequestPrincipal(pattern) => this.request_principals.push(pattern.clone()),
                Value::Template(template) => this.templates.push(template.clone()),
                Value::Text(pattern) => this.texts.push(pattern.clone()),
                Value::TrustDomain(text) => {
                    let names = domains.expand_trust_domain(text);
                    this.trust_domains
                        .extend(names.iter().map(|text| TrustDomainMatch::parse(text)));
                }
            }
        }
        this
    }
}
