//! axum: extractors that only compile behind the layer, and a router that only mounts behind it.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::Router;
use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Request, StatusCode};
use http_body::Body;
use mesh_identity::VerifiedPeer;
use serde::de::DeserializeOwned;
use tower_service::Service;

use crate::body::RequestBody;
use crate::guard::Permit;
use crate::mesh::Mesh;
use crate::resource::AccessDenied;
use crate::server::{ListenerAddress, MeshListener, WithConnection};
use crate::service::MeshService;

/// The state of a router whose handlers may ask who calls.
///
/// [`Permit`], [`Peer`] and [`Claims`] are extractors for this state alone, and only
/// [`GuardedRouter`] makes one: a handler that relies on them cannot be served without the mesh.
/// It dereferences to the program's own state; take it with `State(app): State<Guarded<App>>`.
///
/// A plain router does not take such a handler:
///
/// ```compile_fail,E0277
/// use axum::{Router, routing::get};
/// use mesh_tower::Peer;
///
/// async fn cart(peer: Peer) -> String {
///     peer.id().to_string()
/// }
/// let app: Router = Router::new().route("/cart", get(cart));
/// ```
#[derive(Clone, Debug)]
pub struct Guarded<S = ()> {
    state: S,
}

impl<S> Deref for Guarded<S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.state
    }
}

/// A router that can be served behind the mesh and nowhere else.
///
/// # Examples
///
/// ```
/// use axum::{Router, routing::get};
/// use mesh_tower::{GuardedRouter, Peer};
///
/// async fn cart(peer: Peer) -> String {
///     format!("the cart of {}\n", peer.id())
/// }
/// let app = GuardedRouter::new(Router::new().route("/cart", get(cart)), ());
/// # fn served(mesh: &mesh_tower::Mesh, listener: tokio::net::TcpListener, app: GuardedRouter) {
/// let serving = mesh.serve(listener, app, std::future::pending());
/// # drop(serving);
/// # }
/// ```
///
/// It takes only requests that the layer has passed on, so a server that is not the mesh's does not
/// take it:
///
/// ```compile_fail,E0277
/// # use axum::Router;
/// # use mesh_tower::GuardedRouter;
/// # async fn unguarded(listener: tokio::net::TcpListener) {
/// axum::serve(listener, GuardedRouter::new(Router::new(), ())).await;
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct GuardedRouter {
    router: Router,
}

impl GuardedRouter {
    /// A router with its state.
    #[must_use]
    pub fn new<S: Clone + Send + Sync + 'static>(router: Router<Guarded<S>>, state: S) -> Self {
        Self { router: router.with_state(Guarded { state }) }
    }
}

impl<B> Service<Request<RequestBody<B>>> for GuardedRouter
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<axum::BoxError>,
{
    type Response = Response;
    type Error = Infallible;
    type Future = axum::routing::future::RouteFuture<Infallible>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Service::<Request<RequestBody<B>>>::poll_ready(&mut self.router, cx)
    }

    fn call(&mut self, request: Request<RequestBody<B>>) -> Self::Future {
        self.router.call(request)
    }
}

/// The verified workload that calls. On plain text the request is refused with 403;
/// `Option<Peer>` takes it.
///
/// # Examples
///
/// ```
/// use mesh_tower::Peer;
///
/// async fn cart(Peer(caller): Peer) -> String {
///     format!("the cart of {}", caller.id())
/// }
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "an extractor is taken apart in a pattern")]
pub struct Peer(pub VerifiedPeer);

impl Deref for Peer {
    type Target = VerifiedPeer;

    fn deref(&self) -> &VerifiedPeer {
        &self.0
    }
}

/// The verified token's claims as a type of the program's own.
///
/// Without a token the answer is 401, with claims of another shape 403; `Option<Claims<T>>` takes a
/// request without a token.
///
/// # Examples
///
/// ```
/// use mesh_tower::{Claims, Guarded, GuardedRouter};
///
/// #[derive(serde::Deserialize)]
/// struct User {
///     sub: String,
///     #[serde(default)]
///     groups: Vec<String>,
/// }
///
/// async fn whoami(Claims(user): Claims<User>) -> String {
///     user.sub
/// }
/// let app = axum::Router::<Guarded>::new().route("/", axum::routing::get(whoami));
/// let app = GuardedRouter::new(app, ());
/// ```
#[derive(Clone, Debug)]
#[expect(clippy::exhaustive_structs, reason = "an extractor is taken apart in a pattern")]
pub struct Claims<T>(pub T);

/// Why a handler was not called: the request has not what the handler asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Missing {
    /// The claims have another shape than the handler expects.
    #[error("claims have another shape")]
    Claims,

    /// The connection proves no workload.
    #[error("no verified peer")]
    Peer,

    /// No policy was asked about this request: it came by an open path.
    #[error("no permit")]
    Permit,

    /// There was no token.
    #[error("no verified token")]
    Token,
}

impl IntoResponse for Missing {
    fn into_response(self) -> Response {
        match self {
            Self::Token => {
                let headers = [
                    (CONTENT_TYPE, "text/plain"),
                    (WWW_AUTHENTICATE, "Bearer error=\"invalid_token\""),
                ];
                (StatusCode::UNAUTHORIZED, headers, "Jwt is missing").into_response()
            }
            Self::Claims | Self::Peer | Self::Permit => AccessDenied.into_response(),
        }
    }
}

impl IntoResponse for AccessDenied {
    fn into_response(self) -> Response {
        let headers = [(CONTENT_TYPE, "text/plain")];
        (StatusCode::FORBIDDEN, headers, "RBAC: access denied").into_response()
    }
}

fn permit(parts: &Parts) -> Result<&Permit, Missing> {
    parts.extensions.get::<Permit>().ok_or(Missing::Permit)
}

impl<S: Sync> FromRequestParts<Guarded<S>> for Permit {
    type Rejection = Missing;

    async fn from_request_parts(parts: &mut Parts, _: &Guarded<S>) -> Result<Self, Missing> {
        permit(parts).cloned()
    }
}

impl<S: Sync> OptionalFromRequestParts<Guarded<S>> for Permit {
    type Rejection = Infallible;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &Guarded<S>,
    ) -> Result<Option<Self>, Infallible> {
        Ok(permit(parts).ok().cloned())
    }
}

impl<S: Sync> FromRequestParts<Guarded<S>> for Peer {
    type Rejection = Missing;

    async fn from_request_parts(parts: &mut Parts, _: &Guarded<S>) -> Result<Self, Missing> {
        permit(parts)?.peer().cloned().map(Self).ok_or(Missing::Peer)
    }
}

impl<S: Sync> OptionalFromRequestParts<Guarded<S>> for Peer {
    type Rejection = Missing;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &Guarded<S>,
    ) -> Result<Option<Self>, Missing> {
        Ok(permit(parts)?.peer().cloned().map(Self))
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<Guarded<S>> for Claims<T> {
    type Rejection = Missing;

    async fn from_request_parts(parts: &mut Parts, _: &Guarded<S>) -> Result<Self, Missing> {
        claims(parts)?.ok_or(Missing::Token)
    }
}

impl<S: Sync, T: DeserializeOwned> OptionalFromRequestParts<Guarded<S>> for Claims<T> {
    type Rejection = Missing;

    async fn from_request_parts(
        parts: &mut Parts,
        _: &Guarded<S>,
    ) -> Result<Option<Self>, Missing> {
        claims(parts)
    }
}

fn claims<T: DeserializeOwned>(parts: &Parts) -> Result<Option<Claims<T>>, Missing> {
    let Some(token) = permit(parts)?.token() else { return Ok(None) };
    let read = T::deserialize(token.payload().object());
    read.map(|read| Some(Claims(read))).map_err(|_shape| Missing::Claims)
}

/// Makes the guarded service of each connection of a [`MeshListener`]; made by
/// [`Mesh::make_service`].
#[derive(Clone, Debug)]
pub struct MeshMakeService<S> {
    guarded: MeshService<S>,
}

/// The guarded service of one connection, as `axum::serve` takes it.
#[derive(Clone, Debug)]
pub struct ConnectionService<S> {
    inner: WithConnection<MeshService<S>>,
}

impl Mesh {
    /// Guards a router or service for `axum::serve` on a [`MeshListener`].
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # async fn run(mesh: mesh_tower::Mesh, app: mesh_tower::GuardedRouter) -> std::io::Result<()> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:8443").await?;
    /// axum::serve(mesh.listener(listener)?, mesh.make_service(app)).await
    /// # }
    /// ```
    #[must_use]
    pub fn make_service<S>(&self, service: S) -> MeshMakeService<S> {
        MeshMakeService { guarded: MeshService::new(self.clone(), service) }
    }
}

impl<S: Clone> Service<IncomingStream<'_, MeshListener>> for MeshMakeService<S> {
    type Response = ConnectionService<S>;
    type Error = Infallible;
    type Future = Ready<Result<ConnectionService<S>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, stream: IncomingStream<'_, MeshListener>) -> Self::Future {
        let info = match stream.remote_addr() {
            ListenerAddress::Connection(info) => Some(info.clone()),
            // A stream never has it; without facts the layer refuses every request.
            ListenerAddress::Bound(_) => None,
        };
        let inner = WithConnection { service: self.guarded.clone(), info };
        ready(Ok(ConnectionService { inner }))
    }
}

impl<S> Service<axum::extract::Request> for ConnectionService<S>
where
    S: Service<Request<RequestBody<axum::body::Body>>, Response = Response, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: axum::extract::Request) -> Self::Future {
        let answering = self.inner.call(request);
        Box::pin(async { answering.await.map(|response| response.map(axum::body::Body::new)) })
    }
}
