//! CUSTOM policies: external authorizers, asked before tokens are looked at ([SEM-EVAL-01]).
//!
//! An [`Authorizer`] answers; a [`Provider`] is one with the limits around it; [`ExtensionProviders`]
//! are those that policies can name. Ready-made authorizers: [`HttpAuthorizer`], `GrpcAuthorizer`
//! (feature `ext-authz`) and [`crate::RegoStage`] (feature `rego`), which decides in process.
//!
//! Each provider has its own connections, its own places for requests in flight and its own
//! timeout, so one that is down or slow takes nothing from another.

mod apply;
mod authorizer;
#[cfg(feature = "ext-authz")]
mod grpc;
mod http;
#[cfg(feature = "ext-authz")]
mod messages;
mod provider;
mod providers;

use std::fmt;
use std::sync::Arc;

use ::http::request::Parts;
use ::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use http_body::Body;
use mesh_authz::{CustomProgress, CustomStep};
use mesh_identity::SpiffeId;
use rustls::pki_types::UnixTime;
use serde_json::{Map, Value};

pub use self::authorizer::{
    Authorizer, CheckAnswer, CheckConnection, CheckError, CheckFuture, CheckRequest, CheckedBody,
    Denial, RequestChanges,
};
#[cfg(feature = "ext-authz")]
pub use self::grpc::GrpcAuthorizer;
pub use self::http::HttpAuthorizer;
pub use self::provider::{Provider, ProviderCounts};
pub use self::providers::ExtensionProviders;

pub(crate) use self::apply::{apply, may_change};

use crate::body::RequestBody;
use crate::connection::ConnectionInfo;
use crate::guard::{self, Arrived};
use crate::handed::{self, Handed};
use crate::refuse::Refusal;
use crate::server::Limits;
use crate::snapshot::Snapshot;

/// What external authorizers have said of a TCP connection: who has allowed it, and handed on what,
/// in the order in which they were asked.
#[derive(Clone, Default)]
pub(crate) struct Answers(Vec<(Arc<str>, Map<String, Value>)>);

impl Answers {
    /// What the provider has handed on; nothing where it was not asked.
    pub(crate) fn of(&self, provider: &str) -> Option<&Map<String, Value>> {
        self.0.iter().find(|(name, _)| **name == *provider).map(|(_, members)| members)
    }
}

/// Names only: what was handed on may be a secret.
impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

/// Asks about a TCP connection, one provider after the other; the reason where it is refused
/// ([SEM-EXT-15]).
pub(crate) async fn ask_connection(
    snapshot: &Snapshot,
    info: &ConnectionInfo,
    now: UnixTime,
) -> Result<Answers, String> {
    let (mut progress, mut answers) = (CustomProgress::default(), Answers::default());
    let mut handed = Handed::default();
    while let Some(name) = guard::next_custom_connection(snapshot, info, &handed, &mut progress)? {
        // The policies were compiled with these providers: one is always there.
        let provider = snapshot.providers.get(&name).ok_or("mesh_fault{nobody can be asked}")?;
        let semantics = snapshot.scope.semantics();
        let asked = provider.ask_connection(info, snapshot.svid.id(), now, semantics).await?;
        handed.add(handed::NETWORK, asked.dynamic_metadata.clone());
        answers.0.push((name, asked.dynamic_metadata));
    }
    Ok(answers)
}

/// What an authorizer needs to know beside the request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context<'a> {
    pub(crate) now: UnixTime,
    pub(crate) limits: &'a Limits,
    pub(crate) own_id: &'a SpiffeId,
}

/// What allowing answers change beyond the request.
#[derive(Default)]
pub(crate) struct Changes {
    pub(crate) response_headers: Vec<(HeaderName, HeaderValue)>,
    /// For policies and the service.
    pub(crate) handed: Handed,
    /// Which revision of a policy was asked last, whatever it said.
    pub(crate) rego_revision: Option<Arc<str>>,
}

impl Changes {
    /// Somebody has answered by a revision of a policy, if it has one.
    pub(crate) fn told(&mut self, revision: Option<&Arc<str>>) {
        if revision.is_some() {
            self.rego_revision = revision.cloned();
        }
    }
}

/// The questions about one request, of which there is at least one.
pub(crate) struct Custom {
    progress: CustomProgress,
    step: CustomStep,
}

impl Custom {
    /// The first question, if there is any: most requests have none and wait for nothing.
    pub(crate) fn begin(snapshot: &Snapshot, parts: &Parts, arrived: &Arrived) -> Option<Self> {
        if !snapshot.policies.asks_custom() {
            return None;
        }
        let mut progress = CustomProgress::default();
        let nothing = Handed::default();
        let step = guard::next_custom(snapshot, parts, arrived, &nothing, &mut progress)?;
        Some(Self { progress, step })
    }

    /// Asks one provider after the other; all must allow ([SEM-EXT-05]).
    pub(crate) async fn ask<B>(
        self,
        snapshot: &Snapshot,
        parts: &mut Parts,
        arrived: &Arrived,
        body: &mut RequestBody<B>,
        context: Context<'_>,
        changes: &mut Changes,
    ) -> Result<(), Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let Self { mut progress, step } = self;
        let mut next = Some(step);
        while let Some(step) = next {
            match step {
                CustomStep::Refuse(decision) => {
                    let mut refusal = Refusal::denied(guard::detail(&decision));
                    refusal.decision = Some(Box::new(decision));
                    return Err(refusal);
                }
                CustomStep::Ask { provider, .. } => {
                    // The policies were compiled with these providers: one is always there.
                    let provider = snapshot.providers.get(&provider);
                    let provider = provider.ok_or_else(|| Refusal::fault("nobody can be asked"))?;
                    let semantics = snapshot.scope.semantics();
                    let asked = provider.ask(parts, arrived, body, context, semantics, changes);
                    let asked = asked.await?;
                    apply(parts, asked, changes)?;
                }
            }
            let handed = &changes.handed;
            next = guard::next_custom(snapshot, parts, arrived, handed, &mut progress);
        }
        Ok(())
    }
}
