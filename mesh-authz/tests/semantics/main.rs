//! The rules of the semantics, each proven by a test that carries its id.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    clippy::match_bool,
    reason = "a test fails by panicking, and reads best with values written in place"
)]

mod advisories;
mod check;
mod evaluation;
mod limits;
mod matching;
mod paths;
mod security;
mod strict;
mod surprises;
mod validation;
