//! Whether an endpoint has fallen silent, and the single probes that find out whether it speaks again.
//!
//! An endpoint that has tries under way (connecting counts, from the pick on) and sends no response head for longer
//! than [`Patience::threshold`] is suspected until its next response head; half of that is enough while a connect
//! inside the network hangs, which takes no application's time. Suspicion only moves load, and only while
//! another endpoint can take it.
//!
//! Therefore it needs no proof that the endpoint ever answered. An endpoint that hangs before its first answer (it is
//! new to this caller, or gets a small share) looks like one that is slow to begin; to wait for it would delay
//! requests one after the other, while to suspect it wrongly costs nothing that its first answer does not mend. It
//! is measured by the slowest of its siblings, as nothing is known of itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{Moment, endpoint::Endpoint, probe::Turn};

/// How often its usual latency an endpoint may be silent.
const SUSPECT_LATENCIES: u32 = 5;

/// A probe waits at least this long, and unless it is in the way of others three times the usual latency.
const PROBE_LEAST: Duration = Duration::from_millis(100);
const PROBE_LATENCIES: u32 = 3;

/// How long silence is borne.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience<'a> {
    /// At least; zero: for ever.
    pub after: Duration,
    /// All endpoints of the service.
    pub siblings: &'a [Arc<Endpoint>],
}

impl Patience<'_> {
    /// The silence after which an endpoint that usually takes so long is suspected; `None`: never.
    pub fn threshold(self, usual: Duration) -> Option<Duration> {
        (!self.after.is_zero()).then(|| self.after.max(self.usual(usual) * SUSPECT_LATENCIES))
    }

    /// The time that a probe has, for connecting and for the response head each. A probe that is late delays a real
    /// request, so this stays below half the patience unless the endpoint was never that quick.
    pub fn probe(self, usual: Duration) -> Duration {
        let usual = self.usual(usual);
        let most = (self.after / 2).max(usual + usual / 2);
        (usual * PROBE_LATENCIES).min(most).max(PROBE_LEAST)
    }

    /// What an endpoint usually takes, or the slowest beside it when that is not known.
    fn usual(self, usual: Duration) -> Duration {
        if usual.is_zero() {
            return self.siblings.iter().map(|one| one.live.usual()).max().unwrap_or_default();
        }
        usual
    }
}

/// The silence of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Silence {
    /// Tries without a response head.
    unanswered: AtomicU32,
    /// From when it is silent; means something while `unanswered` is above 0.
    since: AtomicU64,
    /// How long those waited without a response head, nanoseconds, who left before anything was made of it: their own
    /// time was over, mostly sooner than an endpoint is suspected.
    borne: AtomicU64,
    /// Connects under way inside the network, and from when none has come about.
    connecting: AtomicU32,
    connecting_since: AtomicU64,
    /// Seen to be silent for too long; stays until the next response head.
    suspect: AtomicBool,
    /// A late try has been held against it since it is suspected.
    charged: AtomicBool,
    /// From the last probe on, or from when it was suspected, if that was later.
    probe: Turn,
}

impl Silence {
    /// A try begins.
    pub fn begin(&self, now: Moment) {
        if self.unanswered.load(Relaxed) == 0 {
            // First, so that nobody ever sees a try and an old time.
            self.since.store(now.as_nanos().saturating_sub(self.borne.load(Relaxed)), Relaxed);
        }
        self.unanswered.fetch_add(1, Relaxed);
    }

    /// A try connects.
    pub fn connect(&self, now: Moment) {
        if self.connecting.load(Relaxed) == 0 {
            self.connecting_since.store(now.as_nanos(), Relaxed);
        }
        self.connecting.fetch_add(1, Relaxed);
    }

    /// A connect is over; at `now` with success.
    pub fn connected(&self, now: Option<Moment>) {
        if let Some(now) = now {
            self.connecting_since.store(now.as_nanos(), Relaxed);
        }
        self.connecting.fetch_sub(1, Relaxed);
    }

    /// A response head has come.
    pub fn broken(&self, now: Moment) {
        self.since.store(now.as_nanos(), Relaxed);
        if self.borne.load(Relaxed) > 0 {
            self.borne.store(0, Relaxed);
        }
        self.unanswered.fetch_sub(1, Relaxed);
        if self.suspect.load(Relaxed) {
            self.suspect.store(false, Relaxed);
            self.charged.store(false, Relaxed);
        }
    }

    /// A try is over without a head; nobody else has judged what it bore.
    pub fn give_up(&self, borne: Duration) {
        if self.unanswered.fetch_sub(1, Relaxed) == 1 {
            self.borne.fetch_add(borne.as_nanos() as u64, Relaxed);
        }
    }

    /// A probe is over.
    pub fn probed(&self) {
        self.probe.end();
    }

    /// Whether it is suspected; `threshold` says what silence is too long.
    pub fn suspect(&self, now: Moment, threshold: impl FnOnce() -> Option<Duration>) -> bool {
        if self.suspect.load(Relaxed) {
            return true;
        }
        let since = self.since.load(Relaxed);
        let silent = match (self.unanswered.load(Relaxed), self.borne.load(Relaxed)) {
            (0, 0) => return false,
            (0, borne) => Duration::from_nanos(borne),
            _ => now.after(Moment::from_nanos(since)),
        };
        let suspect = threshold().is_some_and(|threshold| {
            let connecting = || now.after(Moment::from_nanos(self.connecting_since.load(Relaxed).max(since)));
            silent > threshold || (self.connecting.load(Relaxed) > 0 && connecting() > threshold / 2)
        });
        if suspect {
            self.suspected(now);
        }
        suspect
    }

    /// It is suspected from now on.
    pub fn suspected(&self, now: Moment) {
        self.probe.wait_from(now);
        self.suspect.store(true, Relaxed);
    }

    /// Whether another late try would tell nothing new; the first since it is suspected does.
    pub fn charged(&self) -> bool {
        self.suspect.load(Relaxed) && self.charged.swap(true, Relaxed)
    }

    /// Takes the place of the one probe, if it is due: `interval` after the last. What was sent before is no probe,
    /// since it may hang for good however well the endpoint is by now.
    pub fn claim_probe(&self, now: Moment, interval: Duration, may_repeat: bool) -> bool {
        self.probe.claim(now, interval, may_repeat)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    const SECOND: Duration = millis(1000);

    fn suspect(silence: &Silence, now: u64) -> bool {
        silence.suspect(at(now), || Some(SECOND))
    }

    /// Suspected since 1001.
    fn hanging() -> Silence {
        let silence = Silence::default();
        silence.begin(at(0));
        assert!(suspect(&silence, 1001));
        silence
    }

    #[test]
    fn silence_is_suspect_though_it_never_spoke() {
        let silence = Silence::default();
        assert!(!suspect(&silence, 9000), "nobody asked");
        silence.begin(at(9000));
        assert!(!suspect(&silence, 10_000));
        assert!(!silence.suspect(at(60_000), || None), "switched off");
        assert!(suspect(&silence, 10_001));
        silence.give_up(Duration::ZERO);
        assert!(suspect(&silence, 10_002), "giving up is no answer");
        silence.begin(at(10_003));
        silence.broken(at(10_004));
        assert!(!suspect(&silence, 10_005));
    }

    #[test]
    fn those_who_left_early_have_waited_too() {
        let silence = Silence::default();
        for begun in [0, 10_000] {
            silence.begin(at(begun));
            assert!(!suspect(&silence, begun + 400));
            silence.give_up(millis(400));
        }
        assert!(!suspect(&silence, 60_000), "800 ms in all, however long ago");
        silence.begin(at(60_000));
        assert!(!suspect(&silence, 60_200));
        assert!(suspect(&silence, 60_201));
        silence.broken(at(60_300));
        assert!(!suspect(&silence, 60_301));
        silence.begin(at(70_000));
        silence.give_up(millis(999));
        assert!(!suspect(&silence, 70_999), "what was borne before its answer is forgiven");
        silence.begin(at(80_000));
        silence.give_up(millis(2));
        assert!(suspect(&silence, 80_001), "also while nobody waits");
    }

    #[test]
    fn every_head_breaks_the_silence() {
        let silence = Silence::default();
        silence.begin(at(0));
        silence.begin(at(100));
        silence.broken(at(900));
        assert!(!suspect(&silence, 1500), "it spoke 600 ms ago");
        assert!(suspect(&silence, 1901), "and owes another");
    }

    #[test]
    fn a_connect_that_hangs_is_seen_in_half_the_time() {
        let silence = Silence::default();
        silence.begin(at(0));
        silence.begin(at(400));
        silence.connect(at(400));
        assert!(!suspect(&silence, 900), "the older try has a connection");
        silence.connected(Some(at(900)));
        assert!(!suspect(&silence, 950));
        silence.connect(at(950));
        silence.broken(at(960));
        assert!(!suspect(&silence, 1460));
        assert!(suspect(&silence, 1461), "neither a head nor a connection for half a second");
    }

    #[test]
    fn patience_goes_by_what_is_usual() {
        let patience = Patience { after: SECOND, siblings: &[] };
        let check = |usual, threshold, probe| {
            let seen = (patience.threshold(millis(usual)), patience.probe(millis(usual)));
            assert_eq!(seen, (Some(millis(threshold)), millis(probe)), "{usual} ms");
        };
        check(0, 1000, 100);
        check(10, 1000, 100);
        check(100, 1000, 300);
        check(300, 1500, 500);
        check(3000, 15_000, 4500);
        assert_eq!(Patience { after: Duration::ZERO, siblings: &[] }.threshold(SECOND), None);
    }

    #[test]
    fn one_probe_at_a_time() {
        let silence = hanging();
        assert!(!silence.claim_probe(at(2000), SECOND, true), "too early");
        assert!(silence.claim_probe(at(2001), SECOND, true), "though an older try still waits");
        assert!(!silence.claim_probe(at(60_000), SECOND, true), "the probe is under way");
        silence.probed();
        silence.suspected(at(2500));
        assert!(!silence.claim_probe(at(3499), SECOND, true), "it was late a moment ago");
        assert!(silence.claim_probe(at(3500), SECOND, true));
    }

    #[test]
    fn what_must_not_be_repeated_seldom_probes() {
        let silence = hanging();
        assert!(!silence.claim_probe(at(11_000), SECOND, false));
        assert!(silence.claim_probe(at(11_001), SECOND, false), "nothing else ever comes");
    }
}
