//! `weft workload revoke`: what was enrolled by a token counts no more.

use std::{io::ErrorKind, process::ExitCode};

use api::name::{ClusterName, WorkloadId};
use clap::Args;
use serde_json::json;

use super::local::Local;
use crate::{client::escape, mesh::Mesh, output::Output};

/// Take a workload out of the mesh for good: its certificate is not renewed any more
///
/// For a key that may be in other hands. The certificate that it has stays good until its end
/// (`Mesh.spec.certificates.leaf`); until then a DENY for its service account keeps it out. The workload comes back with
/// a new token, once the old `identity.pem` is gone from its state directory; here that is removed.
#[derive(Args)]
#[command(after_help = "Example:\n  weft workload revoke east-reviews-v1-1 --cluster east")]
pub(crate) struct Revoke {
    /// As `weft workload list` names it
    id: WorkloadId,
    /// The cluster that it lives in; otherwise the one that is asked
    #[arg(long)]
    cluster: Option<ClusterName>,
}

pub(crate) async fn run(revoke: Revoke, mesh: &Mesh, output: &Output) -> anyhow::Result<ExitCode> {
    let Revoke { id, cluster } = revoke;
    let client = mesh.client(cluster.as_ref())?;
    client.delete(&format!("/workloads/{}?revoke=true", escape(id.as_str()))).await?;
    if let Some(local) = mesh.up.as_ref().and_then(|up| Local::find(up, &id).ok()) {
        let held = local.member.proxy.dir().join("identity.pem");
        let removed = std::fs::remove_file(&held);
        removed.or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    }
    output.answer(&json!({ "id": id, "revoked": true }), |_, _| {
        format!("{id} is revoked: it needs a new token to come back")
    })?;
    Ok(ExitCode::SUCCESS)
}
