//! RequestAuthentication as its author wrote it ([SEM-VAL-20], CRD limits).

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use mesh_identity::manifest::{Attachment, Fields, Kind, Manifest, Metadata, Problems, Reader};

use super::key_set::KeySet;

/// Most rules of a resource, by the CRD.
pub const MAX_RULES: usize = 4096;

/// Longest `jwksUri`, by the CRD.
pub const MAX_KEY_URL_LEN: usize = 2048;

/// Most entries of `spaceDelimitedClaims`, by the CRD.
pub const MAX_SPACE_DELIMITED: usize = 64;

/// How long a key set may take to arrive when `timeout` is absent.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);

/// Headers that frame the message or name its target: a claim must not replace them.
const NEVER_AN_OUTPUT: [&str; 7] =
    ["connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"];

/// Which tokens are believed: one resource, checked.
///
/// # Examples
///
/// ```
/// use mesh_authn::request::RequestAuthentication;
///
/// let text = r#"{"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
///     "metadata": {"name": "idp", "namespace": "shop"}, "spec": {"jwtRules": [
///         {"issuer": "https://idp.example", "jwksUri": "https://idp.example/keys"}]}}"#;
/// let manifests = mesh_identity::manifest::read(text, "idp.json", "default")?;
/// let resource = RequestAuthentication::from_manifest(&manifests.resources[0])?;
/// assert_eq!(resource.rules().len(), 1);
/// # Ok::<(), mesh_identity::manifest::Problems>(())
/// ```
#[derive(Clone, Debug)]
pub struct RequestAuthentication {
    metadata: Metadata,
    attachment: Attachment,
    rules: Vec<JwtRule>,
}

/// One entry of `jwtRules`: an issuer, its keys, and where its tokens lie.
#[derive(Clone, Debug)]
pub struct JwtRule {
    pub(super) issuer: Option<String>,
    pub(super) audiences: Vec<String>,
    pub(super) keys: RuleKeys,
    pub(super) places: Vec<TokenPlace>,
    pub(super) payload_header: Option<HeaderName>,
    pub(super) claim_headers: Vec<ClaimHeader>,
    pub(super) forward: bool,
    pub(super) timeout: Duration,
    pub(super) space_delimited: Vec<String>,
}

/// Where a rule's keys come from.
#[derive(Clone, Debug)]
pub(super) enum RuleKeys {
    Inline(Arc<KeySet>),
    Url(String),
    /// The issuer's discovery document names the URL ([SEM-RES-10]).
    Discovery,
}

/// A place where a token may lie.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum TokenPlace {
    /// A header, and what stands before the token; nothing when the prefix is empty.
    Header(HeaderName, String),
    /// A query parameter.
    Param(String),
    /// A cookie.
    Cookie(String),
}

impl TokenPlace {
    /// Envoy looks in this order, and takes equal keys for one place ([SEM-JWT-02]).
    fn order(&self) -> (u8, String) {
        match self {
            Self::Header(name, prefix) => (0, format!("{name}{prefix}")),
            Self::Param(name) => (1, name.clone()),
            Self::Cookie(name) => (2, name.clone()),
        }
    }
}

/// A claim that the application gets as a header ([SEM-JWT-57]).
#[derive(Clone, Debug)]
pub(super) struct ClaimHeader {
    pub(super) header: HeaderName,
    /// The claim's name split at dots.
    pub(super) path: Vec<String>,
}

impl RequestAuthentication {
    /// Reads the resource.
    ///
    /// # Errors
    ///
    /// Every problem of the `spec`: what Istio's webhook refuses, unknown fields, an inline key
    /// set without usable key, and outputs that Envoy would let replace the token or the host.
    pub fn from_manifest(manifest: &Manifest) -> Result<Self, Problems> {
        if manifest.kind() != Kind::RequestAuthentication {
            return Err(manifest.problem("kind", "expected RequestAuthentication").into());
        }
        let metadata = manifest.metadata().clone();
        let (attachment, rules) = manifest.parse(|spec| {
            let mut fields = spec.fields();
            let attachment = Attachment::read(&mut fields);
            let rules = fields.take("jwtRules").map(|rules| read_rules(&rules)).unwrap_or_default();
            fields.finish();
            Some((attachment, rules))
        })?;
        Ok(Self { metadata, attachment, rules })
    }

    /// The metadata.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Which workloads it applies to.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// The rules in the order written.
    #[must_use]
    pub fn rules(&self) -> &[JwtRule] {
        &self.rules
    }
}

impl JwtRule {
    /// The issuer; absent, any token's `iss` will do ([SEM-JWT-40]).
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.issuer.as_deref()
    }

    /// How long its key set may take to arrive.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The query parameters this rule reads tokens from: what a log must not show
    /// ([SEC-JWT-10]).
    pub fn token_parameters(&self) -> impl Iterator<Item = &str> {
        self.places.iter().filter_map(|place| match place {
            TokenPlace::Param(name) => Some(name.as_str()),
            TokenPlace::Header(..) | TokenPlace::Cookie(_) => None,
        })
    }

    /// The headers this rule writes.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        self.payload_header.iter().chain(self.claim_headers.iter().map(|claim| &claim.header))
    }

    /// The headers this rule reads tokens from; cookies lie in one too.
    pub(super) fn token_headers(&self) -> impl Iterator<Item = HeaderName> {
        self.places.iter().filter_map(|place| match place {
            TokenPlace::Header(name, _) => Some(name.clone()),
            TokenPlace::Cookie(_) => Some(http::header::COOKIE),
            TokenPlace::Param(_) => None,
        })
    }
}

fn read_rules(reader: &Reader<'_>) -> Vec<JwtRule> {
    let items = reader.items();
    if items.len() > MAX_RULES {
        reader.problem(format_args!("at most {MAX_RULES} rules"));
    }
    items.iter().filter_map(read_rule).collect()
}

fn read_rule(reader: &Reader<'_>) -> Option<JwtRule> {
    let mut fields = reader.fields();
    let issuer = fields.take("issuer");
    let issuer = issuer.and_then(|issuer| issuer.non_empty_text()).map(str::to_owned);
    let audiences = texts(&mut fields, "audiences");
    let keys = read_keys(&mut fields, issuer.as_deref());
    let places = read_places(&mut fields);
    let payload_header = fields
        .take("outputPayloadToHeader")
        .filter(|header| header.text() != Some(""))
        .and_then(|header| output_header(&header));
    let claim_headers = match fields.take("outputClaimToHeaders") {
        Some(list) => list.items().iter().filter_map(read_claim_header).collect(),
        None => Vec::new(),
    };
    let forward = fields.take("forwardOriginalToken").and_then(|value| value.boolean());
    let timeout = match fields.take("timeout") {
        Some(timeout) => read_timeout(&timeout),
        None => Some(DEFAULT_TIMEOUT),
    };
    let space_delimited = texts(&mut fields, "spaceDelimitedClaims");
    if space_delimited.len() > MAX_SPACE_DELIMITED {
        reader.problem(format_args!("at most {MAX_SPACE_DELIMITED} space-delimited claims"));
    }
    fields.finish();
    let rule = JwtRule {
        issuer,
        audiences,
        keys: keys?,
        places,
        payload_header,
        claim_headers,
        forward: forward.unwrap_or(false),
        timeout: timeout?,
        space_delimited,
    };
    let token_headers: Vec<HeaderName> = rule.token_headers().collect();
    if rule.outputs().any(|output| token_headers.contains(output)) {
        reader.problem(
            "an output header is also a header the token comes from: the token would be removed \
             before anybody looks at it; choose another name",
        );
    }
    Some(rule)
}

/// At most one of `jwks`, `jwksUri`, `jwks_uri`; without any, discovery from the issuer.
fn read_keys(fields: &mut Fields<'_>, issuer: Option<&str>) -> Option<RuleKeys> {
    let (inline, url, alias) =
        (fields.take("jwks"), fields.take("jwksUri"), fields.take("jwks_uri"));
    let given = [&inline, &url, &alias].into_iter().filter(|field| field.is_some()).count();
    if given > 1 {
        fields.whole().problem("only one of jwks, jwksUri and jwks_uri can be given");
        return None;
    }
    if issuer.is_none() && url.is_none() && alias.is_none() {
        fields.whole().problem("needs an issuer, or a jwksUri");
        return None;
    }
    if let Some(inline) = inline {
        let text = inline.non_empty_text()?;
        return match KeySet::parse(text.as_bytes()) {
            Ok(keys) => Some(RuleKeys::Inline(Arc::new(keys))),
            Err(error) => {
                inline.problem(error);
                None
            }
        };
    }
    let Some(url) = url.or(alias) else { return Some(RuleKeys::Discovery) };
    let text = url.non_empty_text()?;
    let has_scheme = ["http://", "https://"].iter().any(|scheme| {
        text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let parsed = text.parse::<http::Uri>().ok().filter(|uri| uri.host().is_some());
    if text.len() > MAX_KEY_URL_LEN || !has_scheme || parsed.is_none() {
        url.problem(format_args!("not an http or https URL of at most {MAX_KEY_URL_LEN} bytes"));
        return None;
    }
    Some(RuleKeys::Url(text.to_owned()))
}

/// The places in the order in which Envoy looks; the two defaults when none is named
/// ([SEM-JWT-01], [SEM-JWT-02]).
fn read_places(fields: &mut Fields<'_>) -> Vec<TokenPlace> {
    let mut places = Vec::new();
    if let Some(list) = fields.take("fromHeaders") {
        places.extend(list.items().iter().filter_map(read_header_place));
    }
    places.extend(texts(fields, "fromParams").into_iter().map(TokenPlace::Param));
    places.extend(texts(fields, "fromCookies").into_iter().map(TokenPlace::Cookie));
    if places.is_empty() {
        places.extend([
            TokenPlace::Header(http::header::AUTHORIZATION, "Bearer ".to_owned()),
            TokenPlace::Param("access_token".to_owned()),
        ]);
    }
    places.sort_by_cached_key(TokenPlace::order);
    places.dedup_by_key(|place| place.order());
    places
}

fn read_header_place(reader: &Reader<'_>) -> Option<TokenPlace> {
    let mut fields = reader.fields();
    let name = fields.require("name").and_then(|name| header_name(&name));
    let prefix = match fields.take("prefix") {
        Some(prefix) => prefix.text().map(str::to_owned),
        None => Some(String::new()),
    };
    fields.finish();
    Some(TokenPlace::Header(name?, prefix?))
}

fn read_claim_header(reader: &Reader<'_>) -> Option<ClaimHeader> {
    let mut fields = reader.fields();
    let (header, claim) = (fields.require("header"), fields.require("claim"));
    fields.finish();
    let (header, claim) = (header?, claim?.non_empty_text()?);
    let text = header.non_empty_text()?;
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        header.problem("a header name for a claim has only letters, digits, - and _");
        return None;
    }
    let path = claim.split('.').map(str::to_owned).collect();
    Some(ClaimHeader { header: output_header(&header)?, path })
}

fn output_header(reader: &Reader<'_>) -> Option<HeaderName> {
    let name = header_name(reader)?;
    if NEVER_AN_OUTPUT.contains(&name.as_str()) {
        reader.problem("this header frames the request; choose another name");
        return None;
    }
    Some(name)
}

fn header_name(reader: &Reader<'_>) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(reader.non_empty_text()?.as_bytes()).ok();
    if name.is_none() {
        reader.problem("not a header name");
    }
    name
}

/// A list of texts, none of them empty.
fn texts(fields: &mut Fields<'_>, name: &str) -> Vec<String> {
    let items = fields.take(name).map(|list| list.items()).unwrap_or_default();
    items.iter().filter_map(Reader::non_empty_text).map(str::to_owned).collect()
}

/// `1m30s`, `1.5s`, `250ms`: at least one millisecond and no finer.
fn read_timeout(reader: &Reader<'_>) -> Option<Duration> {
    let timeout = parse_duration(reader.non_empty_text()?);
    let timeout = timeout.filter(|timeout| {
        *timeout >= Duration::from_millis(1)
            && timeout.subsec_nanos().checked_rem(1_000_000) == Some(0)
    });
    if timeout.is_none() {
        reader.problem("not a duration such as 5s or 250ms, of whole milliseconds, at least one");
    }
    timeout
}

fn parse_duration(mut text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    while !text.is_empty() {
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at_checked(digits)?;
        let unit_len = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
        let (unit, rest) = rest.split_at_checked(unit_len)?;
        let nanos: u64 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            "ms" => 1_000_000,
            "us" => 1_000,
            "ns" => 1,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let scale = 10_u64.checked_pow(u32::try_from(fraction.len()).ok()?)?;
        let part = fraction.parse::<u64>().ok()?.checked_mul(nanos)?.checked_div(scale)?;
        let whole = whole.parse::<u64>().ok()?.checked_mul(nanos)?;
        total = total.checked_add(Duration::from_nanos(whole.checked_add(part)?))?;
        text = rest;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rules: &str) -> Result<RequestAuthentication, Problems> {
        let text = format!(
            r#"{{"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
                "metadata": {{"name": "a", "namespace": "b"}}, "spec": {{"jwtRules": [{rules}]}}}}"#
        );
        let manifests = mesh_identity::manifest::read(&text, "a.json", "b")?;
        RequestAuthentication::from_manifest(&manifests.resources[0])
    }

    #[test]
    fn sem_val_20_what_the_webhook_refuses() {
        for good in [
            r#"{"issuer": "i"}"#,
            r#"{"issuer": "i", "jwks_uri": "http://h/k", "timeout": "1m0.25s"}"#,
            r#"{"issuer": "i", "fromHeaders": [{"name": "x", "prefix": ""}]}"#,
        ] {
            assert!(read(good).is_ok(), "{good}");
        }
        for bad in [
            "{}",
            r#"{"issuer": ""}"#,
            r#"{"jwks": "{\"keys\":[{\"kty\":\"oct\",\"k\":\"AAAA\"}]}"}"#,
            r#"{"issuer": "i", "audiences": [""]}"#,
            r#"{"issuer": "i", "jwksUri": "ftp://h/k"}"#,
            r#"{"issuer": "i", "jwksUri": "h/k"}"#,
            r#"{"issuer": "i", "jwksUri": "http://h/k", "jwks_uri": "http://h/k"}"#,
            r#"{"issuer": "i", "jwks": "hello"}"#,
            r#"{"issuer": "i", "jwks": "{\"keys\":[{\"kty\":\"XX\"}]}"}"#,
            r#"{"issuer": "i", "fromHeaders": [{"name": ""}]}"#,
            r#"{"issuer": "i", "fromHeaders": [{"prefix": "x"}]}"#,
            r#"{"issuer": "i", "fromParams": [""]}"#,
            r#"{"issuer": "i", "fromCookies": [""]}"#,
            r#"{"issuer": "i", "outputClaimToHeaders": [{"header": "x"}]}"#,
            r#"{"issuer": "i", "outputClaimToHeaders": [{"claim": "x"}]}"#,
            r#"{"issuer": "i", "outputClaimToHeaders": [{"header": "x!", "claim": "x"}]}"#,
            r#"{"issuer": "i", "outputClaimToHeaders": [{"header": "host", "claim": "x"}]}"#,
            r#"{"issuer": "i", "outputPayloadToHeader": "Authorization"}"#,
            r#"{"issuer": "i", "timeout": "0s"}"#,
            r#"{"issuer": "i", "timeout": "1500us"}"#,
            r#"{"issuer": "i", "timeout": "5"}"#,
            r#"{"issuer": "i", "audience": ["x"]}"#,
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sem_jwt_02_places_are_sorted_as_envoy_looks() {
        let rule = r#"{"issuer": "i", "fromCookies": ["a"], "fromParams": ["z", "b"],
            "fromHeaders": [{"name": "X-AB"}, {"name": "x-a", "prefix": "p"}, {"name": "x-a"}]}"#;
        let resource = read(rule).unwrap();
        let header = |name: &'static str, prefix: &str| {
            TokenPlace::Header(HeaderName::from_static(name), prefix.to_owned())
        };
        let want = [
            header("x-a", ""),
            header("x-ab", ""),
            header("x-a", "p"),
            TokenPlace::Param("b".to_owned()),
            TokenPlace::Param("z".to_owned()),
            TokenPlace::Cookie("a".to_owned()),
        ];
        assert_eq!(resource.rules()[0].places, want);
    }
}
