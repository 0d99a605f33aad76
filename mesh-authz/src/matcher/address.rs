//! IP blocks and ports.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::index::{Key, TextIndex};

/// Reads an address or a CIDR as Istio does ([SEM-AUTHZ-30]): host bits are ignored, zones and
/// leading zeros refused.
pub(crate) fn parse_block(value: &str) -> Option<IpNet> {
    let Some((address, len)) = value.split_once('/') else {
        return value.parse::<IpAddr>().ok().map(IpNet::from);
    };
    let is_plain = len == "0" || !len.starts_with('0');
    if !is_plain || !len.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let block = IpNet::new(address.parse().ok()?, len.parse().ok()?).ok()?;
    Some(block.trunc())
}

/// Reads a port as Istio does ([SEM-AUTHZ-38]).
pub(crate) fn parse_port(value: &str) -> Option<u16> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = value.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

/// Lists at most this long are compared one by one.
const MAX_LINEAR: usize = 8;

/// Several blocks, any of which suffices.
#[derive(Debug)]
pub(crate) struct BlockSet {
    blocks: Box<[IpNet]>,
    index: Option<Box<TextIndex>>,
}

impl BlockSet {
    pub(crate) fn new(blocks: Vec<IpNet>) -> Self {
        let index = (blocks.len() > MAX_LINEAR)
            .then(|| Box::new(TextIndex::new(blocks.iter().copied().map(block_key))));
        Self { blocks: blocks.into(), index }
    }

    pub(crate) fn blocks(&self) -> &[IpNet] {
        &self.blocks
    }

    pub(crate) fn contains(&self, ip: IpAddr) -> bool {
        let Some(index) = &self.index else {
            return self.blocks.iter().any(|block| holds(block, ip));
        };
        let bits = AddressBits::new(ip);
        index.any(bits.text(), |at| self.blocks.get(at).is_some_and(|block| holds(block, ip)))
    }
}

/// Whether the address begins with the block's bits. Blocks are cut to their length when read.
#[inline]
fn holds(block: &IpNet, ip: IpAddr) -> bool {
    match (block, ip) {
        (IpNet::V4(block), IpAddr::V4(ip)) => {
            let rest = 32_u32.saturating_sub(block.prefix_len().into());
            let differing = block.addr().to_bits() ^ ip.to_bits();
            differing.checked_shr(rest).is_none_or(|bits| bits == 0)
        }
        (IpNet::V6(block), IpAddr::V6(ip)) => {
            let rest = 128_u32.saturating_sub(block.prefix_len().into());
            let differing = block.addr().to_bits() ^ ip.to_bits();
            differing.checked_shr(rest).is_none_or(|bits| bits == 0)
        }
        (IpNet::V4(_), IpAddr::V6(_)) | (IpNet::V6(_), IpAddr::V4(_)) => false,
    }
}

/// An address as text of one byte per bit behind a letter for its family, so that a block is a
/// beginning of it.
pub(crate) struct AddressBits {
    text: [u8; 129],
    len: usize,
}

impl AddressBits {
    pub(crate) fn new(ip: IpAddr) -> Self {
        let mut text = [0; 129];
        let (v4, v6);
        let (family, octets) = match ip {
            IpAddr::V4(ip) => {
                v4 = ip.octets();
                (b'4', v4.as_slice())
            }
            IpAddr::V6(ip) => {
                v6 = ip.octets();
                (b'6', v6.as_slice())
            }
        };
        let (first, bits) = text.split_at_mut(1);
        first.fill(family);
        for (octet, to) in octets.iter().zip(bits.as_chunks_mut::<8>().0) {
            *to = bits_of(*octet);
        }
        let width = octets.len().saturating_mul(8);
        Self { text, len: width.saturating_add(1) }
    }

    pub(crate) fn text(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// A byte for each bit, the highest first.
#[inline]
fn bits_of(octet: u8) -> [u8; 8] {
    // One bit of the octet in each byte of the word, then made 1 wherever it is set.
    let spread = u64::from(octet).wrapping_mul(0x0101_0101_0101_0101) & 0x0102_0408_1020_4080;
    let ones = spread.wrapping_add(0x7f7f_7f7f_7f7f_7f7f).wrapping_shr(7) & 0x0101_0101_0101_0101;
    ones.to_le_bytes()
}

/// The beginning of [`AddressBits`] that every address of the block has.
pub(crate) fn block_key(block: IpNet) -> Key {
    let bits = AddressBits::new(block.addr());
    let len = usize::from(block.prefix_len()).saturating_add(1);
    Key::Prefix(bits.text().iter().take(len).copied().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sem_authz_30_a_block_is_a_beginning_of_its_addresses() {
        for octet in 0..=u8::MAX {
            let plain: Vec<u8> = (0..8).rev().map(|bit| octet >> bit & 1).collect();
            assert_eq!(bits_of(octet).to_vec(), plain, "{octet}");
        }
        let blocks =
            ["10.0.0.0/8", "0.0.0.0/0", "10.2.3.4", "10.2.3.4/31", "::/0", "2001:db8::/33"];
        let addresses = [
            "10.2.3.4",
            "10.2.3.5",
            "11.0.0.1",
            "::1",
            "2001:db8::5",
            "2001:db8:8000::",
            "::ffff:10.2.3.4",
        ];
        for block in blocks.map(|block| parse_block(block).unwrap()) {
            for ip in addresses.map(|ip| ip.parse::<IpAddr>().unwrap()) {
                let Key::Prefix(key) = block_key(block) else { panic!("{block}") };
                let expected = block.contains(&ip);
                assert_eq!(holds(&block, ip), expected, "{block} {ip}");
                assert_eq!(AddressBits::new(ip).text().starts_with(&key), expected, "{block} {ip}");
            }
        }
    }
}
