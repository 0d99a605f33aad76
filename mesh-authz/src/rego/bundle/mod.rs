//! OPA's bundles: modules and data in one archive, with a manifest and signatures.
//!
//! A [`Bundle`] is read whole or not at all, within [`BundleLimits`]; nothing is fetched here.
//! Absolute paths, `..`, links and anything that is no plain file are refused. Delta bundles are,
//! too: their signatures do not cover what they change, and they need a state to be applied to.

mod archive;
mod signature;

use std::fmt;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::log::LogPolicy;
use super::{RegoLoadError, RegoOptions, RegoPolicy};
pub use signature::{BundleKey, BundleVerification};

/// What a bundle may hold.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct BundleLimits {
    /// Bytes of all files together, decompressed.
    pub bytes: u64,
    /// Files.
    pub files: usize,
}

impl Default for BundleLimits {
    /// 32 MiB in 10,000 files. OPA takes 1 GiB for a single file.
    fn default() -> Self {
        Self { bytes: 32 << 20, files: 10_000 }
    }
}

/// What a bundle holds. `Debug` shows no data.
#[derive(Clone, PartialEq)]
pub struct Bundle {
    revision: String,
    roots: Vec<String>,
    modules: Vec<(String, String)>,
    data: Json,
}

/// Why a bundle is not taken. The one in force stays.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// It is no archive, or ends early.
    #[error("it is no gzip archive of files")]
    Archive,

    /// It changes another bundle instead of being one.
    #[error("it is a delta bundle, which signatures do not cover; ask for snapshots only")]
    Delta,

    /// A file is not what its name says.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        message: String,
    },

    /// A path leads out of the bundle, or is given twice.
    #[error("an entry has a path that is absolute, leads out, or is given twice")]
    Path,

    /// It is larger than allowed.
    #[error("it is larger than {bytes} bytes or has more than {files} files")]
    TooLarge {
        /// The most bytes.
        bytes: u64,
        /// The most files.
        files: usize,
    },

    /// A module or data lies outside of the bundle's roots.
    #[error("{file}: it is outside of the bundle's roots")]
    Roots {
        /// The file.
        file: String,
    },

    /// The signature is missing, does not verify, or does not cover the files.
    #[error("signature: {message}")]
    Signature {
        /// What is wrong.
        message: &'static str,
    },
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    revision: String,
    roots: Option<Vec<String>>,
    rego_version: Option<u8>,
    #[serde(default)]
    file_rego_versions: Map<String, Json>,
}

impl Bundle {
    /// Reads a bundle: gzip or plain tar.
    ///
    /// # Errors
    ///
    /// The first [`BundleError`]; signatures are checked before any file is looked into.
    pub fn read(
        bytes: &[u8],
        limits: BundleLimits,
        verification: Option<&BundleVerification>,
    ) -> Result<Self, BundleError> {
        Self::from_files(archive::files(bytes, limits)?, limits, verification)
    }

    /// Reads the files of a bundle's folder: each its path, relative and with slashes, and content.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub fn from_files(
        files: Vec<(String, Vec<u8>)>,
        limits: BundleLimits,
        verification: Option<&BundleVerification>,
    ) -> Result<Self, BundleError> {
        let mut sorted = std::collections::BTreeMap::new();
        let mut bytes = 0_u64;
        for (path, content) in files {
            bytes = bytes.saturating_add(u64::try_from(content.len()).unwrap_or(u64::MAX));
            if bytes > limits.bytes || sorted.len() >= limits.files {
                return Err(BundleError::TooLarge { bytes: limits.bytes, files: limits.files });
            }
            let path = archive::normal(&path).ok_or(BundleError::Path)?;
            if sorted.insert(path, content).is_some() {
                return Err(BundleError::Path);
            }
        }
        if sorted.contains_key("patch.json") {
            return Err(BundleError::Delta);
        }
        if let Some(verification) = verification {
            verification.check(&sorted)?;
        }
        read(&sorted)
    }

    /// The manifest's revision; empty without one.
    #[must_use]
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// The paths that the bundle owns, slashes between their parts; one empty path owns everything.
    #[must_use]
    pub fn roots(&self) -> &[String] {
        &self.roots
    }

    /// The modules, each a path and its text.
    #[must_use]
    pub fn modules(&self) -> &[(String, String)] {
        &self.modules
    }

    /// The data document.
    #[must_use]
    pub fn data(&self) -> &Json {
        &self.data
    }

    /// Puts two bundles together.
    ///
    /// # Errors
    ///
    /// When one owns what the other owns, too.
    pub fn join(mut self, other: Self) -> Result<Self, BundleError> {
        for root in &other.roots {
            if self.roots.iter().any(|own| within(root, own) || within(own, root)) {
                return Err(BundleError::Roots { file: root.clone() });
            }
        }
        self.roots.extend(other.roots);
        self.modules.extend(other.modules);
        merge(&mut self.data, other.data)
            .ok_or_else(|| BundleError::Roots { file: "data.json".to_owned() })?;
        if !self.revision.is_empty() && !other.revision.is_empty() {
            self.revision.push(',');
        }
        self.revision.push_str(&other.revision);
        Ok(self)
    }

    /// Compiles the policy, and the masks of the decision log if it defines any.
    ///
    /// # Errors
    ///
    /// As for [`RegoPolicy::compile`], for either of the two.
    pub fn compile(&self, options: RegoOptions) -> Result<(RegoPolicy, LogPolicy), RegoLoadError> {
        let modules: Vec<(&str, &str)> =
            self.modules.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let policy = RegoPolicy::compile(&modules, Some(self.data.clone()), options)?;
        let log = LogPolicy::compile(&modules, Some(&self.data))?;
        Ok((policy.with_revision(self.revision.clone()), log))
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle")
            .field("revision", &self.revision)
            .field("roots", &self.roots)
            .field("modules", &self.modules.len())
            .finish_non_exhaustive()
    }
}

type Files = std::collections::BTreeMap<String, Vec<u8>>;

fn read(files: &Files) -> Result<Bundle, BundleError> {
    let wrong = |file: &str, message: &str| BundleError::File {
        file: file.to_owned(),
        message: message.to_owned(),
    };
    let manifest = match files.get(".manifest") {
        Some(text) => Some(
            serde_json::from_slice::<Manifest>(text)
                .map_err(|_detail| wrong(".manifest", "it is no manifest"))?,
        ),
        None => None,
    };
    let version = manifest.as_ref().and_then(|manifest| manifest.rego_version).unwrap_or(1);
    let versions = manifest.iter().flat_map(|manifest| manifest.file_rego_versions.values());
    if version != 1 || versions.into_iter().any(|version| *version != 1) {
        return Err(wrong(".manifest", "only rego_version 1 is read; convert with opa fmt"));
    }
    let roots = manifest.as_ref().and_then(|manifest| manifest.roots.clone());
    let roots: Vec<String> = roots.unwrap_or_else(|| vec![String::new()]);
    let roots: Vec<String> = roots.iter().map(|root| root.trim_matches('/').to_owned()).collect();
    let owned = |path: &str| roots.iter().any(|root| within(path, root));
    let (mut modules, mut data) = (Vec::new(), Json::Object(Map::new()));
    for (path, content) in files {
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        if extension == "rego" {
            let text = str::from_utf8(content).map_err(|_detail| wrong(path, "it is no UTF-8"))?;
            let package = package_of(text).ok_or_else(|| wrong(path, "it names no package"))?;
            if !owned(&package) {
                return Err(BundleError::Roots { file: path.clone() });
            }
            modules.push((path.clone(), text.to_owned()));
        } else if name == "data.json" {
            let value: Json =
                serde_json::from_slice(content).map_err(|_detail| wrong(path, "it is no JSON"))?;
            let value = folder
                .rsplit('/')
                .filter(|part| !part.is_empty())
                .fold(value, |v, part| Json::Object(Map::from_iter([(part.to_owned(), v)])));
            if !leaves_owned(&value, "", &roots) {
                return Err(BundleError::Roots { file: path.clone() });
            }
            merge(&mut data, value).ok_or_else(|| wrong(path, "other data stands there"))?;
        } else if ["data.yaml", "data.yml"].contains(&name) {
            return Err(wrong(path, "data is read as JSON only; convert it to data.json"));
        } else if extension == "wasm" {
            return Err(wrong(path, "WASM is not evaluated here"));
        }
    }
    let revision = manifest.map(|manifest| manifest.revision).unwrap_or_default();
    Ok(Bundle { revision, roots, modules, data })
}

/// Whether a path lies at a root or below it.
fn within(path: &str, root: &str) -> bool {
    let rest = path.strip_prefix(root);
    root.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether everything in the data lies within the roots; a map above a root is only the way to it.
fn leaves_owned(value: &Json, path: &str, roots: &[String]) -> bool {
    if roots.iter().any(|root| within(path, root)) {
        return true;
    }
    let leads = path.is_empty() || roots.iter().any(|root| within(root, path));
    match value {
        Json::Object(entries) => {
            leads
                && entries.iter().all(|(name, value)| {
                    let name = one_part(name);
                    let path = if path.is_empty() { name } else { format!("{path}/{name}") };
                    leaves_owned(value, &path, roots)
                })
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Array(_) => false,
    }
}

/// A name as one part of a path: with a slash in it, it would look like two, and `a["b/c"]` like
/// what the root `a/b` owns.
fn one_part(name: &str) -> String {
    name.replace('/', "\u{1}")
}

/// The package of a module, slashes between its parts. Its own tokens say it, not a pattern:
/// comments and strings could hold another one.
fn package_of(text: &str) -> Option<String> {
    use regorus::unstable::{Lexer, Source, Token, TokenKind};
    let source = Source::from_contents("bundle".to_owned(), text.to_owned()).ok()?;
    let mut lexer = Lexer::new(&source);
    let Token(TokenKind::Ident, first) = lexer.next_token().ok()? else { return None };
    if first.text() != "package" {
        return None;
    }
    let line = first.line;
    let mut path = Vec::new();
    while let Ok(Token(kind, span)) = lexer.next_token() {
        match (kind, span.text()) {
            // What it stands for is somebody else's to say: here it would look like another name.
            (TokenKind::String, name) if name.contains('\\') => return None,
            (TokenKind::Ident | TokenKind::String | TokenKind::RawString, name)
                if span.line == line =>
            {
                path.push(one_part(name));
            }
            (TokenKind::Symbol, "." | "[" | "]") if span.line == line => {}
            _ => break,
        }
    }
    (!path.is_empty()).then(|| path.join("/"))
}

/// Puts a document into another; nothing is overwritten.
fn merge(into: &mut Json, other: Json) -> Option<()> {
    match (into, other) {
        (Json::Object(into), Json::Object(other)) => {
            for (key, value) in other {
                match into.get_mut(&key) {
                    Some(held) => merge(held, value)?,
                    None => {
                        into.insert(key, value);
                    }
                }
            }
            Some(())
        }
        _ => None,
    }
}
