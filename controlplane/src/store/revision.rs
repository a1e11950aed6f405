//! Revisions as blobs: a top manifest lists the namespaces' manifests, which list the resources' blobs.
//!
//! ```text
//! Revision.manifest  → { namespace: hash } → { key: (blob, changed_in) } → canonical bytes of a resource
//! Revision.positions → { namespace: hash } → { key: (file, line, author) }
//! ```
//!
//! Unchanged resources and unchanged namespaces keep their hashes, so a commit writes what it changed.
//! All of it is JSON with sorted keys: equal content has one hash.

use std::collections::{BTreeMap, HashMap, HashSet};

use api::digest::Hash;
use api::head::{CommitId, Revision, Seq};
use api::name::SourceName;
use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Conflict, Election, KEPT_HEADS, MAX_BLOB_BYTES, Store, StoreError};

/// How many missing blobs are asked for at once.
const MAX_MISSING: usize = 4096;
/// Heads between two looks for what is kept in vain.
const SWEEP_EVERY: u64 = 50;

/// A resource that is to be kept.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its key as text, unique in the revision.
    pub key: String,
    /// Its namespace; empty when it has none.
    pub namespace: String,
    /// What it means, in canonical form.
    pub bytes: Bytes,
    /// The commit that it was read at.
    pub commit: CommitId,
    /// Where it stands; `author` and `source` are those of `commit`.
    pub position: Position,
}

/// Where a resource stands, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Its file, from the folder that is read.
    pub file: String,
    /// Its first line, counted from 1.
    pub line: u32,
    /// Who changed it last.
    pub author: String,
    /// The source whose commit that was; older versions did not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceName>,
    /// The lines of `/spec/rules/0`, `/spec/rules/1`, ..., of kinds that have rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<u32>,
}

/// A resource as it was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// See [`Entry::key`].
    pub key: String,
    /// See [`Entry::namespace`].
    pub namespace: String,
    /// See [`Entry::bytes`].
    pub bytes: Bytes,
    /// The commit that gave it this meaning.
    pub changed_in: CommitId,
    /// Where it stands.
    pub position: Option<Position>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Line {
    blob: Hash,
    changed_in: CommitId,
}

type Top = BTreeMap<String, Hash>;
type Lines = BTreeMap<String, Line>;
type Positions = BTreeMap<String, Position>;

/// Keeps the resources of one revision and gives its name. The head is not touched.
///
/// A resource whose bytes are those of `previous` keeps its `changed_in`, with author and source.
pub async fn write_revision(
    store: &dyn Store,
    commits: Vec<(SourceName, CommitId)>,
    entries: impl IntoIterator<Item = Entry>,
    previous: Option<&Revision>,
) -> Result<Revision, StoreError> {
    let before = match previous {
        Some(revision) => Tree::read(store, revision).await?,
        None => Tree::default(),
    };
    let mut tree = Tree::default();
    let mut blobs = HashMap::new();
    for entry in entries {
        let hash = Hash::of(&entry.bytes);
        let known = before.line(&entry.namespace, &entry.key).filter(|line| line.blob == hash);
        let position = before.position(&entry.namespace, &entry.key).filter(|_| known.is_some());
        let said = position.unwrap_or(&entry.position);
        let (author, source) = (said.author.clone(), said.source.clone());
        let changed_in = known.map_or(entry.commit, |line| line.changed_in.clone());
        if known.is_none() {
            blobs.insert(hash, entry.bytes);
        }
        let lines = tree.lines.entry(entry.namespace.clone()).or_default();
        if lines.insert(entry.key.clone(), Line { blob: hash, changed_in }).is_some() {
            return Err(StoreError::Twice(entry.key));
        }
        let positions = tree.positions.entry(entry.namespace).or_default();
        positions.insert(entry.key, Position { author, source, ..entry.position });
    }
    let manifest = group(&tree.lines, &mut blobs);
    let positions = group(&tree.positions, &mut blobs);
    store.put(blobs.into_values().collect()).await?;
    Ok(Revision { commits, manifest, positions: Some(positions) })
}

/// All resources of `revision`, sorted by namespace and key.
pub async fn read_revision(store: &dyn Store, revision: &Revision) -> Result<Vec<Stored>, StoreError> {
    let mut tree = Tree::read(store, revision).await?;
    let hashes = tree.lines.values().flat_map(Lines::values).map(|line| line.blob).collect();
    let mut blobs = fetch(store, hashes).await?.into_iter();
    let mut all = Vec::with_capacity(blobs.len());
    for (namespace, lines) in std::mem::take(&mut tree.lines) {
        for ((key, line), bytes) in lines.into_iter().zip(blobs.by_ref()) {
            let position = tree.position(&namespace, &key).cloned();
            all.push(Stored {
                key,
                namespace: namespace.clone(),
                bytes,
                changed_in: line.changed_in,
                position,
            });
        }
    }
    Ok(all)
}

/// Blobs that must be brought here before `revision` can be read, at most some thousand at once.
///
/// What a manifest names is known only once the manifest is here: bring these, ask again, until there are none.
pub async fn missing(store: &dyn Store, revision: &Revision) -> Result<Vec<Hash>, StoreError> {
    let tops: Vec<Hash> = [revision.manifest].into_iter().chain(revision.positions).collect();
    let absent = lacking(store, tops.clone()).await?;
    if !absent.is_empty() {
        return Ok(absent);
    }
    let groups = groups(store, tops).await?;
    let absent = lacking(store, groups).await?;
    if !absent.is_empty() {
        return Ok(absent);
    }
    let tree = Tree::read(store, &Revision { positions: None, ..revision.clone() }).await?;
    lacking(store, tree.lines.values().flat_map(Lines::values).map(|line| line.blob).collect()).await
}

/// The head has moved from `before` to `now`: forgets what only old ones need, each time that fifty have passed.
///
/// Invariant: who moves the head calls it between two moves, never beside [`write_revision`] or the coming of another
/// cluster's blobs, which no head names yet.
pub async fn forget_old(store: &dyn Store, before: Option<Seq>, now: Seq, guard: &Election) {
    let passed = |before: Seq| before.epoch == now.epoch && before.n / SWEEP_EVERY < now.n / SWEEP_EVERY;
    if !before.is_some_and(passed) {
        return;
    }
    match retain(store, KEPT_HEADS, guard).await {
        Ok(gone) => tracing::info!(blobs = gone, "forgot what only old revisions need"),
        Err(error) => tracing::warn!(%error, "old revisions could not be forgotten"),
    }
}

/// Forgets what only heads before the last `keep` need; says how many blobs went.
pub(crate) async fn retain(store: &dyn Store, keep: usize, guard: &Election) -> Result<usize, Conflict> {
    let heads = store.heads(keep.max(1)).await?;
    let Some(oldest) = heads.last().map(|head| head.head().seq()) else { return Ok(0) };
    let mut live = HashSet::new();
    for head in &heads {
        for revision in head.head().stable.iter().chain(&head.head().candidate) {
            mark(store, revision, &mut live).await?;
        }
    }
    store.sweep(live, oldest, guard).await
}

/// Adds all that `revision` reaches. Part of it may be missing where a replica was cut off.
async fn mark(store: &dyn Store, revision: &Revision, live: &mut HashSet<Hash>) -> Result<(), StoreError> {
    let new = |hashes: Vec<Hash>, live: &mut HashSet<Hash>| -> Vec<Hash> {
        hashes.into_iter().filter(|hash| live.insert(*hash)).collect()
    };
    for top in new(vec![revision.manifest], live) {
        for group in new(named::<Top>(store, top).await?.into_values().collect(), live) {
            live.extend(named::<Lines>(store, group).await?.into_values().map(|line| line.blob));
        }
    }
    for top in new(revision.positions.into_iter().collect(), live) {
        live.extend(named::<Top>(store, top).await?.into_values());
    }
    Ok(())
}

/// The manifests of one revision.
#[derive(Default)]
struct Tree {
    lines: BTreeMap<String, Lines>,
    positions: BTreeMap<String, Positions>,
}

impl Tree {
    async fn read(store: &dyn Store, revision: &Revision) -> Result<Self, StoreError> {
        let lines = ungroup(store, revision.manifest).await?;
        let positions = match revision.positions {
            Some(top) => ungroup(store, top).await?,
            None => BTreeMap::new(),
        };
        Ok(Tree { lines, positions })
    }

    fn line(&self, namespace: &str, key: &str) -> Option<&Line> {
        self.lines.get(namespace)?.get(key)
    }

    fn position(&self, namespace: &str, key: &str) -> Option<&Position> {
        self.positions.get(namespace)?.get(key)
    }
}

/// Makes one blob a namespace and one that lists them; gives the hash of the latter.
fn group<T: Serialize>(namespaces: &BTreeMap<String, T>, blobs: &mut HashMap<Hash, Bytes>) -> Hash {
    let mut keep = |bytes: Vec<u8>| {
        let hash = Hash::of(&bytes);
        blobs.insert(hash, bytes.into());
        hash
    };
    let top: Top = namespaces.iter().map(|(name, group)| (name.clone(), keep(encode(group)))).collect();
    keep(encode(&top))
}

/// What [`group`] made.
async fn ungroup<T: DeserializeOwned>(
    store: &dyn Store,
    top: Hash,
) -> Result<BTreeMap<String, T>, StoreError> {
    let (names, hashes): (Vec<_>, Vec<_>) =
        decode::<Top>(top, &fetch_one(store, top).await?)?.into_iter().unzip();
    let blobs = fetch(store, hashes.clone()).await?;
    let named = names.into_iter().zip(hashes).zip(blobs);
    named.map(|((name, hash), bytes)| Ok((name, decode(hash, &bytes)?))).collect()
}

async fn groups(store: &dyn Store, tops: Vec<Hash>) -> Result<Vec<Hash>, StoreError> {
    let mut all = Vec::new();
    for top in tops {
        all.extend(decode::<Top>(top, &fetch_one(store, top).await?)?.into_values());
    }
    Ok(all)
}

/// A blob's content, or nothing of it when the blob is not here.
async fn named<T: DeserializeOwned + Default>(store: &dyn Store, hash: Hash) -> Result<T, StoreError> {
    match store.get(vec![hash]).await?.pop().flatten() {
        Some(bytes) => decode(hash, &bytes),
        None => Ok(T::default()),
    }
}

async fn lacking(store: &dyn Store, mut hashes: Vec<Hash>) -> Result<Vec<Hash>, StoreError> {
    hashes.sort_unstable();
    hashes.dedup();
    let here = store.has(hashes.clone()).await?;
    Ok(hashes
        .into_iter()
        .zip(here)
        .filter(|(_, here)| !here)
        .map(|(hash, _)| hash)
        .take(MAX_MISSING)
        .collect())
}

async fn fetch(store: &dyn Store, hashes: Vec<Hash>) -> Result<Vec<Bytes>, StoreError> {
    let blobs = store.get(hashes.clone()).await?;
    blobs.into_iter().zip(hashes).map(|(blob, hash)| blob.ok_or(StoreError::Missing(hash))).collect()
}

async fn fetch_one(store: &dyn Store, hash: Hash) -> Result<Bytes, StoreError> {
    store.get(vec![hash]).await?.pop().flatten().ok_or(StoreError::Missing(hash))
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("maps with text keys, no float")
}

fn decode<T: DeserializeOwned>(hash: Hash, bytes: &[u8]) -> Result<T, StoreError> {
    StoreError::limit("a manifest", bytes.len(), MAX_BLOB_BYTES)?;
    serde_json::from_slice(bytes)
        .map_err(|error| StoreError::Damaged(format!("manifest {}: {error}", hash.short())))
}
