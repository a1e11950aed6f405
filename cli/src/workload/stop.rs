//! `weft workload stop`: drained, ended, and taken out of the registry, in this order.

use std::process::ExitCode;

use api::name::WorkloadId;
use hyper::StatusCode;

use super::{note, spec::Spec};
use crate::{
    client::{Client, Failed, escape},
    end::{APP_GRACE, PROXY_GRACE},
    mesh::Mesh,
    output::Output,
    pid::{self, Pid},
    progress::Progress,
};

pub(crate) async fn run(id: &WorkloadId, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let up = mesh.up()?;
    let spec = Spec::find(&up.dir, id)?;
    let progress = Progress::new();
    progress.at(&format!("draining {id} …"));
    end(&spec).await;
    let deregistered = deregister(&mesh.client(Some(&spec.cluster))?, id).await;
    drop(progress);
    let workload = spec.describe();
    note(up, &workload)?;
    if let Err(error) = deregistered {
        eprintln!("weft: {id} could not be taken out of the registry now, its lease will: {error}");
    }
    output.answer(&workload, |workload, _| format!("{} is stopped", workload.id));
    Ok(ExitCode::SUCCESS)
}

/// The sidecar first, which says farewell and finishes its requests; then the application that it needed for that.
pub(super) async fn end(spec: &Spec) {
    for (dir, grace) in [(spec.sidecar_dir(), PROXY_GRACE), (spec.app_dir(), APP_GRACE)] {
        if let Some(pid) = Pid::read(&dir) {
            pid::end(&[pid], grace).await;
        }
        Pid::forget(&dir);
    }
}

/// Tells the registry, for a sidecar that could not; that it is not there any more is as good.
pub(super) async fn deregister(client: &Client, id: &WorkloadId) -> Result<(), Failed> {
    match client.delete(&format!("/workloads/{}", escape(id.as_str()))).await {
        Err(Failed::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
        done => done,
    }
}
