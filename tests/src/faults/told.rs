//! What `weft status` says of a loss, and when.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use api::admin::{ProxyState, Status};
use tokio::time::{sleep, timeout};

use crate::shop::Shop;

/// How often it is asked, and how long an answer may take.
const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(2);

/// What was said first at which time: by what is wrong, of whom.
#[derive(Default)]
pub struct Told(Mutex<BTreeMap<(String, String), Instant>>);

impl Told {
    /// Asks the control plane of a cluster again and again. Does not return.
    pub async fn watch(&self, shop: &Shop, cluster: &str) {
        loop {
            if let Ok(Ok(status)) = timeout(PATIENCE, shop.status(cluster)).await {
                let now = Instant::now();
                complaints(&status).into_iter().for_each(|one| {
                    self.locked().entry(one).or_insert(now);
                });
            }
            sleep(LOOK).await;
        }
    }

    /// What was said for the first time since then, by what is wrong: of whom, and when the first.
    pub fn since(&self, struck: Instant) -> Vec<(String, BTreeSet<String>, Duration)> {
        let mut by: BTreeMap<String, (BTreeSet<String>, Instant)> = BTreeMap::new();
        for ((what, whom), when) in self.locked().iter().filter(|(_, when)| **when >= struck) {
            let (all, first) = by.entry(what.clone()).or_insert((BTreeSet::new(), *when));
            all.insert(whom.clone());
            *first = (*first).min(*when);
        }
        let mut told: Vec<_> =
            by.into_iter().map(|(what, (all, first))| (what, all, first - struck)).collect();
        told.sort_by_key(|(.., when)| *when);
        told
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(String, String), Instant>> {
        self.0.lock().expect("no one panics with it")
    }
}

/// What a status has to say against anybody: what, and of whom.
fn complaints(status: &Status) -> BTreeSet<(String, String)> {
    let mut said = BTreeSet::new();
    let mut say = |what: &str, whom: &str| {
        said.insert((what.to_owned(), whom.to_owned()));
    };
    if status.sources.iter().any(|source| source.trouble.is_some()) {
        say("repository away", "git");
    }
    for cluster in &status.clusters {
        let aways = [
            ("cluster away", cluster.away_since),
            ("primary away", cluster.primary_away_since),
            ("store away", cluster.store_away_since),
        ];
        for (what, _) in aways.into_iter().filter(|(_, since)| since.is_some()) {
            say(what, cluster.name.as_str());
        }
        for proxy in &cluster.proxies {
            match proxy.state {
                ProxyState::Connected if proxy.kind == "sidecar" && !proxy.app_ready => {
                    say("application down", proxy.workload.as_str());
                }
                ProxyState::Connected => {}
                ProxyState::Away => say("proxy away", proxy.workload.as_str()),
                ProxyState::Gone => say("proxy gone", proxy.workload.as_str()),
            }
            if !proxy.ejected.is_empty() {
                say("ejects an endpoint", proxy.workload.as_str());
            }
        }
    }
    said
}
