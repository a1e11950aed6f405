//! Documents: each name leads to the blob that holds it, so that a document is as large as a blob and changes at once.

use api::digest::Hash;
use bytes::Bytes;
use etcd_client::{DeleteOptions, GetOptions, TxnOp};

use super::{Core, server::text};
use crate::store::{Conflict, Election, StoreError};

/// Documents of one page of a listing; there are few.
const PAGE: i64 = 100;

impl Core {
    pub(super) async fn document(&self, name: &str) -> Result<Option<Bytes>, StoreError> {
        let mut missed = None;
        loop {
            let got = self.server.get(self.key(&format!("document/{name}")), GetOptions::new()).await?;
            let Some(one) = got.kvs().first() else { return Ok(None) };
            let hash = named(one.value())?;
            let error = match self.get(vec![hash]).await.map(|mut found| found.pop().flatten()) {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => StoreError::Missing(hash),
                Err(error @ StoreError::Damaged(_)) => error,
                Err(error) => return Err(error),
            };
            // It may have been replaced between the answers, all of it or a part, but then the name leads elsewhere by now.
            if missed.replace(hash) == Some(hash) {
                return Err(error);
            }
        }
    }

    pub(super) async fn keep_document(
        &self,
        name: &str,
        bytes: Bytes,
        guard: &Election,
    ) -> Result<(), Conflict> {
        let guard = self.guard(guard)?;
        let _alone = self.sweeping.lock().await;
        let key = self.key(&format!("document/{name}"));
        let before = self.server.get(key.clone(), GetOptions::new()).await?;
        let before = before.kvs().first().map(|one| named(one.value())).transpose()?;
        let hash = Hash::of(&bytes);
        self.put(vec![bytes]).await?;
        let mut operations = vec![TxnOp::put(key, hash.to_string(), None)];
        // At once, since documents change often and are large; a sweep comes with many a commit only.
        if let Some(before) = before.filter(|before| *before != hash) {
            operations.push(TxnOp::delete(self.key(&format!("blob/{before}")), None));
            let chunks = DeleteOptions::new().with_prefix();
            operations.push(TxnOp::delete(self.key(&format!("chunk/{before}/")), Some(chunks)));
        }
        if self.server.run(operations, Some(&guard)).await? { Ok(()) } else { Err(Conflict::NotLeader) }
    }

    /// The blobs that documents are.
    pub(super) async fn documents(&self) -> Result<Vec<Hash>, StoreError> {
        let all = self.server.list(&self.key("document/"), PAGE, GetOptions::new()).await?;
        all.iter().map(|one| named(one.value())).collect()
    }
}

fn named(value: &[u8]) -> Result<Hash, StoreError> {
    let hash = text(value)?.parse();
    hash.map_err(|_| StoreError::Damaged("a document whose name leads nowhere".into()))
}
