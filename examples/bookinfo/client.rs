//! The clients of the steps: inside the mesh, plain, and deliberately wrong ones.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use mesh_tower::{ConnectError, Connector, ServerInfo};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tower::ServiceExt;

use crate::BoxError;

/// Nothing in the demo takes longer.
const PATIENCE: Duration = Duration::from_secs(5);

/// An answer, as a client reads it off the wire.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Header names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Reply {
    /// The first value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// A request as its bytes will be: the method, the target, and header lines.
#[derive(Clone, Debug)]
pub struct Ask {
    method: &'static str,
    target: String,
    headers: Vec<(String, String)>,
    body: String,
}

impl Ask {
    /// A `GET` without headers but the necessary ones.
    #[must_use]
    pub fn get(target: impl Into<String>) -> Self {
        Self { method: "GET", target: target.into(), headers: Vec::new(), body: String::new() }
    }

    /// A `POST` of JSON.
    #[must_use]
    pub fn post(target: impl Into<String>, body: impl Into<String>) -> Self {
        let mut ask = Self { method: "POST", body: body.into(), ..Self::get(target) };
        ask.headers.push(("content-type".to_owned(), "application/json".to_owned()));
        ask
    }

    /// Adds a header line.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Adds `authorization: Bearer <token>`.
    #[must_use]
    pub fn bearer(self, token: &str) -> Self {
        self.with("authorization", format!("Bearer {token}"))
    }

    fn bytes(&self, host: &str) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {host}\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            text.extend([name, ": ", value, "\r\n"]);
        }
        let length = self.body.len();
        text + &format!("content-length: {length}\r\nconnection: close\r\n\r\n{}", self.body)
    }
}

/// Sends one request over an open stream and reads the answer to the end.
///
/// # Errors
///
/// Those of the stream; [`ErrorKind::UnexpectedEof`] when it ends before an answer.
pub async fn exchange<T>(stream: T, host: &str, ask: &Ask) -> io::Result<Reply>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = stream;
    let talk = async {
        stream.write_all(ask.bytes(host).as_bytes()).await?;
        stream.flush().await?;
        let mut read = Vec::new();
        match stream.read_to_end(&mut read).await {
            // TLS peers that close without saying so have still answered.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof && !read.is_empty() => {}
            other => drop(other?),
        }
        parse(&read).ok_or_else(|| ErrorKind::UnexpectedEof.into())
    };
    timeout(PATIENCE, talk).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

fn parse(read: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(read);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Some(Reply { status, headers, body: body.to_owned() })
}

/// Asks without TLS.
///
/// # Errors
///
/// Those of the connection, such as [`ErrorKind::ConnectionReset`].
pub async fn plain(address: SocketAddr, ask: &Ask) -> io::Result<Reply> {
    exchange(TcpStream::connect(address).await?, &address.to_string(), ask).await
}

/// Asks through the mesh.
///
/// # Errors
///
/// Why no connection to a verified server came about, or why it broke.
pub async fn mesh(
    connector: &Connector,
    host: &str,
    ask: &Ask,
) -> Result<(Reply, ServerInfo), BoxError> {
    let uri = http::Uri::builder().scheme("https").authority(host).path_and_query("/").build()?;
    let stream = connector.clone().oneshot(uri).await?;
    let info = stream.info().clone();
    Ok((exchange(TokioIo::new(stream), host, ask).await?, info))
}

/// The connection error inside a [`mesh`] failure.
#[must_use]
pub fn connect_error(error: &BoxError) -> Option<&ConnectError> {
    error.downcast_ref()
}

/// TLS that trusts any server and offers the certificate given, or none: what `curl -k` does.
///
/// # Errors
///
/// The handshake's alert, which in TLS 1.3 arrives with the answer.
pub async fn raw_tls(
    address: SocketAddr,
    identity: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    ask: &Ask,
) -> Result<Reply, BoxError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAny(provider)));
    let mut config = match identity {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let name = ServerName::IpAddress(address.ip().into());
    let stream = connector.connect(name, TcpStream::connect(address).await?).await?;
    Ok(exchange(stream, &address.to_string(), ask).await?)
}

/// A client's side of [`raw_tls`]; the server is not what these steps are about.
#[derive(Debug)]
struct TrustAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for TrustAny {
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
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Runs `curl` and gives its exit status and what `%{http_code}` says; nothing without curl.
pub async fn curl(arguments: &[&str]) -> Option<(i32, String)> {
    let mut command = tokio::process::Command::new("curl");
    command
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"])
        .args(arguments);
    let output = command.output().await.ok()?;
    Some((output.status.code()?, String::from_utf8_lossy(&output.stdout).into_owned()))
}
