//! Path, query and body of a request, read as OPA's Envoy plugin reads them.
//!
//! What cannot be read is a [`BadInput`]: the request gets 400 and no policy is asked. Everything
//! built here counts against one [`Budget`] ([SEC-REGO-5]).

use std::borrow::Cow;
use std::collections::BTreeMap;

use regorus::Value;

use super::input::{MAX_INPUT_BYTES, MAX_INPUT_DEPTH, MAX_STRING_BYTES};

/// Why a request has no input document.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BadInput {
    /// The body is not what `content-type` and `content-length` say.
    #[error("the body is not what its content type and length say")]
    Body,

    /// The path has a bad percent escape, a control character, or no path's form.
    #[error("the path cannot be decoded")]
    Path,

    /// The query has a bad percent escape or a semicolon.
    #[error("the query cannot be decoded")]
    Query,

    /// The document would be larger, deeper, or have a longer string than allowed.
    #[error("the input is too large")]
    TooLarge,
}

/// What is left of a document's size.
#[derive(Debug)]
pub(super) struct Budget {
    left: usize,
}

/// What a value costs beside the bytes of its text.
const NODE_BYTES: usize = 16;

impl Budget {
    pub(super) const fn new() -> Self {
        Self { left: MAX_INPUT_BYTES }
    }

    pub(super) fn take(&mut self, bytes: usize) -> Result<(), BadInput> {
        let left = self.left.checked_sub(bytes).and_then(|left| left.checked_sub(NODE_BYTES));
        self.left = left.ok_or(BadInput::TooLarge)?;
        Ok(())
    }

    pub(super) fn text(&mut self, text: &str) -> Result<Value, BadInput> {
        if text.len() > MAX_STRING_BYTES {
            return Err(BadInput::TooLarge);
        }
        self.take(text.len())?;
        Ok(Value::from(text))
    }

    pub(super) fn array(
        &mut self,
        items: impl IntoIterator<Item = Result<Value, BadInput>>,
    ) -> Result<Value, BadInput> {
        self.take(0)?;
        items.into_iter().collect::<Result<Vec<_>, _>>().map(Value::from)
    }

    /// A JSON value, at most [`MAX_INPUT_DEPTH`] deep.
    pub(super) fn json(&mut self, json: &serde_json::Value) -> Result<Value, BadInput> {
        self.json_at(json, MAX_INPUT_DEPTH)
    }

    pub(super) fn json_object(
        &mut self,
        object: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Value, BadInput> {
        self.object_at(object, MAX_INPUT_DEPTH)
    }

    fn json_at(&mut self, json: &serde_json::Value, depth: usize) -> Result<Value, BadInput> {
        let below = || depth.checked_sub(1).ok_or(BadInput::TooLarge);
        match json {
            serde_json::Value::Null => self.take(0).map(|()| Value::Null),
            serde_json::Value::Bool(value) => self.take(0).map(|()| Value::Bool(*value)),
            serde_json::Value::Number(number) => {
                self.take(0)?;
                let whole = number.as_i64().map(Value::from);
                let whole = whole.or_else(|| number.as_u64().map(Value::from));
                whole.or_else(|| number.as_f64().map(Value::from)).ok_or(BadInput::TooLarge)
            }
            serde_json::Value::String(text) => self.text(text),
            serde_json::Value::Array(items) => {
                let below = below()?;
                self.take(0)?;
                let items = items.iter().map(|item| self.json_at(item, below));
                items.collect::<Result<Vec<_>, _>>().map(Value::from)
            }
            serde_json::Value::Object(object) => self.object_at(object, below()?),
        }
    }

    fn object_at(
        &mut self,
        object: &serde_json::Map<String, serde_json::Value>,
        depth: usize,
    ) -> Result<Value, BadInput> {
        self.take(0)?;
        let entries =
            object.iter().map(|(key, value)| Ok((self.text(key)?, self.json_at(value, depth)?)));
        entries.collect::<Result<BTreeMap<_, _>, _>>().map(Value::from)
    }

    /// Names with all their values, in the order of their appearance.
    fn multimap(
        &mut self,
        entries: impl IntoIterator<Item = (String, Value)>,
    ) -> Result<Value, BadInput> {
        let mut lists = BTreeMap::<String, Vec<Value>>::new();
        for (name, value) in entries {
            lists.entry(name).or_default().push(value);
        }
        self.take(0)?;
        let object = lists.into_iter().map(|(name, values)| {
            self.take(0)?;
            Ok((self.text(&name)?, Value::from(values)))
        });
        object.collect::<Result<BTreeMap<_, _>, _>>().map(Value::from)
    }
}

/// `parsed_path`: decoded before it is split, so `/a%2Fb` has two segments.
pub(super) fn parse_path(path: &str, budget: &mut Budget) -> Result<Value, BadInput> {
    let first_segment = path.split('/').next().unwrap_or_default();
    if first_segment.contains(':') || path.contains(|c: char| c.is_ascii_control() || c == '#') {
        return Err(BadInput::Path);
    }
    let decoded = percent_decode(path, Plus::IsPlus).ok_or(BadInput::Path)?;
    let segments = decoded.trim_start_matches('/').split('/').map(|segment| budget.text(segment));
    let segments = segments.collect::<Result<Vec<_>, _>>()?;
    budget.array(segments.into_iter().map(Ok))
}

/// `parsed_query`: names with all their values.
pub(super) fn parse_query(query: &str, budget: &mut Budget) -> Result<Value, BadInput> {
    let entries = form_entries(query, budget, BadInput::Query)?;
    budget.multimap(entries)
}

fn form_entries(
    form: &str,
    budget: &mut Budget,
    bad: BadInput,
) -> Result<Vec<(String, Value)>, BadInput> {
    if form.contains(|c: char| c == ';' || c.is_ascii_control()) {
        return Err(bad);
    }
    let entry = |entry: &str| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        let value = percent_decode(value, Plus::IsSpace).ok_or(bad)?;
        let name = percent_decode(name, Plus::IsSpace).ok_or(bad)?;
        Ok((name.into_owned(), budget.text(&value)?))
    };
    form.split('&').filter(|entry| !entry.is_empty()).map(entry).collect()
}

/// `parsed_body` and `truncated_body` of a body that is here in full.
///
/// `content_type` and `content_length` are the joined header values.
pub(super) fn parse_body(
    body: &str,
    content_type: Option<&str>,
    content_length: Option<&str>,
    budget: &mut Budget,
) -> Result<(Value, bool), BadInput> {
    let content_type = content_type.unwrap_or_default();
    let Some(format) = BodyFormat::of(content_type) else { return Ok((Value::Null, false)) };
    if body.is_empty() {
        return Ok((Value::Null, false));
    }
    if let Some(length) = content_length {
        let length: i64 = length.parse().map_err(|_not_a_number| BadInput::Body)?;
        if usize::try_from(length).is_ok_and(|length| length > body.len()) {
            return Ok((Value::Null, true));
        }
    }
    let parsed = match format {
        BodyFormat::Json => parse_json(body, budget)?,
        BodyFormat::Form => {
            let entries = form_entries(body, budget, BadInput::Body)?;
            budget.multimap(entries)?
        }
        BodyFormat::Multipart => match boundary(content_type) {
            Some(boundary) => {
                let entries = multipart_entries(body, &boundary, budget)?;
                budget.multimap(entries)?
            }
            None => Value::Null,
        },
    };
    Ok((parsed, false))
}

/// The formats that are parsed. gRPC would need descriptors; without them it is null, as in the
/// plugin.
enum BodyFormat {
    Json,
    Form,
    Multipart,
}

impl BodyFormat {
    /// The plugin looks for the first of these texts anywhere in the header.
    fn of(content_type: &str) -> Option<Self> {
        if content_type.contains("application/json") {
            Some(Self::Json)
        } else if content_type.contains("application/grpc") {
            None
        } else if content_type.contains("application/x-www-form-urlencoded") {
            Some(Self::Form)
        } else if content_type.contains("multipart/form-data") {
            Some(Self::Multipart)
        } else {
            None
        }
    }
}

fn parse_json(text: &str, budget: &mut Budget) -> Result<Value, BadInput> {
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_syntax| BadInput::Body)?;
    budget.json(&json)
}

/// The parameter `boundary` of a content type.
fn boundary(content_type: &str) -> Option<String> {
    parameter(content_type, "boundary").filter(|boundary| !boundary.is_empty())
}

/// A parameter behind the first `;` of a header such as `form-data; name="a"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (name, value) = rest.split_once('=')?;
        let value = value.trim_start();
        let (value, after) = if let Some(quoted) = value.strip_prefix('"') {
            quoted_string(quoted)?
        } else {
            let end = value.find(';').unwrap_or(value.len());
            let (value, after) = value.split_at_checked(end)?;
            (value.trim().to_owned(), after)
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after.trim_start().strip_prefix(';')?;
    }
}

/// A quoted string, its opening quote taken, and what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.chars();
    loop {
        match chars.next()? {
            '"' => return Some((value, chars.as_str())),
            '\\' => value.push(chars.next()?),
            c => value.push(c),
        }
    }
}

/// The named parts of a multipart body; JSON parts parsed.
fn multipart_entries(
    body: &str,
    boundary: &str,
    budget: &mut Budget,
) -> Result<Vec<(String, Value)>, BadInput> {
    let first = format!("--{boundary}");
    let delimiter = format!("\r\n--{boundary}");
    let mut rest = match body.strip_prefix(&first) {
        Some(rest) => rest,
        None => body.split_once(&delimiter).ok_or(BadInput::Body)?.1,
    };
    let mut entries = Vec::new();
    while !rest.starts_with("--") {
        let part = rest.trim_start_matches([' ', '\t']).strip_prefix("\r\n");
        let (part, after) =
            part.and_then(|part| part.split_once(&delimiter)).ok_or(BadInput::Body)?;
        rest = after;
        let (head, content) = match part.strip_prefix("\r\n") {
            Some(content) => ("", content),
            None => part.split_once("\r\n\r\n").ok_or(BadInput::Body)?,
        };
        let header = |wanted: &str| {
            let fields = head.split("\r\n").filter_map(|line| line.split_once(':'));
            let mut values = fields.filter(|(name, _)| name.trim().eq_ignore_ascii_case(wanted));
            values.next().map(|(_, value)| value.trim())
        };
        let disposition = header("content-disposition").unwrap_or_default();
        let kind = disposition.split(';').next().unwrap_or_default();
        let name = kind.trim().eq_ignore_ascii_case("form-data");
        let name = name.then(|| parameter(disposition, "name")).flatten().unwrap_or_default();
        if name.is_empty() {
            continue;
        }
        let is_json = header("content-type").is_some_and(|kind| kind.contains("application/json"));
        let value = if is_json { parse_json(content, budget)? } else { budget.text(content)? };
        entries.push((name, value));
    }
    Ok(entries)
}

/// What a `+` stands for.
#[derive(Clone, Copy)]
enum Plus {
    IsPlus,
    IsSpace,
}

/// Percent decoding; nothing when an escape is bad or the result is not UTF-8.
fn percent_decode(text: &str, plus: Plus) -> Option<Cow<'_, str>> {
    let has_plus = matches!(plus, Plus::IsSpace) && text.contains('+');
    if !text.contains('%') && !has_plus {
        return Some(Cow::Borrowed(text));
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (hex(bytes.next()?)?, hex(bytes.next()?)?);
                (high << 4) | low
            }
            b'+' if has_plus => b' ',
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok().map(Cow::Owned)
}

fn hex(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

/// Text as Envoy puts it into its request: each byte that is not UTF-8 becomes `!`.
pub(super) fn as_envoy_text(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(bytes) {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '!'));
    }
    Cow::Owned(text)
}
