//! Envoy's secret discovery service, with the names that Istio's agent and SPIRE's use.
//!
//! | name | secret |
//! |---|---|
//! | `default` | the process's default certificate and key |
//! | `spiffe://td/path` | that certificate, if the process has it |
//! | `ROOTCA` | the roots of the default certificate's trust domain |
//! | `spiffe://td` | the roots of a trust domain |
//! | `ALL` | all trust domains, for Envoy's SPIFFE validator |
//!
//! Who asks is told by the kernel, as in the Workload API; what a node says of itself counts for
//! nothing.

mod messages;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::stream;
use http::Request;
use hyper::body::Incoming;
use mesh_identity::workload_api::NamedSvid;
use mesh_identity::{BundleSet, SpiffeId, TrustBundle};
use prost::Message as _;
use tonic::{Status, Streaming};

use self::messages::{
    Any, DataSource, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
    DiscoveryResponse, Kind, Resource, RpcStatus, SECRET, SPIFFE_VALIDATOR, Secret,
    SpiffeCertValidatorConfig, TlsCertificate, TypedExtensionConfig, ValidationContext,
    ValidatorTrustDomain,
};
use super::entry::PeerCredentials;
use super::grpc::{self, Answers, Call};
use super::identities::Identities;
use super::istio::roots;
use super::service::CaService;
use crate::log::hex;
use crate::pem;

/// Before the methods' names.
pub(super) const SERVICE: &str = "/envoy.service.secret.v3.SecretDiscoveryService/";

/// The name of a process's default certificate.
const DEFAULT: &str = "default";

/// Most names in one subscription.
const MAX_NAMES: usize = 256;

/// How long a version of ours is: a SHA-256 in hex.
const VERSION: usize = 64;

pub(super) fn fetch_secrets(
    service: &CaService,
    peer: PeerCredentials,
    request: Request<Incoming>,
) -> Call {
    let mut identities = Identities::new(service, peer);
    grpc::unary(request, move |question: DiscoveryRequest| async move {
        check_type(&question.type_url)?;
        check_names(question.resource_names.len())?;
        let names = &question.resource_names;
        identities.refresh(|at, id| wanted(names, at, id)).await?;
        state(&identities, names, 1)
    })
}

pub(super) fn stream_secrets(
    service: &CaService,
    peer: PeerCredentials,
    request: Request<Incoming>,
) -> Call {
    let service = service.clone();
    grpc::streaming(request, move |requests| {
        let mut identities = Identities::new(&service, peer);
        identities.registered()?;
        let stream = Stream { identities, requests, names: None, sent: 0 };
        Ok(answers(stream, |mut stream| async move {
            let answer = stream.next().await;
            (answer, stream)
        }))
    })
}

pub(super) fn delta_secrets(
    service: &CaService,
    peer: PeerCredentials,
    request: Request<Incoming>,
) -> Call {
    let service = service.clone();
    grpc::streaming(request, move |requests| {
        let mut identities = Identities::new(&service, peer);
        identities.registered()?;
        let (names, held) = (BTreeSet::new(), BTreeMap::new());
        let stream = Delta { identities, requests, begun: false, names, held, sent: 0 };
        Ok(answers(stream, |mut stream| async move {
            let answer = stream.next().await;
            (answer, stream)
        }))
    })
}

/// Answers until the client has gone, or until one is an error, which ends the stream.
fn answers<S, A, F, R>(state: S, next: F) -> Answers<A>
where
    S: Send + 'static,
    A: Send + 'static,
    F: Fn(S) -> R + Send + 'static,
    R: Future<Output = (Result<Option<A>, Status>, S)> + Send + 'static,
{
    Box::pin(stream::unfold((Some(state), next), |(state, next)| async move {
        let (answer, state) = next(state?).await;
        match answer {
            Ok(Some(answer)) => Some((Ok(answer), (Some(state), next))),
            Ok(None) => None,
            Err(status) => Some((Err(status), (None, next))),
        }
    }))
}

/// State of the world: every answer has all that was asked for.
struct Stream {
    identities: Identities,
    requests: Streaming<DiscoveryRequest>,
    /// What was asked for; nothing before the first request.
    names: Option<Vec<String>>,
    sent: u64,
}

impl Stream {
    async fn next(&mut self) -> Result<Option<DiscoveryResponse>, Status> {
        loop {
            let due = async {
                match self.names {
                    Some(_) => self.identities.due().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = self.requests.message() => match request? {
                    None => return Ok(None),
                    Some(request) => {
                        if !self.asks_for_more(request)? {
                            continue;
                        }
                    }
                },
                () = due => {}
            }
            let names = self.names.as_deref().unwrap_or_default();
            self.identities.refresh(|at, id| wanted(names, at, id)).await?;
            self.sent = self.sent.saturating_add(1);
            return state(&self.identities, names, self.sent).map(Some);
        }
    }

    /// Whether a request wants an answer now. One that acknowledges the last answer, or refuses it,
    /// waits for the next change; one that is older than it is void.
    fn asks_for_more(&mut self, request: DiscoveryRequest) -> Result<bool, Status> {
        check_type(&request.type_url)?;
        check_names(request.resource_names.len())?;
        let nonce = &request.response_nonce;
        if !nonce.is_empty() && *nonce != self.sent.to_string() {
            return Ok(false);
        }
        report(&self.identities, request.error_detail.as_ref());
        let changed = self.names.as_ref() != Some(&request.resource_names);
        self.names = Some(request.resource_names);
        Ok(changed)
    }
}

/// All that was asked for. What the process has not ends the stream, so that it shows at the client.
fn state(
    identities: &Identities,
    names: &[String],
    version: u64,
) -> Result<DiscoveryResponse, Status> {
    let bundles = identities.bundles();
    let all;
    let names = if names.is_empty() {
        all = every_name(identities, &bundles);
        &all
    } else {
        names
    };
    let resources = names.iter().map(|name| {
        let secret = secret(identities, &bundles, name);
        secret.map(|secret| wrap(&secret)).ok_or_else(|| {
            Status::permission_denied("workload is not authorized for the requested secrets")
        })
    });
    Ok(DiscoveryResponse {
        version_info: version.to_string(),
        resources: resources.collect::<Result<_, _>>()?,
        type_url: SECRET.to_owned(),
        nonce: version.to_string(),
    })
}

fn every_name(identities: &Identities, bundles: &BundleSet) -> Vec<String> {
    let ids = identities.svids().iter().map(|one| one.svid.id().as_str().to_owned());
    ids.chain(bundles.iter().map(bundle_name)).collect()
}

fn bundle_name(bundle: &TrustBundle) -> String {
    format!("spiffe://{}", bundle.trust_domain())
}

/// Delta: only what has changed since it was sent.
struct Delta {
    identities: Identities,
    requests: Streaming<DeltaDiscoveryRequest>,
    /// Whether the first message has come.
    begun: bool,
    names: BTreeSet<String>,
    /// The version of each secret that the client has, of those it subscribed to.
    held: BTreeMap<String, String>,
    sent: u64,
}

impl Delta {
    async fn next(&mut self) -> Result<Option<DeltaDiscoveryResponse>, Status> {
        loop {
            let due = async {
                if self.names.is_empty() {
                    std::future::pending::<()>().await;
                } else {
                    self.identities.due().await;
                }
            };
            tokio::select! {
                request = self.requests.message() => match request? {
                    None => return Ok(None),
                    Some(request) => self.take(request)?,
                },
                () = due => {}
            }
            if self.names.is_empty() {
                self.identities.registered()?;
                continue;
            }
            let names = &self.names;
            self.identities.refresh(|at, id| wanted(names, at, id)).await?;
            if let Some(answer) = self.changes() {
                return Ok(Some(answer));
            }
        }
    }

    fn take(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        check_type(&request.type_url)?;
        report(&self.identities, request.error_detail.as_ref());
        for name in request.resource_names_unsubscribe {
            self.names.remove(&name);
            self.held.remove(&name);
        }
        for name in request.resource_names_subscribe {
            // Who subscribes again has lost it.
            if self.sent > 0 {
                self.held.remove(&name);
            }
            self.names.insert(name);
        }
        check_names(self.names.len())?;
        if self.names.iter().map(String::len).sum::<usize>() > grpc::MAX_REQUEST {
            return Err(Status::invalid_argument("names are too long"));
        }
        if !std::mem::replace(&mut self.begun, true) {
            // Of what the client says it has, only what it subscribes to in the same breath counts.
            let mut held = request.initial_resource_versions;
            held.retain(|name, version| self.names.contains(name) && version.len() == VERSION);
            self.held = held;
        }
        Ok(())
    }

    fn changes(&mut self) -> Option<DeltaDiscoveryResponse> {
        let bundles = self.identities.bundles();
        let mut answer =
            DeltaDiscoveryResponse { type_url: SECRET.to_owned(), ..Default::default() };
        for name in &self.names {
            let Some(secret) = secret(&self.identities, &bundles, name) else {
                // Told once: an empty version is no secret's.
                if self.held.insert(name.clone(), String::new()).is_none_or(|had| !had.is_empty()) {
                    answer.removed_resources.push(name.clone());
                }
                continue;
            };
            let resource = wrap(&secret);
            let version = ring::digest::digest(&ring::digest::SHA256, &resource.value);
            let version = hex(version.as_ref());
            if self.held.get(name) != Some(&version) {
                self.held.insert(name.clone(), version.clone());
                let resource = Some(resource);
                answer.resources.push(Resource { version, resource, name: name.clone() });
            }
        }
        if answer.resources.is_empty() && answer.removed_resources.is_empty() {
            return None;
        }
        self.sent = self.sent.saturating_add(1);
        answer.nonce = self.sent.to_string();
        answer.system_version_info = self.sent.to_string();
        Some(answer)
    }
}

fn check_type(type_url: &str) -> Result<(), Status> {
    if type_url.is_empty() || type_url == SECRET {
        return Ok(());
    }
    Err(Status::invalid_argument("only secrets are discovered here"))
}

fn check_names(count: usize) -> Result<(), Status> {
    if count <= MAX_NAMES { Ok(()) } else { Err(Status::invalid_argument("too many names")) }
}

/// A refused answer is nothing we could mend; the client goes on with what it has.
fn report(identities: &Identities, refusal: Option<&RpcStatus>) {
    if let Some(refusal) = refusal {
        let (caller, code) = (&**identities.caller(), refusal.code);
        tracing::warn!(caller, code, message = %refusal.message.escape_debug(), "secret refused");
    }
}

/// Whether a certificate must be issued for these names: one for trust alone needs none. Without
/// names it is all.
fn wanted<'a>(names: impl IntoIterator<Item = &'a String>, at: usize, id: &SpiffeId) -> bool {
    let mut names = names.into_iter().peekable();
    names.peek().is_none() || names.any(|name| name == id.as_str() || (at == 0 && name == DEFAULT))
}

/// A secret of a process that has been registered.
fn secret(identities: &Identities, bundles: &BundleSet, name: &str) -> Option<Secret> {
    let held = |id: &str| identities.svids().iter().find(|one| one.svid.id().as_str() == id);
    let kind = match name {
        DEFAULT => certificate(held(identities.default_id()?.as_str())?),
        "ROOTCA" => validation(bundles.get(identities.default_id()?.trust_domain())?),
        "ALL" => all(bundles),
        _ => {
            let exact = held(name);
            let bundle = || name.strip_prefix("spiffe://").and_then(|name| bundles.get(name));
            exact.map(certificate).or_else(|| bundle().map(validation))?
        }
    };
    Some(Secret { name: name.to_owned(), kind: Some(kind) })
}

fn certificate(svid: &NamedSvid) -> Kind {
    let chain = svid.svid.chain().iter().map(|der| pem::encode("CERTIFICATE", der));
    let key = pem::encode("PRIVATE KEY", svid.svid.private_key().secret_der());
    Kind::TlsCertificate(TlsCertificate {
        certificate_chain: Some(inline(chain.collect())),
        private_key: Some(inline(key)),
    })
}

fn validation(bundle: &TrustBundle) -> Kind {
    let trusted_ca = Some(inline(roots(bundle)));
    Kind::ValidationContext(ValidationContext { trusted_ca, custom_validator_config: None })
}

/// Several trust domains whose roots are not pooled ([SEC-ID-8]).
fn all(bundles: &BundleSet) -> Kind {
    let trust_domains = bundles.iter().map(|bundle| ValidatorTrustDomain {
        name: bundle.trust_domain().to_string(),
        trust_bundle: Some(inline(roots(bundle))),
    });
    let config = SpiffeCertValidatorConfig { trust_domains: trust_domains.collect() };
    let typed_config = Any { type_url: SPIFFE_VALIDATOR.to_owned(), value: config.encode_to_vec() };
    Kind::ValidationContext(ValidationContext {
        trusted_ca: None,
        custom_validator_config: Some(TypedExtensionConfig {
            name: "envoy.tls.cert_validator.spiffe".to_owned(),
            typed_config: Some(typed_config),
        }),
    })
}

fn inline(text: String) -> DataSource {
    DataSource { inline_bytes: text.into_bytes() }
}

fn wrap(secret: &Secret) -> Any {
    Any { type_url: SECRET.to_owned(), value: secret.encode_to_vec() }
}
