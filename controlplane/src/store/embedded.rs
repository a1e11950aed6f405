//! The store of a single node: one file in the state directory.
//!
//! The file is locked while it is open, so one process at a time holds it, and the election is among its own tasks.
//! Every change is one transaction: after a crash the file is as it was after the last one that was answered.

mod opened;

use std::collections::HashSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use api::digest::Hash;
use api::head::{Seq, SignedHead};
use api::name::InstanceId;
use bytes::Bytes;
use futures_util::FutureExt;
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, StorageBackend,
    TableDefinition, TableHandle, WriteTransaction,
};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use self::opened::Opened;
use super::{Answer, Conflict, Election, Registration, Store, StoreError};
use super::{MAX_BLOB_BYTES, MAX_REGISTRATION_BYTES, MAX_REGISTRATIONS};

const FILE: &str = "store.redb";
const FORMAT: u64 = 1;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const BLOBS: TableDefinition<&[u8; 32], &[u8]> = TableDefinition::new("blobs");
const HEADS: TableDefinition<(u64, u64), &[u8]> = TableDefinition::new("heads");
const REGISTRATIONS: TableDefinition<&str, &[u8]> = TableDefinition::new("registrations");
const BEATS: TableDefinition<&str, u64> = TableDefinition::new("beats");
const DOCUMENTS: TableDefinition<&str, &[u8]> = TableDefinition::new("documents");
/// Registrations of which servers behind this file have not been told: as they are here, or that they are gone.
const OWED: TableDefinition<&str, ()> = TableDefinition::new("owed");
/// In [`META`], where the servers' registrations count and are not here yet.
const VOID: &str = "void";

/// A [`Store`] in a file.
pub struct Embedded {
    database: Arc<Opened>,
    head: Arc<watch::Sender<Option<SignedHead>>>,
    /// One permit: to lead.
    leader: Arc<Semaphore>,
    /// The last leadership granted.
    term: AtomicU64,
    /// Whether its storage may make a caller wait.
    blocks: bool,
    /// A file is never away.
    away: watch::Sender<Option<SystemTime>>,
    /// No other process could lead.
    rival: watch::Sender<Option<String>>,
}

impl Embedded {
    /// Opens the store in `dir`, or makes both. Blocks: reading a large file after a crash may take seconds.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        Embedded::new(move || open_file(&path), true)
    }

    /// The store over a storage that makes nobody wait: memory, or a disk that is simulated.
    pub fn over<S: StorageBackend>(
        storage: impl Fn() -> S + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        let open = move || Database::builder().create_with_backend(storage()).map_err(failed);
        Embedded::new(open, false)
    }

    fn new(
        open: impl Fn() -> Result<Database, StoreError> + Send + Sync + 'static,
        blocks: bool,
    ) -> Result<Self, StoreError> {
        let head = Arc::new(watch::Sender::new(None));
        let told = head.clone();
        let database = Opened::new(move || {
            let database = open()?;
            prepare(&database)?;
            // It may be one whose own transaction was said to have failed.
            if let Some(last) = read_heads(&database, 1)?.pop() {
                tell(&told, last);
            }
            Ok(database)
        })?;
        Ok(Embedded {
            database: Arc::new(database),
            head,
            leader: Arc::new(Semaphore::new(1)),
            term: AtomicU64::new(0),
            blocks,
            away: watch::Sender::default(),
            rival: watch::Sender::default(),
        })
    }

    /// Runs `work` where blocking is allowed.
    fn run<T, E>(&self, work: impl FnOnce(&Database) -> Result<T, E> + Send + 'static) -> Answer<'_, T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
    {
        let database = self.database.clone();
        if !self.blocks {
            return async move { database.run(work) }.boxed();
        }
        async move {
            let done = tokio::task::spawn_blocking(move || database.run(work)).await;
            done.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string()).into()))
        }
        .boxed()
    }

    /// Invariant: an [`Election`] holds the only permit, so one that is still held is the last one granted.
    fn leads(&self, guard: &Election) -> Result<(), Conflict> {
        if guard.term == self.term.load(Ordering::Acquire) { Ok(()) } else { Err(Conflict::NotLeader) }
    }
}

impl Store for Embedded {
    fn put(&self, blobs: Vec<Bytes>) -> Answer<'_, Vec<Hash>> {
        self.run(move |database| {
            blobs.iter().try_for_each(|blob| StoreError::limit("a blob", blob.len(), MAX_BLOB_BYTES))?;
            let hashes: Vec<Hash> = blobs.iter().map(|blob| Hash::of(blob)).collect();
            let here = read_blobs(database, &hashes, |_, found| Ok(found.is_some()))?;
            let mut new = hashes.iter().zip(&blobs).zip(here).filter(|(_, here)| !here).peekable();
            if new.peek().is_some() {
                write(database, Durability::Immediate, |transaction| {
                    let mut table = transaction.open_table(BLOBS).map_err(failed)?;
                    for ((hash, blob), _) in new {
                        table.insert(&hash.0, blob.as_ref()).map_err(failed)?;
                    }
                    Ok(())
                })?;
            }
            Ok(hashes)
        })
    }

    fn get(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<Option<Bytes>>> {
        self.run(move |database| {
            read_blobs(database, &hashes, |hash, found| match found {
                Some(bytes) if Hash::of(bytes) != hash => {
                    Err(StoreError::Damaged(format!("blob {} has another content", hash.short())))
                }
                found => Ok(found.map(Bytes::copy_from_slice)),
            })
        })
    }

    fn has(&self, hashes: Vec<Hash>) -> Answer<'_, Vec<bool>> {
        self.run(move |database| read_blobs(database, &hashes, |_, found| Ok(found.is_some())))
    }

    fn head(&self) -> Answer<'_, Option<SignedHead>> {
        self.run(|database| Ok(read_heads(database, 1)?.pop()))
    }

    fn heads(&self, limit: usize) -> Answer<'_, Vec<SignedHead>> {
        self.run(move |database| read_heads(database, limit))
    }

    fn watch_head(&self) -> watch::Receiver<Option<SignedHead>> {
        self.head.subscribe()
    }

    fn compare_and_swap_head<'a>(
        &'a self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        if let Err(conflict) = self.leads(guard) {
            return async { Err(conflict) }.boxed();
        }
        let published = self.head.clone();
        self.run(move |database| {
            swap_head(database, expected, &next)?;
            tell(&published, next);
            Ok(())
        })
    }

    fn campaign(&self) -> Answer<'_, Election> {
        async {
            let closed = |_| StoreError::Failed("the store is closing".into());
            let permit = self.leader.clone().acquire_owned().await.map_err(closed)?;
            let term = self.term.fetch_add(1, Ordering::AcqRel) + 1;
            Ok(Election { term, lost: CancellationToken::new(), held: Box::new(permit) })
        }
        .boxed()
    }

    fn resign(&self) -> Answer<'_, ()> {
        // Only tasks of this process could lead instead.
        async { Ok(()) }.boxed()
    }

    fn rival(&self) -> watch::Receiver<Option<String>> {
        self.rival.subscribe()
    }

    fn away(&self) -> watch::Receiver<Option<SystemTime>> {
        self.away.subscribe()
    }

    fn document(&self, name: &'static str) -> Answer<'_, Option<Bytes>> {
        self.run(move |database| {
            let table = database.begin_read().map_err(failed)?.open_table(DOCUMENTS).map_err(failed)?;
            let found = table.get(name).map_err(failed)?;
            Ok(found.map(|found| Bytes::copy_from_slice(found.value())))
        })
    }

    fn keep_document<'a>(
        &'a self,
        name: &'static str,
        bytes: Bytes,
        guard: &'a Election,
    ) -> Answer<'a, (), Conflict> {
        if let Err(conflict) = self.leads(guard) {
            return async { Err(conflict) }.boxed();
        }
        self.run(move |database| {
            StoreError::limit("a document", bytes.len(), MAX_BLOB_BYTES)?;
            write(database, Durability::Immediate, |transaction| {
                let mut table = transaction.open_table(DOCUMENTS).map_err(failed)?;
                table.insert(name, bytes.as_ref()).map_err(failed)?;
                Ok(())
            })?;
            Ok(())
        })
    }

    fn sweep<'a>(
        &'a self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &'a Election,
    ) -> Answer<'a, usize, Conflict> {
        if let Err(conflict) = self.leads(guard) {
            return async { Err(conflict) }.boxed();
        }
        self.run(move |database| {
            let gone = write(database, Durability::Immediate, |transaction| {
                let mut blobs = transaction.open_table(BLOBS).map_err(failed)?;
                let before = blobs.len().map_err(failed)?;
                blobs.retain(|hash, _| live.contains(&Hash(*hash))).map_err(failed)?;
                let after = blobs.len().map_err(failed)?;
                let mut heads = transaction.open_table(HEADS).map_err(failed)?;
                heads.retain(|key, _| key >= (oldest.epoch, oldest.n)).map_err(failed)?;
                Ok(before - after)
            })?;
            Ok(gone as usize)
        })
    }

    fn put_registration(&self, registration: Registration) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| register(transaction, &registration))
        })
    }

    fn registrations(&self) -> Answer<'_, Vec<Registration>> {
        self.run(|database| {
            let transaction = database.begin_read().map_err(failed)?;
            let table = transaction.open_table(REGISTRATIONS).map_err(failed)?;
            let beats = transaction.open_table(BEATS).map_err(failed)?;
            let rows = table.iter().map_err(failed)?;
            rows.map(|row| {
                let (instance, bytes) = row.map_err(failed)?;
                let beat_ms = beats.get(instance.value()).map_err(failed)?.map_or(0, |beat| beat.value());
                let bytes = Bytes::copy_from_slice(bytes.value());
                Ok(Registration { instance: named(instance.value())?, bytes, beat_ms })
            })
            .collect()
        })
    }

    fn remove_registrations(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| deregister(transaction, &instances))
        })
    }

    fn beat(&self, instances: Vec<InstanceId>, now_ms: u64) -> Answer<'_, Vec<InstanceId>> {
        self.run(move |database| {
            // Not flushed: after a crash all leases begin anew, so a heartbeat that was lost costs nobody anything.
            write(database, Durability::None, |transaction| {
                let table = transaction.open_table(REGISTRATIONS).map_err(failed)?;
                let mut beats = transaction.open_table(BEATS).map_err(failed)?;
                let mut unknown = Vec::new();
                for instance in instances {
                    if table.get(instance.as_str()).map_err(failed)?.is_none() {
                        unknown.push(instance);
                        continue;
                    }
                    let last = beats.get(instance.as_str()).map_err(failed)?.map_or(0, |beat| beat.value());
                    beats.insert(instance.as_str(), last.max(now_ms)).map_err(failed)?;
                }
                Ok(unknown)
            })
        })
    }
}

/// For a file that [backs](super::Backed) a store at servers: what they have still to be told, and whether what is here
/// counts.
impl Embedded {
    /// [`Store::put_registration`], of which the servers are to be told.
    pub(super) fn put_owing(&self, registration: Registration) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                register(transaction, &registration)?;
                owe(transaction, std::slice::from_ref(&registration.instance))
            })
        })
    }

    /// [`Store::remove_registrations`], of which the servers are to be told.
    pub(super) fn remove_owing(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                deregister(transaction, &instances)?;
                owe(transaction, &instances)
            })
        })
    }

    /// The servers know these as they are here. Not flushed: they may be told twice.
    pub(super) fn told(&self, instances: Vec<InstanceId>) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::None, |transaction| {
                let mut owed = transaction.open_table(OWED).map_err(failed)?;
                instances.iter().try_for_each(|one| owed.remove(one.as_str()).map(drop).map_err(failed))
            })
        })
    }

    /// What the servers have not been told, as it is here now; at most so many.
    pub(super) fn untold(&self, most: usize) -> Answer<'_, Vec<(InstanceId, Option<Registration>)>> {
        self.run(move |database| {
            let transaction = database.begin_read().map_err(failed)?;
            let owed = transaction.open_table(OWED).map_err(failed)?;
            let table = transaction.open_table(REGISTRATIONS).map_err(failed)?;
            let beats = transaction.open_table(BEATS).map_err(failed)?;
            let rows = owed.iter().map_err(failed)?;
            rows.take(most)
                .map(|row| {
                    let instance = named(row.map_err(failed)?.0.value())?;
                    let beat = beats.get(instance.as_str()).map_err(failed)?.map_or(0, |beat| beat.value());
                    let found = table.get(instance.as_str()).map_err(failed)?;
                    let here = found.map(|bytes| Registration {
                        instance: instance.clone(),
                        bytes: Bytes::copy_from_slice(bytes.value()),
                        beat_ms: beat,
                    });
                    Ok((instance, here))
                })
                .collect()
        })
    }

    /// Forgets all registrations: those of the servers count, until they are [taken over](Embedded::adopt) here.
    pub(super) fn void(&self) -> Answer<'_, ()> {
        self.run(|database| {
            write(database, Durability::Immediate, |transaction| {
                clear(transaction)?;
                transaction.open_table(META).map_err(failed)?.insert(VOID, 1).map_err(failed)?;
                Ok(())
            })
        })
    }

    /// Whether it was made void, and nothing was taken over since.
    pub(super) fn is_void(&self) -> Answer<'_, bool> {
        self.run(|database| {
            let table = database.begin_read().map_err(failed)?.open_table(META).map_err(failed)?;
            Ok(table.get(VOID).map_err(failed)?.is_some())
        })
    }

    /// Takes over all registrations of the servers in place of its own.
    pub(super) fn adopt(&self, all: Vec<Registration>) -> Answer<'_, ()> {
        self.run(move |database| {
            write(database, Durability::Immediate, |transaction| {
                clear(transaction)?;
                all.iter().try_for_each(|one| register(transaction, one))?;
                transaction.open_table(META).map_err(failed)?.remove(VOID).map_err(failed)?;
                Ok(())
            })
        })
    }
}

fn register(transaction: &WriteTransaction, registration: &Registration) -> Result<(), StoreError> {
    StoreError::limit("a registration", registration.bytes.len(), MAX_REGISTRATION_BYTES)?;
    let mut table = transaction.open_table(REGISTRATIONS).map_err(failed)?;
    let instance = registration.instance.as_str();
    table.insert(instance, registration.bytes.as_ref()).map_err(failed)?;
    let size = table.len().map_err(failed)? as usize;
    StoreError::limit("the registry", size, MAX_REGISTRATIONS)?;
    let mut beats = transaction.open_table(BEATS).map_err(failed)?;
    beats.insert(instance, registration.beat_ms).map_err(failed)?;
    Ok(())
}

fn deregister(transaction: &WriteTransaction, instances: &[InstanceId]) -> Result<(), StoreError> {
    let mut table = transaction.open_table(REGISTRATIONS).map_err(failed)?;
    let mut beats = transaction.open_table(BEATS).map_err(failed)?;
    for instance in instances {
        table.remove(instance.as_str()).map_err(failed)?;
        beats.remove(instance.as_str()).map_err(failed)?;
    }
    Ok(())
}

fn owe(transaction: &WriteTransaction, instances: &[InstanceId]) -> Result<(), StoreError> {
    let mut owed = transaction.open_table(OWED).map_err(failed)?;
    instances.iter().try_for_each(|one| owed.insert(one.as_str(), ()).map(drop).map_err(failed))
}

fn clear(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(REGISTRATIONS).map_err(failed)?.retain(|_, _| false).map_err(failed)?;
    transaction.open_table(BEATS).map_err(failed)?.retain(|_, _| false).map_err(failed)?;
    transaction.open_table(OWED).map_err(failed)?.retain(|_, _| false).map_err(failed)
}

fn named(instance: &str) -> Result<InstanceId, StoreError> {
    InstanceId::new(instance).map_err(|bad| StoreError::Damaged(bad.to_string()))
}

fn open_file(path: &Path) -> Result<Database, StoreError> {
    let file = fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).and_then(|()| {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    });
    let file = file.map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
    Database::builder().create_file(file).map_err(|error| match error {
        redb::DatabaseError::DatabaseAlreadyOpen => StoreError::Busy(path.display().to_string()),
        other => failed(other),
    })
}

/// Makes the tables of a new file, and checks that the file is of this version. A file that has them is not written: it is
/// opened on a full disk, too.
fn prepare(database: &Database) -> Result<(), StoreError> {
    let transaction = database.begin_read().map_err(failed)?;
    let there: HashSet<String> =
        transaction.list_tables().map_err(failed)?.map(|table| table.name().to_owned()).collect();
    if there.contains(META.name()) {
        let meta = transaction.open_table(META).map_err(failed)?;
        let found = meta.get("format").map_err(failed)?.map_or(FORMAT, |format| format.value());
        if found > FORMAT {
            return Err(StoreError::Newer { found, known: FORMAT });
        }
    }
    let needed = [
        META.name(),
        BLOBS.name(),
        HEADS.name(),
        REGISTRATIONS.name(),
        BEATS.name(),
        DOCUMENTS.name(),
        OWED.name(),
    ];
    if needed.iter().all(|name| there.contains(*name)) {
        return Ok(());
    }
    write(database, Durability::Immediate, |transaction| {
        transaction.open_table(BLOBS).map_err(failed)?;
        transaction.open_table(HEADS).map_err(failed)?;
        transaction.open_table(REGISTRATIONS).map_err(failed)?;
        transaction.open_table(BEATS).map_err(failed)?;
        transaction.open_table(DOCUMENTS).map_err(failed)?;
        transaction.open_table(OWED).map_err(failed)?;
        transaction.open_table(META).map_err(failed)?.insert("format", FORMAT).map_err(failed)?;
        Ok(())
    })
}

/// Tells who watches of a head that is in the file, if it is later than what they know.
fn tell(heads: &watch::Sender<Option<SignedHead>>, next: SignedHead) {
    heads.send_if_modified(|now| {
        let later = now.as_ref().is_none_or(|now| now.head().seq() < next.head().seq());
        if later {
            *now = Some(next);
        }
        later
    });
}

/// Runs `work` in one transaction, which takes effect only when `work` succeeds.
fn write<T>(
    database: &Database,
    durability: Durability,
    work: impl FnOnce(&WriteTransaction) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let mut transaction = database.begin_write().map_err(failed)?;
    transaction.set_durability(durability).map_err(failed)?;
    let done = work(&transaction)?;
    transaction.commit().map_err(failed)?;
    Ok(done)
}

fn read_blobs<T>(
    database: &Database,
    hashes: &[Hash],
    read: impl Fn(Hash, Option<&[u8]>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let table = database.begin_read().map_err(failed)?.open_table(BLOBS).map_err(failed)?;
    let one = |hash: &Hash| {
        let found = table.get(&hash.0).map_err(failed)?;
        read(*hash, found.as_ref().map(|found| found.value()))
    };
    hashes.iter().map(one).collect()
}

fn read_heads(database: &Database, limit: usize) -> Result<Vec<SignedHead>, StoreError> {
    let table = database.begin_read().map_err(failed)?.open_table(HEADS).map_err(failed)?;
    let newest = table.iter().map_err(failed)?.rev().take(limit);
    newest.map(|row| decode_head(row.map_err(failed)?.1.value())).collect()
}

fn decode_head(bytes: &[u8]) -> Result<SignedHead, StoreError> {
    SignedHead::decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}

fn swap_head(database: &Database, expected: Option<Seq>, next: &SignedHead) -> Result<(), Conflict> {
    let seq = next.head().seq();
    write(database, Durability::Immediate, |transaction| {
        let mut table = transaction.open_table(HEADS).map_err(failed)?;
        let last = table.last().map_err(failed)?.map(|(key, _)| key.value());
        let found = last.map(|(epoch, n)| Seq { epoch, n });
        if found != expected {
            return Ok(Err(Conflict::Moved { found }));
        }
        if let Some(found) = found.filter(|found| seq <= *found) {
            return Ok(Err(Conflict::NotLater { found, next: seq }));
        }
        table.insert((seq.epoch, seq.n), next.encode().as_slice()).map_err(failed)?;
        Ok(Ok(()))
    })?
}

fn failed(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(reason) => StoreError::Damaged(reason),
        redb::Error::UpgradeRequired(format) => {
            StoreError::Damaged(format!("its file format {format} is too old"))
        }
        redb::Error::TableTypeMismatch { table, .. } => {
            StoreError::Damaged(format!("table {table} is not ours"))
        }
        other => StoreError::Failed(other.to_string()),
    }
}

#[cfg(test)]
mod tests;
