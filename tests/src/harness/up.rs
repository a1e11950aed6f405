//! The line that `weft up --json` prints, as its users read it.

use std::path::PathBuf;

use serde::Deserialize;

/// One running mesh.
#[derive(Debug, Clone, Deserialize)]
pub struct Up {
    /// Always true.
    pub ready: bool,
    /// The Git repository that rules it.
    pub repository: PathBuf,
    /// The web page.
    pub console: String,
    /// The primary first.
    pub clusters: Vec<Cluster>,
}

/// One of its clusters.
#[derive(Debug, Clone, Deserialize)]
pub struct Cluster {
    /// `east` or `west`.
    pub name: String,
    /// `primary` or `remote`.
    pub role: String,
    /// The admin API.
    pub api: String,
    /// The ingress gateway.
    pub ingress: String,
    /// The east-west gateway, `ip:port`.
    pub eastwest: String,
    /// The control plane's process.
    pub controlplane_pid: i32,
    /// The gateways' processes.
    pub gateway_pids: GatewayPids,
    /// The workloads.
    pub workloads: Vec<Workload>,
}

/// The processes of a cluster's gateways.
#[derive(Debug, Clone, Deserialize)]
pub struct GatewayPids {
    /// Of the ingress.
    pub ingress: i32,
    /// Of the east-west gateway.
    pub eastwest: i32,
}

/// An application and its sidecar.
#[derive(Debug, Clone, Deserialize)]
pub struct Workload {
    /// Its id.
    pub id: String,
    /// Its service.
    pub service: String,
    /// Its version.
    pub version: String,
    /// Its namespace.
    pub namespace: String,
    /// The sidecar's inbound, `ip:port`.
    pub address: String,
    /// The sidecar's outbound.
    pub outbound: String,
    /// The sidecar's admin port.
    pub admin: String,
    /// The application.
    pub app: String,
    /// Holds `app` and `sidecar`.
    pub dir: PathBuf,
    /// The application's process; 0 when it is dead.
    pub pid: i32,
    /// The sidecar's process; 0 when it is dead.
    pub sidecar_pid: i32,
}
