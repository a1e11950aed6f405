//! What can go wrong between two hosts: packets that vanish, are refused, get lost or come too slowly.
//!
//! The rules stand in the hosts of one side, in a table of their own, which goes when the [`Guard`] does.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{Addresses, Host, relay};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// Between two groups of hosts; says nothing yet of what goes wrong.
pub struct Partition<'a> {
    here: Vec<&'a Host>,
    there: Vec<Addresses>,
    ways: Ways,
}

/// Which packets are meant, as the first side sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    Both,
    Out,
    In,
}

/// Heals when it is dropped.
pub struct Guard<'a> {
    here: Vec<&'a Host>,
    what: What,
}

/// What goes wrong.
enum What {
    Rules { table: String },
    Relay { there: Vec<Addresses>, table: u32, relays: Vec<oneshot::Sender<()>> },
}

/// Routing tables of relays are numbered from here.
const FIRST_TABLE: u32 = 100;

impl<'a> Partition<'a> {
    pub(super) fn between(here: Vec<&'a Host>, there: Vec<&'a Host>) -> Self {
        Partition { here, there: there.into_iter().map(|host| host.addresses).collect(), ways: Ways::Both }
    }

    /// Only what goes from the first to the second.
    pub fn one_way(self) -> Self {
        Partition { ways: Ways::Out, ..self }
    }

    /// Only what goes from the second to the first.
    pub fn other_way(self) -> Self {
        Partition { ways: Ways::In, ..self }
    }

    /// Everything vanishes.
    pub fn drop(self) -> Guard<'a> {
        self.rule("drop")
    }

    /// Everything is refused at once: TCP by a reset.
    pub fn reject(self) -> Guard<'a> {
        // The reset itself has to pass.
        self.rule("tcp flags & rst == 0 reject with tcp reset")
    }

    /// So many packets of a hundred are lost, by chance.
    pub fn lossy(self, percent: u32) -> Guard<'a> {
        self.rule(&format!("numgen random mod 100 < {percent} drop"))
    }

    /// No more than so many KiB pass in a second; what is too much is lost, as on a thin line.
    pub fn slow(self, kbytes_per_second: u32) -> Guard<'a> {
        self.rule(&format!("limit rate over {kbytes_per_second} kbytes/second burst 16 kbytes drop"))
    }

    /// What the first says to the second comes so much later.
    pub fn late(self, delay: Duration) -> Guard<'a> {
        let number = COUNT.fetch_add(1, Relaxed);
        let (table, name) = (FIRST_TABLE + number, format!("late{number}"));
        let start = |host: &&Host| relay::start(host, &name, table, &self.there, delay);
        let relays = self.here.iter().map(start).collect();
        Guard { here: self.here, what: What::Relay { there: self.there, table, relays } }
    }

    fn rule(self, what: &str) -> Guard<'a> {
        let table = format!("partition{}", COUNT.fetch_add(1, Relaxed));
        let (v4, v6): (Vec<_>, Vec<_>) =
            self.there.iter().map(|one| (one.v4.to_string(), one.v6.to_string())).unzip();
        let rules = |side: &str| {
            format!("ip {side} {{ {} }} {what}\n ip6 {side} {{ {} }} {what}\n", v4.join(", "), v6.join(", "))
        };
        let chain = |name: &str, hook: &str, side: &str, wanted: bool| {
            let rules = if wanted { rules(side) } else { String::new() };
            format!("chain {name} {{\n type filter hook {hook} priority 10; policy accept;\n {rules} }}\n")
        };
        let script = format!(
            "table inet {table} {{\n {} {} }}\n",
            chain("out", "output", "daddr", self.ways != Ways::In),
            chain("in", "input", "saddr", self.ways != Ways::Out)
        );
        self.here.iter().for_each(|host| host.namespace.nft(&script));
        Guard { here: self.here, what: What::Rules { table } }
    }
}

impl Guard<'_> {
    /// Ends what goes wrong.
    pub fn heal(self) {}
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        match &mut self.what {
            What::Rules { table } => {
                let script = format!("delete table inet {table}\n");
                self.here.iter().for_each(|host| host.namespace.nft(&script));
            }
            What::Relay { there, table, relays } => {
                self.here.iter().for_each(|host| relay::end(host, *table, there));
                relays.clear();
            }
        }
    }
}
