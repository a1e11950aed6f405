//! The endpoints of a backend by distance, and what share of the load each distance takes.

use std::collections::BTreeSet;

use api::{
    admin::{ExplainedEndpoint, ExplainedPriority},
    wire,
};
use runtime::{
    Runtime,
    locality::{Place, load, priority},
};

use crate::snapshot::{Registered, Snapshot};

/// The endpoints as the caller `node` balances over them, first those that it takes first.
pub(super) fn priorities(
    snapshot: &Snapshot,
    node: &Registered,
    caller: &Runtime,
    traffic: &wire::TrafficPolicy,
    endpoints: &[wire::Endpoint],
) -> Vec<ExplainedPriority> {
    let own = Place {
        cluster: snapshot.inputs.cluster.to_string(),
        network: caller.workload.network.to_string(),
        region: caller.workload.locality.region.clone(),
        zone: caller.workload.locality.zone.clone(),
        subzone: caller.workload.locality.subzone.clone(),
        node: node.labels.get("node").cloned().unwrap_or_default(),
    };
    let rule = load::rule_for(&own, &traffic.distribute);
    let percent = |endpoint: &wire::Endpoint| {
        let group = rule
            .and_then(|rule| load::group(rule, endpoint.locality.as_ref()).and_then(|key| rule.to.get(key)));
        group.copied().unwrap_or(0).min(100)
    };
    // A distribution puts its groups in the order of their percentages; otherwise nearness is the order.
    let assigned = match rule {
        None => priority::assign(&own, endpoints, traffic),
        Some(_) => {
            let mut order: Vec<u32> = endpoints.iter().map(percent).collect();
            order.sort_unstable_by(|a, b| b.cmp(a));
            order.dedup();
            endpoints
                .iter()
                .map(|one| order.iter().position(|p| *p == percent(one)).unwrap_or(0) as u32)
                .collect()
        }
    };
    let count = assigned.iter().max().map_or(0, |highest| highest + 1);
    let healthy = |endpoint: &wire::Endpoint| endpoint.health() == wire::Health::Healthy;
    let members = |wanted: u32| {
        endpoints.iter().zip(&assigned).filter(move |(_, at)| **at == wanted).map(|(one, _)| one)
    };
    let level = |wanted: u32| {
        members(wanted).fold((0, 0), |(fine, all), one| (fine + u64::from(healthy(one)), all + 1))
    };
    let levels: Vec<_> = (0..count).map(level).collect();
    let shares = match rule {
        None => load::shares(&levels, traffic.overprovisioning_percent),
        Some(_) => {
            // Groups of one percentage are shown as one: their members share what is theirs together.
            let together = |wanted: u32| {
                let groups: BTreeSet<_> = members(wanted)
                    .map(|one| rule.and_then(|rule| load::group(rule, one.locality.as_ref())))
                    .collect();
                members(wanted).next().map_or(0, percent) * groups.len() as u32
            };
            let groups: Vec<_> =
                (0..count).zip(&levels).map(|(at, (fine, all))| (together(at), *fine, *all)).collect();
            load::distribute(&groups, traffic.overprovisioning_percent)
        }
    };
    let explained = |endpoint: &wire::Endpoint| ExplainedEndpoint {
        workload: endpoint.workload.clone(),
        cluster: endpoint.cluster.clone(),
        address: endpoint.address.clone(),
        locality: endpoint.locality.as_ref().map(|l| format!("{}/{}", l.region, l.zone)).unwrap_or_default(),
        health: match endpoint.health() {
            wire::Health::Healthy => "healthy",
            wire::Health::Unhealthy => "unhealthy",
            wire::Health::Draining => "draining",
        }
        .into(),
        via: caller.networks.networks.get(&endpoint.network).map(|g| g.addresses.clone()).unwrap_or_default(),
    };
    let one = |wanted: u32| ExplainedPriority {
        priority: wanted,
        load_percent: shares.get(wanted as usize).copied().unwrap_or(0),
        endpoints: named(members(wanted).map(explained).collect()),
    };
    (0..count).map(one).collect()
}

/// In the order of names, as people look for them.
fn named(mut endpoints: Vec<ExplainedEndpoint>) -> Vec<ExplainedEndpoint> {
    endpoints.sort_by(|a, b| a.workload.cmp(&b.workload));
    endpoints
}
