//! What a leaf may say of itself, and with which key.

use std::net::{IpAddr, Ipv4Addr};

use mesh_identity::SpiffeIdError;
use mesh_identity::x509::{SvidError, check_public_key};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyPair,
    KeyUsagePurpose as Usage, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData as _, SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::mint::{
    Ca, DAY_BEGINS, DAY_ENDS, ID, NOW, algorithms, at, extension, leaf_params, rsa, san, tlv, uri,
    verify,
};

/// The leaf that an edit of a right one makes.
fn check(name: &str, edit: impl FnOnce(&mut CertificateParams), want: &Result<(), SvidError>) {
    let ca = Ca::root("root");
    let mut params = leaf_params(ID);
    edit(&mut params);
    let got = verify(&[ca.leaf(&params)], &ca.bundles());
    if let Ok(svid) = &got {
        assert_eq!(svid.id().as_str(), ID, "{name}");
        assert_eq!(svid.authority().der(), &ca.certificate, "{name}");
    }
    assert_eq!(got.map(drop), *want, "{name}");
}

const URI: u8 = 6;
const DNS: u8 = 2;

#[test]
fn sec_id_2_exactly_one_uri() {
    let names = |names: Vec<SanType>| move |p: &mut CertificateParams| p.subject_alt_names = names;
    let dns = || SanType::DnsName("cart.shop".try_into().unwrap());
    let ip = || SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let mail = || SanType::Rfc822Name("a@b.test".try_into().unwrap());
    let other = || SanType::OtherName((vec![1, 3, 6, 1], ID.to_owned().into()));
    check("equal twice", names(vec![uri(ID), uri(ID)]), &Err(SvidError::TwoUris));
    let another = uri("spiffe://a.test/ns/x/sa/y");
    check("two", names(vec![uri(ID), another]), &Err(SvidError::TwoUris));
    check("with https", names(vec![uri(ID), uri("https://x")]), &Err(SvidError::TwoUris));
    check("https first", names(vec![uri("https://x"), uri(ID)]), &Err(SvidError::TwoUris));
    check("none", names(vec![]), &Err(SvidError::NoUri));
    check("others only", names(vec![dns(), ip(), mail(), other()]), &Err(SvidError::NoUri));
    check("others beside it", names(vec![dns(), ip(), uri(ID), mail(), other()]), &Ok(()));
}

#[test]
fn sec_id_2_names_are_counted_on_the_der() {
    let raw = |extensions: Vec<rcgen::CustomExtension>| {
        move |params: &mut CertificateParams| {
            params.subject_alt_names.clear();
            params.custom_extensions = extensions;
        }
    };
    let id = ID.as_bytes();
    check("by hand", raw(vec![san(&[(URI, id)])]), &Ok(()));
    let two = vec![san(&[(URI, id)]), san(&[(URI, id)])];
    check("two extensions", raw(two), &Err(SvidError::DuplicateExtension));
    let other = vec![san(&[(URI, id)]), san(&[(DNS, b"cart")])];
    check("second without uri", raw(other), &Err(SvidError::DuplicateExtension));
    let undecodable = vec![san(&[(URI, id), (URI, b"\xff")])];
    check("second undecodable", raw(undecodable), &Err(SvidError::TwoUris));
    let undecodable = vec![san(&[(URI, b"\xff"), (URI, id)])];
    check("first undecodable", raw(undecodable), &Err(SvidError::TwoUris));
    check("undecodable", raw(vec![san(&[(URI, b"\xff")])]), &Err(SvidError::Malformed));
    let beside = vec![san(&[(DNS, b"\xff\xfe"), (URI, id)])];
    check("undecodable other name", raw(beside), &Ok(()));
    // x509-parser would read a URI where webpki sees none: found by fuzzing.
    for names in
        [&[(0x20 | URI, id)][..], &[(URI, id), (0x20 | URI, id)], &[(0x20 | DNS, id), (URI, id)]]
    {
        check("constructed name", raw(vec![san(names)]), &Err(SvidError::Malformed));
    }
    let garbage = extension(&[2, 5, 29, 17], true, [tlv(0x30, &tlv(0x86, id)), vec![0]].concat());
    // x509-parser lets this pass, so webpki's reading is not superfluous.
    let refused = SvidError::Certificate(webpki::Error::BadDer);
    check("something behind", raw(vec![garbage]), &Err(refused));
    let cut = extension(&[2, 5, 29, 17], true, vec![0x30, 0x20, 0x86, 0x1e, b's']);
    check("cut off", raw(vec![cut]), &Err(SvidError::Malformed));
}

#[test]
fn sec_id_1_the_uri_is_a_spiffe_id() {
    let refused = |text: &[u8]| {
        let ca = Ca::root("root");
        let mut params = leaf_params(ID);
        params.subject_alt_names.clear();
        params.custom_extensions = vec![san(&[(URI, text)])];
        match verify(&[ca.leaf(&params)], &ca.bundles()) {
            Err(SvidError::Id(error)) => error,
            other => panic!("{}: {other:?}", String::from_utf8_lossy(text)),
        }
    };
    assert_eq!(refused(b""), SpiffeIdError::Empty);
    assert_eq!(refused(b"SPIFFE://a.test/x"), SpiffeIdError::WrongScheme);
    for text in [
        "https://a.test/x",
        "spiffe://A.test/x",
        "spiffe://a.test:1/x",
        "spiffe://u@a.test/x",
        "spiffe://a.test/x\0",
        "spiffe://a.test\0.evil/x",
        "spiffe://a.test/x%2Fy",
        "spiffe://a.test/x?y",
        "spiffe://a.test/x#y",
        "spiffe://a.test/x/",
        "spiffe://a.test/../x",
        "spiffe://a.test/\u{e4}",
        " spiffe://a.test/x",
        "spiffe://a.test/x ",
    ] {
        refused(text.as_bytes());
    }
    let long = format!("spiffe://a.test/{}", "x".repeat(2049 - 16));
    refused(long.as_bytes());
}

#[test]
fn sec_id_3_what_a_leaf_says() {
    let usages = |usages: Vec<Usage>| move |p: &mut CertificateParams| p.key_usages = usages;
    let purposes =
        |purposes: Vec<Purpose>| move |p: &mut CertificateParams| p.extended_key_usages = purposes;
    check("right", |_| {}, &Ok(()));
    check("ca", |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), &Err(SvidError::LeafIsCa));
    check("nothing of ca", |p| p.is_ca = IsCa::NoCa, &Err(SvidError::LeafWithoutBasicConstraints));
    check("no usage", usages(vec![]), &Err(SvidError::LeafWithoutKeyUsage));
    check("no signing", usages(vec![Usage::KeyEncipherment]), &Err(SvidError::NoDigitalSignature));
    let sign = Usage::DigitalSignature;
    check("certSign", usages(vec![sign, Usage::KeyCertSign]), &Err(SvidError::LeafCanSign));
    check("crlSign", usages(vec![sign, Usage::CrlSign]), &Err(SvidError::LeafCanSign));
    check("others", usages(vec![sign, Usage::KeyEncipherment, Usage::KeyAgreement]), &Ok(()));
    check("no purposes", purposes(vec![]), &Ok(()));
    check("server", purposes(vec![Purpose::ServerAuth]), &Err(SvidError::Purpose));
    check("client", purposes(vec![Purpose::ClientAuth]), &Err(SvidError::Purpose));
    check("any", purposes(vec![Purpose::Any]), &Err(SvidError::Purpose));
    let three = vec![Purpose::ClientAuth, Purpose::CodeSigning, Purpose::ServerAuth];
    check("more", purposes(three), &Ok(()));
    let no_path = |p: &mut CertificateParams| p.subject_alt_names = vec![uri("spiffe://a.test")];
    check("no path", no_path, &Err(SvidError::NoPath));
}

#[test]
fn sec_id_3_extensions() {
    let with = |extension| move |p: &mut CertificateParams| p.custom_extensions = vec![extension];
    let null = || vec![5, 0];
    let unknown = [1, 3, 6, 1, 4, 1, 99_999, 1];
    check("unknown", with(extension(&unknown, false, null())), &Ok(()));
    let critical = extension(&unknown, true, null());
    check("critical", with(critical), &Err(SvidError::UnknownCriticalExtension));
    let usage = extension(&[2, 5, 29, 15], true, vec![3, 2, 7, 0x80]);
    check("usage twice", with(usage), &Err(SvidError::DuplicateExtension));
    let constraints = extension(&[2, 5, 29, 19], true, vec![0x30, 0]);
    check("constraints twice", with(constraints), &Err(SvidError::DuplicateExtension));
    // x509-parser can read these; nobody here acts on them, and webpki refuses them.
    for oid in [[2, 5, 29, 36], [2, 5, 29, 33], [2, 5, 29, 54]] {
        let content = if oid[3] == 54 { vec![2, 1, 0] } else { vec![0x30, 0] };
        let ca = Ca::root("root");
        let mut params = leaf_params(ID);
        params.custom_extensions = vec![extension(&oid, true, content)];
        let got = verify(&[ca.leaf(&params)], &ca.bundles());
        assert!(got.is_err(), "{oid:?}");
    }
}

#[test]
fn sec_id_3_the_der_is_all_there_is() {
    let ca = Ca::root("root");
    let der = ca.leaf(&leaf_params(ID));
    let with = |edit: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = der.to_vec();
        edit(&mut bytes);
        verify(&[CertificateDer::from(bytes)], &ca.bundles()).map(drop)
    };
    assert_eq!(with(&|_| {}), Ok(()));
    assert_eq!(with(&|bytes| bytes.push(0)), Err(SvidError::Malformed));
    assert_eq!(with(&|bytes| bytes.truncate(bytes.len() - 1)), Err(SvidError::Malformed));
    assert_eq!(with(&Vec::clear), Err(SvidError::Malformed));
    assert_eq!(verify(&[], &ca.bundles()), Err(SvidError::EmptyChain));
}

/// Every bit matters or is harmless: no single flipped one changes who the leaf is.
#[test]
fn sec_id_2_a_flipped_bit_never_makes_another_identity() {
    let ca = Ca::root("root");
    let (der, bundles) = (ca.leaf(&leaf_params(ID)), ca.bundles());
    for position in 0..der.len() * 8 {
        let mut bytes = der.to_vec();
        bytes[position / 8] ^= 1 << (position % 8);
        let got = mesh_identity::x509::verify_svid(
            &[CertificateDer::from(bytes)],
            &bundles,
            at(NOW),
            mesh_identity::x509::Role::Client,
            algorithms(),
        );
        assert!(got.is_err(), "bit {position}");
    }
}

#[test]
fn sec_id_6_keys() {
    let ca = Ca::root("root");
    let got = |key: &dyn Fn() -> CertificateDer<'static>| verify(&[key()], &ca.bundles()).map(drop);
    for algorithm in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(got(&|| ca.leaf_for(&leaf_params(ID), &key)), Ok(()));
    }
    for (bits, want) in [
        (1024, Err(SvidError::WeakKey)),
        (2047, Err(SvidError::WeakKey)),
        (2048, Ok(())),
        (3072, Ok(())),
        (8192, Ok(())),
        (8193, Err(SvidError::WeakKey)),
        (16384, Err(SvidError::WeakKey)),
    ] {
        assert_eq!(got(&|| ca.leaf_for(&leaf_params(ID), &rsa(bits))), want, "RSA {bits}");
    }
    // P-256's OID, 1.2.840.10045.3.1.7, made another curve's by its last number.
    let der = ca.leaf(&leaf_params(ID)).to_vec();
    let oid = [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let start = der.windows(8).position(|window| window == oid).unwrap();
    let mut other = der;
    other[start + 7] = 0x01;
    let other = CertificateDer::from(other);
    assert_eq!(verify(&[other], &ca.bundles()), Err(SvidError::WeakKey));
}

#[test]
fn sec_id_6_no_sha1_and_no_md5() {
    let file = include_bytes!("weak_hashes.pem");
    let chain: Vec<_> = CertificateDer::pem_slice_iter(file).collect::<Result<_, _>>().unwrap();
    let [root, sha256, sha1, md5] = chain.as_slice() else { panic!("four certificates") };
    let root = mesh_identity::X509Authority::from_der(root.clone()).unwrap();
    let bundle = mesh_identity::TrustBundle::new("weak.test".parse().unwrap());
    let bundles = mesh_identity::BundleSet::from_bundles([bundle.with_authority(root)]).unwrap();
    let good = verify(std::slice::from_ref(sha256), &bundles).unwrap();
    assert_eq!(good.id().as_str(), "spiffe://weak.test/ns/a/sa/b");
    for weak in [sha1, md5] {
        let got = verify(std::slice::from_ref(weak), &bundles);
        assert!(matches!(got, Err(SvidError::Path(_))), "{got:?}");
    }
}

#[test]
fn sec_id_3_both_ends_of_validity_are_valid() {
    let ca = Ca::root("root");
    let chain = [ca.leaf(&leaf_params(ID))];
    let long = rcgen::date_time_ymd(2037, 1, 1);
    let mut params = crate::mint::ca_params("long");
    (params.not_before, params.not_after) = (rcgen::date_time_ymd(2020, 1, 1), long);
    let root = Ca::root_with(params);
    let leaf = [root.leaf(&leaf_params(ID))];
    let valid = |chain: &[CertificateDer<'_>], ca: &Ca, seconds| {
        let role = mesh_identity::x509::Role::Client;
        mesh_identity::x509::verify_svid(chain, &ca.bundles(), at(seconds), role, algorithms())
            .is_ok()
    };
    for (chain, ca) in [(&chain, &ca), (&leaf, &root)] {
        assert!(!valid(chain, ca, DAY_BEGINS - 1));
        assert!(valid(chain, ca, DAY_BEGINS));
        assert!(valid(chain, ca, DAY_ENDS));
        assert!(!valid(chain, ca, DAY_ENDS + 1));
        assert!(!valid(chain, ca, 0));
        assert!(!valid(chain, ca, u64::MAX));
    }
    assert_eq!(verify(&leaf, &root.bundles()).unwrap().not_after(), at(DAY_ENDS));
}

/// The bits of a key have the form that its algorithm demands.
#[test]
fn sec_id_6_keys_have_the_form_of_their_algorithm() {
    for (algorithm, length) in
        [(&PKCS_ECDSA_P256_SHA256, 65), (&PKCS_ECDSA_P384_SHA384, 97), (&PKCS_ED25519, 32)]
    {
        let good = KeyPair::generate_for(algorithm).unwrap().subject_public_key_info();
        assert_eq!(check_public_key(&good), Ok(()));
        // Header, BIT STRING's tag and length, unused bits: all lengths are one byte here.
        let at = good.len() - length;
        let resized = |bits: &[u8]| {
            let mut bad = [&good[..at], bits].concat();
            bad[1] = u8::try_from(bad.len() - 2).unwrap();
            bad[at - 2] = u8::try_from(bits.len() + 1).unwrap();
            check_public_key(&bad)
        };
        assert_eq!(resized(&good[at..]), Ok(()));
        let longer = [&good[at..], &[0]].concat();
        for bits in [&good[at..good.len() - 1], &longer, &[][..]] {
            assert_eq!(resized(bits), Err(SvidError::Malformed), "{} bytes", bits.len());
        }
        let mut unused = good.clone();
        unused[at - 1] = 1;
        assert!(check_public_key(&unused).is_err());
        if length != 32 {
            let mut hybrid = good.clone();
            hybrid[at] = 6;
            assert_eq!(check_public_key(&hybrid), Err(SvidError::Malformed));
        }
    }
}
