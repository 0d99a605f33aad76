//! What a call may cost, judged by its arguments before it is made.
//!
//! The instruction budget counts a call as one, and nothing interrupts it, so whatever could take
//! long or grow without bound is refused beforehand ([SEC-REGO-1]).

use regorus::Value;

use super::meter::{charge, charge_all, text_units};
use super::operators::check_size;
use super::{CALL, Fault};

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
pub(super) const MAX_PATTERN: usize = 8 << 10;

/// How many steps of a search take as long as one unit.
pub(super) const STEPS_PER_UNIT: usize = 16;

/// What compiling a pattern costs.
const PATTERN: usize = 500;

/// What compiling a class or group of a pattern costs: `\\w` stands for half of Unicode.
const CLASS: usize = 1_000;

/// The most states that regorus compiles a pattern to, about: 100 KiB of them.
const MAX_STATES: usize = 4_096;

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
    /// Comparing what is in its arguments.
    Compared,
    /// All that is in its arguments.
    Measured,
    /// The size of one argument for each piece of another.
    Search,
    /// Compiling its first argument and matching the last.
    Pattern,
    /// The same, at each place of a text.
    RegexSplit,
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

/// Refuses a call whose arguments are too large for it, and charges for one that is made.
pub(super) fn check_cost(cost: Cost, args: &[Value]) -> Result<(), Fault> {
    charge(units(cost, args).ok_or(Fault::TooLarge)?.saturating_add(CALL))
}

/// What a call costs, in the units of the meter; nothing when it is refused.
fn units(cost: Cost, args: &[Value]) -> Option<usize> {
    let within = |size: usize, most: usize| (size <= most).then_some(size);
    match cost {
        Cost::Free => Some(0),
        Cost::Few => {
            let sizes = args.iter().map(|arg| within(elements(arg), MAX_ELEMENTS));
            Some(sizes.sum::<Option<usize>>()?.saturating_mul(2))
        }
        Cost::Compared => {
            let few = args.iter().all(|arg| elements(arg) <= MAX_ELEMENTS);
            charge_all(args).ok().filter(|()| few).map(|()| 0)
        }
        Cost::Measured => measure(args),
        Cost::Search => {
            let sizes = args.iter().map(|arg| text_len(arg).max(elements(arg)).max(1));
            let steps = within(sizes.fold(1_usize, usize::saturating_mul), MAX_STEPS)?;
            Some(measure(args)?.saturating_add(steps / STEPS_PER_UNIT))
        }
        Cost::Pattern => {
            let (Some(Value::String(wanted)), Some(last)) = (args.first(), args.last()) else {
                return measure(args);
            };
            let text = last.as_string().map_or("", |text| text);
            Some(measure(args)?.saturating_add(pattern(wanted, text)?))
        }
        Cost::RegexSplit => match args {
            [Value::String(wanted), Value::String(text)] => {
                Some(pattern(wanted, text)?.saturating_add(pattern_everywhere(text)))
            }
            _ => Some(0),
        },
        Cost::Range => range(args),
        Cost::Shift => {
            let fits = args.get(1).is_none_or(|by| by.as_u64().is_ok_and(|by| by <= MAX_SHIFT));
            fits.then_some(0)
        }
        Cost::Product => {
            let factors = args.iter().map(|arg| within(elements(arg), MAX_FACTORS));
            let factors = factors.sum::<Option<usize>>()?;
            Some(measure(args)?.saturating_add(factors.saturating_mul(8)))
        }
        Cost::Concat => {
            let ([delimiter, pieces], measured) = (args, measure(args)?) else { return None };
            let delimiters = text_len(delimiter).saturating_mul(elements(pieces));
            within(delimiters, MAX_TEXT).map(|bytes| measured.saturating_add(text_units(bytes)))
        }
        Cost::Replace => {
            let [Value::String(text), Value::String(old), Value::String(new)] = args else {
                return Some(0);
            };
            let places = text.len().checked_div(old.len());
            let places = places.unwrap_or_else(|| text.len().saturating_add(1));
            let grown = places.saturating_mul(new.len()).saturating_add(text.len());
            within(old.len(), MAX_TEXT).and_then(|_| within(grown, MAX_TEXT)).map(text_units)
        }
        Cost::RegexReplace => match args {
            [Value::String(text), Value::String(wanted), Value::String(new)] => {
                let grown = text.len().saturating_add(1).saturating_mul(new.len());
                let matched = pattern(wanted, text)?.saturating_add(pattern_everywhere(text));
                within(grown, MAX_TEXT).map(|bytes| matched.saturating_add(text_units(bytes)))
            }
            _ => Some(0),
        },
        Cost::Sprintf => measure(args).filter(|_| widths_fit(args)),
    }
}

/// Compiling a pattern, and matching a text against it.
fn pattern(pattern: &str, text: &str) -> Option<usize> {
    if pattern.len().max(text.len()) > MAX_PATTERN {
        return None;
    }
    let classes = pattern.matches(['\\', '[', '(']).count().saturating_mul(CLASS);
    let matching = text.len().saturating_mul(states(pattern)) / STEPS_PER_UNIT;
    let compiling = pattern.len().saturating_mul(16).saturating_add(PATTERN);
    Some(classes.saturating_add(matching).saturating_add(compiling))
}

/// Matching at each place of a text: a pattern may look to its end each time.
fn pattern_everywhere(text: &str) -> usize {
    text.len().saturating_mul(text.len()) / STEPS_PER_UNIT
}

/// How many states a pattern has at most: what stands before `{n}` has n times as many.
fn states(pattern: &str) -> usize {
    let counts = pattern.split('{').skip(1).map(|rest| {
        let numbers = rest.split(|c: char| !c.is_ascii_digit()).take(2);
        numbers.filter_map(|number| number.parse::<usize>().ok()).max().unwrap_or(1).max(1)
    });
    counts.fold(pattern.len(), usize::saturating_mul).min(MAX_STATES)
}

/// How many elements a collection has.
pub(super) fn elements(value: &Value) -> usize {
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

/// What walking through all values costs, when neither they nor their texts are too many.
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
    let walked = MAX_NODES.saturating_sub(nodes).saturating_mul(2);
    Some(walked.saturating_add(text_units(bytes)))
}

/// The numbers of a range.
fn range(args: &[Value]) -> Option<usize> {
    let [first, last, step @ ..] = args else { return Some(0) };
    let (Ok(first), Ok(last)) = (first.as_i64(), last.as_i64()) else {
        // What is no whole number fails in the function, what is too large for one ends here.
        let large = |end: &Value| matches!(end, Value::Number(n) if n.is_integer());
        return (!large(first) && !large(last)).then_some(0);
    };
    let step = match step {
        [step] => step.as_i64().unwrap_or(1),
        _ => 1,
    };
    let distance = usize::try_from(first.abs_diff(last)).ok();
    distance.filter(|distance| step >= 1 && *distance < MAX_NUMBERS)
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
