//! One control plane from start to end, as a story.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use api::head::{Head, Seq};
use process::{
    admin::{Readiness, Routes},
    metrics::Registry as Metrics,
    shutdown::Shutdown,
    world::{Machine, SharedWorld},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, Access, Api},
    authority::Authority,
    config::{Config, Duty, Keep, RawConfig},
    git::{self, Repository},
    link::{self, remote::JoinError},
    metrics,
    plane::{Commits, Plane, load},
    publish::{self, Accepted},
    serving::{self, Begun},
    snapshot::Configuration,
    store::{self, Backed, Embedded, Etcd, Leading, Store, StoreError},
    webhook::{self, Hook},
};

/// What is under way when the end is asked for gets this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two tries to reach a store that is not there yet.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// Between two tries to join, while the primary is not there yet.
const JOIN_PAUSE: Duration = Duration::from_millis(250);

/// Runs a control plane of either role until SIGTERM or SIGINT.
pub async fn run(config: RawConfig) -> Result<()> {
    let config = config.meant()?;
    process::files::private_directory(&config.state_dir).context("the state directory cannot be made")?;
    let shutdown = Shutdown::new();
    process::limits::raise_open_files();
    process::shutdown::end_by_signal(shutdown.clone())?;
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

    let world: SharedWorld = Arc::new(Machine);
    let store = open(&config).await?;
    let leading = store::lead(store.clone(), &shutdown);
    let held = in_force(&*store).await?;
    let configuration = match held.as_ref().and_then(|head| head.stable.as_ref()) {
        Some(revision) => load(&*store, revision).await?,
        None => Configuration::default(),
    };
    let held = (held.map(|head| head.seq()), configuration);
    let (begun, source) = match config.duty.clone() {
        Duty::Primary { source, .. } => begin_primary(&world, &config, *source, held, &shutdown).await?,
        Duty::Remote { primary, join_token_file } => {
            begin_remote(&world, &config, primary, join_token_file.as_deref(), held).await?
        }
    };
    let plane = serving::assemble(config, world, store, begun).await?;
    metrics::register(&metrics, &plane);
    start(&plane, source, leading, &metrics, &shutdown).await?;
    ready(&plane).await;
    drop(starting);
    tracing::info!(cluster = %plane.config.cluster, commit = plane.snapshot.borrow().commit(), "serving");
    shutdown.cancelled().await;
    Ok(())
}

/// The store of the settings. The file in the state directory is its own, or backs the one at servers.
async fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let file = Embedded::open(&config.state_dir)?;
    Ok(match &config.store {
        Keep::File => Arc::new(file),
        Keep::Etcd(settings) => Arc::new(Backed::new(Arc::new(Etcd::open(settings.clone())), file).await?),
    })
}

/// The head in force, as it is known here; else as the store says, which a first start has to wait for.
async fn in_force(store: &dyn Store) -> Result<Option<Head>> {
    loop {
        if let Some(known) = store.watch_head().borrow().as_ref() {
            return Ok(Some(known.head().clone()));
        }
        match store.head().await {
            Ok(head) => return Ok(head.map(|head| head.head().clone())),
            Err(error @ (StoreError::Failed(_) | StoreError::Full(_))) => {
                tracing::warn!(%error, "waiting for the store");
                tokio::time::sleep(STORE_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// What is in force at the start.
type Held = (Option<Seq>, Configuration);

/// The repository, what is seen of it, and what makes it ask its server at once.
type Seen = (Arc<Repository>, watch::Receiver<Option<git::Observation>>, git::Bell);

async fn begin_primary(
    world: &SharedWorld,
    config: &Config,
    source: git::Source,
    (in_force, configuration): Held,
    shutdown: &Shutdown,
) -> Result<(Begun, Option<Seen>)> {
    let repository = Arc::new(Repository::new(source, &config.state_dir.join("sources")));
    let bell = git::Bell::default();
    let (seen, mut observed) = watch::channel(None);
    let ended = CancellationToken::new();
    shutdown.spawn("repository", git::watch(repository.clone(), seen, bell.clone(), ended.clone()));
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
    let authority =
        Authority::primary(&config.state_dir, &config.cluster, &domain, &lifetimes, world.unix())?;
    // The publisher looks at it again, this time to take it.
    observed.mark_changed();
    Ok((Begun { authority, configuration, in_force, commits }, Some((repository, observed, bell))))
}

async fn begin_remote(
    world: &SharedWorld,
    config: &Config,
    primary: SocketAddr,
    token: Option<&Path>,
    (in_force, configuration): Held,
) -> Result<(Begun, Option<Seen>)> {
    let authority = match Authority::rejoin(&config.state_dir, &config.cluster, world.unix())? {
        Some(authority) => authority,
        None => join(world, config, primary, token).await?,
    };
    Ok((Begun { authority, configuration, in_force, commits: watch::Sender::default() }, None))
}

async fn join(
    world: &SharedWorld,
    config: &Config,
    primary: SocketAddr,
    token: Option<&Path>,
) -> Result<Authority> {
    let Some(path) = token else {
        bail!("this cluster has not joined yet: give it a join token (`joinTokenFile`), as `weft join` does");
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("the join token {} cannot be read", path.display()))?;
    let text = text.trim();
    // Before there is an authority: a crash between the two would leave one that knows no primary.
    link::remote::keep_primary(&config.state_dir, text)?;
    loop {
        match link::remote::join(world, text, &config.cluster, primary, config.address, &config.state_dir)
            .await
        {
            Ok(authority) => return Ok(authority),
            Err(JoinError::Connect(error)) => {
                tracing::warn!(%error, "the primary is not there yet");
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn start(
    plane: &Arc<Plane>,
    source: Option<Seen>,
    leading: Leading,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<()> {
    serving::begin(plane, shutdown).await?;
    let accepted = Arc::new(Accepted::default());
    let asked = source.as_ref().map(|(repository, _, bell)| (repository.clone(), bell.clone()));
    match (&plane.config.duty, source) {
        (Duty::Primary { webhook, .. }, Some((repository, observed, bell))) => {
            if let Some(secret) = repository.source().webhook_secret.clone() {
                let hook = Hook { source: repository.source().name.clone(), secret, bell };
                let routes = webhook::routes(vec![hook], metrics);
                let serving = process::admin::serve(listen(*webhook).await?, routes, shutdown.clone());
                shutdown.spawn("webhooks", serving);
            }
            let publishing = publish::run(
                plane.clone(),
                repository,
                observed,
                accepted.clone(),
                leading,
                shutdown.clone(),
            );
            shutdown.spawn("publisher", publishing);
        }
        (Duty::Remote { primary, .. }, _) => {
            shutdown.spawn("link", link::remote::run(plane.clone(), *primary, leading, shutdown.clone()));
        }
        (Duty::Primary { .. }, None) => bail!("a primary without a repository"),
    }
    let access = Arc::new(Access::open(&plane.config.state_dir)?);
    let url = format!("http://{}/?login={}", plane.config.admin, access.login());
    process::files::write_private(&plane.config.state_dir.join("console.url"), url.as_bytes())?;
    let api = Api { plane: plane.clone(), access, source: asked, accepted };
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

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen at {address}: does another process?"))
}
