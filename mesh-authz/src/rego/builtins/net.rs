//! OPA's `net.cidr_*` on ipnet, with the meaning of the Go package that OPA reads addresses with:
//! an IPv4 address in IPv6's clothes (`::ffff:10.0.0.1`) is the IPv4 address, and so is a block.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use regorus::Value;

use super::Fault;
use super::meter::charge;
use super::supplied::text;

/// The most pairs that are compared.
const MAX_PAIRS: usize = 1 << 18;

/// The most nets that are merged.
const MAX_MERGED: usize = 4096;

/// Bits before an IPv4 address in IPv6's clothes.
const MAPPED_BITS: u8 = 96;

/// `net.cidr_contains(cidr, cidr_or_address)`.
pub(super) fn cidr_contains(args: &[Value]) -> Result<Value, Fault> {
    let (net, inner) = (cidr(text(args, 0)?)?, Inner::of(text(args, 1)?)?);
    Ok(Value::Bool(inner.is_in(&net)))
}

/// `net.cidr_intersects(cidr, cidr)`.
pub(super) fn cidr_intersects(args: &[Value]) -> Result<Value, Fault> {
    let (a, b) = (cidr(text(args, 0)?)?, cidr(text(args, 1)?)?);
    let contains = |a: &IpNet, b: &IpNet| a.contains(&b.network().to_canonical());
    Ok(Value::Bool(contains(&a, &b) || contains(&b, &a)))
}

/// `net.cidr_is_valid(value)`.
pub(super) fn cidr_is_valid(args: &[Value]) -> Value {
    Value::Bool(text(args, 0).and_then(cidr).is_ok())
}

/// `net.cidr_contains_matches(cidrs, cidrs_or_addresses)`: the pairs of keys of which the first's
/// net contains the second. As in OPA, nothing is read where there are no pairs.
pub(super) fn cidr_contains_matches(args: &[Value]) -> Result<Value, Fault> {
    let (Some(nets), Some(inner)) = (args.first(), args.get(1)) else { return Err(Fault::Failed) };
    let nets = terms(nets)?;
    let inner = if nets.is_empty() { Vec::new() } else { terms(inner)? };
    let pairs = nets.len().saturating_mul(inner.len());
    if pairs > MAX_PAIRS {
        return Err(Fault::TooLarge);
    }
    charge(pairs)?;
    let mut found = BTreeSet::new();
    if pairs > 0 {
        let inner = inner.into_iter().map(|(key, term)| Ok((key, Inner::of(string(term)?)?)));
        let inner = inner.collect::<Result<Vec<_>, Fault>>()?;
        for (key, term) in nets {
            let net = cidr(string(term)?)?;
            let inside = inner.iter().filter(|(_, inner)| inner.is_in(&net));
            found.extend(inside.map(|(other, _)| Value::from(vec![key.clone(), other.clone()])));
        }
    }
    Ok(Value::from(found))
}

/// What a list names, with the key that each has in OPA's result: the text itself, an index, an
/// element or a key. An element may be a tuple that begins with the text.
#[expect(clippy::wildcard_enum_match_arm, reason = "whatever else there is, is no list of nets")]
fn terms(list: &Value) -> Result<Vec<(Value, &Value)>, Fault> {
    fn term((key, value): (Value, &Value)) -> Result<(Value, &Value), Fault> {
        match value {
            Value::String(_) => Ok((key, value)),
            Value::Array(tuple) => tuple.first().map(|term| (key, term)).ok_or(Fault::Failed),
            _ => Err(Fault::Failed),
        }
    }
    match list {
        Value::String(_) => Ok(vec![(list.clone(), list)]),
        Value::Array(items) => {
            items.iter().enumerate().map(|(at, item)| term((Value::from(at), item))).collect()
        }
        Value::Set(items) => items.iter().map(|item| term((item.clone(), item))).collect(),
        Value::Object(entries) => {
            entries.iter().map(|(key, item)| term((key.clone(), item))).collect()
        }
        _ => Ok(Vec::new()),
    }
}

fn string(term: &Value) -> Result<&str, Fault> {
    text(std::slice::from_ref(term), 0)
}

/// `net.cidr_merge(cidrs)`: the fewest nets that cover the same addresses.
///
/// It fails for an address without a length. OPA takes `10.0.0.5` for `10.0.0.5/8` there, which is
/// 16 million addresses that nobody meant.
pub(super) fn cidr_merge(args: &[Value]) -> Result<Value, Fault> {
    let nets: Vec<&Value> = match args.first() {
        Some(Value::Array(items)) => items.iter().collect(),
        Some(Value::Set(items)) => items.iter().collect(),
        _ => return Err(Fault::Failed),
    };
    if nets.len() > MAX_MERGED {
        return Err(Fault::TooLarge);
    }
    charge(nets.len().saturating_mul(24))?;
    let nets = nets.into_iter().map(|net| cidr(string(net)?));
    let merged = merge(&nets.collect::<Result<Vec<_>, _>>()?);
    let merged = merged.into_iter().map(|net| Value::from(net.to_string()));
    Ok(Value::from(merged.collect::<BTreeSet<_>>()))
}

/// Joins nets that overlap or touch. IPv4's are those of `::ffff:0:0/96`.
fn merge(nets: &[IpNet]) -> Vec<IpNet> {
    let mut ranges: Vec<(u128, u128)> = nets.iter().map(range).collect();
    ranges.sort_unstable();
    let mut joined: Vec<(u128, u128)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if first.saturating_sub(1) <= *end => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined.into_iter().flat_map(blocks).collect()
}

fn range(net: &IpNet) -> (u128, u128) {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    };
    (bits(net.network()), bits(net.broadcast()))
}

/// The fewest blocks that make up a range.
fn blocks((mut first, last): (u128, u128)) -> Vec<IpNet> {
    let mut blocks = Vec::new();
    loop {
        // The largest block that begins here and does not end behind the range.
        let mut host_bits = first.trailing_zeros().min(128);
        let end = loop {
            let hosts = u128::MAX.checked_shr(128_u32.saturating_sub(host_bits)).unwrap_or(0);
            match first.checked_add(hosts) {
                Some(end) if end <= last => break end,
                _ => host_bits = host_bits.saturating_sub(1),
            }
        };
        let prefix = u8::try_from(128_u32.saturating_sub(host_bits)).unwrap_or(128);
        blocks.extend(canonical(IpAddr::V6(Ipv6Addr::from_bits(first)), prefix));
        match end.checked_add(1) {
            Some(next) if next <= last => first = next,
            _ => return blocks,
        }
    }
}

/// What may lie in a net: an address, or all of a block.
enum Inner {
    Address(IpAddr),
    Block(IpNet),
}

impl Inner {
    fn of(text: &str) -> Result<Self, Fault> {
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Address(address.to_canonical())),
            Err(_) => cidr(text).map(Self::Block),
        }
    }

    fn is_in(&self, net: &IpNet) -> bool {
        match self {
            Self::Address(address) => net.contains(address),
            Self::Block(block) => {
                let ends = [block.network(), block.broadcast()];
                ends.iter().all(|end| net.contains(&end.to_canonical()))
            }
        }
    }
}

fn cidr(text: &str) -> Result<IpNet, Fault> {
    let (address, prefix) = text.split_once('/').ok_or(Fault::Failed)?;
    let address: IpAddr = address.parse().map_err(|_no_address| Fault::Failed)?;
    // Digits alone, leading zeros among them.
    if !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Fault::Failed);
    }
    let prefix = prefix.parse().map_err(|_no_length| Fault::Failed)?;
    canonical(address, prefix).ok_or(Fault::Failed)
}

/// The block of an address, IPv4's without IPv6's clothes.
fn canonical(address: IpAddr, prefix: u8) -> Option<IpNet> {
    let net = IpNet::new(address, prefix).ok()?.trunc();
    let mapped = |net: Ipv6Net| -> Option<(Ipv4Addr, u8)> {
        Some((net.addr().to_ipv4_mapped()?, net.prefix_len().checked_sub(MAPPED_BITS)?))
    };
    match net {
        IpNet::V4(_) => Some(net),
        IpNet::V6(six) => match mapped(six) {
            Some((address, prefix)) => Ipv4Net::new(address, prefix).ok().map(IpNet::V4),
            None => Some(net),
        },
    }
}
