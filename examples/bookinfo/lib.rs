//! The bookinfo walk-through: four services in one process, a certificate authority, tokens, and
//! a table of what a mesh must do with them.
//!
//! [`run`] plays every step and prints a line for each; the tests play the same table.

pub mod client;
pub mod events;
pub mod serve;
pub mod services;
pub mod step;
pub mod steps;
pub mod tokens;
pub mod world;

pub use step::{Outcome, Step, Table};

use world::World;

/// Whatever stops the demo itself.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Plays all sections and prints the table, the counters and the closing line.
///
/// # Errors
///
/// When the demo itself cannot go on; a wrong answer is a line of the table.
pub async fn run() -> Result<Table, BoxError> {
    let mut world = World::start().await?;
    let mut table = Table::default();
    steps::a_no_policies::run(&mut world, &mut table).await?;
    steps::b_strict::run(&mut world, &mut table).await?;
    steps::c_permissive::run(&mut world, &mut table).await?;
    steps::d_tokens::run(&mut world, &mut table).await?;
    steps::e_require_token::run(&mut world, &mut table).await?;
    steps::f_identities::run(&mut world, &mut table).await?;
    steps::g_rego::run(&mut world, &mut table).await?;
    steps::h_rotation::run(&mut world, &mut table).await?;
    world.print_counters();
    println!("{table}");
    Ok(table)
}
