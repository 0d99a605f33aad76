//! Keeps fetched key sets fresh, in the background: no request waits for a fetch.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use mesh_authn::request::{Fetched, KeyRefresh, KeySets, KeySource, RefreshPolicy, WantedKeys};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::mesh::Mesh;

/// Longest rest between two looks at what is due.
const REST: Duration = Duration::from_secs(30);

/// What a [`KeyFetcher`] answers with.
pub type FetchFuture<'f> = Pin<Box<dyn Future<Output = Result<Bytes, FetchError>> + Send + 'f>>;

/// Fetches the bytes of a key set or a discovery document.
pub trait KeyFetcher: fmt::Debug + Send + Sync + 'static {
    /// Fetches a URL; the answer must come within `limit`.
    fn fetch<'f>(&'f self, url: &'f str, limit: Duration) -> FetchFuture<'f>;
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

    /// The discovery document is not one, or is another issuer's ([SEM-JWKS-03]).
    #[error("discovery document does not fit the issuer")]
    Discovery,

    /// The server does not speak HTTP.
    #[error("HTTP: {0}")]
    Http(#[source] hyper::Error),

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
    let mut running: JoinSet<(KeySource, Result<Bytes, FetchError>)> = JoinSet::new();
    let mut changes = mesh.changes();
    let lacking = mesh.lacking();
    loop {
        let wanted = mesh.snapshot().tokens.wanted().to_vec();
        sources.retain(|source, _| wanted.iter().any(|one| one.source == *source));
        let now = mesh.clock().now();
        for WantedKeys { source, timeout, .. } in wanted {
            let refresh = sources.entry(source.clone()).or_insert_with(|| KeyRefresh::new(policy));
            if refresh.begin(now, random()) {
                let fetcher = Arc::clone(&fetcher);
                running.spawn(async move {
                    let body = fetch(fetcher.as_ref(), &source, timeout).await;
                    (source, body)
                });
            }
        }
        publish(&mesh, &sources);
        let due = sources.values().map(|refresh| refresh.due().as_secs()).min();
        let rest = due.map_or(REST, |due| Duration::from_secs(due.saturating_sub(now.as_secs())));
        tokio::select! {
            Some(done) = running.join_next() => match done {
                Ok((source, body)) => received(&mesh, &mut sources, &source, body),
                // A fetcher of the application's that panics must not end all fetching.
                Err(error) => tracing::error!(%error, "a key fetch ended badly"),
            },
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
fn publish(mesh: &Mesh, sources: &BTreeMap<KeySource, KeyRefresh>) {
    let now = mesh.clock().now();
    let mut sets = KeySets::new();
    for (source, refresh) in sources {
        if let Some(keys) = refresh.keys(now) {
            sets.insert(source.clone(), Arc::clone(keys));
        }
    }
    let states = sources.iter().map(|(source, refresh)| (source.clone(), refresh.state(now)));
    mesh.set_key_states(states.collect());
    mesh.set_keys(sets, sources.keys());
}

async fn fetch(
    fetcher: &dyn KeyFetcher,
    source: &KeySource,
    limit: Duration,
) -> Result<Bytes, FetchError> {
    match source {
        KeySource::Url(url) => fetcher.fetch(url, limit).await,
        KeySource::Discovery(issuer) => {
            let base = issuer.strip_suffix('/').unwrap_or(issuer);
            let url = format!("{base}/.well-known/openid-configuration");
            let document = fetcher.fetch(&url, limit).await?;
            let url = jwks_uri(&document, issuer).ok_or(FetchError::Discovery)?;
            fetcher.fetch(&url, limit).await
        }
        // A kind of source that mesh-authn knows and we do not yet.
        _ => Err(FetchError::Url),
    }
}

/// [SEM-JWKS-03], [SEM-STRICT-14] The document must be the issuer's own.
fn jwks_uri(document: &[u8], issuer: &str) -> Option<String> {
    let document: Value = serde_json::from_slice(document).ok()?;
    let own = document.get("issuer")?.as_str()? == issuer;
    let url = document.get("jwks_uri")?.as_str()?;
    own.then(|| url.to_owned())
}

/// Spreads refreshes; nobody must not be able to guess it.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
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
