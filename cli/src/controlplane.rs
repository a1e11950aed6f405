//! `weft controlplane`: a control plane of either role. All that the command line asks of that crate is here.

pub(crate) mod local;

use std::{
    collections::BTreeSet,
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::process::logs::Format;
use api::{
    admin::Problem,
    name::{ClusterName, Namespace},
};
use clap::{Args, Subcommand};

/// What the gate refuses of a commit before it reads what its files say.
pub(crate) use ::controlplane::git::{Fault, MAX_BYTES, MAX_FILE_BYTES};

use crate::{Global, output::Output};

/// Run a control plane, primary or remote; stop and start those of this machine
///
/// With --config it runs in the foreground until SIGTERM, as `weft up` starts it and as a service manager would;
/// `weft join` writes such a file for a remote. `start` and `stop` are for the mesh of a `weft up`.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    after_help = "Examples:
  weft controlplane --config /etc/weft/controlplane.json     in the foreground
  weft controlplane stop east                                requests go on without it
  weft controlplane start east                               it comes back with its state"
)]
pub(crate) struct Controlplane {
    /// Its settings, JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Subcommand)]
enum Verb {
    /// End the control plane of a cluster
    #[command(after_help = "Example:\n  weft controlplane stop east")]
    Stop(One),
    /// Start the control plane of a cluster again
    #[command(after_help = "Example:\n  weft controlplane start east && weft status")]
    Start(One),
}

/// One cluster of this machine.
#[derive(Args)]
struct One {
    /// Its cluster
    cluster: ClusterName,
}

pub(crate) fn run(controlplane: Controlplane, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    match (controlplane.config, controlplane.verb) {
        (Some(config), _) => serve(&config),
        (None, Some(Verb::Stop(one))) => crate::block_on(local::stop(&one.cluster, global, output)),
        (None, Some(Verb::Start(one))) => crate::block_on(local::start(&one.cluster, global, output)),
        (None, None) => anyhow::bail!("--config FILE says what to run"),
    }
}

/// Runs until it is asked to end.
pub(crate) fn serve(config: &Path) -> anyhow::Result<ExitCode> {
    let format = if std::io::stderr().is_terminal() { Format::Text } else { Format::Json };
    ::process::logs::init(format, "info")?;
    let raw = ::controlplane::config::RawConfig::read(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(::controlplane::run(raw))?;
    Ok(ExitCode::SUCCESS)
}

/// The mistakes of the configuration that lies in `dir`: the mesh's, or what is said of `namespaces` alone.
pub(crate) fn check_dir(dir: &Path, namespaces: Option<&BTreeSet<Namespace>>) -> Vec<Problem> {
    ::controlplane::gate::check_dir(dir, namespaces)
}
