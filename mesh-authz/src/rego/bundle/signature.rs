//! `.signatures.json`: one token that lists every file with its digest.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{BundleError, Files};
use crate::rego::builtins::jwt::{Key, keys, verify_compact};

/// The file that holds the signatures.
const FILE: &str = ".signatures.json";

/// How deep a structured file may nest.
const MAX_DEPTH: usize = 64;

/// Whose signature a bundle must have. A bundle without one is then refused.
#[derive(Debug)]
pub struct BundleVerification {
    keys: BTreeMap<String, BundleKey>,
    id: Option<String>,
    scope: Option<String>,
}

/// A key with the algorithm that it is for: a token never chooses one.
pub struct BundleKey {
    keys: Vec<Key>,
    algorithm: String,
}

impl BundleKey {
    /// A public key or certificate in PEM, or a JWK, and its algorithm, such as `RS256`.
    ///
    /// # Errors
    ///
    /// When the text is no such key.
    pub fn public(text: &str, algorithm: impl Into<String>) -> Result<Self, BundleError> {
        let wrong = BundleError::Signature { message: "the key cannot be read" };
        let keys = keys(text).map_err(|_detail| wrong)?;
        Ok(Self {
            keys: keys.into_iter().map(|set| set.key).collect(),
            algorithm: algorithm.into(),
        })
    }

    /// A secret, and its algorithm, such as `HS256`.
    #[must_use]
    pub fn secret(secret: impl Into<Vec<u8>>, algorithm: impl Into<String>) -> Self {
        Self { keys: vec![Key::Secret(secret.into())], algorithm: algorithm.into() }
    }
}

impl fmt::Debug for BundleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BundleKey").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Signatures {
    signatures: Vec<String>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Payload {
    files: Vec<Listed>,
    keyid: Option<String>,
    scope: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    hash: String,
    algorithm: String,
}

impl BundleVerification {
    /// Demands a signature by one of the keys, each with its id.
    #[must_use]
    pub fn new(keys: impl IntoIterator<Item = (String, BundleKey)>) -> Self {
        Self { keys: keys.into_iter().collect(), id: None, scope: None }
    }

    /// The id of the only key that counts (`keyid` of OPA's configuration).
    #[must_use]
    pub fn with_key_id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The `scope` that the signature must name.
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scope = Some(scope.into());
        self
    }

    pub(super) fn check(&self, files: &Files) -> Result<(), BundleError> {
        let wrong = |message| BundleError::Signature { message };
        let text = files.get(FILE).ok_or(wrong("the bundle is not signed"))?;
        let signatures: Signatures = serde_json::from_slice(text)
            .map_err(|_detail| wrong(".signatures.json cannot be read"))?;
        let [token] = signatures.signatures.as_slice() else {
            return Err(wrong("there must be one signature"));
        };
        let mut parts = token.split('.');
        let (header, payload) =
            (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let header: Header = part(header).ok_or(wrong("the token's header cannot be read"))?;
        let payload: Payload = part(payload).ok_or(wrong("the token's payload cannot be read"))?;
        // Configured, else the header's, else the payload's: they only pick one of our keys.
        let id = self.id.as_ref().or(header.kid.as_ref()).or(payload.keyid.as_ref());
        let key = id.and_then(|id| self.keys.get(id)).ok_or(wrong("its key is not known"))?;
        if header.alg != key.algorithm || !verify_compact(token, &key.algorithm, &key.keys) {
            return Err(wrong("it does not verify"));
        }
        if self.scope.is_some() && self.scope != payload.scope {
            return Err(wrong("its scope is another one"));
        }
        let mut listed = BTreeMap::new();
        for file in &payload.files {
            let name = file.name.strip_prefix('/').unwrap_or(&file.name);
            if listed.insert(name, file).is_some() {
                return Err(wrong("it lists a file twice"));
            }
        }
        let signed = files.iter().filter(|(path, _)| *path != FILE);
        if listed.len() != signed.clone().count() {
            return Err(wrong("it does not list the files that are there"));
        }
        for (path, content) in signed {
            let file = listed.get(path.as_str());
            let file = file.ok_or(wrong("it does not list the files that are there"))?;
            let algorithm = match file.algorithm.as_str() {
                "SHA-256" => &digest::SHA256,
                "SHA-384" => &digest::SHA384,
                "SHA-512" => &digest::SHA512,
                "SHA-512-256" => &digest::SHA512_256,
                _ => return Err(wrong("it uses a digest that is not SHA-2")),
            };
            let canonical = canonical(path, content).ok_or(wrong("a file cannot be read"))?;
            let digest = digest::digest(algorithm, canonical.as_deref().unwrap_or(content));
            if hex(digest.as_ref()) != file.hash {
                return Err(wrong("a file is not the one that was signed"));
            }
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

fn part<T: for<'d> Deserialize<'d>>(text: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Structured files are signed in a form of their own: sorted keys, no spaces. `Some(None)` for
/// others.
#[expect(clippy::option_option, reason = "no such form, and a form that cannot be made")]
fn canonical(path: &str, content: &[u8]) -> Option<Option<Vec<u8>>> {
    let name = path.rsplit('/').next().unwrap_or(path);
    if !matches!(name, "data.json" | ".manifest") {
        return Some(None);
    }
    let raw: &RawValue = serde_json::from_slice(content).ok()?;
    let mut out = Vec::new();
    write(raw, MAX_DEPTH, &mut out)?;
    Some(Some(out))
}

/// Numbers keep the digits they were written with, as Go's `json.Number` does.
fn write(raw: &RawValue, depth: usize, out: &mut Vec<u8>) -> Option<()> {
    let text = raw.get().trim();
    let below = || depth.checked_sub(1);
    match text.as_bytes().first()? {
        b'{' => {
            let depth = below()?;
            let entries: BTreeMap<String, &RawValue> = serde_json::from_str(text).ok()?;
            out.push(b'{');
            for (at, (key, value)) in entries.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend(string(key)?.bytes());
                out.push(b':');
                write(value, depth, out)?;
            }
            out.push(b'}');
        }
        b'[' => {
            let depth = below()?;
            let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write(item, depth, out)?;
            }
            out.push(b']');
        }
        b'"' => {
            let value: String = serde_json::from_str(text).ok()?;
            out.extend(string(&value)?.bytes());
        }
        _ => out.extend(text.bytes()),
    }
    Some(())
}

/// A string as Go's encoder writes it without HTML escaping.
fn string(text: &str) -> Option<String> {
    let text = serde_json::to_string(text).ok()?;
    Some(text.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029"))
}
