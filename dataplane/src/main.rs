//! The `weft-proxy` binary.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Parser, Subcommand};
use process::{limits, logs, shutdown};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Carries the requests of one workload, or of a gateway, as the control plane says
///
/// `weft up` and `weft workload add` write its settings and start it. SIGTERM drains it: it takes no new connections,
/// finishes its requests and ends. What it holds, and what it thinks of each endpoint, is at its admin address.
#[derive(Parser)]
#[command(name = "weft-proxy", version, subcommand_negates_reqs = true, max_term_width = 110, after_help = EXAMPLES)]
struct Arguments {
    /// The settings of this proxy: one JSON file.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Change the rules by which the application's traffic is captured, for a proxy that may not
    #[command(subcommand)]
    Capture(CaptureCommand),
}

#[derive(Subcommand)]
enum CaptureCommand {
    /// Take the rules into force, whatever was there of them before
    Install {
        /// The settings of the proxy, with `capture`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Remove the rules, if there are any
    Remove,
}

fn change_capture(command: CaptureCommand) -> anyhow::Result<()> {
    match command {
        CaptureCommand::Install { config } => {
            let capture = dataplane::config::read(&config)?.capture;
            capture.context("the settings say nothing of `capture`")?.install()?.stay();
        }
        CaptureCommand::Remove => dataplane::capture::remove()?,
    }
    Ok(())
}

const EXAMPLES: &str = "\
Examples:
  weft-proxy --config /var/lib/weft/reviews-1/config.json
  curl http://127.1.0.15:15000/runtime      what it obeys, as JSON; also /ready, /metrics
  curl -X POST http://127.1.0.15:15000/drain

The least that a sidecar's settings say:
  { \"role\": \"sidecar\", \"workload\": \"reviews-1\", \"stateDir\": \"/var/lib/weft/reviews-1\",
    \"tokenFile\": \"/var/lib/weft/reviews-1/token\", \"controlPlanes\": [\"10.0.0.1:15012\"],
    \"source\": \"10.0.0.9\", \"inbound\": \"10.0.0.9:15006\", \"outbound\": \"127.0.0.1:15001\",
    \"admin\": \"127.0.0.1:15000\", \"apps\": [{ \"port\": 8080, \"address\": \"127.0.0.1:8080\" }] }

`weft token` makes the one-time token.";

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(Command::Capture(command)) = arguments.command {
        return change_capture(command);
    }
    let config = arguments.config.context("--config is needed")?;
    logs::init(logs::Format::Json, "info")?;
    limits::raise_open_files();
    // Where the system hands out huge pages unasked, a heap of less than a megabyte would be ten resident ones.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        tracing::debug!(%error, "huge pages stay on");
    }
    let config = dataplane::config::read(&config)?;
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let installs = config.capture.as_ref().is_some_and(|capture| capture.install);
    let ended = control.block_on(async {
        let end = shutdown::Shutdown::new();
        shutdown::end_by_signal(end.clone(), move || {
            if installs && let Err(error) = dataplane::capture::remove() {
                tracing::error!(%error, "the rules of capture stay");
            }
        })?;
        dataplane::run::run(config, end).await
    });
    // A disk that hangs must not keep a process whose work is done.
    control.shutdown_background();
    ended
}
