//! Two policies of one kind at one target: the narrowest wins only while there is one narrowest.
//!
//! It concerns the kinds that inherit (TrafficPolicy, PeerAuthentication). Several AuthorizationPolicies at one
//! target are no conflict: their verdicts are combined, and the order of the three steps decides. Neither may two
//! Services have one virtual address, or two Gateways one port: a connection to it would mean both.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    admin::Severity,
    manifest::{Code, Diagnostic, Placed},
    name::{Namespace, ObjectName},
    resource::{Gateway, Kind, Labels, Resource, TargetRef, gateway::CLASS},
};

/// What a policy of a kind is about, seen from its namespace.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Target<'a> {
    Namespace,
    Workloads(&'a Labels),
    Service(Namespace, &'a ObjectName, Option<&'a str>),
    Address(IpAddr),
    /// A port of the ingress gateways, at those that both Gateways are for.
    Listener(u16),
}

impl Target<'_> {
    /// Where it is one of its kind: an address is so in a whole cluster.
    fn scope(&self, own: Namespace) -> Namespace {
        match self {
            Target::Address(_) | Target::Listener(..) => Namespace::system(),
            Target::Namespace | Target::Workloads(_) | Target::Service(..) => own,
        }
    }

    fn what(&self) -> &'static str {
        match self {
            Target::Address(_) => "address",
            Target::Listener(..) => "port",
            Target::Namespace | Target::Workloads(_) | Target::Service(..) => "target",
        }
    }

    fn help(&self) -> &'static str {
        match self {
            Target::Address(_) => "a virtual address leads to one Service: give each its own",
            Target::Listener(..) => {
                "a port of the ingress gateways belongs to one Gateway: take another, or give each its own `addresses`"
            }
            _ => "two of one kind at one target contradict each other: make them one",
        }
    }
}

/// Tells every policy whose target has one of the kind already.
pub(super) fn check(placed: &[&Placed], diagnostics: &mut Vec<Diagnostic>) {
    let mut taken: BTreeMap<(Kind, Namespace, Target), Vec<&Placed>> = BTreeMap::new();
    let whole = |own: &&&Placed| {
        !own.flaws
            .iter()
            .any(|flaw| flaw.starts_with("/spec/targetRefs") || flaw.starts_with("/spec/selector"))
    };
    for own in placed.iter().filter(whole).copied() {
        let meta = own.resource.meta();
        for (target, pointer) in targets(&own.resource) {
            let (scope, what, help) = (target.scope(meta.namespace()), target.what(), target.help());
            let holders = taken.entry((own.resource.kind(), scope, target)).or_default();
            let meets = |other: &&&Placed| {
                let (left, right) = (&other.resource.meta().cluster, &meta.cluster);
                (left.is_none() || right.is_none() || left == right)
                    && share_a_process(&other.resource, &own.resource)
            };
            if let Some(first) = holders.iter().find(meets) {
                diagnostics.push(Diagnostic {
                    file: own.origin.file.clone(),
                    at: own.positions.at(&pointer),
                    code: Code::Conflict,
                    message: format!(
                        "`{}`, at {}, has the same {what} as `{}`",
                        first.resource.key(),
                        first.origin,
                        own.resource.key()
                    ),
                    help: Some(help.into()),
                    severity: Severity::Error,
                });
            }
            holders.push(own);
        }
    }
}

/// Whether a gateway process may have to serve both: one serves the Gateways that name its address, and those that name
/// none. What is no Gateway is not told apart by this.
fn share_a_process(left: &Resource, right: &Resource) -> bool {
    let (Resource::Gateway(left), Resource::Gateway(right)) = (left, right) else { return true };
    let (left, right) = (addresses(&left.spec), addresses(&right.spec));
    left.is_empty() || right.is_empty() || !left.is_disjoint(&right)
}

fn addresses(gateway: &Gateway) -> BTreeSet<IpAddr> {
    gateway.addresses.iter().filter_map(|own| own.value.parse().ok()).collect()
}

fn targets<'a>(resource: &'a Resource) -> Vec<(Target<'a>, String)> {
    match resource {
        Resource::PeerAuthentication(object) => match &object.spec.selector {
            Some(selector) => vec![(Target::Workloads(&selector.match_labels), "/spec/selector".into())],
            None => vec![(Target::Namespace, "/metadata/name".into())],
        },
        Resource::TrafficPolicy(object) if object.spec.target_refs.is_empty() => {
            vec![(Target::Namespace, "/metadata/name".into())]
        }
        Resource::TrafficPolicy(object) => {
            let refs = object.spec.target_refs.iter().enumerate();
            let service = |(i, own): (usize, &'a TargetRef)| {
                let namespace = own.namespace.clone().unwrap_or_else(|| object.meta.namespace());
                (
                    Target::Service(namespace, &own.name, own.section_name.as_deref()),
                    format!("/spec/targetRefs/{i}"),
                )
            };
            refs.map(service).collect()
        }
        Resource::Service(object) => {
            let service = &object.spec;
            let single = service.cluster_ip.iter().map(|ip| (ip, "/spec/clusterIP".to_owned()));
            let several =
                service.cluster_ips.iter().enumerate().map(|(i, ip)| (ip, format!("/spec/clusterIPs/{i}")));
            let said = single.chain(several).filter_map(|(ip, pointer)| Some((ip.parse().ok()?, pointer)));
            // What is said in both fields is said once.
            let once: BTreeMap<IpAddr, String> = said.rev().collect();
            once.into_iter().map(|(ip, pointer)| (Target::Address(ip), pointer)).collect()
        }
        Resource::Gateway(object) if object.spec.gateway_class_name.as_str() == CLASS => {
            let mut ports = BTreeMap::new();
            for (i, listener) in object.spec.listeners.iter().enumerate() {
                ports.entry(listener.port).or_insert_with(|| format!("/spec/listeners/{i}/port"));
            }
            ports.into_iter().map(|(port, pointer)| (Target::Listener(port), pointer)).collect()
        }
        Resource::Mesh(_)
        | Resource::Cluster(_)
        | Resource::Namespace(_)
        | Resource::EndpointSlice(_)
        | Resource::Gateway(_)
        | Resource::HttpRoute(_)
        | Resource::ServiceExport(_)
        | Resource::AuthorizationPolicy(_) => Vec::new(),
    }
}
