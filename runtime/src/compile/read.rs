//! From one resource of a view to what is meant by it. Nothing is taken on trust: every name, address and expression is
//! parsed again here.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use api::{
    delta::Item,
    endpoint::EndpointId,
    locality::Locality,
    name::{ClusterName, Namespace},
    wire::{self, resource::Body},
};
use policies::{Authorizer, DefaultAction, Surface, facts::Guarded};
use prost::Message;

use super::{Fault, Inbound, Listener, Mesh, Part, Service, ServicePort, Workload};
use crate::{path::PathMode, route::Table};

impl Service {
    pub(super) fn read(service: wire::Service) -> Result<Self, Fault> {
        let traffic = service.traffic.ok_or_else(|| Fault::new("a service without its traffic policy"))?;
        let traffic = Arc::new(traffic);
        let ports = service.ports.into_iter().map(|one| {
            Ok(ServicePort {
                port: port(one.port)?,
                target: port(one.target)?,
                protocol: wire::Protocol::try_from(one.protocol).map_err(Fault::new)?,
                traffic: one.traffic.map_or_else(|| traffic.clone(), Arc::new),
                name: one.name,
            })
        });
        Ok(Service {
            name: format!("{}/{}", service.namespace, service.name).parse().map_err(Fault::new)?,
            ports: ports.collect::<Result<_, Fault>>()?,
            identities: parsed(&service.identities)?,
            hosts: service.hosts,
        })
    }
}

impl Part {
    pub(super) fn read(name: &str, item: &Item) -> Result<Self, Fault> {
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
    pub(super) fn read(mesh: &wire::Mesh) -> Result<Self, Fault> {
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

/// The policies of a view, to make judges of.
pub(super) struct Judges {
    pub policies: BTreeMap<Arc<str>, Arc<policies::Policy>>,
    pub default: DefaultAction,
}

impl Judges {
    /// The judge of these policies. One that is named and missing makes the view unusable: never skipped.
    fn of(&self, names: &[String]) -> Result<Arc<Authorizer>, Fault> {
        let policies = names.iter().map(|name| {
            let found = self.policies.get(name.as_str()).map(|policy| (**policy).clone());
            found.ok_or_else(|| Fault(format!("`{name}` guards it and is missing from the view")))
        });
        Ok(Arc::new(Authorizer::new(policies.collect::<Result<_, _>>()?, self.default)))
    }
}

pub(super) fn read_inbound(workload: &wire::Workload, judges: &Judges) -> Result<Vec<Inbound>, Fault> {
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
            mtls_origin: one.mtls_origin.clone(),
            protocol: wire::Protocol::try_from(one.protocol).map_err(Fault::new)?,
            endpoint: endpoint.map(EndpointId::parse).transpose().map_err(Fault::new)?,
            authorizer: judges.of(&one.policies)?,
        })
    };
    workload.ports.iter().map(read).collect()
}

impl Listener {
    pub(super) fn read(name: &str, said: &wire::RouteTable, judges: &Judges) -> Result<(u16, Self), Fault> {
        let number = name.rsplit('/').next().and_then(|port| port.parse().ok());
        let number = number.ok_or_else(|| Fault::new("a listener's name ends with its port"))?;
        let authorizer = judges.of(&said.policies)?;
        let mut table = Table::compile(said.clone())?;
        // One set with the listener's, or no ALLOW at a route could open what the default closes. Rules that the same
        // policies guard share their judge.
        let mut made: BTreeMap<Vec<String>, Arc<Authorizer>> = BTreeMap::new();
        table.authorize(|own| {
            if own.is_empty() {
                return Ok(None);
            }
            let mut together = [said.policies.as_slice(), own].concat();
            together.sort();
            together.dedup();
            if let Some(known) = made.get(&together) {
                return Ok(Some(known.clone()));
            }
            let judge = judges.of(&together)?;
            made.insert(together, judge.clone());
            Ok(Some(judge))
        })?;
        Ok((number, Listener { table, authorizer }))
    }
}

impl Workload {
    pub(super) fn read(said: &wire::Workload) -> Result<Self, Fault> {
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
