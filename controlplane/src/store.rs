//! Stage 3: what was accepted, kept durably, and the one head that says what is in force.
//!
//! A [`Store`] keeps immutable blobs by their hash, the heads in their order, the registrations of workloads, and what
//! the control planes of a cluster share besides (documents).
//! [`write_revision`] and its neighbours build revisions out of blobs and are the same over every store.
//!
//! Invariant: what is in force changes only by [`Store::compare_and_swap_head`], and only for the holder of an
//! [`Election`], so a reader never sees half of a commit.

use std::{any::Any, collections::HashSet, time::SystemTime};

use api::digest::Hash;
use api::head::{Seq, SignedHead};
use api::name::InstanceId;
use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

mod backed;
mod embedded;
pub(crate) mod etcd;
mod leading;
mod revision;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod suite;

pub use backed::Backed;
pub use embedded::Embedded;
pub use etcd::{Connect, Etcd, EtcdSettings};
pub use leading::{Leading, in_force, lead};
#[cfg(test)]
pub(crate) use revision::retain;
pub use revision::{Entry, Position, Stored, forget_old, missing, read_revision, write_revision};

/// One blob. A resource comes from a file of at most 4 MiB; a manifest line takes some 200 bytes.
pub const MAX_BLOB_BYTES: usize = 32 * 1024 * 1024;
/// What a workload says of itself.
pub const MAX_REGISTRATION_BYTES: usize = 64 * 1024;
/// Workloads of one cluster.
pub const MAX_REGISTRATIONS: usize = 100_000;
/// How many heads, and so revisions, stay for going back and for comparing.
pub const KEPT_HEADS: usize = 100;

/// What a store answers later.
pub type Answer<'a, T, E = StoreError> = BoxFuture<'a, Result<T, E>>;

/// Where a control plane keeps what must outlive it. Times are milliseconds since 1970, given by the caller.
///
/// An answer means durable, except for [`Store::beat`]: a lost heartbeat is made good by the next one.
pub trait Store: Send + Sync + 'static {
    /// Keeps `blobs`; gives their hashes in the same order. What is there already is not written again.
    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>>;

    /// The blobs of `hashes` in the same order, checked against their hash.
    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>>;

    /// Which of `hashes` are here, in the same order.
    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>>;

    /// The head in force.
    fn head(&self) -> Answer<'_, Option<SignedHead>>;

    /// The last `limit` heads, newest first.
    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>>;

    /// The head in force, and each later one as it comes (skipping to the newest).
    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>>;

    /// Puts `next` into force if the head is still `expected`, `next` is later, and `guard` still leads.
    ///
    /// A [`StoreError`] says nothing of whether it did: its answer may be what was lost.
    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict>;

    /// Sees to it that a restart of this process goes by `head` too, which is in force, though nobody answers then. Who obeys a
    /// head before that may have to go back on it.
    fn hold<'a>(&'a self, _head: &'a SignedHead) -> Answer<'a, (), Conflict> {
        async { Ok(()) }.boxed()
    }

    /// Waits until this process leads. Dropping the [`Election`] resigns.
    fn campaign(&self) -> Answer<'_, Election>;

    /// Resigns, if this process leads, and waits until others can.
    fn resign(&self) -> Answer<'_, ()>;

    /// Who leads instead of this process, as far as is known: where its admin API is. Never anybody, where nobody else
    /// could; and not this process's own earlier life, which it succeeds at once.
    fn rival(&self) -> watch::Receiver<Option<String>>;

    /// Another process led since this one did: what was kept beside this one is void.
    fn succeed(&self) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    /// Since when nobody answers; never, where nobody is asked.
    fn away(&self) -> watch::Receiver<Option<SystemTime>>;

    /// Whether nobody can lead although there is an answer: the servers are full, say.
    fn barred(&self) -> watch::Receiver<bool> {
        watch::channel(false).1
    }

    /// Tells the servers of the registrations that they could not be told of when they changed. For who leads alone, and
    /// has made sure that nobody has served since it did.
    fn settle(&self) -> Answer<'_, ()> {
        async { Ok(()) }.boxed()
    }

    /// A document, by its name.
    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>>;

    /// Replaces a document by another of at most [`MAX_BLOB_BYTES`], whole and at once, if `guard` still leads.
    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict>;

    /// Forgets all blobs but `live` and all heads before `oldest`; says how many blobs went. Documents stay.
    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict>;

    /// Keeps what a workload says of itself, with its first heartbeat.
    fn put_registration(&self, registration: Registration) -> Answer<'_, ()>;

    /// All workloads, sorted by instance.
    fn registrations(&self) -> Answer<'_, Vec<Registration>>;

    /// Forgets workloads; unknown ones are no error.
    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()>;

    /// Notes heartbeats; gives back the instances that are not registered, which must register anew.
    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>>;
}

/// Why a store did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Another process has it.
    #[error(
        "{0} is open in another control plane: stop that one, or give this one a state directory of its own"
    )]
    Busy(String),
    /// Its content is not what was written.
    #[error("the store is damaged: {0}; restore it from a backup, or move it away to begin a new epoch")]
    Damaged(String),
    /// It was written by a later version.
    #[error("the store has format {found}, this version knows {known}: run the version that wrote it")]
    Newer {
        /// The format found.
        found: u64,
        /// The format of this version.
        known: u64,
    },
    /// The medium or the server behind it failed.
    #[error("the store does not answer: {0}; is the disk full, or its server away?")]
    Failed(String),
    /// The server takes no more.
    #[error("the store is full ({0}); compact and defragment etcd or raise its quota, then disarm its alarm")]
    Full(String),
    /// Something is larger than a limit.
    #[error("{what} of {size} is over the limit of {limit}")]
    TooLarge {
        /// What it is.
        what: &'static str,
        /// How large it is.
        size: usize,
        /// How large it may be.
        limit: usize,
    },
    /// Two resources of one revision have the same key.
    #[error("two resources have the key `{0}`")]
    Twice(String),
    /// A blob that the revision names is not here.
    #[error("blob {0} is missing from the store")]
    Missing(Hash),
}

impl StoreError {
    fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), Self> {
        if size > limit { Err(StoreError::TooLarge { what, size, limit }) } else { Ok(()) }
    }
}

/// Why the head did not move.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Conflict {
    /// Somebody moved it before.
    #[error("the head has moved{}: read it and decide again", .found.map(|seq| format!(" to {seq}")).unwrap_or_default())]
    Moved {
        /// Where it is now.
        found: Option<Seq>,
    },
    /// The next head is not later than the one in force.
    #[error("head {next} is not later than {found}, which is in force")]
    NotLater {
        /// The head in force.
        found: Seq,
        /// The head that was to follow.
        next: Seq,
    },
    /// The election was lost.
    #[error("this control plane does not lead any more")]
    NotLeader,
    /// The store itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The proof that this process leads, as long as it is held and not lost.
pub struct Election {
    /// Counts leaderships.
    term: u64,
    /// Ends when somebody else may lead.
    lost: CancellationToken,
    /// What holds the leadership: a permit here, a lease at a server.
    held: Box<dyn Any + Send + Sync>,
}

impl Election {
    /// Which leadership this is.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Waits until this process does not lead any more. Never, where nobody else could.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }
}

/// A workload instance as the registry keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// One life of a workload.
    pub instance: InstanceId,
    /// What it says of itself; opaque here.
    pub bytes: Bytes,
    /// When it was last heard of.
    pub beat_ms: u64,
}
