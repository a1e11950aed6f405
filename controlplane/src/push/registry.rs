//! Who lives in this cluster: enrolled by a token, registered by a stream, kept by a lease.
//!
//! Invariant: a stream that breaks takes nobody out. A workload goes by its own farewell, an operator's word, a
//! next life of its own, or a lease that ran out while it could have been renewed.

mod enrolments;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use api::name::{InstanceId, Namespace, ServiceAccount, WorkloadId};
use process::world::Moment;
use serde::Serialize;
use tokio::sync::{RwLock, watch};

pub use self::enrolments::{Enrolled, Enrolments};

use super::session::MAX_HOSTS;
use crate::{
    snapshot::{Registered, Role},
    store::{Registration, Store, StoreError},
};

/// How long a proxy that is gone stays in the status.
const GONE_SHOWN: Duration = Duration::from_secs(600);

/// Streams of one workload at a time, each of another life: an old one that drains beside the new one, and few more. Who
/// has one enrolment cannot fill the registry with it.
const MAX_LIVES: usize = 8;

/// One proxy, as the status shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Proxy {
    /// What it is.
    pub registered: Registered,
    /// Whether its stream is up.
    pub connected: bool,
    /// The number of its newest stream.
    pub stream: u64,
    /// Whether its lease has run out.
    pub gone: bool,
    /// Since when it is in that state.
    pub since: Moment,
    /// The commit that it obeys, as far as this control plane has its word.
    pub reached: Option<String>,
    /// Why it refused its last push.
    pub refused: Vec<String>,
    /// Why a restart would go back behind what it obeys.
    pub unkept: Option<String>,
    /// End of its certificate, seconds since the epoch.
    pub certificate_not_after: i64,
    /// Its version.
    pub version: String,
    /// What it holds to be bad now.
    pub ejected: BTreeMap<String, String>,
}

/// One stream of one proxy. What it says counts as long as it is the newest one of that proxy: on the way here words of
/// an older one may have taken longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStream {
    /// Whose it is.
    pub instance: InstanceId,
    /// No other stream of this registry has it.
    pub number: u64,
}

/// Why nobody is registered.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// A certificate that no token here led to.
    #[error("this certificate belongs to no enrolled workload of this cluster: enrol again with a token")]
    Unknown,
    /// An instance that is another workload's, or nobody's.
    #[error("`{0}` is no instance of this workload: an instance is named `<workload>-<something new>`")]
    Instance(InstanceId),
    /// A workload that lives in too many places.
    #[error(
        "`{0}` lives {1} times already: each place where it is to live takes a workload of its own, with a token"
    )]
    Lives(WorkloadId, usize),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A service account of a namespace: workloads that share it run the same application.
pub type Account = (Namespace, ServiceAccount);

/// The hosts that the workloads of each account have asked for.
pub type Asked = Arc<BTreeMap<Account, BTreeSet<String>>>;

/// All workloads of this cluster.
pub struct Registry {
    store: Arc<dyn Store>,
    lease: Duration,
    /// Who was let in.
    pub enrolments: Enrolments,
    workloads: watch::Sender<Arc<BTreeMap<InstanceId, Registered>>>,
    proxies: watch::Sender<Arc<BTreeMap<InstanceId, Proxy>>>,
    asked: watch::Sender<Asked>,
    /// Streams until now. No number comes twice: the late end of one would be that of another, also where the proxy was
    /// forgotten in between.
    streams: AtomicU64,
    /// Who takes workloads out has it alone: one that comes back meanwhile would be taken out of the store, and of
    /// what callers are told, although its stream is up.
    coming: RwLock<()>,
}

impl Registry {
    /// The registry as the store remembers it. Every lease begins one full time anew at `now`.
    pub async fn open(
        store: Arc<dyn Store>,
        lease: Duration,
        now: impl FnOnce() -> Moment,
    ) -> Result<Self, StoreError> {
        let mut enrolled = Vec::new();
        let mut workloads = BTreeMap::new();
        let mut proxies = BTreeMap::new();
        let registrations = store.registrations().await?;
        // However long the store took to tell of them, each has a whole lease.
        let now = now();
        for registration in registrations {
            if enrolments::is_one(&registration.instance) {
                enrolled.push(read(&registration)?);
                continue;
            }
            let registered: Registered = read(&registration)?;
            proxies.insert(registration.instance.clone(), Proxy::new(registered.clone(), now, false));
            workloads.insert(registration.instance, registered);
        }
        Ok(Registry {
            enrolments: Enrolments::new(store.clone(), enrolled, now),
            store,
            lease,
            workloads: watch::Sender::new(Arc::new(workloads)),
            proxies: watch::Sender::new(Arc::new(proxies)),
            asked: watch::Sender::default(),
            streams: AtomicU64::default(),
            coming: RwLock::default(),
        })
    }

    /// What each account's workloads have asked for. What one of them calls the others are told of before they ask,
    /// so that none of them first meets a host while the control plane is away.
    pub fn asked(&self) -> watch::Receiver<Asked> {
        self.asked.subscribe()
    }

    /// Notes hosts that a workload of `account` asked for.
    pub fn note_asked(&self, account: &Account, hosts: impl IntoIterator<Item = String>) {
        self.asked.send_if_modified(|asked| {
            let known = asked.get(account);
            let fresh: Vec<_> =
                hosts.into_iter().filter(|host| known.is_none_or(|known| !known.contains(host))).collect();
            let room = MAX_HOSTS.saturating_sub(known.map_or(0, BTreeSet::len));
            let grows = !fresh.is_empty() && room > 0;
            if grows {
                Arc::make_mut(asked).entry(account.clone()).or_default().extend(fresh.into_iter().take(room));
            }
            grows
        });
    }

    /// Who lives here, for the snapshot.
    pub fn workloads(&self) -> watch::Receiver<Arc<BTreeMap<InstanceId, Registered>>> {
        self.workloads.subscribe()
    }

    /// Who lives here and how it does, for the status.
    pub fn proxies(&self) -> watch::Receiver<Arc<BTreeMap<InstanceId, Proxy>>> {
        self.proxies.subscribe()
    }

    /// Ends the enrolment of a workload, whose certificate can then not be renewed, and takes it out; whether there was
    /// anything to end.
    pub async fn revoke(&self, workload: &WorkloadId) -> Result<bool, StoreError> {
        let _alone = self.coming.write().await;
        let enrolled = self.enrolments.end(workload).await?;
        let instances = self.instances_of(workload);
        self.take_out(instances.clone()).await?;
        Ok(enrolled || !instances.is_empty())
    }

    /// A proxy's stream is up. Earlier lives of the workload whose streams are away end
    /// here: the workload itself has come again.
    ///
    /// The proxy chooses the name of its instance, so it is held to its own workload: by another's name it would be
    /// told what is the other's, and could say farewell for it.
    pub async fn connect(
        &self,
        registered: Registered,
        version: String,
        now: Moment,
    ) -> Result<ProxyStream, RegistryError> {
        let _comes = self.coming.read().await;
        let instance = registered.instance.clone();
        let earlier: Vec<InstanceId> = {
            let proxies = self.proxies.borrow();
            let others =
                proxies.get(&instance).is_some_and(|held| held.registered.workload != registered.workload);
            let own = instance.as_str().strip_prefix(registered.workload.as_str());
            if others || !own.is_some_and(|rest| rest.starts_with('-')) || enrolments::is_one(&instance) {
                return Err(RegistryError::Instance(instance));
            }
            let same = proxies.values().filter(|proxy| {
                proxy.registered.workload == registered.workload
                    && proxy.registered.instance != instance
                    && !proxy.connected
            });
            let earlier = same.map(|proxy| proxy.registered.instance.clone()).collect();
            let lives = proxies.values().filter(|proxy| {
                proxy.connected
                    && proxy.registered.workload == registered.workload
                    && proxy.registered.instance != instance
            });
            if lives.count() >= MAX_LIVES {
                return Err(RegistryError::Lives(registered.workload, MAX_LIVES));
            }
            earlier
        };
        // The same life comes again: what was known of it holds until its next heartbeat.
        let known = self.workloads.borrow().get(&instance).map(|known| (known.app_ready, known.draining));
        let (app_ready, draining) = known.unwrap_or((registered.app_ready, registered.draining));
        let registered = Registered { app_ready, draining, ..registered };
        self.put(&registered, now.of_day).await?;
        self.take_out(earlier).await?;
        self.set_workload(registered.clone());
        let stream = ProxyStream { instance, number: self.streams.fetch_add(1, Ordering::Relaxed) };
        let proxy = Proxy { version, stream: stream.number, ..Proxy::new(registered, now, true) };
        self.proxies
            .send_modify(|proxies| drop(Arc::make_mut(proxies).insert(stream.instance.clone(), proxy)));
        Ok(stream)
    }

    /// Whether no other stream of its proxy has come after it.
    pub fn is_newest(&self, stream: &ProxyStream) -> bool {
        self.proxies.borrow().get(&stream.instance).is_none_or(|proxy| proxy.stream <= stream.number)
    }

    /// A stream of a proxy is away; says whether that is news.
    pub fn disconnect(&self, stream: &ProxyStream, now: Moment) -> bool {
        let mut news = false;
        self.update(stream, |proxy| {
            news = proxy.connected;
            if news {
                (proxy.connected, proxy.since) = (false, now);
            }
        });
        news
    }

    /// What a heartbeat says; gives what is new in it, in words.
    pub async fn beat(
        &self,
        stream: &ProxyStream,
        heartbeat: api::wire::Heartbeat,
        now: SystemTime,
    ) -> Vec<String> {
        let mut news = Vec::new();
        let (app_ready, draining) = (heartbeat.app_ready, heartbeat.draining);
        let ejected: BTreeMap<_, _> =
            heartbeat.ejected.into_iter().map(|one| (one.endpoint, one.reason)).collect();
        let counts = self.update(stream, |proxy| {
            let before = &proxy.registered;
            if proxy.registered.role == Role::Sidecar && before.app_ready != app_ready {
                news.push(
                    if app_ready { "its application answers" } else { "its application does not answer" }
                        .into(),
                );
            }
            if before.draining != draining && draining {
                news.push("drains".into());
            }
            let fresh = ejected.iter().filter(|(endpoint, _)| !proxy.ejected.contains_key(*endpoint));
            news.extend(fresh.map(|(endpoint, reason)| format!("holds {endpoint} to be bad: {reason}")));
            let back = proxy.ejected.keys().filter(|endpoint| !ejected.contains_key(*endpoint));
            news.extend(back.map(|endpoint| format!("takes {endpoint} to be good again")));
            (proxy.registered.app_ready, proxy.registered.draining) = (app_ready, draining);
            proxy.certificate_not_after = heartbeat.certificate_not_after;
            proxy.ejected = ejected;
        });
        let known = || self.workloads.borrow().get(&stream.instance).cloned();
        let is_news = |known: &Registered| (known.app_ready, known.draining) != (app_ready, draining);
        if !counts || !known().is_some_and(|known| is_news(&known)) {
            return news; // as almost always, so that nobody waits here for who is taken out
        }
        let _comes = self.coming.read().await;
        if let Some(known) = known().filter(is_news) {
            let known = Registered { app_ready, draining, ..known };
            self.set_workload(known.clone());
            // The next life of this process begins with it.
            if let Err(error) = self.put(&known, now).await {
                tracing::warn!(%error, instance = %known.instance, "that it is ready or not could not be kept");
            }
        }
        news
    }

    /// A proxy obeys all of `commit`, and keeps it.
    pub fn reached(&self, stream: &ProxyStream, commit: String) {
        self.update(stream, |proxy| {
            proxy.reached = Some(commit);
            proxy.unkept = None;
        });
    }

    /// A proxy obeys a push and cannot keep it.
    pub fn unkept(&self, stream: &ProxyStream, why: String) {
        self.update(stream, |proxy| proxy.unkept = Some(why));
    }

    /// A proxy refused a push; for no reason: what it refused it is not to obey any more.
    pub fn refused(&self, stream: &ProxyStream, reasons: Vec<String>) {
        self.update(stream, |proxy| proxy.refused = reasons);
    }

    /// Instances that go for good: by their own farewell, an operator's word, or a next life.
    pub async fn forget(&self, instances: Vec<InstanceId>) -> Result<(), StoreError> {
        let _alone = self.coming.write().await;
        self.take_out(instances).await
    }

    async fn take_out(&self, instances: Vec<InstanceId>) -> Result<(), StoreError> {
        if instances.is_empty() {
            return Ok(());
        }
        self.store.remove_registrations(instances.clone()).await?;
        self.workloads
            .send_modify(|all| instances.iter().for_each(|one| drop(Arc::make_mut(all).remove(one))));
        self.proxies.send_modify(|all| instances.iter().for_each(|one| drop(Arc::make_mut(all).remove(one))));
        Ok(())
    }

    /// All instances of a workload.
    pub fn instances_of(&self, workload: &WorkloadId) -> Vec<InstanceId> {
        let workloads = self.workloads.borrow();
        workloads.values().filter(|one| one.workload == *workload).map(|one| one.instance.clone()).collect()
    }

    /// Takes out those whose lease has run out at `now`; gives their names. The leader alone calls this.
    ///
    /// Invariant: no setting of the clock ends a lease early, or makes it last.
    pub async fn expire(&self, now: Moment) -> Result<Vec<WorkloadId>, StoreError> {
        let _alone = self.coming.write().await;
        let away = |proxy: &Proxy| now.since(proxy.since);
        let (expired, forgotten): (Vec<_>, Vec<_>) = {
            let proxies = self.proxies.borrow();
            let out =
                proxies.values().filter(|proxy| !proxy.connected && !proxy.gone && away(proxy) >= self.lease);
            let old = proxies.values().filter(|proxy| proxy.gone && away(proxy) >= GONE_SHOWN);
            (
                out.map(|proxy| (proxy.registered.instance.clone(), proxy.registered.workload.clone()))
                    .collect(),
                old.map(|proxy| proxy.registered.instance.clone()).collect(),
            )
        };
        if expired.is_empty() && forgotten.is_empty() {
            return Ok(Vec::new());
        }
        let (instances, workloads): (Vec<_>, Vec<_>) = expired.into_iter().unzip();
        self.store.remove_registrations(instances.clone()).await?;
        self.workloads.send_if_modified(|all| {
            let gone = instances.iter().filter(|one| Arc::make_mut(all).remove(*one).is_some());
            gone.count() > 0
        });
        self.proxies.send_modify(|all| {
            let all = Arc::make_mut(all);
            for instance in &instances {
                if let Some(proxy) = all.get_mut(instance) {
                    (proxy.gone, proxy.since) = (true, now);
                }
            }
            forgotten.iter().for_each(|one| drop(all.remove(one)));
        });
        Ok(workloads)
    }

    /// Tells the store that the proxies whose streams are here live, and anew whatever it does not know of them.
    pub async fn beat_all(&self, now: SystemTime) -> Result<(), StoreError> {
        // Who is taken out meanwhile must not be put there again.
        let comes = self.coming.read().await;
        let connected: HashMap<InstanceId, Registered> = {
            let proxies = self.proxies.borrow();
            let here = proxies.values().filter(|proxy| proxy.connected).map(|proxy| &proxy.registered);
            here.map(|one| (one.instance.clone(), one.clone())).collect()
        };
        for unknown in self.store.beat(connected.keys().cloned().collect(), millis(now)).await? {
            self.put(&connected[&unknown], now).await?;
        }
        drop(comes);
        self.enrolments.keep_all().await
    }

    fn set_workload(&self, registered: Registered) {
        self.workloads.send_if_modified(|all| {
            if all.get(&registered.instance) == Some(&registered) {
                return false;
            }
            Arc::make_mut(all).insert(registered.instance.clone(), registered);
            true
        });
    }

    /// Changes what is known of a proxy by the word of its newest stream; whether this is that one.
    fn update(&self, stream: &ProxyStream, change: impl FnOnce(&mut Proxy)) -> bool {
        let mut counts = false;
        self.proxies.send_if_modified(|all| {
            let before = all.get(&stream.instance).filter(|proxy| proxy.stream == stream.number);
            let Some(before) = before else { return false };
            counts = true;
            let mut proxy = before.clone();
            change(&mut proxy);
            let changed = *before != proxy;
            if changed {
                Arc::make_mut(all).insert(stream.instance.clone(), proxy);
            }
            changed
        });
        counts
    }

    async fn put(&self, registered: &Registered, now: SystemTime) -> Result<(), StoreError> {
        write(&*self.store, registered.instance.clone(), registered, now).await
    }
}

impl Proxy {
    fn new(registered: Registered, since: Moment, connected: bool) -> Self {
        Proxy {
            registered,
            connected,
            stream: 0,
            gone: false,
            since,
            reached: None,
            refused: Vec::new(),
            unkept: None,
            certificate_not_after: 0,
            version: String::new(),
            ejected: BTreeMap::new(),
        }
    }

    /// What kind of proxy it is, in a word.
    pub fn kind(&self) -> &'static str {
        match self.registered.role {
            Role::Sidecar => "sidecar",
            Role::Ingress => "ingress",
            Role::EastWest => "east-west",
        }
    }
}

fn millis(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

async fn write(
    store: &dyn Store,
    instance: InstanceId,
    value: &impl Serialize,
    now: SystemTime,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(value).map_err(|error| StoreError::Damaged(error.to_string()))?;
    store.put_registration(Registration { instance, bytes: bytes.into(), beat_ms: millis(now) }).await
}

fn read<T: serde::de::DeserializeOwned>(registration: &Registration) -> Result<T, StoreError> {
    serde_json::from_slice(&registration.bytes)
        .map_err(|error| StoreError::Damaged(format!("registration {}: {error}", registration.instance)))
}

#[cfg(test)]
mod tests;
