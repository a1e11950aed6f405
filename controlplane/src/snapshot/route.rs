//! Routes: from `HTTPRoute` to the tables of services and listeners.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    name::{Hostname, Namespace, ObjectName, ServiceName},
    resource::{
        Gateway, HttpRoute, Object,
        gateway::{CLASS, FromNamespaces, Listener, ListenerProtocol},
        route::{
            BackendRef, HeaderModifier, HttpFilter, HttpMatch, HttpRetry, HttpRule, ParentKind, ParentRef,
            PathMatchType, PathModifier, Scheme, ValueMatchType,
        },
        target::TargetKind,
    },
    wire,
};

use super::{Said, ServiceEntry, Snapshot, guard, traffic::ms};

/// The routes that rule calls from `caller` to a service; `None` when there are none.
///
/// At a port for which the caller's namespace has routes (consumer routes), those of the service's own (producer routes)
/// do not count: only routes of one group are merged (GEP-1294, "Multiple routes for a Service").
pub(super) fn of_service(
    snapshot: &Snapshot,
    entry: &ServiceEntry,
    caller: &Namespace,
) -> Option<wire::RouteTable> {
    let inputs = &snapshot.inputs;
    let attached = |route: &Object<HttpRoute>| {
        let by = said_by(&route.meta.namespace(), &entry.service, caller)?;
        Some((by, ports(route, entry)))
    };
    let routes = inputs.configuration.of::<HttpRoute>(&inputs.cluster);
    let attached: Vec<_> = routes.filter_map(|(route, said)| Some((attached(route)?, route, said))).collect();
    let consumers = attached.iter().filter(|((by, _), ..)| *by == By::Consumer);
    let taken: BTreeSet<u32> = consumers.flat_map(|((_, ports), ..)| ports).copied().collect();
    let mut rules_in_force = Vec::new();
    for ((by, mut ports), route, said) in attached {
        if by == By::Producer {
            ports.retain(|port| !taken.contains(port));
        }
        if ports.is_empty() {
            continue;
        }
        let is_whole = entry.ports.iter().all(|own| ports.contains(&own.port));
        let ports: Vec<u32> = if is_whole { vec![] } else { ports.into_iter().collect() };
        let own = rules(snapshot, route, said, |_| Vec::new()).into_iter();
        rules_in_force.extend(own.map(|rule| wire::Rule { ports: ports.clone(), ..rule }));
    }
    let hosts = vec![wire::VirtualHost { rules: rules_in_force, ..Default::default() }];
    (!hosts[0].rules.is_empty()).then(|| wire::RouteTable { hosts, ..Default::default() })
}

/// Whose word a route of a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// The caller's namespace, for its own calls.
    Consumer,
    /// The service's namespace, for all calls.
    Producer,
}

/// `None` when what `home` says does not rule these calls.
fn said_by(home: &Namespace, service: &ServiceName, caller: &Namespace) -> Option<By> {
    match home {
        home if *home == service.namespace => Some(By::Producer),
        home if home == caller => Some(By::Consumer),
        _ => None,
    }
}

/// The service's ports that a route attaches to.
fn ports(route: &Object<HttpRoute>, entry: &ServiceEntry) -> BTreeSet<u32> {
    let home = route.meta.namespace();
    let parents = route.spec.parent_refs.iter().filter(|parent| {
        parent.kind == ParentKind::Service
            && parent.name == entry.service.name
            && *parent.namespace.as_ref().unwrap_or(&home) == entry.service.namespace
    });
    let means = |parent: &ParentRef, port: &wire::ServicePort| {
        parent.port.is_none_or(|own| u32::from(own) == port.port)
            && parent.section_name.as_ref().is_none_or(|own| *own == port.name)
    };
    let of = |parent| entry.ports.iter().filter(move |port| means(parent, port)).map(|port| port.port);
    parents.flat_map(of).collect()
}

/// The tables of the gateways that a process of this cluster at `address` serves: name and table.
pub(super) fn of_gateways(
    snapshot: &Snapshot,
    address: std::net::IpAddr,
) -> BTreeMap<String, wire::RouteTable> {
    let inputs = &snapshot.inputs;
    let mut tables = BTreeMap::new();
    for (gateway, _) in inputs.configuration.of::<Gateway>(&inputs.cluster) {
        let here = gateway.spec.addresses.is_empty()
            || gateway.spec.addresses.iter().any(|own| own.value.parse() == Ok(address));
        if gateway.spec.gateway_class_name.as_str() != CLASS || !here {
            continue;
        }
        let http =
            gateway.spec.listeners.iter().filter(|listener| listener.protocol == ListenerProtocol::Http);
        for listener in http {
            let name = format!("listener/{}/{}", gateway.service_name(), listener.port);
            let table: &mut wire::RouteTable = tables.entry(name).or_default();
            let guards = guard::attached(
                inputs,
                TargetKind::Gateway,
                &gateway.meta.namespace(),
                gateway.meta.name.as_str(),
                Some(listener.name.as_str()),
            );
            table.policies.extend(guards);
            table.hosts.extend(hosts(snapshot, gateway, listener));
        }
    }
    tables
}

/// The virtual hosts of one listener, each with the rules of all routes for it.
///
/// A listener without routes is told of too: what it takes is no other's (Gateway API, Listener.hostname).
fn hosts(snapshot: &Snapshot, gateway: &Object<Gateway>, listener: &Listener) -> Vec<wire::VirtualHost> {
    let inputs = &snapshot.inputs;
    let mut by_host: BTreeMap<Option<String>, Vec<wire::Rule>> = BTreeMap::new();
    for (route, said) in inputs.configuration.of::<HttpRoute>(&inputs.cluster) {
        if !attaches(route, gateway, listener) {
            continue;
        }
        let (home, name) = (route.meta.namespace(), route.meta.name.as_str());
        let guards = |rule: &HttpRule| {
            let rule = rule.name.as_ref().map(ObjectName::as_str);
            guard::attached(inputs, TargetKind::HttpRoute, &home, name, rule)
        };
        for host in shared_hosts(listener.hostname.as_ref(), &route.spec.hostnames) {
            by_host.entry(host).or_default().extend(rules(snapshot, route, said, guards));
        }
    }
    let own = listener.hostname.as_ref().map(Hostname::to_string);
    if by_host.is_empty() && own.is_some() {
        by_host.insert(own.clone(), vec![]);
    }
    let listener = own.unwrap_or_default();
    let host = |(host, rules): (Option<String>, _)| wire::VirtualHost {
        hosts: host.into_iter().collect(),
        rules,
        listener: listener.clone(),
    };
    by_host.into_iter().map(host).collect()
}

fn attaches(route: &Object<HttpRoute>, gateway: &Object<Gateway>, listener: &Listener) -> bool {
    let home = route.meta.namespace();
    let allowed = match listener.allowed_routes.namespaces.from {
        FromNamespaces::All => true,
        FromNamespaces::Same => home == gateway.meta.namespace(),
        // The gate says that selectors are not yet supported.
        FromNamespaces::Selector => false,
    };
    allowed
        && route.spec.parent_refs.iter().any(|parent| {
            parent.kind == ParentKind::Gateway
                && parent.name == gateway.meta.name
                && parent.namespace.as_ref().unwrap_or(&home) == &gateway.meta.namespace()
                && parent.section_name.as_deref().is_none_or(|section| section == listener.name.as_str())
                && parent.port.is_none_or(|port| port == listener.port)
        })
}

/// The hosts that listener and route have in common, the closer of each pair (Gateway API, HTTPRoute.hostnames).
fn shared_hosts(listener: Option<&Hostname>, route: &[Hostname]) -> Vec<Option<String>> {
    let Some(listener) = listener else {
        return match route {
            [] => vec![None],
            hosts => hosts.iter().map(|host| Some(host.to_string())).collect(),
        };
    };
    if route.is_empty() {
        return vec![Some(listener.to_string())];
    }
    let closer = |host: &Hostname| match (within(host, listener), within(listener, host)) {
        (true, _) => Some(Some(host.to_string())),
        (false, true) => Some(Some(listener.to_string())),
        (false, false) => None,
    };
    route.iter().filter_map(closer).collect()
}

/// Whether every name that `inner` stands for is one that `outer` stands for.
fn within(inner: &Hostname, outer: &Hostname) -> bool {
    match outer.as_str().strip_prefix('*') {
        None => inner == outer,
        Some(suffix) => {
            let inner = inner.as_str().strip_prefix('*').unwrap_or(inner.as_str());
            inner.ends_with(suffix)
        }
    }
}

fn rules(
    snapshot: &Snapshot,
    route: &Object<HttpRoute>,
    said: &Said,
    guards: impl Fn(&HttpRule) -> Vec<String>,
) -> Vec<wire::Rule> {
    let home = route.meta.namespace();
    let one = |(place, rule): (usize, &HttpRule)| wire::Rule {
        route: format!("HTTPRoute {}", route.service_name()),
        rule: rule.name.as_ref().map_or_else(|| place.to_string(), |name| name.to_string()),
        commit: said.changed_in.clone(),
        matches: rule.matches.iter().map(matches).collect(),
        filters: rule.filters.iter().map(filter).collect(),
        backends: rule.backend_refs.iter().map(|backend| resolve(snapshot, &home, backend)).collect(),
        request_timeout_ms: rule.timeouts.as_ref().and_then(|all| all.request).map(ms),
        backend_timeout_ms: rule.timeouts.as_ref().and_then(|all| all.backend_request).map(ms),
        retry: rule.retry.as_ref().map(retry),
        policies: guards(rule),
        ports: vec![],
    };
    route.spec.rules.iter().enumerate().map(one).collect()
}

fn retry(retry: &HttpRetry) -> wire::RouteRetry {
    wire::RouteRetry {
        codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
        attempts: retry.attempts,
        backoff_ms: retry.backoff.map(ms),
    }
}

/// A backend as this cluster resolves it. What is missing answers 500 for its share (Gateway API, BackendRef).
fn resolve(snapshot: &Snapshot, home: &Namespace, backend: &BackendRef) -> wire::Backend {
    let service = backend.service(home);
    let port = u32::from(backend.port.unwrap_or(0));
    let unresolved = match snapshot.services.get(&service) {
        None => format!("Service {service} does not exist in cluster {}", snapshot.inputs.cluster),
        Some(entry) if !entry.ports.iter().any(|known| known.port == port) => {
            format!("Service {service} has no port {port}")
        }
        Some(_) => String::new(),
    };
    wire::Backend {
        namespace: service.namespace.to_string(),
        name: service.name.to_string(),
        port,
        weight: backend.weight,
        filters: vec![],
        unresolved,
    }
}

fn matches(one: &HttpMatch) -> wire::Match {
    use wire::r#match::Path;
    let value = one.path.value.clone();
    let path = match one.path.type_ {
        PathMatchType::Exact => Path::Exact(value),
        PathMatchType::PathPrefix => Path::Prefix(value),
        PathMatchType::RegularExpression => Path::Regex(value),
    };
    let headers = one.headers.iter().map(|header| key(header.name.as_str(), header.type_, &header.value));
    let query = one.query_params.iter().map(|param| key(&param.name, param.type_, &param.value));
    wire::Match {
        path: Some(path),
        method: one.method.map(|method| method.as_str().to_owned()).unwrap_or_default(),
        headers: headers.collect(),
        query: query.collect(),
    }
}

fn key(name: &str, how: ValueMatchType, value: &str) -> wire::KeyMatch {
    use wire::key_match::Value;
    let value = match how {
        ValueMatchType::Exact => Value::Exact(value.to_owned()),
        ValueMatchType::RegularExpression => Value::Regex(value.to_owned()),
    };
    wire::KeyMatch { name: name.to_owned(), value: Some(value) }
}

fn filter(filter: &HttpFilter) -> wire::Filter {
    use wire::filter::Filter;
    let filter = match filter {
        HttpFilter::RequestHeaderModifier { request_header_modifier: change } => {
            Filter::RequestHeaders(headers(change))
        }
        HttpFilter::ResponseHeaderModifier { response_header_modifier: change } => {
            Filter::ResponseHeaders(headers(change))
        }
        HttpFilter::RequestRedirect { request_redirect: redirect } => Filter::Redirect(wire::Redirect {
            scheme: redirect.scheme.as_ref().map(scheme).unwrap_or_default().to_owned(),
            hostname: redirect.hostname.as_ref().map(Hostname::to_string).unwrap_or_default(),
            path: redirect.path.as_ref().map(path),
            port: redirect.port.unwrap_or(0).into(),
            status: redirect.status_code.into(),
        }),
        HttpFilter::UrlRewrite { url_rewrite: rewrite } => Filter::Rewrite(wire::Rewrite {
            hostname: rewrite.hostname.as_ref().map(Hostname::to_string).unwrap_or_default(),
            path: rewrite.path.as_ref().map(path),
        }),
    };
    wire::Filter { filter: Some(filter) }
}

fn scheme(scheme: &Scheme) -> &'static str {
    match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    }
}

fn path(path: &PathModifier) -> wire::PathChange {
    use wire::path_change::Change;
    let change = match path {
        PathModifier::ReplaceFullPath { replace_full_path } => Change::Full(replace_full_path.clone()),
        PathModifier::ReplacePrefixMatch { replace_prefix_match } => {
            Change::Prefix(replace_prefix_match.clone())
        }
    };
    wire::PathChange { change: Some(change) }
}

fn headers(change: &HeaderModifier) -> wire::HeaderChange {
    let pair = |header: &api::resource::route::HeaderValue| wire::Header {
        name: header.name.to_string(),
        value: header.value.clone(),
    };
    wire::HeaderChange {
        set: change.set.iter().map(pair).collect(),
        add: change.add.iter().map(pair).collect(),
        remove: change.remove.iter().map(|name| name.to_string()).collect(),
    }
}
