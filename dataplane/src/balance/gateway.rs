//! East-west gateways as seen from a client: which address of a network to connect to, and whether any lives.
//!
//! A failed connect counts against the gateway address, never the endpoint behind it; so does the silence of a
//! connection to it. Whether one that is away has come back is found out by questions that no request waits for: one that
//! is silent would delay each request that asks by the whole time of a connect.
//!
//! A kernel accepts connections for a gateway that hangs, and acknowledges what is sent to it. When an answer from behind a
//! gateway is overdue, nothing tells whose silence that is, so the gateway is asked as well.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use api::wire;
use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::Moment;

/// How long an address is left alone before its first trial; doubles with each trial in vain.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// The longest that an address is left alone.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// What the connect of a trial may take, and what the answer.
pub const TRIAL: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(1));

/// One that has answered so lately is not doubted: else whatever hangs behind it had it asked again and again.
const BELIEVED: Duration = Duration::from_secs(2);

/// Over how long connections are made anew when a gateway has joined.
const SPREAD: Duration = Duration::from_secs(60);

/// All networks that are reached through gateways. One for the whole proxy.
#[derive(Debug, Default)]
pub struct Gateways {
    networks: Mutex<BTreeMap<String, Arc<Network>>>,
}

impl Gateways {
    /// Takes over the gateways as they are now; addresses that stay keep what is known of them. An address
    /// that cannot be read is left out.
    pub fn update(&self, wire: &wire::Networks, now: Moment) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        for name in wire.networks.keys() {
            networks.entry(name.clone()).or_default();
        }
        for (name, network) in networks.iter() {
            let addresses = wire.networks.get(name).map_or(&[][..], |gateways| &gateways.addresses);
            network.update(addresses, now);
        }
        // A handle outside may still ask a network that is gone; one without handles is forgotten.
        networks.retain(|name, network| wire.networks.contains_key(name) || Arc::strong_count(network) > 1);
    }

    /// The gateways of a network, a handle that follows every later update.
    pub fn network(&self, name: &str) -> Arc<Network> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.entry(name.to_owned()).or_default().clone()
    }

    /// The gateways that are due for a trial; whoever is told of one has to make it.
    pub fn due(&self, now: Moment) -> Vec<Arc<Gateway>> {
        let networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        let all = networks.values().flat_map(|network| network.gateways.load().to_vec());
        all.filter(|gateway| gateway.claim_trial(now)).collect()
    }
}

/// The gateways of one network.
#[derive(Debug, Default)]
pub struct Network {
    gateways: ArcSwap<Vec<Arc<Gateway>>>,
    joined: Arc<Joined>,
}

/// When a gateway of a network was last there that had not been.
#[derive(Debug, Default)]
struct Joined(AtomicU64);

impl Network {
    fn update(&self, addresses: &[String], now: Moment) {
        let old = self.gateways.load();
        let keep = |address: SocketAddr| {
            let known = old.iter().find(|gateway| gateway.address == address).cloned();
            known.unwrap_or_else(|| {
                self.joined.0.store(now.as_nanos(), Relaxed);
                Arc::new(Gateway::new(address, self.joined.clone()))
            })
        };
        let new = addresses.iter().filter_map(|text| text.parse().ok()).map(keep).collect();
        self.gateways.store(Arc::new(new));
    }

    /// Whether an address is alive.
    pub fn reachable(&self) -> bool {
        self.gateways.load().iter().any(|gateway| gateway.alive())
    }

    /// Something is overdue that was to come from there.
    pub fn doubt(&self, now: Moment) {
        self.gateways.load().iter().for_each(|gateway| gateway.doubt(now));
    }

    /// The address to connect to: a living one that was not tried yet, else any not tried yet; none when all
    /// were tried.
    pub fn choose(&self, chance: u64, tried: &[SocketAddr]) -> Option<Arc<Gateway>> {
        let all = self.gateways.load();
        let open: Vec<_> = all.iter().filter(|gateway| !tried.contains(&gateway.address)).collect();
        let alive: Vec<_> = open.iter().copied().filter(|gateway| gateway.alive()).collect();
        let from = if alive.is_empty() { open } else { alive };
        let gateway = from.get((chance % from.len().max(1) as u64) as usize)?;
        Some(Arc::clone(gateway))
    }
}

/// One address of an east-west gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// From its loss on, which counts as one, the trials in vain; 0: it is alive.
    failures: AtomicU32,
    /// When the next trial is due; 0: none is.
    trial_at: AtomicU64,
    /// When it last answered.
    answered_at: AtomicU64,
    /// Told to whoever waits, when it is lost.
    gone: Notify,
    joined: Arc<Joined>,
}

impl Gateway {
    fn new(address: SocketAddr, joined: Arc<Joined>) -> Self {
        let (failures, trial_at, answered_at) = Default::default();
        Gateway { address, failures, trial_at, answered_at, gone: Notify::new(), joined }
    }

    /// Whether connects to it are sensible now.
    pub fn alive(&self) -> bool {
        self.failures.load(Relaxed) == 0
    }

    /// Something came from it, or through it.
    pub fn answered(&self, now: Moment) {
        self.answered_at.store(now.as_nanos(), Relaxed);
        if self.failures.swap(0, Relaxed) > 0 {
            self.joined.0.store(now.as_nanos(), Relaxed);
        }
        self.trial_at.store(0, Relaxed);
    }

    /// Whether a connection that was made through it at `made` is to be made anew by now, since the choice was smaller then.
    pub fn outgrown(&self, made: Moment, now: Moment) -> bool {
        let joined = Moment::from_nanos(self.joined.0.load(Relaxed));
        let turn = Duration::from_nanos(made.as_nanos() % SPREAD.as_nanos() as u64);
        joined > made && now.after(joined) >= turn
    }

    /// Something is overdue that was to come through it.
    pub fn doubt(&self, now: Moment) {
        let silent = now.after(Moment::from_nanos(self.answered_at.load(Relaxed)));
        if self.alive() && silent >= BELIEVED {
            let _ = self.trial_at.compare_exchange(0, now.as_nanos(), Relaxed, Relaxed);
        }
    }

    /// Ends when it is lost from now on.
    pub async fn gone(&self) {
        self.gone.notified().await;
    }

    /// A connect to it failed or timed out, or a connection that stood has died: nothing was acknowledged. Many do so at
    /// once, and tell it once.
    pub fn lost(&self, now: Moment) {
        if self.alive() {
            self.tried_in_vain(now);
        }
    }

    /// A trial has failed.
    pub fn tried_in_vain(&self, now: Moment) {
        let failures = self.failures.fetch_add(1, Relaxed).min(16);
        if failures == 0 {
            self.gone.notify_waiters();
        }
        let wait = FIRST_BACKOFF.saturating_mul(1 << failures).min(LONGEST_BACKOFF);
        self.trial_at.store((now + wait).as_nanos(), Relaxed);
    }

    /// Takes the place of the one who tries it, if that is due.
    fn claim_trial(&self, now: Moment) -> bool {
        let due = self.trial_at.load(Relaxed);
        let end = (now + TRIAL.0 + TRIAL.1).as_nanos();
        (1..=now.as_nanos()).contains(&due)
            && self.trial_at.compare_exchange(due, end, Relaxed, Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn wire(addresses: &[&str]) -> wire::Networks {
        let addresses = addresses.iter().map(|&text| text.to_owned()).collect();
        wire::Networks { networks: [("west".to_owned(), wire::Gateways { addresses })].into() }
    }

    #[test]
    fn a_sibling_is_tried_first_and_the_dead_are_left_alone() {
        let gateways = Gateways::default();
        let west = gateways.network("west");
        assert!(!west.reachable(), "no gateway is known yet");
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.3:1", "nonsense"]), at(0));

        let first = west.choose(0, &[]).unwrap();
        first.lost(at(0));
        assert!(west.reachable());
        for chance in 0..4 {
            assert_ne!(west.choose(chance, &[]).unwrap().address, first.address);
        }
        let second = west.choose(0, &[first.address]).unwrap();
        second.lost(at(1));
        assert!(!west.reachable());
        assert!(west.choose(0, &[first.address, second.address]).is_none());
        assert!(west.choose(0, &[first.address]).is_some(), "the dead are a last resort");
    }

    #[test]
    fn one_trial_at_a_time_until_it_answers() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]), at(0));
        let west = gateways.network("west");
        assert!(gateways.due(at(0)).is_empty(), "one that lives is not tried");
        west.choose(0, &[]).unwrap().lost(at(0));
        assert!(gateways.due(at(499)).is_empty());
        let trial = gateways.due(at(501)).remove(0);
        assert!(!west.reachable(), "requests do not try it");
        assert!(gateways.due(at(502)).is_empty(), "somebody is trying");
        trial.tried_in_vain(at(2500));
        assert!(
            gateways.due(at(3499)).is_empty() && gateways.due(at(3500)).len() == 1,
            "the wait has doubled"
        );
        trial.answered(at(4000));
        assert!(west.reachable() && gateways.due(at(60_000)).is_empty());
        (0..40).for_each(|_| trial.tried_in_vain(at(60_000)));
        assert!(gateways.due(at(70_000)).len() == 1, "the wait is bounded");
    }

    #[test]
    fn what_is_overdue_has_the_gateway_asked() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]), at(0));
        let gateway = gateways.network("west").choose(0, &[]).unwrap();
        gateway.answered(at(1000));
        gateway.doubt(at(2999));
        assert!(gateways.due(at(2999)).is_empty(), "it answered a moment ago");
        (0..40).for_each(|_| gateway.doubt(at(3000)));
        assert_eq!(gateways.due(at(3000)).len(), 1, "once");
        gateway.doubt(at(3001));
        assert!(gateways.due(at(3500)).is_empty() && gateway.alive(), "it has its time");
        gateway.answered(at(3501));
        assert!(gateways.due(at(60_000)).is_empty());

        gateway.doubt(at(60_000));
        gateways.due(at(60_000)).remove(0).tried_in_vain(at(61_000));
        assert!(!gateway.alive());
        gateway.doubt(at(61_001));
        assert!(gateways.due(at(61_002)).is_empty(), "that it is lost is known");
    }

    #[test]
    fn connections_that_die_together_count_once() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]), at(0));
        let west = gateways.network("west");
        let gateway = west.choose(0, &[]).unwrap();
        (0..40).for_each(|_| gateway.lost(at(0)));
        assert!(gateways.due(at(499)).is_empty() && gateways.due(at(501)).len() == 1);
        gateway.answered(at(600));
        assert!(west.reachable());
    }

    #[test]
    fn connections_move_one_by_one_when_a_gateway_joins() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.3:1"]), at(0));
        let west = gateways.network("west");
        let (a, b) = (west.choose(0, &[]).unwrap(), west.choose(1, &[]).unwrap());
        let moved = |now| (1..6000).filter(|n| a.outgrown(at(n * 10), now)).count();
        assert_eq!(moved(at(600_000)), 0, "all were made since");
        b.lost(at(61_000));
        assert_eq!(moved(at(600_000)), 0, "there is nothing to gain");
        b.answered(at(100_000));
        assert_eq!(moved(at(100_000)), 0);
        assert!((2900..3100).contains(&moved(at(130_000))), "{}", moved(at(130_000)));
        assert_eq!(moved(at(160_000)), 5999);
        assert!(!a.outgrown(at(100_001), at(600_000)), "that one had the choice");
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.3:1", "127.2.0.4:1"]), at(700_000));
        assert!(a.outgrown(at(100_001), at(760_000)), "another one was added");
    }

    #[test]
    fn an_update_keeps_what_is_known() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]), at(0));
        let west = gateways.network("west");
        west.choose(0, &[]).unwrap().lost(at(0));
        gateways.update(&wire(&["127.2.0.2:1"]), at(0));
        assert!(!west.reachable());
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.9:1"]), at(0));
        assert!(west.reachable(), "the handle follows");
        gateways.update(&wire::Networks::default(), at(0));
        assert!(!west.reachable());
    }
}
