//! From a commit to the head: the gate, the store, one compare-and-swap. The primary's leader alone runs this.

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use api::{
    admin::{CommitState, CommitStatus, Problem},
    head::{CommitId, Head, Revision, Seq},
    identity::Vouch,
    link::{Entry, ResourceSet},
    name::ClusterName,
    resource::Cluster,
};
use process::shutdown::Shutdown;
use tokio::sync::watch;

use crate::{
    authority::TrustError,
    gate,
    git::{Checkout, Observation, Repository, Trouble},
    plane::{Commits, Plane, load, seconds},
    store::{self, Conflict, Election, Leading, StoreError},
    vault::VaultError,
};

/// Commits whose fate is shown.
const MAX_SEEN: usize = 100;
/// Between two tries to bring an accepted commit into force.
const AGAIN: Duration = Duration::from_secs(1);
/// Heads between two looks for what is kept in vain.
const SWEEP_EVERY: u64 = 50;
/// Below this many resources, losing more than half of them is everyday work.
const LARGE: usize = 20;

/// Why an accepted commit did not come into force.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Vault(#[from] VaultError),
}

/// The commits that an operator has accepted although they remove much.
#[derive(Debug, Default)]
pub struct Accepted(Mutex<HashSet<String>>, tokio::sync::Notify);

impl Accepted {
    /// Lets a held commit pass.
    pub fn accept(&self, commit: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(commit);
        self.1.notify_one();
    }

    fn contains(&self, commit: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(commit)
    }
}

/// Waits for the first commit that passes the gate: before it nobody knows the trust domain.
pub async fn first_good(
    repository: &Arc<Repository>,
    observed: &mut watch::Receiver<Option<Observation>>,
    commits: &watch::Sender<Commits>,
) -> Option<ResourceSet> {
    loop {
        let now = observed.borrow_and_update().clone();
        let Observation { commit, trouble } = now.unwrap_or_default();
        set_trouble(commits, trouble);
        if let Some(commit) = commit {
            match read(repository, &commit, None).await {
                Ok((_, Ok(set))) => return Some(set),
                Ok((checkout, Err(problems))) => {
                    tracing::error!(commit = commit.as_str(), "refused: {}", list(&problems));
                    note(commits, &commit, &checkout, CommitState::Refused, problems);
                }
                Err(trouble) => set_trouble(commits, Some(trouble)),
            }
        }
        observed.changed().await.ok()?;
    }
}

/// Brings each commit that the branch comes to into force, or says why not.
pub async fn run(
    plane: Arc<Plane>,
    repository: Arc<Repository>,
    mut observed: watch::Receiver<Option<Observation>>,
    accepted: Arc<Accepted>,
    mut leading: Leading,
    shutdown: Shutdown,
) {
    let mut last = None;
    loop {
        let election = tokio::select! {
            () = shutdown.cancelled() => return,
            election = leading.begun() => election,
        };
        // Who led before may have brought another commit into force, or the store may have been restored.
        observed.mark_changed();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = lead(&plane, &repository, &mut observed, &mut last, &accepted, &election) => return,
            () = election.lost() => {
                plane.events.note("store", "this control plane does not lead any more; what is in force stays");
                leading.changed().await;
            }
        }
    }
}

/// One leadership. Ends with the repository's watch.
async fn lead(
    plane: &Arc<Plane>,
    repository: &Arc<Repository>,
    observed: &mut watch::Receiver<Option<Observation>>,
    last: &mut Option<CommitId>,
    accepted: &Accepted,
    election: &Election,
) {
    let mut told = None;
    loop {
        let mut failed = None;
        let now = observed.borrow_and_update().clone();
        let Observation { commit, trouble } = now.unwrap_or_default();
        if let Some(trouble) = trouble.as_ref().filter(|_| plane.commits.borrow().trouble.is_none()) {
            plane.events.note("repository", trouble.to_string());
        }
        set_trouble(&plane.commits, trouble);
        if let Some(commit) = commit {
            match take(plane, repository, &commit, last.as_ref(), accepted, election).await {
                Ok(()) => *last = Some(commit),
                Err(message) => failed = Some((commit, message)),
            }
        }
        if let Some((commit, message)) = failed.as_ref().filter(|_| failed != told) {
            plane.events.note(format!("commit {}", commit.short()), message);
        }
        told.clone_from(&failed);
        tokio::select! {
            () = accepted.1.notified() => {}
            // An accepted commit must not stay out of force because the disk was full for a moment.
            () = tokio::time::sleep(AGAIN), if failed.is_some() => {}
            changed = observed.changed() => if changed.is_err() { return },
        }
    }
}

async fn take(
    plane: &Arc<Plane>,
    repository: &Arc<Repository>,
    commit: &CommitId,
    last: Option<&CommitId>,
    accepted: &Accepted,
    election: &Election,
) -> Result<(), String> {
    let (checkout, judged) = read(repository, commit, last).await.map_err(|trouble| trouble.to_string())?;
    bring(plane, &checkout, judged, accepted, election).await
}

/// Brings a commit into force, unless the gate refused it or it has to wait for an operator.
///
/// # Errors
/// When it was accepted and is not in force yet; it is to be brought again.
pub async fn bring(
    plane: &Plane,
    checkout: &Checkout,
    judged: Result<ResourceSet, Vec<Problem>>,
    accepted: &Accepted,
    election: &Election,
) -> Result<(), String> {
    let commit = &checkout.commits[0].1;
    if checkout.rewrote {
        plane.events.note(
            format!("commit {}", commit.short()),
            "the branch was rewritten: this commit does not descend from the last",
        );
    }
    let refuse = |problems: Vec<Problem>| {
        plane.events.note(format!("commit {}", commit.short()), format!("refused: {}", list(&problems)));
        note(&plane.commits, commit, checkout, CommitState::Refused, problems);
    };
    let set = match judged {
        Ok(set) => set,
        Err(problems) => {
            refuse(problems);
            return Ok(());
        }
    };
    if let Some(problem) = other_domain(plane, &set).or_else(|| other_root(plane, &set)) {
        refuse(vec![problem]);
        return Ok(());
    }
    if removes_most(plane, &set) && !accepted.contains(commit.as_str()) {
        plane
            .events
            .note(format!("commit {}", commit.short()), "held: it removes more than half of all resources");
        note(&plane.commits, commit, checkout, CommitState::Held, vec![]);
        return Ok(());
    }
    let published = publish(plane, checkout, &set, election).await;
    published.map_err(|error| format!("accepted, and not yet in force: {error}"))?;
    note(&plane.commits, commit, checkout, CommitState::Rolling, vec![]);
    Ok(())
}

async fn publish(
    plane: &Plane,
    checkout: &Checkout,
    set: &ResourceSet,
    election: &Election,
) -> Result<(), PublishError> {
    let store = &*plane.store;
    let held = store.head().await?;
    let before = held.as_ref().map(|head| head.head().clone());
    let commit = checkout.commits[0].1.clone();
    let entries = set.resources.iter().map(|(key, entry)| store::Entry {
        key: key.to_string(),
        namespace: key.namespace.as_ref().map(ToString::to_string).unwrap_or_default(),
        bytes: entry.resource.to_json().into(),
        commit: commit.clone(),
        position: store::Position {
            file: entry.origin.file.to_string(),
            line: entry.origin.line,
            author: checkout.author.clone(),
            rules: rule_lines(entry),
        },
    });
    let previous: Option<&Revision> = before.as_ref().and_then(|head| head.stable.as_ref());
    let revision = store::write_revision(store, checkout.commits.clone(), entries, previous).await?;
    // A store that knows less than what is in force was restored.
    let known = store.watch_head().borrow().as_ref().map(|head| head.head().seq());
    let behind = before.as_ref().map(|head| head.seq()) < known;
    let unchanged = !behind && previous == Some(&revision);
    let head = match &before {
        Some(head) if unchanged => head.clone(),
        Some(head) if !behind => head.next(revision.clone()),
        Some(_) | None => Head::first(new_epoch(plane.now(), known)).next(revision.clone()),
    };
    // Members before what they may do: a cluster is believed no longer than Git says.
    if let Some(bundle) = plane.authority.with_members(members(set), head.epoch) {
        plane.authority.trust(bundle)?;
        plane.vault.keep().await?;
        plane.bundle.send_replace(plane.authority.identity().bundle());
    }
    let configuration = load(store, &revision).await?;
    if !unchanged {
        let signed = plane.authority.sign_head(head.clone())?;
        store.compare_and_swap_head(before.map(|head| head.seq()), signed, election).await?;
    }
    plane.commits.send_modify(|commits| commits.publish(head.seq(), commit.to_string()));
    plane.bring_into_force(head.seq(), configuration);
    if !unchanged && head.n.is_multiple_of(SWEEP_EVERY) {
        match store::retain(store, store::KEPT_HEADS, election).await {
            Ok(gone) => tracing::info!(blobs = gone, "forgot what only old revisions need"),
            Err(error) => tracing::warn!(%error, "old revisions could not be forgotten"),
        }
    }
    Ok(())
}

/// Where each rule of an object stands.
fn rule_lines(entry: &Entry) -> Vec<u32> {
    let Some(positions) = &entry.positions else { return Vec::new() };
    let pointers = (0..).map(|place| format!("/spec/rules/{place}"));
    pointers.take_while(|pointer| positions.has(pointer)).map(|pointer| positions.at(&pointer).line).collect()
}

/// A new or restored store begins a new epoch, later than any before it, wherever the clock is. In milliseconds, since
/// what follows within a second of a first epoch must be later too.
fn new_epoch(now: f64, known: Option<Seq>) -> u64 {
    ((now * 1000.0) as u64).max(known.map_or(0, |known| known.epoch + 1))
}

fn members(set: &ResourceSet) -> BTreeMap<ClusterName, Vouch> {
    let clusters = set.all::<Cluster>().filter_map(|(key, object)| {
        let name = ClusterName::new(key.name.as_str()).ok()?;
        Some((name, Vouch { namespaces: object.spec.namespaces.clone() }))
    });
    clusters.collect()
}

/// The trust domain is fixed once the root exists.
fn other_domain(plane: &Plane, set: &ResourceSet) -> Option<Problem> {
    let (fixed, said) = (plane.authority.trust_domain(), &set.mesh()?.trust_domain);
    if fixed == *said {
        return None;
    }
    let message =
        format!("the trust domain is `{fixed}` since the root was made, and cannot become `{said}`");
    let help = "a mesh with another trust domain needs a root, and so a primary, of its own";
    at_mesh(set, "/spec/trustDomain", message).map(|problem| Problem { help: Some(help.into()), ..problem })
}

/// So is the root's life: saying another would change nothing, and who said it would believe that it did.
fn other_root(plane: &Plane, set: &ResourceSet) -> Option<Problem> {
    let fixed = plane.configuration.borrow().mesh()?.spec.certificates.root;
    let said = set.mesh()?.certificates.root;
    (fixed != said).then(|| at_mesh(set, "/spec/certificates/root", format!(
        "the root was made to live {fixed}; `{said}` would have no effect, since rotating the root is not yet supported"
    )))?
}

/// A problem at a field of the `Mesh`.
fn at_mesh(set: &ResourceSet, pointer: &str, message: String) -> Option<Problem> {
    let entry =
        set.resources.values().find(|entry| entry.resource.as_kind::<api::resource::Mesh>().is_some())?;
    let at = entry.positions.as_ref().map(|positions| positions.at(pointer)).unwrap_or_default();
    let file = entry.origin.file.to_string();
    Some(Problem { file, line: at.line, column: at.column, message, help: None })
}

/// An emptied path must not open the mesh.
fn removes_most(plane: &Plane, set: &ResourceSet) -> bool {
    let configuration = plane.configuration.borrow();
    let before = configuration.objects.len();
    let kept =
        configuration.objects.iter().filter(|said| set.resources.contains_key(&said.resource.key())).count();
    before >= LARGE && (before - kept) * 2 > before
}

type Judged = (Checkout, Result<ResourceSet, Vec<Problem>>);

async fn read(
    repository: &Arc<Repository>,
    commit: &CommitId,
    last: Option<&CommitId>,
) -> Result<Judged, Trouble> {
    let (repository, commit, last) = (repository.clone(), commit.clone(), last.cloned());
    let work = tokio::task::spawn_blocking(move || {
        let checkout = repository.checkout(&commit, last.as_ref())?;
        let judged = gate::check(&checkout);
        Ok((checkout, judged))
    });
    work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

fn note(
    commits: &watch::Sender<Commits>,
    commit: &CommitId,
    checkout: &Checkout,
    state: CommitState,
    errors: Vec<Problem>,
) {
    commits.send_modify(|commits| {
        if matches!(state, CommitState::Rolling) {
            let open = commits
                .seen
                .iter_mut()
                .filter(|one| matches!(one.state, CommitState::Rolling | CommitState::Accepted));
            open.for_each(|one| one.state = CommitState::Superseded);
        }
        let seen = commits.seen.iter().find(|one| one.commit == commit.as_str()).map(|one| one.seen);
        commits.seen.retain(|one| one.commit != commit.as_str());
        commits.seen.push_back(CommitStatus {
            commit: commit.to_string(),
            subject: checkout.subject.clone(),
            author: checkout.author.clone(),
            seen: seen.unwrap_or_else(|| seconds(SystemTime::now())),
            state,
            effective_after_ms: None,
            errors,
        });
        if commits.seen.len() > MAX_SEEN {
            commits.seen.pop_front();
        }
    });
}

/// Since when there is trouble stays, however its reason changes.
fn set_trouble(commits: &watch::Sender<Commits>, trouble: Option<Trouble>) {
    commits.send_if_modified(|commits| {
        let since = commits.trouble.as_ref().map(|(_, since)| *since);
        let now =
            trouble.map(|trouble| (trouble.to_string(), since.unwrap_or_else(|| seconds(SystemTime::now()))));
        let changed = commits.trouble != now;
        commits.trouble = now;
        changed
    });
}

fn list(problems: &[Problem]) -> String {
    let lines =
        problems.iter().map(|one| format!("{}:{}:{}: {}", one.file, one.line, one.column, one.message));
    lines.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_new_wherever_the_clock_is() {
        let known = Some(Seq { epoch: 1_000, n: 7 });
        assert_eq!(new_epoch(2.0, None), 2_000);
        assert_eq!(new_epoch(2.0, known), 2_000);
        for now in [0.0, 0.999, 1.0] {
            assert_eq!(new_epoch(now, known), 1_001);
        }
    }
}
