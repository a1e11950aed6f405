//! The sample configuration, as tales: who is told what.

use std::collections::BTreeSet;

use api::{delta::Class, wire};
use runtime::Runtime;

use super::{
    Inputs, Registered, Role, Snapshot, Subscription, build,
    fixture::{gateway, inputs, inputs_beside, knowing, lenient_beside, living, workload},
};

fn shop() -> Vec<Registered> {
    vec![
        workload("front-1", "front", "v1", 11),
        workload("reviews-v1-1", "reviews", "v1", 12),
        workload("reviews-v2-1", "reviews", "v2", 13),
        workload("ratings-1", "ratings", "v1", 14),
        gateway("ingress", Role::Ingress, 3),
        gateway("east-west", Role::EastWest, 2),
    ]
}

/// A third member, on whatever network it says.
const SOUTH: &str = "apiVersion: weft.mesh/v1alpha1
kind: Cluster
metadata: { name: south }
spec: { namespaces: [shop] }
";

fn east() -> Inputs {
    living(inputs("east"), shop())
}

fn names(snapshot: &Snapshot, node: &str, hosts: &[&str]) -> Vec<String> {
    let node = snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == node).unwrap();
    snapshot.view(node, &asks(hosts)).items.keys().map(|name| name.to_string()).collect()
}

fn asks(hosts: &[&str]) -> Subscription {
    hosts.iter().map(|host| (*host).to_owned()).collect()
}

fn endpoints(snapshot: &Snapshot, service: &str) -> Vec<String> {
    let entry = &snapshot.services[&service.parse().unwrap()];
    let mut all: Vec<_> =
        entry.endpoints.iter().map(|one| format!("{}@{}", one.workload, one.cluster)).collect();
    all.sort();
    all
}

#[test]
fn every_view_compiles() {
    let snapshot = build(&east());
    for node in snapshot.inputs.workloads.values() {
        let view =
            snapshot.view(node, &asks(&["reviews", "catalogue.shop", "ratings.shop.svc.cluster.local"]));
        assert!(view.items.values().all(|item| item.level == 1), "proxies of before can read it");
        Runtime::compile(&view, snapshot.commit(), None)
            .unwrap_or_else(|reasons| panic!("{}: {reasons:?}", node.workload));
    }
}

#[test]
fn a_proxy_is_told_what_it_serves_and_what_it_asked_for() {
    let snapshot = build(&east());
    let told = |hosts: &[&str]| -> BTreeSet<String> {
        let all = names(&snapshot, "front-1", hosts).into_iter();
        all.filter(|name| name.contains("shop/") && !name.starts_with("policy")).collect()
    };
    assert_eq!(told(&[]), BTreeSet::new());
    assert_eq!(told(&["nobody"]), BTreeSet::new());
    assert_eq!(
        told(&["ratings"]),
        ["endpoints/shop/ratings", "service/shop/ratings"].map(String::from).into()
    );
    let reviews = told(&["reviews"]);
    for wanted in ["routes/shop/reviews", "service/shop/reviews-v1", "endpoints/shop/reviews-v3"] {
        assert!(reviews.contains(wanted), "{wanted} is missing from {reviews:?}");
    }
    assert!(!reviews.contains("service/shop/catalogue"));
}

#[test]
fn a_gateway_is_told_what_its_routes_lead_to() {
    let snapshot = build(&east());
    let ingress = names(&snapshot, "ingress", &[]);
    assert!(ingress.contains(&"service/shop/front".to_owned()), "{ingress:?}");
    assert!(ingress.iter().any(|name| name.starts_with("listener/")), "{ingress:?}");
    assert!(!ingress.contains(&"service/shop/ratings".to_owned()), "{ingress:?}");
    assert_eq!(names(&snapshot, "east-west", &[]), ["mesh", "passthrough", "trust", "workload"]);
}

#[test]
fn endpoints_come_and_go_without_touching_what_git_rules() {
    let before = build(&east());
    let more = shop().into_iter().chain([workload("reviews-v1-2", "reviews", "v1", 15)]);
    let after = build(&living(inputs("east"), more));
    let node = |snapshot: &Snapshot| {
        snapshot.inputs.workloads.values().find(|n| n.workload.as_str() == "front-1").cloned().unwrap()
    };
    let view = |snapshot: &Snapshot| snapshot.view(&node(snapshot), &asks(&["reviews"]));
    let (a, b) = (view(&before), view(&after));
    assert_eq!(a.digests().config, b.digests().config);
    assert_ne!(a.digests().endpoint, b.digests().endpoint);
    let changed = api::delta::diff(&a.held(), &b).changed;
    assert!(changed.iter().all(|(name, _)| Class::of(name) == Class::Endpoint), "{changed:?}");
}

#[test]
fn the_build_is_deterministic() {
    let views = |snapshot: &Snapshot| -> Vec<_> {
        snapshot
            .inputs
            .workloads
            .values()
            .map(|node| snapshot.view(node, &asks(&["reviews", "ratings"])))
            .collect()
    };
    assert_eq!(views(&build(&east())), views(&build(&east())));
    assert_eq!(build(&east()).catalogue(), build(&east()).catalogue());
}

fn west_catalogue() -> wire::Catalogue {
    let west = [workload("west-ratings-1", "ratings", "v1", 24), gateway("west-ew", Role::EastWest, 22)];
    build(&living(inputs("west"), west)).catalogue()
}

#[test]
fn an_exported_service_is_the_union_over_clusters() {
    let snapshot = build(&knowing(east(), west_catalogue()));
    assert_eq!(endpoints(&snapshot, "shop/ratings"), ["ratings-1@east", "west-ratings-1@west"]);
    let node = snapshot.inputs.workloads.values().find(|n| n.workload.as_str() == "front-1").unwrap();
    let runtime = Runtime::compile(&snapshot.view(node, &asks(&["ratings"])), "", None).unwrap();
    assert_eq!(runtime.networks.networks["west"].addresses, ["127.1.0.22:15443"]);
}

#[test]
fn a_cluster_offers_only_what_it_may_vouch_for() {
    let mut lying = west_catalogue();
    for service in &mut lying.services {
        service.namespace = "bank".into();
    }
    let snapshot = build(&knowing(east(), lying));
    assert_eq!(endpoints(&snapshot, "shop/ratings"), ["ratings-1@east"]);
    assert!(!snapshot.services.keys().any(|name| name.namespace.as_str() == "bank"));
}

#[test]
fn a_cluster_cannot_speak_for_another() {
    let mut lying = west_catalogue();
    for endpoint in lying.services.iter_mut().flat_map(|service| &mut service.endpoints) {
        endpoint.cluster = "east".into();
    }
    assert_eq!(endpoints(&build(&knowing(east(), lying)), "shop/ratings"), ["ratings-1@east"]);
}

#[test]
fn stale_endpoints_are_kept_and_say_so() {
    let stale = wire::Catalogue { stale_since: 1, ..west_catalogue() };
    let snapshot = build(&knowing(east(), stale));
    let entry = &snapshot.services[&"shop/ratings".parse().unwrap()];
    let remote = entry.endpoints.iter().find(|one| one.cluster == "west").unwrap();
    assert_eq!((remote.stale_since, remote.weight), (1, 100));
}

#[test]
fn who_drains_or_is_not_ready_says_so() {
    let mut draining = workload("ratings-1", "ratings", "v1", 14);
    draining.draining = true;
    let mut starting = workload("ratings-2", "ratings", "v1", 15);
    starting.app_ready = false;
    let snapshot = build(&living(inputs("east"), [draining, starting]));
    let entry = &snapshot.services[&"shop/ratings".parse().unwrap()];
    let mut health: Vec<_> =
        entry.endpoints.iter().map(|one| (one.workload.as_str(), one.health())).collect();
    health.sort();
    assert_eq!(health, [("ratings-1", wire::Health::Draining), ("ratings-2", wire::Health::Unhealthy)]);
}

#[test]
fn a_cluster_offers_only_endpoints_that_prove_who_they_are() {
    let offer = |change: fn(&mut wire::Endpoint)| {
        let mut lying = west_catalogue();
        lying.services.iter_mut().flat_map(|service| &mut service.endpoints).for_each(change);
        endpoints(&build(&knowing(east(), lying)), "shop/ratings")
    };
    assert_eq!(offer(|_| ()), ["ratings-1@east", "west-ratings-1@west"]);
    assert_eq!(offer(|one| one.mtls = false), ["ratings-1@east"]);
    assert_eq!(
        offer(|one| one.identity = "spiffe://shop.example/ns/bank/sa/vault".into()),
        ["ratings-1@east"]
    );
    assert_eq!(offer(|one| one.identity.clear()), ["ratings-1@east"]);
}

#[test]
fn what_no_service_can_be_called_is_not_taken_from_another_cluster() {
    for name in ["x".repeat(250), "a.b".into()] {
        let mut lying = west_catalogue();
        lying.services[0].name = name;
        let (with, without) = (build(&knowing(east(), lying)), build(&east()));
        assert_eq!(names(&with, "front-1", &["ratings"]), names(&without, "front-1", &["ratings"]));
        assert!(with.services.keys().eq(without.services.keys()));
    }
}

#[test]
fn who_is_no_member_lends_no_gateway() {
    let gateways = |cluster: &str| {
        let other = wire::Catalogue {
            cluster: cluster.into(),
            network: "west".into(),
            gateways: vec!["127.9.9.9:15443".into()],
            ..Default::default()
        };
        let inputs = knowing(knowing(living(inputs_beside("east", SOUTH), shop()), west_catalogue()), other);
        let snapshot = build(&inputs);
        let front =
            snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == "front-1").unwrap();
        let runtime = Runtime::compile(&snapshot.view(front, &asks(&["ratings"])), "", None).unwrap();
        runtime.networks.networks["west"].addresses.clone()
    };
    assert_eq!(gateways("south"), ["127.1.0.22:15443", "127.9.9.9:15443"]);
    assert_eq!(gateways("north"), ["127.1.0.22:15443"]);
}

#[test]
fn a_cluster_cannot_move_its_endpoints_into_another_network() {
    let mut lying = west_catalogue();
    lying
        .services
        .iter_mut()
        .flat_map(|service| &mut service.endpoints)
        .for_each(|one| one.network = "east".into());
    let snapshot = build(&knowing(east(), lying));
    let entry = &snapshot.services[&"shop/ratings".parse().unwrap()];
    assert!(entry.endpoints.iter().all(|one| one.network == one.cluster), "{:?}", entry.endpoints);
}

/// The service `legacy` with a slice of these ports and endpoints.
fn legacy(service: &str, ports: &str, endpoints: &str) -> Snapshot {
    build(&inputs_beside(
        "east",
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: legacy, namespace: shop }}\nspec: {{ {service} }}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{ name: legacy, namespace: shop, labels: {{ kubernetes.io/service-name: legacy }} }}\n\
             addressType: IPv4\nports: [{ports}]\nendpoints: [{endpoints}]\n"
        ),
    ))
}

#[test]
fn a_slice_serves_the_ports_of_its_service_by_their_names() {
    let service = "ports: [{ name: main, port: 80, targetPort: 8080 }, { name: http-admin, port: 81 }]";
    let ports = "{ name: main, port: 9000, appProtocol: kubernetes.io/h2c }, { name: http-admin, port: 9001, appProtocol: tcp }";
    let snapshot = legacy(service, ports, "{ addresses: [127.0.9.1], nodeName: n1 }");
    let entry = &snapshot.services[&"shop/legacy".parse().unwrap()];
    let mut found: Vec<_> =
        entry.endpoints.iter().map(|one| (one.port, one.address.as_str(), one.node.as_str())).collect();
    found.sort();
    assert_eq!(found, [(81, "127.0.9.1:9001", "n1"), (8080, "127.0.9.1:9000", "n1")]);
    let protocols: Vec<_> = entry.ports.iter().map(wire::ServicePort::protocol).collect();
    assert_eq!(protocols, [wire::Protocol::Http2, wire::Protocol::Http], "where the Service does not say");
}

#[test]
fn readiness_is_disregarded_where_the_service_asks_for_that() {
    let endpoints = "{ addresses: [127.0.9.1] }, { addresses: [127.0.9.2], conditions: { ready: false } }, \
                     { addresses: [127.0.9.3], conditions: { ready: false, serving: true, terminating: true } }";
    let health = |service: &str| -> Vec<_> {
        let snapshot = legacy(service, "{ port: 80 }", endpoints);
        let entry = &snapshot.services[&"shop/legacy".parse().unwrap()];
        let mut all: Vec<_> = entry.endpoints.iter().map(|one| (&*one.address, one.health())).collect();
        all.sort();
        all.into_iter().map(|(_, health)| health).collect()
    };
    use wire::Health::{Draining, Healthy, Unhealthy};
    assert_eq!(health("ports: [{ port: 80 }]"), [Healthy, Unhealthy, Draining]);
    let published = health("publishNotReadyAddresses: true, ports: [{ port: 80 }]");
    assert_eq!(published, [Healthy, Healthy, Draining]);
}

#[test]
fn a_workload_is_on_the_node_that_its_label_names() {
    let mut ratings = workload("ratings-1", "ratings", "v1", 14);
    ratings.labels.insert("node".into(), "n1".into());
    let snapshot = build(&living(inputs("east"), [ratings]));
    let view = snapshot.view(snapshot.inputs.workloads.values().next().unwrap(), &asks(&["ratings"]));
    let runtime = Runtime::compile(&view, "c0ffee", None).unwrap();
    assert_eq!(runtime.workload.labels["node"], "n1", "as a caller");
    assert_eq!(
        runtime.endpoints[&"shop/ratings".parse().unwrap()].endpoints[0].node,
        "n1",
        "and as a callee"
    );
}

#[test]
fn a_policy_guards_the_rule_that_it_names() {
    let edge = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: edge, namespace: shop }\n\
                spec: { gatewayClassName: weft, listeners: [{ name: http, port: 9090, protocol: HTTP }] }\n---\n\
                apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: { name: edge, namespace: shop }\n\
                spec:\n  parentRefs: [{ name: edge }]\n  rules:\n  \
                - { name: open, matches: [{ path: { value: /a } }], backendRefs: [{ name: front, port: 8080 }] }\n  \
                - { name: shut, matches: [{ path: { value: /b } }], backendRefs: [{ name: front, port: 8080 }] }\n---\n";
    let policy = |name: &str, target: &str| {
        format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ action: DENY, targetRefs: [{target}], rules: [{{}}] }}\n---\n"
        )
    };
    let route = "{ group: gateway.networking.k8s.io, kind: HTTPRoute, name: edge";
    let all = [
        edge.to_owned(),
        policy("whole", &format!("{route} }}")),
        policy("part", &format!("{route}, sectionName: shut }}")),
    ];
    let snapshot = build(&inputs_beside("east", &all.concat()));
    let tables = super::route::of_gateways(&snapshot, "127.1.0.9".parse().unwrap());
    let rules = &tables["listener/shop/edge/9090"].hosts[0].rules;
    let guards: Vec<_> = rules.iter().map(|rule| (rule.rule.as_str(), rule.policies.join(" "))).collect();
    assert_eq!(
        guards,
        [("open", "policy/shop/whole".to_owned()), ("shut", "policy/shop/part policy/shop/whole".to_owned())]
    );
}

#[test]
fn a_port_may_have_a_policy_of_its_own() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: { name: two, namespace: shop }\n\
                   spec: { ports: [{ name: one, port: 81 }, { name: other, port: 82 }] }\n";
    let policy = |name: &str, section: &str, requests: u32| {
        format!(
            "---\napiVersion: weft.mesh/v1alpha1\nkind: TrafficPolicy\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec: {{ targetRefs: [{{ group: '', kind: Service, name: two{section} }}], limits: {{ requests: {requests} }} }}\n"
        )
    };
    let all = [service.to_owned(), policy("whole", "", 1), policy("part", ", sectionName: other", 2)];
    let limits = |all: &[String]| -> Vec<u32> {
        let snapshot = build(&living(inputs_beside("east", &all.concat()), shop()));
        let front =
            snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == "front-1").unwrap();
        let view = snapshot.view(front, &asks(&["two.shop"]));
        let runtime = Runtime::compile(&view, "c0ffee", None).unwrap();
        let service = runtime.service(&"shop/two".parse().unwrap()).unwrap();
        service.ports.iter().map(|port| port.traffic.limit_requests).collect()
    };
    assert_eq!(limits(&all[..2]), [1, 1]);
    assert_eq!(limits(&all[..3]), [1, 2], "the narrower word");
    assert_eq!(limits(&[&all[..1], &all[2..3]].concat()), [0, 2], "and of that port alone");
}

#[test]
fn each_listener_of_a_port_is_told_of_with_its_host() {
    let gateway = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: { name: edge, namespace: shop }\n\
                   spec:\n  gatewayClassName: weft\n  listeners:\n  \
                   - { name: a, port: 9090, protocol: HTTP, hostname: a.example }\n  \
                   - { name: empty, port: 9090, protocol: HTTP, hostname: '*.example' }\n  \
                   - { name: rest, port: 9090, protocol: HTTP }\n---\n";
    let route = |name: &str, section: &str, timeouts: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {name}, namespace: shop }}\n\
             spec:\n  parentRefs: [{{ name: edge, sectionName: {section} }}]\n  hostnames: [a.example]\n  \
             rules: [{{ name: {name}, {timeouts}backendRefs: [{{ name: front, port: 8080 }}] }}]\n---\n"
        )
    };
    let all =
        [gateway.to_owned(), route("one", "a", "timeouts: { request: 0s }, "), route("two", "rest", "")];
    let snapshot = build(&inputs_beside("east", &all.concat()));
    let tables = super::route::of_gateways(&snapshot, "127.1.0.9".parse().unwrap());
    let told = |host: &wire::VirtualHost| {
        let rules: Vec<_> = host.rules.iter().map(|rule| (&*rule.rule, rule.request_timeout_ms)).collect();
        format!("{} {} {rules:?}", host.listener, host.hosts.join(" "))
    };
    assert_eq!(
        tables["listener/shop/edge/9090"].hosts.iter().map(told).collect::<Vec<_>>(),
        [
            r#"a.example a.example [("one", Some(0))]"#,
            "*.example *.example []",
            r#" a.example [("two", None)]"#
        ]
    );
}

#[test]
fn the_address_of_a_workload_is_no_services_virtual_one() {
    let service = |address: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{ name: thief, namespace: shop }}\n\
             spec: {{ clusterIP: {address}, ports: [{{ port: 8080 }}] }}\n---\n"
        )
    };
    for (address, is_taken) in [("10.96.0.7", true), ("127.1.0.14", false)] {
        let snapshot = build(&living(inputs_beside("east", &service(address)), shop()));
        let thief = &snapshot.services[&"shop/thief".parse().unwrap()];
        assert_eq!(thief.addresses.contains(&address.parse().unwrap()), is_taken, "{address}");
        let front =
            snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == "front-1").unwrap();
        // Also of who asked for the service by its name.
        let view = snapshot.view(front, &asks(&["thief"]));
        let runtime = Runtime::compile(&view, "", None).unwrap();
        assert_eq!(runtime.service_at(address).is_some(), is_taken, "{address}");
    }
}

/// A route of a namespace, at a Service of the shop's: for `parent`, a path of `rule`'s name to that backend.
fn route(namespace: &str, rule: &str, parent: &str, backend: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{ name: {rule}, namespace: {namespace} }}\n\
         spec:\n  parentRefs: [{{ group: '', kind: Service, namespace: shop, {parent} }}]\n  \
         rules: [{{ name: {rule}, matches: [{{ path: {{ value: /{rule} }} }}], backendRefs: [{{ {backend} }}] }}]\n---\n"
    )
}

/// The rules of a table, each with the ports that it is for.
fn table(snapshot: &Snapshot, service: &str, caller: &str) -> Vec<(String, Vec<u32>)> {
    let entry = &snapshot.services[&service.parse().unwrap()];
    let table = super::route::of_service(snapshot, entry, &caller.parse().unwrap()).unwrap_or_default();
    table.hosts.into_iter().flat_map(|host| host.rules).map(|rule| (rule.rule, rule.ports)).collect()
}

const TWO_PORTS: &str = "apiVersion: v1\nkind: Service\nmetadata: { name: two, namespace: shop }\n\
                         spec: { ports: [{ name: one, port: 81 }, { name: other, port: 82 }] }\n---\n";

#[test]
fn the_routes_of_a_callers_namespace_replace_those_of_the_services_own() {
    let rules = |own: &str, caller: &str| {
        let producer = route("shop", "producer", "name: two", "name: ratings, port: 8080");
        let consumer = route("till", "consumer", own, "name: anything, port: 80");
        let all = format!("{TWO_PORTS}{producer}{consumer}");
        table(&build(&living(inputs_beside("east", &all), shop())), "shop/two", caller)
    };
    let said = |rules: &[(&str, &[u32])]| -> Vec<(String, Vec<u32>)> {
        rules.iter().map(|(rule, ports)| ((*rule).to_owned(), ports.to_vec())).collect()
    };
    assert_eq!(rules("name: two", "till"), said(&[("consumer", &[])]));
    // To others it says nothing.
    assert_eq!(rules("name: two", "shop"), said(&[("producer", &[])]));
    assert_eq!(rules("name: two", "bank"), said(&[("producer", &[])]));
    // It replaces them where it attaches.
    let each = said(&[("producer", &[82]), ("consumer", &[81])]);
    assert_eq!(rules("name: two, port: 81", "till"), each);
    assert_eq!(rules("name: two, sectionName: one", "till"), each);
}

#[test]
fn what_leads_nowhere_leads_nowhere_else() {
    let wrong = [
        TWO_PORTS.to_owned(),
        route("shop", "no-port", "name: two, port: 83", "name: ratings, port: 8080"),
        route("shop", "no-section", "name: two, sectionName: third", "name: ratings, port: 8080"),
        route("shop", "no-backend", "name: front", "name: gone, port: 8080"),
        route("shop", "no-service", "name: gone", "name: ratings, port: 8080"),
        "apiVersion: multicluster.x-k8s.io/v1beta1\nkind: ServiceExport\nmetadata: { name: gone, namespace: shop }\n---\n".into(),
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: { name: gone, namespace: shop, labels: { kubernetes.io/service-name: gone } }\n\
         addressType: IPv4\nports: [{ port: 80 }]\nendpoints: [{ addresses: [127.0.9.1] }]\n---\n".into(),
        "apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\nmetadata: { name: gone, namespace: shop }\n\
         spec: { action: DENY, targetRefs: [{ kind: Service, name: gone }], rules: [{}] }\n---\n".into(),
    ];
    let snapshot = build(&living(lenient_beside("east", &wrong.concat()), shop()));
    assert_eq!(table(&snapshot, "shop/two", "shop"), []);
    assert_eq!(snapshot.services.get(&"shop/gone".parse().unwrap()).map(|entry| &entry.name), None);
    let entry = &snapshot.services[&"shop/front".parse().unwrap()];
    let front = super::route::of_service(&snapshot, entry, &"shop".parse().unwrap()).unwrap();
    assert_eq!(
        front.hosts[0].rules[0].backends[0].unresolved,
        "Service shop/gone does not exist in cluster east"
    );
    for node in snapshot.inputs.workloads.values() {
        let view = snapshot.view(node, &asks(&["front", "two", "ratings"]));
        Runtime::compile(&view, snapshot.commit(), None)
            .unwrap_or_else(|reasons| panic!("{}: {reasons:?}", node.workload));
    }
}

#[test]
fn who_is_in_the_mesh_is_called_with_mtls_whatever_else_it_takes() {
    for mode in ["STRICT", "PERMISSIVE", "DISABLE"] {
        let more = format!(
            "apiVersion: weft.mesh/v1alpha1\nkind: PeerAuthentication\nmetadata: {{ name: all, namespace: shop }}\n\
             spec: {{ mtls: {mode} }}\n"
        );
        let snapshot = build(&living(inputs_beside("east", &more), shop()));
        let entry = &snapshot.services[&"shop/ratings".parse().unwrap()];
        assert!(entry.endpoints.iter().all(|one| one.mtls), "{mode}: {:?}", entry.endpoints);
        assert_eq!(
            snapshot.passthrough.endpoints.len(),
            build(&east()).passthrough.endpoints.len(),
            "{mode}"
        );
        let ratings = snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == "ratings-1");
        let runtime = Runtime::compile(&snapshot.view(ratings.unwrap(), &asks(&[])), "", None).unwrap();
        assert_eq!(runtime.inbound()[0].mtls.as_str_name(), mode);
    }
}

#[test]
fn a_proxy_is_told_who_says_what() {
    let snapshot = build(&east());
    let front = snapshot.inputs.workloads.values().find(|one| one.workload.as_str() == "front-1").unwrap();
    let runtime = Runtime::compile(&snapshot.view(front, &asks(&["ratings"])), "", None).unwrap();
    assert_eq!(runtime.inbound()[0].mtls_origin, "PeerAuthentication weft-system/strict");
    let origins = &runtime.service(&"shop/ratings".parse().unwrap()).unwrap().ports[0].traffic.origins;
    assert_eq!(origins["timeouts"], "TrafficPolicy shop/defaults");
    assert!(!origins.contains_key("keepAlive"), "it has its default");
}
