//! What is said of who obeys what.

use api::{
    admin::{Problem, Severity},
    head::Seq,
    name::{InstanceId, WorkloadId},
};
use futures_util::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::{
    commits::tests::{commit, revision},
    plane::fixture::{self, BEGIN, LEASE, Still},
    push::ProxyStream,
    snapshot::{
        Configuration, Role as Kind, build,
        fixture::{gateway, inputs, knowing, living, workload},
    },
};

/// More than any task needs to have heard of something.
const SOON: Duration = Duration::from_secs(10);
/// Longer than any test lasts.
const LONG: Duration = Duration::from_secs(600);

/// The primary `east`; `west` and `south` are members too.
struct Mesh {
    plane: Arc<Plane>,
    world: Arc<Still>,
    _home: TempDir,
}

/// What the repositories know: which sources' branches have the commit that is waited for, and the digits of its
/// descendants.
struct Repositories(&'static [&'static str], &'static str);

const NOTHING: Repositories = Repositories(&[], "");

impl Lineage for Repositories {
    fn is_on_branch(&self, source: &SourceName) -> bool {
        self.0.contains(&source.as_str())
    }

    fn is_behind(&self, _: &SourceName, published: &CommitId) -> bool {
        self.1.chars().any(|digit| *published == commit(digit))
    }
}

impl Mesh {
    async fn new() -> Self {
        Mesh::with(false).await
    }

    async fn with(bereft: bool) -> Self {
        let home = TempDir::new().unwrap();
        let (plane, world) = fixture::primary(home.path(), bereft).await;
        Mesh { plane, world, _home: home }
    }

    /// Puts a revision into force; gives what it is called.
    fn publish(&self, n: u64, digits: &str) -> String {
        let (seq, revision) = (Seq { epoch: 1, n }, revision(digits));
        let label = revision.label();
        let said = fixture::configuration(&label);
        self.plane.bring_into_force(Configuration { head: Some(seq), ..said });
        let mut inputs = inputs("east");
        inputs.configuration = self.plane.configuration.borrow().clone();
        self.plane.snapshot.send_replace(Arc::new(build(&inputs)));
        self.plane.commits.send_modify(|commits| commits.publish(seq, &revision));
        label
    }

    /// Notes the state of a commit of a source, seen at the beginning.
    fn note(&self, source: &str, digit: char, state: CommitState, errors: &[&str]) {
        let problem = |error: &&str| Problem {
            file: "a.yaml".into(),
            line: 1,
            column: 1,
            message: (*error).into(),
            help: None,
            severity: Severity::Error,
        };
        let status = CommitStatus {
            commit: commit(digit).to_string(),
            subject: String::new(),
            author: String::new(),
            seen: BEGIN,
            state,
            effective_after_ms: None,
            errors: errors.iter().map(problem).collect(),
            warnings: vec![],
        };
        self.plane.commits.send_modify(|commits| {
            commits.sources.get_mut(source).unwrap().commits.push_back(status);
        });
    }

    fn states(&self, source: &str) -> Vec<(CommitState, Option<u64>)> {
        states(&self.plane.commits.borrow(), source)
    }

    async fn connect(&self, name: &str) -> ProxyStream {
        let one = workload(name, "front", "v1", 11);
        self.plane.registry.connect(one, "1".into(), self.plane.world.moment()).await.unwrap()
    }

    /// The newest stream of a proxy.
    fn stream(&self, name: &str) -> ProxyStream {
        let number = self.plane.registry.proxies().borrow()[&instance(name)].stream;
        ProxyStream { instance: instance(name), number }
    }

    fn obeys(&self, name: &str, label: &str) {
        self.plane.registry.reached(&self.stream(name), label.into());
        self.speak();
    }

    fn refuses(&self, name: &str) {
        self.plane.registry.refused(&self.stream(name), vec!["policy/a/b: no".into(), "c: nor this".into()]);
        self.speak();
    }

    /// East's word on itself, as it is now.
    fn speak(&self) {
        self.plane.own.send_replace(Arc::new(own(&self.plane)));
    }

    /// Another cluster's word on itself.
    fn hear(&self, name: &str, label: &str, proxies: Vec<ProxyStatus>, away_since: Option<f64>) {
        let status = ClusterStatus {
            name: name.parse().unwrap(),
            commit: Some(label.into()),
            proxies,
            ..unknown(&self.plane.config)
        };
        let heard = Heard { status: Arc::new(status), away_since };
        self.plane.reports.send_modify(|all| {
            Arc::make_mut(all).insert(heard.status.name.clone(), heard);
        });
    }

    /// Another cluster's offer.
    fn know(&self, name: &str, stale_since: i64) {
        let catalogue = wire::Catalogue {
            cluster: name.into(),
            network: format!("{name}-net"),
            stale_since,
            ..Default::default()
        };
        self.plane.peers.send_modify(|all| {
            Arc::make_mut(all).insert(name.parse().unwrap(), Arc::new(catalogue));
        });
    }

    async fn ask(&self, digit: char, repositories: Repositories) -> WaitAnswer {
        wait(&self.plane, &commit(digit), Duration::ZERO, false, repositories).await
    }
}

/// What became of the commits of a source, and after how many milliseconds.
fn states(commits: &Commits, source: &str) -> Vec<(CommitState, Option<u64>)> {
    let seen = &commits.sources[source].commits;
    seen.iter().map(|one| (one.state, one.effective_after_ms)).collect()
}

fn instance(workload: &str) -> InstanceId {
    format!("{workload}-x").parse().unwrap()
}

/// An answer in lines: who lags, and who is gone.
fn told(answer: &WaitAnswer) -> Vec<String> {
    let line = |one: &Laggard| {
        let workload = one.workload.as_ref().map(WorkloadId::to_string).unwrap_or_default();
        format!("{}/{workload} {}", one.cluster, one.why)
    };
    let gone = answer.gone.iter().map(|one| format!("gone: {}", line(one)));
    assert_eq!(answer.effective, answer.lagging.is_empty());
    answer.lagging.iter().map(line).chain(gone).collect()
}

const UNSEEN: &str = "east/ the control plane has not seen the commit yet";
const UNACKNOWLEDGED: &str = "east/front-1 slow: it has not acknowledged yet";

#[tokio::test]
async fn a_commit_is_effective_when_every_proxy_obeys_it_or_a_later_one() {
    let mesh = Mesh::new().await;
    mesh.speak();
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [UNSEEN]);
    let one = mesh.publish(1, "a1");
    mesh.connect("front-1").await;
    mesh.speak();
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [UNACKNOWLEDGED]);
    mesh.obeys("front-1", &one);
    assert!(mesh.ask('1', NOTHING).await.effective);
    let two = mesh.publish(2, "a2");
    mesh.speak();
    assert!(mesh.ask('1', NOTHING).await.effective);
    assert_eq!(told(&mesh.ask('2', NOTHING).await), [UNACKNOWLEDGED]);
    mesh.obeys("front-1", &two);
    assert!(mesh.ask('1', NOTHING).await.effective && mesh.ask('2', NOTHING).await.effective);
    mesh.obeys("front-1", "a revision that was forgotten");
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [UNACKNOWLEDGED]);
}

#[tokio::test]
async fn who_obeys_a_revision_that_was_returned_to_obeys_what_was_in_between() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.publish(2, "a2");
    mesh.publish(3, "a1");
    mesh.connect("front-1").await;
    mesh.obeys("front-1", &one);
    assert!(mesh.ask('2', NOTHING).await.effective);
}

#[tokio::test]
async fn who_lags_is_told_with_the_reason() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    for name in ["front-1", "front-2", "front-3"] {
        mesh.connect(name).await;
    }
    let stream = mesh.connect("front-4").await;
    mesh.obeys("front-1", &one);
    mesh.obeys("front-3", &one);
    mesh.refuses("front-3");
    mesh.plane.registry.disconnect(&stream, mesh.plane.world.moment());
    mesh.speak();
    mesh.world.set(5.0);
    assert_eq!(
        told(&mesh.ask('1', NOTHING).await),
        [
            "east/front-2 slow: it has not acknowledged yet",
            "east/front-3 refused: policy/a/b: no; c: nor this",
            "east/front-4 partitioned: its stream is away since 5 s ago",
        ]
    );
}

#[tokio::test]
async fn who_is_gone_counts_only_where_that_is_asked_for() {
    let mesh = Mesh::new().await;
    mesh.publish(1, "a1");
    let stream = mesh.connect("front-1").await;
    mesh.speak();
    let strictly = async |mesh: &Mesh| wait(&mesh.plane, &commit('1'), Duration::ZERO, true, NOTHING).await;
    assert!(!strictly(&mesh).await.effective);
    let heartbeat = wire::Heartbeat { certificate_not_after: BEGIN as i64 + 1_000, ..Default::default() };
    mesh.plane.registry.beat(&stream, heartbeat, mesh.plane.world.now()).await;
    mesh.plane.registry.disconnect(&stream, mesh.plane.world.moment());
    mesh.world.set(LEASE.as_secs_f64());
    mesh.plane.registry.expire(mesh.plane.world.moment()).await.unwrap();
    mesh.speak();
    mesh.world.set(LEASE.as_secs_f64() + 5.0);
    let gone = "gone: east/front-1 gone since 5 s ago; its certificate ends in 395 s";
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [gone]);
    let answer = strictly(&mesh).await;
    assert!(!answer.effective && answer.lagging.is_empty() && answer.gone.len() == 1);
    mesh.plane.registry.forget(vec![instance("front-1")]).await.unwrap();
    mesh.speak();
    assert!(strictly(&mesh).await.effective);
}

#[tokio::test]
async fn a_certificate_that_nobody_has_told_of_has_not_ended() {
    let mesh = Mesh::new().await;
    mesh.publish(1, "a1");
    let stream = mesh.connect("front-1").await;
    mesh.plane.registry.disconnect(&stream, mesh.plane.world.moment());
    mesh.world.set(LEASE.as_secs_f64());
    mesh.plane.registry.expire(mesh.plane.world.moment()).await.unwrap();
    mesh.speak();
    let gone = "gone: east/front-1 gone since 0 s ago; when its certificate ends is not known here";
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [gone]);
}

#[tokio::test]
async fn every_member_has_its_word_and_nobody_else() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    let two = mesh.publish(2, "a2");
    mesh.connect("front-1").await;
    mesh.obeys("front-1", &one);
    let lags = own(&mesh.plane).proxies;
    mesh.obeys("front-1", &two);
    assert!(mesh.ask('2', NOTHING).await.effective);

    mesh.know("west", 0);
    mesh.know("nobody", 0);
    let unheard = "west/ partitioned: no word from this cluster since this control plane began";
    assert_eq!(told(&mesh.ask('2', NOTHING).await), [unheard]);
    mesh.hear("west", &two, lags.clone(), None);
    mesh.hear("south", &two, own(&mesh.plane).proxies, None);
    mesh.hear("nobody", &one, lags.clone(), None);
    let slow = "west/front-1 slow: it has not acknowledged yet";
    assert_eq!(told(&mesh.ask('2', NOTHING).await), [slow]);
    mesh.hear("west", &one, vec![], None);
    let serves = "west/ slow: its control plane does not serve the commit yet";
    assert_eq!(told(&mesh.ask('2', NOTHING).await), [serves]);
    mesh.hear("west", &one, lags, Some(BEGIN));
    mesh.world.set(7.0);
    let away = "west/ partitioned: no word from this cluster since 7 s ago";
    assert_eq!(told(&mesh.ask('2', NOTHING).await), [away, slow]);
    mesh.hear("west", &two, vec![], None);
    assert!(mesh.ask('2', NOTHING).await.effective);
}

#[tokio::test]
async fn who_lost_its_store_waits_for_a_lease_until_it_vouches_for_its_proxies() {
    let mesh = Mesh::with(true).await;
    mesh.publish(1, "a1");
    mesh.world.set(100.0);
    mesh.speak();
    let status = own(&mesh.plane);
    assert_eq!((status.effective, status.proxies_unknown_until), (false, Some(BEGIN + 600.0)));
    let unknown =
        "east/ unknown: it began without its store, and proxies that live there may come back for 500 s";
    assert_eq!(told(&mesh.ask('1', NOTHING).await), [unknown]);
    mesh.world.set(LEASE.as_secs_f64());
    mesh.speak();
    let status = own(&mesh.plane);
    assert_eq!((status.effective, status.proxies_unknown_until), (true, None));
    assert!(mesh.ask('1', NOTHING).await.effective);
}

#[tokio::test]
async fn waiting_ends_with_the_acknowledgement_and_not_before() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.connect("front-1").await;
    mesh.speak();
    let (asked, strict) = (commit('1'), false);
    let mut waits = std::pin::pin!(wait(&mesh.plane, &asked, LONG, strict, NOTHING));
    assert!(waits.as_mut().now_or_never().is_none());
    mesh.hear("west", &one, vec![], None);
    assert!(waits.as_mut().now_or_never().is_none());
    mesh.obeys("front-1", &one);
    assert!(waits.now_or_never().is_some_and(|answer| answer.effective));
    let again = wait(&mesh.plane, &asked, LONG, strict, NOTHING).now_or_never();
    assert!(again.is_some_and(|answer| answer.effective));
}

/// Counts the histories that are walked; has nothing in them.
#[derive(Default)]
struct Walked(std::cell::Cell<usize>);

impl Lineage for &Walked {
    fn is_on_branch(&self, _: &SourceName) -> bool {
        true
    }

    fn is_behind(&self, _: &SourceName, _: &CommitId) -> bool {
        self.0.set(self.0.get() + 1);
        false
    }
}

#[tokio::test]
async fn while_waiting_each_history_is_walked_once_and_old_ones_not_at_all() {
    let mesh = Mesh::new().await;
    for n in 1..=9 {
        mesh.publish(n, &format!("a{n}"));
    }
    let (asked, walked) = (commit('e'), Walked::default());
    let mut waits = std::pin::pin!(wait(&mesh.plane, &asked, LONG, false, &walked));
    for _ in 0..5 {
        mesh.speak();
        assert!(waits.as_mut().now_or_never().is_none());
    }
    assert_eq!(walked.0.get(), 2, "the newest of each source");
    mesh.publish(10, "a0");
    assert!(waits.as_mut().now_or_never().is_none());
    assert_eq!(walked.0.get(), 3);
}

#[tokio::test]
async fn what_is_refused_or_held_is_not_waited_for() {
    let mesh = Mesh::new().await;
    mesh.publish(1, "a1");
    mesh.speak();
    mesh.note("shop", '2', CommitState::Refused, &["it is wrong"]);
    mesh.note("platform", 'b', CommitState::Held, &[]);
    mesh.note("shop", '3', CommitState::Accepted, &[]);
    let at_once = |digit| wait(&mesh.plane, &commit(digit), LONG, false, NOTHING).now_or_never();
    let refused = at_once('2').unwrap();
    assert_eq!(told(&refused), ["east/ the commit was refused; an earlier one stays in force"]);
    assert_eq!((refused.state, refused.errors.len()), (Some(CommitState::Refused), 1));
    assert_eq!(refused.commit, commit('2').to_string());
    let held = at_once('b').unwrap();
    assert_eq!(
        told(&held),
        ["east/ the commit is held: it removes more than half of all resources of its source"]
    );
    assert!(at_once('3').is_none());
    assert_eq!(
        told(&mesh.ask('3', NOTHING).await),
        ["east/ the commit has passed and is not in force yet; `weft status` says what it waits for"]
    );
}

#[tokio::test]
async fn a_commit_that_was_skipped_is_in_force_with_its_descendant() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.publish(2, "a3");
    mesh.connect("front-1").await;
    mesh.obeys("front-1", &one);
    let skipped = Repositories(&["shop"], "3");
    assert_eq!(told(&mesh.ask('2', skipped).await), [UNACKNOWLEDGED]);
    assert_eq!(told(&mesh.ask('2', Repositories(&["shop"], "")).await), [UNSEEN]);
    assert_eq!(told(&mesh.ask('2', Repositories(&[], "3")).await), [UNSEEN], "it is on no branch");
    let older = Repositories(&["shop"], "13");
    assert!(mesh.ask('0', older).await.effective, "the first descendant counts");
}

#[tokio::test]
async fn of_two_sources_of_one_commit_the_one_that_has_it_not_in_force_is_told_of() {
    let mesh = Mesh::new().await;
    mesh.publish(1, "1.");
    mesh.speak();
    mesh.note("platform", '1', CommitState::Rolling, &[]);
    let answer = mesh.ask('1', NOTHING).await;
    assert_eq!((answer.effective, answer.state), (true, Some(CommitState::Rolling)));
    mesh.note("shop", '1', CommitState::Refused, &["not the shop's"]);
    let answer = mesh.ask('1', NOTHING).await;
    assert_eq!((answer.effective, answer.state), (false, Some(CommitState::Refused)));
    assert_eq!(answer.errors.len(), 1);

    // The other way round: the first source refuses it, and that stays what is told.
    let mesh = Mesh::new().await;
    mesh.publish(1, ".1");
    mesh.speak();
    mesh.note("platform", '1', CommitState::Refused, &["not the platform's"]);
    mesh.note("shop", '1', CommitState::Rolling, &["of no account"]);
    let answer = mesh.ask('1', NOTHING).await;
    assert_eq!((answer.effective, answer.state), (false, Some(CommitState::Refused)));
    assert_eq!(answer.errors.len(), 1);
}

#[tokio::test]
async fn a_commit_that_rolls_is_settled_once_everybody_obeys_it() {
    use CommitState::{Accepted, Effective, Refused, Rolling};
    let mesh = Mesh::new().await;
    settle(&mesh.plane);
    mesh.note("shop", '0', Accepted, &[]);
    mesh.note("shop", '1', Rolling, &[]);
    mesh.note("platform", 'a', Refused, &[]);
    let one = mesh.publish(1, "a1");
    mesh.connect("front-1").await;
    mesh.speak();
    settle(&mesh.plane);
    assert_eq!(mesh.states("shop"), [(Accepted, None), (Rolling, None)]);
    mesh.obeys("front-1", &one);
    mesh.world.set(2.5);
    settle(&mesh.plane);
    assert_eq!(mesh.states("shop"), [(Accepted, None), (Effective, Some(2_500))]);
    assert_eq!(mesh.states("platform"), [(Refused, None)]);

    // What another source changes since does not make it effective anew.
    mesh.note("platform", 'b', Rolling, &[]);
    let two = mesh.publish(2, "b1");
    mesh.obeys("front-1", &two);
    mesh.world.set(4.0);
    settle(&mesh.plane);
    assert_eq!(mesh.states("shop"), [(Accepted, None), (Effective, Some(2_500))]);
    assert_eq!(mesh.states("platform"), [(Refused, None), (Effective, Some(4_000))]);
}

#[tokio::test]
async fn a_commit_of_one_source_is_settled_by_its_own_place() {
    use CommitState::{Effective, Rolling};
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.publish(2, "b1");
    mesh.note("platform", 'b', Rolling, &[]);
    mesh.note("shop", '1', Rolling, &[]);
    mesh.connect("front-1").await;
    mesh.obeys("front-1", &one);
    settle(&mesh.plane);
    assert_eq!(mesh.states("platform"), [(Rolling, None)]);
    assert_eq!(mesh.states("shop"), [(Effective, Some(0))]);
}

#[tokio::test]
async fn a_cluster_is_effective_when_none_of_its_own_lags() {
    let mesh = Mesh::new().await;
    let status = own(&mesh.plane);
    assert_eq!((status.commit, status.effective), (None, false));
    let one = mesh.publish(1, "a1");
    let effective = || own(&mesh.plane).effective;
    assert_eq!(own(&mesh.plane).commit, Some(one.clone()));
    assert!(effective(), "nobody lives there");
    let stream = mesh.connect("front-1").await;
    assert!(!effective());
    mesh.obeys("front-1", &one);
    assert!(effective());
    mesh.refuses("front-1");
    assert!(!effective(), "it obeys the commit, and refuses what came after it");
    mesh.obeys("front-1", "another");
    assert!(!effective());
    mesh.plane.registry.disconnect(&stream, mesh.plane.world.moment());
    assert!(!effective());
    mesh.world.set(LEASE.as_secs_f64());
    mesh.plane.registry.expire(mesh.plane.world.moment()).await.unwrap();
    assert!(effective(), "who is gone does not count");
}

#[tokio::test]
async fn the_address_of_an_ingress_has_no_port() {
    let mesh = Mesh::new().await;
    mesh.connect("front-1").await;
    let mut ingress = gateway("ingress-1", Kind::Ingress, 12);
    ingress.address.set_port(0);
    mesh.plane.registry.connect(ingress, "1".into(), mesh.plane.world.moment()).await.unwrap();
    let addresses = own(&mesh.plane).proxies.into_iter().map(|proxy| (proxy.kind, proxy.address));
    let wanted = [("sidecar", "127.1.0.11:15006"), ("ingress", "127.1.0.12")];
    assert_eq!(addresses.collect::<Vec<_>>(), wanted.map(|(kind, at)| (kind.to_owned(), at.to_owned())));
}

#[test]
fn endpoints_are_counted_by_cluster() {
    let ratings = |id: &str, host| workload(id, "ratings", "v1", host);
    let unready = crate::snapshot::Registered { app_ready: false, ..ratings("ratings-2", 22) };
    let of_west = [ratings("ratings-3", 23), gateway("west-ew", Kind::EastWest, 24)];
    let catalogue = wire::Catalogue { stale_since: 7, ..build(&living(inputs("west"), of_west)).catalogue() };
    let here = living(inputs("east"), [ratings("ratings-0", 20), ratings("ratings-1", 21), unready]);
    let all = services(&build(&knowing(here, catalogue)));
    let mut named = all.iter().filter(|one| one.service.name.as_str() == "ratings");
    let (Some(ratings), None) = (named.next(), named.next()) else { panic!("{all:?}") };
    let count = |healthy, total| EndpointCount { healthy, total };
    let named = |name: &str| name.parse::<ClusterName>().unwrap();
    assert_eq!(ratings.endpoints, [(named("east"), count(2, 3)), (named("west"), count(1, 1))].into());
    assert_eq!(ratings.stale_since, [(named("west"), 7.0)].into());
    assert!(ratings.exported);
}

#[tokio::test]
async fn the_status_names_every_member_by_its_last_word() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.speak();
    mesh.hear("west", &one, vec![], Some(7.0));
    mesh.hear("nobody", &one, vec![], None);
    mesh.know("south", 9);
    mesh.know("west", 9);
    let status = status(&mesh.plane);
    assert_eq!(status.commit, Some(one));
    let [east, south, west] = &status.clusters[..] else { panic!("{:?}", status.clusters) };
    assert_eq!((east.name.as_str(), east.role, east.away_since), ("east", Role::Primary, None));
    assert_eq!((west.name.as_str(), west.away_since), ("west", Some(7.0)));
    assert_eq!((south.name.as_str(), south.role, south.away_since), ("south", Role::Remote, Some(9.0)));
    assert_eq!(
        (south.locality.to_string(), &*south.network, &*south.version),
        ("eu-south/a".into(), "south-net", "")
    );
}

#[tokio::test]
async fn the_status_names_every_source_with_its_commits() {
    let mesh = Mesh::new().await;
    mesh.publish(1, "a.");
    mesh.note("platform", 'a', CommitState::Rolling, &[]);
    mesh.plane.commits.send_modify(|commits| {
        commits.sources.get_mut("shop").unwrap().trouble = Some(("lost".into(), 7.0));
    });
    let status = status(&mesh.plane);
    let [platform, shop] = &status.sources[..] else { panic!("{:?}", status.sources) };
    assert_eq!((platform.name.as_str(), &*platform.branch), ("platform", "live"));
    assert_eq!(platform.commit, Some(commit('a').to_string()));
    assert_eq!((platform.commits.len(), &platform.trouble), (1, &None));
    assert_eq!((shop.name.as_str(), &*shop.branch, &shop.commit), ("shop", "main", &None));
    assert_eq!((shop.trouble.as_deref(), shop.trouble_since), (Some("lost"), Some(7.0)));
    assert_eq!(shop.namespaces, ["shop".parse().unwrap()]);
}

#[tokio::test]
async fn the_word_of_a_cluster_follows_what_becomes_of_it() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.note("shop", '1', CommitState::Rolling, &[]);
    mesh.connect("front-1").await;
    let shutdown = Shutdown::new();
    shutdown.spawn("reports", run(mesh.plane.clone(), shutdown.clone()));
    let mut words = mesh.plane.own.subscribe();
    let mut heard = async |reached: Option<&str>| {
        let is = |status: &Arc<ClusterStatus>| {
            status.proxies.first().is_some_and(|proxy| proxy.commit.as_deref() == reached)
        };
        tokio::time::timeout(SOON, words.wait_for(is)).await.unwrap().unwrap().effective
    };
    assert!(!heard(None).await);
    mesh.plane.registry.reached(&mesh.stream("front-1"), one.clone());
    assert!(heard(Some(&one)).await);
    assert_eq!(mesh.states("shop")[0].0, CommitState::Effective);
    shutdown.drain(LONG).await.unwrap();
}

#[tokio::test]
async fn a_commit_is_settled_by_another_clusters_word() {
    let mesh = Mesh::new().await;
    let one = mesh.publish(1, "a1");
    mesh.note("shop", '1', CommitState::Rolling, &[]);
    mesh.speak();
    mesh.hear("west", "nothing yet", vec![], None);
    let shutdown = Shutdown::new();
    shutdown.spawn("judging", judge(mesh.plane.clone(), shutdown.clone()));
    tokio::task::yield_now().await;
    assert_eq!(mesh.states("shop")[0].0, CommitState::Rolling);
    mesh.hear("west", &one, vec![], None);
    tokio::task::yield_now().await;
    assert_eq!(mesh.states("shop")[0].0, CommitState::Effective);
    shutdown.drain(LONG).await.unwrap();
}
