use std::{cell::Cell, fs, net::Ipv4Addr, path::Path, time::Duration};

use api::head::Head;
use etcd_client::{AlarmAction, AlarmType, Client, ConnectOptions, Permission, PermissionType};
use tempfile::TempDir;

use super::*;
use crate::store::{
    MAX_BLOB_BYTES, StoreError, retain,
    suite::{commit, entry, publish, suite},
    write_revision,
};

#[path = "../../../../tests/src/harness/etcd.rs"]
#[allow(dead_code)]
pub(crate) mod real;

use real::EtcdServer;

const IP: std::net::IpAddr = std::net::IpAddr::V4(Ipv4Addr::new(127, 100, 0, 1));
/// Longer than a lease, and than the server may take to come back.
const SOON: Duration = Duration::from_secs(30);

fn server() -> EtcdServer {
    EtcdServer::start(IP, &[])
}

fn settings(server: &EtcdServer, prefix: &str) -> EtcdSettings {
    EtcdSettings {
        endpoints: vec![server.url()],
        prefix: prefix.into(),
        ca: None,
        certificate: None,
        user: None,
        holder: format!("http://{}", election::nonce()),
    }
}

fn open(server: &EtcdServer) -> Etcd {
    Etcd::open(settings(server, "/weft/test"))
}

fn head(epoch: u64, n: u64) -> SignedHead {
    SignedHead::unsigned(Head { n, ..Head::first(epoch) })
}

fn at(epoch: u64, n: u64) -> Option<Seq> {
    Some(Seq { epoch, n })
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"))
}

/// Moves the head, however often that has to be asked for while the server comes back.
async fn move_head(store: &Etcd, expected: Option<Seq>, next: SignedHead, guard: &Election) {
    let moved = async {
        loop {
            match store.compare_and_swap_head(expected, next.clone(), guard).await {
                Err(Conflict::Store(_)) => {}
                done => return done,
            }
        }
    };
    soon("the head moves", moved).await.unwrap();
}

async fn told(store: &Etcd, seq: Option<Seq>) {
    let mut watched = store.watch_head();
    let wanted = |head: &Option<SignedHead>| head.as_ref().map(|head| head.head().seq()) == seq;
    soon(&format!("head {seq:?} is told"), watched.wait_for(wanted)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_store() {
    let server = server();
    let count = Cell::new(0);
    suite(async || {
        count.set(count.get() + 1);
        Arc::new(Etcd::open(settings(&server, &format!("/weft/{}", count.get())))) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn a_blob_that_was_half_written_is_not_there_and_is_swept() {
    let server = server();
    let store = open(&server);
    let blob: Bytes = (0..MAX_BLOB_BYTES).map(|i| (i / 1000) as u8).collect::<Vec<_>>().into();
    let hash = Hash::of(&blob);
    let kept = store.put(vec![blob.clone(), "small".into()]).await.unwrap();
    assert_eq!(kept[0], hash);
    assert_eq!(store.get(kept.clone()).await.unwrap(), [Some(blob.clone()), Some("small".into())]);
    // As a writer leaves it that is killed before the root.
    let mut client = Client::connect([server.url()], None).await.unwrap();
    client.delete(format!("/weft/test/blob/{hash}"), None).await.unwrap();
    assert_eq!(store.has(kept.clone()).await.unwrap(), [false, true]);
    assert_eq!(store.get(kept.clone()).await.unwrap()[0], None);
    let guard = store.campaign().await.unwrap();
    assert_eq!(retain(&store, 1, &guard).await.unwrap(), 0, "nothing in force, nothing to forget");
    let live = HashSet::from([kept[1]]);
    assert_eq!(store.sweep(live.clone(), Seq { epoch: 0, n: 0 }, &guard).await.unwrap(), 0);
    let prefix = etcd_client::GetOptions::new().with_prefix().with_count_only();
    assert_eq!(client.get("/weft/test/chunk/", Some(prefix)).await.unwrap().count(), 0);
    store.put(vec![blob.clone()]).await.unwrap();
    assert_eq!(store.get(vec![hash]).await.unwrap(), [Some(blob)]);
    assert_eq!(store.sweep(live, Seq { epoch: 0, n: 0 }, &guard).await.unwrap(), 1);
}

#[tokio::test]
async fn who_was_killed_takes_its_own_leadership_over_and_others_know_whom_they_wait_for() {
    let server = server();
    let killed = settings(&server, "/weft/test");
    let first = Etcd::open(killed.clone());
    let old = first.campaign().await.unwrap();
    first.compare_and_swap_head(None, head(1, 1), &old).await.unwrap();
    let other = open(&server);
    let mut rival = other.rival();
    let mut waits = other.campaign();
    assert!((&mut waits).now_or_never().is_none());
    let known = async {
        tokio::select! {
            known = rival.wait_for(Option::is_some) => known.unwrap().clone(),
            _ = &mut waits => panic!("two lead"),
        }
    };
    assert_eq!(soon("it is known who leads", known).await, Some(killed.holder.clone()));
    // The next life of the first one, long before the lease of the earlier one ends: that one goes on renewing it.
    let again = Etcd::open(killed);
    let new = tokio::time::timeout(Duration::from_secs(3), again.campaign()).await.unwrap().unwrap();
    assert!(new.term() > old.term());
    let late = first.compare_and_swap_head(at(1, 1), head(1, 2), &old).await;
    assert_eq!(late, Err(Conflict::NotLeader));
    again.compare_and_swap_head(at(1, 1), head(1, 3), &new).await.unwrap();
    soon("the earlier life notices", old.lost()).await;
    drop((old, new));
    soon("the other one leads", waits).await.unwrap();
    assert_eq!(*other.rival().borrow(), None);
}

#[tokio::test]
async fn who_lost_the_election_moves_nothing() {
    let server = server();
    let (first, second) = (open(&server), open(&server));
    let old = first.campaign().await.unwrap();
    first.compare_and_swap_head(None, head(1, 1), &old).await.unwrap();
    // The lease runs out while the first is stopped: to the server it is the same as this.
    Client::connect([server.url()], None).await.unwrap().delete("/weft/test/leader", None).await.unwrap();
    let new = soon("the second leads", second.campaign()).await.unwrap();
    assert!(new.term() > old.term());
    let blobs = first.put(vec!["of the old leader".into()]).await.unwrap();
    let late = first.compare_and_swap_head(at(1, 1), head(1, 2), &old).await;
    assert_eq!(late, Err(Conflict::NotLeader));
    assert_eq!(first.sweep(HashSet::new(), Seq { epoch: 9, n: 0 }, &old).await, Err(Conflict::NotLeader));
    assert_eq!(second.has(blobs).await.unwrap(), [true]);
    second.compare_and_swap_head(at(1, 1), head(1, 2), &new).await.unwrap();
    told(&first, at(1, 2)).await;
    soon("the first learns that it does not lead", old.lost()).await;
    drop(old);
    second.compare_and_swap_head(at(1, 2), head(1, 3), &new).await.unwrap();
    drop(new);
    soon("the first leads again", first.campaign()).await.unwrap();
}

#[tokio::test]
async fn a_restart_of_the_server_loses_nothing() {
    let mut server = server();
    let (leader, follower) = (open(&server), open(&server));
    let guard = leader.campaign().await.unwrap();
    let instance = InstanceId::new("a-1").unwrap();
    let registration = Registration { instance, bytes: "a".into(), beat_ms: 1 };
    leader.put_registration(registration.clone()).await.unwrap();
    move_head(&leader, None, head(1, 1), &guard).await;
    told(&follower, at(1, 1)).await;
    for n in 1..4 {
        server.kill();
        assert!(matches!(leader.has(vec![]).await, Ok(here) if here.is_empty()), "asks nothing");
        assert_eq!(follower.watch_head().borrow().clone(), Some(head(1, n)), "what is known stays");
        server.again();
        move_head(&leader, at(1, n), head(1, n + 1), &guard).await;
        told(&follower, at(1, n + 1)).await;
    }
    assert_eq!(follower.registrations().await.unwrap(), [registration]);
    // All but the newest is compacted away while nobody watches.
    let mut client = Client::connect([server.url()], None).await.unwrap();
    let now = client.get("x", None).await.unwrap().header().unwrap().revision();
    client.compact(now, None).await.unwrap();
    server.kill();
    server.again();
    move_head(&leader, at(1, 4), head(1, 5), &guard).await;
    told(&follower, at(1, 5)).await;
}

#[tokio::test]
async fn a_restored_backup_takes_nobody_back() {
    let mut server = server();
    let backup = TempDir::new().unwrap();
    let store = open(&server);
    let guard = store.campaign().await.unwrap();
    move_head(&store, None, head(1, 1), &guard).await;
    server.kill();
    server.back_up(backup.path());
    server.again();
    for n in 1..4 {
        move_head(&store, at(1, n), head(1, n + 1), &guard).await;
    }
    for from in [Some(backup.path()), None] {
        let known = store.watch_head().borrow().clone();
        server.kill();
        server.restore(from);
        server.again();
        soon("the leader steps down", guard.lost()).await;
        assert_eq!(store.watch_head().borrow().clone(), known, "the head that is told never goes back");
    }
    drop(guard);
    let guard = soon("a new leadership", store.campaign()).await.unwrap();
    assert_eq!(store.head().await.unwrap(), None);
    move_head(&store, None, head(2, 1), &guard).await;
    told(&store, at(2, 1)).await;
    told(&open(&server), at(2, 1)).await;
}

#[tokio::test]
async fn a_full_server_refuses_and_keeps_what_it_has() {
    let mut server = EtcdServer::start(IP, &["--quota-backend-bytes", "3000000"]);
    let store = open(&server);
    let guard = store.campaign().await.unwrap();
    let revision = write_revision(
        &store,
        vec![("main".parse().unwrap(), commit('a'))],
        [entry("shop", "a", "1", 'a')],
        None,
    );
    let revision = revision.await.unwrap();
    let seq = publish(&store, &revision, &guard).await;
    let filling = async {
        for i in 0u32.. {
            let blob = i.to_be_bytes().repeat(60_000);
            if let Err(refused) = store.put(vec![blob.into()]).await {
                return refused;
            }
        }
        unreachable!("there is no end of numbers")
    };
    let refused = soon("it is full", filling).await;
    assert!(matches!(&refused, StoreError::Full(_)), "{refused}");
    assert_eq!(store.head().await.unwrap().unwrap().head().seq(), seq);
    assert!(crate::store::read_revision(&store, &revision).await.is_ok());
    let blocked = store.compare_and_swap_head(Some(seq), head(seq.epoch + 1, 0), &guard).await;
    assert!(matches!(blocked, Err(Conflict::Store(StoreError::Full(_)))), "{blocked:?}");
    // What an operator does: make room, disarm.
    server.kill();
    server.again_with(&[]);
    let mut client = Client::connect([server.url()], None).await.unwrap();
    let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    let mut member = etcd_client::AlarmOptions::new();
    member.with_member(alarms.alarms()[0].member_id());
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member)).await.unwrap();
    move_head(&store, Some(seq), head(seq.epoch + 1, 0), &guard).await;
}

#[tokio::test]
async fn a_server_may_come_after_its_clients() {
    let mut server = server();
    server.kill();
    let store = open(&server);
    let mut away = store.away();
    soon("it is away", away.wait_for(Option::is_some)).await.unwrap();
    assert!(matches!(store.head().await, Err(StoreError::Failed(_))));
    let leading = async { store.campaign().await.unwrap() };
    let coming = async {
        tokio::task::spawn_blocking(move || {
            server.again();
            server
        })
        .await
        .unwrap()
    };
    let (guard, _server) = soon("it leads", async { tokio::join!(leading, coming) }).await;
    move_head(&store, None, head(1, 1), &guard).await;
    soon("it is back", away.wait_for(Option::is_none)).await.unwrap();
}

#[tokio::test]
async fn a_server_that_stops_answering_counts_as_away() {
    let server = server();
    let store = open(&server);
    let guard = store.campaign().await.unwrap();
    move_head(&store, None, head(1, 1), &guard).await;
    server.signal("STOP");
    soon("the leadership is given up", guard.lost()).await;
    soon("it is away", store.away().wait_for(Option::is_some)).await.unwrap();
    let late = store.compare_and_swap_head(at(1, 1), head(1, 2), &guard).await;
    assert_eq!(late, Err(Conflict::NotLeader), "before the server is asked");
    server.signal("CONT");
    drop(guard);
    let guard = soon("it leads again", store.campaign()).await.unwrap();
    move_head(&store, at(1, 1), head(1, 2), &guard).await;
}

#[tokio::test]
async fn a_later_layout_is_left_alone() {
    let server = server();
    let mut client = Client::connect([server.url()], None).await.unwrap();
    client.put("/weft/test/format", "2", None).await.unwrap();
    assert_eq!(open(&server).head().await, Err(StoreError::Newer { found: 2, known: 1 }));
}

#[tokio::test]
async fn it_proves_itself_by_certificate_and_password() {
    let home = TempDir::new().unwrap();
    let files = certificates(home.path());
    let path = |name: &str| home.path().join(name);
    let args = ["--cert-file", "--key-file", "--trusted-ca-file"].into_iter().zip(&files);
    let mut args: Vec<&str> = args.flat_map(|(flag, file)| [flag, file.as_str()]).collect();
    args.push("--client-cert-auth");
    let mut server = EtcdServer::start(IP, &args);
    fs::write(path("password"), "secret\n").unwrap();
    let whole = EtcdSettings {
        ca: Some(path("ca.pem")),
        certificate: Some((path("client.pem"), path("client.key"))),
        user: Some(("weft".into(), path("password"))),
        ..settings(&server, "/weft/test")
    };
    with_password(&whole).await;
    let store = Etcd::open(whole.clone());
    let guard = store.campaign().await.unwrap();
    move_head(&store, None, head(1, 1), &guard).await;
    told(&Etcd::open(whole.clone()), at(1, 1)).await;
    let refused = [
        EtcdSettings { user: None, ..whole.clone() },
        EtcdSettings { certificate: None, ..whole.clone() },
        EtcdSettings { ca: None, ..whole.clone() },
        EtcdSettings { prefix: "/other".into(), ..whole.clone() },
        EtcdSettings { ca: Some(path("nowhere")), ..whole.clone() },
    ];
    let answers = refused.map(async |settings| Etcd::open(settings).head().await);
    for answer in futures_util::future::join_all(answers).await {
        assert!(matches!(answer, Err(StoreError::Failed(_))), "{answer:?}");
    }
    // A password that is changed, at the server and in the file, takes effect without a restart.
    let mut root = root(&whole).await;
    root.user_change_password("weft", "another").await.unwrap();
    fs::write(path("password"), "another").unwrap();
    server.kill();
    server.again();
    let read = async {
        loop {
            match store.head().await {
                Err(StoreError::Failed(_)) => {}
                read => return read,
            }
        }
    };
    assert_eq!(soon("the new password serves", read).await.unwrap(), Some(head(1, 1)));
}

async fn root(settings: &EtcdSettings) -> Client {
    let read = |path: &Path| fs::read(path).unwrap();
    let (certificate, key) = settings.certificate.clone().unwrap();
    let tls = etcd_client::TlsOptions::new()
        .ca_certificate(etcd_client::Certificate::from_pem(read(settings.ca.as_ref().unwrap())))
        .identity(etcd_client::Identity::from_pem(read(&certificate), read(&key)));
    let client =
        Client::connect(&settings.endpoints, Some(ConnectOptions::new().with_tls(tls.clone()))).await;
    let mut client = client.unwrap();
    let known = client.user_add("root", "root", None).await;
    if known.is_ok() {
        client.role_add("root").await.unwrap();
        client.user_grant_role("root", "root").await.unwrap();
        return client;
    }
    let login = ConnectOptions::new().with_tls(tls).with_user("root", "root");
    Client::connect(&settings.endpoints, Some(login)).await.unwrap()
}

/// Lets only the user `weft` touch the prefix.
async fn with_password(settings: &EtcdSettings) {
    let mut root = root(settings).await;
    let prefix = Permission::new(PermissionType::Readwrite, format!("{}/", settings.prefix)).with_prefix();
    root.role_add("weft").await.unwrap();
    root.role_grant_permission("weft", prefix).await.unwrap();
    root.user_add("weft", "secret", None).await.unwrap();
    root.user_grant_role("weft", "weft").await.unwrap();
    root.auth_enable().await.unwrap();
}

/// Makes an authority, a server's certificate and a client's; gives the server's certificate, key and authority.
fn certificates(dir: &Path) -> [String; 3] {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "the test's authority");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    for name in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![IP.to_string()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        let certificate = params.signed_by(&key, &ca).unwrap();
        fs::write(dir.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    ["server.pem", "server.key", "ca.pem"].map(|name| dir.join(name).display().to_string())
}

#[tokio::test]
async fn a_document_that_was_replaced_leaves_nothing_behind() {
    let server = server();
    let store = open(&server);
    let guard = store.campaign().await.unwrap();
    // Of several chunks, of one, and of several again.
    for bytes in ["a".repeat(2_000_000), "b".into(), "c".repeat(1_500_000), "c".repeat(1_500_000)] {
        let bytes = Bytes::from(bytes);
        store.keep_document("trust", bytes.clone(), &guard).await.unwrap();
        assert_eq!(store.document("trust").await.unwrap(), Some(bytes));
    }
    let left = async |prefix: &str| {
        let prefix = store.core.key(prefix);
        store
            .core
            .server
            .list(&prefix, 100, etcd_client::GetOptions::new().with_keys_only())
            .await
            .unwrap()
            .len()
    };
    assert_eq!((left("blob/").await, left("chunk/").await), (1, 3));
}
