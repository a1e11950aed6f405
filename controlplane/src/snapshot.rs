//! Stage four: one complete, linked picture of what one cluster's proxies may be told.
//!
//! [`build`] is a pure function of its inputs; [`Snapshot::view`] is a pure function of a snapshot, a node and
//! what that node asked for. Everything else carries a snapshot or obeys it.
//!
//! Invariant: no `async fn`, no clock, no random number here. Time is a field of [`Inputs`].

mod build;
#[cfg(test)]
pub(crate) mod fixture;
mod guard;
mod route;
mod service;
#[cfg(test)]
mod tests;
mod traffic;
mod view;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use api::{
    delta::Origin,
    head::Seq,
    identity::Bundle,
    locality::Locality,
    name::{
        ClusterName, InstanceId, Namespace, NetworkName, ObjectName, ServiceAccount, ServiceLabel,
        ServiceName, WorkloadId,
    },
    resource::{Labels, Object, Resource, Spec},
    wire,
};
use serde::{Deserialize, Serialize};

pub use build::build;
pub(crate) use guard::mtls_and_origin;
pub use service::{Reach, ServiceEntry};
pub(crate) use traffic::policies as traffic_policies;
pub use view::Subscription;

/// All that a snapshot is made of.
#[derive(Debug, Clone)]
pub struct Inputs {
    /// Whose proxies it is for.
    pub cluster: ClusterName,
    /// What the cluster says of itself, where Git says nothing.
    pub own: Arc<Place>,
    /// The revision in force.
    pub configuration: Arc<Configuration>,
    /// Who lives here.
    pub workloads: Arc<BTreeMap<InstanceId, Registered>>,
    /// What the others offer.
    pub peers: Arc<BTreeMap<ClusterName, Arc<wire::Catalogue>>>,
    /// Whom to believe.
    pub bundle: Arc<Bundle>,
    /// Seconds since the epoch: for the age of stale endpoints alone.
    pub now: u64,
}

/// Where a cluster is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its network.
    pub network: NetworkName,
    /// Its place.
    pub locality: Locality,
}

/// The resources of one revision, as the store gives them back.
#[derive(Debug, Default)]
pub struct Configuration {
    /// The head that it is of.
    pub head: Option<Seq>,
    /// The commit, or those of all sources: what everybody calls the revision.
    pub commit: String,
    /// Every resource, in the order of keys.
    pub objects: Vec<Said>,
}

/// One resource and when it got its present meaning.
#[derive(Debug)]
pub struct Said {
    /// The resource.
    pub resource: Resource,
    /// The commit that last changed it, with its source where there are several.
    pub changed_in: String,
    /// Where it stands, for people.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// The lines of its rules, of kinds that have them.
    pub rules: Vec<u32>,
}

impl Configuration {
    /// The objects of one kind that apply in `cluster`, in the order of keys.
    pub fn of<'a, S: Spec>(
        &'a self,
        cluster: &'a ClusterName,
    ) -> impl Iterator<Item = (&'a Object<S>, &'a Said)> + 'a {
        self.objects.iter().filter_map(move |said| {
            let object = said.resource.as_kind::<S>()?;
            object.meta.applies_in(cluster).then_some((object, said))
        })
    }

    /// What is said of the mesh.
    pub fn mesh(&self) -> Option<&Object<api::resource::Mesh>> {
        self.objects.iter().find_map(|said| said.resource.as_kind())
    }

    /// What is said of a member, wherever it applies.
    pub fn member(&self, cluster: &ClusterName) -> Option<&api::resource::Cluster> {
        let mut members =
            self.objects.iter().filter_map(|said| said.resource.as_kind::<api::resource::Cluster>());
        members.find(|member| member.meta.name.as_str() == cluster.as_str()).map(|member| &member.spec)
    }
}

/// What a process is in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    /// Beside an application.
    Sidecar,
    /// Where requests enter.
    Ingress,
    /// Where other networks reach this one.
    EastWest,
}

/// One workload that lives here, as its token and its proxy say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// This life of it.
    pub instance: InstanceId,
    /// What operators call it.
    pub workload: WorkloadId,
    /// What it is.
    pub role: Role,
    /// By its token.
    pub namespace: Namespace,
    /// By its token.
    pub service_account: ServiceAccount,
    /// By its token.
    pub labels: Labels,
    /// Where its own network reaches it.
    pub address: SocketAddr,
    /// Where other networks reach it (gateways).
    pub public_address: Option<SocketAddr>,
    /// What its application serves: port to address.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// Its zone, where it names one.
    pub zone: Option<String>,
    /// Whether its application answers.
    pub app_ready: bool,
    /// Whether it drains.
    pub draining: bool,
}

/// All that one cluster's proxies may be told.
#[derive(Debug)]
pub struct Snapshot {
    /// The inputs, which views need too.
    pub inputs: Inputs,
    /// The trust domain.
    pub trust_domain: String,
    /// Where this cluster is, Git's word before its own.
    pub place: Place,
    /// Every service that a proxy here may call. A service whose union over all clusters differs from what its
    /// plain name means has a second entry, `<name>.clusterset`: no Service can be called so, since its name has no dot.
    pub services: BTreeMap<ServiceName, Arc<ServiceEntry>>,
    /// Services by every host that does not depend on who asks: names, virtual addresses, and the addresses of
    /// endpoints, each of which may be behind several.
    hosts: BTreeMap<String, Vec<ServiceName>>,
    /// Exported endpoints of this cluster, for its east-west gateways.
    passthrough: wire::Passthrough,
    /// Items that are the same in every view, encoded once.
    shared: BTreeMap<Arc<str>, api::delta::Item>,
}

impl Snapshot {
    /// The commit that it obeys.
    pub fn commit(&self) -> &str {
        &self.inputs.configuration.commit
    }

    /// Where its views come from.
    pub fn origin(&self) -> Origin {
        Origin { revision: self.commit().to_owned(), head: self.inputs.configuration.head }
    }
}

/// The name under which the union over all clusters stands beside a plain service; none beside what is called as no
/// Service can be.
pub(crate) fn clusterset_name(service: &ServiceName) -> Option<ServiceName> {
    let label = ServiceLabel::new(service.name.as_str()).ok()?;
    let name = ObjectName::new(format!("{}.clusterset", label.as_str())).ok()?;
    Some(ServiceName::new(service.namespace.clone(), name))
}
