//! Everything that runs: the authority, the tokens, and four services in the mesh.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_tower::authn::peer::{ClientProtocol, ExpectedServer};
use mesh_tower::authn::request::{RefreshPolicy, TokenLimits, TokenOptions, Tolerance};
use mesh_tower::authz::rego::{RegoOptions, RegoPolicy, RegoPool};
use mesh_tower::authz::{Semantics, StrictRule};
use mesh_tower::ca::Authority;
use mesh_tower::identity::{
    BundleSet, MeshSettings, SpiffeId, TrustBundle, TrustDomain, Workload, X509Svid,
};
use mesh_tower::{
    Clock, Connector, DecisionLog, HttpKeyFetcher, KeyFetcher, Limits, Mesh, Policies, RegoStage,
    SystemClock,
};
use rcgen::{CertificateParams, Issuer, KeyPair, KeyUsagePurpose, SanType};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;

use crate::BoxError;
use crate::events::Events;
use crate::services::{self, Caller, Diary};
use crate::tokens::TokenIssuer;

/// The services, in the order in which they are started: who is called first.
pub const SERVICES: [&str; 4] = ["ratings", "details", "reviews", "productpage"];

const TRUST_DOMAIN: &str = "cluster.local";
const NAMESPACE: &str = "default";
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One service that runs.
#[derive(Debug)]
struct Running {
    mesh: Mesh,
    address: SocketAddr,
    diary: Diary,
    events: Events,
    svid: Arc<X509Svid>,
}

/// The whole demo, in one process.
#[derive(Debug)]
pub struct World {
    authority: Authority,
    next_authority: Option<Authority>,
    evil: Authority,
    tokens: TokenIssuer,
    pool: Arc<RegoPool>,
    services: BTreeMap<&'static str, Running>,
}

/// What is wrong with a certificate that [`World::flawed`] makes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Flaw {
    /// Its validity has ended.
    Expired,
    /// It names nobody.
    NoUri,
    /// It names two workloads.
    TwoUris,
}

impl World {
    /// Makes keys and certificates, binds the listeners and starts the services.
    ///
    /// # Errors
    ///
    /// When the system lacks randomness, ports or threads.
    pub async fn start() -> Result<Self, BoxError> {
        let now = SystemClock.now();
        // The RSA key takes longest; it is made while the services start.
        let tokens = tokio::task::spawn_blocking(TokenIssuer::generate);
        let home: TrustDomain = TRUST_DOMAIN.parse()?;
        let authority = Authority::new_root(&home, 10 * YEAR, now)?;
        let evil = Authority::new_root(&"evil.example".parse()?, 10 * YEAR, now)?;

        // Listeners first: each service must know where the others are.
        let mut listeners = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for service in SERVICES {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.insert(service, listener.local_addr()?);
            listeners.insert(service, listener);
        }
        let mut services = BTreeMap::new();
        for (service, listener) in listeners {
            let svid = Arc::new(authority.issue_svid(&identity_of(service)?, DAY, now)?);
            let events = Events::default();
            let mesh = mesh(service, &events, Arc::clone(&svid), [authority.bundle()])?;
            let diary = Diary::default();
            let caller = Caller::new(connector(&mesh, &addresses)?);
            let router = router(service, diary.clone(), caller);
            tokio::spawn(mesh.clone().keep_keys_fresh(fetcher()?, RefreshPolicy::default()));
            let serving = mesh.clone();
            tokio::spawn(
                async move { serving.serve(listener, router, std::future::pending()).await },
            );
            let address = addresses.get(service).copied().ok_or("no such service")?;
            services.insert(service, Running { mesh, address, diary, events, svid });
        }
        let tokens = tokens.await??;
        let pool = Arc::new(RegoPool::start(2, 64)?);
        Ok(Self { authority, next_authority: None, evil, tokens, pool, services })
    }

    /// Puts a complete set of policies into force everywhere; each service takes what selects it.
    ///
    /// # Errors
    ///
    /// What is wrong with the policies; those in force stay.
    pub fn apply(&mut self, texts: &[(&str, &str)]) -> Result<(), BoxError> {
        let policies = Policies::read(texts.iter().copied(), NAMESPACE)?;
        for running in self.services.values() {
            running.mesh.set_policies(policies.clone())?;
        }
        Ok(())
    }

    /// Puts a Rego module before some services.
    ///
    /// # Errors
    ///
    /// Why the module is not loaded; the one in force stays.
    pub fn set_rego(&self, services: &[&str], module: &str) -> Result<(), BoxError> {
        self.set_logged_rego(services, module, None)
    }

    /// The same with a decision log.
    ///
    /// # Errors
    ///
    /// Why the module is not loaded; the one in force stays.
    pub fn set_logged_rego(
        &self,
        services: &[&str],
        module: &str,
        log: Option<&Arc<DecisionLog>>,
    ) -> Result<(), BoxError> {
        let modules = [("bookinfo.rego", module)];
        let policy = Arc::new(RegoPolicy::compile(&modules, None, RegoOptions::default())?);
        for service in services {
            let mut stage = RegoStage::new(Arc::clone(&policy), Arc::clone(&self.pool))
                // The demo runs beside whatever else the machine does.
                .with_deadline(Duration::from_secs(2));
            if let Some(log) = log {
                stage = stage.with_decision_log(Arc::clone(log));
            }
            self.mesh(service).set_rego(Some(stage));
        }
        Ok(())
    }

    /// Takes Rego away from every service.
    ///
    /// # Errors
    ///
    /// Never today; a service that could not be changed would be one.
    pub fn clear_rego(&self) -> Result<(), BoxError> {
        for running in self.services.values() {
            running.mesh.set_rego(None);
        }
        Ok(())
    }

    fn running(&self, service: &str) -> &Running {
        // The steps name only services of this file.
        self.services.get(service).expect("one of SERVICES")
    }

    /// A service's mesh.
    #[must_use]
    pub fn mesh(&self, service: &str) -> &Mesh {
        &self.running(service).mesh
    }

    /// Where a service listens.
    #[must_use]
    pub fn address(&self, service: &str) -> SocketAddr {
        self.running(service).address
    }

    /// What reached a service.
    #[must_use]
    pub fn diary(&self, service: &str) -> &Diary {
        &self.running(service).diary
    }

    /// What the mesh reported about a service.
    #[must_use]
    pub fn events(&self, service: &str) -> &Events {
        &self.running(service).events
    }

    /// The token issuer.
    #[must_use]
    pub fn tokens(&self) -> &TokenIssuer {
        &self.tokens
    }

    /// The time, in seconds.
    #[must_use]
    pub fn now(&self) -> u64 {
        SystemClock.now().as_secs()
    }

    /// The identity of a service account.
    ///
    /// # Errors
    ///
    /// When the account is no part of a SPIFFE ID.
    pub fn identity(&self, account: &str) -> Result<SpiffeId, BoxError> {
        Ok(SpiffeId::for_service_account(&TRUST_DOMAIN.parse()?, NAMESPACE, account)?)
    }

    /// A client with a service's identity, which speaks HTTP/1.1.
    ///
    /// # Errors
    ///
    /// When an identity cannot be named.
    pub fn connector(&self, service: &str) -> Result<Connector, BoxError> {
        self.connector_of(self.mesh(service))
    }

    fn connector_of(&self, mesh: &Mesh) -> Result<Connector, BoxError> {
        let addresses = self.services.iter().map(|(name, running)| (*name, running.address));
        Ok(connector(mesh, &addresses.collect())?.protocol(ClientProtocol::Http1))
    }

    /// A client with a certificate of another trust domain, which believes ours.
    ///
    /// # Errors
    ///
    /// When its certificate cannot be made.
    pub fn mallory_connector(&self) -> Result<Connector, BoxError> {
        let id = "spiffe://evil.example/ns/default/sa/bookinfo-productpage".parse()?;
        let svid = Arc::new(self.evil.issue_svid(&id, DAY, SystemClock.now())?);
        let bundles = [self.authority.bundle(), self.evil.bundle()];
        self.connector_of(&mesh("mallory", &Events::default(), svid, bundles)?)
    }

    /// A client that keeps the certificate a service has now.
    ///
    /// # Errors
    ///
    /// When its mesh cannot be built.
    pub fn connector_with_old_identity(&self, service: &str) -> Result<Connector, BoxError> {
        let svid = Arc::clone(&self.running(service).svid);
        let bundles = [self.authority.bundle()];
        self.connector_of(&mesh(service, &Events::default(), svid, bundles)?)
    }

    /// A certificate of our authority that no honest authority would make.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn flawed(
        &self,
        flaw: Flaw,
    ) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), BoxError> {
        let ca_key = KeyPair::from_pem(&self.ca_key_pem()?)?;
        let issuer = Issuer::from_ca_cert_pem(&self.authority.certificate_pem(), ca_key)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let uri = |account: &str| -> Result<SanType, BoxError> {
            Ok(SanType::URI(self.identity(account)?.as_str().try_into()?))
        };
        let (from, until) = match flaw {
            Flaw::Expired => (2020, 2021),
            Flaw::NoUri | Flaw::TwoUris => (2020, 2090),
        };
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.subject_alt_names = match flaw {
            Flaw::Expired => vec![uri("bookinfo-productpage")?],
            Flaw::NoUri => vec![SanType::DnsName("productpage".try_into()?)],
            Flaw::TwoUris => vec![uri("bookinfo-productpage")?, uri("bookinfo-reviews")?],
        };
        let certificate = params.signed_by(&key, &issuer)?;
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((vec![certificate.der().clone()], key.into()))
    }

    /// The authority's certificate.
    #[must_use]
    pub fn ca_certificate_pem(&self) -> String {
        self.authority.certificate_pem()
    }

    /// The authority's key, for tools that make certificates of their own.
    ///
    /// # Errors
    ///
    /// When the authority's key is not in this process's hands.
    pub fn ca_key_pem(&self) -> Result<String, BoxError> {
        let key =
            self.authority.export_key_pem().ok_or("the authority's key cannot be exported")?;
        Ok(key.to_string())
    }

    /// A fresh certificate chain and key for a service's account, as PEM.
    ///
    /// # Errors
    ///
    /// When the authority does not issue.
    pub fn identity_pem(&self, service: &str) -> Result<(String, String), BoxError> {
        let id = identity_of(service)?;
        let svid = self.authority.issue_svid(&id, DAY, SystemClock.now())?;
        let chain = svid.chain().iter().map(|one| pem("CERTIFICATE", one)).collect();
        Ok((chain, pem("PRIVATE KEY", svid.private_key().secret_der())))
    }

    /// Gives a service a new certificate.
    ///
    /// # Errors
    ///
    /// When it is not issued or not taken.
    pub fn rotate_leaf(&mut self, service: &'static str) -> Result<(), BoxError> {
        let bundles = BundleSet::from_bundles([self.authority.bundle()])?;
        let authority = &self.authority;
        let running = self.services.get_mut(service).ok_or("no such service")?;
        let svid = authority.issue_svid(&identity_of(service)?, DAY, SystemClock.now())?;
        running.svid = Arc::new(svid);
        Ok(running.mesh.set_identity(Arc::clone(&running.svid), Arc::new(bundles))?)
    }

    /// A new root, trusted beside the old one before it signs anything ([SEC-CA-6]).
    ///
    /// # Errors
    ///
    /// When it cannot be made or is not taken.
    pub fn publish_new_root(&mut self) -> Result<(), BoxError> {
        let now = SystemClock.now();
        let next = Authority::new_root(&TRUST_DOMAIN.parse()?, 10 * YEAR, now)?;
        self.next_authority = Some(next);
        self.trust(self.both_roots()?)
    }

    /// New leaves for everybody, signed by the new root.
    ///
    /// # Errors
    ///
    /// When one is not issued or not taken.
    pub fn sign_with_new_root(&mut self) -> Result<(), BoxError> {
        let bundle = self.both_roots()?;
        let next = self.next_authority.as_ref().ok_or("no new root")?;
        for (service, running) in &mut self.services {
            let svid = next.issue_svid(&identity_of(service)?, DAY, SystemClock.now())?;
            running.svid = Arc::new(svid);
        }
        self.trust(bundle)
    }

    /// The old root leaves the bundle; what it signed is nothing any more.
    ///
    /// # Errors
    ///
    /// When it is not taken.
    pub fn remove_old_root(&mut self) -> Result<(), BoxError> {
        self.authority = self.next_authority.take().ok_or("no new root")?;
        self.trust(self.authority.bundle())
    }

    fn both_roots(&self) -> Result<TrustBundle, BoxError> {
        let next = self.next_authority.as_ref().ok_or("no new root")?.bundle();
        let old = self.authority.bundle();
        Ok(next.x509_authorities().iter().cloned().fold(old, TrustBundle::with_authority))
    }

    /// Gives every service this bundle and the certificate it has.
    fn trust(&self, bundle: TrustBundle) -> Result<(), BoxError> {
        let bundles = Arc::new(BundleSet::from_bundles([bundle])?);
        for running in self.services.values() {
            running.mesh.set_identity(Arc::clone(&running.svid), Arc::clone(&bundles))?;
        }
        Ok(())
    }

    /// Prints the newest line of the access log of details.
    pub fn print_access_log(&self, step: &str) {
        if let Some(line) = self.events("details").last_access() {
            println!("    access log of {step}: {line}");
        }
    }

    /// Prints what was counted, once per run.
    pub fn print_counters(&self) {
        let mut requests = BTreeMap::new();
        let (mut allowed, mut denied, mut nanos) = (0, 0, 0);
        for running in self.services.values() {
            let telemetry = running.mesh.telemetry();
            for one in telemetry.requests() {
                let label = (one.response_code, one.connection_security_policy);
                *requests.entry(label).or_insert(0) += one.count;
            }
            let count = telemetry.allowed() + telemetry.denied();
            allowed += telemetry.allowed();
            denied += telemetry.denied();
            nanos += u128::from(count) * telemetry.mean_decision_time().as_nanos();
        }
        println!();
        for ((code, policy), count) in requests {
            println!(
                "istio_requests_total{{response_code=\"{code}\",\
                 connection_security_policy=\"{policy}\"}} {count}"
            );
        }
        let mean = nanos.checked_div(u128::from(allowed + denied)).unwrap_or_default();
        println!("decisions: {allowed} allow, {denied} deny, {mean} ns each on average");
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<String> =
        text.as_bytes().chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

fn identity_of(service: &str) -> Result<SpiffeId, BoxError> {
    let account = format!("bookinfo-{service}");
    Ok(SpiffeId::for_service_account(&TRUST_DOMAIN.parse()?, NAMESPACE, &account)?)
}

fn mesh(
    service: &str,
    events: &Events,
    svid: Arc<X509Svid>,
    bundles: impl IntoIterator<Item = TrustBundle>,
) -> Result<Mesh, BoxError> {
    let version = if service == "reviews" { "v2" } else { "v1" };
    let workload =
        Workload::new(NAMESPACE).with_label("app", service).with_label("version", version);
    let mut limits = Limits::default();
    // Step B9 waits for it.
    limits.handshake = Duration::from_secs(2);
    let mesh = Mesh::builder(workload, MeshSettings::new(TRUST_DOMAIN.parse()?))
        // The walk-through was measured on Envoy, which keeps `%2f` and matrix parameters and
        // judges plain text like anybody.
        .semantics(
            Semantics::strict()
                .without(StrictRule::AmbiguousPath)
                .without(StrictRule::Fragment)
                .without(StrictRule::PlainTextFailsClosed),
        )
        // Rows D14 and D15 are Envoy's answers, and so is the challenge; everything else stays
        // strict.
        .token_options(
            TokenOptions::strict()
                .with_limits(TokenLimits::default())
                .tolerate(Tolerance::BearerSpelling)
                .tolerate(Tolerance::PathInRealm),
        )
        .limits(limits)
        .observer(Arc::new(events.clone()));
    Ok(mesh.build(svid, Arc::new(BundleSet::from_bundles(bundles)?), Policies::none())?)
}

/// Key sets by URL come from loopback in the demo, so plain HTTP is allowed.
fn fetcher() -> Result<Arc<dyn KeyFetcher>, BoxError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(Arc::new(HttpKeyFetcher::new(provider, RootCertStore::empty())?.allow_plain_http()))
}

fn connector(
    mesh: &Mesh,
    addresses: &BTreeMap<&'static str, SocketAddr>,
) -> Result<Connector, BoxError> {
    let mut connector = Connector::new(mesh.clone());
    for (service, address) in addresses {
        let expected = ExpectedServer::exact(identity_of(service)?);
        connector = connector.service(*service, *address, &expected);
    }
    Ok(connector)
}

fn router(service: &str, diary: Diary, caller: Caller) -> Router {
    match service {
        "details" => services::details(diary),
        "ratings" => services::ratings(diary),
        "reviews" => services::reviews(diary, caller),
        _ => services::productpage(diary, caller),
    }
}
