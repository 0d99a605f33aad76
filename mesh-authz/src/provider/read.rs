//! From the JSON of a mesh configuration to providers.

use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};
use serde_json::{Map, Value};

use super::{
    CheckBody, CheckSettings, ExtensionProvider, HeaderList, HttpCheck, MeshConfigError,
    ProviderConfig, ProviderError,
};

const HTTP: &str = "envoyExtAuthzHttp";
const GRPC: &str = "envoyExtAuthzGrpc";

/// The longest `timeout` that is taken: a day.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

/// The most of a body that a provider may ask for.
const MAX_BODY: u64 = 16 << 20;

pub(super) fn read_all(config: &Value) -> Result<Vec<ExtensionProvider>, MeshConfigError> {
    let error = |at, message: &str| MeshConfigError { at, message: message.to_owned() };
    let entries = match config.get("extensionProviders") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(entries)) => entries,
        Some(_) => return Err(error(0, "extensionProviders is no list")),
    };
    let mut providers = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let entry = entry.as_object().ok_or_else(|| error(at, "it is no map"))?;
        let name = entry.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| error(at, "field name is missing"))?;
        let config = match (entry.get(HTTP), entry.get(GRPC)) {
            (None, None) => continue,
            (Some(_), Some(_)) => Err(wrong(GRPC, "a provider is of one kind")),
            (Some(config), None) => Fields::of(HTTP, config).and_then(http),
            (None, Some(config)) => Fields::of(GRPC, config).and_then(grpc),
        };
        providers.push(ExtensionProvider { name: name.to_owned(), config });
    }
    Ok(providers)
}

fn grpc(mut fields: Fields<'_>) -> Result<ProviderConfig, ProviderError> {
    let settings = settings(&mut fields)?;
    fields.finish()?;
    Ok(ProviderConfig::Grpc(settings))
}

fn http(mut fields: Fields<'_>) -> Result<ProviderConfig, ProviderError> {
    let settings = settings(&mut fields)?;
    let path_prefix = fields.text("pathPrefix")?.unwrap_or_default();
    let odd = |c: char| c.is_ascii_control() || matches!(c, ' ' | '?' | '#');
    if !path_prefix.is_empty() && (!path_prefix.starts_with('/') || path_prefix.contains(odd)) {
        return Err(wrong("envoyExtAuthzHttp.pathPrefix", "it must be a path and begin with /"));
    }
    // The older name counts only where the newer one is empty.
    let older = fields.list("includeHeadersInCheck")?;
    let newer = fields.list("includeRequestHeadersInCheck")?;
    let check = HttpCheck {
        path_prefix: path_prefix.to_owned(),
        request_headers: if newer.is_empty() { older } else { newer },
        additional_headers: fields.headers("includeAdditionalHeadersInCheck")?,
        to_upstream_on_allow: fields.list("headersToUpstreamOnAllow")?,
        to_downstream_on_allow: fields.list("headersToDownstreamOnAllow")?,
        to_downstream_on_deny: fields.list("headersToDownstreamOnDeny")?,
    };
    fields.finish()?;
    Ok(ProviderConfig::Http(settings, check))
}

fn settings(fields: &mut Fields<'_>) -> Result<CheckSettings, ProviderError> {
    let service = fields.text("service")?.unwrap_or_default();
    let host = service.rsplit('/').next().unwrap_or_default();
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    if host.is_empty() || !host.chars().all(is_host) || service.split('/').count() > 2 {
        return Err(fields.wrong("service", "it must be [namespace/]host"));
    }
    let port = fields.number("port")?.and_then(|port| u16::try_from(port).ok());
    let port = port.filter(|port| *port > 0);
    let port = port.ok_or_else(|| fields.wrong("port", "it must be 1 to 65535"))?;
    let mut settings = CheckSettings::new(service, port);
    settings.timeout = fields.duration("timeout")?;
    settings.fail_open = fields.boolean("failOpen")?;
    if let Some(status) = fields.text("statusOnError")? {
        let known = status.parse().ok().filter(|status: &StatusCode| {
            status.canonical_reason().is_some() && !status.is_informational()
        });
        settings.status_on_error =
            known.ok_or_else(|| fields.wrong("statusOnError", "it is no known HTTP status"))?;
    }
    if let Some(body) = fields.take("includeRequestBodyInCheck") {
        let mut body = Fields::of(&fields.path("includeRequestBodyInCheck"), body)?;
        let max = body.number("maxRequestBytes")?.filter(|max| (1..=MAX_BODY).contains(max));
        let max = max.and_then(|max| usize::try_from(max).ok());
        settings.body = Some(CheckBody {
            max_bytes: max
                .ok_or_else(|| body.wrong("maxRequestBytes", "it must be 1 to 16777216"))?,
            allow_partial: body.boolean("allowPartialMessage")?,
            as_bytes: body.boolean("packAsBytes")?,
        });
        body.finish()?;
    }
    // In the API, but istiod does nothing with it: there are no routes here either.
    fields.boolean("clearRouteCache")?;
    Ok(settings)
}

fn wrong(field: &str, message: &str) -> ProviderError {
    ProviderError { place: None, field: field.to_owned(), message: message.to_owned() }
}

/// The fields of one map; [`Fields::finish`] reports those that nobody took.
struct Fields<'a> {
    at: String,
    map: &'a Map<String, Value>,
    taken: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    fn of(at: &str, value: &'a Value) -> Result<Self, ProviderError> {
        let map = value.as_object().ok_or_else(|| wrong(at, "it is no map"))?;
        Ok(Self { at: at.to_owned(), map, taken: Vec::new() })
    }

    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.at)
    }

    fn wrong(&self, name: &str, message: &str) -> ProviderError {
        wrong(&self.path(name), message)
    }

    fn take(&mut self, name: &'static str) -> Option<&'a Value> {
        self.taken.push(name);
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn text(&mut self, name: &'static str) -> Result<Option<&'a str>, ProviderError> {
        let value = self.take(name);
        value
            .map(|value| value.as_str().ok_or_else(|| self.wrong(name, "it must be text")))
            .transpose()
    }

    fn boolean(&mut self, name: &'static str) -> Result<bool, ProviderError> {
        let value = self.take(name);
        let value = value
            .map(|value| value.as_bool().ok_or_else(|| self.wrong(name, "it must be a boolean")));
        value.transpose().map(Option::unwrap_or_default)
    }

    fn number(&mut self, name: &'static str) -> Result<Option<u64>, ProviderError> {
        let value = self.take(name);
        let wrong = || self.wrong(name, "it must be a whole number");
        value.map(|value| value.as_u64().ok_or_else(wrong)).transpose()
    }

    /// A protobuf duration: seconds with an `s`, as in `0.25s`.
    fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, ProviderError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let seconds = text.strip_suffix('s').filter(|number| {
            number.chars().all(|c| c.is_ascii_digit() || c == '.') && !number.is_empty()
        });
        let seconds = seconds.and_then(|number| number.parse().ok());
        let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let duration = duration.filter(|duration| !duration.is_zero() && *duration <= MAX_TIMEOUT);
        let wrong =
            || self.wrong(name, "it must be seconds, such as 0.25s, above 0 and at most a day");
        duration.ok_or_else(wrong).map(Some)
    }

    fn list(&mut self, name: &'static str) -> Result<HeaderList, ProviderError> {
        let Some(value) = self.take(name) else { return Ok(HeaderList::default()) };
        let texts = value.as_array().map(|items| items.iter().map(Value::as_str));
        let texts = texts.and_then(Iterator::collect::<Option<Vec<_>>>);
        let texts = texts.ok_or_else(|| self.wrong(name, "it must be a list of texts"))?;
        HeaderList::parse(texts).map_err(|error| self.wrong(name, &error.to_string()))
    }

    fn headers(
        &mut self,
        name: &'static str,
    ) -> Result<Vec<(HeaderName, HeaderValue)>, ProviderError> {
        let Some(value) = self.take(name) else { return Ok(Vec::new()) };
        let wrong = || self.wrong(name, "it must be a map from header names to values");
        let header = |(name, value): (&String, &Value)| {
            let value = value.as_str().and_then(|value| HeaderValue::from_str(value).ok())?;
            Some((name.parse::<HeaderName>().ok()?, value))
        };
        let entries = value.as_object().ok_or_else(wrong)?;
        entries.iter().map(header).collect::<Option<Vec<_>>>().ok_or_else(wrong)
    }

    fn finish(self) -> Result<(), ProviderError> {
        match self.map.keys().find(|name| !self.taken.contains(&name.as_str())) {
            Some(name) => {
                let name: String = name.chars().take(64).flat_map(char::escape_debug).collect();
                Err(self.wrong(&name, "unknown field; remove it or correct its spelling"))
            }
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn one(kind: &str, config: &Value) -> Result<ProviderConfig, ProviderError> {
        let config = json!({"extensionProviders": [{"name": "p", kind: config}]});
        read_all(&config).unwrap().remove(0).config
    }

    #[test]
    fn sem_ext_04_all_fields_are_read() {
        let config = json!({
            "service": "foo/ext.foo.svc.cluster.local", "port": 8000, "pathPrefix": "/check",
            "failOpen": true, "statusOnError": "503", "timeout": "0.25s",
            "includeHeadersInCheck": ["x-old"], "includeRequestHeadersInCheck": ["x-new"],
            "includeAdditionalHeadersInCheck": {"x-fixed": "1"},
            "includeRequestBodyInCheck":
                {"maxRequestBytes": 10, "allowPartialMessage": true, "packAsBytes": true},
            "headersToUpstreamOnAllow": ["x-up"], "headersToDownstreamOnDeny": ["x-deny*"],
            "headersToDownstreamOnAllow": ["*-down"], "clearRouteCache": true,
        });
        let ProviderConfig::Http(settings, check) = one(HTTP, &config).unwrap() else {
            panic!("a provider of HTTP");
        };
        assert_eq!((settings.host(), settings.port), ("ext.foo.svc.cluster.local", 8000));
        assert_eq!(settings.timeout, Some(Duration::from_millis(250)));
        assert_eq!(settings.status_on_error, StatusCode::SERVICE_UNAVAILABLE);
        assert!(settings.fail_open);
        let body = settings.body.unwrap();
        assert_eq!((body.max_bytes, body.allow_partial, body.as_bytes), (10, true, true));
        assert!(check.request_headers.matches(&HeaderName::from_static("x-new")));
        assert!(!check.request_headers.matches(&HeaderName::from_static("x-old")));
        assert_eq!(check.additional_headers.len(), 1);
    }

    #[test]
    fn sem_ext_03_and_sem_ext_04_bad_providers_say_what_is_wrong() {
        let base = || json!({"service": "a.b", "port": 80});
        for (kind, field, value) in [
            (HTTP, "pathPrefix", json!("check")),
            (HTTP, "headersToUpstreamOnAllow", json!(["*"])),
            (HTTP, "statusOnError", json!("999")),
            (HTTP, "statusOnError", json!(503)),
            (HTTP, "port", json!(0)),
            (GRPC, "port", json!(65_536)),
            (GRPC, "service", json!("a/b/c")),
            (GRPC, "service", json!("")),
            (GRPC, "timeout", json!("5")),
            (GRPC, "timeout", json!("0s")),
            (GRPC, "timeout", json!("1e3s")),
            (GRPC, "pathPrefix", json!("/x")),
            (GRPC, "failOpen", json!("true")),
        ] {
            let mut config = base();
            config[field] = value.clone();
            let error = one(kind, &config).unwrap_err();
            assert_eq!(error.field, format!("{kind}.{field}"), "{value}");
        }
        assert!(one(HTTP, &base()).is_ok() && one(GRPC, &base()).is_ok());
    }
}
