//! What must not be shown is taken out of texts before anybody sees them ([SEC-OPS-4],
//! [SEC-JWT-10]).

use std::borrow::Cow;

/// What stands in place of a secret.
const HIDDEN: &str = "***";

/// How every JWS in compact form begins: `{"` in base64url.
const TOKEN: &str = "eyJ";

/// Replaces everything that looks like a JWT. What is left is borrowed where there is none.
pub(crate) fn tokens(text: &str) -> Cow<'_, str> {
    // Nearly every text is without one, and short.
    if !text.as_bytes().windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(TOKEN) {
        let (before, token) = rest.split_at(at);
        let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
        let end = token.find(|c| !part(c)).unwrap_or(token.len());
        let (_, after) = token.split_at(end);
        shown.push_str(before);
        shown.push_str(HIDDEN);
        rest = after;
    }
    shown.push_str(rest);
    Cow::Owned(shown)
}

/// A path with its query, without the values of parameters that hold tokens.
///
/// `parameters` are the names that RequestAuthentications look at, `access_token` is one anyway.
pub(crate) fn path_and_query(path: &str, query: Option<&str>, parameters: &[String]) -> String {
    let path = tokens(path);
    let Some(query) = query else { return path.into_owned() };
    let mut shown = path.into_owned();
    let mut separator = '?';
    for pair in query.split('&') {
        shown.push(separator);
        separator = '&';
        match pair.split_once('=') {
            Some((name, _)) if is_secret(name, parameters) => {
                shown.push_str(name);
                shown.push('=');
                shown.push_str(HIDDEN);
            }
            _ => shown.push_str(&tokens(pair)),
        }
    }
    shown
}

/// Hides tokens in the event of a decision log, wherever they stand: in headers that a policy looks at,
/// in paths, parameters and answers.
#[cfg(feature = "rego")]
pub(crate) fn event(event: &mut serde_json::Value) {
    const HTTP: &str = "/input/attributes/request/http";
    for path in [format!("{HTTP}/path"), format!("{HTTP}/headers/:path")] {
        if let Some(serde_json::Value::String(text)) = event.pointer_mut(&path)
            && let Some((before, query)) = text.split_once('?')
        {
            *text = path_and_query(before, Some(query), &[]);
        }
    }
    if let Some(serde_json::Value::Object(query)) = event.pointer_mut("/input/parsed_query") {
        for (_, values) in query.iter_mut().filter(|(name, _)| is_secret(name, &[])) {
            *values = HIDDEN.into();
        }
    }
    let mut pending = vec![event];
    while let Some(value) = pending.pop() {
        match value {
            serde_json::Value::String(text) => {
                if let Cow::Owned(hidden) = tokens(text) {
                    *text = hidden;
                }
            }
            serde_json::Value::Array(items) => pending.extend(items),
            serde_json::Value::Object(members) => pending.extend(members.values_mut()),
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
            }
        }
    }
}

/// Whether a parameter of this name holds a token, also when it is percent-encoded.
fn is_secret(name: &str, parameters: &[String]) -> bool {
    let name = percent_encoding::percent_decode_str(name).decode_utf8_lossy();
    name.eq_ignore_ascii_case("access_token") || parameters.iter().any(|one| *one == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_jwt_10_tokens_in_the_query_are_masked() {
        let own = ["ticket".to_owned()];
        let shown = |path: &str, query: &str| path_and_query(path, Some(query), &own);
        assert_eq!(shown("/a", "access_token=abc&x=1"), "/a?access_token=***&x=1");
        assert_eq!(shown("/a", "access%5Ftoken=abc"), "/a?access%5Ftoken=***");
        assert_eq!(shown("/a", "ticket=opaque&y"), "/a?ticket=***&y");
        assert_eq!(shown("/a", "t=eyJhbGciOi.J9.x"), "/a?t=***");
        assert_eq!(shown("/a", "t=xeyJhbGciOi.J9.x;u"), "/a?t=x***;u");
        assert_eq!(shown("/a", "x=1&flag"), "/a?x=1&flag");
        assert_eq!(path_and_query("/a/eyJh.J9.x/b", None, &own), "/a/***/b");
        assert_eq!(path_and_query("/a", None, &own), "/a");
    }

    #[cfg(feature = "rego")]
    #[test]
    fn sec_jwt_10_and_sec_ops_4_decision_logs_show_no_token() {
        let jwt = "eyJhbGciOi.J9.x";
        let path = format!("/a/{jwt}?access_token=opaque&t={jwt}&q=1");
        let mut logged = serde_json::json!({
            "input": {
                "attributes": {"request": {"http": {
                    "path": path, "headers": {":path": path, "x-jwt": jwt, "x-other": "kept"},
                }}},
                "parsed_path": ["a", jwt],
                "parsed_query": {"access_token": ["opaque"], "t": [jwt], "q": ["1"]},
            },
            "result": {"headers": {"x-token": format!("Bearer {jwt}")}},
        });
        event(&mut logged);
        let shown = "/a/***?access_token=***&t=***&q=1";
        let want = serde_json::json!({
            "input": {
                "attributes": {"request": {"http": {
                    "path": shown, "headers": {":path": shown, "x-jwt": "***", "x-other": "kept"},
                }}},
                "parsed_path": ["a", "***"],
                "parsed_query": {"access_token": "***", "t": ["***"], "q": ["1"]},
            },
            "result": {"headers": {"x-token": "Bearer ***"}},
        });
        assert_eq!(logged, want);
    }
}
