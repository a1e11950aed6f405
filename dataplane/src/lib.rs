//! The proxy: sidecar, ingress and east-west gateway.

pub mod balance;
pub mod passthrough;
