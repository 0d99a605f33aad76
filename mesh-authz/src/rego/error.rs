//! Why a policy is not loaded.

use std::fmt;

/// Where in a module something stands.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct RegoPlace {
    /// The module's name, as given.
    pub module: String,
    /// The line, from 1; 0 when it is not known.
    pub line: u32,
}

impl RegoPlace {
    pub(super) fn new(module: &str, line: u32) -> Self {
        Self { module: module.to_owned(), line }
    }
}

impl fmt::Display for RegoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.module),
            line => write!(f, "{}:{line}", self.module),
        }
    }
}

/// Why a policy is not loaded. The previous one stays in force.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegoLoadError {
    /// A builtin that exists in OPA or regorus but is not on our list ([SEC-REGO-1]).
    #[error("{place}: builtin {name} is not offered here: {reason}")]
    BuiltinNotOffered {
        /// Where it is called.
        place: RegoPlace,
        /// Its name.
        name: String,
        /// Why.
        reason: &'static str,
    },

    /// The rules form a longer chain of references than evaluation has stack for ([SEC-REGO-2]).
    #[error("{place}: the chain of rules from {rule} is longer than {limit}")]
    ChainTooLong {
        /// Where the first rule of the chain stands.
        place: RegoPlace,
        /// The first rule of the chain.
        rule: String,
        /// The longest chain accepted.
        limit: usize,
    },

    /// The engine's compiler refuses the policy.
    #[error("{place}: {message}")]
    Compile {
        /// Where, as far as the compiler tells.
        place: RegoPlace,
        /// What the compiler says.
        message: String,
    },

    /// The data has a value where the modules define a rule, or is not an object.
    #[error("data: {message}")]
    Data {
        /// What is wrong.
        message: String,
    },

    /// The policy cannot finish even with an empty input ([SEC-REGO-6]).
    #[error("evaluation with an empty input exceeds {instructions} instructions")]
    ExceedsBudget {
        /// The instruction budget.
        instructions: usize,
    },

    /// The engine or the system failed in a way that says nothing about the policy.
    #[error("the Rego engine failed: {message}")]
    Engine {
        /// What is known.
        message: String,
    },

    /// The policy has more rules, literals or instructions than compiled code can address.
    #[error("the policy is too large: {message}")]
    ProgramTooLarge {
        /// Which of the engine's limits.
        message: String,
    },

    /// No module defines the queried rule.
    #[error("no rule is defined at {query}")]
    QueryNotFound {
        /// The query path.
        query: String,
    },

    /// A rule or function reaches itself ([SEC-REGO-2]).
    #[error("{place}: rule {rule} reaches itself")]
    Recursion {
        /// Where the rule stands.
        place: RegoPlace,
        /// Its path.
        rule: String,
    },

    /// The text is not Rego.
    #[error("{place}: {message}")]
    Syntax {
        /// Where.
        place: RegoPlace,
        /// What the parser says.
        message: String,
    },

    /// Brackets nest deeper than the parser can take ([SEC-REGO-6]).
    #[error("{place}: brackets nest deeper than {limit}")]
    TooDeep {
        /// Where.
        place: RegoPlace,
        /// The deepest nesting accepted.
        limit: usize,
    },

    /// One expression has more operators and references than the parser can take.
    #[error("{place}: an expression has more than {limit} operators")]
    TooManyOperators {
        /// Where.
        place: RegoPlace,
        /// The most accepted.
        limit: usize,
    },

    /// The modules are larger than a policy may be ([SEC-REGO-6]).
    #[error("{place}: a policy may have {limit} bytes")]
    TooLong {
        /// The module at which the sum passed the limit.
        place: RegoPlace,
        /// The most accepted.
        limit: usize,
    },

    /// A function that neither the modules nor OPA define.
    #[error("{place}: function {name} does not exist")]
    UnknownFunction {
        /// Where it is called.
        place: RegoPlace,
        /// Its name.
        name: String,
    },

    /// `with` replaces input, data or functions; compiled code does not offer it ([SEC-REGO-1]).
    #[error("{place}: the keyword with is not offered here")]
    WithModifier {
        /// Where.
        place: RegoPlace,
    },
}
