use std::future::pending;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

use super::*;
use crate::logs::{self, Format, tests::logged};

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(5);

#[tokio::test]
async fn drains_tasks_that_watch_the_end() {
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let task = shutdown.spawn("polite", async move {
        stop.cancelled().await;
        7
    });
    assert_eq!(shutdown.drain(LONG).await, Ok(()));
    assert_eq!(task.await.unwrap(), 7);
}

#[tokio::test]
async fn names_those_that_did_not_end() {
    let shutdown = Shutdown::new();
    let child = shutdown.child();
    shutdown.spawn("stuck", pending::<()>());
    let _held = [child.hold("connection"), child.hold("connection")];
    let unfinished = shutdown.drain(SHORT).await.unwrap_err();
    assert_eq!(unfinished.to_string(), "still running at the deadline: connection x2, stuck");
    assert_eq!(child.drain(SHORT).await.unwrap_err().0, [("connection".into(), 2)]);
}

#[tokio::test]
async fn a_child_ends_alone_and_a_parent_with_its_children() {
    let parent = Shutdown::new();
    let (one, two) = (parent.child(), parent.child());
    let (stop_one, stop_two) = (one.clone(), two.clone());
    one.spawn("one", async move { stop_one.cancelled().await });
    two.spawn("two", async move { stop_two.cancelled().await });
    assert_eq!(one.drain(LONG).await, Ok(()));
    assert!(!parent.is_cancelled() && !two.is_cancelled());
    assert_eq!(parent.drain(LONG).await, Ok(()));
    assert!(two.is_cancelled());
}

#[test]
fn a_panic_is_logged_counted_and_passed_on() {
    let log = logged("error", Format::Json, || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let shutdown = Shutdown::new();
            let child = shutdown.child();
            let task: JoinHandle<()> = child.spawn("careless", async { panic!("oh {}", "no") });
            assert!(task.await.unwrap_err().is_panic());
            assert_eq!((shutdown.panics(), child.panics()), (1, 1));
            assert_eq!(shutdown.drain(LONG).await, Ok(()), "a task that panicked has ended");
        });
    });
    let line: serde_json::Value = serde_json::from_str(&log).unwrap();
    assert_eq!((line["task"].as_str(), line["panic"].as_str()), (Some("careless"), Some("oh no")));
}

#[tokio::test]
async fn an_aborted_task_has_ended() {
    let shutdown = Shutdown::new();
    shutdown.spawn("stuck", pending::<()>()).abort();
    assert_eq!(shutdown.drain(LONG).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_threads_with_runtimes_of_their_own() {
    let shutdown = Shutdown::new();
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (stop, hold) = (shutdown.clone(), shutdown.hold("worker"));
            std::thread::spawn(move || {
                let _hold = hold;
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(tokio::task::LocalSet::new().run_until(async {
                    let inner = std::rc::Rc::new(stop.clone());
                    stop.spawn_local("local", async move { inner.cancelled().await });
                    stop.cancelled().await;
                    tokio::task::yield_now().await;
                }));
            })
        })
        .collect();
    assert_eq!(shutdown.drain(LONG).await, Ok(()));
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}

#[tokio::test]
async fn a_signal_begins_the_end_and_a_hangup_does_not() {
    let end = Shutdown::new();
    end_by_signal(end.clone(), || ()).unwrap();
    let me = std::process::id().to_string();
    tell("-HUP", &me);
    assert!(timeout(Duration::from_millis(100), end.cancelled()).await.is_err());
    tell("-TERM", &me);
    timeout(LONG, end.cancelled()).await.unwrap();
}

/// Sends a process a signal.
fn tell(signal: &str, pid: &str) {
    assert!(std::process::Command::new("kill").args([signal, pid]).status().unwrap().success());
}

#[tokio::test]
async fn the_early_end_of_a_vital_task_stops_all_beside_it_and_is_named() {
    let parent = Shutdown::new();
    for panics in [false, true] {
        let turn = parent.child();
        turn.spawn_vital("the heart", async move { assert!(!panics, "it breaks") });
        timeout(LONG, turn.cancelled()).await.unwrap();
        assert_eq!(turn.failed(), Some("the heart"));
    }
    let told = parent.child();
    let until = told.clone();
    told.spawn_vital("the heart", async move { until.cancelled().await });
    told.drain(LONG).await.unwrap();
    assert_eq!((told.failed(), parent.failed(), parent.is_cancelled()), (None, None, false));
}

/// In a process of its own, which this test starts: a copy of the test program that runs nothing but this.
#[tokio::test]
async fn told_twice_a_process_ends_at_once() {
    const CHILD: &str = "WEFT_TEST_TOLD_TWICE";
    if std::env::var_os(CHILD).is_some() {
        logs::init(Format::Text, "info").unwrap();
        let end = Shutdown::new();
        end_by_signal(end.clone(), || eprintln!("the last act")).unwrap();
        // Whoever else has told it to drain is no signal.
        end.cancel();
        eprintln!("draining");
        pending::<()>().await;
    }
    let name = "shutdown::tests::told_twice_a_process_ends_at_once";
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .env_remove(logs::VARIABLE)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let pid = child.id().unwrap().to_string();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut says = async |word: &str| {
        let said = async { while !lines.next_line().await.unwrap().expect(word).contains(word) {} };
        timeout(LONG, said).await.unwrap_or_else(|_| panic!("never {word}"));
    };
    says("draining").await;
    tell("-TERM", &pid);
    says("the same again ends it at once").await;
    assert_eq!(child.try_wait().unwrap(), None, "the first signal lets it drain");
    tell("-TERM", &pid);
    says("the last act").await;
    assert_eq!(timeout(LONG, child.wait()).await.unwrap().unwrap().code(), Some(128 + 15));
}
