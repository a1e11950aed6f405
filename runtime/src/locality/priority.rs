//! The priority of an endpoint as one client sees it: how near it is.

use api::wire::{Endpoint, TrafficPolicy, Workload};

/// Where the client itself stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// Its cluster.
    pub cluster: String,
    /// Its network.
    pub network: String,
    /// Its region.
    pub region: String,
    /// Its zone.
    pub zone: String,
    /// Its subzone.
    pub subzone: String,
    /// Its node; empty when not known.
    pub node: String,
}

impl From<&Workload> for Place {
    fn from(own: &Workload) -> Self {
        let locality = own.locality.clone().unwrap_or_default();
        Place {
            cluster: own.cluster.clone(),
            network: own.network.clone(),
            region: locality.region,
            zone: locality.zone,
            subzone: locality.subzone,
            node: String::new(),
        }
    }
}

impl Place {
    /// Whether `endpoint` is reached without a gateway.
    pub fn shares_network(&self, endpoint: &Endpoint) -> bool {
        endpoint.network.is_empty() || endpoint.network == self.network
    }
}

/// The priorities of `endpoints`, in their order: 0 is nearest, without gaps.
pub fn assign(own: &Place, endpoints: &[Endpoint], policy: &TrafficPolicy) -> Vec<u32> {
    let ranks: Vec<u32> = endpoints.iter().map(|endpoint| rank(own, endpoint, policy)).collect();
    let mut order = ranks.clone();
    order.sort_unstable();
    order.dedup();
    ranks.iter().map(|rank| order.partition_point(|other| other < rank) as u32).collect()
}

/// The priority before gaps are closed, which names the same distance whatever other endpoints there are.
pub fn rank(own: &Place, endpoint: &Endpoint, policy: &TrafficPolicy) -> u32 {
    if policy.priority_labels.is_empty() {
        default_rank(own, endpoint, policy)
    } else {
        let matched =
            policy.priority_labels.iter().take_while(|label| label_matches(label, own, endpoint)).count();
        (policy.priority_labels.len() - matched) as u32
    }
}

/// This cluster's zone, this cluster's region, other clusters of the region, elsewhere, and what a failover
/// rule does not name; within each, the same network before another.
fn default_rank(own: &Place, endpoint: &Endpoint, policy: &TrafficPolicy) -> u32 {
    let locality = endpoint.locality.as_ref();
    let region = locality.map_or("", |l| l.region.as_str());
    let zone = locality.map_or("", |l| l.zone.as_str());
    let same_cluster = endpoint.cluster == own.cluster;
    let class = match (region == own.region, same_cluster, zone == own.zone) {
        (true, true, true) => 0,
        (true, true, false) => 1,
        (true, false, _) => 2,
        (false, ..) if fails_over(own, region, policy) => 3,
        (false, ..) => 4,
    };
    class * 2 + u32::from(!own.shares_network(endpoint))
}

/// Whether the rules for the client's region, if there are any, name `region`.
fn fails_over(own: &Place, region: &str, policy: &TrafficPolicy) -> bool {
    let mut rules = policy.failover.iter().filter(|rule| rule.from == own.region).peekable();
    rules.peek().is_none() || rules.any(|rule| rule.to.iter().any(|to| to == region))
}

fn label_matches(label: &str, own: &Place, endpoint: &Endpoint) -> bool {
    let locality = endpoint.locality.as_ref();
    match label {
        "region" => locality.is_some_and(|l| l.region == own.region),
        "zone" => locality.is_some_and(|l| l.zone == own.zone),
        "subzone" => locality.is_some_and(|l| l.subzone == own.subzone),
        "node" => !own.node.is_empty() && endpoint.node == own.node,
        "cluster" => endpoint.cluster == own.cluster,
        "network" => own.shares_network(endpoint),
        _ => false, // the control plane refuses other labels
    }
}

#[cfg(test)]
mod tests {
    use api::wire::{Failover, Locality};

    use super::*;

    /// `cluster network region/zone`.
    fn endpoint(text: &str) -> Endpoint {
        let parts: Vec<&str> = text.split(['/', ' ']).collect();
        Endpoint {
            cluster: parts[0].into(),
            network: parts[1].into(),
            locality: Some(Locality {
                region: parts[2].into(),
                zone: parts[3].into(),
                subzone: String::new(),
            }),
            ..Endpoint::default()
        }
    }

    fn own() -> Place {
        Place {
            cluster: "east".into(),
            network: "n1".into(),
            region: "eu".into(),
            zone: "a".into(),
            ..Place::default()
        }
    }

    fn check(what: &str, policy: &TrafficPolicy, endpoints: &[&str], expect: &[u32]) {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|text| endpoint(text)).collect();
        assert_eq!(assign(&own(), &endpoints, policy), expect, "{what}");
    }

    #[test]
    fn nearer_comes_first() {
        let plain = TrafficPolicy::default();
        let all =
            ["east n1 eu/a", "east n1 eu/b", "west n1 eu/a", "west n2 eu/a", "far n1 us/a", "far n3 us/a"];
        check("the default order", &plain, &all, &[0, 1, 2, 3, 4, 5]);
        check(
            "own zone by another network is after it by one's own",
            &plain,
            &["east n2 eu/a", all[0]],
            &[1, 0],
        );
        check("gaps close", &plain, &["far n3 us/a", "west n2 eu/a"], &[1, 0]);
        check("one alone is first", &plain, &["far n3 us/a"], &[0]);
        check("none", &plain, &[], &[]);

        let failover = vec![Failover { from: "eu".into(), to: vec!["us".into()] }];
        let policy = TrafficPolicy { failover, ..TrafficPolicy::default() };
        check("failover names its region", &policy, &["x n9 ap/a", "far n3 us/a", all[0]], &[2, 1, 0]);
        let failover = vec![Failover { from: "us".into(), to: vec!["ap".into()] }];
        let policy = TrafficPolicy { failover, ..TrafficPolicy::default() };
        check("another region's rule", &policy, &["x n9 ap/a", "far n3 us/a", all[0]], &[1, 1, 0]);
    }

    #[test]
    fn a_label_counts_only_when_those_before_it_match() {
        let policy = TrafficPolicy {
            priority_labels: vec!["region".into(), "zone".into(), "network".into()],
            ..TrafficPolicy::default()
        };
        let all = ["east n1 eu/a", "west n2 eu/a", "west n1 eu/b", "far n1 us/a"];
        check("all, all but the last, the first, none", &policy, &all, &[0, 1, 2, 3]);
    }
}
