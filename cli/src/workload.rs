//! `weft workload`: the workloads of a mesh; those of this machine can be stopped, started and added.

mod add;
mod list;
pub(crate) mod local;
mod revoke;
pub(crate) mod spec;
mod start;
mod stop;

use std::process::ExitCode;

use api::name::WorkloadId;
use clap::{Args, Subcommand};

use crate::{Global, mesh::Mesh, output::Output};

/// List and revoke workloads; stop, start and add those of this machine
///
/// A workload is an application beside its sidecar, or a gateway.
#[derive(Args)]
#[command(after_help = "Examples:
  weft workload list
  weft workload stop east-reviews-v1-1
  weft workload start east-reviews-v1-1
  weft workload add --cluster west --namespace shop --service reviews --address 127.77.0.9 -- ./reviews")]
pub(crate) struct Workloads {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    List(list::List),
    /// Drain a workload, end its proxy and its application, and take it out of the mesh
    #[command(after_help = "Example:\n  weft workload stop east-reviews-v1-1")]
    Stop(One),
    Start(start::Start),
    Add(Box<add::Add>),
    Revoke(revoke::Revoke),
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
        Verb::Start(start) => start::run(start, &mesh, output).await,
        Verb::Add(add) => add::run(*add, &mesh, output).await,
        Verb::Revoke(revoke) => revoke::run(revoke, &mesh, output).await,
    }
}
