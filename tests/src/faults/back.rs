//! How what was lost comes back: in the requests, at the gateways, in the configuration.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::time::{sleep, timeout};
use weft_tests::harness::Load;

use crate::{
    fault::Loss,
    flow::millis,
    shop::{Shop, instance},
};

/// What is not back by then counts as lost for good.
const LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);
/// For one answer of a gateway that may be away still.
const PATIENCE: Duration = Duration::from_secs(1);

/// Milliseconds since the end of the loss; `None` when it was not within the limit.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Back {
    /// Until each lost instance has had a part in a request.
    pub serving: Option<u64>,
    /// Until each lost gateway has passed something on.
    pub carrying: Option<u64>,
    /// Until the commit that was made meanwhile ruled every proxy.
    pub ruled: Option<u64>,
}

impl Back {
    /// Waits for all of it.
    pub async fn of(shop: &Shop, loss: &Loss, loads: &[Load]) -> Back {
        let (serving, carrying, ruled) =
            tokio::join!(timed(served(shop, loss, loads)), timed(carried(shop, loss)), timed(ruled(shop)));
        Back { serving, carrying, ruled }
    }

    /// Until all of it was back; an error is what was not.
    pub fn whole(&self) -> Result<u64, String> {
        let all = [
            ("not serving", self.serving),
            ("not carrying", self.carrying),
            ("commit not ruling", self.ruled),
        ];
        let missing: Vec<_> = all.iter().filter(|(_, when)| when.is_none()).map(|(what, _)| *what).collect();
        if missing.is_empty() {
            Ok(all.into_iter().filter_map(|(_, when)| when).max().unwrap_or_default())
        } else {
            Err(format!("{} within {} s", missing.join(", "), LIMIT.as_secs()))
        }
    }
}

async fn timed(what: impl Future<Output = ()>) -> Option<u64> {
    let began = Instant::now();
    timeout(LIMIT, what).await.ok().map(|()| millis(began.elapsed()))
}

async fn served(shop: &Shop, loss: &Loss, loads: &[Load]) {
    let froms: Vec<_> = loads.iter().map(|load| (load, load.now())).collect();
    let lost: BTreeSet<_> = shop.instances().into_iter().filter(|host| loss.has(host)).collect();
    loop {
        let gets = froms.iter().flat_map(|(load, from)| load.since(*from));
        let served: BTreeSet<_> = gets.flat_map(|get| get.served).map(instance).collect();
        if lost.is_subset(&served) {
            return;
        }
        sleep(POLL).await;
    }
}

async fn carried(shop: &Shop, loss: &Loss) {
    for gateway in loss.gateways() {
        while timeout(PATIENCE, shop.carries(&gateway)).await != Ok(Ok(true)) {
            sleep(POLL).await;
        }
    }
}

async fn ruled(shop: &Shop) {
    while shop.effective().await.is_err() {
        sleep(POLL).await;
    }
}
