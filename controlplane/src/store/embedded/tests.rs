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
    write(&store.database, Durability::Immediate, |transaction| {
        transaction.open_table(META).map_err(failed)?.insert("format", FORMAT + 1).map_err(failed)?;
        Ok(())
    })
    .unwrap();
    drop(store);
    let refused = Embedded::open(later.path()).map(|_| ()).unwrap_err();
    assert_eq!(refused, StoreError::Newer { found: FORMAT + 1, known: FORMAT });
}

#[tokio::test]
async fn a_failed_transaction_leaves_nothing() {
    let home = TempDir::new().unwrap();
    let store = Embedded::open(home.path()).unwrap();
    let half: Result<(), _> = write(&store.database, Durability::Immediate, |transaction| {
        let mut blobs = transaction.open_table(BLOBS).map_err(failed)?;
        blobs.insert(&Hash::of(b"half").0, b"half".as_slice()).map_err(failed)?;
        Err(StoreError::Failed("cut off".into()))
    });
    assert!(half.is_err());
    assert_eq!(store.has(vec![Hash::of(b"half")]).await.unwrap(), [false]);
}

#[tokio::test]
async fn a_blob_of_32_mib_is_kept_and_a_larger_one_is_not() {
    let store = Embedded::over(redb::backends::InMemoryBackend::new()).unwrap();
    let of = |size: usize| vec![Bytes::from(vec![7; size])];
    let hashes = store.put(of(32 << 20)).await.unwrap();
    assert!(store.get(hashes).await.unwrap()[0].as_ref().is_some_and(|blob| blob.len() == 32 << 20));
    assert!(matches!(store.put(of((32 << 20) + 1)).await, Err(StoreError::TooLarge { .. })));
}

#[tokio::test]
async fn who_leads_by_another_store_moves_nothing_here() {
    let open = || Embedded::over(redb::backends::InMemoryBackend::new()).unwrap();
    let (here, other) = (open(), open());
    drop(other.campaign().await.unwrap());
    let (_own, foreign) = (here.campaign().await.unwrap(), other.campaign().await.unwrap());
    let kept = here.keep_document("trust", Bytes::new(), &foreign).await;
    assert!(matches!(kept, Err(Conflict::NotLeader)));
}
