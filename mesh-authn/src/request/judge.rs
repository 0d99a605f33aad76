//! One request before the rules: Envoy's two rounds, then the objections of a strict reader.
//!
//! The verdict is Envoy's first. What strict mode adds can only turn it into a refusal, so nobody
//! passes whom Istio would not let pass, and nobody passes as somebody else ([SEM-STRICT-20]).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_identity::VerifiedToken;

use super::RequestView;
use super::authenticator::{Accepted, RequestAuthenticator, Rule};
use super::cache::{Entry, MAX_CACHE_SECONDS};
use super::effects::{Applied, claim_outputs, payload_output};
use super::extract::{self, Found};
use super::few::Few;
use super::options::Tolerance;
use super::refusal::{Reason, Refusal};
use super::resource::TokenPlace;
use super::token::{Header, ParsedToken, SKEW};

/// The state of one request while it is judged.
pub(super) struct Judge<'a> {
    of: &'a RequestAuthenticator,
    request: &'a RequestView<'a>,
    now: u64,
    /// Places whose token has been accepted and taken out of the request.
    taken: Few<&'a TokenPlace>,
    /// Accepted tokens in the order in which they were verified.
    applied: Few<Use<'a>>,
    /// What rules said about tokens, so that no signature is checked twice. Sorted, as a request may
    /// bring many tokens to many rules.
    seen: BTreeMap<RuleAndToken<'a>, Result<Arc<Accepted>, Reason>>,
    /// Why a token that Envoy might accept was not looked at: its size.
    beyond_limits: Option<Reason>,
    /// A rule whose fetched key set lacks the key that a token names.
    lacking: Option<usize>,
}

/// A rule by its place in the list, and a token shown to it.
type RuleAndToken<'a> = (usize, Cow<'a, [u8]>);

/// An accepted token and the rule and place it was accepted for.
struct Use<'a> {
    rule: usize,
    token: Cow<'a, [u8]>,
    place: &'a TokenPlace,
    accepted: Arc<Accepted>,
    /// Whether `outputPayloadToHeader` is written: not when another token of the same rule failed
    /// afterwards. (Envoy keeps the claim headers even then.)
    writes_payload: bool,
}

/// Why a rule does not accept a token.
struct Failure {
    reason: Reason,
    /// The rule's key set was fetched and lacks the key that the token names.
    lacks_key: bool,
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self { reason, lacks_key: false }
    }
}

/// What a rule says about a request.
enum Answer {
    /// At least one token, all of them good.
    Good,
    /// No token at any of its places.
    NoToken,
}

/// A request that passes: the tokens that were accepted, and where they were taken out.
pub(super) struct Verdict<'a> {
    applied: Few<Use<'a>>,
    taken: Few<&'a TokenPlace>,
}

impl<'a> Judge<'a> {
    pub(super) fn new(
        of: &'a RequestAuthenticator,
        request: &'a RequestView<'a>,
        now: u64,
    ) -> Self {
        let (taken, applied, seen) = (Few::new(), Few::new(), BTreeMap::new());
        Self { of, request, now, taken, applied, seen, beyond_limits: None, lacking: None }
    }

    pub(super) fn judge(mut self) -> Result<Verdict<'a>, Refusal> {
        let path_in_realm = self.of.options.tolerates(Tolerance::PathInRealm);
        match self.as_envoy().and_then(|()| self.objections()) {
            Ok(()) => Ok(Verdict { applied: self.applied, taken: self.taken }),
            Err(reason) => Err(Refusal::new(reason, path_in_realm, self.lacking)),
        }
    }

    /// [SEM-JWT-30], [SEM-JWT-31]. The error told is the last one met that is not "unknown
    /// issuer", else that one.
    fn as_envoy(&mut self) -> Result<(), Reason> {
        let mut told = None;
        let note = |told: &mut Option<Reason>, reason: Reason| {
            if told.is_none() || reason != Reason::UnknownIssuer {
                *told = Some(reason);
            }
        };
        // Round one: the first rule whose tokens are all good ends the matter.
        for index in 0..self.of.rules.len() {
            match self.rule(index) {
                Ok(Answer::Good) => return Ok(()),
                Ok(Answer::NoToken) => {}
                Err(reason) => note(&mut told, reason),
            }
        }
        let Some(first) = told else { return Ok(()) };
        if self.of.rules.len() == 1 {
            return Err(first);
        }
        // Round two: every rule is good or sees no token. Tokens accepted in round one are gone.
        for index in 0..self.of.rules.len() {
            if let Err(reason) = self.rule(index) {
                note(&mut told, reason);
                return told.map_or(Ok(()), Err);
            }
        }
        Ok(())
    }

    /// All tokens at a rule's places, checked from the last place to the first; all must be good
    /// ([SEM-JWT-10]).
    fn rule(&mut self, index: usize) -> Result<Answer, Reason> {
        let Some(rule) = self.of.rules.get(index) else { return Ok(Answer::NoToken) };
        let found = extract::tokens(&rule.spec.places, self.request, &self.taken);
        if found.is_empty() {
            return Ok(Answer::NoToken);
        }
        let before = self.applied.iter().count();
        for Found { place, token } in found.into_iter().rev() {
            let accepted = match self.verify(index, token.clone()) {
                Ok(accepted) => accepted,
                Err(reason) => {
                    let failed = self.applied.iter_mut().skip(before);
                    failed.for_each(|used| used.writes_payload = false);
                    return Err(reason);
                }
            };
            if !rule.spec.forward {
                self.taken.push(place);
            }
            self.applied.push(Use { rule: index, token, place, accepted, writes_payload: true });
        }
        Ok(Answer::Good)
    }

    fn verify(&mut self, index: usize, token: Cow<'a, [u8]>) -> Result<Arc<Accepted>, Reason> {
        let key = (index, token);
        if let Some(verdict) = self.seen.get(&key) {
            return verdict.clone();
        }
        let verdict = self.of.verify(index, &key.1, self.now).map_err(|failure| {
            if failure.lacks_key {
                self.lacking = Some(index);
            }
            if matches!(failure.reason, Reason::TooLong | Reason::TooDeep) {
                self.beyond_limits = Some(failure.reason);
            }
            failure.reason
        });
        // A single rule asks about each token once.
        if self.of.rules.len() > 1 {
            self.seen.insert(key, verdict.clone());
        }
        verdict
    }

    /// What Envoy lets pass and the options do not.
    fn objections(&mut self) -> Result<(), Reason> {
        if let Some(reason) = self.beyond_limits {
            return Err(reason);
        }
        let options = &self.of.options;
        let objection =
            self.applied.iter().find_map(|used| options.objection(&used.accepted.findings));
        if let Some(objection) = objection {
            return Err(Reason::NotTolerated(objection));
        }
        for tolerance in [
            Tolerance::BearerSpelling,
            Tolerance::RepeatedParameter,
            Tolerance::BorrowedIssuer,
            Tolerance::UnacceptedToken,
        ] {
            if !options.tolerates(tolerance) && self.has(tolerance) {
                return Err(Reason::NotTolerated(tolerance));
            }
        }
        Ok(())
    }

    /// Whether the request as a whole needs this tolerance. Those of single tokens and keys are
    /// among the findings of the accepted tokens.
    fn has(&mut self, tolerance: Tolerance) -> bool {
        match tolerance {
            Tolerance::BearerSpelling => self.has_odd_bearer(),
            Tolerance::RepeatedParameter => self.has_repeated_parameter(),
            Tolerance::BorrowedIssuer => self.has_borrowed_issuer(),
            Tolerance::UnacceptedToken => self.has_unaccepted_token(),
            Tolerance::AlgorithmMismatch
            | Tolerance::Base64Padding
            | Tolerance::CriticalHeader
            | Tolerance::EmptySegments
            | Tolerance::KeyUse
            | Tolerance::LooseBase64
            | Tolerance::LooseKeyEncoding
            | Tolerance::LooseSignatureLength
            | Tolerance::NoExpiry
            | Tolerance::NullPayload
            | Tolerance::PathInRealm
            | Tolerance::SharedSecret
            | Tolerance::UncheckedPreflight
            | Tolerance::WeakKey => false,
        }
    }

    /// An `Authorization` header that names Bearer, where a rule looks for `Bearer ` and finds
    /// no token ([SEM-STRICT-02]).
    fn has_odd_bearer(&self) -> bool {
        let is_authorization = |place: &TokenPlace| match place {
            TokenPlace::Header(name, _) => name == http::header::AUTHORIZATION,
            TokenPlace::Param(_) | TokenPlace::Cookie(_) => false,
        };
        // A header that held an accepted token was spelled well enough.
        if self.applied.iter().any(|used| is_authorization(used.place))
            || !extract::names_bearer(self.request.headers)
        {
            return false;
        }
        let places = self.of.rules.iter().flat_map(|rule| &rule.spec.places);
        let mut bearers = places.filter(|place| match place {
            TokenPlace::Header(name, prefix) => {
                name == http::header::AUTHORIZATION && prefix.eq_ignore_ascii_case("bearer ")
            }
            TokenPlace::Param(_) | TokenPlace::Cookie(_) => false,
        });
        bearers.any(|place| {
            extract::tokens(std::slice::from_ref(place), self.request, &Few::new()).is_empty()
        })
    }

    /// RFC 6750 section 3.1.
    fn has_repeated_parameter(&self) -> bool {
        let places = self.of.rules.iter().flat_map(|rule| &rule.spec.places);
        let mut names = places.filter_map(|place| match place {
            TokenPlace::Param(name) => Some(name.as_str()),
            TokenPlace::Header(..) | TokenPlace::Cookie(_) => None,
        });
        names.any(|name| {
            let mut given = extract::values_of(self.request.path_and_query, name);
            given.nth(1).is_some()
        })
    }

    /// A rule without issuer has accepted a token whose `iss` is another rule's, and no such rule
    /// accepts it.
    fn has_borrowed_issuer(&mut self) -> bool {
        let of = self.of;
        if of.rules.iter().all(|rule| rule.spec.issuer().is_some()) {
            return false;
        }
        let free = |used: &&Use<'a>| {
            of.rules.get(used.rule).is_some_and(|rule| rule.spec.issuer().is_none())
        };
        let suspects: Vec<(Cow<'a, [u8]>, Option<String>)> = self
            .applied
            .iter()
            .filter(free)
            .map(|used| {
                let issuer = used.accepted.token.payload().issuer().map(str::to_owned);
                (used.token.clone(), issuer)
            })
            .collect();
        suspects.into_iter().any(|(token, issuer)| {
            let is_owner =
                |rule: &Rule| issuer.is_some() && rule.spec.issuer() == issuer.as_deref();
            let owners = of.rules.iter().enumerate().filter(|(_, rule)| is_owner(rule));
            let owners: Vec<usize> = owners.map(|(index, _)| index).collect();
            !owners.is_empty()
                && !owners.into_iter().any(|owner| self.is_clean(owner, token.clone()))
        })
    }

    /// Some token at some rule's place is good for no rule that looks there ([SEM-STRICT-01]).
    fn has_unaccepted_token(&mut self) -> bool {
        let of = self.of;
        if of.rules.len() == 1 {
            // Every token it saw is good, or the request had been refused.
            return false;
        }
        // Each token once, however many lines and rules it is found by.
        let mut accepted: BTreeMap<Cow<'a, [u8]>, bool> = BTreeMap::new();
        for (index, rule) in of.rules.iter().enumerate() {
            for found in extract::tokens(&rule.spec.places, self.request, &Few::new()) {
                let is_clean = self.is_clean(index, found.token.clone());
                *accepted.entry(found.token).or_default() |= is_clean;
            }
        }
        accepted.into_values().any(|accepted| !accepted)
    }

    /// Whether a rule accepts a token without objections.
    fn is_clean(&mut self, index: usize, token: Cow<'a, [u8]>) -> bool {
        let verdict = self.verify(index, token);
        verdict.is_ok_and(|accepted| self.of.options.objection(&accepted.findings).is_none())
    }
}

impl Verdict<'_> {
    /// The token whose claims count: the last one verified, which is the first one found
    /// ([SEM-JWT-10]).
    pub(super) fn token(&self) -> Option<VerifiedToken> {
        self.applied.last().map(|used| used.accepted.token.clone())
    }

    /// The path without the token parameters that were taken out; nothing when none was.
    pub(super) fn path_and_query(&self, path_and_query: &str) -> Option<String> {
        let mut params = self.taken.iter().filter_map(|place| match place {
            TokenPlace::Param(name) => Some(name.as_str()),
            TokenPlace::Header(..) | TokenPlace::Cookie(_) => None,
        });
        let first = params.next()?;
        let gone: Vec<&str> = std::iter::once(first).chain(params).collect();
        Some(extract::without_params(path_and_query, &gone))
    }

    pub(super) fn into_applied(self) -> Few<Applied> {
        let mut applied = Few::new();
        for Use { place, accepted, writes_payload, .. } in self.applied {
            let gone = match place {
                TokenPlace::Header(name, _) => {
                    let is_same =
                        |taken: &&TokenPlace| std::ptr::eq(*taken, place) || *taken == place;
                    self.taken.iter().any(is_same).then(|| name.clone())
                }
                TokenPlace::Param(_) | TokenPlace::Cookie(_) => None,
            };
            applied.push(Applied { accepted, gone, writes_payload });
        }
        applied
    }
}

impl RequestAuthenticator {
    /// One token under one rule: from the cache, or step by step ([SEM-JWT-15] to [SEM-JWT-22]).
    fn verify(&self, index: usize, token: &[u8], now: u64) -> Result<Arc<Accepted>, Failure> {
        let rule = self.rules.get(index).ok_or(Reason::UnknownIssuer)?;
        let lookup = self.cache.lookup(index, token);
        if let Some(accepted) = self.cache.get(&lookup, now)
            && accepted.times.check(now, SKEW).is_ok()
        {
            return Ok(accepted);
        }
        let parsed = ParsedToken::parse(token, self.options.limits(), rule.known_header.get())?;
        // [SEM-JWT-19]
        if rule.spec.issuer().is_some_and(|issuer| parsed.claims.issuer() != Some(issuer)) {
            return Err(Reason::UnknownIssuer.into());
        }
        parsed.times.check(now, SKEW)?;
        rule.accepts_audience(&parsed.audiences)?;
        let keys = rule.keys.as_ref().ok_or(Reason::KeysUnavailable)?;
        let Header { algorithm, kid, .. } = &*parsed.header;
        let kid = kid.as_deref();
        let (signed, signature) = (&parsed.signed, &parsed.signature);
        let key_findings = keys
            .verify(kid, *algorithm, signed, signature, rule.fetched, &self.options)
            .map_err(|reason| {
                let lacks_key = rule.fetched && kid.is_some_and(|kid| !keys.has_kid(kid));
                Failure { reason, lacks_key: lacks_key && reason == Reason::NoMatchingKey }
            })?;
        let payload_output = payload_output(rule.spec.payload_header.as_ref(), parsed.payload_part);
        let claim_outputs = claim_outputs(&rule.spec.claim_headers, &parsed.claims);
        let one_spelling = parsed.findings.iter().all(|finding| *finding == Tolerance::NoExpiry);
        // One token in many spellings must not fill the cache.
        let keep = one_spelling.then(|| {
            rule.known_header.get_or_init(|| parsed.known_header());
            parsed.claims_memory.saturating_add(rule.split_memory(&parsed))
        });
        let mut findings = parsed.findings;
        findings.extend(key_findings);
        let names = rule.space_delimited.iter().map(String::as_str);
        let accepted = Arc::new(Accepted {
            token: VerifiedToken::assert_verified(parsed.claims, names),
            payload_output,
            claim_outputs,
            times: parsed.times,
            findings,
        });
        if let Some(claims_memory) = keep {
            let until = now.saturating_add(MAX_CACHE_SECONDS);
            let memory = claims_memory.saturating_add(accepted.outputs_memory());
            self.cache.insert(&lookup, Entry::new(Arc::clone(&accepted), until, memory));
        }
        Ok(accepted)
    }
}
