//! `weft console`: the address of the web page, with a fresh one-time login.

use std::process::ExitCode;

use api::{admin::Token, name::ClusterName};
use clap::Args;
use serde_json::json;

use crate::{
    Global,
    client::{Client, Failed},
    mesh::Mesh,
    output::Output,
};

/// Print the address of the console page, with a login that works once
#[derive(Args)]
#[command(after_help = "Examples:
  weft console
  xdg-open $(weft console --cluster west)")]
pub(crate) struct Console {
    /// The page of this cluster's control plane instead of the primary's
    #[arg(long)]
    cluster: Option<ClusterName>,
}

pub(crate) async fn run(console: Console, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Mesh::find(global)?.client(console.cluster.as_ref())?;
    let url = url(&client).await?;
    output.answer(&json!({ "console": url }), |_, _| url.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// The page's address with a fresh login, which becomes a cookie.
pub(crate) async fn url(client: &Client) -> Result<String, Failed> {
    let login: Token = client.post("/console-logins", &()).await?;
    Ok(format!("http://{}/?login={}", client.address(), login.token))
}
