//! Whether another control plane of the cluster serves, asked of the others themselves by one that serves and leads no more.
//!
//! One that has lost the way to the store alone would go on for those proxies that reach it, while another one leads, has
//! never heard of them, and takes their workloads for gone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{head::Seq, wire};
use process::{
    rpc::{self, stub::control_client::ControlClient},
    shutdown::Shutdown,
    tls,
};

use crate::{plane::Plane, vault::VaultError};

/// Between two rounds.
const AGAIN: Duration = Duration::from_secs(1);
/// One that does not answer by then may not be there.
const PATIENCE: Duration = Duration::from_secs(2);
const SERVER_NAME: &str = "control.weft.internal";

/// Since when a control plane serves: which of two is right.
type Since = (Option<Seq>, u64);

/// Ends the turn by `shutdown` once another one serves by a later right.
pub async fn run(plane: Arc<Plane>, shutdown: Shutdown) {
    let Some(mut leading) = plane.vault.leading() else { return shutdown.cancelled().await };
    loop {
        if leading.now().is_some() {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = leading.changed() => continue,
            }
        }
        match later(&plane).await {
            Ok(None) => {}
            Ok(Some(other)) => {
                tracing::warn!(%other, "the store is away for this control plane alone: another one serves");
                return shutdown.cancel();
            }
            Err(error) => tracing::warn!(%error, "it is not known since when this control plane serves"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}

/// Who serves by a later right. This one's own is given up then.
async fn later(plane: &Plane) -> Result<Option<SocketAddr>, VaultError> {
    let config = &plane.config;
    let others = config.replicas.iter().filter(|ip| **ip != config.address);
    for other in others.map(|ip| SocketAddr::new(*ip, config.proxies.port())) {
        let Ok(Some(theirs)) = tokio::time::timeout(PATIENCE, ask(plane, other)).await else { continue };
        if theirs > own(plane)? {
            plane.vault.retire()?;
            return Ok(Some(other));
        }
    }
    Ok(None)
}

/// Since when the control plane at `other` serves; none when it stands by, or is not there.
async fn ask(plane: &Plane, other: SocketAddr) -> Option<Since> {
    let config = &plane.config;
    let expect = tls::Expect::control_plane(&plane.authority.trust_domain(), &config.cluster);
    let tls = tls::client(plane.authority.identity(), expect, &["h2"]);
    let channel =
        rpc::connect(&plane.world, other, Some(config.address), tls, SERVER_NAME.into()).await.ok()?;
    let answer = ControlClient::new(channel).turn(wire::TurnRequest {}).await.ok()?.into_inner();
    Some((answer.head.map(Seq::from), answer.term))
}

/// Since when this one serves.
pub fn own(plane: &Plane) -> Result<Since, VaultError> {
    Ok((plane.configuration.borrow().head, plane.vault.term()?.unwrap_or_default()))
}
