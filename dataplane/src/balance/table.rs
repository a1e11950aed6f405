//! The endpoints of one service as one view has them, in tiers: priorities, or the groups of a distribution.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::{
    endpoint::EndpointId,
    wire::{self, Distribution, Health, LoadBalancing, OutlierEjection, Stale as StaleRule, TrafficPolicy},
};

use smallvec::{SmallVec, smallvec};

use runtime::locality::{Place, load, priority};

use super::{
    Moment,
    endpoint::{BadEndpoint, Endpoint, Grade, Stale},
    gateway::Gateways,
    live::{Live, ramp},
    silence::Patience,
};

/// Over how long the load comes back to a tier that had nothing to offer.
const FAILBACK: Duration = Duration::from_secs(5);

/// What stands in for an overprovisioning that is not said.
const OVERPROVISIONING: u32 = 140;

/// What a table is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Where this proxy stands.
    pub own: &'a Place,
    /// The service's policy.
    pub policy: &'a TrafficPolicy,
    /// Its endpoints of one target port.
    pub endpoints: &'a [wire::Endpoint],
    /// The gateways to other networks.
    pub gateways: &'a Gateways,
    /// Now.
    pub now: Moment,
    /// Now, in seconds since the epoch, as stale endpoints count.
    pub unix_seconds: i64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    /// In the order of their tiers.
    pub endpoints: Vec<Arc<Endpoint>>,
    pub tiers: Vec<Tier>,
    /// Whether the tiers are groups of a distribution.
    pub distributed: bool,
    pub rules: Rules,
}

/// What of the policy rules the choice.
#[derive(Debug, Default)]
pub(super) struct Rules {
    pub balancing: LoadBalancing,
    pub overprovisioning: u32,
    pub panic: u32,
    pub slow_start: Duration,
    pub suspect_after: Duration,
    pub outlier: OutlierEjection,
}

/// Endpoints that take load together.
#[derive(Debug)]
pub(super) struct Tier {
    /// Names the same tier in the next table.
    key: String,
    pub range: Range<usize>,
    /// Of a distribution.
    percent: u32,
    /// 0: never dark. `u64::MAX`: dark. Else from when it has something to offer again.
    back: Arc<AtomicU64>,
}

/// A tier as it is at one moment.
pub(super) struct Survey {
    pub grades: SmallVec<[Grade; 16]>,
    pub fine: u64,
    /// How much of it may already be counted on after it was dark, in thousandths.
    part: u64,
}

/// Of the first tiers. Most services have one tier that matters, of few endpoints: no allocation is made for them.
pub(super) type Surveys = SmallVec<[Survey; 1]>;

impl Table {
    /// The next table, keeping what is known of endpoints and tiers that stay; and what was left out.
    pub fn build(old: &Table, first: bool, input: &Input<'_>) -> (Table, Vec<BadEndpoint>) {
        let since = (!first).then_some(input.now);
        let rule = load::rule_for(input.own, &input.policy.distribute);
        let priorities = priority::assign(input.own, input.endpoints, input.policy);
        let known = old.endpoints.iter().map(|endpoint| (endpoint.id.as_str(), endpoint)).collect();
        let mut bad = Vec::new();
        let mut placed = Vec::new();
        for (wire, priority) in input.endpoints.iter().zip(priorities) {
            match endpoint(&known, wire, priority, since, input) {
                Ok(endpoint) => placed.push((seat(rule, wire, input), Arc::new(endpoint))),
                Err(error) => bad.push(error),
            }
        }
        placed.sort_by(|(a, x), (b, y)| (a, &x.id).cmp(&(b, &y.id)));
        let mut tiers: Vec<Tier> = Vec::new();
        for (index, (seat, _)) in placed.iter().enumerate() {
            match tiers.last_mut().filter(|tier| tier.key == seat.key) {
                Some(tier) => tier.range.end = index + 1,
                None => tiers.push(old.tier(seat, index, since)),
            }
        }
        let endpoints = placed.into_iter().map(|(_, endpoint)| endpoint).collect();
        (Table { endpoints, tiers, distributed: rule.is_some(), rules: Rules::new(input.policy) }, bad)
    }

    fn tier(&self, seat: &Seat, start: usize, since: Option<Moment>) -> Tier {
        let known = self.tiers.iter().find(|tier| tier.key == seat.key);
        let back = known.map_or_else(
            || Arc::new(AtomicU64::new(since.map_or(0, Moment::as_nanos))),
            |tier| tier.back.clone(),
        );
        Tier { key: seat.key.clone(), range: start..start + 1, percent: seat.percent, back }
    }

    /// How long the silence of one of them is borne.
    pub fn patience(&self) -> Patience<'_> {
        Patience { after: self.rules.suspect_after, siblings: &self.endpoints }
    }

    /// A tier at `now`. Remembers when it is dark, so that its return can be gentle.
    pub fn survey(&self, tier: usize, now: Moment) -> Survey {
        let tier = &self.tiers[tier];
        let grade = |endpoint: &Arc<Endpoint>| endpoint.grade(now, self.patience());
        let grades: SmallVec<_> = self.endpoints[tier.range.clone()].iter().map(grade).collect();
        let fine = grades.iter().filter(|&&grade| grade == Grade::Fine).count() as u64;
        Survey { grades, fine, part: tier.part(fine > 0, now) }
    }

    /// Tiers at `now`, as many as can matter for a first choice, and the share that each has of it.
    pub fn shares(&self, now: Moment) -> (Surveys, SmallVec<[u32; 4]>) {
        let mut surveys = Surveys::new();
        let mut health = 0;
        for tier in 0..self.tiers.len() {
            let survey = self.survey(tier, now);
            health +=
                load::health(survey.fine * survey.part, survey.total() * 1000, self.rules.overprovisioning);
            surveys.push(survey);
            if health >= 100 && !self.distributed && tier == 0 {
                return (surveys, smallvec![100]); // as mostly: it takes all, and nobody's ejection is ignored
            }
            if health >= 100 && !self.distributed {
                break; // those behind it get nothing
            }
        }
        self.panic(&mut surveys, now);
        let levels = surveys.iter().map(|survey| (survey.fine * survey.part, survey.total() * 1000));
        let shares = if self.distributed {
            let groups: Vec<_> = self.tiers.iter().zip(levels).map(|(t, (h, n))| (t.percent, h, n)).collect();
            load::distribute(&groups, self.rules.overprovisioning)
        } else {
            load::shares(&levels.collect::<Vec<_>>(), self.rules.overprovisioning)
        };
        (surveys, shares.into())
    }

    /// Ignores ejections where the panic rule says so. A distribution is one level for it.
    fn panic(&self, surveys: &mut [Survey], now: Moment) {
        let mut levels: Vec<_> = surveys.iter().map(|survey| (survey.fine, survey.total())).collect();
        if self.distributed {
            levels = vec![levels.iter().fold((0, 0), |(h, t), (fine, total)| (h + fine, t + total))];
        }
        let panics = load::panics(&levels, self.rules.overprovisioning, self.rules.panic);
        for (index, survey) in surveys.iter_mut().enumerate() {
            if !panics[index.min(panics.len() - 1)] {
                continue;
            }
            let endpoints = &self.endpoints[self.tiers[index].range.clone()];
            for (grade, endpoint) in survey.grades.iter_mut().zip(endpoints) {
                if *grade == Grade::Ejected {
                    *grade = endpoint.grade_unejected(now, self.patience());
                }
            }
        }
    }

    /// The tier of an endpoint of this table.
    pub fn tier_of(&self, id: &EndpointId) -> Option<usize> {
        let index = self.endpoints.iter().position(|endpoint| endpoint.id == *id)?;
        self.tiers.iter().position(|tier| tier.range.contains(&index))
    }

    /// Whether what `tier` cannot take may go to `other`.
    pub fn spills(&self, tier: usize, other: usize) -> bool {
        if self.distributed { other != tier } else { other > tier }
    }
}

impl Survey {
    pub fn total(&self) -> u64 {
        self.grades.len() as u64
    }
}

impl Tier {
    fn part(&self, offers: bool, now: Moment) -> u64 {
        const DARK: u64 = u64::MAX;
        let back = self.back.load(Relaxed);
        let set = |value: u64| self.back.store(value, Relaxed);
        match (offers, back) {
            (false, DARK) => 0,
            (false, _) => {
                set(DARK);
                0
            }
            (true, 0) => 1000,
            (true, DARK) => {
                set(now.as_nanos());
                (ramp(Duration::ZERO, FAILBACK) * 1000.0) as u64
            }
            (true, since) => (ramp(now.after(Moment::from_nanos(since)), FAILBACK) * 1000.0) as u64,
        }
    }
}

impl Rules {
    fn new(policy: &TrafficPolicy) -> Self {
        let overprovisioning = policy.overprovisioning_percent;
        let suspect_after_ms = policy.timeouts.as_ref().map_or(0, |timeouts| timeouts.suspect_after_ms);
        Rules {
            balancing: policy.load_balancing(),
            overprovisioning: if overprovisioning == 0 { OVERPROVISIONING } else { overprovisioning },
            panic: policy.panic_percent,
            slow_start: Duration::from_millis(policy.slow_start_ms),
            suspect_after: Duration::from_millis(suspect_after_ms),
            outlier: policy.outlier.unwrap_or_default(),
        }
    }
}

/// An endpoint of the next table, with what is `known` of it.
fn endpoint(
    known: &HashMap<&str, &Arc<Endpoint>>,
    wire: &wire::Endpoint,
    priority: u32,
    since: Option<Moment>,
    input: &Input<'_>,
) -> Result<Endpoint, BadEndpoint> {
    let id = EndpointId::parse(&wire.id)?;
    let address = wire.address.parse().map_err(|_| BadEndpoint::Address {
        id: wire.id.clone(),
        address: wire.address.chars().take(80).collect(),
    })?;
    let known = known.get(id.as_str());
    if let Some(known) = known
        && known.wire.health() != Health::Healthy
        && wire.health() == Health::Healthy
    {
        known.live.restart(input.now);
    }
    let live = known.map_or_else(|| Arc::new(Live::new(since)), |known| known.live.clone());
    let gateway = (!input.own.shares_network(wire)).then(|| input.gateways.network(&wire.network));
    Ok(Endpoint { id, address, wire: wire.clone(), priority, gateway, stale: stale(wire, input), live })
}

/// Where an endpoint belongs. In a distribution: its group, those with the largest part first, and what no
/// group names last; else its distance.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Seat {
    order: u32,
    key: String,
    percent: u32,
}

fn seat(rule: Option<&Distribution>, wire: &wire::Endpoint, input: &Input<'_>) -> Seat {
    let Some(rule) = rule else {
        let rank = priority::rank(input.own, wire, input.policy);
        return Seat { order: rank, key: rank.to_string(), percent: 0 };
    };
    let group = load::group(rule, wire.locality.as_ref()).unwrap_or_default();
    let percent = rule.to.get(group).copied().unwrap_or(0).min(100);
    Seat { order: 100 - percent, key: group.to_owned(), percent }
}

fn stale(wire: &wire::Endpoint, input: &Input<'_>) -> Option<Stale> {
    let rule = input.policy.stale_endpoints();
    if rule == StaleRule::Keep || wire.stale_since == 0 {
        return None;
    }
    let age =
        Duration::from_secs(u64::try_from(input.unix_seconds.saturating_sub(wire.stale_since)).unwrap_or(0));
    let wait = Duration::from_millis(input.policy.stale_after_ms).saturating_sub(age);
    Some(Stale { from: input.now + wait, drop: rule == StaleRule::Drop })
}
