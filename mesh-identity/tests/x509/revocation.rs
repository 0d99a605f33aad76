//! Revocation lists, as far as they are configured ([SEC-ID-14]).

use mesh_identity::x509::{Role, SvidError, VerifiedSvid, verify_svid};
use mesh_identity::{BundleSet, CrlError, CrlSet, MAX_CRL_LEN, MAX_CRLS};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, KeyIdMethod, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use crate::mint::{Ca, ID, NOW, algorithms, at, ca_params, leaf_params, verify};

/// When the lists of these tests expire.
const NEXT: u64 = NOW + 3600;

fn time(seconds: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(seconds).unwrap()).unwrap()
}

fn with_serial(mut params: CertificateParams, serial: u64) -> CertificateParams {
    params.serial_number = Some(SerialNumber::from(serial));
    params
}

/// A list that an authority signs.
struct List {
    number: u64,
    serials: Vec<u64>,
    point: Option<(Option<&'static str>, Option<CrlScope>)>,
}

fn revoking(serials: &[u64]) -> List {
    List { number: 1, serials: serials.to_vec(), point: None }
}

impl List {
    fn numbered(mut self, number: u64) -> Self {
        self.number = number;
        self
    }

    fn for_point(mut self, uri: &'static str) -> Self {
        self.point = Some((Some(uri), None));
        self
    }

    fn of(self, ca: &Ca) -> Vec<u8> {
        let revoked = self.serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: time(NOW - 60),
            reason_code: None,
            invalidity_date: None,
        });
        let point = self.point.map(|(uri, scope)| CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: uri.iter().map(|&uri| uri.to_owned()).collect(),
            },
            scope,
        });
        let params = CertificateRevocationListParams {
            // A later list is newer.
            this_update: time(NOW - 1000 + self.number),
            next_update: time(NEXT),
            crl_number: SerialNumber::from(self.number),
            issuing_distribution_point: point,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(ca.issuer()).unwrap().der().to_vec()
    }
}

/// A root, an authority below it (serial 10) and a leaf (serial 20).
struct World {
    root: Ca,
    sub: Ca,
    chain: [CertificateDer<'static>; 2],
}

impl World {
    fn new() -> Self {
        Self::with(ca_params("sub"), leaf_params(ID))
    }

    fn with(sub: CertificateParams, leaf: CertificateParams) -> Self {
        let root = Ca::root("root");
        let sub = root.sub(with_serial(sub, 10));
        let chain = [sub.leaf(&with_serial(leaf, 20)), sub.certificate.clone()];
        Self { root, sub, chain }
    }

    fn bundles(&self, lists: &[Vec<u8>]) -> BundleSet {
        let crls = CrlSet::from_der(lists).unwrap();
        BundleSet::from_bundles([self.root.bundle("a.test").with_crls(crls)]).unwrap()
    }

    fn verify(&self, lists: &[Vec<u8>]) -> Result<VerifiedSvid, SvidError> {
        verify(&self.chain, &self.bundles(lists))
    }
}

#[test]
fn sec_id_14_the_whole_chain_is_asked_about() {
    let world = World::new();
    let (root, sub) = (&world.root, &world.sub);
    let run = |of_root: &[u64], of_sub: &[u64]| {
        world.verify(&[revoking(of_root).of(root), revoking(of_sub).of(sub)]).map(drop)
    };
    assert_eq!(run(&[], &[]), Ok(()));
    assert_eq!(run(&[], &[20]), Err(SvidError::Revoked));
    assert_eq!(run(&[10], &[]), Err(SvidError::Revoked));
    assert_eq!(run(&[1, 10, 30], &[1, 20, 30]), Err(SvidError::Revoked));
    // A serial counts for its issuer only.
    assert_eq!(run(&[20], &[10]), Ok(()));
    // Without lists there is no check: short life is the revocation.
    assert!(verify(&world.chain, &root.bundles()).is_ok());
}

#[test]
fn sec_id_14_an_unknown_status_denies() {
    let world = World::new();
    let (root, sub) = (&world.root, &world.sub);
    let unknown = Err(SvidError::RevocationUnknown(webpki::Error::UnknownRevocationStatus));
    assert_eq!(world.verify(&[revoking(&[]).of(root)]), unknown, "the leaf's issuer has no list");
    assert_eq!(world.verify(&[revoking(&[]).of(sub)]), unknown, "the root has no list");
    let stranger = Ca::root("stranger");
    assert_eq!(world.verify(&[revoking(&[]).of(&stranger)]), unknown);
    // A list for authorities only says nothing of the leaf.
    let scoped = |scope| List { number: 1, serials: vec![], point: Some((Some("u"), Some(scope))) };
    let only = |of_sub| world.verify(&[revoking(&[]).of(root), scoped(of_sub).of(sub)]).map(drop);
    assert_eq!(only(CrlScope::CaCertsOnly), unknown.clone().map(drop));
    assert_eq!(only(CrlScope::UserCertsOnly), Ok(()));
}

#[test]
fn sec_id_14_an_expired_list_denies() {
    let world = World::new();
    let lists = [revoking(&[]).of(&world.root), revoking(&[]).of(&world.sub)];
    let bundles = world.bundles(&lists);
    let run =
        |seconds| verify_svid(&world.chain, &bundles, at(seconds), Role::Client, algorithms());
    let verified = run(NEXT - 1).unwrap();
    let late = run(NEXT);
    assert!(
        matches!(late, Err(SvidError::RevocationUnknown(webpki::Error::CrlExpired { .. }))),
        "{late:?}"
    );
    // Who keeps the verdict keeps it as long as the lists; the certificates live on.
    assert!(verified.validity().contains(at(NEXT - 1)));
    assert!(!verified.validity().contains(at(NEXT)));
    assert!(verified.not_after() > at(NEXT));
    assert_eq!(bundles.get("a.test").unwrap().crls().unwrap().next_update(), at(NEXT));
}

#[test]
fn sec_id_14_who_may_sign_a_list() {
    let world = World::new();
    let of_root = revoking(&[]).of(&world.root);
    // Another authority of the issuer's name.
    let impostor = Ca::root("sub");
    let got = world.verify(&[of_root, revoking(&[]).of(&impostor)]);
    let forged = SvidError::RevocationUnknown(webpki::Error::InvalidCrlSignatureForPublicKey);
    assert_eq!(got, Err(forged));
    // An issuer that may sign certificates and no lists.
    let mut params = ca_params("sub");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let silent = World::with(params, leaf_params(ID));
    // rcgen would not sign with it; the same key under the usual profile does.
    let lender = silent.sub.with_params(ca_params("sub"));
    let got = silent.verify(&[revoking(&[]).of(&silent.root), revoking(&[]).of(&lender)]);
    assert_eq!(got, Err(SvidError::RevocationUnknown(webpki::Error::IssuerNotCrlSigner)));
}

/// During a rotation two authorities have one name and a list each.
#[test]
fn sec_id_14_two_authorities_of_one_name() {
    let (one, two) = (World::new(), World::new());
    let bundle = one.root.bundle("a.test").with_authority(two.root.authority());
    let serials: [&[u64]; 2] = [&[], &[20]];
    for of_two in serials {
        let lists = [
            revoking(&[]).of(&one.root),
            revoking(&[]).numbered(5).of(&two.root),
            revoking(&[]).numbered(7).of(&one.sub),
            revoking(of_two).numbered(3).of(&two.sub),
        ];
        for turn in 0..lists.len() {
            let mut lists = lists.clone();
            lists.rotate_left(turn);
            let crls = CrlSet::from_der(&lists).unwrap();
            let bundles = BundleSet::from_bundles([bundle.clone().with_crls(crls)]).unwrap();
            let want = if of_two.is_empty() { Ok(()) } else { Err(SvidError::Revoked) };
            assert_eq!(verify(&two.chain, &bundles).map(drop), want);
            // Serials are random and long, so a list of the same name counts for both.
            assert_eq!(verify(&one.chain, &bundles).map(drop), want);
        }
    }
}

/// RUSTSEC-2026-0049: of several distribution points each counts, in whatever order the lists come.
#[test]
fn sec_id_14_all_distribution_points_count() {
    let mut params = leaf_params(ID);
    params.crl_distribution_points = ["http://a.test/one", "http://a.test/two"]
        .map(|uri| CrlDistributionPoint { uris: vec![uri.to_owned()] })
        .to_vec();
    let world = World::with(ca_params("sub"), params);
    let of_root = revoking(&[]).of(&world.root);
    let of = |point, serials: &[u64]| revoking(serials).for_point(point).of(&world.sub);
    let (one, two) = ("http://a.test/one", "http://a.test/two");
    let cases: [(&[u64], &[u64], bool); 4] =
        [(&[], &[], true), (&[20], &[], false), (&[], &[20], false), (&[20], &[20], false)];
    for (in_one, in_two, good) in cases {
        let mut lists = vec![of_root.clone(), of(one, in_one), of(two, in_two)];
        for _ in 0..lists.len() {
            lists.rotate_left(1);
            let want = if good { Ok(()) } else { Err(SvidError::Revoked) };
            assert_eq!(world.verify(&lists).map(drop), want, "{in_one:?} {in_two:?}");
        }
    }
    // A list for another point says nothing of the leaf.
    let got = world.verify(&[of_root, of("http://a.test/three", &[])]);
    assert!(matches!(got, Err(SvidError::RevocationUnknown(_))), "{got:?}");
}

/// The newest list of an issuer decides, but no older one that names the certificate is forgotten.
#[test]
fn sec_id_14_newest_first_and_none_forgotten() {
    let world = World::new();
    let of_root = revoking(&[]).of(&world.root);
    let list = |number, serials: &[u64]| revoking(serials).numbered(number).of(&world.sub);
    for lists in [[list(1, &[]), list(2, &[20])], [list(1, &[20]), list(2, &[])]] {
        let [old, new] = lists;
        for pair in [[old.clone(), new.clone()], [new, old]] {
            let got = world.verify(&[&[of_root.clone()][..], &pair].concat());
            assert_eq!(got, Err(SvidError::Revoked));
        }
    }
}

/// One trust domain's lists are not asked about, and say nothing of, another's certificates.
#[test]
fn sec_id_14_lists_belong_to_a_trust_domain() {
    let (home, other) = (World::new(), Ca::root("root"));
    let crls = CrlSet::from_der([revoking(&[20]).of(&home.sub)]).unwrap();
    let bundles = [home.root.bundle("a.test").with_crls(crls), other.bundle("b.test")];
    let bundles = BundleSet::from_bundles(bundles).unwrap();
    let leaf = other.leaf(&with_serial(leaf_params("spiffe://b.test/x"), 20));
    assert!(verify(&[leaf], &bundles).is_ok());
    assert!(verify(&home.chain, &bundles).is_err());
}

#[test]
fn sec_id_14_lists_are_read_before_they_replace() {
    let ca = Ca::root("root");
    let good = revoking(&[1, 2]).of(&ca);
    assert_eq!(CrlSet::from_der([&good]).unwrap().len(), 1);
    // Every truncation, and anything behind the end.
    for end in 0..good.len() {
        assert!(CrlSet::from_der([&good[..end]]).is_err(), "{end}");
    }
    let longer = [&good[..], &[0]].concat();
    assert_eq!(CrlSet::from_der([&longer]), Err(CrlError::Malformed { at: 0 }));
    // All or none.
    let got = CrlSet::from_der([good.clone(), ca.certificate.to_vec()]);
    assert_eq!(got, Err(CrlError::Malformed { at: 1 }));
    let huge = vec![0x30; MAX_CRL_LEN + 1];
    assert_eq!(CrlSet::from_der([huge]), Err(CrlError::TooLong { at: 0 }));
    assert_eq!(CrlSet::from_der(vec![&good; MAX_CRLS + 1]), Err(CrlError::TooMany));
    assert_eq!(CrlSet::from_der(Vec::<Vec<u8>>::new()), Err(CrlError::NoList));
    // PEM, as Istio's ca-crl.pem.
    let pem = |der: &[u8]| {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN X509 CRL-----\n{text}\n-----END X509 CRL-----\n")
    };
    let two = pem(&good) + &pem(&revoking(&[]).numbered(2).of(&ca));
    assert_eq!(CrlSet::from_pem(two.as_bytes()).unwrap().len(), 2);
    let cut = two.as_bytes().split_at(two.len() - 40).0;
    for bad in [&b""[..], b"no PEM", cut] {
        assert_eq!(CrlSet::from_pem(bad), Err(CrlError::NoList));
    }
}

/// [SEC-OPS-2] An older list does not replace a newer one.
#[test]
fn sec_id_14_an_older_list_is_refused() {
    let ca = Ca::root("root");
    let set = |number| CrlSet::from_der([revoking(&[]).numbered(number).of(&ca)]).unwrap();
    let stale = Err(CrlError::Stale { at: 0 });
    assert!(set(256).succeeding(&set(255)).is_ok());
    assert!(set(255).succeeding(&set(255)).is_ok());
    assert_eq!(set(255).succeeding(&set(256)), stale);
    assert_eq!(set(2).succeeding(&set(10)), stale);
    // Of another issuer it is no predecessor.
    let other = CrlSet::from_der([revoking(&[]).numbered(9).of(&Ca::root("other"))]).unwrap();
    assert!(set(1).succeeding(&other).is_ok());
}
