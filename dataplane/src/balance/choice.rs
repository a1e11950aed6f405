//! One pick: the tier by its share of the load, the fittest in it, the less loaded of two.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use api::{endpoint::EndpointId, wire::LoadBalancing};
use smallvec::SmallVec;

use super::{
    Moment,
    endpoint::{Endpoint, Grade},
    live::Probing,
    mix,
    probe::Limits,
    table::{Surveys, Table},
    unit,
};

/// Endpoints that a request connects to in vain within one priority before it goes on to the next.
const CONNECTS_PER_PRIORITY: usize = 2;

/// Endpoints that a request connects to in vain over all.
const CONNECTS_OVER_ALL: usize = 6;

/// What a try asks for.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Now.
    pub now: Moment,
    /// A random number; another one for each try.
    pub chance: u64,
    /// The endpoints that this request has tried already.
    pub tried: &'a Tried,
    /// Whether it can be sent again when it is not answered in time: such a try probes endpoints; others do so only
    /// rarely, for the sake of services that are never asked anything else.
    pub may_repeat: bool,
}

/// The endpoints that one request has tried.
#[derive(Debug, Clone, Default)]
pub struct Tried {
    endpoints: Vec<(EndpointId, End)>,
}

/// How a request fared with an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It was refused a connection, or told that it was not processed.
    Refused,
    /// No connection came in time.
    Late,
    /// It was sent.
    Failed,
}

/// A try that finds out how an endpoint is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probe {
    pub limits: Limits,
    pub of: Probing,
}

/// One pick under way.
pub(super) struct Choice<'a> {
    table: &'a Table,
    turn: &'a AtomicUsize,
    ask: &'a Ask<'a>,
    /// Of the first tiers; the others are surveyed when they are needed.
    surveys: Surveys,
    /// The tier that the load shares gave.
    first: usize,
}

impl<'a> Choice<'a> {
    pub fn new(table: &'a Table, turn: &'a AtomicUsize, ask: &'a Ask<'a>) -> Self {
        let (surveys, shares) = table.shares(ask.now);
        let roll = (mix(ask.chance) % 100) as u32;
        let mut sum = 0;
        let reached = |share: &u32| {
            sum += share;
            roll < sum
        };
        let first = shares.iter().position(reached).unwrap_or(0);
        Choice { table, turn, ask, surveys, first }
    }

    /// An endpoint that is due for a probe, no farther away than what the shares gave: a suspected one, or one that
    /// was ejected while it refused. In a distribution nothing is far away: a group of suspects has no share, and
    /// without probes would never have one again.
    pub fn probe(&self) -> Option<(&'a Arc<Endpoint>, Probe)> {
        if !self.ask.tried.is_empty() {
            return None;
        }
        let reach = if self.table.distributed { self.surveys.len() } else { self.first + 1 };
        let near = self.surveys.iter().enumerate().take(reach);
        near.flat_map(|(tier, survey)| self.members(tier).iter().zip(&survey.grades))
            .find_map(|(endpoint, grade)| Some((endpoint, self.claim(endpoint, *grade)?)))
    }

    fn claim(&self, endpoint: &Endpoint, grade: Grade) -> Option<Probe> {
        let Ask { now, may_repeat, .. } = *self.ask;
        let (patience, live) = (self.table.patience(), &endpoint.live);
        let (limits, of) = match grade {
            Grade::Suspect => (live.claim_probe(now, patience, may_repeat)?, Probing::Silent),
            Grade::Ejected => (live.claim_trial(now, patience, may_repeat)?, Probing::Refusing),
            Grade::Fine | Grade::Unfit => return None,
        };
        Some(Probe { limits, of })
    }

    /// What a first try at `endpoint` may take while one beside it is suspected: what hangs seldom hangs alone, and one
    /// that was not asked since would hold each request that comes to it until it is suspected too. Only where somebody
    /// else is left to go to.
    pub fn doubt(&self, endpoint: &Endpoint) -> Option<Limits> {
        let Ask { now, tried, may_repeat, .. } = *self.ask;
        if !may_repeat || !tried.is_empty() || self.surveys.iter().map(|survey| survey.fine).sum::<u64>() < 2
        {
            return None;
        }
        let (_, survey) = self.surveys.iter().enumerate().find(|(tier, survey)| {
            let graded = self.members(*tier).iter().zip(&survey.grades);
            graded.clone().any(|(one, grade)| one.id == endpoint.id && *grade == Grade::Fine)
        })?;
        let beside = survey.grades.contains(&Grade::Suspect);
        beside.then(|| endpoint.live.doubted(now, self.table.patience())).flatten()
    }

    /// The fittest that was not tried, in the tier that the shares gave if it can be had there; then one
    /// that was reached before, which is still better than nothing.
    pub fn best(&mut self) -> Option<&'a Arc<Endpoint>> {
        let tried = self.ask.tried;
        let mut order: SmallVec<[usize; 4]> = (0..self.table.tiers.len()).collect();
        order.sort_by_key(|&tier| (tried.shuns(self.table, tier), tier != self.first, tier));
        self.search(&order, |id| !tried.has(id))
            .or_else(|| (!tried.is_empty()).then(|| self.search(&order, |id| !tried.in_vain(id))).flatten())
    }

    fn search(&mut self, order: &[usize], may: impl Fn(&EndpointId) -> bool) -> Option<&'a Arc<Endpoint>> {
        for grade in Grade::ALL {
            for &tier in order {
                while self.surveys.len() <= tier {
                    self.surveys.push(self.table.survey(self.surveys.len(), self.ask.now));
                }
                let graded = self.members(tier).iter().zip(&self.surveys[tier].grades);
                let open: SmallVec<[_; 16]> =
                    graded.filter(|(e, g)| **g == grade && may(&e.id)).map(|(e, _)| e).collect();
                if !open.is_empty() {
                    return Some(self.balance(&open));
                }
            }
        }
        None
    }

    fn members(&self, tier: usize) -> &'a [Arc<Endpoint>] {
        &self.table.endpoints[self.table.tiers[tier].range.clone()]
    }

    /// One of several that are equally fit; never called with none.
    fn balance(&self, open: &[&'a Arc<Endpoint>]) -> &'a Arc<Endpoint> {
        match self.table.rules.balancing {
            _ if open.len() == 1 => open[0],
            LoadBalancing::LeastRequest => self.less_loaded_of_two(open),
            LoadBalancing::Random => self.by_weight(open, unit(mix(self.ask.chance.wrapping_add(1)))),
            LoadBalancing::RoundRobin => self.next_in_turn(open),
        }
    }

    fn less_loaded_of_two(&self, open: &[&'a Arc<Endpoint>]) -> &'a Arc<Endpoint> {
        let a = (mix(self.ask.chance.wrapping_add(1)) % open.len() as u64) as usize;
        let step = 1 + (mix(self.ask.chance.wrapping_add(2)) % (open.len() as u64 - 1)) as usize;
        let (a, b) = (open[a], open[(a + step) % open.len()]);
        let now = self.ask.now;
        let latencies = (a.live.latency_nanos(now), b.live.latency_nanos(now));
        // Nothing is known of one of them: then only what is under way counts.
        let (x, y) = if latencies.0 * latencies.1 == 0.0 { (1.0, 1.0) } else { latencies };
        let cost = |endpoint: &Endpoint, latency: f64| {
            let weight = endpoint.weight(now, self.table.rules.slow_start);
            latency * f64::from(endpoint.live.outstanding() + 1) / weight
        };
        if cost(b, y) < cost(a, x) { b } else { a }
    }

    /// In turn when all weigh the same; else along the golden ratio, which is as even for any weights.
    fn next_in_turn(&self, open: &[&'a Arc<Endpoint>]) -> &'a Arc<Endpoint> {
        const GOLDEN: f64 = 0.618_033_988_749_894_8;
        let turn = self.turn.fetch_add(1, Relaxed);
        let weight = |endpoint: &Endpoint| endpoint.weight(self.ask.now, self.table.rules.slow_start);
        if open.iter().all(|endpoint| weight(endpoint) == weight(open[0])) {
            return open[turn % open.len()];
        }
        self.by_weight(open, ((turn % (1 << 32)) as f64 * GOLDEN).fract())
    }

    /// The one at `point` (of `0.0..1.0`) when each takes room by its weight.
    fn by_weight(&self, open: &[&'a Arc<Endpoint>], point: f64) -> &'a Arc<Endpoint> {
        let weight = |endpoint: &Endpoint| endpoint.weight(self.ask.now, self.table.rules.slow_start);
        let mut left = point * open.iter().map(|endpoint| weight(endpoint)).sum::<f64>();
        let found = open.iter().find(|endpoint| {
            left -= weight(endpoint);
            left < 0.0
        });
        found.unwrap_or(&open[open.len() - 1])
    }
}

impl Tried {
    /// No connection to `endpoint` came about, or it said that it did not process the request.
    pub fn connect_failed(&mut self, endpoint: &Endpoint) {
        self.endpoints.push((endpoint.id.clone(), End::Refused));
    }

    /// No connection to `endpoint` came about in time. What hangs seldom hangs alone, and each one in vain costs a
    /// connect's whole limit, so the next is one of another priority.
    pub fn connect_late(&mut self, endpoint: &Endpoint) {
        self.endpoints.push((endpoint.id.clone(), End::Late));
    }

    /// `endpoint` had the request and did not answer it well.
    pub fn failed(&mut self, endpoint: &Endpoint) {
        self.endpoints.push((endpoint.id.clone(), End::Failed));
    }

    /// Whether the request may go on to another endpoint after a failed connect.
    pub fn may_connect(&self) -> bool {
        self.endpoints.iter().filter(|(_, end)| *end != End::Failed).count() < CONNECTS_OVER_ALL
    }

    /// How often it was tried at all.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// Whether it was not tried yet.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    pub(super) fn has(&self, id: &EndpointId) -> bool {
        self.endpoints.iter().any(|(tried, _)| tried == id)
    }

    fn in_vain(&self, id: &EndpointId) -> bool {
        self.endpoints.iter().any(|(tried, end)| *end != End::Failed && tried == id)
    }

    /// Whether the next try should rather go to another tier than `tier`.
    fn shuns(&self, table: &Table, tier: usize) -> bool {
        let here = self.endpoints.iter().filter(|(id, _)| table.tier_of(id) == Some(tier));
        let refused = here.clone().filter(|(_, end)| *end == End::Refused).count();
        here.count() > refused || refused >= CONNECTS_PER_PRIORITY
    }
}
