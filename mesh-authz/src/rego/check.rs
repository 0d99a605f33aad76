//! The second look at the modules, at their syntax trees: what is called, and what reaches what.
//!
//! regorus resolves a function when its caller is compiled, notices recursion of rules late and of
//! functions never, and knows builtins that are not for us. OPA refuses all of it at load, and so
//! does this walk ([SEC-REGO-1], [SEC-REGO-2]). On its way it notes what is read of the input. It runs on [`regorus`]' own tree, so that there is
//! no second opinion on what the text means.

use std::collections::{BTreeMap, BTreeSet};

use regorus::unstable::{
    AssignOp, Expr, Import, Literal, Module, Query, Ref, Rule, RuleAssign, RuleHead, Span,
};

use super::builtins;
use super::error::{RegoLoadError, RegoPlace};
use super::syntax::{
    Path, all_within, declared, names_of, parts, query_of, reference, text, variables,
};

/// The longest chain of rules that refer to each other. Evaluation recurses along it.
pub const MAX_RULE_CHAIN: usize = 100;

/// regorus passes at most this many arguments to a function and drops further ones.
const MAX_ARGUMENTS: usize = 8;

/// What is known of modules that are in order.
pub(super) struct Checked {
    /// The builtins that they call.
    pub(super) called: BTreeSet<&'static str>,
    /// The constant beginnings of all references to the input, `input` left out.
    pub(super) reads: BTreeSet<Path>,
}

/// Checks the modules.
///
/// `query` must name a rule, such as `data.envoy.authz.allow`.
pub(super) fn check(modules: &[Ref<Module>], query: &str) -> Result<Checked, RegoLoadError> {
    let mut rules = Rules::default();
    for module in modules {
        let package = path_of(&module.package.refr).unwrap_or_default();
        for rule in &module.policy {
            rules.define(&package, rule)?;
        }
    }
    if !rules.ids.contains_key(&split_path(query)) {
        return Err(RegoLoadError::QueryNotFound { query: query.to_owned() });
    }
    let (mut called, mut reads) = (BTreeSet::new(), BTreeSet::new());
    for module in modules {
        let package = path_of(&module.package.refr).unwrap_or_default();
        // What has another name is read as a whole.
        reads.extend(module.imports.iter().filter_map(|import| below_input(&import.refr)));
        let aliases = aliases(&module.imports);
        for rule in &module.policy {
            let Some(id) = rules.id(&package, rule) else { continue };
            let mut walk = Walk {
                rules: &rules,
                package: &package,
                aliases: &aliases,
                locals: Vec::new(),
                bound: Vec::new(),
                reached: BTreeSet::new(),
                called: BTreeSet::new(),
                reads: BTreeSet::new(),
            };
            walk.rule(rule)?;
            let Walk { reached, called: mut builtins, reads: mut read, .. } = walk;
            called.append(&mut builtins);
            reads.append(&mut read);
            if let Some(node) = rules.nodes.get_mut(id) {
                node.reaches.extend(reached);
            }
        }
    }
    check_chains(&rules.nodes)?;
    for name in &called {
        shadowed(&rules, name)?;
    }
    Ok(Checked { called, reads })
}

/// The constant path of a reference that begins with `input`.
fn below_input(expr: &Expr) -> Option<Path> {
    path_of(expr).filter(|path| path.first().is_some_and(|root| root == "input")).map(|mut path| {
        path.remove(0);
        path
    })
}

fn split_path(dotted: &str) -> Path {
    dotted.strip_prefix("data.").unwrap_or(dotted).split('.').map(str::to_owned).collect()
}

/// The constant components of a reference, from its root; nothing when the root is no name.
fn path_of(expr: &Expr) -> Option<Path> {
    let mut path = Path::new();
    reference(expr, &mut |_| {}).map(|(root, components, _)| {
        path.push(root);
        path.extend(components);
        path
    })
}

fn place(span: &Span) -> RegoPlace {
    RegoPlace::new(span.source.file(), span.line)
}

/// All rules of all modules, by path.
#[derive(Default)]
struct Rules {
    ids: BTreeMap<Path, usize>,
    nodes: Vec<Node>,
}

/// One rule or function with all its definitions.
struct Node {
    path: String,
    place: RegoPlace,
    is_function: bool,
    reaches: BTreeSet<usize>,
}

impl Rules {
    fn define(&mut self, package: &[String], rule: &Rule) -> Result<(), RegoLoadError> {
        let (Some(path), place) = (rule_path(package, rule), place(rule.span())) else {
            let message = "the rule has no name".to_owned();
            return Err(RegoLoadError::Syntax { place: place(rule.span()), message });
        };
        let is_function = match rule {
            Rule::Spec { head: RuleHead::Func { args, .. }, .. } => {
                if args.len() > MAX_ARGUMENTS {
                    let message = format!("a function takes at most {MAX_ARGUMENTS} arguments");
                    return Err(RegoLoadError::Compile { place, message });
                }
                true
            }
            Rule::Default { args, .. } => !args.is_empty(),
            Rule::Spec { .. } => false,
        };
        let dotted = format!("data.{}", path.join("."));
        let next = self.nodes.len();
        let id = *self.ids.entry(path).or_insert(next);
        if id == next {
            self.nodes.push(Node { path: dotted, place, is_function, reaches: BTreeSet::new() });
        }
        Ok(())
    }

    fn id(&self, package: &[String], rule: &Rule) -> Option<usize> {
        self.ids.get(&rule_path(package, rule)?).copied()
    }

    /// The rules that a reference to the path may evaluate: one above it, or all below it.
    fn met_by(&self, path: &[String]) -> Vec<usize> {
        let above = (1..path.len()).filter_map(|len| self.ids.get(path.get(..len)?));
        let at_or_below = self.ids.range(path.to_vec()..);
        let at_or_below = at_or_below.take_while(|(rule, _)| rule.starts_with(path));
        above.copied().chain(at_or_below.map(|(_, id)| *id)).collect()
    }

    fn function(&self, path: &[String]) -> Option<usize> {
        let id = *self.ids.get(path)?;
        self.nodes.get(id).is_some_and(|node| node.is_function).then_some(id)
    }
}

/// Package and constant part of a rule's name.
fn rule_path(package: &[String], rule: &Rule) -> Option<Path> {
    let refr = match rule {
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => refr,
        },
        Rule::Default { refr, .. } => refr,
    };
    let name = path_of(refr)?;
    Some(package.iter().cloned().chain(name).collect())
}

/// Names that imports of `data` give to paths.
fn aliases(imports: &[Import]) -> BTreeMap<String, Path> {
    let data_imports = imports.iter().filter_map(|import| {
        let path = path_of(&import.refr)?;
        let (root, path) = path.split_first()?;
        let alias = import.r#as.as_ref().map(|span| span.text().to_owned());
        let alias = alias.or_else(|| path.last().cloned())?;
        (root == "data").then(|| (alias, path.to_vec()))
    });
    data_imports.collect()
}

/// The walk through one rule.
struct Walk<'r> {
    rules: &'r Rules,
    package: &'r [String],
    aliases: &'r BTreeMap<String, Path>,
    /// Names that are variables here, innermost scope last.
    locals: Vec<BTreeSet<String>>,
    /// Names that occur in the queries around, negations left out: OPA finds their values there.
    bound: Vec<BTreeSet<String>>,
    reached: BTreeSet<usize>,
    called: BTreeSet<&'static str>,
    reads: BTreeSet<Path>,
}

impl Walk<'_> {
    fn rule(&mut self, rule: &Rule) -> Result<(), RegoLoadError> {
        match rule {
            Rule::Default { args, value, .. } => {
                self.scoped(variables(args), |walk| walk.expr(value))
            }
            Rule::Spec { head, bodies, .. } => {
                let (name, args, values) = match head {
                    RuleHead::Compr { refr, assign, .. } => (refr, &[][..], value(assign.as_ref())),
                    RuleHead::Set { refr, key, .. } => (refr, &[][..], key.as_ref()),
                    RuleHead::Func { refr, args, assign, .. } => {
                        (refr, &args[..], value(assign.as_ref()))
                    }
                };
                if bodies.len() > 1 {
                    values.iter().try_for_each(|value| beside_else(value))?;
                }
                self.scoped(variables(args), |walk| {
                    walk.exprs(args)?;
                    if bodies.is_empty() {
                        walk.name(name)?;
                        walk.exprs(values)?;
                    }
                    for body in bodies {
                        walk.query(&body.query, |walk| {
                            walk.name(name)?;
                            walk.exprs(values)?;
                            walk.exprs(value(body.assign.as_ref()))
                        })?;
                    }
                    Ok(())
                })
            }
        }
    }

    /// A rule's name: its root refers to nothing, an index in it may.
    fn name(&mut self, name: &Expr) -> Result<(), RegoLoadError> {
        let mut indexes = Vec::new();
        reference(name, &mut |index| indexes.push(index));
        self.exprs(indexes)
    }

    fn scoped<T>(&mut self, names: BTreeSet<String>, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.locals.push(names);
        let result = inside(self);
        self.locals.pop();
        result
    }

    /// A query, and what is evaluated in its scope.
    fn query(
        &mut self,
        query: &Query,
        inside: impl FnOnce(&mut Self) -> Result<(), RegoLoadError>,
    ) -> Result<(), RegoLoadError> {
        self.bound.push(names_of(query));
        let result = self.scoped(declared(query), |walk| {
            for statement in &query.stmts {
                if let Some(with) = statement.with_mods.first() {
                    return Err(RegoLoadError::WithModifier { place: place(&with.span) });
                }
                walk.literal(&statement.literal)?;
            }
            inside(walk)
        });
        self.bound.pop();
        result
    }

    fn literal(&mut self, literal: &Literal) -> Result<(), RegoLoadError> {
        match literal {
            Literal::SomeVars { .. } => Ok(()),
            Literal::SomeIn { key, value, collection, .. } => {
                self.exprs(key)?;
                self.expr(value)?;
                self.expr(collection)
            }
            Literal::Expr { expr, .. } => self.expr(expr),
            Literal::NotExpr { expr, .. } => {
                self.negated(expr)?;
                self.expr(expr)
            }
            Literal::Every { key, value, domain, query, .. } => {
                self.expr(domain)?;
                let names = key.iter().chain([value]).map(|span| span.text().to_owned());
                self.scoped(names.collect(), |walk| walk.query(query, |_| Ok(())))
            }
        }
    }

    /// Refuses what OPA calls unsafe: a variable that is bound under `not` alone. Compiled code would look
    /// for any value with which the negation holds.
    fn negated(&self, expr: &Expr) -> Result<(), RegoLoadError> {
        let mut pending = vec![expr];
        while let Some(expr) = pending.pop() {
            if let Expr::RefBrack { index, span, .. } = expr
                && let Expr::Var { value, .. } = index.as_ref()
                && let Some(name) = text(value)
                && !self.is_bound(&name)
            {
                let message = format!("{name} has no value outside of not");
                return Err(RegoLoadError::Compile { place: place(span), message });
            }
            if query_of(expr).is_none() {
                pending.extend(parts(expr));
            }
        }
        Ok(())
    }

    /// Whether a name under `not` has a value: a variable of a query or rule around, or a rule.
    fn is_bound(&self, name: &str) -> bool {
        let outer = self.locals.split_last().map_or(&[][..], |(_, outer)| outer);
        let is_rule = |path: Path| !self.rules.met_by(&path).is_empty();
        name != "_"
            && (["input", "data"].contains(&name)
                || self.bound.iter().chain(outer).any(|names| names.contains(name))
                || self.aliases.contains_key(name)
                || self.absolute(name, &[]).is_some_and(is_rule))
    }

    fn exprs<'e>(
        &mut self,
        exprs: impl IntoIterator<Item = &'e Ref<Expr>>,
    ) -> Result<(), RegoLoadError> {
        exprs.into_iter().try_for_each(|expr| self.expr(expr))
    }

    fn expr(&mut self, expr: &Expr) -> Result<(), RegoLoadError> {
        match expr {
            Expr::String { .. }
            | Expr::RawString { .. }
            | Expr::Number { .. }
            | Expr::Bool { .. }
            | Expr::Null { .. } => Ok(()),
            Expr::Var { .. } | Expr::RefDot { .. } | Expr::RefBrack { .. } => self.refer(expr),
            Expr::Array { items, .. } | Expr::Set { items, .. } => self.exprs(items),
            Expr::Object { fields, .. } => fields.iter().try_for_each(|(_, key, value)| {
                self.expr(key)?;
                self.expr(value)
            }),
            Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } => {
                self.query(query, |walk| walk.expr(term))
            }
            Expr::ObjectCompr { key, value, query, .. } => self.query(query, |walk| {
                walk.expr(key)?;
                walk.expr(value)
            }),
            Expr::Call { span, fcn, params, .. } => {
                self.call(span, fcn)?;
                self.exprs(params)
            }
            Expr::UnaryExpr { expr, .. } => self.expr(expr),
            Expr::BinExpr { lhs, rhs, .. }
            | Expr::BoolExpr { lhs, rhs, .. }
            | Expr::ArithExpr { lhs, rhs, .. } => {
                self.expr(lhs)?;
                self.expr(rhs)
            }
            Expr::AssignExpr { span, op, lhs, rhs, .. } => {
                // Compiled code would go on where the right side is undefined.
                if *op == AssignOp::ColEq
                    && matches!(lhs.as_ref(), Expr::Var { value, .. } if text(value).as_deref() == Some("_"))
                {
                    let message = "_ := is not offered here: write the expression alone".to_owned();
                    return Err(RegoLoadError::Compile { place: place(span), message });
                }
                self.expr(lhs)?;
                self.expr(rhs)
            }
            // Compiled code would look for the value at any key.
            Expr::Membership { span, key: Some(_), .. } => {
                let message =
                    "in with a key is not offered here: compare collection[key] with the value";
                Err(RegoLoadError::Compile { place: place(span), message: message.to_owned() })
            }
            Expr::Membership { key: None, value, collection, .. } => {
                self.expr(value)?;
                self.expr(collection)
            }
        }
    }

    /// A variable or reference: which rules it may evaluate.
    fn refer(&mut self, expr: &Expr) -> Result<(), RegoLoadError> {
        let mut indexes = Vec::new();
        let Some((root, components, _)) = reference(expr, &mut |index| indexes.push(index)) else {
            // The root is a literal or a call.
            if let Expr::RefBrack { index, .. } = expr {
                self.expr(index)?;
            }
            if let Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } = expr {
                self.expr(refr)?;
            }
            return Ok(());
        };
        if root == "input" {
            self.reads.insert(components.clone());
        }
        if let Some(path) = self.absolute(&root, &components) {
            self.reached.extend(self.rules.met_by(&path));
        }
        self.exprs(indexes)
    }

    /// The path below `data` that a name with components means, if it is no variable or input.
    fn absolute(&self, root: &str, components: &[String]) -> Option<Path> {
        let base = match root {
            "data" => Path::new(),
            "input" => return None,
            name if self.locals.iter().any(|scope| scope.contains(name)) => return None,
            name => match self.aliases.get(name) {
                Some(path) => path.clone(),
                None => self.package.iter().cloned().chain([name.to_owned()]).collect(),
            },
        };
        Some(base.into_iter().chain(components.iter().cloned()).collect())
    }

    fn call(&mut self, span: &Span, fcn: &Expr) -> Result<(), RegoLoadError> {
        let Some((root, components, true)) = reference(fcn, &mut |_| {}) else {
            let message = "a function is called by its name".to_owned();
            return Err(RegoLoadError::Compile { place: place(span), message });
        };
        let name = [vec![root.clone()], components.clone()].concat().join(".");
        let own: Path = self.package.iter().cloned().chain(split_path(&name)).collect();
        let absolute = self.absolute(&root, &components).and_then(|p| self.rules.function(&p));
        if let Some(id) = absolute.or_else(|| self.rules.function(&own)) {
            self.reached.insert(id);
            return Ok(());
        }
        if let Some(builtin) = builtins::offered(&name) {
            self.called.insert(builtin);
            return Ok(());
        }
        let place = place(span);
        Err(if builtins::known_elsewhere(&name) {
            RegoLoadError::BuiltinNotOffered { place, reason: builtins::reason(&name), name }
        } else {
            RegoLoadError::UnknownFunction { place, name }
        })
    }
}

fn value(assign: Option<&RuleAssign>) -> Option<&Ref<Expr>> {
    assign.map(|assign| &assign.value)
}

/// Refuses a rule's value that is compiled once for its body and once for its `else`, where a variable of
/// the body has no value and stands for any.
fn beside_else(value: &Expr) -> Result<(), RegoLoadError> {
    let comprehensions = all_within(vec![value], Vec::new(), true).into_iter().filter_map(query_of);
    for expr in all_within(Vec::new(), comprehensions.collect(), true) {
        let is_misread = if let Expr::RefBrack { index, .. } = expr {
            matches!(index.as_ref(), Expr::Var { .. })
        } else {
            matches!(expr, Expr::AssignExpr { op: AssignOp::Eq, .. })
        };
        if is_misread {
            let message = "beside else, a variable in brackets or an equation within a comprehension \
                           is not offered here: assign the comprehension in the body";
            let place = place(expr.span());
            return Err(RegoLoadError::Compile { place, message: message.to_owned() });
        }
    }
    Ok(())
}

/// Refuses cycles and chains that are too long.
fn check_chains(nodes: &[Node]) -> Result<(), RegoLoadError> {
    let mut heights = vec![Height::Unknown; nodes.len()];
    for id in 0..nodes.len() {
        height(nodes, id, &mut heights)?;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Height {
    Unknown,
    /// On the way from the rule that is being measured.
    Pending,
    Known(usize),
}

/// The length of the longest chain from a rule. It recurses at most [`MAX_RULE_CHAIN`] deep on
/// chains that are accepted, and once per rule on others: threads that load have the stack.
fn height(nodes: &[Node], id: usize, heights: &mut [Height]) -> Result<usize, RegoLoadError> {
    let (Some(node), Some(known)) = (nodes.get(id), heights.get_mut(id)) else { return Ok(0) };
    match *known {
        Height::Known(height) => return Ok(height),
        Height::Pending => {
            let (place, rule) = (node.place.clone(), node.path.clone());
            return Err(RegoLoadError::Recursion { place, rule });
        }
        Height::Unknown => *known = Height::Pending,
    }
    let mut tallest = 0;
    for next in &node.reaches {
        tallest = tallest.max(height(nodes, *next, heights)?);
    }
    let own = tallest.saturating_add(1);
    if own > MAX_RULE_CHAIN {
        let (place, rule) = (node.place.clone(), node.path.clone());
        return Err(RegoLoadError::ChainTooLong { place, rule, limit: MAX_RULE_CHAIN });
    }
    if let Some(known) = heights.get_mut(id) {
        *known = Height::Known(own);
    }
    Ok(own)
}

/// A builtin that is called must not have the name of a function, for regorus would mix them up.
fn shadowed(rules: &Rules, builtin: &str) -> Result<(), RegoLoadError> {
    let name = split_path(builtin);
    let function = rules.ids.iter().find(|(path, _)| path.ends_with(&name));
    match function.and_then(|(_, id)| rules.nodes.get(*id)) {
        Some(node) => {
            let message = format!("the rule has the name of the builtin {builtin}");
            Err(RegoLoadError::Compile { place: node.place.clone(), message })
        }
        None => Ok(()),
    }
}
