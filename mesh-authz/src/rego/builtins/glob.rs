//! `glob.match` as OPA's library has it: `*` stops at delimiters, `**` does not.
//!
//! regorus' own goes by another library, for which `**` means folders. Patterns that OPA's library reads
//! in ways that nobody expects (three stars, an open brace) are refused instead of guessed.

use regorus::Value;

use super::Fault;
use super::cost::{MAX_PATTERN, STEPS_PER_UNIT};
use super::meter::{charge, text_units};

/// How deep alternatives nest at most.
const MAX_DEPTH: usize = 16;

/// What it costs to take one way one character further.
const UNITS_OF_STEP: usize = 3;

/// How far it is around what a star stands for.
const STAR: isize = 3;

/// A delimiter when the policy gives an empty list.
const DEFAULT_DELIMITER: char = '.';

/// `glob.match(pattern, delimiters, text)`.
pub(super) fn matches(args: &[Value]) -> Result<Value, Fault> {
    let [Value::String(pattern), delimiters, Value::String(text)] = args else {
        return Err(Fault::Failed);
    };
    if pattern.len() > MAX_PATTERN || text.len() > MAX_PATTERN {
        return Err(Fault::TooLarge);
    }
    let delimiters = delimiters_of(delimiters)?;
    // Patterns are compiled at each call.
    charge(pattern.len().saturating_add(text_units(text.len())).saturating_add(1))?;
    let steps = compile(pattern)?;
    if delimiters.len() > 1 && ["?*", "*?"].iter().any(|pair| pattern.contains(pair)) {
        return Err(Fault::Failed);
    }
    let odd = oddly(&steps, &delimiters, text);
    Ok(Value::Bool(odd || run(&steps, &delimiters, text)?))
}

/// Whether OPA's library says yes where its own description says no: a beginning and an end around
/// something unlimited may overlap, and one character alone may be none.
fn oddly(steps: &[Step], delimiters: &[char], text: &str) -> bool {
    if text.is_empty() {
        return matches!(steps, [Step::Any { .. } | Step::Class { negated: true, .. }]);
    }
    let unlimited = |step: &Step| match step {
        Step::Any { delimiters: all } => *all || delimiters.is_empty(),
        Step::Char(_) | Step::Class { .. } | Step::Fork(_) | Step::Jump(_) => false,
    };
    let literal = |steps: &[Step]| {
        let char = |step: &Step| if let Step::Char(c) = step { Some(*c) } else { None };
        steps.iter().map(char).collect::<Option<String>>()
    };
    let Some(at) = steps.windows(3).position(|three| match three {
        [Step::Fork(STAR), any, Step::Jump(-2)] => unlimited(any),
        _ => false,
    }) else {
        return false;
    };
    let begin = steps.get(..at).and_then(literal);
    let end = at.checked_add(3).and_then(|behind| steps.get(behind..)).and_then(literal);
    begin.zip(end).is_some_and(|(begin, end)| text.starts_with(&begin) && text.ends_with(&end))
}

fn delimiters_of(value: &Value) -> Result<Vec<char>, Fault> {
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Array(list) if list.is_empty() => return Ok(vec![DEFAULT_DELIMITER]),
        Value::Array(list) => list,
        Value::Bool(_)
        | Value::Number(_)
        | Value::String(_)
        | Value::Set(_)
        | Value::Object(_)
        | Value::Undefined => return Err(Fault::Failed),
    };
    let delimiter = |value: &Value| {
        let mut chars = value.as_string().map_err(|_kind| Fault::Failed)?.chars();
        match (chars.next(), chars.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(Fault::Failed),
        }
    };
    list.iter().map(delimiter).collect()
}

/// One step of a compiled pattern. Places are counted from the step itself, so that what was compiled can
/// be put anywhere.
#[derive(Clone, Debug)]
enum Step {
    Char(char),
    /// Any character, delimiters too or not.
    Any {
        delimiters: bool,
    },
    Class {
        negated: bool,
        chars: Chars,
    },
    /// Goes on behind it, and at so many steps further or back.
    Fork(isize),
    Jump(isize),
}

#[derive(Clone, Debug)]
enum Chars {
    List(Vec<char>),
    Range(char, char),
}

fn compile(pattern: &str) -> Result<Vec<Step>, Fault> {
    let mut chars = pattern.chars().peekable();
    let steps = sequence(&mut chars, 0)?;
    // Around alternatives with wildcards, OPA's library finds some of the texts only.
    let is_whole = pattern.starts_with('{') && pattern.find('}') == pattern.len().checked_sub(1);
    let wild = |step: &Step| matches!(step, Step::Any { .. });
    let refused = pattern.contains('{') && !is_whole && steps.iter().any(wild);
    if refused { Err(Fault::Failed) } else { Ok(steps) }
}

type Pattern<'p> = std::iter::Peekable<std::str::Chars<'p>>;

/// Up to the end, or within braces up to a comma or their end.
fn sequence(chars: &mut Pattern<'_>, depth: usize) -> Result<Vec<Step>, Fault> {
    let mut steps = Vec::new();
    while let Some(next) = chars.next_if(|next| depth == 0 || !matches!(next, ',' | '}')) {
        match next {
            '*' => {
                let delimiters = chars.next_if_eq(&'*').is_some();
                if chars.peek() == Some(&'*') {
                    return Err(Fault::Failed);
                }
                steps.extend([Step::Fork(STAR), Step::Any { delimiters }, Step::Jump(-2)]);
            }
            '?' => steps.push(Step::Any { delimiters: false }),
            '[' => steps.push(class(chars)?),
            '{' => steps.append(&mut alternatives(chars, depth)?),
            '\\' => steps.extend(chars.next().map(Step::Char)),
            other => steps.push(Step::Char(other)),
        }
    }
    Ok(steps)
}

/// What follows an opening brace.
fn alternatives(chars: &mut Pattern<'_>, depth: usize) -> Result<Vec<Step>, Fault> {
    if depth >= MAX_DEPTH {
        return Err(Fault::TooLarge);
    }
    let mut all = vec![sequence(chars, depth.saturating_add(1))?];
    loop {
        match chars.next() {
            Some(',') => all.push(sequence(chars, depth.saturating_add(1))?),
            Some('}') => break,
            _ => return Err(Fault::Failed),
        }
    }
    // All but the last: a fork around it, its steps, and a jump behind all that follow.
    let last = all.pop().unwrap_or_default();
    let mut behind =
        all.iter().fold(last.len(), |sum, one| sum.saturating_add(one.len()).saturating_add(2));
    let mut steps = Vec::with_capacity(behind);
    for mut one in all {
        let around = one.len().saturating_add(2);
        behind = behind.saturating_sub(around);
        steps.push(Step::Fork(distance(around)?));
        steps.append(&mut one);
        steps.push(Step::Jump(distance(behind.saturating_add(1))?));
    }
    steps.extend(last);
    Ok(steps)
}

fn distance(steps: usize) -> Result<isize, Fault> {
    isize::try_from(steps).map_err(|_far| Fault::TooLarge)
}

/// What follows an opening bracket: `a-z` is a range when it is all there is, anything else a list.
fn class(chars: &mut Pattern<'_>) -> Result<Step, Fault> {
    let negated = chars.next_if_eq(&'!').is_some();
    // Each character, and whether it was escaped.
    let mut list = Vec::new();
    loop {
        match chars.next().ok_or(Fault::Failed)? {
            ']' => break,
            '\\' => list.push((chars.next().ok_or(Fault::Failed)?, true)),
            other => list.push((other, false)),
        }
    }
    let chars = match *list.as_slice() {
        [(low, _), ('-', false), (high, _)] if low <= high => Chars::Range(low, high),
        // OPA's library refuses what begins like a range.
        [] | [_, ('-', false), ..] => return Err(Fault::Failed),
        _ => Chars::List(list.into_iter().map(|(one, _)| one).collect()),
    };
    Ok(Step::Class { negated, chars })
}

/// Follows all ways at once, so that the work is at most the product of both lengths.
fn run(steps: &[Step], delimiters: &[char], text: &str) -> Result<bool, Fault> {
    let (mut here, mut next) = (States::new(steps), States::new(steps));
    here.add(0);
    for c in text.chars() {
        charge(here.all.len().saturating_add(1).saturating_mul(UNITS_OF_STEP))?;
        // What clearing takes, and below, looking through a list.
        charge(steps.len().saturating_mul(UNITS_OF_STEP) / STEPS_PER_UNIT)?;
        next.clear();
        for at in &here.all {
            let fits = match steps.get(*at) {
                Some(Step::Char(wanted)) => *wanted == c,
                Some(Step::Any { delimiters: all }) => *all || !delimiters.contains(&c),
                Some(Step::Class { negated, chars }) => {
                    *negated
                        != match chars {
                            Chars::List(list) => {
                                charge(list.len().saturating_mul(UNITS_OF_STEP) / STEPS_PER_UNIT)?;
                                list.contains(&c)
                            }
                            Chars::Range(low, high) => (*low..=*high).contains(&c),
                        }
                }
                Some(Step::Fork(_) | Step::Jump(_)) | None => false,
            };
            if fits {
                next.add(at.saturating_add(1));
            }
        }
        std::mem::swap(&mut here, &mut next);
        if here.all.is_empty() {
            return Ok(false);
        }
    }
    Ok(here.all.contains(&steps.len()))
}

/// Where the ways through a pattern have come to.
struct States<'s> {
    steps: &'s [Step],
    seen: Vec<bool>,
    all: Vec<usize>,
}

impl<'s> States<'s> {
    fn new(steps: &'s [Step]) -> Self {
        Self { steps, seen: vec![false; steps.len().saturating_add(1)], all: Vec::new() }
    }

    fn clear(&mut self) {
        self.seen.fill(false);
        self.all.clear();
    }

    /// Adds a place, and all that can be reached from it without a character.
    fn add(&mut self, place: usize) {
        let mut pending = vec![place];
        while let Some(at) = pending.pop() {
            match self.seen.get_mut(at) {
                Some(seen) if !*seen => *seen = true,
                _ => continue,
            }
            match self.steps.get(at) {
                Some(Step::Fork(by)) => {
                    pending.push(at.saturating_add(1));
                    pending.extend(at.checked_add_signed(*by));
                }
                Some(Step::Jump(by)) => pending.extend(at.checked_add_signed(*by)),
                Some(Step::Char(_) | Step::Any { .. } | Step::Class { .. }) | None => {
                    self.all.push(at);
                }
            }
        }
    }
}
