//! `weft workload stop`: drained, ended, and taken out of the registry, in this order.

use std::process::ExitCode;

use api::name::WorkloadId;
use hyper::StatusCode;

use super::{
    local::{Local, Member},
    spec::Spec,
};
use crate::{
    client::{Client, Failed, escape},
    end::{APP_GRACE, PROXY_GRACE, none_is_left, processes},
    mesh::Mesh,
    output::Output,
    progress::Progress,
};

pub(crate) async fn run(id: &WorkloadId, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let up = mesh.up()?;
    let local = Local::find(up, id)?;
    let progress = Progress::new();
    progress.at(&format!("draining {id} …"));
    let ended = end(&local.member, local.app.as_ref()).await;
    local.note(up)?;
    ended?;
    let deregistered = deregister(&mesh.client(Some(&local.cluster))?, id).await;
    drop(progress);
    if let Err(error) = deregistered {
        eprintln!("weft: {id} could not be taken out of the registry now, its lease will: {error}");
    }
    output.answer(&local.describe(), |_, _| format!("{id} is stopped"))?;
    Ok(ExitCode::SUCCESS)
}

/// The proxy first, which says farewell and finishes its requests; then the application that it needed for that. One
/// that cannot be ended keeps its application.
pub(super) async fn end(member: &Member, app: Option<&Spec>) -> anyhow::Result<()> {
    let mut phases = vec![(member.proxy.dir().to_owned(), PROXY_GRACE)];
    phases.extend(app.map(|spec| (spec.app_dir(), APP_GRACE)));
    for (dir, grace) in phases {
        none_is_left(&processes(&[dir], grace).await)?;
    }
    Ok(())
}

/// Tells the registry, for a proxy that could not; that it is not there any more is as good.
pub(super) async fn deregister(client: &Client, id: &WorkloadId) -> Result<(), Failed> {
    match client.delete(&format!("/workloads/{}", escape(id.as_str()))).await {
        Err(Failed::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(()),
        done => done,
    }
}
