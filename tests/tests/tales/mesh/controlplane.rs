//! The primary's control plane dies, and nothing stops.

use std::time::Duration;

use api::{admin::ProxyState, identity::signer_cluster};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use weft_tests::harness::{
    Client, Load, Mesh, client::request, eventually, logs, mesh::first_line, up::Workload,
};

use super::BLOCKS;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn without_the_primary_requests_joins_and_restarts_go_on() {
    let mut mesh = Mesh::up(&BLOCKS, &[]).await;
    let loads = ["east", "west"].map(|cluster| Load::start(&mesh.cluster(cluster).ingress, 50, 0));
    loads[0].more(100).await;

    loads.iter().for_each(|load| {
        load.mark("SIGKILL of the primary's control plane");
    });
    mesh.kill(mesh.cluster("east").controlplane_pid);
    west_says_since_when(&mesh).await;
    let added = a_workload_joins_west(&mut mesh).await;

    // West's control plane goes too: nobody can be asked now.
    mesh.kill(mesh.cluster("west").controlplane_pid);
    a_proxy_comes_back_by_its_last_good_view(&mesh, "west-reviews-v1-1").await;
    a_proxy_comes_back_by_its_last_good_view(&mesh, "east-front-1").await;
    for load in &loads {
        load.more(200).await;
    }

    let missed = mesh.repository();
    missed.edit("traffic/reviews.yaml", "weight: 60", "weight: 50");
    missed.commit("while nobody looks").await;
    for cluster in ["east", "west"] {
        loads.iter().for_each(|load| {
            load.mark(&format!("the control plane of {cluster} is back"));
        });
        let config = mesh.dir().join(cluster).join("controlplane/config.json");
        mesh.beside(&["controlplane", "--config", config.to_str().unwrap()]);
    }
    eventually("the control planes answer", SOON, async || {
        for cluster in ["east", "west"] {
            let status = mesh.try_weft(&["status", "--cluster", cluster]).await;
            if !status.status.success() {
                return Err(String::from_utf8_lossy(&status.stderr).into_owned());
            }
        }
        Ok(())
    })
    .await;
    mesh.weft(&["wait", "HEAD", "--timeout", "40s"]).await;
    mesh.status_tells("west", "west has its primary again", SOON, |status| {
        let west = status.clusters.iter().find(|one| one.name.as_str() == "west").ok_or("no west")?;
        west.primary_away_since.map_or(Ok(()), |since| Err(format!("away since {since}")))
    })
    .await;
    it_leaves(&mut mesh, &added).await;
    for load in loads {
        load.more(100).await;
        let tally = load.stop().await;
        tally.report("control planes killed");
        tally.no_get_failed();
    }
}

async fn west_says_since_when(mesh: &Mesh) {
    mesh.status_tells("west", "west says since when the primary is away", SOON, |status| {
        let west = status.clusters.iter().find(|one| one.name.as_str() == "west").ok_or("no west")?;
        west.primary_away_since.map(drop).ok_or("it is not away".to_owned())
    })
    .await;
    let text = mesh.weft(&["status", "--cluster", "west"]).await;
    assert!(text.contains("primary away for"), "{text}");
}

async fn a_workload_joins_west(mesh: &mut Mesh) -> Workload {
    let address = format!("127.{}.0.99", mesh.block() + 1);
    let binary = mesh.binary().to_owned();
    let said = mesh.beside(&[
        "workload",
        "add",
        "--output",
        "json",
        "--cluster",
        "west",
        "--namespace",
        "shop",
        "--service",
        "reviews",
        "--version",
        "v1",
        "--address",
        &address,
        "--",
        &binary,
        "sample-service",
        "--name",
        "reviews",
        "--version",
        "late",
        "--cluster",
        "west",
    ]);
    let line = tokio::task::spawn_blocking(move || first_line(said));
    let line = tokio::time::timeout(SOON, line).await.expect("it is ready soon").unwrap().unwrap();
    let added: Workload = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"));

    let ingress = mesh.ingress("west");
    eventually("the new workload serves", SOON, async || {
        let answer = ingress.get("/reviews").await?;
        let served = answer.served_by();
        if served.iter().any(|hop| hop.version == "late") { Ok(()) } else { Err(format!("{served:?}")) }
    })
    .await;
    let pem = std::fs::read(added.dir.join("sidecar/identity.pem")).unwrap();
    let chain: Vec<CertificateDer<'_>> = CertificateDer::pem_slice_iter(&pem).map(Result::unwrap).collect();
    assert_eq!(signer_cluster(&chain[1]).unwrap().as_str(), "west");
    added
}

/// SIGTERM drains it and takes it out of the registry.
async fn it_leaves(mesh: &mut Mesh, added: &Workload) {
    mesh.status_tells("west", "the added workload is connected", SOON, |status| {
        let mut proxies = status.clusters.iter().flat_map(|one| &one.proxies);
        let known = proxies.find(|one| one.workload.as_str() == added.id);
        let connected = known.is_some_and(|one| one.state == ProxyState::Connected);
        if connected { Ok(()) } else { Err(format!("{known:?}")) }
    })
    .await;
    mesh.end_beside(0).await;
    mesh.status_tells("west", "the added workload is out of the registry", SOON, |status| {
        let proxies = status.clusters.iter().flat_map(|one| &one.proxies);
        let known = proxies.filter(|one| one.workload.as_str() == added.id).count();
        if known == 0 { Ok(()) } else { Err(format!("{} is known still", added.id)) }
    })
    .await;
}

/// Its sidecar is killed and started again while no control plane can be reached.
async fn a_proxy_comes_back_by_its_last_good_view(mesh: &Mesh, id: &str) {
    let before = mesh.workload(id);
    mesh.kill(before.sidecar_pid);
    mesh.weft(&["workload", "start", id]).await;
    let after = mesh.workload(id);
    assert_ne!(before.sidecar_pid, after.sidecar_pid);
    if after.service == "front" {
        // As a caller: it routes, balances and is believed by what it kept.
        let outbound = Client::new(&after.outbound);
        let headers = [("x-request-id", "after-the-restart")];
        let answer =
            outbound.send(request("GET", "http://reviews:8080/reviews", &headers), true).await.unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    } else {
        // As a callee: its callers know it by the name it had.
        let served = |lines: &[logs::Line]| {
            lines
                .iter()
                .filter(|line| line.get("direction") == "inbound" && line.get("status") == "200")
                .count()
        };
        let before = served(&logs::access(&after.dir.join("sidecar")));
        eventually("it serves its callers again", Duration::from_secs(60), async || {
            let now = served(&logs::access(&after.dir.join("sidecar")));
            if now > before { Ok(()) } else { Err(format!("{now} requests in all")) }
        })
        .await;
    }
}
