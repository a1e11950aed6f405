//! `weft workload start`: what is dead of workloads lives again, with its state.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{bail, ensure};
use api::{
    admin::{ProxyState, Status, Token},
    name::{ClusterName, WorkloadId},
};
use clap::Args;
use tokio::{net::TcpStream, time::Instant};

use super::{
    local::{Local, Member},
    spec::Spec,
};
use crate::{
    client::{Client, probe},
    mesh::Mesh,
    output::Output,
    pid::Pid,
    process::last_words,
    progress::Progress,
};

const READY_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(25);
const PROBE_LIMIT: Duration = Duration::from_secs(2);
/// How long its control plane may take to hear that a workload is ready; it can only be away if it takes longer.
const KNOWN_LIMIT: Duration = Duration::from_secs(5);

/// Start what is dead of workloads: applications, sidecars, gateways
#[derive(Args)]
#[command(after_help = "Examples:
  weft workload start east-reviews-v1-1
  weft workload start west-ingress west-eastwest
  weft workload start --cluster west            all of its workloads, after `weft controlplane start west`")]
pub(crate) struct Start {
    /// As `weft workload list` names them
    #[arg(required_unless_present = "cluster")]
    ids: Vec<WorkloadId>,
    /// All of this cluster
    #[arg(long, conflicts_with = "ids")]
    cluster: Option<ClusterName>,
}

pub(crate) async fn run(start: Start, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let up = mesh.up()?;
    let locals = match &start.cluster {
        Some(cluster) => Local::all(up, cluster)?,
        None => start.ids.iter().map(|id| Local::find(up, id)).collect::<Result<_, _>>()?,
    };
    for local in &locals {
        start_if_dead(local, mesh).await?;
    }
    let progress = Progress::new();
    for local in &locals {
        progress.at(&format!("waiting for {} …", local.id()));
        match ready(&local.member, local.app.as_ref()).await {
            // A process of it was being killed just now, and seemed to be alive.
            Err(_) if start_if_dead(local, mesh).await? => ready(&local.member, local.app.as_ref()).await?,
            done => done?,
        }
    }
    for local in &locals {
        known(local, &mesh.client(Some(&local.cluster))?).await;
        local.note(up)?;
    }
    drop(progress);
    let answer = match &locals[..] {
        [one] => one.describe(),
        all => all.iter().map(Local::describe).collect(),
    };
    output.answer(&answer, |_, _| locals.iter().map(served).collect())?;
    Ok(ExitCode::SUCCESS)
}

/// Says whether anything of it was dead.
async fn start_if_dead(local: &Local, mesh: &Mesh) -> anyhow::Result<bool> {
    let app = local.app.as_ref().filter(|spec| Pid::read(&spec.app_dir()).is_none());
    if let Some(spec) = app {
        spec.app_process()?.spawn()?;
    }
    let proxy = Pid::read(local.member.proxy.dir()).is_none();
    if proxy {
        start_proxy(&local.member, &mesh.client(Some(&local.cluster))?).await?;
    }
    Ok(proxy || app.is_some())
}

fn served(local: &Local) -> String {
    format!("{} serves at {}\n", local.id(), local.member.proxy.address())
}

/// Starts a proxy with a new token; with the control plane away it goes on with the credentials it holds.
async fn start_proxy(member: &Member, client: &Client) -> anyhow::Result<()> {
    match client.post::<_, Token>("/tokens", &member.request).await {
        Ok(token) => member.proxy.give_token(&token.token)?,
        Err(error) => {
            eprintln!("weft: no new token, {} goes on with what it holds: {error}", member.proxy.workload())
        }
    }
    member.proxy.prepare()?.spawn().map(drop)
}

/// Waits until the proxy serves; its application has to be alive, and to listen.
pub(super) async fn ready(member: &Member, app: Option<&Spec>) -> anyhow::Result<()> {
    let proxy = &member.proxy;
    let admin = proxy.admin().to_string();
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let answer = probe(&admin, "/ready", PROBE_LIMIT).await;
        let ready = answer.as_ref().is_ok_and(|status| status.is_success());
        let listens = match app {
            Some(spec) => TcpStream::connect(spec.app).await.is_ok(),
            None => true,
        };
        if ready && listens {
            return Ok(());
        }
        alive(proxy.dir(), proxy.kind())?;
        app.map_or(Ok(()), |spec| alive(&spec.app_dir(), "application"))?;
        if Instant::now() >= deadline {
            let (what, dir) = match (ready, app) {
                (true, Some(spec)) => {
                    (format!("the application does not listen at {}", spec.app), spec.app_dir())
                }
                _ => {
                    let why = answer.map_or_else(|why| why, |status| format!("it answers {status}"));
                    (format!("the {} at {admin} is not ready: {why}", proxy.kind()), proxy.dir().to_owned())
                }
            };
            bail!("{what}\n{}", last_words(&dir));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn alive(dir: &Path, what: &str) -> anyhow::Result<()> {
    ensure!(Pid::read(dir).is_some(), "the {what} ended at once:\n{}", last_words(dir));
    Ok(())
}

/// Waits until its control plane has heard of it, since only then do callers; says so when that is not to be had.
async fn known(local: &Local, client: &Client) {
    let deadline = Instant::now() + KNOWN_LIMIT;
    loop {
        let Ok(status) = client.get::<Status>("/status").await else {
            eprintln!(
                "weft: the control plane of {} is away: callers know {} as before",
                local.cluster,
                local.id()
            );
            return;
        };
        let proxies =
            status.clusters.iter().filter(|one| one.name == local.cluster).flat_map(|one| &one.proxies);
        let here = proxies.filter(|one| one.workload == *local.id() && one.state == ProxyState::Connected);
        if here.into_iter().any(|one| local.app.is_none() || one.app_ready) {
            return;
        }
        if Instant::now() >= deadline {
            eprintln!("weft: {} is up, but its control plane does not know it as ready yet", local.id());
            return;
        }
        tokio::time::sleep(POLL).await;
    }
}
