//! Routes compiled: matches in the order of the Gateway API's precedence, filters ready to be applied.

mod filter;
mod matching;

use std::{cmp::Reverse, sync::Arc, time::Duration};

use api::{name::ServiceName, wire};
use http::HeaderMap;
use policies::{Authorizer, Reads};

pub use filter::{Filters, HeaderChange, PathChange, Redirect, Rewrite};
use matching::Match;

use crate::compile::Fault;

/// Rules in the order in which they are tried, for the hosts that they are for.
#[derive(Debug)]
pub struct Table {
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Host {
    /// The host name of the listener that it is of; empty: any.
    listener: String,
    patterns: Vec<String>,
    rules: Vec<Rule>,
    /// Each match of each rule, with the rule's place. Invariant: sorted by precedence.
    candidates: Vec<(Match, usize)>,
}

/// What is done with the requests that match.
#[derive(Debug)]
pub struct Rule {
    /// `HTTPRoute ns/name`.
    pub route: Arc<str>,
    /// Its name or index.
    pub name: Arc<str>,
    /// The commit that last changed the route.
    pub commit: Arc<str>,
    /// Changes that hold for every backend.
    pub filters: Filters,
    /// Who answers, by weight.
    pub split: Split,
    /// For the whole exchange, where the route says so; zero: without end, whatever the service says.
    pub request_timeout: Option<Duration>,
    /// For one try; zero: without end.
    pub backend_timeout: Option<Duration>,
    /// What differs from the service's retry.
    pub retry: Option<wire::RouteRetry>,
    /// Names of the policies attached to the route.
    pub policies: Vec<String>,
    /// Where policies are attached to the route: the judge of these and of those of its listener, as one set. Filled in
    /// by the runtime.
    pub(crate) authorizer: Option<Arc<Authorizer>>,
    ports: Vec<u16>,
}

/// Backends with their weights. Invariant: `total` is the sum of the weights.
#[derive(Debug, Default)]
pub struct Split {
    backends: Vec<Backend>,
    total: u64,
}

/// One backend of a rule.
#[derive(Debug)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Changes for this backend alone.
    pub filters: Filters,
    /// Why it cannot be reached by configuration: 500 for its share.
    pub unresolved: Option<String>,
    /// Its weight.
    pub weight: u32,
}

/// What of a request a route may look at.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// In lower case, without port.
    pub host: &'a str,
    /// The port of the service that was addressed (mesh), or of the listener (gateway).
    pub port: u16,
    /// The method.
    pub method: &'a str,
    /// Normalised.
    pub path: &'a str,
    /// Without `?`.
    pub query: &'a str,
    /// All of them.
    pub headers: &'a HeaderMap,
}

impl Table {
    /// Reads a table, sorted by precedence.
    pub(crate) fn compile(table: wire::RouteTable) -> Result<Self, Fault> {
        let hosts = table.hosts.into_iter().map(Host::compile).collect::<Result<_, _>>()?;
        Ok(Table { hosts })
    }

    /// Every service that its rules may call.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.rules().flat_map(|rule| rule.split.backends.iter())
    }

    fn rules(&self) -> impl Iterator<Item = &Rule> {
        self.hosts.iter().flat_map(|host| &host.rules)
    }

    /// What the policies attached to its rules read.
    pub(crate) fn reads(&self) -> Reads {
        let judges = self.rules().filter_map(|rule| rule.authorizer.as_ref());
        judges.fold(Reads::NONE, |reads, judge| reads.union(judge.reads()))
    }

    /// Gives each rule its judge.
    pub(crate) fn authorize(
        &mut self,
        mut judge: impl FnMut(&[String]) -> Result<Option<Arc<Authorizer>>, Fault>,
    ) -> Result<(), Fault> {
        for rule in self.hosts.iter_mut().flat_map(|host| &mut host.rules) {
            rule.authorizer = judge(&rule.policies)?;
        }
        Ok(())
    }

    /// Whether any rule is for this port; requests to a port that none is for go on as if there were no routes.
    pub fn covers(&self, port: u16) -> bool {
        self.rules().any(|rule| rule.is_for(port))
    }

    /// The rule for a request and the prefix that it matched by; `None` when nothing matches.
    ///
    /// The listener with the closest host name takes a request, and only its routes (Gateway API, Listener.hostname).
    pub fn find(&self, subject: &Subject<'_>) -> Option<(&Rule, Option<&str>)> {
        let closest = self.hosts.iter().filter_map(|host| host.listens_to(subject.host)).max()?;
        self.hosts
            .iter()
            .filter(|host| host.listens_to(subject.host) == Some(closest))
            .filter_map(|host| host.specificity(subject.host).map(|rank| (rank, host)))
            .filter_map(|(rank, host)| host.find(subject).map(|found| (rank, found)))
            // The first of equals, as among the rules of one host.
            .min_by_key(|(rank, _)| Reverse(*rank))
            .map(|(_, found)| found)
    }
}

impl Host {
    fn compile(host: wire::VirtualHost) -> Result<Self, Fault> {
        let rules = host.rules.iter().map(Rule::compile).collect::<Result<_, _>>()?;
        let mut candidates = Vec::new();
        for (place, rule) in host.rules.into_iter().enumerate() {
            let everything = rule.matches.is_empty().then(wire::Match::default);
            for one in rule.matches.into_iter().chain(everything) {
                candidates.push((Match::compile(one)?, place));
            }
        }
        // Stable: ties keep the order in which the control plane sent them.
        candidates.sort_by_key(|(one, _)| one.precedence());
        Ok(Host { listener: host.listener, patterns: host.hosts, rules, candidates })
    }

    /// How closely its listener's host name fits: `None` when not at all.
    fn listens_to(&self, host: &str) -> Option<usize> {
        if self.listener.is_empty() { Some(0) } else { fits(&self.listener, host) }
    }

    /// How closely this host's patterns fit: `None` when not at all, exact above any wildcard.
    fn specificity(&self, host: &str) -> Option<usize> {
        if self.patterns.is_empty() {
            return Some(0);
        }
        self.patterns.iter().filter_map(|pattern| fits(pattern, host)).max()
    }

    fn find(&self, subject: &Subject<'_>) -> Option<(&Rule, Option<&str>)> {
        self.candidates.iter().find_map(|(one, place)| {
            let rule = &self.rules[*place];
            let holds = rule.is_for(subject.port) && one.holds(subject);
            holds.then(|| (rule, one.prefix()))
        })
    }
}

fn fits(pattern: &str, host: &str) -> Option<usize> {
    match pattern.strip_prefix('*') {
        None if pattern == host => Some(usize::MAX),
        None => None,
        // `*.example` stands for at least one label more (Gateway API, Hostname).
        Some(suffix) if host.len() > suffix.len() && host.ends_with(suffix) => Some(pattern.len()),
        Some(_) => None,
    }
}

impl Rule {
    fn compile(rule: &wire::Rule) -> Result<Self, Fault> {
        Ok(Rule {
            route: rule.route.as_str().into(),
            name: rule.rule.as_str().into(),
            commit: rule.commit.as_str().into(),
            filters: Filters::compile(&rule.filters)?,
            split: Split::compile(&rule.backends)?,
            request_timeout: rule.request_timeout_ms.map(Duration::from_millis),
            backend_timeout: rule.backend_timeout_ms.map(Duration::from_millis),
            retry: rule.retry.clone(),
            policies: rule.policies.clone(),
            authorizer: None,
            ports: rule.ports.iter().map(|port| crate::compile::port(*port)).collect::<Result<_, _>>()?,
        })
    }

    fn is_for(&self, port: u16) -> bool {
        self.ports.is_empty() || self.ports.contains(&port)
    }
}

impl Split {
    fn compile(backends: &[wire::Backend]) -> Result<Self, Fault> {
        let backends = backends.iter().map(Backend::compile).collect::<Result<Vec<_>, _>>()?;
        let total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        Ok(Split { backends, total })
    }

    /// The backend for this chance; `None` when there is none, or all weigh nothing.
    pub fn choose(&self, chance: u64) -> Option<&Backend> {
        let mut at = chance.checked_rem(self.total)?;
        self.backends.iter().find(|backend| match at.checked_sub(u64::from(backend.weight)) {
            Some(rest) => {
                at = rest;
                false
            }
            None => true,
        })
    }

    /// All of them with their share in percent.
    pub fn shares(&self) -> impl Iterator<Item = (&Backend, f64)> {
        let total = self.total.max(1) as f64;
        self.backends.iter().map(move |backend| (backend, f64::from(backend.weight) * 100.0 / total))
    }
}

impl Backend {
    fn compile(backend: &wire::Backend) -> Result<Self, Fault> {
        let unresolved = Some(backend.unresolved.clone()).filter(|reason| !reason.is_empty());
        let port = if unresolved.is_some() { 0 } else { crate::compile::port(backend.port)? };
        Ok(Backend {
            service: format!("{}/{}", backend.namespace, backend.name).parse().map_err(Fault::new)?,
            port,
            filters: Filters::compile(&backend.filters)?,
            unresolved,
            weight: backend.weight,
        })
    }
}

#[cfg(test)]
mod tests;
