//! A certificate authority for a mesh, as a small process.
//!
//! `cargo run --example mesh-ca -- --help` says what it does, with examples.

mod authority;
mod options;
mod serve;

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser as _;
use mesh_tower::identity::TrustBundle;
use rustls::pki_types::UnixTime;

use crate::options::{BundleFormat, BundleOptions, Command, IssueOptions, JwtOptions, Options};

/// Whatever goes wrong is told in one line that says what to do.
type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_target(false).init();
    let done = match Options::parse().command {
        Command::Serve(options) => serve::run(&options).await,
        Command::Issue(options) => issue(&options),
        Command::Bundle(options) => bundle(&options),
        Command::Jwt(options) => jwt(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// One certificate, in the three files that Istio's agent writes.
fn issue(options: &IssueOptions) -> Result<(), Failure> {
    let ca = authority::open(&options.authority)?;
    let (id, ttl, now) = (&options.id, options.ttl.0, UnixTime::now());
    fs::create_dir_all(&options.out).map_err(|error| named(&options.out, &error))?;
    let chain = if let Some(path) = &options.csr {
        let text = fs::read(path).map_err(|error| named(path, &error))?;
        let csr = authority::csr(&text).map_err(|error| named(path, &error))?;
        ca.issue_for_csr("command line", id, &csr, ttl, now)?
    } else {
        let svid = ca.issue_svid("command line", id, ttl, now)?;
        let key = pem("PRIVATE KEY", svid.private_key().secret_der());
        write(&options.out.join("key.pem"), &key, 0o600)?;
        svid.chain().to_vec()
    };
    let chain: String = chain.iter().map(|der| pem("CERTIFICATE", der)).collect();
    write(&options.out.join("cert-chain.pem"), &chain, 0o644)?;
    write(&options.out.join("root-cert.pem"), &roots(&ca.bundle()), 0o644)?;
    eprintln!("{id}: {}", options.out.display());
    Ok(())
}

fn bundle(options: &BundleOptions) -> Result<(), Failure> {
    let bundle = authority::open(&options.authority)?.bundle();
    match options.format {
        BundleFormat::Pem => print(&roots(&bundle)),
        BundleFormat::Spiffe => print(&format!("{}\n", bundle.to_json())),
    }
}

fn jwt(options: &JwtOptions) -> Result<(), Failure> {
    if options.authority.ca_cert.is_some() {
        return Err(
            "token keys live in --state: with --ca-cert nobody could verify the token".into()
        );
    }
    let ca = authority::open(&options.authority)?;
    let (issuer, now) = (options.issuer.as_deref(), UnixTime::now());
    let ttl = options.ttl.0;
    let token =
        ca.issue_jwt_svid("command line", &options.id, &options.audience, ttl, issuer, now)?;
    print(&format!("{}\n", token.token()))
}

/// A reader that has seen enough is no error.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn roots(bundle: &TrustBundle) -> String {
    bundle.x509_authorities().iter().map(|root| pem("CERTIFICATE", root.der())).collect()
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// Replaces a file whole, so that who watches it never reads half of one.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let beside = path.with_extension("new");
    let write = || {
        drop(fs::remove_file(&beside));
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
        #[cfg(not(unix))]
        let _ = mode;
        options.open(&beside)?.write_all(text.as_bytes())?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| named(path, &error))
}

fn named(path: &Path, error: &dyn std::fmt::Display) -> Failure {
    format!("{}: {error}", path.display()).into()
}
