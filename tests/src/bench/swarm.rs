//! Proxies without workers: the control client of the proxy, used as a library, many in one process. They enrol, follow
//! the control stream, compile what comes, keep it on disk and acknowledge it; they only carry no requests.

use std::{fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, ensure};
use api::wire;
use dataplane::{
    account::{Meters, Telemetry},
    config::Said,
    control::{self, hosts::Hosts, protocol::Session},
    proxy::Proxy,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use process::{
    metrics::Registry,
    shutdown::Shutdown,
    trace::Exporter,
    world::{Machine, SharedWorld},
};
use serde_json::json;
use tokio::time::timeout;

use crate::mesh::{Member, Mesh};

/// That enrol at the same time.
const AT_ONCE: usize = 32;
const START: Duration = Duration::from_secs(60);

/// Proxies that live until it is dropped.
pub struct Swarm {
    /// All.
    pub proxies: Vec<Arc<Proxy>>,
    shutdown: Shutdown,
    runtime: tokio::runtime::Runtime,
}

/// One of them.
pub struct Stand {
    /// The workload's id.
    pub id: String,
    /// Its service account, which is its label `app` too.
    pub account: String,
    /// Where others reach its port 8080, by mTLS as it says.
    pub address: SocketAddr,
}

impl Swarm {
    /// Enrols them all in the namespace `bench`, and returns when each obeys a view.
    pub fn start(mesh: &Mesh<'_>, dir: &Path, stands: Vec<Stand>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let shutdown = Shutdown::new();
        let minted: Vec<_> = stands
            .into_iter()
            .map(|stand| {
                let member = Member::sidecar(&stand.id, "bench", &stand.account, 0, stand.address);
                Ok((mesh.mint(&member)?, stand))
            })
            .collect::<anyhow::Result<_>>()?;
        let proxies = runtime.block_on(async {
            let begun = minted.into_iter().map(|(token, stand)| begin(mesh, dir, token, stand, &shutdown));
            stream::iter(begun).buffer_unordered(AT_ONCE).try_collect().await
        })?;
        Ok(Swarm { proxies, shutdown, runtime })
    }

    /// Fails unless each obeys this commit now.
    pub fn obeys(&self, commit: &str) -> anyhow::Result<()> {
        let obeys =
            |proxy: &&Arc<Proxy>| proxy.state().is_some_and(|state| &*state.runtime.revision == commit);
        let count = self.proxies.iter().filter(obeys).count();
        ensure!(count == self.proxies.len(), "{count} of {} proxies obey {commit}", self.proxies.len());
        Ok(())
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        let _ = self.runtime.block_on(self.shutdown.drain(Duration::from_secs(5)));
    }
}

async fn begin(
    mesh: &Mesh<'_>,
    dir: &Path,
    token: String,
    stand: Stand,
    shutdown: &Shutdown,
) -> anyhow::Result<Arc<Proxy>> {
    let dir = dir.join(&stand.id);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("token"), token)?;
    let said: Said = serde_json::from_value(json!({
        "role": "sidecar", "workload": &stand.id, "stateDir": &dir, "tokenFile": dir.join("token"),
        "controlPlanes": [mesh.control_plane()], "source": mesh.ip(9), "admin": "127.0.0.1:0",
        "inbound": stand.address, "outbound": "127.0.0.1:1",
    }))?;
    let config = said.mean()?;
    let world: SharedWorld = Arc::new(Machine);
    let identity =
        timeout(START, control::identity(&world, &config)).await.context("no certificate in time")??;
    let (hosts, questions) = Hosts::new();
    let hello = wire::Hello {
        instance: format!("{}-0", stand.id),
        role: config.role.wire() as i32,
        level: wire::LEVEL,
        version: "bench".to_owned(),
        address: config.role.address(),
        // Its settings name no application, or it would be asked each second whether it is there.
        ports: vec![wire::AppPort { port: 8080, address: stand.address.to_string() }],
        ..Default::default()
    };
    let (session, _) = Session::new(hello, None);
    let telemetry = Telemetry {
        meters: Meters::new(&Registry::new()),
        log: None,
        spans: Exporter::disabled(),
        trace_share: 0.0,
    };
    let proxy = Proxy::new(config, identity, hosts, telemetry);
    let mut changes = proxy.changes();
    shutdown
        .spawn("control stream", control::run(world, proxy.clone(), session, questions, shutdown.clone()));
    let obeys = async {
        while proxy.state().is_none() {
            changes.changed().await?;
        }
        anyhow::Ok(())
    };
    timeout(START, obeys).await.map_err(|_| anyhow!("{} got no view in time", stand.id))??;
    Ok(proxy)
}
