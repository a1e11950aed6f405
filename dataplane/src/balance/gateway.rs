//! East-west gateways as seen from a client: which address of a network to connect to, and whether any lives.
//!
//! A failed connect counts against the gateway address, never the endpoint behind it; so does the silence of a
//! connection to it.

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

use super::Moment;

/// How long an address is left alone after its first failed connect; doubles with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// The longest that an address is left alone.
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);

/// How long one connect may try an address that had failed before another may try it too. A little more than
/// the connect timeout to another network.
const TRIAL: Duration = Duration::from_millis(2500);

/// All networks that are reached through gateways. One for the whole proxy.
#[derive(Debug, Default)]
pub struct Gateways {
    networks: Mutex<BTreeMap<String, Arc<Network>>>,
}

impl Gateways {
    /// Takes over the gateways as they are now; addresses that stay keep what is known of them. An address
    /// that cannot be read is left out.
    pub fn update(&self, wire: &wire::Networks) {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        for name in wire.networks.keys() {
            networks.entry(name.clone()).or_default();
        }
        for (name, network) in networks.iter() {
            network.update(wire.networks.get(name).map_or(&[], |gateways| &gateways.addresses[..]));
        }
        // A handle outside may still ask a network that is gone; one without handles is forgotten.
        networks.retain(|name, network| wire.networks.contains_key(name) || Arc::strong_count(network) > 1);
    }

    /// The gateways of a network, a handle that follows every later update.
    pub fn network(&self, name: &str) -> Arc<Network> {
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        networks.entry(name.to_owned()).or_default().clone()
    }
}

/// The gateways of one network.
#[derive(Debug, Default)]
pub struct Network {
    gateways: ArcSwap<Vec<Arc<Gateway>>>,
}

impl Network {
    fn update(&self, addresses: &[String]) {
        let old = self.gateways.load();
        let keep = |address: SocketAddr| {
            let known = old.iter().find(|gateway| gateway.address == address).cloned();
            known.unwrap_or_else(|| Arc::new(Gateway::new(address)))
        };
        let new = addresses.iter().filter_map(|text| text.parse().ok()).map(keep).collect();
        self.gateways.store(Arc::new(new));
    }

    /// Whether an address is alive, or due for another trial.
    pub fn reachable(&self, now: Moment) -> bool {
        self.gateways.load().iter().any(|gateway| gateway.alive(now))
    }

    /// The address to connect to: a living one that was not tried yet, else any not tried yet; none when all
    /// were tried. A gateway that had failed counts as down for others while this trial runs.
    pub fn choose(&self, now: Moment, chance: u64, tried: &[SocketAddr]) -> Option<Arc<Gateway>> {
        let all = self.gateways.load();
        let open: Vec<_> = all.iter().filter(|gateway| !tried.contains(&gateway.address)).collect();
        let alive: Vec<_> = open.iter().copied().filter(|gateway| gateway.alive(now)).collect();
        let from = if alive.is_empty() { open } else { alive };
        let gateway = from.get((chance % from.len().max(1) as u64) as usize)?;
        gateway.begin(now);
        Some(Arc::clone(gateway))
    }
}

/// One address of an east-west gateway.
#[derive(Debug)]
pub struct Gateway {
    /// Where it listens.
    pub address: SocketAddr,
    /// Failed connects in a row.
    failures: AtomicU32,
    down_until: AtomicU64,
}

impl Gateway {
    fn new(address: SocketAddr) -> Self {
        Gateway { address, failures: AtomicU32::new(0), down_until: AtomicU64::new(0) }
    }

    /// Whether connects to it are sensible now.
    pub fn alive(&self, now: Moment) -> bool {
        self.down_until.load(Relaxed) <= now.as_nanos()
    }

    /// A TCP connection to it stands.
    pub fn connected(&self) {
        if self.failures.swap(0, Relaxed) > 0 {
            self.down_until.store(0, Relaxed);
        }
    }

    /// A connection to it that stood has died: nothing was acknowledged. Many die at once, and tell it once.
    pub fn fell_silent(&self, now: Moment) {
        if self.alive(now) {
            self.connect_failed(now);
        }
    }

    /// A TCP connect to it failed or timed out.
    pub fn connect_failed(&self, now: Moment) {
        let failures = self.failures.fetch_add(1, Relaxed).min(16);
        let wait = FIRST_BACKOFF.saturating_mul(1 << failures).min(LONGEST_BACKOFF);
        self.down_until.store((now + wait).as_nanos(), Relaxed);
    }

    fn begin(&self, now: Moment) {
        if self.failures.load(Relaxed) > 0 {
            self.down_until.fetch_max((now + TRIAL).as_nanos(), Relaxed);
        }
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
        assert!(!west.reachable(at(0)), "no gateway is known yet");
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.3:1", "nonsense"]));

        let first = west.choose(at(0), 0, &[]).unwrap();
        first.connect_failed(at(0));
        for chance in 0..4 {
            assert_ne!(west.choose(at(1), chance, &[]).unwrap().address, first.address);
        }
        let second = west.choose(at(1), 0, &[first.address]).unwrap();
        second.connect_failed(at(1));
        assert!(!west.reachable(at(400)));
        assert!(west.choose(at(400), 0, &[first.address, second.address]).is_none());
        assert!(west.choose(at(400), 0, &[first.address]).is_some(), "the dead are a last resort");
    }

    #[test]
    fn one_trial_at_a_time_until_it_answers() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]));
        let west = gateways.network("west");
        let gateway = west.choose(at(0), 0, &[]).unwrap();
        assert!(west.reachable(at(1)), "one that never failed is no trial");
        gateway.connect_failed(at(0));
        assert!(west.reachable(at(501)), "due again");
        let trial = west.choose(at(501), 0, &[]).unwrap();
        assert!(!west.reachable(at(600)), "somebody is trying");
        trial.connect_failed(at(600));
        assert!(!west.reachable(at(1599)) && west.reachable(at(1600)), "the wait has doubled");
        trial.connected();
        assert!(west.reachable(at(601)));
        (0..40).for_each(|_| trial.connect_failed(at(0)));
        assert!(west.reachable(at(10_001)), "the wait is bounded");
    }

    #[test]
    fn connections_that_die_together_count_once() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]));
        let west = gateways.network("west");
        let gateway = west.choose(at(0), 0, &[]).unwrap();
        gateway.connected();
        (0..40).for_each(|_| gateway.fell_silent(at(0)));
        assert!(!west.reachable(at(499)) && west.reachable(at(501)), "as after one failed connect");
        gateway.connected();
        assert!(west.reachable(at(1)));
    }

    #[test]
    fn an_update_keeps_what_is_known() {
        let gateways = Gateways::default();
        gateways.update(&wire(&["127.2.0.2:1"]));
        let west = gateways.network("west");
        west.choose(at(0), 0, &[]).unwrap().connect_failed(at(0));
        gateways.update(&wire(&["127.2.0.2:1"]));
        assert!(!west.reachable(at(1)));
        gateways.update(&wire(&["127.2.0.2:1", "127.2.0.9:1"]));
        assert!(west.reachable(at(1)), "the handle follows");
        gateways.update(&wire::Networks::default());
        assert!(!west.reachable(at(1)));
    }
}
