use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt;
use process::shutdown::Shutdown;
use tempfile::TempDir;

use super::*;
use crate::store::{
    Backed, Embedded, Etcd, EtcdSettings, etcd::tests::real::EtcdServer, lead, scripted::Scripted,
};

const IP: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 100, 0, 3));
/// A lease of the leadership, and what a busy machine makes of it.
const SOON: Duration = Duration::from_secs(60);

/// One control plane as far as turns go.
struct Replica {
    turn: Turn,
    vault: Arc<Vault>,
    leading: Leading,
    shutdown: Shutdown,
}

impl Replica {
    async fn start(server: &EtcdServer, name: &str, home: &TempDir) -> Self {
        let settings = EtcdSettings {
            endpoints: vec![server.url()],
            prefix: "/weft/turns".into(),
            ca: None,
            certificate: None,
            user: None,
            holder: name.into(),
        };
        let near = soon("the file is free", async {
            loop {
                match Embedded::open(home.path()) {
                    Err(StoreError::Busy(_)) => tokio::task::yield_now().await,
                    opened => return opened,
                }
            }
        });
        let far = Arc::new(Etcd::open(settings));
        let store: Arc<dyn Store> = Arc::new(Backed::new(far, near.await.unwrap()).await.unwrap());
        let shutdown = Shutdown::new();
        let leading = lead(store.clone(), &shutdown);
        let vault = Arc::new(Vault::shared(home.path(), store.clone(), leading.clone()));
        Replica { turn: Turn::new(store, leading.clone(), vault.clone()), vault, leading, shutdown }
    }

    async fn end(self) {
        self.shutdown.drain(SOON).await.unwrap();
    }

    fn waits(&mut self) -> bool {
        self.turn.comes().now_or_never().is_none()
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_serves_also_while_the_servers_are_away_until_another_one_does() {
    let (mut server, a, b) = (EtcdServer::start(IP, &[]), TempDir::new().unwrap(), TempDir::new().unwrap());
    let mut first = Replica::start(&server, "first", &a).await;
    soon("its turn comes", first.turn.comes()).await.unwrap();
    first.vault.keep().await.unwrap();
    std::fs::copy(a.path().join("seal.key"), b.path().join("seal.key")).unwrap();
    let mut second = Replica::start(&server, "second", &b).await;
    let mut rival = second.turn.rival();
    let known = soon("it knows who serves", rival.wait_for(Option::is_some)).await.unwrap().clone();
    assert_eq!(known.as_deref(), Some("first"));
    assert!(second.waits());

    server.kill();
    let lost = async {
        while first.leading.now().is_some() {
            first.leading.changed().await;
        }
    };
    soon("the lease ends", lost).await;
    assert!(first.turn.ends().now_or_never().is_none(), "nobody else serves");
    // It comes back without its servers, and goes on. The other one, which never served, does not begin.
    first.end().await;
    let mut first = Replica::start(&server, "first", &a).await;
    soon("it serves from its own disk", first.turn.comes()).await.unwrap();
    assert!(second.waits());

    // The servers are back while it is not there, so the other one serves.
    first.end().await;
    server.again();
    soon("the other one takes over", second.turn.comes()).await.unwrap();
    second.vault.keep().await.unwrap();
    assert!(second.vault.served_last().unwrap());
    let mut first = Replica::start(&server, "first", &a).await;
    soon("it learns of the other one", first.turn.ends()).await;
    assert!(first.waits());
    assert!(!first.vault.served_last().unwrap(), "it does not serve without servers any more");
}

/// What one process knows of who leads, told by a test.
struct Told {
    store: Arc<Scripted>,
    home: TempDir,
    turn: Turn,
    vault: Arc<Vault>,
}

impl Told {
    fn new(store: &Arc<Scripted>, leading: Leading) -> Self {
        let home = TempDir::new().unwrap();
        let vault = Arc::new(Vault::shared(home.path(), store.clone(), leading.clone()));
        Told { store: store.clone(), turn: Turn::new(store.clone(), leading, vault.clone()), vault, home }
    }

    /// The one that leads.
    fn leads(store: &Arc<Scripted>) -> Self {
        Told::new(store, Leading::by(store.election()))
    }

    /// As if it had served last.
    fn served_last(self) -> Self {
        std::fs::write(self.home.path().join("term"), "1").unwrap();
        self
    }

    fn serves(&mut self) -> bool {
        self.turn.comes().now_or_never().is_some_and(|comes| comes.is_ok())
    }
}

#[tokio::test]
async fn while_nobody_leads_who_served_last_serves_once_the_store_is_away() {
    let store = Scripted::new();
    let mut never = Told::new(&store, Leading::none());
    let mut last = Told::new(&store, Leading::none()).served_last();
    assert!(!never.serves() && !last.serves(), "the store is there: somebody can lead");
    store.set_away(true);
    assert!(!never.serves());
    assert!(last.serves());
    store.set_rival(Some("another"));
    assert_eq!(last.turn.rival().borrow().as_deref(), Some("another"));
    assert!(!last.serves());
    store.set_rival(None);
    assert!(!last.serves(), "it was told that another one served after it");
    assert!(!last.vault.served_last().unwrap());
}

#[tokio::test]
async fn a_store_that_answers_and_lets_nobody_lead_is_as_good_as_away() {
    let store = Scripted::new();
    let mut never = Told::new(&store, Leading::none());
    let mut last = Told::new(&store, Leading::none()).served_last();
    assert!(!last.serves());
    store.set_barred(true);
    assert!(!never.serves() && last.serves());
    store.set_away(true);
    assert!(!never.serves() && last.serves(), "nor is it less away for that");
    store.set_rival(Some("another"));
    assert!(!last.serves());
}

#[tokio::test]
async fn who_leads_serves_with_what_another_one_left_and_says_that_it_succeeds() {
    let store = Scripted::new();
    let mut first = Told::leads(&store);
    assert!(first.serves());
    std::fs::write(first.home.path().join("token.key"), "of the first").unwrap();
    first.vault.keep().await.unwrap();
    assert!(first.serves());
    assert_eq!(store.succeeded(), 0, "nobody else has served");
    let seal = std::fs::read(first.home.path().join("seal.key")).unwrap();
    drop(first);

    let mut second = Told::leads(&store);
    std::fs::write(second.home.path().join("seal.key"), seal).unwrap();
    assert!(second.serves());
    assert_eq!(std::fs::read(second.home.path().join("token.key")).unwrap(), b"of the first");
    assert_eq!(second.store.succeeded(), 1);
}

#[tokio::test]
async fn who_cannot_open_what_another_one_left_does_not_serve() {
    let store = Scripted::new();
    let first = Told::leads(&store);
    first.vault.keep().await.unwrap();
    drop(first);
    let mut second = Told::leads(&store);
    let comes = second.turn.comes().now_or_never();
    assert!(matches!(comes, Some(Err(VaultError::Sealed(_)))));
}

#[tokio::test]
async fn a_turn_ends_with_a_rival_and_with_a_new_term_after_one() {
    let store = Scripted::new();
    let shutdown = Shutdown::new();
    let mut leading = lead(store.clone(), &shutdown);
    let lost = store.elect();
    soon("it leads", leading.begun()).await;
    let mut one = Told::new(&store, leading.clone());
    assert!(one.serves());
    one.vault.keep().await.unwrap();
    assert!(one.turn.ends().now_or_never().is_none());
    store.set_rival(Some("another"));
    assert!(one.turn.ends().now_or_never().is_some());
    store.set_rival(None);

    // It loses the election and wins the next one: nobody has served in between.
    let mut ends = std::pin::pin!(one.turn.ends());
    assert!(ends.as_mut().now_or_never().is_none());
    lost.cancel();
    leading.changed().await;
    assert!(ends.as_mut().now_or_never().is_none());
    let lost = store.elect();
    soon("it leads again", leading.begun()).await;
    assert!(ends.as_mut().now_or_never().is_none());

    // And again, but now somebody has.
    lost.cancel();
    leading.changed().await;
    assert!(ends.as_mut().now_or_never().is_none());
    let other = Told::leads(&store);
    let seal = std::fs::read(one.home.path().join("seal.key")).unwrap();
    std::fs::write(other.home.path().join("seal.key"), seal).unwrap();
    other.vault.begin().await.unwrap();
    other.vault.keep().await.unwrap();
    drop(other);
    store.elect();
    soon("it leads once more", leading.begun()).await;
    assert!(ends.now_or_never().is_some());
    shutdown.drain(SOON).await.unwrap();
}
