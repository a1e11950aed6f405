//! The primary's etcd dies, then its control plane too, and no request notices; commits wait, and come.

use std::{
    net::{Ipv4Addr, TcpListener},
    time::Duration,
};

use weft_tests::harness::{EtcdServer, Load, Mesh, eventually};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_requests_and_restarts_go_on_and_commits_wait() {
    let mut etcd = EtcdServer::start(Ipv4Addr::new(127, 100, 0, 3).into(), &[]);
    let mut mesh = Mesh::up(&BLOCKS, &["--etcd", &etcd.url()]).await;
    let loads = ["east", "west"].map(|cluster| Load::start(&mesh.cluster(cluster).ingress, 50, 0));
    loads[0].more(100).await;
    let before = mesh.status("east").await.commit;
    let mark = |what: &str| {
        loads.iter().for_each(|load| {
            load.mark(what);
        });
    };

    mark("SIGKILL of etcd");
    etcd.kill();
    let east_is_without = |away: bool| {
        move |status: &api::admin::Status| {
            let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
            let is_away = east.store_away_since.is_some();
            if is_away == away { Ok(()) } else { Err(format!("away: {is_away}")) }
        }
    };
    for cluster in ["east", "west"] {
        mesh.status_tells(cluster, "the store is away", SOON, east_is_without(true)).await;
    }
    let text = mesh.weft(&["status"]).await;
    assert!(text.contains("store away for"), "{text}");
    let waits = mesh.repository();
    waits.edit("traffic/reviews.yaml", "weight: 60", "weight: 50");
    waits.commit("while etcd is away").await;

    mark("SIGKILL of the control plane, while etcd is away");
    mesh.kill(mesh.cluster("east").controlplane_pid);
    let metrics = (Ipv4Addr::new(127, mesh.block(), 0, 1), 15014);
    eventually("its ports are free", SOON, async || {
        TcpListener::bind(metrics).map(drop).map_err(|error| error.to_string())
    })
    .await;
    let config = mesh.dir().join("east/controlplane/config.json");
    mesh.beside(&["controlplane", "--config", config.to_str().unwrap()]);
    eventually("it serves from its own disk", SOON, async || {
        let asked = mesh.try_weft(&["status", "--output", "json"]).await;
        let status: api::admin::Status =
            serde_json::from_slice(&asked.stdout).map_err(|error| error.to_string())?;
        let east = status.clusters.iter().find(|one| one.name.as_str() == "east").ok_or("no east")?;
        let here = east.proxies.iter().filter(|one| one.state == api::admin::ProxyState::Connected).count();
        if status.commit == before && here == 14 {
            Ok(())
        } else {
            Err(format!("{:?}, {here} proxies are connected", status.commit))
        }
    })
    .await;
    loads[0].more(100).await;

    mark("etcd is back");
    etcd.again();
    mesh.weft(&["wait", "HEAD", "--timeout", "60s"]).await;
    mesh.status_tells("east", "the store is back", SOON, east_is_without(false)).await;
    for load in loads {
        load.more(50).await;
        let tally = load.stop().await;
        tally.report("etcd killed");
        tally.no_get_failed();
    }
}
