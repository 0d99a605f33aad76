//! What was issued, recorded before it is handed out ([SEC-CA-10]).

use std::fmt::Write as _;
use std::io;
use std::sync::{Mutex, PoisonError};

use mesh_identity::SpiffeId;
use rustls_pki_types::UnixTime;
use serde_json::json;

/// One thing that was issued.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct IssueRecord<'a> {
    /// When.
    pub time: UnixTime,
    /// Who asked, as he was authenticated.
    pub caller: &'a str,
    /// Whom it names.
    pub identity: &'a SpiffeId,
    /// Certificate or token.
    pub kind: IssuedKind,
    /// The certificate's serial number, or the token's `jti`.
    pub serial: &'a [u8],
    /// The first second of its validity.
    pub not_before: UnixTime,
    /// The last second of its validity.
    pub not_after: UnixTime,
}

/// What can be issued.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum IssuedKind {
    /// A JWT-SVID.
    Jwt,
    /// An X.509-SVID.
    X509,
}

/// Where records go. What cannot be recorded is not handed out.
pub trait IssueLog: Send + Sync {
    /// Writes one record and does not return before it is where it belongs.
    ///
    /// # Errors
    ///
    /// When it could not be written; then nothing is issued.
    fn record(&self, record: &IssueRecord<'_>) -> io::Result<()>;
}

impl IssueRecord<'_> {
    /// The record as one line of JSON, with its line feed.
    #[must_use]
    pub fn to_json_line(&self) -> String {
        let kind = match self.kind {
            IssuedKind::Jwt => "jwt",
            IssuedKind::X509 => "x509",
        };
        let mut line = json!({
            "time": self.time.as_secs(),
            "kind": kind,
            "caller": self.caller,
            "identity": self.identity.as_str(),
            "serial": hex(self.serial),
            "not_before": self.not_before.as_secs(),
            "not_after": self.not_after.as_secs(),
        })
        .to_string();
        line.push('\n');
        line
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a string cannot fail.
        if write!(text, "{byte:02x}").is_err() {
            text.clear();
        }
        text
    })
}

/// Records as JSON lines to a file or any other writer.
#[derive(Debug)]
pub struct JsonLines<W> {
    writer: Mutex<W>,
}

impl<W: io::Write + Send> JsonLines<W> {
    /// Writes to this.
    pub fn new(writer: W) -> Self {
        Self { writer: Mutex::new(writer) }
    }
}

impl<W: io::Write + Send> IssueLog for JsonLines<W> {
    fn record(&self, record: &IssueRecord<'_>) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(record.to_json_line().as_bytes())?;
        writer.flush()
    }
}

/// Discards records: for tests, and for who logs elsewhere.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "a unit struct is written by its name")]
pub struct NoLog;

impl IssueLog for NoLog {
    fn record(&self, _record: &IssueRecord<'_>) -> io::Result<()> {
        Ok(())
    }
}
