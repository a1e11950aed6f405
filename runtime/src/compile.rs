//! Stage six: from a view to what decides with it. Whole or not at all.
//!
//! A view that does not compile is refused with every reason, and the last good runtime stays. [`read`] takes the
//! resources one by one; here they become a whole.

mod read;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{
    delta::{Digests, View},
    digest::Hash,
    endpoint::{self, EndpointId},
    identity::{Bundle, SpiffeId},
    locality::Locality,
    name::{NetworkName, ServiceName},
    wire,
};
use policies::{Authorizer, DefaultAction, Reads, facts::Guarded};

use self::read::{Judges, read_inbound};
use crate::{At, path::PathMode, route::Table};

pub(crate) use self::read::{port, positive};

/// What one proxy obeys. Immutable: a request loads it once and keeps it.
#[derive(Debug)]
pub struct Runtime {
    /// The commit, for logs.
    pub revision: Arc<str>,
    /// Recomputed over what was compiled: what an ACK says.
    pub digests: Digests,
    /// Who this proxy is.
    pub workload: Workload,
    /// What holds for the whole mesh.
    pub mesh: Mesh,
    /// Whom to believe.
    pub bundle: Arc<Bundle>,
    /// What lives behind each service, as the control plane knows it.
    pub endpoints: BTreeMap<ServiceName, Arc<wire::Endpoints>>,
    /// How other networks are reached.
    pub networks: Arc<wire::Networks>,
    /// What an east-west gateway may forward to.
    pub passthrough: Arc<wire::Passthrough>,
    pub(crate) services: BTreeMap<ServiceName, Arc<Service>>,
    pub(crate) routes: BTreeMap<ServiceName, Arc<Table>>,
    pub(crate) hosts: HashMap<String, Arc<Service>>,
    pub(crate) addresses: HashMap<IpAddr, Vec<Reached>>,
    pub(crate) inbound: Vec<Inbound>,
    pub(crate) listeners: BTreeMap<u16, Listener>,
    parts: Parts,
}

/// Each resource read once: what did not change between two views is not read again.
type Parts = BTreeMap<Arc<str>, (Hash, Part)>;

#[derive(Debug, Clone)]
enum Part {
    Workload(Arc<wire::Workload>),
    Mesh(Mesh),
    Trust(Arc<Bundle>),
    Service(Arc<Service>),
    Routes(Arc<Table>),
    Listener(Arc<wire::RouteTable>),
    Policy(Arc<policies::Policy>),
    Endpoints(Arc<wire::Endpoints>),
    Networks(Arc<wire::Networks>),
    Passthrough(Arc<wire::Passthrough>),
}

/// Who this proxy is.
#[derive(Debug, Clone)]
pub struct Workload {
    /// As policies see it.
    pub guarded: Arc<Guarded>,
    /// The operator's name of it.
    pub id: String,
    /// Its service account.
    pub service_account: String,
    /// Its own SPIFFE id.
    pub principal: String,
    /// Its network.
    pub network: NetworkName,
    /// Its place.
    pub locality: Locality,
    /// Labels that count for failover (`node`).
    pub labels: BTreeMap<String, String>,
}

/// What holds for the whole mesh.
#[derive(Debug, Clone, Copy)]
pub struct Mesh {
    /// Whether an unknown host is refused.
    pub registry_only: bool,
    /// What an unjudged request gets.
    pub default: DefaultAction,
    /// How paths are read.
    pub paths: PathMode,
    /// How long a leaf lives.
    pub leaf_lifetime: Duration,
}

/// A service as this proxy may call it.
#[derive(Debug)]
pub struct Service {
    /// Its name.
    pub name: ServiceName,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Who its endpoints may be.
    pub identities: Vec<SpiffeId>,
    hosts: Vec<String>,
}

/// One port of a service.
#[derive(Debug, Clone)]
pub struct ServicePort {
    /// As callers say it.
    pub port: u16,
    /// What it is called; empty where it has no name.
    pub name: String,
    /// The endpoints' port.
    pub target: u16,
    /// What is spoken.
    pub protocol: wire::Protocol,
    /// How it is called, every field meant.
    pub traffic: Arc<wire::TrafficPolicy>,
}

/// A port of an endpoint of this network, reached by its own address.
#[derive(Debug)]
pub(crate) struct Reached {
    pub port: u16,
    pub endpoint: EndpointId,
    pub service: Arc<Service>,
    /// Whether it is a workload's that the mesh knows itself, no word of an `EndpointSlice`.
    pub mtls: bool,
}

/// One port of this workload's application.
#[derive(Debug)]
pub struct Inbound {
    /// The port.
    pub port: u16,
    /// Where the application listens.
    pub address: SocketAddr,
    /// Whether plaintext is accepted.
    pub mtls: wire::MtlsMode,
    /// The object that says so; empty: the default.
    pub mtls_origin: String,
    /// What is spoken.
    pub protocol: wire::Protocol,
    /// By which name other proxies reach it.
    pub endpoint: Option<EndpointId>,
    /// Who may call.
    pub authorizer: Arc<Authorizer>,
}

/// One listener of a gateway.
#[derive(Debug)]
pub struct Listener {
    /// Its routes.
    pub table: Table,
    /// Who may call, where no policy of the route's own has a say.
    pub authorizer: Arc<Authorizer>,
}

/// Why a resource cannot be taken into force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// Its name in the view.
    pub resource: String,
    /// What is wrong with it.
    pub message: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.resource, self.message)
    }
}

/// What is wrong with one resource.
#[derive(Debug)]
pub(crate) struct Fault(String);

impl Fault {
    pub(crate) fn new(message: impl ToString) -> Self {
        Fault(message.to_string())
    }

    fn at(self, resource: &str) -> Reason {
        Reason { resource: resource.to_owned(), message: self.0 }
    }
}

impl Runtime {
    /// The runtime of `view`, taking over from `before` what did not change. Errors name every resource at fault.
    pub fn compile(view: &View, revision: &str, before: Option<&Runtime>) -> Result<Runtime, Vec<Reason>> {
        let mut parts = Parts::new();
        let mut reasons = Vec::new();
        for (name, item) in &view.items {
            // A level is no part of a hash: the same bytes may ask for more than they did.
            let kept = before
                .and_then(|runtime| runtime.parts.get(name))
                .filter(|(hash, _)| *hash == item.hash && item.level <= wire::LEVEL);
            match kept.map_or_else(|| Part::read(name, item), |(_, part)| Ok(part.clone())) {
                Ok(part) => drop(parts.insert(name.clone(), (item.hash, part))),
                Err(fault) => reasons.push(fault.at(name)),
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        assemble(parts, view.digests(), revision)
    }

    /// The service that `host` means here. `host` is in lower case, without port.
    pub fn service_at(&self, host: &str) -> Option<&Arc<Service>> {
        self.hosts.get(host)
    }

    /// Whether something is known of `host`: a service's name or address, or an endpoint's address.
    pub fn knows(&self, host: &str) -> bool {
        self.service_at(host).is_some() || self.reached(host).is_some()
    }

    /// Whether services of the mesh have such names, known here or not: `reviews`, `reviews.shop` with a namespace that
    /// this proxy has heard of, `reviews.shop.svc...`.
    pub fn is_named_like_a_service(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        if host == "localhost" || endpoint::address(host).is_some() {
            return false;
        }
        let mut labels = host.split('.').skip(1);
        match (labels.next(), labels.next()) {
            (None, _) => true,
            (Some(namespace), None) => {
                let heard_of = self.services.keys().any(|name| name.namespace.as_str() == namespace);
                heard_of || self.workload.guarded.namespace.as_str() == namespace
            }
            (Some(_), Some(third)) => third == "svc",
        }
    }

    pub(crate) fn reached(&self, host: &str) -> Option<&[Reached]> {
        self.addresses.get(&endpoint::address(host)?).map(Vec::as_slice)
    }

    /// The service of this name, if this proxy knows it.
    pub fn service(&self, name: &ServiceName) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// All services that this proxy knows.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The application's ports.
    pub fn inbound(&self) -> &[Inbound] {
        &self.inbound
    }

    /// The application's port that `endpoint` names.
    pub fn inbound_at(&self, endpoint: &EndpointId) -> Option<&Inbound> {
        self.inbound.iter().find(|inbound| inbound.endpoint.as_ref() == Some(endpoint))
    }

    /// What policies may read of what comes so.
    pub fn reads(&self, at: At) -> Reads {
        match at {
            At::Outbound { .. } => Reads::NONE,
            At::Inbound { port } => {
                let inbound = self.inbound.iter().find(|inbound| inbound.port == port);
                inbound.map_or(Reads::NONE, |inbound| inbound.authorizer.reads())
            }
            At::Gateway { port } => self
                .listeners
                .get(&port)
                .map_or(Reads::NONE, |listener| listener.table.reads().union(listener.authorizer.reads())),
        }
    }

    /// The ports on which a gateway listens.
    pub fn listener_ports(&self) -> impl Iterator<Item = u16> {
        self.listeners.keys().copied()
    }
}

impl Service {
    /// The port as callers say it.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|known| known.port == port)
    }
}

fn assemble(parts: Parts, digests: Digests, revision: &str) -> Result<Runtime, Vec<Reason>> {
    let missing = |name: &'static str| vec![Fault::new("missing from the view").at(name)];
    let mut said = None;
    let mut mesh = None;
    let mut bundle = None;
    let mut networks = Arc::default();
    let mut passthrough = Arc::default();
    let mut services = BTreeMap::new();
    let mut routes = BTreeMap::new();
    let mut endpoints = BTreeMap::new();
    let mut listeners = Vec::new();
    let mut judged = BTreeMap::new();
    for (name, (_, part)) in &parts {
        let service = || -> Result<ServiceName, Vec<Reason>> {
            let text = name.split_once('/').map_or("", |(_, rest)| rest);
            text.parse().map_err(|error| vec![Fault::new(error).at(name)])
        };
        match part {
            Part::Workload(part) => said = Some(part.clone()),
            Part::Mesh(part) => mesh = Some(*part),
            Part::Trust(part) => bundle = Some(part.clone()),
            Part::Service(part) => drop(services.insert(part.name.clone(), part.clone())),
            Part::Routes(part) => drop(routes.insert(service()?, part.clone())),
            Part::Listener(part) => listeners.push((name.clone(), part.clone())),
            Part::Policy(part) => drop(judged.insert(name.clone(), part.clone())),
            Part::Endpoints(part) => drop(endpoints.insert(service()?, part.clone())),
            Part::Networks(part) => networks = part.clone(),
            Part::Passthrough(part) => passthrough = part.clone(),
        }
    }
    let said = said.ok_or_else(|| missing("workload"))?;
    let mesh = mesh.ok_or_else(|| missing("mesh"))?;
    let bundle = bundle.ok_or_else(|| missing("trust"))?;
    let judges = Judges { policies: judged, default: mesh.default };
    let workload = Workload::read(&said).map_err(|fault| vec![fault.at("workload")])?;
    let inbound = read_inbound(&said, &judges).map_err(|fault| vec![fault.at("workload")])?;
    let listeners = listeners
        .into_iter()
        .map(|(name, table)| Listener::read(&name, &table, &judges).map_err(|fault| vec![fault.at(&name)]))
        .collect::<Result<_, _>>()?;
    let addresses = addresses(&services, &endpoints, &workload.network);
    // Nobody takes a workload's traffic by calling its address the virtual one of a service.
    let is_workload = |host: &str| {
        let reached = endpoint::address(host).and_then(|address| addresses.get(&address));
        reached.is_some_and(|reached| reached.iter().any(|one| one.mtls))
    };
    let hosts = services
        .values()
        .flat_map(|service: &Arc<Service>| service.hosts.iter().map(move |host| (host, service)))
        .filter(|(host, _)| !is_workload(host))
        .map(|(host, service)| (host.clone(), service.clone()))
        .collect();
    let revision = revision.into();
    Ok(Runtime {
        revision,
        digests,
        workload,
        mesh,
        bundle,
        endpoints,
        networks,
        passthrough,
        services,
        routes,
        hosts,
        addresses,
        inbound,
        listeners,
        parts,
    })
}

/// The endpoints of this network by their own addresses; the first service of each port stands for it. What a registered
/// workload serves is taken first: an `EndpointSlice` may name any address, another's too.
fn addresses(
    services: &BTreeMap<ServiceName, Arc<Service>>,
    endpoints: &BTreeMap<ServiceName, Arc<wire::Endpoints>>,
    network: &NetworkName,
) -> HashMap<IpAddr, Vec<Reached>> {
    let all = services.iter().filter_map(|(name, one)| Some((one, endpoints.get(name)?)));
    let mut here: Vec<(&Arc<Service>, &wire::Endpoint)> = all
        .flat_map(|(service, all)| all.endpoints.iter().map(move |one| (service, one)))
        .filter(|(_, one)| one.network == network.as_str())
        .collect();
    // Stable: among equals the order stays.
    here.sort_by_key(|(_, one)| !one.mtls);
    let mut addresses: HashMap<IpAddr, Vec<Reached>> = HashMap::new();
    for (service, one) in here {
        // An endpoint that cannot be read is told of where it is balanced.
        let (Ok(address), Ok(port), Ok(endpoint)) =
            (one.address.parse::<SocketAddr>(), port(one.port), EndpointId::parse(&one.id))
        else {
            continue;
        };
        let known = addresses.entry(address.ip()).or_default();
        if !known.iter().any(|reached| reached.port == port) {
            known.push(Reached { port, endpoint, service: service.clone(), mtls: one.mtls });
        }
    }
    addresses
}
