//! From a commit in Git until every proxy obeys it.
//!
//! On the two clusters of `weft up` it is the time from the return of `git commit` until `weft wait HEAD` returns, the
//! start of that command included. With 2 and with 1,000 proxies it is one cluster, whose proxies are a
//! [`crate::swarm`]; each commit changes a policy that all of them serve, so that each must be pushed to, compile, keep
//! and acknowledge it. Their files lie in memory, as one disk would not serve a thousand machines.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use crate::{
    machine::{Core, Programs, output, pinned},
    mesh::{INBOUND, Mesh, git},
    swarm::{Stand, Swarm},
};

/// East has `127.BLOCK.*`, west the next.
const BLOCK: u8 = 134;
/// `127.BLOCK.*` is ours.
const SWARM_BLOCK: u8 = 136;
/// Proxies in one cluster.
const SIZES: [usize; 2] = [2, 1000];
const FILE: &str = "security/bench.yaml";

/// How long commits took to rule.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Commits {
    /// Proxies that had to obey.
    pub proxies: usize,
    /// And of how many clusters.
    pub clusters: usize,
    /// From the start of everything until it obeyed the first commit.
    pub start_millis: f64,
    /// Resident memory of the one control plane, afterwards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane_kib: Option<u64>,
    /// In the order of the commits.
    pub millis: Vec<f64>,
}

/// `weft up`, which ends with this.
struct Up(Child);

impl Drop for Up {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[derive(Deserialize)]
struct Ready {
    repository: PathBuf,
    clusters: Vec<Cluster>,
}

#[derive(Deserialize)]
struct Cluster {
    workloads: Vec<serde::de::IgnoredAny>,
}

/// Times `count` commits that change one policy to and fro.
pub fn measure(programs: &Programs, dir: &Path, count: u32) -> anyhow::Result<Commits> {
    fs::create_dir_all(dir)?;
    let began = Instant::now();
    let mut up = pinned(Core::Any, &programs.weft);
    up.args(["up", "--json", "--block", &BLOCK.to_string(), "--dir"]).arg(dir.join("up")).current_dir(dir);
    let mut up =
        Up(up.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start weft up")?);
    let stdout = up.0.stdout.take().context("weft up has no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let ready: Ready = serde_json::from_str(&line).context("weft up did not get ready")?;
    let start_millis = millis(began.elapsed());
    // Each cluster has two gateways beside its sidecars.
    let proxies = ready.clusters.iter().map(|cluster| cluster.workloads.len() + 2).sum();
    let mut times = Vec::new();
    for number in 0..count {
        times.push(millis(one(programs, &ready.repository, number)?));
    }
    Ok(Commits {
        proxies,
        clusters: ready.clusters.len(),
        start_millis,
        control_plane_kib: None,
        millis: times,
    })
}

fn one(programs: &Programs, repository: &Path, number: u32) -> anyhow::Result<Duration> {
    fs::write(repository.join(FILE), policy(number, "shop", "reviews"))?;
    git(repository, &["add", FILE])?;
    git(repository, &["commit", "--quiet", "--no-verify", "-m", &format!("bench {number}")])?;
    let began = Instant::now();
    output(Command::new(&programs.weft).args(["wait", "HEAD"]).current_dir(repository))?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(60), "commit {number} took {took:?}");
    Ok(took)
}

/// Times `count` commits that change what each proxy of one cluster serves, for clusters of several sizes.
pub fn measure_swarm(programs: &Programs, dir: &Path, count: u32) -> anyhow::Result<Vec<Commits>> {
    SIZES.iter().map(|size| swarm(programs, &dir.join(size.to_string()), *size, count)).collect()
}

fn swarm(programs: &Programs, dir: &Path, size: usize, count: u32) -> anyhow::Result<Commits> {
    fs::create_dir_all(dir)?;
    let began = Instant::now();
    let files = [
        ("mesh.yaml".to_owned(), include_str!("../../bench/weft/mesh.yaml").to_owned()),
        ("passthrough.yaml".to_owned(), include_str!("../../bench/weft/passthrough.yaml").to_owned()),
    ];
    let mesh = Mesh::start(programs, dir, SWARM_BLOCK, Core::Proxies, &files)?;
    let stand = |number: usize| {
        let ip = Ipv4Addr::new(127, SWARM_BLOCK, 1 + (number / 250) as u8, 1 + (number % 250) as u8);
        let address = SocketAddr::new(IpAddr::from(ip), INBOUND);
        Stand { id: format!("bytes-{number}"), account: "bytes".into(), address }
    };
    let swarm = Swarm::start(&mesh, &dir.join("swarm"), (0..size).map(stand).collect())?;
    mesh.effective()?;
    let start_millis = millis(began.elapsed());
    let commit = |number| {
        let (took, commit) = mesh.commit("policy.yaml", &policy(number, "bench", "bytes"))?;
        swarm.obeys(&commit)?;
        anyhow::Ok(self::millis(took))
    };
    let millis = (0..count).map(commit).collect::<anyhow::Result<_>>()?;
    let control_plane_kib = Some(mesh.process().rss_kib()?);
    Ok(Commits { proxies: swarm.proxies.len(), clusters: 1, start_millis, control_plane_kib, millis })
}

/// A policy that all who serve `service` serve, another with each number.
fn policy(number: u32, namespace: &str, service: &str) -> String {
    let path = if number.is_multiple_of(2) { "even" } else { "odd" };
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: bench, namespace: {namespace} }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: {service} }}]\n  action: DENY\n  \
         rules: [{{ name: {path}, when: request.path == \"/never/{path}\" }}]\n"
    )
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
