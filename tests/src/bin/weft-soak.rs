//! What takes too long for the test command: `weft-soak explain [COUNT]`, `weft-soak rotation [MINUTES]`.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use weft_tests::harness::{Blocks, Load, Mesh, explanations};

/// Apart from those of the tests, and from each other, so that both may run at once.
static EXPLAINED: Blocks = Blocks::from(120);
static ROTATED: Blocks = Blocks::from(124);

const EXPLANATIONS: u64 = 1000;
const ROTATION_MINUTES: u64 = 12;
/// Every certificate is renewed at least so often in that time: leaves of 5 minutes at half life, with jitter.
const ROTATIONS: usize = 3;
/// The stream says something each second.
const SILENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |default| words.get(1).map_or(Ok(default), |text| text.parse().context("a number is expected"));
    match words.first().map(String::as_str) {
        Some("explain") => explain(number(EXPLANATIONS)?).await,
        Some("rotation") => rotation(number(ROTATION_MINUTES)?).await?,
        _ => bail!("say `weft-soak explain [COUNT]` or `weft-soak rotation [MINUTES]`"),
    }
    Ok(())
}

/// `weft explain` against what happens.
async fn explain(count: u64) {
    let mesh = Mesh::up(&EXPLAINED, &[]).await;
    let statuses = explanations::hold(&mesh, count).await;
    println!("{count} requests went as explained: {}", explanations::told(&statuses));
}

/// Leaves of 5 minutes under load, and one HTTP/2 stream all the while.
async fn rotation(minutes: u64) -> anyhow::Result<()> {
    let mesh = Mesh::up(&ROTATED, &["--leaf", "5m"]).await;
    let load = Load::start(&mesh.cluster("east").ingress, 200, 0);
    let stream = tokio::spawn(listen(mesh.cluster("east").ingress));
    let mut seen: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    while Instant::now() < end && !stream.is_finished() {
        for cluster in ["east", "west"] {
            let status = mesh.status(cluster).await;
            let own = status.clusters.into_iter().filter(|one| one.name.as_str() == cluster);
            for proxy in own.flat_map(|one| one.proxies) {
                let ends = proxy.certificate_not_after as u64;
                seen.entry(proxy.workload.to_string()).or_default().insert(ends);
            }
        }
        tokio::time::sleep(LOOK).await;
    }
    if stream.is_finished() {
        bail!("the HTTP/2 stream ended: {:?}", stream.await?);
    }
    stream.abort();
    let tally = load.stop().await;
    tally.report("rotation");
    tally.no_get_failed();
    let fewest = seen.iter().min_by_key(|(_, ends)| ends.len()).context("no proxy was seen")?;
    println!("{} proxies; the fewest rotations had {}: {}", seen.len(), fewest.0, fewest.1.len() - 1);
    if minutes >= ROTATION_MINUTES && fewest.1.len() <= ROTATIONS {
        bail!("{} was renewed fewer than {ROTATIONS} times", fewest.0);
    }
    Ok(())
}

/// Reads `/ticks` over one HTTP/2 stream, and returns only when something is wrong with it.
async fn listen(ingress: String) -> anyhow::Error {
    match try_listen(&ingress).await {
        Ok(()) => anyhow::anyhow!("it came to its end"),
        Err(error) => error,
    }
}

async fn try_listen(ingress: &str) -> anyhow::Result<()> {
    let stream = TcpStream::connect(ingress.trim_start_matches("http://")).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = hyper::Request::get(format!("{ingress}/ticks")).body(Empty::<bytes::Bytes>::new())?;
    let response = sender.send_request(request).await?;
    anyhow::ensure!(response.status() == 200, "it answered {}", response.status());
    let mut body = response.into_body();
    while let Some(frame) = tokio::time::timeout(SILENCE, body.frame()).await.context("it fell silent")? {
        frame?;
    }
    Ok(())
}
