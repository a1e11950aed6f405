//! Who may call itself what, and what the end of a stream means.

use std::sync::LazyLock;

use api::digest::Hash;
use tokio::time::Instant;

use super::*;
use crate::{snapshot::fixture::workload, store::Embedded};

const LEASE: Duration = Duration::from_secs(15);
const DAY: u64 = 24 * 3600;

/// So many seconds after the first moment of all tests.
fn at(seconds: u64) -> Moment {
    static FIRST: LazyLock<Instant> = LazyLock::new(Instant::now);
    let later = Duration::from_secs(seconds);
    Moment { of_day: SystemTime::UNIX_EPOCH + later, counted: *FIRST + later }
}

async fn registry(dir: &tempfile::TempDir) -> Registry {
    let store: Arc<dyn Store> = Arc::new(Embedded::open(dir.path()).unwrap());
    Registry::open(store, LEASE, || at(0)).await.unwrap()
}

fn instance(workload_id: &str, instance: &str) -> Registered {
    Registered { instance: instance.parse().unwrap(), ..workload(workload_id, "reviews", "v1", 12) }
}

async fn connect(registry: &Registry, one: Registered, now: u64) -> Result<ProxyStream, RegistryError> {
    registry.connect(one, "1".into(), at(now)).await
}

/// What is new in a heartbeat.
async fn beat(registry: &Registry, stream: &ProxyStream, heartbeat: api::wire::Heartbeat) -> Vec<String> {
    registry.beat(stream, heartbeat, at(9).of_day).await
}

async fn enrol(registry: &Registry, one: Enrolled) {
    registry.enrolments.begin(one, at(0)).await.unwrap();
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
    assert!(!registry.disconnect(&old, at(6)));
    assert_eq!(registry.expire(at(60)).await.unwrap(), []);
    assert_eq!(state(&registry, "reviews-a"), (true, false));
    assert!(registry.disconnect(&new, at(60)));
    assert_eq!(state(&registry, "reviews-a"), (false, false));
}

#[tokio::test]
async fn late_words_of_an_old_stream_are_not_those_of_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let old = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    let new = connect(&registry, instance("reviews", "reviews-a"), 5).await.unwrap();
    let heartbeat = |app_ready| api::wire::Heartbeat { app_ready, ..Default::default() };
    registry.reached(&new, "two".into());
    beat(&registry, &new, heartbeat(true)).await;
    let (proxies, workloads) = (registry.proxies(), registry.workloads());
    registry.reached(&old, "one".into());
    registry.refused(&old, vec!["no".into()]);
    assert!(beat(&registry, &old, heartbeat(false)).await.is_empty());
    assert!(!proxies.has_changed().unwrap() && !workloads.has_changed().unwrap());
}

#[tokio::test]
async fn a_disk_without_room_and_a_refusal_are_told_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    let told = || {
        let proxies = registry.proxies().borrow().clone();
        let proxy = &proxies[&stream.instance];
        (proxy.refused.clone(), proxy.unkept.clone())
    };
    registry.unkept(&stream, "no room".into());
    registry.refused(&stream, vec!["no".into()]);
    assert_eq!(told(), (vec!["no".into()], Some("no room".into())));
    registry.reached(&stream, "one".into());
    assert_eq!(told(), (vec!["no".into()], None));
    registry.unkept(&stream, "no room".into());
    registry.refused(&stream, Vec::new());
    assert_eq!(told(), (Vec::new(), Some("no room".into())));
}

#[tokio::test]
async fn nor_does_it_where_an_operator_deregistered_the_workload_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let name: InstanceId = "reviews-a".parse().unwrap();
    let old = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    registry.forget(vec![name.clone()]).await.unwrap();
    connect(&registry, instance("reviews", "reviews-a"), 5).await.unwrap();
    assert!(!registry.disconnect(&old, at(6)));
    assert_eq!(state(&registry, "reviews-a"), (true, false));
}

#[tokio::test]
async fn a_workload_outlives_its_stream_by_its_lease() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    registry.disconnect(&stream, at(1));
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
    registry.disconnect(&stream, at(1_000));
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
    registry.disconnect(&stream, at(2));
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
    let second = Registry::open(store, LEASE, || at(1_000)).await.unwrap();
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
    assert!(registry.disconnect(&stream, at(1)));
    let comes = connect(&registry, instance("reviews-v1", "reviews-v1-a1"), 17);
    let (came, gone) = tokio::join!(comes, registry.expire(at(17)));
    assert!(came.is_ok() && gone.unwrap().is_empty());
    assert!(registry.workloads().borrow().contains_key(&name));
    assert_eq!(state(&registry, "reviews-v1-a1"), (true, false));
    let kept = registry.store.registrations().await.unwrap();
    assert!(kept.iter().any(|one| one.instance == name));
}

fn account(name: &str) -> Account {
    ("shop".parse().unwrap(), name.parse().unwrap())
}

#[tokio::test]
async fn what_one_asked_for_is_told_once_to_all_of_its_account() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let mut asked = registry.asked();
    // What is new in this, if anything is.
    let mut note = |name: &str, hosts: &[&str]| {
        registry.note_asked(&account(name), hosts.iter().map(|host| (*host).to_owned()));
        let is_news = asked.has_changed().unwrap();
        let all = asked.borrow_and_update().get(&account(name)).cloned().unwrap_or_default();
        is_news.then(|| all.into_iter().collect::<Vec<_>>().join(" "))
    };
    assert_eq!(note("front", &[]), None);
    assert_eq!(note("front", &["ratings", "reviews"]), Some("ratings reviews".into()));
    assert_eq!(note("front", &["ratings"]), None);
    assert_eq!(note("front", &["ratings", "catalogue"]), Some("catalogue ratings reviews".into()));
    assert_eq!(note("reviews", &["ratings"]), Some("ratings".into()));
}

#[tokio::test]
async fn an_account_has_only_so_many_hosts_noted() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let mut asked = registry.asked();
    let front = account("front");
    registry.note_asked(&front, (0..MAX_HOSTS - 1).map(|n| n.to_string()));
    registry.note_asked(&front, ["last".to_owned(), "too many".to_owned()]);
    let known = asked.borrow_and_update()[&front].clone();
    assert_eq!(known.len(), MAX_HOSTS);
    assert!(known.contains("last"));
    registry.note_asked(&front, ["too many".to_owned()]);
    assert!(!asked.has_changed().unwrap());
}

fn enrolled(name: &str, leaf: &str) -> Enrolled {
    let one = instance(name, &format!("{name}-a"));
    Enrolled {
        workload: one.workload,
        namespace: one.namespace,
        service_account: one.service_account,
        labels: one.labels,
        leaves: vec![Hash::of(leaf.as_bytes())],
        lifetime: DAY,
    }
}

#[tokio::test]
async fn a_workload_is_known_by_the_leaves_that_were_signed_for_it_lately() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry(&dir).await;
    let leaf = |name: &str| Hash::of(name.as_bytes());
    assert_eq!(first.enrolments.by_leaf(&leaf("0")), None);
    let unknown = first.enrolments.renew(&leaf("0"), leaf("1"), DAY, at(1)).await;
    assert!(matches!(unknown, Err(RegistryError::Unknown)));
    enrol(&first, enrolled("reviews", "0")).await;
    enrol(&first, enrolled("ratings", "r")).await;
    assert_eq!(first.enrolments.by_leaf(&leaf("0")), Some(enrolled("reviews", "0")));
    for n in 0..enrolments::KEPT_LEAVES {
        first.enrolments.renew(&leaf(&n.to_string()), leaf(&(n + 1).to_string()), DAY, at(1)).await.unwrap();
    }
    drop(first);
    let second = registry(&dir).await;
    assert_eq!(second.enrolments.by_leaf(&leaf("0")), None, "so many are known at a time");
    for n in 1..=enrolments::KEPT_LEAVES {
        assert_eq!(second.enrolments.by_leaf(&leaf(&n.to_string())).unwrap().workload.as_str(), "reviews");
    }
    assert_eq!(second.enrolments.by_leaf(&leaf("r")).unwrap().workload.as_str(), "ratings");
    assert!(second.workloads().borrow().is_empty(), "who enrolled has not come yet");
}

#[tokio::test]
async fn a_heartbeat_is_told_to_callers_and_what_is_new_in_it_to_people() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let name: InstanceId = "reviews-a".parse().unwrap();
    let mut one = instance("reviews", "reviews-a");
    one.app_ready = false;
    let stream = connect(&registry, one, 0).await.unwrap();
    let says = |app_ready, draining, bad: &[&str]| {
        let bad = bad.iter().map(|endpoint| api::wire::EndpointHealth {
            endpoint: (*endpoint).into(),
            reason: "it answers 503".into(),
        });
        let certificate_not_after = 7;
        api::wire::Heartbeat { app_ready, draining, certificate_not_after, ejected: bad.collect() }
    };
    let told = || {
        let one = registry.workloads().borrow()[&name].clone();
        (one.app_ready, one.draining)
    };
    assert_eq!(beat(&registry, &stream, says(true, false, &[])).await, ["its application answers"]);
    assert_eq!(told(), (true, false));
    assert_eq!(registry.proxies().borrow()[&name].certificate_not_after, 7);
    let mut workloads = registry.workloads();
    workloads.mark_unchanged();
    assert!(beat(&registry, &stream, says(true, false, &[])).await.is_empty());
    assert!(!workloads.has_changed().unwrap());
    assert_eq!(
        beat(&registry, &stream, says(true, false, &["x"])).await,
        ["holds x to be bad: it answers 503"]
    );
    assert!(!workloads.has_changed().unwrap(), "what one holds of another is told to people alone");
    assert_eq!(
        beat(&registry, &stream, says(true, false, &["y"])).await,
        ["holds y to be bad: it answers 503", "takes x to be good again"]
    );
    assert_eq!(
        beat(&registry, &stream, says(false, false, &["y"])).await,
        ["its application does not answer"]
    );
    assert_eq!(told(), (false, false));
    assert_eq!(beat(&registry, &stream, says(false, true, &["y"])).await, ["drains"]);
    assert_eq!(told(), (false, true));
    assert!(beat(&registry, &stream, says(false, true, &["y"])).await.is_empty());
    assert!(beat(&registry, &stream, says(false, false, &["y"])).await.is_empty());
    assert_eq!(told(), (false, false));
    let nobody = ProxyStream { instance: "nobody-a".parse().unwrap(), ..stream };
    assert!(beat(&registry, &nobody, says(true, true, &[])).await.is_empty());
    assert_eq!(registry.workloads().borrow().len(), 1);
}

#[tokio::test]
async fn whether_it_is_ready_outlives_a_stream_and_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry(&dir).await;
    let name: InstanceId = "reviews-a".parse().unwrap();
    let mut one = instance("reviews", "reviews-a");
    one.app_ready = false;
    let told = |registry: &Registry| registry.workloads().borrow()[&name].app_ready;
    let stream = connect(&first, one.clone(), 0).await.unwrap();
    let heartbeat = api::wire::Heartbeat { app_ready: true, ..Default::default() };
    beat(&first, &stream, heartbeat).await;
    connect(&first, one.clone(), 1).await.unwrap();
    assert!(told(&first), "the same life, on a new stream");
    drop(first);
    let second = registry(&dir).await;
    assert!(told(&second));
    connect(&second, Registered { instance: "reviews-b".parse().unwrap(), ..one }, 2).await.unwrap();
    assert!(!second.workloads().borrow()["reviews-b"].app_ready, "another life has to say so itself");
}

#[tokio::test]
async fn who_is_revoked_is_known_by_no_leaf_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let first = registry(&dir).await;
    let leaf = |name: &str| Hash::of(name.as_bytes());
    let id = |name: &str| name.parse().unwrap();
    enrol(&first, enrolled("reviews", "0")).await;
    enrol(&first, enrolled("ratings", "r")).await;
    connect(&first, instance("reviews", "reviews-a"), 0).await.unwrap();
    first.forget(first.instances_of(&id("reviews"))).await.unwrap();
    assert!(first.enrolments.by_leaf(&leaf("0")).is_some(), "who is deregistered may come again");
    connect(&first, instance("reviews", "reviews-a"), 1).await.unwrap();
    assert!(first.revoke(&id("reviews")).await.unwrap());
    assert_eq!(first.enrolments.by_leaf(&leaf("0")), None);
    assert!(first.workloads().borrow().is_empty());
    let renewed = first.enrolments.renew(&leaf("0"), leaf("1"), DAY, at(2)).await;
    assert!(matches!(renewed, Err(RegistryError::Unknown)));
    assert!(!first.revoke(&id("reviews")).await.unwrap());
    drop(first);
    let second = registry(&dir).await;
    assert_eq!(second.enrolments.by_leaf(&leaf("0")), None);
    assert!(second.enrolments.by_leaf(&leaf("r")).is_some());
}

#[tokio::test]
async fn an_enrolment_ends_with_its_last_leaf_whatever_the_clock_says() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let leaf = |name: &str| Hash::of(name.as_bytes());
    enrol(&registry, enrolled("reviews", "0")).await;
    enrol(&registry, enrolled("ratings", "r")).await;
    registry.enrolments.renew(&leaf("r"), leaf("s"), 2 * DAY, at(DAY / 2)).await.unwrap();
    let end = DAY + enrolments::KEPT.as_secs();
    let years = Duration::from_secs(1_000_000_000);
    registry.enrolments.end_unused(Moment { of_day: at(end).of_day + years, ..at(end) }).await.unwrap();
    assert!(registry.enrolments.by_leaf(&leaf("0")).is_some());
    registry.enrolments.end_unused(at(end + 1)).await.unwrap();
    assert_eq!(registry.enrolments.by_leaf(&leaf("0")), None);
    assert!(registry.enrolments.by_leaf(&leaf("s")).is_some());
    let kept = registry.store.registrations().await.unwrap();
    assert_eq!(kept.iter().map(|one| one.instance.as_str()).collect::<Vec<_>>(), ["enrolled.ratings"]);
}

#[tokio::test]
async fn a_gateway_has_no_application_that_could_answer() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let gateway = crate::snapshot::fixture::gateway("ingress", Role::Ingress, 9);
    let gateway = Registered { app_ready: false, ..gateway };
    let stream = connect(&registry, gateway, 0).await.unwrap();
    let heartbeat = api::wire::Heartbeat { app_ready: true, ..Default::default() };
    assert!(beat(&registry, &stream, heartbeat).await.is_empty());
}

#[tokio::test]
async fn a_refusal_is_shown_until_it_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let name: InstanceId = "reviews-a".parse().unwrap();
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    let mut proxies = registry.proxies();
    let mut shown = |is_news: bool| {
        assert_eq!(proxies.has_changed().unwrap(), is_news);
        let all = proxies.borrow_and_update();
        (all[&name].reached.clone(), all[&name].refused.clone())
    };
    shown(false);
    registry.reached(&stream, "one".into());
    assert_eq!(shown(true), (Some("one".into()), vec![]));
    registry.reached(&stream, "one".into());
    shown(false);
    registry.refused(&stream, vec!["no".into()]);
    assert_eq!(shown(true), (Some("one".into()), vec!["no".into()]));
    registry.reached(&stream, "two".into());
    assert_eq!(shown(true), (Some("two".into()), vec!["no".into()]));
    registry.refused(&stream, vec![]);
    assert_eq!(shown(true), (Some("two".into()), vec![]));
    assert_eq!(proxies.borrow()[&name].version, "1");
}

#[tokio::test]
async fn who_says_farewell_is_forgotten_by_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    connect(&registry, instance("reviews", "reviews-b"), 0).await.unwrap();
    connect(&registry, instance("ratings", "ratings-a"), 0).await.unwrap();
    let of = |name: &str| registry.instances_of(&name.parse().unwrap());
    assert_eq!(of("reviews"), ["reviews-a", "reviews-b"].map(|name| name.parse().unwrap()));
    assert_eq!(of("nobody"), []);
    registry.forget(of("reviews")).await.unwrap();
    assert_eq!(of("reviews"), []);
    let left: Vec<String> = registry.proxies().borrow().keys().map(ToString::to_string).collect();
    assert_eq!(left, ["ratings-a"]);
    let kept = registry.store.registrations().await.unwrap();
    assert_eq!(kept.iter().map(|one| one.instance.as_str()).collect::<Vec<_>>(), ["ratings-a"]);
    let (proxies, workloads) = (registry.proxies(), registry.workloads());
    registry.forget(vec![]).await.unwrap();
    assert!(!proxies.has_changed().unwrap() && !workloads.has_changed().unwrap());
}

#[tokio::test]
async fn who_is_gone_is_shown_for_ten_minutes() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let stream = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    connect(&registry, instance("ratings", "ratings-a"), 0).await.unwrap();
    registry.disconnect(&stream, at(0));
    let workloads = registry.workloads();
    registry.expire(at(14)).await.unwrap();
    assert!(!workloads.has_changed().unwrap());
    assert_eq!(registry.expire(at(15)).await.unwrap(), ["reviews".parse().unwrap()]);
    assert!(workloads.has_changed().unwrap());
    assert!(
        registry.store.registrations().await.unwrap().iter().all(|one| one.instance.as_str() != "reviews-a")
    );
    assert_eq!(registry.expire(at(15 + 599)).await.unwrap(), []);
    assert_eq!(state(&registry, "reviews-a"), (false, true));
    let workloads = registry.workloads();
    assert_eq!(registry.expire(at(15 + 600)).await.unwrap(), []);
    let left: Vec<String> = registry.proxies().borrow().keys().map(ToString::to_string).collect();
    assert_eq!(left, ["ratings-a"]);
    assert!(!workloads.has_changed().unwrap(), "callers were told before");
}

#[tokio::test]
async fn a_store_that_forgot_who_lives_here_is_told_anew() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    enrol(&registry, enrolled("reviews", "0")).await;
    connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    let stream = connect(&registry, instance("ratings", "ratings-a"), 0).await.unwrap();
    registry.disconnect(&stream, at(1));
    let before = registry.store.registrations().await.unwrap();
    registry.beat_all(at(5).of_day).await.unwrap();
    let beats = |all: &[Registration]| -> Vec<(String, u64)> {
        all.iter().map(|one| (one.instance.to_string(), one.beat_ms)).collect()
    };
    let named = |name: &str, beat| (name.to_owned(), beat);
    assert_eq!(
        beats(&registry.store.registrations().await.unwrap()),
        [named("enrolled.reviews", 0), named("ratings-a", 0), named("reviews-a", 5_000)]
    );
    let all = before.iter().map(|one| one.instance.clone()).collect();
    registry.store.remove_registrations(all).await.unwrap();
    registry.beat_all(at(6).of_day).await.unwrap();
    let after = registry.store.registrations().await.unwrap();
    assert_eq!(beats(&after), [named("enrolled.reviews", 0), named("reviews-a", 6_000)]);
    assert_eq!((&after[0].bytes, &after[1].bytes), (&before[0].bytes, &before[2].bytes));
}

#[test]
fn a_proxy_is_of_one_of_three_kinds() {
    let kind = |role| Proxy::new(Registered { role, ..instance("a", "a-1") }, at(0), true).kind();
    let kinds = [Role::Sidecar, Role::Ingress, Role::EastWest].map(kind);
    assert_eq!(kinds, ["sidecar", "ingress", "east-west"]);
}

#[tokio::test]
async fn one_enrolment_fills_no_registry() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    for i in 0..MAX_LIVES {
        connect(&registry, instance("reviews", &format!("reviews-{i}")), 0).await.unwrap();
    }
    let refused = connect(&registry, instance("reviews", "reviews-more"), 0).await;
    assert!(matches!(refused, Err(RegistryError::Lives(..))));
    let again = connect(&registry, instance("reviews", "reviews-0"), 1).await.unwrap();
    connect(&registry, instance("ratings", "ratings-0"), 1).await.unwrap();
    // One that is away makes room, and goes.
    registry.disconnect(&again, at(2));
    connect(&registry, instance("reviews", "reviews-more"), 3).await.unwrap();
    assert_eq!(registry.workloads().borrow().len(), MAX_LIVES + 1);
}

#[tokio::test]
async fn the_newest_stream_of_a_proxy_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let registry = registry(&dir).await;
    let old = connect(&registry, instance("reviews", "reviews-a"), 0).await.unwrap();
    assert!(registry.is_newest(&old));
    let new = connect(&registry, instance("reviews", "reviews-a"), 1).await.unwrap();
    assert!(!registry.is_newest(&old) && registry.is_newest(&new));
}
