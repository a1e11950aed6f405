//! Who may call itself what, and what the end of a stream means.

use std::sync::LazyLock;

use tokio::time::Instant;

use super::*;
use crate::{snapshot::fixture::workload, store::Embedded};

const LEASE: Duration = Duration::from_secs(15);

/// So many seconds after the first moment of all tests.
fn at(seconds: u64) -> Moment {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let later = Duration::from_secs(seconds);
    Moment { of_day: SystemTime::UNIX_EPOCH + later, counted: *FIRST + later }
}

async fn registry(dir: &tempfile::TempDir) -> Registry {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(dir.path()).unwrap());
    Registry::open(store, LEASE, at(0)).await.unwrap()
}

fn instance(workload_id: &str, instance: &str) -> Registered {
    Registered { instance: instance.parse().unwrap(), ..workload(workload_id, "reviews", "v1", 12) }
}

async fn connect(registry: &Registry, one: Registered, now: u64) -> Result<u64, RegistryError> {
    registry.connect(one, "1".into(), at(now)).await
}

fn state(registry: &Registry, name: &str) -> (bool, bool) {
    let proxies = registry.proxies().borrow().clone();
    let proxy = &proxies[&name.parse::<InstanceId>().unwrap()];
    (proxy.connected, proxy.gone)
}

#[tokio::test]
async fn an_instance_belongs_to_its_workload() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    connect(&registry, instance("reviews", "reviews-v1-a1"), 0).await.unwrap();
    for (workload, name) in [
        ("evil", "reviews-v1-a1"),
        ("evil", "evil"),
        ("enrolled.x", "enrolled.x-1"),
        // By its name it could be `reviews`' or `reviews-v1`'s: it is whose it was first.
        ("reviews-v1", "reviews-v1-a1"),
    ] {
        let refused = connect(&registry, instance(workload, name), 1).await;
        assert!(matches!(refused, Err(RegistryError::Instance(_))), "{workload} as {name}");
    }
    assert_eq!(registry.workloads().borrow().len(), 1);
}

#[tokio::test]
async fn the_late_end_of_an_old_stream_says_nothing_of_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let old = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    let new = connect(&registry, instance("reviews", "reviews-a"), 5).await.unwrap();
    let name = "reviews-a".parse().unwrap();
    assert!(!registry.disconnect(&name, old, at(6)));
    assert_eq!(registry.expire(at(60)).await.unwrap(), []);
    assert_eq!(state(&registry, "reviews-a"), (true, false));
    assert!(registry.disconnect(&name, new, at(60)));
    assert_eq!(state(&registry, "reviews-a"), (false, false));
}

#[tokio::test]
async fn a_workload_outlives_its_stream_by_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    registry.disconnect(&"reviews-a".parse().unwrap(), stream, at(1));
    assert_eq!(registry.expire(at(15)).await.unwrap(), []);
    assert_eq!(registry.workloads().borrow().len(), 1);
    assert_eq!(registry.expire(at(16)).await.unwrap(), ["reviews".parse().unwrap()]);
    assert_eq!(registry.workloads().borrow().len(), 0);
    assert_eq!(state(&registry, "reviews-a"), (false, true));
}

#[tokio::test]
async fn a_clock_that_is_set_ends_no_lease_and_prolongs_none() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 1_000).await.unwrap();
    registry.disconnect(&"reviews-a".parse().unwrap(), stream, at(1_000));
    let set = |to, seconds| Moment { of_day: at(to).of_day, ..at(seconds) };
    assert_eq!(registry.expire(set(9_000, 1_014)).await.unwrap(), []);
    assert_eq!(registry.expire(set(0, 1_015)).await.unwrap(), ["reviews".parse().unwrap()]);
}

#[tokio::test]
async fn the_next_life_of_a_workload_ends_the_last_one() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    connect(&registry, instance("reviews", "reviews-b"), 1).await.unwrap();
    assert_eq!(registry.workloads().borrow().len(), 2, "both streams are up");
    registry.disconnect(&"reviews-a".parse().unwrap(), stream, at(2));
    connect(&registry, instance("reviews", "reviews-c"), 3).await.unwrap();
    let left: Vec<String> = registry.workloads().borrow().keys().map(ToString::to_string).collect();
    assert_eq!(left, ["reviews-b", "reviews-c"]);
}

#[tokio::test]
async fn a_restart_begins_every_lease_anew() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry(&dir).await;
    connect(&first, instance("reviews", "reviews-a"), 0).await.unwrap();
    drop(first);
    let store: Arc<dyn Store> = Arc::new(Embedded::open(dir.path()).unwrap());
    let second = Registry::open(store, LEASE, at(1_000)).await.unwrap();
    assert_eq!(second.expire(at(1_014)).await.unwrap(), []);
    assert_eq!(second.expire(at(1_015)).await.unwrap(), ["reviews".parse().unwrap()]);
}

/// Found by the simulated network: the stream was up, and nobody was told of the workload any more.
#[tokio::test]
async fn whoever_comes_back_while_its_lease_is_judged_stays() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let name: InstanceId = "reviews-v1-a1".parse().unwrap();
    let stream = connect(&registry, instance("reviews-v1", "reviews-v1-a1"), 0).await.unwrap();
    assert!(registry.disconnect(&name, stream, at(1)));
    let comes = connect(&registry, instance("reviews-v1", "reviews-v1-a1"), 17);
    let (came, gone) = tokio::join!(comes, registry.expire(at(17)));
    assert!(came.is_ok() && gone.unwrap().is_empty());
    assert!(registry.workloads().borrow().contains_key(&name));
    assert_eq!(state(&registry, "reviews-v1-a1"), (true, false));
    let kept = registry.store.registrations().await.unwrap();
    assert!(kept.iter().any(|one| one.instance == name));
}
