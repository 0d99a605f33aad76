//! Key sets from mounted files, for services that reach no issuer.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_authn::request::{KeySource, MAX_KEY_SET_LEN, RefreshPolicy};

use super::keys::{FetchError, FetchFuture, KeyFetcher};

/// Seconds between two looks at a file.
const LOOK_EVERY: u64 = 5;

/// Key sets that lie in files, such as a mounted ConfigMap. Policies keep the `jwksUri` or issuer
/// that they have for Istio; the program says which of them a file stands for.
///
/// A file is read every five seconds, through symbolic links as Kubernetes swaps them. One that is
/// gone, half written or no key set changes nothing: the last good keys stay until the policy's age
/// limit, and [`crate::Mesh::key_sets`] tells ([SEC-JWT-14]). Whatever no file stands for is
/// fetched by the fetcher given to [`KeyFiles::or_fetch`], or refused.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use mesh_tower::KeyFiles;
///
/// # fn keep(mesh: mesh_tower::Mesh) {
/// let keys = KeyFiles::new()
///     .url("https://idp.example/keys", "/etc/jwks/idp.json")
///     .issuer("https://accounts.example", "/etc/jwks/accounts.json");
/// tokio::spawn(mesh.keep_keys_fresh(Arc::new(keys), Default::default()));
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct KeyFiles {
    files: BTreeMap<KeySource, PathBuf>,
    others: Option<Arc<dyn KeyFetcher>>,
}

impl KeyFiles {
    /// No file yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// This file has the key set of rules with this `jwksUri`.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.files.insert(KeySource::Url(url.into()), file.into());
        self
    }

    /// This file has the key set of rules that name this issuer and no key set.
    #[must_use]
    pub fn issuer(mut self, issuer: impl Into<String>, file: impl Into<PathBuf>) -> Self {
        self.files.insert(KeySource::Discovery(issuer.into()), file.into());
        self
    }

    /// What fetches the other key sets.
    #[must_use]
    pub fn or_fetch(mut self, others: Arc<dyn KeyFetcher>) -> Self {
        self.others = Some(others);
        self
    }
}

impl KeyFetcher for KeyFiles {
    fn fetch<'f>(&'f self, url: &'f str, limit: Duration) -> FetchFuture<'f> {
        match &self.others {
            Some(others) => others.fetch(url, limit),
            None => Box::pin(std::future::ready(Err(FetchError::NoFile))),
        }
    }

    fn fetch_keys<'f>(&'f self, source: &'f KeySource, limit: Duration) -> FetchFuture<'f> {
        let Some(path) = self.files.get(source) else {
            return match &self.others {
                Some(others) => others.fetch_keys(source, limit),
                None => Box::pin(std::future::ready(Err(FetchError::NoFile))),
            };
        };
        Box::pin(async move {
            // A mount may hang, which must not stop the runtime.
            let reading = tokio::task::spawn_blocking({
                let path = path.clone();
                move || read(&path)
            });
            match tokio::time::timeout(limit, reading).await {
                Ok(Ok(Ok(bytes))) => Ok(bytes),
                Ok(Ok(Err(error))) => Err(FetchError::File { path: path.clone(), error }),
                Ok(Err(_panicked)) => Err(FetchError::Fault),
                Err(_elapsed) => Err(FetchError::Deadline),
            }
        })
    }

    fn refresh_policy(&self, source: &KeySource, policy: RefreshPolicy) -> RefreshPolicy {
        if !self.files.contains_key(source) {
            return match &self.others {
                Some(others) => others.refresh_policy(source, policy),
                None => policy,
            };
        }
        let mut often = policy;
        often.interval = policy.interval.min(LOOK_EVERY);
        often.cool_down = policy.cool_down.min(often.interval);
        often
    }
}

/// Reads a regular file of at most the length of a key set: no device, no pipe.
fn read(path: &Path) -> io::Result<Bytes> {
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let most = u64::try_from(MAX_KEY_SET_LEN).unwrap_or(u64::MAX);
    let mut bytes = Vec::new();
    File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_KEY_SET_LEN {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than a key set may be"));
    }
    Ok(bytes.into())
}
