//! What one object says of others: does it exist, may it be said, in every cluster that the object applies in.

use std::net::IpAddr;

use super::{Lookup, Place, World};
use crate::{
    admin::Severity,
    manifest::{Code, Placed, report::Report},
    name::{Hostname, Namespace, ObjectName},
    resource::{
        AuthorizationPolicy, Cluster, EndpointSlice, Gateway, HttpRoute, Kind, Meta, Object, Resource,
        Service, ServiceExport, TargetRef, TrafficPolicy,
        endpoints::SERVICE_LABEL,
        gateway::{CLASS, FromNamespaces, Listener, ListenerProtocol},
        route::{BackendRef, ParentKind, ParentRef},
        service::ServicePort,
        target::TargetKind,
    },
};

/// Tells which references of `own` do not hold.
pub(super) fn check(world: &World, own: &Placed, report: &mut Report) {
    let mut check = Check { world, own, report };
    match &own.resource {
        Resource::Mesh(_)
        | Resource::Cluster(_)
        | Resource::Namespace(_)
        | Resource::PeerAuthentication(_) => {}
        Resource::Service(object) => check.service(&object.spec),
        Resource::EndpointSlice(object) => check.endpoint_slice(object),
        Resource::Gateway(object) => check.gateway(object),
        Resource::HttpRoute(object) => check.route(object),
        Resource::ServiceExport(object) => check.export(object),
        Resource::AuthorizationPolicy(object) => check.authorization(object),
        Resource::TrafficPolicy(object) => check.traffic(object),
    }
}

struct Check<'a, 'r, 'd> {
    world: &'a World<'a>,
    own: &'a Placed,
    report: &'r mut Report<'d>,
}

impl<'a> Check<'a, '_, '_> {
    /// The objects found in the places where this one applies, each once; tells where there is none.
    fn resolve(
        &mut self,
        kind: Kind,
        namespace: &Namespace,
        name: &ObjectName,
        pointer: &str,
    ) -> Vec<&'a Placed> {
        let mut found: Vec<&Placed> = Vec::new();
        let mut missing = Vec::new();
        for place in self.world.places(self.own) {
            match self.world.look(kind, namespace, name, &place) {
                Lookup::Found(target) if found.iter().any(|other| std::ptr::eq(*other, target)) => {}
                Lookup::Found(target) => found.push(target),
                Lookup::Elsewhere => {}
                Lookup::Missing => missing.push(place),
            }
        }
        if !missing.is_empty() && !self.report.is_full(self.world.dangling) {
            let all = missing.len() == self.world.places(self.own).len()
                && self.own.resource.meta().cluster.is_none();
            let place = if all { String::new() } else { format!(" in cluster {}", names(&missing)) };
            let near = self.nearest(kind, namespace, name, &missing[0]);
            self.dangling(pointer, format!("there is no {kind} `{namespace}/{name}`{place}"), near);
        }
        found
    }

    fn nearest(&self, kind: Kind, namespace: &Namespace, name: &ObjectName, place: &Place) -> Option<String> {
        let near = |meta: &&Meta| {
            meta.namespace() == *namespace && (meta.cluster.is_none() || meta.cluster == *place)
        };
        let metas = self
            .world
            .placed
            .iter()
            .copied()
            .filter(|other| other.resource.kind() == kind)
            .map(|other| other.resource.meta());
        let names = metas.filter(near).map(|meta| meta.name.as_str());
        crate::schema::validate::nearest(name.as_str(), names).map(|name| format!("did you mean `{name}`?"))
    }

    fn dangling(&mut self, pointer: &str, message: String, help: Option<String>) {
        if self.report.is_full(self.world.dangling) {
            return;
        }
        let code = Code::UnresolvedReference;
        match self.world.dangling {
            Severity::Error => {
                self.report.add(pointer, self.own.positions.at(pointer), code, message, help);
            }
            Severity::Warning => self.report.warn(pointer, code, message, help),
        }
    }

    /// Tells when none of the parts of a target that could be read whole is the one that is wanted.
    fn part<T>(&mut self, targets: &[(&'a Placed, T)], pointer: &str, has: impl Fn(&T) -> bool, what: &str) {
        if let Some((target, _)) = targets.iter().find(|(target, own)| target.flaws.is_empty() && !has(own)) {
            self.dangling(
                pointer,
                format!("`{}`, at {}, has no {what}", target.resource.key(), target.origin),
                None,
            );
        }
    }

    fn services(
        &mut self,
        namespace: &Namespace,
        name: &ObjectName,
        pointer: &str,
    ) -> Vec<(&'a Placed, &'a Service)> {
        typed(self.resolve(Kind::Service, namespace, name, pointer), |object: &Object<Service>| &object.spec)
    }

    /// Callers whose traffic is captured are led to the Service from whoever else has its address.
    fn service(&mut self, service: &Service) {
        let Some(mesh) = self.world.mesh else { return };
        let several = service.cluster_ips.iter().enumerate();
        let several = several.map(|(i, ip)| (ip, format!("/spec/clusterIPs/{i}")));
        let single = service.cluster_ip.iter().map(|ip| (ip, "/spec/clusterIP".to_owned()));
        for (ip, pointer) in single.chain(several) {
            if ip.parse::<IpAddr>().is_ok_and(|address| !mesh.may_be_virtual(address)) {
                let ranges: Vec<_> =
                    mesh.virtual_addresses.iter().map(|range| format!("`{range}`")).collect();
                let help = match ranges.as_slice() {
                    [] => "leave it out, or add a range to `virtualAddresses` of the Mesh".to_owned(),
                    some => format!(
                        "take one of {}, or add its range to `virtualAddresses` of the Mesh",
                        some.join(", ")
                    ),
                };
                let at = self.own.positions.at(&pointer);
                let message = format!("`{ip}` is no virtual address of this mesh: it may be somebody else's");
                self.report.add(&pointer, at, Code::Forbidden, message, Some(help));
            }
        }
    }

    fn endpoint_slice(&mut self, object: &Object<EndpointSlice>) {
        let pointer = "/metadata/labels/kubernetes.io~1service-name";
        if let Some(name) = object.meta.labels.get(SERVICE_LABEL) {
            match ObjectName::new(name) {
                Ok(name) => {
                    let found = self.services(&object.meta.namespace(), &name, pointer);
                    self.slice_ports(&object.spec, &found);
                }
                Err(error) => self.report.value(pointer, Code::BadValue, error.to_string()),
            }
        }
    }

    /// A slice serves the ports of its Service by their names; what names none of them would lead nowhere.
    fn slice_ports(&mut self, slice: &EndpointSlice, found: &[(&Placed, &Service)]) {
        let name = |port: &ServicePort| port.name.clone().unwrap_or_default();
        for (i, port) in slice.ports.iter().enumerate() {
            let lacks = |service: &Service| service.ports.iter().all(|one| name(one) != port.name);
            let Some((_, service)) = found.iter().find(|(_, service)| lacks(service)) else { continue };
            let names: Vec<_> = service.ports.iter().map(|one| format!("`{}`", name(one))).collect();
            let message = match port.name.as_str() {
                "" => "the Service has no port without a name".to_owned(),
                name => format!("the Service has no port named `{name}`"),
            };
            let help = format!("its ports are {}", names.join(", "));
            self.dangling(&format!("/ports/{i}"), message, Some(help));
        }
    }

    fn gateway(&mut self, object: &Object<Gateway>) {
        let class = &object.spec.gateway_class_name;
        if class.as_str() != CLASS {
            self.dangling(
                "/spec/gatewayClassName",
                format!("there is no class `{class}`"),
                Some(format!("`{CLASS}` is built in")),
            );
        }
    }

    fn export(&mut self, object: &Object<ServiceExport>) {
        let namespace = object.meta.namespace();
        let found = self.services(&namespace, &object.meta.name, "/metadata/name");
        let places = self.world.places(self.own);
        let refused = |place: &&Place| {
            let key =
                |name| crate::resource::Key { kind: Kind::Cluster, namespace: None, name, cluster: None };
            let name = place.as_ref().and_then(|cluster| ObjectName::new(cluster.as_str()).ok());
            let member = name.and_then(|name| self.world.by_key.get(&key(name)));
            let member = member
                .filter(|member| member.flaws.is_empty())
                .and_then(|member| member.resource.as_kind::<Cluster>());
            member.is_some_and(|member| !member.spec.namespaces.contains(&namespace))
        };
        let refused: Vec<Place> = places.iter().filter(refused).cloned().collect();
        if !refused.is_empty() && !found.is_empty() {
            let message = format!("cluster {} may not export from namespace `{namespace}`", names(&refused));
            let help =
                Some("add it to `spec.namespaces` of the Cluster, or place the export elsewhere".into());
            self.report.add(
                "/metadata/namespace",
                self.own.positions.at("/metadata/namespace"),
                Code::Forbidden,
                message,
                help,
            );
        }
    }

    fn route(&mut self, object: &Object<HttpRoute>) {
        for (i, parent) in object.spec.parent_refs.iter().enumerate() {
            let pointer = format!("/spec/parentRefs/{i}");
            let namespace = parent.namespace.clone().unwrap_or_else(|| object.meta.namespace());
            match parent.kind {
                ParentKind::Service => {
                    let found = self.services(&namespace, &parent.name, &format!("{pointer}/name"));
                    self.section(&found, parent.section_name.as_deref(), &pointer);
                    self.port(&found, parent.port, &pointer);
                }
                ParentKind::Gateway => {
                    let found =
                        self.resolve(Kind::Gateway, &namespace, &parent.name, &format!("{pointer}/name"));
                    let gateways = typed(found, |object: &Object<Gateway>| object);
                    self.listeners(&gateways, parent, object, &pointer);
                }
            }
        }
        for (i, rule) in object.spec.rules.iter().enumerate() {
            for (j, backend) in rule.backend_refs.iter().enumerate() {
                self.backend(&object.meta, backend, &format!("/spec/rules/{i}/backendRefs/{j}"));
            }
        }
    }

    fn backend(&mut self, meta: &Meta, backend: &BackendRef, pointer: &str) {
        if backend.namespace.as_ref().is_some_and(|namespace| *namespace != meta.namespace()) {
            let message = "a backend in another namespace is not yet supported: it needs a ReferenceGrant";
            self.report.value(&format!("{pointer}/namespace"), Code::NotYetSupported, message);
            return;
        }
        if backend.group.is_empty() && backend.kind == "Service" {
            let found = self.services(&meta.namespace(), &backend.name, &format!("{pointer}/name"));
            self.port(&found, backend.port, pointer);
        }
    }

    fn port(&mut self, found: &[(&'a Placed, &'a Service)], port: Option<u16>, pointer: &str) {
        if let Some(port) = port {
            self.part(
                found,
                &format!("{pointer}/port"),
                |service| service.port(port).is_some(),
                &format!("port {port}"),
            );
        }
    }

    fn section(&mut self, found: &[(&'a Placed, &'a Service)], name: Option<&str>, pointer: &str) {
        if let Some(name) = name {
            let at = format!("{pointer}/sectionName");
            self.part(
                found,
                &at,
                |service| service.port_named(name).is_some(),
                &format!("port named `{name}`"),
            );
        }
    }

    /// A route attaches to those listeners that its reference means, and that take it.
    fn listeners(
        &mut self,
        found: &[(&'a Placed, &'a Object<Gateway>)],
        parent: &ParentRef,
        route: &Object<HttpRoute>,
        pointer: &str,
    ) {
        let meant = |listener: &&Listener| {
            parent.section_name.as_deref().is_none_or(|name| name == listener.name.as_str())
                && parent.port.is_none_or(|port| port == listener.port)
        };
        let is_http = |listener: &Listener| {
            matches!(listener.protocol, ListenerProtocol::Http | ListenerProtocol::Https)
        };
        let admits =
            |gateway: &Object<Gateway>, listener: &Listener| match listener.allowed_routes.namespaces.from {
                FromNamespaces::All | FromNamespaces::Selector => true,
                FromNamespaces::Same => gateway.meta.namespace() == route.meta.namespace(),
            };
        let shares_host = |listener: &Listener| {
            let hosts = &route.spec.hostnames;
            listener
                .hostname
                .as_ref()
                .is_none_or(|own| hosts.is_empty() || hosts.iter().any(|host| overlap(own, host)))
        };
        for (placed, gateway) in found.iter().filter(|(placed, _)| placed.flaws.is_empty()) {
            let all: Vec<&Listener> = gateway.spec.listeners.iter().filter(meant).collect();
            let name =
                format!("Gateway `{}/{}`, at {}", gateway.meta.namespace(), gateway.meta.name, placed.origin);
            if all.is_empty() {
                let field = if parent.section_name.is_some() { "sectionName" } else { "port" };
                self.dangling(&format!("{pointer}/{field}"), format!("{name}, has no such listener"), None);
            } else if !all.iter().any(|own| is_http(own) && admits(gateway, own)) {
                let message =
                    format!("{name}, takes no HTTPRoute from namespace `{}` there", route.meta.namespace());
                let help = Some("`allowedRoutes.namespaces.from: All` at the listener would".into());
                self.report.add(
                    pointer,
                    self.own.positions.at(&format!("{pointer}/name")),
                    Code::Forbidden,
                    message,
                    help,
                );
            } else if !all.iter().any(|own| is_http(own) && admits(gateway, own) && shares_host(own)) {
                let message = format!("no listener of {name}, serves any of these host names");
                self.report.value("/spec/hostnames", Code::Conflict, message);
            }
        }
    }

    fn authorization(&mut self, object: &Object<AuthorizationPolicy>) {
        for (i, target) in object.spec.target_refs.iter().enumerate() {
            let pointer = format!("/spec/targetRefs/{i}");
            let (namespace, name) = (object.meta.namespace(), format!("{pointer}/name"));
            match target.kind {
                TargetKind::Service => self.service_target(&namespace, target, &pointer),
                TargetKind::Gateway => {
                    let found = self.resolve(Kind::Gateway, &namespace, &target.name, &name);
                    let found = typed(found, |object: &Object<Gateway>| &object.spec);
                    if let Some(section) = &target.section_name {
                        let has = |gateway: &&Gateway| {
                            gateway.listeners.iter().any(|own| own.name.as_str() == section)
                        };
                        self.part(
                            &found,
                            &format!("{pointer}/sectionName"),
                            has,
                            &format!("listener `{section}`"),
                        );
                        // At a port the hosts of all its listeners are judged together.
                        let shares = |gateway: &Gateway| {
                            let at = |own: &&Listener| own.name.as_str() == section;
                            let port = gateway.listeners.iter().find(at).map(|own| own.port);
                            gateway.listeners.iter().filter(|own| Some(own.port) == port).count() > 1
                        };
                        if found.iter().any(|(_, gateway)| shares(gateway)) {
                            let message = "a policy for one of several listeners at a port is not yet supported: \
                                           attach it to the Gateway, or to the routes";
                            self.report.value(
                                &format!("{pointer}/sectionName"),
                                Code::NotYetSupported,
                                message,
                            );
                        }
                    }
                }
                TargetKind::HttpRoute => {
                    let found = self.resolve(Kind::HttpRoute, &namespace, &target.name, &name);
                    let found = typed(found, |object: &Object<HttpRoute>| &object.spec);
                    if let Some(section) = &target.section_name {
                        let named = |name: &Option<ObjectName>| {
                            name.as_ref().is_some_and(|name| name.as_str() == section)
                        };
                        let has = |route: &&HttpRoute| route.rules.iter().any(|rule| named(&rule.name));
                        self.part(
                            &found,
                            &format!("{pointer}/sectionName"),
                            has,
                            &format!("rule named `{section}`"),
                        );
                    }
                    if found.iter().any(|(_, route)| {
                        route.parent_refs.iter().any(|parent| parent.kind == ParentKind::Service)
                    }) {
                        let message = "a route with a Service as parent guards nothing, since it acts on the caller's side";
                        let help = Some("attach the policy to the Service".into());
                        self.report.add(
                            &name,
                            self.own.positions.at(&name),
                            Code::Forbidden,
                            message.into(),
                            help,
                        );
                    }
                }
            }
        }
    }

    fn traffic(&mut self, object: &Object<TrafficPolicy>) {
        for (i, target) in object
            .spec
            .target_refs
            .iter()
            .enumerate()
            .filter(|(_, target)| target.kind == TargetKind::Service)
        {
            let namespace = target.namespace.clone().unwrap_or_else(|| object.meta.namespace());
            self.service_target(&namespace, target, &format!("/spec/targetRefs/{i}"));
        }
    }

    fn service_target(&mut self, namespace: &Namespace, target: &TargetRef, pointer: &str) {
        let found = self.services(namespace, &target.name, &format!("{pointer}/name"));
        self.section(&found, target.section_name.as_deref(), pointer);
    }
}

fn typed<'a, S: crate::resource::Spec, T>(
    found: Vec<&'a Placed>,
    of: impl Fn(&'a Object<S>) -> T,
) -> Vec<(&'a Placed, T)> {
    found.into_iter().filter_map(|placed| Some((placed, of(placed.resource.as_kind::<S>()?)))).collect()
}

fn names(places: &[Place]) -> String {
    places.iter().flatten().map(|cluster| format!("`{cluster}`")).collect::<Vec<_>>().join(", ")
}

/// Whether some host is meant by both names, either of which may begin with `*.`.
fn overlap(left: &Hostname, right: &Hostname) -> bool {
    let covers = |wild: &str, name: &str| {
        wild.strip_prefix('*').is_some_and(|suffix| name.ends_with(suffix) && name != suffix)
    };
    let (left, right) = (left.as_str(), right.as_str());
    left == right || covers(left, right) || covers(right, left)
}
