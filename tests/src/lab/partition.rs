//! What can go wrong between two hosts: packets that vanish, are refused, get lost or come too slowly.
//!
//! The rules stand in the hosts where packets arrive, in a table of their own, which goes when the [`Guard`] does.

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
    there: Vec<&'a Host>,
    ways: Ways,
    /// Of TCP alone, what goes to this port or comes from it.
    port: Option<u16>,
}

/// Which packets are meant, as the first side sees it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    Both,
    Out,
    In,
}

/// Heals when it is dropped.
pub struct Guard<'a>(What<'a>);

/// What goes wrong, and where.
enum What<'a> {
    Rules { hosts: Vec<&'a Host>, table: String },
    Relay { hosts: Vec<&'a Host>, there: Vec<Addresses>, table: u32, relays: Vec<oneshot::Sender<()>> },
}

/// Routing tables of relays are numbered from here.
const FIRST_TABLE: u32 = 100;

impl<'a> Partition<'a> {
    pub(super) fn between(here: Vec<&'a Host>, there: Vec<&'a Host>) -> Self {
        Partition { here, there, ways: Ways::Both, port: None }
    }

    /// Between what calls a port of a host on that host itself, and who listens there.
    pub(super) fn at(host: &'a Host, port: u16) -> Self {
        Partition { here: vec![host], there: vec![host], ways: Ways::Out, port: Some(port) }
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
        let there: Vec<_> = self.there.iter().map(|host| host.addresses).collect();
        let start = |host: &&Host| relay::start(host, &name, table, &there, delay);
        let relays = self.here.iter().map(start).collect();
        Guard(What::Relay { hosts: self.here, there, table, relays })
    }

    fn rule(self, what: &str) -> Guard<'a> {
        let table = format!("partition{}", COUNT.fetch_add(1, Relaxed));
        let mut hosts = Vec::new();
        let (out, back) = (self.ways != Ways::In, self.ways != Ways::Out);
        for (wanted, from, to) in [(out, &self.here, &self.there), (back, &self.there, &self.here)] {
            if wanted {
                let script = script(&table, from, self.port, what);
                to.iter().for_each(|host| host.namespace.nft(&script));
                hosts.extend(to.iter().copied());
            }
        }
        Guard(What::Rules { hosts, table })
    }
}

/// What is done with what comes from these hosts. It stands where packets arrive: what is dropped where they are made,
/// the maker's kernel knows of.
fn script(table: &str, from: &[&Host], port: Option<u16>, what: &str) -> String {
    let all = |of: fn(&Addresses) -> String| {
        from.iter().map(|host| of(&host.addresses)).collect::<Vec<_>>().join(", ")
    };
    let (v4, v6) = (all(|one| one.v4.to_string()), all(|one| one.v6.to_string()));
    let meant = match port {
        None => vec![String::new()],
        Some(port) => ["dport", "sport"].map(|end| format!("tcp {end} {port}")).into(),
    };
    let rules: String = meant
        .iter()
        .map(|meant| {
            format!(
                "ip saddr {{ {v4} }} {meant} {what}\n                ip6 saddr {{ {v6} }} {meant} {what}\n"
            )
        })
        .collect();
    format!(
        "table inet {table} {{
            chain in {{
                type filter hook input priority 10; policy accept;
                {rules}
            }}
        }}\n"
    )
}

impl Guard<'_> {
    /// Ends what goes wrong.
    pub fn heal(self) {}
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        match &mut self.0 {
            What::Rules { hosts, table } => {
                let script = format!("delete table inet {table}\n");
                hosts.iter().for_each(|host| host.namespace.nft(&script));
            }
            What::Relay { hosts, there, table, relays } => {
                hosts.iter().for_each(|host| relay::end(host, *table, there));
                relays.clear();
            }
        }
    }
}
