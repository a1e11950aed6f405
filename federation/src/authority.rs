//! The certificate authority: one root in the primary, an intermediate in each cluster, leaves by request.
//!
//! ```text
//! Root ──signs──▶ Intermediate (named after its cluster, path length 0) ──signs──▶ leaf (one SPIFFE id)
//!   └────certifies──▶ HeadKey, which signs what replicates: heads and bundles
//! ```
//!
//! All keys are ECDSA P-256. The time is an argument; keys and serial numbers are drawn from the system's
//! random numbers. Only the functions that name a directory touch a disk.
//!
//! Invariant: nothing outlives its issuer, and no private key but the root's sealed one ever leaves the
//! process that generated it.

mod head;
mod intermediate;
mod leaf;
mod request;
mod root;
mod seal;

#[cfg(test)]
mod tests;

pub use head::{HeadCertificate, HeadKey, Signed, TrustedHeadKey};
pub use intermediate::{Intermediate, IntermediateKey};
pub use leaf::LeafSpec;
pub use root::Root;
pub use seal::SealKey;
pub(crate) use seal::random;

use std::{io, path::PathBuf, time::Duration};

use api::{
    identity::{Day, Rejection, SpiffeId},
    name::{ClusterName, TrustDomain},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a root lives unless told otherwise.
pub const ROOT_LIFETIME: Duration = DAY.saturating_mul(3650);
/// How long an intermediate lives unless told otherwise; it is renewed from 30 days before its end.
pub const INTERMEDIATE_LIFETIME: Duration = DAY.saturating_mul(90);
/// When an intermediate has this long to live, its cluster asks for a new one.
pub const INTERMEDIATE_RENEWAL: Duration = DAY.saturating_mul(30);
/// How long a leaf lives unless told otherwise.
pub const LEAF_LIFETIME: Duration = DAY;
/// The shortest life of a leaf: one renewal at half life must fit an outage of a minute.
pub const LEAF_MIN: Duration = Duration::from_secs(5 * 60);
/// The longest life of a leaf.
pub const LEAF_MAX: Duration = DAY.saturating_mul(90);
/// Certificates begin to be valid this long ago, or a tenth of their life if that is less, since clocks differ.
pub const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Why the authority did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request cannot be read, or is not signed by the key that it asks a certificate for.
    #[error("the certificate request is refused: {0}")]
    Request(&'static str),
    /// An id that this authority does not certify.
    #[error("{id} is not certified by the intermediate of cluster `{cluster}`")]
    Id {
        /// The id asked for.
        id: SpiffeId,
        /// The cluster whose intermediate was asked.
        cluster: ClusterName,
    },
    /// A lifetime out of bounds.
    #[error("a leaf lives from 5 minutes to 90 days, not {} s", .0.as_secs())]
    Lifetime(Duration),
    /// The signer's own time is over.
    #[error("the signer's own certificate expired at {0}: it must be renewed first")]
    Expired(Day),
    /// A certificate that does not belong to the key, the root or the trust domain at hand.
    #[error("this certificate is not for this authority: {0}")]
    Certificate(&'static str),
    /// A certificate of the wrong shape.
    #[error(transparent)]
    Shape(#[from] Rejection),
    /// The root on disk is of another trust domain.
    #[error("the root in {} is of trust domain `{found}`, which is fixed once a root exists", path.display())]
    TrustDomain {
        /// Where the root is.
        path: PathBuf,
        /// Its trust domain.
        found: TrustDomain,
    },
    /// A file that is not what it should be.
    #[error("{} cannot be used: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The disk.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A statement about the head's key that the trusted roots did not sign.
    #[error("no root that is trusted here certified the key that signs heads")]
    HeadKey,
    /// A signature that does not belong to the bytes.
    #[error("the head or bundle is not signed by the primary's key")]
    Signature,
    /// The crypto library failed, which it should not.
    #[error("the crypto library failed: {0}")]
    Crypto(String),
}

impl From<rcgen::Error> for AuthorityError {
    fn from(error: rcgen::Error) -> Self {
        AuthorityError::Crypto(error.to_string())
    }
}
