//! From what the sources say to the head: the gate, the store, one compare-and-swap. The primary's leader alone runs this.
//!
//! Each source's commit is taken or refused by itself, and what was taken since is published as one head, in which every
//! other source keeps its last good tree. A process that dies before the swap has changed nothing, one that dies after
//! it everything; whoever comes next goes on from the head.
//!
//! Nothing of Git: what a source says is told by [`Publisher::hear`].

use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use api::{
    admin::{CommitState, Problem, Severity},
    head::{CommitId, Head, Revision, Seq, SignedHead},
    identity::Vouch,
    manifest::Placed,
    name::{ClusterName, SourceName},
    resource::{Cluster, Mesh},
};
use tokio::sync::Notify;

use crate::{
    authority::TrustError,
    gate::{self, Tree},
    ownership::Ownership,
    plane::{Plane, load},
    store::{self, Conflict, Election, StoreError},
    union::{Part, Union},
    vault::VaultError,
};

/// Below this many resources of a source, losing more than half of them is everyday work.
const LARGE: usize = 20;

/// Why what was accepted did not come into force.
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
pub struct Accepted(Mutex<HashSet<String>>, Notify);

impl Accepted {
    /// Lets a held commit pass.
    pub fn accept(&self, commit: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(commit);
        self.1.notify_one();
    }

    /// Ends when another commit was let pass.
    pub async fn another(&self) {
        self.1.notified().await;
    }

    fn contains(&self, commit: &CommitId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(commit.as_str())
    }
}

/// Why a commit is not taken.
enum Refusal {
    /// It is wrong.
    Refused(Vec<Problem>),
    /// It removes so much that an operator has to let it pass.
    Held,
}

/// Composes what the sources say.
pub struct Publisher {
    plane: Arc<Plane>,
    ownership: Ownership,
    accepted: Arc<Accepted>,
    /// What each source says now, good or bad.
    trees: BTreeMap<SourceName, Tree>,
    /// The commits that were brought into force since this process leads.
    settled: BTreeMap<SourceName, CommitId>,
    union: Union,
}

impl Publisher {
    /// Nothing was heard yet.
    pub fn new(plane: Arc<Plane>, ownership: Ownership, accepted: Arc<Accepted>) -> Self {
        Publisher {
            plane,
            ownership,
            accepted,
            trees: BTreeMap::new(),
            settled: BTreeMap::new(),
            union: Union::default(),
        }
    }

    /// Who led before may have brought other commits into force, or the store may have been restored: all that the
    /// sources say is brought again.
    pub fn begin(&mut self) {
        self.settled.clear();
        self.union = Union::default();
    }

    /// A source says this now.
    pub fn hear(&mut self, tree: Tree) {
        // One that was returned to is brought again, and told to be in force.
        self.settled.remove(&tree.source);
        self.trees.insert(tree.source.clone(), tree);
    }

    /// The commit that a source was heard at last.
    pub fn heard(&self, source: &SourceName) -> Option<&CommitId> {
        self.trees.get(source).map(|tree| &tree.commit)
    }

    /// Brings into force what the sources say, each unless the gate refuses it or it has to wait for an operator.
    ///
    /// # Errors
    /// When something was accepted and is not in force yet; it is to be brought again.
    pub async fn publish(&mut self, election: &Election) -> Result<(), String> {
        let unpublished = |error: PublishError| format!("accepted, and not yet in force: {error}");
        if self.due().is_empty() {
            return Ok(());
        }
        let before = self.go_on().await.map_err(|error| unpublished(error.into()));
        if self.union.seq.is_none() {
            before.as_ref().map_err(String::clone)?;
        }
        let mut next = self.union.clone();
        let (taken, refusals) = self.take(&mut next);
        for (source, refusal) in refusals {
            self.tell(&source, refusal);
        }
        if taken.is_empty() {
            return Ok(());
        }
        let is_settled =
            |source: &SourceName| taken.contains_key(source) || self.settled.contains_key(source);
        if self.ownership.sources().all(is_settled) {
            next.forget_former();
        }
        let was = before.as_ref().ok().and_then(Option::as_ref).map(|head| head.head().seq());
        let put = match before {
            Ok(before) => self.put(&next, before, election).await.map_err(unpublished),
            Err(why) => Err(why),
        };
        let seq = put.inspect_err(|_| taken.keys().for_each(|source| self.tell_waiting(source)))?;
        next.seq = Some(seq);
        self.union = next;
        for (source, warnings) in taken {
            self.tell_taken(&source, warnings);
            self.settled.insert(source.clone(), self.trees[&source].commit.clone());
        }
        // Last, since it takes its time: what is in force is told by now.
        store::forget_old(&*self.plane.store, was, seq, election).await;
        Ok(())
    }

    /// The sources that say what is not known to be in force; first the one without whose `Mesh` nothing is.
    fn due(&self) -> Vec<SourceName> {
        let due = self.trees.values().filter(|tree| self.settled.get(&tree.source) != Some(&tree.commit));
        let mut due: Vec<_> = due.map(|tree| tree.source.clone()).collect();
        due.sort_by_key(|source| source != self.ownership.rest());
        due
    }

    /// Goes on from the head, wherever it is now: from the store's, or if that is away or knows less since it was
    /// restored, from the one that is known here. Gives the store's.
    async fn go_on(&mut self) -> Result<Option<SignedHead>, StoreError> {
        let store = &*self.plane.store;
        let held = store.head().await;
        let known = store.watch_head().borrow().clone();
        let latest = held.iter().flatten().chain(&known).max_by_key(|head| head.head().seq()).cloned();
        let latest = match latest {
            Some(head) if self.plane.authority.believes(&head).is_err() => self.last_believed().await?,
            latest => latest,
        };
        if let Some(latest) = latest.filter(|latest| self.union.seq != Some(latest.head().seq())) {
            self.union = Union::read(store, latest.head(), &self.ownership).await?;
            if let Some(revision) = &latest.head().stable {
                self.plane.commits.send_modify(|commits| commits.publish(latest.head().seq(), revision));
            }
        }
        held
    }

    /// The last head that was signed: who can write to the store does not speak for a source that is not heard yet.
    async fn last_believed(&self) -> Result<Option<SignedHead>, StoreError> {
        let heads = self.plane.store.heads(store::KEPT_HEADS).await?;
        Ok(heads.into_iter().find(|head| self.plane.authority.believes(head).is_ok()))
    }

    /// Takes into `next` what is good, with its warnings, again and again: one source's commit may be what another's
    /// waits for.
    fn take(&self, next: &mut Union) -> (BTreeMap<SourceName, Vec<Problem>>, BTreeMap<SourceName, Refusal>) {
        let (mut due, mut taken) = (self.due(), BTreeMap::new());
        loop {
            let mut refusals = BTreeMap::new();
            let before = due.len();
            due.retain(|source| match self.judge(&self.trees[source], next) {
                Ok((part, warnings)) => {
                    next.replace(source, part);
                    taken.insert(source.clone(), warnings);
                    false
                }
                Err(refusal) => {
                    refusals.insert(source.clone(), refusal);
                    true
                }
            });
            if due.is_empty() || due.len() == before {
                return (taken, refusals);
            }
        }
    }

    fn judge(&self, tree: &Tree, union: &Union) -> Result<(Part, Vec<Problem>), Refusal> {
        let before = union.part(&tree.source);
        let in_force = before.map(Part::placed).unwrap_or_default();
        let mut problems = gate::judge(tree, &self.ownership, &union.beside(&tree.source), in_force);
        if !problems.iter().any(Problem::is_error) {
            problems.extend(unchangeable(&self.plane, tree.placed()));
        }
        if problems.iter().any(Problem::is_error) {
            return Err(Refusal::Refused(problems));
        }
        let part = Part::of(tree);
        let (all, lost) = before.map_or((0, 0), |before| before.loses(&part));
        // An emptied path must not open the mesh.
        if all >= LARGE && lost * 2 > all && !self.accepted.contains(&tree.commit) {
            return Err(Refusal::Held);
        }
        Ok((part, problems))
    }

    /// Tells that a source's commit is in force, and what it was warned of, unless that was told before.
    fn tell_taken(&self, source: &SourceName, warnings: Vec<Problem>) {
        let tree = &self.trees[source];
        let is_new = *self.plane.commits.borrow().warnings(tree) != *warnings;
        if is_new && !warnings.is_empty() {
            let message = format!("taken with warnings: {}", list(&warnings));
            self.plane.events.note(format!("commit {}", tree.commit.short()), message);
        }
        self.plane.commits.send_modify(|commits| _ = commits.note(tree, CommitState::Rolling, warnings));
    }

    /// Tells that a source's commit has passed and waits for the store, unless it is in force.
    fn tell_waiting(&self, source: &SourceName) {
        let tree = &self.trees[source];
        self.plane.commits.send_if_modified(|commits| {
            let last = commits.published.last().and_then(|last| last.commit_of(source));
            last != Some(&tree.commit) && commits.note(tree, CommitState::Accepted, vec![])
        });
    }

    /// Tells why a source's commit is not taken, unless that was told before.
    fn tell(&self, source: &SourceName, refusal: Refusal) {
        let tree = &self.trees[source];
        let (state, problems, message) = match refusal {
            Refusal::Refused(problems) => {
                let message = format!("refused: {}", list(&problems));
                (CommitState::Refused, problems, message)
            }
            Refusal::Held => {
                let message = "held: it removes more than half of all resources of its source";
                (CommitState::Held, vec![], message.to_owned())
            }
        };
        let mut is_new = false;
        self.plane.commits.send_if_modified(|commits| {
            is_new = commits.note(tree, state, problems);
            is_new
        });
        if is_new {
            self.plane.events.note(format!("commit {}", tree.commit.short()), message);
        }
    }

    /// Moves the head from `before` to what `next` says; gives its place.
    async fn put(
        &self,
        next: &Union,
        before: Option<SignedHead>,
        election: &Election,
    ) -> Result<Seq, PublishError> {
        let plane = &*self.plane;
        let store = &*plane.store;
        let in_force = before;
        let before = in_force.as_ref().map(|head| head.head().clone());
        let previous: Option<&Revision> = before.as_ref().and_then(|head| head.stable.as_ref());
        let revision = next.write(store, previous).await?;
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
        if let Some(bundle) = plane.authority.with_members(members(next.placed()), head.epoch) {
            plane.authority.trust(bundle)?;
        }
        // Also what is trusted since a try that failed or was broken off here.
        plane.vault.keep_by(election).await?;
        plane.tell_bundle();
        let configuration = load(store, head.seq(), &revision).await?;
        let signed = match in_force {
            Some(signed) if unchanged => signed,
            _ => {
                let signed = plane.authority.sign_head(head.clone())?;
                let expected = before.as_ref().map(|head| head.seq());
                store.compare_and_swap_head(expected, signed.clone(), election).await?;
                signed
            }
        };
        store.hold(&signed).await?;
        plane.commits.send_modify(|commits| commits.publish(head.seq(), &revision));
        plane.bring_into_force(configuration);
        Ok(head.seq())
    }
}

/// A new or restored store begins a new epoch, later than any before it, wherever the clock is. In milliseconds, since
/// what follows within a second of a first epoch must be later too.
fn new_epoch(now: f64, known: Option<Seq>) -> u64 {
    ((now * 1000.0) as u64).max(known.map_or(0, |known| known.epoch + 1))
}

fn members<'a>(placed: impl Iterator<Item = &'a Placed>) -> BTreeMap<ClusterName, Vouch> {
    let clusters = placed.filter_map(|own| {
        let object = own.resource.as_kind::<Cluster>()?;
        let name = ClusterName::new(object.meta.name.as_str()).ok()?;
        Some((name, Vouch { namespaces: object.spec.namespaces.clone() }))
    });
    clusters.collect()
}

/// What of the `Mesh` cannot change any more, and was changed.
fn unchangeable(plane: &Plane, placed: &[Placed]) -> Option<Problem> {
    let (own, mesh) = placed.iter().find_map(|own| Some((own, &own.resource.as_kind::<Mesh>()?.spec)))?;
    other_domain(plane, own, mesh).or_else(|| other_root(plane, own, mesh))
}

/// The trust domain is fixed once the root exists.
fn other_domain(plane: &Plane, own: &Placed, mesh: &Mesh) -> Option<Problem> {
    let (fixed, said) = (plane.authority.trust_domain(), &mesh.trust_domain);
    (fixed != *said).then(|| Problem {
        help: Some("a mesh with another trust domain needs a root, and so a primary, of its own".into()),
        ..at(
            own,
            "/spec/trustDomain",
            format!("the trust domain is `{fixed}` since the root was made, and cannot become `{said}`"),
        )
    })
}

/// So is the root's life: saying another would change nothing, and who said it would believe that it did.
fn other_root(plane: &Plane, own: &Placed, mesh: &Mesh) -> Option<Problem> {
    let fixed = plane.configuration.borrow().mesh()?.spec.certificates.root;
    let said = mesh.certificates.root;
    (fixed != said).then(|| at(own, "/spec/certificates/root", format!(
        "the root was made to live {fixed}; `{said}` would have no effect, since rotating the root is not yet supported"
    )))
}

/// A problem at a field of an object.
fn at(own: &Placed, pointer: &str, message: String) -> Problem {
    let at = own.positions.at(pointer);
    let file = own.origin.file.to_string();
    Problem { file, line: at.line, column: at.column, message, help: None, severity: Severity::Error }
}

/// Problems in one line, for logs and events.
pub(crate) fn list(problems: &[Problem]) -> String {
    let line = |one: &Problem| {
        let warning = if one.is_error() { "" } else { "warning: " };
        format!("{}:{}:{}: {warning}{}", one.file, one.line, one.column, one.message)
    };
    problems.iter().map(line).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
