//! What a call may cost, judged by its arguments before it is made.
//!
//! The instruction budget counts a call as one, and nothing interrupts it, so whatever could take
//! long or grow without bound is refused beforehand ([SEC-REGO-1]).

use regorus::Value;

use super::Fault;
use super::operators::check_size;

/// The most elements of an argument whose elements are looked at or copied.
const MAX_ELEMENTS: usize = 100_000;

/// The most values within arguments that are walked.
const MAX_NODES: usize = 20_000;

/// The most bytes of text in arguments that are walked, and of a text that comes of them. A chain
/// of calls that each double their argument ends here.
const MAX_TEXT: usize = 256 << 10;

/// The most steps of functions whose cost is the product of two arguments' sizes.
const MAX_STEPS: usize = 4 << 20;

/// The longest text that is matched against a pattern, and the longest pattern. Patterns are
/// compiled at each call.
const MAX_PATTERN: usize = 8 << 10;

/// The most numbers of a range.
const MAX_NUMBERS: usize = 10_000;

/// The most factors of a product, whose digits add up.
const MAX_FACTORS: usize = 256;

/// The furthest shift of bits.
const MAX_SHIFT: u64 = 1024;

/// The widest field of a format.
const MAX_WIDTH_DIGITS: usize = 3;

/// What the cost of a builtin depends on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cost {
    /// Nothing that could grow.
    Free,
    /// The number of elements of its arguments.
    Few,
    /// All that is in its arguments.
    Measured,
    /// The size of one argument for each piece of another.
    Search,
    /// Compiling its first argument and matching the others.
    Pattern,
    /// The distance of two numbers.
    Range,
    /// A number of bits.
    Shift,
    /// The product of numbers.
    Product,
    /// A delimiter for each element.
    Concat,
    /// A new text for each old one.
    Replace,
    /// A new text for each match, at most one more than there are bytes.
    RegexReplace,
    /// The widths in a format.
    Sprintf,
}

pub(super) fn check_cost(cost: Cost, args: &[Value]) -> Result<(), Fault> {
    let fits = match cost {
        Cost::Free => true,
        Cost::Few => args.iter().all(|arg| elements(arg) <= MAX_ELEMENTS),
        Cost::Measured => measure(args).is_some(),
        Cost::Search => {
            let sizes = args.iter().map(|arg| text_len(arg).max(elements(arg)).max(1));
            measure(args).is_some() && sizes.fold(1_usize, usize::saturating_mul) <= MAX_STEPS
        }
        Cost::Pattern => {
            args.iter().all(|arg| text_len(arg) <= MAX_PATTERN && elements(arg) <= MAX_PATTERN)
        }
        Cost::Range => range_fits(args),
        Cost::Shift => args.get(1).is_none_or(|by| by.as_u64().is_ok_and(|by| by <= MAX_SHIFT)),
        Cost::Product => {
            args.iter().all(|arg| elements(arg) <= MAX_FACTORS) && measure(args).is_some()
        }
        Cost::Concat => concat_fits(args),
        Cost::Replace => replace_fits(args),
        Cost::RegexReplace => match args {
            [Value::String(text), Value::String(pattern), Value::String(new)] => {
                text.len().max(pattern.len()) <= MAX_PATTERN
                    && text.len().saturating_add(1).saturating_mul(new.len()) <= MAX_TEXT
            }
            _ => true,
        },
        Cost::Sprintf => measure(args).is_some() && widths_fit(args),
    };
    if fits { Ok(()) } else { Err(Fault::TooLarge) }
}

/// How many elements a collection has.
fn elements(value: &Value) -> usize {
    match value {
        Value::Array(array) => array.len(),
        Value::Set(set) => set.len(),
        Value::Object(object) => object.len(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Undefined => 0,
    }
}

fn text_len(value: &Value) -> usize {
    if let Value::String(text) = value { text.len() } else { 0 }
}

/// The bytes of text in all values, when neither they nor the values are too many.
///
/// Values that are shared are counted wherever they appear: printing does so too.
fn measure(values: &[Value]) -> Option<usize> {
    let mut nodes = MAX_NODES;
    let mut bytes = 0_usize;
    let mut pending: Vec<&Value> = values.iter().collect();
    while let Some(value) = pending.pop() {
        nodes = nodes.checked_sub(1)?;
        if elements(value) > nodes {
            return None;
        }
        match value {
            Value::String(text) => bytes = bytes.saturating_add(text.len()),
            Value::Array(array) => pending.extend(array.iter()),
            Value::Set(set) => pending.extend(set.iter()),
            Value::Object(object) => {
                pending.extend(object.iter().flat_map(|(key, value)| [key, value]));
            }
            Value::Number(_) => check_size(std::slice::from_ref(value)).ok()?,
            Value::Null | Value::Bool(_) | Value::Undefined => {}
        }
        if bytes > MAX_TEXT {
            return None;
        }
    }
    Some(bytes)
}

fn range_fits(args: &[Value]) -> bool {
    let [first, last, step @ ..] = args else { return true };
    let (Ok(first), Ok(last)) = (first.as_i64(), last.as_i64()) else {
        // What is no whole number fails in the function, what is too large for one ends here.
        return [first, last].iter().all(|end| !matches!(end, Value::Number(n) if n.is_integer()));
    };
    let step = match step {
        [step] => step.as_i64().unwrap_or(1),
        _ => 1,
    };
    let distance = first.abs_diff(last);
    step >= 1 && usize::try_from(distance).is_ok_and(|distance| distance < MAX_NUMBERS)
}

fn concat_fits(args: &[Value]) -> bool {
    let (Some(bytes), [delimiter, pieces]) = (measure(args), args) else { return false };
    let delimiters = text_len(delimiter).saturating_mul(elements(pieces));
    bytes.saturating_add(delimiters) <= MAX_TEXT
}

fn replace_fits(args: &[Value]) -> bool {
    let [Value::String(text), Value::String(old), Value::String(new)] = args else { return true };
    let places = text.len().checked_div(old.len()).unwrap_or_else(|| text.len().saturating_add(1));
    let grown = places.saturating_mul(new.len()).saturating_add(text.len());
    old.len() <= MAX_TEXT && grown <= MAX_TEXT
}

/// Whether each `%` has at most three ASCII digits and one point before its verb.
fn widths_fit(args: &[Value]) -> bool {
    let Some(Value::String(format)) = args.first() else { return true };
    let mut directives = format.split('%').skip(1);
    directives.all(|directive| {
        let width = directive.strip_prefix('.').unwrap_or(directive);
        let digits = width.chars().take_while(|c| c.is_numeric());
        digits.clone().count() <= MAX_WIDTH_DIGITS && digits.into_iter().all(|c| c.is_ascii_digit())
    })
}
