//! What takes too long for the test command: `weft-soak explain [COUNT]`, `weft-soak rotation [MINUTES]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use api::admin::ClusterStatus;
use clap::{Parser, Subcommand};
use tokio::task::JoinSet;
use weft_tests::harness::{Blocks, Load, Mesh, explanations, ticks};

/// Apart from those of the tests, and from each other, so that both may run at once.
static EXPLAINED: Blocks = Blocks::from(120);
static ROTATED: Blocks = Blocks::from(124);

const ROTATION_MINUTES: u64 = 12;
const CLUSTERS: [&str; 2] = ["east", "west"];
/// At each of the two ingresses.
const GETS_PER_SECOND: u32 = 100;
/// Every certificate is renewed at least so often in that time: leaves of 5 minutes at half life, with jitter.
const ROTATIONS: usize = 3;
/// The stream says something each second.
const SILENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(5);

/// Runs what takes too long for the tests: a whole mesh, under load
///
/// Takes the release builds of both binaries. Fails where something does not hold.
#[derive(Parser)]
#[command(name = "weft-soak")]
struct Arguments {
    #[command(subcommand)]
    soak: Soak,
}

#[derive(Subcommand)]
enum Soak {
    /// Send random requests, and compare each answer with what `weft explain` says of it
    Explain {
        /// How many
        #[arg(default_value_t = 1000)]
        requests: u64,
    },
    /// Renew each certificate every few minutes, and lose no request and no stream
    Rotation {
        /// For how long
        #[arg(default_value_t = ROTATION_MINUTES)]
        minutes: u64,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().soak {
        Soak::Explain { requests } => explain(requests).await,
        Soak::Rotation { minutes } => rotation(minutes).await?,
    }
    Ok(())
}

/// `weft explain` against what happens.
async fn explain(count: u64) {
    let mesh = Mesh::up(&EXPLAINED, &[]).await;
    let statuses = explanations::hold(&mesh, count).await;
    println!("{count} requests went as explained: {}", explanations::told(&statuses));
}

/// Leaves of 5 minutes under load at both ingresses, and one HTTP/2 stream through each all the while.
async fn rotation(minutes: u64) -> anyhow::Result<()> {
    let mesh = Mesh::up(&ROTATED, &["--leaf", "5m"]).await;
    let ingresses = CLUSTERS.map(|cluster| mesh.cluster(cluster).ingress);
    let loads = ingresses.clone().map(|ingress| Load::start(&ingress, GETS_PER_SECOND, 0));
    let mut streams = JoinSet::new();
    for ingress in ingresses {
        streams.spawn(async move {
            anyhow::anyhow!(
                "the HTTP/2 stream at {ingress}: {}",
                ticks::listen(&ingress, SILENCE, || {}).await
            )
        });
    }
    let mut seen: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    while Instant::now() < end {
        for cluster in CLUSTERS {
            let status = mesh.status(cluster).await;
            let own = status.clusters.into_iter().filter(|one| one.name.as_str() == cluster);
            for (name, ends) in own.flat_map(certificates) {
                seen.entry(name).or_default().insert(ends);
            }
        }
        tokio::time::sleep(LOOK).await;
        if let Some(ended) = streams.try_join_next() {
            bail!("a stream ended: {}", ended?);
        }
    }
    streams.abort_all();
    for (load, cluster) in loads.into_iter().zip(CLUSTERS) {
        let tally = load.stop().await;
        tally.report(&format!("rotation, at the ingress of {cluster}"));
        tally.no_get_failed();
    }
    println!("{:32} rotations", "process");
    for (name, ends) in &seen {
        println!("{name:32} {}", ends.len() - 1);
    }
    let fewest = seen.iter().min_by_key(|(_, ends)| ends.len()).context("no proxy was seen")?;
    if minutes >= ROTATION_MINUTES && fewest.1.len() <= ROTATIONS {
        bail!("{} was renewed fewer than {ROTATIONS} times", fewest.0);
    }
    Ok(())
}

/// Who of a cluster holds a certificate, and its end: its control plane and its proxies.
fn certificates(cluster: ClusterStatus) -> Vec<(String, u64)> {
    let own = (format!("control plane of {}", cluster.name), cluster.certificate_not_after as u64);
    let proxies =
        cluster.proxies.iter().map(|one| (one.workload.to_string(), one.certificate_not_after as u64));
    std::iter::once(own).chain(proxies).collect()
}
