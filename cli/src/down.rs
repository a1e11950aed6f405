//! `weft down`: ends a `weft up` from outside, and what a killed one has left.

use std::{path::PathBuf, process::ExitCode, slice, time::Duration};

use anyhow::ensure;
use clap::Args;
use serde_json::json;

use crate::{end, mesh, output::Output, pid::Pid, progress::Progress};

/// Longer than all graces of an orderly end together.
const ORDERLY_END: Duration = Duration::from_secs(30);

/// End everything that `weft up` started in DIR; the state stays
#[derive(Args)]
#[command(after_help = "Examples:
  weft down
  weft down --dir /tmp/mesh && rm -r /tmp/mesh")]
pub(crate) struct Down {
    /// The directory of the `weft up`; otherwise ./weft-up, or the one that the current directory lies in
    #[arg(long)]
    dir: Option<PathBuf>,
}

pub(crate) async fn run(down: Down, output: &Output) -> anyhow::Result<ExitCode> {
    let dir = mesh::directory(down.dir)?;
    ensure!(dir.is_dir(), "there is no `weft up` directory {}: name it with --dir", dir.display());
    let dir = dir.canonicalize()?;
    let progress = Progress::new();
    let mut ended = 0;
    if Pid::read(&dir).is_some() {
        progress.at("asking `weft up` to end …");
        end::none_is_left(&end::processes(slice::from_ref(&dir), ORDERLY_END).await)?;
        ended += 1;
    }
    ended += end::everything(&dir, &progress).await?;
    Pid::forget(&dir);
    drop(progress);
    output.answer(&json!({ "dir": dir, "wasUp": ended > 0 }), |_, _| {
        if ended > 0 {
            format!("{} is down", dir.display())
        } else {
            format!("nothing runs in {}", dir.display())
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
