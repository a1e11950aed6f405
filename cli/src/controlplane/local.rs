//! The control planes of a `weft up`: stopped and started where they lie.

use std::{fs, path::Path, process::ExitCode, slice, time::Duration};

use anyhow::{Context, bail, ensure};
use api::name::ClusterName;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Global,
    client::probe,
    descriptor::{Descriptor, controlplane_dir},
    end::{self, CONTROLPLANE_GRACE},
    mesh::{Mesh, Up},
    output::Output,
    pid::Pid,
    process::{Process, last_words, weft},
    progress::Progress,
    workload::spec::pid_in,
};

/// Its settings, in its state directory.
const CONFIG: &str = "config.json";
const READY_LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(25);
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How the control plane whose state lies in `dir` is started.
pub(crate) fn process(cluster: &ClusterName, dir: &Path) -> anyhow::Result<Process> {
    Ok(Process {
        name: format!("control plane of {cluster}"),
        program: weft()?,
        args: vec!["controlplane".into(), "--config".into(), dir.join(CONFIG).into()],
        env: Vec::new(),
        dir: dir.to_owned(),
        cwd: None,
        foreground: false,
    })
}

/// Writes the settings of the control plane whose state lies in `dir`.
pub(crate) fn write_config(dir: &Path, config: &Value) -> anyhow::Result<()> {
    crate::process::write_private(&dir.join(CONFIG), &serde_json::to_string_pretty(config)?)
}

pub(super) async fn start(
    cluster: &ClusterName,
    global: &Global,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::find(global)?;
    let up = mesh.up()?;
    let dir = controlplane_dir(&up.dir, &up.descriptor.cluster(cluster)?.name);
    start_if_dead(cluster, &dir)?;
    let progress = Progress::new();
    progress.at(&format!("waiting for the control plane of {cluster} …"));
    match ready(&dir).await {
        // It was being killed just now, and seemed to be alive.
        Err(_) if start_if_dead(cluster, &dir)? => ready(&dir).await?,
        done => done?,
    }
    drop(progress);
    told(up, cluster, output, "serves")
}

/// Says whether it was dead.
fn start_if_dead(cluster: &ClusterName, dir: &Path) -> anyhow::Result<bool> {
    let dead = Pid::read(dir).is_none();
    if dead {
        process(cluster, dir)?.spawn()?;
    }
    Ok(dead)
}

pub(super) async fn stop(
    cluster: &ClusterName,
    global: &Global,
    output: &Output,
) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::find(global)?;
    let up = mesh.up()?;
    let dir = controlplane_dir(&up.dir, &up.descriptor.cluster(cluster)?.name);
    end::none_is_left(&end::processes(slice::from_ref(&dir), CONTROLPLANE_GRACE).await)?;
    told(up, cluster, output, "is stopped; proxies go on with what they hold")
}

/// Waits until it serves a revision and can sign.
async fn ready(dir: &Path) -> anyhow::Result<()> {
    let text =
        fs::read(dir.join(CONFIG)).with_context(|| format!("cannot read {CONFIG} in {}", dir.display()))?;
    let config: Value = serde_json::from_slice(&text)?;
    let address = config["metrics"].as_str().context("its settings name no `metrics` address")?;
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let answer = probe(address, "/ready", PROBE_LIMIT).await;
        if answer.as_ref().is_ok_and(|status| status.is_success()) {
            return Ok(());
        }
        ensure!(Pid::read(dir).is_some(), "it ended at once:\n{}", last_words(dir));
        if Instant::now() >= deadline {
            let why = answer.map_or_else(|why| why, |status| format!("it answers {status}"));
            bail!("it is not ready at {address}: {why}\n{}", last_words(dir));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Keeps `up.json` true, and says what is so now.
fn told(up: &Up, cluster: &ClusterName, output: &Output, what: &str) -> anyhow::Result<ExitCode> {
    let pid = pid_in(&controlplane_dir(&up.dir, cluster));
    Descriptor::change(&up.dir, |descriptor| {
        let known = descriptor.clusters.iter_mut().filter(|one| one.name == *cluster);
        known.for_each(|one| one.controlplane_pid = pid);
    })?;
    output.answer(&json!({ "cluster": cluster, "pid": pid }), |_, _| {
        format!("the control plane of {cluster} {what}")
    })?;
    Ok(ExitCode::SUCCESS)
}
