//! What this proxy has seen of an endpoint: latency, silence, errors in a row, ejections.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::{
    Moment,
    probe::{Limits, Turn},
    silence::{Patience, Silence},
};

/// How fast a latency that is not seen again loses its weight in the choice between two.
const LATENCY_DECAY: Duration = Duration::from_secs(5);

/// How fast a "too many requests" is forgotten.
const BUSY_DECAY: Duration = Duration::from_secs(10);

/// How often what was ejected while it refused is asked whether it still does.
const TRIAL: Duration = Duration::from_secs(1);

/// What such a trial may take to connect, if the endpoint is usually no slower. A host that is gone refuses nothing, and
/// a real request waits; an application that is just back may take longer to answer.
const TRIAL_CONNECT: Duration = Duration::from_millis(400);

/// The part of its weight that an endpoint starts with.
const SLOWEST_START: f64 = 0.1;

/// How a try ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A response that tells nothing bad of the endpoint (4xx included).
    Success,
    /// No connection to the endpoint itself, or its word that it did not process the request.
    /// (A gateway that cannot be connected to is [`Outcome::Cancelled`] here and the gateway's own failure.)
    ConnectFailure,
    /// Reset, or 502, 503, 504.
    GatewayError,
    /// Nothing came in time.
    Late {
        /// Whether there was a connection: then no response head came, else no connection came about.
        connected: bool,
    },
    /// Another 5xx.
    ServerError,
    /// 429 or `RESOURCE_EXHAUSTED`: a smaller share, no ejection.
    Busy,
    /// The caller gave up, which says nothing of the endpoint.
    Cancelled,
}

/// What this proxy has seen of an endpoint; shared by all workers, kept for as long as the endpoint is.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Picked and not finished.
    outstanding: AtomicU32,
    silence: Silence,
    latency: Decaying,
    usual: Usual,
    busy: Decaying,
    gateway_errors: AtomicU32,
    connect_failures: AtomicU32,
    server_errors: AtomicU32,
    ejected_until: AtomicU64,
    /// Whether the last that was seen of it when it was ejected is that it refuses.
    refusing: AtomicBool,
    trial: Turn,
    /// Ejections in a row; the sweep forgives one in each interval without.
    ejections: AtomicU32,
    /// From when its slow start counts; 0: it was there from the beginning.
    since: AtomicU64,
    /// Finished since the last sweep, and failed among them.
    window: AtomicU32,
    window_failures: AtomicU32,
}

/// What a try finds out beside its own end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Probing {
    /// Whether a suspected endpoint speaks again.
    Silent,
    /// Whether an ejected one still refuses.
    Refusing,
}

/// Errors in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Streak {
    pub gateway_errors: u32,
    pub connect_failures: u32,
    pub server_errors: u32,
}

impl Live {
    pub(super) fn new(since: Option<Moment>) -> Self {
        Live { since: AtomicU64::new(since.map_or(0, Moment::as_nanos)), ..Live::default() }
    }

    pub(super) fn restart(&self, now: Moment) {
        self.since.store(now.as_nanos(), Relaxed);
    }

    pub(super) fn outstanding(&self) -> u32 {
        self.outstanding.load(Relaxed)
    }

    /// Peak EWMA of the time to the response head, decayed since it was last seen; 0 when nothing is known.
    pub(super) fn latency_nanos(&self, now: Moment) -> f64 {
        self.latency.read(now, LATENCY_DECAY)
    }

    /// Whether it has answered in the last `time`.
    fn heard_within(&self, time: Duration, now: Moment) -> bool {
        now.after(Moment::from_nanos(self.latency.at.load(Relaxed))) < time
    }

    /// How often it said lately that it is too busy; fades.
    pub(super) fn busy(&self, now: Moment) -> f64 {
        self.busy.read(now, BUSY_DECAY)
    }

    /// How long it mostly takes to the response head; zero when nothing is known.
    pub(super) fn usual(&self) -> Duration {
        Duration::from_nanos(self.usual.0.load(Relaxed))
    }

    // The life of a try.

    pub(super) fn start(&self, now: Moment) {
        self.silence.begin(now);
        self.outstanding.fetch_add(1, Relaxed);
    }

    pub(super) fn connect(&self, now: Moment) {
        self.silence.connect(now);
    }

    pub(super) fn connected(&self, now: Option<Moment>) {
        self.silence.connected(now);
    }

    pub(super) fn head(&self, latency: Duration, now: Moment) {
        self.silence.broken(now);
        self.latency.peak(latency.as_nanos() as f64, now);
        self.usual.see(latency);
    }

    /// A try is over; without a response head after it was `borne` for so long, unless that was judged.
    pub(super) fn release(&self, borne: Option<Duration>, probing: Option<Probing>) {
        if let Some(borne) = borne {
            self.silence.give_up(borne);
        }
        match probing {
            Some(Probing::Silent) => self.silence.probed(),
            Some(Probing::Refusing) => self.trial.end(),
            None => {}
        }
        self.outstanding.fetch_sub(1, Relaxed);
    }

    /// Counts how a try ended; the streak if it ended badly. Of those that come too late while the endpoint is
    /// suspected only the first counts: they all tell of one and the same hang, and suspicion keeps the load away
    /// already and ends with the first answer, which an ejection does not.
    pub(super) fn settle(&self, outcome: Outcome, now: Moment) -> Option<Streak> {
        if matches!(outcome, Outcome::Late { .. }) && self.silence.charged() {
            return None;
        }
        let streaks = [&self.gateway_errors, &self.connect_failures, &self.server_errors];
        let grows = match outcome {
            Outcome::Cancelled => return None,
            Outcome::Success | Outcome::Busy => [false, false, false],
            Outcome::ServerError => [false, false, true],
            Outcome::GatewayError | Outcome::Late { connected: true } => [true, false, true],
            Outcome::ConnectFailure | Outcome::Late { connected: false } => [true, true, true],
        };
        if outcome == Outcome::Busy {
            self.busy.add(1.0, now);
        }
        let [gateway_errors, connect_failures, server_errors] =
            [0, 1, 2].map(|i: usize| step(streaks[i], grows[i]));
        let failed = grows[2];
        self.window.fetch_add(1, Relaxed);
        self.window_failures.fetch_add(u32::from(failed), Relaxed);
        failed.then_some(Streak { gateway_errors, connect_failures, server_errors })
    }

    // Suspicion.

    pub(super) fn suspect(&self, now: Moment, patience: Patience<'_>) -> bool {
        self.silence.suspect(now, || patience.threshold(self.usual()))
    }

    /// A probe was late.
    pub(super) fn suspect_again(&self, now: Moment) {
        self.silence.suspected(now);
    }

    /// Takes the place of the one probe, if it is due: the time that the probe has.
    pub(super) fn claim_probe(
        &self,
        now: Moment,
        patience: Patience<'_>,
        may_repeat: bool,
    ) -> Option<Limits> {
        let due = self.silence.claim_probe(now, patience.after, may_repeat);
        due.then(|| self.probe_limits(patience))
    }

    /// What a try may take, unless it has answered lately: the time of a probe.
    pub(super) fn doubted(&self, now: Moment, patience: Patience<'_>) -> Option<Limits> {
        (!self.heard_within(patience.after, now)).then(|| self.probe_limits(patience))
    }

    fn probe_limits(&self, patience: Patience<'_>) -> Limits {
        let usual = patience.probe(self.usual());
        Limits { connect: usual, head: usual }
    }

    // Ejection.

    pub(super) fn ejected(&self, now: Moment) -> bool {
        self.ejected_until.load(Relaxed) > now.as_nanos()
    }

    pub(super) fn ejected_until(&self) -> Moment {
        Moment::from_nanos(self.ejected_until.load(Relaxed))
    }

    /// Ejects it for `time(n)` at its nth ejection in a row; slow start begins at its return.
    pub(super) fn eject(&self, refusing: bool, now: Moment, time: impl FnOnce(u32) -> Duration) {
        self.refusing.store(refusing, Relaxed);
        self.trial.wait_from(now);
        let until = now + time(self.ejections.fetch_add(1, Relaxed) + 1);
        self.ejected_until.store(until.as_nanos(), Relaxed);
        self.since.store(until.as_nanos(), Relaxed);
        for streak in [&self.gateway_errors, &self.connect_failures, &self.server_errors] {
            streak.store(0, Relaxed);
        }
    }

    /// Takes the place of the one trial of what was ejected while it refused, if it is due: the time that it has. To be
    /// refused costs a request nothing, so that nobody has to wait for the end of the ejection to see whether an
    /// application is back. What was ejected for answering badly has its time.
    pub(super) fn claim_trial(
        &self,
        now: Moment,
        patience: Patience<'_>,
        may_repeat: bool,
    ) -> Option<Limits> {
        let due = self.refusing.load(Relaxed) && self.trial.claim(now, TRIAL, may_repeat);
        due.then(|| {
            let usual = patience.probe(self.usual());
            Limits { connect: TRIAL_CONNECT.max(usual), head: TRIAL.max(usual) }
        })
    }

    /// How a trial ended: with an answer the ejection does too; after a refusal the next trial will tell; whatever else
    /// was seen costs more than a refusal, so that there are no more of them.
    pub(super) fn tried(&self, outcome: Outcome, now: Moment) {
        match outcome {
            Outcome::Success | Outcome::Busy | Outcome::ServerError => {
                if self.ejected(now) {
                    self.ejected_until.store(now.as_nanos(), Relaxed);
                    self.since.store(now.as_nanos(), Relaxed);
                }
            }
            Outcome::ConnectFailure | Outcome::Cancelled => {}
            Outcome::GatewayError | Outcome::Late { .. } => self.refusing.store(false, Relaxed),
        }
    }

    /// One ejection less to hold against it.
    pub(super) fn forgive(&self) {
        let _ = self.ejections.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
    }

    /// Tries finished and failed since the last call.
    pub(super) fn take_window(&self) -> (u32, u32) {
        (self.window.swap(0, Relaxed), self.window_failures.swap(0, Relaxed))
    }

    pub(super) fn started_part(&self, now: Moment, slow_start: Duration) -> f64 {
        let since = self.since.load(Relaxed);
        if slow_start.is_zero() || since == 0 {
            return 1.0;
        }
        ramp(now.after(Moment::from_nanos(since)), slow_start)
    }
}

/// From a tenth to one, over `whole`.
pub(super) fn ramp(passed: Duration, whole: Duration) -> f64 {
    (passed.as_secs_f64() / whole.as_secs_f64()).clamp(SLOWEST_START, 1.0)
}

/// A streak that grows or ends. Writes only when something changes: on the good path nothing does.
fn step(streak: &AtomicU32, grows: bool) -> u32 {
    if grows {
        return streak.fetch_add(1, Relaxed) + 1;
    }
    if streak.load(Relaxed) > 0 {
        streak.store(0, Relaxed);
    }
    0
}

/// A number that fades. Two workers that write at once may lose one of the two, which does no harm.
#[derive(Debug, Default)]
struct Decaying {
    /// Bits of an `f64`.
    value: AtomicU64,
    at: AtomicU64,
}

impl Decaying {
    fn last(&self) -> f64 {
        f64::from_bits(self.value.load(Relaxed))
    }

    fn fade(&self, now: Moment, decay: Duration) -> f64 {
        let passed = now.as_nanos().saturating_sub(self.at.load(Relaxed)) as f64;
        (-passed / decay.as_nanos() as f64).exp()
    }

    fn read(&self, now: Moment, decay: Duration) -> f64 {
        let last = self.last();
        if last == 0.0 { 0.0 } else { last * self.fade(now, decay) }
    }

    fn write(&self, value: f64, now: Moment) {
        self.value.store(value.to_bits(), Relaxed);
        self.at.store(now.as_nanos(), Relaxed);
    }

    /// Up at once, down slowly.
    fn peak(&self, seen: f64, now: Moment) {
        let last = self.last();
        let part = if seen >= last { 0.0 } else { self.fade(now, LATENCY_DECAY) };
        self.write(last * part + seen * (1.0 - part), now);
    }

    fn add(&self, more: f64, now: Moment) {
        self.write((self.read(now, BUSY_DECAY) + more).min(7.0), now);
    }
}

/// What answers mostly take: it grows by a twentieth with each that is slower, and halves its distance to one that is
/// quicker. An answer that had to wait for what hangs behind is not usual; by peaks, silence would be borne for five
/// times as long, for many seconds after it.
#[derive(Debug, Default)]
struct Usual(AtomicU64);

impl Usual {
    fn see(&self, latency: Duration) {
        let (seen, old) = (latency.as_nanos() as u64, self.0.load(Relaxed));
        let next = match old {
            0 => seen,
            _ if seen > old => seen.min(old + old / 20),
            _ => old - (old - seen) / 2,
        };
        if next != old {
            self.0.store(next.max(1), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    const SECOND: Duration = Duration::from_secs(1);

    /// One that has answered once, in `latency` milliseconds.
    fn answered(latency: u64) -> Live {
        let live = Live::default();
        live.start(at(0));
        live.head(Duration::from_millis(latency), at(latency));
        live.release(None, None);
        live
    }

    #[test]
    fn latency_goes_up_at_once_and_down_slowly() {
        let live = answered(10);
        let seen = |now| live.latency_nanos(at(now)) / 1e6;
        assert!((seen(10) - 10.0).abs() < 0.01);
        live.latency.peak(100e6, at(11));
        assert!((seen(11) - 100.0).abs() < 0.01, "a peak counts whole");
        live.latency.peak(10e6, at(12));
        assert!(seen(12) > 99.0, "one good answer does not forgive it");
        assert!(seen(5012) < 40.0, "time does");
    }

    #[test]
    fn what_had_to_wait_is_not_usual() {
        let live = answered(10);
        let answers = |latency, count| {
            (0..count).for_each(|_| live.usual.see(Duration::from_millis(latency)));
            live.usual().as_millis()
        };
        assert!((20..30).contains(&answers(2400, 20)), "twenty of them, one after the other");
        assert_eq!(answers(10, 6), 10);
        assert!(answers(2400, 200) == 2400, "it is now");
        assert!(answers(10, 10) < 13, "and no longer");
    }

    #[test]
    fn streaks_by_outcome() {
        use Outcome::*;
        let check = |outcomes: &[Outcome], expect: Option<(u32, u32, u32)>| {
            let live = Live::default();
            let last = outcomes.iter().map(|&o| live.settle(o, at(1))).last().unwrap();
            let streak = last.map(|s| (s.gateway_errors, s.connect_failures, s.server_errors));
            assert_eq!(streak, expect, "{outcomes:?}");
        };
        check(&[GatewayError, ConnectFailure], Some((2, 1, 2)));
        check(&[ConnectFailure, GatewayError], Some((2, 0, 2)));
        check(&[GatewayError, ServerError], Some((0, 0, 2)));
        check(&[GatewayError, Success, GatewayError], Some((1, 0, 1)));
        check(&[GatewayError, Busy, GatewayError], Some((1, 0, 1)));
        check(&[GatewayError, Cancelled, GatewayError], Some((2, 0, 2)));
        check(&[Late { connected: true }, Late { connected: false }], Some((2, 1, 2)));
        check(&[Success], None);
    }

    #[test]
    fn one_hang_counts_once() {
        let late = Outcome::Late { connected: true };
        let errors = |live: &Live| live.settle(late, at(1)).map(|streak| streak.gateway_errors);
        let live = Live::default();
        live.suspect_again(at(1));
        assert_eq!([errors(&live), errors(&live), errors(&live)], [Some(1), None, None]);
        live.start(at(2));
        live.head(SECOND, at(3));
        live.suspect_again(at(4));
        assert_eq!([errors(&live), errors(&live)], [Some(2), None], "the next hang is another one");
        assert!(live.settle(Outcome::GatewayError, at(5)).is_some(), "a reset is no silence");
    }

    #[test]
    fn ejections_lengthen_and_are_forgiven() {
        let live = Live::default();
        let time = |count: u32| SECOND * count;
        live.eject(false, at(0), time);
        assert!(live.ejected(at(999)) && !live.ejected(at(1001)));
        live.eject(false, at(2000), time);
        assert!(live.ejected(at(3999)) && !live.ejected(at(4001)));
        live.forgive();
        live.eject(false, at(5000), time);
        assert!(live.ejected(at(6999)) && !live.ejected(at(7001)));
    }

    #[test]
    fn slow_start_begins_at_a_tenth() {
        let part = |live: &Live, millis| live.started_part(at(millis), SECOND * 10);
        let live = Live::new(Some(at(1000)));
        assert_eq!(part(&live, 1000), 0.1);
        assert_eq!(part(&live, 6000), 0.5);
        assert_eq!(part(&live, 60_000), 1.0);
        assert_eq!(part(&Live::new(None), 0), 1.0, "there from the beginning");
        assert_eq!(live.started_part(at(1000), Duration::ZERO), 1.0, "off");
    }
}
