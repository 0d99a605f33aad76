//! Where a request stands in a trace: W3C Trace Context, levels 1 and 2, and the spans around
//! requests.
//!
//! What a client says of a trace is copied and shown; nothing is decided by it.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;

use http::Request;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use ring::rand::{SecureRandom, SystemRandom};
use tracing::Span;
use tracing::field::Empty;

use crate::mask;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// A longer `tracestate` is dropped; the standard asks for 512 bytes at least.
const MOST_STATE: usize = 4096;
/// W3C Trace Context, 3.3.1.1: a list has at most 32 members.
const MOST_MEMBERS: usize = 32;
/// W3C Trace Context, 3.3.1.3: the length of a key, and of a value.
const MOST_TEXT: usize = 256;

const SAMPLED: u8 = 1;
/// Level 2: the trace's id is random in its lower seven bytes.
const RANDOM: u8 = 2;

/// Where work stands in a trace: the trace's id, the span's own id, and what is handed on with them.
///
/// A handler finds that of its own request in the request's extensions, where the client sent a
/// valid `traceparent` or a `tracing` subscriber takes our spans. A request that it makes with
/// [`crate::MeshClient`] goes on in that trace by itself; one that is made in a task of its own does when
/// the context is put into its extensions; and with any other client, [`write`](Self::write) puts the
/// context on the request.
///
/// # Examples
///
/// ```
/// use http::HeaderMap;
/// use mesh_tower::TraceContext;
///
/// let mut headers = HeaderMap::new();
/// headers.insert(
///     "traceparent",
///     "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?,
/// );
/// let caller = TraceContext::parse(&headers).ok_or("no trace")?;
/// assert!(caller.is_sampled());
///
/// let mut outbound = HeaderMap::new();
/// let ours = caller.child().ok_or("no randomness")?;
/// ours.write(&mut outbound);
/// assert_eq!(ours.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_ne!(ours.span_id(), caller.span_id());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Eq, PartialEq)]
pub struct TraceContext {
    /// Invariant: neither id is zero.
    trace: u128,
    span: u64,
    flags: u8,
    state: Option<HeaderValue>,
}

impl TraceContext {
    /// The context that headers carry: one valid `traceparent`, and a `tracestate` if it is valid.
    /// Anything else is none, and a new trace begins there (W3C Trace Context, section 4).
    #[must_use]
    pub fn parse(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(TRACEPARENT).iter();
        let (Some(parent), None) = (values.next(), values.next()) else { return None };
        let (trace, span, flags) = parse_parent(parent.as_bytes())?;
        Some(Self { trace, span, flags, state: parse_state(headers) })
    }

    /// A new trace. Nothing when the system has no randomness.
    pub(crate) fn root(sampled: bool) -> Option<Self> {
        let [trace_high, trace_low, span] = random()?;
        let trace = (u128::from(trace_high) << 64) | u128::from(trace_low);
        let flags = RANDOM | if sampled { SAMPLED } else { 0 };
        Some(Self { trace, span, flags, state: None })
    }

    /// A new span in the same trace, sampled as this one is. Nothing when the system has no
    /// randomness.
    #[must_use]
    pub fn child(&self) -> Option<Self> {
        let [span] = random()?;
        Some(Self { span, ..self.clone() })
    }

    /// Writes `traceparent` and `tracestate` for a request that this span makes; what was there goes.
    pub fn write(&self, headers: &mut HeaderMap) {
        // Hexadecimal digits and dashes are always a header's value.
        if let Ok(value) = HeaderValue::from_str(&self.to_string()) {
            headers.insert(TRACEPARENT, value);
        }
        match &self.state {
            Some(state) => drop(headers.insert(TRACESTATE, state.clone())),
            None => drop(headers.remove(TRACESTATE)),
        }
    }

    /// The trace's id: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace)
    }

    /// The span's id: 16 hexadecimal digits.
    #[must_use]
    pub fn span_id(&self) -> String {
        format!("{:016x}", self.span)
    }

    /// Whether whoever began the trace records it.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// As the header `traceparent` has it.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TraceContext({self})")
    }
}

thread_local! {
    /// The context of the request whose handler is being polled.
    static CURRENT: RefCell<Option<TraceContext>> = const { RefCell::new(None) };
}

/// Where a request is handled: in its span, and in its trace.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    span: Span,
    context: Option<Box<TraceContext>>,
}

impl Place {
    fn new(span: Span, context: Option<TraceContext>) -> Self {
        Self { span, context: context.map(Box::new) }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn context(&self) -> Option<&TraceContext> {
        self.context.as_deref()
    }

    /// Runs something there: what it logs, and what it asks others, belongs to the request.
    pub(crate) fn run<T>(&self, work: impl FnOnce() -> T) -> T {
        let Some(context) = self.context() else {
            return if self.span.is_none() { work() } else { self.span.in_scope(work) };
        };
        let _outer = Outer(swap(Some(context.clone())));
        self.span.in_scope(work)
    }

    /// Polls a future there.
    pub(crate) async fn follow<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        poll_fn(|cx| self.run(|| future.as_mut().poll(cx))).await
    }
}

/// Puts back what was current before, also after a panic.
struct Outer(Option<TraceContext>);

impl Drop for Outer {
    fn drop(&mut self) {
        drop(swap(self.0.take()));
    }
}

/// Makes another context the current one; nothing is current in a thread that is ending.
fn swap(context: Option<TraceContext>) -> Option<TraceContext> {
    CURRENT.try_with(|current| current.replace(context)).ok().flatten()
}

fn current() -> Option<TraceContext> {
    CURRENT.try_with(|current| current.borrow().clone()).ok().flatten()
}

/// The span of a request that arrives, and its context. Both are nothing where nobody traces.
pub(crate) fn inbound(headers: &HeaderMap, method: &str) -> Place {
    let interested = tracing::span_enabled!(target: "mesh_tower::http", tracing::Level::INFO);
    let parent = TraceContext::parse(headers);
    let Some(own) = begin(parent.as_ref(), interested) else {
        return Place::new(Span::none(), None);
    };
    if !interested || !own.is_sampled() {
        return Place::new(Span::none(), Some(own));
    }
    let span = tracing::info_span!(
        target: "mesh_tower::http",
        "request",
        otel.kind = "server",
        trace_id = own.trace_id(),
        span_id = own.span_id(),
        parent_span_id = parent.as_ref().map(TraceContext::span_id),
        http.request.method = method,
        url.path = Empty,
        http.response.status_code = Empty,
        mesh.peer = Empty,
        mesh.decision = Empty,
        mesh.policy = Empty,
        mesh.reason = Empty,
    );
    Place::new(span, Some(own))
}

/// The span of a request that we make to a declared service. It goes on in the trace of the context in
/// the request's extensions, else of its own `traceparent`, else of the request that is being handled.
/// Where nobody traces here, that context is handed on as it is.
pub(crate) fn outbound<B>(request: &mut Request<B>, service: Option<&str>) -> Span {
    let interested = tracing::span_enabled!(target: "mesh_tower::client", tracing::Level::INFO);
    let written = TraceContext::parse(request.headers());
    let given = request.extensions().get::<TraceContext>().cloned();
    let given = given.or_else(|| if written.is_none() { current() } else { None });
    let parent = given.clone().or(written);
    let is_sampled = parent.as_ref().is_none_or(TraceContext::is_sampled);
    let own = begin(parent.as_ref(), interested).filter(|_| interested && is_sampled);
    let Some(own) = own else {
        if let Some(given) = given {
            given.write(request.headers_mut());
        }
        return Span::none();
    };
    own.write(request.headers_mut());
    tracing::info_span!(
        target: "mesh_tower::client",
        "request",
        otel.kind = "client",
        otel.status_code = Empty,
        trace_id = own.trace_id(),
        span_id = own.span_id(),
        parent_span_id = parent.as_ref().map(TraceContext::span_id),
        http.request.method = request.method().as_str(),
        server.address = service,
        url.path = &*mask::tokens(request.uri().path()),
        http.response.status_code = Empty,
        error.type = Empty,
        mesh.peer = Empty,
    )
}

/// The context of a span of our own. Without a parent a trace begins where somebody looks; where nobody
/// does, there is no span, and the caller's context is handed on as it is.
fn begin(parent: Option<&TraceContext>, interested: bool) -> Option<TraceContext> {
    match parent {
        Some(parent) if interested => parent.child(),
        Some(parent) => Some(parent.clone()),
        None if interested => TraceContext::root(true),
        None => None,
    }
}

/// Random numbers, none of them zero.
fn random<const N: usize>() -> Option<[u64; N]> {
    let mut numbers = [0; N];
    for number in &mut numbers {
        let mut bytes = [0; 8];
        SystemRandom::new().fill(&mut bytes).ok()?;
        *number = u64::from_le_bytes(bytes).max(1);
    }
    Some(numbers)
}

/// W3C Trace Context, 3.2: `00-<32 hex>-<16 hex>-<2 hex>`, lower case; a later version may go on
/// after another dash.
fn parse_parent(text: &[u8]) -> Option<(u128, u64, u8)> {
    let (known, rest) = text.split_at_checked(55)?;
    let mut parts = known.split(|byte| *byte == b'-');
    let mut part = |length: usize| hex(parts.next().filter(|part| part.len() == length)?);
    let (version, trace, span, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let goes_on = rest.first().is_some_and(|byte| *byte == b'-');
    let is_whole = match version {
        0 => rest.is_empty(),
        0xff => false,
        _ => rest.is_empty() || goes_on,
    };
    if !is_whole || trace == 0 || span == 0 {
        return None;
    }
    // Flags that no version here knows are not handed on.
    let flags = u8::try_from(flags).ok()? & (SAMPLED | RANDOM);
    Some((trace, u64::try_from(span).ok()?, flags))
}

fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0_u128, |number, digit| {
        let digit = match digit {
            b'0'..=b'9' => digit.checked_sub(b'0')?,
            b'a'..=b'f' => digit.checked_sub(b'a')?.checked_add(10)?,
            _ => return None,
        };
        Some((number << 4) | u128::from(digit))
    })
}

/// W3C Trace Context, 3.3: all of the headers as one list, or nothing if any of it is wrong.
fn parse_state(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut joined = Vec::new();
    let mut keys = Vec::<&str>::new();
    for value in headers.get_all(TRACESTATE) {
        for member in value.to_str().ok()?.split(',') {
            let member = member.trim_matches([' ', '\t']);
            if member.is_empty() {
                continue;
            }
            let (key, value) = member.split_once('=')?;
            if !is_key(key) || !is_value(value) || keys.contains(&key) {
                return None;
            }
            keys.push(key);
            if !joined.is_empty() {
                joined.push(b',');
            }
            joined.extend_from_slice(member.as_bytes());
            if keys.len() > MOST_MEMBERS || joined.len() > MOST_STATE {
                return None;
            }
        }
    }
    if joined.is_empty() { None } else { HeaderValue::from_bytes(&joined).ok() }
}

fn is_key(key: &str) -> bool {
    let simple = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    key.len() <= MOST_TEXT
        && key.as_bytes().first().is_some_and(simple)
        && key.bytes().all(|byte| simple(&byte) || b"_-*/@".contains(&byte))
}

fn is_value(value: &str) -> bool {
    let allowed = |byte| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    (1..=MOST_TEXT).contains(&value.len()) && value.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn parse(lines: &[(&'static str, &str)]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        TraceContext::parse(&headers)
    }

    /// W3C Trace Context, 3.2.2 and its test suite.
    #[test]
    fn parents_are_parsed_as_the_standard_has_them() {
        let of = |text: &str| parse(&[("traceparent", text)]).map(|one| one.to_string());
        for (text, want) in [
            (GOOD.to_owned(), Some(GOOD.to_owned())),
            (GOOD.replace("-01", "-00"), Some(GOOD.replace("-01", "-00"))),
            (GOOD.replace("-01", "-ff"), Some(GOOD.replace("-01", "-03"))),
            (GOOD.replacen("00", "cc", 1), Some(GOOD.to_owned())),
            (GOOD.replacen("00", "cc", 1) + "-what", Some(GOOD.to_owned())),
            (GOOD.replacen("00", "cc", 1) + ".what", None),
            (GOOD.to_owned() + "-what", None),
            (GOOD.to_owned() + "-", None),
            (GOOD.replacen("00", "ff", 1), None),
            (GOOD.to_uppercase(), None),
            (GOOD.replace('-', "_"), None),
            (GOOD.replace("00f067aa0ba902b7", "0000000000000000"), None),
            (GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)), None),
            (GOOD.replace("4bf9", "4bg9"), None),
            (GOOD.replace("-01", "-1"), None),
            (String::new(), None),
            ("-".repeat(55), None),
        ] {
            assert_eq!(of(&text), want, "{text}");
        }
        assert_eq!(parse(&[("traceparent", GOOD), ("traceparent", GOOD)]), None, "two parents");
    }

    /// W3C Trace Context, 3.3.1: a list that is wrong is dropped and the trace goes on.
    #[test]
    fn a_state_is_handed_on_whole_or_not_at_all() {
        let many = |count: usize| {
            let members: Vec<String> = (0..count).map(|at| format!("k{at}=v")).collect();
            members.join(",")
        };
        let of = |values: &[&str]| {
            let parent = [("traceparent", GOOD)];
            let states = values.iter().map(|value| ("tracestate", *value));
            let lines: Vec<_> = parent.into_iter().chain(states).collect();
            let context = parse(&lines).unwrap();
            let mut out = HeaderMap::new();
            context.write(&mut out);
            assert_eq!(out["traceparent"], GOOD);
            out.get("tracestate").map(|value| value.to_str().unwrap().to_owned())
        };
        for (values, want) in [
            (&["rojo=1,congo=2"][..], Some("rojo=1,congo=2")),
            (&["rojo=1", "congo=2"], Some("rojo=1,congo=2")),
            (&["rojo=1 ,\t congo=2,"], Some("rojo=1,congo=2")),
            (&["fw529a3039@dt=FfAxB,1a=b"], Some("fw529a3039@dt=FfAxB,1a=b")),
            (&[""], None),
            (&["rojo"], None),
            (&["rojo="], None),
            (&["Rojo=1"], None),
            (&["=1"], None),
            (&["a=1=2"], None),
            (&["a=1,a=2"], None),
            (&["a=\u{e9}"], None),
        ] {
            assert_eq!(of(values).as_deref(), want, "{values:?}");
        }
        assert_eq!(of(&[&many(32)]), Some(many(32)));
        assert_eq!(of(&[&many(33)]), None);
        assert_eq!(of(&[&format!("a={}", "b".repeat(257))]), None);
    }

    /// Nobody looks and nobody asked: nothing is made. A trace that is not sampled stays so.
    #[test]
    fn sampling_is_the_callers() {
        let unsampled = parse(&[("traceparent", &GOOD.replace("-01", "-00"))]).unwrap();
        let own = begin(Some(&unsampled), true).unwrap();
        assert!(!own.is_sampled());
        assert_eq!(own.trace_id(), unsampled.trace_id());
        assert_ne!(own.span_id(), unsampled.span_id());
        assert_eq!(begin(Some(&unsampled), false), Some(unsampled));
        assert_eq!(begin(None, false), None);
        assert!(begin(None, true).unwrap().is_sampled());
    }
}
