//! The proxy: sidecar, ingress and east-west gateway, from one binary.
//!
//! ```text
//! listen → connection (TLS or plaintext, protocol, who it is) → request (facts → decide → forward) → account
//!                                                                   forward → balance → pool → dial
//! control (identity, view) → proxy (what all threads share) → each request loads it once
//! ```
//!
//! Workers carry requests, each on a thread of its own with its own listeners and upstream connections; the control
//! thread holds the control stream, the admin listener and telemetry.
//!
//! Invariant: nothing on the request path waits for the control thread, but for a host that is asked for the first time.

pub mod account;
pub mod admin;
pub mod balance;
pub mod body;
pub mod caller;
pub mod capture;
pub mod captured;
pub mod config;
pub mod connection;
pub mod control;
pub mod dial;
pub mod failure;
pub mod forward;
pub mod headers;
pub mod http1;
pub mod limit;
pub mod listen;
pub mod liveness;
pub mod message;
pub mod names;
pub mod passthrough;
pub mod pool;
pub mod proxy;
pub mod request;
mod review;
pub mod run;
mod sniff;
pub mod tcp;
pub mod tunnel;
pub mod worker;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod tales;
