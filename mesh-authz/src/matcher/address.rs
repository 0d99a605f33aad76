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
            return self.blocks.iter().any(|block| block.contains(&ip));
        };
        let bits = AddressBits::new(ip);
        index.any(bits.text(), |at| self.blocks.get(at).is_some_and(|block| block.contains(&ip)))
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
        let (family, bits, width) = match ip {
            IpAddr::V4(ip) => (b'4', u128::from(ip.to_bits()).wrapping_shl(96), 32),
            IpAddr::V6(ip) => (b'6', ip.to_bits(), 128),
        };
        let mut left = bits;
        for (at, to) in text.iter_mut().take(width).enumerate() {
            if at == 0 {
                *to = family;
                continue;
            }
            *to = u8::from(left.leading_zeros() == 0);
            left = left.wrapping_shl(1);
        }
        // The last bit stands behind the loop's end: one letter and `width` bits.
        if let Some(last) = text.get_mut(width) {
            *last = u8::from(left.leading_zeros() == 0);
        }
        Self { text, len: width.saturating_add(1) }
    }

    pub(crate) fn text(&self) -> &[u8] {
        self.text.get(..self.len).unwrap_or_default()
    }
}

/// The beginning of [`AddressBits`] that every address of the block has.
pub(crate) fn block_key(block: IpNet) -> Key {
    let bits = AddressBits::new(block.addr());
    let len = usize::from(block.prefix_len()).saturating_add(1);
    Key::Prefix(bits.text().iter().take(len).copied().collect())
}
