//! Sources at servers: real `git http-backend` over TLS, real `sshd`, and what becomes of a source when they fail.

use std::{fs, path::Path, sync::Arc, time::Duration};

use controlplane::git::{Access, Bell, Observation, Repository, Source, watch};
use tempfile::TempDir;
use tokio::{sync::watch as channel, time::timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use weft_tests::harness::{
    SmallDisk, Turn,
    git::{Certificates, HttpBackend, Manner, Origin, Sshd, git},
};

/// Longer than any test runs: what is seen is seen because the bell rang.
const NEVER: Duration = Duration::from_secs(3600);
const PATIENCE: Duration = Duration::from_secs(30);
const HTTP: &str = "127.110.0.1";
const SSH: &str = "127.111.0.1";

/// A source that is watched.
struct Watching {
    observed: channel::Receiver<Option<Observation>>,
    bell: Bell,
    repository: Arc<Repository>,
    _end: DropGuard,
}

impl Watching {
    fn start(url: &str, access: Access, dir: &Path) -> Self {
        let repository = repository(url, access, dir);
        let (sender, observed) = channel::channel(None);
        let (bell, end) = (Bell::default(), CancellationToken::new());
        tokio::spawn(watch(repository.clone(), sender, bell.clone(), end.clone()));
        Watching { observed, bell, repository, _end: end.drop_guard() }
    }

    async fn sees(&mut self, wanted: impl Fn(&Observation) -> bool) -> Observation {
        let wanted = |now: &Option<Observation>| now.as_ref().is_some_and(&wanted);
        let found = timeout(PATIENCE, self.observed.wait_for(wanted)).await.is_ok();
        let now = self.observed.borrow().clone();
        assert!(found, "still {now:?}");
        now.unwrap()
    }

    /// Rings, and waits until the source is at `commit` with nothing wrong.
    async fn comes_to(&mut self, commit: &str) {
        self.bell.notify_one();
        self.sees(|now| *now == Observation::at(commit.parse().unwrap())).await;
    }

    /// Rings, and gives the trouble that there is then, and that `commit` is what is known.
    async fn stays_at(&mut self, commit: &str, why: &str) {
        self.bell.notify_one();
        let told =
            |now: &Observation| now.trouble.as_ref().is_some_and(|told| told.to_string().contains(why));
        let now = self.sees(told).await;
        assert_eq!(now.commit.map(|commit| commit.to_string()).as_deref(), Some(commit));
    }
}

fn repository(url: &str, access: Access, dir: &Path) -> Arc<Repository> {
    let source = Source {
        name: "main".parse().unwrap(),
        address: url.parse().unwrap(),
        branch: "main".into(),
        folder: String::new(),
        access,
        poll: NEVER,
        webhook_secret: None,
    };
    Arc::new(Repository::new(source, &dir.join("sources")))
}

async fn origin() -> (Turn, TempDir, Origin) {
    let turn = Turn::take().await;
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::below(dir.path());
    origin.make("config", &[]);
    (turn, dir, origin)
}

#[tokio::test(flavor = "multi_thread")]
async fn https_with_a_token_a_certificate_and_an_authority_each_from_a_file_that_rotates() {
    let (_turn, dir, origin) = origin().await;
    let made = Certificates::make(dir.path(), HTTP);
    let server = HttpBackend::start(HTTP, &origin.root, Some(made.server.clone())).await;
    server.wants("git", "first-token");
    let token = dir.path().join("token");
    fs::write(&token, "first-token\n").unwrap();
    let access = Access {
        user: "git".into(),
        token: Some(token.clone()),
        certificate: Some(made.client.clone()),
        key: Some(made.client_key.clone()),
        ca: Some(made.ca.clone()),
        known_hosts: None,
    };
    let first = origin.push("config", "a.yaml", "a: 1\n");
    let mut watching = Watching::start(&server.url("config"), access, dir.path());
    watching.comes_to(&first).await;
    let checkout = watching.repository.checkout(&first.parse().unwrap(), None).unwrap();
    assert_eq!((checkout.files.len(), &*checkout.files[0].text), (1, "a: 1\n"));

    server.wants("git", "second-token");
    watching.stays_at(&first, "it wants other credentials (401 Unauthorized)").await;
    let told = format!("{:?}", watching.observed.borrow());
    assert!(!told.contains("first-token") && !told.contains("second-token"), "{told}");
    let second = origin.push("config", "a.yaml", "a: 2\n");
    fs::write(&token, "second-token\n").unwrap();
    watching.comes_to(&second).await;

    let (other, chain) = (tempfile::tempdir().unwrap(), fs::read(&made.client).unwrap());
    let stranger = Certificates::make(other.path(), HTTP);
    let authority = fs::read(&made.ca).unwrap();
    fs::write(&made.ca, fs::read(&stranger.ca).unwrap()).unwrap();
    watching.stays_at(&second, "no TLS: invalid peer certificate: ").await;
    fs::write(&made.ca, authority).unwrap();
    let key = fs::read(&made.client_key).unwrap();
    fs::write(&made.client, fs::read(&stranger.client).unwrap()).unwrap();
    fs::write(&made.client_key, fs::read(&stranger.client_key).unwrap()).unwrap();
    watching.stays_at(&second, "received fatal alert").await;
    fs::write(&made.client, chain).unwrap();
    fs::write(&made.client_key, key).unwrap();
    watching.comes_to(&second).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ssh_with_a_key_and_known_hosts_each_from_a_file_that_rotates() {
    let (_turn, dir, origin) = origin().await;
    let server = Sshd::start(SSH, dir.path()).await;
    server.lets_in("first");
    let (key, known_hosts) = (dir.path().join("a key"), dir.path().join("known_hosts"));
    fs::copy(server.key("first"), &key).unwrap();
    fs::write(&known_hosts, &server.known_host).unwrap();
    let access =
        Access { key: Some(key.clone()), known_hosts: Some(known_hosts.clone()), ..Access::default() };
    let first = origin.push("config", "a.yaml", "a: 1\n");
    let mut watching = Watching::start(&server.url(&origin.bare("config")), access, dir.path());
    watching.comes_to(&first).await;

    server.lets_in("second");
    watching.stays_at(&first, "Permission denied (publickey)").await;
    fs::copy(server.key("second"), &key).unwrap();
    let second = origin.push("config", "a.yaml", "a: 2\n");
    watching.comes_to(&second).await;

    // Whoever else sits at this address is not asked anything.
    let (address, _) = server.known_host.split_once(' ').unwrap();
    let other = fs::read_to_string(server.key("first").with_extension("pub")).unwrap();
    fs::write(&known_hosts, format!("{address} {other}")).unwrap();
    watching.stays_at(&second, "Host key verification failed").await;
    fs::write(&known_hosts, &server.known_host).unwrap();
    watching.comes_to(&second).await;

    fs::rename(origin.bare("config"), origin.bare("moved")).unwrap();
    watching.stays_at(&second, "does not appear to be a git repository").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_hangs_or_lost_its_branch_leaves_the_last_commit() {
    let (_turn, dir, origin) = origin().await;
    let mut server = HttpBackend::start(HTTP, &origin.root, None).await;
    let first = origin.push("config", "a.yaml", "a: 1\n");
    let mut watching = Watching::start(&server.url("config"), Access::default(), dir.path());
    watching.comes_to(&first).await;

    server.stop().await;
    watching.stays_at(&first, "no connection: Connection refused").await;
    let second = origin.push("config", "a.yaml", "a: 2\n");
    server.start_again().await;
    watching.comes_to(&second).await;

    server.behaves(Manner::Hang);
    watching.stays_at(&second, "it has been silent for 10 s").await;
    server.behaves(Manner::Redirect("https://elsewhere.example/config.git?secret=1".into()));
    watching.stays_at(&second, "it redirects to https://elsewhere.example/config.git: name that place").await;
    server.behaves(Manner::Serve);
    watching.comes_to(&second).await;

    let work = origin.root.join("config");
    git(&work, &["push", "-q", "origin", "HEAD:other", ":main"]);
    watching.stays_at(&second, "branch `main` does not exist in http://127.110.0.1:").await;
    git(&work, &["push", "-q", "origin", "HEAD:main"]);
    watching.comes_to(&second).await;

    // Who begins while the server is away goes on from the mirror.
    server.stop().await;
    let mut later = Watching::start(&server.url("config"), Access::default(), dir.path());
    later.stays_at(&second, "no connection").await;
    let mut nothing = Watching::start(&server.url("config"), Access::default(), &dir.path().join("new"));
    let now = nothing.sees(|now| now.trouble.is_some()).await;
    assert_eq!(now.commit, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_may_be_rewritten_and_objects_named_by_sha256() {
    let (_turn, dir, origin) = origin().await;
    origin.make("other", &["--object-format=sha256"]);
    let server = HttpBackend::start(HTTP, &origin.root, None).await;
    let first = origin.push("config", "a.yaml", "a: 1\n");
    let config = repository(&server.url("config"), Access::default(), dir.path());
    config.fetch().await.unwrap();
    assert_eq!(config.head().unwrap().as_str(), first);
    git(&origin.root.join("config"), &["checkout", "-q", "--orphan", "anew"]);
    let anew = origin.push("config", "b.yaml", "b: 1\n");
    config.fetch().await.unwrap();
    assert_eq!(config.head().unwrap().as_str(), anew);
    assert!(config.checkout(&anew.parse().unwrap(), Some(&first.parse().unwrap())).unwrap().rewrote);
    assert_eq!(config.resolve("HEAD").unwrap().as_str(), anew);

    // The same source, now at another repository.
    let named = origin.push("other", "a.yaml", "a: 1\n");
    let other = repository(&server.url("other"), Access::default(), dir.path());
    other.fetch().await.unwrap();
    assert_eq!((other.head().unwrap().as_str(), named.len()), (named.as_str(), 64));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_grows_with_its_history_not_with_its_age() {
    let (_turn, dir, origin) = origin().await;
    let server = HttpBackend::start(HTTP, &origin.root, None).await;
    let config = repository(&server.url("config"), Access::default(), dir.path());
    let first = origin.push("config", "a.yaml", "a: 0\n");
    let mut last = first.clone();
    let mut most = 0;
    for n in 1..=52 {
        config.fetch().await.unwrap();
        let packs = fs::read_dir(dir.path().join("sources/main/objects/pack")).unwrap();
        most = most
            .max(packs.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "pack")).count());
        last = origin.push("config", "a.yaml", &format!("a: {n}\n"));
    }
    config.fetch().await.unwrap();
    let packs = fs::read_dir(dir.path().join("sources/main/objects/pack")).unwrap();
    let now = packs.flatten().filter(|file| file.path().extension().is_some_and(|e| e == "pack")).count();
    assert_eq!((most, now), (50, 3), "51 became one, and the last two pushes came after it");
    assert!(config.descends(&first.parse().unwrap(), &last.parse().unwrap()).unwrap());
    assert_eq!(&*config.checkout(&last.parse().unwrap(), None).unwrap().files[0].text, "a: 52\n");
    let files = fs::read_dir(dir.path().join("sources/main/objects/pack")).unwrap().flatten();
    let left: Vec<_> = files.map(|file| file.file_name()).collect();
    assert_eq!(left.len(), 6, "nothing unfinished stays: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_on_a_full_disk_stays_as_it_is_and_goes_on_once_there_is_room() {
    let (_turn, dir, origin) = origin().await;
    let server = HttpBackend::start(HTTP, &origin.root, None).await;
    let first = origin.push("config", "a.yaml", "a: 1\n");
    let disk = SmallDisk::mount(&dir.path().join("disk"), 4 << 20);
    let mut watching = Watching::start(&server.url("config"), Access::default(), &disk.path());
    watching.comes_to(&first).await;
    for n in 2..4 {
        disk.fill();
        let next = origin.push("config", "a.yaml", &format!("a: {n}\n"));
        let known = watching.observed.borrow().clone().unwrap().commit.unwrap();
        watching.stays_at(known.as_str(), "No space left").await;
        disk.empty();
        watching.comes_to(&next).await;
    }
    let left = fs::read_dir(disk.path().join("sources/main/objects/pack")).unwrap().count();
    assert_eq!(left, 6, "a pack and its index of each, and nothing unfinished");
}
