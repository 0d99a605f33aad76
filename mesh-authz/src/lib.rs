//! Says what it may do: Istio's AuthorizationPolicy and Rego, decided in process.
