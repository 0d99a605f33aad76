//! `mesh-ca serve`: binds everything, says where it listens, and serves until it is told to stop.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_ca::serve::{BundleEndpoint, CaService, IstioSettings, ServerName, WorkloadEntries};
use mesh_tower::identity::{BundleSet, TrustBundle};
use mesh_tower::{JwtSvids, ServiceAccounts};
use rustls::pki_types::UnixTime;
use serde_json::{Map, Value};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::options::ServeOptions;
use crate::{Failure, authority, named, print};

/// Seconds between two looks at the cluster's key set.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Serves until SIGTERM or an interrupt. A line of JSON on standard output says where it listens.
pub async fn run(options: &ServeOptions) -> Result<(), Failure> {
    let ca = Arc::new(authority::open(&options.authority)?);
    let service = CaService::new(ca, options.jwt_issuer.clone(), UnixTime::now);
    service.set_foreign_bundles(foreign(options)?);
    let entries = options.workloads.iter();
    let entries = entries.map(|workload| workload.0.clone().with_ttl(options.ttl.0));
    service.set_entries(WorkloadEntries::new(entries)?);

    let (stop, stopped) = watch::channel(false);
    let stopped = || {
        let mut stopped = stopped.clone();
        async move { drop(stopped.changed().await) }
    };
    let mut servers = JoinSet::new();
    let mut listening = Map::new();
    if let Some(path) = &options.socket {
        let listener = bind_unix(path, options.socket_mode).map_err(|error| named(path, &error))?;
        listening.insert("socket".to_owned(), format!("unix://{}", path.display()).into());
        let (service, until) = (service.clone(), stopped());
        servers.spawn(
            async move { service.serve_workloads(listener, Arc::new(JwtSvids), until).await },
        );
    }
    if let Some(address) = options.istio_listen {
        let listener = bind(address).await?;
        listening.insert("istio".to_owned(), listener.local_addr()?.to_string().into());
        let (settings, keys) = istio(options)?;
        let (service, until) = (service.clone(), stopped());
        if let Some((accounts, path, held)) = keys {
            let stopped = stopped();
            tokio::spawn(async move {
                tokio::select! {
                    () = follow_keys(&accounts, &path, held) => {}
                    () = stopped => {}
                }
            });
        }
        servers.spawn(async move { service.serve_istio(listener, settings, until).await });
    }
    if let Some(address) = options.bundle_listen {
        let listener = bind(address).await?;
        listening.insert("bundle".to_owned(), listener.local_addr()?.to_string().into());
        let (service, endpoint, until) = (service.clone(), endpoint(options)?, stopped());
        servers.spawn(async move { service.serve_bundle(listener, endpoint, until).await });
    }
    print(&format!("{}\n", Value::Object(listening)))?;

    let served = tokio::select! {
        () = service.drive() => Ok(()),
        () = told_to_stop()? => Ok(()),
        // A server ends early only when it cannot begin.
        Some(ended) = servers.join_next() => ended.map_err(io::Error::other).and_then(|done| done),
    };
    stop.send_replace(true);
    while servers.join_next().await.is_some() {}
    if let Some(path) = &options.socket {
        drop(fs::remove_file(path));
    }
    Ok(served?)
}

async fn bind(address: std::net::SocketAddr) -> Result<TcpListener, Failure> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|error| format!("cannot listen on {address}: {error}").into())
}

/// A socket that a killed process has left is replaced, one on which somebody listens is not.
fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    if path.exists() {
        if UnixStream::connect(path).is_ok() {
            return Err(io::Error::other("somebody listens on this socket; stop him first"));
        }
        let stale = std::os::unix::fs::FileTypeExt::is_socket(&fs::metadata(path)?.file_type());
        if !stale {
            return Err(io::Error::other(
                "is there and is no socket; remove it or take another path",
            ));
        }
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(listener)
}

fn foreign(options: &ServeOptions) -> Result<BundleSet, Failure> {
    let bundles = options.federated.iter().map(|federated| {
        let path = &federated.1;
        let text = fs::read_to_string(path).map_err(|error| named(path, &error))?;
        TrustBundle::from_json(federated.0.clone(), &text).map_err(|error| named(path, &error))
    });
    Ok(BundleSet::from_bundles(bundles.collect::<Result<Vec<_>, _>>()?)?)
}

/// Whose keys are followed, in which file, and what it said.
type Keys = (Arc<ServiceAccounts>, PathBuf, String);

fn istio(options: &ServeOptions) -> Result<(IstioSettings, Option<Keys>), Failure> {
    let domain = &options.authority.trust_domain;
    let name = options.istio_name.clone();
    let name = name.try_into().map_err(|error| format!("--istio-name: {error}"))?;
    let id = format!("spiffe://{domain}/ns/istio-system/sa/istiod").parse()?;
    let settings = IstioSettings::new(ServerName::new(id, [name]));
    let (Some(issuer), Some(path)) = (&options.token_issuer, &options.token_jwks) else {
        return Ok((settings, None));
    };
    let jwks = fs::read_to_string(path).map_err(|error| named(path, &error))?;
    let audiences = [options.token_audience.as_str()];
    let accounts = ServiceAccounts::new(domain.clone(), issuer, &jwks, audiences);
    let accounts = Arc::new(accounts.map_err(|error| named(path, &error))?);
    let settings = settings.with_tokens(Arc::clone(&accounts));
    Ok((settings, Some((accounts, path.clone(), jwks))))
}

/// The cluster rotates its keys: the file is read again and again. What cannot be read or used is
/// told once, and the keys in force stay.
async fn follow_keys(accounts: &ServiceAccounts, path: &Path, mut held: String) {
    let mut told = String::new();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let read = fs::read_to_string(path).map_err(Failure::from);
        let taken = read.and_then(|jwks| {
            if jwks != held {
                accounts.set_keys(&jwks)?;
                eprintln!("{}: new keys for tokens", path.display());
                held = jwks;
            }
            Ok(())
        });
        let error = taken.err().map(|error| error.to_string()).unwrap_or_default();
        if error != told && !error.is_empty() {
            eprintln!("{}: {error}; the keys in force stay", path.display());
        }
        told = error;
    }
}

fn endpoint(options: &ServeOptions) -> Result<BundleEndpoint, Failure> {
    if let (Some(chain), Some(key)) = (&options.web_cert, &options.web_key) {
        return Ok(BundleEndpoint::Web { chain: chain.clone(), key: key.clone() });
    }
    let id = match &options.bundle_id {
        Some(id) => id.clone(),
        None => format!("spiffe://{}/ca", options.authority.trust_domain).parse()?,
    };
    Ok(BundleEndpoint::Spiffe(id))
}

fn told_to_stop() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
