//! The rules inside one object that its schema cannot say, each reported where it is broken.

mod route;

use std::{collections::BTreeSet, net::IpAddr};

use super::{Code, report::Report};
use crate::{
    admin::Severity,
    resource::{
        AuthorizationPolicy, Cluster, Duration, EndpointSlice, GATEWAY_GROUP, Gateway, Mesh, Meta,
        PeerAuthentication, Resource, Service, TargetRef, TrafficPolicy,
        cidr::nobodys,
        endpoints::{AddressType, SERVICE_LABEL},
        target::TargetKind,
        traffic::{Distribute, LocalityPolicy},
    },
};

/// A workload's certificate may live so long.
const LEAF_LIFETIME: (Duration, Duration) = (Duration::from_secs(300), Duration::from_hours(2160));

/// Where proxies and control planes listen. Captured traffic to them is left alone, too.
const OWN_PORTS: (u16, u16) = (15000, 15090);

/// Tells what is wrong inside `resource`.
pub(crate) fn check(resource: &Resource, report: &mut Report) {
    if report.is_full(Severity::Error) {
        return;
    }
    match resource {
        Resource::Mesh(object) => mesh(&object.spec, report),
        Resource::Cluster(object) => cluster(&object.spec, report),
        Resource::Namespace(_) | Resource::ServiceExport(_) => {}
        Resource::Service(object) => service(&object.spec, report),
        Resource::EndpointSlice(object) => endpoint_slice(&object.meta, &object.spec, report),
        Resource::Gateway(object) => gateway(&object.spec, report),
        Resource::HttpRoute(object) => route::route(&object.spec, report),
        Resource::PeerAuthentication(object) => peer_authentication(&object.spec, report),
        Resource::AuthorizationPolicy(object) => authorization(&object.meta, &object.spec, report),
        Resource::TrafficPolicy(object) => traffic(&object.spec, report),
    }
}

/// Reports every item that was there before, at its pointer.
fn unique<T: Ord>(items: impl Iterator<Item = (T, String)>, what: &str, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for (item, pointer) in items {
        if !seen.insert(item) {
            report.value(&pointer, Code::Conflict, format!("{what} is given twice"));
        }
    }
}

fn mesh(mesh: &Mesh, report: &mut Report) {
    let lives = &mesh.certificates;
    if lives.leaf < LEAF_LIFETIME.0 || lives.leaf > LEAF_LIFETIME.1 {
        let message = format!("must be {} to {}, is {}", LEAF_LIFETIME.0, LEAF_LIFETIME.1, lives.leaf);
        report.value("/spec/certificates/leaf", Code::BadValue, message);
    }
    if lives.intermediate <= lives.leaf {
        report.value(
            "/spec/certificates/intermediate",
            Code::BadValue,
            format!("must be longer than a leaf's {}, is {}", lives.leaf, lives.intermediate),
        );
    }
    if lives.root <= lives.intermediate {
        report.value(
            "/spec/certificates/root",
            Code::BadValue,
            format!("must be longer than an intermediate's {}, is {}", lives.intermediate, lives.root),
        );
    }
}

fn cluster(cluster: &Cluster, report: &mut Report) {
    let gateways = cluster.gateways.iter().flatten().enumerate();
    unique(gateways.map(|(i, address)| (address, format!("/spec/gateways/{i}"))), "this gateway", report);
    for (i, address) in cluster.gateways.iter().flatten().enumerate() {
        if address.port() == 0 || address.ip().is_unspecified() {
            report.value(
                &format!("/spec/gateways/{i}"),
                Code::BadValue,
                "an address that others can reach, with its port, is needed",
            );
        }
    }
}

fn service(service: &Service, report: &mut Report) {
    let headless = service.cluster_ip.as_deref() == Some("None");
    if service.ports.is_empty() && !headless {
        report.add(
            "/spec/ports",
            report.positions.at("/spec"),
            Code::MissingField,
            "`ports` is missing: a Service needs at least one".into(),
            None,
        );
    }
    for (i, port) in service.ports.iter().enumerate() {
        if port.name.is_none() && service.ports.len() > 1 {
            let pointer = format!("/spec/ports/{i}");
            report.add(
                &format!("{pointer}/name"),
                report.positions.at(&pointer),
                Code::MissingField,
                "`name` is missing: needed with several ports".into(),
                None,
            );
        }
    }
    let ports = || service.ports.iter().enumerate();
    unique(
        ports().filter_map(|(i, port)| Some((port.name.clone()?, format!("/spec/ports/{i}/name")))),
        "this name",
        report,
    );
    unique(
        ports().map(|(i, port)| ((port.port, port.protocol), format!("/spec/ports/{i}/port"))),
        "this port",
        report,
    );
    let ips = service.cluster_ips.iter().enumerate().map(|(i, ip)| (ip, format!("/spec/clusterIPs/{i}")));
    for (ip, pointer) in service.cluster_ip.iter().map(|ip| (ip, "/spec/clusterIP".to_owned())).chain(ips) {
        let complaint = match ip.parse::<IpAddr>() {
            Ok(address) => {
                nobodys(address).map(|what| format!("`{ip}` is {what}: no Service is reached there"))
            }
            Err(_) if matches!(ip.as_str(), "" | "None") => None,
            Err(_) => Some(format!("`{ip}` is neither an IP address nor `None`")),
        };
        complaint.into_iter().for_each(|complaint| report.value(&pointer, Code::BadValue, complaint));
    }
}

fn endpoint_slice(meta: &Meta, slice: &EndpointSlice, report: &mut Report) {
    if !meta.labels.contains_key(SERVICE_LABEL) {
        let message = format!("the label `{SERVICE_LABEL}` is missing: it names the Service");
        report.add(
            "/metadata/labels/service",
            report.positions.at("/metadata"),
            Code::MissingField,
            message,
            None,
        );
    }
    for (i, endpoint) in slice.endpoints.iter().enumerate() {
        for (j, address) in endpoint.addresses.iter().enumerate() {
            let fits = match slice.address_type {
                AddressType::IPv4 => address.is_ipv4(),
                AddressType::IPv6 => address.is_ipv6(),
                AddressType::Fqdn => false,
            };
            let complaint = match nobodys(*address) {
                _ if !fits => format!("`{address}` is not of the slice's addressType"),
                Some(what) => format!("`{address}` is {what}: an endpoint has an address of its own"),
                None => continue,
            };
            report.value(&format!("/endpoints/{i}/addresses/{j}"), Code::BadValue, complaint);
        }
    }
    // Whoever may call the Service would reach what is meant for the machine alone, such as a gateway's `/drain`.
    let (first, last) = OWN_PORTS;
    for (i, port) in slice.ports.iter().enumerate() {
        if (first..=last).contains(&port.port) {
            let port = port.port;
            let message =
                format!("{port} is one of the mesh's own ports, {first} to {last}: no service is there");
            report.value(&format!("/ports/{i}/port"), Code::Forbidden, message);
        }
    }
    unique(
        slice.ports.iter().enumerate().map(|(i, port)| (&port.name, format!("/ports/{i}/name"))),
        "this name",
        report,
    );
}

fn gateway(gateway: &Gateway, report: &mut Report) {
    let listeners = || gateway.listeners.iter().enumerate();
    unique(listeners().map(|(i, own)| (&own.name, format!("/spec/listeners/{i}/name"))), "this name", report);
    unique(
        listeners().map(|(i, own)| {
            ((own.port, own.hostname.as_ref().map(|host| host.as_str())), format!("/spec/listeners/{i}/port"))
        }),
        "a listener with this port and host name",
        report,
    );
    for (i, address) in gateway.addresses.iter().enumerate() {
        if address.value.parse::<IpAddr>().is_err() {
            report.value(
                &format!("/spec/addresses/{i}/value"),
                Code::BadValue,
                format!("`{}` is not an IP address", address.value),
            );
        }
    }
    for (i, listener) in listeners() {
        for (j, kind) in listener.allowed_routes.kinds.iter().enumerate() {
            if kind.group != GATEWAY_GROUP || kind.kind != "HTTPRoute" {
                let message =
                    format!("`{}` is not yet supported at a listener: only HTTPRoute is", kind.kind);
                report.value(
                    &format!("/spec/listeners/{i}/allowedRoutes/kinds/{j}/kind"),
                    Code::NotYetSupported,
                    message,
                );
            }
        }
    }
}

fn peer_authentication(policy: &PeerAuthentication, report: &mut Report) {
    let ports = policy.ports.iter().flatten().enumerate();
    unique(ports.map(|(i, own)| (own.port, format!("/spec/ports/{i}/port"))), "this port", report);
}

fn authorization(meta: &Meta, policy: &AuthorizationPolicy, report: &mut Report) {
    if policy.selector.is_some() && !policy.target_refs.is_empty() {
        report.add(
            "/spec/selector",
            report.positions.key_at("/spec/selector"),
            Code::Conflict,
            "`selector` and `targetRefs` exclude each other: keep one".into(),
            None,
        );
    }
    targets(&policy.target_refs, report);
    for (i, target) in policy.target_refs.iter().enumerate() {
        if target.namespace.is_some() && target.namespace != meta.namespace {
            let message = "an AuthorizationPolicy guards only what lies in its own namespace";
            report.value(&format!("/spec/targetRefs/{i}/namespace"), Code::Forbidden, message);
        }
    }
    let names = policy
        .rules
        .iter()
        .enumerate()
        .filter_map(|(i, rule)| Some((rule.name.as_ref()?, format!("/spec/rules/{i}/name"))));
    unique(names, "this name", report);
}

fn targets(targets: &[TargetRef], report: &mut Report) {
    for (i, target) in targets.iter().enumerate() {
        let group = match target.kind {
            TargetKind::Service => "",
            TargetKind::Gateway | TargetKind::HttpRoute => GATEWAY_GROUP,
        };
        if target.group != group {
            let pointer = format!("/spec/targetRefs/{i}");
            let message = format!("the kind is of group `{group}`, not `{}`", target.group);
            report.add(
                &format!("{pointer}/group"),
                report.positions.at(&format!("{pointer}/group")),
                Code::BadValue,
                message,
                Some(format!("write `group: {group:?}`")),
            );
        }
    }
    unique(
        targets.iter().enumerate().map(|(i, target)| (target, format!("/spec/targetRefs/{i}"))),
        "this target",
        report,
    );
}

fn traffic(policy: &TrafficPolicy, report: &mut Report) {
    for (i, target) in policy.target_refs.iter().enumerate() {
        if target.kind != TargetKind::Service {
            report.value(
                &format!("/spec/targetRefs/{i}/kind"),
                Code::BadValue,
                "a TrafficPolicy is about Services: expected `Service`",
            );
        }
    }
    targets(&policy.target_refs, report);
    policy.locality.iter().for_each(|locality| self::locality(locality, report));
    if let Some(ejection) =
        policy.outlier_ejection.as_ref().filter(|own| own.max_ejection < own.base_ejection)
    {
        let message = format!("must be at least `baseEjection`, {}", ejection.base_ejection);
        report.value("/spec/outlierEjection/maxEjection", Code::BadValue, message);
    }
    if policy.outlier_ejection.as_ref().is_some_and(|own| own.interval.is_zero()) {
        report.value("/spec/outlierEjection/interval", Code::BadValue, "must be longer than 0s");
    }
    if let Some(retry) = &policy.retry {
        if retry.backoff.max < retry.backoff.base {
            report.value(
                "/spec/retry/backoff/max",
                Code::BadValue,
                format!("must be at least `base`, {}", retry.backoff.base),
            );
        }
        if retry.budget.window.is_zero() {
            report.value("/spec/retry/budget/window", Code::BadValue, "must be longer than 0s");
        }
    }
}

fn locality(locality: &LocalityPolicy, report: &mut Report) {
    let at = |field: &str, i: usize| format!("/spec/locality/{field}/{i}/from");
    let failover = || locality.failover.iter().enumerate();
    let distribute = || locality.distribute.iter().enumerate();
    unique(failover().map(|(i, own)| (&own.from, at("failover", i))), "this `from`", report);
    unique(distribute().map(|(i, own)| (&own.from, at("distribute", i))), "this `from`", report);
    unique(
        locality
            .priority
            .iter()
            .flatten()
            .enumerate()
            .map(|(i, own)| (own, format!("/spec/locality/priority/{i}"))),
        "this label",
        report,
    );
    for (i, own) in failover() {
        if own.to.contains(&own.from) {
            report.value(
                &format!("/spec/locality/failover/{i}/to"),
                Code::BadValue,
                format!("`{}` cannot stand in for itself", own.from),
            );
        }
    }
    for (i, own) in distribute() {
        shares(i, own, report);
        let region = own.from.split('/').next();
        if failover().any(|(_, other)| Some(other.from.as_str()) == region) {
            report.value(
                &at("distribute", i),
                Code::Conflict,
                format!("`{}` has `failover` too: `distribute` excludes it, keep one", own.from),
            );
        }
    }
}

fn shares(index: usize, own: &Distribute, report: &mut Report) {
    let sum: u64 = own.to.values().map(|share| u64::from(*share)).sum();
    if sum != 100 {
        report.value(
            &format!("/spec/locality/distribute/{index}/to"),
            Code::BadValue,
            format!("the shares must sum to 100, they sum to {sum}"),
        );
    }
    for place in own.to.keys().chain([&own.from]) {
        if place.split('/').count() > 2 || place.split('/').any(str::is_empty) {
            report.value(
                &format!("/spec/locality/distribute/{index}"),
                Code::BadValue,
                format!("`{place}` is neither `region` nor `region/zone`"),
            );
        }
    }
}
