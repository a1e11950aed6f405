//! A store at servers, backed by a file beside the process: what is in force is kept here too, so that a control plane
//! serves and restarts while its servers are away.
//!
//! What must be agreed on (the head, who leads) is the servers' alone. Blobs are the same wherever they lie. Of
//! registrations this process's own are the truth here; the servers catch up by heartbeats when they are back.
//!
//! Invariant: a head is told once everything that it names is in the file.

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use api::{
    digest::Hash,
    head::{Seq, SignedHead},
    name::InstanceId,
};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Conflict, Election, Embedded, Registration, Store, StoreError, missing};

/// How long a start waits for the servers before it goes by the file.
const PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries to fetch what a head names.
const AGAIN: Duration = Duration::from_millis(500);

/// See the module.
pub struct Backed {
    both: Arc<Both>,
    /// Follows the servers' head for as long as the store is held.
    _follower: AbortOnDropHandle<()>,
}

struct Both {
    far: Arc<dyn Store>,
    near: Embedded,
    /// To write the file.
    own: Election,
    head: watch::Sender<Option<SignedHead>>,
}

impl Backed {
    /// `far`, backed by `near`.
    pub async fn new(far: Arc<dyn Store>, near: Embedded) -> Result<Self, StoreError> {
        let own = near.campaign().await?;
        let head = watch::Sender::new(near.head().await?);
        let both = Arc::new(Both { far, near, own, head });
        let follower = tokio::spawn(both.clone().follow());
        Ok(Backed { both, _follower: AbortOnDropHandle::new(follower) })
    }

    fn far(&self) -> &dyn Store {
        &*self.both.far
    }

    /// Whether it is worth asking the servers for what they may learn later.
    fn is_there(&self) -> bool {
        self.far().away().borrow().is_none()
    }
}

impl Both {
    async fn get(&self, hashes: Vec<Hash>) -> Result<Vec<Option<Bytes>>, StoreError> {
        let mut blobs = self.near.get(hashes.clone()).await?;
        let lacking: Vec<_> =
            hashes.iter().zip(&blobs).filter(|(_, blob)| blob.is_none()).map(|(hash, _)| *hash).collect();
        if lacking.is_empty() {
            return Ok(blobs);
        }
        let fetched = self.far.get(lacking).await?;
        self.near.put(fetched.iter().flatten().cloned().collect()).await?;
        let mut fetched = fetched.into_iter();
        for blob in blobs.iter_mut().filter(|blob| blob.is_none()) {
            *blob = fetched.next().flatten();
        }
        Ok(blobs)
    }

    /// Brings each head of the servers here, and then tells of it.
    async fn follow(self: Arc<Self>) {
        let mut heads = self.far.watch_head();
        loop {
            let head = heads.borrow_and_update().clone();
            let kept = match head {
                Some(head) => self.keep(head).await,
                None => Ok(()),
            };
            if let Err(error) = &kept {
                tracing::warn!(%error, "the head in force could not be kept here");
            }
            tokio::select! {
                changed = heads.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN), if kept.is_err() => heads.mark_changed(),
            }
        }
    }

    async fn keep(&self, head: SignedHead) -> Result<(), Conflict> {
        if let Some(revision) = &head.head().stable {
            loop {
                let lacking = missing(&self.near, revision).await?;
                if lacking.is_empty() {
                    break;
                }
                if let Some(gone) =
                    lacking.iter().zip(self.get(lacking.clone()).await?).find(|(_, one)| one.is_none())
                {
                    return Err(StoreError::Missing(*gone.0).into());
                }
            }
        }
        let expected = self.near.head().await?.map(|head| head.head().seq());
        match self.near.compare_and_swap_head(expected, head.clone(), &self.own).await {
            Ok(()) => drop(self.head.send_replace(Some(head))),
            // The servers are behind, after a restore: what is in force here stays.
            Err(Conflict::NotLater { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Store for Backed {
    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>> {
        async {
            let hashes = self.far().put(blobs.clone()).await?;
            self.both.near.put(blobs).await?;
            Ok(hashes)
        }
        .boxed()
    }

    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>> {
        self.both.get(hashes).boxed()
    }

    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        self.far().has(hashes)
    }

    fn head(&self) -> Answer<'_, Option<SignedHead>> {
        self.far().head()
    }

    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>> {
        self.far().heads(limit)
    }

    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>> {
        self.both.head.subscribe()
    }

    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.far().compare_and_swap_head(expected, next, guard)
    }

    fn campaign(&self) -> Answer<'_, Election> {
        self.far().campaign()
    }

    fn resign(&self) -> Answer<'_, ()> {
        self.far().resign()
    }

    fn rival(&self) -> watch::Receiver<Option<String>> {
        self.far().rival()
    }

    /// Of registrations the servers' are the truth then.
    fn succeed(&self) -> Answer<'_, ()> {
        async {
            let old = self.both.near.registrations().await?;
            self.both.near.remove_registrations(old.into_iter().map(|one| one.instance).collect()).await
        }
        .boxed()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.far().away()
    }

    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>> {
        self.far().document(name)
    }

    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.far().keep_document(name, bytes, guard)
    }

    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict> {
        async move {
            let gone = self.far().sweep(live.clone(), oldest, guard).await?;
            self.both.near.sweep(live, oldest, &self.both.own).await?;
            Ok(gone)
        }
        .boxed()
    }

    fn put_registration(&self, registration: Registration) -> Answer<'_, ()> {
        async move {
            self.both.near.put_registration(registration.clone()).await?;
            if self.is_there()
                && let Err(error) = self.far().put_registration(registration).await
            {
                tracing::warn!(%error, "the store learns of a registration later");
            }
            Ok(())
        }
        .boxed()
    }

    /// The servers' and the file's: one that is long gone loses its lease again, one that is forgotten is lost.
    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        async {
            let mut all = self.both.near.registrations().await?;
            match tokio::time::timeout(PATIENCE, self.far().registrations()).await {
                Ok(Ok(far)) => all.extend(far),
                Ok(Err(error)) => tracing::warn!(%error, "going by the registrations that are kept here"),
                Err(_) => tracing::warn!("no answer in time: going by the registrations that are kept here"),
            }
            all.sort_by(|a, b| (&a.instance, b.beat_ms).cmp(&(&b.instance, a.beat_ms)));
            all.dedup_by(|a, b| a.instance == b.instance);
            Ok(all)
        }
        .boxed()
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        async move {
            self.both.near.remove_registrations(instances.clone()).await?;
            if self.is_there()
                && let Err(error) = self.far().remove_registrations(instances).await
            {
                tracing::warn!(%error, "the store forgets registrations later");
            }
            Ok(())
        }
        .boxed()
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.far().beat(instances, now_ms)
    }
}

#[cfg(test)]
mod tests;
