//! `weft token`: one-time tokens, for a workload or for a cluster that is to join.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use anyhow::Context;
use api::{
    admin,
    name::{ClusterName, Namespace, ServiceAccount, WorkloadId},
};
use clap::Args;

use crate::{Global, duration, mesh::Mesh, output::Output};

/// Make a one-time token for a workload, or for a cluster that is to join
///
/// The token vouches for what is said here, and the holder can say nothing else. Hand it over by a safe way.
#[derive(Args)]
#[command(after_help = "Examples:
  weft token reviews-9 --cluster west --namespace shop --service-account reviews --label app=reviews
  weft token --join north --ttl 15m           for `weft join`, from the primary")]
pub(crate) struct Token {
    /// The workload's id
    #[arg(required_unless_present = "join")]
    workload: Option<WorkloadId>,
    /// The cluster that the workload belongs to; otherwise the one whose API answers
    #[arg(long)]
    cluster: Option<ClusterName>,
    /// The workload's namespace
    #[arg(long, default_value = "default")]
    namespace: Namespace,
    /// The workload's service account
    #[arg(long, default_value = "default")]
    service_account: ServiceAccount,
    /// A label; services select by them
    #[arg(long = "label", value_parser = pair, value_name = "KEY=VALUE")]
    labels: Vec<(String, String)>,
    /// The cluster that is to join
    #[arg(long, conflicts_with = "workload", value_name = "CLUSTER")]
    join: Option<ClusterName>,
    /// How long the token may be used: ten minutes unless told, an hour for a cluster's, at most 7 days
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    ttl: Option<Duration>,
}

pub(crate) async fn run(token: Token, global: &Global, output: &Output) -> anyhow::Result<ExitCode> {
    let client = Mesh::find(global)?.client(token.cluster.as_ref())?;
    let ttl_seconds = token.ttl.map(|ttl| ttl.as_secs());
    let made: admin::Token = match token.join {
        Some(cluster) => {
            client.post("/join-tokens", &admin::JoinTokenRequest { cluster, ttl_seconds }).await?
        }
        None => {
            let request = admin::TokenRequest {
                workload: token.workload.context("name the workload")?,
                namespace: token.namespace,
                service_account: token.service_account,
                labels: BTreeMap::from_iter(token.labels),
                ttl_seconds,
            };
            client.post("/tokens", &request).await?
        }
    };
    output.answer(&made, |made, _| made.token.clone())?;
    Ok(ExitCode::SUCCESS)
}

/// `key=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label: write key=value")),
    }
}
