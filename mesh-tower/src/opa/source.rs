//! Where a bundle lies, and how it is looked at.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use http::{Method, StatusCode};
use mesh_authz::rego::{Bundle, BundleError, BundleLimits, BundleVerification, RegoLoadError};
use ring::digest::{Context, SHA256};

use super::service::OpaService;
use crate::source::FetchError;

/// Says which bundles are wanted, and how long to wait for one (RFC 7240).
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The content type with which a service says that it can keep a request waiting.
const LONG_POLLING: &str = "application/vnd.openpolicyagent.bundles";

/// How often a file or folder is looked at, unless told otherwise.
const LOCAL_POLLING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(10));

/// How often a service is asked, unless told otherwise: as OPA does.
const SERVICE_POLLING: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(120));

/// How deep folders may nest.
const MAX_FOLDERS: usize = 32;

/// Where a bundle lies, how often to look, and what it may be.
#[derive(Clone, Debug)]
pub struct BundleSource {
    place: Place,
    limits: BundleLimits,
    verification: Option<Arc<BundleVerification>>,
    pub(super) polling: (Duration, Duration),
    wait: Option<Duration>,
}

#[derive(Clone, Debug)]
enum Place {
    File(PathBuf),
    Folder(PathBuf),
    Service(OpaService, String),
}

/// Why a bundle is not in force. The last good one stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleSourceError {
    /// The bundle itself is refused.
    #[error("bundle: {0}")]
    Bundle(#[from] BundleError),

    /// The service could not be asked, or did not answer with a bundle.
    #[error("service: {0}")]
    Fetch(#[from] FetchError),

    /// A file could not be read.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },

    /// The policy does not compile.
    #[error("policy: {0}")]
    Load(#[from] RegoLoadError),

    /// Compiling took longer than it may ([SEC-REGO-6]).
    #[error("the policy is not compiled in time")]
    LoadDeadline,

    /// The same bundle was refused before.
    #[error("it is the bundle that was refused before: {0}")]
    Refused(String),

    /// The folder changed while it was read; it is read again.
    #[error("the folder changed while it was read")]
    Unsettled,
}

/// What a look found.
pub(super) struct Look {
    pub(super) found: Found,
    /// The service keeps the next request waiting, so it is asked again at once.
    pub(super) at_once: bool,
}

pub(super) enum Found {
    Unchanged,
    New(Box<Bundle>, Version),
}

/// Names what a bundle was read from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Version {
    /// As the service gave it; cleared when the bundle was refused.
    pub(super) etag: Option<HeaderValue>,
    pub(super) digest: [u8; 32],
}

impl BundleSource {
    /// A bundle in a file: `tar.gz` or `tar`.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self::new(Place::File(path.into()), LOCAL_POLLING)
    }

    /// A bundle's files in a folder, as Kubernetes mounts a ConfigMap or a checkout has them.
    ///
    /// Entries whose names begin with two dots are left out: Kubernetes keeps its versions there.
    /// Symbolic links to files are followed, links to folders are refused. The folder is read
    /// twice and taken when nothing changed in between.
    #[must_use]
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self::new(Place::Folder(path.into()), LOCAL_POLLING)
    }

    /// A bundle of a service, at a path such as `bundles/authz.tar.gz`.
    #[must_use]
    pub fn service(service: OpaService, resource: impl Into<String>) -> Self {
        Self::new(Place::Service(service, resource.into()), SERVICE_POLLING)
    }

    fn new(place: Place, polling: (Duration, Duration)) -> Self {
        let (limits, verification) = (BundleLimits::default(), None);
        Self { place, limits, verification, polling, wait: None }
    }

    /// How large the bundle may be.
    #[must_use]
    pub fn with_limits(mut self, limits: BundleLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Whose signature the bundle must have.
    #[must_use]
    pub fn with_verification(mut self, verification: Arc<BundleVerification>) -> Self {
        self.verification = Some(verification);
        self
    }

    /// How long to rest between two looks, picked at random between the two
    /// (`polling.min_delay_seconds`, `max_delay_seconds`). After a failure the rest begins with
    /// 100 ms and doubles up to `max`.
    #[must_use]
    pub fn with_polling(mut self, min: Duration, max: Duration) -> Self {
        self.polling = (min, max.max(min));
        self
    }

    /// Lets the service keep a request waiting so long until there is a new bundle
    /// (`polling.long_polling_timeout_seconds`). A service that cannot do so is polled.
    #[must_use]
    pub fn with_long_polling(mut self, wait: Duration) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Looks whether there is another version than the last one.
    pub(super) async fn look(&self, last: Option<&Version>) -> Result<Look, BundleSourceError> {
        let source = self.clone();
        let last = last.cloned();
        match &self.place {
            Place::File(_) | Place::Folder(_) => {
                let looked = tokio::task::spawn_blocking(move || source.look_local(last.as_ref()));
                // A panic while reading is no bundle.
                let found = looked.await.map_err(|_panic| BundleError::Archive)??;
                Ok(Look { found, at_once: false })
            }
            Place::Service(service, resource) => self.ask(service, resource, last.as_ref()).await,
        }
    }

    async fn ask(
        &self,
        service: &OpaService,
        resource: &str,
        last: Option<&Version>,
    ) -> Result<Look, BundleSourceError> {
        // Deltas are not asked for: signatures do not cover them.
        let wait = self.wait.map(|wait| wait.as_secs()).filter(|wait| *wait > 0);
        let prefer = wait.map_or_else(
            || "modes=snapshot".to_owned(),
            |seconds| format!("modes=snapshot;wait={seconds}"),
        );
        let prefer = HeaderValue::from_str(&prefer).map_err(|_detail| FetchError::Url)?;
        let mut headers = vec![(PREFER, prefer)];
        let etag = last.and_then(|last| last.etag.clone());
        headers.extend(etag.iter().map(|etag| (IF_NONE_MATCH, etag.clone())));
        let max = usize::try_from(self.limits.bytes).unwrap_or(usize::MAX);
        let wait = self.wait.unwrap_or_default();
        let sent = service.send(Method::GET, resource, &headers, Bytes::new(), wait, max).await?;
        let (parts, body) = sent.into_parts();
        let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let at_once = self.wait.is_some() && content_type.trim() == LONG_POLLING;
        match parts.status {
            StatusCode::NOT_MODIFIED if etag.is_some() => {
                Ok(Look { found: Found::Unchanged, at_once })
            }
            StatusCode::OK => {
                let version =
                    Version { etag: parts.headers.get(ETAG).cloned(), digest: digest(&[&body]) };
                if last.is_some_and(|last| *last == version) {
                    return Ok(Look { found: Found::Unchanged, at_once });
                }
                let source = self.clone();
                let read = tokio::task::spawn_blocking(move || source.read(&body));
                let bundle = read.await.map_err(|_panic| BundleError::Archive)??;
                Ok(Look { found: Found::New(Box::new(bundle), version), at_once })
            }
            other => Err(FetchError::Status(other).into()),
        }
    }

    fn look_local(&self, last: Option<&Version>) -> Result<Found, BundleSourceError> {
        match &self.place {
            Place::File(path) => {
                let bytes = read_file(path, self.limits.bytes)?;
                let version = Version { etag: None, digest: digest(&[&bytes]) };
                if last == Some(&version) {
                    return Ok(Found::Unchanged);
                }
                Ok(Found::New(Box::new(self.read(&bytes)?), version))
            }
            Place::Folder(path) => {
                let files = read_folder(path, self.limits)?;
                let version = Version { etag: None, digest: digest_of(&files) };
                if last == Some(&version) {
                    return Ok(Found::Unchanged);
                }
                if digest_of(&read_folder(path, self.limits)?) != version.digest {
                    return Err(BundleSourceError::Unsettled);
                }
                let verification = self.verification.as_deref();
                let bundle = Bundle::from_files(files, self.limits, verification)?;
                Ok(Found::New(Box::new(bundle), version))
            }
            Place::Service(..) => Ok(Found::Unchanged),
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<Bundle, BundleError> {
        Bundle::read(bytes, self.limits, self.verification.as_deref())
    }
}

/// Files by their paths within a folder.
type Files = Vec<(String, Vec<u8>)>;

fn digest(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        context.update(part);
    }
    let mut digest = [0; 32];
    digest.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
    digest
}

fn digest_of(files: &Files) -> [u8; 32] {
    let parts: Vec<&[u8]> =
        files.iter().flat_map(|(path, content)| [path.as_bytes(), content.as_slice()]).collect();
    digest(&parts)
}

/// A file, and an error when it has more bytes than allowed.
fn read_file(path: &Path, max: u64) -> Result<Vec<u8>, BundleSourceError> {
    let failed = |error| BundleSourceError::File { path: path.to_owned(), error };
    // A pipe would keep us waiting for ever.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no plain file")));
    }
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(failed)?;
    file.take(max.saturating_add(1)).read_to_end(&mut content).map_err(failed)?;
    if u64::try_from(content.len()).unwrap_or(u64::MAX) > max {
        return Err(failed(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(content)
}

/// All files below a folder, sorted.
fn read_folder(root: &Path, limits: BundleLimits) -> Result<Files, BundleSourceError> {
    let mut files = Files::new();
    let mut left = limits.bytes;
    let mut pending = vec![(root.to_owned(), String::new(), 0_usize)];
    while let Some((folder, prefix, depth)) = pending.pop() {
        let failed = |error| BundleSourceError::File { path: folder.clone(), error };
        for entry in fs::read_dir(&folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let failed = |error| BundleSourceError::File { path: path.clone(), error };
            let name = entry.file_name().into_string();
            let name = name.map_err(|_name| failed(io::ErrorKind::InvalidData.into()))?;
            if name.starts_with("..") {
                continue;
            }
            let inside = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            let linked = entry.file_type().map_err(failed)?.is_symlink();
            let kind = fs::metadata(&path).map_err(failed)?;
            if kind.is_dir() {
                if linked || depth >= MAX_FOLDERS {
                    return Err(failed(io::Error::other("a link to a folder, or too deep")));
                }
                pending.push((path, inside, depth.saturating_add(1)));
                continue;
            }
            if files.len() >= limits.files {
                return Err(failed(io::ErrorKind::QuotaExceeded.into()));
            }
            let content = read_file(&path, left)?;
            left = left.saturating_sub(u64::try_from(content.len()).unwrap_or(u64::MAX));
            files.push((inside, content));
        }
    }
    files.sort();
    Ok(files)
}
