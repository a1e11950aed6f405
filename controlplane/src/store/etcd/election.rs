//! Who leads: one key that lives as long as its lease, and a value that no other leadership has:
//! `HOLDER LIFE LEADERSHIP`, the last two drawn by lot.
//!
//! A process that was killed leaves its leadership behind. The next one at its place is known by the holder's name and
//! takes it over without waiting for the lease to end. So no two that live may have one name.

use std::{sync::Arc, time::Duration};

use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::Core;
use crate::store::{Conflict, Election, StoreError};

/// A leader that is silent for this long is none any more. Longer than a pause of the disk, shorter than patience.
const LEASE: Duration = Duration::from_secs(5);
/// Between two renewals; two may fail.
const RENEWAL: Duration = Duration::from_millis(1_600);
/// Between two looks at somebody else's leadership, should the word of its end be lost.
const LOOK: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(200);

/// Who put a value there.
enum Whose {
    /// This process: it holds the leadership already.
    Own,
    /// Its earlier life, which ended without a word.
    Earlier,
    /// Another control plane of the cluster.
    Other(String),
}

/// What no other life and no other leadership has.
pub(super) fn nonce() -> String {
    data_encoding::HEXLOWER.encode(&rand::random::<[u8; 16]>())
}

/// A leadership that was won.
struct Held {
    core: Arc<Core>,
    lease: i64,
    value: Vec<u8>,
    lost: CancellationToken,
    _keeper: AbortOnDropHandle<()>,
}

impl Drop for Held {
    /// Resigns, so that nobody has to wait for the end of the lease.
    fn drop(&mut self) {
        self.lost.cancel();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (core, lease) = (self.core.clone(), self.lease);
        runtime.spawn(async move {
            // A lease that cannot be revoked ends by itself.
            let _ = core.revoke(lease).await;
        });
    }
}

impl Core {
    /// Waits until this process leads, however long the servers are away.
    pub(super) async fn campaign(self: Arc<Self>) -> Election {
        let mut told = None;
        loop {
            let stood = self.stand().await;
            self.set_barred(stood.is_err());
            match stood {
                Ok(Some(election)) => return election,
                Ok(None) => {}
                Err(error) => {
                    if told.replace(error.clone()).as_ref() != Some(&error) {
                        tracing::warn!(%error, "cannot stand for election");
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Leads if nobody does; otherwise waits until that may have changed.
    async fn stand(self: &Arc<Self>) -> Result<Option<Election>, StoreError> {
        let key = self.key("leader");
        let got = self.server.get(key.clone(), GetOptions::new()).await?;
        let held = got.kvs().first().map(|one| one.value().to_vec());
        match held.as_deref().map(|value| self.whose(value)) {
            None | Some(Whose::Earlier) => return self.take(key, held).await,
            Some(Whose::Own) => {}
            Some(Whose::Other(name)) => self.set_rival(Some(name)),
        }
        let from = got.header().map_or(0, |header| header.revision()) + 1;
        let _ = tokio::time::timeout(LOOK, self.gone(key, from)).await;
        Ok(None)
    }

    fn whose(&self, value: &[u8]) -> Whose {
        let value = String::from_utf8_lossy(value);
        let mut words = value.split(' ');
        match (words.next().unwrap_or_default(), words.next().unwrap_or_default()) {
            (holder, life) if holder != self.holder.0 || life.is_empty() => Whose::Other(holder.to_owned()),
            (_, life) if life == self.holder.1 => Whose::Own,
            (_, _) => Whose::Earlier,
        }
    }

    fn set_rival(&self, name: Option<String>) {
        self.rival.send_if_modified(|known| {
            let news = *known != name;
            *known = name;
            news
        });
    }

    fn set_barred(&self, barred: bool) {
        self.barred.send_if_modified(|known| std::mem::replace(known, barred) != barred);
    }

    /// Takes what is free, or `left` behind.
    async fn take(
        self: &Arc<Self>,
        key: String,
        left: Option<Vec<u8>>,
    ) -> Result<Option<Election>, StoreError> {
        let sent = Instant::now();
        let granted = self.server.ask(|client| {
            let mut lease = client.lease_client();
            async move { lease.grant(LEASE.as_secs() as i64, None).await }
        });
        let lease = granted.await?.id();
        let (holder, life) = &self.holder;
        let value = format!("{holder} {life} {}", nonce()).into_bytes();
        let as_found = match left {
            Some(left) => Compare::value(key.as_str(), CompareOp::Equal, left),
            None => Compare::create_revision(key.as_str(), CompareOp::Equal, 0),
        };
        let txn = Txn::new().when([as_found]).and_then([TxnOp::put(
            key.as_str(),
            value.as_slice(),
            Some(PutOptions::new().with_lease(lease)),
        )]);
        self.server.transact(txn).await?;
        // The transaction may have been done by a try whose answer was lost, so what counts is what is there.
        let got = self.server.get(key, GetOptions::new()).await?;
        let Some(mine) = got.kvs().first().filter(|one| one.value() == value) else {
            self.revoke(lease).await?;
            return Ok(None);
        };
        self.set_rival(None);
        let lost = CancellationToken::new();
        *self.leads() = Some((lost.clone(), lease));
        let keeper = tokio::spawn(self.clone().keep(lease, value.clone(), sent, lost.clone()));
        let keeper = AbortOnDropHandle::new(keeper);
        let held = Held { core: self.clone(), lease, value, lost: lost.clone(), _keeper: keeper };
        Ok(Some(Election { term: mine.mod_revision() as u64, lost, held: Box::new(held) }))
    }

    /// Ends when `key` is deleted, or the watch is.
    async fn gone(&self, key: String, from: i64) {
        let watching = self.server.ask(|client| {
            let (key, options) = (key.clone(), WatchOptions::new().with_start_revision(from));
            let mut watch = client.watch_client();
            async move { watch.watch(key, Some(options)).await }
        });
        let Ok(mut watched) = watching.await else { return tokio::time::sleep(AGAIN).await };
        while let Ok(Some(message)) = watched.message().await {
            if message.canceled() || !message.events().is_empty() {
                return;
            }
        }
    }

    /// Renews the lease until it is lost. Time is counted from when a renewal was sent, so this side gives up first.
    async fn keep(self: Arc<Self>, lease: i64, value: Vec<u8>, sent: Instant, lost: CancellationToken) {
        let mut renewed = sent;
        loop {
            let begun = Instant::now();
            let asked = tokio::time::timeout_at(renewed + LEASE, self.renew(lease, &value));
            match asked.await {
                Ok(Ok(true)) => renewed = begun,
                Ok(Err(error)) => tracing::warn!(%error, "the lease of the leadership was not renewed"),
                Ok(Ok(false)) | Err(_) => break,
            }
            tokio::select! {
                () = tokio::time::sleep(RENEWAL) => {}
                () = lost.cancelled() => return,
            }
        }
        tracing::warn!("this control plane does not lead any more");
        lost.cancel();
    }

    /// Whether the lease was renewed and its key is still this one.
    async fn renew(&self, lease: i64, value: &[u8]) -> Result<bool, StoreError> {
        let renewed = self.server.ask(|client| {
            let mut client = client.lease_client();
            async move {
                match client.keep_alive(lease).await {
                    Ok(_) => Ok(true),
                    Err(etcd_client::Error::LeaseKeepAliveError(_)) => Ok(false),
                    Err(error) => Err(error),
                }
            }
        });
        if !renewed.await? {
            return Ok(false);
        }
        let got = self.server.get(self.key("leader"), GetOptions::new()).await?;
        Ok(got.kvs().first().is_some_and(|one| one.value() == value))
    }

    pub(super) async fn revoke(&self, lease: i64) -> Result<(), StoreError> {
        let revoked = self.server.ask(|client| {
            let mut client = client.lease_client();
            async move { client.revoke(lease).await }
        });
        revoked.await.map(drop)
    }

    /// What a transaction of this leader must find.
    pub(super) fn guard(&self, election: &Election) -> Result<Compare, Conflict> {
        let held = election.held.downcast_ref::<Held>().filter(|held| !held.lost.is_cancelled());
        let held = held.ok_or(Conflict::NotLeader)?;
        Ok(Compare::value(self.key("leader"), CompareOp::Equal, held.value.as_slice()))
    }
}
