//! From a refusal to the response that Envoy would have sent, byte for byte.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use mesh_authz::Decision;
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};

use crate::body::ResponseBody;

/// Why a request goes no further, and what the client is told: never more than Istio tells
/// ([SEC-HTTP-16]).
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    /// For logs only: Envoy's response code details where Envoy has them.
    pub(crate) detail: String,
    /// The decision behind it, where CUSTOM policies made one: events name its rule.
    pub(crate) decision: Option<Box<Decision>>,
}

/// What Envoy's RBAC filter says, and all it says ([SEM-RESP-01]).
const ACCESS_DENIED: &str = "RBAC: access denied";

impl Refusal {
    /// A request that no policy has been asked about because it is not one request.
    pub(crate) fn malformed(why: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Bytes::new(), format!("malformed_request{{{why}}}"))
    }

    /// A fault of ours or of the program that mounted us; it never lets a request through.
    pub(crate) fn fault(why: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, Bytes::new(), format!("mesh_fault{{{why}}}"))
    }

    /// DENY, or no ALLOW ([SEM-RESP-01]).
    pub(crate) fn denied(detail: String) -> Self {
        Self::new(StatusCode::FORBIDDEN, Bytes::from_static(ACCESS_DENIED.as_bytes()), detail)
    }

    /// A token that was looked at and is not valid ([SEM-JWT-23]).
    pub(crate) fn token(status: StatusCode, text: &str, challenge: HeaderValue) -> Self {
        let detail = format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_"));
        let mut refusal = Self::new(status, Bytes::copy_from_slice(text.as_bytes()), detail);
        refusal.headers.push((WWW_AUTHENTICATE, challenge));
        refusal
    }

    /// An answer with a status and body of its own, as an external authorizer gives it.
    pub(crate) fn new(status: StatusCode, body: Bytes, detail: String) -> Self {
        Self { status, body, headers: Vec::new(), detail, decision: None }
    }

    /// The response to this request: gRPC gets its own form ([SEM-RESP-10]), HEAD no body
    /// ([SEM-RESP-02]).
    pub(crate) fn response<B>(self, request: RequestKind) -> Response<ResponseBody<B>> {
        let mut response = Response::new(ResponseBody::refusal(Bytes::new()));
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            headers.append(name, value);
        }
        match request {
            RequestKind::Grpc => {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                headers.insert("grpc-status", HeaderValue::from(grpc_status(self.status)));
                if let Ok(message) =
                    HeaderValue::from_str(&percent_encode(&self.body, GRPC_MESSAGE).to_string())
                {
                    headers.insert("grpc-message", message);
                }
            }
            RequestKind::Http { head } => {
                if !self.body.is_empty() {
                    headers.entry(CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
                }
                headers.insert(CONTENT_LENGTH, HeaderValue::from(self.body.len()));
                *response.status_mut() = self.status;
                if !head {
                    *response.body_mut() = ResponseBody::refusal(self.body);
                }
            }
        }
        response
    }
}

/// What decides the form of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RequestKind {
    Grpc,
    Http { head: bool },
}

impl RequestKind {
    /// [SEM-RESP-10] gRPC is told by its content type.
    pub(crate) fn of(parts: &Parts) -> Self {
        let content_type = parts.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
        let grpc = content_type.is_some_and(|text| {
            text == b"application/grpc" || text.starts_with(b"application/grpc+")
        });
        if grpc { Self::Grpc } else { Self::Http { head: parts.method == Method::HEAD } }
    }
}

/// [SEM-RESP-12]
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// [SEM-RESP-11] Bytes outside 0x20 to 0x7E and the percent sign become `%XX`.
const GRPC_MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sem_resp_12_status_map() {
        let cases =
            [(400, 13), (401, 16), (403, 7), (404, 12), (429, 14), (503, 14), (500, 2), (418, 2)];
        for (http, grpc) in cases {
            assert_eq!(grpc_status(StatusCode::from_u16(http).unwrap()), grpc, "{http}");
        }
    }

    #[test]
    fn sem_resp_11_grpc_messages_are_percent_encoded() {
        let encoded = |text: &str| percent_encode(text.as_bytes(), GRPC_MESSAGE).to_string();
        assert_eq!(encoded("RBAC: access denied"), "RBAC: access denied");
        assert_eq!(encoded("50% \u{e4}\n\u{7f}"), "50%25 %C3%A4%0A%7F");
    }

    #[test]
    fn sem_resp_02_head_has_the_length_but_no_body() {
        let refusal = Refusal::denied(String::new());
        let response =
            refusal.response::<ResponseBody<http_body_util::Full<Bytes>>>(RequestKind::Http {
                head: true,
            });
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(response.headers()[CONTENT_LENGTH], "19");
        assert!(http_body::Body::is_end_stream(response.body()));
    }
}
