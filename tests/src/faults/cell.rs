//! One loss in one way, under load: what it cost.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::sleep;
use weft_tests::{
    harness::load::{Outcome, Tally},
    lab::mesh::CLUSTERS,
};

use crate::{
    back::Back,
    fault::{Fault, Loss, Row, Way},
    flow::{Fate, millis},
    shop::{Shop, instance},
    told::Told,
};

/// At each of the two ingresses.
const GETS_PER_SECOND: u32 = 200;
const ORDERS_PER_SECOND: u32 = 50;
/// Until connections stand that are kept.
const WARM: Duration = Duration::from_secs(3);
/// How long it is lost; a commit comes in the middle.
const LOST: Duration = Duration::from_secs(12);
/// What no request takes while nothing is lost.
pub const LATE: Duration = Duration::from_millis(900);
/// Failures that are kept word for word.
const SHOWN: usize = 5;

/// What a loss cost.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// What was lost.
    pub row: Row,
    /// In which way.
    pub way: Way,
    /// Those that entered at an ingress which lived.
    pub gets: Gets,
    /// What became of orders.
    pub orders: Orders,
    /// How it came back.
    pub back: Back,
    /// What became of what stands for long.
    pub flows: Vec<Fate>,
    /// What the status said: what, of whom, after how many milliseconds.
    pub told: Vec<(String, BTreeSet<String>, u64)>,
    /// Processes that ended by themselves, with their last words.
    pub ended: Vec<String>,
}

/// What became of GETs that may be sent again.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Gets {
    /// How many were due while it was lost.
    pub meanwhile: usize,
    /// How many failed, by kind.
    pub failed: BTreeMap<String, usize>,
    /// Those that were late.
    pub late: Vec<Late>,
    /// From the fault until the last late or failed one was due, in milliseconds.
    pub failover_millis: u64,
    /// The longest wait, in milliseconds.
    pub longest_millis: u64,
    /// Some of the failures: milliseconds after the fault, and what the client was told.
    pub shown: Vec<(i64, String)>,
}

/// A GET that took too long.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Late {
    /// When it was due, in milliseconds after the fault.
    pub due_millis: i64,
    /// How long it took.
    pub took_millis: u64,
    /// The instances that had a part in it in the end.
    pub served: Vec<String>,
}

/// What became of orders.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Orders {
    /// How many entered at an ingress which lived.
    pub all: usize,
    /// How many of these were not acknowledged, by kind.
    pub undone: BTreeMap<String, usize>,
    /// How many were executed more than once, wherever they entered.
    pub twice: usize,
    /// How many were acknowledged and never executed, wherever they entered.
    pub lost: usize,
}

/// Breaks it, heals it, and tells what became of everybody.
pub async fn run(shop: &Shop, row: Row, way: Way) -> Cell {
    let loss = row.loss(shop.lab());
    if !loss.gateways().is_empty() {
        shop.spread().await;
    }
    let told = Told::default();
    tokio::select! {
        () = told.watch(shop, row.asked()) => unreachable!("it does not return"),
        cell = lose(shop, row, way, &loss, &told) => cell,
    }
}

async fn lose(shop: &Shop, row: Row, way: Way, loss: &Loss, told: &Told) -> Cell {
    let mut loads = Vec::new();
    for cluster in CLUSTERS {
        loads.push(shop.load(cluster, GETS_PER_SECOND, ORDERS_PER_SECOND).await);
    }
    let flows = shop.flows().await;
    sleep(WARM).await;

    let struck = Instant::now();
    let fault = Fault::strike(shop.lab(), loss, way);
    sleep(LOST / 2).await;
    shop.commit().await;
    sleep((struck + LOST).saturating_duration_since(Instant::now())).await;
    let healed = Instant::now();
    fault.heal();
    let back = Back::of(shop, loss, &loads).await;

    let flows = flows.iter().map(|flow| flow.fate(struck)).collect();
    let told = told.since(struck).into_iter().map(|(what, whom, when)| (what, whom, millis(when))).collect();
    let (gets, orders, ended) = (Gets::default(), Orders::default(), shop.ended());
    let mut cell = Cell { row, way, gets, orders, back, flows, told, ended };
    let mut tallies = Vec::new();
    for (load, cluster) in loads.into_iter().zip(CLUSTERS) {
        let began = Instant::now() - load.now();
        let tally = load.stop().await;
        let lives = !loss.has(&format!("{cluster}-ingress"));
        if lives {
            cell.gets.add(&tally.gets, struck - began, healed - began);
        }
        tallies.push((tally, lives));
    }
    // Only now: what is under way at one ingress may end up in any log.
    let executed = shop.orders();
    tallies.iter().for_each(|(tally, lives)| cell.orders.add(tally, *lives, &executed));
    cell
}

impl Gets {
    /// What came of one load, of which it was lost between `struck` and `healed`.
    fn add(&mut self, gets: &[Outcome], struck: Duration, healed: Duration) {
        for get in gets {
            let after = get.due.as_millis() as i64 - struck.as_millis() as i64;
            self.meanwhile += usize::from((struck..healed).contains(&get.due));
            if let Some(failure) = &get.failure {
                *self.failed.entry(kind(failure)).or_default() += 1;
                if self.shown.len() < SHOWN {
                    self.shown.push((after, failure.clone()));
                }
            }
            if get.took > LATE {
                let served = get.served.iter().cloned().map(instance).collect();
                self.late.push(Late { due_millis: after, took_millis: millis(get.took), served });
            }
            self.longest_millis = self.longest_millis.max(millis(get.took));
            if (get.failure.is_some() || get.took > LATE) && (struck..healed).contains(&get.due) {
                self.failover_millis = self.failover_millis.max(millis(get.due - struck));
            }
        }
    }

    /// Those that failed although they might have been sent again.
    pub fn failed(&self) -> usize {
        self.failed.iter().filter(|(kind, _)| *kind != BROKEN_OFF).map(|(_, count)| count).sum()
    }
}

/// The head of such an answer had been passed on, so nobody may send the request again.
const BROKEN_OFF: &str = "the answer broke off";

/// What kind of failure it was: a status, or the first words of what the client says.
fn kind(failure: &str) -> String {
    let end = if failure.starts_with(|c: char| c.is_ascii_digit()) && !failure.starts_with("200") {
        failure.find(' ')
    } else {
        failure.find(':')
    };
    failure[..end.unwrap_or(failure.len())].to_owned()
}

impl Orders {
    /// What came of one load, at an ingress that lives or not.
    fn add(&mut self, tally: &Tally, lives: bool, executed: &[String]) {
        if lives {
            self.all += tally.orders.len();
            for failure in tally.orders.iter().filter_map(|order| order.failure.as_ref()) {
                *self.undone.entry(kind(failure)).or_default() += 1;
            }
        }
        self.twice += tally.executed_twice(executed).len();
        self.lost += tally.lost(executed).len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(due: u64, took: u64, failure: Option<&str>) -> Outcome {
        let [due, took] = [due, took].map(Duration::from_millis);
        Outcome { due, took, served: Vec::new(), failure: failure.map(str::to_owned) }
    }

    #[test]
    fn what_a_loss_cost_is_counted_from_the_fault() {
        let outcomes = [
            get(900, 5, None),
            get(1100, 3050, None),
            get(1400, 20, Some("503 {\"error\":\"reviews answered 503\"}")),
            get(1500, 20, Some("the answer broke off: connection reset")),
            get(2900, 5, None),
            get(3500, 1000, None),
        ];
        let mut gets = Gets::default();
        gets.add(&outcomes, Duration::from_millis(1000), Duration::from_millis(3000));
        assert_eq!((gets.meanwhile, gets.late.len(), gets.failed()), (4, 2, 1));
        assert_eq!((gets.failover_millis, gets.longest_millis), (500, 3050));
        assert_eq!(gets.failed.keys().collect::<Vec<_>>(), ["503", BROKEN_OFF]);
        assert_eq!(gets.shown[0].0, 400);
    }

    #[test]
    fn kinds_are_the_first_words() {
        assert_eq!(kind("cannot connect: refused"), "cannot connect");
        assert_eq!(kind("200 without reviews"), "200 without reviews");
        assert_eq!(kind("no whole answer within 30s"), "no whole answer within 30s");
    }
}
