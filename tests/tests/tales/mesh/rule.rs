//! A commit rules both clusters, soon and exactly.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use weft_tests::harness::{
    Mesh, Prober, eventually, logs,
    prober::{Probe, last_otherwise},
    repository::{Commit, Repository},
    shop::{CLOSED, closed_to},
};

use super::BLOCKS;

const COMMITS: usize = 50;
const PROBES_PER_SECOND: u32 = 100;
/// From the return of `git commit` until no probe is judged by the commit before.
const EFFECTIVE_WITHIN: Duration = Duration::from_secs(1);
/// Probes of each cluster that have to agree before the next commit.
const AGREEING: usize = 5;

/// What one commit did.
struct Step {
    commit: Commit,
    denies: bool,
    /// When `weft wait` had returned.
    waited: Instant,
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_commits_are_each_effective_in_both_clusters_within_a_second() {
    let mesh = Mesh::up(&BLOCKS, &[]).await;
    let probers = ["east", "west"]
        .map(|cluster| Prober::start(cluster, &mesh.cluster(cluster).ingress, PROBES_PER_SECOND));
    // The policy is there from the beginning; what it says changes.
    mesh.repository().write(CLOSED, &policy(false));
    let first = mesh.commit("reviews: a policy that closes nothing yet").await;
    let mut steps = vec![Step { commit: first, denies: false, waited: Instant::now() }];
    agreed(&probers, &steps[0]).await;

    for n in 1..=COMMITS {
        let denies = n % 2 == 1;
        mesh.repository().write(CLOSED, &policy(denies));
        let commit = mesh.repository().commit(if denies { "reviews: closed" } else { "reviews: open" }).await;
        mesh.weft(&["wait", "HEAD", "--timeout", "20s"]).await;
        let step = Step { commit, denies, waited: Instant::now() };
        agreed(&probers, &step).await;
        steps.push(step);
    }
    let mut slowest = Duration::ZERO;
    for prober in &probers {
        let probes = prober.probes();
        for (step, next) in steps.iter().zip(steps.iter().skip(1).map(Some).chain([None])) {
            slowest = slowest.max(effective_after(step, next, &probes));
        }
    }
    let mut waits: Vec<_> = steps.iter().map(|step| step.waited - step.commit.returned).collect();
    waits.sort();
    println!("effective: the last old decision was begun {slowest:?} after `git commit` returned");
    println!(
        "`weft wait` returned after {:?} in the middle, {:?} at most",
        waits[waits.len() / 2],
        waits[COMMITS]
    );
    assert!(slowest < EFFECTIVE_WITHIN, "a probe was judged by the old commit after {slowest:?}");

    no_request_is_decided_by_an_older_commit(&mesh, &probers, &steps).await;
    a_commit_with_a_typo_changes_nothing(&mesh, &probers[0]).await;
}

fn policy(denies: bool) -> String {
    closed_to(if denies { "front" } else { "nobody" })
}

/// Probes of both clusters that were begun after `weft wait` had returned are judged by the commit.
async fn agreed(probers: &[Prober; 2], step: &Step) {
    for prober in probers {
        for probe in prober.after(step.waited, AGREEING).await {
            assert_eq!(probe.status, status(step), "after weft wait: {probe:?}");
        }
    }
}

fn status(step: &Step) -> u16 {
    if step.denies { 403 } else { 200 }
}

/// How long after the commit the last probe was begun that was still judged otherwise.
fn effective_after(step: &Step, next: Option<&Step>, probes: &[Probe]) -> Duration {
    let until = next.map_or_else(Instant::now, |next| next.commit.began);
    let mine = probes.iter().filter(|probe| probe.began < until);
    last_otherwise(mine, step.commit.returned, status(step))
}

/// By the access logs of the reviews: the commit in force of every probe that was begun between the return of
/// `weft wait` and the next commit; and for the denied ones policy, rule, and the commit that changed it.
async fn no_request_is_decided_by_an_older_commit(mesh: &Mesh, probers: &[Prober; 2], steps: &[Step]) {
    let mut compared = 0;
    let newest = steps.last().map(|step| step.commit.id.clone()).unwrap_or_default();
    let lines = eventually("the reviews log the last probes", Duration::from_secs(5), async || {
        let reviews = ["east", "west"].into_iter().flat_map(|cluster| mesh.workloads(cluster, "reviews"));
        let lines: BTreeMap<_, _> = reviews
            .flat_map(|one| logs::access(&one.dir.join("sidecar")))
            .filter(|line| line.get("direction") == "inbound")
            .map(|line| (line.get("requestId"), line))
            .collect();
        let seen = lines.values().filter(|line| line.get("commit") == newest).count();
        if seen >= 2 * AGREEING { Ok(lines) } else { Err(format!("{seen} lines by {newest}")) }
    })
    .await;
    for prober in probers {
        let probes = prober.probes();
        for (step, next) in steps.iter().zip(&steps[1..]) {
            let quiet = step.waited..next.commit.began;
            for probe in probes.iter().filter(|probe| quiet.contains(&probe.began)) {
                assert_eq!(probe.status, status(step), "{probe:?}");
                let Some(line) = lines.get(&probe.id) else { panic!("no reviews logged {probe:?}") };
                assert_eq!(line.get("commit"), step.commit.id, "{probe:?} {}", line.0);
                if step.denies {
                    assert_eq!(line.get("policy"), "shop/closed", "{}", line.0);
                    assert_eq!(line.get("policyRule"), "to-callers", "{}", line.0);
                    assert_eq!(line.get("policyCommit"), step.commit.id, "{}", line.0);
                    assert_eq!(line.get("decision"), probe.decision, "{}", line.0);
                }
                compared += 1;
            }
        }
    }
    println!("{compared} decisions were held against the access log");
    assert!(compared >= 2 * COMMITS, "only {compared} probes fell between two commits");
}

async fn a_commit_with_a_typo_changes_nothing(mesh: &Mesh, prober: &Prober) {
    let repository: Repository = mesh.repository();
    repository.write(CLOSED, &policy(true));
    mesh.commit("reviews: closed").await;
    repository.edit(CLOSED, "source.serviceAccount", "source.serviceAcount");
    let commit = repository.commit("reviews: a typo").await;
    let refused = mesh.try_weft(&["wait", "HEAD", "--timeout", "20s"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    // The name begins after `      when: source.` on the ninth line.
    assert!(said.contains(&format!("{CLOSED}:9:")) && said.contains("serviceAcount"), "{said}");
    let status = mesh.status("east").await;
    let told = status.sources[0]
        .commits
        .iter()
        .find(|one| one.commit == commit.id)
        .expect("the refused commit is told");
    assert_eq!(told.state, api::admin::CommitState::Refused);
    assert_eq!((told.errors[0].file.as_str(), told.errors[0].line), (CLOSED, 9), "{told:?}");
    for probe in prober.after(Instant::now(), 20).await {
        assert_eq!(probe.status, 403, "the earlier rule holds: {probe:?}");
    }
    repository.write(CLOSED, &policy(false));
    mesh.commit("reviews: open again").await;
    for probe in prober.after(Instant::now(), AGREEING).await {
        assert_eq!(probe.status, 200, "a later good commit heals it: {probe:?}");
    }
}
