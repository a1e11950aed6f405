use std::net::{IpAddr, Ipv4Addr};

use futures_util::FutureExt;
use process::shutdown::Shutdown;
use tempfile::TempDir;

use super::*;
use crate::store::{Backed, Embedded, Etcd, EtcdSettings, etcd::tests::real::EtcdServer, lead};

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
