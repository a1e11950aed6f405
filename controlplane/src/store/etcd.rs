//! The store of a cluster's control planes: etcd, under one prefix.
//!
//! ```text
//! PREFIX/format                     the layout, 1
//! PREFIX/head                       the head in force
//! PREFIX/heads/EPOCH.N              each head, in order
//! PREFIX/blob/HASH                  a blob, or how many chunks it has
//! PREFIX/chunk/HASH/I               the chunks of a large blob
//! PREFIX/leader                     who leads, for as long as its lease lives
//! PREFIX/document/NAME              the hash of the blob that it is
//! PREFIX/registration/INSTANCE      what a workload says of itself
//! PREFIX/beat/INSTANCE              when it was last heard of
//! ```
//!
//! Every request stays below etcd's own limits (1.5 MiB, 128 operations). What spans several requests is invisible until
//! its last one: a large blob until its root is there, a revision until the head names it.
//!
//! Invariant: the head moves, and blobs go, only in transactions that find the leader's own value at `PREFIX/leader`.
//! Invariant: the head that is told never goes back, whatever the server holds after a restore. The leader steps down
//! then; who leads next finds the server behind what it knows and begins a new epoch.

mod blobs;
mod documents;
mod election;
mod heads;
mod registrations;
mod server;

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use api::{
    digest::Hash,
    head::{Seq, SignedHead},
    name::InstanceId,
};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

pub use self::server::Connect;
use self::server::Server;
use super::{Answer, Conflict, Election, Registration, Store};

/// Where the servers are, and what they ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// The members' URLs, `http` or `https`.
    pub endpoints: Vec<String>,
    /// What all keys begin with; no other mesh and no other cluster may use it.
    pub prefix: String,
    /// The certificates that the servers' are checked against (PEM).
    pub ca: Option<PathBuf>,
    /// The client certificate and its key (PEM).
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// The user, and the file with its password.
    pub user: Option<(String, PathBuf)>,
    /// What this control plane is called by others that would lead: where its admin API is, or its machine. No other one
    /// has that name.
    pub holder: String,
}

/// A [`Store`] in etcd.
pub struct Etcd {
    core: Arc<Core>,
    /// Follows the head for as long as the store is held.
    _follower: AbortOnDropHandle<()>,
}

/// What the store and its tasks share.
struct Core {
    server: Server,
    prefix: String,
    head: watch::Sender<Option<SignedHead>>,
    away: watch::Sender<Option<SystemTime>>,
    /// The end of this process's leadership, and its lease.
    leads: Mutex<Option<(CancellationToken, i64)>>,
    /// Who leads instead.
    rival: watch::Sender<Option<String>>,
    /// Whether the last try to lead failed.
    barred: watch::Sender<bool>,
    /// What this process is called as a leader, its earlier lives too, and what they are not.
    holder: (String, String),
    /// Held by who writes a blob that nothing names yet, and by who forgets such.
    sweeping: tokio::sync::Mutex<()>,
}

impl Etcd {
    /// The store behind `settings`. Asks nothing yet: the servers may be away, and come later.
    pub fn open(settings: EtcdSettings) -> Self {
        Etcd::through(settings, server::by_machine())
    }

    /// The same over another network than the machine's.
    pub fn through(settings: EtcdSettings, connect: Connect) -> Self {
        let core = Arc::new(Core {
            prefix: settings.prefix.trim_end_matches('/').to_owned(),
            holder: (settings.holder.clone(), election::nonce()),
            server: Server::new(settings, connect),
            head: watch::Sender::default(),
            away: watch::Sender::default(),
            leads: Mutex::default(),
            rival: watch::Sender::default(),
            barred: watch::Sender::default(),
            sweeping: tokio::sync::Mutex::default(),
        });
        let follower = tokio::spawn(core.clone().follow());
        Etcd { core, _follower: AbortOnDropHandle::new(follower) }
    }
}

impl Core {
    fn key(&self, rest: &str) -> String {
        format!("{}/{rest}", self.prefix)
    }

    /// Takes `head` for the one in force unless a later one is known; says whether that one is later.
    fn learn(&self, head: Option<SignedHead>) -> bool {
        let mut behind = false;
        self.head.send_if_modified(|known| {
            let order = head
                .as_ref()
                .map(|head| head.head().seq())
                .cmp(&known.as_ref().map(|known| known.head().seq()));
            behind = order.is_lt();
            if order.is_gt() {
                *known = head;
            }
            order.is_gt()
        });
        behind
    }

    fn set_away(&self, away: bool) {
        self.away.send_if_modified(|since| {
            let news = since.is_some() != away;
            if news {
                *since = away.then(SystemTime::now);
            }
            news
        });
    }

    fn leads(&self) -> std::sync::MutexGuard<'_, Option<(CancellationToken, i64)>> {
        self.leads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends this process's leadership, if it leads; gives its lease.
    fn step_down(&self) -> Option<i64> {
        let (lost, lease) = self.leads().take()?;
        lost.cancel();
        Some(lease)
    }
}

impl Store for Etcd {
    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>> {
        self.core.put(blobs).boxed()
    }

    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>> {
        self.core.get(hashes).boxed()
    }

    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        self.core.has(hashes).boxed()
    }

    fn head(&self) -> Answer<'_, Option<SignedHead>> {
        async { Ok(self.core.read_head().await?.head) }.boxed()
    }

    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>> {
        self.core.heads(limit).boxed()
    }

    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>> {
        self.core.head.subscribe()
    }

    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.core.swap_head(expected, next, guard).boxed()
    }

    fn campaign(&self) -> Answer<'_, Election> {
        async { Ok(self.core.clone().campaign().await) }.boxed()
    }

    fn resign(&self) -> Answer<'_, ()> {
        async {
            match self.core.step_down() {
                Some(lease) => self.core.revoke(lease).await,
                None => Ok(()),
            }
        }
        .boxed()
    }

    fn rival(&self) -> watch::Receiver<Option<String>> {
        self.core.rival.subscribe()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.core.away.subscribe()
    }

    fn barred(&self) -> watch::Receiver<bool> {
        self.core.barred.subscribe()
    }

    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>> {
        self.core.document(name).boxed()
    }

    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.core.keep_document(name, bytes, guard).boxed()
    }

    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict> {
        self.core.sweep(live, oldest, guard).boxed()
    }

    fn put_registration(&self, registration: Registration) -> Answer<'_, ()> {
        self.core.put_registration(registration).boxed()
    }

    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        self.core.registrations().boxed()
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.core.remove_registrations(instances).boxed()
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.core.beat(instances, now_ms).boxed()
    }
}

#[cfg(test)]
pub(crate) mod tests;
