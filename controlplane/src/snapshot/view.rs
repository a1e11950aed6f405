//! Stage five: from a snapshot to what one proxy is told. Least knowledge: what it serves, and what it asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use api::{
    delta::View,
    endpoint::EndpointId,
    name::{Namespace, ServiceName},
    wire::{self, resource::Body},
};

use super::{
    Registered, Role, ServiceEntry, Snapshot, guard, route,
    service::{self, locality},
    traffic,
};

/// The hosts that a proxy has asked for, in lower case and without port.
pub type Subscription = BTreeSet<String>;

impl Snapshot {
    /// All that the proxy of `node` is to hold. Pure.
    pub fn view(&self, node: &Registered, subscription: &Subscription) -> View {
        let mut view = View::default();
        self.add_shared(&mut view, "mesh");
        self.add_shared(&mut view, "trust");
        match node.role {
            Role::Sidecar => {
                self.add_workload(&mut view, node);
                self.add_shared(&mut view, "networks");
                for host in subscription {
                    for service in self.services_at(host, &node.namespace) {
                        self.add_service(&mut view, &service.name, &node.namespace, true);
                    }
                }
            }
            Role::Ingress => {
                self.add_workload(&mut view, node);
                self.add_shared(&mut view, "networks");
                self.add_listeners(&mut view, node);
            }
            Role::EastWest => {
                self.add_workload(&mut view, node);
                add(&mut view, "passthrough", Body::Passthrough(self.passthrough.clone()));
            }
        }
        view
    }

    /// The service that `host` means to a caller in `namespace`.
    pub fn service_at(&self, host: &str, namespace: &Namespace) -> Option<&Arc<ServiceEntry>> {
        self.services_at(host, namespace).next()
    }

    /// The services that `host` means: several where it is the address of an endpoint that is behind them.
    fn services_at(&self, host: &str, namespace: &Namespace) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let known = self.hosts.get(host).map(Vec::as_slice).unwrap_or_default();
        let bare = || {
            let name = host.parse().ok().filter(|_| !host.contains('.'))?;
            self.services.get(&ServiceName::new(namespace.clone(), name))
        };
        let bare = if known.is_empty() { bare() } else { None };
        known.iter().filter_map(|name| self.services.get(name)).chain(bare)
    }

    /// What this cluster offers to the others.
    pub fn catalogue(&self) -> wire::Catalogue {
        service::catalogue(&self.inputs, &self.place, &self.services)
    }

    fn add_shared(&self, view: &mut View, name: &str) {
        if let Some((name, item)) = self.shared.get_key_value(name) {
            view.items.insert(name.clone(), item.clone());
        }
    }

    fn add_workload(&self, view: &mut View, node: &Registered) {
        let services = guard::selecting(&self.inputs, node).map(|(name, _)| name.to_string()).collect();
        let ports = node.ports.iter().map(|(port, address)| {
            let policies = guard::of_workload(&self.inputs, node, Some(*port));
            let (mtls, said_by) = guard::mtls_and_origin(&self.inputs, node, *port);
            wire::InboundPort {
                port: (*port).into(),
                address: address.to_string(),
                mtls: guard::mode(mtls).into(),
                mtls_origin: said_by.map(|said| said.resource.key().to_string()).unwrap_or_default(),
                protocol: self.protocol(node, *port).into(),
                endpoint_id: EndpointId::new(&self.inputs.cluster, &node.instance, *port).to_string(),
                policies: policies.iter().map(|(policy, _)| guard::policy_name(policy)).collect(),
            }
        });
        let workload = wire::Workload {
            id: node.workload.to_string(),
            namespace: node.namespace.to_string(),
            service_account: node.service_account.to_string(),
            cluster: self.inputs.cluster.to_string(),
            network: self.place.network.to_string(),
            locality: Some(locality(&self.place, node.zone.as_deref())),
            labels: node.labels.clone(),
            ports: ports.collect(),
            services,
            workload: node.workload.to_string(),
            trust_domain: self.trust_domain.clone(),
        };
        for policy in workload.ports.iter().flat_map(|port| &port.policies) {
            self.add_shared(view, policy);
        }
        add(view, "workload", Body::Workload(workload));
    }

    /// What the first service that selects the workload says of the protocol at `port`.
    fn protocol(&self, node: &Registered, port: u16) -> wire::Protocol {
        let mut said = guard::selecting(&self.inputs, node).filter_map(|(name, _)| {
            let entry = self.services.get(&name)?;
            entry.ports.iter().find(|one| one.target == u32::from(port)).map(|one| one.protocol())
        });
        said.next().unwrap_or(wire::Protocol::Unspecified)
    }

    /// A service as `caller` calls it; with its routes, and all that they lead to, where `routed`.
    fn add_service(&self, view: &mut View, name: &ServiceName, caller: &Namespace, routed: bool) {
        let Some(entry) = self.services.get(name) else { return };
        if routed && let Some(table) = route::of_service(self, entry, caller) {
            self.add_backends(view, &table, caller);
            add(view, &format!("routes/{name}"), Body::Routes(table));
        }
        let resource = format!("service/{name}");
        if view.items.contains_key(resource.as_str()) {
            return;
        }
        let traffic = traffic::of_service(&self.inputs, &entry.service, caller);
        let port = |port: &wire::ServicePort| {
            let own = traffic::of_port(&self.inputs, &entry.service, &port.name, caller);
            wire::ServicePort { traffic: own, ..port.clone() }
        };
        let service = wire::Service {
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            hosts: entry.hosts(caller),
            ports: entry.ports.iter().map(port).collect(),
            identities: entry.identities.iter().cloned().collect(),
            traffic: Some(traffic),
        };
        add(view, &resource, Body::Service(service));
        self.add_shared(view, &format!("endpoints/{name}"));
    }

    /// Backends are called as endpoints, never routed again (GEP-1294). But a backend is a host too: its own
    /// routes come along, or a request for that host would pass them by.
    fn add_backends(&self, view: &mut View, table: &wire::RouteTable, caller: &Namespace) {
        for backend in table.hosts.iter().flat_map(|host| &host.rules).flat_map(|rule| &rule.backends) {
            let Ok(name) = format!("{}/{}", backend.namespace, backend.name).parse::<ServiceName>() else {
                continue;
            };
            let resource = format!("service/{name}");
            if view.items.contains_key(resource.as_str()) {
                continue;
            }
            self.add_service(view, &name, caller, false);
            if let Some(own) =
                self.services.get(&name).and_then(|entry| route::of_service(self, entry, caller))
            {
                add(view, &format!("routes/{name}"), Body::Routes(own.clone()));
                self.add_backends(view, &own, caller);
            }
        }
    }

    fn add_listeners(&self, view: &mut View, node: &Registered) {
        let address: IpAddr = node.address.ip();
        let own: Vec<_> = guard::of_workload(&self.inputs, node, None);
        let own: Vec<String> = own.iter().map(|(policy, _)| guard::policy_name(policy)).collect();
        let tables: BTreeMap<_, _> = route::of_gateways(self, address);
        for (name, mut table) in tables {
            table.policies.extend(own.iter().cloned());
            table.policies.sort();
            table.policies.dedup();
            let attached = table.hosts.iter().flat_map(|host| &host.rules).flat_map(|rule| &rule.policies);
            for policy in table.policies.iter().chain(attached) {
                self.add_shared(view, policy);
            }
            self.add_backends(view, &table, &node.namespace);
            add(view, &name, Body::Routes(table));
        }
    }
}

fn add(view: &mut View, name: &str, body: Body) {
    view.insert(name, &wire::Resource { body: Some(body) });
}
