//! Two control planes of one cluster: one serves, and the other one takes over all that it knew.

use api::{
    admin::{ProxyState, ProxyStatus, Token},
    head::SignedHead,
};

use super::*;

/// A sidecar that knows both control planes; a process of its own.
pub(super) struct Sidecar {
    child: Child,
    dir: TempDir,
    /// Where its state lies, if that is a disk of its own.
    disk: Option<SmallDisk>,
}

impl Sidecar {
    pub(super) fn start(ip: IpAddr, control_planes: [IpAddr; 2], token: &str) -> Self {
        Sidecar::start_on(None, tempfile::tempdir().unwrap(), ip, control_planes, token)
    }

    pub(super) fn start_on_a_small_disk(ip: IpAddr, control_planes: [IpAddr; 2], token: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(&dir.path().join("state"), 1 << 20);
        Sidecar::start_on(Some(disk), dir, ip, control_planes, token)
    }

    fn start_on(
        disk: Option<SmallDisk>,
        dir: TempDir,
        ip: IpAddr,
        control_planes: [IpAddr; 2],
        token: &str,
    ) -> Self {
        fs::write(dir.path().join("token"), token).unwrap();
        let config = serde_json::json!({
            "role": "sidecar", "workload": "one", "stateDir": dir.path().join("state"),
            "tokenFile": dir.path().join("token"), "source": ip,
            "controlPlanes": control_planes.map(|ip| format!("{ip}:15012")),
            "inbound": format!("{ip}:15006"), "outbound": format!("{ip}:15001"), "admin": format!("{ip}:15000"),
            "apps": [{ "port": 8080, "address": format!("{ip}:8080") }],
        });
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let child = run(&dir, disk.as_ref(), &[]);
        Sidecar { child, dir, disk }
    }

    /// Ends it, and begins anew what was left behind.
    pub(super) fn restart(&mut self, env: &[(&str, PathBuf)]) {
        end(&mut self.child);
        self.child = run(&self.dir, self.disk.as_ref(), env);
    }

    pub(super) fn disk(&self) -> &SmallDisk {
        self.disk.as_ref().expect("it was given one")
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        end(&mut self.child);
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

fn run(dir: &TempDir, disk: Option<&SmallDisk>, env: &[(&str, PathBuf)]) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.path().join("log")).unwrap();
    let program = weft().unwrap().with_file_name("weft-proxy");
    let mut command = disk.map_or_else(|| Command::new(&program), |disk| disk.command(&program));
    command
        .arg("--config")
        .arg(dir.path().join("config.json"))
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

impl Primary {
    /// A token for one workload.
    pub(super) async fn token(&self) -> String {
        let asked = serde_json::json!({
            "workload": "one", "namespace": "a", "serviceAccount": "one", "labels": { "app": "one" },
        });
        let answer = self.ask("POST", "/api/v1/tokens", asked.to_string()).await.unwrap();
        let token: Token = serde_json::from_slice(&answer.body).unwrap();
        token.token
    }

    /// Waits until the only workload is as wished.
    pub(super) async fn one(&self, what: &str, wished: impl Fn(&ProxyStatus) -> bool) {
        eventually(what, SOON, async || {
            let status = self.status().await?;
            let own = status.clusters.iter().find(|cluster| cluster.name.as_str() == "east");
            let proxies = own.map(|own| own.proxies.as_slice()).unwrap_or_default();
            match proxies {
                [one] if wished(one) => Ok(()),
                others => Err(format!("{others:?}")),
            }
        })
        .await
    }

    /// Waits until the workload's stream is here, and it obeys `commit`.
    pub(super) async fn rules(&self, commit: &str) {
        let obeys = |one: &ProxyStatus| {
            one.state == ProxyState::Connected && one.effective && one.commit.as_deref() == Some(commit)
        };
        self.one(&format!("the workload obeys {commit} at {}", self.api), obeys).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_over_knows_the_keys_the_used_tokens_and_the_workloads() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(6, 1), &[]));
    let places = [ip(6, 2), ip(6, 3)];
    let [mut first, mut second] = places.map(|at| Primary::new(at, &source, &server));
    let commit = source.commit(1);
    first.start();
    first.serves(&commit).await;

    // Without the seal key a second one could read nothing of what the first one keeps, and says what it lacks.
    second.start();
    second.stands_by_for(&first).await;
    second.kill();
    second.sealed_as(&first);
    second.start();
    second.stands_by_for(&first).await;

    let token = first.token().await;
    let unused = first.token().await;
    let sidecar = Sidecar::start(ip(6, 4), places, &token);
    first.rules(&commit).await;

    // Killed: the second one knows who lives here before anybody has come to it.
    first.kill();
    let status = second.serves(&commit).await;
    let own = status.clusters.iter().find(|cluster| cluster.name.as_str() == "east").unwrap();
    assert_eq!(own.proxies.len(), 1, "{:?}", own.proxies);
    second.rules(&commit).await;
    let thief = Sidecar::start(ip(6, 5), places, &token);
    eventually("a token that the first one took is worth nothing at the second", SOON, async || {
        let log = thief.log();
        if log.contains("was used before") { Ok(()) } else { Err(log) }
    })
    .await;
    drop(thief);

    // The first one comes back, and stands by. What it issued is good at the second.
    first.start();
    first.stands_by_for(&second).await;
    let commit = source.commit(2);
    second.serves(&commit).await;
    second.rules(&commit).await;
    drop(sidecar);
    let _sidecar = Sidecar::start(ip(6, 4), places, &unused);
    second.rules(&commit).await;

    // Stopped in the middle: the proxies leave it, and it serves nobody when it wakes.
    second.signal(Signal::SIGSTOP);
    let commit = source.commit(3);
    first.serves(&commit).await;
    first.rules(&commit).await;
    second.signal(Signal::SIGCONT);
    second.stands_by_for(&first).await;
    first.rules(&commit).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_can_write_to_the_store_does_not_rule_by_that() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(7, 1), &[]));
    let mut primary = Primary::new(ip(7, 2), &source, &server);
    let first = source.commit(1);
    primary.start();
    primary.serves(&first).await;

    // A later head of another commit, by one who has etcd and no key.
    let mut client = etcd_client::Client::connect([server.url()], None).await.unwrap();
    let key = format!("{PREFIX}/head");
    let good = SignedHead::decode(client.get(key.as_str(), None).await.unwrap().kvs()[0].value()).unwrap();
    let mut revision = good.head().stable.clone().unwrap();
    revision.commits[0].1 = "0".repeat(40).parse().unwrap();
    let forged = SignedHead::seal(good.head().next(revision), |_| {
        (good.signature().to_vec(), good.statement().to_vec())
    });
    client.put(key.as_str(), forged.encode(), None).await.unwrap();
    let refuses = async || {
        let log = primary.log();
        if log.contains("not the primary's") { Ok(()) } else { Err(log) }
    };
    eventually("it is not obeyed", SOON, refuses).await;
    assert_eq!(primary.status().await.unwrap().commit, Some(first));
    primary.kill();
    primary.start();
    // The next commit goes over it.
    primary.serves(&source.commit(2)).await;
}

/// A way to etcd that can be cut while etcd goes on.
struct Way {
    url: String,
    task: JoinHandle<()>,
}

impl Way {
    async fn to(server: &EtcdServer, at: IpAddr) -> Self {
        let listener = tokio::net::TcpListener::bind((at, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let target = server.url().trim_start_matches("http://").to_owned();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let target = target.clone();
                connections.spawn(async move {
                    let Ok(mut far) = tokio::net::TcpStream::connect(target).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        });
        Way { url, task }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_lost_the_way_to_the_store_alone_lets_go_of_its_proxies() {
    let (source, server) = (Source::new().await, EtcdServer::start(ip(8, 1), &[]));
    let places = [ip(8, 2), ip(8, 3)];
    let way = Way::to(&server, ip(8, 1)).await;
    let mut first = Primary::among(&places, &source, std::slice::from_ref(&way.url), 15);
    let mut second = Primary::among(&[places[1], places[0]], &source, &[server.url()], 15);
    let commit = source.commit(1);
    begin(&mut first, &mut second, &commit).await;
    let token = first.token().await;
    let _sidecar = Sidecar::start(ip(8, 4), places, &token);
    first.rules(&commit).await;

    way.task.abort();
    second.serves(&commit).await;
    second.rules(&commit).await;
    let commit = source.commit(2);
    second.serves(&commit).await;
    second.rules(&commit).await;
    assert!(first.log().contains("another one serves"), "it asked the other one, not the store");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_away_when_another_one_takes_over_has_a_whole_lease_anew() {
    const LEASE: Duration = Duration::from_secs(8);
    let (source, server) = (Source::new().await, EtcdServer::start(ip(9, 1), &[]));
    let places = [ip(9, 2), ip(9, 3)];
    let primary =
        |places: &[IpAddr]| Primary::among(places, &source, &[server.url()], LEASE.as_secs() as u32);
    let mut first = primary(&places);
    let mut second = primary(&[places[1], places[0]]);
    let commit = source.commit(1);
    begin(&mut first, &mut second, &commit).await;
    let sidecar = Sidecar::start(ip(9, 4), places, &first.token().await);
    first.rules(&commit).await;

    // Both at once: by its last heartbeat its lease is nearly over when the leadership's is.
    drop(sidecar);
    first.kill();
    second.one("it is known, and away", |one| one.state == ProxyState::Away).await;
    let known = std::time::Instant::now();
    let own = |status: &Status| {
        let east = status.clusters.iter().find(|cluster| cluster.name.as_str() == "east");
        east.is_some_and(|east| east.proxies.iter().all(|one| one.state == ProxyState::Gone))
    };
    second.tells("its lease is over", own).await;
    let lasted = known.elapsed();
    assert!(lasted >= LEASE - Duration::from_secs(2), "{lasted:?}");
}
