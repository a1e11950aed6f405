//! A workload of this machine, as it is stopped and started: an application beside its sidecar, or a gateway.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;
use api::{
    admin::TokenRequest,
    name::{ClusterName, WorkloadId},
};
use serde_json::{Value, json};

use super::spec::{Spec, pid_in};
use crate::{
    descriptor::{self, Cluster, Descriptor, EAST_WEST, INGRESS},
    mesh::Up,
    proxy::Proxy,
};

/// A proxy, and what its token has to vouch for.
pub(crate) struct Member {
    pub(crate) proxy: Proxy,
    pub(crate) request: TokenRequest,
}

/// One workload and where it lives.
pub(super) struct Local {
    pub(super) cluster: ClusterName,
    pub(super) member: Member,
    /// The application; a gateway has none.
    pub(super) app: Option<Spec>,
}

impl Local {
    /// The workload `id` of the mesh `up`.
    pub(super) fn find(up: &Up, id: &WorkloadId) -> anyhow::Result<Self> {
        let clusters = &up.descriptor.clusters;
        let found =
            clusters.iter().flat_map(|cluster| dirs(&up.dir, &cluster.name)).find(|(name, _)| name == id);
        let (_, local) = found.with_context(|| {
            format!("no workload `{id}` in {}: `weft workload list` names them", up.dir.display())
        })?;
        local.read()
    }

    /// Every workload of `cluster`, its gateways last.
    pub(super) fn all(up: &Up, cluster: &ClusterName) -> anyhow::Result<Vec<Self>> {
        let cluster = up.descriptor.cluster(cluster)?;
        dirs(&up.dir, &cluster.name).into_iter().map(|(_, place)| place.read()).collect()
    }

    pub(super) fn id(&self) -> &WorkloadId {
        self.member.proxy.workload()
    }

    /// As it stands now: of a workload what `weft up` says, of a gateway the like.
    pub(super) fn describe(&self) -> Value {
        match &self.app {
            Some(spec) => json!(spec.describe()),
            None => {
                let proxy = &self.member.proxy;
                json!({
                    "id": proxy.workload(),
                    "kind": proxy.kind(),
                    "address": proxy.address(),
                    "admin": proxy.admin(),
                    "dir": proxy.dir(),
                    "pid": pid_in(proxy.dir()),
                })
            }
        }
    }

    /// Keeps `up.json` true after its processes have changed.
    pub(super) fn note(&self, up: &Up) -> anyhow::Result<()> {
        Descriptor::change(&up.dir, |descriptor| {
            let mine = |cluster: &&mut Cluster| cluster.name == self.cluster;
            let Some(cluster) = descriptor.clusters.iter_mut().find(mine) else { return };
            match &self.app {
                Some(spec) => {
                    let known = cluster.workloads.iter_mut().filter(|entry| entry.id == spec.id);
                    known.for_each(|entry| *entry = spec.describe());
                }
                None if self.member.proxy.dir().ends_with(INGRESS) => {
                    cluster.gateway_pids.ingress = pid_in(self.member.proxy.dir());
                }
                None => cluster.gateway_pids.eastwest = pid_in(self.member.proxy.dir()),
            }
        })
    }
}

/// Where a workload of this machine lies.
enum Place {
    App(PathBuf),
    Gateway(ClusterName, PathBuf),
}

impl Place {
    fn read(self) -> anyhow::Result<Local> {
        Ok(match self {
            Place::App(dir) => {
                let spec = Spec::read(&dir)?;
                let member = Member { proxy: spec.sidecar(), request: spec.token_request() };
                Local { cluster: spec.cluster.clone(), member, app: Some(spec) }
            }
            Place::Gateway(cluster, dir) => {
                let proxy = Proxy::read(&dir)?;
                Local { cluster, member: Member { request: proxy.gateway_token(), proxy }, app: None }
            }
        })
    }
}

/// The ids of a cluster's workloads, and where they lie.
fn dirs(up: &Path, cluster: &ClusterName) -> Vec<(WorkloadId, Place)> {
    let entries = fs::read_dir(descriptor::workloads_dir(up, cluster)).into_iter().flatten().flatten();
    let mut apps: Vec<_> = entries
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, Place::App(entry.path()))))
        .collect();
    apps.sort_by(|(a, _): &(WorkloadId, _), (b, _)| a.cmp(b));
    let gateways = [INGRESS, EAST_WEST].into_iter().filter_map(|name| {
        let id = format!("{cluster}-{name}").parse().ok()?;
        Some((id, Place::Gateway(cluster.clone(), descriptor::gateway_dir(up, cluster, name))))
    });
    apps.into_iter().chain(gateways).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{pid::Pid, proxy::Surroundings};

    #[test]
    fn a_gateway_is_a_workload_like_another() {
        let dir = tempfile::tempdir().unwrap();
        let up = Up { dir: dir.path().to_owned(), descriptor: descriptor::tests::sample() };
        up.descriptor.write(dir.path()).unwrap();
        let east: ClusterName = "east".parse().unwrap();
        let surroundings = Surroundings { control_plane: "127.1.0.1:15012".into(), trace: None };
        for (name, make) in
            [(INGRESS, Proxy::ingress as fn(&_, _, &Path, &_) -> Proxy), (EAST_WEST, Proxy::east_west)]
        {
            let id = format!("east-{name}").parse().unwrap();
            let place = descriptor::gateway_dir(dir.path(), &east, name);
            make(&id, "127.1.0.2".parse().unwrap(), &place, &surroundings).write().unwrap();
        }
        let gateway = Local::find(&up, &"east-eastwest".parse().unwrap()).unwrap();
        assert_eq!(gateway.member.request.service_account.as_str(), "east-west");
        assert_eq!(gateway.describe()["address"], "127.1.0.2:15443");
        Pid::of(std::process::id()).unwrap().write(gateway.member.proxy.dir()).unwrap();
        gateway.note(&up).unwrap();
        let pids = Descriptor::read(dir.path()).unwrap().clusters[0].gateway_pids.clone();
        assert_eq!((pids.ingress, pids.eastwest), (2, std::process::id() as i32));
        assert_eq!(Local::all(&up, &east).unwrap().len(), 2);
        let error = Local::find(&up, &"west-ingress".parse().unwrap()).err().unwrap().to_string();
        assert!(error.starts_with("no workload `west-ingress` in "), "{error}");
    }
}
