//! What this proxy has seen of an endpoint: latency, silence, errors in a row, ejections.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use super::Moment;

/// How fast a latency that is not seen again loses its weight in the choice between two.
const LATENCY_DECAY: Duration = Duration::from_secs(5);

/// How fast a "too many requests" is forgotten.
const BUSY_DECAY: Duration = Duration::from_secs(10);

/// How often an endpoint's own peak latency must pass in silence before it is suspected.
const SUSPECT_LATENCIES: u32 = 5;

/// A probe waits at least this long for the response head.
const PROBE_LIMIT_LEAST: Duration = Duration::from_millis(100);

/// While older requests still wait for a suspected endpoint they are its probes; yet one of them may hang
/// for good, so a new probe is sent after this many times the usual interval.
const PROBE_BESIDE_WAITING: u32 = 10;

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
    /// Reset, no response head in time, or 502, 503, 504.
    GatewayError,
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
    /// Of these, without a response head.
    unanswered: AtomicU32,
    /// A response head has come, once.
    answered: AtomicBool,
    /// From when it is silent; means something while `unanswered` is above 0.
    silent_since: AtomicU64,
    /// Seen to be silent for too long; stays until the next response head.
    suspect: AtomicBool,
    probing: AtomicBool,
    probed_at: AtomicU64,
    latency: Decaying,
    busy: Decaying,
    gateway_errors: AtomicU32,
    connect_failures: AtomicU32,
    server_errors: AtomicU32,
    ejected_until: AtomicU64,
    /// Ejections in a row; the sweep forgives one in each interval without.
    ejections: AtomicU32,
    /// From when its slow start counts; 0: it was there from the beginning.
    since: AtomicU64,
    /// Finished since the last sweep, and failed among them.
    window: AtomicU32,
    window_failures: AtomicU32,
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

    /// How often it said lately that it is too busy; fades.
    pub(super) fn busy(&self, now: Moment) -> f64 {
        self.busy.read(now, BUSY_DECAY)
    }

    fn peak(&self) -> Duration {
        Duration::from_nanos(self.latency.last() as u64)
    }

    // The life of a try.

    pub(super) fn start(&self, now: Moment) {
        if self.unanswered.load(Relaxed) == 0 {
            self.silent_since.store(now.as_nanos(), Relaxed);
        }
        self.unanswered.fetch_add(1, Relaxed);
        self.outstanding.fetch_add(1, Relaxed);
    }

    pub(super) fn head(&self, latency: Duration, now: Moment) {
        self.silent_since.store(now.as_nanos(), Relaxed);
        self.unanswered.fetch_sub(1, Relaxed);
        self.answered.store(true, Relaxed);
        self.suspect.store(false, Relaxed);
        self.latency.peak(latency.as_nanos() as f64, now);
    }

    pub(super) fn release(&self, answered: bool, probe: bool) {
        if !answered {
            self.unanswered.fetch_sub(1, Relaxed);
        }
        if probe {
            self.probing.store(false, Relaxed);
        }
        self.outstanding.fetch_sub(1, Relaxed);
    }

    /// Counts how a try ended; the streak if it ended badly.
    pub(super) fn settle(&self, outcome: Outcome, now: Moment) -> Option<Streak> {
        let streaks = [&self.gateway_errors, &self.connect_failures, &self.server_errors];
        let grows = match outcome {
            Outcome::Cancelled => return None,
            Outcome::Success | Outcome::Busy => [false, false, false],
            Outcome::ServerError => [false, false, true],
            Outcome::GatewayError => [true, false, true],
            Outcome::ConnectFailure => [true, true, true],
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

    pub(super) fn suspect(&self, now: Moment, after: Duration) -> bool {
        if self.suspect.load(Relaxed) {
            return true;
        }
        if after.is_zero() || self.unanswered.load(Relaxed) == 0 || !self.answered.load(Relaxed) {
            return false;
        }
        let silent = Duration::from_nanos(now.as_nanos().saturating_sub(self.silent_since.load(Relaxed)));
        let suspect = silent > after && silent > self.peak() * SUSPECT_LATENCIES;
        if suspect {
            self.probed_at.store(now.as_nanos(), Relaxed);
            self.suspect.store(true, Relaxed);
        }
        suspect
    }

    /// Takes the place of the one probe, if it is due: the time that the probe has for its response head.
    pub(super) fn claim_probe(&self, now: Moment, suspect_after: Duration) -> Option<Duration> {
        let waiting = self.unanswered.load(Relaxed) > 0;
        let interval = if waiting { suspect_after * PROBE_BESIDE_WAITING } else { suspect_after };
        let since = Duration::from_nanos(now.as_nanos().saturating_sub(self.probed_at.load(Relaxed)));
        if since < interval || self.probing.swap(true, Relaxed) {
            return None;
        }
        self.probed_at.store(now.as_nanos(), Relaxed);
        Some((self.peak() * 3).max(PROBE_LIMIT_LEAST).min(suspect_after.max(PROBE_LIMIT_LEAST)))
    }

    // Ejection.

    pub(super) fn ejected(&self, now: Moment) -> bool {
        self.ejected_until.load(Relaxed) > now.as_nanos()
    }

    pub(super) fn ejected_until(&self) -> Moment {
        Moment::from_nanos(self.ejected_until.load(Relaxed))
    }

    /// Ejects it for `time(n)` at its nth ejection in a row; slow start begins at its return.
    pub(super) fn eject(&self, now: Moment, time: impl FnOnce(u32) -> Duration) {
        let until = now + time(self.ejections.fetch_add(1, Relaxed) + 1);
        self.ejected_until.store(until.as_nanos(), Relaxed);
        self.since.store(until.as_nanos(), Relaxed);
        for streak in [&self.gateway_errors, &self.connect_failures, &self.server_errors] {
            streak.store(0, Relaxed);
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
        live.release(true, false);
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
    fn silence_is_suspect_only_after_an_answer() {
        let fresh = Live::default();
        fresh.start(at(0));
        assert!(!fresh.suspect(at(60_000), SECOND), "it never answered: perhaps it is just slow to begin");

        let live = answered(10);
        live.start(at(5000));
        assert!(!live.suspect(at(6000), SECOND));
        assert!(!live.suspect(at(9000), Duration::ZERO), "switched off");
        assert!(live.suspect(at(6001), SECOND));
        live.release(false, false);
        assert!(live.suspect(at(6002), SECOND), "giving up is no answer");
        live.start(at(6003));
        live.head(Duration::from_millis(1), at(6004));
        assert!(!live.suspect(at(6005), SECOND));
    }

    #[test]
    fn every_head_breaks_the_silence() {
        let live = answered(10);
        live.start(at(0));
        live.start(at(100));
        live.head(Duration::from_millis(800), at(900));
        assert!(!live.suspect(at(1500), SECOND), "it spoke 600 ms ago");
    }

    #[test]
    fn the_slow_are_given_five_times_their_latency() {
        let live = answered(3000);
        live.start(at(10_000));
        assert!(!live.suspect(at(25_000), SECOND));
        assert!(live.suspect(at(25_001), SECOND));
    }

    #[test]
    fn one_probe_at_a_time() {
        let live = answered(1);
        live.start(at(1000));
        assert!(live.suspect(at(2001), SECOND));
        assert_eq!(live.claim_probe(at(3001), SECOND), None, "what waits is probe enough");
        live.release(false, false);
        assert_eq!(live.claim_probe(at(3001), SECOND), Some(PROBE_LIMIT_LEAST));
        live.start(at(3001));
        assert_eq!(live.claim_probe(at(60_000), SECOND), None, "the probe is under way");
        live.release(false, true);
        assert_eq!(live.claim_probe(at(4000), SECOND), None, "too early");
        assert!(live.claim_probe(at(4001), SECOND).is_some());
    }

    #[test]
    fn a_request_that_hangs_for_good_does_not_end_all_probing() {
        let live = answered(1);
        live.start(at(1000));
        assert!(live.suspect(at(2001), SECOND));
        assert_eq!(live.claim_probe(at(12_000), SECOND), None);
        assert!(live.claim_probe(at(12_001), SECOND).is_some());
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
        check(&[Success], None);
    }

    #[test]
    fn ejections_lengthen_and_are_forgiven() {
        let live = Live::default();
        let time = |count: u32| SECOND * count;
        live.eject(at(0), time);
        assert!(live.ejected(at(999)) && !live.ejected(at(1001)));
        live.eject(at(2000), time);
        assert!(live.ejected(at(3999)) && !live.ejected(at(4001)));
        live.forgive();
        live.eject(at(5000), time);
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
