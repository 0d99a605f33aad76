//! The rules of all resources that apply to one workload, compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderName, ORIGIN};
use http::{HeaderValue, Method};
use mesh_identity::{MeshSettings, VerifiedToken, Workload};
use rustls_pki_types::UnixTime;

use super::RequestView;
use super::cache::TokenCache;
use super::effects::Effects;
use super::extract;
use super::few::Few;
use super::json::allocated;
use super::judge::Judge;
use super::key_set::KeySet;
use super::options::{TokenOptions, Tolerance};
use super::refusal::{Reason, Refusal};
use super::resource::{JwtRule, RequestAuthentication, RuleKeys};
use super::token::{KnownHeader, ParsedToken, Times};

/// Claims that every rule splits at spaces, whatever it says ([SEM-JWT-61]).
const ALWAYS_SPACE_DELIMITED: [&str; 2] = ["scope", "permission"];

/// Judges the tokens of requests to one workload.
///
/// Compiled from every [`RequestAuthentication`] at hand; those that do not apply are left out.
/// Holds the cache of accepted tokens, so publish it behind an `Arc` and compile a new one when
/// a resource or a key set changes.
pub struct RequestAuthenticator {
    pub(super) rules: Vec<Rule>,
    pub(super) options: TokenOptions,
    pub(super) cache: TokenCache,
    /// Every header that some rule writes; nothing when none does.
    scrub: Option<Arc<[HeaderName]>>,
    wanted: Vec<WantedKeys>,
}

/// A rule, ready to judge.
pub(super) struct Rule {
    pub(super) spec: JwtRule,
    /// Nothing while the set has not been fetched: then no token of this rule is good.
    pub(super) keys: Option<Arc<KeySet>>,
    pub(super) fetched: bool,
    /// Reduced as [`reduce_audience`] does.
    pub(super) audiences: Vec<String>,
    pub(super) space_delimited: BTreeSet<String>,
    /// Of the first token that was accepted.
    pub(super) known_header: OnceLock<KnownHeader>,
}

/// A token that a rule has accepted, with all that follows from it.
pub(super) struct Accepted {
    pub(super) token: VerifiedToken,
    pub(super) payload_output: Option<(HeaderName, HeaderValue)>,
    pub(super) claim_outputs: Vec<(HeaderName, HeaderValue)>,
    pub(super) times: Times,
    pub(super) findings: Vec<Tolerance>,
}

/// Where a key set is to be fetched from.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum KeySource {
    /// The `jwks_uri` of the discovery document of this issuer, whose `issuer` must be the same.
    Discovery(String),
    /// This URL.
    Url(String),
}

/// A key set that a rule needs.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct WantedKeys {
    /// Where from.
    pub source: KeySource,
    /// How long a fetch may take: the longest `timeout` of the rules that want it.
    pub timeout: Duration,
}

/// The key sets that have been fetched. What is missing makes its rules refuse every token; there
/// is never a placeholder ([SEC-JWT-14], [SEM-ADV-62]).
#[derive(Clone, Debug, Default)]
pub struct KeySets {
    sets: BTreeMap<KeySource, Arc<KeySet>>,
}

impl KeySets {
    /// No set yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a set, replacing the earlier one of the same source.
    pub fn insert(&mut self, source: KeySource, keys: Arc<KeySet>) {
        self.sets.insert(source, keys);
    }

    /// Forgets a set that has become too old.
    pub fn remove(&mut self, source: &KeySource) {
        self.sets.remove(source);
    }

    /// The set of a source.
    #[must_use]
    pub fn get(&self, source: &KeySource) -> Option<&Arc<KeySet>> {
        self.sets.get(source)
    }
}

/// What is known about the user of a request.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_enums, reason = "a new verdict must break every caller")]
pub enum Authentication {
    /// No token: the request goes on, and policies see no user.
    Anonymous(Effects),
    /// A token that a rule accepts.
    Authenticated {
        /// Its claims.
        token: VerifiedToken,
        /// What to do to the request before the application sees it.
        effects: Effects,
    },
    /// A token that must not be believed, also where none is required ([SEC-JWT-7]).
    Refused(Refusal),
}

/// A resource that cannot be compiled as it stands.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct CompileProblem {
    /// The resource, as `namespace/name`.
    pub resource: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Everything that is wrong with a set of resources; at least one problem.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub struct CompileProblems {
    /// Each problem. Never empty.
    pub list: Vec<CompileProblem>,
}

impl RequestAuthenticator {
    /// Selects the resources that apply to the workload and joins their rules: those of the
    /// workload's namespace before those of the root namespace, older resources first, and then
    /// all of them sorted by issuer ([SEM-SEL-20]).
    ///
    /// # Errors
    ///
    /// Every inline key set of which the options allow no key, and every output header that is
    /// also a header some rule takes tokens from.
    pub fn compile(
        resources: &[RequestAuthentication],
        workload: &Workload,
        mesh: &MeshSettings,
        options: TokenOptions,
        keys: &KeySets,
    ) -> Result<Self, CompileProblems> {
        let applies = |resource: &&RequestAuthentication| {
            let namespace = &resource.metadata().namespace;
            resource.attachment().applies(namespace, workload, mesh)
        };
        let mut applicable: Vec<&RequestAuthentication> =
            resources.iter().filter(applies).collect();
        applicable.sort_by_key(|resource| {
            let metadata = resource.metadata();
            (metadata.namespace != workload.namespace(), metadata.order())
        });
        let mut problems = Problems { list: Vec::new() };
        problems.outputs_that_remove_tokens(&applicable);
        for resource in &applicable {
            problems.keys_nobody_may_use(resource, &options);
        }
        if !problems.list.is_empty() {
            return Err(CompileProblems { list: problems.list });
        }

        let specs = applicable.iter().flat_map(|resource| resource.rules());
        let mut rules: Vec<Rule> = specs.map(|spec| Rule::new(spec.clone(), keys)).collect();
        rules.sort_by(|a, b| a.spec.issuer().cmp(&b.spec.issuer()));
        let scrub: BTreeSet<&str> =
            rules.iter().flat_map(|rule| rule.spec.outputs()).map(HeaderName::as_str).collect();
        let scrub: Vec<HeaderName> =
            scrub.into_iter().filter_map(|name| name.parse().ok()).collect();
        let scrub = (!scrub.is_empty()).then(|| scrub.into());
        let wanted = wanted(&rules);
        Ok(Self { rules, options, cache: TokenCache::new(), scrub, wanted })
    }

    /// The key sets to fetch, each once.
    #[must_use]
    pub fn wanted(&self) -> &[WantedKeys] {
        &self.wanted
    }

    /// How many tokens the cache holds, at most [`super::MAX_CACHED_TOKENS`]; for a metric.
    #[must_use]
    pub fn cached_tokens(&self) -> usize {
        self.cache.len()
    }

    /// Bytes that the cache holds, at most [`super::MAX_CACHE_BYTES`]; for a metric.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        self.cache.memory()
    }

    /// The sources that have not been fetched and are needed for a token of this request: it may
    /// wait for them, where that is wanted. Nothing once every rule has its keys.
    #[must_use]
    pub fn unfetched(&self, request: &RequestView<'_>) -> Vec<KeySource> {
        let missing = self.rules.iter().filter(|rule| rule.keys.is_none());
        let with_token = missing
            .filter(|rule| !extract::tokens(&rule.spec.places, request, &Few::new()).is_empty());
        with_token.filter_map(|rule| rule.spec.source()).collect()
    }

    /// The source of the key set that lacked the key a refused token names, if that is why: the
    /// set may be older than the key ([`super::KeyRefresh::missing_key`]).
    #[must_use]
    pub fn lacking(&self, refusal: &Refusal) -> Option<KeySource> {
        self.rules.get(refusal.lacking()?)?.spec.source()
    }

    /// Judges the tokens of a request. `now` is the wall clock.
    ///
    /// No token passes as anonymous; a bad token is refused, even where none is required.
    #[must_use]
    pub fn authenticate(&self, request: &RequestView<'_>, now: UnixTime) -> Authentication {
        let untouched = || Effects::new(self.scrub.as_ref(), Few::new(), None);
        if self.rules.is_empty() {
            return Authentication::Anonymous(untouched());
        }
        // [SEM-JWT-35]; in strict mode a preflight's tokens are judged [SEM-STRICT-16].
        let preflight = is_preflight(request);
        if preflight && self.options.tolerates(Tolerance::UncheckedPreflight) {
            return Authentication::Anonymous(untouched());
        }
        match Judge::new(self, request, now.as_secs()).judge() {
            Err(refusal) => Authentication::Refused(refusal),
            // [SEM-STRICT-20]: verified, but nothing is exposed that Istio would not expose.
            Ok(_) if preflight => Authentication::Anonymous(untouched()),
            Ok(verdict) => {
                let path = verdict.path_and_query(request.path_and_query);
                let token = verdict.token();
                let effects = Effects::new(self.scrub.as_ref(), verdict.into_applied(), path);
                match token {
                    Some(token) => Authentication::Authenticated { token, effects },
                    None => Authentication::Anonymous(effects),
                }
            }
        }
    }
}

impl fmt::Debug for RequestAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let issuers = self.rules.iter().map(|rule| rule.spec.issuer());
        f.debug_struct("RequestAuthenticator")
            .field("issuers", &issuers.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Rule {
    fn new(spec: JwtRule, sets: &KeySets) -> Self {
        let keys = match (&spec.keys, spec.source()) {
            (RuleKeys::Inline(keys), _) => Some(Arc::clone(keys)),
            (RuleKeys::Url(_) | RuleKeys::Discovery, source) => {
                source.and_then(|source| sets.get(&source)).cloned()
            }
        };
        let fetched = !matches!(spec.keys, RuleKeys::Inline(_));
        let audiences = spec.audiences.iter().map(|audience| reduce_audience(audience).to_owned());
        let always = ALWAYS_SPACE_DELIMITED.map(str::to_owned);
        let space_delimited = spec.space_delimited.iter().cloned().chain(always).collect();
        let audiences = audiences.collect();
        Self { keys, fetched, audiences, space_delimited, known_header: OnceLock::new(), spec }
    }

    /// [SEM-JWT-21]
    pub(super) fn accepts_audience(&self, audiences: &[String]) -> Result<(), Reason> {
        let ours = |audience: &String| {
            let audience = reduce_audience(audience);
            self.audiences.iter().any(|allowed| allowed == audience)
        };
        if self.audiences.is_empty() || audiences.iter().any(ours) {
            return Ok(());
        }
        Err(Reason::Audience)
    }

    /// Bytes that a token keeps because policies see some of its claims as lists: the pieces, and
    /// a second copy of all claims, which [`VerifiedToken::payload`] makes when it is asked.
    pub(super) fn split_memory(&self, token: &ParsedToken<'_>) -> usize {
        const PIECE: usize = 32 + 2 * size_of::<serde_json::Value>();
        let texts = self.space_delimited.iter().filter_map(|name| token.claims.text(name));
        let pieces = texts.map(|text| {
            let spaces = memchr::memchr_iter(b' ', text.as_bytes()).count();
            spaces.saturating_add(8).saturating_mul(PIECE).saturating_add(text.len())
        });
        let pieces = pieces.fold(0, usize::saturating_add);
        if pieces == 0 { 0 } else { pieces.saturating_add(token.claims_memory) }
    }
}

impl Accepted {
    /// Bytes on the heap beside the token.
    pub(super) fn outputs_memory(&self) -> usize {
        let Self { token: _, payload_output, claim_outputs, times: _, findings } = self;
        let values = payload_output.iter().chain(claim_outputs).map(|(_, value)| value.len());
        let values = values.map(|len| allocated(len).saturating_add(32));
        let list = claim_outputs.capacity().saturating_mul(size_of::<(HeaderName, HeaderValue)>());
        values.fold(
            allocated(list).saturating_add(allocated(findings.capacity())),
            usize::saturating_add,
        )
    }
}

impl JwtRule {
    /// Where its key set is to be fetched from; nothing when it is inline.
    #[must_use]
    pub fn source(&self) -> Option<KeySource> {
        match &self.keys {
            RuleKeys::Inline(_) => None,
            RuleKeys::Url(url) => Some(KeySource::Url(url.clone())),
            RuleKeys::Discovery => self.issuer.clone().map(KeySource::Discovery),
        }
    }
}

/// An audience without one leading scheme and one trailing slash ([SEM-JWT-21]).
fn reduce_audience(audience: &str) -> &str {
    let bare = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://"));
    let bare = bare.unwrap_or(audience);
    bare.strip_suffix('/').unwrap_or(bare)
}

fn wanted(rules: &[Rule]) -> Vec<WantedKeys> {
    let mut wanted: BTreeMap<KeySource, Duration> = BTreeMap::new();
    for rule in rules {
        if let Some(source) = rule.spec.source() {
            let timeout = wanted.entry(source).or_default();
            *timeout = rule.spec.timeout().max(*timeout);
        }
    }
    wanted.into_iter().map(|(source, timeout)| WantedKeys { source, timeout }).collect()
}

/// OPTIONS with `origin` and `access-control-request-method`, both not empty. Envoy joins lines of
/// either with commas, so two empty ones are not empty.
fn is_preflight(request: &RequestView<'_>) -> bool {
    if request.method != Method::OPTIONS {
        return false;
    }
    let given = |name: HeaderName| {
        let mut lines = request.headers.get_all(name).into_iter();
        lines.next().is_some_and(|first| !first.is_empty() || lines.next().is_some())
    };
    given(ORIGIN) && given(ACCESS_CONTROL_REQUEST_METHOD)
}

/// Collects what cannot be compiled.
struct Problems {
    list: Vec<CompileProblem>,
}

impl Problems {
    fn push(&mut self, resource: &RequestAuthentication, message: String) {
        let metadata = resource.metadata();
        let resource = format!("{}/{}", metadata.namespace, metadata.name);
        self.list.push(CompileProblem { resource, message });
    }

    /// Client copies of output headers are removed before tokens are looked for: a rule that takes
    /// tokens from such a header would silently authenticate nobody.
    fn outputs_that_remove_tokens(&mut self, resources: &[&RequestAuthentication]) {
        let rules = resources.iter().flat_map(|resource| resource.rules());
        let token_headers: BTreeSet<String> =
            rules.flat_map(JwtRule::token_headers).map(|name| name.to_string()).collect();
        for resource in resources {
            for output in resource.rules().iter().flat_map(JwtRule::outputs) {
                if token_headers.contains(output.as_str()) {
                    let message = format!(
                        "output header {output} is also a header that tokens come from; choose \
                         another name"
                    );
                    self.push(resource, message);
                }
            }
        }
    }

    fn keys_nobody_may_use(&mut self, resource: &RequestAuthentication, options: &TokenOptions) {
        for (at, rule) in resource.rules().iter().enumerate() {
            if let RuleKeys::Inline(keys) = &rule.keys
                && !keys.is_acceptable(options, false)
            {
                let message = format!(
                    "spec.jwtRules[{at}].jwks: every key is weak, not canonically encoded or not \
                     for signatures; replace it, or tolerate it by name"
                );
                self.push(resource, message);
            }
        }
    }
}

impl fmt::Display for CompileProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.resource, self.message)
    }
}

impl fmt::Display for CompileProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.list.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}
