//! A control plane that answers what a test tells it, byte by byte, and breaks as it is told.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use mesh_tower::OpaService;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::tls;

/// One answer.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Head lines without the end, and a body; the length is added.
    Answer(String, Vec<u8>),
    /// Bytes as they are, then the connection ends.
    Raw(Vec<u8>),
    /// Nothing for a while, then another.
    After(Duration, Box<Act>),
    /// Never an answer.
    Silence,
    /// A body that comes a byte at a time.
    Trickle(Vec<u8>),
}

impl Act {
    pub(crate) fn status(status: &str) -> Self {
        Self::Answer(format!("HTTP/1.1 {status}"), Vec::new())
    }

    pub(crate) fn bundle(bytes: Vec<u8>, etag: &str) -> Self {
        Self::Answer(format!("HTTP/1.1 200 OK\r\netag: {etag}"), bytes)
    }

    /// With the content type of a service that keeps requests waiting.
    pub(crate) fn long(self) -> Self {
        match self {
            Self::Answer(head, body) => Self::Answer(
                format!("{head}\r\ncontent-type: application/vnd.openpolicyagent.bundles"),
                body,
            ),
            other @ (Self::Raw(_) | Self::After(..) | Self::Silence | Self::Trickle(_)) => other,
        }
    }
}

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    pub(crate) at: std::time::Instant,
}

impl Asked {
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// The events of a decision log upload.
    pub(crate) fn events(&self) -> Vec<Value> {
        serde_json::from_reader(flate2::read::GzDecoder::new(self.body.as_slice())).unwrap()
    }
}

/// The control plane. Without acts left it answers 304 to who has an ETag, else 404.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) address: SocketAddr,
    acts: Arc<Mutex<VecDeque<Act>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Control {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let control = Self { address, acts: Arc::default(), asked: Arc::default() };
        let accepting = control.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(accepting.clone().answer(stream));
            }
        });
        control
    }

    async fn answer(self, mut stream: TcpStream) {
        let Some(asked) = read(&mut stream).await else { return };
        let has_etag = asked.header("if-none-match").is_some();
        self.asked.lock().unwrap().push(asked);
        let act = self.acts.lock().unwrap().pop_front();
        let act = act.unwrap_or_else(|| {
            Act::status(if has_etag { "304 Not Modified" } else { "404 Not Found" })
        });
        // Who is not listened to any more is not written to.
        drop(perform(&mut stream, act).await);
    }

    pub(crate) fn next(&self, act: Act) {
        self.acts.lock().unwrap().push_back(act);
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn service(&self) -> OpaService {
        let (provider, roots) = tls();
        let url = format!("http://{}/opa/", self.address);
        OpaService::new(&url, provider, roots).unwrap().allow_plain_http()
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut asked =
                Asked { head, body: bytes[end..][4..].to_vec(), at: std::time::Instant::now() };
            let length: usize = asked.header("content-length").map_or(0, |n| n.parse().unwrap());
            while asked.body.len() < length {
                stream.read_buf(&mut asked.body).await.ok().filter(|read| *read > 0)?;
            }
            return Some(asked);
        }
        stream.read_buf(&mut bytes).await.ok().filter(|read| *read > 0)?;
    }
}

async fn perform(stream: &mut TcpStream, act: Act) -> std::io::Result<()> {
    let mut act = act;
    while let Act::After(time, then) = act {
        tokio::time::sleep(time).await;
        act = *then;
    }
    match act {
        Act::Answer(head, body) => {
            stream
                .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n", body.len()).as_bytes())
                .await?;
            stream.write_all(&body).await
        }
        Act::Raw(bytes) => stream.write_all(&bytes).await,
        Act::After(..) | Act::Silence => std::future::pending().await,
        Act::Trickle(bytes) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await?;
            for byte in bytes.iter().cycle() {
                tokio::time::sleep(Duration::from_millis(20)).await;
                stream.write_all(&[*byte]).await?;
            }
            Ok(())
        }
    }
}

/// A bundle of files.
pub(crate) fn bundle(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len().try_into().unwrap());
        header.set_mode(0o644);
        archive.append_data(&mut header, path.trim_start_matches('/'), content.as_bytes()).unwrap();
    }
    let mut gzip = archive.into_inner().unwrap();
    gzip.flush().unwrap();
    gzip.finish().unwrap()
}

/// A bundle that allows one path, at a revision.
pub(crate) fn allowing(path: &str, revision: &str) -> Vec<u8> {
    bundle(&[("/authz.rego", &module(path)), ("/.manifest", &manifest(revision))])
}

pub(crate) fn module(path: &str) -> String {
    format!(
        "package envoy.authz\ndefault allow := false\nallow if input.parsed_path[1] == \"{path}\"\n"
    )
}

pub(crate) fn manifest(revision: &str) -> String {
    format!("{{\"revision\": \"{revision}\"}}")
}
