//! Ways through a module's syntax tree.

use std::collections::BTreeSet;

use regorus::Value;
use regorus::unstable::{AssignOp, Expr, Literal, Query, Ref, Span};

/// A path's components.
pub(super) type Path = Vec<String>;

/// Root, constant components behind it, and whether these are all of the reference's. `dynamic`
/// is shown each component that is an expression.
pub(super) fn reference<'e>(
    expr: &'e Expr,
    dynamic: &mut impl FnMut(&'e Ref<Expr>),
) -> Option<(String, Path, bool)> {
    let mut reversed = Vec::new();
    let mut at = expr;
    let root = loop {
        match at {
            Expr::RefDot { refr, field, .. } => {
                reversed.push(text(&field.1));
                at = refr;
            }
            Expr::RefBrack { refr, index, .. } => {
                reversed.push(constant(index));
                if constant(index).is_none() {
                    dynamic(index);
                }
                at = refr;
            }
            Expr::Var { value, .. } => break text(value)?,
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. }
            | Expr::Array { .. }
            | Expr::Set { .. }
            | Expr::Object { .. }
            | Expr::ArrayCompr { .. }
            | Expr::SetCompr { .. }
            | Expr::ObjectCompr { .. }
            | Expr::Call { .. }
            | Expr::UnaryExpr { .. }
            | Expr::BinExpr { .. }
            | Expr::BoolExpr { .. }
            | Expr::ArithExpr { .. }
            | Expr::AssignExpr { .. }
            | Expr::Membership { .. } => return None,
        }
    };
    let all = reversed.len();
    let constants: Path = reversed.into_iter().rev().map_while(|component| component).collect();
    let complete = constants.len() == all;
    Some((root, constants, complete))
}

pub(super) fn text(value: &Value) -> Option<String> {
    value.as_string().ok().map(ToString::to_string)
}

/// The text of a string literal.
pub(super) fn constant(expr: &Expr) -> Option<String> {
    if let Expr::String { value, .. } | Expr::RawString { value, .. } = expr {
        return text(value);
    }
    None
}

/// All names in a query but those in negations, and those that it only declares.
pub(super) fn names_of(query: &Query) -> BTreeSet<String> {
    let all = all_within(Vec::new(), vec![query], false).into_iter();
    all.filter_map(|expr| if let Expr::Var { value, .. } = expr { text(value) } else { None })
        .collect()
}

/// Expressions and all that they and queries are made of, with negations or without.
pub(super) fn all_within<'e>(
    exprs: Vec<&'e Expr>,
    queries: Vec<&'e Query>,
    negations: bool,
) -> Vec<&'e Expr> {
    let mut all = Vec::new();
    let mut found = Found { exprs, queries, every: Vec::new() };
    loop {
        if let Some(expr) = found.exprs.pop() {
            all.push(expr);
            found.expr(expr);
        } else if let Some(query) = found.queries.pop() {
            found.query(query, negations);
        } else {
            return all;
        }
    }
}

/// What is still to be looked at.
#[derive(Default)]
pub(super) struct Found<'m> {
    pub(super) queries: Vec<&'m Query>,
    pub(super) exprs: Vec<&'m Expr>,
    /// Queries of `every`, and its variables.
    pub(super) every: Vec<(&'m Query, [Option<&'m Span>; 2])>,
}

impl<'m> Found<'m> {
    /// The next `every`: its query, and its variables.
    pub(super) fn next_every(
        &mut self,
    ) -> Option<(&'m Query, impl Iterator<Item = &'m Span> + use<'m>)> {
        while self.every.is_empty() {
            if let Some(expr) = self.exprs.pop() {
                self.expr(expr);
            } else {
                let query = self.queries.pop()?;
                self.query(query, true);
            }
        }
        let (query, names) = self.every.pop()?;
        Some((query, names.into_iter().flatten()))
    }

    /// What an expression is made of.
    pub(super) fn expr(&mut self, expr: &'m Expr) {
        self.exprs.extend(parts(expr));
        self.queries.extend(query_of(expr));
    }

    /// What a query is made of, with negations or without.
    pub(super) fn query(&mut self, query: &'m Query, negations: bool) {
        for statement in &query.stmts {
            match &statement.literal {
                Literal::SomeVars { .. } => {}
                Literal::NotExpr { .. } if !negations => {}
                Literal::SomeIn { key, value, collection, .. } => {
                    self.exprs.extend(key.iter().chain([value, collection]).map(AsRef::as_ref));
                }
                Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => self.exprs.push(expr),
                Literal::Every { key, value, domain, query, .. } => {
                    self.exprs.push(domain);
                    self.queries.push(query);
                    self.every.push((query, [key.as_ref(), Some(value)]));
                }
            }
        }
    }
}

/// The query of a comprehension.
pub(super) fn query_of(expr: &Expr) -> Option<&Query> {
    if let Expr::ArrayCompr { query, .. }
    | Expr::SetCompr { query, .. }
    | Expr::ObjectCompr { query, .. } = expr
    {
        Some(query)
    } else {
        None
    }
}

/// The expressions that one is made of; a comprehension's value is one of them, its query is not.
pub(super) fn parts(expr: &Expr) -> Vec<&Expr> {
    match expr {
        Expr::String { .. }
        | Expr::RawString { .. }
        | Expr::Number { .. }
        | Expr::Bool { .. }
        | Expr::Null { .. }
        | Expr::Var { .. } => Vec::new(),
        Expr::ArrayCompr { term, .. } | Expr::SetCompr { term, .. } => vec![term.as_ref()],
        Expr::ObjectCompr { key, value, .. } => vec![key.as_ref(), value.as_ref()],
        Expr::Array { items, .. } | Expr::Set { items, .. } => {
            items.iter().map(AsRef::as_ref).collect()
        }
        Expr::Object { fields, .. } => {
            fields.iter().flat_map(|(_, key, value)| [key.as_ref(), value.as_ref()]).collect()
        }
        Expr::Call { fcn, params, .. } => params.iter().chain([fcn]).map(AsRef::as_ref).collect(),
        Expr::UnaryExpr { expr, .. } => vec![expr.as_ref()],
        Expr::RefDot { refr, .. } => vec![refr.as_ref()],
        Expr::RefBrack { refr, index, .. } => vec![refr.as_ref(), index.as_ref()],
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => vec![lhs.as_ref(), rhs.as_ref()],
        Expr::Membership { key, value, collection, .. } => {
            key.iter().chain([value, collection]).map(AsRef::as_ref).collect()
        }
    }
}

/// The names that a query declares for itself.
pub(super) fn declared(query: &Query) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for statement in &query.stmts {
        match &statement.literal {
            Literal::SomeVars { vars, .. } => {
                names.extend(vars.iter().map(|span| span.text().to_owned()));
            }
            Literal::SomeIn { key, value, .. } => {
                names.append(&mut variables(key));
                names.append(&mut variables([value]));
            }
            Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => {
                if let Expr::AssignExpr { op: AssignOp::ColEq, lhs, .. } = expr.as_ref() {
                    names.append(&mut variables([lhs]));
                }
            }
            Literal::Every { .. } => {}
        }
    }
    names
}

/// The variables of patterns: names, and names within arrays and objects.
pub(super) fn variables<'e>(patterns: impl IntoIterator<Item = &'e Ref<Expr>>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut pending: Vec<&Ref<Expr>> = patterns.into_iter().collect();
    while let Some(pattern) = pending.pop() {
        if let Expr::Var { value, .. } = pattern.as_ref() {
            names.extend(text(value));
        } else if let Expr::Array { items, .. } = pattern.as_ref() {
            pending.extend(items);
        } else if let Expr::Object { fields, .. } = pattern.as_ref() {
            pending.extend(fields.iter().map(|(_, _, value)| value));
        }
    }
    names
}
