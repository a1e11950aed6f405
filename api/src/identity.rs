//! Who a peer is: SPIFFE ids, the bundle of trust, and the one verification of certificate chains.
//!
//! Everything here is pure: the chain, the bundle and the time are arguments, a [`Verified`] or a
//! [`Rejection`] is the answer. Both planes ask this code and no other.
//!
//! Invariant: a [`Verified`] is only made by [`verify`] and [`verify_enrolment`], so holding one proves that
//! a path from its leaf over its cluster's intermediate to a trusted root was checked.

mod bundle;
mod leaf;
mod rejection;
mod spiffe;
mod verify;

#[cfg(test)]
mod tests;

pub use crate::resource::mesh::Vouched;
pub use bundle::{BadRoot, Bundle, RootCertificate, Vouch};
pub use leaf::{Leaf, signer_cluster, validity};
pub use rejection::{Day, Rejection};
pub use rustls_pki_types::{CertificateDer, UnixTime};
pub use spiffe::{BadSpiffeId, SpiffeId};
pub use verify::{MAX_CHAIN, Verified, verify, verify_enrolment};
