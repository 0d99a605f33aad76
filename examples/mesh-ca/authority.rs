//! The authority: from its state file, or plugged in.

use std::fs;
use std::io;
use std::path::Path;

use mesh_ca::{Authority, Ca, CaSettings, JsonLines, PluggedIn, StateFile};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateSigningRequestDer, UnixTime};

use crate::options::AuthorityOptions;
use crate::{Failure, named};

/// Opens or makes it.
pub fn open(options: &AuthorityOptions) -> Result<Ca, Failure> {
    let (settings, now) = (CaSettings::new()?, UnixTime::now());
    let log = JsonLines::new(log(options.log.as_deref())?);
    let domain = &options.trust_domain;
    if let Some(path) = &options.state {
        if !path.exists() {
            eprintln!("{}: a new authority for {domain}", path.display());
        }
        let opened = StateFile::new(path).open(domain, settings, log, now);
        let (ca, lost) = opened.map_err(|error| named(path, &error))?;
        for lost in lost {
            eprintln!("{}: {lost:?} had ended and was made anew", path.display());
        }
        return Ok(ca);
    }
    let read = |path: &Option<std::path::PathBuf>| match path {
        Some(path) => fs::read(path).map_err(|error| named(path, &error)),
        None => Ok(Vec::new()),
    };
    let (certificate, key) = (read(&options.ca_cert)?, read(&options.ca_key)?);
    let (chain, roots) = (read(&options.cert_chain)?, read(&options.root_cert)?);
    let files = PluggedIn { certificate: &certificate, key: &key, chain: &chain, roots: &roots };
    let authority = Authority::from_plugged_in(domain, &files, now)?;
    Ok(Ca::with_authority(authority, settings, log, now)?)
}

fn log(path: Option<&Path>) -> Result<Box<dyn io::Write + Send>, Failure> {
    let Some(path) = path else { return Ok(Box::new(io::stderr())) };
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    Ok(Box::new(file.map_err(|error| named(path, &error))?))
}

/// The request of a PEM file.
pub fn csr(text: &[u8]) -> Result<CertificateSigningRequestDer<'static>, &'static str> {
    CertificateSigningRequestDer::from_pem_slice(text)
        .map_err(|_detail| "expected a PEM block CERTIFICATE REQUEST (openssl req -new writes one)")
}
