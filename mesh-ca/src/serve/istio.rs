//! `istio.v1.auth.IstioCertificateService/CreateCertificate`, as istiod answers it
//! (istio/istio: security/pkg/server/ca/server.go).

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use http::header::AUTHORIZATION;
use hyper::body::Incoming;
use mesh_identity::{SpiffeId, TrustBundle};
use prost_types::value::Kind;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, UnixTime};
use tokio::net::TcpListener;
use tonic::Status;

use super::grpc::{self, Call};
use super::service::{CaService, CheckError};
use super::tls::{self, OwnCertificate, ServerName};
use crate::istio_ca::{CREATE_CERTIFICATE, IstioCertificateRequest, IstioCertificateResponse};
use crate::pem;

/// Tells whom a service account's token names; `mesh_tower::ServiceAccounts` does.
pub trait CallerTokens: Send + Sync + 'static {
    /// The identity of the account that a token (the text behind `Bearer `) was issued to. The token
    /// must be verified with a configured key set, be meant for this authority (`istio-ca`), and not
    /// have ended.
    ///
    /// # Errors
    ///
    /// Why it is not valid; the caller is told that it is not.
    fn caller(&self, token: &str, now: UnixTime) -> Result<SpiffeId, CheckError>;
}

/// Shared, so that whoever has the other half gives it new keys.
impl<T: CallerTokens + ?Sized> CallerTokens for Arc<T> {
    fn caller(&self, token: &str, now: UnixTime) -> Result<SpiffeId, CheckError> {
        T::caller(self, token, now)
    }
}

/// Who may ask in whose name: the caller, and the identity he asks for.
type Impersonation = dyn Fn(&SpiffeId, &SpiffeId) -> bool + Send + Sync;

/// How `CreateCertificate` is served.
#[derive(Clone)]
pub struct IstioSettings {
    name: ServerName,
    tokens: Option<Arc<dyn CallerTokens>>,
    impersonation: Option<Arc<Impersonation>>,
}

impl IstioSettings {
    /// A server of this name, for callers with a certificate of this authority.
    #[must_use]
    pub fn new(name: ServerName) -> Self {
        Self { name, tokens: None, impersonation: None }
    }

    /// Takes callers without a certificate by their service account's token, too.
    #[must_use]
    pub fn with_tokens(mut self, tokens: impl CallerTokens) -> Self {
        self.tokens = Some(Arc::new(tokens));
        self
    }

    /// Lets some callers, such as a node's proxy, ask for an identity that is not their own
    /// (`ImpersonatedIdentity`). Without this rule nobody may ([SEC-CA-8]).
    #[must_use]
    pub fn with_impersonation(
        mut self,
        rule: impl Fn(&SpiffeId, &SpiffeId) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.impersonation = Some(Arc::new(rule));
        self
    }
}

impl fmt::Debug for IstioSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IstioSettings").field("name", &self.name).finish_non_exhaustive()
    }
}

impl CaService {
    /// Serves `CreateCertificate` over TLS until `until` is done.
    ///
    /// A caller is whom his certificate names or, without one, whom his token names. He gets a
    /// certificate for this identity and the key of his request; nothing else of the request counts
    /// ([SEC-CA-1]). A life beyond the cap is cut to it, where istiod refuses.
    ///
    /// # Errors
    ///
    /// When the server's own certificate cannot be issued. An accept that fails is tried again.
    pub async fn serve_istio(
        &self,
        listener: TcpListener,
        settings: IstioSettings,
        until: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let provider = tls::provider();
        let own = OwnCertificate::new(self, settings.name.clone(), &provider).await?;
        let config = tls::with_callers(self, Arc::clone(&own), &provider)?;
        let service = self.clone();
        let serving = tls::accept(listener, config, until, move |stream, place, stopped| {
            let chain = stream.get_ref().1.peer_certificates();
            let chain: Option<Arc<[_]>> = chain.map(|chain| chain.to_vec().into());
            let (service, settings) = (service.clone(), settings.clone());
            grpc::serve(stream, place, stopped, move |request| {
                answer(&service, &settings, chain.as_deref(), request)
            })
        });
        tokio::select! {
            () = serving => {}
            () = own.keep() => {}
        }
        Ok(())
    }
}

fn answer(
    service: &CaService,
    settings: &IstioSettings,
    chain: Option<&[CertificateDer<'_>]>,
    request: Request<Incoming>,
) -> Call {
    if request.uri().path() != CREATE_CERTIFICATE {
        return grpc::unknown_method();
    }
    // Who it is, before a byte of the message is read.
    let caller = match authenticate(service, settings, chain, &request) {
        Ok(caller) => caller,
        Err(error) => {
            tracing::warn!(%error, "caller is not authenticated");
            return grpc::refuse(unauthenticated());
        }
    };
    let (service, impersonation) = (service.clone(), settings.impersonation.clone());
    grpc::unary(request, move |question| async move {
        create(&service, impersonation.as_deref(), caller, question).await
    })
}

/// The same words whatever is wrong.
fn unauthenticated() -> Status {
    Status::unauthenticated("request authenticate failure")
}

/// A certificate first, as istiod does. That of an open connection is judged again: it may have ended,
/// and its root may be gone.
fn authenticate(
    service: &CaService,
    settings: &IstioSettings,
    chain: Option<&[CertificateDer<'_>]>,
    request: &Request<Incoming>,
) -> Result<SpiffeId, CheckError> {
    if let Some(chain) = chain {
        return Ok(tls::caller_of(service, chain, service.now())?);
    }
    let tokens = settings.tokens.as_ref().ok_or("no certificate, and no tokens are taken")?;
    let mut values = request.headers().get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err("no certificate, and not exactly one authorization header".into());
    };
    let (scheme, token) = value.to_str()?.split_once(' ').ok_or("not a bearer token")?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err("not a bearer token".into());
    }
    let caller = tokens.caller(token, service.now())?;
    if caller.trust_domain() != service.ca().trust_domain().as_str() {
        return Err("token of another trust domain".into());
    }
    Ok(caller)
}

async fn create(
    service: &CaService,
    impersonation: Option<&Impersonation>,
    caller: SpiffeId,
    question: IstioCertificateRequest,
) -> Result<IstioCertificateResponse, Status> {
    let mut id = caller.clone();
    for (name, value) in question.metadata.into_iter().flat_map(|metadata| metadata.fields) {
        match (name.as_str(), value.kind) {
            ("ImpersonatedIdentity", Some(Kind::StringValue(other))) => {
                id = other.parse().map_err(|_detail| unauthenticated())?;
                if id != caller && !impersonation.is_some_and(|rule| rule(&caller, &id)) {
                    tracing::warn!(%caller, %id, "impersonation is not allowed");
                    return Err(unauthenticated());
                }
            }
            ("CertSigner" | "ImpersonatedIdentity", _) => {
                return Err(Status::invalid_argument("this authority has one signer only"));
            }
            // Agents send what they like here.
            _ => {}
        }
    }
    let mut requests = CertificateSigningRequestDer::pem_slice_iter(question.csr.as_bytes());
    let (Some(Ok(csr)), None) = (requests.next(), requests.next()) else {
        return Err(Status::invalid_argument("csr is not one PEM block CERTIFICATE REQUEST"));
    };
    // Zero and less is the default, as for istiod.
    let ttl = Duration::from_secs(u64::try_from(question.validity_duration).unwrap_or(0));
    let now = service.now();
    let record = caller.clone();
    let issued = service.issue(caller.as_str(), move |ca| {
        let chain = ca.issue_for_csr(record.as_str(), &id, &csr, ttl, now)?;
        Ok((chain, ca.bundle()))
    });
    let (chain, bundle) = issued.await?;
    let mut cert_chain: Vec<_> = chain.iter().map(|der| pem::encode("CERTIFICATE", der)).collect();
    cert_chain.push(roots(&bundle));
    Ok(IstioCertificateResponse { cert_chain })
}

/// Several during a rotation.
pub(super) fn roots(bundle: &TrustBundle) -> String {
    let roots = bundle.x509_authorities().iter();
    roots.map(|root| pem::encode("CERTIFICATE", root.der())).collect()
}
