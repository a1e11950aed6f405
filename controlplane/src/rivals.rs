//! Whether another control plane of the cluster serves, asked of the others themselves by one that serves and leads no more.
//!
//! One that has lost the way to the store alone would go on for those proxies that reach it, while another one leads, has
//! never heard of them, and takes their workloads for gone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use api::{head::Seq, wire};
use futures_util::FutureExt;
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
        let asked =
            |other| tokio::time::timeout(PATIENCE, ask(&plane, other)).map(|told| told.ok().flatten());
        match later(&plane, asked).await {
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

/// Who serves by a later right, by what each says when it is asked. This one's own is given up then.
async fn later<F: Future<Output = Option<Since>>>(
    plane: &Plane,
    ask: impl Fn(SocketAddr) -> F,
) -> Result<Option<SocketAddr>, VaultError> {
    let config = &plane.config;
    let others = config.replicas.iter().filter(|ip| **ip != config.address);
    for other in others.map(|ip| SocketAddr::new(*ip, config.proxies.port())) {
        let Some(theirs) = ask(other).await else { continue };
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

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, future::ready};

    use super::*;
    use crate::{plane::fixture::primary, snapshot::Configuration, vault::TERM_FILE};

    #[tokio::test]
    async fn only_another_one_with_a_later_right_ends_this_one_s() {
        let home = tempfile::tempdir().unwrap();
        let (mut plane, _) = primary(home.path(), false).await;
        let others = ["127.0.0.2", "127.0.0.3"].map(|ip| ip.parse().unwrap());
        let own = Arc::get_mut(&mut plane).unwrap();
        own.config.replicas = [&[own.config.address], &others[..]].concat();
        let head = Seq { epoch: 1, n: 7 };
        plane
            .configuration
            .send_replace(Arc::new(Configuration { head: Some(head), ..Configuration::default() }));
        let at = |n, term| Some((Some(Seq { n, ..head }), term));

        for (first, second, later_one) in [
            (None, None, None),
            (at(7, 3), None, None),
            (at(6, 9), at(7, 2), None),
            (Some((None, 9)), at(7, 3), None),
            (at(6, 9), at(7, 4), Some(others[1])),
            (at(8, 1), at(9, 9), Some(others[0])),
        ] {
            std::fs::write(home.path().join(TERM_FILE), "3").unwrap();
            let asked = RefCell::new(Vec::new());
            let ask = |other: SocketAddr| {
                assert_eq!(other.port(), plane.config.proxies.port());
                asked.borrow_mut().push(other.ip());
                ready(if other.ip() == others[0] { first } else { second })
            };
            let found = later(&plane, ask).await.unwrap();
            assert_eq!(found.map(|other| other.ip()), later_one, "{first:?}, {second:?}");
            let expected = if later_one == Some(others[0]) { &others[..1] } else { &others[..] };
            assert_eq!(*asked.borrow(), expected, "itself it asks nothing");
            assert_eq!(plane.vault.term().unwrap().is_none(), later_one.is_some(), "the right is given up");
        }
    }
}
