//! What every [`Store`] must do. Each implementation runs all of it, on a store of its own for each part.

use std::future::Future;
use std::sync::Arc;

use api::head::{CommitId, Head, Revision};
use futures_util::FutureExt;

use super::*;

/// Runs every part on what `fresh` makes.
pub(super) async fn suite<F: Future<Output = Arc<dyn Store>>>(fresh: impl Fn() -> F) {
    blobs_are_kept_once_and_found_by_hash(&*fresh().await).await;
    the_head_moves_by_compare_and_swap_alone(&*fresh().await).await;
    the_head_is_watched(&*fresh().await).await;
    one_leads_at_a_time(&*fresh().await).await;
    workloads_register_beat_and_go(&*fresh().await).await;
    a_revision_is_read_as_it_was_written(&*fresh().await).await;
    a_namespace_may_be_large(&*fresh().await).await;
    a_commit_writes_what_it_changed(&*fresh().await).await;
    what_did_not_change_keeps_its_commit_and_author(&*fresh().await).await;
    a_replica_asks_for_what_it_lacks(&*fresh().await, &*fresh().await).await;
    old_revisions_are_forgotten(&*fresh().await).await;
    fifty_heads_on_old_ones_are_forgotten(&*fresh().await).await;
    documents_are_replaced_whole_by_who_leads(&*fresh().await).await;
}

pub(super) fn commit(digit: char) -> CommitId {
    String::from_iter([digit; 40]).parse().unwrap()
}

pub(super) fn entry(namespace: &str, name: &str, content: &str, of: char) -> Entry {
    Entry {
        key: format!("Service/{namespace}/{name}"),
        namespace: namespace.into(),
        bytes: Bytes::copy_from_slice(content.as_bytes()),
        commit: commit(of),
        position: Position {
            file: format!("{name}.yaml"),
            line: 1,
            author: format!("author of {of}"),
            source: Some(format!("source-{of}").parse().unwrap()),
            rules: vec![],
        },
    }
}

pub(super) async fn publish(store: &dyn Store, revision: &Revision, guard: &Election) -> Seq {
    let last = store.head().await.unwrap();
    let next = last.as_ref().map_or(Head::first(1), |last| last.head().clone()).next(revision.clone());
    let seq = next.seq();
    let expected = last.map(|last| last.head().seq());
    store.compare_and_swap_head(expected, SignedHead::unsigned(next), guard).await.unwrap();
    seq
}

fn head(epoch: u64, n: u64) -> SignedHead {
    SignedHead::seal(Head { n, ..Head::first(epoch) }, |bytes| (Hash::of(bytes).0.to_vec(), b"key".to_vec()))
}

async fn write(store: &dyn Store, entries: &[Entry], of: char, last: Option<&Revision>) -> Revision {
    write_revision(store, vec![("main".parse().unwrap(), commit(of))], entries.to_vec(), last).await.unwrap()
}

async fn blobs_are_kept_once_and_found_by_hash(store: &dyn Store) {
    let hashes = store.put(vec!["a".into(), "b".into(), "a".into()]).await.unwrap();
    assert_eq!(hashes, [Hash::of(b"a"), Hash::of(b"b"), Hash::of(b"a")]);
    let asked = vec![Hash::of(b"b"), Hash::of(b"c"), Hash::of(b"a")];
    let found = store.get(asked.clone()).await.unwrap();
    assert_eq!(found, [Some("b".into()), None, Some("a".into())]);
    assert_eq!(store.has(asked).await.unwrap(), [true, false, true]);
    let large = store.put(vec![vec![0; MAX_BLOB_BYTES + 1].into()]).await;
    assert!(matches!(large, Err(StoreError::TooLarge { .. })));
}

async fn the_head_moves_by_compare_and_swap_alone(store: &dyn Store) {
    let guard = store.campaign().await.unwrap();
    let at = |epoch, n| Some(Seq { epoch, n });
    assert_eq!(store.head().await.unwrap(), None);
    let too_early = store.compare_and_swap_head(at(1, 1), head(1, 2), &guard).await;
    assert_eq!(too_early, Err(Conflict::Moved { found: None }));
    store.compare_and_swap_head(None, head(1, 1), &guard).await.unwrap();
    let twice = store.compare_and_swap_head(None, head(1, 2), &guard).await;
    assert_eq!(twice, Err(Conflict::Moved { found: at(1, 1) }));
    let back = store.compare_and_swap_head(at(1, 1), head(1, 1), &guard).await;
    assert!(matches!(back, Err(Conflict::NotLater { .. })));
    store.compare_and_swap_head(at(1, 1), head(2, 0), &guard).await.unwrap();
    let epoch_back = store.compare_and_swap_head(at(2, 0), head(1, 9), &guard).await;
    assert!(matches!(epoch_back, Err(Conflict::NotLater { .. })));
    assert_eq!(store.head().await.unwrap(), Some(head(2, 0)), "with its signature");
    assert_eq!(store.heads(10).await.unwrap(), [head(2, 0), head(1, 1)]);
    assert_eq!(store.heads(1).await.unwrap(), [head(2, 0)]);
}

async fn the_head_is_watched(store: &dyn Store) {
    let guard = store.campaign().await.unwrap();
    let mut watched = store.watch_head();
    assert_eq!(*watched.borrow_and_update(), None);
    store.compare_and_swap_head(None, head(1, 1), &guard).await.unwrap();
    watched.changed().await.unwrap();
    assert_eq!(*watched.borrow_and_update(), Some(head(1, 1)));
    store.compare_and_swap_head(None, head(1, 2), &guard).await.unwrap_err();
    assert!(!watched.has_changed().unwrap());
    assert_eq!(*store.watch_head().borrow(), Some(head(1, 1)));
    store.compare_and_swap_head(Some(head(1, 1).head().seq()), head(1, 2), &guard).await.unwrap();
    watched.changed().await.unwrap();
    assert_eq!(*watched.borrow(), Some(head(1, 2)));
}

async fn one_leads_at_a_time(store: &dyn Store) {
    let first = store.campaign().await.unwrap();
    let mut second = store.campaign();
    assert!((&mut second).now_or_never().is_none());
    let term = first.term();
    drop(first);
    let second = second.await.unwrap();
    assert!(second.term() > term);
    store.compare_and_swap_head(None, head(1, 1), &second).await.unwrap();
}

async fn workloads_register_beat_and_go(store: &dyn Store) {
    let name = |name: &str| InstanceId::new(name).unwrap();
    let workload = |instance: &str, bytes: &'static str, beat_ms| Registration {
        instance: name(instance),
        bytes: bytes.into(),
        beat_ms,
    };
    store.put_registration(workload("b", "old", 1)).await.unwrap();
    store.put_registration(workload("b", "new", 2)).await.unwrap();
    store.put_registration(workload("a", "one", 3)).await.unwrap();
    assert_eq!(store.registrations().await.unwrap(), [workload("a", "one", 3), workload("b", "new", 2)]);
    let unknown = store.beat(vec![name("a"), name("gone")], 9).await.unwrap();
    assert_eq!(unknown, [name("gone")]);
    store.beat(vec![name("a")], 5).await.unwrap();
    assert_eq!(store.registrations().await.unwrap()[0].beat_ms, 9, "a heartbeat never goes back");
    store.remove_registrations(vec![name("a"), name("gone")]).await.unwrap();
    assert_eq!(store.registrations().await.unwrap(), [workload("b", "new", 2)]);
    let of = |size: usize| Registration { bytes: vec![0; size].into(), ..workload("c", "", 0) };
    store.put_registration(of(64 * 1024)).await.unwrap();
    let large = store.put_registration(of(64 * 1024 + 1)).await;
    assert!(matches!(large, Err(StoreError::TooLarge { .. })));
}

async fn a_revision_is_read_as_it_was_written(store: &dyn Store) {
    let entries = [entry("shop", "b", "1", 'a'), entry("", "mesh", "2", 'a'), entry("shop", "a", "1", 'a')];
    let revision = write(store, &entries, 'a', None).await;
    assert_eq!(revision.commit_of("main"), Some(&commit('a')));
    let read = read_revision(store, &revision).await.unwrap();
    let expected = [&entries[1], &entries[2], &entries[0]].map(|it| Stored {
        key: it.key.clone(),
        namespace: it.namespace.clone(),
        bytes: it.bytes.clone(),
        changed_in: commit('a'),
        position: Some(it.position.clone()),
    });
    assert_eq!(read, expected);
    let reversed: Vec<_> = entries.iter().rev().cloned().collect();
    assert_eq!(write(store, &reversed, 'a', None).await, revision, "order is no meaning");
    let twice = write_revision(store, vec![], [entries[0].clone(), entries[0].clone()], None).await;
    assert_eq!(twice, Err(StoreError::Twice("Service/shop/b".into())));
    let nowhere = Revision { manifest: Hash::of(b"nowhere"), ..revision };
    assert_eq!(read_revision(store, &nowhere).await, Err(StoreError::Missing(nowhere.manifest)));
    assert_eq!(
        write(store, &[], 'b', None).await,
        write(store, &[], 'b', Some(&revision_of_nothing(store).await)).await
    );
}

/// Its manifest is one blob, larger than what some servers take in a request.
async fn a_namespace_may_be_large(store: &dyn Store) {
    let entries: Vec<_> = (0..20_000)
        .map(|i| entry("shop", &format!("a-service-with-a-long-name-{i}"), &i.to_string(), 'a'))
        .collect();
    let revision = write(store, &entries, 'a', None).await;
    assert_eq!(read_revision(store, &revision).await.unwrap().len(), 20_000);
}

async fn revision_of_nothing(store: &dyn Store) -> Revision {
    write(store, &[], 'a', None).await
}

async fn a_commit_writes_what_it_changed(store: &dyn Store) {
    let guard = store.campaign().await.unwrap();
    let mut entries: Vec<_> = (0..10_000)
        .map(|i| entry(&format!("ns-{}", i % 100), &format!("s-{i}"), &i.to_string(), 'a'))
        .collect();
    let first = write(store, &entries, 'a', None).await;
    publish(store, &first, &guard).await;
    entries[4_321].bytes = "changed".into();
    let second = write(store, &entries, 'b', Some(&first)).await;
    publish(store, &second, &guard).await;
    // What went out of use when only the second is kept: one resource, its namespace's manifest, and the top.
    assert_eq!(retain(store, 1, &guard).await.unwrap(), 3);
    assert_eq!(second.positions, first.positions);
    assert_eq!(read_revision(store, &second).await.unwrap().len(), 10_000);
    entries[0].position.line += 1;
    let moved = write(store, &entries, 'c', Some(&second)).await;
    assert_eq!(moved.manifest, second.manifest, "where a resource stands is no meaning");
    assert_ne!(moved.positions, second.positions);
}

async fn what_did_not_change_keeps_its_commit_and_author(store: &dyn Store) {
    let first = write(store, &[entry("shop", "a", "1", 'a'), entry("shop", "b", "1", 'a')], 'a', None).await;
    let next = [entry("shop", "a", "1", 'b'), entry("shop", "b", "2", 'b'), entry("shop", "c", "1", 'b')];
    let second = write(store, &next, 'b', Some(&first)).await;
    let read = read_revision(store, &second).await.unwrap();
    let told: Vec<_> =
        read.iter().map(|it| (it.changed_in.clone(), it.position.clone().unwrap().author)).collect();
    let by = |of: char| (commit(of), format!("author of {of}"));
    assert_eq!(told, [by('a'), by('b'), by('b')]);
}

async fn a_replica_asks_for_what_it_lacks(primary: &dyn Store, replica: &dyn Store) {
    let entries = [entry("shop", "a", "1", 'a'), entry("bank", "b", "2", 'a')];
    let revision = write(primary, &entries, 'a', None).await;
    let mut rounds = 0;
    loop {
        let lacking = missing(replica, &revision).await.unwrap();
        if lacking.is_empty() {
            break;
        }
        rounds += 1;
        let blobs = primary.get(lacking).await.unwrap();
        replica.put(blobs.into_iter().map(Option::unwrap).collect()).await.unwrap();
    }
    assert_eq!(rounds, 3);
    assert_eq!(read_revision(replica, &revision).await, read_revision(primary, &revision).await);
    let next =
        write(primary, &[entry("shop", "a", "9", 'b'), entries[1].clone()], 'b', Some(&revision)).await;
    let tops = missing(replica, &next).await.unwrap();
    assert!(tops.contains(&next.manifest));
}

async fn old_revisions_are_forgotten(store: &dyn Store) {
    let guard = store.campaign().await.unwrap();
    assert_eq!(retain(store, 1, &guard).await.unwrap(), 0);
    let mut revisions: Vec<Revision> = Vec::new();
    for i in 0..5 {
        let entries = [entry("shop", "same", "same", 'a'), entry("shop", "a", &i.to_string(), 'a')];
        let revision = write(store, &entries, 'a', revisions.last()).await;
        publish(store, &revision, &guard).await;
        revisions.push(revision);
    }
    assert!(retain(store, 2, &guard).await.unwrap() > 0);
    assert_eq!(store.heads(10).await.unwrap().len(), 2);
    for kept in &revisions[3..] {
        assert_eq!(read_revision(store, kept).await.unwrap().len(), 2);
    }
    assert!(matches!(read_revision(store, &revisions[2]).await, Err(StoreError::Missing(_))));
    assert_eq!(retain(store, 2, &guard).await.unwrap(), 0, "nothing more to forget");
}

/// A replica's heads need not come one by one.
async fn fifty_heads_on_old_ones_are_forgotten(store: &dyn Store) {
    let guard = store.campaign().await.unwrap();
    let (mut heads, mut last) = (Vec::new(), None);
    for i in 0..102 {
        let revision = write(store, &[entry("shop", "a", &i.to_string(), 'a')], 'a', last.as_ref()).await;
        heads.push(publish(store, &revision, &guard).await);
        last = Some(revision);
    }
    let kept = async || store.heads(1_000).await.unwrap().len();
    for (before, now) in [(None, 101), (Some(99), 100), (Some(50), 98)] {
        super::forget_old(store, before.map(|at: usize| heads[at]), heads[now], &guard).await;
        assert_eq!(kept().await, 102, "{before:?}, then {now}");
    }
    super::forget_old(store, Some(heads[97]), heads[101], &guard).await;
    assert_eq!(kept().await, super::KEPT_HEADS);
}

async fn documents_are_replaced_whole_by_who_leads(store: &dyn Store) {
    let old = store.campaign().await.unwrap();
    assert_eq!(store.document("keys").await.unwrap(), None);
    let large: Bytes = (0..3_000_000_u32).map(|i| (i / 1000) as u8).collect::<Vec<_>>().into();
    store.keep_document("keys", large.clone(), &old).await.unwrap();
    store.keep_document("other", "other".into(), &old).await.unwrap();
    assert_eq!(store.document("keys").await.unwrap(), Some(large));
    store.keep_document("keys", "small".into(), &old).await.unwrap();
    // What no head names is forgotten, but for documents.
    store.put(vec!["named by nothing".into()]).await.unwrap();
    store.sweep(HashSet::new(), Seq { epoch: 0, n: 0 }, &old).await.unwrap();
    assert_eq!(store.has(vec![Hash::of(b"named by nothing")]).await.unwrap(), [false]);
    assert_eq!(store.document("keys").await.unwrap(), Some("small".into()));
    assert_eq!(store.document("other").await.unwrap(), Some("other".into()));
    drop(old);
    let new = store.campaign().await.unwrap();
    store.keep_document("keys", "of the new leader".into(), &new).await.unwrap();
    assert_eq!(store.document("keys").await.unwrap(), Some("of the new leader".into()));
    let too_large = store.keep_document("keys", vec![0; MAX_BLOB_BYTES + 1].into(), &new).await;
    assert!(matches!(too_large, Err(Conflict::Store(StoreError::TooLarge { .. }))), "{too_large:?}");
}
