//! Which tokens an authority's APIs take: mesh-authn's verifiers, where mesh-ca asks.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue, Method};
use mesh_authn::request::{
    Authentication, JwtSvidVerifier, KeySets, RequestAuthentication, RequestAuthenticator,
    RequestView, TokenLimits, TokenOptions, Tolerance,
};
use mesh_ca::serve::{CallerTokens, CheckError, CheckedJwtSvid, JwtSvidCheck};
use mesh_identity::manifest;
use mesh_identity::{BundleSet, MeshSettings, SpiffeId, TrustDomain, Workload};
use rustls_pki_types::UnixTime;
use serde_json::json;

/// Verifies JWT-SVIDs for the Workload API's `ValidateJWTSVID`.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit struct is written by its name")]
pub struct JwtSvids;

impl JwtSvidCheck for JwtSvids {
    fn check(
        &self,
        token: &str,
        audience: &str,
        bundles: &BundleSet,
        now: UnixTime,
    ) -> Result<CheckedJwtSvid, CheckError> {
        let (verifier, _unusable) = JwtSvidVerifier::compile(bundles, [audience]);
        let svid = verifier.verify(token, now)?;
        let claims = svid.token.payload().object().clone();
        Ok(CheckedJwtSvid { id: svid.id, claims })
    }
}

/// The service accounts of a Kubernetes cluster, whose tokens `CreateCertificate` takes: signed by a
/// key of the cluster's key set, from its issuer, meant for an audience such as `istio-ca`, and not
/// expired.
///
/// istiod asks the cluster (TokenReview), which also knows whether a pod is gone; here a token is good
/// until it expires. Its identity is `spiffe://<trust domain>/ns/<namespace>/sa/<account>`.
pub struct ServiceAccounts {
    trust_domain: TrustDomain,
    issuer: String,
    audiences: Vec<String>,
    authenticator: ArcSwap<RequestAuthenticator>,
}

impl ServiceAccounts {
    /// Service accounts of the cluster with this issuer (`--service-account-issuer` of its API server)
    /// and key set (a JWKS document, as the API server has it at `/openid/v1/jwks`).
    ///
    /// # Errors
    ///
    /// What is wrong with issuer or key set, and an empty list of audiences: with none, a token that
    /// was made for any other service would do ([SEC-CA-8]).
    pub fn new(
        trust_domain: TrustDomain,
        issuer: &str,
        jwks: &str,
        audiences: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Self, CheckError> {
        let audiences: Vec<_> = audiences.into_iter().map(Into::into).collect();
        if audiences.is_empty() {
            return Err("service accounts need an audience, such as istio-ca".into());
        }
        let authenticator = compile(&trust_domain, issuer, &audiences, jwks)?;
        let authenticator = ArcSwap::from_pointee(authenticator);
        Ok(Self { trust_domain, issuer: issuer.to_owned(), audiences, authenticator })
    }

    /// Another key set, because the cluster has rotated its keys.
    ///
    /// # Errors
    ///
    /// What is wrong with it; then the one in force stays.
    pub fn set_keys(&self, jwks: &str) -> Result<(), CheckError> {
        let new = compile(&self.trust_domain, &self.issuer, &self.audiences, jwks)?;
        self.authenticator.store(Arc::new(new));
        Ok(())
    }
}

/// The rules for tokens are those of a RequestAuthentication.
fn compile(
    trust_domain: &TrustDomain,
    issuer: &str,
    audiences: &[String],
    jwks: &str,
) -> Result<RequestAuthenticator, CheckError> {
    const NAMESPACE: &str = "istio-system";
    let manifest = json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": { "name": "service-accounts", "namespace": NAMESPACE },
        "spec": { "jwtRules": [{ "issuer": issuer, "jwks": jwks, "audiences": audiences }] },
    });
    let read = manifest::read(&manifest.to_string(), "service accounts", NAMESPACE)?;
    let policies = read.resources.iter().map(RequestAuthentication::from_manifest);
    let policies = policies.collect::<Result<Vec<_>, _>>()?;
    let settings = MeshSettings::new(trust_domain.clone());
    let options =
        TokenOptions::strict().with_limits(TokenLimits::default()).refuse(Tolerance::NoExpiry);
    let (workload, keys) = (Workload::new(NAMESPACE), KeySets::new());
    Ok(RequestAuthenticator::compile(&policies, &workload, &settings, options, &keys)?)
}

impl CallerTokens for ServiceAccounts {
    fn caller(&self, token: &str, now: UnixTime) -> Result<SpiffeId, CheckError> {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_str(&format!("Bearer {token}"))?);
        let view = RequestView {
            method: &Method::POST,
            scheme: "https",
            host: "",
            path_and_query: "/",
            headers: &headers,
        };
        let token = match self.authenticator.load().authenticate(&view, now) {
            Authentication::Authenticated { token, .. } => token,
            Authentication::Anonymous(_) => return Err("not a token of this cluster".into()),
            Authentication::Refused(refusal) => return Err(refusal.reason().text().into()),
        };
        let subject = token.payload().subject().unwrap_or_default();
        let account = subject.strip_prefix("system:serviceaccount:");
        let account = account.and_then(|account| account.split_once(':'));
        let (namespace, name) = account.ok_or("not a service account's token")?;
        let id = format!("spiffe://{}/ns/{namespace}/sa/{name}", self.trust_domain);
        let id: SpiffeId = id.parse()?;
        // A name with a slash would be another identity.
        if id.path().split('/').count() != 5 {
            return Err("not a service account's name".into());
        }
        Ok(id)
    }
}

impl fmt::Debug for ServiceAccounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccounts").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}
