//! One proxy from its start to its end: identity, the last good view, workers, the control stream, the drain.

use std::{
    io,
    rc::Rc,
    sync::{Arc, OnceLock, atomic::Ordering::Relaxed},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use api::wire;
use process::{
    access_log::{AccessLog, Sink},
    admin::{self, Readiness, Routes},
    metrics::Registry,
    shutdown::Shutdown,
    tls::Identity,
    trace::{Collector, Exporter},
    world::{Machine, SharedWorld},
};
use tokio::{net::TcpListener, sync::mpsc};

use crate::{
    account::{Meters, Telemetry},
    admin::{Later, routes},
    config::{Config, Role},
    connection::Entrance,
    control::{self, hosts::Hosts, kept, protocol::Session},
    listen,
    passthrough::{self, Passthrough},
    proxy::Proxy,
    worker::{self, Worker},
};

/// After the farewell, until the others have surely heard of it: requests that still come are turned away politely.
const GRACE: Duration = Duration::from_millis(300);

/// What is left to tell at the end.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How often endpoints are judged.
const JUDGE: Duration = Duration::from_secs(1);

/// Runs a proxy until `end` is cancelled, and drains it. For the control thread.
pub async fn run(config: Config, end: Shutdown) -> anyhow::Result<()> {
    let (registry, readiness, later) = (Registry::new(), Readiness::default(), Later::default());
    let waiting = [readiness.task("credentials"), readiness.task("view"), readiness.task("listeners")];
    let background = Shutdown::new();
    let listener =
        TcpListener::bind(config.admin).await.with_context(|| format!("admin address {}", config.admin))?;
    let admin_routes = routes(Routes::new(&registry, &readiness), later.clone(), end.clone());
    background.spawn("admin", admin::run(listener, admin_routes, background.clone()));

    let world: SharedWorld = Arc::new(Machine);
    let identity = tokio::select! {
        identity = control::identity(&world, &config) => identity?,
        () = end.cancelled() => return Ok(()),
    };
    let [credentials, view, listeners] = waiting;
    drop(credentials);

    let telemetry = telemetry(&config, &identity, &registry, &background)?;
    let (hosts, questions) = Hosts::new();
    let (session, refused) = Session::new(hello(&config, rand::random()), kept::read(&config.state_dir)?);
    if let Err(reasons) = refused {
        tracing::warn!(reasons = ?reasons, "the view on disk is of no use any more");
    }
    let proxy = Proxy::new(config, identity, hosts, telemetry);
    let _ = later.set(proxy.clone());
    if let Some(runtime) = session.current() {
        tracing::info!(revision = &*runtime.revision, "the last good view is in force");
        proxy.install(runtime.clone());
    }
    let control = Shutdown::new();
    let stream = control::run(world.clone(), proxy.clone(), session, questions, control.clone());
    control.spawn_vital("control stream", stream);
    background.spawn_vital("renewal", control::renew::run(world, proxy.clone(), background.clone()));
    background.spawn_vital("judging", judge(proxy.clone(), background.clone()));

    let mut changes = proxy.changes();
    while proxy.state().is_none() {
        tokio::select! {
            _ = changes.changed() => {}
            () = end.cancelled() => return Ok(()),
        }
    }
    drop(view);
    let threads = Threads::start(&proxy, &registry).await?;
    let captured = match &proxy.config.capture {
        Some(capture) if capture.install => Some(capture.install().context("capture")?),
        Some(_) | None => None,
    };
    drop(listeners);
    tracing::info!(role = ?proxy.config.role.wire(), workload = proxy.config.workload, "ready");

    tokio::select! {
        () = end.cancelled() => {}
        () = control.cancelled() => {}
        () = background.cancelled() => {}
    }
    let failed = control.failed().or(background.failed());
    let _draining = readiness.task("draining");
    let whole = proxy.config.drain;
    threads.drain(&proxy, &control).await;
    drop(captured);
    let _ = background.drain(LAST_WORDS.min(whole / 10)).await;
    match failed {
        Some(task) => {
            bail!("`{task}` has ended, without which this proxy obeys nobody: see the log before this")
        }
        None => Ok(()),
    }
}

/// What a new life of the proxy says first; `life` tells it from all others.
pub fn hello(config: &Config, life: u32) -> wire::Hello {
    let public = match &config.role {
        Role::EastWest { public, .. } => public.to_string(),
        Role::Sidecar { .. } | Role::Ingress { .. } => String::new(),
    };
    let ports = config.role.apps().iter();
    wire::Hello {
        instance: format!("{}-{:08x}", config.workload, life),
        role: config.role.wire() as i32,
        level: wire::LEVEL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        address: config.role.address(),
        ports: ports
            .map(|app| wire::AppPort { port: app.port.into(), address: app.address.to_string() })
            .collect(),
        public_address: public,
        zone: config.zone.clone(),
        ..Default::default()
    }
}

fn telemetry(
    config: &Config,
    identity: &Identity,
    registry: &Registry,
    background: &Shutdown,
) -> anyhow::Result<Telemetry> {
    let id = identity.credentials().id().clone();
    let log = match &config.access_log {
        None => None,
        Some(log) => {
            let opened = AccessLog::open(Sink::File(log.path.clone()), background);
            let opened = opened.with_context(|| format!("access log {}", log.path.display()))?;
            opened.register(registry);
            Some((opened, log.sample))
        }
    };
    let verified = identity.verify(identity.credentials().chain(), api::identity::UnixTime::now());
    let spans = match &config.tracing.endpoint {
        None => Exporter::disabled(),
        Some(endpoint) => Exporter::start(
            &Collector {
                endpoint: endpoint.clone(),
                source: Some(config.source),
                service: id.service_account().map_or_else(|| config.workload.clone(), ToString::to_string),
                namespace: id.namespace().map(ToString::to_string).unwrap_or_default(),
                instance: config.workload.clone(),
                cluster: verified.map(|verified| verified.cluster.to_string()).unwrap_or_default(),
            },
            background,
        )?,
    };
    spans.register(registry);
    // Without a receiver a trace is passed on but none is kept that begins here.
    let trace_share = if spans.is_enabled() { config.tracing.sample } else { 0.0 };
    Ok(Telemetry { meters: Meters::new(registry), log, spans, trace_share })
}

async fn judge(proxy: Arc<Proxy>, shutdown: Shutdown) {
    let mut ticks = tokio::time::interval(JUDGE);
    loop {
        tokio::select! {
            _ = ticks.tick() => proxy.sweep(),
            () = shutdown.cancelled() => return,
        }
    }
}

/// The workers' threads, and how they end.
pub(crate) struct Threads {
    /// What comes from others.
    front: Shutdown,
    /// What the application sends, which may go on while the front drains.
    back: Shutdown,
    stop: Shutdown,
    all: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) async fn start(proxy: &Arc<Proxy>, registry: &Registry) -> anyhow::Result<Self> {
        let mut threads =
            Threads { front: Shutdown::new(), back: Shutdown::new(), stop: Shutdown::new(), all: Vec::new() };
        let (opened, mut answers) = mpsc::channel(proxy.config.workers);
        let gateway = OnceLock::new();
        for index in 0..proxy.config.workers {
            let doors = Doors {
                proxy: proxy.clone(),
                front: threads.front.clone(),
                back: threads.back.clone(),
                passthrough: match &proxy.config.role {
                    Role::EastWest { .. } => {
                        Some(gateway.get_or_init(|| passthrough_of(proxy, registry)).clone())
                    }
                    Role::Sidecar { .. } | Role::Ingress { .. } => None,
                },
            };
            let (opened, stop) = (opened.clone(), threads.stop.clone());
            let body = move || work(doors, &opened, &stop);
            threads.all.push(thread::Builder::new().name(format!("worker-{index}")).spawn(body)?);
        }
        for _ in 0..proxy.config.workers {
            answers.recv().await.context("a worker ended at once")?.context("a listener cannot be opened")?;
        }
        if let Some(gateway) = gateway.into_inner() {
            threads.stop.spawn("passthrough flows", gateway.clone().tend(threads.stop.clone()));
            threads.stop.spawn("passthrough table", follow(proxy.clone(), gateway, threads.stop.clone()));
        }
        Ok(threads)
    }

    /// Farewell, then the front, then the back.
    pub(crate) async fn drain(self, proxy: &Proxy, control: &Shutdown) {
        proxy.draining.store(true, Relaxed);
        let whole = proxy.config.drain;
        // Telemetry has its last words afterwards, within the same time.
        let end = Instant::now() + whole - LAST_WORDS.min(whole / 10);
        let _ = control.drain(LAST_WORDS.min(whole / 5)).await;
        tokio::time::sleep(GRACE.min(whole / 10)).await;
        for (what, doors, share) in [("front", &self.front, 0.7), ("back", &self.back, 1.0)] {
            let left = end.saturating_duration_since(Instant::now());
            if let Err(unfinished) = doors.drain(left.mul_f64(share)).await {
                tracing::warn!(%unfinished, what, "closed what had not ended in time");
            }
        }
        self.stop.cancel();
        let _ =
            tokio::task::spawn_blocking(move || self.all.into_iter().for_each(|thread| drop(thread.join())))
                .await;
    }
}

fn passthrough_of(proxy: &Proxy, registry: &Registry) -> Arc<Passthrough> {
    let settings = passthrough::Settings {
        source: Some(proxy.config.source),
        drain: proxy.config.drain / 2,
        ..Default::default()
    };
    let settings = settings.within(process::limits::raise_open_files(), proxy.config.workers);
    tracing::info!(flows = settings.max_flows, "the most at once, by what open files allow");
    let gateway = Passthrough::new(settings, registry);
    update(proxy, &gateway);
    gateway
}

fn update(proxy: &Proxy, gateway: &Passthrough) {
    let Some(state) = proxy.state() else { return };
    for error in gateway.update(&state.runtime.passthrough) {
        tracing::error!(%error, "an endpoint is left out");
    }
}

async fn follow(proxy: Arc<Proxy>, gateway: Arc<Passthrough>, shutdown: Shutdown) {
    let mut changes = proxy.changes();
    loop {
        update(&proxy, &gateway);
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = shutdown.cancelled() => return,
        }
    }
}

/// What one worker opens.
struct Doors {
    proxy: Arc<Proxy>,
    front: Shutdown,
    back: Shutdown,
    passthrough: Option<Arc<Passthrough>>,
}

/// A panic in a connection ends that connection. One that ends a whole worker ends the process: half a proxy would hold
/// its listeners and serve nobody, and whoever restarts processes would not know.
struct Whole;

impl Drop for Whole {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a worker has ended by a panic, and the process with it");
            std::process::abort();
        }
    }
}

/// The whole life of a worker's thread.
fn work(doors: Doors, opened: &mpsc::Sender<io::Result<()>>, stop: &Shutdown) {
    let local = match worker::runtime() {
        Ok(local) => local,
        Err(error) => return drop(opened.blocking_send(Err(error))),
    };
    let _whole = Whole;
    local.block_on(async {
        let worker = Worker::new(doors.proxy.clone());
        let result = doors.open(&worker);
        let failed = result.is_err();
        let _ = opened.send(result).await;
        if !failed {
            worker.clone().tend(stop.clone()).await;
        }
    });
}

impl Doors {
    fn open(self, worker: &Rc<Worker>) -> io::Result<()> {
        let serve = |listener: TcpListener, entrance, shutdown: &Shutdown| {
            let running = listen::run(worker.clone(), listener, entrance, shutdown.clone());
            worker.spawn(shutdown.track("listener".into(), running));
        };
        match (&self.proxy.config.role, self.passthrough) {
            (Role::Sidecar { inbound, outbound, .. }, _) => {
                serve(listen::open(*inbound)?, Entrance::Inbound, &self.front);
                serve(listen::open(*outbound)?, Entrance::Outbound, &self.back);
                if let Some(capture) = &self.proxy.config.capture {
                    for address in capture.inbound_at().into_iter().filter(|at| at != inbound) {
                        let listener = listen::open_captured(address)?;
                        listener.into_iter().for_each(|one| serve(one, Entrance::Inbound, &self.front));
                    }
                    for address in capture.outbound_at().into_iter().filter(|at| at != outbound) {
                        let listener = listen::open_captured(address)?;
                        listener.into_iter().for_each(|one| serve(one, Entrance::Outbound, &self.back));
                    }
                }
            }
            (Role::Ingress { listen }, _) => {
                let following = listen::follow_gateways(worker.clone(), *listen, self.front.clone());
                worker.spawn(self.front.track("gateways".into(), following));
            }
            (Role::EastWest { listen, .. }, Some(gateway)) => {
                let running = passthrough::run(listen::open(*listen)?, gateway, self.front.clone());
                worker.spawn(self.front.track("east-west listener".into(), running));
            }
            (Role::EastWest { .. }, None) => {}
        }
        Ok(())
    }
}
