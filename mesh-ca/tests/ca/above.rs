//! [SEC-CA-4] The way above an authority is verified once; nothing that matters is remembered by it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use mesh_ca::{Authority, CaError, PluggedIn, SignError, Signer};
use rcgen::{Issuer, KeyPair, PublicKeyData as _, SigningKey as _, date_time_ymd};
use rustls_pki_types::CertificateDer;

use crate::issue::verify;
use crate::service::{ca_params, pem};
use crate::{HOUR, at, domain, id, now};

/// Above a signing authority: a root, and one between them that ends before both.
struct Above {
    root: CertificateDer<'static>,
    middle: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// 2027-01-10 and 2027-02-01, the days between which the one in the middle is valid.
const MIDDLE: (u64, u64) = (1_799_539_200, 1_801_440_000);

fn above() -> Above {
    let (root_key, middle_key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = ca_params("root").self_signed(&root_key).unwrap().der().clone();
    let mut params = ca_params("middle");
    params.not_before = date_time_ymd(2027, 1, 10);
    params.not_after = date_time_ymd(2027, 2, 1);
    let root_issuer = Issuer::new(ca_params("root"), root_key);
    let middle = params.signed_by(&middle_key, &root_issuer).unwrap().der().clone();
    Above { root, middle, issuer: Issuer::new(params, middle_key) }
}

impl Above {
    fn plug_in(&self, key: &KeyPair, signer: Box<dyn Signer>) -> Authority {
        let own = ca_params("own").signed_by(key, &self.issuer).unwrap();
        let [own, middle, root] =
            [own.der(), &self.middle, &self.root].map(|der| pem("CERTIFICATE", der));
        let files = PluggedIn {
            certificate: own.as_bytes(),
            key: b"",
            chain: middle.as_bytes(),
            roots: root.as_bytes(),
        };
        Authority::from_plugged_in_with(&domain(), &files, signer, now()).unwrap()
    }
}

const HONEST: u8 = 0;
const GARBAGE: u8 = 1;
const EMPTY: u8 = 2;
const OF_ANOTHER_KEY: u8 = 3;
const OF_ANOTHER_MESSAGE: u8 = 4;

/// A key in other hands, which may begin to answer something else.
struct Hands {
    key: KeyPair,
    public: Vec<u8>,
    other: KeyPair,
    does: Arc<AtomicU8>,
}

impl Signer for Hands {
    fn public_key(&self) -> &[u8] {
        &self.public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, SignError> {
        let signed = match self.does.load(Ordering::SeqCst) {
            GARBAGE => return Ok(vec![7; 70]),
            EMPTY => return Ok(Vec::new()),
            OF_ANOTHER_KEY => self.other.sign(message),
            OF_ANOTHER_MESSAGE => self.key.sign(b"something else"),
            _ => self.key.sign(message),
        };
        signed.map_err(|_detail| SignError)
    }
}

fn in_other_hands(above: &Above) -> (Authority, Arc<AtomicU8>) {
    let key = KeyPair::generate().unwrap();
    let does = Arc::new(AtomicU8::new(HONEST));
    let hands = Hands {
        public: key.subject_public_key_info(),
        key: KeyPair::try_from(key.serialized_der()).unwrap(),
        other: KeyPair::generate().unwrap(),
        does: Arc::clone(&does),
    };
    (above.plug_in(&key, Box::new(hands)), does)
}

/// That it signed well before, and that its way up has been verified, helps no signer that answers
/// something else; and it is not held against it afterwards.
#[test]
fn sec_ca_4_every_signature_is_verified() {
    let (authority, does) = in_other_hands(&above());
    for answer in [GARBAGE, EMPTY, OF_ANOTHER_KEY, OF_ANOTHER_MESSAGE] {
        does.store(HONEST, Ordering::SeqCst);
        let svid = authority.issue_svid(&id(), HOUR, now()).unwrap();
        verify(svid.chain(), &authority, &id(), now());
        does.store(answer, Ordering::SeqCst);
        let got = authority.issue_svid(&id(), HOUR, now());
        assert!(matches!(got, Err(CaError::Issued(_))), "{answer}: {got:?}");
    }
}

/// Nothing is issued below a certificate that has ended or is not yet valid, whatever was verified
/// while it was.
#[test]
fn sec_ca_4_an_issuer_above_that_has_ended_is_noticed() {
    let (authority, _does) = in_other_hands(&above());
    let issue = |when| authority.issue_svid(&id(), HOUR, at(when));
    let (first, last) = MIDDLE;
    for when in [first, last] {
        let svid = issue(when).unwrap();
        verify(svid.chain(), &authority, &id(), at(when));
        assert_eq!(svid.chain().len(), 3);
    }
    for when in [first - 1, last + 1, last + 30 * 86_400] {
        let got = issue(when);
        assert!(matches!(got, Err(CaError::Issued(_))), "{when}: {got:?}");
    }
    // And when the clock is right again, it goes on.
    issue(last).unwrap();
}
