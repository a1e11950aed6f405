//! What the parts of one control plane share: each thing has one owner, everybody else watches.

#[cfg(test)]
pub(crate) mod fixture;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use api::{
    admin::{ClusterStatus, Event, Role},
    head::{Revision, Seq},
    identity::Bundle,
    name::ClusterName,
    wire,
};
use federation::token::TokenId;
use process::world::SharedWorld;
use tokio::{sync::watch, time::Instant};

use crate::{
    authority::Authority,
    commits::Commits,
    config::Config,
    link::primary::Links,
    push::Registry,
    snapshot::{Configuration, Snapshot},
    store::{self, Store, StoreError, read_revision},
    vault::Vault,
};

/// Events kept for the status.
const MAX_EVENTS: usize = 200;

/// The catalogues of the other clusters.
pub type Peers = Arc<BTreeMap<ClusterName, Arc<wire::Catalogue>>>;

/// What others said of themselves, and when it was heard.
pub type Reports = Arc<BTreeMap<ClusterName, Heard>>;

/// One cluster's word on itself.
#[derive(Debug, Clone)]
pub struct Heard {
    /// What it said.
    pub status: Arc<ClusterStatus>,
    /// Since when its link is down.
    pub away_since: Option<f64>,
}

/// One control plane.
pub struct Plane {
    /// The time of day, chance and the network.
    pub world: SharedWorld,
    /// Its settings.
    pub config: Config,
    /// What outlives it.
    pub store: Arc<dyn Store>,
    /// What it may sign.
    pub authority: Arc<Authority>,
    /// What it shares with other control planes of its cluster.
    pub vault: Arc<Vault>,
    /// Who lives in its cluster.
    pub registry: Registry,
    /// From when all that live there are known, by their coming back or by the end of their leases.
    pub known_from: Instant,
    /// The configuration in force; see [`Plane::bring_into_force`].
    pub configuration: watch::Sender<Arc<Configuration>>,
    /// What other clusters offer. Owner: the link.
    pub peers: watch::Sender<Peers>,
    /// What other clusters say of themselves. Owner: the link.
    pub reports: watch::Sender<Reports>,
    /// The bundle in force. Owner: the publisher or the link.
    pub bundle: watch::Sender<Arc<Bundle>>,
    /// What proxies are told. Owner: the builder.
    pub snapshot: watch::Sender<Arc<Snapshot>>,
    /// This cluster's word on itself. Owner: the reporter.
    pub own: watch::Sender<Arc<ClusterStatus>>,
    /// What became of commits (primary). Owner: the publisher.
    pub commits: watch::Sender<Commits>,
    /// Since when the primary is away (remote).
    pub primary_away: watch::Sender<Option<f64>>,
    /// What happened lately.
    pub events: Events,
    /// The remotes' links (primary).
    pub links: Links,
}

impl Plane {
    /// Seconds since the epoch.
    pub fn now(&self) -> f64 {
        seconds(self.world.now())
    }

    /// For how long there may be proxies in this cluster that its registry does not know.
    pub fn unknown_for(&self) -> Duration {
        self.known_from.saturating_duration_since(self.world.moment().counted)
    }

    /// Obeys `configuration`, unless that of a later head is in force already: the publisher, the link and the store's
    /// own word may come in any order.
    pub fn bring_into_force(&self, configuration: Configuration) {
        let is_news = self.configuration.send_if_modified(|known| {
            let is_news = known.head < configuration.head;
            if is_news {
                *known = Arc::new(configuration);
            }
            is_news
        });
        if is_news {
            self.forget_strangers();
        }
    }

    /// At the primary nothing is left of what a cluster offered that was expelled; remotes are told so.
    fn forget_strangers(&self) {
        if let Role::Primary = self.config.duty.role() {
            self.peers.send_if_modified(|peers| {
                let strangers = peers.keys().any(|name| !self.is_member(name));
                if strangers {
                    Arc::make_mut(peers).retain(|name, _| self.is_member(name));
                }
                strangers
            });
        }
    }

    /// Lets everybody know whom this control plane trusts by now.
    pub fn tell_bundle(&self) {
        let trusted = self.authority.identity().bundle();
        self.bundle.send_if_modified(|told| {
            let is_news = told.sequence < trusted.sequence;
            if is_news {
                *told = trusted;
            }
            is_news
        });
    }

    /// A token was used: it is worth nothing at other control planes of this cluster either. One that does not hear of
    /// it now does before it serves: a store that is away makes nobody else serve.
    pub async fn keep_used(&self, token: &TokenId) {
        if let Err(error) = self.vault.keep().await {
            tracing::warn!(%error, %token, "that it was used is kept here alone for now");
        }
    }

    /// Whether `cluster` is a member by the configuration in force.
    pub fn is_member(&self, cluster: &ClusterName) -> bool {
        self.configuration.borrow().member(cluster).is_some()
    }
}

/// What happened lately, newest last.
#[derive(Debug, Default)]
pub struct Events(Mutex<VecDeque<Event>>);

impl Events {
    /// Notes and logs one thing that happened.
    pub fn note(&self, subject: impl Into<String>, message: impl Into<String>) {
        let event =
            Event { time: seconds(SystemTime::now()), subject: subject.into(), message: message.into() };
        tracing::info!(subject = event.subject, "{}", event.message);
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if events.len() == MAX_EVENTS {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// All that is remembered.
    pub fn list(&self) -> Vec<Event> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Seconds since the epoch.
pub fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The resources of a revision, typed. Where there are several sources, a commit is named with its own.
pub async fn load(store: &dyn Store, head: Seq, revision: &Revision) -> Result<Configuration, StoreError> {
    let mut objects = Vec::new();
    let several = revision.commits.len() > 1;
    for stored in read_revision(store, revision).await? {
        let resource = api::resource::Resource::from_json(&stored.bytes)
            .map_err(|error| StoreError::Damaged(format!("{}: {error}", stored.key)))?;
        let store::Position { file, line, rules, source, .. } = stored.position.unwrap_or_default();
        let changed_in = match source.filter(|_| several) {
            Some(source) => stored.changed_in.of(&source),
            None => stored.changed_in.to_string(),
        };
        objects.push(crate::snapshot::Said { resource, changed_in, file, line, rules });
    }
    objects.sort_by_cached_key(|said| said.resource.key());
    Ok(Configuration { head: Some(head), commit: revision.label(), objects })
}
