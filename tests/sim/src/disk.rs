//! The disk below a store: what was synced survives, of the rest an arbitrary part; and the time that it takes.
//!
//! Files of the state directory need none of this: each is written whole, synced, and renamed.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use api::{
    digest::Hash,
    head::{Seq, SignedHead},
    name::InstanceId,
};
use bytes::Bytes;
use controlplane::store::{Answer, Conflict, Election, Embedded, Registration, Store, StoreError};
use futures_util::FutureExt;
use process::world::World;
use redb::StorageBackend;
use tokio::sync::watch;

use crate::{chance::Chance, network::Outlook};

/// The longest that one operation takes before, and again after, it is done.
const LATENCY: Duration = Duration::from_millis(3);

/// One disk, whoever has it open.
#[derive(Debug, Clone)]
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
    /// While it is full it takes nothing.
    pub full: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Platter {
    chance: Chance,
    /// What a reader sees.
    seen: Vec<u8>,
    /// What survives.
    synced: Vec<u8>,
    /// What was written since: offset and length.
    fresh: Vec<(usize, usize)>,
    /// Which opening of it may write.
    opened: u64,
    /// Writes until it fails.
    fuse: Option<u64>,
    /// It says that it has synced and has not: to check the checker with.
    lies: bool,
}

impl Disk {
    /// An empty disk.
    pub fn new(chance: Chance, lies: bool) -> Self {
        let (seen, synced, fresh) = Default::default();
        let platter = Platter { chance, seen, synced, fresh, opened: 0, fuse: None, lies };
        Disk { platter: Arc::new(Mutex::new(platter)), full: Arc::default() }
    }

    /// Opens it after the crash of whoever had it before.
    fn open(&self) -> Opened {
        let mut platter = self.lock();
        platter.opened += 1;
        platter.fuse = None;
        for (offset, length) in std::mem::take(&mut platter.fresh) {
            if platter.chance.one_in(2) {
                platter.keep(offset, length);
            }
        }
        platter.seen = platter.synced.clone();
        Opened { disk: self.clone(), opening: platter.opened }
    }

    /// The store on it, for the next life of whoever has it.
    pub fn store(&self) -> Result<Embedded, StoreError> {
        let opened = self.open();
        Embedded::over(move || opened.clone())
    }

    /// Who has it open now neither reads nor writes it any more.
    pub fn close(&self) {
        self.lock().opened += 1;
    }

    /// It fails after this many more writes, until it is opened again.
    pub fn fail_after(&self, writes: u64) {
        self.lock().fuse = Some(writes);
    }

    fn lock(&self) -> MutexGuard<'_, Platter> {
        self.platter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Platter {
    fn keep(&mut self, offset: usize, length: usize) {
        let end = (offset + length).min(self.seen.len());
        if self.synced.len() < end {
            self.synced.resize(end, 0);
        }
        if offset < end {
            self.synced[offset..end].copy_from_slice(&self.seen[offset..end]);
        }
    }
}

/// A disk as one life of a process has it open.
#[derive(Debug, Clone)]
pub struct Opened {
    disk: Disk,
    opening: u64,
}

impl Opened {
    fn platter(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let platter = self.disk.lock();
        if platter.opened == self.opening {
            Ok(platter)
        } else {
            Err(io::Error::other("another life has it"))
        }
    }

    /// The disk, for one more write.
    fn writable(&self) -> io::Result<MutexGuard<'_, Platter>> {
        let mut platter = self.platter()?;
        if self.disk.full.load(Relaxed) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if let Some(left) = &mut platter.fuse {
            *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the disk failed"))?;
        }
        Ok(platter)
    }
}

impl StorageBackend for Opened {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platter()?.seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.platter()?;
        let from = platter.seen.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut platter = self.writable()?;
        platter.seen.resize(length as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.writable()?;
        if platter.lies {
            return Ok(());
        }
        for (offset, length) in std::mem::take(&mut platter.fresh) {
            platter.keep(offset, length);
        }
        let length = platter.seen.len();
        platter.synced.resize(length, 0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.writable()?;
        let (offset, end) = (offset as usize, offset as usize + data.len());
        platter.seen.get_mut(offset..end).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        platter.fresh.push((offset, data.len()));
        Ok(())
    }
}

/// The embedded store on a simulated disk, which takes its time.
pub struct SlowStore {
    store: Embedded,
    world: Arc<Outlook>,
}

impl SlowStore {
    /// Opens the store on `disk`.
    pub fn open(disk: &Disk, world: Arc<Outlook>) -> Result<Self, StoreError> {
        Ok(SlowStore { store: disk.store()?, world })
    }

    /// `work`, with the time that it takes; nothing is done after the end of this life.
    fn slowly<'a, T: Send + 'a, E: From<StoreError> + Send + 'a>(
        &'a self,
        work: Answer<'a, T, E>,
    ) -> Answer<'a, T, E> {
        async move {
            tokio::time::sleep(LATENCY.mul_f64(self.world.chance())).await;
            self.world.alive().await;
            let done = work.await;
            tokio::time::sleep(LATENCY.mul_f64(self.world.chance())).await;
            self.world.alive().await;
            done
        }
        .boxed()
    }
}

impl Store for SlowStore {
    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>> {
        self.slowly(self.store.put(blobs))
    }

    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>> {
        self.slowly(self.store.get(hashes))
    }

    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        self.slowly(self.store.has(hashes))
    }

    fn head(&self) -> Answer<'_, Option<SignedHead>> {
        self.slowly(self.store.head())
    }

    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>> {
        self.slowly(self.store.heads(limit))
    }

    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>> {
        self.store.watch_head()
    }

    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.slowly(self.store.compare_and_swap_head(expected, next, guard))
    }

    fn campaign(&self) -> Answer<'_, Election> {
        self.store.campaign()
    }

    fn resign(&self) -> Answer<'_, ()> {
        self.store.resign()
    }

    fn rival(&self) -> watch::Receiver<Option<String>> {
        self.store.rival()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.store.away()
    }

    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>> {
        self.slowly(self.store.document(name))
    }

    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        self.slowly(self.store.keep_document(name, bytes, guard))
    }

    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict> {
        self.slowly(self.store.sweep(live, oldest, guard))
    }

    fn put_registration(&self, registration: Registration) -> Answer<'_, ()> {
        self.slowly(self.store.put_registration(registration))
    }

    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        self.slowly(self.store.registrations())
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.slowly(self.store.remove_registrations(instances))
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.slowly(self.store.beat(instances, now_ms))
    }
}
