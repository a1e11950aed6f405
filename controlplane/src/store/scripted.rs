//! A store for tests that decide who leads, who leads instead, and whether it is away. All else is as in the embedded one,
//! in memory: nothing waits.

use std::{
    collections::HashSet,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use api::{
    digest::Hash,
    head::{Seq, SignedHead},
    name::InstanceId,
};
use bytes::Bytes;
use futures_util::FutureExt;
use redb::backends::InMemoryBackend;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Answer, Conflict, Election, Embedded, Registration, Store, StoreError};

pub(crate) struct Scripted {
    store: Embedded,
    won: (mpsc::UnboundedSender<Election>, Mutex<mpsc::UnboundedReceiver<Election>>),
    rival: watch::Sender<Option<String>>,
    away: watch::Sender<Option<SystemTime>>,
    barred: watch::Sender<bool>,
    /// What who watches the head is told, where that is not what is in the store.
    told: OnceLock<watch::Sender<Option<SignedHead>>>,
    silent: AtomicBool,
    resigned: AtomicUsize,
    succeeded: AtomicUsize,
}

impl Scripted {
    pub(crate) fn new() -> Arc<Self> {
        let (winner, wins) = mpsc::unbounded_channel();
        Arc::new(Scripted {
            store: Embedded::over(InMemoryBackend::new).unwrap(),
            won: (winner, Mutex::new(wins)),
            rival: watch::Sender::default(),
            away: watch::Sender::default(),
            barred: watch::Sender::default(),
            told: OnceLock::new(),
            silent: AtomicBool::default(),
            resigned: AtomicUsize::new(0),
            succeeded: AtomicUsize::new(0),
        })
    }

    /// The next leadership; for it to come, the last one must be held no more.
    pub(crate) fn election(&self) -> Election {
        let held = self.store.campaign().now_or_never().expect("nobody leads").unwrap();
        Election { term: held.term(), lost: CancellationToken::new(), held: Box::new(held) }
    }

    /// Lets who stands for election win it; gives what ends that leadership.
    pub(crate) fn elect(&self) -> CancellationToken {
        let election = self.election();
        let lost = election.lost.clone();
        self.won.0.send(election).unwrap();
        lost
    }

    /// Says who leads instead.
    pub(crate) fn set_rival(&self, name: Option<&str>) {
        self.rival.send_replace(name.map(ToOwned::to_owned));
    }

    /// Says whether it answers.
    pub(crate) fn set_away(&self, away: bool) {
        self.away.send_replace(away.then_some(SystemTime::UNIX_EPOCH));
    }

    /// Says whether it lets nobody lead although it answers.
    pub(crate) fn set_barred(&self, barred: bool) {
        self.barred.send_replace(barred);
    }

    /// Tells who watches of a head, and of no other than those that are told so; in the store may be another one.
    pub(crate) fn tell(&self, head: Option<SignedHead>) {
        self.told.get_or_init(watch::Sender::default).send_replace(head);
    }

    /// Says whether it fails to say who is registered.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }

    /// How often somebody resigned.
    pub(crate) fn resigned(&self) -> usize {
        self.resigned.load(Ordering::Relaxed)
    }

    /// How often somebody succeeded another one.
    pub(crate) fn succeeded(&self) -> usize {
        self.succeeded.load(Ordering::Relaxed)
    }
}

impl Store for Scripted {
    fn campaign(&self) -> Answer<'_, Election> {
        async { Ok(self.won.1.lock().await.recv().await.expect("the sender is held here")) }.boxed()
    }

    fn resign(&self) -> Answer<'_, ()> {
        self.resigned.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }.boxed()
    }

    fn rival(&self) -> watch::Receiver<Option<String>> {
        self.rival.subscribe()
    }

    fn succeed(&self) -> Answer<'_, ()> {
        self.succeeded.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }.boxed()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.away.subscribe()
    }

    fn barred(&self) -> watch::Receiver<bool> {
        self.barred.subscribe()
    }

    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>> {
        if self.away.borrow().is_some() {
            return async { Err(StoreError::Failed("it is away".into())) }.boxed();
        }
        self.store.document(name)
    }

    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.store.keep_document(name, bytes, guard)
    }

    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>> {
        self.store.put(blobs)
    }

    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>> {
        self.store.get(hashes)
    }

    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        self.store.has(hashes)
    }

    fn head(&self) -> Answer<'_, Option<SignedHead>> {
        if self.away.borrow().is_some() {
            return async { Err(StoreError::Failed("it is away".into())) }.boxed();
        }
        self.store.head()
    }

    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>> {
        self.store.heads(limit)
    }

    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>> {
        self.told.get().map_or_else(|| self.store.watch_head(), watch::Sender::subscribe)
    }

    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.store.compare_and_swap_head(expected, next, guard)
    }

    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict> {
        self.store.sweep(live, oldest, guard)
    }

    fn put_registration(&self, registration: Registration) -> Answer<'_, ()> {
        self.store.put_registration(registration)
    }

    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        if self.silent.load(Ordering::Relaxed) {
            return async { Err(StoreError::Failed("it is silent".into())) }.boxed();
        }
        self.store.registrations()
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.store.remove_registrations(instances)
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.store.beat(instances, now_ms)
    }
}
