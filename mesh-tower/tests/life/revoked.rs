//! Revocation reaches connections that are open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::Empty;
use hyper::body::Bytes;
use mesh_ca::Authority;
use mesh_tower::identity::{BundleSet, CrlSet, TrustBundle, X509Authority, X509Svid};
use mesh_tower::{Clock as _, MeshClient, SystemClock};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;
use tower::ServiceExt as _;

use crate::raw::uri;
use crate::support::{
    STRICT, SetClock, authority, client_mesh, connect, connector, drained, gone, hold_both, id,
    policies, serve, status_of_new, svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);

/// An authority that publishes revocation lists; mesh-ca's certificates are too short-lived for it.
pub(crate) struct Revoking {
    authority: X509Authority,
    issuer: Issuer<'static, KeyPair>,
    /// What is sent along with its certificates.
    along: Vec<CertificateDer<'static>>,
}

fn issuer_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.subject_alt_names = vec![uri("spiffe://cluster.local")];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Revoking {
    pub(crate) fn new() -> Self {
        let (params, key) = (issuer_params("revoking"), KeyPair::generate().unwrap());
        let certificate = params.self_signed(&key).unwrap().der().clone();
        let authority = X509Authority::from_der(certificate).unwrap();
        Self { authority, issuer: Issuer::new(params, key), along: Vec::new() }
    }

    /// An issuer below it, with lists of its own.
    fn below(&self, serial: u64) -> Self {
        let (mut params, key) = (issuer_params("below"), KeyPair::generate().unwrap());
        params.serial_number = Some(serial.into());
        let certificate = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let authority = self.authority.clone();
        Self { authority, issuer: Issuer::new(params, key), along: vec![certificate] }
    }

    pub(crate) fn client(&self, serial: u64) -> Arc<X509Svid> {
        self.svid("client", serial)
    }

    fn svid(&self, account: &str, serial: u64) -> Arc<X509Svid> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.serial_number = Some(serial.into());
        params.subject_alt_names = vec![uri(id(account).as_str())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let chain = [vec![leaf], self.along.clone()].concat();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Arc::new(X509Svid::from_der(chain, &key).unwrap())
    }

    /// The bundle with a list, the number of which is also how many serials from 1 are revoked.
    pub(crate) fn bundle(&self, server: &Authority, revoked: u64) -> Arc<BundleSet> {
        self.bundle_of(server, &[self.list(revoked)])
    }

    fn list(&self, revoked: u64) -> CertificateRevocationListDer<'static> {
        let now = i64::try_from(SystemClock.now().as_secs()).unwrap();
        let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).unwrap();
        let params = CertificateRevocationListParams {
            this_update: time(now - 60),
            next_update: time(now + 3600),
            crl_number: (revoked + 1).into(),
            issuing_distribution_point: None,
            revoked_certs: (1..=revoked)
                .map(|serial| RevokedCertParams {
                    serial_number: serial.into(),
                    revocation_time: time(now - 30),
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().clone()
    }

    fn bundle_of(
        &self,
        server: &Authority,
        lists: &[CertificateRevocationListDer<'_>],
    ) -> Arc<BundleSet> {
        let mut bundle = TrustBundle::new("cluster.local".parse().unwrap())
            .with_authority(self.authority.clone())
            .with_crls(CrlSet::from_der(lists).unwrap());
        for authority in server.bundle().x509_authorities() {
            bundle = bundle.with_authority(authority.clone());
        }
        Arc::new(BundleSet::from_bundles([bundle]).unwrap())
    }
}

/// [SEC-ID-14], [SEC-TLS-13] A certificate that a new list names loses its connections and streams
/// within 5 s; others of the authority keep theirs, and an older list is not taken back.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_13_a_revoked_certificate_loses_its_connections() {
    let (own, revoking, clock) = (authority(), Revoking::new(), SetClock::default());
    let server = serve(&own, &clock, policies(&[STRICT]), |_| {}).await;
    let leaf = svid(&own, "server", HOUR);
    server.mesh.set_identity(leaf.clone(), revoking.bundle(&own, 0)).unwrap();
    let as_client = |serial| {
        let mesh = client_mesh(revoking.client(serial), trust(&[&own]), &SetClock::default());
        connector(&mesh, &server)
    };
    let (out, stays) = (as_client(1), as_client(2));
    let idle = hold_both(&out).await;
    let mut bodies = Vec::new();
    for (mut held, end) in hold_both(&out).await {
        bodies.push((tokio::spawn(drained(held.get("/stream").await.unwrap())), held, end));
    }
    let stay = hold_both(&stays).await;
    server.mesh.set_identity(leaf.clone(), revoking.bundle(&own, 1)).unwrap();
    let begun = Instant::now();
    for (mut held, end) in idle {
        let status = held.status("/").await;
        assert!(matches!(status, Some(403) | None), "{}: {status:?}", held.version());
        gone(end).await;
    }
    for (body, _held, end) in bodies {
        body.await.unwrap();
        gone(end).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (mut held, _end) in stay {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
    }
    assert_eq!(status_of_new(&out).await, None, "a revoked client got in");
    let error = server.mesh.set_identity(leaf, revoking.bundle(&own, 0)).unwrap_err();
    assert!(error.to_string().contains("older"), "{error}");
    assert_eq!(server.mesh.identity_error(), Some(error.to_string()));
}

/// [SEC-ID-14], [SEC-TLS-13] An issuer between that a new list names takes the connections of all its
/// certificates with it, though no list names them; what another issuer vouches for stays.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_13_a_revoked_issuer_loses_its_connections() {
    let (own, root, clock) = (authority(), Revoking::new(), SetClock::default());
    let (out, stays) = (root.below(1), root.below(2));
    let server = serve(&own, &clock, policies(&[STRICT]), |_| {}).await;
    let leaf = svid(&own, "server", HOUR);
    let lists = |revoked| root.bundle_of(&own, &[root.list(revoked), out.list(0), stays.list(0)]);
    server.mesh.set_identity(leaf.clone(), lists(0)).unwrap();
    let mut held = Vec::new();
    for issuer in [&out, &stays] {
        let mesh = client_mesh(issuer.client(10), trust(&[&own]), &SetClock::default());
        let mut both = hold_both(&connector(&mesh, &server)).await;
        for (held, _) in &mut both {
            assert_eq!(held.status("/").await, Some(200), "{}", held.version());
        }
        held.push((mesh, both));
    }
    server.mesh.set_identity(leaf, lists(1)).unwrap();
    let begun = Instant::now();
    let [(out, ends), (_, stay)] = <[_; 2]>::try_from(held).ok().unwrap();
    for (mut held, end) in ends {
        let status = held.status("/").await;
        assert!(matches!(status, Some(403) | None), "{}: {status:?}", held.version());
        gone(end).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (mut held, _end) in stay {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
    }
    let out = connector(&out, &server);
    assert_eq!(status_of_new(&out).await, None, "a client of a revoked issuer got in");
}

/// [SEC-ID-14], [SEC-TLS-13] A server that a new list names loses its clients, streams included;
/// another of the same authority keeps them, and no client comes back.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_13_a_client_leaves_a_revoked_server() {
    let (own, revoking, clock) = (authority(), Revoking::new(), SetClock::default());
    let mesh = client_mesh(svid(&own, "client", HOUR), revoking.bundle(&own, 0), &clock);
    let mut streams = Vec::new();
    for serial in [1, 2] {
        let server = serve(&own, &clock, policies(&[STRICT]), |_| {}).await;
        server.mesh.set_identity(revoking.svid("server", serial), trust(&[&own])).unwrap();
        let client: MeshClient<Empty<Bytes>> = connector(&mesh, &server).client();
        let request = Request::get("https://server/stream").body(Empty::new()).unwrap();
        let response = client.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        streams.push((server, client, tokio::spawn(drained(response))));
    }
    mesh.set_identity(svid(&own, "client", HOUR), revoking.bundle(&own, 1)).unwrap();
    let [(out, _, ended), (stays, _, going_on)] = <[_; 2]>::try_from(streams).ok().unwrap();
    let took = ended.await.unwrap();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let error = connect(&connector(&mesh, &out)).await.unwrap_err();
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    assert!(connect(&connector(&mesh, &stays)).await.is_ok());
    // A new identity of the client's own leaves what streams alone.
    assert!(!going_on.is_finished());
    going_on.abort();
}
