//! The order of judgement, as Istio's inbound sidecar has it ([SEM-EVAL-01]).
//!
//! [`arrive`] makes the request one request, [`next_custom`] names the external authorizers to
//! ask, [`admit`] verifies its token, [`permit`] is given when the policies agree. Between the
//! steps an external authorizer or a Rego policy may be asked. None of them reads the body, waits
//! or allocates for a request that is allowed, beyond what it changes in it.

use std::fmt;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, StatusCode};
use mesh_authn::request::{Authentication, Effects, KeySource, RequestView};
use mesh_authz::{
    ClientAddress, CustomProgress, CustomStep, Decision, DenyReason, HttpFacts, NormalizedPath,
    PeerIdentity, PolicySet, RequestFacts, Verdict, client_address,
};
use mesh_identity::{VerifiedPeer, VerifiedToken};
use rustls::pki_types::UnixTime;
use serde_json::{Map, Value};

use crate::connection::ConnectionInfo;
use crate::custom::Answers;
use crate::gather::{self, Host};
use crate::handed::{self, Handed};
use crate::mesh::Mesh;
use crate::record;
use crate::refuse::Refusal;
use crate::resource::{AccessDenied, Resource};
use crate::server::{End, Limits};
use crate::settings::HttpSettings;
use crate::snapshot::Snapshot;
use crate::xfcc;

/// A request that is one request; nothing of it has been judged.
#[derive(Clone, Debug)]
pub(crate) struct Arrived {
    pub(crate) info: ConnectionInfo,
    pub(crate) host: Host,
    /// Found before an authorizer may change headers.
    pub(crate) client: ClientAddress,
}

/// A request whose token is judged, too.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) arrived: Arrived,
    pub(crate) token: Option<VerifiedToken>,
    pub(crate) handed: Handed,
}

/// Proof that every policy has admitted a request; handlers find it in its extensions.
///
/// It is made by the layer alone.
#[derive(Clone)]
pub struct Permit {
    mesh: Mesh,
    snapshot: Arc<Snapshot>,
    info: ConnectionInfo,
    token: Option<VerifiedToken>,
    client: IpAddr,
    handed: Handed,
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
        self.snapshot.generation
    }

    /// The connection: addresses, TLS.
    #[must_use]
    pub fn connection(&self) -> &ConnectionInfo {
        &self.info
    }

    /// The client's address, as `remoteIpBlocks` sees it: from `x-forwarded-for` where that is
    /// trusted, else the peer's.
    #[must_use]
    pub fn client_address(&self) -> IpAddr {
        self.client
    }

    /// What the Rego policy and other authorizers hand to the service (`dynamic_metadata`); empty
    /// when they hand on nothing.
    #[must_use]
    pub fn metadata(&self) -> &Map<String, Value> {
        self.handed.members()
    }

    /// Asks the policies that admitted this request about a resource the handler has just loaded.
    ///
    /// The same configuration decides as for the request, and the answer is reported like any
    /// decision. A resource has no host: `hosts` is matched against the empty text. CUSTOM policies
    /// are not asked again.
    ///
    /// # Errors
    ///
    /// [`AccessDenied`] where DENY, or no ALLOW, says so; also for a path that cannot be normalized.
    ///
    /// # Examples
    ///
    /// ```
    /// use mesh_tower::{AccessDenied, Permit, Resource};
    ///
    /// async fn delete(permit: Permit, id: u64, owner: &str) -> Result<(), AccessDenied> {
    ///     let path = format!("/documents/{id}");
    ///     let document = Resource::new("DELETE", &path);
    ///     permit.authorize(&document.with_attribute("x-owner", owner)?)
    /// }
    /// ```
    pub fn authorize(&self, resource: &Resource<'_>) -> Result<(), AccessDenied> {
        let scope = &self.snapshot.scope;
        let path = scope.normalize(resource.path.as_bytes()).map_err(|_detail| AccessDenied)?;
        let http = HttpFacts::new(resource.method, "", &resource.attributes).with_path(&path);
        let client = ClientAddress::known(self.client);
        let facts = facts(&self.info, http, self.token(), client, &self.handed);
        let decision = self.snapshot.policies.decide(&facts);
        record::resource(&self.mesh, &self.snapshot, &self.info, self.token(), resource, &decision);
        if decision.is_allow() { Ok(()) } else { Err(AccessDenied) }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("peer", &self.peer().map(VerifiedPeer::id))
            .field("token", &self.token.is_some())
            .field("generation", &self.generation())
            .finish_non_exhaustive()
    }
}

/// What becomes of a request that has arrived.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// The path is open: nobody is asked, and there is no permit.
    Open,
    /// The request is judged.
    Judge(Arrived),
}

/// The next provider to ask about a TCP connection; the reason where it is refused unasked.
pub(crate) fn next_custom_connection(
    snapshot: &Snapshot,
    info: &ConnectionInfo,
    handed: &Handed,
    progress: &mut CustomProgress,
) -> Result<Option<Arc<str>>, String> {
    let facts = connection_facts(info, handed);
    match tcp_policies(snapshot)?.next_custom(&facts, progress) {
        None => Ok(None),
        Some(CustomStep::Refuse(decision)) => Err(detail(&decision)),
        Some(CustomStep::Ask { provider, .. }) => Ok(Some(provider)),
    }
}

/// Judges a TCP connection that the providers in `answers` have allowed; the reason where it is
/// refused ([SEM-TCP-10]). So it is where a policy asks anybody else ([SEM-EXT-15]): who is to be
/// asked is found out as it would be for a new connection with these answers.
///
/// Nothing of the connection has been read: it is judged before anybody speaks ([SEM-STRICT-09]).
pub(crate) fn admit_connection(
    mesh: &Mesh,
    snapshot: &Arc<Snapshot>,
    info: &ConnectionInfo,
    answers: &Answers,
) -> Result<Permit, String> {
    let mut progress = CustomProgress::default();
    let mut handed = Handed::default();
    while let Some(provider) = next_custom_connection(snapshot, info, &handed, &mut progress)? {
        let answer = answers.of(&provider).ok_or_else(|| "ext_authz_error".to_owned())?;
        handed.add(handed::NETWORK, answer.clone());
    }
    let decision = tcp_policies(snapshot)?.decide(&connection_facts(info, &handed));
    if !decision.is_allow() {
        return Err(detail(&decision));
    }
    Ok(Permit {
        mesh: mesh.clone(),
        snapshot: Arc::clone(snapshot),
        info: info.clone(),
        token: None,
        client: info.peer_address().ip(),
        handed,
    })
}

fn tcp_policies(snapshot: &Snapshot) -> Result<&PolicySet, String> {
    snapshot.tcp_policies.as_ref().ok_or_else(|| "mesh_fault{no policies for TCP}".to_owned())
}

fn connection_facts<'f>(info: &'f ConnectionInfo, handed: &'f Handed) -> RequestFacts<'f> {
    let source = info.peer_address().ip();
    RequestFacts::tcp(Some(source), Some(info.local_address()))
        .with_peer(info.peer().map_or(PeerIdentity::None, PeerIdentity::Svid))
        .with_client_address(ClientAddress::known(source))
        .with_sni(info.tls().and_then(|tls| tls.server_name.as_deref()))
        .with_metadata(handed.by_filter())
}

/// Makes the request unambiguous; changes `parts` to what goes on.
pub(crate) fn arrive(
    snapshot: &Snapshot,
    settings: &HttpSettings,
    limits: &Limits,
    parts: &mut Parts,
    now: UnixTime,
) -> Result<Arrival, Refusal> {
    let Some(info) = parts.extensions.get::<ConnectionInfo>().cloned() else {
        return Err(Refusal::fault("the mesh layer serves a connection that it did not accept"));
    };
    if let Some(end) = info.ended(now) {
        return Err(Refusal::denied(format!("connection_ended{{{end}}}")));
    }
    // [SEM-STRICT-18] A request is decided by one configuration: one that no longer admits the
    // connection does not wait until the connection is noticed to be over.
    if !info.fits(snapshot.modes.mode(info.local_address().port())) {
        return Err(Refusal::denied(format!("connection_ended{{{}}}", End::Mode)));
    }
    // hyper counts the fields of HTTP/1 only ([SEC-HTTP-15]).
    if parts.headers.len() > limits.headers {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Refusal::new(status, Bytes::new(), "too_many_headers".to_owned()));
    }
    let host = gather::normalize(parts, &snapshot.scope, settings)?;
    xfcc::forward(&mut parts.headers, &info, snapshot.svid.id(), settings.forward_cert);
    if settings.is_open(&parts.method, parts.uri.path()) {
        // The headers that tokens are copied to are ours here, too.
        scrub(snapshot, parts, now);
        return Ok(Arrival::Open);
    }
    let client = client(snapshot, parts, &info);
    Ok(Arrival::Judge(Arrived { info, host, client }))
}

/// The next thing to do for CUSTOM policies: they come first and never see claims ([SEM-EVAL-04]),
/// but what the providers before them have handed on.
pub(crate) fn next_custom(
    snapshot: &Snapshot,
    parts: &Parts,
    arrived: &Arrived,
    handed: &Handed,
    progress: &mut CustomProgress,
) -> Option<CustomStep> {
    with_facts(parts, arrived, None, handed, |facts| snapshot.policies.next_custom(facts, progress))
}

/// Verifies the tokens of a request that no external authorizer has refused.
pub(crate) fn admit(
    snapshot: &Snapshot,
    parts: &mut Parts,
    arrived: Arrived,
    now: UnixTime,
) -> Result<Admitted, Refusal> {
    let (token, effects) = authenticate(snapshot, parts, &arrived, now)?;
    apply(parts, &effects)?;
    Ok(Admitted { arrived, token, handed: Handed::default() })
}

/// The key sets that a token of the request needs and that were never there. Only a hint: the
/// request has not been normalized.
pub(crate) fn unfetched_keys<B>(snapshot: &Snapshot, request: &Request<B>) -> Vec<KeySource> {
    snapshot.tokens.unfetched(&RequestView {
        method: request.method(),
        scheme: "",
        host: "",
        path_and_query: request.uri().path_and_query().map_or("", PathAndQuery::as_str),
        headers: request.headers(),
    })
}

fn authenticate(
    snapshot: &Snapshot,
    parts: &Parts,
    arrived: &Arrived,
    now: UnixTime,
) -> Result<(Option<VerifiedToken>, Effects), Refusal> {
    let view = RequestView {
        method: &parts.method,
        scheme: scheme(&arrived.info),
        host: arrived.host.as_str(),
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

/// Removes a client's copies of the headers that claims are copied to, without looking at tokens.
fn scrub(snapshot: &Snapshot, parts: &mut Parts, now: UnixTime) {
    let nothing = HeaderMap::new();
    let view = RequestView {
        method: &Method::GET,
        scheme: "http",
        host: "",
        path_and_query: "/",
        headers: &nothing,
    };
    if let Authentication::Anonymous(effects) = snapshot.tokens.authenticate(&view, now) {
        effects.apply(&mut parts.headers);
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
    with_all_facts(parts, admitted, |facts| snapshot.policies.decide(facts))
}

/// Judges the head of a request that is running by another configuration than the one that has
/// admitted it; the reason where it is refused now ([SEM-STRICT-18]).
///
/// Tokens are verified again. External authorizers and Rego are not asked again: what they handed on
/// is what they said then.
pub(crate) fn judge_again(
    snapshot: &Snapshot,
    mut parts: Parts,
    arrived: Arrived,
    handed: &Handed,
    now: UnixTime,
) -> Result<(), String> {
    let judged = catch_unwind(AssertUnwindSafe(|| {
        let admitted = admit(snapshot, &mut parts, arrived, now);
        let mut admitted = admitted.map_err(|refusal| refusal.detail)?;
        admitted.handed = handed.clone();
        let decision = decide(snapshot, &parts, &admitted);
        if decision.is_allow() { Ok(()) } else { Err(detail(&decision)) }
    }));
    judged.unwrap_or_else(|_| Err("mesh_fault{judging a running request panicked}".to_owned()))
}

/// Why [`decide`] says what it says, rule by rule.
#[cfg(feature = "admin")]
pub(crate) fn explain(snapshot: &Snapshot, parts: &Parts, admitted: &Admitted) -> String {
    with_all_facts(parts, admitted, |facts| snapshot.policies.explain(facts).to_string())
}

/// Envoy's response code details of a refusal; our own where a strict rule refuses.
pub(crate) fn detail(decision: &Decision) -> String {
    if let Verdict::Deny(DenyReason::Strict(rule)) = &decision.verdict {
        return format!("strict_denied[{rule}]");
    }
    decision.envoy_detail().unwrap_or_else(|| "via_upstream".to_owned())
}

/// The permit of a request that [`decide`] has allowed.
pub(crate) fn permit(mesh: &Mesh, snapshot: &Arc<Snapshot>, admitted: Admitted) -> Permit {
    let Admitted { arrived: Arrived { info, client, host: _ }, token, handed } = admitted;
    let (mesh, snapshot) = (mesh.clone(), Arc::clone(snapshot));
    Permit { mesh, snapshot, info, token, client: client.ip(), handed }
}

/// The client's address behind proxies ([SEC-AUTHZ-8]).
fn client(snapshot: &Snapshot, parts: &Parts, info: &ConnectionInfo) -> ClientAddress {
    let peer = info.peer().map_or(PeerIdentity::None, PeerIdentity::Svid);
    client_address(&parts.headers, info.peer_address().ip(), peer, &snapshot.forwarded)
}

/// Lends the facts of an admitted request.
fn with_all_facts<T>(
    parts: &Parts,
    admitted: &Admitted,
    ask: impl FnOnce(&RequestFacts<'_>) -> T,
) -> T {
    let Admitted { arrived, token, handed } = admitted;
    with_facts(parts, arrived, token.as_ref(), handed, ask)
}

/// Lends the facts of a request to `ask`; nothing is copied.
fn with_facts<T>(
    parts: &Parts,
    arrived: &Arrived,
    token: Option<&VerifiedToken>,
    handed: &Handed,
    ask: impl FnOnce(&RequestFacts<'_>) -> T,
) -> T {
    let Arrived { info, host, client } = arrived;
    // [SEM-AUTHZ-70] Only CONNECT has none.
    let path = parts.uri.path_and_query();
    let path = path.map(|path| NormalizedPath::assert_normalized(path.as_str().as_bytes()));
    let mut http = HttpFacts::new(parts.method.as_str(), host.as_str(), &parts.headers)
        .with_version(parts.version);
    if let Some(path) = &path {
        http = http.with_path(path);
    }
    ask(&facts(info, http, token, *client, handed))
}

/// What is asked about, with what the connection proves, the token says and authorizers have handed
/// on: the facts of a request, and of a resource that a handler asks about.
fn facts<'f>(
    info: &'f ConnectionInfo,
    http: HttpFacts<'f>,
    token: Option<&'f VerifiedToken>,
    client: ClientAddress,
    handed: &'f Handed,
) -> RequestFacts<'f> {
    let (source, local) = (info.peer_address().ip(), info.local_address());
    RequestFacts::http(Some(source), Some(local), http.with_scheme(scheme(info)))
        .with_peer(info.peer().map_or(PeerIdentity::None, PeerIdentity::Svid))
        .with_token(token)
        .with_client_address(client)
        .with_sni(info.tls().and_then(|tls| tls.server_name.as_deref()))
        .with_metadata(handed.by_filter())
}

fn scheme(info: &ConnectionInfo) -> &'static str {
    if info.tls().is_some() { "https" } else { "http" }
}
