//! What a program sets once about requests; it is no part of the live configuration.

use std::time::Duration;

use http::header::HeaderName;
use http::{HeaderMap, Method};

use crate::denial::Hook;
use crate::open_path::OpenPath;
use crate::xfcc::ForwardClientCert;

/// Settings of the HTTP side of a mesh.
#[derive(Clone, Debug, Default)]
pub(crate) struct HttpSettings {
    pub(crate) forward_cert: ForwardClientCert,
    pub(crate) reserved: Vec<HeaderName>,
    pub(crate) fold_underscores: bool,
    pub(crate) open: Vec<OpenPath>,
    pub(crate) denial: Hook,
    /// How long a request waits for the first fetch of a key set that its token needs.
    pub(crate) first_keys: Duration,
}

impl HttpSettings {
    /// Removes the headers that only the program itself may set ([SEC-HTTP-6]).
    pub(crate) fn clean(&self, headers: &mut HeaderMap) {
        for name in &self.reserved {
            headers.remove(name);
        }
        if self.fold_underscores {
            // What an application could read as another header's name.
            let folded = headers.keys().filter(|name| name.as_str().contains('_')).cloned();
            for name in folded.collect::<Vec<_>>() {
                headers.remove(name);
            }
        }
    }

    /// Whether nobody need be asked about this request.
    pub(crate) fn is_open(&self, method: &Method, path: &str) -> bool {
        self.open.iter().any(|open| open.matches(method, path))
    }
}
