//! From inputs to a snapshot.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
};

use api::{
    delta::Item,
    endpoint,
    name::ServiceName,
    resource::mesh::{DefaultAuthorization, Outbound, PathNormalization},
    wire::{self, resource::Body},
};

use super::{Inputs, Place, Reach, ServiceEntry, Snapshot, guard, service};

/// The snapshot of these inputs. Pure, total and deterministic: what cannot be resolved is said in it.
pub fn build(inputs: &Inputs) -> Snapshot {
    let inputs = inputs.clone();
    let place = place(&inputs);
    let mesh = inputs.configuration.mesh().map(|mesh| &mesh.spec);
    let failover = mesh.is_none_or(|mesh| mesh.cluster_local_failover);
    let services = service::services(&inputs, &place, failover);
    let networks = networks(&inputs, &place);
    let passthrough = passthrough(&inputs, &services);
    let hosts = hosts(&services, &place);
    let mut shared = BTreeMap::new();
    share(&mut shared, "mesh", Body::Mesh(mesh_settings(&inputs)));
    let bundle = serde_json::to_vec(&*inputs.bundle).expect("a bundle has a JSON form");
    share(&mut shared, "trust", Body::Trust(wire::Trust { bundle }));
    share(&mut shared, "networks", Body::Networks(networks));
    for (name, policy) in guard::all(&inputs) {
        share(&mut shared, &name, Body::Policy(policy));
    }
    for entry in services.values() {
        let endpoints = wire::Endpoints { endpoints: entry.endpoints.clone() };
        share(&mut shared, &format!("endpoints/{}", entry.name), Body::Endpoints(endpoints));
    }
    let trust_domain = inputs.bundle.trust_domain.to_string();
    Snapshot { inputs, trust_domain, place, services, hosts, passthrough, shared }
}

/// Who is meant by each host. The bare name means a service only to callers of its own namespace.
fn hosts(
    services: &BTreeMap<ServiceName, Arc<ServiceEntry>>,
    place: &Place,
) -> BTreeMap<String, Vec<ServiceName>> {
    let mut hosts: BTreeMap<String, Vec<ServiceName>> = BTreeMap::new();
    for entry in services.values() {
        let named = entry.hosts(&entry.service.namespace).into_iter();
        for host in named.filter(|host| host.contains(['.', ':'])) {
            hosts.entry(host).or_insert_with(|| vec![entry.name.clone()]);
        }
    }
    for entry in services.values() {
        let here = entry.endpoints.iter().filter(|endpoint| endpoint.network == place.network.as_str());
        let addresses = here.filter_map(|endpoint| endpoint.address.parse::<SocketAddr>().ok());
        let addresses: BTreeSet<_> = addresses.map(|address| address.ip()).collect();
        for address in addresses {
            hosts.entry(endpoint::host(address)).or_default().push(entry.name.clone());
        }
    }
    hosts
}

fn share(shared: &mut BTreeMap<Arc<str>, Item>, name: &str, body: Body) {
    shared.insert(name.into(), Item::new(&wire::Resource { body: Some(body) }));
}

/// Where this cluster is: Git overrides what the cluster says of itself.
fn place(inputs: &Inputs) -> Place {
    let said = inputs.configuration.member(&inputs.cluster);
    Place {
        network: said.and_then(|said| said.network.clone()).unwrap_or_else(|| inputs.own.network.clone()),
        locality: said.and_then(|said| said.locality.clone()).unwrap_or_else(|| inputs.own.locality.clone()),
    }
}

fn mesh_settings(inputs: &Inputs) -> wire::Mesh {
    let Some(mesh) = inputs.configuration.mesh().map(|mesh| &mesh.spec) else {
        // Before the first good commit nothing is allowed.
        return wire::Mesh { default_deny: true, registry_only: true, ..Default::default() };
    };
    let paths = match mesh.path_normalization {
        PathNormalization::Refuse => wire::PathMode::Refuse,
        PathNormalization::Keep => wire::PathMode::Keep,
        PathNormalization::Decode => wire::PathMode::Decode,
    };
    wire::Mesh {
        trust_domain: mesh.trust_domain.to_string(),
        default_deny: mesh.default_authorization == DefaultAuthorization::Deny,
        registry_only: mesh.outbound == Outbound::RegistryOnly,
        path_normalization: paths.into(),
        leaf_lifetime_seconds: mesh.certificates.leaf.as_secs(),
    }
}

/// The gateways of every network but this one. Several clusters may share a network and lend it their gateways.
fn networks(inputs: &Inputs, place: &Place) -> wire::Networks {
    let mut networks: BTreeMap<String, wire::Gateways> = BTreeMap::new();
    for (cluster, catalogue) in inputs.peers.iter() {
        // Who was expelled lends nobody a gateway.
        let Some(member) = inputs.configuration.member(cluster) else { continue };
        let network =
            member.network.clone().map_or_else(|| catalogue.network.clone(), |network| network.to_string());
        if network != place.network.as_str() {
            networks.entry(network).or_default().addresses.extend(service::gateways(inputs, cluster));
        }
    }
    networks.values_mut().for_each(|gateways| {
        gateways.addresses.sort();
        gateways.addresses.dedup();
    });
    wire::Networks { networks }
}

/// What this cluster's east-west gateways let through: its own endpoints of services that it exports.
fn passthrough(inputs: &Inputs, services: &BTreeMap<ServiceName, Arc<ServiceEntry>>) -> wire::Passthrough {
    let mut endpoints: BTreeMap<String, wire::PassthroughEndpoint> = BTreeMap::new();
    for entry in services.values().filter(|entry| entry.exported && entry.reach != Reach::ClusterSet) {
        let own = entry.endpoints.iter().filter(|one| one.cluster == inputs.cluster.as_str() && one.mtls);
        for endpoint in own {
            let open = endpoints.entry(endpoint.id.clone()).or_insert_with(|| wire::PassthroughEndpoint {
                id: endpoint.id.clone(),
                address: endpoint.address.clone(),
                services: vec![],
            });
            let ports = entry.ports.iter().filter(|port| port.target == endpoint.port);
            let names =
                ports.map(|port| format!("{}.{}.{}", port.port, entry.service.name, entry.service.namespace));
            open.services.extend(names);
        }
    }
    wire::Passthrough { endpoints: endpoints.into_values().collect() }
}
