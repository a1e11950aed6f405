//! The `weft-proxy` binary.

use std::path::PathBuf;

use clap::Parser;
use process::{limits, logs, shutdown};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Carries the requests of one workload, or of a gateway, as the control plane says.
#[derive(Parser)]
#[command(name = "weft-proxy", version)]
struct Arguments {
    /// The settings of this proxy: one JSON file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    logs::init(logs::Format::Json, "info")?;
    limits::raise_open_files();
    // Where the system hands out huge pages unasked, a heap of less than a megabyte would be ten resident ones.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    let config = dataplane::config::read(&arguments.config)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let end = shutdown::Shutdown::new();
        shutdown::end_by_signal(end.clone())?;
        dataplane::run::run(config, end).await
    })
}
