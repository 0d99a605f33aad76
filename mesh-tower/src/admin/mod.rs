//! A page for the person who runs the service: what is in force, what was refused, and why.

mod page;
mod recent;
mod state;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName,
    HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use http::uri::Authority;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tower_service::Service;

use crate::mesh::{Mesh, MeshBuilder};
use crate::readiness::{NotReady, Readiness};
pub(crate) use recent::Recent;
use state::State;

/// Serves what the mesh knows about itself, to people and to programs.
///
/// | path | answer |
/// |---|---|
/// | `/` | the page: policies with their hits, certificates, key sets, recent refusals explained |
/// | `/status.json` | the same for programs |
/// | `/metrics` | [`crate::Telemetry::prometheus`] |
/// | `/readyz` | 200 when [`Mesh::readiness`] has nothing to say, else 503 and what it says |
///
/// It only reads. It answers requests whose `host` is `localhost`, a loopback address or a name
/// given to [`Admin::host`], so that a page of somebody else's cannot read it by rebinding its own
/// name, and none that a browser sends for another site. The page has no script, and everything
/// that it shows is escaped.
///
/// # Examples
///
/// ```no_run
/// # async fn run(mesh: mesh_tower::Mesh) -> std::io::Result<()> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:15000").await?;
/// mesh.admin().serve(listener, std::future::pending()).await
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Admin {
    readiness: Readiness,
    /// Kept by the page of a mesh, not by one that was there before it.
    _mesh: Option<Mesh>,
    /// For the head of a request.
    deadline: Duration,
    hosts: Arc<BTreeSet<String>>,
    anywhere: bool,
}

impl Mesh {
    /// The admin service. From now on refusals are kept for its page, and explained.
    #[must_use]
    pub fn admin(&self) -> Admin {
        self.recent().begin();
        let readiness = Readiness::new();
        readiness.started(self);
        Admin::new(readiness, Some(self.clone()), self.limits().request_head)
    }
}

impl MeshBuilder {
    /// The admin service from before there is a mesh: until [`MeshBuilder::start`] has the first
    /// identity, it answers everything with 503 and what is waited for. It does not keep the mesh.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// # use mesh_tower::{IdentitySource, Mesh, MeshBuilder, Policies};
    /// # async fn run(builder: MeshBuilder, source: impl IdentitySource)
    /// # -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:15000").await?;
    /// tokio::spawn(builder.admin().serve(listener, std::future::pending()));
    /// // `/readyz` answers 503 until the identity is there.
    /// let mesh = builder.start(source, Policies::none()).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.readiness(), None, self.limits.request_head)
    }
}

impl Admin {
    fn new(readiness: Readiness, mesh: Option<Mesh>, deadline: Duration) -> Self {
        Self { readiness, _mesh: mesh, deadline, hosts: Arc::default(), anywhere: false }
    }

    /// Also answers under this host name, without a port.
    #[must_use]
    pub fn host(mut self, name: impl Into<String>) -> Self {
        let mut hosts = BTreeSet::clone(&self.hosts);
        hosts.insert(name.into().to_ascii_lowercase());
        self.hosts = Arc::new(hosts);
        self
    }

    /// Allows [`Admin::serve`] on addresses that others can reach. There is no authentication: put
    /// it where only operators come, or serve [`Admin`] as a service behind the mesh.
    #[must_use]
    pub fn on_any_address(mut self) -> Self {
        self.anywhere = true;
        self
    }

    /// Serves HTTP/1.1 until `shutdown` resolves.
    ///
    /// # Errors
    ///
    /// When the listener is bound to another address than loopback and
    /// [`Admin::on_any_address`] was not called, or has no address.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()>,
    ) -> io::Result<()> {
        if !self.anywhere && !listener.local_addr()?.ip().is_loopback() {
            let why = "the admin page is served on loopback only, unless on_any_address is called";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let deadline = self.deadline;
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => return Ok(()),
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let service = TowerToHyperService::new(self.clone());
            tokio::spawn(async move {
                let mut builder = hyper::server::conn::http1::Builder::new();
                builder.timer(TokioTimer::new()).header_read_timeout(deadline);
                drop(builder.serve_connection(TokioIo::new(stream), service).await);
            });
        }
    }

    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap) -> Answer {
        if !self.is_own_host(headers) {
            return Answer::refusal(StatusCode::MISDIRECTED_REQUEST, "unknown host\n");
        }
        let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
        if matches!(site, Some(b"cross-site" | b"same-site")) {
            return Answer::refusal(StatusCode::FORBIDDEN, "not for other sites\n");
        }
        if method != Method::GET && method != Method::HEAD {
            return Answer::refusal(StatusCode::METHOD_NOT_ALLOWED, "it only reads\n");
        }
        let mesh = match self.readiness.mesh() {
            Ok(mesh) => mesh,
            Err(why) => return Answer::not_ready(&why),
        };
        // Refusals are kept for whoever looks.
        mesh.recent().begin();
        let ok = StatusCode::OK;
        match path {
            "/" => Answer::new(ok, "text/html; charset=utf-8", page::html(&State::of(&mesh))),
            "/status.json" => {
                let text = State::of(&mesh).to_json().to_string();
                Answer::new(ok, "application/json", text)
            }
            "/metrics" => {
                let text = mesh.telemetry().prometheus();
                Answer::new(ok, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            "/readyz" => match mesh.readiness() {
                Ok(()) => Answer::new(ok, "text/plain; charset=utf-8", "ready\n".to_owned()),
                Err(why) => Answer::not_ready(&why),
            },
            _ => Answer::refusal(StatusCode::NOT_FOUND, "not here\n"),
        }
    }

    /// Whether the one `host` is a name of this service.
    fn is_own_host(&self, headers: &HeaderMap) -> bool {
        let mut hosts = headers.get_all(HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host().to_ascii_lowercase();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let is_loopback = address.is_ok_and(|address| address.is_loopback());
        name == "localhost" || is_loopback || self.hosts.contains(&name)
    }
}

struct Answer {
    status: StatusCode,
    content_type: &'static str,
    text: String,
}

impl Answer {
    fn new(status: StatusCode, content_type: &'static str, text: String) -> Self {
        Self { status, content_type, text }
    }

    fn not_ready(why: &NotReady) -> Self {
        Self::refusal(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {why}\n"))
    }

    fn refusal(status: StatusCode, text: &str) -> Self {
        Self::new(status, "text/plain; charset=utf-8", text.to_owned())
    }

    fn response(self, is_head: bool) -> Response<Full<Bytes>> {
        let length = self.text.len();
        let body = if is_head { Bytes::new() } else { Bytes::from(self.text) };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        for (name, value) in [
            (CONTENT_TYPE, self.content_type),
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
            (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Ok(policy) = HeaderValue::from_str(&page::content_security_policy()) {
            headers.insert(CONTENT_SECURITY_POLICY, policy);
        }
        response
    }
}

impl<B> Service<Request<B>> for Admin {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (method, path) = (request.method(), request.uri().path());
        let answer = self.answer(method, path, request.headers());
        ready(Ok(answer.response(method == Method::HEAD)))
    }
}
