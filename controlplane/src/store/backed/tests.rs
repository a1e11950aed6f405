use std::{net::Ipv4Addr, path::Path};

use tempfile::TempDir;

use super::*;
use crate::store::{
    Etcd, EtcdSettings,
    etcd::tests::real::EtcdServer,
    read_revision, scripted,
    suite::{commit, entry, publish, suite},
    write_revision,
};

const IP: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::new(127, 100, 0, 2));
const SOON: Duration = Duration::from_secs(30);

fn far(server: &EtcdServer, prefix: &str) -> Arc<dyn Store> {
    let (endpoints, prefix) = (vec![server.url()], prefix.to_owned());
    let holder = "http://127.0.0.1:1".to_owned();
    Arc::new(Etcd::open(EtcdSettings { endpoints, prefix, ca: None, certificate: None, user: None, holder }))
}

async fn open(server: &EtcdServer, dir: &Path) -> Backed {
    Backed::new(far(server, "/weft/test"), near(dir).await).await.unwrap()
}

/// The file, once the one who had it before has let go of it.
async fn near(dir: &Path) -> Embedded {
    let opening = async {
        loop {
            match Embedded::open(dir) {
                Err(StoreError::Busy(_)) => tokio::task::yield_now().await,
                opened => return opened,
            }
        }
    };
    soon("the file is free", opening).await.unwrap()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// Publishes one resource, and waits until that is kept here too.
async fn bring(store: &Backed, content: &str, guard: &Election) -> SignedHead {
    let entries = [entry("shop", "a", content, 'a')];
    let revision =
        write_revision(store, vec![("main".parse().unwrap(), commit('a'))], entries, None).await.unwrap();
    let seq = publish(store, &revision, guard).await;
    let mut heads = store.watch_head();
    let kept = heads.wait_for(|head| head.as_ref().is_some_and(|head| head.head().seq() >= seq));
    soon("it is kept", kept).await.unwrap().clone().unwrap()
}

async fn content(store: &Backed) -> Bytes {
    let head = store.watch_head().borrow().clone().unwrap();
    read_revision(store, head.head().stable.as_ref().unwrap()).await.unwrap()[0].bytes.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_store() {
    let (server, home) = (EtcdServer::start(IP, &[]), TempDir::new().unwrap());
    let count = std::cell::Cell::new(0);
    suite(async || {
        let n = count.replace(count.get() + 1);
        let near = Embedded::open(&home.path().join(n.to_string())).unwrap();
        Arc::new(Backed::new(far(&server, &format!("/weft/{n}")), near).await.unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn what_is_in_force_outlives_the_servers_and_this_process() {
    let (mut server, home) = (EtcdServer::start(IP, &[]), TempDir::new().unwrap());
    let store = open(&server, home.path()).await;
    let guard = store.campaign().await.unwrap();
    bring(&store, "1", &guard).await;
    let registration =
        |name: &str| Registration { instance: InstanceId::new(name).unwrap(), bytes: "a".into(), beat_ms: 1 };
    store.put_registration(registration("a-1")).await.unwrap();
    server.kill();
    soon("it is away", store.away().wait_for(Option::is_some)).await.unwrap();
    store.put_registration(registration("b-1")).await.unwrap();
    drop((guard, store));

    let store = open(&server, home.path()).await;
    assert_eq!(content(&store).await, "1");
    assert_eq!(store.registrations().await.unwrap(), [registration("a-1"), registration("b-1")]);
    server.again();
    soon("it is back", async {
        while store.head().await.is_err() {}
        store.away().wait_for(Option::is_none).await.map(drop)
    })
    .await
    .unwrap();
    let unknown = store.beat(vec![registration("a-1").instance, registration("b-1").instance], 2).await;
    assert_eq!(unknown.unwrap(), [registration("b-1").instance], "who came meanwhile must be told anew");
    let guard = soon("it leads again", store.campaign()).await.unwrap();
    bring(&store, "2", &guard).await;
    assert_eq!(content(&store).await, "2");
}

#[tokio::test]
async fn what_is_held_outlives_the_servers_and_this_process_though_they_never_told_of_it() {
    let (mut server, home) = (EtcdServer::start(IP, &[]), TempDir::new().unwrap());
    let store = open(&server, home.path()).await;
    let guard = store.campaign().await.unwrap();
    let first = bring(&store, "1", &guard).await;
    server.kill();
    soon("it is away", store.away().wait_for(Option::is_some)).await.unwrap();
    let second = SignedHead::unsigned(first.head().next(first.head().stable.clone().unwrap()));
    store.hold(&second).await.unwrap();
    assert_eq!(store.watch_head().borrow().as_ref(), Some(&second));
    store.hold(&first).await.unwrap();
    assert_eq!(store.watch_head().borrow().as_ref(), Some(&second), "it never goes back");
    drop((guard, store));
    let store = open(&server, home.path()).await;
    assert_eq!(store.watch_head().borrow().as_ref(), Some(&second));
}

#[tokio::test]
async fn another_process_is_told_what_it_lacks() {
    let (server, homes) = (EtcdServer::start(IP, &[]), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
    let (leader, follower) = (open(&server, homes[0].path()).await, open(&server, homes[1].path()).await);
    let guard = leader.campaign().await.unwrap();
    let head = bring(&leader, "1", &guard).await;
    let mut heads = follower.watch_head();
    soon("the follower has it", heads.wait_for(|known| known.as_ref() == Some(&head))).await.unwrap();
    assert_eq!(content(&follower).await, "1");
    // All of it lies here now.
    drop((heads, follower));
    let near = near(homes[1].path()).await;
    assert_eq!(near.head().await.unwrap(), Some(head.clone()));
    assert_eq!(read_revision(&near, head.head().stable.as_ref().unwrap()).await.unwrap().len(), 1);
}

#[tokio::test]
async fn servers_that_are_away_are_not_asked_to_note_who_lives_here() {
    let far = scripted::Scripted::new();
    let near = || Embedded::over(redb::backends::InMemoryBackend::new).unwrap();
    let store = Backed::new(far.clone(), near()).await.unwrap();
    let one = |name: &str| Registration { instance: name.parse().unwrap(), bytes: "a".into(), beat_ms: 1 };
    let there = async || far.registrations().await.unwrap();
    store.put_registration(one("a-1")).await.unwrap();
    assert_eq!(there().await, [one("a-1")]);
    far.set_away(true);
    store.put_registration(one("b-1")).await.unwrap();
    store.remove_registrations(vec![one("a-1").instance]).await.unwrap();
    assert_eq!(there().await, [one("a-1")]);
    far.set_away(false);
    store.remove_registrations(vec![one("a-1").instance]).await.unwrap();
    assert_eq!(there().await, []);
    assert_eq!(store.registrations().await.unwrap(), [one("b-1")]);
}

#[tokio::test]
async fn the_servers_are_told_what_changed_while_they_were_away_and_undo_none_of_it() {
    let far = scripted::Scripted::new();
    let near = Embedded::over(redb::backends::InMemoryBackend::new).unwrap();
    let store = Backed::new(far.clone(), near).await.unwrap();
    let one = |name: &str, bytes: &'static str| Registration {
        instance: name.parse().unwrap(),
        bytes: bytes.into(),
        beat_ms: 1,
    };
    let there = async || far.registrations().await.unwrap();
    for name in ["goes-1", "stays-1", "renews-1"] {
        store.put_registration(one(name, "old")).await.unwrap();
    }
    far.set_away(true);
    store.remove_registrations(vec![one("goes-1", "").instance]).await.unwrap();
    store.put_registration(one("renews-1", "new")).await.unwrap();
    far.set_away(false);
    let now = [one("renews-1", "new"), one("stays-1", "old")];
    assert_eq!(store.registrations().await.unwrap(), now, "a start goes by what is here");
    assert_eq!(there().await.len(), 3);
    store.settle().await.unwrap();
    assert_eq!(there().await, now);
    // What they have been told, they are not told again.
    far.remove_registrations(vec![now[0].instance.clone()]).await.unwrap();
    store.settle().await.unwrap();
    assert_eq!(there().await, now[1..]);
}

#[tokio::test]
async fn who_takes_over_begins_with_the_servers_word_however_long_that_takes() {
    let far = scripted::Scripted::new();
    let near = Embedded::over(redb::backends::InMemoryBackend::new).unwrap();
    let store = Backed::new(far.clone(), near).await.unwrap();
    let one = |name: &str| Registration { instance: name.parse().unwrap(), bytes: "a".into(), beat_ms: 1 };
    far.set_away(true);
    store.put_registration(one("mine-1")).await.unwrap();
    far.set_away(false);
    far.put_registration(one("theirs-1")).await.unwrap();
    store.succeed().await.unwrap();
    far.set_silent(true);
    let mut known = std::pin::pin!(store.registrations());
    assert!(tokio::time::timeout(AGAIN * 2, known.as_mut()).await.is_err(), "nobody is better than that");
    far.set_silent(false);
    assert_eq!(known.await.unwrap(), [one("theirs-1")]);
    // They are here now, and what was told of before is not told.
    store.settle().await.unwrap();
    assert_eq!(far.registrations().await.unwrap(), [one("theirs-1")]);
    far.set_silent(true);
    assert_eq!(store.registrations().await.unwrap(), [one("theirs-1")]);
}
