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

/// Where clouds serve credentials outside the link-local ranges: Alibaba, Azure, Oracle.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

/// The same: AWS for machines and for pods, Google, Oracle, Scaleway.
const METADATA_V6: [Ipv6Addr; 5] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
];

impl AddressPolicy {
    /// Whether an address may be connected to. An IPv6 address that leads to an IPv4 one is
    /// allowed only if both are.
    #[must_use]
    pub fn allows(self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let inner = match address {
            IpAddr::V4(_) => Vec::new(),
            IpAddr::V6(v6) => embedded(v6),
        };
        self.allows_one(address) && inner.into_iter().all(|v4| self.allows_one(v4.into()))
    }

    fn allows_one(self, address: IpAddr) -> bool {
        let never = match address {
            IpAddr::V4(v4) => v4.is_broadcast() || is_this_network(v4),
            IpAddr::V6(_) => address.is_unspecified(),
        };
        let never = never || address.is_multicast() || has_credentials(address);
        match self {
            Self::Private => !never,
            Self::PublicOnly => !never && !is_private(address),
        }
    }
}

/// Whether a cloud may serve credentials there.
fn has_credentials(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local() || METADATA_V4.contains(&v4),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || METADATA_V6.contains(&v6),
    }
}

/// 0.0.0.0/8, which some systems take for themselves (RFC 1122 section 3.2.1.3).
fn is_this_network(v4: Ipv4Addr) -> bool {
    v4.octets().first() == Some(&0)
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let special = matches!(
                v4.octets(),
                // Carrier-grade NAT, protocol assignments, benchmarks, reserved.
                [100, 64..=127, ..] | [192, 0, 0, _] | [198, 18 | 19, ..] | [240..=255, ..]
            );
            v4.is_private() || v4.is_loopback() || special
        }
        IpAddr::V6(v6) => {
            // Site-local addresses, and translation inside a network (RFC 8215).
            let special = matches!(v6.segments(), [0xfec0..=0xfeff, ..] | [0x64, 0xff9b, 1, ..]);
            v6.is_loopback() || v6.is_unique_local() || special
        }
    }
}

/// The IPv4 addresses that a translator or a tunnel may reach by this one.
fn embedded(v6: Ipv6Addr) -> Vec<Ipv4Addr> {
    let v4 = |high: u16, low: u16| Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => Vec::new(),
        // IPv4-compatible, IPv4-translated, NAT64 and 6to4.
        [0, 0, 0, 0, 0 | 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => vec![v4(high, low)],
        // Teredo, inverted.
        [0x2001, 0, .., high, low] => vec![!v4(high, low)],
        // NAT64 inside a network, which chooses one of four places (RFC 6052 section 2.2). Most of
        // what is read there is none, so only what leads to credentials counts.
        [0x64, 0xff9b, 1, .., high, low] => {
            let [.., six, seven, _, nine, ten, eleven, twelve, _, _, _] = v6.octets();
            let bytes = [six, seven, nine, ten, eleven, twelve];
            let places = bytes.windows(4).filter_map(|place| <[u8; 4]>::try_from(place).ok());
            let all = places.map(Ipv4Addr::from).chain([v4(high, low)]);
            all.filter(|v4| has_credentials((*v4).into())).collect()
        }
        _ => Vec::new(),
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
        check(&cases);
    }

    #[test]
    fn sec_jwt_13_other_clouds_and_special_ranges() {
        let cases = [
            ("100.100.100.200", false, false),
            ("168.63.129.16", false, false),
            ("169.254.170.2", false, false),
            ("192.0.0.192", false, false),
            ("255.255.255.255", false, false),
            ("fd00:ec2::23", false, false),
            ("fd20:ce::254", false, false),
            ("fd00:c1::a9fe:a9fe", false, false),
            ("fd00:42::42", false, false),
            ("fd20:ce::253", true, false),
            ("240.0.0.1", true, false),
            ("198.18.0.1", true, false),
            ("198.19.255.255", true, false),
            ("192.0.0.1", true, false),
            ("fec0::1", true, false),
            ("feff::1", true, false),
            ("198.17.0.1", true, true),
            ("198.20.0.1", true, true),
            ("192.0.1.1", true, true),
            ("239.255.255.255", false, false),
        ];
        check(&cases);
    }

    #[test]
    fn sec_jwt_13_and_sem_jwks_08_the_ipv4_address_inside_an_ipv6_one_counts() {
        for (v4, private, public) in [
            ("169.254.169.254", false, false),
            ("100.100.100.200", false, false),
            ("10.1.2.3", true, false),
            ("127.0.0.1", true, false),
            ("198.18.0.1", true, false),
            ("8.8.8.8", true, true),
        ] {
            let [a, b, c, d] = v4.parse::<Ipv4Addr>().unwrap().octets();
            let tail = format!("{a:02x}{b:02x}:{c:02x}{d:02x}");
            let teredo = format!("{:02x}{:02x}:{:02x}{:02x}", !a, !b, !c, !d);
            for text in [
                format!("::{tail}"),
                format!("::ffff:{tail}"),
                format!("::ffff:0:{tail}"),
                format!("64:ff9b::{tail}"),
                format!("2002:{tail}::1"),
                format!("2001:0:808:808:0:1:{teredo}"),
            ] {
                check(&[(&text, private, public)]);
            }
            // Inside a network, never public: prefixes of 96, 64, 56 and 48 bits.
            for text in [
                format!("64:ff9b:1::{tail}"),
                format!("64:ff9b:1:0:{a:02x}:{b:02x}{c:02x}:{d:02x}00:0"),
                format!("64:ff9b:1:{a:02x}:{b:02x}:{c:02x}{d:02x}::"),
                format!("64:ff9b:1:{a:02x}{b:02x}:{c:02x}:{d:02x}00::"),
            ] {
                check(&[(&text, private, false)]);
            }
        }
    }

    fn check(cases: &[(&str, bool, bool)]) {
        for (text, private, public) in cases {
            let address = text.parse().unwrap();
            assert_eq!(AddressPolicy::Private.allows(address), *private, "{text}");
            assert_eq!(AddressPolicy::PublicOnly.allows(address), *public, "{text}");
        }
    }
}
