//! `weft up`: two clusters and a sample application on one machine, until it is told to end.
//!
//! Invariant: nothing that it started outlives it when it is asked to end; what dies meanwhile stays dead.

mod fleet;
mod layout;
pub(crate) mod repository;
mod start;
mod words;

use std::{
    fs::{self, File, OpenOptions},
    hash::{BuildHasher, RandomState},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{fleet::Fleet, layout::Layout};
use crate::{
    console,
    descriptor::{self, Descriptor, EAST_WEST, GatewayPids, INGRESS},
    end, mesh,
    output::{Output, print},
    pid::Pid,
    process::{weft, write_private},
    progress::Progress,
    workload::spec::pid_in,
};

/// Bring up two clusters and a sample application on this machine
///
/// East (primary) and west (remote) on loopback, each with control plane, ingress and east-west gateway, and the
/// shop: front, catalogue, reviews (v1, v2, v3) and ratings, two of each. Every one is a process of its own. They
/// are ruled by the Git repository DIR/config, which is made from a sample. Stays in the foreground; Ctrl-C ends
/// everything in order. The state stays, and a second `weft up` goes on from it.
#[derive(Args)]
#[command(after_help = "Examples:
  weft up
  weft up --dir /tmp/mesh --json            one line once ready: addresses, pids, directories
  weft up --trace http://127.0.0.1:4317     spans to an OpenTelemetry collector
  weft up --leaf 5m                         certificates of five minutes, to see them rotate
  weft up --dir /tmp/second --block 3       a second mesh, in 127.3 and 127.4")]
pub(crate) struct Up {
    /// Holds all state; ./weft-up unless the current directory lies in one
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Print one line of JSON once ready
    #[arg(long)]
    json: bool,
    /// East takes the addresses 127.N.*, west those after it
    #[arg(long, default_value_t = 1, value_name = "N")]
    block: u8,
    /// Keep east's state in this etcd (3.4 or later), under a prefix of this directory's own
    #[arg(long, value_name = "URL,...", value_delimiter = ',')]
    etcd: Vec<String>,
    /// Send spans to this OTLP endpoint (gRPC)
    #[arg(long, value_name = "URL")]
    trace: Option<String>,
    /// How long the leaf certificates of a new mesh live: 5m or longer, and less than the 2160h of what signs them
    #[arg(long, value_name = "DURATION", value_parser = repository::leaf)]
    leaf: Option<String>,
}

pub(crate) async fn run(up: Up, output: &Output) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let dir = mesh::directory(up.dir)?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let mut layout = Layout::new(dir.canonicalize()?, up.block, up.trace)?;
    let _lock = lock(&layout.dir)?;
    layout.store = store(&layout.dir, &up.etcd)?;
    let mut signals = Signals::new()?;
    let progress = Progress::new();
    progress.at("ending what an earlier `weft up` left …");
    end::everything(&layout.dir, &progress).await?;
    repository::prepare(&layout.repository(), up.leaf.as_deref(), &weft()?)?;

    let mut fleet = Fleet::default();
    let started = tokio::select! {
        started = start::start(&layout, &mut fleet, &progress) => started,
        () = signals.asked_to_end() => Err(anyhow!("asked to end before all was ready")),
    };
    drop(progress);
    let announced = match started {
        Ok(()) => announce(&layout, began, up.json || output.is_json(), output).await,
        Err(error) => Err(error),
    };
    while announced.is_ok() && signals.child_ended_first().await {
        fleet.reap();
    }
    let ended = end_all(&layout.dir, &mut fleet).await;
    announced.and(ended).map(|()| ExitCode::SUCCESS)
}

/// The primary's store, where it is not a file. Its prefix is as new as the directory: another mesh's state is not ours.
fn store(dir: &Path, endpoints: &[String]) -> anyhow::Result<Option<serde_json::Value>> {
    if endpoints.is_empty() {
        return Ok(None);
    }
    let file = dir.join("etcd.prefix");
    let prefix = match fs::read_to_string(&file) {
        Ok(prefix) => prefix,
        Err(_) => {
            let prefix = format!("/weft/up-{:016x}", RandomState::new().hash_one(()));
            write_private(&file, &prefix)?;
            prefix
        }
    };
    Ok(Some(serde_json::json!({ "etcd": { "endpoints": endpoints, "prefix": prefix } })))
}

/// Says that all is ready, on stdout and for the other commands.
async fn announce(layout: &Layout, began: Instant, json: bool, output: &Output) -> anyhow::Result<()> {
    let primary = &layout.clusters[0];
    let console = console::url(&start::client(primary)?).await.unwrap_or_else(|_| primary.api());
    let descriptor = describe(layout, console)?;
    descriptor.write(&layout.dir)?;
    if json {
        print(&serde_json::to_string(&descriptor)?)?;
    } else {
        let seconds = began.elapsed().as_secs_f64();
        output.answer(&descriptor, |up, style| words::text(up, &layout.dir, seconds, style))?;
    }
    Ok(())
}

async fn end_all(dir: &Path, fleet: &mut Fleet) -> anyhow::Result<()> {
    let ended = end::everything(dir, &Progress::new()).await;
    fleet.finish();
    Pid::forget(dir);
    ended.map(drop)
}

/// One `weft up` a directory. The kernel frees the lock, however this process ends.
fn lock(dir: &Path) -> anyhow::Result<Flock<File>> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            Pid::of(std::process::id()).context("cannot read /proc")?.write(dir)?;
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("{} is up already: `weft down --dir {}` ends it", dir.display(), dir.display())
        }
        Err((_, error)) => Err(error).with_context(|| format!("cannot lock {}", dir.display())),
    }
}

/// The mesh as it now runs.
fn describe(layout: &Layout, console: String) -> anyhow::Result<Descriptor> {
    let weft = weft()?;
    let clusters = layout.clusters.iter().map(|cluster| descriptor::Cluster {
        name: cluster.name.clone(),
        role: cluster.role,
        api: cluster.api(),
        ingress: format!("http://{}", cluster.ingress()),
        eastwest: cluster.east_west().to_string(),
        controlplane_pid: pid_in(&cluster.controlplane_dir()),
        gateway_pids: GatewayPids {
            ingress: pid_in(&cluster.gateway_dir(INGRESS)),
            eastwest: pid_in(&cluster.gateway_dir(EAST_WEST)),
        },
        workloads: cluster.workloads(&weft).iter().map(|spec| spec.describe()).collect(),
    });
    Ok(Descriptor { ready: true, repository: layout.repository(), console, clusters: clusters.collect() })
}

/// What can happen to a running `weft up`.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    child: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            child: signal(SignalKind::child())?,
        })
    }

    async fn asked_to_end(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }

    /// Waits for the next thing; false when it is the wish that all ends.
    async fn child_ended_first(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => false,
            _ = self.terminate.recv() => false,
            _ = self.hangup.recv() => false,
            _ = self.child.recv() => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let error = lock(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is up already"), "{error}");
        drop(held);
        assert!(lock(dir.path()).is_ok());
    }
}
