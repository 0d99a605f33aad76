//! Which addresses a key set may be fetched from ([SEC-JWT-13], [SEM-JWKS-08]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Decides after name resolution, on the address that is then connected to.
///
/// Link-local addresses, where clouds keep their credentials, are never asked, nor multicast and
/// unspecified ones.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum AddressPolicy {
    /// Private and loopback addresses too, as Istio allows.
    #[default]
    Private,
    /// Public addresses only: for meshes that do not trust all policy authors.
    PublicOnly,
}

/// AWS serves credentials here, outside the link-local range.
const METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

impl AddressPolicy {
    /// Whether an address may be connected to.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let never = match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || is_this_network(v4),
            IpAddr::V6(v6) => v6.is_unicast_link_local() || v6 == METADATA,
        };
        let never = never || address.is_multicast() || address.is_unspecified();
        match self {
            Self::Private => !never,
            Self::PublicOnly => !never && !is_private(address),
        }
    }
}

/// 0.0.0.0/8, which some systems take for themselves (RFC 1122 section 3.2.1.3).
fn is_this_network(v4: Ipv4Addr) -> bool {
    v4.octets().first() == Some(&0)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            // Carrier-grade NAT: 100.64.0.0/10.
            let shared = matches!(v4.octets(), [100, 64..=127, ..]);
            v4.is_private() || v4.is_loopback() || shared
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unique_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sec_jwt_13_and_sem_adv_63_no_credentials_of_the_cloud() {
        let cases = [
            ("169.254.169.254", false, false),
            ("::ffff:169.254.169.254", false, false),
            ("fe80::1", false, false),
            ("fd00:ec2::254", false, false),
            ("224.0.0.1", false, false),
            ("0.0.0.0", false, false),
            ("0.1.2.3", false, false),
            ("::", false, false),
            ("127.0.0.1", true, false),
            ("10.1.2.3", true, false),
            ("100.64.0.1", true, false),
            ("fd12::1", true, false),
            ("::1", true, false),
            ("192.0.2.1", true, true),
            ("2001:db8::1", true, true),
        ];
        for (text, private, public) in cases {
            let address = text.parse().unwrap();
            assert_eq!(AddressPolicy::Private.allows(address), private, "{text}");
            assert_eq!(AddressPolicy::PublicOnly.allows(address), public, "{text}");
        }
    }
}
