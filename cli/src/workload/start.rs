//! `weft workload start`: what is dead of a workload lives again, with its state.

use std::{path::Path, process::ExitCode, time::Duration};

use anyhow::{bail, ensure};
use api::{admin::Token, name::WorkloadId};
use tokio::time::Instant;

use super::{note, spec::Spec};
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

pub(crate) async fn run(id: &WorkloadId, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let up = mesh.up()?;
    let spec = Spec::find(&up.dir, id)?;
    if Pid::read(&spec.app_dir()).is_none() {
        spec.app_process()?.spawn()?;
    }
    if Pid::read(&spec.sidecar_dir()).is_none() {
        start_sidecar(&spec, &mesh.client(Some(&spec.cluster))?).await?;
    }
    let progress = Progress::new();
    progress.at(&format!("waiting for {id} …"));
    ready(&spec).await?;
    drop(progress);
    let workload = spec.describe();
    note(up, &workload)?;
    output.answer(&workload, |workload, _| format!("{} serves at {}", workload.id, workload.address));
    Ok(ExitCode::SUCCESS)
}

/// Starts the sidecar with a new token; with the control plane away it goes on with the credentials it holds.
async fn start_sidecar(spec: &Spec, client: &Client) -> anyhow::Result<()> {
    let sidecar = spec.sidecar();
    match client.post::<_, Token>("/tokens", &spec.token_request()).await {
        Ok(token) => sidecar.give_token(&token.token)?,
        Err(error) => eprintln!("weft: no new token, the sidecar goes on with what it holds: {error}"),
    }
    sidecar.prepare()?.spawn().map(drop)
}

/// Waits until the sidecar serves; its application has to be alive too.
pub(super) async fn ready(spec: &Spec) -> anyhow::Result<()> {
    let admin = spec.sidecar().admin().to_string();
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let answer = probe(&admin, "/ready", PROBE_LIMIT).await;
        if answer.as_ref().is_ok_and(|status| status.is_success()) {
            return Ok(());
        }
        alive(&spec.sidecar_dir(), "sidecar")?;
        alive(&spec.app_dir(), "application")?;
        if Instant::now() >= deadline {
            let why = answer.map_or_else(|why| why, |status| format!("it answers {status}"));
            bail!("the sidecar at {admin} is not ready: {why}\n{}", last_words(&spec.sidecar_dir()));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn alive(dir: &Path, what: &str) -> anyhow::Result<()> {
    ensure!(Pid::read(dir).is_some(), "the {what} ended at once:\n{}", last_words(dir));
    Ok(())
}
