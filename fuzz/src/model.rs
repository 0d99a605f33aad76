//! The rules of AuthorizationPolicy in the plainest code: policies as JSON, every regular
//! expression of Istio's translation as a list of pieces, tried one by one.
//!
//! Slow on purpose, and written from the specification, not from the engine: it shares no code
//! with mesh-authz.

use std::net::IpAddr;

use serde_json::{Map, Value};

/// For whom policies are judged.
#[derive(Clone, Debug)]
pub struct Site {
    /// Namespace of the workload.
    pub namespace: String,
    /// Its label `app`.
    pub app: String,
    /// The mesh's trust domain, then its aliases.
    pub trust_domains: Vec<String>,
}

/// What is known of a request.
#[derive(Clone, Debug)]
pub struct Request {
    /// HTTP, or a TCP connection.
    pub is_http: bool,
    /// The method.
    pub method: String,
    /// The authority.
    pub authority: String,
    /// Path and query, normalized.
    pub path: String,
    /// Header lines, names in lower case; none of a name that Envoy joins twice.
    pub headers: Vec<(String, String)>,
    /// The peer's names.
    pub names: Vec<String>,
    /// The socket's peer.
    pub source: IpAddr,
    /// The client's address.
    pub client: IpAddr,
    /// Our side.
    pub destination: IpAddr,
    /// Our port.
    pub port: u16,
    /// The server name in lower case; empty without.
    pub sni: String,
    /// The claims that policies see.
    pub claims: Option<Map<String, Value>>,
}

/// Whether the request may go on, and the rule that decided.
#[must_use]
pub fn decide(policies: &[Value], site: &Site, request: &Request) -> (bool, Option<String>) {
    let matching = |action: &str| -> Option<String> {
        let mut ids: Vec<String> = policies
            .iter()
            .filter(|policy| is_enforced(policy, action) && applies(policy, site))
            .flat_map(|policy| matching_rules(policy, action, site, request))
            .collect();
        ids.sort();
        ids.into_iter().next()
    };
    if let Some(id) = matching("DENY") {
        return (false, Some(id));
    }
    let is_allow = |policy: &&Value| is_enforced(policy, "ALLOW") && applies(policy, site);
    if policies.iter().any(|policy| is_allow(&policy)) {
        let id = matching("ALLOW");
        (id.is_some(), id)
    } else {
        (true, None)
    }
}

fn is_enforced(policy: &Value, action: &str) -> bool {
    let dry_run = text(&policy["metadata"]["annotations"]["istio.io/dry-run"]);
    let dry_run = ["1", "t", "T", "TRUE", "true", "True"].contains(&dry_run);
    !dry_run && policy["spec"]["action"].as_str().unwrap_or("ALLOW") == action
}

/// [SEM-SEL-02], [SEM-SEL-03]
fn applies(policy: &Value, site: &Site) -> bool {
    let namespace = &policy["metadata"]["namespace"];
    let label = &policy["spec"]["selector"]["matchLabels"]["app"];
    (*namespace == *site.namespace || namespace == "istio-system")
        && (label.is_null() || *label == *site.app)
}

fn matching_rules(policy: &Value, action: &str, site: &Site, request: &Request) -> Vec<String> {
    let (name, namespace) =
        (text(&policy["metadata"]["name"]), text(&policy["metadata"]["namespace"]));
    let context = Context { action, namespace, site, request };
    list(&policy["spec"]["rules"])
        .iter()
        .enumerate()
        .filter(|(_, rule)| context.rule(rule))
        .map(|(at, _)| format!("ns[{namespace}]-policy[{name}]-rule[{at}]"))
        .collect()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

struct Context<'a> {
    action: &'a str,
    namespace: &'a str,
    site: &'a Site,
    request: &'a Request,
}

const SOURCE: [(&str, &str, &str); 7] = [
    ("principals", "notPrincipals", "source.principal"),
    ("requestPrincipals", "notRequestPrincipals", "request.auth.principal"),
    ("namespaces", "notNamespaces", "source.namespace"),
    ("serviceAccounts", "notServiceAccounts", "source.serviceAccount"),
    ("trustDomains", "notTrustDomains", "source.trustDomain"),
    ("ipBlocks", "notIpBlocks", "source.ip"),
    ("remoteIpBlocks", "notRemoteIpBlocks", "remote.ip"),
];

const OPERATION: [(&str, &str, &str); 4] = [
    ("hosts", "notHosts", "host"),
    ("methods", "notMethods", "method"),
    ("paths", "notPaths", "path"),
    ("ports", "notPorts", "destination.port"),
];

impl Context<'_> {
    /// [SEM-EVAL-10], [SEM-TCP-03]
    fn rule(&self, rule: &Value) -> bool {
        let on_tcp = !self.request.is_http;
        if on_tcp && self.action == "ALLOW" && uses_http(rule) {
            return false;
        }
        let (from, to) = (list(&rule["from"]), list(&rule["to"]));
        (from.is_empty() || from.iter().any(|one| self.fields(&one["source"], &SOURCE)))
            && (to.is_empty() || to.iter().any(|one| self.fields(&one["operation"], &OPERATION)))
            && list(&rule["when"]).iter().all(|one| {
                self.condition(text(&one["key"]), list(&one["values"]), list(&one["notValues"]))
            })
    }

    fn fields(&self, entry: &Value, known: &[(&str, &str, &str)]) -> bool {
        known.iter().all(|(field, not_field, key)| {
            self.condition(key, list(&entry[field]), list(&entry[not_field]))
        })
    }

    fn condition(&self, key: &str, values: &[Value], not_values: &[Value]) -> bool {
        if !self.request.is_http && is_http_only(key) {
            return true;
        }
        let any = |values: &[Value]| values.iter().any(|value| self.value(key, text(value)));
        (values.is_empty() || any(values)) && (not_values.is_empty() || !any(not_values))
    }

    /// Whether one value matches; an absent attribute matches nothing ([SEM-AUTHZ-03]).
    fn value(&self, key: &str, value: &str) -> bool {
        let request = self.request;
        let any_name = |check: &dyn Fn(&str) -> bool| request.names.iter().any(|name| check(name));
        let path = request.path.split(['?', '#']).next().unwrap_or_default();
        match key {
            "source.principal" => self
                .expanded_principals(value)
                .iter()
                .any(|value| any_name(&|name| principal(value, name))),
            "source.namespace" => any_name(&|name| namespace(value, name)),
            "source.serviceAccount" => any_name(&|name| account(value, self.namespace, name)),
            "source.trustDomain" => self
                .expanded_trust_domains(value)
                .iter()
                .any(|value| any_name(&|name| trust_domain(value, name))),
            "source.ip" => block(value, request.source),
            "remote.ip" => block(value, request.client),
            "destination.ip" => block(value, request.destination),
            "destination.port" => value.parse() == Ok(request.port),
            "connection.sni" => generic(value, &request.sni),
            "host" => present_or(
                &value.to_ascii_lowercase(),
                Some(&request.authority.to_ascii_lowercase()),
            ),
            "method" => present_or(value, Some(&request.method)),
            "path" if value.contains("{*}") || value.contains("{**}") => template(value, path),
            "path" => generic(value, path),
            "request.auth.principal" => self.request_principal(value),
            "request.auth.audiences" => self.claim(&["aud"], value),
            "request.auth.presenter" => self.claim(&["azp"], value),
            _ => {
                if let Some(name) = key.strip_prefix("request.headers") {
                    self.header(&bracketed(name).to_ascii_lowercase(), value)
                } else if let Some(names) = key.strip_prefix("request.auth.claims") {
                    let names = bracketed(names);
                    let path: Vec<&str> = names.split("][").collect();
                    let is_clean = path.iter().all(|name| !name.contains(['[', ']']));
                    self.claim(if is_clean { &path } else { std::slice::from_ref(&names) }, value)
                } else {
                    false
                }
            }
        }
    }

    fn header(&self, name: &str, value: &str) -> bool {
        let request = self.request;
        match name {
            ":method" => present_or(value, Some(&request.method)),
            ":path" => present_or(value, Some(&request.path)),
            ":scheme" => present_or(value, Some("http")),
            ":authority" | "host" => present_or(value, Some(&request.authority)),
            _ => request
                .headers
                .iter()
                .any(|(other, line)| other == name && present_or(value, Some(line))),
        }
    }

    fn claim(&self, names: &[&str], value: &str) -> bool {
        let Some(claims) = &self.request.claims else { return false };
        let mut found = claims.get(names[0]);
        for name in &names[1..] {
            found = found.and_then(|found| found.as_object()).and_then(|found| found.get(*name));
        }
        match found {
            Some(Value::String(text)) => generic(value, text),
            Some(Value::Array(list)) => {
                list.iter().any(|one| one.as_str().is_some_and(|text| generic(value, text)))
            }
            _ => false,
        }
    }

    /// [SEM-AUTHZ-45]
    fn request_principal(&self, value: &str) -> bool {
        let claims = self.request.claims.as_ref();
        let claim = |name| claims.and_then(|claims| claims.get(name)).and_then(Value::as_str);
        let (Some(issuer), Some(subject)) = (claim("iss"), claim("sub")) else { return false };
        let filled = |text: &str| generic("*", text);
        let split = value.rsplit_once('/');
        if value == "*" {
            filled(issuer) && filled(subject)
        } else if let Some(rest) = value.strip_prefix('*') {
            match split {
                Some(("*", last)) => filled(issuer) && subject == last,
                Some((first, last)) => issuer.ends_with(&first[1..]) && subject == last,
                None => filled(issuer) && subject.ends_with(rest),
            }
        } else if let Some(rest) = value.strip_suffix('*') {
            match split {
                Some((first, "*")) => issuer == first && filled(subject),
                Some((first, last)) => {
                    issuer == first && subject.starts_with(last.trim_end_matches('*'))
                }
                None => issuer.starts_with(rest) && filled(subject),
            }
        } else {
            let (first, last) = split.unwrap_or((value, ""));
            issuer == first && subject == last
        }
    }

    /// [SEM-AUTHZ-21]
    fn expanded_principals(&self, value: &str) -> Vec<String> {
        let parts: Vec<&str> = value.split('/').collect();
        let domains = &self.site.trust_domains;
        let t = parts[0];
        let star = |pattern: &str, text: &str| {
            pattern.strip_suffix('*').is_some_and(|start| text.starts_with(start))
                || pattern.strip_prefix('*').is_some_and(|end| text.ends_with(end))
        };
        let known = t == "cluster.local"
            || domains.iter().any(|d| d == t || d == "*" || star(d, t) || star(t, d));
        if parts.len() != 5 || t == "*" || !known {
            return vec![value.to_owned()];
        }
        let keeps = |d: &str| t.strip_prefix('*').is_some_and(|end| d.ends_with(end));
        let rest = parts[1..].join("/");
        let one = |d: &String| if keeps(d) { value.to_owned() } else { format!("{d}/{rest}") };
        domains.iter().map(one).collect()
    }

    /// [SEM-AUTHZ-28]
    fn expanded_trust_domains(&self, value: &str) -> Vec<String> {
        let domains = &self.site.trust_domains;
        if domains.iter().any(|d| d == value) { domains.clone() } else { vec![value.to_owned()] }
    }
}

/// What stands in the outer brackets.
fn bracketed(text: &str) -> &str {
    text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text)
}

fn is_http_only(key: &str) -> bool {
    matches!(key, "host" | "method" | "path") || key.starts_with("request.")
}

fn uses_http(rule: &Value) -> bool {
    let used = |entry: &Value, known: &[(&str, &str, &str)]| {
        known.iter().any(|(field, not_field, key)| {
            is_http_only(key)
                && (!list(&entry[field]).is_empty() || !list(&entry[not_field]).is_empty())
        })
    };
    list(&rule["from"]).iter().any(|one| used(&one["source"], &SOURCE))
        || list(&rule["to"]).iter().any(|one| used(&one["operation"], &OPERATION))
        || list(&rule["when"]).iter().any(|one| is_http_only(text(&one["key"])))
}

/// [SEM-AUTHZ-01]
fn generic(value: &str, text: &str) -> bool {
    if value == "*" {
        !text.is_empty() && !text.contains('\n')
    } else if let Some(end) = value.strip_prefix('*') {
        text.ends_with(end)
    } else if let Some(start) = value.strip_suffix('*') {
        text.starts_with(start)
    } else {
        text == value
    }
}

/// [SEM-AUTHZ-55]
fn present_or(value: &str, text: Option<&str>) -> bool {
    text.is_some_and(|text| value == "*" || generic(value, text))
}

/// A piece of one of Istio's regular expressions.
#[derive(Clone)]
enum Piece {
    Literal(String),
    /// At least so many bytes that the function accepts.
    Some(usize, fn(u8) -> bool),
}

fn any(_: u8) -> bool {
    true
}

fn within_segment(byte: u8) -> bool {
    byte != b'/'
}

/// Whether the whole text is made of the pieces: every way to divide it is tried.
fn whole(pieces: &[Piece], text: &[u8]) -> bool {
    let Some((first, rest)) = pieces.split_first() else { return text.is_empty() };
    match first {
        Piece::Literal(literal) => {
            text.strip_prefix(literal.as_bytes()).is_some_and(|text| whole(rest, text))
        }
        Piece::Some(least, accepts) => (0..=text.len())
            .take_while(|len| *len == 0 || accepts(text[len - 1]))
            .any(|len| len >= *least && whole(rest, &text[len..])),
    }
}

fn literal(text: &str) -> Piece {
    Piece::Literal(text.to_owned())
}

/// The value with each star replaced.
fn starred(value: &str, star: &Piece) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for (at, part) in value.split('*').enumerate() {
        if at > 0 {
            pieces.push(star.clone());
        }
        pieces.push(literal(part));
    }
    pieces
}

/// [SEM-AUTHZ-20]
fn principal(value: &str, name: &str) -> bool {
    match value.strip_prefix('*') {
        Some("") => generic("*", name),
        Some(end) => {
            whole(&[literal("spiffe://"), Piece::Some(0, any), literal(end)], name.as_bytes())
        }
        None => generic(&format!("spiffe://{value}"), name),
    }
}

/// [SEM-AUTHZ-26] `.*/ns/` value `/.*`
fn namespace(value: &str, name: &str) -> bool {
    let mut pieces = vec![Piece::Some(0, any), literal("/ns/")];
    pieces.extend(starred(value, &Piece::Some(0, any)));
    pieces.extend([literal("/"), Piece::Some(0, any)]);
    whole(&pieces, name.as_bytes())
}

/// [SEM-AUTHZ-27] `spiffe://.+/ns/NS/(.+/|)sa/NAME(/.+)?`
fn account(value: &str, policy_namespace: &str, name: &str) -> bool {
    let (namespace, account) = value.split_once('/').unwrap_or((policy_namespace, value));
    let between = [vec![], vec![Piece::Some(1, any), literal("/")]];
    let behind = [vec![], vec![literal("/"), Piece::Some(1, any)]];
    between.iter().any(|between| {
        behind.iter().any(|behind| {
            let start = [literal("spiffe://"), Piece::Some(1, any)];
            let namespace = [literal(&format!("/ns/{namespace}/"))];
            let account = [literal(&format!("sa/{account}"))];
            let pieces = [&start, &namespace[..], between, &account, behind].concat();
            whole(&pieces, name.as_bytes())
        })
    })
}

/// [SEM-AUTHZ-28]
fn trust_domain(value: &str, name: &str) -> bool {
    if value == "*" {
        return name.starts_with("spiffe://");
    }
    let mut pieces = vec![literal("spiffe://")];
    pieces.extend(starred(value, &Piece::Some(0, within_segment)));
    pieces.extend([literal("/"), Piece::Some(0, any)]);
    whole(&pieces, name.as_bytes())
}

/// [SEM-AUTHZ-67]
fn template(value: &str, path: &str) -> bool {
    fn in_alphabet(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || b"-._~%!$&'()+,;:@=*".contains(&byte)
    }
    fn or_slash(byte: u8) -> bool {
        byte == b'/' || in_alphabet(byte)
    }
    let mut pieces = Vec::new();
    let mut rest = value;
    while let Some(at) = rest.find("{*") {
        pieces.push(literal(&rest[..at]));
        let (piece, len) = if rest[at..].starts_with("{**}") {
            (Piece::Some(0, or_slash as fn(u8) -> bool), 4)
        } else {
            (Piece::Some(1, in_alphabet as fn(u8) -> bool), 3)
        };
        pieces.push(piece);
        rest = &rest[at + len..];
    }
    pieces.push(literal(rest));
    whole(&pieces, path.as_bytes())
}

/// [SEM-AUTHZ-30] Bit by bit.
fn block(value: &str, ip: IpAddr) -> bool {
    let (address, len) = match value.split_once('/') {
        Some((address, len)) => (address, len.parse().ok()),
        None => (value, None),
    };
    let bits = |ip: IpAddr| -> Vec<bool> {
        let bytes = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        bytes.iter().flat_map(|byte| (0..8).map(move |at| byte & (0x80 >> at) != 0)).collect()
    };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let (want, got) = (bits(address), bits(ip));
    let len = len.unwrap_or(want.len());
    want.len() == got.len() && want[..len] == got[..len]
}

/// The path and query that policies see ([SEM-PATH-01]), or nothing where Envoy answers 400.
///
/// `mode` is Istio's name of it.
#[must_use]
pub fn normalize(mode: &str, raw: &[u8]) -> Option<Vec<u8>> {
    if raw == b"*" {
        return Some(raw.to_vec());
    }
    if raw.first() != Some(&b'/') || raw.iter().any(|byte| *byte <= b' ' || *byte == 0x7f) {
        return None;
    }
    let raw = raw.split(|byte| *byte == b'#').next()?;
    if mode == "NONE" {
        return Some(raw.to_vec());
    }
    let end = raw.iter().position(|byte| *byte == b'?').unwrap_or(raw.len());
    let (path, query) = raw.split_at(end);
    let mut path = path.to_vec();
    if mode == "DECODE_AND_MERGE_SLASHES" {
        for (escape, byte) in
            [(&b"%2F"[..], b'/'), (b"%2f", b'/'), (b"%5C", b'\\'), (b"%5c", b'\\')]
        {
            path = replaced(&path, escape, byte);
        }
    }
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').map(without_parameters).collect();
    let unescaped = unescaped(&segments.join(&b'/'))?;
    let mut path = without_dots(&unescaped);
    if mode.ends_with("MERGE_SLASHES") {
        path = merged(&path);
    }
    path.extend_from_slice(query);
    Some(path)
}

/// [SEM-PATH-10]
fn replaced(path: &[u8], escape: &[u8], byte: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < path.len() {
        if path[at..].starts_with(escape) {
            out.push(byte);
            at += 3;
        } else {
            out.push(path[at]);
            at += 1;
        }
    }
    out
}

/// [SEM-PATH-15]
fn without_parameters(segment: &[u8]) -> &[u8] {
    if segment.starts_with(b"..;") {
        b".."
    } else if segment.starts_with(b".;") {
        b"."
    } else {
        segment
    }
}

/// [SEM-PATH-16]
fn unescaped(path: &[u8]) -> Option<Vec<u8>> {
    let mut out: Vec<u8> = Vec::new();
    let mut stray: Option<usize> = None;
    let mut at = 0;
    while at < path.len() {
        let byte = path[at];
        let two = path.get(at + 1..at + 3).filter(|two| two.iter().all(u8::is_ascii_hexdigit));
        at += 1;
        match (byte, two) {
            (b'%', Some(two)) => {
                let digits = std::str::from_utf8(two).ok()?;
                let meant = u8::from_str_radix(digits, 16).ok()?;
                at += 2;
                if meant == 0 {
                    return None;
                }
                if !(meant.is_ascii_alphanumeric() || b"-._~".contains(&meant)) {
                    out.push(b'%');
                    out.extend_from_slice(two);
                    continue;
                }
                out.push(meant);
                // Would two hex digits stand behind a percent sign that had none?
                let Some(percent) = stray else { continue };
                let behind = [&out[percent + 1..], path.get(at..=at).unwrap_or_default()].concat();
                let fits = out.len() - percent <= 3;
                if fits && behind.len() >= 2 && behind[..2].iter().all(u8::is_ascii_hexdigit) {
                    out.splice(percent..=percent, *b"%25");
                    stray = None;
                }
            }
            (b'%', None) => {
                stray = Some(out.len());
                out.push(b'%');
            }
            (b'\\', _) => out.push(b'/'),
            (b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x80.., _) => {
                out.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            _ => out.push(byte),
        }
    }
    Some(out)
}

/// [SEM-PATH-17]
fn without_dots(path: &[u8]) -> Vec<u8> {
    let segments: Vec<&[u8]> = path.split(|byte| *byte == b'/').skip(1).collect();
    let mut kept: Vec<&[u8]> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let is_last = at + 1 == segments.len();
        match *segment {
            b"." | b".." => {
                if *segment == b".." {
                    kept.pop();
                }
                if is_last {
                    kept.push(b"");
                }
            }
            other => kept.push(other),
        }
    }
    [b"/".to_vec(), kept.join(&b'/')].concat()
}

/// [SEM-PATH-20]
fn merged(path: &[u8]) -> Vec<u8> {
    if !path.windows(2).any(|two| two == b"//") {
        return path.to_vec();
    }
    let names: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
    let end: &[u8] = if path.ends_with(b"/") { b"/" } else { b"" };
    [b"/", &names.join(&b'/')[..], end].concat()
}
