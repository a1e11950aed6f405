//! What would happen to a request: the same views, the same runtime, the same decision as in the proxies.

mod callee;
mod distance;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::SystemTime};

use api::{
    admin::{
        ExplainAnswer, ExplainRequest, ExplainedBackend, ExplainedRoute, ExplainedSetting, ExplainedVerdict,
    },
    name::{ClusterName, ServiceName},
    resource::{HttpRoute, Kind, Mesh, Resource, TrafficPolicy, traffic},
    wire,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use policies::{
    By, Judgement, Reads, Verdict,
    facts::{Connection, Destination, Facts, Guarded, Peer, Request, Source},
};
use runtime::{At, Decision, Plan, Runtime, Target, route::Rule};
use serde::Serialize;
use serde_json::Value;

use self::callee::Callee;
use crate::snapshot::{Registered, Role, Said, Snapshot, Subscription, mtls_and_origin, traffic_policies};

/// A request that cannot be explained, and why.
#[derive(Debug, thiserror::Error)]
pub enum Unexplained {
    /// Nobody of this name lives here.
    #[error(
        "no workload of this cluster is `{0}`: name a workload, `namespace/serviceaccount`, or `ingress`"
    )]
    Source(String),
    /// The request is none.
    #[error("not a request: {0}")]
    Request(String),
    /// A view that no proxy would take.
    #[error("the view of {0} does not compile: {1}")]
    View(String, String),
}

/// What no question says, and the way of a request decides.
const UNKNOWN: [&str; 6] =
    ["source.ip", "source.port", "connection.sni", "connection.protocol", "request.protocol", "request.id"];

/// What would happen to `asked`, by `snapshot`.
pub fn explain(snapshot: &Snapshot, asked: &ExplainRequest) -> Result<ExplainAnswer, Unexplained> {
    let node = source(snapshot, &asked.source)?;
    let authority = policies::facts::canonical_authority(&asked.host);
    let (host, named) = runtime::split_authority(&authority)
        .ok_or_else(|| Unexplained::Request(format!("`{}` is no host", asked.host)))?;
    let asks: Subscription =
        if node.role == Role::Sidecar { [host.to_owned()].into() } else { Subscription::new() };
    let caller = compile(snapshot, node, &asks)?;
    let (raw_path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let path = runtime::path::normalise(raw_path, caller.mesh.paths);
    let mut headers = headers(&asked.headers)?;
    if let Ok(authority) = HeaderValue::from_str(&authority) {
        headers.insert(http::header::HOST, authority);
    }
    let mut answer = Answer::new(snapshot);
    let path = match path {
        Ok(path) => path,
        Err(bad) => return Ok(answer.refused(400, bad.to_string())),
    };
    let request = Request {
        method: &asked.method,
        scheme: "http",
        host: &authority,
        path: &path,
        raw_path,
        query,
        protocol: "HTTP/1.1",
        id: "",
        headers: &headers,
        time: SystemTime::UNIX_EPOCH,
    };
    let guarded = caller.workload.guarded.clone();
    let facts = Facts {
        source: Source { peer: None, address: nowhere() },
        destination: Destination { guarded: &guarded, address: node.address },
        request: Some(request),
        connection: Connection { protocol: "http/1.1", ..Connection::default() },
    };
    let at = match node.role {
        Role::Sidecar => At::Outbound { known_absent: snapshot.service_at(host, &node.namespace).is_none() },
        Role::Ingress | Role::EastWest => {
            // The port that the host names; else the first.
            let mut ports = caller.listener_ports();
            let first = caller.listener_ports().next().unwrap_or_default();
            At::Gateway { port: ports.find(|own| Some(*own) == named).unwrap_or(first) }
        }
    };
    answer.reads(caller.reads(at));
    match caller.decide(at, &facts, 0) {
        Decision::Unknown { host } => Ok(answer.refused(502, format!("nobody in the mesh knows `{host}`"))),
        Decision::Answer { redirect, location, rule, .. } => {
            answer.route(rule);
            Ok(answer.refused(redirect.status, format!("redirected to {location}")))
        }
        Decision::Refuse(refusal) => {
            refusal.rule.iter().for_each(|rule| answer.route(rule));
            refusal
                .judgement
                .iter()
                .for_each(|judgement| answer.verdict(role_name(node), &snapshot.inputs.cluster, judgement));
            Ok(answer.refused(refusal.status, refusal.reason.into_owned()))
        }
        Decision::Forward(plan) => {
            plan.rule.iter().for_each(|rule| answer.route(rule));
            if node.role != Role::Sidecar {
                plan.judgement.iter().for_each(|judgement| {
                    answer.verdict(role_name(node), &snapshot.inputs.cluster, judgement)
                });
            }
            follow(snapshot, node, &caller, &plan, facts, &mut answer)?;
            Ok(answer.0)
        }
    }
}

fn role_name(node: &Registered) -> &'static str {
    match node.role {
        Role::Sidecar => "caller",
        Role::Ingress => "ingress",
        Role::EastWest => "east-west",
    }
}

/// A client whose address is not known.
fn nowhere() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 0))
}

fn source<'a>(snapshot: &'a Snapshot, text: &str) -> Result<&'a Registered, Unexplained> {
    let mut nodes = snapshot.inputs.workloads.values();
    let by = |node: &&Registered| {
        node.workload.as_str() == text
            || node.role == Role::Ingress && text == "ingress"
            || node.role == Role::Sidecar && format!("{}/{}", node.namespace, node.service_account) == text
    };
    nodes.find(by).ok_or_else(|| Unexplained::Source(text.to_owned()))
}

fn compile(snapshot: &Snapshot, node: &Registered, hosts: &Subscription) -> Result<Runtime, Unexplained> {
    Runtime::compile(&snapshot.view(node, hosts), snapshot.commit(), None).map_err(|reasons| {
        let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
        Unexplained::View(node.workload.to_string(), reasons.join("; "))
    })
}

fn headers(said: &BTreeMap<String, String>) -> Result<HeaderMap, Unexplained> {
    let pair = |(name, value): (&String, &String)| {
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|error| Unexplained::Request(error.to_string()))?;
        let value = HeaderValue::from_str(value).map_err(|error| Unexplained::Request(error.to_string()))?;
        Ok((name, value))
    };
    said.iter().map(pair).collect()
}

/// Every backend that the request may reach, and what each says to it.
fn follow(
    snapshot: &Snapshot,
    node: &Registered,
    caller: &Runtime,
    plan: &Plan<'_>,
    facts: Facts<'_>,
    answer: &mut Answer<'_>,
) -> Result<(), Unexplained> {
    let mut backends: Vec<(ServiceName, u16, f64)> = match (&plan.target, plan.rule) {
        (Target::Service { .. }, Some(rule)) if plan.backend.is_some() => {
            let shares = rule.split.shares().filter(|(backend, _)| backend.weight > 0);
            shares.map(|(backend, percent)| (backend.service.clone(), backend.port, percent)).collect()
        }
        (Target::Service { service, port, .. }, _) => vec![(service.name.clone(), port.port, 100.0)],
        (Target::Direct { .. } | Target::Application(_), _) => vec![],
    };
    backends.dedup_by(|a, b| a.0 == b.0 && a.1 == b.1);
    let peer = peer(snapshot, node);
    for (name, port, percent) in backends {
        let Some(service) = caller.service(&name) else { continue };
        let Some(known) = service.port(port) else { continue };
        let endpoints = caller.endpoints.get(&name).map(|all| all.endpoints.clone()).unwrap_or_default();
        let endpoints: Vec<_> =
            endpoints.into_iter().filter(|one| one.port == u32::from(known.target)).collect();
        answer.0.backends.push(ExplainedBackend {
            service: format!("{name}:{port}"),
            percent,
            priorities: distance::priorities(snapshot, node, caller, &known.traffic, &endpoints),
        });
        let at = format!("{name}:{port}");
        answer.traffic(&at, traffic_policies(&snapshot.inputs, &name, Some(&known.name), &node.namespace));
        if endpoints.is_empty() {
            answer.0.status = 503;
            answer.0.reason = Some(format!("{name} has no endpoint"));
            continue;
        }
        judge_backend(snapshot, &name, known.target, &endpoints, &peer, plan, facts, answer)?;
    }
    Ok(())
}

/// What the workloads behind a backend say to the request: each local one, once for those that say the same.
#[allow(clippy::too_many_arguments)]
fn judge_backend(
    snapshot: &Snapshot,
    name: &ServiceName,
    port: u16,
    endpoints: &[wire::Endpoint],
    peer: &Peer,
    plan: &Plan<'_>,
    facts: Facts<'_>,
    answer: &mut Answer<'_>,
) -> Result<(), Unexplained> {
    let mut judged: Vec<Verdict> = Vec::new();
    for Callee { node, runtime: callee, inputs } in callee::all(snapshot, name, port, endpoints)? {
        let (mtls, said) = mtls_and_origin(&inputs, &node, port);
        answer.setting("mtls", &format!("{name}:{port}"), &json(mtls), said.map(|said| (said, said.line)));
        let path = plan.path.as_deref();
        let request = facts.request.map(|request| Request { path: path.unwrap_or(request.path), ..request });
        let guarded: Arc<Guarded> = callee.workload.guarded.clone();
        let facts = Facts {
            source: Source { peer: Some(peer), address: nowhere() },
            destination: Destination { guarded: &guarded, address: SocketAddr::new(node.address.ip(), port) },
            request,
            connection: Connection { mtls: true, protocol: "http/1.1", tls_version: "TLSv1.3", sni: "" },
        };
        answer.reads(callee.reads(At::Inbound { port }));
        let judgement = match callee.decide(At::Inbound { port }, &facts, 0) {
            Decision::Forward(plan) => plan.judgement,
            Decision::Refuse(refusal) => {
                answer.0.status = refusal.status;
                answer.0.reason = Some(refusal.reason.to_string());
                refusal.judgement
            }
            Decision::Answer { .. } | Decision::Unknown { .. } => None,
        };
        if let Some(judgement) = judgement
            && !judged.contains(&judgement.verdict)
        {
            answer.verdict(&name.to_string(), &inputs.cluster, &judgement);
            judged.push(judgement.verdict);
        }
    }
    Ok(())
}

fn peer(snapshot: &Snapshot, node: &Registered) -> Peer {
    let trust_domain = snapshot.inputs.bundle.trust_domain.clone();
    Peer {
        principal: format!("spiffe://{trust_domain}/ns/{}/sa/{}", node.namespace, node.service_account),
        trust_domain,
        namespace: node.namespace.clone(),
        service_account: node.service_account.clone(),
        cluster: snapshot.inputs.cluster.clone(),
    }
}

/// Which rule of a resource is called `name`: its own name, or its place as logs write it.
fn rule_place(resource: &Resource, name: &str) -> Option<usize> {
    let names: Vec<Option<String>> = match resource {
        Resource::AuthorizationPolicy(policy) => {
            policy.spec.rules.iter().map(|rule| rule.name.as_ref().map(ToString::to_string)).collect()
        }
        Resource::HttpRoute(route) => {
            route.spec.rules.iter().map(|rule| rule.name.as_ref().map(ToString::to_string)).collect()
        }
        _ => return None,
    };
    let called = |(place, own): (usize, &Option<String>)| match own {
        Some(own) => own == name,
        None => name == place.to_string() || name == format!("#{}", place + 1),
    };
    names.iter().enumerate().position(called)
}

/// As configuration writes it.
fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// An answer in the making.
struct Answer<'a>(ExplainAnswer, &'a Snapshot);

impl<'a> Answer<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        let commit = Some(snapshot.commit().to_owned()).filter(|commit| !commit.is_empty());
        let answer = ExplainAnswer {
            commit,
            status: 200,
            route: None,
            backends: vec![],
            authorization: vec![],
            reason: None,
            unknown: vec![],
            settings: BTreeMap::new(),
        };
        let mut answer = Answer(answer, snapshot);
        answer.mesh();
        answer
    }

    /// Policies on the way read this.
    fn reads(&mut self, reads: Reads) {
        let unknown = reads.names().filter(|name| UNKNOWN.contains(name)).map(str::to_owned);
        self.0.unknown.extend(unknown);
        self.0.unknown.sort();
        self.0.unknown.dedup();
    }

    fn refused(self, status: u16, reason: String) -> ExplainAnswer {
        ExplainAnswer { status, reason: Some(reason), ..self.0 }
    }

    fn route(&mut self, rule: &Rule) {
        let name = rule.route.split_once(' ').map_or(&*rule.route, |(_, name)| name);
        let found = self.find(&self.1.inputs.cluster, Kind::HttpRoute, name);
        let (file, line) = found.map(|said| place(said, &rule.name)).unwrap_or_default();
        self.0.route = Some(ExplainedRoute {
            route: rule.route.to_string(),
            rule: rule.name.to_string(),
            file,
            line,
            commit: rule.commit.to_string(),
        });
        let said = found.and_then(|said| {
            let place = rule_place(&said.resource, &rule.name)?;
            Some((said, line, said.resource.as_kind::<HttpRoute>()?.spec.rules.get(place)?))
        });
        let Some((said, line, rule)) = said else { return };
        for (name, value) in [("rule.timeouts", json(&rule.timeouts)), ("rule.retry", json(&rule.retry))] {
            match value {
                Value::Null => self.setting(name, "", &json("none of its own"), None),
                value => self.setting(name, "", &value, Some((said, line))),
            }
        }
    }

    /// A verdict by the policies of `cluster`.
    fn verdict(&mut self, at: &str, cluster: &ClusterName, judgement: &Judgement) {
        let (allowed, by) = match &judgement.verdict {
            Verdict::Allow(by) => (true, by),
            Verdict::Deny(by) => (false, by),
        };
        let (policy, rule, commit) = match by {
            By::Rule { rule, .. } => (rule.policy.clone(), rule.rule.clone(), rule.commit.clone()),
            By::NoRuleMatched { policies } => {
                let names: Vec<_> = policies.iter().map(|one| one.policy.as_str()).collect();
                let commit = policies.first().map(|first| first.commit.clone()).unwrap_or_default();
                (names.join(", "), "no rule matched".into(), commit)
            }
            By::Default => ("default".into(), String::new(), String::new()),
        };
        let first = policy.split(", ").next().unwrap_or_default();
        let found = self.find(cluster, Kind::AuthorizationPolicy, first);
        let (file, line) = found.map(|said| place(said, &rule)).unwrap_or_default();
        self.0.authorization.push(ExplainedVerdict {
            at: at.to_owned(),
            allowed,
            policy,
            rule,
            file,
            line,
            commit,
        });
    }

    /// The object `namespace/name` of a kind that applies in `cluster`.
    fn find(&self, cluster: &ClusterName, kind: Kind, name: &str) -> Option<&'a Said> {
        self.1.inputs.configuration.objects.iter().find(|said| {
            let meta = said.resource.meta();
            said.resource.kind() == kind
                && meta.applies_in(cluster)
                && format!("{}/{}", meta.namespace(), meta.name) == name
        })
    }

    /// All that the `Mesh` says beside its trust domain. What has its default may have been said all the same.
    fn mesh(&mut self) {
        let mut objects = self.1.inputs.configuration.objects.iter();
        let said = objects.find_map(|said| Some((said, &said.resource.as_kind::<Mesh>()?.spec)));
        let Some((said, mesh)) = said else { return };
        let usual = json(Mesh::of(mesh.trust_domain.clone()));
        for (name, value) in json(mesh).as_object().into_iter().flatten() {
            if name != "trustDomain" {
                let is_usual = usual.get(name) == Some(value);
                self.setting(name, "", value, (!is_usual).then_some((said, said.line)));
            }
        }
    }

    /// Every group of the traffic policy in force at a backend, by what was said of it, narrowest first.
    fn traffic(&mut self, at: &str, said: Vec<(&TrafficPolicy, &Said)>) {
        let specs: Vec<_> = said.iter().map(|(policy, _)| *policy).collect();
        let effective = json(traffic::merge(&specs));
        for (group, origin) in traffic::origins(&specs) {
            let origin = origin.map(|place| (said[place].1, said[place].1.line));
            self.setting(group, at, effective.get(group).unwrap_or(&Value::Null), origin);
        }
    }

    /// A value in force, and who says it in which line. Where another backend has another one, it is that of `at`.
    fn setting(&mut self, name: &str, at: &str, value: &Value, origin: Option<(&Said, u32)>) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let said = |(said, line): (&Said, u32)| format!("{}, {}:{line}", said.resource.key(), said.file);
        let origin = origin.map_or_else(|| "default".to_owned(), said);
        let setting = ExplainedSetting { value, origin };
        let differs = self.0.settings.get(name).is_some_and(|known| *known != setting);
        let name = if differs { format!("{name} at {at}") } else { name.to_owned() };
        self.0.settings.insert(name, setting);
    }
}

/// Where a rule of an object stands, or the object, when no rule of it is meant.
fn place(said: &Said, rule: &str) -> (String, u32) {
    let place = rule_place(&said.resource, rule);
    (said.file.clone(), place.and_then(|place| said.rules.get(place).copied()).unwrap_or(said.line))
}
