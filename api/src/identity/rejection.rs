//! Why a peer's certificates were refused, in words for the operator.

use std::fmt;

use rustls_pki_types::UnixTime;
use x509_parser::prelude::ASN1Time;

use super::{BadSpiffeId, SpiffeId};
use crate::{
    digest::Hash,
    name::{ClusterName, Namespace, TrustDomain},
};

/// Why a peer is not believed. One variant a reason; [`Rejection::label`] names it for metrics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// It showed none.
    #[error("the peer presented no certificate: is it a member of the mesh?")]
    NoCertificate,
    /// More than [`MAX_CHAIN`](super::MAX_CHAIN).
    #[error("the peer presented {0} certificates, more than any honest chain has")]
    TooMany(usize),
    /// Not X.509, or an extension that cannot be read.
    #[error("a certificate of the peer cannot be read as X.509")]
    Malformed,
    /// Not exactly one URI SAN.
    #[error("the leaf has {0} URI subject alternative names; SPIFFE asks for exactly one")]
    UriSans(usize),
    /// A URI SAN that is no id of this mesh.
    #[error("the leaf bears no SPIFFE id of this mesh: {0}")]
    Id(#[from] BadSpiffeId),
    /// The wrong shape for a leaf.
    #[error("the leaf is not a workload's certificate: {0}")]
    Leaf(&'static str),
    /// Another trust domain than the bundle's.
    #[error("the peer is of the trust domain `{found}`, and only `{ours}` is trusted here")]
    OtherTrustDomain {
        /// The peer's.
        found: TrustDomain,
        /// The bundle's.
        ours: TrustDomain,
    },
    /// Not valid yet.
    #[error("a certificate of the peer is not valid before {0}: do the clocks agree?")]
    NotYetValid(Day),
    /// The leaf's time is over.
    #[error("the peer's certificate expired at {0}: it must enrol anew with a fresh token")]
    Expired(Day),
    /// The time of the intermediate that issued the leaf is over.
    #[error(
        "the intermediate that issued the peer's certificate expired at {0}: can its cluster reach the primary?"
    )]
    IssuerExpired(Day),
    /// No path to a root of the bundle.
    #[error("the peer's certificate does not lead to a root that is trusted here")]
    UnknownRoot,
    /// A path, but with a signature or an extension that does not hold.
    #[error("the path of the peer's certificate does not hold: {0}")]
    Path(String),
    /// Not leaf, intermediate, root.
    #[error("the verified path has {0} intermediates; leaf, intermediate and root are expected")]
    PathLength(usize),
    /// An intermediate of the wrong shape.
    #[error("the issuer of the peer's certificate is not a cluster's intermediate: {0}")]
    Intermediate(&'static str),
    /// A revoked intermediate.
    #[error(
        "the intermediate {fingerprint} of cluster `{cluster}` is revoked: the cluster must be joined anew"
    )]
    Revoked {
        /// The cluster whose intermediate it is.
        cluster: ClusterName,
        /// SHA-256 of its DER.
        fingerprint: Hash,
    },
    /// A cluster that the bundle does not know.
    #[error("cluster `{0}`, which issued the peer's certificate, is not a member of this mesh")]
    NotAMember(ClusterName),
    /// A namespace that the issuing cluster may not vouch for.
    #[error(
        "cluster `{cluster}` may not vouch for namespace `{namespace}`: add it to `spec.namespaces` of the Cluster if it should"
    )]
    Namespace {
        /// The namespace in the peer's id.
        namespace: Namespace,
        /// The issuing cluster.
        cluster: ClusterName,
    },
    /// A control plane's id from another cluster's intermediate.
    #[error("cluster `{cluster}` issued an id for the control plane of `{claimed}`")]
    ForeignControlPlane {
        /// The cluster in the peer's id.
        claimed: ClusterName,
        /// The issuing cluster.
        cluster: ClusterName,
    },
    /// A good certificate of somebody else.
    #[error("the peer is {found}, and none of the identities expected there")]
    UnexpectedId {
        /// Who it is.
        found: SpiffeId,
    },
    /// The right identity in the wrong cluster.
    #[error("the peer {id} is of cluster `{found}`, expected of `{expected}`")]
    UnexpectedCluster {
        /// Who it is.
        id: SpiffeId,
        /// Its cluster.
        found: ClusterName,
        /// The cluster that was asked for.
        expected: ClusterName,
    },
    /// None of the certificates is the root whose hash the token carries.
    #[error("the control plane did not present the root {} that the token names: is the address right, the token of this mesh?", .expected.short())]
    OtherRoot {
        /// The hash in the token.
        expected: Hash,
    },
}

impl Rejection {
    /// A short, bounded name of the reason, for logs and metrics.
    pub fn label(&self) -> &'static str {
        match self {
            Rejection::NoCertificate => "no_certificate",
            Rejection::TooMany(_) => "too_many_certificates",
            Rejection::Malformed => "malformed",
            Rejection::UriSans(_) => "uri_sans",
            Rejection::Id(_) => "bad_spiffe_id",
            Rejection::Leaf(_) => "bad_leaf",
            Rejection::OtherTrustDomain { .. } => "other_trust_domain",
            Rejection::NotYetValid(_) => "not_yet_valid",
            Rejection::Expired(_) => "expired",
            Rejection::IssuerExpired(_) => "issuer_expired",
            Rejection::UnknownRoot => "unknown_root",
            Rejection::Path(_) => "bad_path",
            Rejection::PathLength(_) => "path_length",
            Rejection::Intermediate(_) => "bad_intermediate",
            Rejection::Revoked { .. } => "revoked",
            Rejection::NotAMember(_) => "not_a_member",
            Rejection::Namespace { .. } => "namespace_not_vouched",
            Rejection::ForeignControlPlane { .. } => "foreign_control_plane",
            Rejection::UnexpectedId { .. } => "unexpected_id",
            Rejection::UnexpectedCluster { .. } => "unexpected_cluster",
            Rejection::OtherRoot { .. } => "other_root",
        }
    }
}

/// A second, written for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day(pub UnixTime);

impl fmt::Display for Day {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match i64::try_from(seconds).ok().and_then(|s| ASN1Time::from_timestamp(s).ok()) {
            Some(time) => write!(out, "{time}"),
            None => write!(out, "Unix second {seconds}"),
        }
    }
}
