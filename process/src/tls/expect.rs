//! Whom a client expects at the other end.

use api::{
    identity::{Rejection, SpiffeId, Verified},
    name::{ClusterName, TrustDomain},
};

/// The identities that the endpoint asked for may have, and its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Expect {
    /// Any one of these; with none, nobody is expected and every peer is refused.
    pub ids: Vec<SpiffeId>,
    /// The cluster of the endpoint, if it is known.
    pub cluster: Option<ClusterName>,
}

impl Expect {
    /// The control plane of `cluster`.
    pub fn control_plane(trust_domain: &TrustDomain, cluster: &ClusterName) -> Self {
        Expect { ids: vec![SpiffeId::control_plane(trust_domain, cluster)], cluster: Some(cluster.clone()) }
    }

    /// Whether the verified peer is the one expected.
    pub fn check(&self, peer: &Verified) -> Result<(), Rejection> {
        if !self.ids.contains(&peer.id) {
            return Err(Rejection::UnexpectedId { found: peer.id.clone() });
        }
        match &self.cluster {
            Some(expected) if *expected != peer.cluster => Err(Rejection::UnexpectedCluster {
                id: peer.id.clone(),
                found: peer.cluster.clone(),
                expected: expected.clone(),
            }),
            Some(_) | None => Ok(()),
        }
    }
}
