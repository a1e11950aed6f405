//! From a commit in Git until every proxy of two clusters obeys it: the time from the return of `git commit` until
//! `weft wait HEAD` returns, the start of that command included.

use std::{
    fs,
    io::{BufRead, BufReader},
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
    machine::{Programs, output},
    mesh::git,
};

/// East has `127.BLOCK.*`, west the next.
const BLOCK: &str = "194";
const FILE: &str = "security/bench.yaml";

/// How long commits took to rule.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Commits {
    /// Proxies that had to obey.
    pub proxies: usize,
    /// From `weft up` to ready.
    pub up_millis: f64,
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
    let mut up = Command::new(&programs.weft);
    up.args(["up", "--json", "--block", BLOCK, "--dir"]).arg(dir.join("up")).current_dir(dir);
    let mut up =
        Up(up.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start weft up")?);
    let stdout = up.0.stdout.take().context("weft up has no stdout")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let ready: Ready = serde_json::from_str(&line).context("weft up did not get ready")?;
    let up_millis = millis(began.elapsed());
    // Each cluster has two gateways beside its sidecars.
    let proxies = ready.clusters.iter().map(|cluster| cluster.workloads.len() + 2).sum();
    let mut times = Vec::new();
    for number in 0..count {
        times.push(millis(one(programs, &ready.repository, number)?));
    }
    Ok(Commits { proxies, up_millis, millis: times })
}

fn one(programs: &Programs, repository: &Path, number: u32) -> anyhow::Result<Duration> {
    fs::write(repository.join(FILE), policy(number))?;
    git(repository, &["add", FILE])?;
    git(repository, &["commit", "--quiet", "--no-verify", "-m", &format!("bench {number}")])?;
    let began = Instant::now();
    output(Command::new(&programs.weft).args(["wait", "HEAD"]).current_dir(repository))?;
    let took = began.elapsed();
    ensure!(took < Duration::from_secs(60), "commit {number} took {took:?}");
    Ok(took)
}

/// A policy that some proxies of both clusters serve, another with each number.
fn policy(number: u32) -> String {
    let path = if number.is_multiple_of(2) { "even" } else { "odd" };
    format!(
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
         metadata: {{ name: bench, namespace: shop }}\nspec:\n  \
         targetRefs: [{{ kind: Service, name: reviews }}]\n  action: DENY\n  \
         rules: [{{ name: {path}, when: request.path == \"/never/{path}\" }}]\n"
    )
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
