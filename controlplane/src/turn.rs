//! Whose turn it is: of the control planes of a cluster one serves, the others stand by.
//!
//! Who leads by the store serves. While nobody can lead, because the store's servers are away or take nothing more,
//! whoever served last goes on, and does so after a restart too: a lost store takes nothing from the proxies.
//!
//! One serves and not all, since who lives in the cluster, what proxies have acknowledged and what other clusters offer
//! are then one process's to know, and `wait` has one word to go by. A control plane has work for a moment after each
//! change, and proxies go on without any.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    store::{Leading, Store, StoreError},
    vault::{Vault, VaultError},
};

/// Between two tries to learn from the store who served last.
const AGAIN: Duration = Duration::from_secs(1);

/// See the module.
pub struct Turn {
    store: Arc<dyn Store>,
    leading: Leading,
    vault: Arc<Vault>,
    rival: watch::Receiver<Option<String>>,
}

impl Turn {
    /// The turns of the process that holds `store`.
    pub fn new(store: Arc<dyn Store>, leading: Leading, vault: Arc<Vault>) -> Self {
        let rival = store.rival();
        Turn { store, leading, vault, rival }
    }

    /// Who serves instead, as far as is known.
    pub fn rival(&self) -> watch::Receiver<Option<String>> {
        self.rival.clone()
    }

    /// Waits until it is this one's turn, with the files of who served last. Whether that was another one: of who came to it
    /// while the store was away, nobody has told.
    pub async fn comes(&mut self) -> Result<bool, VaultError> {
        let (mut away, mut barred) = (self.store.away(), self.store.barred());
        loop {
            let rival = self.rival.borrow_and_update().clone();
            let nobody_can = away.borrow_and_update().is_some() | *barred.borrow_and_update();
            if self.leading.now().is_some() {
                match self.begin().await {
                    Err(VaultError::Store(error @ (StoreError::Failed(_) | StoreError::Full(_)))) => {
                        tracing::warn!(%error, "waiting for the store");
                        tokio::time::sleep(AGAIN).await;
                        continue;
                    }
                    begun => return begun,
                }
            }
            if let Some(rival) = rival {
                self.vault.retire()?;
                tracing::info!(
                    leader = rival,
                    "another control plane of this cluster serves; this one stands by"
                );
            } else if nobody_can && self.vault.served_last()? {
                tracing::warn!("the store is away, or lets nobody lead: serving what was in force here last");
                return Ok(false);
            }
            tokio::select! {
                () = self.leading.changed() => {}
                Ok(()) = self.rival.changed() => {}
                Ok(()) = away.changed() => {}
                Ok(()) = barred.changed() => {}
            }
        }
    }

    async fn begin(&self) -> Result<bool, VaultError> {
        let took_over = self.vault.begin().await?;
        if took_over {
            tracing::info!("took over from another control plane of this cluster");
        }
        Ok(took_over)
    }

    /// Waits until another one serves, or has served meanwhile.
    pub async fn ends(&mut self) {
        loop {
            if self.rival.borrow_and_update().is_some() {
                return;
            }
            let term = self.term();
            tokio::select! {
                () = self.leading.changed() => {}
                Ok(()) = self.rival.changed() => {}
            }
            if self.term().is_some_and(|now| Some(now) != term) && !self.is_own().await {
                return;
            }
        }
    }

    fn term(&self) -> Option<u64> {
        self.leading.now().map(|election| election.term())
    }

    async fn is_own(&self) -> bool {
        loop {
            match self.vault.is_own().await {
                Ok(own) => return own,
                Err(error) => {
                    tracing::warn!(%error, "it is not known yet who served last");
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
