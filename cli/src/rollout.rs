//! `weft rollout`: an operator's word on a commit that the control plane holds back.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde_json::json;

use crate::{
    Global,
    client::escape,
    mesh::Mesh,
    output::{Output, short_commit},
    wait::resolve,
};

/// Let a held commit pass
///
/// A commit that removes more than half of the resources of its source is checked and held, so that an emptied path
/// cannot open the mesh. `weft status` shows it as held.
#[derive(Args)]
#[command(after_help = "Examples:
  weft status                                 shows a commit as `held`
  weft rollout accept HEAD && weft wait HEAD  lets it pass, as it is meant")]
pub(crate) struct Rollout {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Let a held commit pass
    #[command(after_help = "Example:\n  weft rollout accept HEAD && weft wait HEAD")]
    Accept {
        /// A commit, as `weft wait` takes it: HEAD, a branch, or an id, also abbreviated
        commit: String,
    },
}

pub(crate) async fn run(rollout: Rollout, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let Verb::Accept { commit } = rollout.verb;
    let mesh = Mesh::find(global)?;
    let client = mesh.client(None)?;
    let commit = resolve(&commit, &mesh, &client).await?;
    client.tell(&format!("/rollout/accept?commit={}", escape(&commit))).await?;
    output.answer(&json!({ "commit": commit, "accepted": true }), |_, _| {
        format!("{} may pass", short_commit(&commit))
    })?;
    Ok(ExitCode::SUCCESS)
}
