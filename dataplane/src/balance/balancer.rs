//! One service's endpoints: which of them takes the next try, and what is learnt from how it ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use api::endpoint::EndpointId;
use arc_swap::ArcSwap;

use super::{
    Moment,
    choice::{Ask, Choice, Probe},
    endpoint::{BadEndpoint, Endpoint, Grade},
    live::{Outcome, Probing, Streak},
    outlier,
    probe::Limits,
    table::{Input, Table},
};

/// One service (one target port of it) as one proxy balances it, shared by all workers.
#[derive(Debug, Default)]
pub struct Balancer {
    table: ArcSwap<Table>,
    filled: AtomicBool,
    /// For round robin.
    turn: AtomicUsize,
    swept_at: AtomicU64,
    /// Held while an ejection is judged, so that two at once cannot take out the last two endpoints.
    judging: Mutex<()>,
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub enum Pick {
    /// Send it here.
    Endpoint(Picked),
    /// There is nowhere to send it.
    None(NoEndpoint),
}

/// Why there is nowhere to send a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoEndpoint {
    /// The service has none.
    #[error("the service has no endpoints: is a workload of it registered?")]
    Empty,
    /// All that there are were tried.
    #[error("all endpoints that may be tried were tried")]
    Exhausted,
}

/// A try under way at one endpoint. Dropped without [`Picked::finished`], it counts as cancelled.
#[derive(Debug)]
pub struct Picked {
    endpoint: Arc<Endpoint>,
    balancer: Arc<Balancer>,
    /// Go elsewhere, if it may be sent again, when no connection or no response head has come in this time: this try
    /// probes the endpoint, or there is reason to doubt that it answers.
    pub limits: Option<Limits>,
    probing: Option<Probing>,
    sent: Moment,
    connecting: bool,
    answered: bool,
    /// Whether its end was told to the endpoint's account.
    judged: bool,
    begun: Instant,
}

/// An endpoint as the admin view and the control plane are told of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Its id.
    pub endpoint: String,
    /// Its workload.
    pub workload: String,
    /// Its cluster.
    pub cluster: String,
    /// Its locality priority.
    pub priority: u32,
    /// `fine`, `suspect`, `ejected` or `unfit`.
    pub state: &'static str,
    /// Milliseconds until it returns; 0 when it is not ejected.
    pub ejected_ms: u64,
    /// Tries under way.
    pub outstanding: u32,
    /// Peak EWMA of the time to the response head.
    pub latency_micros: u64,
}

impl Balancer {
    /// Takes over endpoints and policy as they are now. What is known of endpoints that stay is kept; an
    /// endpoint that cannot be read is left out and returned. Called by one task only.
    pub fn update(&self, input: &Input<'_>) -> Vec<BadEndpoint> {
        let first = !self.filled.swap(true, Relaxed);
        let (table, bad) = Table::build(&self.table.load(), first, input);
        self.table.store(Arc::new(table));
        bad
    }

    /// Chooses the endpoint of the next try, and counts it as under way.
    pub fn pick(self: &Arc<Self>, ask: &Ask<'_>) -> Pick {
        let table = self.table.load();
        if table.endpoints.is_empty() {
            return Pick::None(NoEndpoint::Empty);
        }
        let mut choice = Choice::new(&table, &self.turn, ask);
        if let Some((endpoint, Probe { limits, of })) = choice.probe() {
            return Pick::Endpoint(self.begin(Arc::clone(endpoint), Some(limits), Some(of), ask.now));
        }
        let Some(endpoint) = choice.best() else { return Pick::None(NoEndpoint::Exhausted) };
        Pick::Endpoint(self.begin(Arc::clone(endpoint), choice.doubt(endpoint), None, ask.now))
    }

    /// This endpoint and no other, whatever is held against it, unless it was tried already.
    pub fn pick_only(self: &Arc<Self>, id: &EndpointId, ask: &Ask<'_>) -> Pick {
        let table = self.table.load();
        match table.endpoints.iter().find(|endpoint| endpoint.id == *id) {
            None => Pick::None(NoEndpoint::Empty),
            Some(_) if ask.tried.has(id) => Pick::None(NoEndpoint::Exhausted),
            Some(endpoint) => Pick::Endpoint(self.begin(Arc::clone(endpoint), None, None, ask.now)),
        }
    }

    fn begin(
        self: &Arc<Self>,
        endpoint: Arc<Endpoint>,
        limits: Option<Limits>,
        probing: Option<Probing>,
        now: Moment,
    ) -> Picked {
        endpoint.live.start(now);
        Picked {
            endpoint,
            balancer: Arc::clone(self),
            limits,
            probing,
            sent: now,
            connecting: false,
            answered: false,
            judged: false,
            begun: Instant::now(),
        }
    }

    /// Once a second or so: suspects the silent, which may be the gateways before them; at each interval of the policy,
    /// forgives and judges success rates.
    pub fn sweep(&self, now: Moment) {
        let table = self.table.load();
        for endpoint in &table.endpoints {
            if endpoint.live.suspect(now, table.patience())
                && let Some(network) = &endpoint.gateway
            {
                network.doubt(now);
            }
        }
        let interval = Duration::from_millis(table.rules.outlier.interval_ms);
        let last = self.swept_at.load(Relaxed);
        let due = last == 0 || now.after(Moment::from_nanos(last)) >= interval;
        if interval.is_zero() || !due || self.swept_at.swap(now.as_nanos(), Relaxed) != last {
            return;
        }
        for endpoint in table.endpoints.iter().filter(|endpoint| !endpoint.live.ejected(now)) {
            endpoint.live.forgive();
        }
        self.judge_success_rates(&table, now);
    }

    fn judge_success_rates(&self, table: &Table, now: Moment) {
        let rules = &table.rules.outlier;
        let rate = |endpoint: &Arc<Endpoint>| {
            let (tries, failures) = endpoint.live.take_window();
            let enough = tries > 0 && tries >= rules.success_rate_request_volume;
            enough.then(|| (Arc::clone(endpoint), 1.0 - f64::from(failures) / f64::from(tries)))
        };
        let rated: Vec<_> = table.endpoints.iter().filter_map(rate).collect();
        let minimum = rules.success_rate_minimum_hosts as usize;
        if minimum == 0 || rated.len() < minimum {
            return;
        }
        let rates: Vec<f64> = rated.iter().map(|(_, rate)| *rate).collect();
        let deviations = f64::from(rules.success_rate_deviations_milli) / 1000.0;
        let threshold = outlier::success_threshold(&rates, deviations);
        for (endpoint, _) in rated.iter().filter(|(_, rate)| *rate < threshold) {
            self.eject(endpoint, false, now);
        }
    }

    /// Ejects after too many errors in a row, the last of them a refusal or not.
    fn judge(&self, endpoint: &Endpoint, streak: Streak, refusing: bool, now: Moment) {
        let table = self.table.load();
        let rules = &table.rules.outlier;
        let over = |count: u32, limit: u32| limit > 0 && count >= limit;
        if over(streak.gateway_errors, rules.consecutive_gateway_errors)
            || over(streak.connect_failures, rules.consecutive_connect_failures)
            || over(streak.server_errors, rules.consecutive_server_errors)
        {
            self.eject(endpoint, refusing, now);
        }
    }

    fn eject(&self, endpoint: &Endpoint, refusing: bool, now: Moment) {
        let _judging = self.judging.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.table.load();
        if endpoint.live.ejected(now) || !may_eject(&table, endpoint, now) {
            return;
        }
        let rules = &table.rules.outlier;
        let base = Duration::from_millis(rules.base_ejection_ms);
        let max = Duration::from_millis(rules.max_ejection_ms);
        let seed = now.as_nanos() ^ Arc::as_ptr(&endpoint.live) as u64;
        endpoint.live.eject(refusing, now, |count| outlier::ejection_time(base, max, count, seed));
    }

    /// All endpoints as they are now.
    pub fn report(&self, now: Moment) -> Vec<Report> {
        let table = self.table.load();
        let report = |endpoint: &Arc<Endpoint>| Report {
            endpoint: endpoint.id.to_string(),
            workload: endpoint.wire.workload.clone(),
            cluster: endpoint.wire.cluster.clone(),
            priority: endpoint.priority,
            state: match endpoint.grade(now, table.patience()) {
                Grade::Fine => "fine",
                Grade::Suspect => "suspect",
                Grade::Ejected => "ejected",
                Grade::Unfit => "unfit",
            },
            ejected_ms: endpoint.live.ejected_until().after(now).as_millis() as u64,
            outstanding: endpoint.live.outstanding(),
            latency_micros: (endpoint.live.latency_nanos(now) / 1000.0) as u64,
        };
        table.endpoints.iter().map(report).collect()
    }
}

/// Whether the rules let `endpoint` go: never the last over all; all of a priority while one below it (or
/// another group of the distribution) has somebody fine; else up to the cap.
fn may_eject(table: &Table, endpoint: &Endpoint, now: Moment) -> bool {
    let Some(tier) = table.tier_of(&endpoint.id) else { return false };
    let rules = &table.rules;
    let stays =
        |other: &&Arc<Endpoint>| other.id != endpoint.id && other.fit(now) && !other.live.ejected(now);
    if !table.endpoints.iter().any(|other| stays(&other)) {
        return false;
    }
    let fine = |tier: usize| {
        let endpoints = &table.endpoints[table.tiers[tier].range.clone()];
        endpoints.iter().any(|other| other.grade(now, table.patience()) == Grade::Fine)
    };
    if (0..table.tiers.len()).any(|other| table.spills(tier, other) && fine(other)) {
        return rules.outlier.max_ejected_percent > 0;
    }
    let all = &table.endpoints[table.tiers[tier].range.clone()];
    let ejected = all.iter().filter(|other| other.live.ejected(now)).count();
    outlier::within_cap(ejected, all.len(), rules.outlier.max_ejected_percent)
}

impl Picked {
    /// Where it goes.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// A connection is made first; only said of endpoints in this network, which take no time for that.
    pub fn connecting(&mut self, now: Moment) {
        self.connecting = true;
        self.endpoint.live.connect(now);
    }

    /// The request was sent: the time to the response head counts from here, without the connect.
    pub fn sent(&mut self, now: Moment) {
        self.sent = now;
        if std::mem::take(&mut self.connecting) {
            self.endpoint.live.connected(Some(now));
        }
    }

    /// The response head is there (for TCP: the connection).
    pub fn head(&mut self, now: Moment) {
        if !self.answered {
            self.answered = true;
            self.endpoint.live.head(now.after(self.sent), now);
        }
    }

    /// The try is over.
    pub fn finished(mut self, outcome: Outcome, now: Moment) {
        self.judged = true;
        if !self.answered {
            self.silent(outcome, now);
        }
        if self.probing == Some(Probing::Refusing) {
            return self.endpoint.live.tried(outcome, now);
        }
        if let Some(streak) = self.endpoint.live.settle(outcome, now) {
            self.balancer.judge(&self.endpoint, streak, outcome == Outcome::ConnectFailure, now);
        }
    }

    /// The try ended without a head: what its waiting has shown is kept, though perhaps nobody waits any longer.
    fn silent(&self, outcome: Outcome, now: Moment) {
        let live = &self.endpoint.live;
        live.suspect(now, self.balancer.table.load().patience());
        if self.limits.is_some() && matches!(outcome, Outcome::Late { .. }) {
            live.suspect_again(now);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        if self.connecting {
            self.endpoint.live.connected(None);
        }
        let borne = match self.judged {
            true => Duration::ZERO,
            false => self.begun.elapsed(),
        };
        self.endpoint.live.release((!self.answered).then_some(borne), self.probing);
    }
}

#[cfg(test)]
mod tests;
