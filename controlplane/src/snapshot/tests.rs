//! The sample configuration, as tales: who is told what.

use std::collections::BTreeSet;

use api::{delta::Class, wire};
use runtime::Runtime;

use super::{
    Inputs, Registered, Role, Snapshot, Subscription, build,
    fixture::{gateway, inputs, knowing, living, workload},
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
