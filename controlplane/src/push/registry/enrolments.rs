//! Who was let in by a token, and is known since by its certificates. What is told of it by streams is the registry's.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use api::{
    digest::Hash,
    name::{InstanceId, Namespace, ServiceAccount, WorkloadId},
    resource::Labels,
};
use process::world::Moment;
use serde::{Deserialize, Serialize};
use tokio::{sync::Mutex, time::Instant};

use super::{RegistryError, write};
use crate::store::{Store, StoreError};

/// Leaves of one workload that are believed at a time: the present one, and those that may still be in use.
pub(super) const KEPT_LEAVES: usize = 8;
/// Enrolments stand beside registrations under a name that no instance has.
const ENROLLED: &str = "enrolled.";
/// How much longer than its newest leaf an enrolment stays: without a leaf nobody can use it.
pub(super) const KEPT: Duration = Duration::from_secs(3600);

/// What a token vouched for, and the certificates that were signed on the strength of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enrolled {
    /// The workload.
    pub workload: WorkloadId,
    /// Its namespace.
    pub namespace: Namespace,
    /// Its service account.
    pub service_account: ServiceAccount,
    /// Its labels.
    pub labels: Labels,
    /// SHA-256 of its leaves, oldest first.
    pub leaves: Vec<Hash>,
    /// How many seconds the newest of them lives.
    #[serde(default)]
    pub lifetime: u64,
}

/// All enrolments of this cluster, in memory and in the store.
pub struct Enrolments {
    store: Arc<dyn Store>,
    known: std::sync::Mutex<HashMap<WorkloadId, Known>>,
    /// Whoever changes one has all of them: what is renewed at this moment is not taken for unused.
    changing: Mutex<()>,
}

/// An enrolment, and since when its newest leaf lives; no earlier than since this process does.
struct Known {
    enrolled: Enrolled,
    since: Instant,
}

/// Whether what the store has under this name is an enrolment.
pub(super) fn is_one(instance: &InstanceId) -> bool {
    instance.as_str().starts_with(ENROLLED)
}

impl Enrolments {
    pub(super) fn new(store: Arc<dyn Store>, enrolled: Vec<Enrolled>, now: Moment) -> Self {
        let known = |enrolled: Enrolled| (enrolled.workload.clone(), Known { enrolled, since: now.counted });
        let known = enrolled.into_iter().map(known).collect::<HashMap<_, _>>();
        Enrolments { store, known: known.into(), changing: Mutex::default() }
    }

    /// Notes what a token vouched for and the first leaf signed for it.
    pub async fn begin(&self, enrolled: Enrolled, now: Moment) -> Result<(), StoreError> {
        let _alone = self.changing.lock().await;
        self.note(enrolled, now).await
    }

    /// Notes a renewed leaf of the workload that showed `present`, which lives for `lifetime` seconds.
    pub async fn renew(
        &self,
        present: &Hash,
        next: Hash,
        lifetime: u64,
        now: Moment,
    ) -> Result<(), RegistryError> {
        let _alone = self.changing.lock().await;
        let mut enrolled = self.by_leaf(present).ok_or(RegistryError::Unknown)?;
        enrolled.lifetime = lifetime;
        enrolled.leaves.push(next);
        let surplus = enrolled.leaves.len().saturating_sub(KEPT_LEAVES);
        enrolled.leaves.drain(..surplus);
        Ok(self.note(enrolled, now).await?)
    }

    async fn note(&self, enrolled: Enrolled, now: Moment) -> Result<(), StoreError> {
        self.keep(&enrolled).await?;
        self.lock().insert(enrolled.workload.clone(), Known { enrolled, since: now.counted });
        Ok(())
    }

    /// The workload that a leaf was signed for.
    pub fn by_leaf(&self, leaf: &Hash) -> Option<Enrolled> {
        let all = self.lock();
        let mut all = all.values().map(|known| &known.enrolled);
        all.find(|enrolled| enrolled.leaves.contains(leaf)).cloned()
    }

    /// Ends the one of a workload; whether there was one.
    pub async fn end(&self, workload: &WorkloadId) -> Result<bool, StoreError> {
        let _alone = self.changing.lock().await;
        let known = self.lock().contains_key(workload);
        self.remove(known.then(|| workload.clone()).as_slice()).await?;
        Ok(known)
    }

    /// Ends those that nobody can use any more. The leader alone calls this.
    pub async fn end_unused(&self, now: Moment) -> Result<(), StoreError> {
        let _alone = self.changing.lock().await;
        self.remove(&self.unused(now)).await
    }

    async fn remove(&self, workloads: &[WorkloadId]) -> Result<(), StoreError> {
        if workloads.is_empty() {
            return Ok(());
        }
        let named = workloads.iter().map(name).collect::<Result<_, _>>()?;
        self.store.remove_registrations(named).await?;
        let mut known = self.lock();
        workloads.iter().for_each(|workload| drop(known.remove(workload)));
        Ok(())
    }

    /// Tells the store anew whatever it does not know of them.
    pub async fn keep_all(&self) -> Result<(), StoreError> {
        // One that ends meanwhile must not be put there again.
        let _alone = self.changing.lock().await;
        let known: HashMap<InstanceId, Enrolled> = {
            let all = self.lock();
            let named = all.values().map(|known| &known.enrolled);
            let named = named.map(|one| Ok((name(&one.workload)?, one.clone())));
            named.collect::<Result<_, StoreError>>()?
        };
        // They have no lease: this only asks which are there.
        for unknown in self.store.beat(known.keys().cloned().collect(), 0).await? {
            self.keep(&known[&unknown]).await?;
        }
        Ok(())
    }

    async fn keep(&self, enrolled: &Enrolled) -> Result<(), StoreError> {
        write(&*self.store, name(&enrolled.workload)?, enrolled, SystemTime::UNIX_EPOCH).await
    }

    /// Who has no leaf any more by which it could be known.
    fn unused(&self, now: Moment) -> Vec<WorkloadId> {
        let is_over = |known: &Known| {
            let lives = Duration::from_secs(known.enrolled.lifetime) + KEPT;
            known.enrolled.lifetime > 0 && now.since(Moment { counted: known.since, ..now }) > lives
        };
        let all = self.lock();
        all.iter().filter(|(_, known)| is_over(known)).map(|(workload, _)| workload.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<WorkloadId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(workload: &WorkloadId) -> Result<InstanceId, StoreError> {
    InstanceId::new(format!("{ENROLLED}{workload}")).map_err(|error| StoreError::Damaged(error.to_string()))
}
