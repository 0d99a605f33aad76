//! Where a Workload API listens (SPIFFE Workload Endpoint section 4).

use std::env;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use mesh_identity::workload_api::ENDPOINT_VARIABLE;

/// The address of a Workload API: `unix:///absolute/path` or `tcp://<IP>:<port>`.
///
/// # Examples
///
/// ```
/// use mesh_tower::WorkloadEndpoint;
///
/// let endpoint: WorkloadEndpoint = "unix:///run/spire/agent.sock".parse()?;
/// assert_eq!(endpoint.to_string(), "unix:///run/spire/agent.sock");
/// assert!("tcp://localhost:8081".parse::<WorkloadEndpoint>().is_err(), "no names");
/// # Ok::<(), mesh_tower::EndpointError>(())
/// ```
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct WorkloadEndpoint {
    address: Address,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Why a text is no address of a Workload API.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// The environment does not name one.
    #[error("SPIFFE_ENDPOINT_SOCKET is not set")]
    NotSet,

    /// A query, a fragment, user info, a relative path, or another thing that has no place here.
    #[error("not of the form unix:///absolute/path or tcp://<IP>:<port>")]
    Form,

    /// Neither `unix` nor `tcp`.
    #[error("scheme is neither unix nor tcp")]
    Scheme,

    /// A TCP address with a name instead of an IP address, or without a port.
    #[error("tcp needs an IP address and a port")]
    Tcp,
}

impl WorkloadEndpoint {
    /// The address in `SPIFFE_ENDPOINT_SOCKET`.
    ///
    /// # Errors
    ///
    /// [`EndpointError`].
    pub fn from_env() -> Result<Self, EndpointError> {
        let text = env::var_os(ENDPOINT_VARIABLE).ok_or(EndpointError::NotSet)?;
        text.to_str().ok_or(EndpointError::Form)?.parse()
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }
}

impl FromStr for WorkloadEndpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let (scheme, rest) = text.split_once(':').ok_or(EndpointError::Form)?;
        let forbidden = |c: char| matches!(c, '?' | '#' | '%') || c.is_control() || c == ' ';
        if rest.contains(forbidden) {
            return Err(EndpointError::Form);
        }
        let rest = rest.strip_prefix("//").ok_or(EndpointError::Form)?;
        let address = match scheme {
            // No authority: the path follows the two slashes.
            "unix" if rest.starts_with('/') && rest.len() > 1 => Address::Unix(rest.into()),
            "unix" => return Err(EndpointError::Form),
            "tcp" if rest.contains(['/', '@']) => return Err(EndpointError::Form),
            "tcp" => Address::Tcp(tcp(rest).ok_or(EndpointError::Tcp)?),
            _ => return Err(EndpointError::Scheme),
        };
        Ok(Self { address })
    }
}

fn tcp(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let scoped = matches!(address, SocketAddr::V6(six) if six.scope_id() != 0);
    let usable = matches!(address.ip(), IpAddr::V4(_) | IpAddr::V6(_)) && !scoped;
    (usable && address.port() != 0).then_some(address)
}

impl fmt::Display for WorkloadEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
            Address::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SPIFFE Workload Endpoint section 4.
    #[test]
    fn the_forms_of_an_address() {
        for good in ["unix:///a", "unix:///run/spire/a.sock", "tcp://127.0.0.1:80", "tcp://[::1]:8"]
        {
            assert_eq!(good.parse::<WorkloadEndpoint>().unwrap().to_string(), good);
        }
        for (bad, want) in [
            ("", EndpointError::Form),
            ("/run/a.sock", EndpointError::Form),
            ("unix:/run/a.sock", EndpointError::Form),
            ("unix://run/a.sock", EndpointError::Form),
            ("unix://", EndpointError::Form),
            ("unix:///", EndpointError::Form),
            ("unix:///a?b", EndpointError::Form),
            ("unix:///a#b", EndpointError::Form),
            ("unix://u@h/a", EndpointError::Form),
            ("UNIX:///a", EndpointError::Scheme),
            ("http://127.0.0.1:80", EndpointError::Scheme),
            ("tcp://127.0.0.1", EndpointError::Tcp),
            ("tcp://127.0.0.1:0", EndpointError::Tcp),
            ("tcp://127.0.0.1:80/", EndpointError::Form),
            ("tcp://127.0.0.1:80/a", EndpointError::Form),
            ("tcp://u@127.0.0.1:80", EndpointError::Form),
            ("tcp://127.0.0.1:80?a", EndpointError::Form),
            ("tcp://localhost:80", EndpointError::Tcp),
            ("tcp://127.0.0.1:99999", EndpointError::Tcp),
            ("tcp:127.0.0.1:80", EndpointError::Form),
        ] {
            assert_eq!(bad.parse::<WorkloadEndpoint>(), Err(want), "{bad}");
        }
    }
}
