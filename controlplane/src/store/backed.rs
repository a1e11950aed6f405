//! A store at servers, backed by a file beside the process: what is in force is kept here too, so that a control plane
//! serves and restarts while its servers are away.
//!
//! What must be agreed on (the head, who leads) is the servers' alone. Blobs are the same wherever they lie. Of
//! registrations this process's own are the truth here, and the file notes which of them the servers have not been told;
//! who takes over from another process begins with the servers', and has to wait for them.
//!
//! Invariant: a head is told once everything that it names is in the file.
//! Invariant: what was changed here while the servers were away is neither lost nor undone by what they have.

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
use tokio::sync::{Mutex, RwLock, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{Answer, Conflict, Election, Embedded, Registration, Store, StoreError, forget_old, missing};

/// How long a start waits for the servers before it goes by the file.
const PATIENCE: Duration = Duration::from_secs(1);
/// Registrations that the servers are told at a time, while changes of others wait.
const AT_A_TIME: usize = 64;
/// Between two tries to fetch what a head names, or who lives here.
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
    /// Heads come here one at a time.
    keeping: Mutex<()>,
    /// Held by who changes a registration here and there; alone by who makes up for it.
    telling: RwLock<()>,
}

impl Backed {
    /// `far`, backed by `near`.
    pub async fn new(far: Arc<dyn Store>, near: Embedded) -> Result<Self, StoreError> {
        let own = near.campaign().await?;
        let head = watch::Sender::new(near.head().await?);
        let both =
            Arc::new(Both { far, near, own, head, keeping: Mutex::default(), telling: RwLock::default() });
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
        let mut swept = self.head.borrow().as_ref().map(|head| head.head().seq());
        loop {
            let head = heads.borrow_and_update().clone();
            let kept = match head {
                Some(head) => self.keep(head).await,
                None => Ok(()),
            };
            self.forget(&mut swept).await;
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
        let _alone = self.keeping.lock().await;
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
            Ok(()) => self.tell(Some(head)),
            // The servers are behind, after a restore: what is in force here stays. Or it was kept before, be it that it was
            // said to have failed, and nobody was told.
            Err(Conflict::NotLater { .. }) => self.tell(self.near.head().await?),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn tell(&self, head: Option<SignedHead>) {
        let seq = |head: &Option<SignedHead>| head.as_ref().map(|head| head.head().seq());
        self.head.send_if_modified(|known| {
            let is_news = seq(known) < seq(&head);
            if is_news {
                *known = head;
            }
            is_news
        });
    }

    /// Who stands by has nobody else to do this. What goes although it is about to be named comes again.
    async fn forget(&self, swept: &mut Option<Seq>) {
        let _alone = self.keeping.lock().await;
        let now = self.head.borrow().as_ref().map(|head| head.head().seq());
        if let Some(now) = now {
            forget_old(&self.near, *swept, now, &self.own).await;
        }
        *swept = now;
    }

    /// In turns with those who change more.
    async fn settle(&self) -> Result<(), StoreError> {
        loop {
            let _alone = self.telling.write().await;
            let untold = self.near.untold(AT_A_TIME).await?;
            let Some(instances) = some(untold.iter().map(|(instance, _)| instance.clone())) else {
                return Ok(());
            };
            if let Some(gone) = some(untold.iter().filter(|one| one.1.is_none()).map(|one| one.0.clone())) {
                self.far.remove_registrations(gone).await?;
            }
            for here in untold.into_iter().filter_map(|(_, here)| here) {
                self.far.put_registration(here).await?;
            }
            self.near.told(instances).await?;
        }
    }

    /// The servers' registrations, which alone count; there is no going on without.
    async fn take_over(&self) -> Result<Vec<Registration>, StoreError> {
        loop {
            match self.far.registrations().await {
                Ok(all) => {
                    self.near.adopt(all.clone()).await?;
                    return Ok(all);
                }
                Err(error @ (StoreError::Failed(_) | StoreError::Full(_))) => {
                    tracing::warn!(%error, "waiting for the store's word on who lives here");
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The servers' and the file's; of what they have not been told, the file's alone. One that is long gone loses its
    /// lease again, one that is forgotten is lost.
    async fn known(&self) -> Result<Vec<Registration>, StoreError> {
        let mut all = self.near.registrations().await?;
        let untold = self.near.untold(usize::MAX).await?;
        let untold: HashSet<_> = untold.into_iter().map(|(instance, _)| instance).collect();
        match tokio::time::timeout(PATIENCE, self.far.registrations()).await {
            Ok(Ok(far)) => all.extend(far.into_iter().filter(|one| !untold.contains(&one.instance))),
            Ok(Err(error)) => tracing::warn!(%error, "going by the registrations that are kept here"),
            Err(_) => tracing::warn!("no answer in time: going by the registrations that are kept here"),
        }
        all.sort_by(|a, b| (&a.instance, b.beat_ms).cmp(&(&b.instance, a.beat_ms)));
        all.dedup_by(|a, b| a.instance == b.instance);
        Ok(all)
    }
}

/// All of them, if there are any.
fn some<T>(all: impl Iterator<Item = T>) -> Option<Vec<T>> {
    let all: Vec<_> = all.collect();
    (!all.is_empty()).then_some(all)
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

    fn hold<'a>(&'a self, head: &'a SignedHead) -> Answer<'a, (), Conflict> {
        self.both.keep(head.clone()).boxed()
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
        self.both.near.void()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.far().away()
    }

    fn barred(&self) -> watch::Receiver<bool> {
        self.far().barred()
    }

    fn settle(&self) -> Answer<'_, ()> {
        self.both.settle().boxed()
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
            let _telling = self.both.telling.read().await;
            let instance = registration.instance.clone();
            self.both.near.put_owing(registration.clone()).await?;
            if !self.is_there() {
                return Ok(());
            }
            match self.far().put_registration(registration).await {
                Ok(()) => self.both.near.told(vec![instance]).await,
                Err(error) => {
                    tracing::warn!(%error, "the store learns of a registration later");
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        async {
            match self.both.near.is_void().await? {
                true => self.both.take_over().await,
                false => self.both.known().await,
            }
        }
        .boxed()
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        async move {
            let _telling = self.both.telling.read().await;
            self.both.near.remove_owing(instances.clone()).await?;
            if !self.is_there() {
                return Ok(());
            }
            match self.far().remove_registrations(instances.clone()).await {
                Ok(()) => self.both.near.told(instances).await,
                Err(error) => {
                    tracing::warn!(%error, "the store forgets registrations later");
                    Ok(())
                }
            }
        }
        .boxed()
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.far().beat(instances, now_ms)
    }
}

#[cfg(test)]
mod tests;
