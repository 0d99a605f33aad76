//! The SPIFFE Workload API on a Unix socket, and Envoy's SDS beside it, as SPIRE's agent has them.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream;
use http::Request;
use hyper::body::Incoming;
use mesh_identity::workload_api::{
    SECURITY_HEADER, encode_claims, encode_jwt_bundles, encode_x509_bundles, encode_x509_svids,
    proto,
};
use mesh_identity::{BundleSet, SpiffeId};
use rustls_pki_types::UnixTime;
use serde_json::{Map, Value};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tonic::Status;

use super::entry::PeerCredentials;
use super::grpc::{self, Answers, Call};
use super::identities::Identities;
use super::lenient::Lenient;
use super::places::Places;
use super::sds;
use super::service::{CaService, CheckError};

/// Most connections of one user: one that opens ever more does not shut the others out.
const MAX_CONNECTIONS: usize = 256;

/// A JWT-SVID that was verified.
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "what ValidateJWTSVID answers")]
pub struct CheckedJwtSvid {
    /// Whom it names.
    pub id: SpiffeId,
    /// All its claims.
    pub claims: Map<String, Value>,
}

/// Verifies JWT-SVIDs for `ValidateJWTSVID`; `mesh_tower::JwtSvids` does.
pub trait JwtSvidCheck: Send + Sync + 'static {
    /// Verifies a token for an audience with the keys of these bundles (JWT-SVID section 4).
    ///
    /// # Errors
    ///
    /// Why it is not valid; the caller is told that it is not.
    fn check(
        &self,
        token: &str,
        audience: &str,
        bundles: &BundleSet,
        now: UnixTime,
    ) -> Result<CheckedJwtSvid, CheckError>;
}

impl CaService {
    /// Serves the Workload API and SDS until `until` is done. Processes are told apart by what the
    /// kernel says of them, and have the identities of [`CaService::set_entries`].
    ///
    /// Whoever may open the socket may ask; who is not registered gets `PermissionDenied`.
    ///
    /// # Errors
    ///
    /// None at present: an accept that fails is tried again.
    pub async fn serve_workloads(
        &self,
        listener: UnixListener,
        check: Arc<dyn JwtSvidCheck>,
        until: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let (stop, stopped) = watch::channel(false);
        let places = Places::new(MAX_CONNECTIONS);
        tokio::pin!(until);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut until => break,
            };
            let (stream, _address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Of one connection, or of a process that has no descriptor left.
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let Some(peer) = credentials(&stream) else { continue };
            let Some(place) = places.take(peer.uid) else {
                tracing::warn!(%peer, "too many connections");
                continue;
            };
            let (service, check, stopped) = (self.clone(), Arc::clone(&check), stopped.clone());
            tokio::spawn(async move {
                let answer = move |request| answer(&service, &check, peer, request);
                grpc::serve(Lenient::new(stream), place, stopped, answer).await;
            });
        }
        stop.send_replace(true);
        Ok(())
    }
}

fn credentials(stream: &UnixStream) -> Option<PeerCredentials> {
    match stream.peer_cred() {
        Ok(found) => Some(PeerCredentials { uid: found.uid(), gid: found.gid(), pid: found.pid() }),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell who connects");
            None
        }
    }
}

fn answer(
    service: &CaService,
    check: &Arc<dyn JwtSvidCheck>,
    peer: PeerCredentials,
    request: Request<Incoming>,
) -> Call {
    let path = request.uri().path();
    if let Some(method) = path.strip_prefix(sds::SERVICE) {
        return match method {
            "StreamSecrets" => sds::stream_secrets(service, peer, request),
            "DeltaSecrets" => sds::delta_secrets(service, peer, request),
            "FetchSecrets" => sds::fetch_secrets(service, peer, request),
            _ => grpc::unknown_method(),
        };
    }
    let Some(method) = path.strip_prefix("/SpiffeWorkloadAPI/") else {
        return grpc::unknown_method();
    };
    let method = method.to_owned();
    // SPIFFE Workload Endpoint section 6: no browser and no proxy can be made to send it.
    let mut headers = request.headers().get_all(SECURITY_HEADER).iter();
    if headers.next().is_none_or(|value| value != "true") || headers.next().is_some() {
        return grpc::refuse(Status::invalid_argument("security header missing from request"));
    }
    let identities = Identities::new(service, peer);
    match method.as_str() {
        "FetchX509SVID" => {
            let identities = Mutex::new(Some(identities));
            grpc::server_streaming(request, move |_: proto::X509SvidRequest| {
                x509_svids(taken(&identities)?)
            })
        }
        "FetchX509Bundles" => {
            let identities = Mutex::new(Some(identities));
            grpc::server_streaming(request, move |_: proto::X509BundlesRequest| {
                bundles(taken(&identities)?, |bundles| encode_x509_bundles(bundles, &[]))
            })
        }
        "FetchJWTBundles" => {
            let identities = Mutex::new(Some(identities));
            grpc::server_streaming(request, move |_: proto::JwtBundlesRequest| {
                bundles(taken(&identities)?, encode_jwt_bundles)
            })
        }
        "FetchJWTSVID" => {
            let service = service.clone();
            grpc::unary(request, move |question| jwt_svids(service, identities, question))
        }
        "ValidateJWTSVID" => {
            let (service, check) = (service.clone(), Arc::clone(check));
            grpc::unary(request, move |question| async move {
                validate(&service, &*check, identities, &question)
            })
        }
        _ => grpc::unknown_method(),
    }
}

fn taken(identities: &Mutex<Option<Identities>>) -> Result<Identities, Status> {
    let taken = identities.lock().unwrap_or_else(PoisonError::into_inner).take();
    taken.ok_or_else(|| Status::internal("called twice"))
}

/// The whole state at once, and again whenever any of it has changed.
#[expect(clippy::unnecessary_wraps, reason = "the shape of a streaming method")]
fn x509_svids(identities: Identities) -> Result<Answers<proto::X509SvidResponse>, Status> {
    Ok(Box::pin(stream::unfold(Some((identities, true)), |state| async move {
        let (mut identities, first) = state?;
        if !first {
            identities.due().await;
        }
        let message = identities.refresh(|_, _| true).await.and_then(|()| {
            let encoded = encode_x509_svids(identities.svids(), &identities.bundles(), &[]);
            encoded.map_err(|error| Status::internal(error.to_string()))
        });
        let rest = message.is_ok().then_some((identities, false));
        Some((message, rest))
    })))
}

/// Bundles are for those who have an identity, as SPIRE has it.
#[expect(clippy::unnecessary_wraps, reason = "the shape of a streaming method")]
fn bundles<A: Send + 'static>(
    identities: Identities,
    encode: impl Fn(&BundleSet) -> A + Copy + Send + 'static,
) -> Result<Answers<A>, Status> {
    Ok(Box::pin(stream::unfold(Some((identities, true)), move |state| async move {
        let (mut identities, first) = state?;
        if !first {
            identities.due().await;
        }
        let message = identities.registered().map(|_entries| encode(&identities.seen_bundles()));
        let rest = message.is_ok().then_some((identities, false));
        Some((message, rest))
    })))
}

async fn jwt_svids(
    service: CaService,
    mut identities: Identities,
    question: proto::JwtSvidRequest,
) -> Result<proto::JwtSvidResponse, Status> {
    if question.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let mut entries = identities.registered()?;
    if !question.spiffe_id.is_empty() {
        entries.retain(|entry| entry.id.as_str() == question.spiffe_id);
        // The same words as for who has none at all ([SEC-CA-8]).
        if entries.is_empty() {
            return Err(Status::permission_denied("no identity issued"));
        }
    }
    let mut answer = proto::JwtSvidResponse::default();
    let now = service.now();
    for entry in entries {
        let (caller, audience) = (Arc::clone(identities.caller()), question.audience.clone());
        let (id, issuer) = (entry.id.clone(), service.issuer().map(str::to_owned));
        let token = service.issue(identities.caller(), move |ca| {
            let ttl = Duration::ZERO;
            ca.issue_jwt_svid(&caller, &id, &audience, ttl, issuer.as_deref(), now)
        });
        let mut svid = proto::JwtSvid::default();
        token.await?.token().clone_into(&mut svid.svid);
        entry.id.as_str().clone_into(&mut svid.spiffe_id);
        svid.hint = entry.hint;
        answer.svids.push(svid);
    }
    Ok(answer)
}

fn validate(
    service: &CaService,
    check: &dyn JwtSvidCheck,
    mut identities: Identities,
    question: &proto::ValidateJwtSvidRequest,
) -> Result<proto::ValidateJwtSvidResponse, Status> {
    identities.registered()?;
    if question.audience.is_empty() {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let (token, audience) = (question.svid.as_str(), question.audience.as_str());
    let checked = check.check(token, audience, &identities.bundles(), service.now());
    let checked = checked.map_err(|error| {
        tracing::info!(caller = &**identities.caller(), %error, "token is not valid");
        Status::invalid_argument("token is not valid")
    })?;
    let claims = encode_claims(&checked.claims);
    let claims = claims.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(proto::ValidateJwtSvidResponse {
        spiffe_id: checked.id.as_str().to_owned(),
        claims: Some(claims),
    })
}
