//! The three conditions that the vectors probe, as Istio's policies read them.

use mesh_identity::VerifiedToken;
use serde_json::Value;

use super::vector::Probe;

pub(crate) fn matches(token: Option<&VerifiedToken>, probe: &Probe) -> bool {
    let Some(token) = token else { return false };
    match probe {
        Probe::Principals { request_principals } => matches_principals(token, request_principals),
        Probe::Claim { key, values } => {
            let names: Vec<String> = match key.as_str() {
                "request.auth.audiences" => vec!["aud".to_owned()],
                "request.auth.presenter" => vec!["azp".to_owned()],
                "request.auth.principal" => return matches_principals(token, values),
                _ => claim_path(key),
            };
            let claim = token.view().at(names.iter().map(String::as_str));
            let matches = |value: &Value| {
                value.as_str().is_some_and(|text| values.iter().any(|v| matches_text(v, text)))
            };
            match claim {
                Some(Value::Array(items)) => items.iter().any(matches),
                Some(value) => matches(value),
                None => false,
            }
        }
    }
}

/// [SEM-AUTHZ-50]
fn claim_path(key: &str) -> Vec<String> {
    let inner = key.split_once('[').unwrap().1.strip_suffix(']').unwrap();
    let parts: Vec<String> = inner.split("][").map(str::to_owned).collect();
    if parts.iter().any(|part| part.contains(['[', ']'])) {
        return vec![inner.to_owned()];
    }
    parts
}

fn matches_text(pattern: &str, text: &str) -> bool {
    match (pattern, pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        ("*", ..) => is_present(text),
        (_, Some(suffix), _) => text.ends_with(suffix),
        (_, None, Some(prefix)) => text.starts_with(prefix),
        (_, None, None) => text == pattern,
    }
}

fn is_present(text: &str) -> bool {
    !text.is_empty() && !text.contains('\n')
}

/// [SEM-AUTHZ-45]
pub(crate) fn matches_principals(token: &VerifiedToken, patterns: &[String]) -> bool {
    let (Some(issuer), Some(subject)) = (token.view().issuer(), token.view().subject()) else {
        return false;
    };
    patterns.iter().any(|pattern| {
        let split = pattern.rsplit_once('/');
        if pattern == "*" {
            return is_present(issuer) && is_present(subject);
        }
        if let Some(rest) = pattern.strip_prefix('*') {
            return match split {
                Some(("*", s)) => is_present(issuer) && subject == s,
                Some((i, s)) => issuer.ends_with(i.trim_start_matches('*')) && subject == s,
                None => is_present(issuer) && subject.ends_with(rest),
            };
        }
        if let Some(rest) = pattern.strip_suffix('*') {
            return match split {
                Some((i, "*")) => issuer == i && is_present(subject),
                Some((i, s)) => issuer == i && subject.starts_with(s.trim_end_matches('*')),
                None => issuer.starts_with(rest) && is_present(subject),
            };
        }
        match split {
            Some((i, s)) => issuer == i && subject == s,
            None => issuer == pattern && subject.is_empty(),
        }
    })
}
