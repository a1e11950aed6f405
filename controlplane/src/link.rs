//! The link between clusters: one stream that the remote opens. Down come trust, heads, blobs and catalogues; up go
//! the cluster's own catalogue and its word on itself.
//!
//! Invariant: a link that breaks empties nothing. What the other side said stays, with its age.

mod kept;
pub mod primary;
pub mod remote;

use std::{sync::Arc, time::Duration};

use api::{name::ClusterName, wire};

use crate::plane::Plane;

pub use kept::Kept;

/// The largest message of a link: a catalogue of 100,000 endpoints, or one large blob.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of blobs in one message, unless a single blob is larger.
pub(crate) const BLOB_BATCH_BYTES: usize = 2 * 1024 * 1024;
/// Messages that wait for a slow reader.
pub(crate) const QUEUE: usize = 32;
/// Several changes at once make one message.
pub(crate) const GATHER: Duration = Duration::from_millis(2);

/// Takes another cluster's catalogue into use.
pub(crate) fn learn(plane: &Plane, catalogue: wire::Catalogue) {
    let Ok(cluster) = ClusterName::new(&catalogue.cluster) else { return };
    plane.peers.send_if_modified(|peers| {
        if peers.get(&cluster).is_some_and(|held| **held == catalogue) {
            return false;
        }
        Arc::make_mut(peers).insert(cluster, Arc::new(catalogue));
        true
    });
}

/// Marks the catalogues of `clusters` stale from now on, where they are not already.
pub(crate) fn grow_stale(plane: &Plane, clusters: impl Fn(&ClusterName) -> bool) {
    let now = plane.now() as i64;
    plane.peers.send_if_modified(|peers| {
        let fresh: Vec<_> = peers
            .iter()
            .filter(|(name, held)| clusters(name) && held.stale_since == 0)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &fresh {
            if let Some(held) = Arc::make_mut(peers).get_mut(name) {
                Arc::make_mut(held).stale_since = now;
            }
        }
        !fresh.is_empty()
    });
}
