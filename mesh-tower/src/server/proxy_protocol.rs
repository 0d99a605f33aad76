//! The PROXY protocol, versions 1 and 2: who connected to the load balancer in front of us.
//!
//! It is read only from listed peers, and they must send it: from anybody else the same bytes would
//! let a client choose its own address. Only the source is taken. The destination stays the socket's,
//! because `ports` in a policy are the workload's ports ([SEM-AUTHZ-38]), and identity is proven by
//! TLS alone, never by a type-length-value of the header.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncReadExt};

/// How every version 2 header begins.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest version 1 header, line end included.
const LONGEST_LINE: usize = 107;

/// The longest version 2 body that is read: addresses, and more type-length-values than any
/// balancer sends.
const LONGEST_BODY: usize = 2048;

/// The peers whose PROXY header is read.
#[derive(Clone, Debug, Default)]
pub(super) struct ProxyPeers(Vec<IpNet>);

impl ProxyPeers {
    pub(super) fn new(blocks: impl IntoIterator<Item = IpNet>) -> Self {
        Self(blocks.into_iter().collect())
    }

    pub(super) fn contain(&self, peer: SocketAddr) -> bool {
        let ip = peer.ip().to_canonical();
        self.0.iter().any(|block| block.contains(&ip))
    }
}

/// Whom a header names.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    /// The balancer itself: its health check (`LOCAL`), or an address it does not know.
    Balancer,
    /// The client that connected to the balancer.
    Client(SocketAddr),
}

/// Reads one header and not a byte more.
///
/// The caller sets the deadline.
pub(super) async fn read_header<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Source> {
    // Neither version has a shorter header.
    let mut start = [0_u8; SIGNATURE.len()];
    stream.read_exact(&mut start).await?;
    if &start == SIGNATURE {
        return read_binary(stream).await;
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST_LINE || !line.starts_with(b"PROXY ") {
            return Err(malformed());
        }
        line.push(stream.read_u8().await?);
    }
    parse_line(&line).ok_or_else(malformed)
}

/// Version 1: `PROXY TCP4 source destination source-port destination-port`.
fn parse_line(line: &[u8]) -> Option<Source> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix("\r\n")?;
    let mut words = line.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Source::Balancer);
    }
    let (source, destination) = (words.next()?, words.next()?);
    let port = words.next()?.parse().ok()?;
    let _destination_port: u16 = words.next()?.parse().ok()?;
    if words.next().is_some() {
        return None;
    }
    let (source, _) = match family {
        "TCP4" => (
            IpAddr::V4(source.parse::<Ipv4Addr>().ok()?),
            IpAddr::V4(destination.parse::<Ipv4Addr>().ok()?),
        ),
        "TCP6" => (
            IpAddr::V6(source.parse::<Ipv6Addr>().ok()?),
            IpAddr::V6(destination.parse::<Ipv6Addr>().ok()?),
        ),
        _ => return None,
    };
    Some(Source::Client(SocketAddr::new(source, port)))
}

/// Version 2, after its signature.
async fn read_binary<T: AsyncRead + Unpin>(stream: &mut T) -> io::Result<Source> {
    let [version_and_command, family] = stream.read_u16().await?.to_be_bytes();
    let length = usize::from(stream.read_u16().await?);
    if length > LONGEST_BODY {
        return Err(malformed());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    parse_binary(version_and_command, family, &body).ok_or_else(malformed)
}

fn parse_binary(version_and_command: u8, family: u8, body: &[u8]) -> Option<Source> {
    match version_and_command {
        // LOCAL: the balancer's own health check.
        0x20 => return Some(Source::Balancer),
        0x21 => {}
        _ => return None,
    }
    let (ip, ports) = match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let ip: [u8; 4] = body.get(..4)?.try_into().ok()?;
            (IpAddr::from(ip), body.get(8..12)?)
        }
        // TCP over IPv6.
        0x21 => {
            let ip: [u8; 16] = body.get(..16)?.try_into().ok()?;
            (IpAddr::from(ip), body.get(32..36)?)
        }
        // UNSPEC: the receiver uses the socket's addresses.
        0x00 => return Some(Source::Balancer),
        _ => return None,
    };
    let port: [u8; 2] = ports.get(..2)?.try_into().ok()?;
    Some(Source::Client(SocketAddr::new(ip, u16::from_be_bytes(port))))
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the load balancer sent no valid PROXY header")
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(header: &[u8]) -> (io::Result<Source>, Vec<u8>) {
        let all = [header, b"rest"].concat();
        let mut stream = &all[..];
        let read = read_header(&mut stream).await;
        (read, stream.to_vec())
    }

    fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = u16::try_from(body.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    /// [SEM-AUTHZ-32] The source is the client's; not a byte of what follows is taken.
    #[tokio::test]
    async fn sem_authz_32_the_source_of_a_header_is_the_peer() {
        let v4 = [&[9, 8, 7, 6, 1, 2, 3, 4][..], &[0x1f, 0x90, 0, 80], b"\xd0\0\x03abc"].concat();
        let v6 = [&[0; 15][..], &[1], &[0; 16], &[0, 7, 0, 80]].concat();
        for (header, want) in [
            (b"PROXY TCP4 9.8.7.6 1.2.3.4 8080 80\r\n".to_vec(), Some("9.8.7.6:8080")),
            (b"PROXY TCP6 2001:db8::1 ::1 7 80\r\n".to_vec(), Some("[2001:db8::1]:7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ::2 3 4\r\n".to_vec(), None),
            (binary(0x21, 0x11, &v4), Some("9.8.7.6:8080")),
            (binary(0x21, 0x21, &v6), Some("[::1]:7")),
            (binary(0x20, 0x11, &v4), None),
            (binary(0x20, 0, b""), None),
            (binary(0x21, 0, b""), None),
        ] {
            let (read, rest) = read(&header).await;
            let want = want.map_or(Source::Balancer, |text| Source::Client(text.parse().unwrap()));
            assert_eq!(read.unwrap(), want, "{header:?}");
            assert_eq!(rest, b"rest", "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_ends_the_connection() {
        let long = format!("PROXY TCP4 {}\r\n", "1".repeat(LONGEST_LINE));
        for header in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"PROXY TCP4 9.8.7.6 1.2.3.4 8080\r\n",
            b"PROXY TCP4 9.8.7.6 1.2.3.4 8080 80 9\r\n",
            b"PROXY TCP4 ::1 ::1 8080 80\r\n",
            b"PROXY TCP4 9.8.7.6 1.2.3.4 80800 80\r\n",
            b"PROXY UDP4 9.8.7.6 1.2.3.4 8080 80\r\n",
            long.as_bytes(),
            &binary(0x31, 0x11, &[0; 12]),
            &binary(0x21, 0x12, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x11, &vec![0; LONGEST_BODY + 1]),
        ] {
            let (read, _) = read(header).await;
            assert!(read.is_err(), "{:?}", String::from_utf8_lossy(header));
        }
    }

    #[test]
    fn only_listed_peers_are_read() {
        let peers = ProxyPeers::new(["10.0.0.0/8".parse().unwrap()]);
        assert!(peers.contain("10.1.2.3:1".parse().unwrap()));
        assert!(peers.contain("[::ffff:10.1.2.3]:1".parse().unwrap()));
        assert!(!peers.contain("11.1.2.3:1".parse().unwrap()));
        assert!(!ProxyPeers::default().contain("10.1.2.3:1".parse().unwrap()));
    }
}
