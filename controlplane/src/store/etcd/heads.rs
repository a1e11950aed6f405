//! The head: moved by a guarded transaction, followed by a watch that begins anew whenever it breaks.

use std::{sync::Arc, time::Duration};

use api::head::{Seq, SignedHead};
use etcd_client::{
    Compare, CompareOp, GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchOptions,
};

use super::{
    Core,
    server::{FORMAT, after},
};
use crate::store::{Conflict, Election, StoreError};

/// Between two tries to follow the head.
const AGAIN: Duration = Duration::from_millis(200);

/// Without an answer for this long the servers count as away.
const PATIENCE: Duration = Duration::from_secs(1);

/// The head as the server holds it.
pub(super) struct Held {
    pub(super) head: Option<SignedHead>,
    /// The server's revision that last changed it; 0 when there is none.
    changed: i64,
    /// The server's revision at which it was read.
    read: i64,
}

impl Core {
    pub(super) fn head_key(&self, seq: Seq) -> String {
        self.key(&format!("heads/{:020}.{:020}", seq.epoch, seq.n))
    }

    pub(super) async fn read_head(&self) -> Result<Held, StoreError> {
        let got = self.server.get(self.key("head"), GetOptions::new()).await?;
        let read = got.header().map_or(0, |header| header.revision());
        match got.kvs().first() {
            Some(one) => Ok(Held { head: Some(decode(one.value())?), changed: one.mod_revision(), read }),
            None => Ok(Held { head: None, changed: 0, read }),
        }
    }

    pub(super) async fn heads(&self, limit: usize) -> Result<Vec<SignedHead>, StoreError> {
        let prefix = self.key("heads/");
        let newest = GetOptions::new()
            .with_range(after(&prefix))
            .with_limit(limit as i64)
            .with_sort(SortTarget::Key, SortOrder::Descend);
        let got = self.server.get(prefix, newest).await?;
        got.kvs().iter().map(|one| decode(one.value())).collect()
    }

    pub(super) async fn swap_head(
        &self,
        expected: Option<Seq>,
        next: SignedHead,
        guard: &Election,
    ) -> Result<(), Conflict> {
        let guard = self.guard(guard)?;
        let held = self.read_head().await?;
        let found = held.head.as_ref().map(|head| head.head().seq());
        if found != expected {
            return Err(Conflict::Moved { found });
        }
        let seq = next.head().seq();
        if let Some(found) = found.filter(|found| seq <= *found) {
            return Err(Conflict::NotLater { found, next: seq });
        }
        let (head, bytes) = (self.key("head"), next.encode());
        let txn = Txn::new()
            .when([guard, Compare::mod_revision(head.as_str(), CompareOp::Equal, held.changed)])
            .and_then([
                TxnOp::put(head.as_str(), bytes.as_slice(), None),
                TxnOp::put(self.head_key(seq), bytes.as_slice(), None),
                TxnOp::put(self.key("format"), FORMAT.to_string(), None),
            ])
            .or_else([TxnOp::get(head, None)]);
        let answer = self.server.transact(txn).await?;
        let now = answer.op_responses().into_iter().find_map(|one| match one {
            TxnOpResponse::Get(mut got) => got.take_kvs().pop(),
            _ => None,
        });
        // An answer may be lost where the transaction was not: then the second try finds what the first one wrote.
        let done = answer.succeeded() || now.as_ref().is_some_and(|now| now.value() == bytes);
        if done {
            self.learn(Some(next));
            return Ok(());
        }
        let found = now.map(|now| decode(now.value())).transpose()?.map(|head| head.head().seq());
        if found == expected { Err(Conflict::NotLeader) } else { Err(Conflict::Moved { found }) }
    }

    /// Tells of each head as it comes, for as long as the store is held.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            match self.follow_once().await {
                Ok(()) => {}
                Err(error) => {
                    if self.away.borrow().is_none() {
                        tracing::warn!(%error, "etcd is away; what is in force stays");
                    }
                    self.set_away(true);
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// From what is there now to the end of one watch: the connection's, the member's, or by a compaction.
    async fn follow_once(&self) -> Result<(), StoreError> {
        let reading = tokio::time::timeout(PATIENCE, self.read_head()).await;
        let held = reading.unwrap_or_else(|_| Err(StoreError::Failed("no answer in time".into())))?;
        if self.away.borrow().is_some() {
            tracing::info!("etcd is back");
        }
        self.set_away(false);
        if self.learn(held.head) {
            tracing::warn!("etcd is behind what is in force: was it restored? Who leads begins a new epoch");
            self.step_down();
        }
        let (key, from) = (self.key("head"), held.read + 1);
        let watching = self.server.ask(|client| {
            let (key, options) = (key.clone(), WatchOptions::new().with_start_revision(from));
            let mut watch = client.watch_client();
            async move { watch.watch(key, Some(options)).await }
        });
        let mut watched = watching.await?;
        // What ends a watch shows in the next reading, if it lasts.
        while let Ok(Some(message)) = watched.message().await {
            if message.canceled() {
                return Ok(());
            }
            for put in
                message.events().iter().filter_map(|event| event.kv()).filter(|kv| !kv.value().is_empty())
            {
                self.learn(Some(decode(put.value())?));
            }
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<SignedHead, StoreError> {
    SignedHead::decode(bytes).map_err(|error| StoreError::Damaged(error.to_string()))
}
