use api::head::Head;
use tempfile::TempDir;

use super::*;
use crate::store::suite::{commit, entry, publish, suite};
use crate::store::{read_revision, write_revision};

#[tokio::test]
async fn it_is_a_store() {
    let home = TempDir::new().unwrap();
    let count = std::cell::Cell::new(0);
    suite(async || {
        count.set(count.get() + 1);
        Arc::new(Embedded::open(&home.path().join(count.get().to_string())).unwrap()) as Arc<dyn Store>
    })
    .await;
}

/// A store with one published revision, a registration and a heartbeat.
async fn filled(dir: &Path) -> Embedded {
    let store = Embedded::open(dir).unwrap();
    let entries = [entry("shop", "a", "1", 'a')];
    let revision =
        write_revision(&store, vec![("main".parse().unwrap(), commit('a'))], entries, None).await.unwrap();
    let guard = store.campaign().await.unwrap();
    publish(&store, &revision, &guard).await;
    let instance = InstanceId::new("a-1").unwrap();
    let registration = Registration { instance: instance.clone(), bytes: "a".into(), beat_ms: 1 };
    store.put_registration(registration).await.unwrap();
    store.beat(vec![instance], 2).await.unwrap();
    store
}

async fn is_whole(store: &Embedded) {
    let head = store.head().await.unwrap().unwrap();
    assert_eq!(*store.watch_head().borrow(), Some(head.clone()));
    let read = read_revision(store, head.head().stable.as_ref().unwrap()).await.unwrap();
    assert_eq!(read[0].bytes, "1");
    assert_eq!(store.registrations().await.unwrap().len(), 1);
}

#[tokio::test]
async fn all_is_there_after_a_restart() {
    let home = TempDir::new().unwrap();
    drop(filled(home.path()).await);
    let store = Embedded::open(home.path()).unwrap();
    is_whole(&store).await;
    let guard = store.campaign().await.unwrap();
    let again = store.head().await.unwrap().unwrap().head().stable.clone().unwrap();
    publish(&store, &again, &guard).await;
}

#[tokio::test]
async fn all_is_there_after_a_crash() {
    let (home, crashed) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = filled(home.path()).await;
    // The file as a killed process leaves it: not closed, with a heartbeat that was not flushed.
    std::fs::copy(home.path().join(FILE), crashed.path().join(FILE)).unwrap();
    is_whole(&Embedded::open(crashed.path()).unwrap()).await;
    drop(store);
}

#[tokio::test]
async fn two_cannot_have_one_directory() {
    let home = TempDir::new().unwrap();
    let first = Embedded::open(home.path()).unwrap();
    let second = Embedded::open(home.path()).map(|_| ()).unwrap_err();
    assert!(matches!(&second, StoreError::Busy(path) if path.ends_with(FILE)), "{second}");
    drop(first);
    Embedded::open(home.path()).unwrap();
}

#[tokio::test]
async fn a_file_of_another_kind_or_a_later_version_is_left_alone() {
    let home = TempDir::new().unwrap();
    std::fs::write(home.path().join(FILE), "not a store".repeat(1000)).unwrap();
    assert!(Embedded::open(home.path()).is_err());
    assert!(std::fs::read(home.path().join(FILE)).unwrap().starts_with(b"not a store"));
    let later = TempDir::new().unwrap();
    let store = Embedded::open(later.path()).unwrap();
    let written: Result<(), StoreError> = store.database.run(|database| {
        write(database, Durability::Immediate, |transaction| {
            transaction.open_table(META).map_err(failed)?.insert("format", FORMAT + 1).map_err(failed)?;
            Ok(())
        })
    });
    written.unwrap();
    drop(store);
    let refused = Embedded::open(later.path()).map(|_| ()).unwrap_err();
    assert_eq!(refused, StoreError::Newer { found: FORMAT + 1, known: FORMAT });
}

#[tokio::test]
async fn a_failed_transaction_leaves_nothing() {
    let home = TempDir::new().unwrap();
    let store = Embedded::open(home.path()).unwrap();
    let half: Result<(), StoreError> = store.database.run(|database| {
        write(database, Durability::Immediate, |transaction| {
            let mut blobs = transaction.open_table(BLOBS).map_err(failed)?;
            blobs.insert(&Hash::of(b"half").0, b"half".as_slice()).map_err(failed)?;
            Err(StoreError::Failed("cut off".into()))
        })
    });
    assert!(half.is_err());
    assert_eq!(store.has(vec![Hash::of(b"half")]).await.unwrap(), [false]);
}

/// A disk that takes nothing more while it is full: what fails is a transaction's first write, its sync, or anything
/// between.
#[derive(Debug, Clone)]
struct Disk {
    bytes: Arc<redb::backends::InMemoryBackend>,
    room: Arc<AtomicU64>,
}

impl Disk {
    fn take(&self) -> std::io::Result<()> {
        let left = self.room.load(Ordering::SeqCst).checked_sub(1);
        self.room.store(left.ok_or(std::io::ErrorKind::StorageFull)?, Ordering::SeqCst);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.bytes.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.bytes.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.take()?;
        self.bytes.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        self.take()?;
        self.bytes.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.take()?;
        self.bytes.write(offset, data)
    }
}

#[tokio::test]
async fn a_disk_that_was_full_for_a_moment_is_served_again() {
    const ENOUGH: u64 = 1 << 40;
    let room = Arc::new(AtomicU64::new(ENOUGH));
    let disk = Disk { bytes: Arc::new(redb::backends::InMemoryBackend::new()), room: room.clone() };
    let store = Embedded::over(move || disk.clone()).unwrap();
    let guard = store.campaign().await.unwrap();
    let mut seen = store.watch_head();
    let mut failures = 0;
    for writes in 0_u64.. {
        let blob = vec![Bytes::from(writes.to_string().repeat(3_000))];
        let revision = crate::commits::tests::revision("a.");
        let before = store.head().await.unwrap();
        let next = before.as_ref().map_or(Head::first(1), |head| head.head().clone()).next(revision);
        let next = SignedHead::seal(next, |_| (vec![], vec![]));
        room.store(writes, Ordering::SeqCst);
        let put = store.put(blob.clone()).await;
        let expected = before.as_ref().map(|head| head.head().seq());
        let swapped = store.compare_and_swap_head(expected, next.clone(), &guard).await;
        let is_over = room.swap(ENOUGH, Ordering::SeqCst) > 0;
        // What was answered is there, and what was not is there as a whole or not at all.
        let hash = Hash::of(&blob[0]);
        let there = store.has(vec![hash]).await.unwrap()[0];
        assert!(there || put.is_err(), "{writes}");
        let now = store.head().await.unwrap();
        assert!(now == Some(next.clone()) || (swapped.is_err() && now == before), "{writes}: {swapped:?}");
        assert!(*seen.borrow_and_update() == now, "{writes}: whoever watches knows what is in the file");
        failures += u64::from(put.is_err() || swapped.is_err());
        if is_over {
            break;
        }
    }
    assert!(failures > 5, "{failures}");
    let hashes = store.put(vec!["more".into()]).await.unwrap();
    assert_eq!(store.has(hashes).await.unwrap(), [true]);
}

#[tokio::test]
async fn a_blob_of_32_mib_is_kept_and_a_larger_one_is_not() {
    let store = Embedded::over(redb::backends::InMemoryBackend::new).unwrap();
    let of = |size: usize| vec![Bytes::from(vec![7; size])];
    let hashes = store.put(of(32 << 20)).await.unwrap();
    assert!(store.get(hashes).await.unwrap()[0].as_ref().is_some_and(|blob| blob.len() == 32 << 20));
    assert!(matches!(store.put(of((32 << 20) + 1)).await, Err(StoreError::TooLarge { .. })));
}

#[tokio::test]
async fn who_leads_by_another_store_moves_nothing_here() {
    let open = || Embedded::over(redb::backends::InMemoryBackend::new).unwrap();
    let (here, other) = (open(), open());
    drop(other.campaign().await.unwrap());
    let (_own, foreign) = (here.campaign().await.unwrap(), other.campaign().await.unwrap());
    let kept = here.keep_document("trust", Bytes::new(), &foreign).await;
    assert!(matches!(kept, Err(Conflict::NotLeader)));
}
