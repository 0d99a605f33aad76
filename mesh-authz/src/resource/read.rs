//! From a manifest to a policy: every field by the rules of section 9.1.

use std::cell::RefCell;

use mesh_identity::manifest::{Attachment, Fields, Manifest, Problem, Problems, Reader};

use super::{Action, AuthorizationPolicy, Reading, Rule, Term, Value};
use crate::attribute::{Attribute, KeyError};
use crate::matcher::{HeaderKey, is_impossible_request_principal};

/// Most entries of `rules`, and of `from` and `to` of a rule, by the CRD.
const MAX_ENTRIES: usize = 512;

/// Most `serviceAccounts` of a source, by the CRD.
const MAX_ACCOUNTS: usize = 16;

/// The annotation that makes a policy a dry run ([SEM-EVAL-40]).
const DRY_RUN: &str = "istio.io/dry-run";

/// The fields of `source`, with their `not` twins.
const SOURCE: [(&str, &str, Attribute); 7] = [
    ("principals", "notPrincipals", Attribute::Principal),
    ("requestPrincipals", "notRequestPrincipals", Attribute::RequestPrincipal),
    ("serviceAccounts", "notServiceAccounts", Attribute::ServiceAccount),
    ("trustDomains", "notTrustDomains", Attribute::TrustDomain),
    ("namespaces", "notNamespaces", Attribute::Namespace),
    ("remoteIpBlocks", "notRemoteIpBlocks", Attribute::RemoteIp),
    ("ipBlocks", "notIpBlocks", Attribute::SourceIp),
];

/// The fields of `operation`, with their `not` twins.
const OPERATION: [(&str, &str, Attribute); 4] = [
    ("hosts", "notHosts", Attribute::Host),
    ("methods", "notMethods", Attribute::Method),
    ("paths", "notPaths", Attribute::Path),
    ("ports", "notPorts", Attribute::Port),
];

pub(super) fn policy(
    manifest: &Manifest,
    reading: Reading,
) -> Result<AuthorizationPolicy, Problems> {
    let metadata = manifest.metadata().clone();
    let warnings = RefCell::new(Vec::new());
    let (attachment, action, rules) = manifest.parse(|spec| {
        let mut fields = spec.fields();
        let attachment = match reading {
            Reading::Checked => Attachment::read(&mut fields),
            Reading::Lenient => Attachment::read_lenient(&mut fields),
        };
        let action = read_action(&mut fields, reading);
        let rules = fields.take("rules");
        let context = Context {
            manifest,
            namespace: &metadata.namespace,
            action: action.as_ref(),
            reading,
            warnings: &warnings,
        };
        let has_rules = rules.as_ref().is_some_and(|rules| !rules.items().is_empty());
        let must_have_rules = matches!(action, Some(Action::Deny | Action::Custom { .. }));
        if must_have_rules && !has_rules {
            // [SEM-VAL-05]
            context.refuse(spec, "DENY and CUSTOM need at least one rule");
        }
        let rules = rules.map(|rules| context.rules(&rules)).unwrap_or_default();
        context.finish(fields);
        Some((attachment, action?, rules))
    })?;
    let dry_run = read_dry_run(manifest, &action, reading)?;
    let blank = manifest.problem("spec", "");
    let warnings = warnings.into_inner();
    Ok(AuthorizationPolicy { metadata, attachment, action, dry_run, rules, warnings, blank })
}

/// [SEM-VAL-05] The action with its provider, which CUSTOM alone has.
fn read_action(fields: &mut Fields<'_>, reading: Reading) -> Option<Action> {
    let provider = fields.take("provider");
    let name = provider.as_ref().and_then(|provider| {
        let mut fields = provider.fields();
        if reading == Reading::Lenient {
            let name = fields.take("name").and_then(|name| name.text());
            fields.ignore_rest();
            return name;
        }
        let name = fields.require("name").and_then(|name| name.non_empty_text());
        fields.finish();
        name
    });
    // [SEM-EXT-04] A provider without name is one that is not defined.
    let name = name.or((reading == Reading::Lenient).then_some(""));
    let action = match fields.take("action") {
        None => Action::Allow,
        Some(action) => match action.text()? {
            "ALLOW" => Action::Allow,
            "DENY" => Action::Deny,
            "AUDIT" => Action::Audit,
            "CUSTOM" => {
                if provider.is_none() && reading == Reading::Checked {
                    fields.whole().problem("CUSTOM needs provider.name");
                }
                Action::Custom { provider: name?.to_owned() }
            }
            _ => {
                // [SEM-SEL-08]
                action.problem("unknown action; write ALLOW, DENY, AUDIT or CUSTOM");
                return None;
            }
        },
    };
    if let (Some(provider), Action::Allow | Action::Deny | Action::Audit) = (&provider, &action)
        && reading == Reading::Checked
    {
        provider.problem("only CUSTOM has a provider; remove it");
    }
    Some(action)
}

/// [SEM-VAL-04], [SEM-EVAL-40]
fn read_dry_run(manifest: &Manifest, action: &Action, reading: Reading) -> Result<bool, Problems> {
    let Some(text) = manifest.metadata().annotations.get(DRY_RUN) else { return Ok(false) };
    let problem = |message: &str| {
        let path = "metadata.annotations.istio.io/dry-run";
        Err(Problems::from(manifest.problem(path, message)))
    };
    let dry_run = match text.as_str() {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => true,
        "0" | "f" | "F" | "FALSE" | "false" | "False" => false,
        _ if reading == Reading::Lenient => return Ok(false),
        _ => return problem("not a boolean; write \"true\" or \"false\""),
    };
    match action {
        Action::Allow | Action::Deny => Ok(dry_run),
        Action::Audit | Action::Custom { .. } if reading == Reading::Lenient => Ok(dry_run),
        Action::Audit | Action::Custom { .. } => problem("only ALLOW and DENY have a dry run"),
    }
}

/// What reading a rule depends on.
struct Context<'a> {
    manifest: &'a Manifest,
    namespace: &'a str,
    action: Option<&'a Action>,
    reading: Reading,
    warnings: &'a RefCell<Vec<Problem>>,
}

/// The entries of `from` or `to`.
type Entries = Result<Vec<Vec<Term>>, Dropped>;

/// Istio's answer to a rule it cannot translate: it goes, alone ([SEM-VAL-30]).
struct Dropped;

impl Context<'_> {
    /// Records a problem that the lenient reading passes over.
    fn refuse(&self, at: &Reader<'_>, message: impl std::fmt::Display) {
        if self.reading == Reading::Checked {
            at.problem(message);
        }
    }

    fn warn(&self, at: &Reader<'_>, message: &str) {
        let mut problem = self.manifest.problem(at.path(), message);
        problem.place = Some(at.place());
        self.warnings.borrow_mut().push(problem);
    }

    fn finish(&self, fields: Fields<'_>) {
        match self.reading {
            Reading::Checked => fields.finish(),
            Reading::Lenient => fields.ignore_rest(),
        }
    }

    fn rules(&self, reader: &Reader<'_>) -> Vec<Rule> {
        let items = reader.items();
        if items.len() > MAX_ENTRIES {
            self.refuse(reader, format_args!("at most {MAX_ENTRIES} rules"));
        }
        let rule = |(index, reader): (usize, &Reader<'_>)| self.rule(index, reader);
        items.iter().enumerate().filter_map(rule).collect()
    }

    /// A rule; nothing when Istio drops it.
    fn rule(&self, index: usize, reader: &Reader<'_>) -> Option<Rule> {
        if reader.is_null() {
            self.refuse(reader, "a rule must not be null");
            return None;
        }
        let mut fields = reader.fields();
        let from = fields.take("from").map(|from| self.entries(&from, "from", "source", &SOURCE));
        let to = fields.take("to").map(|to| self.entries(&to, "to", "operation", &OPERATION));
        let when = fields.take("when").map(|when| {
            let items = when.items();
            let terms = items.iter().enumerate().filter_map(|(at, item)| self.condition(at, item));
            terms.collect::<Result<Vec<Term>, Dropped>>()
        });
        self.finish(fields);
        self.warn_of_tcp(reader, from.as_ref(), to.as_ref());
        Some(Rule {
            index,
            from: from.unwrap_or(Ok(Vec::new())).ok()?,
            to: to.unwrap_or(Ok(Vec::new())).ok()?,
            when: when.unwrap_or(Ok(Vec::new())).ok()?,
        })
    }

    /// The entries of `from` or `to`.
    fn entries(
        &self,
        reader: &Reader<'_>,
        list: &str,
        inner: &str,
        known: &[(&str, &str, Attribute)],
    ) -> Result<Vec<Vec<Term>>, Dropped> {
        let items = reader.items();
        if items.is_empty() {
            self.refuse(reader, "must not be empty; leave the field out to mean any");
        }
        if items.len() > MAX_ENTRIES {
            self.refuse(reader, format_args!("at most {MAX_ENTRIES} entries"));
        }
        let entry = |(at, item): (usize, &Reader<'_>)| {
            let path = format!("{list}[{at}].{inner}");
            self.entry(item, inner, &path, known)
        };
        // Every entry is read, so that every problem is reported.
        let entries: Vec<Result<Vec<Term>, Dropped>> =
            items.iter().enumerate().map(entry).collect();
        entries.into_iter().collect()
    }

    fn entry(
        &self,
        reader: &Reader<'_>,
        inner: &str,
        path: &str,
        known: &[(&str, &str, Attribute)],
    ) -> Result<Vec<Term>, Dropped> {
        if reader.is_null() {
            self.refuse(reader, format_args!("must not be null; write {inner}"));
            return Ok(Vec::new());
        }
        let mut outer = reader.fields();
        let body = outer.take(inner);
        self.finish(outer);
        let Some(body) = body else {
            self.refuse(reader, format_args!("field {inner} is missing"));
            return Ok(Vec::new());
        };
        let mut fields = body.fields();
        let mut given = Vec::new();
        for (name, not_name, attribute) in known {
            let (values, not_values) = (fields.take(name), fields.take(not_name));
            if values.is_some() || not_values.is_some() {
                let paths = (format!("{path}.{name}"), format!("{path}.{not_name}"));
                given.push(Given { attribute, paths, values, not_values });
            }
        }
        self.finish(fields);
        if given.iter().all(Given::is_empty) {
            // [SEM-VAL-06]
            self.refuse(&body, "must have at least one field with a value");
        }
        self.check_together(&body, &given);
        let terms: Vec<_> = given.into_iter().map(|given| self.term(given)).collect();
        terms.into_iter().filter_map(Result::transpose).collect()
    }

    /// [SEM-VAL-08], [SEM-VAL-10] What one `source` must not hold together.
    fn check_together(&self, body: &Reader<'_>, given: &[Given<'_>]) {
        let has = |wanted: &[Attribute]| {
            given.iter().any(|one| !one.is_empty() && wanted.contains(one.attribute))
        };
        if has(&[Attribute::ServiceAccount]) && has(&[Attribute::Principal, Attribute::Namespace]) {
            self.refuse(body, "serviceAccounts cannot stand beside principals or namespaces");
        }
        let accounts = given.iter().filter(|one| *one.attribute == Attribute::ServiceAccount);
        for list in accounts.flat_map(|one| [&one.values, &one.not_values]).flatten() {
            if list.items().len() > MAX_ACCOUNTS {
                self.refuse(list, format_args!("at most {MAX_ACCOUNTS} service accounts"));
            }
        }
    }

    /// An entry of `when`; nothing when it has no values ([SEM-EVAL-10], lenient reading).
    fn condition(&self, at: usize, reader: &Reader<'_>) -> Option<Result<Term, Dropped>> {
        if reader.is_null() {
            self.refuse(reader, "a condition must not be null");
            return None;
        }
        let mut fields = reader.fields();
        let key = fields.take("key");
        let (values, not_values) = (fields.take("values"), fields.take("notValues"));
        self.finish(fields);
        let Some(key) = key else {
            self.refuse(reader, "field key is missing");
            return Some(Err(Dropped));
        };
        let attribute = match Attribute::parse_key(key.text()?) {
            Ok(attribute) => Some(attribute),
            Err(KeyError::Unknown) => {
                // [SEM-VAL-15]
                self.refuse(&key, "unknown condition key; correct its spelling");
                return Some(Err(Dropped));
            }
            Err(KeyError::Malformed) => {
                self.refuse(&key, "write the key as a name in brackets, such as [name]");
                None
            }
        };
        let paths = (format!("when[{at}].values"), format!("when[{at}].notValues"));
        let Some(attribute) = &attribute else {
            // No value of a malformed key can be translated.
            let has_values = [&values, &not_values].into_iter().flatten();
            let has_values = has_values.into_iter().any(|list| !list.items().is_empty());
            return (has_values && self.is_allow()).then_some(Err(Dropped));
        };
        self.check_key(&key, attribute);
        let given = Given { attribute, paths, values, not_values };
        if given.is_empty() {
            self.refuse(reader, "needs values or notValues");
        }
        self.term(given).transpose()
    }

    /// [SEM-VAL-15], and names that Envoy or we cannot look up.
    fn check_key(&self, key: &Reader<'_>, attribute: &Attribute) {
        if *attribute == Attribute::Header(HeaderKey::Impossible) {
            self.refuse(key, "the header name is not a token");
        }
        if let Attribute::Claim(path) = attribute
            && (path.is_empty() || path.iter().any(|name| name.is_empty()))
        {
            self.refuse(key, "write the name of a claim in brackets, such as [role]");
        }
        if let Attribute::Metadata { key: name, .. } = attribute
            && (name.is_empty() || !key.text().is_some_and(|key| key.ends_with(']')))
        {
            self.refuse(key, "write the metadata's key in brackets, such as [name]");
        }
    }

    /// A field with its twin; nothing when no value is left.
    fn term(&self, given: Given<'_>) -> Result<Option<Term>, Dropped> {
        let (path, not_path) = given.paths;
        let values = self.values(given.values.as_ref(), given.attribute);
        let not_values = self.values(given.not_values.as_ref(), given.attribute);
        let (values, not_values) = (values?, not_values?);
        if values.is_empty() && not_values.is_empty() {
            return Ok(None);
        }
        let attribute = given.attribute.clone();
        Ok(Some(Term { attribute, path, not_path, values, not_values }))
    }

    fn values(
        &self,
        list: Option<&Reader<'_>>,
        attribute: &Attribute,
    ) -> Result<Vec<Value>, Dropped> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let items = list.items();
        let is_custom = matches!(self.action, Some(Action::Custom { .. }));
        if is_custom && !items.is_empty() && (attribute.is_identity() || attribute.is_token()) {
            // [SEM-VAL-07]
            self.refuse(list, "CUSTOM cannot ask for identities or tokens");
        }
        let mut values = Vec::with_capacity(items.len());
        for item in &items {
            let Some(text) = item.text() else { continue };
            match Value::parse(attribute, text, self.namespace, self.reading) {
                Ok(value) => {
                    self.warn_of_value(item, attribute, text);
                    values.push(value);
                }
                Err(message) => {
                    self.refuse(item, message);
                    if self.is_allow() && self.reading == Reading::Lenient {
                        return Err(Dropped);
                    }
                }
            }
        }
        Ok(values)
    }

    fn warn_of_value(&self, item: &Reader<'_>, attribute: &Attribute, text: &str) {
        if *attribute == Attribute::RequestPrincipal && is_impossible_request_principal(text) {
            self.warn(
                item,
                "can never match: Istio splits at the last slash, which is inside the URL; write \
                 issuer/* or issuer/subject, or conditions on request.auth.claims[iss] and [sub]",
            );
        }
    }

    /// [SEM-TCP-05] The webhook's warning of a DENY rule that hits all TCP traffic.
    fn warn_of_tcp(&self, at: &Reader<'_>, from: Option<&Entries>, to: Option<&Entries>) {
        fn none_has(entries: &Entries, is_l4: fn(&Attribute) -> bool) -> bool {
            let terms = entries.iter().flatten().flatten();
            !terms.map(|term| &term.attribute).any(is_l4)
        }
        let is_l4 = |attribute: &Attribute| {
            !attribute.is_http_only() && *attribute != Attribute::TrustDomain
        };
        let hits_all = match (from, to) {
            (Some(from), None) => none_has(from, is_l4),
            (_, Some(to)) => none_has(to, |attribute| *attribute == Attribute::Port),
            (None, None) => false,
        };
        if hits_all && matches!(self.action, Some(Action::Deny)) {
            self.warn(at, "on TCP its HTTP conditions disappear and the rest refuses; name ports");
        }
    }

    fn is_allow(&self) -> bool {
        matches!(self.action, Some(Action::Allow))
    }
}

/// A field with its `not` twin, as found.
struct Given<'a> {
    attribute: &'a Attribute,
    paths: (String, String),
    values: Option<Reader<'a>>,
    not_values: Option<Reader<'a>>,
}

impl Given<'_> {
    fn is_empty(&self) -> bool {
        [&self.values, &self.not_values].into_iter().flatten().all(|list| list.items().is_empty())
    }
}
