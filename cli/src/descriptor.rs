//! What `weft up` says of itself once ready: one line on stdout with `--json`, and `up.json` for the other commands.

use std::{
    fs::{self, File},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use api::{
    admin::Role,
    name::{ClusterName, Namespace, ObjectName, WorkloadId},
};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};

/// The file in the `weft up` directory.
pub(crate) const FILE: &str = "up.json";

/// A gateway's folder in its cluster's, and the end of its id: `west-ingress`.
pub(crate) const INGRESS: &str = "ingress";
pub(crate) const EAST_WEST: &str = "eastwest";

/// One running mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) ready: bool,
    /// The Git repository that rules it.
    pub(crate) repository: PathBuf,
    /// The web page, with its one-time login.
    pub(crate) console: String,
    pub(crate) clusters: Vec<Cluster>,
}

/// One of its clusters.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cluster {
    pub(crate) name: ClusterName,
    pub(crate) role: Role,
    /// Its control plane's admin API.
    pub(crate) api: String,
    pub(crate) ingress: String,
    pub(crate) eastwest: String,
    pub(crate) controlplane_pid: i32,
    pub(crate) gateway_pids: GatewayPids,
    pub(crate) workloads: Vec<Workload>,
}

/// Its gateways' processes; 0 when one is dead.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct GatewayPids {
    pub(crate) ingress: i32,
    pub(crate) eastwest: i32,
}

/// One workload: an application and its sidecar.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Workload {
    pub(crate) id: WorkloadId,
    pub(crate) service: ObjectName,
    pub(crate) version: String,
    pub(crate) namespace: Namespace,
    /// The sidecar's inbound.
    pub(crate) address: String,
    /// The sidecar's outbound, the application's HTTP proxy.
    pub(crate) outbound: String,
    /// The sidecar's admin port.
    pub(crate) admin: String,
    pub(crate) app: String,
    pub(crate) dir: PathBuf,
    /// The application's process; 0 when it is dead.
    pub(crate) pid: i32,
    pub(crate) sidecar_pid: i32,
}

impl Descriptor {
    /// What the `weft up` directory `dir` holds.
    pub(crate) fn read(dir: &Path) -> anyhow::Result<Self> {
        ensure_trusted(dir)?;
        let path = dir.join(FILE);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| {
            format!("{} was not written by this version of weft: `weft up` writes it anew", path.display())
        })
    }

    pub(crate) fn write(&self, dir: &Path) -> anyhow::Result<()> {
        crate::process::write_private(&dir.join(FILE), &serde_json::to_string(self)?)
    }

    /// Changes what `dir` holds. One command at a time, since each writes all of it.
    pub(crate) fn change(dir: &Path, change: impl FnOnce(&mut Self)) -> anyhow::Result<()> {
        let turn = File::open(dir).and_then(|directory| directory.lock().map(|()| directory));
        let _turn = turn.with_context(|| format!("cannot lock {}", dir.display()))?;
        let mut descriptor = Descriptor::read(dir)?;
        change(&mut descriptor);
        descriptor.write(dir)
    }

    pub(crate) fn primary(&self) -> Option<&Cluster> {
        self.clusters.iter().find(|cluster| cluster.role == Role::Primary)
    }

    pub(crate) fn cluster(&self, name: &ClusterName) -> anyhow::Result<&Cluster> {
        let known = || self.clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>().join(", ");
        self.clusters
            .iter()
            .find(|cluster| cluster.name == *name)
            .with_context(|| format!("this mesh has no cluster `{name}`; it has {}", known()))
    }
}

/// Refuses a `weft up` directory of a stranger: commands that lie in it are run, and processes that it names are ended.
pub(crate) fn ensure_trusted(dir: &Path) -> anyhow::Result<()> {
    let file = dir.join(FILE);
    for path in [dir, file.as_path()] {
        // A link is its maker's word, wherever it leads.
        let Ok(owner) = fs::symlink_metadata(path).map(|metadata| metadata.uid()) else { continue };
        ensure!(
            is_trusted(owner, geteuid().as_raw()),
            "{} belongs to another user ({owner}), and what it says could be run as yours: name the mesh with --api, \
             or the directory of `weft up` and `weft down` with --dir",
            path.display()
        );
    }
    Ok(())
}

fn is_trusted(owner: u32, caller: u32) -> bool {
    owner == caller || owner == 0
}

/// The state directory of `cluster`'s control plane below the `weft up` directory.
pub(crate) fn controlplane_dir(dir: &Path, cluster: &ClusterName) -> PathBuf {
    dir.join(cluster.as_str()).join("controlplane")
}

/// The state directory of a gateway, [`INGRESS`] or [`EAST_WEST`].
pub(crate) fn gateway_dir(dir: &Path, cluster: &ClusterName, name: &str) -> PathBuf {
    dir.join(cluster.as_str()).join(name)
}

/// The directories of a cluster's workloads.
pub(crate) fn workloads_dir(dir: &Path, cluster: &ClusterName) -> PathBuf {
    dir.join(cluster.as_str()).join("workloads")
}

/// The directory of a workload: `app` and `sidecar` lie in it.
pub(crate) fn workload_dir(dir: &Path, cluster: &ClusterName, id: &WorkloadId) -> PathBuf {
    workloads_dir(dir, cluster).join(id.as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use expect_test::expect;

    use super::*;

    /// A mesh of one workload.
    pub(crate) fn sample() -> Descriptor {
        Descriptor {
            ready: true,
            repository: "/srv/weft-up/config".into(),
            console: "http://127.1.0.1:15080/?login=abc".into(),
            clusters: vec![Cluster {
                name: "east".parse().unwrap(),
                role: Role::Primary,
                api: "http://127.1.0.1:15080".into(),
                ingress: "http://127.1.0.3:8080".into(),
                eastwest: "127.1.0.2:15443".into(),
                controlplane_pid: 1,
                gateway_pids: GatewayPids { ingress: 2, eastwest: 3 },
                workloads: vec![Workload {
                    id: "east-reviews-v1-1".parse().unwrap(),
                    service: "reviews".parse().unwrap(),
                    version: "v1".into(),
                    namespace: "shop".parse().unwrap(),
                    address: "127.1.0.15:15006".into(),
                    outbound: "127.1.0.15:15001".into(),
                    admin: "127.1.0.15:15000".into(),
                    app: "127.1.0.15:8080".into(),
                    dir: "/srv/weft-up/east/workloads/east-reviews-v1-1".into(),
                    pid: 123,
                    sidecar_pid: 124,
                }],
            }],
        }
    }

    #[test]
    fn the_line_is_as_promised() {
        expect![[r#"{"ready":true,"repository":"/srv/weft-up/config","console":"http://127.1.0.1:15080/?login=abc","clusters":[{"name":"east","role":"primary","api":"http://127.1.0.1:15080","ingress":"http://127.1.0.3:8080","eastwest":"127.1.0.2:15443","controlplane_pid":1,"gateway_pids":{"ingress":2,"eastwest":3},"workloads":[{"id":"east-reviews-v1-1","service":"reviews","version":"v1","namespace":"shop","address":"127.1.0.15:15006","outbound":"127.1.0.15:15001","admin":"127.1.0.15:15000","app":"127.1.0.15:8080","dir":"/srv/weft-up/east/workloads/east-reviews-v1-1","pid":123,"sidecar_pid":124}]}]}"#]]
        .assert_eq(&serde_json::to_string(&sample()).unwrap());
    }

    #[test]
    fn only_ones_own_and_roots_word_counts() {
        for (owner, caller, trusted) in
            [(1000, 1000, true), (0, 1000, true), (1001, 1000, false), (1000, 0, false), (0, 0, true)]
        {
            assert_eq!(is_trusted(owner, caller), trusted, "{owner} for {caller}");
        }
        let dir = tempfile::tempdir().unwrap();
        assert!(ensure_trusted(dir.path()).is_ok(), "one that is empty yet");
    }

    #[test]
    fn it_is_read_back_and_names_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        sample().write(dir.path()).unwrap();
        let read = Descriptor::read(dir.path()).unwrap();
        assert_eq!(read.primary().unwrap().name.as_str(), "east");
        let error = read.cluster(&"north".parse().unwrap()).unwrap_err().to_string();
        assert_eq!(error, "this mesh has no cluster `north`; it has east");
    }
}
