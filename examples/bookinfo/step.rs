//! The table: one line for each step, and what they come to.

use std::fmt;

/// What became of one step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Outcome {
    /// As expected.
    Pass,
    /// Not as expected.
    Fail,
    /// Not done; the line says why.
    Skip,
}

/// One line of the table.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// As in the walk-through, such as `A1`.
    pub id: &'static str,
    /// Who asks whom for what.
    pub what: String,
    /// What was seen.
    pub observed: String,
    /// What should be seen.
    pub expected: String,
    /// Whether they agree.
    pub outcome: Outcome,
    /// What else is worth knowing.
    pub note: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = match self.outcome {
            Outcome::Pass => "PASS",
            Outcome::Fail => "FAIL",
            Outcome::Skip => "SKIP",
        };
        write!(f, "{:<4}{:<58} {:<9}", self.id, self.what, self.observed)?;
        write!(f, " expected {:<9} {outcome}  {}", self.expected, self.note)
    }
}

/// All lines, printed as they come.
#[derive(Debug, Default)]
pub struct Table {
    steps: Vec<Step>,
    quiet: bool,
}

impl Table {
    /// A table that is not printed.
    #[must_use]
    pub fn quiet() -> Self {
        Self { quiet: true, ..Self::default() }
    }

    /// Adds the line of a step that ran; it passes when both texts are equal.
    pub fn check(
        &mut self,
        id: &'static str,
        what: impl Into<String>,
        observed: impl fmt::Display,
        expected: impl fmt::Display,
        note: impl Into<String>,
    ) {
        let (observed, expected) = (observed.to_string(), expected.to_string());
        let outcome = if observed == expected { Outcome::Pass } else { Outcome::Fail };
        let (what, note) = (what.into(), note.into());
        self.add(Step { id, what, observed, expected, outcome, note });
    }

    /// Adds the line of a step that did not run.
    pub fn skip(&mut self, id: &'static str, what: impl Into<String>, why: impl Into<String>) {
        let (observed, expected) = ("-".to_owned(), "-".to_owned());
        let (what, note) = (what.into(), why.into());
        self.add(Step { id, what, observed, expected, outcome: Outcome::Skip, note });
    }

    fn add(&mut self, step: Step) {
        if !self.quiet {
            println!("{step}");
        }
        self.steps.push(step);
    }

    /// The lines so far.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many lines have an outcome.
    #[must_use]
    pub fn count(&self, outcome: Outcome) -> usize {
        self.steps.iter().filter(|step| step.outcome == outcome).count()
    }
}

/// The closing line.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (passed, skipped) = (self.count(Outcome::Pass), self.count(Outcome::Skip));
        write!(f, "summary: {} steps, {passed} passed, {skipped} skipped", self.steps.len())
    }
}
