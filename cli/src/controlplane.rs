//! `weft controlplane`: a control plane of either role. All that the command line asks of that crate is here.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
    process::ExitCode,
};

use ::process::logs::Format;
use api::admin::Problem;
use clap::Args;

/// Run a control plane, primary or remote (`weft up` and `weft join` start it)
#[derive(Args)]
pub(crate) struct Controlplane {
    /// Its settings, JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

/// Runs until it is asked to end.
pub(crate) fn run(config: &Path) -> anyhow::Result<ExitCode> {
    let format = if std::io::stderr().is_terminal() { Format::Text } else { Format::Json };
    ::process::logs::init(format, "info")?;
    let raw = ::controlplane::config::RawConfig::read(config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(::controlplane::run(raw))?;
    Ok(ExitCode::SUCCESS)
}

/// The mistakes of the configuration that lies in `dir`.
pub(crate) fn check_dir(dir: &Path) -> Vec<Problem> {
    ::controlplane::gate::check_dir(dir)
}
