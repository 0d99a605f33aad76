//! Keys as OPA takes them: a certificate or public key in PEM, a JWK, or a set of them.
//!
//! As in OPA, one key of a set that cannot be read makes the set unreadable: a token that names it
//! must not be judged by the others.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value as Json};

use super::Fault;
use super::key::{Algorithm, Key};
use crate::rego::input::MAX_INPUT_BYTES;

/// The most keys of a set that are tried.
const MAX_KEYS: usize = 32;

/// A key with what its set says of it.
pub(in crate::rego) struct SetKey {
    pub(super) id: Option<String>,
    /// The one algorithm that it is for.
    pub(super) algorithm: Option<String>,
    pub(in crate::rego) key: Key,
}

/// The keys of a text: PEM, or JSON of a key or a set.
pub(in crate::rego) fn keys(text: &str) -> Result<Vec<SetKey>, Fault> {
    if text.len() > MAX_INPUT_BYTES {
        return Err(Fault::TooLarge);
    }
    if let Some(block) = Pem::first(text) {
        let key = block.key().ok_or(Fault::Failed)?;
        return Ok(vec![SetKey { id: None, algorithm: None, key }]);
    }
    let json: Map<String, Json> = serde_json::from_str(text).map_err(|_no_json| Fault::Failed)?;
    let entries = match json.get("keys") {
        Some(Json::Array(entries)) => entries.iter().map(Json::as_object).collect(),
        Some(_) => None,
        None => Some(vec![&json]),
    };
    let entries: Vec<&Map<String, Json>> = entries.ok_or(Fault::Failed)?;
    if entries.len() > MAX_KEYS {
        return Err(Fault::TooLarge);
    }
    let keys = entries.into_iter().map(|entry| jwk(entry).ok_or(Fault::Failed));
    let is_for_signatures = |key: &Result<SetKey, Fault>| match key {
        Ok(SetKey { algorithm: Some(name), .. }) => Algorithm::of(name).is_some(),
        Ok(SetKey { algorithm: None, .. }) | Err(_) => true,
    };
    keys.filter(is_for_signatures).collect()
}

/// Algorithms of keys that sign nothing here; such a key is passed over. Any other unknown name
/// makes its key unreadable.
const OTHER_ALGORITHMS: [&str; 21] = [
    "A128GCMKW",
    "A128KW",
    "A192GCMKW",
    "A192KW",
    "A256GCMKW",
    "A256KW",
    "ECDH-ES",
    "ECDH-ES+A128KW",
    "ECDH-ES+A192KW",
    "ECDH-ES+A256KW",
    "ES256K",
    "PBES2-HS256+A128KW",
    "PBES2-HS384+A192KW",
    "PBES2-HS512+A256KW",
    "RSA-OAEP",
    "RSA-OAEP-256",
    "RSA-OAEP-384",
    "RSA-OAEP-512",
    "RSA1_5",
    "dir",
    "none",
];

/// A key of a set; nothing when it cannot be read.
fn jwk(entry: &Map<String, Json>) -> Option<SetKey> {
    let text = |name: &str| match entry.get(name) {
        None => Some(None),
        Some(value) => value.as_str().map(|text| Some(text.to_owned())),
    };
    let (id, algorithm) = (text("kid")?, text("alg")?);
    let is_known = |name: &str| Algorithm::of(name).is_some() || OTHER_ALGORITHMS.contains(&name);
    if !algorithm.as_deref().is_none_or(is_known) {
        return None;
    }
    let member = |name: &str| {
        let text = entry.get(name).and_then(Json::as_str)?;
        URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok().filter(|bytes| !bytes.is_empty())
    };
    let point = |size: usize| {
        let (x, y) = (member("x")?, member("y")?);
        (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
    };
    let key = match (entry.get("kty")?.as_str()?, entry.get("crv").and_then(Json::as_str)) {
        ("RSA", _) => Key::Rsa { n: member("n")?, e: member("e")? },
        ("EC", Some("P-256")) => Key::P256(point(32)?),
        ("EC", Some("P-384")) => Key::P384(point(48)?),
        ("EC", Some("P-521")) => Key::p521(&point(66)?)?,
        ("OKP", Some("Ed25519")) => Key::Ed25519(member("x")?),
        ("OKP", Some("X25519")) => Key::Unusable,
        ("oct", _) => Key::Secret(member("k")?),
        _ => return None,
    };
    // A private key is not for verifying.
    let key = if entry.contains_key("d") { Key::Unusable } else { key };
    Some(SetKey { id, algorithm, key })
}

/// A PEM block.
struct Pem<'t> {
    label: &'t str,
    der: Vec<u8>,
    /// What follows it.
    rest: &'t str,
}

impl<'t> Pem<'t> {
    /// The first block of a text, whatever stands before it; nothing when it is none.
    fn first(text: &'t str) -> Option<Self> {
        const BEGIN: &str = "-----BEGIN ";
        let rest = match text.strip_prefix(BEGIN) {
            Some(rest) => rest,
            None => text.split_once("\n-----BEGIN ")?.1,
        };
        let (label, mut rest) = rest.split_once('\n')?;
        let label = label.trim_end().strip_suffix("-----")?;
        // Lines with a colon are headers.
        while let Some((_, after)) = rest.split_once('\n').filter(|(line, _)| line.contains(':')) {
            rest = after;
        }
        let end = format!("-----END {label}-----");
        let (body, after) = match rest.strip_prefix(&end) {
            Some(after) => ("", after),
            None => rest.split_once(&format!("\n{end}"))?,
        };
        let (line, rest) = after.split_once('\n').unwrap_or((after, ""));
        let der = STANDARD.decode(body.split_ascii_whitespace().collect::<String>()).ok()?;
        line.trim().is_empty().then_some(Self { label, der, rest })
    }

    /// The public key in it: a certificate's, or what is one.
    fn key(&self) -> Option<Key> {
        if !self.rest.is_empty() {
            return None;
        }
        let outer = Der(&self.der).sequence()?;
        match self.label {
            "CERTIFICATE" => {
                let mut tbs = Der(Der(outer).sequence()?);
                // version (explicit, optional), serial, signature, issuer, validity, subject
                let (tag, _) = tbs.any()?;
                for _ in 0..(if tag == 0xA0 { 5 } else { 4 }) {
                    tbs.any()?;
                }
                public_key(Der(tbs.sequence()?))
            }
            "PUBLIC KEY" => public_key(Der(outer)),
            _ => None,
        }
    }
}

/// The content of a SubjectPublicKeyInfo (RFC 5280 section 4.1).
fn public_key(mut info: Der<'_>) -> Option<Key> {
    let mut algorithm = Der(info.sequence()?);
    let (_, name) = algorithm.any()?;
    let curve = algorithm.any().map(|(_, curve)| curve).unwrap_or_default();
    let (_, bits) = info.any()?;
    let key = bits.strip_prefix(&[0])?.to_vec();
    match (name, curve) {
        // rsaEncryption
        ([0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 1], _) => Some(Key::RsaDer(key)),
        // id-ecPublicKey with prime256v1 or secp384r1
        ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 2, 1], [0x2A, 0x86, 0x48, 0xCE, 0x3D, 3, 1, 7]) => {
            Some(Key::P256(key))
        }
        ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 2, 1], [0x2B, 0x81, 4, 0, 0x22]) => Some(Key::P384(key)),
        // secp521r1
        ([0x2A, 0x86, 0x48, 0xCE, 0x3D, 2, 1], [0x2B, 0x81, 4, 0, 0x23]) => Key::p521(&key),
        // id-Ed25519
        ([0x2B, 0x65, 0x70], _) => Some(Key::Ed25519(key)),
        _ => None,
    }
}

/// What is left of a DER text.
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next element: its tag and content.
    fn any(&mut self) -> Option<(u8, &'d [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, rest) = rest.split_first()?;
        let (length, rest) = if *first < 0x80 {
            (usize::from(*first), rest)
        } else {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            if bytes.is_empty() || bytes.len() > 4 {
                return None;
            }
            let length = bytes.iter().try_fold(0_usize, |length, byte| {
                length.checked_mul(256)?.checked_add(usize::from(*byte))
            });
            (length?, rest)
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((*tag, content))
    }

    fn sequence(&mut self) -> Option<&'d [u8]> {
        self.any().filter(|(tag, _)| *tag == 0x30).map(|(_, content)| content)
    }
}
