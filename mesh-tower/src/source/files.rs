//! Identity and policies from files, by polling.
//!
//! Kubernetes swaps a symbolic link under a mounted folder, and agents write a certificate and its
//! key one after the other. So contents are compared, not inodes or times, a set is taken when it
//! has been the same twice, and whatever does not fit together leaves the last good one in force.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_identity::{BundleError, BundleSet, SvidLoadError, TrustBundle, TrustDomain, X509Svid};

use crate::mesh::Mesh;
use crate::policies::Policies;

/// Longest file that is read. A ConfigMap or Secret holds 1 MiB.
const MAX_FILE_LEN: u64 = 16 * 1024 * 1024;

/// Most files of a policy folder.
const MAX_FILES: usize = 1000;

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
    world_readable: bool,
}

/// Why files do not make an identity. Names the file, never its content.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The roots cannot be used.
    #[error("{}: {error}", path.display())]
    Bundle {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: BundleError,
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

/// The bytes of the three files.
#[derive(Eq, PartialEq)]
struct Contents {
    chain: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
    roots: Vec<u8>,
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
        Self { trust_domain, chain, key, roots, world_readable: false }
    }

    /// Istio's layout: `cert-chain.pem`, `key.pem` and `root-cert.pem` in one folder.
    #[must_use]
    pub fn istio(trust_domain: TrustDomain, folder: impl AsRef<Path>) -> Self {
        let file = |name: &str| folder.as_ref().join(name);
        Self::new(trust_domain, file("cert-chain.pem"), file("key.pem"), file("root-cert.pem"))
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
        Ok(Contents { chain: read(&self.chain)?, key, roots: read(&self.roots)? })
    }

    fn parse(&self, contents: &Contents) -> Result<(Arc<X509Svid>, Arc<BundleSet>), FileError> {
        let svid = X509Svid::from_pem(&contents.chain, &contents.key)
            .map_err(|error| FileError::Svid { path: self.chain.clone(), error })?;
        let bundles = TrustBundle::from_pem(self.trust_domain.clone(), &contents.roots)
            .and_then(|bundle| BundleSet::from_bundles([bundle]))
            .map_err(|error| FileError::Bundle { path: self.roots.clone(), error })?;
        Ok((Arc::new(svid), Arc::new(bundles)))
    }
}

/// Follows the files of an identity; never returns.
pub(crate) async fn keep_identity(mesh: Mesh, files: IdentityFiles, every: Duration) {
    let mut last: Option<Contents> = None;
    let mut taken: Option<Contents> = None;
    loop {
        tokio::time::sleep(every).await;
        let look = files.clone();
        match away(move || look.read()).await {
            Err(error) => mesh.report(&error),
            Ok(contents) => {
                let settled = last.as_ref() == Some(&contents);
                if settled && taken.as_ref() != Some(&contents) {
                    let done = files.parse(&contents).map_err(|error| mesh.report(&error));
                    if let Ok((svid, bundles)) = done
                        && mesh.set_identity(svid, bundles).is_ok()
                    {
                        taken = Some(contents);
                        continue;
                    }
                }
                last = Some(contents);
            }
        }
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
            Err(error) => mesh.report(&error),
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
