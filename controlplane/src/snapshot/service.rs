//! Services as callers of this cluster see them: who serves, here and elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use api::{
    endpoint::{self, EndpointId},
    identity::SpiffeId,
    name::{ClusterName, InstanceId, Namespace, ServiceName},
    resource::{
        self, EndpointSlice, Service, ServiceExport,
        endpoints::{Endpoint, EndpointPort, SERVICE_LABEL},
        service::{Application, TargetPort},
        target::selects,
        traffic::StaleEndpoints,
    },
    wire,
};

use super::{Inputs, Place, Registered, Role, clusterset_name, traffic};

/// The label of a workload that names the node it runs on, as an EndpointSlice's `nodeName` does.
const NODE_LABEL: &str = "node";

/// The weight of an endpoint that nothing speaks against.
const FULL_WEIGHT: u32 = 100;

/// Which host names lead to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// `name.namespace.svc.cluster.local` and its short forms.
    Local,
    /// `name.namespace.svc.clusterset.local`.
    ClusterSet,
    /// Both.
    Both,
}

/// One service as callers here see it.
#[derive(Debug)]
pub struct ServiceEntry {
    /// What it is called; see `Snapshot::services`.
    pub name: ServiceName,
    /// The Service that it stands for.
    pub service: ServiceName,
    /// Which hosts lead here.
    pub reach: Reach,
    /// The virtual addresses that lead here.
    pub addresses: BTreeSet<IpAddr>,
    /// Its ports.
    pub ports: Vec<wire::ServicePort>,
    /// Sorted by id.
    pub endpoints: Vec<wire::Endpoint>,
    /// SPIFFE ids that its endpoints have.
    pub identities: BTreeSet<String>,
    /// Whether this cluster offers it to the others.
    pub exported: bool,
}

impl ServiceEntry {
    /// The host names that lead here for a caller in `namespace`.
    pub(super) fn hosts(&self, namespace: &Namespace) -> Vec<String> {
        let ServiceName { namespace: own, name } = &self.service;
        let mut hosts = Vec::new();
        if self.reach != Reach::ClusterSet {
            if own == namespace {
                hosts.push(name.to_string());
            }
            hosts.extend([format!("{name}.{own}"), format!("{name}.{own}.svc")]);
            hosts.push(self.service.cluster_local().to_string());
        }
        if self.reach != Reach::Local {
            hosts.push(self.service.clusterset_local().to_string());
        }
        hosts.extend(self.addresses.iter().copied().map(endpoint::host));
        hosts
    }
}

/// Every service that callers here may reach.
pub(super) fn services(
    inputs: &Inputs,
    place: &Place,
    failover: bool,
) -> BTreeMap<ServiceName, Arc<ServiceEntry>> {
    let mut services = BTreeMap::new();
    let exported: BTreeSet<ServiceName> = exported(inputs).collect();
    let mut offered = imports(inputs);
    let workloads = inputs.workloads.values().filter(|one| one.role == Role::Sidecar);
    let workloads: BTreeSet<IpAddr> = workloads.map(|one| one.address.ip()).collect();
    for (object, _) in inputs.configuration.of::<Service>(&inputs.cluster) {
        let name = object.service_name();
        let ports = object.spec.ports.iter().filter_map(|one| port(inputs, &name, one)).collect::<Vec<_>>();
        let local = local_endpoints(inputs, place, &name, &object.spec);
        let is_exported = exported.contains(&name);
        let remote = offered.remove(&name);
        let entry = |name: &ServiceName, reach, endpoints: Vec<wire::Endpoint>, exported| ServiceEntry {
            name: name.clone(),
            service: object.service_name(),
            reach,
            // An address belongs to the cluster's own name; that of a workload to the workload, whoever calls it virtual.
            addresses: match reach {
                Reach::ClusterSet => BTreeSet::new(),
                Reach::Local | Reach::Both => &object.spec.addresses() - &workloads,
            },
            ports: ports.clone(),
            identities: endpoints
                .iter()
                .map(|endpoint| endpoint.identity.clone())
                .filter(|id| !id.is_empty())
                .collect(),
            endpoints,
            exported,
        };
        let union = |own: &[wire::Endpoint]| {
            let mut all = own.to_vec();
            all.extend(remote.iter().flat_map(|remote| remote.endpoints.iter().cloned()));
            all.sort_by(|a, b| a.id.cmp(&b.id));
            all
        };
        if is_exported && failover {
            services.insert(name.clone(), Arc::new(entry(&name, Reach::Both, union(&local), true)));
            continue;
        }
        services.insert(name.clone(), Arc::new(entry(&name, Reach::Local, local.clone(), is_exported)));
        if let Some(union_name) = clusterset_name(&name).filter(|_| is_exported || remote.is_some()) {
            let own = if is_exported { local.as_slice() } else { &[] };
            services.insert(
                union_name.clone(),
                Arc::new(entry(&union_name, Reach::ClusterSet, union(own), false)),
            );
        }
    }
    // What only others offer: reached by its clusterset name alone, since no cluster lends itself another's names.
    for (service, Offered { ports, mut endpoints }) in offered {
        let Some(name) = clusterset_name(&service) else { continue };
        endpoints.sort_by(|a, b| a.id.cmp(&b.id));
        let identities =
            endpoints.iter().map(|endpoint| endpoint.identity.clone()).filter(|id| !id.is_empty()).collect();
        let entry = ServiceEntry {
            name: name.clone(),
            service,
            reach: Reach::ClusterSet,
            addresses: BTreeSet::new(),
            ports,
            endpoints,
            identities,
            exported: false,
        };
        services.insert(name, Arc::new(entry));
    }
    services
}

/// The services that this cluster offers: exported, declared, and in a namespace that it may vouch for.
fn exported(inputs: &Inputs) -> impl Iterator<Item = ServiceName> {
    let member = inputs.configuration.member(&inputs.cluster);
    let exports = inputs.configuration.of::<ServiceExport>(&inputs.cluster);
    exports
        .map(|(export, _)| export.service_name())
        .filter(move |name| member.is_some_and(|member| member.namespaces.contains(&name.namespace)))
}

fn port(
    inputs: &Inputs,
    service: &ServiceName,
    port: &resource::service::ServicePort,
) -> Option<wire::ServicePort> {
    let target = match port.target() {
        TargetPort::Number(number) => number,
        // Workloads register ports by number alone, so a name leads nowhere yet.
        TargetPort::Name(_) => return None,
    };
    let said_by_slices = || {
        let mut ports = slices(inputs, service).flat_map(|slice| &slice.ports);
        let words = ports.find_map(|one| one.app_protocol.as_deref().filter(|_| serves_port(one, port)));
        words.map_or(Application::Sniff, Application::named)
    };
    let application = match port.application() {
        Application::Sniff => said_by_slices(),
        said => said,
    };
    let protocol = match application {
        Application::Http => wire::Protocol::Http,
        Application::Http2 => wire::Protocol::Http2,
        Application::Tcp => wire::Protocol::Tcp,
        Application::Sniff => wire::Protocol::Unspecified,
    };
    Some(wire::ServicePort {
        port: port.port.into(),
        name: port.name.clone().unwrap_or_default(),
        target: target.into(),
        protocol: protocol.into(),
        traffic: None,
    })
}

fn local_endpoints(
    inputs: &Inputs,
    place: &Place,
    name: &ServiceName,
    service: &Service,
) -> Vec<wire::Endpoint> {
    let targets: BTreeSet<u16> = service
        .ports
        .iter()
        .filter_map(|port| match port.target() {
            TargetPort::Number(number) => Some(number),
            TargetPort::Name(_) => None,
        })
        .collect();
    let serving = inputs.workloads.values().filter(|workload| serves(workload, name, service));
    let registered = serving.flat_map(|workload| {
        let ports = workload.ports.keys().filter(|port| targets.contains(port));
        ports.map(|port| registered_endpoint(inputs, place, workload, *port))
    });
    let mut endpoints: Vec<_> = registered.chain(sliced_endpoints(inputs, place, name, service)).collect();
    if service.publish_not_ready_addresses {
        let unready = endpoints.iter_mut().filter(|endpoint| endpoint.health() == wire::Health::Unhealthy);
        unready.for_each(|endpoint| endpoint.set_health(wire::Health::Healthy));
    }
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    endpoints.dedup_by(|a, b| a.id == b.id);
    endpoints
}

/// Whether a workload is behind a service.
pub(super) fn serves(workload: &Registered, name: &ServiceName, service: &Service) -> bool {
    workload.role == Role::Sidecar
        && workload.namespace == name.namespace
        && selects(&service.selector, &workload.labels)
}

fn registered_endpoint(inputs: &Inputs, place: &Place, workload: &Registered, port: u16) -> wire::Endpoint {
    let health = match (workload.draining, workload.app_ready) {
        (true, _) => wire::Health::Draining,
        (false, true) => wire::Health::Healthy,
        (false, false) => wire::Health::Unhealthy,
    };
    wire::Endpoint {
        id: EndpointId::new(&inputs.cluster, &workload.instance, port).to_string(),
        address: workload.address.to_string(),
        port: port.into(),
        cluster: inputs.cluster.to_string(),
        network: place.network.to_string(),
        locality: Some(locality(place, workload.zone.as_deref())),
        weight: FULL_WEIGHT,
        health: health.into(),
        mtls: true,
        workload: workload.workload.to_string(),
        identity: identity(inputs, workload),
        stale_since: 0,
        node: workload.labels.get(NODE_LABEL).cloned().unwrap_or_default(),
    }
}

pub(super) fn identity(inputs: &Inputs, workload: &Registered) -> String {
    let domain = &inputs.bundle.trust_domain;
    format!("spiffe://{domain}/ns/{}/sa/{}", workload.namespace, workload.service_account)
}

pub(super) fn locality(place: &Place, zone: Option<&str>) -> wire::Locality {
    let own = &place.locality;
    wire::Locality {
        region: own.region.clone(),
        zone: zone.unwrap_or(&own.zone).to_owned(),
        subzone: own.subzone.clone(),
    }
}

/// What Git names as endpoints of a service.
fn slices<'a>(
    inputs: &'a Inputs,
    name: &'a ServiceName,
) -> impl Iterator<Item = &'a EndpointSlice> + use<'a> {
    let slices = inputs.configuration.of::<EndpointSlice>(&inputs.cluster).filter(move |(slice, _)| {
        slice.meta.namespace() == name.namespace
            && slice.meta.labels.get(SERVICE_LABEL).is_some_and(|label| label == name.name.as_str())
    });
    slices.map(|(slice, _)| &slice.spec)
}

/// Whether a slice's port is this one of its service: they have the same name, whatever their numbers.
fn serves_port(port: &EndpointPort, of: &resource::service::ServicePort) -> bool {
    port.name == of.name.as_deref().unwrap_or_default()
}

/// Endpoints that Git names: reached as they are, without a proxy of theirs.
fn sliced_endpoints(
    inputs: &Inputs,
    place: &Place,
    name: &ServiceName,
    service: &Service,
) -> Vec<wire::Endpoint> {
    let mut found = Vec::new();
    for slice in slices(inputs, name) {
        for port in &slice.ports {
            let target = service.ports.iter().find(|one| serves_port(port, one)).map(|one| one.target());
            let Some(TargetPort::Number(target)) = target else { continue };
            let endpoints = slice.endpoints.iter();
            found.extend(endpoints.filter_map(|one| sliced_endpoint(inputs, place, one, port.port, target)));
        }
    }
    found
}

/// One that listens at `port`, where its service's `target` is meant.
fn sliced_endpoint(
    inputs: &Inputs,
    place: &Place,
    endpoint: &Endpoint,
    port: u16,
    target: u16,
) -> Option<wire::Endpoint> {
    let conditions = &endpoint.conditions;
    let health = match (conditions.is_ready(), conditions.is_draining()) {
        (true, _) => wire::Health::Healthy,
        (false, true) => wire::Health::Draining,
        (false, false) => wire::Health::Unhealthy,
    };
    let address = SocketAddr::new(*endpoint.addresses.first()?, port);
    let instance = InstanceId::new(format!("slice-{}", address.to_string().replace([':', '.'], "-"))).ok()?;
    Some(wire::Endpoint {
        id: EndpointId::new(&inputs.cluster, &instance, target).to_string(),
        address: address.to_string(),
        port: target.into(),
        cluster: inputs.cluster.to_string(),
        network: place.network.to_string(),
        locality: Some(locality(place, endpoint.zone.as_deref())),
        weight: FULL_WEIGHT,
        health: health.into(),
        node: endpoint.node_name.clone().unwrap_or_default(),
        mtls: false,
        workload: endpoint.hostname.clone().unwrap_or_else(|| address.to_string()),
        ..Default::default()
    })
}

/// What the other clusters offer of one service.
struct Offered {
    ports: Vec<wire::ServicePort>,
    endpoints: Vec<wire::Endpoint>,
}

fn imports(inputs: &Inputs) -> BTreeMap<ServiceName, Offered> {
    let mut offered: BTreeMap<ServiceName, Offered> = BTreeMap::new();
    for (cluster, catalogue) in inputs.peers.iter().filter(|(cluster, _)| **cluster != inputs.cluster) {
        let Some(member) = inputs.configuration.member(cluster) else { continue };
        for service in &catalogue.services {
            let Ok(name) = format!("{}/{}", service.namespace, service.name).parse::<ServiceName>() else {
                continue;
            };
            // A cluster offers only what it may vouch for, whatever it says.
            if !member.namespaces.contains(&name.namespace) {
                continue;
            }
            let stale = stale_weight(inputs, &name, catalogue.stale_since);
            let network =
                member.network.as_ref().map_or(catalogue.network.as_str(), |network| network.as_str());
            let own = service.endpoints.iter().filter(|endpoint| is_own(endpoint, cluster, &name));
            let endpoints = own.filter_map(|endpoint| {
                Some(wire::Endpoint {
                    weight: stale?,
                    stale_since: catalogue.stale_since,
                    network: network.to_owned(),
                    ..endpoint.clone()
                })
            });
            let entry = offered
                .entry(name.clone())
                .or_insert_with(|| Offered { ports: service.ports.clone(), endpoints: vec![] });
            entry.endpoints.extend(endpoints);
        }
    }
    offered
}

/// Whether an endpoint that `cluster` offers of `service` is one that it may offer: its own, with mTLS and an identity
/// of the service's namespace. Without that a cluster could send the callers of others wherever it likes.
fn is_own(endpoint: &wire::Endpoint, cluster: &ClusterName, service: &ServiceName) -> bool {
    let identity = endpoint.identity.parse::<SpiffeId>();
    endpoint.mtls
        && endpoint.cluster == cluster.as_str()
        && identity.is_ok_and(|id| id.namespace() == Some(&service.namespace))
}

/// The weight of endpoints that are stale since `since` (0: fresh); `None` when they are dropped.
fn stale_weight(inputs: &Inputs, service: &ServiceName, since: i64) -> Option<u32> {
    let age = inputs.now.saturating_sub(u64::try_from(since).unwrap_or(0));
    let policy = traffic::effective(inputs, service, &service.namespace).locality;
    if since == 0 || age < policy.stale_after.as_secs() {
        return Some(FULL_WEIGHT);
    }
    match policy.stale_endpoints {
        // The proxy de-weights: it knows the age too, and goes on counting when no control plane does.
        StaleEndpoints::Keep | StaleEndpoints::Deweight => Some(FULL_WEIGHT),
        StaleEndpoints::Drop => None,
    }
}

/// What this cluster offers to the others.
pub(super) fn catalogue(
    inputs: &Inputs,
    place: &Place,
    services: &BTreeMap<ServiceName, Arc<ServiceEntry>>,
) -> wire::Catalogue {
    let exported = services.values().filter(|entry| entry.exported).map(|entry| {
        let own = entry
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.cluster == inputs.cluster.as_str() && endpoint.mtls);
        let endpoints: Vec<_> = own.cloned().collect();
        let identities: BTreeSet<_> = endpoints.iter().map(|endpoint| endpoint.identity.clone()).collect();
        wire::ExportedService {
            namespace: entry.service.namespace.to_string(),
            name: entry.service.name.to_string(),
            ports: entry.ports.clone(),
            endpoints,
            identities: identities.into_iter().collect(),
        }
    });
    wire::Catalogue {
        cluster: inputs.cluster.to_string(),
        network: place.network.to_string(),
        locality: Some(locality(place, None)),
        gateways: gateways(inputs, &inputs.cluster),
        services: exported.collect(),
        stale_since: 0,
        version: 0,
    }
}

/// The east-west gateways of a cluster: Git's word before its own.
pub(super) fn gateways(inputs: &Inputs, cluster: &ClusterName) -> Vec<String> {
    let said = inputs.configuration.member(cluster).and_then(|member| member.gateways.clone());
    if let Some(said) = said {
        return said.iter().map(SocketAddr::to_string).collect();
    }
    if *cluster == inputs.cluster {
        let gateways = inputs.workloads.values().filter(|workload| workload.role == Role::EastWest);
        return gateways
            .filter(|one| !one.draining)
            .filter_map(|one| one.public_address)
            .map(|a| a.to_string())
            .collect();
    }
    inputs.peers.get(cluster).map(|catalogue| catalogue.gateways.clone()).unwrap_or_default()
}
