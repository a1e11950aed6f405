//! Who leads, as the parts of one control plane know it: they wait for a leadership and give it up together.

use std::{sync::Arc, time::Duration};

use process::shutdown::Shutdown;
use tokio::sync::watch;

use super::{Election, Store};

/// Between two tries to stand for election.
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
