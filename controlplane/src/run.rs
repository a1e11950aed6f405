//! One control plane from start to end, as a story.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use api::head::Head;
use process::{
    admin::{Readiness, Routes},
    metrics::Registry as Metrics,
    shutdown::Shutdown,
    tls::Identity,
    world::{Machine, SharedWorld},
};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    admin::{self, Access, Api},
    authority::Authority,
    commits::Commits,
    config::{Config, Duty, Keep, RawConfig},
    follow::{self, Followed},
    git,
    link::{self, remote::JoinError},
    metrics,
    ownership::Ownership,
    plane::{Plane, load},
    publish::Accepted,
    serving::{self, Begun},
    snapshot::Configuration,
    store::{self, Backed, Embedded, Etcd, Leading, Store},
    turn::Turn,
    vault::Vault,
    webhook::{self, Hook},
};

/// What is under way when the end is asked for gets this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Between two tries to join, while the primary is not there yet.
const JOIN_PAUSE: Duration = Duration::from_millis(250);

/// Runs a control plane of either role until SIGTERM or SIGINT.
pub async fn run(config: RawConfig) -> Result<()> {
    let config = config.meant()?;
    process::files::private_directory(&config.state_dir).context("the state directory cannot be made")?;
    let shutdown = Shutdown::new();
    process::limits::raise_open_files();
    process::shutdown::end_by_signal(shutdown.clone(), || ())?;
    let ended = tokio::select! {
        ended = serve(config, shutdown.clone()) => ended,
        () = shutdown.cancelled() => Ok(()),
    };
    if let Err(unfinished) = shutdown.drain(DRAIN).await {
        tracing::warn!(%unfinished, "ended before all was done");
    }
    ended
}

/// One turn after the other, for as long as the process lives.
async fn serve(config: Config, shutdown: Shutdown) -> Result<()> {
    let store = open(&config).await?;
    let leading = store::lead(store.clone(), &shutdown);
    let vault = Arc::new(match &config.store {
        Keep::File => Vault::alone(&config.state_dir),
        Keep::Etcd(_) => Vault::shared(&config.state_dir, store.clone(), leading.clone()),
    });
    let mut turn = Turn::new(store.clone(), leading.clone(), vault.clone());
    loop {
        let took_over = stand_by(&config, &mut turn, &shutdown).await?;
        let now = shutdown.child();
        let base = Base { store: store.clone(), leading: leading.clone(), vault: vault.clone(), took_over };
        tokio::select! {
            // Without an error and while the process goes on, its right to serve has ended.
            ended = serve_once(config.clone(), base, now.clone()) => {
                if ended.is_err() || shutdown.is_cancelled() {
                    return ended;
                }
            }
            () = turn.ends() => {}
        }
        tracing::warn!("another control plane of this cluster serves: this one lets go of what it had");
        if let Err(unfinished) = now.drain(DRAIN).await {
            tracing::warn!(%unfinished, "not all has ended with the turn");
        }
    }
}

/// Waits for this one's [turn](Turn::comes). Whoever asks meanwhile is told who serves.
async fn stand_by(config: &Config, turn: &mut Turn, shutdown: &Shutdown) -> Result<bool> {
    if let Keep::File = config.store {
        return Ok(turn.comes().await?);
    }
    let standing = shutdown.child();
    let readiness = Readiness::default();
    let _waiting = readiness.task("the turn of this control plane: another one of its cluster serves");
    let (probes, calls) = (listen(config.metrics).await?, listen(config.admin).await?);
    let routes = Routes::new(&Metrics::new(), &readiness);
    standing.spawn("metrics", process::admin::run(probes, routes, standing.clone()));
    standing.spawn("admin API", admin::stand_by(calls, turn.rival(), standing.clone()));
    let took_over = turn.comes().await?;
    if let Err(unfinished) = standing.drain(DRAIN).await {
        tracing::warn!(%unfinished, "not all has ended that stood by");
    }
    Ok(took_over)
}

/// What a turn begins with.
struct Base {
    store: Arc<dyn Store>,
    leading: Leading,
    vault: Arc<Vault>,
    took_over: bool,
}

/// One turn, until `shutdown`.
async fn serve_once(config: Config, base: Base, shutdown: Shutdown) -> Result<()> {
    let Base { store, leading, vault, took_over } = base;
    let metrics = Metrics::new();
    let readiness = Readiness::default();
    let starting = readiness.task("configuration and trust");
    let listener = listen(config.metrics).await?;
    shutdown
        .spawn("metrics", process::admin::run(listener, Routes::new(&metrics, &readiness), shutdown.clone()));

    let world: SharedWorld = Arc::new(Machine);
    let head = store::in_force(&*store, &leading).await?;
    let held = head.as_ref().map(|head| head.head().clone());
    let configuration = match held.as_ref().and_then(|head| Some((head.seq(), head.stable.as_ref()?))) {
        Some((seq, revision)) => load(&*store, seq, revision).await?,
        None => Configuration::default(),
    };
    let held = (held, configuration);
    let (mut begun, followed) = match config.duty.clone() {
        Duty::Primary { sources, ownership, .. } => {
            begin_primary(&world, &config, (sources, &ownership), held, vault, &shutdown).await?
        }
        Duty::Remote { primaries, join_token_file } => {
            let token = join_token_file.as_deref();
            (begin_remote(&world, &config, &primaries, token, held, vault).await?, Vec::new())
        }
    };
    begun.bereft |= took_over;
    if let Some(head) = head
        && let Err(error) = begun.authority.believes(&head)
    {
        tracing::error!(%error, "the head in the store is not the primary's: beginning without any");
        begun.configuration = Configuration::default();
    }
    let plane = serving::assemble(config, world, store, begun).await?;
    metrics::register(&metrics, &plane);
    start(&plane, followed, leading, &metrics, &shutdown).await?;
    tokio::select! {
        () = ready(&plane) => {
            drop(starting);
            tracing::info!(cluster = %plane.config.cluster, commit = plane.snapshot.borrow().commit(), "serving");
            shutdown.cancelled().await;
        }
        () = shutdown.cancelled() => {}
    }
    match shutdown.failed() {
        Some(task) => {
            bail!("`{task}` has ended, and without it nothing is served rightly: see the log before this")
        }
        None => Ok(()),
    }
}

/// The store of the settings. The file in the state directory is its own, or backs the one at servers.
async fn open(config: &Config) -> Result<Arc<dyn Store>> {
    let file = Embedded::open(&config.state_dir)?;
    Ok(match &config.store {
        Keep::File => Arc::new(file),
        Keep::Etcd(settings) => Arc::new(Backed::new(Arc::new(Etcd::open(settings.clone())), file).await?),
    })
}

/// What is in force at the start.
type Held = (Option<Head>, Configuration);

async fn begin_primary(
    world: &SharedWorld,
    config: &Config,
    (sources, ownership): (Vec<git::Source>, &Ownership),
    (head, configuration): Held,
    vault: Arc<Vault>,
    shutdown: &Shutdown,
) -> Result<(Begun, Vec<Followed>)> {
    let mut commits = Commits::of(sources.iter().map(|source| source.name.clone()));
    if let Some((head, revision)) = head.as_ref().and_then(|head| Some((head, head.stable.as_ref()?))) {
        commits.publish(head.seq(), revision);
    }
    let commits = watch::Sender::new(commits);
    let mirrors = config.state_dir.join("sources");
    let mut followed: Vec<_> =
        sources.into_iter().map(|source| Followed::start(source, &mirrors, shutdown)).collect();
    let (domain, lifetimes) = match configuration.mesh() {
        Some(mesh) => (mesh.spec.trust_domain.clone(), mesh.spec.certificates.clone()),
        None => {
            let Some(mesh) = follow::first_mesh(&mut followed, ownership, &commits).await else {
                bail!("ended before any commit passed the gate");
            };
            (mesh.trust_domain, mesh.certificates)
        }
    };
    let bereft = bereft(config, head.as_ref())?;
    let authority =
        Authority::primary(&config.state_dir, &config.cluster, &domain, &lifetimes, world.unix())?;
    keep_first(&vault).await;
    Ok((Begun { authority, configuration, commits, vault, bereft }, followed))
}

async fn begin_remote(
    world: &SharedWorld,
    config: &Config,
    primaries: &[SocketAddr],
    token: Option<&Path>,
    (head, configuration): Held,
    vault: Arc<Vault>,
) -> Result<Begun> {
    let bereft = bereft(config, head.as_ref())?;
    let authority = match Authority::rejoin(&config.state_dir, &config.cluster, world.unix())? {
        Some(authority) => authority,
        None => join(world, config, primaries, token).await?,
    };
    keep_first(&vault).await;
    Ok(Begun { authority, configuration, commits: watch::Sender::default(), vault, bereft })
}

/// Keys without a head: the store was lost, and with it who lives here.
fn bereft(config: &Config, head: Option<&Head>) -> Result<bool> {
    Ok(head.is_none() && Identity::load(&config.state_dir)?.is_some())
}

/// Keys are kept before anybody has a certificate by them; if the store fails now, upkeep tries again.
async fn keep_first(vault: &Vault) {
    if let Err(error) = vault.keep().await {
        tracing::warn!(%error, "the keys are here alone for now");
    }
}

async fn join(
    world: &SharedWorld,
    config: &Config,
    primaries: &[SocketAddr],
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
    for primary in primaries.iter().cycle() {
        match link::remote::join(world, text, &config.cluster, *primary, config.address, &config.state_dir)
            .await
        {
            Ok(authority) => return Ok(authority),
            Err(JoinError::Connect(error)) => {
                tracing::warn!(%primary, %error, "the primary is not there yet");
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    bail!("no address of the primary is named")
}

async fn start(
    plane: &Arc<Plane>,
    followed: Vec<Followed>,
    leading: Leading,
    metrics: &Metrics,
    shutdown: &Shutdown,
) -> Result<()> {
    serving::begin(plane, shutdown).await?;
    let accepted = Arc::new(Accepted::default());
    let sources = followed.iter().map(|one| (one.repository.clone(), one.bell.clone())).collect();
    match &plane.config.duty {
        Duty::Primary { webhook, ownership, .. } => {
            let hooks: Vec<Hook> = followed.iter().filter_map(hook).collect();
            if !hooks.is_empty() {
                let routes = webhook::routes(hooks, metrics);
                let serving = process::admin::serve(listen(*webhook).await?, routes, shutdown.clone());
                shutdown.spawn("webhooks", serving);
            }
            let publishing = follow::run(
                plane.clone(),
                ownership.clone(),
                followed,
                accepted.clone(),
                leading,
                shutdown.clone(),
            );
            shutdown.spawn_vital("publisher", publishing);
        }
        Duty::Remote { primaries, .. } => {
            let primaries = primaries.clone();
            let link = link::remote::run(plane.clone(), primaries, leading, shutdown.clone());
            shutdown.spawn_vital("link", link);
        }
    }
    let access = Arc::new(Access::open(&plane.config.state_dir)?);
    let url = format!("http://{}/?login={}", plane.config.admin, access.login());
    process::files::write_private(&plane.config.state_dir.join("console.url"), url.as_bytes())?;
    let api = Api { plane: plane.clone(), access, sources, accepted };
    let listener = listen(plane.config.admin).await?;
    shutdown.spawn("admin API", admin::run(listener, api, shutdown.clone()));
    Ok(())
}

/// What rings a source whose webhooks are signed.
fn hook(followed: &Followed) -> Option<Hook> {
    let source = followed.repository.source();
    let secret = source.webhook_secret.clone()?;
    Some(Hook { source: source.name.clone(), secret, bell: followed.bell.clone() })
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
