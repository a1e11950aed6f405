//! Who leads, as the parts of one control plane know it: they wait for a leadership and give it up together.

use std::{sync::Arc, time::Duration};

use api::head::SignedHead;
use process::shutdown::Shutdown;
use tokio::sync::watch;

use super::{Election, Store, StoreError};

/// Between two tries to reach a store that does not answer.
const AGAIN: Duration = Duration::from_secs(1);
/// Whoever cannot say that it resigns lets its lease run out.
const RESIGN_LIMIT: Duration = Duration::from_secs(1);

/// Whether this process leads, now and later.
#[derive(Clone)]
pub struct Leading(watch::Receiver<Option<Arc<Election>>>);

impl Leading {
    /// A leadership that lasts for as long as the election does.
    pub fn by(election: Election) -> Self {
        Leading(watch::Sender::new(Some(Arc::new(election))).subscribe())
    }

    /// No leadership, ever.
    #[cfg(test)]
    pub(crate) fn none() -> Self {
        Leading(watch::Sender::default().subscribe())
    }

    /// The leadership, if there is one.
    pub fn now(&self) -> Option<Arc<Election>> {
        self.0.borrow().clone()
    }

    /// Waits until a leadership begins or ends. Never, once nobody stands any more.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Waits until this process leads. Never, once nobody stands any more.
    pub async fn begun(&mut self) -> Arc<Election> {
        match self.0.wait_for(Option::is_some).await.ok().and_then(|held| held.clone()) {
            Some(election) => election,
            None => std::future::pending().await,
        }
    }
}

/// The head in force. Who leads goes by no older one than the store's: another one may have moved it. While the store
/// does not answer, the one that is known here; a first start has to wait.
pub async fn in_force(store: &dyn Store, leading: &Leading) -> Result<Option<SignedHead>, StoreError> {
    let mut heads = store.watch_head();
    loop {
        let known = heads.borrow_and_update().clone();
        if known.is_some() && leading.now().is_none() {
            return Ok(known);
        }
        match store.head().await {
            Ok(head) => {
                let seq = |head: &Option<SignedHead>| head.as_ref().map(|head| head.head().seq());
                if seq(&known) >= seq(&head) {
                    return Ok(known);
                }
                // It is on its way here.
                tokio::select! {
                    _ = heads.changed() => {}
                    () = tokio::time::sleep(AGAIN) => {}
                }
            }
            Err(StoreError::Failed(_) | StoreError::Full(_)) if known.is_some() => return Ok(known),
            Err(error @ (StoreError::Failed(_) | StoreError::Full(_))) => {
                tracing::warn!(%error, "waiting for the store");
                tokio::time::sleep(AGAIN).await;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Stands for election again and again until `shutdown`.
pub fn lead(store: Arc<dyn Store>, shutdown: &Shutdown) -> Leading {
    let (leads, leading) = watch::channel(None);
    shutdown.spawn("election", stand(store, leads, shutdown.clone()));
    Leading(leading)
}

async fn stand(store: Arc<dyn Store>, leads: watch::Sender<Option<Arc<Election>>>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            won = store.campaign() => match won {
                Ok(election) => drop(leads.send_replace(Some(Arc::new(election)))),
                Err(error) => {
                    tracing::warn!(%error, "cannot stand for election");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            },
        }
        let Some(election) = leads.borrow().clone() else { continue };
        tokio::select! {
            () = election.lost() => drop(leads.send_replace(None)),
            () = shutdown.cancelled() => {
                let _ = tokio::time::timeout(RESIGN_LIMIT, store.resign()).await;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use api::head::Head;
    use futures_util::FutureExt;

    use super::*;
    use crate::{commits::tests::revision, store::scripted::Scripted};

    /// More than any task needs to have heard of something.
    const PATIENCE: Duration = Duration::from_secs(10);

    async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
        tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
    }

    #[tokio::test]
    async fn a_leadership_is_known_to_all_who_wait_for_it_and_one_that_is_lost_to_nobody() {
        let (store, shutdown) = (Scripted::new(), Shutdown::new());
        let mut leading = lead(store.clone(), &shutdown);
        assert!(leading.now().is_none());
        assert!(leading.changed().now_or_never().is_none());
        assert!(leading.begun().now_or_never().is_none());
        let lost = store.elect();
        let won = soon("it leads", leading.begun()).await;
        assert_eq!(leading.now().map(|election| election.term()), Some(won.term()));
        assert!(soon("that it leads is a change", leading.changed()).now_or_never().is_none());
        drop(won);
        lost.cancel();
        soon("it leads no more", leading.changed()).await;
        assert!(leading.now().is_none());
        store.elect();
        let again = soon("it stands again", leading.begun()).await;
        assert_eq!((again.term(), store.resigned()), (2, 0));
        shutdown.drain(PATIENCE).await.unwrap();
        assert_eq!(store.resigned(), 1, "who ends says so to the others");
        assert!(leading.changed().now_or_never().is_none(), "nobody stands any more");
    }

    #[tokio::test]
    async fn who_ends_without_a_leadership_has_none_to_resign() {
        let (store, shutdown) = (Scripted::new(), Shutdown::new());
        let leading = lead(store.clone(), &shutdown);
        shutdown.drain(PATIENCE).await.unwrap();
        assert!(leading.now().is_none());
        assert_eq!(store.resigned(), 0);
    }

    #[tokio::test]
    async fn who_leads_goes_by_what_is_in_the_store_and_who_does_not_by_what_it_knows() {
        let (store, none) = (Scripted::new(), Leading::none());
        store.tell(None);
        assert!(in_force(&*store, &none).now_or_never().unwrap().unwrap().is_none(), "a first start");
        let seal = |head: Head| SignedHead::seal(head, |_| (vec![], vec![]));
        let first = seal(Head::first(1).next(revision("a.")));
        let second = seal(first.head().next(revision("b.")));
        let guard = store.election();
        store.compare_and_swap_head(None, first.clone(), &guard).await.unwrap();
        let known = |found: Option<Result<_, StoreError>>| found.map(Result::unwrap);
        assert_eq!(known(in_force(&*store, &none).now_or_never()), None, "it waits for what is there");
        store.tell(Some(first.clone()));
        assert_eq!(known(in_force(&*store, &none).now_or_never()), Some(Some(first.clone())));

        // Another one has moved it.
        store.compare_and_swap_head(Some(first.head().seq()), second.clone(), &guard).await.unwrap();
        assert_eq!(known(in_force(&*store, &none).now_or_never()), Some(Some(first.clone())));
        let leads = Leading::by(guard);
        let mut waits = std::pin::pin!(in_force(&*store, &leads));
        assert_eq!(known(waits.as_mut().now_or_never()), None);
        store.set_away(true);
        assert_eq!(known(in_force(&*store, &leads).now_or_never()), Some(Some(first)), "nobody can say more");
        store.set_away(false);
        store.tell(Some(second.clone()));
        assert_eq!(known(soon("it is told", waits.map(Some)).await), Some(Some(second)));

        // Who knows nothing waits for a store that is away.
        store.tell(None);
        store.set_away(true);
        for leading in [&none, &leads] {
            assert_eq!(known(in_force(&*store, leading).now_or_never()), None);
        }
    }
}
