//! Bundles of other trust domains: where they are fetched, whom to believe there, and when to fetch
//! again (SPIFFE Federation, [SEC-ID-10]). Pure: whoever has sockets asks here what to do.
//!
//! ```text
//!  due() ──▶ somebody fetches ──answered(status, body)──▶ held() replaced, or as before
//!    ▲                         └──failed()──┐
//!    └────────────── later ◀────────────────┘
//! ```
//!
//! The one who fetches follows no redirect, takes at most [`crate::MAX_BUNDLE_LEN`] bytes and
//! [`MAX_FETCH_TIME`], and shows no client certificate.

use std::time::Duration;

use http::{StatusCode, Uri};
use rustls_pki_types::UnixTime;

use crate::bundle::{BundleError, BundleSet, TrustBundle};
use crate::spiffe_id::SpiffeId;
use crate::trust_domain::TrustDomain;

/// Longest time for one fetch, from the first packet to the last ([SEC-ID-10]).
pub const MAX_FETCH_TIME: Duration = Duration::from_secs(10);

/// A publisher's hint is kept to between these: it must not make us hammer it, nor forget it.
const HINTS: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(10)..=Duration::from_secs(24 * 3600);

/// Longest pause after failures, when the hint is not longer still.
const MAX_PAUSE: Duration = Duration::from_secs(3600);

/// How a bundle endpoint proves itself (SPIFFE Federation section 5.2).
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "the standard's two profiles")]
pub enum EndpointProfile {
    /// By the Web's authorities and the URL's host name.
    HttpsWeb,
    /// By an X.509-SVID of this ID, verified with the bundle of its own trust domain.
    HttpsSpiffe(SpiffeId),
}

/// Where the bundle of a trust domain is fetched.
///
/// # Examples
///
/// ```
/// use mesh_identity::{EndpointProfile, FederationEndpoint};
///
/// let domain = "partner.example".parse()?;
/// let endpoint = FederationEndpoint::new(
///     domain,
///     "https://partner.example/bundle.json",
///     EndpointProfile::HttpsWeb,
/// )?;
/// assert_eq!(endpoint.url().host(), Some("partner.example"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FederationEndpoint {
    trust_domain: TrustDomain,
    url: Uri,
    profile: EndpointProfile,
}

/// Why a bundle endpoint cannot be used, or its answer not be taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FederationError {
    /// The answer is no bundle, or a stale one.
    #[error("bundle of {trust_domain}: {error}")]
    Bundle {
        /// Whose bundle was asked for.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        error: BundleError,
    },

    /// The answer has another status than 200; redirects are not followed.
    #[error("bundle endpoint of {trust_domain} answered {status}, expected 200")]
    Status {
        /// Whose bundle was asked for.
        trust_domain: TrustDomain,
        /// The answer's status.
        status: StatusCode,
    },

    /// The URL cannot be read, is not https, or names a user.
    #[error("bundle endpoint must be an https URL with a host, without user and fragment")]
    Url,
}

impl FederationEndpoint {
    /// The endpoint of a trust domain, as the administrator configured it.
    ///
    /// # Errors
    ///
    /// [`FederationError::Url`].
    pub fn new(
        trust_domain: TrustDomain,
        url: &str,
        profile: EndpointProfile,
    ) -> Result<Self, FederationError> {
        if url.contains('#') {
            return Err(FederationError::Url);
        }
        let url: Uri = url.parse().map_err(|_detail| FederationError::Url)?;
        let authority = url.authority().ok_or(FederationError::Url)?;
        let named = !authority.host().is_empty() && !authority.as_str().contains('@');
        if url.scheme_str() != Some("https") || !named {
            return Err(FederationError::Url);
        }
        Ok(Self { trust_domain, url, profile })
    }

    /// Whose bundle is fetched. What the document says of itself does not count.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Where.
    #[must_use]
    pub fn url(&self) -> &Uri {
        &self.url
    }

    /// Whom to believe there.
    #[must_use]
    pub fn profile(&self) -> &EndpointProfile {
        &self.profile
    }
}

/// The bundle of a federated trust domain over time.
///
/// A failed, unreadable or stale answer changes nothing: the last good bundle stays ([SEC-ID-9]).
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use http::StatusCode;
/// use mesh_identity::{EndpointProfile, FederatedBundle, FederationEndpoint};
/// use rustls_pki_types::UnixTime;
///
/// let at = |second| UnixTime::since_unix_epoch(Duration::from_secs(second));
/// let url = "https://partner.example/bundle.json";
/// let profile = EndpointProfile::HttpsWeb;
/// let endpoint = FederationEndpoint::new("partner.example".parse()?, url, profile)?;
/// let mut federated = FederatedBundle::new(endpoint, None);
/// assert!(federated.due() <= at(1000));
/// let body = br#"{"keys": [], "spiffe_refresh_hint": 60}"#;
/// assert!(federated.answered(StatusCode::OK, body, at(1000), 0)?);
/// assert_eq!(federated.due(), at(1060));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FederatedBundle {
    endpoint: FederationEndpoint,
    held: Option<TrustBundle>,
    /// When something was last heard, or not; nothing before the first time.
    asked: Option<UnixTime>,
    due: UnixTime,
    failures: u32,
}

impl FederatedBundle {
    /// A fetch is due at once. The bundle that was configured, if any, counts until then; an
    /// `https_spiffe` endpoint that proves itself with its own bundle needs one. Its revocation lists
    /// count for as long as this does: the documents of endpoints bring none ([SEC-ID-14]).
    #[must_use]
    pub fn new(endpoint: FederationEndpoint, configured: Option<TrustBundle>) -> Self {
        let due = UnixTime::since_unix_epoch(Duration::ZERO);
        let of_domain = |bundle: &TrustBundle| bundle.trust_domain() == endpoint.trust_domain();
        let held = configured.filter(of_domain);
        Self { endpoint, held, asked: None, due, failures: 0 }
    }

    /// Where it is fetched.
    #[must_use]
    pub fn endpoint(&self) -> &FederationEndpoint {
        &self.endpoint
    }

    /// The bundle that counts, if there has been one.
    #[must_use]
    pub fn held(&self) -> Option<&TrustBundle> {
        self.held.as_ref()
    }

    /// When to fetch next; not before, unless the clock is set back ([`FederatedBundle::is_due`]).
    #[must_use]
    pub fn due(&self) -> UnixTime {
        self.due
    }

    /// Whether to fetch now. A clock that says less than at the last fetch was wrong then, and the time
    /// that it was told to wait for may be years away ([SEC-OPS-5]).
    #[must_use]
    pub fn is_due(&self, now: UnixTime) -> bool {
        self.due <= now || self.asked.is_some_and(|asked| now < asked)
    }

    /// Failures in a row, for a metric or a health page.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whom the server of an `https_spiffe` endpoint is verified with: the bundle of the
    /// endpoint's own trust domain and no other. With [`EndpointProfile::HttpsWeb`] there is none.
    ///
    /// An endpoint in the domain that it serves proves itself with the bundle held; any other with
    /// the bundle that `others` has of its domain.
    #[must_use]
    pub fn endpoint_bundle<'a>(&'a self, others: &'a BundleSet) -> Option<&'a TrustBundle> {
        let EndpointProfile::HttpsSpiffe(id) = &self.endpoint.profile else { return None };
        if id.trust_domain() == self.endpoint.trust_domain.as_str() {
            return self.held.as_ref();
        }
        others.get(id.trust_domain())
    }

    /// Takes an answer; `true` when the bundle has changed. `random` spreads the next fetch.
    ///
    /// # Errors
    ///
    /// Why the answer is not taken: then the held bundle stays, and the next fetch is put off.
    pub fn answered(
        &mut self,
        status: StatusCode,
        body: &[u8],
        now: UnixTime,
        random: u64,
    ) -> Result<bool, FederationError> {
        match self.read(status, body) {
            Ok(bundle) => {
                self.failures = 0;
                self.asked = Some(now);
                self.due = later(now, hint(Some(&bundle)), random);
                let changed = self.held.as_ref() != Some(&bundle);
                self.held = Some(bundle);
                Ok(changed)
            }
            Err(error) => {
                self.failed(now, random);
                Err(error)
            }
        }
    }

    fn read(&self, status: StatusCode, body: &[u8]) -> Result<TrustBundle, FederationError> {
        let trust_domain = || self.endpoint.trust_domain.clone();
        if status != StatusCode::OK {
            return Err(FederationError::Status { trust_domain: trust_domain(), status });
        }
        let wrong = |error| FederationError::Bundle { trust_domain: trust_domain(), error };
        let text = std::str::from_utf8(body)
            .map_err(|_detail| wrong(BundleError::Json { message: "not UTF-8".to_owned() }))?;
        let bundle = TrustBundle::from_json(trust_domain(), text).map_err(wrong)?;
        let Some(held) = &self.held else { return Ok(bundle) };
        let bundle = match held.crls() {
            Some(crls) => bundle.with_crls(crls.clone()),
            None => bundle,
        };
        bundle.succeeding(held).map_err(wrong)
    }

    /// Notes that no answer came. Each failure in a row doubles the pause, up to an hour.
    pub fn failed(&mut self, now: UnixTime, random: u64) {
        let usual = hint(self.held.as_ref());
        let doubled = usual.saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = self.failures.saturating_add(1);
        self.asked = Some(now);
        self.due = later(now, doubled.min(MAX_PAUSE.max(usual)), random);
    }
}

fn hint(bundle: Option<&TrustBundle>) -> Duration {
    let hint = bundle.map_or(crate::DEFAULT_REFRESH_HINT, TrustBundle::refresh_hint);
    hint.clamp(*HINTS.start(), *HINTS.end())
}

/// After the pause and up to a tenth of it more.
fn later(now: UnixTime, pause: Duration, random: u64) -> UnixTime {
    let tenth = pause.as_secs().checked_div(10).unwrap_or_default();
    let jitter = random.checked_rem(tenth.saturating_add(1)).unwrap_or_default();
    let seconds = now.as_secs().saturating_add(pause.as_secs()).saturating_add(jitter);
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(second))
    }

    fn endpoint(profile: EndpointProfile) -> FederationEndpoint {
        let url = "https://b.test/bundle.json";
        FederationEndpoint::new("b.test".parse().unwrap(), url, profile).unwrap()
    }

    fn web() -> FederatedBundle {
        FederatedBundle::new(endpoint(EndpointProfile::HttpsWeb), None)
    }

    #[test]
    fn sec_id_10_only_https_without_a_user() {
        let domain: TrustDomain = "b.test".parse().unwrap();
        for bad in [
            "",
            "b.test/bundle.json",
            "http://b.test/bundle.json",
            "HTTP://b.test/",
            "file:///etc/passwd",
            "https://user@b.test/",
            "https://user:secret@b.test/",
            "https:///bundle.json",
            "https://b.test/#x",
            "/bundle.json",
            "*",
        ] {
            let got = FederationEndpoint::new(domain.clone(), bad, EndpointProfile::HttpsWeb);
            assert_eq!(got, Err(FederationError::Url), "{bad}");
        }
        for good in ["https://b.test/bundle.json", "https://127.0.0.1:8443/x?y", "https://b.test"] {
            let got = FederationEndpoint::new(domain.clone(), good, EndpointProfile::HttpsWeb);
            assert!(got.is_ok(), "{good}");
        }
    }

    #[test]
    fn sec_id_10_at_least_the_hint_between_two_fetches() {
        let mut federated = web();
        assert!(federated.due() <= at(0));
        for (hint, seconds) in
            [("60", 60), ("0", 10), ("1", 10), ("18446744073709551615", 86_400), ("300", 300)]
        {
            let body = format!(r#"{{"keys": [], "spiffe_refresh_hint": {hint}}}"#);
            federated.answered(StatusCode::OK, body.as_bytes(), at(1000), 0).unwrap();
            assert_eq!(federated.due(), at(1000 + seconds), "{hint}");
            for random in [1, 7, 1 << 40, u64::MAX] {
                federated.answered(StatusCode::OK, body.as_bytes(), at(1000), random).unwrap();
                let due = federated.due();
                assert!(due >= at(1000 + seconds) && due <= at(1000 + seconds + seconds / 10));
            }
        }
        federated.answered(StatusCode::OK, br#"{"keys": []}"#, at(u64::MAX), 5).unwrap();
        assert_eq!(federated.due(), at(u64::MAX), "no overflow");
    }

    #[test]
    fn sec_id_10_failures_move_apart_and_change_nothing() {
        let mut federated = web();
        let good = br#"{"keys": [], "spiffe_sequence": 7, "spiffe_refresh_hint": 300}"#;
        assert_eq!(federated.answered(StatusCode::OK, good, at(0), 0), Ok(true));
        assert_eq!(federated.answered(StatusCode::OK, good, at(0), 0), Ok(false), "the same");
        let held = federated.held().cloned();
        for pause in [300, 600, 1200, 2400, 3600, 3600] {
            federated.failed(at(1000), 0);
            assert_eq!(federated.due(), at(1000 + pause));
        }
        for _ in 0..100 {
            federated.failed(at(1000), 0);
        }
        assert_eq!((federated.due(), federated.failures()), (at(4600), 106));
        let stale = br#"{"keys": [], "spiffe_sequence": 6}"#;
        let answers: [(StatusCode, &[u8]); 7] = [
            (StatusCode::NOT_FOUND, good),
            (StatusCode::NO_CONTENT, good),
            (StatusCode::FOUND, good),
            (StatusCode::OK, b""),
            (StatusCode::OK, b"\xff"),
            (StatusCode::OK, b"{}"),
            (StatusCode::OK, stale),
        ];
        for (status, body) in answers {
            assert!(federated.answered(status, body, at(0), 0).is_err(), "{status}");
            assert_eq!(federated.held(), held.as_ref());
        }
        let newer = br#"{"keys": [], "spiffe_sequence": 8}"#;
        assert_eq!(federated.answered(StatusCode::OK, newer, at(0), 0), Ok(true));
        assert_eq!((federated.due(), federated.failures()), (at(300), 0));
    }

    #[test]
    fn sec_ops_5_a_clock_that_is_set_back_stops_no_fetch() {
        let body = br#"{"keys": [], "spiffe_refresh_hint": 300}"#;
        for fails in [false, true] {
            let mut federated = web();
            assert!(federated.is_due(at(0)));
            if fails {
                federated.failed(at(1_000_000), 0);
            } else {
                federated.answered(StatusCode::OK, body, at(1_000_000), 0).unwrap();
            }
            let due = |second| federated.is_due(at(second));
            let seen = [999_999, 1_000_000, 1_000_299, 1_000_300].map(due);
            assert_eq!(seen, [true, false, false, true]);
        }
    }

    #[test]
    fn sec_id_10_a_bundle_is_of_the_configured_domain() {
        let mut federated = web();
        // Whatever else the document says.
        let body = br#"{"keys": [], "trust_domain": "a.test", "spiffe_id": "spiffe://a.test"}"#;
        federated.answered(StatusCode::OK, body, at(0), 0).unwrap();
        assert_eq!(federated.held().unwrap().trust_domain().as_str(), "b.test");
        // A bundle map is no bundle.
        let map = br#"{"trust_domains": {"b.test": {"keys": []}}}"#;
        assert!(federated.answered(StatusCode::OK, map, at(0), 0).is_err());
        // A configured bundle of another domain is not held.
        let other = TrustBundle::new("a.test".parse().unwrap());
        let federated = FederatedBundle::new(endpoint(EndpointProfile::HttpsWeb), Some(other));
        assert_eq!(federated.held(), None);
    }

    #[test]
    fn sec_id_10_whom_to_believe_at_the_endpoint() {
        let bundle = |name: &str| TrustBundle::new(name.parse().unwrap());
        let others = BundleSet::from_bundles([bundle("a.test"), bundle("c.test")]).unwrap();
        let whom = |profile, held: Option<TrustBundle>| {
            let federated = FederatedBundle::new(endpoint(profile), held);
            let bundle = federated.endpoint_bundle(&others);
            bundle.map(|bundle| bundle.trust_domain().as_str().to_owned())
        };
        let spiffe = |id: &str| EndpointProfile::HttpsSpiffe(id.parse().unwrap());
        let is = |name: &str| Some(name.to_owned());
        assert_eq!(whom(EndpointProfile::HttpsWeb, Some(bundle("b.test"))), None);
        let own = spiffe("spiffe://b.test/bundles");
        assert_eq!(whom(own.clone(), Some(bundle("b.test"))), is("b.test"));
        assert_eq!(whom(own, None), None, "nothing to begin with");
        assert_eq!(whom(spiffe("spiffe://c.test/x"), Some(bundle("b.test"))), is("c.test"));
        assert_eq!(whom(spiffe("spiffe://d.test/x"), Some(bundle("b.test"))), None);
    }
}
