//! The client's address behind proxies: what `remoteIpBlocks` and `remote.ip` look at.

use std::net::{IpAddr, Ipv6Addr};

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;
use mesh_identity::SpiffeId;

use crate::facts::PeerIdentity;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The most `X-Forwarded-For` entries that are looked at, from the right. A header list of 16 KiB
/// holds more, but no chain of trusted proxies is that long.
pub const MAX_TRUSTED_HOPS: usize = 64;

/// The client's address, and whether the peer claimed one without being trusted to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ClientAddress {
    ip: IpAddr,
    is_claim_untrusted: bool,
}

impl ClientAddress {
    /// The address that policies see.
    #[must_use]
    pub fn ip(self) -> IpAddr {
        self.ip
    }

    /// Whether there was an `X-Forwarded-For` from a peer that is no trusted proxy: it was ignored,
    /// and [`crate::StrictRule::ClientAddress`] refuses it where a policy reads the address.
    #[must_use]
    pub fn is_claim_untrusted(self) -> bool {
        self.is_claim_untrusted
    }

    /// An address from another source than a header, such as the PROXY protocol. IPv4 in IPv6's clothes
    /// is IPv4 ([SEC-AUTHZ-8]).
    #[must_use]
    pub fn known(ip: IpAddr) -> Self {
        Self { ip: ip.to_canonical(), is_claim_untrusted: false }
    }
}

/// Whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum XffTrust {
    /// Istio's sidecar: the rightmost entry, from anyone ([SEM-AUTHZ-35]). A direct caller chooses
    /// its own client address.
    Anyone,
    /// Istio's gateway with `numTrustedProxies` ([SEM-AUTHZ-36]): the entry so many from the right,
    /// from anyone; 0 is the peer.
    Gateway {
        /// The number of trusted proxies in front.
        trusted_proxies: usize,
    },
    /// Listed proxies only ([SEM-STRICT-08]); none by default, so that the peer's own address
    /// counts ([SEC-AUTHZ-8]).
    #[default]
    Nobody,
    /// Listed proxies only, which stand in a row ([SEM-STRICT-08]).
    Proxies(TrustedProxies),
}

/// Proxies whose `X-Forwarded-For` is believed: by address, or by SPIFFE ID.
#[derive(Clone, Debug)]
pub struct TrustedProxies {
    blocks: Vec<IpNet>,
    ids: Vec<SpiffeId>,
    hops: usize,
}

impl TrustedProxies {
    /// Proxies that stand `hops` in a row between the client and us; at least one.
    #[must_use]
    pub fn new(hops: usize) -> Self {
        Self { blocks: Vec::new(), ids: Vec::new(), hops: hops.clamp(1, MAX_TRUSTED_HOPS) }
    }

    /// Trusts peers that connect from these addresses.
    #[must_use]
    pub fn with_block(mut self, block: IpNet) -> Self {
        self.blocks.push(block);
        self
    }

    /// Trusts the peer with this verified identity.
    #[must_use]
    pub fn with_id(mut self, id: SpiffeId) -> Self {
        self.ids.push(id);
        self
    }

    fn contain(&self, ip: IpAddr, peer: PeerIdentity<'_>) -> bool {
        let by_id = match peer {
            PeerIdentity::Svid(peer) => self.ids.contains(peer.id()),
            PeerIdentity::None | PeerIdentity::Names(_) => false,
        };
        by_id || self.blocks.iter().any(|block| block.contains(&ip))
    }
}

/// The client address of a request ([SEM-AUTHZ-33] to [SEM-AUTHZ-37]): an entry of
/// `X-Forwarded-For` where it is trusted and valid, else the socket's peer.
///
/// # Examples
///
/// ```
/// use mesh_authz::{PeerIdentity, XffTrust, client_address};
///
/// let mut headers = http::HeaderMap::new();
/// headers.insert("x-forwarded-for", http::HeaderValue::from_static("9.9.9.9, 1.2.3.4"));
/// let peer = [127, 0, 0, 1].into();
/// let ip = |trust| client_address(&headers, peer, PeerIdentity::None, &trust).ip();
/// assert_eq!(ip(XffTrust::Anyone).to_string(), "1.2.3.4");
/// assert_eq!(ip(XffTrust::Nobody), peer);
/// ```
#[must_use]
pub fn client_address(
    headers: &HeaderMap,
    source: IpAddr,
    peer: PeerIdentity<'_>,
    trust: &XffTrust,
) -> ClientAddress {
    let source = source.to_canonical();
    let (hops, is_trusted) = match trust {
        XffTrust::Anyone => (1, true),
        XffTrust::Gateway { trusted_proxies } => (*trusted_proxies, true),
        XffTrust::Nobody => (0, false),
        XffTrust::Proxies(proxies) => (proxies.hops, proxies.contain(source, peer)),
    };
    let has_claim = headers.contains_key(FORWARDED_FOR);
    if !is_trusted {
        return ClientAddress { ip: source, is_claim_untrusted: has_claim };
    }
    let claimed = hops.checked_sub(1).and_then(|skip| entry_from_the_right(headers, skip));
    // Envoy takes what a header says as it is written. Proxies of ours may be on sockets of both kinds.
    let claimed = match trust {
        XffTrust::Proxies(_) => claimed.map(|ip| ip.to_canonical()),
        XffTrust::Anyone | XffTrust::Gateway { .. } | XffTrust::Nobody => claimed,
    };
    ClientAddress { ip: claimed.unwrap_or(source), is_claim_untrusted: false }
}

/// [SEM-AUTHZ-34] All lines joined with `,`; an entry is trimmed and must be a bare address. Empty
/// lines do not count, as Envoy joins no empty value.
fn entry_from_the_right(headers: &HeaderMap, skip: usize) -> Option<IpAddr> {
    let lines = headers.get_all(FORWARDED_FOR).iter().rev();
    let lines = lines.filter(|line| !line.is_empty());
    let mut entries = lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b','));
    let entry = entries.nth(skip.min(MAX_TRUSTED_HOPS))?;
    parse_entry(std::str::from_utf8(entry.trim_ascii()).ok()?)
}

/// A bare address. An IPv6 address may carry its zone as a number, as Envoy's parser has it; the
/// zone says nothing to a block.
fn parse_entry(text: &str) -> Option<IpAddr> {
    let Some((address, zone)) = text.split_once('%') else { return text.parse().ok() };
    let is_number = zone.bytes().all(|byte| byte.is_ascii_digit()) && zone.parse::<u32>().is_ok();
    let address = address.parse::<Ipv6Addr>().ok().filter(|_| is_number)?;
    Some(IpAddr::V6(address))
}
