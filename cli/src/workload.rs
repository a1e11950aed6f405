//! `weft workload`: the workloads of a mesh; those of this machine can be stopped, started and added.

mod add;
mod list;
pub(crate) mod spec;
mod start;
mod stop;

use std::{fs::File, process::ExitCode};

use anyhow::Context;
use api::name::WorkloadId;
use clap::{Args, Subcommand};

use crate::{
    Global,
    descriptor::{Descriptor, Workload},
    mesh::{Mesh, Up},
    output::Output,
};

/// List workloads; stop, start and add those of this machine
#[derive(Args)]
pub(crate) struct Workloads {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    List(list::List),
    /// Drain a workload, end its sidecar and its application, and take it out of the mesh
    #[command(after_help = "Example:\n  weft workload stop east-reviews-v1-1")]
    Stop(One),
    /// Start what is dead of a workload: its application, its sidecar, or both
    #[command(after_help = "Example:\n  weft workload start east-reviews-v1-1")]
    Start(One),
    Add(Box<add::Add>),
}

/// One workload of this machine.
#[derive(Args)]
struct One {
    /// As `weft workload list` names it
    id: WorkloadId,
}

pub(crate) async fn run(workloads: Workloads, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let mesh = Mesh::find(global)?;
    match workloads.verb {
        Verb::List(list) => list::run(list, &mesh, output).await,
        Verb::Stop(one) => stop::run(&one.id, &mesh, output).await,
        Verb::Start(one) => start::run(&one.id, &mesh, output).await,
        Verb::Add(add) => add::run(*add, &mesh, output).await,
    }
}

/// Keeps `up.json` true after a workload's processes have changed. One command at a time, since each writes all of it.
fn note(up: &Up, workload: &Workload) -> anyhow::Result<()> {
    let turn = File::open(&up.dir).and_then(|directory| directory.lock().map(|()| directory));
    let _turn = turn.with_context(|| format!("cannot lock {}", up.dir.display()))?;
    let mut descriptor = Descriptor::read(&up.dir)?;
    let known = descriptor.clusters.iter_mut().flat_map(|cluster| &mut cluster.workloads);
    for entry in known.filter(|entry| entry.id == workload.id) {
        *entry = workload.clone();
    }
    descriptor.write(&up.dir)
}
