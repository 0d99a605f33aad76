//! Bundles of other trust domains, fetched from their endpoints (SPIFFE Federation section 5,
//! [SEC-ID-10]).
//!
//! [`FederatedBundle`] of mesh-identity decides when to fetch, whom to believe and what to keep;
//! here are the sockets. What was fetched joins the bundles of another source of identity.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ACCEPT;
use http::{Request, StatusCode};
use http_body_util::Full;
use mesh_authn::peer::{ExpectedServer, TlsError, endpoint_client_config};
use mesh_identity::{
    BundleSet, EndpointProfile, FederatedBundle, FederationError, MAX_BUNDLE_LEN, MAX_FETCH_TIME,
    TrustBundle,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::address::AddressPolicy;
use super::exchange::Exchange;
use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use super::keys::FetchError;
use crate::backoff::random;
use crate::clock::{Clock, RustlsClock, SystemClock};

/// Longest rest between two looks at what is due: a clock that is set is noticed then.
const REST: Duration = Duration::from_secs(5);

/// The inner source, asked for news. It is not asked again before it has answered: what it was doing
/// would begin anew, and one that is slower than our looks at the clock would never end.
type Asked<S> = Pin<Box<dyn Future<Output = (S, IdentityUpdate)> + Send>>;

/// What an endpoint has answered.
type Fetched = Result<(StatusCode, Bytes), EndpointFailure>;

/// A source of identity, and beside its bundles those of federated trust domains.
///
/// Each is fetched when its [`FederatedBundle`] says so: no sooner than the hint of the one held,
/// later after failures. A failure changes nothing, and [`crate::Mesh::identity_error`] tells it. A
/// fetched bundle vouches for the trust domain that was configured and for no other, and never
/// takes the place of the own trust domain's, which is the inner source's affair. No redirect is
/// followed, no client certificate shown.
///
/// # Examples
///
/// ```no_run
/// # async fn run(files: mesh_tower::IdentityFileSource, roots: rustls::RootCertStore)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// use mesh_tower::Federated;
/// use mesh_tower::identity::{EndpointProfile, FederatedBundle, FederationEndpoint};
///
/// let url = "https://partner.example/bundle.json";
/// let partner =
///     FederationEndpoint::new("partner.example".parse()?, url, EndpointProfile::HttpsWeb)?;
/// let source = Federated::new(files, [FederatedBundle::new(partner, None)]).with_web_roots(roots);
/// # drop(source); Ok(())
/// # }
/// ```
pub struct Federated<S> {
    inner: Asked<S>,
    /// Nothing before there is one, and after it was withdrawn.
    own: Option<Identity>,
    bundles: Vec<FederatedBundle>,
    fetching: JoinSet<(usize, Fetched)>,
    in_flight: Vec<bool>,
    provider: Arc<CryptoProvider>,
    web: RootCertStore,
    addresses: AddressPolicy,
    clock: Arc<dyn Clock>,
}

/// Why a bundle was not fetched; the one held stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
enum EndpointFailure {
    #[error(transparent)]
    Answer(#[from] FederationError),

    #[error("bundle endpoint {url}: {error}")]
    Fetch { url: String, error: FetchError },

    #[error("bundle endpoint {url}: no bundle to verify it with")]
    NoBundle { url: String },

    #[error("bundle endpoint {url}: {error}")]
    Tls { url: String, error: TlsError },
}

impl<S: IdentitySource> Federated<S> {
    /// Fetches these bundles beside what the source delivers.
    pub fn new(inner: S, bundles: impl IntoIterator<Item = FederatedBundle>) -> Self {
        let bundles: Vec<_> = bundles.into_iter().collect();
        Self {
            inner: ask(inner),
            own: None,
            fetching: JoinSet::new(),
            in_flight: vec![false; bundles.len()],
            bundles,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            web: RootCertStore::empty(),
            addresses: AddressPolicy::default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Whom endpoints of the profile `https_web` are believed by; nobody by default.
    #[must_use]
    pub fn with_web_roots(mut self, roots: RootCertStore) -> Self {
        self.web = roots;
        self
    }

    /// Which addresses may be connected to.
    #[must_use]
    pub fn with_address_policy(mut self, addresses: AddressPolicy) -> Self {
        self.addresses = addresses;
        self
    }

    /// The cryptography of TLS: ring by default.
    #[must_use]
    pub fn with_crypto_provider(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.provider = provider;
        self
    }

    /// The clock that says what is due, and judges certificates.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The inner source's bundles and the fetched ones. A bundle's document has no revocation lists, so
    /// those that the inner source has for the trust domain stay ([SEC-ID-14]).
    fn joined(&self, own: &Identity) -> BundleSet {
        let home = own.svid.id().trust_domain();
        let held = self.bundles.iter().filter_map(FederatedBundle::held);
        // [SEC-ID-8] Nobody else's document says whom we believe about ourselves.
        let foreign = held.filter(|bundle| bundle.trust_domain().as_str() != home);
        foreign.fold(BundleSet::clone(&own.bundles), |set, bundle| {
            let crls = own.bundles.get(bundle.trust_domain().as_str()).and_then(TrustBundle::crls);
            let bundle = bundle.clone();
            set.with_bundle(match crls {
                Some(crls) => bundle.with_crls(crls.clone()),
                None => bundle,
            })
        })
    }

    fn identity(&self, own: &Identity) -> IdentityUpdate {
        let bundles = Arc::new(self.joined(own));
        IdentityUpdate::Identity(Identity::new(Arc::clone(&own.svid), bundles))
    }

    /// Begins what is due.
    fn begin(&mut self) {
        let now = self.clock.now();
        let others = self.own.as_ref().map(|own| self.joined(own)).unwrap_or_default();
        for at in 0..self.bundles.len() {
            let (Some(bundle), Some(in_flight)) =
                (self.bundles.get(at), self.in_flight.get_mut(at))
            else {
                continue;
            };
            if *in_flight || !bundle.is_due(now) {
                continue;
            }
            *in_flight = true;
            let url = bundle.endpoint().url().to_string();
            let exchange = exchange(bundle, &others, self);
            self.fetching.spawn(async move {
                let fetched = match exchange {
                    Ok(exchange) => {
                        let got = timeout(MAX_FETCH_TIME, get(&exchange, &url)).await;
                        got.unwrap_or(Err(FetchError::Deadline))
                            .map_err(|error| EndpointFailure::Fetch { url, error })
                    }
                    Err(failure) => Err(failure),
                };
                (at, fetched)
            });
        }
    }

    /// Takes what a fetch has brought; news where there are any.
    fn take(&mut self, at: usize, fetched: Fetched) -> Option<IdentityUpdate> {
        if let Some(in_flight) = self.in_flight.get_mut(at) {
            *in_flight = false;
        }
        let now = self.clock.now();
        let bundle = self.bundles.get_mut(at)?;
        let had_failed = bundle.failures() > 0;
        let taken = match fetched {
            Ok((status, body)) => {
                bundle.answered(status, &body, now, random()).map_err(EndpointFailure::from)
            }
            Err(failure) => {
                bundle.failed(now, random());
                Err(failure)
            }
        };
        match taken {
            // After a failure, what is as before is news too: it is no failure any more.
            Ok(changed) => {
                let own = self.own.as_ref().filter(|_| changed || had_failed)?;
                Some(self.identity(own))
            }
            Err(failure) => Some(IdentityUpdate::Failed(Box::new(failure))),
        }
    }

    /// Until the next fetch is due, or a look at the clock.
    fn rest(&self) -> Duration {
        let now = self.clock.now().as_secs();
        let waiting =
            self.bundles.iter().zip(&self.in_flight).filter(|(_, in_flight)| !**in_flight);
        let due = waiting.map(|(bundle, _)| bundle.due().as_secs().saturating_sub(now)).min();
        due.map_or(REST, |seconds| Duration::from_secs(seconds).min(REST))
    }
}

impl<S: IdentitySource> IdentitySource for Federated<S> {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            loop {
                // Before there is an identity of our own, nothing can be done with a bundle.
                if self.own.is_some() {
                    self.begin();
                }
                let rest = self.rest();
                tokio::select! {
                    (inner, update) = &mut self.inner => {
                        self.inner = ask(inner);
                        match &update {
                            IdentityUpdate::Identity(own) => {
                                let news = self.identity(own);
                                self.own = Some(own.clone());
                                return news;
                            }
                            // No fetched bundle may bring it back.
                            IdentityUpdate::Withdrawn(_) => self.own = None,
                            IdentityUpdate::Failed(_) => {}
                        }
                        return update;
                    }
                    Some(done) = self.fetching.join_next() => {
                        // A fetch does not panic; if one did, it is not asked again.
                        let Ok((at, fetched)) = done else { continue };
                        if let Some(news) = self.take(at, fetched) {
                            return news;
                        }
                    }
                    () = tokio::time::sleep(rest), if self.own.is_some() => {}
                }
            }
        })
    }
}

fn ask<S: IdentitySource>(mut source: S) -> Asked<S> {
    Box::pin(async move {
        let update = source.next().await;
        (source, update)
    })
}

impl<S> fmt::Debug for Federated<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let domains = self.bundles.iter().map(|bundle| bundle.endpoint().trust_domain().as_str());
        f.debug_struct("Federated")
            .field("domains", &domains.collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// How an endpoint is asked: by its profile it is known whom to believe there.
fn exchange<S>(
    bundle: &FederatedBundle,
    others: &BundleSet,
    source: &Federated<S>,
) -> Result<Exchange, EndpointFailure> {
    let url = || bundle.endpoint().url().to_string();
    let provider = Arc::clone(&source.provider);
    let mut exchange = match bundle.endpoint().profile() {
        EndpointProfile::HttpsWeb => Exchange::new(provider, source.web.clone())
            .map_err(|error| EndpointFailure::Tls { url: url(), error: error.into() })?,
        EndpointProfile::HttpsSpiffe(id) => {
            let own = bundle.endpoint_bundle(others);
            let own = own.ok_or_else(|| EndpointFailure::NoBundle { url: url() })?.clone();
            let trust = Arc::new(BundleSet::default().with_bundle(own));
            let time = Arc::new(RustlsClock(Arc::clone(&source.clock)));
            let expected = ExpectedServer::exact(id.clone());
            let tls = endpoint_client_config(provider, time, trust, expected)
                .map_err(|error| EndpointFailure::Tls { url: url(), error })?;
            Exchange::with_tls(tls)
        }
    };
    exchange.addresses = source.addresses;
    Ok(exchange)
}

async fn get(exchange: &Exchange, url: &str) -> Result<(StatusCode, Bytes), FetchError> {
    let request = Request::get(url).header(ACCEPT, "application/json").body(Full::default());
    let request = request.map_err(|_detail| FetchError::Url)?;
    let response = exchange.send(request, MAX_BUNDLE_LEN).await?;
    Ok((response.status(), response.into_body()))
}
