//! Registrations: plain keys, without etcd's leases, which would run out while every control plane is down.

use std::collections::BTreeMap;

use api::name::InstanceId;
use bytes::Bytes;
use etcd_client::{Compare, CompareOp, GetOptions, Txn, TxnOp, TxnOpResponse};

use super::{
    Core,
    server::{MAX_OPERATIONS, after, text},
};
use crate::store::{MAX_REGISTRATION_BYTES, MAX_REGISTRATIONS, Registration, StoreError};

/// Registrations of one page; together below the largest answer, however large each is.
const PAGE: i64 = 1_000;

impl Core {
    pub(super) async fn put_registration(&self, registration: Registration) -> Result<(), StoreError> {
        StoreError::limit("a registration", registration.bytes.len(), MAX_REGISTRATION_BYTES)?;
        let (key, beat) = self.registration(&registration.instance);
        let all = self.key("registration/");
        let count = GetOptions::new().with_range(after(&all)).with_count_only();
        let size = self.server.get(all, count).await?.count() as usize + 1;
        StoreError::limit("the registry", size, MAX_REGISTRATIONS)?;
        let both = [
            TxnOp::put(key, registration.bytes.to_vec(), None),
            TxnOp::put(beat, time(registration.beat_ms), None),
        ];
        self.server.run(both, None).await.map(drop)
    }

    pub(super) async fn registrations(&self) -> Result<Vec<Registration>, StoreError> {
        let (of_all, of_beats) = (self.key("registration/"), self.key("beat/"));
        let all = self.server.list(&of_all, PAGE, GetOptions::new()).await?;
        let mut beats = BTreeMap::new();
        for beat in self.server.list(&of_beats, PAGE, GetOptions::new()).await? {
            let at = text(beat.value())?.parse::<u64>();
            let at = at.map_err(|_| StoreError::Damaged("a heartbeat that is no time".into()))?;
            beats.insert(text(&beat.key()[of_beats.len()..])?.to_owned(), at);
        }
        let read = all.iter().map(|one| {
            let name = text(&one.key()[of_all.len()..])?;
            let beat_ms = beats.get(name).copied().unwrap_or_default();
            let instance = InstanceId::new(name).map_err(|bad| StoreError::Damaged(bad.to_string()))?;
            Ok(Registration { instance, bytes: Bytes::copy_from_slice(one.value()), beat_ms })
        });
        read.collect()
    }

    pub(super) async fn remove_registrations(&self, instances: Vec<InstanceId>) -> Result<(), StoreError> {
        let keys = instances.iter().flat_map(|instance| <[String; 2]>::from(self.registration(instance)));
        let all = keys.map(|key| TxnOp::delete(key, None)).collect::<Vec<_>>();
        self.server.run(all, None).await.map(drop)
    }

    pub(super) async fn beat(
        &self,
        instances: Vec<InstanceId>,
        now_ms: u64,
    ) -> Result<Vec<InstanceId>, StoreError> {
        let mut unknown = Vec::new();
        // Within one transaction etcd counts a nested one's operations too.
        for some in instances.chunks(MAX_OPERATIONS / 2) {
            let beats: Vec<_> =
                some.iter().map(|instance| TxnOp::txn(self.one_beat(instance, now_ms))).collect();
            let answer = self.server.transact(Txn::new().and_then(beats)).await?;
            let lost = some.iter().zip(answer.op_responses()).filter(|(_, one)| is_unknown(one));
            unknown.extend(lost.map(|(instance, _)| instance.clone()));
        }
        Ok(unknown)
    }

    /// Writes the beat if it is later; otherwise tells whether there is such a registration.
    fn one_beat(&self, instance: &InstanceId, now_ms: u64) -> Txn {
        let (key, beat) = self.registration(instance);
        Txn::new()
            .when([
                Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
                Compare::value(beat.as_str(), CompareOp::Less, time(now_ms)),
            ])
            .and_then([TxnOp::put(beat, time(now_ms), None)])
            .or_else([TxnOp::get(key, Some(GetOptions::new().with_count_only()))])
    }

    fn registration(&self, instance: &InstanceId) -> (String, String) {
        (self.key(&format!("registration/{instance}")), self.key(&format!("beat/{instance}")))
    }
}

/// A time as text that sorts as the time does, since etcd compares bytes.
fn time(ms: u64) -> String {
    format!("{ms:020}")
}

fn is_unknown(answer: &TxnOpResponse) -> bool {
    let TxnOpResponse::Txn(answer) = answer else { return false };
    !answer.succeeded()
        && answer.op_responses().iter().all(|one| matches!(one, TxnOpResponse::Get(got) if got.count() == 0))
}
