//! What a control plane does once it knows who it is: snapshots, pushes, its word on itself, leases, and the primary's
//! end of the links. Nothing of Git, of the admin API or of signals.
//!
//! Invariant: time of day, chance and connections come from the plane's world, what outlives it from its store and its
//! state directory. So the simulated network runs this same code.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use api::head::SignedHead;
use process::{
    rpc::{
        self,
        stub::{control_server::ControlServer, federation_server::FederationServer},
    },
    shutdown::Shutdown,
    tls,
    world::{Listener, SharedWorld},
};
use tokio::{
    sync::watch,
    time::{Interval, MissedTickBehavior, interval},
};

use crate::{
    authority::Authority,
    commits::Commits,
    config::{Config, Duty, Keep},
    link::{self, Kept, MAX_MESSAGE_BYTES, primary::Links},
    plane::{Events, Plane, load, seconds},
    push::{self, Registry},
    report, rivals,
    snapshot::{self, Configuration, Inputs},
    store::Store,
    vault::Vault,
};

/// How often leases and own certificates are looked at.
const UPKEEP: Duration = Duration::from_secs(1);
/// How often the store hears who lives here.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Endpoint changes that come within this time make one snapshot.
const GATHER: Duration = Duration::from_millis(3);
/// How often the age of stale endpoints is looked at.
const AGEING: Duration = Duration::from_secs(5);

/// What both roles have before they can serve.
pub struct Begun {
    /// What it may sign, and who it is.
    pub authority: Authority,
    /// What is in force by its store.
    pub configuration: Configuration,
    /// What became of commits until now.
    pub commits: watch::Sender<Commits>,
    /// What it shares with other control planes of its cluster.
    pub vault: Arc<Vault>,
    /// Whether there may be proxies of its cluster that it does not know: its store was lost, or another control plane
    /// served last.
    pub bereft: bool,
}

/// The plane, as its store and its state directory remember it.
pub async fn assemble(
    config: Config,
    world: SharedWorld,
    store: Arc<dyn Store>,
    begun: Begun,
) -> Result<Arc<Plane>> {
    let registry = Registry::open(store.clone(), config.lease, || world.moment()).await?;
    let now = seconds(world.now());
    let peers = Kept::new(&config.state_dir).load(now as i64)?;
    let bundle = begun.authority.identity().bundle();
    let inputs = Inputs {
        cluster: config.cluster.clone(),
        own: Arc::new(config.place.clone()),
        configuration: Arc::new(begun.configuration),
        workloads: registry.workloads().borrow().clone(),
        peers,
        bundle,
        now: now as u64,
    };
    let known_from = world.moment().counted + if begun.bereft { config.lease } else { Duration::ZERO };
    let plane = Plane {
        known_from,
        world,
        authority: Arc::new(begun.authority),
        registry,
        store,
        own: watch::Sender::new(Arc::new(report::unknown(&config))),
        snapshot: watch::Sender::new(Arc::new(snapshot::build(&inputs))),
        configuration: watch::Sender::new(inputs.configuration),
        peers: watch::Sender::new(inputs.peers),
        reports: watch::Sender::default(),
        bundle: watch::Sender::new(inputs.bundle),
        commits: begun.commits,
        vault: begun.vault,
        primary_away: watch::Sender::new(None),
        events: Events::default(),
        links: Links::default(),
        config,
    };
    Ok(Arc::new(plane))
}

/// Serves the cluster's proxies, and at the primary the remotes, until `shutdown`.
pub async fn begin(plane: &Arc<Plane>, shutdown: &Shutdown) -> Result<()> {
    shutdown.spawn_vital("snapshots", build(plane.clone(), shutdown.clone()));
    shutdown.spawn_vital("reports", report::run(plane.clone(), shutdown.clone()));
    shutdown.spawn_vital("judging commits", report::judge(plane.clone(), shutdown.clone()));
    shutdown.spawn_vital("upkeep", upkeep(plane.clone(), shutdown.clone()));
    shutdown.spawn_vital("head in force", follow_head(plane.clone(), shutdown.clone()));
    if let Keep::Etcd(_) = plane.config.store {
        shutdown.spawn_vital("heartbeats", beat(plane.clone(), shutdown.clone()));
        shutdown.spawn_vital("rivals", rivals::run(plane.clone(), shutdown.clone()));
    }
    let kept = Kept::new(&plane.config.state_dir);
    shutdown.spawn_vital("kept catalogues", kept.run(plane.peers.subscribe(), shutdown.clone()));

    let identity = plane.authority.identity();
    if let Duty::Primary { federation, .. } = &plane.config.duty {
        let server = Arc::new(link::primary::Server::new(plane.clone(), shutdown.clone()));
        let service =
            move |bytes| FederationServer::from_arc(server.clone()).max_decoding_message_size(bytes);
        let tls = tls::server(identity, tls::Clients::Enrolling, &["h2"]);
        let listener = listen(&plane.world, *federation).await?;
        let world = plane.world.clone();
        let served = rpc::serve(world, listener, tls, MAX_MESSAGE_BYTES, service, shutdown.clone());
        shutdown.spawn_vital("federation", told(served));
    }
    let server = Arc::new(push::server::Server::new(plane.clone(), shutdown.clone()));
    let service = move |bytes| ControlServer::from_arc(server.clone()).max_decoding_message_size(bytes);
    let tls = tls::server(identity, tls::Clients::Enrolling, &["h2"]);
    let listener = listen(&plane.world, plane.config.proxies).await?;
    let world = plane.world.clone();
    let served = rpc::serve(world, listener, tls, push::MAX_MESSAGE_BYTES, service, shutdown.clone());
    shutdown.spawn_vital("proxies", told(served));
    Ok(())
}

/// Says why a server has ended, if it was not told to.
async fn told(served: impl Future<Output = Result<(), rpc::ServeError>>) {
    if let Err(error) = served.await {
        tracing::error!(%error, "no calls are served any more");
    }
}

async fn listen(world: &SharedWorld, address: SocketAddr) -> Result<Listener> {
    let listener = world.listen(address).await;
    listener.with_context(|| format!("cannot listen at {address}: does another process?"))
}

/// Between two tries to obey a head that could not be read.
const AGAIN: Duration = Duration::from_secs(1);

/// Obeys the head that the store tells of, whoever moved it.
async fn follow_head(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut heads = plane.store.watch_head();
    loop {
        let head = heads.borrow_and_update().clone();
        let is_read = match head {
            Some(head) => obey(&plane, head).await,
            None => true,
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(AGAIN), if !is_read => {}
            changed = heads.changed() => if changed.is_err() { return },
        }
    }
}

/// False where the store did not give what it names.
async fn obey(plane: &Plane, signed: SignedHead) -> bool {
    let (head, known) = (signed.head(), plane.configuration.borrow().head);
    let Some(revision) = head.stable.as_ref().filter(|_| known < Some(head.seq())) else { return true };
    // Who can write to the store does not rule by that.
    if let Err(error) = plane.authority.believes(&signed) {
        tracing::error!(%error, head = %head.seq(), "a head that is not the primary's is not obeyed");
        return true;
    }
    match load(&*plane.store, head.seq(), revision).await {
        Ok(configuration) => plane.bring_into_force(configuration),
        Err(error) => {
            tracing::warn!(%error, "the head in force cannot be read");
            return false;
        }
    }
    true
}

/// Tells the servers of the store who lives here, and anew what they have missed or lost. A file misses nothing.
async fn beat(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut away = plane.store.away();
    let mut ticks = every(HEARTBEAT);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
            changed = away.changed() => match changed {
                Ok(()) if away.borrow_and_update().is_some() => {
                    plane.events.note("store", "is away; what is in force stays, and commits wait");
                }
                Ok(()) => plane.events.note("store", "is back"),
                Err(_) => return,
            },
        }
        let is_there = away.borrow().is_none();
        if is_there && let Err(error) = plane.registry.beat_all(plane.world.now()).await {
            tracing::warn!(%error, "the store did not hear the heartbeats");
        }
    }
}

/// Stage four, forever: inputs in, snapshots out.
async fn build(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut configuration = plane.configuration.subscribe();
    let mut workloads = plane.registry.workloads();
    let mut peers = plane.peers.subscribe();
    let mut bundle = plane.bundle.subscribe();
    let mut ages = every(AGEING);
    loop {
        let inputs = Inputs {
            cluster: plane.config.cluster.clone(),
            own: Arc::new(plane.config.place.clone()),
            configuration: configuration.borrow_and_update().clone(),
            workloads: workloads.borrow_and_update().clone(),
            peers: peers.borrow_and_update().clone(),
            bundle: bundle.borrow_and_update().clone(),
            now: plane.now() as u64,
        };
        plane.snapshot.send_replace(Arc::new(snapshot::build(&inputs)));
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            // A commit does not wait for others.
            _ = configuration.changed() => {}
            _ = bundle.changed() => {}
            _ = workloads.changed() => tokio::time::sleep(GATHER).await,
            _ = peers.changed() => tokio::time::sleep(GATHER).await,
            () = grow_old(&mut ages, &inputs) => {}
        }
    }
}

/// Ticks that do not pile up while nobody waits for them: after a calm day the first stale endpoint would else be built
/// for thousands of times.
fn every(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Ends when stale endpoints have grown older; never, where nothing is stale.
async fn grow_old(ages: &mut Interval, inputs: &Inputs) {
    if inputs.peers.values().all(|catalogue| catalogue.stale_since == 0) {
        return std::future::pending().await;
    }
    ages.tick().await;
}

/// Leases that run out, and this process's own certificate.
async fn upkeep(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut ticks = every(UPKEEP);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match plane.registry.expire(plane.world.moment()).await {
            Ok(gone) => gone.iter().for_each(|workload| {
                plane.events.note(format!("workload {workload}"), "is gone: its lease has run out");
            }),
            Err(error) => tracing::warn!(%error, "leases could not be judged"),
        }
        if let Err(error) = plane.registry.enrolments.end_unused(plane.world.moment()).await {
            tracing::warn!(%error, "enrolments that nobody can use any more stay");
        }
        match plane.vault.keep().await {
            Ok(true) => {
                if let Err(error) = plane.store.settle().await {
                    tracing::warn!(%error, "the store has not been told of all registrations yet");
                }
            }
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "other control planes of this cluster learn later of what has changed");
            }
        }
        let lifetimes = plane.configuration.borrow().mesh().map(|mesh| mesh.spec.certificates.clone());
        let lifetimes = lifetimes.unwrap_or_default();
        let renewed = plane
            .authority
            .renew_own_intermediate(lifetimes.intermediate.get(), plane.world.unix())
            .and_then(|()| plane.authority.renew_own(lifetimes.leaf.get(), plane.world.unix()));
        if let Err(error) = renewed {
            tracing::warn!(%error, "this control plane's own certificates were not renewed");
        }
    }
}
