//! One mesh: three clusters, their sidecars, the network between them, and who watches.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use api::{
    head::CommitId,
    identity::{CertificateDer, RootCertificate, SpiffeId, UnixTime},
    name::SourceName,
};
use controlplane::{plane::Plane, report::Lineage, snapshot::Configuration};
use federation::authority::{INTERMEDIATE_LIFETIME, IntermediateKey, ROOT_LIFETIME, Root};
use process::tls::Key;

use crate::{
    Options,
    chance::Chance,
    disk::Disk,
    machine::{ControlPlane, Sidecar, short},
    network::Network,
    oracle::{Oracle, SeenPlane, SeenProxy},
    repository::{Commit, Repository, TRUST_DOMAIN},
    sabotage::Sabotage,
    servers::Servers,
    trace::Trace,
};

/// The clusters, the primary first.
pub const CLUSTERS: [&str; 3] = ["east", "west", "south"];
/// The workloads of each cluster: name and application.
const WORKLOADS: [(&str, &str); 2] = [("front", "front"), ("reviews", "reviews")];
/// Under what the control planes of one cluster seal what they share.
const SEAL: [u8; 32] = [7; 32];
/// How long `wait` waits at once.
const WAIT: Duration = Duration::from_secs(60);

/// A mesh and all who watch it.
pub struct Mesh {
    /// Between all machines.
    pub network: Arc<Network>,
    /// What is committed.
    pub repository: RefCell<Repository>,
    /// What must hold.
    pub oracle: RefCell<Oracle>,
    /// What happened.
    pub trace: Trace,
    /// Another mesh's root, and a chain that leads to it.
    pub foreign: (RootCertificate, Vec<CertificateDer<'static>>),
    /// What is broken on purpose, and what for.
    pub sabotage: Option<Sabotage>,
    pub first_configuration: RefCell<Option<Arc<Configuration>>>,
    /// What the control planes of one cluster share, where one has several.
    pub servers: Option<Rc<Servers>>,
    planes: Vec<Rc<ControlPlane>>,
    sidecars: Vec<Rc<Sidecar>>,
    /// Which control plane of each cluster is asked what its cluster does.
    in_charge: RefCell<BTreeMap<String, String>>,
}

/// Where the commit that is waited for stands in the one branch.
struct History {
    mesh: Rc<Mesh>,
    index: usize,
}

impl Lineage for History {
    fn is_on_branch(&self, _: &SourceName) -> bool {
        true
    }

    fn is_behind(&self, _: &SourceName, published: &CommitId) -> bool {
        let repository = self.mesh.repository.borrow();
        repository.find(published.as_str()).is_some_and(|found| found.index > self.index)
    }
}

impl Mesh {
    /// The machines, all off, with their state below `root`.
    pub fn new(chance: &mut Chance, root: &Path, options: &Options) -> Rc<Self> {
        let network = Network::new(chance.fork());
        let ip = |cluster: usize, host: u8| IpAddr::V4(Ipv4Addr::new(10, cluster as u8, 0, host));
        let several = (options.sabotage.is_none() && chance.one_in(2))
            .then(|| chance.between(0, CLUSTERS.len() as u64) as usize);
        let servers = several.map(|at| Rc::new(Servers::new(ip(at, 250))));
        let mut planes = Vec::new();
        for (at, cluster) in CLUSTERS.iter().enumerate() {
            let disk = |chance: &mut Chance| {
                Disk::new(chance.fork(), options.sabotage == Some(Sabotage::LyingDisks))
            };
            if several != Some(at) {
                let disk = disk(chance);
                planes.push(ControlPlane::new((cluster, cluster), ip(at, 1), root, disk, None));
                continue;
            }
            for (host, place) in [(1, "a"), (2, "b")] {
                let (name, disk) = (format!("{cluster}-{place}"), disk(chance));
                let plane = ControlPlane::new((&name, cluster), ip(at, host), root, disk, servers.clone());
                plane.entrust(&SEAL).expect("a directory to write to");
                planes.push(plane);
            }
        }
        let planes = planes.into_iter().map(Rc::new).collect();
        let mut sidecars = Vec::new();
        for (at, cluster) in CLUSTERS.iter().enumerate() {
            for (host, (name, app)) in WORKLOADS.iter().enumerate() {
                let workload = format!("{name}-{cluster}");
                sidecars.push(Rc::new(Sidecar::new(&workload, cluster, app, ip(at, 10 + host as u8), root)));
            }
        }
        let foreign = foreign();
        let mut oracle = Oracle::default();
        oracle.foreign_root = Some(foreign.0.hash());
        oracle.chains.insert("foreign".into(), foreign.1.clone());
        Rc::new(Mesh {
            trace: Trace::new(network.clone()),
            network,
            repository: RefCell::new(Repository::new(&CLUSTERS)),
            oracle: RefCell::new(oracle),
            foreign,
            sabotage: options.sabotage,
            first_configuration: RefCell::default(),
            servers,
            planes,
            sidecars,
            in_charge: RefCell::default(),
        })
    }

    /// Turns everything on.
    pub fn start(self: &Rc<Self>) {
        self.servers.iter().for_each(|servers| servers.start(self));
        self.planes.iter().for_each(|plane| plane.start(self));
        self.sidecars.iter().for_each(|sidecar| sidecar.start(self));
    }

    /// The machines of all control planes.
    pub fn planes(&self) -> &[Rc<ControlPlane>] {
        &self.planes
    }

    /// Those of one cluster.
    pub fn hosts(&self, cluster: &str) -> impl Iterator<Item = &Rc<ControlPlane>> {
        self.planes.iter().filter(move |host| host.cluster == cluster)
    }

    /// The addresses of the primary's.
    pub fn primaries(&self) -> Vec<IpAddr> {
        self.hosts(CLUSTERS[0]).map(|host| host.ip).collect()
    }

    /// What serves a cluster, as its operator finds it.
    pub fn serving(&self, cluster: &str) -> Option<Arc<Plane>> {
        let in_charge = self.in_charge.borrow().get(cluster).cloned();
        self.hosts(cluster).find(|host| Some(&host.name) == in_charge.as_ref())?.plane()
    }

    /// What serves the primary cluster.
    pub fn primary(&self) -> Option<Arc<Plane>> {
        self.serving(CLUSTERS[0])
    }

    /// The sidecars of all clusters.
    pub fn sidecars(&self) -> &[Rc<Sidecar>] {
        &self.sidecars
    }

    /// Whether something was wrong.
    pub fn has_failed(&self) -> bool {
        self.oracle.borrow().failure().is_some()
    }

    /// A control plane begins to serve. One that leads is in charge, and one beside which nobody serves.
    pub fn begins(&self, host: &ControlPlane, plane: &Plane, leads: bool) {
        if leads || self.hosts(&host.cluster).all(|other| other.plane().is_none()) {
            self.in_charge.borrow_mut().insert(host.cluster.clone(), host.name.clone());
        }
        let kept = host.servers.as_ref().map(|servers| servers.registered());
        let seen = self.seen(host, plane);
        let mut oracle = self.oracle.borrow_mut();
        // What a control plane has not told the servers goes with its turn.
        let lost = |instance: &str| kept.as_ref().is_some_and(|kept| !kept.iter().any(|one| one == instance));
        oracle.plane_begins(&seen, self.network.elapsed(), lost);
        if leads {
            oracle.leader_begins(&self.repository.borrow(), &seen);
        }
        oracle.chains.insert(host.cluster.clone(), plane.authority.identity().credentials().chain().to_vec());
    }

    /// The turn of a control plane ends.
    pub fn turn_ends(&self, host: &ControlPlane) {
        if self.in_charge.borrow().get(&host.cluster) == Some(&host.name) {
            self.oracle.borrow_mut().turn_ends(&host.cluster, self.network.elapsed());
        }
    }

    /// A control plane has let go of its cluster.
    pub fn lets_go(&self, host: &ControlPlane) {
        self.trace.line(format_args!("control plane {} lets go: another one serves", host.name));
        self.turn_ends(host);
        self.oracle.borrow_mut().plane_lets_go(&host.name, &host.cluster);
    }

    /// Lets the oracle look at a control plane.
    pub fn see_plane(&self, host: &ControlPlane, plane: &Plane) {
        let (now, seen) = (self.network.elapsed(), self.seen(host, plane));
        let mut serving = self.hosts(&host.cluster).filter(|host| host.plane().is_some());
        let two =
            serving.next().zip(serving.next()).filter(|(one, other)| self.network.sees(one.ip, other.ip));
        let mut oracle = self.oracle.borrow_mut();
        oracle.see_plane(&self.repository.borrow(), now, &seen);
        oracle.see_rivals(&host.cluster, two.is_some(), now);
    }

    fn seen<'a>(&self, host: &'a ControlPlane, plane: &'a Plane) -> SeenPlane<'a> {
        let in_charge = self.in_charge.borrow().get(&host.cluster) == Some(&host.name);
        SeenPlane { name: &host.name, cluster: &host.cluster, in_charge, plane }
    }

    /// Lets the oracle look at a proxy.
    pub fn see_proxy(&self, seen: &SeenProxy<'_>) {
        self.oracle.borrow_mut().see_proxy(&self.repository.borrow(), self.network.elapsed(), seen);
    }

    /// Waits at the primary for `commit`, as an operator does; why it was not called effective.
    pub async fn wait(self: &Rc<Self>, commit: Arc<Commit>) -> Result<(), String> {
        let plane = self.primary().ok_or("the primary is off")?;
        let history = History { mesh: self.clone(), index: commit.index };
        let answer = controlplane::report::wait(&plane, &commit.id, WAIT, false, history).await;
        let lives = self.primary().is_some_and(|now| Arc::ptr_eq(&now, &plane));
        if !lives {
            return Err("the primary ended meanwhile".into());
        }
        if !answer.effective {
            return Err(format!("{:?} lag", answer.lagging));
        }
        self.trace.line(format_args!("commit {} is effective", short(commit.id.as_str())));
        self.judge_effective(&commit);
        Ok(())
    }

    /// `commit` is called effective.
    pub fn judge_effective(&self, commit: &Commit) {
        let obeyed: Vec<_> = self
            .sidecars
            .iter()
            .filter_map(|sidecar| {
                let (state, instance) = (sidecar.proxy()?.state()?, sidecar.instance()?);
                let revision = state.runtime.revision.to_string();
                Some([sidecar.workload.clone(), sidecar.cluster.clone(), instance, revision])
            })
            .collect();
        let now = self.network.elapsed();
        self.oracle.borrow_mut().effective(&self.repository.borrow(), now, commit, &obeyed);
    }

    /// Opens all ways, and starts what is off.
    pub fn heal(self: &Rc<Self>) {
        self.network.heal();
        if let Some(servers) = &self.servers {
            servers.full.store(false, Relaxed);
            if !servers.is_on() {
                servers.start(self);
            }
        }
        for plane in &self.planes {
            plane.disk.full.store(false, Relaxed);
            if !plane.is_on() {
                plane.start(self);
            }
        }
        for sidecar in &self.sidecars {
            sidecar.app_up.set(true);
            sidecar.empty(self);
            if !sidecar.is_on() {
                sidecar.start(self);
            }
        }
    }

    /// What is not yet as it should be once everything works; nothing when all is well.
    pub fn unsettled(&self) -> Vec<String> {
        let repository = self.repository.borrow();
        let last = repository.last();
        let mut wrong = Vec::new();
        let members: Vec<_> =
            self.sidecars.iter().filter(|sidecar| last.members.contains(&sidecar.cluster)).collect();
        for cluster in &last.members {
            let serving: Vec<_> = self
                .hosts(cluster)
                .filter_map(|host| {
                    Some((host.name.as_str(), host.plane()?.configuration.borrow().commit.clone()))
                })
                .collect();
            if !matches!(&*serving, [(_, commit)] if commit == last.id.as_str()) {
                wrong.push(format!("{cluster} is served by {serving:?}"));
            }
        }
        for sidecar in &members {
            let Some(state) = sidecar.proxy().and_then(|proxy| proxy.state()) else {
                wrong.push(format!("{} obeys nothing", sidecar.workload));
                continue;
            };
            let runtime = &state.runtime;
            let obeys = repository.find(&runtime.revision).map(|commit| commit.mark);
            if obeys != Some(last.mark) {
                wrong.push(format!("{} obeys mark {obeys:?} of {}", sidecar.workload, last.mark));
            }
            for app in ["front", "reviews"] {
                let wanted: BTreeSet<_> = members
                    .iter()
                    .filter(|other| other.app == app)
                    .map(|other| other.workload.clone())
                    .collect();
                let service = format!("shop/{app}").parse().expect("a service");
                let found: BTreeSet<_> = runtime
                    .endpoints
                    .get(&service)
                    .into_iter()
                    .flat_map(|set| &set.endpoints)
                    .filter(|endpoint| endpoint.health() == api::wire::Health::Healthy)
                    .map(|endpoint| endpoint.workload.clone())
                    .collect();
                if found != wanted {
                    wrong.push(format!("{} finds {found:?} behind {app}", sidecar.workload));
                }
            }
        }
        wrong
    }
}

/// A root of another mesh of the same name, and the chain of a control plane of `east` below it.
fn foreign() -> (RootCertificate, Vec<CertificateDer<'static>>) {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
    let domain = TRUST_DOMAIN.parse().expect("a trust domain");
    let cluster = "east".parse().expect("a cluster");
    let root = Root::generate(&domain, ROOT_LIFETIME, now).expect("a root");
    let key = IntermediateKey::generate().expect("a key");
    let request = key.request().expect("a request");
    let signed = root.sign_intermediate(&request, &cluster, INTERMEDIATE_LIFETIME, now).expect("a signature");
    let intermediate = key.certified(signed).expect("an intermediate");
    let leaf = Key::generate().expect("a key").request().expect("a request");
    let id = SpiffeId::control_plane(&domain, &cluster);
    let chain = intermediate.sign_leaf(&leaf, &id, INTERMEDIATE_LIFETIME / 2, now).expect("a chain");
    (RootCertificate::new(root.certificate().clone()).expect("a root"), chain)
}
