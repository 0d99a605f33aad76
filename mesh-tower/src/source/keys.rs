//! Keeps fetched key sets fresh, in the background: no request waits for a fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesh_authn::request::{
    Fetched, KeyRefresh, KeySets, KeySource, KeyState, RefreshPolicy, WantedKeys,
};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::{Id, JoinSet};

use crate::backoff::random;
use crate::mesh::Mesh;

/// Longest rest between two looks at what is due.
const REST: Duration = Duration::from_secs(30);

/// What a [`KeyFetcher`] answers with.
pub type FetchFuture<'f> = Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'f>>;

/// Fetches the bytes of a key set or a discovery document.
pub trait KeyFetcher: fmt::Debug + Send + Sync + 'static {
    /// Fetches a URL; the answer must come within `limit`.
    fn fetch<'f>(&'f self, url: &'f str, limit: Duration) -> FetchFuture<'f>;

    /// Fetches the key set of a source. An issuer's own URL is discovered first, within the same
    /// `limit` ([SEM-JWKS-04]).
    fn fetch_keys<'f>(&'f self, source: &'f KeySource, limit: Duration) -> FetchFuture<'f> {
        Box::pin(async move {
            let keys = async {
                match source {
                    KeySource::Url(url) => self.fetch(url, limit).await,
                    KeySource::Discovery(issuer) => {
                        let document = self.fetch(&discovery_url(issuer), limit).await?;
                        let url = jwks_uri(&document, issuer).ok_or(FetchError::Discovery)?;
                        self.fetch(&url, limit).await
                    }
                    // A kind of source that mesh-authn knows and we do not yet.
                    _ => Err(FetchError::Url),
                }
            };
            tokio::time::timeout(limit, keys).await.unwrap_or(Err(FetchError::Deadline))
        })
    }

    /// How a source is kept fresh, when the program wants it as in `policy`.
    fn refresh_policy(&self, source: &KeySource, policy: RefreshPolicy) -> RefreshPolicy {
        let _: &KeySource = source;
        policy
    }
}

/// Where an issuer publishes its discovery document ([SEM-JWKS-03]).
fn discovery_url(issuer: &str) -> String {
    let base = issuer.strip_suffix('/').unwrap_or(issuer);
    format!("{base}/.well-known/openid-configuration")
}

/// Why a key set, or whatever else was asked for, could not be fetched. The last good one stays
/// ([SEC-JWT-14]).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The name leads only to addresses that must not be asked.
    #[error("no address of the host may be asked")]
    Address,

    /// The body is too long or broke off.
    #[error("body is too long or incomplete")]
    Body,

    /// The connection or its TLS handshake failed.
    #[error("cannot connect: {0}")]
    Connect(#[source] std::io::Error),

    /// The deadline passed.
    #[error("no answer in time")]
    Deadline,

    /// The file that stands for a source cannot be read.
    #[error("{}: {error}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        error: std::io::Error,
    },

    /// The discovery document is not one, or is another issuer's ([SEM-JWKS-03]).
    #[error("discovery document does not fit the issuer")]
    Discovery,

    /// The fetcher panicked.
    #[error("the fetcher panicked")]
    Fault,

    /// The server does not speak HTTP.
    #[error("HTTP: {0}")]
    Http(#[source] hyper::Error),

    /// No file stands for the source, and nothing is fetched.
    #[error("no file stands for this key set")]
    NoFile,

    /// Plain HTTP was not allowed.
    #[error("plain http is not allowed; use https or allow it")]
    PlainHttp,

    /// The answer is not 200; redirects are not followed.
    #[error("status {0}")]
    Status(StatusCode),

    /// The file with the credentials could not be read.
    #[error("cannot read the token: {0}")]
    Token(#[source] std::io::Error),

    /// The URL cannot be fetched from.
    #[error("not an http or https URL")]
    Url,
}

/// The sources whose key set lacked a key that a token named. Bounded by the rules' sources.
#[derive(Debug, Default)]
pub(crate) struct Lacking {
    sources: Mutex<BTreeSet<KeySource>>,
    news: Notify,
}

impl Lacking {
    /// A token names a key that the set of this source lacks.
    pub(crate) fn report(&self, source: KeySource) {
        let new = self.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(source);
        if new {
            self.news.notify_one();
        }
    }

    fn take(&self) -> BTreeSet<KeySource> {
        std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Fetches what the policies in force want, when it is due; never returns.
pub(crate) async fn keep_fresh(mesh: Mesh, fetcher: Arc<dyn KeyFetcher>, policy: RefreshPolicy) {
    let mut sources: BTreeMap<KeySource, KeyRefresh> = BTreeMap::new();
    let mut running: JoinSet<Result<Bytes, FetchError>> = JoinSet::new();
    let mut fetching: BTreeMap<Id, KeySource> = BTreeMap::new();
    let mut changes = mesh.changes();
    let lacking = mesh.lacking();
    loop {
        let wanted = mesh.snapshot().tokens.wanted().to_vec();
        sources.retain(|source, _| wanted.iter().any(|one| one.source == *source));
        let now = mesh.clock().now();
        for WantedKeys { source, timeout, .. } in wanted {
            let refresh = sources
                .entry(source.clone())
                .or_insert_with(|| KeyRefresh::new(fetcher.refresh_policy(&source, policy)));
            if refresh.begin(now, random()) {
                let (fetcher, wanted) = (Arc::clone(&fetcher), source.clone());
                let task = running.spawn(async move { fetcher.fetch_keys(&wanted, timeout).await });
                fetching.insert(task.id(), source);
            }
        }
        publish(&mesh, &mut sources);
        let due = sources.values().map(|refresh| refresh.due().as_secs()).min();
        let rest = due.map_or(REST, |due| Duration::from_secs(due.saturating_sub(now.as_secs())));
        tokio::select! {
            Some(done) = running.join_next_with_id() => {
                // A fetcher of the application's that panics has failed, and is asked again.
                let (id, body) = match done {
                    Ok(done) => done,
                    Err(error) => (error.id(), Err(FetchError::Fault)),
                };
                if let Some(source) = fetching.remove(&id) {
                    received(&mesh, &mut sources, &source, body);
                }
            }
            () = lacking.news.notified() => {
                for source in lacking.take() {
                    if let Some(refresh) = sources.get_mut(&source) {
                        refresh.missing_key();
                    }
                }
            }
            news = changes.changed() => if news.is_err() { return },
            () = tokio::time::sleep(rest.clamp(Duration::from_millis(200), REST)) => {}
        }
    }
}

fn received(
    mesh: &Mesh,
    sources: &mut BTreeMap<KeySource, KeyRefresh>,
    source: &KeySource,
    body: Result<Bytes, FetchError>,
) {
    // The rule that wanted it may have gone meanwhile.
    let Some(refresh) = sources.get_mut(source) else { return };
    let now = mesh.clock().now();
    match body {
        Ok(body) => match refresh.fetched(now, &body) {
            Ok(Fetched::Changed) => tracing::info!(?source, "key set fetched"),
            Ok(Fetched::Same) => {}
            Err(error) => tracing::warn!(?source, %error, "no key set; the last good one stays"),
        },
        Err(error) => {
            refresh.failed(now);
            tracing::warn!(?source, %error, "key set not fetched; the last good one stays");
        }
    }
}

/// Puts the sets that count now into force, if they are others than those in force.
fn publish(mesh: &Mesh, sources: &mut BTreeMap<KeySource, KeyRefresh>) {
    let now = mesh.clock().now();
    let mut sets = KeySets::new();
    for (source, refresh) in sources.iter_mut() {
        if let Some(keys) = refresh.keys(now) {
            sets.insert(source.clone(), Arc::clone(keys));
        }
    }
    let states: Vec<(KeySource, KeyState)> =
        sources.iter_mut().map(|(source, refresh)| (source.clone(), refresh.state(now))).collect();
    // Whoever waits for a state finds its keys in force.
    mesh.set_keys(sets, sources.keys());
    mesh.set_key_states(states);
}

/// Waits until these sources have been fetched for the first time, or a fetch of one has failed, or
/// the limit is over. Bounded by the limit of each fetch, too.
pub(crate) async fn first_keys(mesh: Mesh, sources: Vec<KeySource>, limit: Duration) {
    let mut states = mesh.key_states();
    let is_open = |known: &Vec<(KeySource, KeyState)>| {
        sources.iter().any(|source| {
            let state = known.iter().find(|(one, _)| one == source).map(|(_, state)| state);
            matches!(state, None | Some(KeyState::Missing { failures: 0 }))
        })
    };
    let settled = states.wait_for(|known| !is_open(known));
    // When the time is over the token is refused, as it would have been at once.
    drop(tokio::time::timeout(limit, settled).await);
}

/// [SEM-JWKS-03], [SEM-STRICT-14] The document must be the issuer's own.
fn jwks_uri(document: &[u8], issuer: &str) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let own = document.get("issuer")?.as_str()? == issuer;
    let url = document.get("jwks_uri")?.as_str()?;
    own.then(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sem_jwks_03_the_discovery_document_must_be_the_issuers_own() {
        let document = br#"{"issuer": "https://idp.example", "jwks_uri": "https://k.example/j"}"#;
        let url = |issuer| jwks_uri(document, issuer);
        assert_eq!(url("https://idp.example").as_deref(), Some("https://k.example/j"));
        assert_eq!(url("https://idp.example/"), None);
        assert_eq!(url("https://other.example"), None);
        assert_eq!(jwks_uri(b"[]", "https://idp.example"), None);
        assert_eq!(jwks_uri(b"not json", "https://idp.example"), None);
    }
}
