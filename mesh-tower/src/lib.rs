//! Workload identity, mutual TLS, JWT and policy on any hyper, axum or tonic service.
//!
//! A [`Mesh`] holds an identity, the trust bundles and the policies, all live. It guards a service
//! ([`Mesh::serve`], or the [`MeshLayer`] around a router) and connects clients ([`Connector`]).
//! Handlers find the verified caller in the request's extensions: [`Permit`].

#[cfg(feature = "admin")]
mod admin;
mod backoff;
mod body;
#[cfg(feature = "ca-serve")]
mod ca_tokens;
mod client;
mod clock;
mod connection;
mod custom;
mod cut;
#[cfg(feature = "rego")]
mod decision_log;
mod denial;
mod error;
mod expiry;
mod flow;
mod future;
mod gather;
mod guard;
mod handed;
#[cfg(feature = "axum")]
mod handlers;
mod layer;
mod logs;
mod mask;
mod mesh;
mod observe;
#[cfg(feature = "opa")]
mod opa;
mod open_path;
mod policies;
mod readiness;
mod record;
mod refuse;
#[cfg(feature = "rego")]
mod rego;
mod report;
mod resource;
mod running;
mod server;
mod service;
mod settings;
mod snapshot;
mod source;
mod telemetry;
mod trace;
mod xfcc;

pub use mesh_authn as authn;
pub use mesh_authz as authz;
#[cfg(feature = "ca")]
pub use mesh_ca as ca;
pub use mesh_identity as identity;

#[cfg(feature = "admin")]
pub use admin::Admin;
pub use body::{RequestBody, ResponseBody};
#[cfg(feature = "ca-serve")]
pub use ca_tokens::{JwtSvids, ServiceAccounts};
pub use client::{
    ClientBody, ClientError, ConnectError, Connector, MeshClient, MeshStream, ServerInfo,
};
pub use clock::{Clock, SystemClock};
pub use connection::{ConnectionInfo, Security, TlsFacts};
#[cfg(feature = "ext-authz")]
pub use custom::GrpcAuthorizer;
pub use custom::{
    Authorizer, CheckAnswer, CheckConnection, CheckError, CheckFuture, CheckRequest, CheckedBody,
    Denial, ExtensionProviders, HttpAuthorizer, Provider, ProviderCounts, RequestChanges,
};
#[cfg(feature = "rego")]
pub use decision_log::{DecisionLog, DecisionLogCounts, FileSink, LogSink};
pub use denial::DeniedRequest;
pub use error::Error;
pub use future::MeshFuture;
pub use guard::Permit;
#[cfg(feature = "axum")]
pub use handlers::{
    Claims, ConnectionService, Guarded, GuardedRouter, MeshMakeService, Missing, Peer,
};
pub use layer::MeshLayer;
pub use logs::{AccessLog, AuditLog};
pub use mesh::{Mesh, MeshBuilder};
pub use observe::{AccessEntry, ConnectionEvent, DecisionEvent, Observer, TracingObserver};
#[cfg(feature = "opa")]
pub use opa::{
    BundleSource, BundleSourceError, BundleState, Bundles, LogUpload, LogUploadCounts, LogUploader,
    OpaService, OpaServiceError,
};
pub use open_path::{OpenPath, OpenPathError};
pub use policies::Policies;
pub use readiness::{NotReady, Readiness};
#[cfg(feature = "rego")]
pub use rego::RegoStage;
pub use resource::{AccessDenied, Resource, ResourceError};
pub use server::{Limits, Server, TcpConnection};
#[cfg(feature = "axum")]
pub use server::{ListenerAddress, MeshIo, MeshListener};
pub use service::MeshService;
pub use snapshot::OwnIdentityError;
#[cfg(feature = "ca")]
pub use source::AuthoritySource;
pub use source::{
    AddressPolicy, Federated, FetchError, FetchFuture, FileError, HttpKeyFetcher, Identity,
    IdentityFileSource, IdentityFiles, IdentityFuture, IdentitySource, IdentityUpdate, KeyFetcher,
    KeyFiles,
};
#[cfg(feature = "workload-api")]
pub use source::{
    EndpointError, WorkloadApi, WorkloadApiFailure, WorkloadApiSource, WorkloadApiStream,
    WorkloadApiUpdate, WorkloadEndpoint,
};
#[cfg(feature = "istio-ca")]
pub use source::{IstioCa, IstioCaError, IstioCaFailure, IstioCaSource, IstioCaState};
pub use telemetry::{Metric, MetricKind, MetricLabels, RequestsTotal, Telemetry};
pub use trace::TraceContext;
pub use xfcc::ForwardClientCert;
