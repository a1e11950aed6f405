use std::time::Duration;

use api::head::CommitId;
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::*;
use crate::git::fixture::Fixture;

/// Longer than any test runs: what is seen is seen because the file system told.
const NEVER: Duration = Duration::from_secs(3600);
const OFTEN: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(20);

struct Watching {
    observed: Receiver<Option<Observation>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Watching {
    fn start(fixture: &Fixture, poll: Duration) -> Self {
        let (sender, observed) = watch::channel(None);
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(watch_every(poll, fixture.repository(), sender, shutdown.clone()));
        Watching { observed, shutdown, task }
    }

    async fn sees(&mut self, wanted: impl Fn(&Observation) -> bool) {
        let wanted = |now: &Option<Observation>| now.as_ref().is_some_and(&wanted);
        let found = timeout(PATIENCE, self.observed.wait_for(wanted)).await.is_ok();
        assert!(found, "still {:?}", *self.observed.borrow());
    }

    async fn sees_commit(&mut self, commit: &CommitId) {
        self.sees(|now| *now == Observation::at(commit.clone())).await;
    }

    async fn end(self) {
        self.shutdown.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

fn branch_is_gone(observation: &Observation) -> bool {
    matches!(observation.trouble, Some(Trouble::BranchGone { .. }))
}

#[tokio::test]
async fn the_file_system_tells_of_commits_and_branches() {
    let fixture = Fixture::new();
    let first = fixture.commit_file("a.yaml", "a: 1\n");
    let mut watching = Watching::start(&fixture, NEVER);
    watching.sees_commit(&first).await;
    let second = fixture.commit_file("a.yaml", "a: 2\n");
    watching.sees_commit(&second).await;
    fixture.git(["pack-refs", "--all"]);
    fixture.git(["branch", "-q", "-m", "main", "elsewhere"]);
    watching.sees(branch_is_gone).await;
    fixture.git(["branch", "-q", "main", first.as_str()]);
    watching.sees_commit(&first).await;
    watching.end().await;
}

#[tokio::test]
async fn a_push_into_a_bare_repository_is_seen() {
    let fixture = Fixture::new();
    fixture.commit("first");
    fixture.git(["clone", "-q", "--bare", ".", "bare.git"]);
    let (sender, observed) = watch::channel(None);
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(watch_every(NEVER, fixture.at("bare.git"), sender, shutdown.clone()));
    let mut watching = Watching { observed, shutdown, task };
    let second = fixture.commit("second");
    fixture.git(["push", "-q", "bare.git", "main"]);
    watching.sees_commit(&second).await;
    watching.end().await;
}

#[tokio::test]
async fn a_repository_may_be_away_and_come_back_as_another() {
    let fixture = Fixture::new();
    let first = fixture.commit("first");
    let mut watching = Watching::start(&fixture, OFTEN);
    watching.sees_commit(&first).await;
    let aside = fixture.path().with_extension("aside");
    std::fs::rename(fixture.path(), &aside).unwrap();
    watching.sees(|now| matches!(now.trouble, Some(Trouble::Away { .. }))).await;
    std::fs::rename(&aside, fixture.path()).unwrap();
    watching.sees_commit(&first).await;
    std::fs::remove_dir_all(fixture.path()).unwrap();
    watching.sees(|now| matches!(now.trouble, Some(Trouble::Away { .. }))).await;
    fixture.init(&["--object-format=sha256"]);
    watching.sees(branch_is_gone).await;
    let anew = fixture.commit("anew");
    watching.sees_commit(&anew).await;
    watching.end().await;
}

#[test]
fn looking_alone_stirs_nothing() {
    let fixture = Fixture::new();
    fixture.commit("first");
    let repository = fixture.repository();
    let (sender, events) = std::sync::mpsc::channel();
    let stir = move |event| drop(sender.send(event));
    let _watcher = Eyes::open(&repository.places().unwrap(), stir).unwrap();
    for _ in 0..10 {
        repository.head().unwrap();
    }
    // Events come in order: what the looks would have caused comes before this.
    fixture.write(".git/refs/heads/other", "");
    let first = events.recv_timeout(PATIENCE).unwrap();
    assert!(first.paths[0].ends_with("refs/heads/other"), "{first:?}");
}

#[test]
fn eyes_stay_while_the_directories_do() {
    let fixture = Fixture::new();
    let repository = fixture.repository();
    let stirred = Arc::new(Notify::new());
    let eyes = Eyes::keep_open(None, &repository, stirred.clone()).unwrap();
    let unused = Arc::new(Notify::new());
    let eyes = Eyes::keep_open(Some(eyes), &repository, unused.clone()).unwrap();
    assert_eq!((Arc::strong_count(&stirred), Arc::strong_count(&unused)), (2, 1));
    std::fs::rename(fixture.path(), fixture.path().with_extension("aside")).unwrap();
    assert!(Eyes::keep_open(Some(eyes), &repository, unused).is_none());
}
