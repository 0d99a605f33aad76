//! The text of a module, written so that regorus' compiler reads it as OPA does.
//!
//! It takes the variable of an `every` for one without a value, where it stands alone in brackets or in
//! an equation: `every x in input.scopes { data.known[x] }` would ask for any member of `data.known`, and
//! `every x in input.scopes { x = "read" }` for nothing. A name that is assigned is read as it should be,
//! so `every x in input.scopes { every_x := x; data.known[every_x] }` is what it gets. Nothing moves to
//! another line.

use std::ops::Range;

use regorus::unstable::{AssignOp, Expr, Module, Query, Rule, RuleHead, Span};

use super::syntax::{Found, declared, parts, query_of};

/// The module's text without variables of `every` in such places; nothing when it has none.
pub(super) fn plain(module: &Module, text: &str) -> Option<String> {
    let mut prefix = "every_".to_owned();
    while text.contains(&prefix) {
        prefix.push('_');
    }
    let mut found = Found::default();
    for rule in &module.policy {
        let Rule::Spec { head, bodies, .. } = rule.as_ref() else { continue };
        match head {
            RuleHead::Compr { refr, assign, .. } | RuleHead::Func { refr, assign, .. } => {
                found.exprs.push(refr);
                found.exprs.extend(assign.iter().map(|assign| assign.value.as_ref()));
            }
            RuleHead::Set { refr, key, .. } => {
                found.exprs.extend([refr].into_iter().chain(key).map(AsRef::as_ref));
            }
        }
        for body in bodies {
            found.queries.push(&body.query);
            found.exprs.extend(body.assign.iter().map(|assign| assign.value.as_ref()));
        }
    }
    let mut edits = Vec::new();
    while let Some((query, names)) = found.next_every() {
        for name in names.map(Span::text).filter(|name| *name != "_") {
            let misread = misread(query, name);
            if !misread.is_empty() {
                let behind_brace = query.span.start.saturating_add(1);
                let assignment = format!(" {prefix}{name} := {name};");
                edits.push((range(behind_brace, behind_brace), assignment));
            }
            let renamed = |span: &Span| (range(span.start, span.end), format!("{prefix}{name}"));
            edits.extend(misread.into_iter().map(renamed));
        }
    }
    if edits.is_empty() { None } else { apply(text, edits) }
}

/// Where the variable stands alone in brackets, or in an equation, in the query and in those within that
/// have no other of its name.
fn misread<'m>(query: &'m Query, name: &str) -> Vec<&'m Span> {
    let mut misread = Vec::new();
    let is_it = |expr: &'m Expr| {
        if let Expr::Var { span, .. } = expr {
            Some(span).filter(|span| span.text() == name)
        } else {
            None
        }
    };
    let mut found = Found { queries: vec![query], ..Found::default() };
    loop {
        if let Some(expr) = found.exprs.pop() {
            if let Expr::RefBrack { index, .. } = expr {
                misread.extend(is_it(index));
            } else if let Expr::AssignExpr { op: AssignOp::Eq, lhs, rhs, .. } = expr {
                let mut sides = vec![lhs.as_ref(), rhs.as_ref()];
                while let Some(side) = sides.pop() {
                    misread.extend(is_it(side));
                    if query_of(side).is_none() {
                        sides.extend(parts(side));
                    }
                }
            }
            let own = query_of(expr).is_some_and(|query| declared(query).contains(name));
            if !own {
                found.expr(expr);
            }
        } else if let Some(query) = found.queries.pop() {
            if declared(query).contains(name) {
                continue;
            }
            let before = found.queries.len();
            found.query(query, true);
            // The queries of `every` come back with their variables.
            found.queries.truncate(before);
            for (query, names) in std::mem::take(&mut found.every) {
                if !names.into_iter().flatten().any(|span| span.text() == name) {
                    found.queries.push(query);
                }
            }
        } else {
            // In an equation it may stand in brackets, too.
            misread.sort_by_key(|span| span.start);
            misread.dedup_by_key(|span| span.start);
            return misread;
        }
    }
}

fn range(start: u32, end: u32) -> Range<usize> {
    let wide = |at| usize::try_from(at).unwrap_or(usize::MAX);
    wide(start)..wide(end)
}

/// The text with other pieces in some places.
fn apply(text: &str, mut edits: Vec<(Range<usize>, String)>) -> Option<String> {
    edits.sort_by_key(|(place, _)| place.start);
    let (mut plain, mut from) = (String::with_capacity(text.len()), 0);
    for (place, new) in edits {
        plain.push_str(text.get(from..place.start)?);
        plain.push_str(&new);
        from = place.end;
    }
    plain.push_str(text.get(from..)?);
    Some(plain)
}
