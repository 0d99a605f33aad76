//! The client of the SPIFFE Workload API: identity from SPIRE, or from whoever else serves it.

mod connection;
mod endpoint;
mod stream;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::workload_api::{
    JwtBundles, JwtSvid, SECURITY_HEADER, SERVICE, WorkloadApiError, X509Bundles, X509Context,
    parse_claims, parse_jwt_bundles, parse_jwt_svids, parse_x509_bundles, parse_x509_svids, proto,
};
use mesh_identity::{BundleError, SpiffeId, SpiffeIdError, TrustDomain};
use serde_json::{Map, Value};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request, Status};

use self::stream::Watch;
use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use crate::backoff::{Backoff, spread};
pub use endpoint::{EndpointError, WorkloadEndpoint};
pub use stream::{WorkloadApiStream, WorkloadApiUpdate};

/// From the first packet to the answer's head, or to a unary call's end.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The first and the longest wait after a failure.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A Workload API that can be asked; cloning it shares nothing but the address.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use mesh_tower::identity::{MeshSettings, Workload};
/// use mesh_tower::{Mesh, Policies, WorkloadApi};
///
/// let source = WorkloadApi::from_env()?.x509_source();
/// let settings = MeshSettings::new("prod.example".parse()?);
/// let mesh = Mesh::builder(Workload::new("shop"), settings)
///     .start(source, Policies::none())
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    endpoint: WorkloadEndpoint,
    backoff: Backoff,
}

/// Why a Workload API did not deliver.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadApiFailure {
    /// Nobody answers at the address, or the connection broke.
    #[error("cannot reach the Workload API: {0}")]
    Connect(Box<dyn std::error::Error + Send + Sync>),

    /// No identity is registered for this workload, or it must not have one any more.
    #[error("the Workload API denies an identity: {0}")]
    Denied(String),

    /// The stream ended without a reason.
    #[error("the Workload API ended the stream")]
    Ended,

    /// The answer cannot be used.
    #[error("the Workload API's answer is not taken: {0}")]
    Message(#[from] WorkloadApiError),

    /// The answer names no workload.
    #[error("the Workload API's answer names no workload: {0}")]
    Name(#[from] SpiffeIdError),

    /// An error of the call.
    #[error("the Workload API answers {code}: {message}")]
    Status {
        /// The code of gRPC.
        code: String,
        /// The server's words.
        message: String,
    },

    /// An error after which asking again would not help: it is not asked again.
    #[error("the Workload API answers {code}: {message}; not asked again")]
    Stopped {
        /// The code of gRPC.
        code: String,
        /// The server's words.
        message: String,
    },

    /// No answer in time.
    #[error("the Workload API does not answer")]
    Timeout,
}

impl WorkloadApiFailure {
    /// Whether identities that were delivered before must not be used any more.
    #[must_use]
    pub fn withdraws(&self) -> bool {
        matches!(self, Self::Denied(_))
    }

    /// Whether nobody asks again.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Stopped { .. })
    }
}

impl From<Status> for WorkloadApiFailure {
    fn from(status: Status) -> Self {
        let (code, message) = (format!("{:?}", status.code()), status.message().to_owned());
        match status.code() {
            Code::PermissionDenied => Self::Denied(message),
            Code::InvalidArgument | Code::Cancelled | Code::Unimplemented => {
                Self::Stopped { code, message }
            }
            Code::Ok
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::NotFound
            | Code::AlreadyExists
            | Code::ResourceExhausted
            | Code::FailedPrecondition
            | Code::Aborted
            | Code::OutOfRange
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
            | Code::Unauthenticated => Self::Status { code, message },
        }
    }
}

impl WorkloadApi {
    /// The API at an address.
    #[must_use]
    pub fn new(endpoint: WorkloadEndpoint) -> Self {
        Self { endpoint, backoff: Backoff::new(RETRY, spread) }
    }

    /// The API at the address in `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    ///
    /// The variable is not set, or holds no address.
    pub fn from_env() -> Result<Self, EndpointError> {
        WorkloadEndpoint::from_env().map(Self::new)
    }

    /// Waits a random time of at most `first` after a failure, doubled with each further one up to
    /// `most`; a message begins anew. One second and thirty by default.
    #[must_use]
    pub fn retry(mut self, first: Duration, most: Duration) -> Self {
        self.backoff = Backoff::new((first, most), spread);
        self
    }

    /// The default X.509-SVID, all bundles and the revocation lists, as a source for a mesh.
    #[must_use]
    pub fn x509_source(&self) -> WorkloadApiSource {
        WorkloadApiSource { contexts: self.x509_contexts() }
    }

    /// Every state of `FetchX509SVID`: all identities with their hints, bundles, revocation lists.
    #[must_use]
    pub fn x509_contexts(&self) -> WorkloadApiStream<X509Context> {
        let watch = Watch::new(self.clone(), "FetchX509SVID", proto::X509SvidRequest {});
        WorkloadApiStream::new(watch, |message: proto::X509SvidResponse| {
            parse_x509_svids(message).inspect(|context| warn_of(&context.refused))
        })
    }

    /// Every state of `FetchX509Bundles`.
    #[must_use]
    pub fn x509_bundles(&self) -> WorkloadApiStream<X509Bundles> {
        let watch = Watch::new(self.clone(), "FetchX509Bundles", proto::X509BundlesRequest {});
        WorkloadApiStream::new(watch, |message: proto::X509BundlesResponse| {
            parse_x509_bundles(message).inspect(|state| warn_of(&state.refused))
        })
    }

    /// Every state of `FetchJWTBundles`: the keys that verify JWT-SVIDs.
    #[must_use]
    pub fn jwt_bundles(&self) -> WorkloadApiStream<JwtBundles> {
        let watch = Watch::new(self.clone(), "FetchJWTBundles", proto::JwtBundlesRequest {});
        WorkloadApiStream::new(watch, |message: proto::JwtBundlesResponse| {
            parse_jwt_bundles(&message).inspect(|state| warn_of(&state.refused))
        })
    }

    /// Asks for a token for some audiences, for one identity or for each that the workload has.
    ///
    /// # Errors
    ///
    /// [`WorkloadApiFailure`]; it is not asked again.
    pub async fn fetch_jwt_svids(
        &self,
        audience: &[&str],
        id: Option<&SpiffeId>,
    ) -> Result<Vec<JwtSvid>, WorkloadApiFailure> {
        let request = proto::JwtSvidRequest {
            audience: audience.iter().map(|&one| one.to_owned()).collect(),
            spiffe_id: id.map(ToString::to_string).unwrap_or_default(),
        };
        let answer: proto::JwtSvidResponse = self.ask("FetchJWTSVID", request).await?;
        Ok(parse_jwt_svids(answer)?)
    }

    /// Asks whether a token is valid for an audience; tells whom it names, and its claims.
    ///
    /// # Errors
    ///
    /// [`WorkloadApiFailure::Stopped`] with `InvalidArgument` when it is not.
    pub async fn validate_jwt_svid(
        &self,
        audience: &str,
        token: &str,
    ) -> Result<(SpiffeId, Map<String, Value>), WorkloadApiFailure> {
        let (audience, svid) = (audience.to_owned(), token.to_owned());
        let request = proto::ValidateJwtSvidRequest { audience, svid };
        let answer: proto::ValidateJwtSvidResponse = self.ask("ValidateJWTSVID", request).await?;
        let claims = answer.claims.as_ref().map(parse_claims).transpose();
        let claims = claims.map_err(|error| WorkloadApiFailure::Connect(error.into()))?;
        Ok((answer.spiffe_id.parse()?, claims.unwrap_or_default()))
    }

    async fn ask<Q, A>(&self, method: &str, question: Q) -> Result<A, WorkloadApiFailure>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        let call = async {
            let mut grpc = connection::connect(&self.endpoint).await?;
            let codec = tonic_prost::ProstCodec::default();
            let answer = grpc.unary(request(question), path(method)?, codec).await?;
            Ok(answer.into_inner())
        };
        timeout(CALL_TIMEOUT, call).await.unwrap_or(Err(WorkloadApiFailure::Timeout))
    }
}

/// Every call carries the header that no browser can be made to send.
fn request<Q>(question: Q) -> Request<Q> {
    let mut request = Request::new(question);
    request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
    request
}

/// Makes it visible that nobody of some trust domains is believed.
fn warn_of(refused: &[(TrustDomain, BundleError)]) {
    for (trust_domain, error) in refused {
        tracing::warn!(%trust_domain, %error, "bundle not taken; nobody of its domain is believed");
    }
}

/// The proto declares no package.
fn path(method: &str) -> Result<http::uri::PathAndQuery, WorkloadApiFailure> {
    let path = format!("/{SERVICE}/{method}");
    path.parse().map_err(|error| WorkloadApiFailure::Connect(Box::new(error)))
}

/// The Workload API as a source of identity; made by [`WorkloadApi::x509_source`].
///
/// The default identity is the first. A denial withdraws it; any other failure leaves it in force
/// until it expires, and is tried again for ever. `InvalidArgument`, `Unimplemented` and
/// `Cancelled` end the asking (SPIFFE Workload API section 4.1).
pub struct WorkloadApiSource {
    contexts: WorkloadApiStream<X509Context>,
}

impl IdentitySource for WorkloadApiSource {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            match self.contexts.next().await {
                WorkloadApiUpdate::Taken(context) => match default_identity(context) {
                    Ok(identity) => IdentityUpdate::Identity(identity),
                    Err(error) => IdentityUpdate::Failed(Box::new(error)),
                },
                WorkloadApiUpdate::Failed(failure) if failure.withdraws() => {
                    IdentityUpdate::Withdrawn(Box::new(failure))
                }
                WorkloadApiUpdate::Failed(failure) => IdentityUpdate::Failed(Box::new(failure)),
            }
        })
    }
}

/// The first identity is the default one.
fn default_identity(context: X509Context) -> Result<Identity, WorkloadApiError> {
    let first = context.svids.into_iter().next().ok_or(WorkloadApiError::NoSvid)?;
    Ok(Identity::new(Arc::new(first.svid), Arc::new(context.bundles)))
}

impl fmt::Debug for WorkloadApiSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkloadApiSource").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 s to 30 s, full jitter, reset after a message, for ever.
    #[test]
    fn the_wait_doubles_to_its_limit_is_spread_and_begins_anew() {
        let mut backoff = WorkloadApi::new("unix:///agent.sock".parse().unwrap()).backoff;
        for want in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(backoff.next(), Duration::from_secs(want));
            assert!(backoff.fail() <= Duration::from_secs(want));
        }
        let waits: Vec<_> = (0..1000).map(|_| backoff.fail()).collect();
        assert!(waits.iter().all(|wait| *wait <= Duration::from_secs(30)));
        for (from, to) in [(0, 10), (10, 20), (20, 30)] {
            let within = Duration::from_secs(from)..Duration::from_secs(to);
            let share = waits.iter().filter(|wait| within.contains(*wait)).count();
            assert!((200..470).contains(&share), "{share} of 1000 within {within:?}");
        }
        backoff.reset();
        assert_eq!(backoff.next(), Duration::from_secs(1));
        backoff.failures = u32::MAX;
        assert!(backoff.fail() <= Duration::from_secs(30));
    }
}
