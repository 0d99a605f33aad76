//! Key sets from mounted files.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_tower::authn::request::{KeySource, KeyState};
use mesh_tower::{FetchError, KeyFetcher, KeyFiles};

use super::support::{TokenKey, World, every_second};

/// A folder of this test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("mesh-jwks-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// Mounts a version as Kubernetes does: a new folder, then the link swapped.
    fn mount(&self, version: &str, jwks: &str) {
        let folder = self.0.join(version);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("jwks.json"), jwks).unwrap();
        let link = self.0.join("..data.new");
        symlink(&folder, &link).unwrap();
        fs::rename(&link, self.0.join("..data")).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.join("..data/jwks.json")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

async fn state(world: &World, wanted: impl Fn(&KeyState) -> bool) {
    let begun = Instant::now();
    while !world.mesh.key_sets().iter().any(|(_, state)| wanted(state)) {
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", world.mesh.key_sets());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// [SEC-JWT-14], [SEC-JWT-16]: a rotation takes effect, whatever is no key set does not, and the
/// state tells.
#[tokio::test(flavor = "multi_thread")]
async fn sec_jwt_14_keys_in_files_rotate_and_survive_bad_ones() {
    let folder = Folder::new("rotate");
    let (first, second) = (TokenKey::generate("first"), TokenKey::generate("second"));
    folder.mount("1", &first.jwks());
    let world = World::start().await;
    let url = "https://idp.example/keys";
    let keys = KeyFiles::new().url(url, folder.file()).issuer("https://idp.example", folder.file());
    tokio::spawn(world.mesh.clone().keep_keys_fresh(Arc::new(keys), every_second()));
    world.set_rules(&format!(
        "{{issuer: tester, jwksUri: \"{url}\"}}, {{issuer: \"https://idp.example\"}}"
    ));
    let (old, new) = (first.token("tester"), second.token("tester"));
    world.accepts(&old).await;
    world.accepts(&first.token("https://idp.example")).await;
    assert_eq!(world.status_with(&new).await, 401);

    for bad in ["", "{\"keys\":[]}", "not json", second.jwks().split(',').next().unwrap()] {
        folder.mount(&format!("bad-{}", bad.len()), bad);
        state(&world, |state| matches!(state, KeyState::Stale { failures: 1.., .. })).await;
        assert_eq!(world.status_with(&old).await, 200, "the last good set stays");
        assert_eq!(world.status_with(&new).await, 401);
        folder.mount("1", &first.jwks());
        state(&world, |state| matches!(state, KeyState::Fresh { .. })).await;
    }
    fs::remove_file(folder.0.join("..data")).unwrap();
    state(&world, |state| matches!(state, KeyState::Stale { .. })).await;
    assert_eq!(world.status_with(&old).await, 200, "a file that is gone changes nothing");

    folder.mount("2", &second.jwks());
    world.accepts(&new).await;
    assert_eq!(world.status_with(&old).await, 401, "the removed key stops at once");
}

/// What is no file of a key set's size is not read, and nothing else is fetched.
#[tokio::test]
async fn sec_jwt_13_only_regular_files_of_a_bounded_size_are_read() {
    let folder = Folder::new("bounds");
    let long = folder.0.join("long");
    fs::write(&long, " ".repeat(1024 * 1024 + 1)).unwrap();
    let source = KeySource::Url("https://idp.example/keys".to_owned());
    for path in [Path::new("/dev/zero"), &folder.0, &long, Path::new("/nowhere/keys.json")] {
        let keys = KeyFiles::new().url("https://idp.example/keys", path);
        let error = keys.fetch_keys(&source, Duration::from_secs(5)).await.unwrap_err();
        assert!(matches!(error, FetchError::File { .. }), "{}: {error}", path.display());
    }
    let keys = KeyFiles::new();
    let error = keys.fetch_keys(&source, Duration::from_secs(5)).await.unwrap_err();
    assert!(matches!(error, FetchError::NoFile), "{error}");
}
