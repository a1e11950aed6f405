//! Control planes and sidecars as machines: they start, are killed, and start again from their disks.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use anyhow::{Context, Result};
use api::{delta::View, wire};
use controlplane::{
    authority::Authority,
    config::{Config as PlaneConfig, Duty, RawConfig},
    gate::Tree,
    link,
    ownership::Ownership,
    plane::{Plane, load},
    publish::{Accepted, Publisher},
    serving::{self, Begun},
    snapshot::Configuration,
    store::{self, Leading, Store},
    vault::Vault,
};
use dataplane::{
    account::{Meters, Telemetry},
    config::{App, Config, Role, Tracing},
    control::{self, hosts::Hosts, kept, protocol::Session},
    proxy::Proxy,
};
use federation::token::{JoinToken, TokenId, WorkloadToken};
use process::{
    metrics::Registry as Metrics,
    shutdown::Shutdown,
    trace::Exporter,
    world::{SharedWorld, World},
};
use tokio::sync::{mpsc, watch};

use crate::{
    disk::{Disk, SlowStore},
    mesh::Mesh,
    network::{End, Outlook},
    oracle::{LEASE, SeenProxy},
    repository::{Commit, TRUST_DOMAIN, source},
    sabotage,
};

/// Between two tries of what does not work yet.
const AGAIN: Duration = Duration::from_millis(500);
/// The application's port.
const PORT: u16 = 8080;
/// What every sidecar calls.
const HOSTS: [&str; 2] = ["reviews.shop.svc.cluster.local", "front.shop.svc.cluster.local"];

/// The machine of one control plane.
pub struct ControlPlane {
    /// Its cluster.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// The disk below its store.
    pub disk: Disk,
    /// Whether that is full.
    pub full: Arc<AtomicBool>,
    dir: PathBuf,
    life: RefCell<Option<Life<Arc<Plane>>>>,
}

/// The machine of one sidecar and its application.
pub struct Sidecar {
    /// Its workload.
    pub workload: String,
    /// Its cluster.
    pub cluster: String,
    /// Its application, which is its service account too.
    pub app: String,
    /// Its address.
    pub ip: IpAddr,
    /// Whether its application answers.
    pub app_up: Cell<bool>,
    /// What it has held, where its disk is to be tampered with.
    views: RefCell<Vec<(View, String)>>,
    dir: PathBuf,
    life: RefCell<Option<Life<Arc<Proxy>>>>,
}

/// One life of a process; what it is becomes known once it serves.
struct Life<T> {
    shutdown: Shutdown,
    serving: Rc<OnceCell<T>>,
    /// How the mesh calls it.
    instance: String,
}

impl<T> Life<T> {
    fn new(instance: String) -> Self {
        Life { shutdown: Shutdown::new(), serving: Rc::default(), instance }
    }
}

impl ControlPlane {
    /// A machine that is off.
    pub fn new(name: &str, ip: IpAddr, root: &Path, disk: Disk) -> Self {
        ControlPlane {
            name: name.to_owned(),
            ip,
            disk,
            full: Arc::default(),
            dir: root.join(name),
            life: RefCell::default(),
        }
    }

    /// Whether a process lives on it.
    pub fn is_on(&self) -> bool {
        self.life.borrow().is_some()
    }

    /// What it serves, once it does.
    pub fn plane(&self) -> Option<Arc<Plane>> {
        self.life.borrow().as_ref()?.serving.get().cloned()
    }

    /// Starts it.
    pub fn start(self: &Rc<Self>, mesh: &Rc<Mesh>) {
        let world = mesh.network.boot(self.ip);
        let life = Life::new(self.name.clone());
        let (shutdown, serving) = (life.shutdown.clone(), life.serving.clone());
        *self.life.borrow_mut() = Some(life);
        let (host, mesh) = (self.clone(), mesh.clone());
        tokio::task::spawn_local(async move {
            let served = host.serve(&mesh, world.clone(), serving, shutdown).await;
            if let (Err(error), true) = (served, world.is_alive()) {
                mesh.trace.line(format_args!("control plane {} ended: {error:#}", host.name));
                if format!("{error:#}").contains("damaged") {
                    mesh.oracle.borrow_mut().fail("disk", format!("{}: {error:#}", host.name));
                }
                host.kill(&mesh, End::Killed);
            }
        });
    }

    /// Ends it without warning.
    pub fn kill(&self, mesh: &Mesh, end: End) {
        if let Some(life) = self.life.borrow_mut().take() {
            mesh.network.kill(self.ip, end);
            life.shutdown.cancel();
        }
    }

    async fn serve(
        self: &Rc<Self>,
        mesh: &Rc<Mesh>,
        world: Arc<Outlook>,
        serving: Rc<OnceCell<Arc<Plane>>>,
        shutdown: Shutdown,
    ) -> Result<()> {
        process::files::private_directory(&self.dir)?;
        sabotage::before_plane(mesh.sabotage, &self.dir)?;
        let store: Arc<dyn Store> = Arc::new(SlowStore::open(&self.disk, world.clone(), self.full.clone())?);
        let leading = store::lead(store.clone(), &shutdown);
        let held = store.head().await?.map(|head| head.head().clone());
        let configuration = match held.as_ref().and_then(|head| head.stable.as_ref()) {
            Some(revision) => load(&*store, revision).await?,
            None => Configuration::default(),
        };
        let config = self.config(mesh)?;
        let shared: SharedWorld = world.clone();
        let authority = match &config.duty {
            Duty::Primary { .. } => {
                let domain = TRUST_DOMAIN.parse()?;
                let lifetimes = Default::default();
                Authority::primary(&self.dir, &config.cluster, &domain, &lifetimes, world.unix())?
            }
            Duty::Remote { primaries, .. } => self.joined(mesh, &shared, &config, primaries[0]).await?,
        };
        let in_force = held.map(|head| head.seq());
        let vault = Arc::new(Vault::alone(&self.dir));
        let commits = watch::Sender::default();
        let begun = Begun { authority, configuration, in_force, commits, vault, bereft: false };
        let plane = serving::assemble(config, shared, store, begun).await?;
        serving::begin(&plane, &shutdown).await?;
        mesh.oracle.borrow_mut().plane_begins(&self.name, mesh.network.elapsed());
        mesh.introduce(&self.name, plane.authority.identity().credentials().chain());
        match &plane.config.duty {
            Duty::Primary { .. } => {
                let branch = mesh.repository.borrow().watch();
                shutdown.spawn("publisher", publisher(plane.clone(), branch, leading, shutdown.clone()));
            }
            Duty::Remote { primaries, .. } => {
                let link = link::remote::run(plane.clone(), primaries.clone(), leading, shutdown.clone());
                shutdown.spawn("link", link);
            }
        }
        let _ = serving.set(plane.clone());
        mesh.trace.line(format_args!(
            "control plane {} serves {}",
            self.name,
            short(plane.snapshot.borrow().commit())
        ));
        self.observe(mesh, &world, &plane).await;
        Ok(())
    }

    fn config(&self, mesh: &Mesh) -> Result<PlaneConfig> {
        let primary = mesh.planes()[0].ip;
        let mut said = serde_json::json!({
            "cluster": self.name,
            "role": "remote",
            "stateDir": self.dir,
            "address": self.ip,
            "network": self.name,
            "locality": { "region": format!("eu-{}", self.name), "zone": "a", "subzone": "" },
            "leaseSeconds": LEASE.as_secs(),
        });
        if self.ip == primary {
            said["role"] = "primary".into();
            said["source"] = serde_json::json!({ "repository": self.dir.join("unread") });
        } else {
            said["primary"] = SocketAddr::new(primary, 15013).to_string().into();
        }
        Ok(serde_json::from_value::<RawConfig>(said)?.meant()?)
    }

    /// The authority of before, or one by a token, as often as an operator has to give one.
    async fn joined(
        &self,
        mesh: &Mesh,
        world: &SharedWorld,
        config: &PlaneConfig,
        primary: SocketAddr,
    ) -> Result<Authority> {
        if let Some(authority) = Authority::rejoin(&self.dir, &config.cluster, world.unix())? {
            return Ok(authority);
        }
        loop {
            if let Some(text) = self.join_token(mesh, primary) {
                let joined = link::remote::join(world, &text, &config.cluster, primary, self.ip, &self.dir);
                link::remote::keep_primary(&self.dir, &text)?;
                match joined.await {
                    Ok(authority) => return Ok(authority),
                    Err(error) => mesh.trace.line(format_args!("{} has not joined: {error}", self.name)),
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn join_token(&self, mesh: &Mesh, primary: SocketAddr) -> Option<String> {
        let plane = mesh.planes()[0].plane()?;
        let token = JoinToken {
            id: TokenId::random().ok()?,
            cluster: self.name.parse().ok()?,
            primary: plane.config.cluster.clone(),
            root: plane.authority.root_hash()?,
            addresses: vec![primary.to_string()],
            expires: plane.world.unix().as_secs() + 600,
        };
        Some(plane.authority.issue(&token))
    }

    async fn observe(&self, mesh: &Mesh, world: &Outlook, plane: &Plane) {
        let mut proxies = plane.registry.proxies();
        let mut workloads = plane.registry.workloads();
        let mut snapshots = plane.snapshot.subscribe();
        let mut peers = plane.peers.subscribe();
        let mut configurations = plane.configuration.subscribe();
        let mut bundles = plane.bundle.subscribe();
        let mut reports = plane.reports.subscribe();
        let mut heads = plane.store.watch_head();
        loop {
            mesh.see_plane(&self.name, plane);
            tokio::select! {
                biased;
                _ = proxies.changed() => {}
                _ = workloads.changed() => {}
                _ = snapshots.changed() => {}
                _ = peers.changed() => {}
                _ = configurations.changed() => {}
                _ = bundles.changed() => {}
                _ = reports.changed() => {}
                _ = heads.changed() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            if !world.is_alive() {
                return;
            }
        }
    }
}

/// What the publisher does beside reading Git: the gate, the store, the head; again, until it is in force.
async fn publisher(
    plane: Arc<Plane>,
    mut branch: watch::Receiver<Option<Arc<Commit>>>,
    mut leading: Leading,
    shutdown: Shutdown,
) {
    let mut publisher = Publisher::new(plane, Ownership::sole(source()), Arc::new(Accepted::default()));
    let election = leading.begun().await;
    loop {
        let commit = branch.borrow_and_update().clone();
        if let Some(commit) = commit {
            publisher.hear(Tree::read(&commit.checkout()));
        }
        let failed = publisher.publish(&election).await.is_err();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = branch.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if failed => {}
        }
    }
}

impl Sidecar {
    /// A machine that is off.
    pub fn new(workload: &str, cluster: &str, app: &str, ip: IpAddr, root: &Path) -> Self {
        Sidecar {
            workload: workload.to_owned(),
            cluster: cluster.to_owned(),
            app: app.to_owned(),
            ip,
            app_up: Cell::new(true),
            views: RefCell::default(),
            dir: root.join(workload),
            life: RefCell::default(),
        }
    }

    /// Whether a process lives on it.
    pub fn is_on(&self) -> bool {
        self.life.borrow().is_some()
    }

    /// What it serves, once it does.
    pub fn proxy(&self) -> Option<Arc<Proxy>> {
        self.life.borrow().as_ref()?.serving.get().cloned()
    }

    /// Its present life.
    pub fn instance(&self) -> Option<String> {
        self.life.borrow().as_ref().map(|life| life.instance.clone())
    }

    /// Starts it.
    pub fn start(self: &Rc<Self>, mesh: &Rc<Mesh>) {
        let world = mesh.network.boot(self.ip);
        let life = (world.chance() * f64::from(u32::MAX)) as u32;
        let config = self.config(mesh);
        let hello = dataplane::run::hello(&config, life);
        let life = Life::new(hello.instance.clone());
        let (shutdown, serving) = (life.shutdown.clone(), life.serving.clone());
        *self.life.borrow_mut() = Some(life);
        let (host, mesh) = (self.clone(), mesh.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = host.serve(&mesh, world.clone(), config, hello, serving, shutdown).await {
                mesh.trace.line(format_args!("proxy {} ended: {error:#}", host.workload));
            }
        });
    }

    /// Ends it without warning.
    pub fn kill(&self, mesh: &Mesh, end: End) {
        if let Some(life) = self.life.borrow_mut().take() {
            mesh.network.kill(self.ip, end);
            life.shutdown.cancel();
        }
    }

    /// Lets it say farewell, and ends it.
    pub async fn stop(&self, mesh: &Mesh) {
        let life = self.life.borrow().as_ref().map(|life| (life.shutdown.clone(), life.instance.clone()));
        if let Some((shutdown, instance)) = life {
            mesh.oracle.borrow_mut().dismiss(&instance);
            shutdown.cancel();
            tokio::time::sleep(Duration::from_millis(1500)).await;
            if self.instance() == Some(instance) {
                self.kill(mesh, End::Killed);
            }
        }
    }

    fn config(&self, mesh: &Mesh) -> Config {
        let plane = mesh.planes().iter().find(|plane| plane.name == self.cluster).expect("its cluster").ip;
        let at = |port: u16| SocketAddr::new(self.ip, port);
        Config {
            role: Role::Sidecar {
                inbound: at(15006),
                outbound: at(15001),
                apps: vec![App { port: PORT, address: at(PORT) }],
            },
            workload: self.workload.clone(),
            state_dir: self.dir.clone(),
            token_file: Some(self.dir.join("token")),
            control_planes: vec![(plane, 15012).into()],
            source: self.ip,
            admin: at(15000),
            zone: String::new(),
            workers: 1,
            access_log: None,
            capture: None,
            tracing: Tracing { endpoint: None, sample: 0.0 },
            drain: Duration::from_secs(1),
        }
    }

    async fn serve(
        self: &Rc<Self>,
        mesh: &Rc<Mesh>,
        world: Arc<Outlook>,
        config: Config,
        hello: wire::Hello,
        serving: Rc<OnceCell<Arc<Proxy>>>,
        shutdown: Shutdown,
    ) -> Result<()> {
        let shared: SharedWorld = world.clone();
        tokio::task::spawn_local(application(self.clone(), world.clone()));
        let identity = self.identity(mesh, &shared, &config).await?;
        world.alive().await;
        sabotage::before_proxy(mesh.sabotage, &self.dir, &self.views.borrow())?;
        let (hosts, _) = Hosts::new();
        let (session, refused) = Session::new(hello, kept::read(&self.dir)?);
        if let Err(reasons) = refused {
            mesh.oracle.borrow_mut().fail("disk", format!("{}: the kept view: {reasons:?}", self.workload));
        }
        let meters = Meters::new(&Metrics::new());
        let telemetry = Telemetry { meters, log: None, spans: Exporter::disabled(), trace_share: 0.0 };
        let proxy = Proxy::new(config, identity, hosts, telemetry);
        if let Some(runtime) = session.current() {
            proxy.install(runtime.clone());
        }
        let (ask, questions) = mpsc::channel(HOSTS.len());
        let stream = control::run(shared.clone(), proxy.clone(), session, questions, shutdown.clone());
        shutdown.spawn("control stream", stream);
        shutdown.spawn("renewal", control::renew::run(shared, proxy.clone(), shutdown.clone()));
        tokio::task::spawn_local(ask_for_hosts(proxy.clone(), world.clone(), ask));
        let _ = serving.set(proxy.clone());
        self.observe(mesh, &world, &proxy).await
    }

    /// Its identity of before, or one by a token, as often as an operator has to give one.
    async fn identity(
        &self,
        mesh: &Mesh,
        world: &SharedWorld,
        config: &Config,
    ) -> Result<Arc<process::tls::Identity>> {
        process::files::private_directory(&self.dir)?;
        loop {
            if let Some(text) = self.token(mesh) {
                process::files::write_private(&self.dir.join("token"), text.as_bytes())?;
            }
            if self.dir.join("identity.pem").exists() || self.dir.join("token").exists() {
                let tried = tokio::time::timeout(AGAIN * 10, control::identity(world, config)).await;
                if let Ok(identity) = tried {
                    return identity;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn token(&self, mesh: &Mesh) -> Option<String> {
        let plane = mesh.planes().iter().find(|plane| plane.name == self.cluster)?.plane()?;
        let token = WorkloadToken {
            id: TokenId::random().ok()?,
            cluster: plane.config.cluster.clone(),
            namespace: "shop".parse().ok()?,
            service_account: self.app.parse().ok()?,
            labels: [("app".to_owned(), self.app.clone())].into(),
            workload: self.workload.parse().ok()?,
            root: plane.authority.root_hash()?,
            control_planes: vec![plane.config.proxies.to_string()],
            expires: plane.world.unix().as_secs() + 600,
        };
        Some(plane.authority.issue(&token))
    }

    async fn observe(&self, mesh: &Mesh, world: &Outlook, proxy: &Proxy) -> Result<()> {
        let mut changes = proxy.changes();
        while world.is_alive() {
            self.see(mesh, proxy)?;
            changes.changed().await.context("the proxy is gone")?;
        }
        Ok(())
    }

    fn see(&self, mesh: &Mesh, proxy: &Proxy) -> Result<()> {
        let (Some(state), Some(instance)) = (proxy.state(), self.instance()) else { return Ok(()) };
        mesh.trace.line(format_args!("{instance} obeys {}", short(&state.runtime.revision)));
        let seen = SeenProxy {
            workload: &self.workload,
            cluster: &self.cluster,
            instance: &instance,
            runtime: &state.runtime,
            identity: &proxy.identity,
            kept: kept::read(&self.dir)?,
        };
        if mesh.sabotage.is_some() {
            self.views.borrow_mut().extend(seen.kept.clone());
        }
        mesh.see_proxy(&seen);
        Ok(())
    }
}

/// Accepts connections as long as it is up.
async fn application(host: Rc<Sidecar>, world: Arc<Outlook>) {
    let address = SocketAddr::new(host.ip, PORT);
    while world.is_alive() {
        if host.app_up.get() {
            let Ok(listener) = world.listen(address).await else { return };
            while host.app_up.get() && world.is_alive() {
                let _ = tokio::time::timeout(AGAIN, listener.accept()).await;
            }
            world.close(address);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Asks, as requests would, for what the proxy does not know.
async fn ask_for_hosts(proxy: Arc<Proxy>, world: Arc<Outlook>, ask: mpsc::Sender<String>) {
    while world.is_alive() {
        let state = proxy.state();
        for host in HOSTS {
            if state.as_ref().is_none_or(|state| state.runtime.service_at(host).is_none()) {
                let _ = ask.try_send(host.to_owned());
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// A commit's id is its number and zeroes.
pub fn short(commit: &str) -> &str {
    commit.get(..4).unwrap_or("none")
}
