//! Blobs, each under its hash. A large one lies in chunks that are written before their root and go after it.

use std::collections::{BTreeMap, HashSet};

use api::{digest::Hash, head::Seq};
use bytes::Bytes;
use etcd_client::{DeleteOptions, GetOptions, TxnOp};

use super::{
    Core,
    server::{MAX_OPERATIONS, text},
};
use crate::store::{Conflict, Election, MAX_BLOB_BYTES, StoreError};

/// etcd takes 1.5 MiB in a request, with keys and what is around them.
const MAX_REQUEST_BYTES: usize = 1024 * 1024;
const CHUNK_BYTES: usize = 512 * 1024;
/// Keys of one page of a listing.
const PAGE: i64 = 5_000;

/// What the first byte of a root says.
const WHOLE: u8 = 0;
const CHUNKED: u8 = 1;

impl Core {
    pub(super) async fn put(&self, blobs: Vec<Bytes>) -> Result<Vec<Hash>, StoreError> {
        blobs.iter().try_for_each(|blob| StoreError::limit("a blob", blob.len(), MAX_BLOB_BYTES))?;
        let hashes: Vec<Hash> = blobs.iter().map(|blob| Hash::of(blob)).collect();
        let new: BTreeMap<Hash, Bytes> = hashes.iter().copied().zip(blobs).collect();
        let here = self.has(new.keys().copied().collect()).await?;
        let (mut chunks, mut roots) = (Vec::new(), Vec::new());
        for ((hash, blob), _) in new.into_iter().zip(here).filter(|(_, here)| !here) {
            let root = self.key(&format!("blob/{hash}"));
            if blob.len() <= CHUNK_BYTES {
                roots.push((root, [&[WHOLE], &blob[..]].concat()));
                continue;
            }
            let parts = blob.chunks(CHUNK_BYTES).enumerate();
            chunks.extend(parts.map(|(i, part)| (self.chunk(&hash, i), part.to_vec())));
            let count = blob.len().div_ceil(CHUNK_BYTES) as u32;
            roots.push((root, [&[CHUNKED], &count.to_be_bytes()[..]].concat()));
        }
        self.write(chunks).await?;
        self.write(roots).await?;
        Ok(hashes)
    }

    /// Writes in as many transactions as etcd's limits ask for.
    async fn write(&self, pairs: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        for (key, value) in pairs {
            let more = key.len() + value.len();
            if bytes + more > MAX_REQUEST_BYTES || batch.len() == MAX_OPERATIONS {
                self.server.run(std::mem::take(&mut batch), None).await?;
                bytes = 0;
            }
            bytes += more;
            batch.push(TxnOp::put(key, value, None));
        }
        self.server.run(batch, None).await?;
        Ok(())
    }

    pub(super) async fn get(&self, hashes: Vec<Hash>) -> Result<Vec<Option<Bytes>>, StoreError> {
        let roots: Vec<_> = hashes.iter().map(|hash| self.key(&format!("blob/{hash}"))).collect();
        let roots = self.server.get_each(&roots, GetOptions::new()).await?;
        let mut blobs = Vec::with_capacity(hashes.len());
        for (hash, root) in hashes.into_iter().zip(roots) {
            let blob = match root {
                Some(root) => Some(self.whole(&hash, root.value()).await?),
                None => None,
            };
            blobs.push(blob);
        }
        Ok(blobs)
    }

    async fn whole(&self, hash: &Hash, root: &[u8]) -> Result<Bytes, StoreError> {
        let damaged = |what: &str| StoreError::Damaged(format!("blob {} {what}", hash.short()));
        let bytes = match root.split_first() {
            Some((&WHOLE, bytes)) => bytes.to_vec(),
            Some((&CHUNKED, count)) => {
                let count = count.try_into().map(u32::from_be_bytes).map_err(|_| damaged("has no count"))?;
                let limit = MAX_BLOB_BYTES.div_ceil(CHUNK_BYTES);
                StoreError::limit("a blob's chunks", count as usize, limit)?;
                let keys: Vec<_> = (0..count as usize).map(|i| self.chunk(hash, i)).collect();
                let chunks = self.server.get_each(&keys, GetOptions::new()).await?;
                let chunks: Option<Vec<_>> = chunks.into_iter().collect();
                let chunks = chunks.ok_or_else(|| damaged("lacks a chunk"))?;
                chunks.iter().flat_map(|chunk| chunk.value()).copied().collect()
            }
            Some(_) | None => return Err(damaged("is written in an unknown way")),
        };
        if Hash::of(&bytes) == *hash { Ok(bytes.into()) } else { Err(damaged("has another content")) }
    }

    pub(super) async fn has(&self, hashes: Vec<Hash>) -> Result<Vec<bool>, StoreError> {
        let roots: Vec<_> = hashes.iter().map(|hash| self.key(&format!("blob/{hash}"))).collect();
        let found = self.server.get_each(&roots, GetOptions::new().with_keys_only()).await?;
        Ok(found.iter().map(Option::is_some).collect())
    }

    pub(super) async fn sweep(
        &self,
        live: HashSet<Hash>,
        oldest: Seq,
        guard: &Election,
    ) -> Result<usize, Conflict> {
        let guard = self.guard(guard)?;
        let _alone = self.sweeping.lock().await;
        let live = live.into_iter().chain(self.documents().await?).collect::<HashSet<_>>();
        let dead = async |prefix: &str| -> Result<Vec<String>, StoreError> {
            let listed = self.server.list(prefix, PAGE, GetOptions::new().with_keys_only()).await?;
            let keys = listed.iter().map(|one| text(one.key()).map(str::to_owned));
            let keys = keys.collect::<Result<Vec<_>, _>>()?;
            let is_live = |key: &String| {
                let hash = key[prefix.len()..].split('/').next().and_then(|hash| hash.parse().ok());
                hash.is_some_and(|hash| live.contains(&hash))
            };
            Ok(keys.into_iter().filter(|key| !is_live(key)).collect())
        };
        let roots = dead(&self.key("blob/")).await?;
        let gone = roots.len();
        // Of a blob whose root was never written, too.
        let chunks = dead(&self.key("chunk/")).await?;
        let heads = self.key("heads/");
        let old = DeleteOptions::new().with_range(self.head_key(oldest));
        let all = roots.into_iter().chain(chunks).map(|key| TxnOp::delete(key, None));
        let all = all.chain([TxnOp::delete(heads, Some(old))]);
        if self.server.run(all, Some(&guard)).await? { Ok(gone) } else { Err(Conflict::NotLeader) }
    }

    fn chunk(&self, hash: &Hash, i: usize) -> String {
        self.key(&format!("chunk/{hash}/{i:04}"))
    }
}
