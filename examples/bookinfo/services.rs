//! The four services: ordinary axum routers that know nothing of certificates or policies.
//!
//! Each notes what reached it, so that a step can prove that a refused request did not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use mesh_tower::{Connector, Permit};
use serde_json::{Value, json};

/// What a handler saw of a request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The verified caller.
    pub peer: Option<String>,
    /// The path that was routed.
    pub path: String,
    /// The values of `x-bookinfo-role`.
    pub roles: Vec<String>,
}

/// Everything that reached one service.
#[derive(Clone, Debug, Default)]
pub struct Diary {
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Diary {
    /// How many requests reached the service.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none did.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The newest request.
    #[must_use]
    pub fn last(&self) -> Option<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).last().cloned()
    }

    fn note(&self, seen: Seen) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
    }
}

async fn note(State(diary): State<Diary>, request: Request, next: Next) -> Response {
    let permit = request.extensions().get::<Permit>();
    let roles = request.headers().get_all("x-bookinfo-role").iter();
    diary.note(Seen {
        peer: permit.and_then(Permit::peer).map(|peer| peer.id().to_string()),
        path: request.uri().path().to_owned(),
        roles: roles.map(|role| String::from_utf8_lossy(role.as_bytes()).into_owned()).collect(),
    });
    next.run(request).await
}

/// Calls other services of the mesh, passing on the headers that belong to the user's request.
#[derive(Clone, Debug)]
pub struct Caller {
    client: Client<Connector, Full<bytes::Bytes>>,
}

/// Headers that productpage and reviews hand on.
const FORWARDED: &[&str] = &[
    "authorization",
    "cookie",
    "end-user",
    "user-agent",
    "x-request-id",
    "traceparent",
    "tracestate",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
];

impl Caller {
    /// A caller that connects through `connector`, with a fresh connection for each burst of calls.
    #[must_use]
    pub fn new(connector: Connector) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        // The demo replaces certificates between steps; a pooled connection would hide that.
        builder.pool_max_idle_per_host(0);
        Self { client: builder.build(connector) }
    }

    /// `GET`s a service; nothing when it could not be reached at all.
    async fn get(&self, host: &str, path: &str, from: &HeaderMap) -> Option<(StatusCode, Value)> {
        let uri = Uri::builder().scheme("https").authority(host).path_and_query(path);
        let mut request = axum::http::Request::new(Full::default());
        *request.uri_mut() = uri.build().ok()?;
        for name in FORWARDED {
            for value in from.get_all(*name) {
                request.headers_mut().append(*name, value.clone());
            }
        }
        let response = self.client.request(request).await.ok()?;
        let status = response.status();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }
}

fn health(name: &'static str) -> Router {
    let body = json!({ "status": format!("{name} is healthy") });
    Router::new().route("/health", get(move || async move { Json(body) }))
}

fn finish(router: Router, name: &'static str, diary: Diary) -> Router {
    router.merge(health(name)).layer(middleware::from_fn_with_state(diary, note))
}

fn bad_request(text: &str) -> Response {
    (StatusCode::BAD_REQUEST, Json(json!({ "error": text }))).into_response()
}

/// Book details.
pub fn details(diary: Diary) -> Router {
    async fn one(Path(id): Path<String>) -> Response {
        let Ok(id) = id.parse::<u64>() else {
            return bad_request("please provide numeric product id");
        };
        Json(json!({
            "id": id,
            "author": "William Shakespeare",
            "year": 1595,
            "type": "paperback",
            "pages": 200,
            "publisher": "PublisherA",
            "language": "English",
            "ISBN-10": "1234567890",
            "ISBN-13": "123-1234567890",
        }))
        .into_response()
    }
    // POST exists so that a policy about methods has something to refuse.
    let routes = get(one).post(one);
    finish(Router::new().route("/details/{id}", routes), "Details", diary)
}

/// Star ratings, which can be replaced.
pub fn ratings(diary: Diary) -> Router {
    type Stored = Arc<Mutex<BTreeMap<u64, Value>>>;

    async fn read(State(stored): State<Stored>, Path(id): Path<String>) -> Response {
        let Ok(id) = id.parse::<u64>() else {
            return bad_request("please provide numeric product ID");
        };
        let stored = stored.lock().unwrap_or_else(PoisonError::into_inner);
        let ratings = stored.get(&id).cloned();
        let ratings = ratings.unwrap_or_else(|| json!({ "Reviewer1": 5, "Reviewer2": 4 }));
        Json(json!({ "id": id, "ratings": ratings })).into_response()
    }

    async fn write(State(stored): State<Stored>, Path(id): Path<String>, body: Body) -> Response {
        let Ok(id) = id.parse::<u64>() else {
            return bad_request("please provide numeric product ID");
        };
        let body = axum::body::to_bytes(body, 64 * 1024).await.unwrap_or_default();
        let Ok(ratings @ Value::Object(_)) = serde_json::from_slice(&body) else {
            return bad_request("please provide valid ratings JSON");
        };
        stored.lock().unwrap_or_else(PoisonError::into_inner).insert(id, ratings.clone());
        Json(json!({ "id": id, "ratings": ratings })).into_response()
    }

    let router =
        Router::new().route("/ratings/{id}", get(read).post(write)).with_state(Stored::default());
    finish(router, "Ratings", diary)
}

/// Two reviews, with the stars that ratings gives.
pub fn reviews(diary: Diary, caller: Caller) -> Router {
    async fn both(
        State(caller): State<Caller>,
        Path(id): Path<String>,
        headers: HeaderMap,
    ) -> Response {
        let Ok(id) = id.parse::<u64>() else {
            return bad_request("please provide numeric product ID");
        };
        let answer = caller.get("ratings", &format!("/ratings/{id}"), &headers).await;
        let stars = answer.filter(|(status, _)| status.is_success()).map(|(_, ratings)| ratings);
        let rating = |reviewer: &str| match &stars {
            Some(ratings) => json!({ "stars": ratings["ratings"][reviewer], "color": "black" }),
            None => json!({ "error": "Ratings service is currently unavailable" }),
        };
        Json(json!({
            "id": id,
            "podname": "reviews-v2",
            "clustername": "in-process",
            "reviews": [
                {
                    "reviewer": "Reviewer1",
                    "text": "Everybody is wrong about everybody, and it still ends well.",
                    "rating": rating("Reviewer1"),
                },
                {
                    "reviewer": "Reviewer2",
                    "text": "Short, quick, and funnier the second time.",
                    "rating": rating("Reviewer2"),
                },
            ],
        }))
        .into_response()
    }
    let router = Router::new().route("/reviews/{id}", get(both)).with_state(caller);
    finish(router, "Reviews", diary)
}

/// The page's API, which asks the others.
pub fn productpage(diary: Diary, caller: Caller) -> Router {
    async fn part(
        caller: Caller,
        headers: HeaderMap,
        (host, path, what, tries): (&str, String, &str, usize),
    ) -> Response {
        let mut status = StatusCode::INTERNAL_SERVER_ERROR;
        for _ in 0..tries {
            match caller.get(host, &path, &headers).await {
                Some((StatusCode::OK, body)) => return Json(body).into_response(),
                Some((other, _)) => status = other,
                None => status = StatusCode::INTERNAL_SERVER_ERROR,
            }
        }
        let error = format!("Sorry, product {what} are currently unavailable for this book.");
        (status, Json(json!({ "error": error }))).into_response()
    }

    async fn details(
        State(caller): State<Caller>,
        Path(id): Path<String>,
        headers: HeaderMap,
    ) -> Response {
        part(caller, headers, ("details", format!("/details/{id}"), "details", 1)).await
    }

    async fn reviews(
        State(caller): State<Caller>,
        Path(id): Path<String>,
        headers: HeaderMap,
    ) -> Response {
        part(caller, headers, ("reviews", format!("/reviews/{id}"), "reviews", 2)).await
    }

    async fn ratings(
        State(caller): State<Caller>,
        Path(id): Path<String>,
        headers: HeaderMap,
    ) -> Response {
        part(caller, headers, ("ratings", format!("/ratings/{id}"), "ratings", 1)).await
    }

    let router = Router::new()
        .route("/api/v1/products/{id}", get(details))
        .route("/api/v1/products/{id}/reviews", get(reviews))
        .route("/api/v1/products/{id}/ratings", get(ratings))
        .with_state(caller);
    finish(router, "Productpage", diary)
}

/// The answer's content type, for steps that compare it.
#[must_use]
pub fn is_json(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|value| value == "application/json")
}
