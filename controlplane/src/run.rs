//! One control plane from start to end, as a story.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, bail};
use process::{
    admin::{Readiness, Routes},
    metrics::Registry as Metrics,
    rpc::{
        self,
        stub::{control_server::ControlServer, federation_server::FederationServer},
    },
    shutdown::Shutdown,
    tls,
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Access, Api},
    authority::Authority,
    config::{Config, Duty, RawConfig},
    git::{self, Repository},
    link::{self, Kept, MAX_MESSAGE_BYTES, remote::JoinError},
    metrics,
    plane::{Commits, Events, Plane, load, seconds, unix_now},
    publish::{self, Accepted},
    push::{self, Registry},
    report,
    snapshot::{self, Configuration, Inputs},
    store::{Election, Embedded, Store},
};

/// What is under way when the end is asked for gets this long.
const DRAIN: Duration = Duration::from_secs(5);
/// How often leases and own certificates are looked at.
const UPKEEP: Duration = Duration::from_secs(1);
/// Endpoint changes that come within this time make one snapshot.
const GATHER: Duration = Duration::from_millis(3);
/// How often the age of stale endpoints is looked at.
const AGEING: Duration = Duration::from_secs(5);
/// Between two tries to join, while the primary is not there yet.
const JOIN_PAUSE: Duration = Duration::from_millis(250);

/// Runs a control plane of either role until SIGTERM or SIGINT.
pub async fn run(config: RawConfig) -> Result<()> {
    let config = config.meant()?;
    process::files::private_directory(&config.state_dir).context("the state directory cannot be made")?;
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    let signal = process::shutdown::signals()?;
    tokio::spawn(async move {
        let name = signal.await;
        tracing::info!(signal = name, "ending");
        stop.cancel();
    });
    let ended = tokio::select! {
        ended = serve(config, shutdown.clone()) => ended,
        () = shutdown.cancelled() => Ok(()),
    };
    if let Err(unfinished) = shutdown.drain(DRAIN).await {
        tracing::warn!(%unfinished, "ended before all was done");
    }
    ended
}

async fn serve(config: Config, shutdown: Shutdown) -> Result<()> {
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let starting = readiness.task("configuration and trust");
    let listener = listen(config.metrics).await?;
    shutdown
        .spawn("metrics", process::admin::run(listener, Routes::new(&metrics, &readiness), shutdown.clone()));

    let store: Arc<dyn Store> = Arc::new(Embedded::open(&config.state_dir)?);
    let election = store.campaign().await?;
    let held = store.head().await?.and_then(|head| head.head().stable.clone());
    let configuration = match &held {
        Some(revision) => load(&*store, revision).await?,
        None => Configuration::default(),
    };
    let begun = match config.duty.clone() {
        Duty::Primary { source, .. } => begin_primary(&config, source, configuration, &shutdown).await?,
        Duty::Remote { primary, join_token_file } => {
            begin_remote(&config, primary, join_token_file.as_deref(), configuration).await?
        }
    };
    let (plane, source) = assemble(config, store, begun).await?;
    metrics::register(&metrics, &plane);
    start(&plane, source, election, &shutdown).await?;
    ready(&plane).await;
    drop(starting);
    tracing::info!(cluster = %plane.config.cluster, commit = plane.snapshot.borrow().commit(), "serving");
    shutdown.cancelled().await;
    Ok(())
}

/// The repository, and what is seen of it.
type Seen = (Arc<Repository>, watch::Receiver<Option<git::Observation>>);

/// What both roles have before they can serve.
struct Begun {
    authority: Authority,
    configuration: Configuration,
    source: Option<Seen>,
    commits: watch::Sender<Commits>,
}

async fn begin_primary(
    config: &Config,
    source: git::Source,
    configuration: Configuration,
    shutdown: &Shutdown,
) -> Result<Begun> {
    let repository = Arc::new(Repository::new(source));
    let (seen, mut observed) = watch::channel(None);
    let ended = CancellationToken::new();
    shutdown.spawn("repository", git::watch(repository.clone(), seen, ended.clone()));
    let stop = shutdown.clone();
    shutdown.spawn("end of the watch", async move {
        stop.cancelled().await;
        ended.cancel();
    });
    let commits = watch::Sender::new(Commits::default());
    let (domain, lifetimes) = match configuration.mesh() {
        Some(mesh) => (mesh.spec.trust_domain.clone(), mesh.spec.certificates.clone()),
        None => {
            let Some(set) = publish::first_good(&repository, &mut observed, &commits).await else {
                bail!("ended before any commit passed the gate");
            };
            let mesh = set.mesh().context("the gate let a commit without Mesh pass")?;
            (mesh.trust_domain.clone(), mesh.certificates.clone())
        }
    };
    let authority = Authority::primary(&config.state_dir, &config.cluster, &domain, &lifetimes, unix_now())?;
    // The publisher looks at it again, this time to take it.
    observed.mark_changed();
    Ok(Begun { authority, configuration, source: Some((repository, observed)), commits })
}

async fn begin_remote(
    config: &Config,
    primary: SocketAddr,
    token: Option<&Path>,
    configuration: Configuration,
) -> Result<Begun> {
    let authority = match Authority::rejoin(&config.state_dir, &config.cluster, unix_now())? {
        Some(authority) => authority,
        None => join(config, primary, token).await?,
    };
    Ok(Begun { authority, configuration, source: None, commits: watch::Sender::new(Commits::default()) })
}

async fn join(config: &Config, primary: SocketAddr, token: Option<&Path>) -> Result<Authority> {
    let Some(path) = token else {
        bail!("this cluster has not joined yet: give it a join token (`joinTokenFile`), as `weft join` does");
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the join token {} cannot be read", path.display()))?;
    let text = text.trim();
    loop {
        match link::remote::join(text, &config.cluster, primary, config.address, &config.state_dir).await {
            Ok(authority) => {
                link::remote::keep_primary(&config.state_dir, text)?;
                return Ok(authority);
            }
            Err(JoinError::Connect(error)) => {
                tracing::warn!(%error, "the primary is not there yet");
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn assemble(config: Config, store: Arc<dyn Store>, begun: Begun) -> Result<(Arc<Plane>, Option<Seen>)> {
    let now = SystemTime::now();
    let registry = Registry::open(store.clone(), config.lease, now).await?;
    let peers = Kept::new(&config.state_dir).load(seconds(now) as i64)?;
    let bundle = begun.authority.identity().bundle();
    let inputs = Inputs {
        cluster: config.cluster.clone(),
        own: Arc::new(config.place.clone()),
        configuration: Arc::new(begun.configuration),
        workloads: registry.workloads().borrow().clone(),
        peers,
        bundle,
        now: seconds(now) as u64,
    };
    let plane = Plane {
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
        primary_away: watch::Sender::new(None),
        events: Events::default(),
        links: std::sync::Mutex::default(),
        config,
    };
    Ok((Arc::new(plane), begun.source))
}

async fn start(
    plane: &Arc<Plane>,
    source: Option<Seen>,
    election: Election,
    shutdown: &Shutdown,
) -> Result<()> {
    let identity = plane.authority.identity();
    shutdown.spawn("snapshots", build(plane.clone(), shutdown.clone()));
    shutdown.spawn("reports", report::run(plane.clone(), shutdown.clone()));
    shutdown.spawn("judging commits", report::judge(plane.clone(), shutdown.clone()));
    shutdown.spawn("upkeep", upkeep(plane.clone(), shutdown.clone()));
    let kept = Kept::new(&plane.config.state_dir);
    shutdown.spawn("kept catalogues", kept.run(plane.peers.subscribe(), shutdown.clone()));

    let accepted = Arc::new(Accepted::default());
    let repository = source.as_ref().map(|(repository, _)| repository.clone());
    match (&plane.config.duty, source) {
        (Duty::Primary { federation, .. }, Some((repository, observed))) => {
            let publishing = publish::run(
                plane.clone(),
                repository,
                observed,
                accepted.clone(),
                election,
                shutdown.clone(),
            );
            shutdown.spawn("publisher", publishing);
            let server = Arc::new(link::primary::Server::new(plane.clone(), shutdown.clone()));
            let service =
                move |bytes| FederationServer::from_arc(server.clone()).max_decoding_message_size(bytes);
            let tls = tls::server(identity, tls::Clients::Enrolling, &["h2"]);
            let listener = listen(*federation).await?;
            shutdown
                .spawn("federation", rpc::serve(listener, tls, MAX_MESSAGE_BYTES, service, shutdown.clone()));
        }
        (Duty::Remote { primary, .. }, _) => {
            shutdown.spawn("link", link::remote::run(plane.clone(), *primary, election, shutdown.clone()));
        }
        (Duty::Primary { .. }, None) => bail!("a primary without a repository"),
    }

    let server = Arc::new(push::server::Server::new(plane.clone(), shutdown.clone()));
    let service = move |bytes| ControlServer::from_arc(server.clone()).max_decoding_message_size(bytes);
    let tls = tls::server(identity, tls::Clients::Enrolling, &["h2"]);
    let listener = listen(plane.config.proxies).await?;
    shutdown.spawn("proxies", rpc::serve(listener, tls, push::MAX_MESSAGE_BYTES, service, shutdown.clone()));

    let access = Arc::new(Access::open(&plane.config.state_dir)?);
    let url = format!("http://{}/?login={}", plane.config.admin, access.login());
    process::files::write_private(&plane.config.state_dir.join("console.url"), url.as_bytes())?;
    let api = Api { plane: plane.clone(), access, repository, accepted };
    let listener = listen(plane.config.admin).await?;
    shutdown.spawn("admin API", admin::run(listener, api, shutdown.clone()));
    Ok(())
}

/// Ready once there is something to serve: a revision in force.
async fn ready(plane: &Plane) {
    let mut snapshots = plane.snapshot.subscribe();
    // Fails only when the plane is gone, and then nobody asks any more.
    let _ = snapshots.wait_for(|snapshot| !snapshot.commit().is_empty()).await;
}

/// Stage four, forever: inputs in, snapshots out.
async fn build(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut configuration = plane.configuration.subscribe();
    let mut workloads = plane.registry.workloads();
    let mut peers = plane.peers.subscribe();
    let mut bundle = plane.bundle.subscribe();
    let mut ages = tokio::time::interval(AGEING);
    loop {
        let inputs = Inputs {
            cluster: plane.config.cluster.clone(),
            own: Arc::new(plane.config.place.clone()),
            configuration: configuration.borrow_and_update().clone(),
            workloads: workloads.borrow_and_update().clone(),
            peers: peers.borrow_and_update().clone(),
            bundle: bundle.borrow_and_update().clone(),
            now: seconds(SystemTime::now()) as u64,
        };
        plane.snapshot.send_replace(Arc::new(snapshot::build(&inputs)));
        tokio::select! {
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

/// Ends when stale endpoints have grown older; never, where nothing is stale.
async fn grow_old(ages: &mut tokio::time::Interval, inputs: &Inputs) {
    if inputs.peers.values().all(|catalogue| catalogue.stale_since == 0) {
        return std::future::pending().await;
    }
    ages.tick().await;
}

/// Leases that run out, and this process's own certificate.
async fn upkeep(plane: Arc<Plane>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match plane.registry.expire(SystemTime::now()).await {
            Ok(gone) => gone.iter().for_each(|workload| {
                plane.events.note(format!("workload {workload}"), "is gone: its lease has run out");
            }),
            Err(error) => tracing::warn!(%error, "leases could not be judged"),
        }
        let lifetimes = plane.configuration.borrow().mesh().map(|mesh| mesh.spec.certificates.clone());
        let lifetime = lifetimes.unwrap_or_default().intermediate.get();
        let renewed = plane
            .authority
            .renew_own_intermediate(lifetime, unix_now())
            .and_then(|()| plane.authority.renew_own(unix_now()));
        if let Err(error) = renewed {
            tracing::warn!(%error, "this control plane's own certificates were not renewed");
        }
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at {address}: does another process?"))
}
