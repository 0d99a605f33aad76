//! Identity and policies from files, by polling.
//!
//! Kubernetes swaps a symbolic link under a mounted folder, and agents write a certificate and its
//! key one after the other. So contents are compared, not inodes or times, a set is taken when it
//! has been the same twice, and whatever does not fit together leaves the last good one in force.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_identity::{
    BundleError, BundleSet, CrlError, CrlSet, SvidLoadError, TrustBundle, TrustDomain, X509Svid,
};

use super::identity::{Identity, IdentityFuture, IdentitySource, IdentityUpdate};
use crate::clock::monotonic;
use crate::mesh::Mesh;
use crate::policies::Policies;

/// Longest file that is read. A ConfigMap or Secret holds 1 MiB.
const MAX_FILE_LEN: u64 = 16 * 1024 * 1024;

/// Most files of a policy folder.
const MAX_FILES: usize = 1000;

/// Where Istio mounts or writes a workload's certificates.
const ISTIO_FOLDERS: [&str; 3] =
    ["./etc/certs", "./var/run/secrets/workload-spiffe-credentials", "/var/lib/istio/data"];

/// Where a workload's certificate, key and roots lie, in PEM.
///
/// # Examples
///
/// ```
/// use mesh_tower::IdentityFiles;
///
/// let trust_domain = "cluster.local".parse()?;
/// let files = IdentityFiles::istio(trust_domain, "/var/lib/istio/data");
/// assert!(files.load().is_err(), "no agent has written them here");
/// # Ok::<(), mesh_tower::identity::SpiffeIdError>(())
/// ```
#[derive(Clone, Debug)]
pub struct IdentityFiles {
    trust_domain: TrustDomain,
    chain: PathBuf,
    key: PathBuf,
    roots: PathBuf,
    crls: Option<PathBuf>,
    world_readable: bool,
}

/// Why files do not make an identity. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// A gRPC bootstrap file names no certificate files.
    #[error("{}: {problem}", path.display())]
    Bootstrap {
        /// The file.
        path: PathBuf,
        /// What is missing.
        problem: &'static str,
    },

    /// The roots cannot be used.
    #[error("{}: {error}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: BundleError,
    },

    /// The revocation lists cannot be used.
    #[error("{}: {error}", path.display())]
    Crl {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: CrlError,
    },

    /// A folder of policies has no policy file.
    #[error("{}: no file ends in .yaml, .yml or .json", .0.display())]
    Empty(PathBuf),

    /// The file cannot be read.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },

    /// No certificate lies where Istio and GKE put one.
    #[error("no certificate in {}", folders.iter().map(|one| one.display().to_string()).collect::<Vec<_>>().join(", "))]
    NotFound {
        /// Where was looked.
        folders: Vec<PathBuf>,
    },

    /// The certificate or key cannot be used.
    #[error("{}: {error}", path.display())]
    Svid {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        error: SvidLoadError,
    },

    /// The file is too long, or the folder has too many.
    #[error("{}: too long, or too many files", .0.display())]
    TooLong(PathBuf),

    /// Everybody on the machine can read the private key ([SEC-ID-12]).
    #[error("{}: readable by others; chmod it, or allow it explicitly", .0.display())]
    WorldReadable(PathBuf),
}

/// The bytes of the files.
#[derive(Eq, PartialEq)]
struct Contents {
    chain: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    roots: Vec<u8>,
    crls: Option<Vec<u8>>,
}

impl IdentityFiles {
    /// Any three files: a chain with the leaf first, its PKCS#8 key, and the roots of the trust
    /// domain.
    #[must_use]
    pub fn new(
        trust_domain: TrustDomain,
        chain: impl Into<PathBuf>,
        key: impl Into<PathBuf>,
        roots: impl Into<PathBuf>,
    ) -> Self {
        let (chain, key, roots) = (chain.into(), key.into(), roots.into());
        Self { trust_domain, chain, key, roots, crls: None, world_readable: false }
    }

    /// Istio's layout: `cert-chain.pem`, `key.pem` and `root-cert.pem` in one folder.
    #[must_use]
    pub fn istio(trust_domain: TrustDomain, folder: impl AsRef<Path>) -> Self {
        let file = |name: &str| folder.as_ref().join(name);
        Self::new(trust_domain, file("cert-chain.pem"), file("key.pem"), file("root-cert.pem"))
    }

    /// GKE's layout: `certificates.pem`, `private_key.pem` and `ca_certificates.pem` in one folder.
    #[must_use]
    pub fn gke(trust_domain: TrustDomain, folder: impl AsRef<Path>) -> Self {
        let file = |name: &str| folder.as_ref().join(name);
        let (chain, key) = (file("certificates.pem"), file("private_key.pem"));
        Self::new(trust_domain, chain, key, file("ca_certificates.pem"))
    }

    /// The files that a gRPC bootstrap file names, as Istio's agent writes it for proxyless gRPC:
    /// those of the certificate provider `default`, or of the only one of plugin `file_watcher`.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, is not JSON, or names no such files.
    pub fn from_bootstrap(
        trust_domain: TrustDomain,
        path: impl AsRef<Path>,
    ) -> Result<Self, FileError> {
        let path = path.as_ref();
        let problem = |problem| FileError::Bootstrap { path: path.to_owned(), problem };
        let bootstrap: serde_json::Value = serde_json::from_slice(&read(path)?)
            .map_err(|_detail| problem("not a JSON document"))?;
        let providers = bootstrap.get("certificate_providers").and_then(|all| all.as_object());
        let providers = providers.ok_or_else(|| problem("no certificate_providers"))?;
        let watches = |provider: &&serde_json::Value| {
            provider.get("plugin_name").is_some_and(|name| name == "file_watcher")
        };
        let provider = providers.get("default").filter(watches).or_else(|| {
            let mut watching = providers.values().filter(watches);
            watching.next().filter(|_| watching.next().is_none())
        });
        let provider = provider.ok_or_else(|| {
            problem("no certificate provider `default` of plugin file_watcher, nor a single other")
        })?;
        let file = |name: &str, missing| {
            let file = provider.get("config").and_then(|config| config.get(name)?.as_str());
            file.filter(|file| !file.is_empty()).ok_or_else(|| problem(missing))
        };
        let chain = file("certificate_file", "no certificate_file")?;
        let key = file("private_key_file", "no private_key_file")?;
        let roots = file("ca_certificate_file", "no ca_certificate_file")?;
        Ok(Self::new(trust_domain, chain, key, roots))
    }

    /// Looks where Istio, its agent and GKE put a workload's certificate: the file that
    /// `GRPC_XDS_BOOTSTRAP` names, then `./etc/certs`, `./var/run/secrets/workload-spiffe-credentials`
    /// in either layout, and `/var/lib/istio/data`.
    ///
    /// # Errors
    ///
    /// As [`IdentityFiles::from_bootstrap`] where the variable is set;
    /// [`FileError::NotFound`] where nothing lies in any place.
    pub fn discover(trust_domain: TrustDomain) -> Result<Self, FileError> {
        if let Some(bootstrap) = std::env::var_os("GRPC_XDS_BOOTSTRAP") {
            return Self::from_bootstrap(trust_domain, PathBuf::from(bootstrap));
        }
        Self::discover_in(&trust_domain, &ISTIO_FOLDERS.map(PathBuf::from))
    }

    /// The first of some folders that has a certificate chain, in Istio's or GKE's layout.
    ///
    /// # Errors
    ///
    /// [`FileError::NotFound`].
    pub fn discover_in(trust_domain: &TrustDomain, folders: &[PathBuf]) -> Result<Self, FileError> {
        let layouts = folders.iter().flat_map(|folder| {
            [Self::istio(trust_domain.clone(), folder), Self::gke(trust_domain.clone(), folder)]
        });
        let found = layouts.into_iter().find(|files| files.chain.exists());
        found.ok_or_else(|| FileError::NotFound { folders: folders.to_vec() })
    }

    /// Demands that no certificate of a chain is revoked by the lists in a PEM file, such as Istio's
    /// `/var/run/secrets/istio/crl/ca-crl.pem`: every issuer needs one then.
    #[must_use]
    pub fn with_crls(mut self, crls: impl Into<PathBuf>) -> Self {
        self.crls = Some(crls.into());
        self
    }

    /// Follows the files, looking every so often; within a second what is wrong with them should be
    /// seen ([SEC-OPS-2]).
    #[must_use]
    pub fn watch(self, every: Duration) -> IdentityFileSource {
        IdentityFileSource { files: self, every, looked: None, last: None, told: None }
    }

    /// Takes a key that everybody on the machine can read, as Kubernetes mounts secrets unless
    /// told otherwise.
    #[must_use]
    pub fn allow_world_readable_key(mut self) -> Self {
        self.world_readable = true;
        self
    }

    /// Reads the three files now.
    ///
    /// # Errors
    ///
    /// Which file cannot be read or used.
    pub fn load(&self) -> Result<(Arc<X509Svid>, Arc<BundleSet>), FileError> {
        self.parse(&self.read()?)
    }

    fn read(&self) -> Result<Contents, FileError> {
        if !self.world_readable && is_world_readable(&self.key)? {
            return Err(FileError::WorldReadable(self.key.clone()));
        }
        let key = zeroize::Zeroizing::new(read(&self.key)?);
        let crls = self.crls.as_deref().map(read).transpose()?;
        Ok(Contents { chain: read(&self.chain)?, key, roots: read(&self.roots)?, crls })
    }

    fn parse(&self, contents: &Contents) -> Result<(Arc<X509Svid>, Arc<BundleSet>), FileError> {
        let svid = X509Svid::from_pem(&contents.chain, &contents.key)
            .map_err(|error| FileError::Svid { path: self.chain.clone(), error })?;
        let broken = |error| FileError::Bundle { path: self.roots.clone(), error };
        let mut bundle =
            TrustBundle::from_pem(self.trust_domain.clone(), &contents.roots).map_err(broken)?;
        if let Some((pem, path)) = contents.crls.as_deref().zip(self.crls.as_ref()) {
            let crls = CrlSet::from_pem(pem);
            let crls = crls.map_err(|error| FileError::Crl { path: path.clone(), error })?;
            bundle = bundle.with_crls(crls);
        }
        let bundles = BundleSet::from_bundles([bundle]).map_err(broken)?;
        Ok((Arc::new(svid), Arc::new(bundles)))
    }
}

/// The files of an identity, followed; made by [`IdentityFiles::watch`].
pub struct IdentityFileSource {
    files: IdentityFiles,
    every: Duration,
    /// When the files were looked at last. Kept here, so that a call of `next` that is dropped does not
    /// put off the next look.
    looked: Option<Instant>,
    /// What was read last, and what was told last: good or bad, nothing is told twice.
    last: Option<Contents>,
    told: Option<Told>,
}

#[derive(Eq, PartialEq)]
enum Told {
    /// These contents were delivered, or were refused for what they are.
    Contents(Contents),
    /// They could not be read.
    Unreadable(String),
}

impl IdentityFileSource {
    /// One look: news, or nothing yet.
    async fn look(&mut self) -> Option<IdentityUpdate> {
        let files = self.files.clone();
        let contents = match away(move || files.read()).await {
            Ok(contents) => contents,
            Err(error) => {
                let told = Some(Told::Unreadable(error.to_string()));
                self.last = None;
                let news = self.told != told;
                self.told = told;
                return news.then(|| IdentityUpdate::Failed(Box::new(error)));
            }
        };
        // What has only just changed may be half of a rotation.
        let settled = self.last.as_ref() == Some(&contents);
        if !settled {
            self.last = Some(contents);
            return None;
        }
        let told = Some(Told::Contents(contents));
        if self.told == told {
            return None;
        }
        let parsed = match &told {
            Some(Told::Contents(contents)) => self.files.parse(contents),
            Some(Told::Unreadable(_)) | None => return None,
        };
        self.told = told;
        Some(match parsed {
            Ok((svid, bundles)) => IdentityUpdate::Identity(Identity::new(svid, bundles)),
            Err(error) => IdentityUpdate::Failed(Box::new(error)),
        })
    }
}

impl IdentitySource for IdentityFileSource {
    fn next(&mut self) -> IdentityFuture<'_> {
        Box::pin(async move {
            loop {
                if let Some(next) = self.looked.and_then(|last| last.checked_add(self.every)) {
                    tokio::time::sleep_until(next.into()).await;
                }
                self.looked = Some(monotonic());
                if let Some(news) = self.look().await {
                    return news;
                }
            }
        })
    }
}

impl fmt::Debug for IdentityFileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityFileSource").field("files", &self.files).finish_non_exhaustive()
    }
}

/// Reads every policy file of a folder: `.yaml`, `.yml` and `.json`, hidden ones and sub-folders
/// left out, all of them or none.
///
/// # Errors
///
/// A file that cannot be read, or a folder without any: a folder that has lost its files is more
/// often a failed mount than a wish for no policy.
pub(crate) fn read_folder(folder: &Path) -> Result<BTreeMap<String, String>, FileError> {
    let failed = |path: &Path, error| FileError::Io { path: path.to_owned(), error };
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, error))? {
        let path = entry.map_err(|error| failed(folder, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let is_policy = matches!(extension.as_str(), "yaml" | "yml" | "json");
        if name.starts_with('.') || !is_policy || path.is_dir() {
            continue;
        }
        if files.len() >= MAX_FILES {
            return Err(FileError::TooLong(folder.to_owned()));
        }
        let text = String::from_utf8(read(&path)?).map_err(|error| {
            failed(&path, io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
        })?;
        files.insert(name, text);
    }
    if files.is_empty() {
        return Err(FileError::Empty(folder.to_owned()));
    }
    Ok(files)
}

/// Follows a folder of policies; never returns.
pub(crate) async fn keep_policies(
    mesh: Mesh,
    folder: PathBuf,
    default_namespace: String,
    every: Duration,
) {
    let mut last = None;
    let mut taken = None;
    loop {
        tokio::time::sleep(every).await;
        let look = folder.clone();
        match away(move || read_folder(&look)).await {
            Err(error) => {
                mesh.report(&error);
                // What comes back as it was ends the failure.
                taken = None;
            }
            Ok(files) => {
                let settled = last.as_ref() == Some(&files);
                if settled && taken.as_ref() != Some(&files) {
                    let texts = files.iter().map(|(name, text)| (name.as_str(), text.as_str()));
                    match Policies::read(texts, &default_namespace) {
                        Err(error) => mesh.report(&error),
                        // What does not compile is reported by the mesh itself.
                        Ok(policies) => drop(mesh.set_policies(policies)),
                    }
                    // Bad files are not tried again until they change.
                    taken = Some(files.clone());
                }
                last = Some(files);
            }
        }
    }
}

/// Reads off the async workers: a mount may hang.
async fn away<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, FileError> + Send + 'static,
) -> Result<T, FileError> {
    let failed = |error| FileError::Io { path: PathBuf::new(), error: io::Error::other(error) };
    tokio::task::spawn_blocking(read).await.map_err(failed)?
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |error| FileError::Io { path: path.to_owned(), error };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_FILE_LEN {
        return Err(FileError::TooLong(path.to_owned()));
    }
    fs::read(path).map_err(failed)
}

#[cfg(unix)]
fn is_world_readable(path: &Path) -> Result<bool, FileError> {
    use std::os::unix::fs::PermissionsExt as _;

    let failed = |error| FileError::Io { path: path.to_owned(), error };
    Ok(fs::metadata(path).map_err(failed)?.permissions().mode() & 0o004 != 0)
}

#[cfg(not(unix))]
fn is_world_readable(_: &Path) -> Result<bool, FileError> {
    Ok(false)
}
