//! The builtins that exist here, and what each may cost.
//!
//! Three groups: regorus' own, behind a check of what their arguments would cost; functions that
//! replace or add to regorus' own; and operators that only compiled code calls. A builtin in none
//! of them does not exist ([SEC-REGO-1]). The virtual machine calls them through plain function
//! pointers, so each has two, for the two meanings of a failure ([`BuiltinErrors`]).

mod cost;
mod glob;
pub(super) mod jwt;
pub(super) mod meter;
mod net;
mod operators;
mod refused;
mod supplied;
mod table;
mod time;

use std::sync::OnceLock;

use regorus::unstable::{BUILTINS, BuiltinFcn, Expr, Ref, Span};
use regorus::{LimitError, Value};

use self::cost::{Cost, check_cost};
use self::meter::{charge, charge_all};
pub(super) use self::refused::reason;
use self::table::TABLE;
use super::policy::BuiltinErrors;

/// The names of all builtins that a policy may call, sorted.
pub fn builtin_names() -> impl Iterator<Item = &'static str> {
    TABLE.iter().filter(|builtin| builtin.is_public()).map(|builtin| builtin.name)
}

/// The builtin of this name that a policy may call.
pub(super) fn offered(name: &str) -> Option<&'static str> {
    find(name).filter(|builtin| builtin.is_public()).map(|builtin| builtin.name)
}

/// Whether OPA or regorus has a builtin of this name, which is then left out on purpose.
pub(super) fn known_elsewhere(name: &str) -> bool {
    let namespace = name.split_once('.').map_or("", |(namespace, _)| namespace);
    BUILTINS.contains_key(name)
        || ["print", "trace", "walk"].contains(&name)
        || OPA_NAMESPACES.contains(&namespace)
}

/// OPA's families of builtins.
const OPA_NAMESPACES: [&str; 28] = [
    "array",
    "base64",
    "base64url",
    "bits",
    "crypto",
    "glob",
    "graph",
    "graphql",
    "hex",
    "http",
    "io",
    "json",
    "net",
    "numbers",
    "object",
    "opa",
    "providers",
    "rand",
    "regex",
    "rego",
    "semver",
    "strings",
    "time",
    "units",
    "urlquery",
    "uuid",
    "yaml",
    "test",
];

/// How compiled code reaches a builtin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    /// By its name in regorus' own table.
    Native,
    /// As a host function of so many arguments, which regorus packs into one array.
    Packed(usize),
    /// The same, and with the time of the evaluation behind the array.
    PackedWithNow(usize),
    /// As a value that is supplied to each evaluation.
    Context,
    /// By instructions that `harden` writes.
    Operator,
}

pub(super) fn link(name: &str) -> Option<Link> {
    find(name).map(|builtin| builtin.link)
}

/// The function that the virtual machine calls.
pub(super) fn function(name: &str, errors: BuiltinErrors) -> Option<BuiltinFcn> {
    let builtin = find(name)?;
    Some(match errors {
        BuiltinErrors::Deny => builtin.deny,
        BuiltinErrors::Undefined => builtin.undefined,
    })
}

fn find(name: &str) -> Option<&'static Builtin> {
    let at = TABLE.binary_search_by(|builtin| builtin.name.cmp(name)).ok()?;
    TABLE.get(at)
}

struct Builtin {
    name: &'static str,
    link: Link,
    deny: BuiltinFcn,
    undefined: BuiltinFcn,
}

impl Builtin {
    /// Names with a leading underscore belong to compiled code.
    fn is_public(&self) -> bool {
        !self.name.starts_with('_')
    }
}

/// Why a builtin has no value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fault {
    /// The arguments are wrong.
    Failed,
    /// The arguments, or what would come of them, are too large.
    TooLarge,
    /// There are two values where one may be.
    Conflict,
}

/// regorus lets only errors of its limits end an evaluation; others are lost in the rule that
/// meets them. Its memory limit needs a feature that is off here, so its error can carry ours.
impl From<Fault> for LimitError {
    fn from(fault: Fault) -> Self {
        let usage = match fault {
            Fault::Failed => 1,
            Fault::TooLarge => 2,
            Fault::Conflict => 3,
        };
        Self::MemoryLimitExceeded { usage, limit: 0 }
    }
}

impl Fault {
    /// The fault that the `usage` of a memory limit error stands for.
    pub(super) fn carried(usage: u64) -> Self {
        match usage {
            2 => Self::TooLarge,
            3 => Self::Conflict,
            _ => Self::Failed,
        }
    }
}

/// What becomes of a failure where it means undefined; the other faults always end evaluation.
fn or_undefined(result: Result<Value, Fault>) -> Result<Value, Fault> {
    match result {
        Err(Fault::Failed) => Ok(Value::Undefined),
        Ok(_) | Err(Fault::TooLarge | Fault::Conflict) => result,
    }
}

/// What calling one of our functions costs, whatever its arguments are.
const CALL: usize = 8;

/// Calls one of our functions that regorus knows, too.
fn plain(call: fn(&[Value]) -> Result<Value, Fault>, args: &[Value]) -> Result<Value, Fault> {
    charge(CALL)?;
    charge_all(args)?;
    call(args)
}

/// A builtin of regorus, looked up once.
struct Native {
    name: &'static str,
    cost: Cost,
    function: OnceLock<Option<BuiltinFcn>>,
}

/// Calls a builtin of regorus, its cost checked and charged.
fn native(
    builtin: &Native,
    span: &Span,
    params: &[Ref<Expr>],
    args: &[Value],
    strict: bool,
) -> Result<Value, Fault> {
    check_cost(builtin.cost, args)?;
    let find = || BUILTINS.get(builtin.name).copied();
    let (call, _) = builtin.function.get_or_init(find).ok_or(Fault::Failed)?;
    call(span, params, args, strict).map_err(|error| {
        error.downcast_ref::<LimitError>().map_or(Fault::Failed, |_| Fault::TooLarge)
    })
}

/// Calls one of our functions with the array that regorus packed its arguments into.
fn packed(call: fn(&[Value]) -> Result<Value, Fault>, args: &[Value]) -> Result<Value, Fault> {
    charge(CALL)?;
    charge_all(args)?;
    match args {
        [Value::Array(args)] => call(args.as_slice()),
        _ => Err(Fault::Failed),
    }
}

/// The same for a function that is told the time of the evaluation, if that is known.
fn packed_with_now(
    call: fn(&[Value], Option<&Value>) -> Result<Value, Fault>,
    args: &[Value],
) -> Result<Value, Fault> {
    charge(CALL)?;
    charge_all(args)?;
    match args {
        [Value::Array(args), Value::Null] => call(args.as_slice(), None),
        [Value::Array(args), now] => call(args.as_slice(), Some(now)),
        _ => Err(Fault::Failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_sorted_so_that_it_can_be_searched() {
        assert!(TABLE.is_sorted_by(|a, b| a.name < b.name));
    }

    #[test]
    fn sec_rego_1_native_builtins_exist_and_dangerous_ones_do_not() {
        for builtin in TABLE.iter().filter(|builtin| builtin.link == Link::Native) {
            assert!(BUILTINS.contains_key(builtin.name), "{}", builtin.name);
        }
        for name in [
            "http.send",
            "opa.runtime",
            "net.cidr_expand",
            "rand.intn",
            "uuid.rfc4122",
            "units.parse",
            "units.parse_bytes",
            "yaml.unmarshal",
            "regex.find_n",
            "walk",
            "print",
            "trace",
            "strings.replace_n",
            "regex.template_match",
            "_agree",
            "__builtin_sets.union",
        ] {
            assert_eq!(offered(name), None, "{name}");
        }
    }
}
