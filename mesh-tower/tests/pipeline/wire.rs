//! Clients that send bytes: HTTP/1.1 and HTTP/2 written by hand, so that nothing tidies a request up.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_tower::identity::X509Svid;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longer than anything here may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of either kind.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How a connection is made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Dial {
    /// The client's own address.
    pub(crate) from: Option<IpAddr>,
    /// Mutual TLS with this identity; else plain text.
    pub(crate) svid: Option<Arc<X509Svid>>,
    /// The server name of the handshake.
    pub(crate) sni: Option<String>,
    pub(crate) http2: bool,
}

impl Dial {
    pub(crate) async fn connect(&self, to: SocketAddr) -> std::io::Result<Box<dyn Stream>> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = self.from {
            socket.bind(SocketAddr::new(from, 0))?;
        }
        let stream = socket.connect(to).await?;
        stream.set_nodelay(true)?;
        let Some(svid) = &self.svid else { return Ok(Box::new(stream)) };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer(provider)))
            .with_client_auth_cert(svid.chain().to_vec(), svid.private_key().clone_key())
            .unwrap();
        let protocol: &[u8] = if self.http2 { b"h2" } else { b"http/1.1" };
        config.alpn_protocols = vec![protocol.to_vec()];
        let name = match &self.sni {
            Some(sni) => ServerName::try_from(sni.clone()).map_err(std::io::Error::other)?,
            None => ServerName::IpAddress(to.ip().into()),
        };
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(Box::new(stream))
    }
}

/// Who the server is, is not the question here.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Whether another request may follow on the connection.
    pub(crate) is_open: bool,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// Each byte as a character.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

/// Sends bytes as they are and reads one HTTP/1.1 answer; nothing when the connection just ends.
pub(crate) async fn ask_http1(
    stream: &mut dyn Stream,
    request: &[u8],
    is_head: bool,
) -> Option<Reply> {
    let whole = async {
        stream.write_all(request).await.ok()?;
        let mut raw = Vec::new();
        let end = loop {
            if let Some(at) = raw.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            if stream.read_buf(&mut raw).await.ok()? == 0 {
                return None;
            }
        };
        let mut body = raw.split_off(end + 4);
        let head = latin1(&raw);
        let mut lines = head.trim_end().split("\r\n");
        let status: u16 = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let mut reply = Reply { status, headers, body: Vec::new(), is_open: true };
        let len = reply.header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        while !is_head && body.len() < len {
            if stream.read_buf(&mut body).await.ok()? == 0 {
                return None;
            }
        }
        reply.is_open = reply.header("connection") != Some("close")
            && reply.header("transfer-encoding").is_none();
        reply.body = body;
        Some(reply)
    };
    timeout(PATIENCE, whole).await.ok().flatten()
}

/// Sends one request over HTTP/2, its header fields as they are, and reads status and body; nothing
/// when the stream is reset or the connection ends.
pub(crate) async fn ask_http2(stream: &mut dyn Stream, fields: &[(&[u8], &[u8])]) -> Option<Reply> {
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal that is not indexed, with a new name, neither text Huffman coded.
        block.push(0);
        for text in [name, value] {
            write_length(&mut block, text.len());
            block.extend_from_slice(text);
        }
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    write_frame(&mut bytes, 4, 0, 0, &[]);
    // END_STREAM and END_HEADERS.
    write_frame(&mut bytes, 1, 0x5, 1, &block);
    let whole = async {
        stream.write_all(&bytes).await.ok()?;
        let mut reply = Reply::default();
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
            stream.read_exact(&mut payload).await.ok()?;
            match kind {
                0 => reply.body.extend(payload),
                1 => reply.status = status_of(&payload),
                // RST_STREAM, GOAWAY.
                3 | 7 => return None,
                // Acknowledge SETTINGS.
                4 if flags & 1 == 0 => {
                    let mut ack = Vec::new();
                    write_frame(&mut ack, 4, 1, 0, &[]);
                    stream.write_all(&ack).await.ok()?;
                }
                _ => {}
            }
            if kind <= 1 && flags & 1 == 1 {
                return Some(reply);
            }
        }
    };
    timeout(PATIENCE, whole).await.ok().flatten()
}

fn write_frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    bytes.extend_from_slice(&len[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
}

/// A length with a prefix of seven bits (RFC 7541, section 5.1).
fn write_length(bytes: &mut Vec<u8>, len: usize) {
    if len < 127 {
        bytes.push(u8::try_from(len).unwrap());
        return;
    }
    bytes.push(127);
    let mut rest = len - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).unwrap() | 0x80);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).unwrap());
}

/// The status, which is the first field: from the static table, or as a text of three digits.
fn status_of(block: &[u8]) -> u16 {
    let mut block = block;
    // A change of the dynamic table's size may come before.
    while let [0x20..=0x3f, rest @ ..] = block {
        block = rest;
    }
    match block {
        [at @ 0x88..=0x8e, ..] => [200, 204, 206, 304, 400, 404, 500][usize::from(at - 0x88)],
        [0x08 | 0x18 | 0x48, len, text @ ..] if len & 0x80 != 0 => {
            // Huffman coded digits: five bits up to 2, six for the others.
            let bits: Vec<u32> = text
                .iter()
                .flat_map(|byte| (0..8).rev().map(move |at| u32::from(byte >> at & 1)))
                .collect();
            let number = |from: usize, count: usize| {
                bits[from..from + count].iter().fold(0, |sum, bit| sum * 2 + bit)
            };
            let (mut at, mut status) = (0, 0);
            for _ in 0..3 {
                let short = number(at, 5);
                let digit = if short < 3 { short } else { number(at, 6) - 0x19 + 3 };
                at += if short < 3 { 5 } else { 6 };
                status = status * 10 + digit;
            }
            u16::try_from(status).unwrap()
        }
        [0x08 | 0x18 | 0x48, 3, text @ ..] => latin1(&text[..3]).parse().unwrap(),
        other => panic!("status in {other:02x?}"),
    }
}
