//! The shared vocabulary of Weft: names, identity, resources, the wire. No IO, no tokio, no locks.
//!
//! Invariant: this crate knows no other crate of the workspace.

pub mod admin;
pub mod delta;
pub mod digest;
pub mod endpoint;
pub mod head;
pub mod identity;
pub mod link;
pub mod locality;
pub mod manifest;
pub mod name;
pub mod pattern;
pub mod resource;
pub mod schema;
pub mod wire;
