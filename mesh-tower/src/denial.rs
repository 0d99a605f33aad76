//! Answers of the program's own in place of Istio's.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode};

use crate::mask;

/// A refusal that is about to be answered, for a program that answers in its own way.
///
/// It says what the client may know. Which policy refused is in the event, not here ([SEM-RESP-03]).
///
/// `Debug` shows no header ([SEC-OPS-4]).
#[non_exhaustive]
pub struct DeniedRequest<'a> {
    /// The status that Istio would send: 400, 401, 403, or what a policy demands.
    pub status: StatusCode,
    /// The method of the request.
    pub method: &'a Method,
    /// The path of the request, normalized if it came as far, without the query.
    pub path: &'a str,
    /// The headers of the request, for the `accept` header; nothing in them is verified.
    pub headers: &'a HeaderMap,
}

impl fmt::Debug for DeniedRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeniedRequest")
            .field("status", &self.status)
            .field("method", self.method)
            .field("path", &mask::tokens(self.path))
            .finish_non_exhaustive()
    }
}

/// Makes the answer to a refusal, or leaves it to Istio's form.
pub(crate) type DenialHook = dyn Fn(&DeniedRequest<'_>) -> Option<Response<Bytes>> + Send + Sync;

/// The hook as it is held; absent by default.
#[derive(Clone, Default)]
pub(crate) struct Hook(Option<Arc<DenialHook>>);

impl Hook {
    pub(crate) fn new(hook: Arc<DenialHook>) -> Self {
        Self(Some(hook))
    }

    /// The program's answer; one that looks like success is not taken, because a client would
    /// believe it.
    pub(crate) fn answer(&self, denial: &DeniedRequest<'_>) -> Option<Response<Bytes>> {
        let hook = self.0.as_ref()?;
        hook(denial).filter(|response| !response.status().is_success())
    }

    pub(crate) fn is_some(&self) -> bool {
        self.0.is_some()
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Hook(..)" } else { "Hook(none)" })
    }
}
