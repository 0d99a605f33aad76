//! The first look at a module, at its tokens only, before any parser that recurses sees it.
//!
//! The parser's time doubles with each level of nested literals, and a chain of operators becomes
//! a tree as deep as the chain is long ([SEC-REGO-6]).

use regorus::unstable::{Lexer, Source, Token, TokenKind};

use super::error::{RegoLoadError, RegoPlace};

/// The bytes that all modules of a policy may have together. Loading is linear in it.
pub const MAX_MODULE_BYTES: usize = 1 << 20;

/// How deep brackets of any kind may nest: parse time doubles per level of literals.
pub const MAX_NESTING: usize = 12;

/// How many operators and references one expression may chain: each is a level of the tree.
pub const MAX_OPERATORS: usize = 128;

/// Checks size, nesting and operator chains of all modules.
pub(super) fn scan(modules: &[(&str, &str)]) -> Result<(), RegoLoadError> {
    let mut bytes = 0_usize;
    for (name, text) in modules {
        bytes = bytes.saturating_add(text.len());
        if bytes > MAX_MODULE_BYTES {
            let place = RegoPlace::new(name, 0);
            return Err(RegoLoadError::TooLong { place, limit: MAX_MODULE_BYTES });
        }
        scan_module(name, text)?;
    }
    Ok(())
}

fn scan_module(name: &str, text: &str) -> Result<(), RegoLoadError> {
    let source = Source::from_contents(name.to_owned(), text.to_owned());
    let source = source.map_err(|error| syntax(name, &error.to_string()))?;
    let mut lexer = Lexer::new(&source);
    // One counter of chained operators for each open bracket, and one outside.
    let mut chains = vec![0_usize];
    let mut last = Last { line: 0, joins: true };
    loop {
        let Token(kind, span) = lexer.next_token().map_err(|e| syntax(name, &e.to_string()))?;
        if kind == TokenKind::Eof {
            return Ok(());
        }
        let place = || RegoPlace::new(name, span.line);
        let role = Role::of(&kind, span.text());
        let joins = matches!(role, Role::Operator | Role::Open);
        let starts_anew = span.line > last.line && !joins && !last.joins;
        if starts_anew || role == Role::Separator {
            reset(&mut chains);
        }
        match role {
            Role::Open => {
                count(&mut chains, place)?;
                chains.push(0);
                if chains.len() > MAX_NESTING.saturating_add(1) {
                    return Err(RegoLoadError::TooDeep { place: place(), limit: MAX_NESTING });
                }
            }
            Role::Close if chains.len() > 1 => {
                chains.pop();
            }
            Role::Operator => count(&mut chains, place)?,
            Role::Close | Role::Separator | Role::Operand => {}
        }
        last = Last { line: span.line, joins: role == Role::Operator };
    }
}

/// The token before, as far as it matters.
struct Last {
    line: u32,
    /// Whether it needs an operand behind it, on whatever line.
    joins: bool,
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Role {
    Open,
    Close,
    Separator,
    Operator,
    Operand,
}

impl Role {
    fn of(kind: &TokenKind, text: &str) -> Self {
        match (kind, text) {
            (TokenKind::Symbol, "(" | "[" | "{") => Self::Open,
            (TokenKind::Symbol, ")" | "]" | "}") => Self::Close,
            (TokenKind::Symbol, "," | ";" | ":") => Self::Separator,
            (TokenKind::Symbol, _) | (TokenKind::Ident, "in") => Self::Operator,
            _ => Self::Operand,
        }
    }
}

fn reset(chains: &mut [usize]) {
    if let Some(chain) = chains.last_mut() {
        *chain = 0;
    }
}

fn count(chains: &mut [usize], place: impl Fn() -> RegoPlace) -> Result<(), RegoLoadError> {
    if let Some(chain) = chains.last_mut() {
        *chain = chain.saturating_add(1);
        if *chain > MAX_OPERATORS {
            return Err(RegoLoadError::TooManyOperators { place: place(), limit: MAX_OPERATORS });
        }
    }
    Ok(())
}

/// A syntax error out of what regorus reports.
pub(super) fn syntax(module: &str, report: &str) -> RegoLoadError {
    let (place, message) = split_report(module, report);
    RegoLoadError::Syntax { place, message }
}

/// Place and message of a regorus report, whose first line is `--> module:line:column` and whose
/// last is `error: message`.
pub(super) fn split_report(module: &str, report: &str) -> (RegoPlace, String) {
    let header = report.split_once("--> ").and_then(|(_, rest)| rest.lines().next());
    let place = header.and_then(|header| {
        let mut parts = header.rsplitn(3, ':');
        let (_column, line) = (parts.next()?, parts.next()?.parse().ok()?);
        Some(RegoPlace::new(parts.next()?, line))
    });
    let message = report.rsplit_once("error: ").map_or(report, |(_, message)| message);
    let place = place.unwrap_or_else(|| RegoPlace::new(module, 0));
    (place, message.trim().to_owned())
}
