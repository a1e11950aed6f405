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

/// What is wrong, and of whom.
type Complaint = (String, String);

/// What is said, and when each word of it began: anew, where it had been taken back in between.
#[derive(Default)]
pub struct Told(Mutex<Record>);

#[derive(Default)]
struct Record {
    said: BTreeSet<Complaint>,
    began: Vec<(Complaint, Instant)>,
}

impl Told {
    /// Asks the control plane of a cluster again and again. Does not return.
    pub async fn watch(&self, shop: &Shop, cluster: &str) {
        loop {
            if let Ok(Ok(status)) = timeout(PATIENCE, shop.status(cluster)).await {
                self.locked().look(complaints(&status), Instant::now());
            }
            sleep(LOOK).await;
        }
    }

    /// What began to be said since then, by what is wrong: of whom, and when the first.
    pub fn since(&self, struck: Instant) -> Vec<(String, BTreeSet<String>, Duration)> {
        let mut by: BTreeMap<String, (BTreeSet<String>, Instant)> = BTreeMap::new();
        for ((what, whom), when) in self.locked().began.iter().filter(|(_, when)| *when >= struck) {
            let (all, _) = by.entry(what.clone()).or_insert((BTreeSet::new(), *when));
            all.insert(whom.clone());
        }
        let mut told: Vec<_> =
            by.into_iter().map(|(what, (all, first))| (what, all, first - struck)).collect();
        told.sort_by_key(|(.., when)| *when);
        told
    }

    fn locked(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("no one panics with it")
    }
}

impl Record {
    fn look(&mut self, said: BTreeSet<Complaint>, now: Instant) {
        let news = said.difference(&self.said).map(|one| (one.clone(), now));
        self.began.extend(news);
        self.said = said;
    }
}

/// What a status has to say against anybody: what, and of whom.
fn complaints(status: &Status) -> BTreeSet<Complaint> {
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
