//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use mesh_ca::serve::{Selector, WorkloadEntry};
use mesh_tower::identity::{SpiffeId, TrustDomain};

const EXAMPLES: &str = "\
Examples:
  One certificate to files, from an authority that is made when it is first used:
    mesh-ca issue --trust-domain shop.example --state ca.json \\
        --id spiffe://shop.example/ns/shop/sa/cart --out cart/

  What others verify it with, as PEM and as a SPIFFE bundle:
    mesh-ca bundle --trust-domain shop.example --state ca.json
    mesh-ca bundle --trust-domain shop.example --state ca.json --format spiffe

  The SPIFFE Workload API and Envoy's SDS for the processes of user 1000:
    mesh-ca serve --trust-domain shop.example --state ca.json --socket /run/mesh-ca.sock \\
        --workload uid:1000=spiffe://shop.example/ns/shop/sa/cart

  Istio's CreateCertificate, as istiod serves it, and a bundle endpoint:
    mesh-ca serve --trust-domain cluster.local --state ca.json --istio-listen 0.0.0.0:15012 \\
        --token-issuer https://kubernetes.default.svc.cluster.local --token-jwks jwks.json \\
        --bundle-listen 0.0.0.0:8443

  An authority that is plugged in, with Istio's file names:
    mesh-ca issue --trust-domain cluster.local --ca-cert ca-cert.pem --ca-key ca-key.pem \\
        --cert-chain cert-chain.pem --root-cert root-cert.pem --id ... --out ...";

/// A certificate authority for SPIFFE identities: X.509-SVIDs and JWT-SVIDs of one trust domain.
#[derive(Debug, Parser)]
#[command(name = "mesh-ca", after_help = EXAMPLES, after_long_help = EXAMPLES)]
pub struct Options {
    #[command(subcommand)]
    pub command: Command,
}

/// What is done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serves the network APIs and rotates the keys until it is told to stop
    Serve(Box<ServeOptions>),
    /// Issues one certificate to files: cert-chain.pem, key.pem, root-cert.pem
    Issue(IssueOptions),
    /// Prints what others verify with
    Bundle(BundleOptions),
    /// Issues one JWT-SVID and prints it
    Jwt(JwtOptions),
}

/// Where the authority's keys are.
#[derive(Args, Debug)]
#[group(skip)]
pub struct AuthorityOptions {
    /// The trust domain it signs for, such as cluster.local
    #[arg(long, value_name = "NAME")]
    pub trust_domain: TrustDomain,

    /// File with its keys and their rotation; made when it is missing, readable by its owner only
    #[arg(long, value_name = "FILE", conflicts_with_all = ["ca_cert", "ca_key"], required_unless_present = "ca_cert")]
    pub state: Option<PathBuf>,

    /// Instead of --state: the certificate of an authority that somebody else rotates (ca-cert.pem)
    #[arg(long, value_name = "FILE", requires = "ca_key", requires = "root_cert")]
    pub ca_cert: Option<PathBuf>,

    /// Its private key (ca-key.pem)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub ca_key: Option<PathBuf>,

    /// The way from it up to the root (cert-chain.pem)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub cert_chain: Option<PathBuf>,

    /// The roots (root-cert.pem)
    #[arg(long, value_name = "FILE", requires = "ca_cert")]
    pub root_cert: Option<PathBuf>,

    /// Appends a line of JSON for everything that is issued; without it the lines go to stderr
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// `mesh-ca issue`.
#[derive(Args, Debug)]
pub struct IssueOptions {
    #[command(flatten)]
    pub authority: AuthorityOptions,

    /// Whom the certificate names
    #[arg(long, value_name = "SPIFFE-ID")]
    pub id: SpiffeId,

    /// Folder for the files; made when it is missing
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,

    /// Its life, at most 24h
    #[arg(long, default_value = "1h")]
    pub ttl: Life,

    /// A PKCS#10 request (PEM) whose key is certified; without it a key is made. Nothing else of the
    /// request counts
    #[arg(long, value_name = "FILE")]
    pub csr: Option<PathBuf>,
}

/// `mesh-ca bundle`.
#[derive(Args, Debug)]
pub struct BundleOptions {
    #[command(flatten)]
    pub authority: AuthorityOptions,

    /// PEM certificates, or the SPIFFE bundle document with the token keys
    #[arg(long, value_enum, default_value = "pem")]
    pub format: BundleFormat,
}

/// How a bundle is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum BundleFormat {
    /// The X.509 roots.
    Pem,
    /// The JSON document.
    Spiffe,
}

/// `mesh-ca jwt`.
#[derive(Args, Debug)]
pub struct JwtOptions {
    #[command(flatten)]
    pub authority: AuthorityOptions,

    /// Whom the token names
    #[arg(long, value_name = "SPIFFE-ID")]
    pub id: SpiffeId,

    /// For whom it is; may be given several times
    #[arg(long, required = true, value_name = "NAME")]
    pub audience: Vec<String>,

    /// Its life, at most 1h
    #[arg(long, default_value = "5m")]
    pub ttl: Life,

    /// Its issuer (iss), an https URL, for OIDC relying parties
    #[arg(long, value_name = "URL")]
    pub issuer: Option<String>,
}

/// `mesh-ca serve`.
#[derive(Args, Debug)]
pub struct ServeOptions {
    #[command(flatten)]
    pub authority: AuthorityOptions,

    /// Unix socket of the SPIFFE Workload API and of Envoy's SDS
    #[arg(long, value_name = "PATH", required_unless_present_any = ["istio_listen", "bundle_listen"])]
    pub socket: Option<PathBuf>,

    /// The socket's permissions, octal. Everybody may ask: the kernel tells who it is
    #[arg(long, value_name = "MODE", default_value = "777", value_parser = octal)]
    pub socket_mode: u32,

    /// An identity and the processes that have it, such as uid:1000,gid:1000=spiffe://td/x; may be
    /// given several times, the first that fits is a process's default identity
    #[arg(long = "workload", value_name = "SELECTORS=SPIFFE-ID", requires = "socket")]
    pub workloads: Vec<Workload>,

    /// The life of workloads' certificates, at most 24h
    #[arg(long, default_value = "1h")]
    pub ttl: Life,

    /// Address of Istio's CreateCertificate, such as 0.0.0.0:15012
    #[arg(long, value_name = "ADDRESS")]
    pub istio_listen: Option<SocketAddr>,

    /// DNS name in the certificate of that server
    #[arg(long, value_name = "NAME", default_value = "istiod.istio-system.svc")]
    pub istio_name: String,

    /// The cluster's issuer of service account tokens, which CreateCertificate takes
    #[arg(long, value_name = "URL", requires = "istio_listen", requires = "token_jwks")]
    pub token_issuer: Option<String>,

    /// The cluster's key set (kubectl get --raw /openid/v1/jwks); the file is followed
    #[arg(long, value_name = "FILE", requires = "token_issuer")]
    pub token_jwks: Option<PathBuf>,

    /// The audience that those tokens must have
    #[arg(long, value_name = "NAME", default_value = "istio-ca")]
    pub token_audience: String,

    /// Address of the SPIFFE bundle endpoint, such as 0.0.0.0:8443: https_spiffe, or https_web with
    /// --web-cert
    #[arg(long, value_name = "ADDRESS")]
    pub bundle_listen: Option<SocketAddr>,

    /// The bundle endpoint's own identity; spiffe://<trust domain>/ca without it
    #[arg(long, value_name = "SPIFFE-ID", requires = "bundle_listen")]
    pub bundle_id: Option<SpiffeId>,

    /// A certificate of the public web for the bundle endpoint (PEM); read again when it changes
    #[arg(long, value_name = "FILE", requires = "web_key", requires = "bundle_listen")]
    pub web_cert: Option<PathBuf>,

    /// Its private key
    #[arg(long, value_name = "FILE", requires = "web_cert")]
    pub web_key: Option<PathBuf>,

    /// The issuer (iss) of JWT-SVIDs, an https URL; the bundle endpoint then serves OIDC's documents
    #[arg(long, value_name = "URL")]
    pub jwt_issuer: Option<String>,

    /// A foreign trust domain's bundle document, such as partner.example=bundle.json; may be given
    /// several times
    #[arg(long = "federate", value_name = "NAME=FILE")]
    pub federated: Vec<Federated>,
}

/// A duration such as 90s, 30m, 12h or 1d.
#[derive(Clone, Copy, Debug)]
pub struct Life(pub Duration);

impl FromStr for Life {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a life; write 90s, 30m, 12h or 1d");
        let split = text.len().checked_sub(1).and_then(|at| text.split_at_checked(at));
        let (number, unit) = split.ok_or_else(wrong)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        match seconds {
            Some(seconds) if seconds > 0 => Ok(Self(Duration::from_secs(seconds))),
            Some(_) | None => Err(wrong()),
        }
    }
}

/// Selectors and an identity.
#[derive(Clone, Debug)]
pub struct Workload(pub WorkloadEntry);

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write selectors and an identity, as in uid:1000,gid:1000=spiffe://td/ns/a/sa/b";
        let (selectors, id) = text.split_once('=').ok_or_else(|| hint.to_owned())?;
        let selectors: Result<Vec<Selector>, _> = selectors.split(',').map(str::parse).collect();
        let selectors = selectors.map_err(|error| format!("{error}; {hint}"))?;
        let id: SpiffeId = id.parse().map_err(|error| format!("{error}; {hint}"))?;
        let entry = WorkloadEntry::new(id, selectors).map_err(|error| error.to_string())?;
        Ok(Self(entry))
    }
}

/// A foreign trust domain and where its bundle is.
#[derive(Clone, Debug)]
pub struct Federated(pub TrustDomain, pub PathBuf);

impl FromStr for Federated {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write a trust domain and a file, as in partner.example=bundle.json";
        let (name, path) = text.split_once('=').ok_or_else(|| hint.to_owned())?;
        let name = name.parse().map_err(|error| format!("{error}; {hint}"))?;
        Ok(Self(name, path.into()))
    }
}

fn octal(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    mode.ok_or_else(|| format!("{text:?} are no permissions; write 777, 770 or 700"))
}
