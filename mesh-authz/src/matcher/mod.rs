//! Compiled conditions: one test per field or key, each a search on borrowed bytes.

mod address;
mod anchor;
mod asked;
mod describe;
mod header;
mod peer;
mod request_principal;
mod template;
mod test;
mod text;
mod view;

pub(crate) use address::{BlockSet, parse_block, parse_port};
pub(crate) use anchor::{Anchor, Coverage};
pub(crate) use asked::{Place, Slot};
pub(crate) use header::HeaderKey;
pub(crate) use peer::{
    AccountPattern, NamespacePattern, PrincipalSet, TrustDomainMatch, istio_identity,
};
pub(crate) use request_principal::{
    RequestPrincipalPattern, is_impossible as is_impossible_request_principal,
};
pub(crate) use template::{Template, is_template};
pub(crate) use test::{
    AddressOf, Effect, Matcher, MetadataMatcher, Mood, PathSet, TemplateSet, Test, split_port,
};
pub(crate) use text::{TextPattern, TextSet};
pub(crate) use view::View;
