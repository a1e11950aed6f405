//! Documents: each name leads to the blob that holds it, so that a document is as large as a blob and changes at once.

use api::digest::Hash;
use bytes::Bytes;
use etcd_client::{GetOptions, TxnOp};

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
            if let Some(bytes) = self.get(vec![hash]).await?.pop().flatten() {
                return Ok(Some(bytes));
            }
            // It may have been replaced and swept between the two answers, but then the name leads elsewhere by now.
            if missed.replace(hash) == Some(hash) {
                return Err(StoreError::Missing(hash));
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
        let hash = Hash::of(&bytes);
        self.put(vec![bytes]).await?;
        let put = TxnOp::put(self.key(&format!("document/{name}")), hash.to_string(), None);
        if self.server.run([put], Some(&guard)).await? { Ok(()) } else { Err(Conflict::NotLeader) }
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
