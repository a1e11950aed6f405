//! Watches a source. Of a local one the file system tells at once, and a look each second catches what it does not
//! tell. A server is asked again and again, and at once when its bell rings: for a webhook, or for somebody who waits.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{Address, Observation, Repository, Trouble};

/// For what the file system does not tell: network file systems, a repository that comes back.
const POLL: Duration = Duration::from_secs(1);
/// One `git commit` makes a dozen events; a push of many branches many more.
const DEBOUNCE: Duration = Duration::from_millis(4);

/// The first pause after a server did not answer; it doubles up to that between two looks.
const SOON: Duration = Duration::from_secs(1);

/// Asks for a look at once. Rung while one is under way, it makes another.
pub type Bell = Arc<Notify>;

/// Keeps `observed` at what the source's branch is at, until `shutdown`. It changes only when the observation does.
pub async fn watch(
    repository: Arc<Repository>,
    observed: watch::Sender<Option<Observation>>,
    bell: Bell,
    shutdown: CancellationToken,
) {
    match repository.source().address {
        Address::Local(_) => watch_every(POLL, repository, observed, shutdown).await,
        Address::Remote(_) => {
            let poll = repository.source().poll;
            let asking = ask_every(poll, repository, observed, bell);
            shutdown.run_until_cancelled_owned(asking).await.unwrap_or_default();
        }
    }
}

async fn ask_every(
    poll: Duration,
    repository: Arc<Repository>,
    observed: watch::Sender<Option<Observation>>,
    bell: Bell,
) {
    // What is known from before, so that a server that is away from the start costs nothing but what is new.
    let known = look(&repository, None).await;
    if known.commit.is_some() {
        observed.send_replace(Some(known));
    }
    let mut pause = SOON;
    loop {
        let fetched = repository.fetch().await;
        pause = if fetched.is_ok() { poll } else { poll.min(pause * 2) };
        tell(&observed, look(&repository, fetched.err()).await);
        tokio::select! {
            () = bell.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

/// What the mirror holds, and why it holds nothing newer.
async fn look(repository: &Arc<Repository>, trouble: Option<Trouble>) -> Observation {
    let repository = repository.clone();
    match tokio::task::spawn_blocking(move || repository.head()).await {
        Ok(Ok(commit)) => Observation { commit: Some(commit), trouble },
        Ok(Err(unread)) => Observation { commit: None, trouble: trouble.or(Some(unread)) },
        Err(_) => Observation { commit: None, trouble },
    }
}

fn tell(observed: &watch::Sender<Option<Observation>>, observation: Observation) {
    observed.send_if_modified(|now| {
        let changed = now.as_ref() != Some(&observation);
        *now = Some(observation);
        changed
    });
}

async fn watch_every(
    poll: Duration,
    repository: Arc<Repository>,
    observed: watch::Sender<Option<Observation>>,
    shutdown: CancellationToken,
) {
    let stirred = Arc::new(Notify::new());
    let mut eyes = None;
    let mut ticks = interval(poll);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = stirred.notified() => sleep(DEBOUNCE).await,
            _ = ticks.tick() => {}
        }
        let (repository, stirred) = (repository.clone(), stirred.clone());
        let looked = tokio::task::spawn_blocking(move || {
            // Eyes first: what moves between the two is then seen by one of them.
            let open = Eyes::keep_open(eyes, &repository, stirred);
            let observation = match repository.head() {
                Ok(commit) => Observation::at(commit),
                Err(trouble) => Observation { commit: None, trouble: Some(trouble) },
            };
            (open, observation)
        })
        .await;
        match looked {
            Ok((open, observation)) => {
                eyes = open;
                tell(&observed, observation);
            }
            Err(broken) => {
                tracing::error!(error = %broken, "the repository could not be looked at; once more in a moment");
                eyes = None;
            }
        }
    }
}

/// A watch on the directories in which a moved branch shows.
struct Eyes {
    _watcher: RecommendedWatcher,
    /// The directories and which ones they were: a watch stays with a directory that was moved away.
    on: Vec<(PathBuf, u64, u64)>,
}

impl Eyes {
    /// The same eyes while the same directories are there, else new ones, or none where there is nothing to see.
    fn keep_open(eyes: Option<Eyes>, repository: &Repository, stirred: Arc<Notify>) -> Option<Eyes> {
        let places = repository.places().ok()?;
        let identify = |(path, _): &(PathBuf, bool)| {
            let found = std::fs::metadata(path).ok()?;
            Some((path.clone(), found.dev(), found.ino()))
        };
        let on: Vec<_> = places.iter().map(identify).collect::<Option<_>>()?;
        if eyes.as_ref().is_some_and(|eyes| eyes.on == on) {
            return eyes;
        }
        match Eyes::open(&places, move |_| stirred.notify_one()) {
            Ok(watcher) => Some(Eyes { _watcher: watcher, on }),
            Err(error) => {
                tracing::warn!(%error, path = %repository.source().address, "cannot watch the repository, looking each second");
                None
            }
        }
    }

    /// Calls `stir` for each event that may be a moved branch.
    fn open(
        places: &[(PathBuf, bool)],
        stir: impl Fn(notify::Event) + Send + 'static,
    ) -> notify::Result<RecommendedWatcher> {
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
                // Reading is an event too, and we read: without this a look would cause the next one.
                Ok(event) if !matches!(event.kind, EventKind::Access(_)) => stir(event),
                _ => {}
            })?;
        for (path, below) in places {
            let mode = if *below { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            watcher.watch(path, mode)?;
        }
        Ok(watcher)
    }
}

#[cfg(test)]
mod tests;
