//! Identities made for one test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use mesh_authn::peer::{ClientTls, ExpectedServer, ServerTls};
use mesh_identity::{BundleSet, CrlSet, TrustBundle, X509Authority, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::time_provider::TimeProvider;
use time::OffsetDateTime;

/// 2027-01-15T08:00:00Z; certificates are valid for that day.
pub(crate) const NOW: u64 = 1_800_000_000;
/// The serial of every leaf.
pub(crate) const SERIAL: u64 = 77;
pub(crate) const SERVER: &str = "spiffe://a.test/ns/shop/sa/server";
pub(crate) const CLIENT: &str = "spiffe://a.test/ns/shop/sa/client";

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn now() -> UnixTime {
    at(NOW)
}

#[derive(Debug)]
pub(crate) struct Fixed(pub(crate) UnixTime);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.0)
    }
}

pub(crate) fn clock() -> Arc<dyn TimeProvider> {
    Arc::new(Fixed(now()))
}

/// A clock that a test sets.
#[derive(Debug)]
pub(crate) struct Settable(AtomicU64);

impl Settable {
    pub(crate) fn new(seconds: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(seconds)))
    }

    pub(crate) fn set(&self, seconds: u64) {
        self.0.store(seconds, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> UnixTime {
        at(self.0.load(Ordering::Relaxed))
    }
}

impl TimeProvider for Settable {
    fn current_time(&self) -> Option<UnixTime> {
        Some(self.now())
    }
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = date_time_ymd(2027, 1, 15);
    params.not_after = date_time_ymd(2027, 1, 16);
    params
}

/// A leaf with everything right.
pub(crate) fn leaf_params(id: &str) -> CertificateParams {
    let mut params = params();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.is_ca = IsCa::ExplicitNoCa;
    params.serial_number = Some(SERIAL.into());
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A certificate, not looked at by anybody yet, and its key.
pub(crate) struct Leaf {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
}

impl Leaf {
    pub(crate) fn svid(&self) -> Arc<X509Svid> {
        let key = PrivatePkcs8KeyDer::from(self.key.serialized_der());
        Arc::new(X509Svid::from_der(self.chain.clone(), &key).unwrap())
    }
}

pub(crate) struct Ca {
    authority: X509Authority,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::until(date_time_ymd(2027, 1, 16))
    }

    /// An authority that lives as long.
    pub(crate) fn until(end: OffsetDateTime) -> Self {
        let mut params = params();
        params.not_after = end;
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let authority = X509Authority::from_der(certificate).unwrap();
        Self { authority, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn leaf(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        Leaf { chain, key }
    }

    /// A leaf for an RSA key.
    pub(crate) fn rsa_leaf(&self, id: &str, pkcs8: &PrivatePkcs8KeyDer<'_>) -> Leaf {
        let key = KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_RSA_SHA256).unwrap();
        let leaf = leaf_params(id).signed_by(&key, &self.issuer).unwrap().der().clone();
        Leaf { chain: vec![leaf], key }
    }

    pub(crate) fn svid(&self, id: &str) -> Arc<X509Svid> {
        self.leaf(&leaf_params(id)).svid()
    }

    pub(crate) fn trust(&self) -> Arc<BundleSet> {
        let bundle = TrustBundle::new("a.test".parse().unwrap());
        let bundle = bundle.with_authority(self.authority.clone());
        Arc::new(BundleSet::from_bundles([bundle]).unwrap())
    }

    /// [`Ca::trust`] with a revocation list that names these serials and expires at a time.
    pub(crate) fn trust_without(&self, serials: &[u64], next_update: u64) -> Arc<BundleSet> {
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let now = i64::try_from(NOW).unwrap();
        let revoked_certs = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: time(now - 60),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: time(now - 60),
            next_update: time(i64::try_from(next_update).unwrap()),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(&self.issuer).unwrap();
        let bundle = TrustBundle::new("a.test".parse().unwrap());
        let bundle = bundle.with_authority(self.authority.clone());
        let bundle = bundle.with_crls(CrlSet::from_der([list.der()]).unwrap());
        Arc::new(BundleSet::from_bundles([bundle]).unwrap())
    }

    pub(crate) fn server(&self) -> ServerTls {
        self.server_as(self.svid(SERVER), false)
    }

    /// Speaks TLS 1.2 too, by a clock that can be set.
    pub(crate) fn server_by(&self, time: &Arc<Settable>) -> ServerTls {
        self.server_trusting(self.trust(), time)
    }

    pub(crate) fn server_trusting(&self, trust: Arc<BundleSet>, time: &Arc<Settable>) -> ServerTls {
        let time: Arc<dyn TimeProvider> = Arc::<Settable>::clone(time);
        let builder = ServerTls::builder(provider(), time).identity(self.svid(SERVER));
        builder.trust(trust).with_tls12().build().unwrap()
    }

    /// The same for a client that expects [`SERVER`].
    pub(crate) fn client_by(&self, time: &Arc<Settable>) -> ClientTls {
        self.client_trusting(self.trust(), time)
    }

    pub(crate) fn client_trusting(&self, trust: Arc<BundleSet>, time: &Arc<Settable>) -> ClientTls {
        let time: Arc<dyn TimeProvider> = Arc::<Settable>::clone(time);
        let builder = ClientTls::builder(provider(), time).identity(self.svid(CLIENT));
        let expected = ExpectedServer::exact(SERVER.parse().unwrap());
        builder.trust(trust).expect_server(expected).with_tls12().build().unwrap()
    }

    pub(crate) fn server_as(&self, svid: Arc<X509Svid>, tls12: bool) -> ServerTls {
        let builder = ServerTls::builder(provider(), clock()).identity(svid).trust(self.trust());
        if tls12 { builder.with_tls12().build().unwrap() } else { builder.build().unwrap() }
    }

    pub(crate) fn client(&self) -> ClientTls {
        self.client_for(ExpectedServer::exact(SERVER.parse().unwrap()), false)
    }

    pub(crate) fn client_for(&self, server: ExpectedServer, tls12: bool) -> ClientTls {
        let builder = ClientTls::builder(provider(), clock()).identity(self.svid(CLIENT));
        let builder = builder.trust(self.trust()).expect_server(server);
        if tls12 { builder.with_tls12().build().unwrap() } else { builder.build().unwrap() }
    }
}
