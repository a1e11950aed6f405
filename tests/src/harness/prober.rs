//! Asks for the reviews again and again, to see from when on they are allowed or denied.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval},
};

use super::{Client, client, eventually};

/// What the ingress of one cluster is asked, at a fixed rate.
pub struct Prober {
    probes: Arc<Mutex<Vec<Probe>>>,
    task: JoinHandle<()>,
}

/// One probe that is over.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Its `x-request-id`.
    pub id: String,
    /// When it was begun.
    pub began: Instant,
    /// 0 when there was no answer.
    pub status: u16,
    /// The id of the decision that refused it.
    pub decision: String,
    /// What was wrong, when there was no answer.
    pub trouble: String,
}

impl Prober {
    /// `GET /reviews` at the ingress of `cluster`.
    pub fn start(cluster: &str, ingress: &str, per_second: u32) -> Self {
        let probes: Arc<Mutex<Vec<Probe>>> = Arc::default();
        let client = Arc::new(Client::new(ingress));
        let (cluster, record) = (cluster.to_owned(), probes.clone());
        let task = tokio::spawn(async move {
            let mut ticks = interval(Duration::from_secs(1) / per_second);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let mut running = JoinSet::new();
            for n in 0_u64.. {
                ticks.tick().await;
                running.spawn(probe(record.clone(), client.clone(), format!("probe-{cluster}-{n}"), n));
                while running.try_join_next().is_some() {}
            }
        });
        Prober { probes, task }
    }

    /// All that are over, in the order in which they were begun.
    pub fn probes(&self) -> Vec<Probe> {
        let mut probes = self.probes.lock().unwrap_or_else(PoisonError::into_inner).clone();
        probes.sort_by_key(|probe| probe.began);
        probes
    }

    /// Waits until `count` probes that were begun after `from` are over, and gives all of these.
    pub async fn after(&self, from: Instant, count: usize) -> Vec<Probe> {
        eventually("probes come to an end", Duration::from_secs(30), async || {
            let probes: Vec<_> = self.probes().into_iter().filter(|probe| probe.began > from).collect();
            if probes.len() >= count { Ok(probes) } else { Err(format!("{} of {count}", probes.len())) }
        })
        .await
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How long after `from` the last of these probes was begun that was not judged by `status`, 200 or 403.
///
/// # Panics
/// When one that was begun since then was not judged at all.
pub fn last_otherwise<'a>(
    probes: impl IntoIterator<Item = &'a Probe>,
    from: Instant,
    status: u16,
) -> Duration {
    let mut last = Duration::ZERO;
    for probe in probes.into_iter().filter(|probe| probe.began >= from) {
        assert!([200, 403].contains(&probe.status), "a probe failed: {probe:?}");
        assert_eq!(probe.status == 403, !probe.decision.is_empty(), "a 403 bears a decision: {probe:?}");
        if probe.status != status {
            last = last.max(probe.began - from);
        }
    }
    last
}

async fn probe(record: Arc<Mutex<Vec<Probe>>>, client: Arc<Client>, id: String, n: u64) {
    let request = client::request("GET", "/reviews", &[("x-request-id", &id)]);
    let began = Instant::now();
    let probe = match client.send(request, n.is_multiple_of(2)).await {
        Ok(answer) => {
            let decision = answer.json()["decision"].as_str().unwrap_or_default().to_owned();
            Probe { id, began, status: answer.status, decision, trouble: String::new() }
        }
        Err(trouble) => Probe { id, began, status: 0, decision: String::new(), trouble },
    };
    record.lock().unwrap_or_else(PoisonError::into_inner).push(probe);
}
