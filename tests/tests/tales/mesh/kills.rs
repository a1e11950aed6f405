//! What dies is not noticed by those who read: 200 GETs and 50 orders a second go on meanwhile.

use std::time::Duration;

use weft_tests::harness::{
    Hop, Load, Mesh,
    client::clusters_of,
    eventually,
    load::{Outcome, Tally},
    up::Workload,
};

use super::BLOCKS;

const GETS_PER_SECOND: u32 = 200;
const ORDERS_PER_SECOND: u32 = 50;
/// Longer than an ejection (30 s, with jitter) and the probe at its end.
const RETURN_LIMIT: Duration = Duration::from_secs(90);
/// Shorter than an ejection: a sidecar that refuses for want of its application is asked every second.
const BACK_LIMIT: Duration = Duration::from_secs(15);
const STATUS_LIMIT: Duration = Duration::from_secs(30);
/// GETs between two blows: two seconds of them.
const BREATH: usize = 400;
/// GETs in a row that are proof enough.
const ROW: usize = 200;

fn load(mesh: &Mesh) -> Load {
    Load::start(&mesh.cluster("east").ingress, GETS_PER_SECOND, ORDERS_PER_SECOND)
}

fn all_from<'a>(service: &'a str, cluster: &'a str) -> impl Fn(&[Hop]) -> bool + 'a {
    move |hops| clusters_of(hops, service).iter().all(|one| one == cluster)
}

fn ids(workloads: &[Workload]) -> Vec<String> {
    workloads.iter().map(|one| one.id.clone()).collect()
}

fn unharmed(mesh: &Mesh, tally: &Tally, what: &str) {
    tally.report(what);
    tally.no_get_failed().no_order_twice(&mesh.orders());
}

#[tokio::test(flavor = "multi_thread")]
async fn applications_die_and_nobody_notices() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let load = load(&mesh);
    load.more(BREATH).await;

    let reviews = mesh.workloads("east", "reviews");
    load.mark(&format!("SIGKILL of the application of {}", reviews[0].id));
    mesh.kill(reviews[0].pid);
    load.more(BREATH).await;
    load.mark("SIGKILL of the applications of all of east's reviews");
    reviews[1..].iter().for_each(|one| mesh.kill(one.pid));
    load.until("west serves the reviews", Duration::from_secs(20), ROW, all_from("reviews", "west")).await;
    mesh.status_tells("east", "status tells that they are down", STATUS_LIMIT, |status| {
        let proxies =
            status.clusters.iter().filter(|one| one.name.as_str() == "east").flat_map(|one| &one.proxies);
        let down = proxies.filter(|one| one.service_account.as_str() == "reviews" && !one.app_ready).count();
        if down == reviews.len() {
            Ok(())
        } else {
            Err(format!("{down} of {} are told as down", reviews.len()))
        }
    })
    .await;
    load.mark("started again");
    mesh.start_again(&ids(&reviews)).await;
    load.until("the reviews come from east again", BACK_LIMIT, ROW, all_from("reviews", "east")).await;

    one_by_one(&mesh, &load, "application", |one| one.pid, BACK_LIMIT).await;
    unharmed(&mesh, &load.stop().await, "applications killed");
}

/// East's catalogues die one after the other, and come back.
async fn one_by_one(mesh: &Mesh, load: &Load, what: &str, pid: impl Fn(&Workload) -> i32, within: Duration) {
    for one in mesh.workloads("east", "catalogue") {
        load.mark(&format!("SIGKILL of the {what} of {}", one.id));
        mesh.kill(pid(&one));
        load.more(BREATH).await;
    }
    load.until("west serves the catalogue", Duration::from_secs(20), ROW, all_from("catalogue", "west"))
        .await;
    load.mark("started again");
    mesh.start_again(&ids(&mesh.workloads("east", "catalogue"))).await;
    load.until("the catalogue comes from east again", within, ROW, all_from("catalogue", "east")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_die_and_nobody_notices() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let load = load(&mesh);
    load.more(BREATH).await;

    let reviews = mesh.workloads("east", "reviews");
    load.mark(&format!("SIGKILL of the sidecar of {}", reviews[0].id));
    mesh.kill(reviews[0].sidecar_pid);
    load.more(BREATH).await;
    load.mark("SIGKILL of the sidecars of all of east's reviews");
    reviews[1..].iter().for_each(|one| mesh.kill(one.sidecar_pid));
    load.until("west serves the reviews", Duration::from_secs(20), ROW, all_from("reviews", "west")).await;
    mesh.status_tells("east", "status tells that they are away", STATUS_LIMIT, |status| {
        let proxies =
            status.clusters.iter().filter(|one| one.name.as_str() == "east").flat_map(|one| &one.proxies);
        let here = proxies
            .filter(|one| one.service_account.as_str() == "reviews")
            .filter(|one| one.state == api::admin::ProxyState::Connected)
            .count();
        let told = status.events.iter().any(|event| {
            event.subject.contains("reviews") && event.message.starts_with("its stream is away")
        });
        if here == 0 && told { Ok(()) } else { Err(format!("{here} connected, {:?}", status.events)) }
    })
    .await;
    load.mark("started again");
    mesh.start_again(&ids(&reviews)).await;
    load.until("the reviews come from east again", RETURN_LIMIT, ROW, all_from("reviews", "east")).await;

    one_by_one(&mesh, &load, "sidecar", |one| one.sidecar_pid, RETURN_LIMIT).await;
    unharmed(&mesh, &load.stop().await, "sidecars killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_of_the_traffic_goes_west_and_west_dies() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let spread = "spec:\n  locality:\n    distribute:\n      \
                  - { from: eu-east, to: { eu-east: 50, eu-west: 50 } }\n      \
                  - { from: eu-west, to: { eu-east: 50, eu-west: 50 } }\n";
    mesh.repository().edit("traffic/defaults.yaml", "spec:\n", spread);
    mesh.commit("half of it to the other region").await;
    let load = load(&mesh);
    load.more(BREATH * 2).await;
    even(&load.since(Duration::ZERO)).unwrap();

    load.mark("SIGKILL of everything in west");
    let west = mesh.cluster("west");
    let all = west.workloads.iter().flat_map(|one| [one.pid, one.sidecar_pid]);
    all.chain([west.controlplane_pid, west.gateway_pids.ingress, west.gateway_pids.eastwest])
        .for_each(|pid| mesh.kill(pid));
    // Long enough that ejections end and what is dead is tried again.
    load.more(GETS_PER_SECOND as usize * 40).await;
    mesh.status_tells("east", "status tells that west is away", STATUS_LIMIT, |status| {
        let west =
            status.clusters.iter().find(|one| one.name.as_str() == "west").ok_or("west is not told of")?;
        west.away_since.map(drop).ok_or_else(|| format!("{west:?}"))
    })
    .await;

    load.mark("west is started again");
    mesh.weft(&["controlplane", "start", "west"]).await;
    mesh.weft(&["workload", "start", "--cluster", "west"]).await;
    eventually("half of the traffic goes west again", RETURN_LIMIT, async || {
        let gets = load.since(Duration::ZERO);
        even(&gets[gets.len() - BREATH * 2..])
    })
    .await;
    mesh.weft(&["wait", "HEAD", "--timeout", "30s"]).await;
    unharmed(&mesh, &load.stop().await, "west killed");
}

/// Whether of every service about half was served by west.
fn even(gets: &[Outcome]) -> Result<(), String> {
    for service in ["front", "catalogue", "reviews", "ratings"] {
        let west = gets.iter().filter(|get| clusters_of(&get.served, service).contains("west")).count();
        let share = west as f64 / gets.len() as f64;
        if !(0.4..0.6).contains(&share) {
            return Err(format!("{share} of {service} came from west"));
        }
    }
    Ok(())
}
