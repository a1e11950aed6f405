//! The next certificate, at half the life of the present one. Connections that stand are not touched by it.

use std::{sync::Arc, time::Duration};

use api::wire;
use process::{
    logs,
    rpc::stub::control_client::ControlClient,
    shutdown::Shutdown,
    tls::{Key, renewal},
    world::SharedWorld,
};

use super::{Pause, channel, enrol::certified};
use crate::proxy::Proxy;

/// How long one call may take.
const CALL: Duration = Duration::from_secs(5);

/// Renews for as long as the process lives.
pub async fn run(world: SharedWorld, proxy: Arc<Proxy>, shutdown: Shutdown) {
    let work = async {
        loop {
            let validity = proxy.identity.credentials().validity().clone();
            let due = renewal::due(*validity.start(), *validity.end(), world.chance());
            let wait = due.as_secs().saturating_sub(world.unix().as_secs());
            tokio::time::sleep(Duration::from_secs(wait)).await;
            renewed(&world, &proxy).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = shutdown.cancelled() => {}
    }
}

/// Returns when there is a new certificate, however often that must be tried.
async fn renewed(world: &SharedWorld, proxy: &Proxy) {
    let mut pause = Pause::default();
    for address in proxy.config.control_planes.iter().cycle() {
        let tried = tokio::time::timeout(CALL, renew(world, proxy, *address)).await;
        match tried.unwrap_or_else(|_| Err("no answer in time".into())) {
            Ok(()) => return tracing::info!("the certificate is renewed"),
            Err(error) => tracing::warn!(%address, error, "the certificate is not renewed yet"),
        }
        tokio::time::sleep(pause.next(&**world)).await;
    }
}

async fn renew(world: &SharedWorld, proxy: &Proxy, address: std::net::SocketAddr) -> Result<(), String> {
    let channel = channel(world, &proxy.identity, address, proxy.config.source).await?;
    let key = Key::generate().map_err(|error| error.to_string())?;
    let csr = key.request().map_err(|error| error.to_string())?;
    let answer = ControlClient::new(channel).renew(wire::RenewRequest { csr }).await;
    let signed = answer.map_err(|status| status.message().to_owned())?.into_inner();
    if let Ok(bundle) = serde_json::from_slice(&signed.bundle) {
        // An older bundle than the one in force is no news.
        let _ = proxy.identity.trust(bundle);
    }
    let credentials = certified(key, signed).map_err(|error| error.to_string())?;
    proxy.identity.renew(credentials).map_err(|error| error.to_string())?;
    // What is in memory serves; on disk it only matters for the next start.
    if let Err(error) = proxy.identity.store(&proxy.config.state_dir) {
        tracing::error!(error = logs::causes(&error), "the new certificate cannot be kept on disk");
    }
    Ok(())
}
