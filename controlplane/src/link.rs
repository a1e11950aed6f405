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
/// How long a message may wait for room, or for its sender: both ends write and read in turn, and where both had much to
/// say at once, both would wait for ever. A link that ends is made anew, and tells what is left to tell.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Several changes at once make one message.
pub(crate) const GATHER: Duration = Duration::from_millis(2);

/// Takes the catalogue of a cluster that itself says it, if that link counts (primary).
pub(crate) fn learn(plane: &Plane, catalogue: wire::Catalogue, counts: impl FnOnce() -> bool) {
    let now_ms = (plane.now() * 1000.0) as u64;
    take(plane, catalogue, |held, said| counts().then(|| heard(held, said, now_ms)));
}

/// Takes the catalogue of another cluster that the primary passes on (remote).
pub(crate) fn learn_by_primary(plane: &Plane, catalogue: wire::Catalogue) {
    take(plane, catalogue, |held, said| Some(passed_on(held, said)));
}

fn take(
    plane: &Plane,
    said: wire::Catalogue,
    judge: impl FnOnce(Option<&wire::Catalogue>, wire::Catalogue) -> Option<wire::Catalogue>,
) {
    let Ok(cluster) = ClusterName::new(&said.cluster) else { return };
    plane.peers.send_if_modified(|peers| {
        let held = peers.get(&cluster);
        let Some(next) = judge(held.map(|held| &**held), said) else { return false };
        let news = held.is_none_or(|held| **held != next);
        if news {
            Arc::make_mut(peers).insert(cluster, Arc::new(next));
        }
        news
    });
}

/// What its own cluster says is the truth. It is numbered in order: by the time of day, which goes on from where it was
/// when this control plane begins again with less than it had known, and in any case by more than before.
fn heard(held: Option<&wire::Catalogue>, said: wire::Catalogue, now_ms: u64) -> wire::Catalogue {
    let said = wire::Catalogue { stale_since: 0, version: 0, ..said };
    match held {
        Some(held) if wire::Catalogue { stale_since: 0, version: 0, ..held.clone() } == said => {
            wire::Catalogue { version: held.version, ..said }
        }
        held => {
            let version = held.map_or(0, |held| held.version + 1).max(now_ms);
            wire::Catalogue { version, ..said }
        }
    }
}

/// What the primary heard of the cluster itself is the truth. What it only remembers may be older than what is known
/// here: it was kept before the primary was killed, or before another control plane took over.
fn passed_on(held: Option<&wire::Catalogue>, said: wire::Catalogue) -> wire::Catalogue {
    match held {
        Some(held) if said.stale_since != 0 && held.version > said.version => {
            wire::Catalogue { stale_since: said.stale_since, ..held.clone() }
        }
        _ => said,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(gateway: &str, version: u64, stale_since: i64) -> wire::Catalogue {
        wire::Catalogue {
            cluster: "west".into(),
            gateways: vec![gateway.into()],
            version,
            stale_since,
            ..Default::default()
        }
    }

    #[test]
    fn what_a_cluster_says_of_itself_is_numbered_in_order() {
        let first = heard(None, catalogue("a", 0, 0), 1_000);
        assert_eq!(first, catalogue("a", 1_000, 0));
        let stale = wire::Catalogue { stale_since: 7, ..first };
        assert_eq!(
            heard(Some(&stale), catalogue("a", 0, 0), 2_000),
            catalogue("a", 1_000, 0),
            "the same again"
        );
        assert_eq!(heard(Some(&stale), catalogue("b", 0, 0), 2_000), catalogue("b", 2_000, 0));
        assert_eq!(
            heard(Some(&stale), catalogue("b", 0, 0), 500),
            catalogue("b", 1_001, 0),
            "a clock set back"
        );
        assert_eq!(
            heard(Some(&stale), catalogue("b", 9_999, 5), 2_000).version,
            2_000,
            "a number of its own"
        );
    }

    #[test]
    fn what_the_primary_only_remembers_replaces_nothing_newer() {
        let held = catalogue("new", 2_000, 0);
        let older = passed_on(Some(&held), catalogue("old", 1_000, 60));
        assert_eq!(older, catalogue("new", 2_000, 60), "it ages, and stays");
        assert_eq!(
            passed_on(Some(&held), catalogue("old", 1_000, 0)),
            catalogue("old", 1_000, 0),
            "heard now"
        );
        assert_eq!(passed_on(Some(&held), catalogue("newer", 3_000, 60)), catalogue("newer", 3_000, 60));
        assert_eq!(passed_on(None, catalogue("old", 1_000, 60)), catalogue("old", 1_000, 60));
    }
}
