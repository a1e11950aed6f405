//! One workload of this machine: all that is needed to start it, and to start it again.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::{
    admin::TokenRequest,
    name::{ClusterName, Namespace, ObjectName, ServiceAccount, WorkloadId},
};
use serde::{Deserialize, Serialize};

use crate::{
    descriptor,
    pid::Pid,
    process::{Process, write_private},
    proxy::{INBOUND_PORT, OUTBOUND_PORT, Proxy, Surroundings},
};

const FILE: &str = "workload.json";

/// An application and its sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Spec {
    pub(crate) id: WorkloadId,
    pub(crate) cluster: ClusterName,
    pub(crate) namespace: Namespace,
    pub(crate) service: ObjectName,
    pub(crate) service_account: ServiceAccount,
    pub(crate) version: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Where the sidecar listens, and what its connections come from.
    pub(crate) ip: IpAddr,
    /// The port that services name as `targetPort`.
    pub(crate) port: u16,
    /// Where the application listens.
    pub(crate) app: SocketAddr,
    pub(crate) command: Vec<String>,
    /// The application's working directory, when that is not its state directory.
    pub(crate) cwd: Option<PathBuf>,
    /// The cluster's control plane, as proxies reach it.
    pub(crate) control_plane: String,
    /// Where spans go.
    pub(crate) trace: Option<String>,
    /// Holds `app` and `sidecar`, a state directory each.
    pub(crate) dir: PathBuf,
}

impl Spec {
    /// What lies in `dir`.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is not what weft wrote", path.display()))
    }

    /// Writes it to its directory.
    pub(crate) fn write(&self) -> anyhow::Result<()> {
        write_private(&self.dir.join(FILE), &serde_json::to_string_pretty(self)?)
    }

    pub(crate) fn app_dir(&self) -> PathBuf {
        self.dir.join("app")
    }

    pub(crate) fn sidecar_dir(&self) -> PathBuf {
        self.dir.join("sidecar")
    }

    /// The application, which gets `PORT` and `http_proxy`.
    pub(crate) fn app_process(&self) -> anyhow::Result<Process> {
        let (program, args) = self.command.split_first().context("the workload has no command")?;
        Ok(Process {
            name: format!("application of {}", self.id),
            program: program.into(),
            args: args.iter().map(OsString::from).collect(),
            env: vec![
                ("PORT", self.app.port().to_string()),
                ("http_proxy", format!("http://{}", SocketAddr::new(self.ip, OUTBOUND_PORT))),
            ],
            dir: self.app_dir(),
            cwd: self.cwd.clone(),
            foreground: false,
        })
    }

    pub(crate) fn sidecar(&self) -> Proxy {
        let surroundings =
            Surroundings { control_plane: self.control_plane.clone(), trace: self.trace.clone() };
        Proxy::sidecar(&self.id, self.ip, (self.port, self.app), &self.sidecar_dir(), &surroundings)
    }

    /// What its token has to vouch for.
    pub(crate) fn token_request(&self) -> TokenRequest {
        TokenRequest {
            workload: self.id.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
            labels: self.labels.clone(),
            ttl_seconds: None,
        }
    }

    /// As it stands now.
    pub(crate) fn describe(&self) -> descriptor::Workload {
        let at = |port| SocketAddr::new(self.ip, port).to_string();
        descriptor::Workload {
            id: self.id.clone(),
            service: self.service.clone(),
            version: self.version.clone(),
            namespace: self.namespace.clone(),
            address: at(INBOUND_PORT),
            outbound: at(OUTBOUND_PORT),
            admin: self.sidecar().admin().to_string(),
            app: self.app.to_string(),
            dir: self.dir.clone(),
            pid: pid_in(&self.app_dir()),
            sidecar_pid: pid_in(&self.sidecar_dir()),
        }
    }
}

/// The process that lives in a state directory; 0 when it is dead.
pub(crate) fn pid_in(dir: &Path) -> i32 {
    Pid::read(dir).map_or(0, |pid| pid.number)
}
