//! Watches a source: the file system tells at once, a look each second catches what it does not tell.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{Observation, Repository};

/// For what the file system does not tell: network file systems, a repository that comes back.
const POLL: Duration = Duration::from_secs(1);
/// One `git commit` makes a dozen events; a push of many branches many more.
const DEBOUNCE: Duration = Duration::from_millis(4);

/// Keeps `observed` at what the source's branch is at, until `shutdown`. It changes only when the observation does.
pub async fn watch(
    repository: Arc<Repository>,
    observed: watch::Sender<Option<Observation>>,
    shutdown: CancellationToken,
) {
    watch_every(POLL, repository, observed, shutdown).await;
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
        let Ok((open, observation)) = tokio::task::spawn_blocking(move || {
            // Eyes first: what moves between the two is then seen by one of them.
            let open = Eyes::keep_open(eyes, &repository, stirred);
            (open, repository.head().map_or_else(Observation::Trouble, Observation::At))
        })
        .await
        else {
            return; // The process is ending: nothing else stops such a task.
        };
        eyes = open;
        observed.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&observation);
            *now = Some(observation);
            changed
        });
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
                tracing::warn!(%error, path = %repository.source().path.display(), "cannot watch the repository, looking each second");
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
