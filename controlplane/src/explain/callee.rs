//! Who answers behind a backend, and under which policies.

use std::{net::SocketAddr, sync::Arc};

use api::{
    identity::SpiffeId,
    name::{ClusterName, ServiceName},
    resource::Service,
    wire,
};
use runtime::Runtime;

use super::{Unexplained, compile};
use crate::snapshot::{Inputs, Registered, Role, Snapshot, Subscription, build};

/// A workload behind a backend.
pub(super) struct Callee {
    pub(super) node: Registered,
    pub(super) runtime: Runtime,
    /// What its own cluster's proxies obey.
    pub(super) inputs: Inputs,
}

/// The workloads behind a backend: those that live here; of a cluster from which alone it is
/// served, one as that cluster's policies guard it.
pub(super) fn all(
    snapshot: &Snapshot,
    name: &ServiceName,
    port: u16,
    endpoints: &[wire::Endpoint],
) -> Result<Vec<Callee>, Unexplained> {
    let here = |endpoint: &&wire::Endpoint| endpoint.cluster == snapshot.inputs.cluster.as_str();
    let local: Vec<_> = endpoints.iter().filter(here).map(|endpoint| endpoint.workload.as_str()).collect();
    let nodes = snapshot.inputs.workloads.values().filter(|one| local.contains(&one.workload.as_str()));
    let callee = |snapshot: &Snapshot, node: &Registered| {
        let runtime = compile(snapshot, node, &Subscription::new())?;
        Ok(Callee { node: node.clone(), runtime, inputs: snapshot.inputs.clone() })
    };
    let mut callees = nodes.map(|node| callee(snapshot, node)).collect::<Result<Vec<_>, _>>()?;
    if callees.is_empty()
        && let Some((there, node)) =
            endpoints.iter().find_map(|endpoint| elsewhere(snapshot, name, port, endpoint))
    {
        callees.push(callee(&there, &node)?);
    }
    Ok(callees)
}

/// A workload of another cluster under the policies that are placed there. Its labels are not known here beyond those
/// by which its Service selects it.
fn elsewhere(
    snapshot: &Snapshot,
    name: &ServiceName,
    port: u16,
    endpoint: &wire::Endpoint,
) -> Option<(Snapshot, Registered)> {
    let cluster: ClusterName = endpoint.cluster.parse().ok()?;
    let SpiffeId::Workload { namespace, service_account, .. } = endpoint.identity.parse().ok()? else {
        return None;
    };
    let configuration = snapshot.inputs.configuration.clone();
    let labels = configuration
        .of::<Service>(&cluster)
        .find(|(service, _)| service.service_name() == *name)
        .map(|(service, _)| service.spec.selector.clone())?;
    let address: SocketAddr = endpoint.address.parse().ok()?;
    let node = Registered {
        instance: format!("{}-elsewhere", endpoint.workload).parse().ok()?,
        workload: endpoint.workload.parse().ok()?,
        role: Role::Sidecar,
        namespace,
        service_account,
        labels,
        address,
        public_address: None,
        ports: [(port, SocketAddr::new(address.ip(), port))].into(),
        zone: None,
        app_ready: true,
        draining: false,
    };
    let workloads = Arc::new([(node.instance.clone(), node.clone())].into());
    let inputs = Inputs { cluster, workloads, ..snapshot.inputs.clone() };
    Some((build(&inputs), node))
}
