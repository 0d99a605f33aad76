//! Path normalization: the path that policies judge and that the application must be served.
//!
//! One pass per step, in the order of [SEM-PATH-01]. Only the part before `?` changes.

use std::borrow::Cow;
use std::fmt;

use crate::byte_search::{ByteSet, any_pair};

/// How a request's path is rewritten before policies see it (`pathNormalization` of the mesh).
///
/// # Examples
///
/// ```
/// use mesh_authz::PathNormalization;
///
/// let path = PathNormalization::Base.normalize(b"/public/%2e%2e/admin?x=//y")?;
/// assert_eq!(path.as_bytes(), b"/admin?x=//y");
/// assert!(PathNormalization::Base.normalize(b"/admin%00").is_err());
/// # Ok::<(), mesh_authz::NormalizeError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "Istio's modes; a new one must break its readers")]
pub enum PathNormalization {
    /// The path as it came, cut at the fragment.
    None,
    /// Dot segments, escapes and backslashes are resolved (Istio's `BASE` and `DEFAULT`).
    #[default]
    Base,
    /// As [`Self::Base`], and runs of slashes become one.
    MergeSlashes,
    /// As [`Self::MergeSlashes`], after `%2F` and `%5C` have been decoded.
    DecodeAndMergeSlashes,
}

impl PathNormalization {
    /// The mode that Istio's mesh configuration calls by this name, `DEFAULT` included.
    #[must_use]
    pub fn from_istio_name(name: &str) -> Option<Self> {
        match name {
            "NONE" => Some(Self::None),
            "BASE" | "DEFAULT" => Some(Self::Base),
            "MERGE_SLASHES" => Some(Self::MergeSlashes),
            "DECODE_AND_MERGE_SLASHES" => Some(Self::DecodeAndMergeSlashes),
            _ => None,
        }
    }

    /// Rewrites path and query, kept together, as Envoy does under Istio's settings.
    ///
    /// Borrows when nothing changes. `*` (of `OPTIONS *`) stays as it is.
    ///
    /// # Errors
    ///
    /// [`NormalizeError`], where Envoy answers 400: the request must not reach a policy.
    pub fn normalize(self, path_and_query: &[u8]) -> Result<NormalizedPath<'_>, NormalizeError> {
        if path_and_query == b"*" {
            return Ok(NormalizedPath { text: Cow::Borrowed(path_and_query) });
        }
        if path_and_query.first() != Some(&b'/') {
            return Err(NormalizeError::NotAbsolute);
        }
        if is_plain(path_and_query) {
            return Ok(NormalizedPath { text: Cow::Borrowed(path_and_query) });
        }
        self.step_by_step(path_and_query)
    }

    fn step_by_step(self, path_and_query: &[u8]) -> Result<NormalizedPath<'_>, NormalizeError> {
        if let Some(at) = path_and_query.iter().position(|byte| *byte <= b' ' || *byte == 0x7f) {
            return Err(NormalizeError::ControlByte { at });
        }
        // [SEM-PATH-02] Also when the `#` comes after `?`.
        let uncut = cut_at(path_and_query, |byte| byte == b'#');
        if self == Self::None {
            return Ok(NormalizedPath { text: Cow::Borrowed(uncut) });
        }
        let path = cut_at(uncut, |byte| byte == b'?');
        let query = uncut.get(path.len()..).unwrap_or_default();
        let mut text = Cow::Borrowed(path);
        if self == Self::DecodeAndMergeSlashes {
            text = rewrite(text, unescape_slashes);
        }
        text = rewrite(text, strip_dot_parameters);
        text = match canonicalize(&text)? {
            Some(canonical) => Cow::Owned(canonical),
            None => text,
        };
        if matches!(self, Self::MergeSlashes | Self::DecodeAndMergeSlashes) {
            text = rewrite(text, merge_slashes);
        }
        Ok(NormalizedPath {
            text: match text {
                Cow::Borrowed(_) => Cow::Borrowed(uncut),
                Cow::Owned(mut text) => {
                    text.extend_from_slice(query);
                    Cow::Owned(text)
                }
            },
        })
    }
}

/// Path and query as policies judge them and the application must be served ([SEM-PATH-03]).
#[derive(Clone, Eq, PartialEq)]
pub struct NormalizedPath<'a> {
    text: Cow<'a, [u8]>,
}

impl<'a> NormalizedPath<'a> {
    /// Asserts that this path and query are what the application will be served, and that some
    /// other code has normalized them.
    #[must_use]
    pub fn assert_normalized(path_and_query: &'a [u8]) -> Self {
        Self { text: Cow::Borrowed(path_and_query) }
    }

    /// Path and query. Bytes above 0x7F occur under [`PathNormalization::None`] only.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// Path and query as text, when it is UTF-8.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.text).ok()
    }

    /// Whether normalization changed the path, fragment included.
    #[must_use]
    pub fn is_changed(&self, raw: &[u8]) -> bool {
        *self.text != *raw
    }

    /// A copy that borrows nothing.
    #[must_use]
    pub fn into_owned(self) -> NormalizedPath<'static> {
        NormalizedPath { text: Cow::Owned(self.text.into_owned()) }
    }
}

impl fmt::Debug for NormalizedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The query may carry a token.
        let path = path_only(&self.text).escape_ascii();
        f.debug_struct("NormalizedPath").field("path", &format_args!("{path}")).finish()
    }
}

/// Why a request target is refused with 400 before any policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NormalizeError {
    /// A control byte or a space; an HTTP parser refuses it too.
    #[error("request target has a control byte or space at byte {at}")]
    ControlByte {
        /// Offset of the byte.
        at: usize,
    },

    /// A `#`, under the strict option that refuses it ([SEM-STRICT-17]).
    #[error("request target has a fragment")]
    Fragment,

    /// The target does not begin with `/` ([SEC-HTTP-3]).
    #[error("request target does not begin with a slash")]
    NotAbsolute,

    /// `%00` in the path ([SEM-PATH-16]).
    #[error("path holds an escaped NUL")]
    Nul,
}

/// The part that path conditions look at: up to the first `?` or `#` ([SEM-AUTHZ-65]).
pub(crate) fn path_only(path_and_query: &[u8]) -> &[u8] {
    cut_at(path_and_query, |byte| byte == b'?' || byte == b'#')
}

/// Whether the strict reading refuses this path as ambiguous ([SEM-STRICT-07], [SEM-STRICT-20]):
/// full normalization would still change it, or somebody behind us may read it differently.
pub(crate) fn is_ambiguous(path: &[u8]) -> bool {
    !(path.first() == Some(&b'/') && is_plain(path)) && has_second_reading(path)
}

fn has_second_reading(path: &[u8]) -> bool {
    let is_odd = |byte: &u8| matches!(byte, b';' | b'\\') || must_escape(*byte);
    let mut escapes = memchr::memchr_iter(b'%', path);
    let mut segments = path.split(|byte| *byte == b'/');
    path.iter().any(is_odd)
        || path.windows(2).any(|two| two == b"//")
        || segments.any(|segment| segment == b"." || segment == b"..")
        || escapes.any(|at| match decode_escape(path.get(at..).unwrap_or_default()) {
            Some(0 | b'/' | b'\\' | b';') | None => true,
            // Whoever decodes twice reads another escape.
            Some(b'%') => is_escape_behind(path, at),
            Some(byte) => is_unreserved(byte),
        })
}

/// Bytes that some step looks at, or that [`must_escape`].
const ODD: ByteSet = ByteSet::of(&[
    (0, b' '),
    (b'"', b'#'),
    (b'%', b'%'),
    (b';', b'<'),
    (b'>', b'>'),
    (b'\\', b'\\'),
    (b'^', b'^'),
    (b'`', b'`'),
    (b'{', b'}'),
    (0x7f, u8::MAX),
]);

/// Whether a text that begins with a slash has nothing that any mode of normalization changes or
/// refuses, or that anybody could read differently. Most have none, and this tells it at once.
fn is_plain(text: &[u8]) -> bool {
    let is_odd_pair = |first, second| first == b'/' && matches!(second, b'/' | b'.');
    !ODD.any_of(text) && !any_pair(text, is_odd_pair)
}

/// Whether `%25` at this place stands for the percent sign of a further escape.
fn is_escape_behind(path: &[u8], at: usize) -> bool {
    let behind = path.get(at.saturating_add(3)..).unwrap_or_default();
    behind.iter().take(2).filter(|byte| byte.is_ascii_hexdigit()).count() == 2
}

fn cut_at(text: &[u8], end: impl Fn(u8) -> bool) -> &[u8] {
    text.split(|byte| end(*byte)).next().unwrap_or_default()
}

fn rewrite(text: Cow<'_, [u8]>, step: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Cow<'_, [u8]> {
    match step(&text) {
        Some(changed) => Cow::Owned(changed),
        None => text,
    }
}

/// [SEM-PATH-10] One pass, no second.
fn unescape_slashes(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b'%', path)?;
    let mut output = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        match rest.get(..3) {
            Some(b"%2f" | b"%2F") => output.push(b'/'),
            Some(b"%5c" | b"%5C") => output.push(b'\\'),
            Some(_) | None => {
                output.push(*first);
                rest = tail;
                continue;
            }
        }
        rest = rest.get(3..).unwrap_or_default();
    }
    (output != path).then_some(output)
}

/// [SEM-PATH-15] `..;x` and `.;x` lose what follows the dots.
fn strip_dot_parameters(path: &[u8]) -> Option<Vec<u8>> {
    memchr::memchr(b';', path)?;
    let mut output = Vec::with_capacity(path.len());
    for (at, segment) in path.split(|byte| *byte == b'/').enumerate() {
        if at > 0 {
            output.push(b'/');
        }
        let keep = if segment.starts_with(b"..;") {
            &b".."[..]
        } else if segment.starts_with(b".;") {
            b"."
        } else {
            segment
        };
        output.extend_from_slice(keep);
    }
    (output != path).then_some(output)
}

/// [SEM-PATH-16], [SEM-PATH-17]: one pass over the bytes, as Chromium's URL library does it.
///
/// Nothing when the path is canonical already.
fn canonicalize(path: &[u8]) -> Result<Option<Vec<u8>>, NormalizeError> {
    if is_plainly_canonical(path) {
        return Ok(None);
    }
    let mut output: Vec<u8> = Vec::with_capacity(path.len());
    // Where in the output a `%` stands that began no escape.
    let mut stray_percent: Option<usize> = None;
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(dot) = dot_len(rest) {
            let after = rest.get(dot..).unwrap_or_default();
            if output.last() != Some(&b'/') {
                output.push(b'.');
                rest = after;
                continue;
            }
            match after_dot(after) {
                AfterDot::Name => {
                    output.push(b'.');
                    rest = after;
                }
                AfterDot::Current(next) => rest = next,
                AfterDot::Up(next) => {
                    back_up(&mut output);
                    stray_percent = stray_percent.filter(|at| *at < output.len());
                    rest = next;
                }
            }
            continue;
        }
        rest = tail;
        match *first {
            b'\\' => output.push(b'/'),
            b'%' => match decode_escape(path_from(tail, path)) {
                Some(0) => return Err(NormalizeError::Nul),
                Some(byte) if is_unreserved(byte) => {
                    rest = tail.get(2..).unwrap_or_default();
                    output.push(byte);
                    if let Some(at) = stray_percent {
                        escape_nested_percent(&mut output, at, &mut rest);
                    }
                }
                Some(_) => {
                    output.push(b'%');
                    output.extend(tail.iter().take(2));
                    rest = tail.get(2..).unwrap_or_default();
                }
                None => {
                    stray_percent = Some(output.len());
                    output.push(b'%');
                }
            },
            byte if must_escape(byte) => push_escaped(&mut output, byte),
            byte => output.push(byte),
        }
    }
    Ok((output != path).then_some(output))
}

/// The text from one byte before `tail`: the `%` that `tail` follows.
fn path_from<'a>(tail: &[u8], path: &'a [u8]) -> &'a [u8] {
    let at = path.len().saturating_sub(tail.len()).saturating_sub(1);
    path.get(at..).unwrap_or_default()
}

/// The common case, without allocation: no byte and no segment that canonicalization touches.
fn is_plainly_canonical(path: &[u8]) -> bool {
    let plain = |byte: &u8| !matches!(byte, b'%' | b'\\') && !must_escape(*byte);
    path.iter().all(plain) && !path.windows(2).any(|two| two == b"/.")
}

/// The length of a `.` or `%2e` that `text` begins with.
fn dot_len(text: &[u8]) -> Option<usize> {
    match text {
        [b'.', ..] => Some(1),
        [b'%', b'2', b'e' | b'E', ..] => Some(3),
        _ => None,
    }
}

enum AfterDot<'a> {
    /// The dot is part of a name.
    Name,
    /// `.`: skip it; what follows.
    Current(&'a [u8]),
    /// `..`: drop a segment; what follows.
    Up(&'a [u8]),
}

/// What a dot behind a slash means, from the text behind it.
fn after_dot(text: &[u8]) -> AfterDot<'_> {
    match text {
        [] => return AfterDot::Current(text),
        [b'/' | b'\\', next @ ..] => return AfterDot::Current(next),
        _ => {}
    }
    let Some(second) = dot_len(text) else { return AfterDot::Name };
    match text.get(second..).unwrap_or_default() {
        [] => AfterDot::Up(&[]),
        [b'/' | b'\\', next @ ..] => AfterDot::Up(next),
        _ => AfterDot::Name,
    }
}

/// Drops the last segment of an output that ends in a slash; the first slash stays.
fn back_up(output: &mut Vec<u8>) {
    let last = output.len().saturating_sub(1);
    if last == 0 {
        return;
    }
    let before = output.get(..last).unwrap_or_default();
    let keep = memchr::memrchr(b'/', before).map_or(1, |slash| slash.saturating_add(1));
    output.truncate(keep);
}

/// The byte that `%XX` at the start of `text` stands for.
fn decode_escape(text: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    Some(digit(*high)?.wrapping_shl(4) | digit(*low)?)
}

/// [SEM-PATH-16] When decoding put hex digits behind a stray `%`, that `%` is written `%25`.
fn escape_nested_percent(output: &mut Vec<u8>, percent: usize, rest: &mut &[u8]) {
    let behind = output.len().saturating_sub(percent).saturating_sub(1);
    let mut trial = output.get(percent..).unwrap_or_default().to_vec();
    match behind {
        1 => match rest.first() {
            Some(next) if next.is_ascii() => trial.push(*next),
            Some(_) | None => return,
        },
        2 => {}
        _ => return,
    }
    if decode_escape(&trial).is_none() {
        return;
    }
    output.truncate(percent);
    output.extend_from_slice(b"%25");
    output.extend(trial.iter().skip(1));
    if behind == 1 {
        *rest = rest.get(1..).unwrap_or_default();
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn must_escape(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'^' | b'`' | b'{' | b'|' | b'}' | 0..=0x20 | 0x7f..)
}

fn push_escaped(output: &mut Vec<u8>, byte: u8) {
    let digit = |nibble: u8| {
        char::from_digit(nibble.into(), 16)
            .map_or(b'0', |digit| u8::try_from(digit.to_ascii_uppercase()).unwrap_or(b'0'))
    };
    output.extend([b'%', digit(byte.wrapping_shr(4)), digit(byte & 0x0f)]);
}

/// [SEM-PATH-20] Runs of slashes become one; a path of nothing but slashes becomes `//`.
fn merge_slashes(path: &[u8]) -> Option<Vec<u8>> {
    if !path.windows(2).any(|two| two == b"//") {
        return None;
    }
    let mut output = Vec::with_capacity(path.len());
    output.push(b'/');
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    for (at, name) in names.enumerate() {
        if at > 0 {
            output.push(b'/');
        }
        output.extend_from_slice(name);
    }
    if path.last() == Some(&b'/') {
        output.push(b'/');
    }
    Some(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken for plain is what every step leaves alone, whatever stands next to what.
    #[test]
    fn a_plain_path_is_one_that_no_step_looks_at() {
        use PathNormalization::{Base, DecodeAndMergeSlashes, MergeSlashes, None};
        let mut plain = 0;
        for first in 0..=u8::MAX {
            for second in 0..=u8::MAX {
                for path in [&[b'/', first, second][..], &[b'/', b'a', first, second, b'z']] {
                    if !is_plain(path) {
                        continue;
                    }
                    plain += 1;
                    assert!(!has_second_reading(path), "{}", path.escape_ascii());
                    for mode in [None, Base, MergeSlashes, DecodeAndMergeSlashes] {
                        let normalized = mode.step_by_step(path);
                        let is_same =
                            normalized.is_ok_and(|path_after| !path_after.is_changed(path));
                        assert!(is_same, "{mode:?} {}", path.escape_ascii());
                    }
                }
            }
        }
        // Letters, digits and most marks, in both forms.
        assert!(plain > 2 * 70 * 70, "{plain}");
    }
}
