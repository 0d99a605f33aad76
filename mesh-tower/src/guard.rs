//! The order of judgement, as Istio's inbound sidecar has it ([SEM-EVAL-01]).
//!
//! [`arrive`] makes the request one request, [`next_custom`] names the external authorizers to
//! ask, [`admit`] verifies its token, [`permit`] is given when the policies agree. Between the
//! steps an external authorizer or a Rego policy may be asked. None of them reads the body, waits
//! or allocates for a request that is allowed, beyond what it changes in it.

use http::Method;
use http::request::Parts;
use http::uri::PathAndQuery;
use mesh_authn::request::{Authentication, Effects, RequestView};
use mesh_authz::{
    CustomProgress, CustomStep, Decision, DenyReason, HttpFacts, NormalizedPath, PeerIdentity,
    RequestFacts, Verdict, client_address,
};
use mesh_identity::{VerifiedPeer, VerifiedToken};
use rustls::pki_types::UnixTime;

use crate::connection::ConnectionInfo;
use crate::gather::{self, Host};
use crate::refuse::Refusal;
use crate::snapshot::Snapshot;

/// A request that is one request; nothing of it has been judged.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) info: ConnectionInfo,
    pub(crate) host: Host,
}

/// A request whose token is judged, too.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) info: ConnectionInfo,
    pub(crate) host: Host,
    pub(crate) token: Option<VerifiedToken>,
}

/// Proof that every policy has admitted a request; handlers find it in its extensions.
///
/// It is made by the layer alone.
#[derive(Clone, Debug)]
pub struct Permit {
    info: ConnectionInfo,
    token: Option<VerifiedToken>,
    generation: u64,
}

impl Permit {
    /// The verified workload that called; nothing on plain text.
    #[must_use]
    pub fn peer(&self) -> Option<&VerifiedPeer> {
        self.info.peer()
    }

    /// The verified end user; nothing when the request carried no token.
    ///
    /// Never read the `authorization` header instead: what is in it was not necessarily verified.
    #[must_use]
    pub fn token(&self) -> Option<&VerifiedToken> {
        self.token.as_ref()
    }

    /// The configuration that decided.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// Makes the request unambiguous; changes `parts` to what goes on.
pub(crate) fn arrive(
    snapshot: &Snapshot,
    parts: &mut Parts,
    now: UnixTime,
) -> Result<Arrived, Refusal> {
    let Some(info) = parts.extensions.get::<ConnectionInfo>().cloned() else {
        return Err(Refusal::fault("the mesh layer serves a connection that it did not accept"));
    };
    if let Some(end) = info.ended(now) {
        return Err(Refusal::denied(format!("connection_ended{{{end}}}")));
    }
    let host = gather::normalize(parts, &snapshot.scope)?;
    Ok(Arrived { info, host })
}

/// The next thing to do for CUSTOM policies: they come first and never see claims
/// ([SEM-EVAL-04]).
pub(crate) fn next_custom(
    snapshot: &Snapshot,
    parts: &Parts,
    arrived: &Arrived,
    progress: &mut CustomProgress,
) -> Option<CustomStep> {
    let Arrived { info, host } = arrived;
    with_facts(snapshot, parts, info, host, None, |facts| {
        snapshot.policies.next_custom(facts, progress)
    })
}

/// Verifies the tokens of a request that no external authorizer has refused.
pub(crate) fn admit(
    snapshot: &Snapshot,
    parts: &mut Parts,
    arrived: Arrived,
    now: UnixTime,
) -> Result<Admitted, Refusal> {
    let Arrived { info, host } = arrived;
    let (token, effects) = authenticate(snapshot, parts, &info, &host, now)?;
    apply(parts, &effects)?;
    Ok(Admitted { info, host, token })
}

fn authenticate(
    snapshot: &Snapshot,
    parts: &Parts,
    info: &ConnectionInfo,
    host: &Host,
    now: UnixTime,
) -> Result<(Option<VerifiedToken>, Effects), Refusal> {
    let view = RequestView {
        method: &parts.method,
        scheme: scheme(info),
        host: host.as_str(),
        path_and_query: parts.uri.path_and_query().map_or("", PathAndQuery::as_str),
        headers: &parts.headers,
    };
    match snapshot.tokens.authenticate(&view, now) {
        Authentication::Refused(refusal) => {
            if let Some(source) = snapshot.tokens.lacking(&refusal) {
                snapshot.lacking.report(source);
            }
            let challenge = refusal.www_authenticate(&view);
            Err(Refusal::token(refusal.status(), refusal.body(), challenge))
        }
        Authentication::Anonymous(effects) => Ok((None, effects)),
        Authentication::Authenticated { token, effects } => Ok((Some(token), effects)),
    }
}

/// Takes verified tokens out of the request and sets the output headers.
fn apply(parts: &mut Parts, effects: &Effects) -> Result<(), Refusal> {
    effects.apply(&mut parts.headers);
    if let Some(path) = effects.path_and_query() {
        let path = PathAndQuery::try_from(path);
        let path =
            path.map_err(|_detail| Refusal::malformed("path without its token is not a path"))?;
        gather::set_path(&mut parts.uri, path)?;
    }
    Ok(())
}

/// Asks AUDIT, DENY and ALLOW.
pub(crate) fn decide(snapshot: &Snapshot, parts: &Parts, admitted: &Admitted) -> Decision {
    let Admitted { info, host, token } = admitted;
    with_facts(snapshot, parts, info, host, token.as_ref(), |facts| snapshot.policies.decide(facts))
}

/// Envoy's response code details of a refusal; our own where a strict rule refuses.
pub(crate) fn detail(decision: &Decision) -> String {
    if let Verdict::Deny(DenyReason::Strict(rule)) = &decision.verdict {
        return format!("strict_denied[{rule}]");
    }
    decision.envoy_detail().unwrap_or_else(|| "via_upstream".to_owned())
}

/// The permit of a request that [`decide`] has allowed.
pub(crate) fn permit(snapshot: &Snapshot, admitted: Admitted) -> Permit {
    let Admitted { info, token, .. } = admitted;
    Permit { info, token, generation: snapshot.generation }
}

/// Lends the facts of a request to `ask`; nothing is copied.
fn with_facts<T>(
    snapshot: &Snapshot,
    parts: &Parts,
    info: &ConnectionInfo,
    host: &Host,
    token: Option<&VerifiedToken>,
    ask: impl FnOnce(&RequestFacts<'_>) -> T,
) -> T {
    let (source, local) = (info.peer_address().ip(), info.local_address());
    let peer = info.peer().map_or(PeerIdentity::None, PeerIdentity::Svid);
    // [SEM-AUTHZ-70] CONNECT has no path, whatever the URI type says.
    let path = parts.uri.path_and_query().filter(|_| parts.method != Method::CONNECT);
    let path = path.map(|path| NormalizedPath::assert_normalized(path.as_str().as_bytes()));
    let mut http = HttpFacts::new(parts.method.as_str(), host.as_str(), &parts.headers)
        .with_scheme(scheme(info))
        .with_version(parts.version);
    if let Some(path) = &path {
        http = http.with_path(path);
    }
    let client = client_address(&parts.headers, source, peer, &snapshot.forwarded);
    let facts = RequestFacts::http(Some(source), Some(local), http)
        .with_peer(peer)
        .with_token(token)
        .with_client_address(client)
        .with_sni(info.tls().and_then(|tls| tls.server_name.as_deref()));
    ask(&facts)
}

fn scheme(info: &ConnectionInfo) -> &'static str {
    if info.tls().is_some() { "https" } else { "http" }
}
