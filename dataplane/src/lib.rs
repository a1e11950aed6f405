//! The proxy: sidecar, ingress and east-west gateway.
