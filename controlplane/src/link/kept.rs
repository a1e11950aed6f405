//! A durable copy of what the others offer, so that a restart does not forget where requests may go.

use std::{collections::BTreeMap, io, path::PathBuf, sync::Arc};

use api::{name::ClusterName, wire};
use process::{files, shutdown::Shutdown};
use prost::Message;
use tokio::sync::watch;

use super::MAX_MESSAGE_BYTES;
use crate::plane::Peers;

/// Catalogues change with every endpoint; the file follows at most this often.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);

/// The file with the other clusters' catalogues.
#[derive(Debug, Clone)]
pub struct Kept(PathBuf);

impl Kept {
    /// The file in the control plane's state directory.
    pub fn new(dir: &std::path::Path) -> Self {
        Kept(dir.join("catalogues.bin"))
    }

    /// What was kept, stale since `now` unless it was stale before.
    pub fn load(&self, now: i64) -> io::Result<Peers> {
        let bytes = files::read(&self.0, 16 * MAX_MESSAGE_BYTES as u64)?.unwrap_or_default();
        let mut rest = bytes.as_slice();
        let mut peers = BTreeMap::new();
        while !rest.is_empty() {
            let mut catalogue =
                wire::Catalogue::decode_length_delimited(&mut rest).map_err(io::Error::other)?;
            if catalogue.stale_since == 0 {
                catalogue.stale_since = now;
            }
            let cluster = ClusterName::new(&catalogue.cluster).map_err(io::Error::other)?;
            peers.insert(cluster, Arc::new(catalogue));
        }
        Ok(Arc::new(peers))
    }

    /// Follows what is known.
    pub async fn run(self, mut peers: watch::Receiver<Peers>, shutdown: Shutdown) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = peers.changed() => if changed.is_err() { return },
            }
            let bytes: Vec<u8> = peers
                .borrow_and_update()
                .values()
                .flat_map(|one| one.encode_length_delimited_to_vec())
                .collect();
            if let Err(error) = files::write_private(&self.0, &bytes) {
                tracing::warn!(%error, "the catalogues of other clusters could not be kept; is the disk full?");
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
