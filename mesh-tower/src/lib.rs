//! Workload identity, mutual TLS, JWT and policy on any hyper, axum or tonic service.
