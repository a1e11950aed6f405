//! Peers and trust: join, the link between clusters, the certificate authority, bundles.

pub mod authority;
mod file;
pub mod token;
