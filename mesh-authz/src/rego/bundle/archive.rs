//! The files of a tar archive, in memory and within limits.

use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use tar::Archive;

use super::{BundleError, BundleLimits};

/// The longest path of an entry.
const MAX_PATH: usize = 1024;

/// All plain files, each with its path as written.
pub(super) fn files(
    bytes: &[u8],
    limits: BundleLimits,
) -> Result<Vec<(String, Vec<u8>)>, BundleError> {
    if bytes.starts_with(&[0x1F, 0x8B]) {
        read(MultiGzDecoder::new(bytes), limits)
    } else {
        read(bytes, limits)
    }
}

fn read(source: impl Read, limits: BundleLimits) -> Result<Vec<(String, Vec<u8>)>, BundleError> {
    let too_large = || BundleError::TooLarge { bytes: limits.bytes, files: limits.files };
    // Headers and padding count, too, so that nothing is decompressed without end.
    let most = limits.bytes.saturating_mul(2).saturating_add(1 << 20);
    let mut archive = Archive::new(Bounded { source, left: most });
    let mut found = Vec::new();
    let mut left = limits.bytes;
    let broken = |error: io::Error| {
        if error.kind() == io::ErrorKind::FileTooLarge { too_large() } else { BundleError::Archive }
    };
    for entry in archive.entries().map_err(|_detail| BundleError::Archive)? {
        let mut entry = entry.map_err(broken)?;
        let kind = entry.header().entry_type();
        if kind.is_dir() || kind.is_pax_global_extensions() {
            continue;
        }
        if !kind.is_file() {
            return Err(BundleError::Path);
        }
        let path = entry.path_bytes().into_owned();
        let path = String::from_utf8(path).map_err(|_detail| BundleError::Path)?;
        let size = entry.size();
        left = left.checked_sub(size).ok_or_else(too_large)?;
        if found.len() >= limits.files {
            return Err(too_large());
        }
        // The size is what a header claims: memory grows with what is there.
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(broken)?;
        if u64::try_from(content.len()) != Ok(size) {
            return Err(BundleError::Archive);
        }
        found.push((path, content));
    }
    if found.is_empty() { Err(BundleError::Archive) } else { Ok(found) }
}

/// A path without its leading slashes and dots, as OPA names files; nothing when it leads out.
pub(super) fn normal(path: &str) -> Option<String> {
    let path = path.strip_prefix("./").unwrap_or(path);
    let path = path.strip_prefix('/').unwrap_or(path);
    let odd = |part: &str| part.is_empty() || part == "." || part == "..";
    let bad = path.is_empty() || path.len() > MAX_PATH || path.contains(['\\', '\0']);
    (!bad && !path.split('/').any(odd)).then(|| path.to_owned())
}

/// Ends with an error where a stream is longer than it may be.
struct Bounded<R> {
    source: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        let left = self.left.checked_sub(u64::try_from(read).unwrap_or(u64::MAX));
        self.left = left.ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}
