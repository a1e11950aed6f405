//! Follows the sources in Git: what each branch comes to is read and told to the publisher.
//!
//! Invariant: a source that is away, slow to answer or broken keeps nobody from what the others say.

use std::{path::Path, sync::Arc, time::Duration};

use api::{
    admin::{CommitState, Problem},
    head::CommitId,
    name::SourceName,
    resource::Mesh,
};
use futures_util::future::{join_all, select_all};
use process::shutdown::Shutdown;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    commits::Commits,
    gate::{self, Tree},
    git::{self, Bell, Observation, Repository, Trouble},
    ownership::Ownership,
    plane::Plane,
    publish::{Accepted, Publisher, list},
    store::{Election, Leading},
};

/// Between two tries to bring what was accepted into force.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the very first head waits for the first word of every source, since what it lacks is not denied either.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// A source that is followed.
pub struct Followed {
    /// Its repository.
    pub repository: Arc<Repository>,
    /// Makes it ask its server at once.
    pub bell: Bell,
    observed: watch::Receiver<Option<Observation>>,
}

impl Followed {
    /// Begins to watch a source; what it fetches is kept below `mirrors`.
    pub fn start(source: git::Source, mirrors: &Path, shutdown: &Shutdown) -> Self {
        let repository = Arc::new(Repository::new(source, mirrors));
        let bell = Bell::default();
        let (seen, observed) = watch::channel(None);
        let ended = CancellationToken::new();
        shutdown.spawn("repository", git::watch(repository.clone(), seen, bell.clone(), ended.clone()));
        let stop = shutdown.clone();
        shutdown.spawn("end of the watch", async move {
            stop.cancelled().await;
            ended.cancel();
        });
        Followed { repository, bell, observed }
    }

    fn name(&self) -> &SourceName {
        &self.repository.source().name
    }

    /// Ends when anything is known of it, be it a trouble.
    async fn first_word(&mut self) {
        // Fails only when the watch has ended, and then nothing will be known.
        let _ = self.observed.wait_for(Option::is_some).await;
    }

    /// What is seen of it now.
    fn now(&mut self) -> Observation {
        self.observed.borrow_and_update().clone().unwrap_or_default()
    }

    /// What it says at `commit`, and whether its history was rewritten since `last`.
    async fn read(&self, commit: &CommitId, last: Option<&CommitId>) -> Result<(Tree, bool), Trouble> {
        let (repository, commit, last) = (self.repository.clone(), commit.clone(), last.cloned());
        let work = tokio::task::spawn_blocking(move || {
            let checkout = repository.checkout(&commit, last.as_ref())?;
            Ok((Tree::read(&checkout), checkout.rewrote))
        });
        // What breaks the reader of one source stops none of the others.
        work.await.unwrap_or_else(|broken| {
            let path = self.repository.source().address.to_string();
            Err(Trouble::Unreadable { path, reason: format!("its reader broke: {broken}") })
        })
    }
}

/// Waits for the first commit that passes the gate of the source that says the `Mesh`: before it nobody knows the trust
/// domain.
pub async fn first_mesh(
    followed: &mut [Followed],
    ownership: &Ownership,
    commits: &watch::Sender<Commits>,
) -> Option<Mesh> {
    let rest = followed.iter_mut().find(|one| one.name() == ownership.rest())?;
    loop {
        let Observation { commit, mut trouble } = rest.now();
        if let Some(commit) = commit {
            match rest.read(&commit, None).await {
                Ok((tree, _)) => {
                    let problems = gate::judge(&tree, ownership, &[], &[]);
                    if !problems.iter().any(Problem::is_error) {
                        let mesh = tree.placed().iter().find_map(|own| own.resource.as_kind::<Mesh>());
                        return mesh.map(|mesh| mesh.spec.clone());
                    }
                    tracing::error!(commit = commit.as_str(), "refused: {}", list(&problems));
                    commits.send_modify(|commits| _ = commits.note(&tree, CommitState::Refused, problems));
                }
                Err(unread) => trouble = Some(unread),
            }
        }
        let is_new = commits.send_if_modified(|commits| commits.trouble(rest.name(), trouble.as_ref()));
        if let Some(trouble) = trouble.filter(|_| is_new) {
            tracing::warn!(source = %rest.name(), %trouble, "nothing can be served before a first commit is read");
        }
        rest.observed.changed().await.ok()?;
    }
}

/// Follows the sources until `shutdown`, and publishes while this process leads.
pub async fn run(
    plane: Arc<Plane>,
    ownership: Ownership,
    mut followed: Vec<Followed>,
    accepted: Arc<Accepted>,
    mut leading: Leading,
    shutdown: Shutdown,
) {
    let mut publisher = Publisher::new(plane.clone(), ownership, accepted.clone());
    if plane.configuration.borrow().mesh().is_none() {
        let words = followed.iter_mut().map(Followed::first_word);
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Whoever has not spoken by then is published when it does.
            _ = timeout(FIRST_WORD, join_all(words)) => {}
        }
    }
    loop {
        let election = tokio::select! {
            () = shutdown.cancelled() => return,
            election = leading.begun() => election,
        };
        publisher.begin();
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = lead(&plane, &mut followed, &mut publisher, &accepted, &election) => return,
            () = election.lost() => {
                plane.events.note("store", "this control plane does not lead any more; what is in force stays");
                leading.changed().await;
            }
        }
    }
}

/// One leadership. Ends with the sources' watches.
async fn lead(
    plane: &Plane,
    followed: &mut [Followed],
    publisher: &mut Publisher,
    accepted: &Accepted,
    election: &Election,
) {
    let mut told = None;
    loop {
        let mut failed = None;
        for one in followed.iter_mut() {
            if let Err((subject, why)) = hear(plane, one, publisher).await {
                failed = Some((subject, why));
            }
        }
        if let Err(why) = publisher.publish(election).await {
            failed = Some(("configuration".to_owned(), why));
        }
        if let Some((subject, why)) = failed.as_ref().filter(|_| failed != told) {
            plane.events.note(subject, why);
        }
        told.clone_from(&failed);
        let moved = select_all(followed.iter_mut().map(|one| Box::pin(one.observed.changed())));
        tokio::select! {
            () = accepted.another() => {}
            // What was accepted must not stay out of force because the disk was full for a moment.
            () = sleep(AGAIN), if failed.is_some() => {}
            (changed, ..) = moved => if changed.is_err() { return },
        }
    }
}

/// Tells the publisher what a source says now, unless it has heard that.
async fn hear(plane: &Plane, one: &mut Followed, publisher: &mut Publisher) -> Result<(), (String, String)> {
    let Observation { commit, trouble } = one.now();
    let is_new =
        |commits: &Commits| commits.sources.get(one.name()).is_none_or(|seen| seen.trouble.is_none());
    if let Some(trouble) = trouble.as_ref().filter(|_| is_new(&plane.commits.borrow())) {
        plane.events.note(format!("source {}", one.name()), trouble.to_string());
    }
    plane.commits.send_if_modified(|commits| commits.trouble(one.name(), trouble.as_ref()));
    let heard = publisher.heard(one.name()).cloned();
    let Some(commit) = commit.filter(|commit| heard.as_ref() != Some(commit)) else { return Ok(()) };
    let last = heard.or_else(|| plane.commits.borrow().published.last()?.commit_of(one.name()).cloned());
    let subject = || format!("commit {}", commit.short());
    let (tree, rewrote) =
        one.read(&commit, last.as_ref()).await.map_err(|trouble| (subject(), trouble.to_string()))?;
    if rewrote {
        plane.events.note(subject(), "the branch was rewritten: this commit does not descend from the last");
    }
    publisher.hear(tree);
    Ok(())
}
