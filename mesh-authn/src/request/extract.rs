//! Where tokens lie in a request, read as Envoy reads it.

use std::borrow::Cow;

use http::HeaderMap;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};

use super::RequestView;
use super::few::Few;
use super::resource::TokenPlace;

/// A token, or what stands where one is looked for.
#[derive(Clone, Debug)]
pub(super) struct Found<'a> {
    pub(super) place: &'a TokenPlace,
    pub(super) token: Cow<'a, [u8]>,
}

/// The tokens at these places, in their order, except at those whose token has been taken out of
/// the request already.
pub(super) fn tokens<'a>(
    places: &'a [TokenPlace],
    request: &RequestView<'a>,
    taken: &Few<&TokenPlace>,
) -> Few<Found<'a>> {
    let mut found = Few::new();
    for place in places.iter().filter(|place| !is_taken(place, taken)) {
        match place {
            TokenPlace::Header(name, prefix) => {
                for value in header_lines(request.headers, name) {
                    if let Some(token) = header_token(value, prefix.as_bytes()) {
                        found.push(Found { place, token });
                    }
                }
            }
            TokenPlace::Param(name) => {
                if let Some(token) = values_of(request.path_and_query, name).next() {
                    found.push(Found { place, token });
                }
            }
            TokenPlace::Cookie(name) => {
                if let Some(token) = cookie(request.headers, name) {
                    found.push(Found { place, token: Cow::Borrowed(token) });
                }
            }
        }
    }
    found
}

/// A header is taken out with all its lines, whatever the prefix; a cookie stays ([SEM-JWT-50]).
fn is_taken(place: &TokenPlace, taken: &Few<&TokenPlace>) -> bool {
    taken.iter().any(|gone| match (gone, place) {
        (TokenPlace::Header(gone, _), TokenPlace::Header(name, _)) => gone == name,
        (TokenPlace::Param(gone), TokenPlace::Param(name)) => gone == name,
        (
            TokenPlace::Header(..) | TokenPlace::Param(_) | TokenPlace::Cookie(_),
            TokenPlace::Header(..) | TokenPlace::Param(_) | TokenPlace::Cookie(_),
        ) => false,
    })
}

/// The lines of a header. Lines of `authorization` count as one, joined with commas, so that two
/// of them are one malformed token ([SEM-JWT-05], [SEC-JWT-8]).
fn header_lines<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = Cow<'a, [u8]>> {
    let mut lines = headers.get_all(name).into_iter().map(http::HeaderValue::as_bytes);
    let joined = if name == AUTHORIZATION {
        let first = lines.next().map(Cow::Borrowed);
        first.map(|first| {
            lines.by_ref().fold(first, |all, line| Cow::Owned([&all, &b","[..], line].concat()))
        })
    } else {
        None
    };
    joined.into_iter().chain(lines.map(Cow::Borrowed))
}

/// [SEM-JWT-03], [SEM-JWT-04]
fn header_token<'a>(value: Cow<'a, [u8]>, prefix: &[u8]) -> Option<Cow<'a, [u8]>> {
    if prefix.is_empty() {
        return Some(value);
    }
    let at = value.windows(prefix.len()).position(|window| window == prefix)?;
    let behind = at.saturating_add(prefix.len());
    let start = value.iter().skip(behind).position(|byte| is_token_byte(*byte));
    let Some(start) = start.and_then(|skipped| behind.checked_add(skipped)) else {
        return Some(value);
    };
    Some(match value {
        Cow::Borrowed(value) => Cow::Borrowed(value.get(start..)?),
        Cow::Owned(mut value) => {
            value.drain(..start);
            Cow::Owned(value)
        }
    })
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

/// Whether an `Authorization` header names the Bearer scheme in a way that no rule takes for one
/// ([SEM-STRICT-02]).
pub(super) fn names_bearer(headers: &HeaderMap) -> bool {
    header_lines(headers, &AUTHORIZATION).any(|line| {
        let scheme = line.split(|byte| matches!(byte, b' ' | b'\t')).next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"bearer")
    })
}

/// The values of a parameter, percent-decoded ([SEM-JWT-06]). A plus is a plus.
pub(super) fn values_of<'a>(
    path_and_query: &'a str,
    name: &str,
) -> impl Iterator<Item = Cow<'a, [u8]>> {
    // Most queries hold no token: a look at the bytes tells. An escaped name is even longer.
    let query = query_of(path_and_query).filter(|query| {
        query.len() >= name.len()
            && (memchr::memchr(b'%', query.as_bytes()).is_some()
                || memchr::memmem::find(query.as_bytes(), name.as_bytes()).is_some())
    });
    query.into_iter().flat_map(|query| query.split('&')).filter_map(move |piece| {
        let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
        (*percent_decode(key) == *name.as_bytes()).then(|| percent_decode(value))
    })
}

fn query_of(path_and_query: &str) -> Option<&str> {
    let mark = memchr::memchr(b'?', path_and_query.as_bytes())?;
    path_and_query.get(mark.checked_add(1)?..)
}

/// The query cut at ampersands, empty pieces included.
fn pieces(path_and_query: &str) -> impl Iterator<Item = &str> {
    query_of(path_and_query).into_iter().flat_map(|query| query.split('&'))
}

/// The path without these parameters, every other byte kept. (Envoy decodes, sorts and joins the
/// others anew, and lets `%26` become a separator.)
pub(super) fn without_params(path_and_query: &str, gone: &[&str]) -> String {
    let is_gone = |piece: &str| {
        let name = percent_decode(piece.split_once('=').map_or(piece, |(name, _)| name));
        gone.iter().any(|gone| *name == *gone.as_bytes())
    };
    let path = path_and_query.split_once('?').map_or(path_and_query, |(path, _)| path);
    let mut rewritten = path.to_owned();
    let kept = pieces(path_and_query).filter(|piece| !is_gone(piece));
    for (at, piece) in kept.enumerate() {
        rewritten.push(if at == 0 { '?' } else { '&' });
        rewritten.push_str(piece);
    }
    rewritten
}

/// Decodes `%XX`; a percent sign without two hex digits stays.
fn percent_decode(text: &str) -> Cow<'_, [u8]> {
    if !text.contains('%') {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        let escaped = match (first, behind) {
            (b'%', [high, low, behind @ ..]) => {
                hex(*high).zip(hex(*low)).map(|(high, low)| ((high << 4) | low, behind))
            }
            _ => None,
        };
        let (byte, behind) = escaped.unwrap_or((*first, behind));
        decoded.push(byte);
        rest = behind;
    }
    Cow::Owned(decoded)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// The first cookie of this name ([SEM-JWT-07]).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let lines = headers.get_all(COOKIE).into_iter().map(http::HeaderValue::as_bytes);
    let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(trim_spaces);
    pairs
        .filter_map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=')?;
            let (key, value) = pair.split_at_checked(equals)?;
            (key == name.as_bytes()).then(|| value.get(1..)).flatten()
        })
        .map(without_quotes)
        .next()
}

fn trim_spaces(mut text: &[u8]) -> &[u8] {
    while let [b' ', rest @ ..] | [rest @ .., b' '] = text {
        text = rest;
    }
    text
}

fn without_quotes(value: &[u8]) -> &[u8] {
    match value {
        [b'"', inner @ .., b'"'] => inner,
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sem_jwt_50_other_parameters_keep_every_byte() {
        for (path, want) in [
            ("/p?t=1", "/p"),
            ("/p?t=1&", "/p?"),
            ("/p?a=x%26b&t=1&c=%zz&%74=2", "/p?a=x%26b&c=%zz"),
            ("/p?flag&t&x", "/p?flag&x"),
            ("/p", "/p"),
            ("/p?", "/p?"),
        ] {
            assert_eq!(without_params(path, &["t"]), want, "{path}");
        }
    }
}
