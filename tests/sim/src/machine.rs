//! Control planes and sidecars as machines: they start, are killed, and start again from their disks.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use api::{
    delta::{Origin, View},
    wire,
};
use controlplane::{
    authority::Authority,
    config::{Config as PlaneConfig, Duty, Keep, RawConfig},
    gate::Tree,
    link,
    ownership::Ownership,
    plane::{Plane, load},
    publish::{Accepted, Publisher},
    serving::{self, Begun},
    snapshot::Configuration,
    store::{self, Backed, Election, Etcd, Leading, Store, in_force},
    turn::Turn,
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
    servers::{self, Servers},
};

/// Between two tries of what does not work yet.
const AGAIN: Duration = Duration::from_millis(500);
/// What is under way at the end of a turn gets this long.
const DRAIN: Duration = Duration::from_secs(5);
/// The application's port.
const PORT: u16 = 8080;
/// What every sidecar calls.
const HOSTS: [&str; 2] = ["reviews.shop.svc.cluster.local", "front.shop.svc.cluster.local"];

/// The machine of one control plane.
pub struct ControlPlane {
    /// What it is called: after its cluster, if it is the only one there.
    pub name: String,
    /// Its cluster.
    pub cluster: String,
    /// Its address.
    pub ip: IpAddr,
    /// The disk below its store.
    pub disk: Disk,
    /// The servers that its cluster's control planes share, where there are several.
    pub servers: Option<Rc<Servers>>,
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
    views: RefCell<Vec<(View, Origin)>>,
    /// Until when its disk takes no view.
    full_until: Cell<Duration>,
    dir: PathBuf,
    life: RefCell<Option<Life<Arc<Proxy>>>>,
}

/// What the turns of a control plane have in common.
type Base = (Arc<dyn Store>, Leading, Arc<Vault>, bool);

/// One life of a process; what it is becomes known once it serves.
struct Life<T> {
    shutdown: Shutdown,
    serving: Serving<T>,
    /// How the mesh calls it.
    instance: String,
}

/// What a process serves now.
type Serving<T> = Rc<RefCell<Option<T>>>;

impl<T> Life<T> {
    fn new(instance: String) -> Self {
        Life { shutdown: Shutdown::new(), serving: Rc::default(), instance }
    }
}

impl ControlPlane {
    /// A machine that is off.
    pub fn new(
        (name, cluster): (&str, &str),
        ip: IpAddr,
        root: &Path,
        disk: Disk,
        servers: Option<Rc<Servers>>,
    ) -> Self {
        ControlPlane {
            name: name.to_owned(),
            cluster: cluster.to_owned(),
            ip,
            disk,
            servers,
            dir: root.join(name),
            life: RefCell::default(),
        }
    }

    /// Whether a process lives on it.
    pub fn is_on(&self) -> bool {
        self.life.borrow().is_some()
    }

    /// What it serves, while it does.
    pub fn plane(&self) -> Option<Arc<Plane>> {
        self.life.borrow().as_ref()?.serving.borrow().clone()
    }

    /// Gives it the key under which the control planes of its cluster seal what they share.
    pub fn entrust(&self, key: &[u8]) -> Result<()> {
        process::files::private_directory(&self.dir)?;
        Ok(process::files::write_private(&self.dir.join("seal.key"), key)?)
    }

    /// Starts it.
    pub fn start(self: &Rc<Self>, mesh: &Rc<Mesh>) {
        let world = mesh.network.boot(self.ip);
        let life = Life::new(self.name.clone());
        let (shutdown, serving) = (life.shutdown.clone(), life.serving.clone());
        *self.life.borrow_mut() = Some(life);
        let (host, mesh) = (self.clone(), mesh.clone());
        tokio::task::spawn_local(async move {
            let served = host.run(&mesh, world.clone(), serving, shutdown).await;
            if let (Err(error), true) = (served, world.is_alive()) {
                mesh.trace.line(format_args!("control plane {} ended: {error:#}", host.name));
                if format!("{error:#}").contains("damaged") {
                    mesh.oracle.borrow_mut().fail("disk", format!("{}: {error:#}", host.name));
                }
                host.kill(&mesh, End::Killed);
                // As a service manager would.
                tokio::time::sleep(AGAIN).await;
                if !host.is_on() {
                    host.start(&mesh);
                }
            }
        });
    }

    /// Ends it without warning.
    pub fn kill(&self, mesh: &Mesh, end: End) {
        if let Some(life) = self.life.borrow_mut().take() {
            if life.serving.borrow().is_some() {
                mesh.turn_ends(self);
            }
            mesh.network.kill(self.ip, end);
            self.disk.close();
            life.shutdown.cancel();
        }
    }

    /// One turn after the other.
    async fn run(
        self: &Rc<Self>,
        mesh: &Rc<Mesh>,
        world: Arc<Outlook>,
        serving: Serving<Arc<Plane>>,
        shutdown: Shutdown,
    ) -> Result<()> {
        process::files::private_directory(&self.dir)?;
        sabotage::before_plane(mesh.sabotage, &self.dir)?;
        let config = self.config(mesh)?;
        let store = self.store(&config, &world).await?;
        let leading = store::lead(store.clone(), &shutdown);
        let vault = Arc::new(match &config.store {
            Keep::File => Vault::alone(&self.dir),
            Keep::Etcd(_) => Vault::shared(&self.dir, store.clone(), leading.clone()),
        });
        let mut turn = Turn::new(store.clone(), leading.clone(), vault.clone());
        loop {
            let took_over = turn.comes().await?;
            let now = shutdown.child();
            let base = (store.clone(), leading.clone(), vault.clone(), took_over);
            tokio::select! {
                ended = self.serve(mesh, &world, (config.clone(), base), &serving, &now) => ended?,
                () = turn.ends() => {}
            }
            if !world.is_alive() {
                return Ok(());
            }
            serving.borrow_mut().take();
            mesh.lets_go(self);
            // What has not ended by then is killed with the process.
            let _ = now.drain(DRAIN).await;
        }
    }

    async fn store(&self, config: &PlaneConfig, world: &Arc<Outlook>) -> Result<Arc<dyn Store>> {
        Ok(match &config.store {
            Keep::File => Arc::new(SlowStore::open(&self.disk, world.clone())?),
            Keep::Etcd(settings) => {
                let far = Etcd::through(settings.clone(), servers::connect(world.clone()));
                Arc::new(Backed::new(Arc::new(far), self.disk.store()?).await?)
            }
        })
    }

    /// One turn, until another one serves.
    async fn serve(
        self: &Rc<Self>,
        mesh: &Rc<Mesh>,
        world: &Arc<Outlook>,
        (config, (store, leading, vault, bereft)): (PlaneConfig, Base),
        serving: &Serving<Arc<Plane>>,
        shutdown: &Shutdown,
    ) -> Result<()> {
        let held = in_force(&*store, &leading).await?.map(|head| head.head().clone());
        let configuration = match held.as_ref().and_then(|head| Some((head.seq(), head.stable.as_ref()?))) {
            Some((seq, revision)) => load(&*store, seq, revision).await?,
            None => Configuration::default(),
        };
        let shared: SharedWorld = world.clone();
        let authority = match &config.duty {
            Duty::Primary { .. } => {
                let domain = TRUST_DOMAIN.parse()?;
                let lifetimes = Default::default();
                Authority::primary(&self.dir, &config.cluster, &domain, &lifetimes, world.unix())?
            }
            Duty::Remote { primaries, .. } => self.joined(mesh, &shared, &config, primaries).await?,
        };
        // If the servers fail now, upkeep tries again.
        let _ = vault.keep().await;
        let commits = watch::Sender::default();
        let begun = Begun { authority, configuration, commits, vault, bereft };
        let plane = serving::assemble(config, shared, store, begun).await?;
        serving::begin(&plane, shutdown).await?;
        mesh.begins(self, &plane, leading.now().is_some());
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
        serving.replace(Some(plane.clone()));
        mesh.trace.line(format_args!(
            "control plane {} serves {}",
            self.name,
            short(plane.snapshot.borrow().commit())
        ));
        tokio::select! {
            () = self.observe(mesh, world, &plane) => {}
            () = shutdown.cancelled() => {}
        }
        match shutdown.failed() {
            Some(task) => anyhow::bail!("`{task}` has ended"),
            None => Ok(()),
        }
    }

    fn config(&self, mesh: &Mesh) -> Result<PlaneConfig> {
        let primary = mesh.primaries();
        let replicas: Vec<_> = mesh.hosts(&self.cluster).map(|host| host.ip).collect();
        let mut said = serde_json::json!({
            "cluster": self.cluster,
            "role": "remote",
            "stateDir": self.dir,
            "address": self.ip,
            "network": self.cluster,
            "locality": { "region": format!("eu-{}", self.cluster), "zone": "a", "subzone": "" },
            "leaseSeconds": LEASE.as_secs(),
            "replicas": replicas,
        });
        if primary.contains(&self.ip) {
            said["role"] = "primary".into();
            said["source"] = serde_json::json!({ "repository": self.dir.join("unread") });
        } else {
            let addresses: Vec<_> = primary.iter().map(|ip| SocketAddr::new(*ip, 15013)).collect();
            said["primary"] = serde_json::json!(addresses);
        }
        if let Some(servers) = &self.servers {
            let url = format!("http://{}", SocketAddr::new(servers.ip, servers::PORT));
            said["store"] = serde_json::json!({ "etcd": { "endpoints": [url] } });
        }
        Ok(serde_json::from_value::<RawConfig>(said)?.meant()?)
    }

    /// The authority of before, or one by a token, as often as an operator has to give one.
    async fn joined(
        &self,
        mesh: &Mesh,
        world: &SharedWorld,
        config: &PlaneConfig,
        primaries: &[SocketAddr],
    ) -> Result<Authority> {
        if let Some(authority) = Authority::rejoin(&self.dir, &config.cluster, world.unix())? {
            return Ok(authority);
        }
        for primary in primaries.iter().cycle() {
            if let Some(text) = self.join_token(mesh, primaries) {
                let joined = link::remote::join(world, &text, &config.cluster, *primary, self.ip, &self.dir);
                link::remote::keep_primary(&self.dir, &text)?;
                match joined.await {
                    Ok(authority) => return Ok(authority),
                    Err(error) => mesh.trace.line(format_args!("{} has not joined: {error}", self.name)),
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        anyhow::bail!("there is no primary")
    }

    fn join_token(&self, mesh: &Mesh, primaries: &[SocketAddr]) -> Option<String> {
        let plane = mesh.primary()?;
        let token = JoinToken {
            id: TokenId::random().ok()?,
            cluster: self.cluster.parse().ok()?,
            primary: plane.config.cluster.clone(),
            root: plane.authority.root_hash()?,
            addresses: primaries.iter().map(ToString::to_string).collect(),
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
            mesh.see_plane(self, plane);
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
    loop {
        let election = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            election = leading.begun() => election,
        };
        publisher.begin();
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = election.lost() => leading.changed().await,
            () = publish(&mut publisher, &mut branch, &election) => return,
        }
    }
}

/// One leadership.
async fn publish(
    publisher: &mut Publisher,
    branch: &mut watch::Receiver<Option<Arc<Commit>>>,
    election: &Election,
) {
    loop {
        let commit = branch.borrow_and_update().clone();
        if let Some(commit) = commit {
            publisher.hear(Tree::read(&commit.checkout()));
        }
        let failed = publisher.publish(election).await.is_err();
        tokio::select! {
            biased;
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
            full_until: Cell::default(),
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
        self.life.borrow().as_ref()?.serving.borrow().clone()
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
                if world.is_alive() {
                    mesh.oracle.borrow_mut().fail("disk", format!("{}: {error:#}", host.workload));
                }
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
            control_planes: mesh.hosts(&self.cluster).map(|host| (host.ip, 15012).into()).collect(),
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
        serving: Serving<Arc<Proxy>>,
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
        serving.replace(Some(proxy.clone()));
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
        let plane = mesh.serving(&self.cluster)?;
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

    /// Its disk takes no view for so long: in the place of the file that is written first there is a directory.
    pub fn fill(&self, mesh: &Mesh, lasts: Duration) {
        self.full_until.set(self.full_until.get().max(mesh.network.elapsed() + lasts));
        std::fs::create_dir_all(self.in_the_way()).expect("a directory of the simulation's own");
    }

    /// Whether its disk is to be full for longer.
    pub fn is_full(&self, mesh: &Mesh) -> bool {
        mesh.network.elapsed() < self.full_until.get()
    }

    /// Its disk takes views from now on.
    pub fn empty(&self, mesh: &Mesh) {
        self.full_until.set(self.full_until.get().min(mesh.network.elapsed()));
        // It may never have been full.
        let _ = std::fs::remove_dir(self.in_the_way());
    }

    fn in_the_way(&self) -> PathBuf {
        self.dir.join(".view.bin.new")
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
            full: mesh.network.elapsed() <= self.full_until.get(),
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
