//! Stage seven: what is done with one request. Pure and total: any error inside is a refusal.

use std::{borrow::Cow, net::Ipv6Addr, time::Duration};

use api::endpoint::{self, EndpointId};
use http::HeaderValue;
use policies::{Judgement, Verdict, facts::Facts};

use crate::{
    compile::{Inbound, Runtime, Service, ServicePort},
    route::{Backend, Filters, Redirect, Rule, Subject},
};

/// Where a request was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// On its way out of a workload. What is no HTTP request asks for the destination's address.
    Outbound {
        /// Whether the control plane has said that nobody knows the host.
        known_absent: bool,
    },
    /// On its way into this workload's port.
    Inbound {
        /// The application's port.
        port: u16,
    },
    /// At a gateway's listener.
    Gateway {
        /// The listener's port.
        port: u16,
    },
}

/// What is done with a request.
#[derive(Debug)]
pub enum Decision<'r> {
    /// It goes on.
    Forward(Plan<'r>),
    /// It is answered here, by a redirect.
    Answer {
        /// The status and where to.
        redirect: &'r Redirect,
        /// Where to: the `Location`.
        location: String,
        /// Which rule says so.
        rule: &'r Rule,
        /// Who let it pass, where something guards.
        judgement: Option<Judgement>,
    },
    /// It ends here.
    Refuse(Refusal<'r>),
    /// Nobody has said yet who this host is: ask, then decide again.
    Unknown {
        /// In lower case, without port.
        host: String,
    },
}

/// How a request goes on.
#[derive(Debug)]
pub struct Plan<'r> {
    /// Where to.
    pub target: Target<'r>,
    /// The rule of the route, if one matched.
    pub rule: Option<&'r Rule>,
    /// The backend of that rule.
    pub backend: Option<&'r Backend>,
    /// The path instead of the one that came.
    pub path: Option<String>,
    /// The host instead of the one that came.
    pub host: Option<&'r HeaderValue>,
    /// For the whole exchange.
    pub request_timeout: Option<Duration>,
    /// For one try.
    pub backend_timeout: Option<Duration>,
    /// Who let it pass, where something guards.
    pub judgement: Option<Judgement>,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Target<'r> {
    /// The application beside this proxy.
    Application(&'r Inbound),
    /// A service of the mesh.
    Service {
        /// The service.
        service: &'r Service,
        /// Its port.
        port: &'r ServicePort,
        /// The one endpoint that was asked for by its own address.
        endpoint: Option<&'r EndpointId>,
    },
    /// A host that the mesh does not know, as it was named.
    Direct {
        /// In lower case, without port.
        host: String,
        /// The port.
        port: u16,
    },
}

impl<'r> Decision<'r> {
    /// The same, at this endpoint alone.
    fn at_endpoint(mut self, only: &'r EndpointId) -> Self {
        if let Decision::Forward(Plan { target: Target::Service { endpoint, .. }, .. }) = &mut self {
            *endpoint = Some(only);
        }
        self
    }
}

impl Plan<'_> {
    /// The filters to apply, the rule's before the backend's.
    pub fn filters(&self) -> impl Iterator<Item = &Filters> {
        self.rule.map(|rule| &rule.filters).into_iter().chain(self.backend.map(|backend| &backend.filters))
    }
}

/// Why a request ends here.
#[derive(Debug)]
pub struct Refusal<'r> {
    /// 400, 403, 404, 500 or 502.
    pub status: u16,
    /// For the access log.
    pub flag: Flag,
    /// In words, for the log: never shown to the client of a policy's refusal.
    pub reason: Cow<'static, str>,
    /// The rule of the route, if one matched.
    pub rule: Option<&'r Rule>,
    /// What the policies said, if they did.
    pub judgement: Option<Judgement>,
}

/// The short word for a refusal in logs and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Flag {
    /// A policy.
    Denied,
    /// Plaintext where mTLS is asked for.
    MtlsRequired,
    /// No route matches.
    NoRoute,
    /// The route's backend cannot be reached by configuration.
    NoBackend,
    /// Nobody knows the host, and only known ones may be called.
    UnknownHost,
    /// The request makes no sense here.
    BadRequest,
}

impl Flag {
    /// As logs and metrics write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Flag::Denied => "denied",
            Flag::MtlsRequired => "mtls-required",
            Flag::NoRoute => "no-route",
            Flag::NoBackend => "no-backend",
            Flag::UnknownHost => "unknown-host",
            Flag::BadRequest => "bad-request",
        }
    }
}

impl Runtime {
    /// What is done with the request of these facts, met at `at`. `chance` chooses among weighted backends.
    pub fn decide(&self, at: At, facts: &Facts<'_>, chance: u64) -> Decision<'_> {
        match at {
            At::Outbound { known_absent } => self.outbound(known_absent, facts, chance),
            At::Inbound { port } => self.inbound_decision(port, facts),
            At::Gateway { port } => self.gateway(port, facts, chance),
        }
    }

    fn inbound_decision(&self, port: u16, facts: &Facts<'_>) -> Decision<'_> {
        let Some(inbound) = self.inbound.iter().find(|inbound| inbound.port == port) else {
            return refuse(404, Flag::NoRoute, "this workload serves no such port");
        };
        if inbound.mtls == api::wire::MtlsMode::Strict && facts.source.peer.is_none() {
            return refuse(
                403,
                Flag::MtlsRequired,
                "mTLS is STRICT here and the caller showed no certificate",
            );
        }
        let judgement = inbound.authorizer.judge(facts);
        match judgement.verdict {
            Verdict::Deny(_) => denied(judgement, None),
            Verdict::Allow(_) => Decision::Forward(Plan {
                target: Target::Application(inbound),
                rule: None,
                backend: None,
                path: None,
                host: None,
                request_timeout: None,
                backend_timeout: None,
                judgement: Some(judgement),
            }),
        }
    }

    fn outbound(&self, known_absent: bool, facts: &Facts<'_>, chance: u64) -> Decision<'_> {
        if facts.request.is_none() {
            let address = facts.destination.address;
            let host = endpoint::host(address.ip());
            return match self.service_at(&host) {
                Some(service) => self.to_service(service, address.port(), None, None, facts, None),
                None => self.to_no_service(host, address.port(), known_absent, facts),
            };
        }
        let Some((subject, port)) = subject(facts) else {
            return refuse(400, Flag::BadRequest, "the request names no usable host");
        };
        let Some(service) = self.service_at(subject.host) else {
            return self.to_no_service(subject.host.to_owned(), port, known_absent, facts);
        };
        let Some(table) = self.routes.get(&service.name).filter(|table| table.covers(port)) else {
            return self.to_service(service, port, None, None, facts, None);
        };
        match table.find(&subject.view(port)) {
            None => refuse(404, Flag::NoRoute, "no rule of the service's routes matches"),
            Some(found) => self.follow(found, port, facts, chance, None),
        }
    }

    /// To a host that no service has: the address of an endpoint, or nobody's.
    fn to_no_service(&self, host: String, port: u16, known_absent: bool, facts: &Facts<'_>) -> Decision<'_> {
        if let Some(reached) = self.reached(&host) {
            let found = reached.iter().find(|reached| reached.port == port);
            let target = found.and_then(|reached| {
                let port = reached.service.ports.iter().find(|known| known.target == port)?;
                Some((port.port, reached))
            });
            if let Some((port, reached)) = target {
                let to = self.to_service(&reached.service, port, None, None, facts, None);
                return to.at_endpoint(&reached.endpoint);
            }
        } else if !known_absent {
            return Decision::Unknown { host };
        }
        match self.mesh.registry_only {
            true => refuse(502, Flag::UnknownHost, "nobody in the mesh knows this host"),
            false => direct(host, port),
        }
    }

    fn gateway(&self, port: u16, facts: &Facts<'_>, chance: u64) -> Decision<'_> {
        let Some(listener) = self.listeners.get(&port) else {
            return refuse(404, Flag::NoRoute, "the gateway has no listener at this port");
        };
        let Some((subject, _)) = subject(facts) else {
            return refuse(400, Flag::BadRequest, "the request names no usable host");
        };
        let found = listener.table.find(&subject.view(port));
        // The rule's own judge has the policies of the listener too.
        let own = found.and_then(|(rule, _)| rule.authorizer.as_ref());
        let judgement = own.unwrap_or(&listener.authorizer).judge(facts);
        if matches!(judgement.verdict, Verdict::Deny(_)) {
            return denied(judgement, found.map(|(rule, _)| rule));
        }
        match found {
            Some(found) => self.follow(found, port, facts, chance, Some(judgement)),
            None => Decision::Refuse(Refusal {
                status: 404,
                flag: Flag::NoRoute,
                reason: "no route of this gateway matches".into(),
                rule: None,
                judgement: Some(judgement),
            }),
        }
    }

    /// Where the rule leads that was found, with the prefix that it matched by, for what came to this port of a listener
    /// or a service.
    fn follow<'r>(
        &'r self,
        (rule, prefix): (&'r Rule, Option<&str>),
        port: u16,
        facts: &Facts<'_>,
        chance: u64,
        judgement: Option<Judgement>,
    ) -> Decision<'r> {
        if let Some(redirect) = &rule.filters.redirect {
            let location = location(redirect, prefix, port, facts);
            return Decision::Answer { redirect, location, rule, judgement };
        }
        let Some(backend) = rule.split.choose(chance) else {
            return refuse_by(rule, "the rule has no backend with weight", judgement);
        };
        if let Some(reason) = &backend.unresolved {
            return refuse_by(rule, reason.clone(), judgement);
        }
        match self.service(&backend.service) {
            None => refuse_by(rule, format!("{} is missing from the view", backend.service), judgement),
            Some(service) => {
                self.to_service(service, backend.port, Some((rule, prefix)), Some(backend), facts, judgement)
            }
        }
    }

    fn to_service<'r>(
        &'r self,
        service: &'r Service,
        port: u16,
        rule: Option<(&'r Rule, Option<&str>)>,
        backend: Option<&'r Backend>,
        facts: &Facts<'_>,
        judgement: Option<Judgement>,
    ) -> Decision<'r> {
        let Some(port) = service.port(port) else {
            let reason = format!("{} has no port {port}", service.name);
            return Decision::Refuse(Refusal {
                status: 502,
                flag: Flag::NoBackend,
                reason: reason.into(),
                rule: rule.map(|(rule, _)| rule),
                judgement,
            });
        };
        let (rule, prefix) = rule.unzip();
        let rewrites =
            || rule.iter().map(|rule| &rule.filters).chain(backend.iter().map(|backend| &backend.filters));
        let rewrite = rewrites().filter_map(|filters| filters.rewrite.as_ref()).next_back();
        let path = facts.request.map_or("/", |request| request.path);
        let limits = &port.traffic.timeouts;
        let own = limits.as_ref().and_then(|limits| crate::compile::positive(limits.request_ms));
        Decision::Forward(Plan {
            target: Target::Service { service, port, endpoint: None },
            rule,
            backend,
            path: rewrite.and_then(|rewrite| rewrite.path.as_ref()).map(|c| c.apply(path, prefix.flatten())),
            host: rewrite.and_then(|rewrite| rewrite.hostname.as_ref()),
            // Zero, where the route says so, switches the service's off (Gateway API, HTTPRouteTimeouts).
            request_timeout: rule
                .and_then(|rule| rule.request_timeout)
                .or(own)
                .filter(|time| !time.is_zero()),
            backend_timeout: rule.and_then(|rule| rule.backend_timeout).filter(|time| !time.is_zero()),
            judgement,
        })
    }
}

/// What of the facts routing looks at, with the host apart from its port.
struct Routed<'a> {
    host: &'a str,
    method: &'a str,
    path: &'a str,
    query: &'a str,
    headers: &'a http::HeaderMap,
}

impl Routed<'_> {
    fn view(&self, port: u16) -> Subject<'_> {
        Subject {
            host: self.host,
            port,
            method: self.method,
            path: self.path,
            query: self.query,
            headers: self.headers,
        }
    }
}

fn subject<'a>(facts: &Facts<'a>) -> Option<(Routed<'a>, u16)> {
    let request = facts.request?;
    let (host, port) = split_authority(request.host)?;
    let default = if request.scheme == "https" { 443 } else { 80 };
    let routed = Routed {
        host,
        method: request.method,
        path: request.path,
        query: request.query,
        headers: request.headers,
    };
    Some((routed, port.unwrap_or(default)))
}

/// Host and port of an authority; `None` when it is no host, or its port no number. IPv6 keeps its brackets.
pub fn split_authority(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            // A number is digits: `+80` would be one more text for the same port.
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            (host, Some(port.parse().ok().filter(|_| digits)?))
        }
        _ => (authority, None),
    };
    is_host(host).then_some((host, port))
}

/// Whether it is a name or an address and nothing else: what is judged as a host must not be read as another's, such as
/// `user@host`.
fn is_host(host: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => host.bytes().all(is_part) && host.bytes().any(|byte| byte != b'.'),
    }
}

fn direct(host: String, port: u16) -> Decision<'static> {
    Decision::Forward(Plan {
        target: Target::Direct { host, port },
        rule: None,
        backend: None,
        path: None,
        host: None,
        request_timeout: None,
        backend_timeout: None,
        judgement: None,
    })
}

fn refuse(status: u16, flag: Flag, reason: &'static str) -> Decision<'static> {
    Decision::Refuse(Refusal { status, flag, reason: reason.into(), rule: None, judgement: None })
}

/// A backend that configuration cannot reach answers 500 for its share (Gateway API, BackendRef).
fn refuse_by(
    rule: &Rule,
    reason: impl Into<Cow<'static, str>>,
    judgement: Option<Judgement>,
) -> Decision<'_> {
    let reason = reason.into();
    Decision::Refuse(Refusal { status: 500, flag: Flag::NoBackend, reason, rule: Some(rule), judgement })
}

fn denied(judgement: Judgement, rule: Option<&Rule>) -> Decision<'_> {
    let reason = judgement.verdict.to_string().into();
    Decision::Refuse(Refusal { status: 403, flag: Flag::Denied, reason, rule, judgement: Some(judgement) })
}

/// `here` is the port that the request came to, whatever its `Host` says.
fn location(redirect: &Redirect, prefix: Option<&str>, here: u16, facts: &Facts<'_>) -> String {
    let Some(request) = facts.request else { return String::new() };
    let (host, _) = split_authority(request.host).unwrap_or((request.host, None));
    let scheme = redirect.scheme.as_deref().unwrap_or(request.scheme);
    let host = redirect.hostname.as_deref().unwrap_or(host);
    // A scheme that is said brings its own port; otherwise it is the listener's (Gateway API, HTTPRequestRedirectFilter).
    let port = redirect.port.or(redirect.scheme.is_none().then_some(here));
    let path = match &redirect.path {
        Some(change) => Cow::Owned(change.apply(request.path, prefix)),
        None => Cow::Borrowed(request.path),
    };
    let port = match (scheme, port) {
        (_, None) | ("http", Some(80)) | ("https", Some(443)) => String::new(),
        (_, Some(port)) => format!(":{port}"),
    };
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    format!("{scheme}://{host}{port}{path}{query}")
}

#[cfg(test)]
mod tests;
