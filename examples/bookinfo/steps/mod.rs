//! The steps of the walk-through, a module for each section.

pub mod a_no_policies;
pub mod b_strict;
pub mod c_permissive;
pub mod d_tokens;
pub mod e_require_token;
pub mod f_identities;
pub mod g_rego;
pub mod h_rotation;

use std::fmt::Display;

use crate::client::Reply;

/// A reply's status, or in short why there is none.
fn seen<E: Display>(reply: &Result<Reply, E>) -> String {
    match reply {
        Ok(reply) => reply.status.to_string(),
        Err(_) => "no answer".to_owned(),
    }
}
