//! Tales of one service's endpoints, told with hand-made clocks and chances.

use std::collections::BTreeMap;

use api::wire::{self, Distribution, Health, Locality, OutlierEjection, Timeouts, TrafficPolicy};
use proptest::prelude::*;

use api::endpoint::EndpointId;

use super::super::{Gateways, Place, Tried};
use super::*;

/// A client in `east`, and the endpoints of a service.
struct Tale {
    balancer: Arc<Balancer>,
    gateways: Gateways,
    policy: TrafficPolicy,
    endpoints: Vec<wire::Endpoint>,
    chance: u64,
}

fn at(millis: u64) -> Moment {
    Moment::from_nanos(millis * 1_000_000)
}

fn policy() -> TrafficPolicy {
    TrafficPolicy {
        overprovisioning_percent: 140,
        panic_percent: 50,
        timeouts: Some(Timeouts { suspect_after_ms: 1000, ..Timeouts::default() }),
        outlier: Some(OutlierEjection {
            consecutive_gateway_errors: 5,
            consecutive_connect_failures: 3,
            consecutive_server_errors: 0,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            max_ejection_ms: 300_000,
            max_ejected_percent: 50,
            ..OutlierEjection::default()
        }),
        ..TrafficPolicy::default()
    }
}

/// `a` in `cluster`, which is also its network, in region `eu-<cluster>` and zone `a`.
fn endpoint(workload: &str, cluster: &str) -> wire::Endpoint {
    let id = EndpointId::new(&cluster.parse().unwrap(), &workload.parse().unwrap(), 8080);
    wire::Endpoint {
        id: id.to_string(),
        address: "127.0.0.1:8080".into(),
        cluster: cluster.into(),
        network: cluster.into(),
        locality: Some(Locality { region: format!("eu-{cluster}"), zone: "a".into(), ..Locality::default() }),
        workload: workload.into(),
        ..wire::Endpoint::default()
    }
}

impl Tale {
    /// `east` and `west` endpoints, from the beginning.
    fn new(east: &[&str], west: &[&str]) -> Self {
        Tale::with(policy(), east, west)
    }

    fn with(policy: TrafficPolicy, east: &[&str], west: &[&str]) -> Self {
        let mut endpoints: Vec<_> = east.iter().map(|name| endpoint(name, "east")).collect();
        endpoints.extend(west.iter().map(|name| endpoint(name, "west")));
        let gateways = Gateways::default();
        let addresses = vec!["127.2.0.2:15443".to_owned()];
        gateways.update(
            &wire::Networks { networks: [("west".to_owned(), wire::Gateways { addresses })].into() },
            at(0),
        );
        let mut tale = Tale { balancer: Arc::default(), gateways, policy, endpoints, chance: 0 };
        tale.update(0);
        tale
    }

    fn update(&mut self, now: u64) {
        let own = Place {
            cluster: "east".into(),
            network: "east".into(),
            region: "eu-east".into(),
            zone: "a".into(),
            ..Place::default()
        };
        let bad = self.balancer.update(&Input {
            own: &own,
            policy: &self.policy,
            endpoints: &self.endpoints,
            gateways: &self.gateways,
            now: at(now),
            unix_seconds: 1_000_000,
        });
        assert!(bad.is_empty(), "{bad:?}");
    }

    fn set_health(&mut self, workload: &str, health: Health, now: u64) {
        let endpoint = self.endpoints.iter_mut().find(|e| e.workload == workload).unwrap();
        endpoint.set_health(health);
        self.update(now);
    }

    fn ask(&mut self, now: u64, tried: &Tried, may_repeat: bool) -> Pick {
        self.chance += 1;
        self.balancer.pick(&Ask { now: at(now), chance: self.chance, tried, may_repeat })
    }

    fn pick(&mut self, now: u64) -> Picked {
        match self.ask(now, &Tried::default(), false) {
            Pick::Endpoint(picked) => picked,
            Pick::None(why) => panic!("{why}"),
        }
    }

    /// How often each workload is picked in 1000 picks that are answered at once.
    fn counts(&mut self, now: u64) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for _ in 0..1000 {
            let picked = self.pick(now);
            *counts.entry(picked.endpoint().wire.workload.clone()).or_default() += 1;
        }
        counts
    }

    /// Who is picked at all.
    fn taken(&mut self, now: u64) -> String {
        self.counts(now).into_keys().collect::<Vec<_>>().join(" ")
    }

    /// Ends a try at `workload`, whatever the shares say.
    fn report(&mut self, workload: &str, outcome: Outcome, now: u64) {
        self.begin(workload, now).finished(outcome, at(now));
    }

    fn begin(&mut self, workload: &str, now: u64) -> Picked {
        let table = self.balancer.table.load_full();
        let endpoint = table.endpoints.iter().find(|e| e.wire.workload == workload).unwrap();
        self.balancer.begin(endpoint.clone(), None, None, at(now))
    }

    fn kill(&mut self, workload: &str, now: u64) {
        (0..3).for_each(|_| self.report(workload, Outcome::ConnectFailure, now));
    }

    /// `workload` answers, in `millis`.
    fn answer(&mut self, workload: &str, millis: u64, now: u64) {
        let mut picked = self.begin(workload, now - millis);
        picked.head(at(now));
        picked.finished(Outcome::Success, at(now));
    }

    fn is_probed(&mut self, now: u64) -> bool {
        matches!(self.ask(now, &Tried::default(), true), Pick::Endpoint(picked) if picked.probing.is_some())
    }

    /// The next probe, which must be due.
    fn probe(&mut self, now: u64) -> Picked {
        match self.ask(now, &Tried::default(), true) {
            Pick::Endpoint(picked) if picked.probing.is_some() => picked,
            other => panic!("no probe: {other:?}"),
        }
    }

    fn state(&self, workload: &str, now: u64) -> &'static str {
        self.balancer.report(at(now)).iter().find(|report| report.workload == workload).unwrap().state
    }
}

#[test]
fn the_nearest_take_all_until_they_cannot() {
    let mut tale = Tale::new(&["a", "b", "c", "d"], &["w"]);
    assert_eq!(tale.taken(1), "a b c d");
    tale.kill("a", 1);
    assert_eq!(tale.taken(2), "b c d", "three of four can carry all");
    tale.kill("b", 2);
    let counts = tale.counts(3);
    assert!((230..370).contains(&counts["w"]), "half of them: 70 to 30: {counts:?}");
}

#[test]
fn a_whole_priority_may_go_while_another_can_take_over() {
    let mut tale = Tale::new(&["a", "b"], &["w", "x"]);
    tale.kill("a", 1);
    tale.kill("b", 1);
    assert_eq!(tale.taken(2), "w x", "the cap of 50 % does not hold while a lower priority lives");
    tale.kill("w", 3);
    tale.kill("x", 3);
    assert_eq!(tale.state("x", 4), "fine", "the last over all stays");
    assert!(tale.taken(40_000).starts_with("a b"), "and the others come back after their time");
    assert_eq!(tale.taken(45_000), "a b");
}

#[test]
fn what_refused_is_back_as_soon_as_it_takes_a_request() {
    let mut tale = Tale::new(&["a"], &["w"]);
    tale.kill("a", 1);
    assert_eq!((tale.state("a", 2), tale.taken(900)), ("ejected", "w".into()));
    let trial = tale.probe(1001);
    let (connect, head) = (Duration::from_millis(400), Duration::from_millis(1000));
    assert_eq!(
        trial.limits,
        Some(Limits { connect, head }),
        "one that is gone does not refuse, and a request waits"
    );
    assert_eq!(trial.endpoint().wire.workload, "a");
    assert!(!tale.is_probed(1990), "one at a time");
    trial.finished(Outcome::ConnectFailure, at(1999));
    assert!(!tale.is_probed(2000), "a second between two");
    for now in [9001, 10_002, 11_003] {
        tale.probe(now).finished(Outcome::ConnectFailure, at(now));
    }
    let left = |tale: &Tale, now| tale.balancer.report(at(now))[0].ejected_ms / 1000;
    assert!((18..23).contains(&left(&tale, 11_004)), "trials in vain add nothing");
    drop(tale.probe(12_004));
    let mut trial = tale.probe(13_005);
    trial.head(at(13_006));
    trial.finished(Outcome::Success, at(13_006));
    assert_eq!((tale.state("a", 13_007), tale.taken(13_007)), ("fine", "a w".into()), "by degrees");
    assert_eq!(tale.taken(18_999), "a");
    tale.kill("a", 19_000);
    let second = left(&tale, 19_000);
    assert!((59..67).contains(&second), "the second ejection is longer: {second}");
}

#[test]
fn what_answered_badly_has_its_time() {
    let mut tale = Tale::new(&["a"], &["w"]);
    (0..5).for_each(|_| tale.report("a", Outcome::GatewayError, 1));
    assert!((2..29).all(|second| !tale.is_probed(second * 1000)), "no trial of what does not refuse");
    let mut tale = Tale::new(&["a"], &["w"]);
    tale.kill("a", 1);
    tale.probe(1001).finished(Outcome::GatewayError, at(1001));
    assert!((2..29).all(|second| !tale.is_probed(second * 1000)), "nor of what does no more");
    assert_eq!(tale.state("a", 29_000), "ejected");
}

#[test]
fn what_must_not_be_sent_twice_seldom_tries() {
    let mut tale = Tale::new(&["a"], &["w"]);
    tale.kill("a", 1);
    assert_eq!(tale.pick(10_000).endpoint().wire.workload, "w");
    assert_eq!(tale.pick(10_001).endpoint().wire.workload, "a");
}

#[test]
fn the_cap_holds_where_nothing_is_below() {
    let mut tale = Tale::with(TrafficPolicy { panic_percent: 0, ..policy() }, &["a", "b", "c", "d"], &[]);
    ["a", "b", "c"].iter().for_each(|name| tale.kill(name, 1));
    assert_eq!(tale.state("c", 2), "fine");
    assert_eq!(tale.taken(2), "c d");
}

#[test]
fn one_alone_is_never_ejected() {
    let mut tale = Tale::new(&["a"], &[]);
    tale.kill("a", 1);
    assert_eq!(tale.taken(2), "a");
}

#[test]
fn what_ejects_and_what_does_not() {
    use Outcome::*;
    let check = |outcome, times, expect| {
        let mut tale = Tale::new(&["a", "b"], &[]);
        (0..times).for_each(|_| tale.report("a", outcome, 1));
        assert_eq!(tale.state("a", 2), expect, "{times} times {outcome:?}");
    };
    check(GatewayError, 4, "fine");
    check(GatewayError, 5, "ejected");
    check(ConnectFailure, 2, "fine");
    check(ConnectFailure, 3, "ejected");
    check(ServerError, 100, "fine");
    check(Busy, 100, "fine");
    check(Cancelled, 100, "fine");
}

#[test]
fn an_ejection_ends_and_the_next_is_longer() {
    let mut tale = Tale::new(&["a", "b"], &[]);
    let left = |tale: &Tale, now| {
        tale.balancer.report(at(now)).iter().find(|r| r.workload == "a").unwrap().ejected_ms
    };
    tale.kill("a", 0);
    assert!((30_000..=33_000).contains(&left(&tale, 0)));
    assert_eq!(left(&tale, 33_000), 0);
    tale.kill("a", 33_000);
    assert!((60_000..=66_000).contains(&left(&tale, 33_000)));
    (99..200).step_by(10).for_each(|second| tale.balancer.sweep(at(second * 1000)));
    tale.kill("a", 200_000);
    assert!((30_000..=33_000).contains(&left(&tale, 200_000)), "good conduct is remembered");
}

#[test]
fn the_busy_get_less_but_stay() {
    let random = TrafficPolicy { load_balancing: wire::LoadBalancing::Random.into(), ..policy() };
    let mut tale = Tale::with(random, &["a", "b"], &[]);
    (0..3).for_each(|_| tale.report("a", Outcome::Busy, 1));
    let counts = tale.counts(1);
    assert!((140..260).contains(&counts["a"]), "a quarter as heavy as the other: {counts:?}");
    let counts = tale.counts(120_000);
    assert!((440..560).contains(&counts["a"]), "forgotten: {counts:?}");
}

#[test]
fn a_low_success_rate_ejects_at_the_sweep() {
    let mut policy = policy();
    let outlier = policy.outlier.as_mut().unwrap();
    outlier.success_rate_minimum_hosts = 5;
    outlier.success_rate_request_volume = 100;
    outlier.success_rate_deviations_milli = 1900;
    let mut tale = Tale::with(policy, &["a", "b", "c", "d", "e"], &[]);
    tale.balancer.sweep(at(1));
    let one_in_two = |i: u32| if i.is_multiple_of(2) { Outcome::ServerError } else { Outcome::Success };
    for i in 0..100 {
        ["b", "c", "d", "e"].iter().for_each(|name| tale.report(name, Outcome::Success, 2));
        tale.report("a", one_in_two(i), 2);
    }
    tale.balancer.sweep(at(9000));
    assert_eq!(tale.state("a", 9001), "fine", "the interval is not over");
    tale.balancer.sweep(at(10_001));
    assert_eq!(tale.state("a", 10_002), "ejected");
    assert_eq!(tale.taken(10_002), "b c d e");
}

#[test]
fn the_word_of_the_keeper_counts() {
    let mut tale = Tale::new(&["a", "b"], &[]);
    tale.set_health("a", Health::Draining, 1);
    assert_eq!(tale.taken(1), "b");
    tale.set_health("b", Health::Unhealthy, 2);
    assert_eq!(tale.taken(2), "a b", "they are better than nothing");
}

#[test]
fn the_silent_get_nothing_new_while_another_can() {
    let mut tale = Tale::new(&["a", "b"], &["w"]);
    ["a", "b", "w"].iter().for_each(|name| tale.answer(name, 10, 100));
    let hanging: Vec<_> = ["a", "b"].iter().map(|name| tale.begin(name, 200)).collect();
    assert_eq!(tale.taken(1200), "a b", "not yet");
    assert_eq!(tale.taken(1201), "w", "suspicion counts for the shares");
    let silent = tale.begin("w", 1300);
    assert_eq!(tale.taken(2301), "a b", "nobody else is left: suspicion is ignored");

    hanging.into_iter().for_each(|mut picked| picked.head(at(2400)));
    drop(silent);
    assert_eq!(tale.taken(2401), "a b", "they spoke");
}

#[test]
fn one_probe_finds_out_whether_the_silent_are_back() {
    let mut tale = Tale::new(&["a"], &["w"]);
    ["a", "w"].iter().for_each(|name| tale.answer(name, 10, 100));
    let hanging = tale.begin("a", 200);
    assert_eq!(tale.taken(1300), "w");
    hanging.finished(Outcome::GatewayError, at(1400));
    assert_eq!(tale.taken(2300), "w", "a request that must not be sent twice is no probe");

    let probes = |tale: &mut Tale, now| {
        let picks: Vec<_> = (0..10).map(|_| tale.ask(now, &Tried::default(), true)).collect();
        picks
            .into_iter()
            .filter_map(|pick| match pick {
                Pick::Endpoint(picked) if picked.probing.is_some() => Some(picked),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    let mut first = probes(&mut tale, 2300);
    assert_eq!(first.len(), 1);
    let least = Duration::from_millis(100);
    assert_eq!(first[0].limits, Some(Limits { connect: least, head: least }));
    let mut probe = first.remove(0);
    probe.head(at(2310));
    probe.finished(Outcome::Success, at(2310));
    assert_eq!(tale.state("a", 2311), "fine");
}

#[test]
fn beside_a_suspect_only_those_heard_lately_have_their_time() {
    let mut policy = policy();
    policy.set_load_balancing(wire::LoadBalancing::Random);
    let mut tale = Tale::with(policy, &["a", "b", "c"], &["w"]);
    ["a", "b", "c", "w"].iter().for_each(|name| tale.answer(name, 10, 100));
    let limits = |tale: &mut Tale, workload: &str, tried: &Tried, may_repeat| {
        let picks = (0..1000).map(|_| tale.ask(1300, tried, may_repeat));
        let found = picks.into_iter().find_map(|pick| match pick {
            Pick::Endpoint(picked) if picked.endpoint().wire.workload == workload => Some(picked.limits),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("{workload} is never picked"))
    };
    let (nobody, least) = (Tried::default(), Duration::from_millis(100));
    let mut w = Tried::default();
    w.failed(tale.begin("w", 200).endpoint());
    assert_eq!(limits(&mut tale, "c", &nobody, true), None, "nobody is suspected");

    let _hanging = tale.begin("a", 200);
    tale.answer("b", 10, 1100);
    let c = limits(&mut tale, "c", &nobody, true);
    assert_eq!(c, Some(Limits { connect: least, head: least }), "what hangs seldom hangs alone");
    assert_eq!(limits(&mut tale, "b", &nobody, true), None, "it spoke 200 ms ago");
    assert_eq!(limits(&mut tale, "c", &nobody, false), None, "nobody else could have what is sent once");
    assert_eq!(limits(&mut tale, "c", &w, true), None, "a second try waits");
    ["b", "w"].iter().for_each(|name| tale.set_health(name, Health::Unhealthy, 1300));
    assert_eq!(limits(&mut tale, "c", &nobody, true), None, "nobody else is left");
}

/// Endpoints that never answered this caller, and one that did.
#[test]
fn the_silent_that_never_spoke_are_measured_by_their_siblings() {
    let mut tale = Tale::new(&["a"], &["w"]);
    tale.answer("w", 400, 500);
    let hanging = tale.begin("a", 1000);
    assert_eq!(tale.taken(3000), "a", "five times the 400 ms of the other");
    assert_eq!(tale.taken(3001), "w");
    drop(hanging);
}

#[test]
fn a_hang_ends_in_suspicion_and_ejects_nobody() {
    let mut tale = Tale::new(&["a", "b"], &["w"]);
    ["a", "b", "w"].iter().for_each(|name| tale.answer(name, 10, 100));
    let hanging: Vec<_> = (0..50).flat_map(|_| ["a", "b"]).map(|name| tale.begin(name, 200)).collect();
    hanging.into_iter().for_each(|one| one.finished(Outcome::Late { connected: true }, at(3200)));
    assert_eq!((tale.state("a", 3201), tale.taken(3201).as_str()), ("suspect", "w"));
    for now in [4200, 5200] {
        let probe = tale.probe(now);
        probe.finished(Outcome::Late { connected: false }, at(now + 100));
        assert_eq!(tale.taken(now + 101), "w");
    }
    for _ in ["a", "b"] {
        let mut probe = tale.probe(7000);
        probe.head(at(7010));
        probe.finished(Outcome::Success, at(7010));
    }
    assert_eq!(tale.taken(12_011), "a b", "nothing is left of it but the gentle return");
}

#[test]
fn a_connect_that_is_late_is_silence_too() {
    let mut tale = Tale::new(&["a"], &["w"]);
    let picked = tale.begin("a", 0);
    picked.finished(Outcome::Late { connected: false }, at(1001));
    assert_eq!((tale.state("a", 1002), tale.taken(1002).as_str()), ("suspect", "w"));
}

#[test]
fn after_a_late_connect_another_priority_is_next() {
    let mut tale = Tale::new(&["a", "b"], &["w"]);
    let mut tried = Tried::default();
    tried.connect_late(tale.pick(1).endpoint());
    let Pick::Endpoint(picked) = tale.ask(1, &tried, false) else { panic!("there is one") };
    assert_eq!(picked.endpoint().wire.workload, "w");
}

#[test]
fn load_comes_back_gently_to_a_priority_that_was_dark() {
    let mut tale = Tale::new(&["a", "b"], &["w"]);
    tale.set_health("a", Health::Unhealthy, 1);
    tale.set_health("b", Health::Unhealthy, 1);
    assert_eq!(tale.taken(2), "w");
    tale.set_health("a", Health::Healthy, 1000);
    tale.set_health("b", Health::Healthy, 1000);
    let west = |tale: &mut Tale, now| tale.counts(now).get("w").copied().unwrap_or(0);
    assert!((800..920).contains(&west(&mut tale, 1000)), "86 % stay away at first");
    assert!((230..370).contains(&west(&mut tale, 3500)), "half of the way");
    assert_eq!(west(&mut tale, 6000), 0);
}

#[test]
fn a_new_nearest_priority_is_filled_gently_too() {
    let mut tale = Tale::new(&["a"], &["w"]);
    let a = tale.endpoints.remove(0);
    tale.update(1);
    assert_eq!(tale.taken(2), "w");
    tale.endpoints.push(a);
    tale.update(1000);
    assert!(tale.counts(1000)["w"] > 800);
    assert_eq!(tale.taken(6000), "a");
}

#[test]
fn one_more_endpoint_beside_others_sends_nothing_away() {
    let mut tale = Tale::with(TrafficPolicy { slow_start_ms: 10_000, ..policy() }, &["a"], &["w"]);
    tale.endpoints.push(endpoint("b", "east"));
    tale.policy.load_balancing = wire::LoadBalancing::Random.into();
    tale.update(1000);
    let counts = tale.counts(1000);
    assert!(!counts.contains_key("w"), "{counts:?}");
    assert!((50..140).contains(&counts["b"]), "a tenth of a's weight at first: {counts:?}");
    let counts = tale.counts(11_000);
    assert!((440..560).contains(&counts["b"]), "{counts:?}");
}

#[test]
fn behind_dead_gateways_nobody_is_healthy() {
    let mut tale = Tale::new(&["a"], &["w"]);
    tale.kill("a", 1);
    assert_eq!(tale.taken(2), "w");
    let west = tale.gateways.network("west");
    let gateway = west.choose(0, &[]).unwrap();
    gateway.lost(at(3));
    assert_eq!(tale.state("w", 4), "unfit");
    assert_eq!(tale.taken(4), "a", "an ejected endpoint is nearer to life than one without a way to it");
    assert_eq!(tale.taken(503), "a", "whether the gateway is back, no request has to find out");
    gateway.answered(at(4));
    assert_eq!(tale.taken(504), "w");
}

#[test]
fn a_distribution_goes_by_its_percents_and_moves_on() {
    let to = [("eu-east".to_owned(), 80), ("eu-west".to_owned(), 20)].into();
    let distribute = vec![Distribution { from: "eu-east".into(), to }];
    let mut tale = Tale::with(TrafficPolicy { distribute, ..policy() }, &["a", "b"], &["w"]);
    let counts = tale.counts(1);
    assert!((140..260).contains(&counts["w"]), "{counts:?}");
    tale.kill("a", 2);
    tale.kill("b", 2);
    assert_eq!(tale.taken(3), "w", "the cap does not hold: another group lives");
    tale.endpoints.retain(|endpoint| endpoint.cluster == "east");
    tale.update(40_000);
    assert_eq!(tale.taken(80_000), "a b");
}

#[test]
fn every_group_of_a_distribution_is_probed() {
    let to = [("eu-east".to_owned(), 50), ("eu-west".to_owned(), 50)].into();
    let distribute = vec![Distribution { from: "eu-east".into(), to }];
    let mut tale = Tale::with(TrafficPolicy { distribute, ..policy() }, &["a"], &["w"]);
    for (silent, other) in [("a", "w"), ("w", "a")] {
        tale.begin(silent, 0).finished(Outcome::Late { connected: true }, at(3000));
        assert_eq!(tale.taken(3001), other);
        let mut probe = tale.probe(4000);
        assert_eq!(probe.endpoint().wire.workload, silent);
        probe.head(at(4001));
        probe.finished(Outcome::Success, at(4001));
    }
}

#[test]
fn stale_endpoints_by_the_rule() {
    let check = |rule: wire::Stale, before: &str, after: &str| {
        let mut tale = Tale::new(&["a", "b"], &[]);
        tale.policy.stale_after_ms = 300_000;
        tale.policy.set_stale_endpoints(rule);
        tale.endpoints[0].stale_since = 1_000_000 - 200;
        tale.update(0);
        assert_eq!(tale.taken(99_999), before, "{rule:?}");
        assert_eq!(tale.taken(100_001), after, "{rule:?}");
    };
    check(wire::Stale::Keep, "a b", "a b");
    check(wire::Stale::Drop, "a b", "b");
    let mut tale = Tale::new(&["a", "b"], &[]);
    tale.policy.set_stale_endpoints(wire::Stale::Deweight);
    tale.policy.set_load_balancing(wire::LoadBalancing::Random);
    tale.endpoints[0].stale_since = 1;
    tale.update(0);
    assert!((140..260).contains(&tale.counts(1)["a"]), "a quarter of its weight");
}

#[test]
fn the_less_loaded_of_two_wins() {
    let mut tale = Tale::new(&["a", "b"], &[]);
    let busy: Vec<_> = (0..3).map(|_| tale.begin("a", 1)).collect();
    assert_eq!(tale.taken(1), "b");
    drop(busy);
    tale.answer("a", 50, 100);
    tale.answer("b", 10, 100);
    assert_eq!(tale.taken(100), "b", "the quicker one");
    let busy: Vec<_> = (0..5).map(|_| tale.begin("b", 100)).collect();
    assert_eq!(tale.taken(100), "a", "five under way are slower than 50 ms");
    drop(busy);
}

#[test]
fn two_are_chosen_evenly_from_many() {
    let mut tale = Tale::new(&["a", "b", "c", "d"], &[]);
    for (name, count) in tale.counts(1) {
        assert!((190..310).contains(&count), "{name}: {count}");
    }
}

#[test]
fn round_robin_takes_turns() {
    let turns = TrafficPolicy { load_balancing: wire::LoadBalancing::RoundRobin.into(), ..policy() };
    let mut tale = Tale::with(turns, &["a", "b", "c", "d"], &[]);
    assert_eq!(tale.counts(1).into_values().collect::<Vec<_>>(), [250; 4]);
    tale.endpoints[0].weight = 5;
    tale.update(2);
    let counts = tale.counts(2);
    assert!((615..635).contains(&counts["a"]), "5 of 8: {counts:?}");
}

#[test]
fn failed_connects_go_on_to_the_next_priority_after_two() {
    let mut tale = Tale::new(&["a", "b", "c"], &["w", "x", "y", "z"]);
    let mut tried = Tried::default();
    let mut clusters = String::new();
    while tried.may_connect() {
        let Pick::Endpoint(picked) = tale.ask(1, &tried, false) else { panic!("too early") };
        assert!(!tried.has(&picked.endpoint().id));
        clusters.push_str(&picked.endpoint().wire.cluster[..1]);
        tried.connect_failed(picked.endpoint());
        picked.finished(Outcome::ConnectFailure, at(1));
    }
    assert_eq!(clusters, "eewwew", "two, two, and then whoever is left");
}

#[test]
fn later_tries_prefer_priorities_that_were_not_tried() {
    let mut tale = Tale::new(&["a", "b"], &["w"]);
    let mut tried = Tried::default();
    let mut clusters = String::new();
    for _ in 0..4 {
        let Pick::Endpoint(picked) = tale.ask(1, &tried, false) else { panic!("there is always one") };
        clusters.push_str(&picked.endpoint().wire.cluster[..1]);
        tried.failed(picked.endpoint());
    }
    assert!(clusters.starts_with("ewe"), "{clusters}");

    let mut alone = Tale::new(&["a"], &[]);
    let mut tried = Tried::default();
    tried.failed(alone.pick(1).endpoint());
    assert!(matches!(alone.ask(1, &tried, false), Pick::Endpoint(_)), "again is better than not at all");
    tried.connect_failed(alone.pick(1).endpoint());
    assert!(matches!(alone.ask(1, &tried, false), Pick::None(NoEndpoint::Exhausted)));
}

#[test]
fn no_endpoints_and_bad_ones() {
    let balancer: Arc<Balancer> = Arc::default();
    let tried = Tried::default();
    let ask = Ask { now: at(1), chance: 1, tried: &tried, may_repeat: true };
    assert!(matches!(balancer.pick(&ask), Pick::None(NoEndpoint::Empty)));
    let mut wrong_id = endpoint("a", "east");
    wrong_id.id = "x".into();
    let mut wrong_address = endpoint("b", "east");
    wrong_address.address = "nowhere".into();
    let bad = balancer.update(&Input {
        own: &Place::default(),
        policy: &policy(),
        endpoints: &[wrong_id, wrong_address, endpoint("c", "east")],
        gateways: &Gateways::default(),
        now: at(1),
        unix_seconds: 0,
    });
    assert_eq!(bad.len(), 2);
    assert_eq!(balancer.report(at(1)).len(), 1);
}

#[test]
fn an_update_keeps_what_was_learnt() {
    let mut tale = Tale::new(&["a", "b"], &[]);
    tale.kill("a", 1);
    let hanging = tale.begin("b", 1);
    tale.endpoints[0].weight = 7;
    tale.endpoints.push(endpoint("c", "east"));
    tale.update(2);
    assert_eq!(tale.state("a", 3), "ejected");
    let outstanding = |tale: &Tale| tale.balancer.report(at(3)).iter().map(|r| r.outstanding).sum::<u32>();
    assert_eq!(outstanding(&tale), 1);
    drop(hanging);
    assert_eq!(outstanding(&tale), 0);
}

proptest! {
    /// Without panic, nobody who is ejected, unhealthy or draining is picked while somebody fine exists; and
    /// every pick is balanced by its release.
    #[test]
    fn the_fit_come_first(
        east in 0usize..5, west in 0usize..5, dead in any::<u16>(), draining in any::<u16>(), chance in any::<u64>(),
    ) {
        let names: Vec<String> = (0..10).map(|i| format!("e{i}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let quiet = TrafficPolicy { panic_percent: 0, ..policy() };
        let mut tale = Tale::with(quiet, &names[..east], &names[5..5 + west]);
        let here: Vec<String> = tale.endpoints.iter().map(|e| e.workload.clone()).collect();
        for (i, name) in here.iter().enumerate() {
            if dead >> i & 1 == 1 { tale.kill(name, 1) }
            if draining >> i & 1 == 1 { tale.set_health(name, Health::Draining, 1) }
        }
        tale.chance = chance;
        let fine = here.iter().any(|name| tale.state(name, 2) == "fine");
        for _ in 0..50 {
            let Pick::Endpoint(picked) = tale.ask(2, &Tried::default(), true) else {
                prop_assert!(here.is_empty());
                return Ok(());
            };
            let state = tale.state(&picked.endpoint().wire.workload, 2);
            prop_assert!(!fine || state == "fine", "{}", state);
        }
        prop_assert!(tale.balancer.report(at(2)).iter().all(|report| report.outstanding == 0));
    }

    /// Whatever fails however often, somebody is left who is not ejected.
    #[test]
    fn never_the_last(fails in prop::collection::vec((0usize..6, 0u64..100_000), 0..200)) {
        let names = ["a", "b", "c", "x", "y", "z"];
        let mut tale = Tale::new(&names[..3], &names[3..]);
        let mut fails = fails;
        fails.sort_by_key(|(_, now)| *now);
        for (who, now) in fails {
            tale.report(names[who], Outcome::ConnectFailure, now);
            prop_assert!(names.iter().any(|name| tale.state(name, now) == "fine"));
        }
    }
}
