//! Puts the changes of an allowing answer into the request.

use ::http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use ::http::request::Parts;
use ::http::uri::PathAndQuery;
use ::http::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Changes, RequestChanges};
use crate::gather;
use crate::handed;
use crate::refuse::Refusal;

/// They say where a message goes, where its body ends and what is between two ends of a connection
/// (RFC 9110 section 7.6.1): judged and read already, or not yet known.
const FIXED: [HeaderName; 9] = [
    HOST,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    UPGRADE,
    TE,
    TRAILER,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// Whether an answer may set or remove the header, in a request or a response.
pub(crate) fn may_change(name: &HeaderName) -> bool {
    !FIXED.contains(name)
}

/// Changes the request, and keeps what is for the response.
pub(crate) fn apply(
    parts: &mut Parts,
    asked: RequestChanges,
    changes: &mut Changes,
) -> Result<(), Refusal> {
    let RequestChanges {
        headers_to_set,
        headers_to_append,
        headers_to_remove,
        response_headers,
        query_to_set,
        query_to_remove,
        dynamic_metadata,
        revision: _,
    } = asked;
    for name in headers_to_remove.iter().filter(|name| may_change(name)) {
        parts.headers.remove(name);
    }
    // The client's own lines of these names go, all of them.
    for (name, _) in headers_to_set.iter().filter(|(name, _)| may_change(name)) {
        parts.headers.remove(name);
    }
    for (name, value) in headers_to_set.into_iter().filter(|(name, _)| may_change(name)) {
        parts.headers.append(name, value);
    }
    for (name, value) in headers_to_append.into_iter().filter(|(name, _)| may_change(name)) {
        let joined = joined(parts.headers.get_all(&name).iter().chain([&value]))?;
        parts.headers.insert(name, joined);
    }
    let response_headers = response_headers.into_iter().filter(|(name, _)| may_change(name));
    changes.response_headers.extend(response_headers);
    changes.handed.add(handed::HTTP, dynamic_metadata);
    change_query(parts, &query_to_set, &query_to_remove)
}

fn joined<'v>(values: impl Iterator<Item = &'v HeaderValue>) -> Result<HeaderValue, Refusal> {
    let joined = values.map(HeaderValue::as_bytes).collect::<Vec<_>>().join(&b","[..]);
    HeaderValue::from_bytes(&joined).map_err(|_long| Refusal::fault("a joined header is too long"))
}

/// Sets and removes query parameters; those an answer does not name keep their bytes.
fn change_query(
    parts: &mut Parts,
    set: &[(String, String)],
    remove: &[String],
) -> Result<(), Refusal> {
    if set.is_empty() && remove.is_empty() {
        return Ok(());
    }
    let changed = |name: &str| {
        let name = percent_decode_str(name).decode_utf8_lossy();
        remove.iter().any(|other| *other == name) || set.iter().any(|(other, _)| *other == name)
    };
    let kept = parts.uri.query().unwrap_or_default().split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        // Services may read a plus as a space or as a plus.
        !pair.is_empty() && !changed(name) && !changed(&name.replace('+', "%20"))
    });
    let encode = |text| utf8_percent_encode(text, QUERY);
    let added = set.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    let query: Vec<String> = kept.map(str::to_owned).chain(added).collect();
    let path = parts.uri.path();
    let text =
        if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
    let Ok(path) = PathAndQuery::try_from(text) else {
        return Err(Refusal::fault("an answer's query parameters do not make a query"));
    };
    gather::set_path(&mut parts.uri, path)
}

/// Everything but unreserved characters (RFC 3986 section 2.3).
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_changes_only_the_parameters_it_names() {
        let changed = |uri: &str, set: &[(&str, &str)], remove: &[&str]| {
            let (mut parts, ()) = ::http::Request::get(uri).body(()).unwrap().into_parts();
            let own = |text: &&str| (*text).to_owned();
            let set: Vec<_> = set.iter().map(|(n, v)| (own(n), own(v))).collect();
            let remove: Vec<_> = remove.iter().map(own).collect();
            change_query(&mut parts, &set, &remove).unwrap();
            parts.uri.to_string()
        };
        assert_eq!(changed("/a?x=1&y=%202", &[], &["x"]), "/a?y=%202");
        assert_eq!(changed("/a?%78=1", &[], &["x"]), "/a");
        assert_eq!(changed("/a?x=1&z", &[("x", "a&b=c")], &[]), "/a?z&x=a%26b%3Dc");
        assert_eq!(changed("/a", &[("n", "\u{e4}")], &[]), "/a?n=%C3%A4");
        assert_eq!(changed("/a?x=1", &[], &[]), "/a?x=1");
        // However a client writes the name, the service does not get its value.
        assert_eq!(
            changed("/a?is+admin=1&is%20admin=1&is%2Badmin=1&b+c", &[], &["is admin", "is+admin"]),
            "/a?b+c"
        );
        assert_eq!(changed("/a?a+b=1", &[("a b", "2")], &[]), "/a?a%20b=2");
    }

    #[test]
    fn sem_ext_12_headers_are_set_joined_and_removed_but_never_the_host() {
        let request = ::http::Request::get("/")
            .header("host", "a")
            .header("x-set", "1")
            .header("x-set", "2")
            .header("x-join", "1")
            .header("x-join", "2")
            .header("authorization", "secret");
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        let header = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let asked = RequestChanges {
            headers_to_set: vec![header("x-set", "3"), header("x-set", "4"), header("host", "b")],
            headers_to_append: vec![header("x-join", "3"), header("x-new", "1")],
            headers_to_remove: vec![HOST, HeaderName::from_static("authorization")],
            response_headers: vec![header("x-down", "1")],
            ..RequestChanges::default()
        };
        let mut changes = Changes::default();
        apply(&mut parts, asked, &mut changes).unwrap();
        let lines = |name| -> Vec<_> { parts.headers.get_all(name).iter().collect() };
        assert_eq!(lines("x-set"), ["3", "4"]);
        assert_eq!(lines("x-join"), ["1,2,3"]);
        assert_eq!(lines("x-new"), ["1"]);
        assert_eq!(lines("host"), ["a"]);
        assert!(lines("authorization").is_empty());
        assert_eq!(changes.response_headers, [header("x-down", "1")]);
    }
}
