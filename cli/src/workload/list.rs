//! `weft workload list`.

use std::process::ExitCode;

use api::{
    admin::{ProxyState, ProxyStatus, Status},
    name::ClusterName,
};
use clap::Args;
use serde::Serialize;

use crate::{
    mesh::Mesh,
    output::{Cell, Output, Style, Table},
};

/// List the workloads of every cluster
#[derive(Args)]
#[command(after_help = "Examples:
  weft workload list
  weft workload list --cluster west --output json")]
pub(crate) struct List {
    /// Only those of this cluster, by its own word
    #[arg(long)]
    cluster: Option<ClusterName>,
}

/// A proxy and where it is.
#[derive(Serialize)]
struct Row {
    cluster: ClusterName,
    #[serde(flatten)]
    proxy: ProxyStatus,
}

pub(crate) async fn run(list: List, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let status: Status = mesh.client(list.cluster.as_ref())?.get("/status").await?;
    let wanted = |name: &ClusterName| list.cluster.as_ref().is_none_or(|cluster| cluster == name);
    let rows: Vec<Row> = status
        .clusters
        .into_iter()
        .filter(|cluster| wanted(&cluster.name))
        .flat_map(|cluster| {
            let name = cluster.name;
            cluster.proxies.into_iter().map(move |proxy| Row { cluster: name.clone(), proxy })
        })
        .collect();
    output.answer(&rows, |rows, style| text(rows, style))?;
    Ok(ExitCode::SUCCESS)
}

fn text(rows: &[Row], style: Style) -> String {
    let mut table = Table::new(["WORKLOAD", "CLUSTER", "KIND", "ACCOUNT", "ADDRESS", "STATE", "APP"])
        .without(["KIND", "ACCOUNT", "ADDRESS"]);
    for Row { cluster, proxy } in rows {
        let app = match proxy.kind.as_str() {
            "sidecar" => Cell::judged(proxy.app_ready, if proxy.app_ready { "up" } else { "down" }),
            _ => "-".into(),
        };
        table.row([
            proxy.workload.as_str().into(),
            cluster.as_str().into(),
            proxy.kind.as_str().into(),
            format!("{}/{}", proxy.namespace, proxy.service_account).into(),
            proxy.address.as_str().into(),
            Cell::judged(proxy.state == ProxyState::Connected, format!("{:?}", proxy.state).to_lowercase()),
            app,
        ]);
    }
    table.render(style)
}
