//! Stage six: from a view to what decides with it. Whole or not at all.
//!
//! A view that does not compile is refused with every reason, and the last good runtime stays.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use api::{
    delta::{Digests, Item, View},
    digest::Hash,
    endpoint::{self, EndpointId},
    identity::{Bundle, SpiffeId},
    locality::Locality,
    name::{ClusterName, Namespace, NetworkName, ServiceName},
    wire::{self, resource::Body},
};
use policies::{Authorizer, DefaultAction, Surface, facts::Guarded};
use prost::Message;

use crate::{path::PathMode, route::Table};

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
    /// How it is called, every field meant.
    pub traffic: wire::TrafficPolicy,
    hosts: Vec<String>,
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// As callers say it.
    pub port: u16,
    /// The endpoints' port.
    pub target: u16,
    /// What is spoken.
    pub protocol: wire::Protocol,
}

/// A port of an endpoint of this network, reached by its own address.
#[derive(Debug)]
pub(crate) struct Reached {
    pub port: u16,
    pub endpoint: EndpointId,
    pub service: Arc<Service>,
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
    /// Who may call at all.
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

    fn read(service: wire::Service) -> Result<Self, Fault> {
        let ports = service.ports.iter().map(|one| {
            let protocol = wire::Protocol::try_from(one.protocol).map_err(Fault::new)?;
            Ok(ServicePort { port: port(one.port)?, target: port(one.target)?, protocol })
        });
        Ok(Service {
            name: format!("{}/{}", service.namespace, service.name).parse().map_err(Fault::new)?,
            ports: ports.collect::<Result<_, Fault>>()?,
            identities: parsed(&service.identities)?,
            traffic: service.traffic.ok_or_else(|| Fault::new("a service without its traffic policy"))?,
            hosts: service.hosts,
        })
    }
}

impl Part {
    fn read(name: &str, item: &Item) -> Result<Self, Fault> {
        if item.level > wire::LEVEL {
            return Err(Fault(format!(
                "needs level {}, this proxy understands {}: upgrade the proxy",
                item.level,
                wire::LEVEL
            )));
        }
        let resource = wire::Resource::decode(item.body.clone()).map_err(Fault::new)?;
        let body = resource.body.ok_or_else(|| Fault::new("a kind of resource unknown here"))?;
        Ok(match body {
            Body::Workload(workload) => Part::Workload(Arc::new(workload)),
            Body::Mesh(mesh) => Part::Mesh(Mesh::read(&mesh)?),
            Body::Trust(trust) => {
                Part::Trust(Arc::new(serde_json::from_slice(&trust.bundle).map_err(Fault::new)?))
            }
            Body::Service(service) => Part::Service(Arc::new(Service::read(service)?)),
            Body::Routes(routes) if name.starts_with("listener/") => Part::Listener(Arc::new(routes)),
            Body::Routes(routes) => Part::Routes(Arc::new(Table::compile(routes)?)),
            Body::Policy(policy) => Part::Policy(Arc::new(read_policy(policy)?)),
            Body::Endpoints(endpoints) => Part::Endpoints(Arc::new(endpoints)),
            Body::Networks(networks) => Part::Networks(Arc::new(networks)),
            Body::Passthrough(passthrough) => Part::Passthrough(Arc::new(passthrough)),
        })
    }
}

impl Mesh {
    fn read(mesh: &wire::Mesh) -> Result<Self, Fault> {
        let paths = match wire::PathMode::try_from(mesh.path_normalization).map_err(Fault::new)? {
            wire::PathMode::Refuse => PathMode::Refuse,
            wire::PathMode::Keep => PathMode::Keep,
            wire::PathMode::Decode => PathMode::Decode,
        };
        let default = if mesh.default_deny { DefaultAction::Deny } else { DefaultAction::Allow };
        let leaf_lifetime = Duration::from_secs(mesh.leaf_lifetime_seconds);
        Ok(Mesh { registry_only: mesh.registry_only, default, paths, leaf_lifetime })
    }
}

/// Every expression is type-checked again here: a proxy believes no control plane's word on that.
fn read_policy(policy: wire::Policy) -> Result<policies::Policy, Fault> {
    let action = match wire::Action::try_from(policy.action).map_err(Fault::new)? {
        wire::Action::Deny => policies::Action::Deny,
        wire::Action::Allow => policies::Action::Allow,
        wire::Action::Audit => policies::Action::Audit,
        wire::Action::Unspecified => return Err(Fault::new("a policy without an action")),
    };
    let rules = policy.rules.into_iter().map(|rule| {
        let checked = |text: &str| {
            policies::check(text, Surface::Http).map_err(|mistakes| {
                Fault(mistakes.iter().map(|m| m.message.as_str()).collect::<Vec<_>>().join("; "))
            })
        };
        let when = Some(rule.when.as_str()).filter(|text| !text.is_empty()).map(checked).transpose()?;
        Ok(policies::Rule { name: rule.name, when })
    });
    Ok(policies::Policy {
        name: format!("{}/{}", policy.namespace, policy.name),
        action,
        mode: if policy.dry_run { policies::Mode::DryRun } else { policies::Mode::Enforce },
        rules: rules.collect::<Result<_, Fault>>()?,
        commit: policy.commit,
    })
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
    let hosts = services
        .values()
        .flat_map(|service: &Arc<Service>| service.hosts.iter().map(|host| (host.clone(), service.clone())))
        .collect();
    let addresses = addresses(&services, &endpoints, &workload.network);
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

/// The endpoints of this network by their own addresses; the first service of each port stands for it.
fn addresses(
    services: &BTreeMap<ServiceName, Arc<Service>>,
    endpoints: &BTreeMap<ServiceName, Arc<wire::Endpoints>>,
    network: &NetworkName,
) -> HashMap<IpAddr, Vec<Reached>> {
    let mut addresses: HashMap<IpAddr, Vec<Reached>> = HashMap::new();
    for (service, all) in services.iter().filter_map(|(name, one)| Some((one, endpoints.get(name)?))) {
        for one in all.endpoints.iter().filter(|one| one.network == network.as_str()) {
            // An endpoint that cannot be read is told of where it is balanced.
            let (Ok(address), Ok(port), Ok(endpoint)) =
                (one.address.parse::<SocketAddr>(), port(one.port), EndpointId::parse(&one.id))
            else {
                continue;
            };
            let known = addresses.entry(address.ip()).or_default();
            if !known.iter().any(|reached| reached.port == port) {
                known.push(Reached { port, endpoint, service: service.clone() });
            }
        }
    }
    addresses
}

/// The policies of a view, to make judges of.
struct Judges {
    policies: BTreeMap<Arc<str>, Arc<policies::Policy>>,
    default: DefaultAction,
}

impl Judges {
    /// The judge of these policies. One that is named and missing makes the view unusable: never skipped.
    fn of(&self, names: &[String], default: DefaultAction) -> Result<Arc<Authorizer>, Fault> {
        let policies = names.iter().map(|name| {
            let found = self.policies.get(name.as_str()).map(|policy| (**policy).clone());
            found.ok_or_else(|| Fault(format!("`{name}` guards it and is missing from the view")))
        });
        Ok(Arc::new(Authorizer::new(policies.collect::<Result<_, _>>()?, default)))
    }
}

fn read_inbound(workload: &wire::Workload, judges: &Judges) -> Result<Vec<Inbound>, Fault> {
    let read = |one: &wire::InboundPort| {
        let mtls = match wire::MtlsMode::try_from(one.mtls).map_err(Fault::new)? {
            wire::MtlsMode::MtlsUnspecified => wire::MtlsMode::Strict,
            mode => mode,
        };
        let endpoint = Some(one.endpoint_id.as_str()).filter(|id| !id.is_empty());
        Ok(Inbound {
            port: port(one.port)?,
            address: one.address.parse().map_err(Fault::new)?,
            mtls,
            protocol: wire::Protocol::try_from(one.protocol).map_err(Fault::new)?,
            endpoint: endpoint.map(EndpointId::parse).transpose().map_err(Fault::new)?,
            authorizer: judges.of(&one.policies, judges.default)?,
        })
    };
    workload.ports.iter().map(read).collect()
}

impl Listener {
    fn read(name: &str, table: &wire::RouteTable, judges: &Judges) -> Result<(u16, Self), Fault> {
        let number = name.rsplit('/').next().and_then(|port| port.parse().ok());
        let number = number.ok_or_else(|| Fault::new("a listener's name ends with its port"))?;
        let authorizer = judges.of(&table.policies, judges.default)?;
        let mut table = Table::compile(table.clone())?;
        // What guards the listener has been asked by then: a route's own policies only narrow it.
        table.authorize(|names| match names {
            [] => Ok(None),
            names => judges.of(names, DefaultAction::Allow).map(Some),
        })?;
        Ok((number, Listener { table, authorizer }))
    }
}

impl Workload {
    fn read(said: &wire::Workload) -> Result<Self, Fault> {
        let locality = said.locality.clone().unwrap_or_default();
        let namespace: Namespace = said.namespace.parse().map_err(Fault::new)?;
        let cluster: ClusterName = said.cluster.parse().map_err(Fault::new)?;
        let services = parsed(&said.services)?;
        Ok(Workload {
            principal: format!("spiffe://{}/ns/{namespace}/sa/{}", said.trust_domain, said.service_account),
            guarded: Arc::new(Guarded { services, namespace, workload: said.workload.clone(), cluster }),
            id: said.id.clone(),
            service_account: said.service_account.clone(),
            network: said.network.parse().map_err(Fault::new)?,
            locality: Locality { region: locality.region, zone: locality.zone, subzone: locality.subzone },
            labels: said.labels.clone(),
        })
    }
}

fn parsed<T: std::str::FromStr<Err: fmt::Display>>(texts: &[String]) -> Result<Vec<T>, Fault> {
    texts.iter().map(|text| text.parse().map_err(Fault::new)).collect()
}

pub(crate) fn port(port: u32) -> Result<u16, Fault> {
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(Fault(format!("{port} is no port: 1 to 65535"))),
    }
}

/// A duration that is said to be none by 0.
pub(crate) fn positive(milliseconds: u64) -> Option<Duration> {
    (milliseconds > 0).then(|| Duration::from_millis(milliseconds))
}
