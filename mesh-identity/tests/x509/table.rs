//! Every error of a certificate chain with a chain that meets it: the rows of
//! `docs/refused-certificates.md`. The chains are written as PEM to `target/tmp/refused`.

use std::collections::BTreeSet;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mesh_identity::x509::{MAX_CHAIN_BYTES, Role, SvidError, verify_svid};
use mesh_identity::{BundleSet, CrlSet, TrustBundle, X509Authority};
use rcgen::{
    CertificateParams, CertificateRevocationListParams, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevokedCertParams, SanType, date_time_ymd,
};
use rustls_pki_types::CertificateDer;

use crate::mint::{Ca, ID, NOW, algorithms, at, ca_params, extension, leaf_params, uri};

type Chain = Vec<CertificateDer<'static>>;

/// The example in words, its chain, and the bundles that judge it.
struct Example(&'static str, Chain, BundleSet);

#[expect(clippy::too_many_lines, reason = "a table")]
fn examples() -> Vec<Example> {
    let ca = Ca::root("root");
    let good = || leaf_params(ID);
    let leaf = |words, edit: &dyn Fn(&mut CertificateParams)| {
        let mut params = good();
        edit(&mut params);
        Example(words, vec![ca.leaf(&params)], ca.bundles())
    };
    let below = |words, params: CertificateParams| {
        let sub = ca.sub(params);
        Example(words, vec![sub.leaf(&good()), sub.certificate], ca.bundles())
    };
    let mut old = ca_params("old");
    old.not_after = date_time_ymd(2027, 1, 15);
    let old = Ca::root_with(old);
    let mut unable = ca_params("sub");
    unable.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let mut named = ca_params("sub");
    named.subject_alt_names = vec![uri("spiffe://b.test")];
    let short = |der: &[u8]| CertificateDer::from(der.to_vec());
    let ring = Ca::root("same");
    let same: Vec<Ca> = (0..8).map(|_| ring.sub(ca_params("same"))).collect();
    let issuers = same.iter().map(|sub| sub.certificate.clone());
    let stranger = Ca::root("stranger");
    let mut revoked = good();
    revoked.serial_number = Some(7_u64.into());
    let (revoked, list) = (ca.leaf(&revoked), |ca: &Ca| {
        let day = date_time_ymd(2027, 1, 15);
        let params = CertificateRevocationListParams {
            this_update: day,
            next_update: date_time_ymd(2027, 1, 16),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: 7_u64.into(),
                revocation_time: day,
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params.signed_by(ca.issuer()).unwrap();
        CrlSet::from_der([list.der()]).unwrap()
    });
    let with_list = |crls| BundleSet::from_bundles([ca.bundle("a.test").with_crls(crls)]).unwrap();
    let empty = TrustBundle::new("a.test".parse().unwrap());
    let empty = BundleSet::from_bundles([empty]).unwrap();
    let authority = |params: CertificateParams| vec![Ca::root_with(params).certificate];
    let mut no_ca = good();
    no_ca.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    vec![
        Example("signed by a root that ended yesterday", vec![old.leaf(&good())], old.bundles()),
        leaf("a byte behind the SAN's list of names", &|params| {
            let name = crate::mint::tlv(0x86, ID.as_bytes());
            let list = [crate::mint::tlv(0x30, &name), vec![0]].concat();
            params.subject_alt_names.clear();
            params.custom_extensions = vec![extension(&[2, 5, 29, 17], true, list)];
        }),
        Example(
            "more than 64 KiB",
            vec![ca.leaf(&good()), short(&vec![0; MAX_CHAIN_BYTES])],
            ca.bundles(),
        ),
        leaf("the extension 1.2.3.4 twice", &|params| {
            let twice = || extension(&[1, 2, 3, 4], false, vec![5, 0]);
            params.custom_extensions = vec![twice(), twice()];
        }),
        Example("no certificate", vec![], ca.bundles()),
        leaf("ended yesterday", &|params| params.not_after = date_time_ymd(2027, 1, 15)),
        leaf("spiffe://A.test/x", &|params| {
            params.subject_alt_names = vec![uri("spiffe://A.test/x")];
        }),
        below("an intermediate named spiffe://b.test", named),
        Example("a bundle whose authority is a leaf", authority(no_ca), ca.bundles()),
        below("an intermediate with digitalSignature only", unable),
        leaf("keyCertSign", &|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)),
        leaf("cA true", &|params| {
            params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        }),
        leaf("no basic constraints", &|params| params.is_ca = IsCa::NoCa),
        leaf("no key usage", &|params| params.key_usages.clear()),
        Example("half a certificate", vec![short(&ca.leaf(&good())[..200])], ca.bundles()),
        Example("an empty bundle", vec![ca.leaf(&good())], empty),
        leaf("keyAgreement only", &|params| {
            params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        }),
        leaf("spiffe://a.test", &|params| params.subject_alt_names = vec![uri("spiffe://a.test")]),
        leaf("begins tomorrow", &|params| params.not_before = date_time_ymd(2027, 1, 16)),
        leaf("a DNS name only", &|params| {
            params.subject_alt_names = vec![SanType::DnsName("a.test".try_into().unwrap())];
        }),
        Example("signed by another authority", vec![stranger.leaf(&good())], ca.bundles()),
        leaf("extended key usage serverAuth only", &|params| {
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        }),
        Example("no list of its issuer", vec![ca.leaf(&good())], with_list(list(&stranger))),
        Example("its serial is on the list", vec![revoked], with_list(list(&ca))),
        Example("eleven certificates", vec![ca.leaf(&good()); 11], ca.bundles()),
        leaf("65 extensions", &|params| {
            let one = |number| extension(&[1, 2, 3, number], false, vec![5, 0]);
            params.custom_extensions = (0..65).map(one).collect();
        }),
        leaf("33 names", &|params| {
            let name = |number| SanType::DnsName(format!("n{number}").try_into().unwrap());
            params.subject_alt_names.extend((0..32).map(name));
        }),
        Example(
            "eight issuers of one name",
            std::iter::once(same[0].leaf(&good())).chain(issuers).collect(),
            stranger.bundles(),
        ),
        leaf("two SPIFFE IDs", &|params| params.subject_alt_names.push(uri("spiffe://a.test/b"))),
        leaf("the critical extension 1.2.3.4", &|params| {
            params.custom_extensions = vec![extension(&[1, 2, 3, 4], true, vec![5, 0])];
        }),
        leaf("spiffe://b.test/x", &|params| {
            params.subject_alt_names = vec![uri("spiffe://b.test/x")];
        }),
        {
            // A P-256 key under the curve's number of secp256k1.
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
            let mut der = ca.leaf_for(&good(), &key).to_vec();
            let p256 = [0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
            let place = der.windows(8).position(|window| window == p256).unwrap();
            der[place + 7] = 6;
            Example("a key on another curve", vec![CertificateDer::from(der)], ca.bundles())
        },
    ]
}

#[test]
fn sec_id_3_every_error_has_an_example() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("refused");
    std::fs::create_dir_all(&folder).unwrap();
    let mut rows = Vec::new();
    let mut seen = BTreeSet::new();
    for Example(words, chain, bundles) in examples() {
        // What is wrong with an authority is said when it is loaded.
        let error = if words.starts_with("a bundle whose") {
            X509Authority::from_der(chain[0].clone()).map(drop).unwrap_err()
        } else {
            verify_svid(&chain, &bundles, at(NOW), Role::Client, algorithms()).unwrap_err()
        };
        let name = format!("{error:?}");
        let name = name.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
        let pem = chain.iter().map(|der| {
            let text = STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        });
        std::fs::write(folder.join(format!("{name}.pem")), pem.collect::<String>()).unwrap();
        rows.push(format!("| `{name}` | {} | {words} |", shown(&error)));
        assert!(seen.insert(name.clone()), "{name} has two examples");
    }
    let source = std::fs::read_to_string(root.join("mesh-identity/src/x509/error.rs")).unwrap();
    let body = source.split("pub enum SvidError {").nth(1).unwrap();
    let body = body.split("\n}").next().unwrap();
    let variants = body.lines().filter_map(|line| line.strip_prefix("    "));
    let variants = variants.filter(|line| line.starts_with(|c: char| c.is_ascii_uppercase()));
    let name = |line: &str| line.split(|c: char| !c.is_alphanumeric()).next().unwrap().to_owned();
    let variants: BTreeSet<String> = variants.map(name).collect();
    assert_eq!(seen, variants, "each variant has its example");
    rows.sort();
    let table = rows.join("\n");
    let page = std::fs::read_to_string(root.join("docs/refused-certificates.md")).unwrap();
    assert!(page.contains(&table), "docs/refused-certificates.md should have:\n{table}");
}

/// The message, without what an example cannot fix: the times that webpki prints.
fn shown(error: &SvidError) -> String {
    let text = error.to_string();
    text.split(" {").next().unwrap_or_default().to_owned()
}
