//! `weft join`: a remote control plane on this machine, by a token of the primary.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context;
use api::name::{ClusterName, NetworkName};
use clap::Args;
use serde_json::json;

use crate::{controlplane, process::write_private};

/// Run a remote cluster's control plane, joined to a primary by a one-time token
///
/// Writes the control plane's settings to DIR and runs it in the foreground. The token is used once; afterwards
/// the cluster's own certificate in DIR is, and the same line starts it again.
#[derive(Args)]
#[command(after_help = "Example:
  weft token --join north > north.token       at the primary
  weft join --cluster north --primary 127.1.0.1:15013 --join-token-file north.token \\
       --address 127.9.0.1 --region eu-north --dir ./north")]
pub(crate) struct Join {
    /// The cluster's name, as in the token
    #[arg(long)]
    cluster: ClusterName,
    /// The primary's address for federation
    #[arg(long, value_name = "IP:PORT")]
    primary: SocketAddr,
    /// The address that this control plane listens on, and connects from
    #[arg(long, value_name = "IP")]
    address: IpAddr,
    /// The network that its workloads are on; otherwise the cluster's name
    #[arg(long)]
    network: Option<NetworkName>,
    /// Where its workloads are
    #[arg(long)]
    region: String,
    /// The zone within the region
    #[arg(long, default_value = "")]
    zone: String,
    /// Holds all its state
    #[arg(long)]
    dir: PathBuf,
    /// The token, from `weft token --join` at the primary
    #[arg(id = "join_token", long = "join-token-file", value_name = "FILE")]
    token: PathBuf,
}

pub(crate) fn run(join: &Join) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&join.dir).with_context(|| format!("cannot make {}", join.dir.display()))?;
    let dir = join.dir.canonicalize()?;
    let token = join.token.canonicalize().unwrap_or_else(|_| join.token.clone());
    let at = |port| SocketAddr::new(join.address, port);
    let config = json!({
        "cluster": join.cluster,
        "role": "remote",
        "stateDir": dir,
        "address": join.address,
        "proxies": at(15012),
        "federation": at(15013),
        "metrics": at(15014),
        "admin": at(15080),
        "joinTokenFile": token,
        "primary": join.primary,
        "network": join.network.as_ref().map_or(join.cluster.as_str(), |network| network.as_str()),
        "locality": { "region": join.region, "zone": join.zone, "subzone": "" },
    });
    let file = dir.join("config.json");
    write_private(&file, &serde_json::to_string_pretty(&config)?)?;
    controlplane::serve(&file)
}
