//! Primaries whose store is a real etcd: all killed, stopped, run full and restored while commits go on.
//!
//! Each commit says its number in two namespaces. A reader of its own follows the store all the time and holds it to
//! what must never be seen otherwise: every head that is told is whole, says one number at both places, is later than
//! the one before it, and never has a lower number than one that a control plane has said to be in force.

mod clock;
mod disk;
mod members;
mod replicas;

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use api::{admin::Status, head::Seq};
use controlplane::store::{Etcd, EtcdSettings, Store, StoreError, read_revision};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use weft_tests::harness::{
    Answer, Client, EtcdServer, SmallDisk, Turn, client::request, eventually, git::git, weft,
};

/// A lease of the leadership, a start, and what a busy machine makes of both.
const SOON: Duration = Duration::from_secs(90);
const PREFIX: &str = "/weft/east";
/// The services' port is this and the commit's number.
const FIRST_PORT: u16 = 1_000;

fn ip(test: u8, host: u8) -> IpAddr {
    Ipv4Addr::new(127, 101, test, host).into()
}

fn store(server: &EtcdServer) -> Etcd {
    store_at(vec![server.url()])
}

fn store_at(endpoints: Vec<String>) -> Etcd {
    let prefix = PREFIX.to_owned();
    let holder = "http://reader".to_owned();
    Etcd::open(EtcdSettings { endpoints, prefix, ca: None, certificate: None, user: None, holder })
}

/// What rules the primary: commits by their number.
struct Source {
    dir: TempDir,
    _turn: Turn,
}

impl Source {
    async fn new() -> Self {
        let source = Source { dir: tempfile::tempdir().unwrap(), _turn: Turn::take().await };
        git(source.path(), &["init", "--quiet", "-b", "main"]);
        let mesh = "apiVersion: weft.mesh/v1alpha1\nkind: Mesh\nmetadata: { name: mesh }\n\
            spec: { trustDomain: store.example }\n---\n\
            apiVersion: weft.mesh/v1alpha1\nkind: Cluster\nmetadata: { name: east }\nspec: { namespaces: [a, b] }\n";
        fs::write(source.path().join("mesh.yaml"), mesh).unwrap();
        source
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Of other ports, and another policy for whoever stands behind them. Gives the commit's id.
    fn commit(&self, n: u16) -> String {
        for namespace in ["a", "b"] {
            let service = format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{ name: {namespace} }}\n---\n\
                 apiVersion: v1\nkind: Service\nmetadata: {{ name: one, namespace: {namespace} }}\n\
                 spec: {{ selector: {{ app: one }}, ports: [{{ name: http, port: {}, targetPort: 8080 }}] }}\n---\n\
                 apiVersion: weft.mesh/v1alpha1\nkind: AuthorizationPolicy\n\
                 metadata: {{ name: one, namespace: {namespace} }}\n\
                 spec:\n  targetRefs: [{{ group: \"\", kind: Service, name: one }}]\n  action: DENY\n\
                 \x20 rules: [{{ name: number-{n}, when: request.path == \"/{n}\" }}]\n",
                FIRST_PORT + n
            );
            fs::write(self.path().join(format!("{namespace}.yaml")), service).unwrap();
        }
        git(self.path(), &["add", "--all"]);
        git(self.path(), &["commit", "--quiet", "-m", &format!("number {n}")]);
        git(self.path(), &["rev-parse", "HEAD"]).trim().to_owned()
    }
}

/// A control plane, a process of its own.
struct Primary {
    child: Option<Child>,
    dir: TempDir,
    api: String,
    log: PathBuf,
    env: Vec<(&'static str, PathBuf)>,
    /// Where its state lies, if that is a disk of its own.
    disk: Option<SmallDisk>,
}

impl Primary {
    fn new(ip: IpAddr, source: &Source, server: &EtcdServer) -> Self {
        Primary::among(&[ip], source, &[server.url()], 15)
    }

    /// The first of `replicas`, with its store behind these URLs, or in a file if there are none.
    fn among(replicas: &[IpAddr], source: &Source, urls: &[String], lease_seconds: u32) -> Self {
        let (dir, ip) = (tempfile::tempdir().unwrap(), replicas[0]);
        let mut config = serde_json::json!({
            "cluster": "east", "role": "primary", "stateDir": dir.path().join("state"), "address": ip,
            "network": "east", "source": { "repository": source.path() }, "leaseSeconds": lease_seconds,
        });
        if !urls.is_empty() {
            config["replicas"] = serde_json::json!(replicas);
            config["store"] = serde_json::json!({ "etcd": { "endpoints": urls, "prefix": PREFIX } });
        }
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let (api, log) = (format!("http://{ip}:15080"), dir.path().join("log"));
        Primary { child: None, dir, api, log, env: Vec::new(), disk: None }
    }

    fn state(&self) -> PathBuf {
        self.disk.as_ref().map_or_else(|| self.dir.path().join("state"), SmallDisk::path)
    }

    fn start(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let program = weft().unwrap();
        let mut command =
            self.disk.as_ref().map_or_else(|| Command::new(&program), |disk| disk.command(&program));
        let child = command
            .args(["controlplane", "--config"])
            .arg(self.dir.path().join("config.json"))
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.unwrap());
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.as_ref().unwrap().id() as i32), signal).unwrap();
    }

    fn log(&self) -> String {
        // What takes nothing gives zeros without end.
        if self.log.is_file() { fs::read_to_string(&self.log).unwrap_or_default() } else { String::new() }
    }

    /// Asks its admin API, with its credential.
    async fn ask(&self, method: &str, path: &str, body: String) -> Result<Answer, String> {
        let token = fs::read_to_string(self.state().join("admin.token")).unwrap_or_default();
        let bearer = format!("Bearer {}", token.trim());
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        let asked = request(method, path, &headers).map(|_| body.into());
        Client::new(&self.api).send(asked, true).await
    }

    async fn status(&self) -> Result<Status, String> {
        let answer = self.ask("GET", "/api/v1/status", String::new()).await?;
        serde_json::from_slice(&answer.body).map_err(|error| error.to_string())
    }

    /// Waits until it says that `other` serves instead.
    async fn stands_by_for(&self, other: &Primary) {
        eventually(&format!("{} stands by for {}", self.api, other.api), SOON, async || {
            let answer = self.ask("GET", "/api/v1/status", String::new()).await?;
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            if answer.status == 503 && said.contains(&other.api) { Ok(()) } else { Err(said) }
        })
        .await
    }

    /// Gives it the one secret that a second control plane of a cluster needs.
    fn sealed_as(&self, first: &Primary) {
        fs::create_dir_all(self.state()).unwrap();
        fs::copy(first.state().join("seal.key"), self.state().join("seal.key")).unwrap();
    }

    /// Waits until it tells the wished.
    async fn tells(&self, what: &str, wished: impl Fn(&Status) -> bool) -> Status {
        eventually(what, SOON, async || {
            let status = self.status().await?;
            if wished(&status) {
                Ok(status)
            } else {
                Err(format!("{:?}, {:?}", status.commit, status.events))
            }
        })
        .await
    }

    /// Waits until `commit` is in force.
    async fn serves(&self, commit: &str) -> Status {
        self.tells(&format!("{commit} is in force"), |status| status.commit.as_deref() == Some(commit)).await
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

/// The first one serves `commit`, and the second one stands by.
async fn begin(first: &mut Primary, second: &mut Primary, commit: &str) {
    first.start();
    first.serves(commit).await;
    second.sealed_as(first);
    second.start();
    second.stands_by_for(first).await;
}

fn store_is_away(status: &Status) -> bool {
    status.clusters.iter().any(|cluster| cluster.store_away_since.is_some())
}

/// Holds the store to its invariants until it is asked for what it saw.
struct Reader {
    task: JoinHandle<()>,
    /// The highest number that was said to be in force.
    said: Arc<AtomicU16>,
    heads: tokio::sync::watch::Receiver<Vec<(Seq, u16)>>,
}

impl Reader {
    fn start(server: &EtcdServer) -> Self {
        Reader::of(store(server))
    }

    fn of(store: Etcd) -> Self {
        let said = Arc::new(AtomicU16::new(0));
        let (sender, heads) = tokio::sync::watch::channel(Vec::new());
        let task = tokio::spawn(read(store, said.clone(), sender));
        Reader { task, said, heads }
    }

    fn said(&self, n: u16) {
        self.said.fetch_max(n, Ordering::SeqCst);
    }

    /// Waits for number `n`; gives its head.
    async fn sees(&mut self, n: u16) -> Seq {
        let seen = self.heads.wait_for(|heads| heads.last().is_some_and(|(_, last)| *last == n));
        let seen =
            tokio::time::timeout(SOON, seen).await.unwrap_or_else(|_| panic!("number {n} is not told"));
        let seq = seen.ok().and_then(|heads| heads.last().map(|(seq, _)| *seq));
        assert!(!self.task.is_finished(), "the reader saw what must not be");
        seq.unwrap()
    }
}

async fn read(store: Etcd, said: Arc<AtomicU16>, seen: tokio::sync::watch::Sender<Vec<(Seq, u16)>>) {
    let mut heads = store.watch_head();
    while heads.changed().await.is_ok() {
        let said = said.load(Ordering::SeqCst);
        let Some(head) = heads.borrow_and_update().clone() else { continue };
        let seq = head.head().seq();
        let revision = head.head().stable.as_ref().expect("no head without a revision");
        let stored = loop {
            match read_revision(&store, revision).await {
                Ok(stored) => break stored,
                // The server is away: who reads has to wait, and reads the whole of it then.
                Err(StoreError::Failed(_)) => {}
                Err(error) => panic!("head {seq} is not whole: {error}"),
            }
        };
        let says = |key: &str| key.starts_with("Service ") && key.ends_with("one");
        let services: Vec<_> = stored.iter().filter(|one| says(&one.key)).collect();
        assert_eq!(services.len(), 2, "head {seq}");
        let number = |bytes: &[u8]| {
            let service: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            service["spec"]["ports"][0]["port"].as_u64().unwrap() as u16 - FIRST_PORT
        };
        let numbers = [number(&services[0].bytes), number(&services[1].bytes)];
        assert_eq!(numbers[0], numbers[1], "half of a commit is in force at {seq}");
        assert!(numbers[0] >= said, "{said} was said to be in force, and {seq} has {}", numbers[0]);
        if let Some((last, n)) = seen.borrow().last() {
            assert!(seq > *last && numbers[0] >= *n, "{last} with {n}, then {seq} with {}", numbers[0]);
        }
        seen.send_modify(|seen| seen.push((seq, numbers[0])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_while_it_publishes_leaves_nothing_half_and_loses_nothing() {
    let (source, mut server) = (Source::new().await, EtcdServer::start(ip(1, 1), &[]));
    let mut reader = Reader::start(&server);
    let mut primary = Primary::new(ip(1, 2), &source, &server);
    let first = source.commit(1);
    primary.start();
    primary.serves(&first).await;

    // Without its server it serves what it has, says so, and does so after a restart.
    server.kill();
    let second = source.commit(2);
    let status = primary.tells("the store is away", store_is_away).await;
    assert_eq!(status.commit, Some(first.clone()));
    primary.kill();
    primary.start();
    let status = primary.tells("it is away still", store_is_away).await;
    assert_eq!(status.commit, Some(first), "from its own disk");
    server.again();
    primary.serves(&second).await;
    let is_back = |status: &Status| {
        status.events.iter().any(|event| event.subject == "store" && event.message == "is back")
    };
    primary.tells("the store is back", is_back).await;
    reader.said(2);

    // Killed at all moments of a publish, the server now and then too.
    let mut n = 2;
    for round in 0..5_u64 {
        let mut last = String::new();
        for _ in 0..4 {
            n += 1;
            last = source.commit(n);
        }
        tokio::time::sleep(Duration::from_millis(13 * round)).await;
        primary.kill();
        if round % 2 == 0 {
            server.kill();
            server.again();
        }
        primary.start();
        primary.serves(&last).await;
        reader.said(n);
        reader.sees(n).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_sleeps_is_succeeded_and_moves_nothing_when_it_wakes() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(2, 1), &[]));
    let mut reader = Reader::start(&server);
    let mut sleeper = Primary::new(ip(2, 2), &source, &server);
    let first = source.commit(1);
    sleeper.start();
    sleeper.serves(&first).await;
    let mut other = Primary::new(ip(2, 3), &source, &server);
    other.sealed_as(&sleeper);
    other.start();
    other.stands_by_for(&sleeper).await;
    for n in [2, 4] {
        sleeper.signal(Signal::SIGSTOP);
        let commit = source.commit(n);
        other.serves(&commit).await;
        reader.said(n);
        sleeper.signal(Signal::SIGCONT);
        sleeper.stands_by_for(&other).await;
        other.serves(&source.commit(n + 1)).await;
        reader.said(n + 1);
        reader.sees(n + 1).await;
        std::mem::swap(&mut sleeper, &mut other);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_backup_begins_a_new_epoch_with_what_is_in_force() {
    let (source, mut server) = (Source::new().await, EtcdServer::start(ip(3, 1), &[]));
    let mut reader = Reader::start(&server);
    let mut primary = Primary::new(ip(3, 2), &source, &server);
    primary.start();
    primary.serves(&source.commit(1)).await;
    let backup = tempfile::tempdir().unwrap();
    server.kill();
    server.back_up(backup.path());
    server.again();
    primary.serves(&source.commit(2)).await;
    reader.said(2);
    let before = reader.sees(2).await;
    server.kill();
    server.restore(Some(backup.path()));
    server.again();
    primary.serves(&source.commit(3)).await;
    reader.said(3);
    let after = reader.sees(3).await;
    assert!(after.epoch > before.epoch, "{before}, then {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_waits_while_the_store_is_full() {
    let (source, mut server) =
        (Source::new().await, EtcdServer::start(ip(4, 1), &["--quota-backend-bytes", "4000000"]));
    let mut reader = Reader::start(&server);
    let mut primary = Primary::new(ip(4, 2), &source, &server);
    let first = source.commit(1);
    primary.start();
    primary.serves(&first).await;
    reader.said(1);
    let filler = store(&server);
    for i in 0_u32.. {
        match filler.put(vec![i.to_be_bytes().repeat(60_000).into()]).await {
            Ok(_) | Err(StoreError::Failed(_)) => {}
            Err(full) => {
                assert!(matches!(full, StoreError::Full(_)), "{full}");
                break;
            }
        }
    }
    let second = source.commit(2);
    let full =
        |status: &Status| status.events.iter().any(|event| event.message.contains("the store is full"));
    let status = primary.tells("why the commit waits", full).await;
    assert_eq!(status.commit, Some(first));
    server.kill();
    server.again_with(&[]);
    let mut client = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let alarms = client.alarm(AlarmAction::Get, AlarmType::Nospace, None).await.unwrap();
    let mut member = AlarmOptions::new();
    member.with_member(alarms.alarms()[0].member_id());
    client.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(member)).await.unwrap();
    primary.serves(&second).await;
    reader.said(2);
    reader.sees(2).await;
}
