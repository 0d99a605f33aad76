//! Certificates that end the handshake, shown by clients and by servers.

use std::sync::Arc;

use mesh_authn::peer::{ExpectedServer, PeerError, ServerTls};
use mesh_identity::BundleSet;
use mesh_identity::x509::SvidError;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use rustls::ClientConfig;

use crate::handshake::{Failed, shake};
use crate::mint::{CLIENT, Ca, SERVER, clock, leaf_params, now, provider};
use crate::possession::{Shows, Trusting};

/// What our server says of a client, and our client of a server, that show this leaf of this
/// authority.
fn refusals(of: &Ca, by: &Ca, edit: impl Fn(&mut CertificateParams)) -> [PeerError; 2] {
    let leaf = |id| {
        let mut params = leaf_params(id);
        edit(&mut params);
        of.leaf(&params)
    };
    let mut client = (*by.client().config()).clone();
    client.client_auth_cert_resolver = Arc::new(Shows::leaf(&leaf(CLIENT)));
    let by_server = match shake(Arc::new(client), by.server().config()) {
        Err(Failed::Server(error)) => PeerError::of_handshake(&error),
        other => panic!("{:?}", other.map(drop)),
    };
    let mut server = (*by.server().config()).clone();
    server.cert_resolver = Arc::new(Shows::leaf(&leaf(SERVER)));
    let by_client = match shake(by.client().config(), Arc::new(server)) {
        Err(Failed::Client(error)) => PeerError::of_handshake(&error),
        other => panic!("{:?}", other.map(drop)),
    };
    [by_server.unwrap(), by_client.unwrap()]
}

#[test]
fn sec_tls_4_every_rule_for_svids_ends_the_handshake() {
    let ca = Ca::new();
    let check = |want: &SvidError, edit: &dyn Fn(&mut CertificateParams)| {
        let got = refusals(&ca, &ca, edit);
        assert_eq!(got, [PeerError::Svid(want.clone()), PeerError::Svid(want.clone())]);
    };
    let uri = |text: &str| SanType::URI(text.try_into().unwrap());
    check(&SvidError::TwoUris, &|params| {
        params.subject_alt_names.push(uri("spiffe://a.test/second"));
    });
    check(&SvidError::NoUri, &|params| {
        params.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
    });
    check(&SvidError::NoPath, &|params| {
        params.subject_alt_names = vec![uri("spiffe://a.test")];
    });
    check(&SvidError::UnknownTrustDomain, &|params| {
        params.subject_alt_names = vec![uri("spiffe://b.test/x")];
    });
    check(&SvidError::LeafIsCa, &|params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    check(&SvidError::LeafWithoutBasicConstraints, &|params| params.is_ca = IsCa::NoCa);
    check(&SvidError::LeafWithoutKeyUsage, &|params| params.key_usages.clear());
    check(&SvidError::NoDigitalSignature, &|params| {
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
    });
    check(&SvidError::LeafCanSign, &|params| {
        params.key_usages.push(KeyUsagePurpose::KeyCertSign);
    });
    check(&SvidError::Purpose, &|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
}

#[test]
fn sec_tls_4_dates_and_issuers_end_the_handshake() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    for error in refusals(&stranger, &ca, |_| {}) {
        assert!(matches!(error, PeerError::Svid(SvidError::Path(_))), "{error:?}");
    }
    let past = refusals(&ca, &ca, |params| params.not_after = rcgen::date_time_ymd(2027, 1, 15));
    assert_eq!(past, [PeerError::Svid(SvidError::Expired), PeerError::Svid(SvidError::Expired)]);
    let future = refusals(&ca, &ca, |params| params.not_before = rcgen::date_time_ymd(2027, 1, 16));
    assert!(future.iter().all(|error| *error == PeerError::Svid(SvidError::NotYetValid)));
}

#[test]
fn sec_tls_2_a_client_without_certificate_is_refused() {
    let ca = Ca::new();
    for versions in [&[&rustls::version::TLS13], &[&rustls::version::TLS12]] {
        let anonymous = ClientConfig::builder_with_details(provider(), clock())
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Trusting))
            .with_no_client_auth();
        let server = ca.server_as(ca.svid(SERVER), true);
        let got = shake(Arc::new(anonymous), server.config());
        let Err(Failed::Server(rustls::Error::NoCertificatesPresented)) = got else {
            panic!("{:?}", got.map(drop));
        };
        // Nor is anything sent to it before it has shown one.
        assert!(!server.config().send_half_rtt_data);
    }
}

#[test]
fn sec_tls_5_another_server_is_refused_with_both_names() {
    let ca = Ca::new();
    let impostor = "spiffe://a.test/ns/shop/sa/impostor";
    let server = ca.server_as(ca.svid(impostor), false);
    let other = || SERVER.parse().unwrap();
    let expected = [
        (ExpectedServer::exact(other()), SERVER.to_owned()),
        (
            ExpectedServer::one_of([other(), CLIENT.parse().unwrap()]),
            format!("{CLIENT} or {SERVER}"),
        ),
        (ExpectedServer::one_of([]), "nobody".to_owned()),
        (ExpectedServer::member_of("b.test".parse().unwrap()), "a member of b.test".to_owned()),
        (
            ExpectedServer::matching("no impostor", |id| !id.path().ends_with("impostor")),
            "no impostor".to_owned(),
        ),
    ];
    for (expected, name) in expected {
        let client = ca.client_for(expected, false);
        let Err(Failed::Client(error)) = shake(client.config(), server.config()) else {
            panic!("{name} was expected");
        };
        let error = PeerError::of_handshake(&error).unwrap();
        assert_eq!(error.to_string(), format!("server is {impostor}, expected {name}"));
    }
    for expected in [
        ExpectedServer::exact(impostor.parse().unwrap()),
        ExpectedServer::one_of([other(), impostor.parse().unwrap()]),
        ExpectedServer::member_of("a.test".parse().unwrap()),
        ExpectedServer::matching("an impostor", |id| id.path().ends_with("impostor")),
    ] {
        let client = ca.client_for(expected, false);
        let (connection, _) = shake(client.config(), server.config()).unwrap();
        let peer = client.verified_peer(&connection, now()).unwrap();
        assert_eq!(peer.id().as_str(), impostor);
    }
}

/// go-spiffe's matchers, as far as we have them: "any" is missing on purpose.
#[test]
fn sec_tls_5_who_is_accepted() {
    let id = |text: &str| text.parse::<mesh_identity::SpiffeId>().unwrap();
    let all = ["foo.test", "foo.test/A", "foo.test/B", "foo.test/sub/C", "bar.test/A"];
    let accepted = |expected: &ExpectedServer| {
        let accepts = |name: &&str| expected.accepts(&id(&format!("spiffe://{name}")));
        all.iter().copied().filter(accepts).collect::<Vec<_>>()
    };
    assert_eq!(accepted(&ExpectedServer::exact(id("spiffe://foo.test/A"))), ["foo.test/A"]);
    assert_eq!(accepted(&ExpectedServer::exact(id("spiffe://foo.test"))), ["foo.test"]);
    let two = ExpectedServer::one_of([id("spiffe://foo.test/B"), id("spiffe://bar.test/A")]);
    assert_eq!(accepted(&two), ["foo.test/B", "bar.test/A"]);
    assert!(accepted(&ExpectedServer::one_of([])).is_empty());
    let member = ExpectedServer::member_of("foo.test".parse().unwrap());
    assert_eq!(accepted(&member), all[..4]);
}

/// A peer's trust domain is the mesh's, an alias of it, or one that was federated; Istio's check of
/// SAN prefixes, and stricter, since each name has authorities of its own.
#[test]
fn sem_mtls_12_whose_peers_are_let_in() {
    let (home, partner) = (Ca::new(), Ca::new());
    let domain = |name: &str| name.parse::<mesh_identity::TrustDomain>().unwrap();
    let own = home.trust().get("a.test").unwrap().clone();
    let federated = partner.trust().get("a.test").unwrap().alias(domain("partner.test"));
    let alias = own.alias(domain("old.test"));
    let bundles = Arc::new(BundleSet::from_bundles([own, federated, alias]).unwrap());
    let server = ServerTls::builder(provider(), clock())
        .identity(home.svid(SERVER))
        .trust(bundles)
        .build()
        .unwrap();
    let ours = home.client();
    for (name, home_may, partner_may) in [
        ("a.test", true, false),
        ("old.test", true, false),
        ("partner.test", false, true),
        ("other.test", false, false),
        ("a.test.evil", false, false),
        ("sub.a.test", false, false),
    ] {
        for (ca, may) in [(&home, home_may), (&partner, partner_may)] {
            let leaf = ca.leaf(&leaf_params(&format!("spiffe://{name}/ns/shop/sa/client")));
            let mut client = (*ours.config()).clone();
            client.client_auth_cert_resolver = Arc::new(Shows::leaf(&leaf));
            let got = shake(Arc::new(client), server.config());
            assert_eq!(got.is_ok(), may, "{name}");
        }
    }
}
