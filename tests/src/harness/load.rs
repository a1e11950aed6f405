//! Load at a fixed rate, open loop: a slow answer delays no other request, and counts from when it was due.
//!
//! Clients do not retry; every other GET and each POST goes over a connection of its own. A GET is good only when it is
//! 200 and complete, with every service it needs in `served_by`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{MissedTickBehavior, interval_at},
};

use super::{Answer, Client, Hop, client, eventually};

/// What the front page cannot do without.
const NEEDED: [&str; 4] = ["front", "catalogue", "reviews", "ratings"];
/// Failures that are shown one by one.
const SHOWN: usize = 15;

/// A running load.
pub struct Load {
    record: Arc<Record>,
    tasks: Vec<JoinHandle<()>>,
    end: tokio::sync::watch::Sender<bool>,
}

/// What came of a GET.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// When it was due, since the load began.
    pub due: Duration,
    /// Until its end.
    pub took: Duration,
    /// Who had a part in it.
    pub served: Vec<Hop>,
    /// What was wrong with it.
    pub failure: Option<String>,
}

/// What came of a POST.
#[derive(Debug, Clone)]
pub struct Order {
    /// Its id, unique among all loads of this process.
    pub id: String,
    /// Why the client was not told that it is done.
    pub failure: Option<String>,
}

struct Record {
    /// Tells its orders from those of other loads.
    number: u32,
    began: Instant,
    gets: Mutex<Vec<Outcome>>,
    orders: Mutex<Vec<Order>>,
    marks: Mutex<Vec<(Duration, String)>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Load {
    /// So many `GET /` and `POST /orders` a second at an ingress.
    pub fn start(ingress: &str, gets_per_second: u32, orders_per_second: u32) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let record = Arc::new(Record {
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            began: Instant::now(),
            gets: Mutex::default(),
            orders: Mutex::default(),
            marks: Mutex::default(),
        });
        let (end, ended) = tokio::sync::watch::channel(false);
        let client = Arc::new(Client::new(ingress));
        let gets = {
            let (record, client) = (record.clone(), client.clone());
            paced(gets_per_second, ended.clone(), move |n, due| get(record.clone(), client.clone(), n, due))
        };
        let orders = {
            let record = record.clone();
            paced(orders_per_second, ended, move |n, _| order(record.clone(), client.clone(), n))
        };
        Load { record, tasks: vec![tokio::spawn(gets), tokio::spawn(orders)], end }
    }

    /// How long it runs by now.
    pub fn now(&self) -> Duration {
        self.record.began.elapsed()
    }

    /// Notes what happens now, for the report.
    pub fn mark(&self, what: &str) -> Duration {
        let now = self.now();
        locked(&self.record.marks).push((now, what.to_owned()));
        now
    }

    /// What was due at `from` or later and is over.
    pub fn since(&self, from: Duration) -> Vec<Outcome> {
        locked(&self.record.gets).iter().filter(|get| get.due >= from).cloned().collect()
    }

    /// Waits until the GETs that are due from now on are served as wished, `count` in a row.
    pub async fn until(&self, what: &str, within: Duration, count: usize, good: impl Fn(&[Hop]) -> bool) {
        let from = self.now();
        eventually(what, within, async || {
            let mut gets = self.since(from);
            gets.sort_by_key(|get| get.due);
            let row = gets.iter().rev().take_while(|get| get.failure.is_none() && good(&get.served)).count();
            if row >= count {
                Ok(())
            } else {
                Err(format!("{row} of {count} in a row, {} in all", gets.len()))
            }
        })
        .await;
    }

    /// Waits until so many more GETs are over.
    pub async fn more(&self, count: usize) {
        let from = self.now();
        self.until_over(from, count).await;
    }

    async fn until_over(&self, from: Duration, count: usize) {
        eventually("requests come to an end", Duration::from_secs(60), async || {
            let over = self.since(from).len();
            if over >= count { Ok(()) } else { Err(format!("{over} of {count}")) }
        })
        .await;
    }

    /// Ends it; all that was begun is finished first.
    pub async fn stop(mut self) -> Tally {
        let _ = self.end.send(true);
        for task in self.tasks.drain(..) {
            task.await.expect("the load does not panic");
        }
        let mut gets = std::mem::take(&mut *locked(&self.record.gets));
        gets.sort_by_key(|get| get.due);
        let orders = std::mem::take(&mut *locked(&self.record.orders));
        let marks = std::mem::take(&mut *locked(&self.record.marks));
        Tally { gets, orders, marks }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Begins one task at each tick, late ones at once.
async fn paced<F, T>(per_second: u32, mut ended: tokio::sync::watch::Receiver<bool>, begin: F)
where
    F: Fn(u64, Instant) -> T,
    T: Future<Output = ()> + Send + 'static,
{
    if per_second == 0 {
        return;
    }
    let mut ticks = interval_at(tokio::time::Instant::now(), Duration::from_secs(1) / per_second);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut running = JoinSet::new();
    for n in 0.. {
        tokio::select! {
            due = ticks.tick() => drop(running.spawn(begin(n, due.into_std()))),
            _ = ended.wait_for(|ended| *ended) => break,
        }
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

async fn get(record: Arc<Record>, client: Arc<Client>, n: u64, due: Instant) {
    let answer = client.send(client::request("GET", "/", &[]), n.is_multiple_of(2)).await;
    let (served, failure) = judged(answer);
    let took = due.elapsed();
    let due = due.saturating_duration_since(record.began);
    locked(&record.gets).push(Outcome { due, took, served, failure });
}

async fn order(record: Arc<Record>, client: Arc<Client>, n: u64) {
    let id = format!("order-{}-{n}", record.number);
    let answer = client.post("/orders", &json!({ "id": id })).await;
    let failure = answer.map_or_else(Some, |answer| refused(&answer));
    locked(&record.orders).push(Order { id, failure });
}

fn judged(answer: Result<Answer, String>) -> (Vec<Hop>, Option<String>) {
    let answer = match answer {
        Ok(answer) => answer,
        Err(why) => return (Vec::new(), Some(why)),
    };
    let served = answer.served_by();
    let absent = NEEDED.into_iter().find(|needed| !served.iter().any(|hop| hop.service == *needed));
    let failure = refused(&answer).or_else(|| absent.map(|service| format!("200 without {service}")));
    (served, failure)
}

/// A status that is not 200, with the beginning of its body.
fn refused(answer: &Answer) -> Option<String> {
    (answer.status != 200).then(|| {
        let body = String::from_utf8_lossy(&answer.body);
        format!("{} {}", answer.status, body.chars().take(300).collect::<String>())
    })
}

/// What came of a load.
pub struct Tally {
    /// The GETs, in the order in which they were due.
    pub gets: Vec<Outcome>,
    /// The orders.
    pub orders: Vec<Order>,
    marks: Vec<(Duration, String)>,
}

impl Tally {
    /// # Panics
    /// When a GET failed.
    pub fn no_get_failed(&self) -> &Self {
        let failed: Vec<_> = self.gets.iter().filter(|get| get.failure.is_some()).collect();
        assert!(
            failed.is_empty(),
            "{} of {} GETs failed\n{}",
            failed.len(),
            self.gets.len(),
            self.told(&failed)
        );
        self
    }

    /// # Panics
    /// When a GET took longer than `usual` that was not due in one of the spans, or longer than `longest` there.
    pub fn late_only_in(&self, spans: &[(Duration, Duration)], usual: Duration, longest: Duration) -> &Self {
        let inside = |due: Duration| spans.iter().any(|(from, to)| (*from..=*to).contains(&due));
        let late: Vec<_> =
            self.gets.iter().filter(|get| get.took > if inside(get.due) { longest } else { usual }).collect();
        assert!(late.is_empty(), "{} of {} GETs are late\n{}", late.len(), self.gets.len(), self.told(&late));
        self
    }

    /// # Panics
    /// When there are [wrong orders](Self::wrong_orders).
    pub fn no_order_twice(&self, executed: &[String]) -> &Self {
        let wrong = self.wrong_orders(executed);
        assert!(wrong.is_empty(), "{}", wrong.join("; "));
        self
    }

    /// What was executed twice, and what was acknowledged and never executed. `executed` are the ids in the logs.
    pub fn wrong_orders(&self, executed: &[String]) -> Vec<String> {
        let twice = self.executed_twice(executed).into_iter();
        let twice = twice.map(|(id, count)| format!("{id} was executed {count} times"));
        let lost = self.lost(executed).into_iter();
        twice.chain(lost.map(|id| format!("{id} was acknowledged and never executed"))).collect()
    }

    /// The orders that were executed more than once, and how often.
    pub fn executed_twice(&self, executed: &[String]) -> Vec<(&str, usize)> {
        let times = self.times(executed);
        times.into_iter().filter(|(_, count)| *count > 1).collect()
    }

    /// The orders that were acknowledged and never executed.
    pub fn lost(&self, executed: &[String]) -> Vec<&str> {
        let done = self.orders.iter().filter(|order| order.failure.is_none()).map(|order| order.id.as_str());
        let times = self.times(executed);
        done.filter(|id| times[id] == 0).collect()
    }

    /// How often each order was executed.
    fn times(&self, executed: &[String]) -> BTreeMap<&str, usize> {
        let mut times: BTreeMap<&str, usize> =
            self.orders.iter().map(|order| (order.id.as_str(), 0)).collect();
        for id in executed {
            if let Some(count) = times.get_mut(id.as_str()) {
                *count += 1;
            }
        }
        times
    }

    /// One line about it all.
    pub fn report(&self, what: &str) {
        let mut took: Vec<_> = self.gets.iter().map(|get| get.took).collect();
        took.sort();
        let at = |share: f64| took.get((took.len() as f64 * share) as usize).copied().unwrap_or_default();
        let failed = self.gets.iter().filter(|get| get.failure.is_some()).count();
        let undone = self.orders.iter().filter(|order| order.failure.is_some()).count();
        println!(
            "{what}: {} GETs, {failed} failed, p50 {:?}, p99 {:?}, max {:?}; {} orders, {undone} not done",
            self.gets.len(),
            at(0.5),
            at(0.99),
            took.last().copied().unwrap_or_default(),
            self.orders.len(),
        );
    }

    fn told(&self, gets: &[&Outcome]) -> String {
        let mut text = String::new();
        for (at, what) in &self.marks {
            let _ = writeln!(text, "  {:8.3} s  -- {what}", at.as_secs_f64());
        }
        for get in gets.iter().take(SHOWN) {
            let why = get.failure.as_deref().unwrap_or("late");
            let _ = writeln!(text, "  {:8.3} s  took {:?}: {why}", get.due.as_secs_f64(), get.took);
        }
        if let (Some(last), true) = (gets.last(), gets.len() > SHOWN) {
            let _ = writeln!(text, "  ... until {:.3} s", last.due.as_secs_f64());
        }
        text
    }
}
