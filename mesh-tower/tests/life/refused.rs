//! Certificates over real sockets: what a server refuses of a client and a client of a server, one
//! test for each rule of the SVID ([SEC-ID-1] to [SEC-ID-14]), by its id.
//!
//! mesh-identity's tests have every shape; here it is shown that each rule ends a connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tower::Policies;
use mesh_tower::identity::{BundleSet, CrlSet, TrustBundle};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyUsagePurpose, NameConstraints,
    RevokedCertParams, SanType, date_time_ymd,
};

use crate::raw::{
    AnyCa, RawClient, Shown, TLS13, ask, ca_params, leaf_params, raw_server, serve_raw, uri,
};
use crate::support::{
    Refusals, STRICT, Server, SetClock, authority, builder, connect, id, policies, serve,
    serve_mesh, svid,
};

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/client";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/server";

/// Both directions of one mesh with these bundles.
struct World {
    server: Server,
    refusals: Refusals,
}

impl World {
    /// A mesh whose own identity is of an authority of its own, which is trusted too.
    async fn trusting(bundles: impl IntoIterator<Item = TrustBundle>) -> Self {
        let own = authority();
        let mut bundles: Vec<_> = bundles.into_iter().collect();
        let home = bundles.iter().position(|one| one.trust_domain().as_str() == "cluster.local");
        // Where the home bundle is put to the test, it is left alone.
        if home.is_none() {
            bundles.push(own.bundle().clone());
        }
        let trust = Arc::new(BundleSet::from_bundles(bundles).unwrap());
        let refusals = Refusals::default();
        let builder = builder(&SetClock::default()).observer(Arc::new(refusals.clone()));
        let own = svid(&own, "server", Duration::from_secs(3600));
        let mesh = builder.build(own, trust, policies(&[STRICT])).unwrap();
        Self { server: serve_mesh(mesh).await, refusals }
    }

    /// What the server's side says of a client that shows this; nothing where it is let in.
    async fn as_client(&self, shown: Shown) -> Option<String> {
        let before = self.refusals.all().len();
        let client = RawClient::new(Some(shown), TLS13).shared();
        if ask(&client, self.server.address, "/").await.is_ok() {
            return None;
        }
        for _ in 0..500 {
            if let Some(reason) = self.refusals.all().get(before) {
                return Some(reason.clone());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Some("nobody was told".to_owned())
    }

    /// What the client's side says of a server that shows this; nothing where it is spoken to. Not a
    /// byte of a request reaches a server that is refused.
    async fn as_server(&self, shown: Shown) -> Option<String> {
        let (address, mut told) = serve_raw(raw_server(shown, TLS13), b"").await;
        let expected = mesh_tower::authn::peer::ExpectedServer::exact(id("server"));
        let connector = mesh_tower::Connector::new(self.server.mesh.clone());
        let connector = connector.service("server", address, &expected);
        let Err(error) = connect(&connector).await else { return None };
        if let Ok((_, got, _)) = told.try_recv() {
            assert_eq!(got, 0, "a refused server was spoken to");
        }
        Some(error.to_string())
    }

    /// Both refuse, and both say why.
    async fn refuse(&self, want: &str, shown: impl Fn(&str) -> Shown) {
        let of_client = self.as_client(shown(CLIENT)).await.expect("a client was let in");
        assert!(of_client.contains(want), "{of_client:?} lacks {want:?}");
        let of_server = self.as_server(shown(SERVER)).await.expect("a server was believed");
        assert!(of_server.contains(want), "{of_server:?} lacks {want:?}");
    }

    async fn take(&self, shown: impl Fn(&str) -> Shown) {
        assert_eq!(self.as_client(shown(CLIENT)).await, None);
        assert_eq!(self.as_server(shown(SERVER)).await, None);
    }
}

/// What the refusal must say, and what is wrong with the certificate.
type Case<'a> = (&'a str, &'a dyn Fn(&mut CertificateParams));

/// One authority, and leaves of it in which one thing is wrong.
async fn leaves(cases: &[Case<'_>]) {
    let ca = AnyCa::root(ca_params("root"));
    let world = World::trusting([ca.bundle("cluster.local")]).await;
    world.take(|id| ca.leaf(&leaf_params(id), &[])).await;
    for (want, edit) in cases {
        let shown = |id: &str| {
            let mut params = leaf_params(id);
            edit(&mut params);
            ca.leaf(&params, &[])
        };
        world.refuse(want, shown).await;
    }
}

/// An extension as its OID's arcs and DER.
fn extension(arcs: &[u64], der: Vec<u8>) -> CustomExtension {
    CustomExtension::from_oid_content(arcs, der)
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_1_only_the_canonical_name_connects() {
    let of = |name: &'static str| {
        move |params: &mut CertificateParams| {
            params.subject_alt_names = vec![uri(name)];
        }
    };
    leaves(&[
        ("SPIFFE ID", &of("SPIFFE://cluster.local/ns/shop/sa/client")),
        ("SPIFFE ID", &of("spiffe://Cluster.local/ns/shop/sa/client")),
        ("SPIFFE ID", &of("spiffe://cluster.local/ns/shop/sa/client/")),
        ("SPIFFE ID", &of("spiffe://cluster.local/ns//sa/client")),
        ("SPIFFE ID", &of("spiffe://cluster.local/ns/%73hop/sa/client")),
        ("SPIFFE ID", &of("spiffe://cluster.local:8443/ns/shop/sa/client")),
        ("SPIFFE ID", &of("spiffe://cluster.local/ns/shop/sa/client?a")),
        ("SPIFFE ID", &of("https://cluster.local/ns/shop/sa/client")),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_2_exactly_one_name_connects() {
    leaves(&[
        ("more than one", &|params| {
            let again = params.subject_alt_names.clone();
            params.subject_alt_names.extend(again);
        }),
        ("more than one", &|params| params.subject_alt_names.push(uri("https://a.test"))),
        ("no URI", &|params| {
            params.subject_alt_names = vec![SanType::DnsName("cluster.local".try_into().unwrap())];
        }),
        // A second SAN extension.
        ("", &|params| {
            let name = b"spiffe://cluster.local/ns/shop/sa/admin";
            let length = u8::try_from(name.len()).unwrap();
            let der = [&[0x30, length + 2, 0x86, length][..], name].concat();
            params.custom_extensions.push(extension(&[2, 5, 29, 17], der));
        }),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_3_only_a_leaf_connects() {
    leaves(&[
        ("leaf is a certificate authority", &|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        ("basic constraints", &|params| params.is_ca = IsCa::NoCa),
        ("key usage", &|params| params.key_usages.clear()),
        ("digitalSignature", &|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
        ("keyCertSign", &|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        ("keyCertSign", &|params| params.key_usages.push(KeyUsagePurpose::CrlSign)),
        ("extended key usage", &|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        ("extended key usage", &|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        }),
        ("path", &|params| params.subject_alt_names = vec![uri("spiffe://cluster.local")]),
        ("critical", &|params| {
            let mut unknown = extension(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
            unknown.set_criticality(true);
            params.custom_extensions.push(unknown);
        }),
        ("expired", &|params| params.not_after = date_time_ymd(2026, 1, 1)),
        ("not valid yet", &|params| {
            params.not_before = date_time_ymd(2999, 1, 1);
            params.not_after = date_time_ymd(3000, 1, 1);
        }),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_4_what_may_issue() {
    let root = AnyCa::root(ca_params("root"));
    let world = World::trusting([root.bundle("cluster.local")]).await;
    let through = |edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = ca_params("intermediate");
        edit(&mut params);
        root.sub(params)
    };
    let good = through(&|_| {});
    world.take(|id| good.leaf(&leaf_params(id), &[&good])).await;
    let cases: [Case<'_>; 5] = [
        ("", &|params| params.is_ca = IsCa::ExplicitNoCa),
        ("", &|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        ("", &|params| params.not_after = date_time_ymd(2026, 1, 1)),
        ("", &|params| params.subject_alt_names = vec![uri("spiffe://other.test")]),
        ("", &|params| params.subject_alt_names = vec![uri("spiffe://cluster.local/with/path")]),
    ];
    for (want, edit) in cases {
        let issuer = through(edit);
        world.refuse(want, |id| issuer.leaf(&leaf_params(id), &[&issuer])).await;
    }
    // A path longer than its issuer allows.
    let mut short = ca_params("short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short = root.sub(short);
    let below = short.sub(ca_params("below"));
    world.refuse("", |id| below.leaf(&leaf_params(id), &[&below, &short])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_5_an_authority_that_has_ended_vouches_for_nobody() {
    let mut params = ca_params("root");
    params.not_after = date_time_ymd(2026, 1, 1);
    let ended = AnyCa::root(params);
    let world = World::trusting([ended.bundle("cluster.local")]).await;
    world.refuse("authority", |id| ended.leaf(&leaf_params(id), &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_6_weak_keys_connect_nobody() {
    let ca = AnyCa::root(ca_params("root"));
    let world = World::trusting([ca.bundle("cluster.local")]).await;
    for bits in [1024, 2047, 16384] {
        world.refuse("key is not", |id| ca.rsa_leaf(&leaf_params(id), bits)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_7_cost_is_bounded() {
    let ca = AnyCa::root(ca_params("root"));
    let world = World::trusting([ca.bundle("cluster.local")]).await;
    let begun = Instant::now();
    let along: Vec<_> = (0..40).map(|_| AnyCa::root(ca_params("root"))).collect();
    let along: Vec<_> = along.iter().collect();
    world.refuse("more than", |id| ca.leaf(&leaf_params(id), &along)).await;
    let many = |id: &str| {
        let mut params = leaf_params(id);
        let name = |at| SanType::DnsName(format!("a{at}.test").try_into().unwrap());
        params.subject_alt_names.extend((0..500).map(name));
        ca.leaf(&params, &[])
    };
    world.refuse("", many).await;
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_8_an_authority_vouches_for_its_own_domain() {
    let (home, foreign) = (AnyCa::root(ca_params("root")), AnyCa::root(ca_params("root")));
    let bundles = [home.bundle("cluster.local"), foreign.bundle("other.test")];
    let world = World::trusting(bundles).await;
    world.take(|id| home.leaf(&leaf_params(id), &[])).await;
    // The foreign authority mints home's names, and home the foreign ones, with whatever sent along.
    for along in [&[][..], &[&foreign], &[&home], &[&foreign, &home]] {
        world.refuse("", |id| foreign.leaf(&leaf_params(id), along)).await;
    }
    let claims = |id: &str| id.replace("cluster.local", "other.test");
    world.refuse("", |id| home.leaf(&leaf_params(&claims(id)), &[])).await;
    // Its own workloads are let in as what they are.
    let theirs = foreign.leaf(&leaf_params(&claims(CLIENT)), &[]);
    assert_eq!(world.as_client(theirs).await, None);
    // A domain that nobody has a bundle for.
    let unknown = |id: &str| home.leaf(&leaf_params(&id.replace("cluster.local", "a.test")), &[]);
    world.refuse("trust domain", unknown).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_9_an_empty_bundle_believes_nobody() {
    let ca = AnyCa::root(ca_params("root"));
    let empty = TrustBundle::new("cluster.local".parse().unwrap());
    let world = World::trusting([empty]).await;
    world.refuse("", |id| ca.leaf(&leaf_params(id), &[])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_13_uri_constraints_are_closed() {
    let root = AnyCa::root(ca_params("root"));
    let world = World::trusting([root.bundle("cluster.local")]).await;
    // Even where the constraint seems to allow the name.
    let mut params = ca_params("constrained");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("cluster.local".to_owned())],
        excluded_subtrees: Vec::new(),
    });
    let dns = root.sub(params);
    // A DNS constraint says nothing about URIs: RFC 5280 constrains only names of its kind.
    world.take(|id| dns.leaf(&leaf_params(id), &[&dns])).await;
    let mut params = ca_params("constrained");
    // permittedSubtrees [0] { uniformResourceIdentifier [6] "cluster.local" }, critical.
    let name = b"cluster.local";
    let length = u8::try_from(name.len()).unwrap();
    let subtree = [&[0x30, length + 2, 0x86, length][..], name].concat();
    let inner = [&[0xa0, length + 4][..], &subtree].concat();
    let der = [&[0x30, length + 6][..], &inner].concat();
    let mut constraints = extension(&[2, 5, 29, 30], der);
    constraints.set_criticality(true);
    params.custom_extensions.push(constraints);
    let closed = root.sub(params);
    world.refuse("", |id| closed.leaf(&leaf_params(id), &[&closed])).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sec_id_14_a_revoked_peer_connects_nowhere() {
    let ca = AnyCa::root(ca_params("root"));
    let now = time::OffsetDateTime::now_utc();
    let hour = time::Duration::hours(1);
    let list = |next_update| {
        let params = CertificateRevocationListParams {
            this_update: now - hour,
            next_update,
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: 7.into(),
                revocation_time: now - hour,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        CrlSet::from_der([params.signed_by(&ca.issuer).unwrap().der()]).unwrap()
    };
    let leaf = |serial: u64| {
        let ca = &ca;
        move |id: &str| {
            let mut params = leaf_params(id);
            params.serial_number = Some(serial.into());
            ca.leaf(&params, &[])
        }
    };
    let world = World::trusting([ca.bundle("cluster.local").with_crls(list(now + hour))]).await;
    world.take(leaf(8)).await;
    world.refuse("revoked", leaf(7)).await;
    // A list that has ended tells nothing, and nobody is let in on it.
    let ended = list(now - time::Duration::minutes(1));
    let world = World::trusting([ca.bundle("cluster.local").with_crls(ended)]).await;
    world.refuse("", leaf(8)).await;
}

/// [SEC-OPS-2] A mesh without policies, to show that it is the certificate that was refused above.
#[tokio::test(flavor = "multi_thread")]
async fn sec_id_3_a_good_certificate_is_enough() {
    let own = authority();
    let server = serve(&own, &SetClock::default(), Policies::none(), |_| {}).await;
    let shown = Shown::svid(&svid(&own, "client", Duration::from_secs(60)));
    let client = RawClient::new(Some(shown), TLS13).shared();
    assert_eq!(ask(&client, server.address, "/").await.unwrap().1, 200);
}
